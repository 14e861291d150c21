"""VMAF of the encodes of a data set against their source, sampled, beside the opinion scores.

From it training learns a map from opinions to VMAF points (`models/score_scale.py`), the scale of
a ladder's rules. Frames are read as the data set's other clips are, so raw video and AVS2 streams
are measured as well.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vqaloop.errors import VqaloopError
from vqaloop.media.frame_stream import VideoFacts, stream_frames
from vqaloop.media.planes import Frames, cut
from vqaloop.quality.libvmaf import vmaf_of_pairs

PLACES = 8
"""Moments of a video, spread over its time."""
RUN = 4
"""Successive frames of a moment; the two in the middle count, the outer ones give them motion."""
BLOCK = (1280, 720)
"""Largest part of a picture that is measured, at another place at each moment: a 4K picture takes
nine times as long. VMAF of a part is not the whole's, but a map is fitted to many encodes."""
SAME_LENGTH = 0.1
"""Part by which lengths of encodes of one content may differ; some encoders drop last frames."""


def vmaf_of_encodes(
    source: Path,
    facts: dict[Path, VideoFacts],
    canvas: tuple[int, int],
    seed: Sequence[int],
    ffmpeg: str,
) -> dict[Path, float]:
    """VMAF v0.6.1 of encodes of a source, at the display size.

    Args:
        source: The pristine file, in `facts`.
        facts: Of it and of each encode.
        canvas: (width, height) of the display.
        seed: Of the places of blocks.
        ffmpeg: The ffmpeg program.

    Returns:
        Points by file; none of files that do not decode or match, nor of any where libvmaf takes
        no such picture.
    """
    width, height = canvas
    wide = min(width, BLOCK[0])
    tall = min(height, BLOCK[0] * BLOCK[1] // wide // 2 * 2)
    frames = facts[source].frames
    if frames < RUN:
        return {}
    firsts = np.linspace(0, frames - RUN, PLACES).round().astype(int)
    places = 2 * np.random.default_rng(seed).integers(
        0, ((height - tall) // 2 + 1, (width - wide) // 2 + 1), (PLACES, 2)
    )

    def read(file: Path) -> Frames:
        blocks = np.empty((PLACES, RUN, tall * 3 // 2, wide), np.uint8)
        wanted: dict[int, list[tuple[int, int]]] = {}
        for place, first in enumerate(firsts):
            for step in range(RUN):
                index = min(first + step, facts[file].frames - 1)
                wanted.setdefault(int(index), []).append((place, step))

        def take(index: int, frame: Frames) -> None:
            for place, step in wanted[index]:
                top, left = places[place]
                blocks[place, step] = cut(frame, int(top), int(left), tall, wide)[0]

        stream_frames(file, facts[file], sorted(wanted), canvas, take, ffmpeg=ffmpeg)
        return blocks.reshape(-1, *blocks.shape[2:])

    found: dict[Path, float] = {}
    try:
        pristine = read(source)
    except VqaloopError:
        return {}
    for file, fact in facts.items():
        if file == source or abs(fact.frames - frames) > frames * SAME_LENGTH:
            continue
        try:
            table = vmaf_of_pairs(pristine, read(file), ffmpeg=ffmpeg)
        except VqaloopError:
            continue
        points = table["vmaf"].to_numpy(float).reshape(PLACES, RUN)[:, 1:-1]
        found[file] = round(float(points.mean()), 3)
    return found
