"""The guard: figures of a delivered file by metrics that had no part in choosing it.

PSNR-Y and XPSNR take all frames. VMAF, which costs most, takes every third frame and VMAF v1 every
seventh: neither has a divisor in common with the usual 4, 8 or 16 frames from one reference
picture to the next, whose quality differs; with every second or fourth frame the mean is off by
up to 4 points. docs/scoring.md has what that costs, and how far it is from all frames.
"""

from collections.abc import Sequence
from fractions import Fraction

from vqaloop.quality.full_reference import can_measure, is_4k
from vqaloop.records import Source

EVERY = {"vmaf": 3, "psnr": 1, "vmaf-v1": 7, "xpsnr": 1, "vmaf-hd": 3}
"""Metrics of the guard, and of how many frames each takes one."""

FIGURES = {
    "vmaf": "vmaf",
    "psnr": "psnr_y",
    "vmaf-v1": "vmaf_v1",
    "xpsnr": "xpsnr",
    "vmaf-hd": "vmaf_hd",
}
"""Their names in ladder.json."""

WORST_SECOND = "vmaf_worst_s"
"""Name of the lowest mean VMAF of a second."""


def guard_metrics(source: Source, ffmpeg: str) -> dict[str, int]:
    """Metrics of the guard for renditions of a source, and of how many frames each takes one.

    VMAF and PSNR always; VMAF v1 and XPSNR where the frames are large enough and this ffmpeg has
    them; on a canvas larger than 2560x1440 also v0.6.1, which students imitate at any size.
    """
    return {
        # of a title so short that it would be judged by two frames all are taken
        name: every if source.frames > 2 * every else 1
        for name, every in EVERY.items()
        if name in ("vmaf", "psnr")
        or ((name != "vmaf-hd" or is_4k(source)) and can_measure(name, source, ffmpeg))
    }


def worst_second(values: Sequence[float], fps: Fraction) -> float:
    """The lowest mean over a second, wherever it begins; over all where there is less than one."""
    import numpy as np

    frames = min(max(1, round(fps)), len(values))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return float((sums[frames:] - sums[:-frames]).min() / frames)
