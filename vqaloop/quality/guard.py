"""The guard: figures of a delivered file by metrics that had no part in choosing it.

One run of ffmpeg and one decode of file and source give all of them. In full PSNR-Y and XPSNR take
all frames. VMAF, VMAF v1 and CAMBI, which cost most, take every third frame: it has no divisor in
common with the usual 4, 8 or 16 frames from one reference picture to the next, whose quality
differs; with every second or fourth frame the mean is off by up to 4 points. Of a long title only
frames at sampled places are decoded and measured (`quality/guard_places.py`), and each figure has
an interval. docs/scoring.md has what both cost, and how far they are from all frames.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from vqaloop.quality import full_reference
from vqaloop.quality.crop_sampling import CropSampling
from vqaloop.quality.full_reference import CAMBI, can_measure, is_4k
from vqaloop.records import Score, Source

MODES = ("full", "sampled", "off")
"""What --guard takes."""
EVERY = {"vmaf": 3, "psnr": 1, "vmaf-v1": 3, "xpsnr": 1, "vmaf-hd": 3, CAMBI: 3}
"""Metrics of the guard, and of how many frames each takes one."""

FIGURES = {
    "vmaf": "vmaf",
    "psnr": "psnr_y",
    "vmaf-v1": "vmaf_v1",
    "xpsnr": "xpsnr",
    "vmaf-hd": "vmaf_hd",
    CAMBI: CAMBI,
}
"""Their names in ladder.json."""

WORST_SECOND = "vmaf_worst_s"
"""Name of the lowest mean VMAF of a second."""

SAMPLED_ABOVE = 240
"""Frames of a title above which the guard is sampled unless asked otherwise: there its places cost
a quarter of all frames at most (docs/scoring.md)."""
SAMPLING = CropSampling(positions=16, seed=101)
"""Where a title is sampled: at other places than where a student looks."""


@dataclass(frozen=True)
class GuardPlan:
    """What the guard measures of an encode."""

    every: Mapping[str, int]
    """Metrics, and of how many frames each takes one."""
    sampling: CropSampling | None = None
    """Places at which they are measured instead; None: all over the title."""
    decoder: str = "pyav"
    """What decodes frames at places: pyav or ffmpeg."""

    def finer(self) -> "GuardPlan":
        """The same at more places; all over the title where it is so already."""
        return replace(self, sampling=self.sampling and self.sampling.finer())

    def only(self, names: Sequence[str]) -> "GuardPlan":
        """The same with these metrics alone."""
        return replace(self, every={name: self.every[name] for name in names})

    def frames(self, source: Source) -> int:
        """Frames of an encode that it looks at."""
        if self.sampling is None:
            return source.frames
        # here, as below: it brings decoders
        from vqaloop.quality.guard_places import WINDOW

        return WINDOW * self.places(source)

    def places(self, source: Source) -> int:
        """Places at which it samples a source; 0 where it does not."""
        from vqaloop.quality.guard_places import windows_of

        return len(windows_of(source, self.sampling)) if self.sampling else 0

    def identity(self, name: str) -> dict[str, Any]:
        """Which frames a metric takes, for cache keys."""
        if self.sampling is not None:
            from vqaloop.quality.guard_places import REVISION

            return {"places": REVISION, **self.sampling.identity()}
        return {"every": self.every[name]} if self.every[name] > 1 else {}

    def measure(
        self, source: Source, path: Path, *, ffmpeg: str, threads: int
    ) -> dict[str, Score]:
        """The scores. Raises as `full_reference.measure`."""
        if self.sampling is None:
            return full_reference.measure(source, path, self.every, ffmpeg=ffmpeg, threads=threads)
        from vqaloop.quality.guard_places import measure_places

        return measure_places(
            source,
            path,
            list(self.every),
            self.sampling,
            decoder=self.decoder,
            ffmpeg=ffmpeg,
            threads=threads,
        )


@dataclass(frozen=True)
class Guarded:
    """Figures of an encode by their names in ladder.json."""

    figures: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """95 % intervals of those that are sampled."""
    banding_at_s: float | None = None
    """When CAMBI is highest, in seconds."""

    @classmethod
    def of(cls, scores: Mapping[str, Score], source: Source) -> "Guarded":
        """Of the guard's scores by metric."""
        named = {FIGURES[name]: scores[name] for name in FIGURES if name in scores}
        figures = {name: score.value for name, score in named.items()}
        vmaf = scores["vmaf"]
        if not vmaf.moments:
            figures[WORST_SECOND] = worst_second(vmaf.clips, source.fps)
        return cls(
            figures,
            {name: score.interval for name, score in named.items() if score.interval},
            _highest_s(scores[CAMBI], source) if CAMBI in scores else None,
        )


def _highest_s(score: Score, source: Source) -> float:
    at = max(range(len(score.clips)), key=score.clips.__getitem__)
    return float((score.moments[at][0] if score.moments else at) / source.fps)


def guard_plan(source: Source, ffmpeg: str, mode: str | None, decoder: str) -> GuardPlan:
    """What is measured of encodes of a source by a mode of MODES but off; None: by its length."""
    sampled = mode == "sampled" or (mode is None and source.frames > SAMPLED_ABOVE)
    return GuardPlan(guard_metrics(source, ffmpeg), SAMPLING if sampled else None, decoder)


def guard_metrics(source: Source, ffmpeg: str) -> dict[str, int]:
    """Metrics of the guard for renditions of a source, and of how many frames each takes one.

    VMAF and PSNR always; VMAF v1 with CAMBI, and XPSNR, where the frames are large enough and
    this ffmpeg has them; on a canvas larger than 2560x1440 also v0.6.1, which students imitate at
    any size.
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
