"""The scenes of a source and how busy its frames are, found without decoding.

Of a compressed source only the packets' sizes are read: a scene cut shows in a key frame off the
encoder's schedule or unlike its forerunner, or in a predicted frame as large as a key frame; of
intra-only codecs (FFV1, ProRes) in a jump of sizes. Of raw video (y4m, yuv) every frame's luma is
read on a few rows. A cut that is missed, or seen where there is none, costs a little precision and
biases nothing: places are only spread by it.
"""

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from vqaloop.bitstream.packets import packet_sizes
from vqaloop.core.files import as_of
from vqaloop.core.text import quoted
from vqaloop.errors import InputError, ToolError
from vqaloop.media.rawvideo import (
    MAX_HEADER_BYTES,
    Y4M_MAGIC,
    count_raw_frames,
    parse_y4m_header,
)
from vqaloop.media.scene_cuts import keep_cuts
from vqaloop.media.selective_decode import TROUBLE
from vqaloop.records import Source

LEAST_SCENE = 8
"""Frames of the shortest scene; of cuts that are nearer the strongest counts."""
MOST_READ = 3000
"""Frames of raw video that are read at most, evenly spread where there are more."""
GRID = 32
"""Rows of luma that are read of a raw frame, and the parts each is averaged in."""
SMOOTHING = 15
"""Frames over which activity is averaged."""
REST = 0.3
"""Activity, as a part of the title's mean, that a still frame counts as."""
DENSITY = (0.5, 2.0)
"""Bounds of how densely a frame's surroundings are sampled; 1 is about the mean."""

_WINDOW = 16
"""Frames before and after that a frame is compared with."""
_UNRELATED = 0.25
"""Squared difference of two frames' block means, as a part of their variances, from which there
may be a cut; of unrelated pictures it is about 1."""
_SPIKE = 4.0
"""How many times a cut of raw video exceeds the median of the differences around it."""
_INTRA_JUMP = 0.03
"""Least change of log size at a cut of intra-only video, whose sizes hardly vary in a scene."""
_INTRA_SPIKES = (1.5, 5.0)
"""How many times such a change exceeds the next largest around it, and the median there."""
_PREDICTED = (1.6, 0.35)
"""A predicted frame at a cut is so many times as large as the largest around it, and so large a
part of the nearest key frames."""
_KEY_JUMP, _LEVEL_JUMP = 0.25, 0.7
"""Change of log size from key frame to key frame, and of the frames between, at a cut."""
_LEAST_LEVEL = 4
"""Frames before and after, between key frames, that a level takes."""
_EARLY = 0.9
"""Part of the longest GOP below which a key frame came early, as encoders set them at cuts."""

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SourceActivity:
    """What decides where in time a title is sampled."""

    starts: tuple[int, ...]
    """First frame of each scene, ascending; the first is 0."""
    density: Values
    """Of each frame: how densely a title is sampled there, positive, in proportion."""

    @property
    def frames(self) -> int:
        """Frames of the title."""
        return len(self.density)

    @classmethod
    def flat(cls, frames: int, starts: Sequence[int] = (0,)) -> "SourceActivity":
        """Of a title of which nothing but its scenes is known."""
        return cls(tuple(starts), np.ones(frames))


def activity_of(source: Source) -> SourceActivity:
    """The activity of a source; flat where it cannot be read without decoding.

    The windows of an excerpt are its scenes.
    """
    if source.windows:
        return SourceActivity.flat(source.frames, source.windows)
    try:
        return _activity(
            source.path, as_of(source.path), source.frames, source.bit_depth, source.input_options
        )
    except (*TROUBLE, InputError, ToolError):
        return SourceActivity.flat(source.frames)


@functools.lru_cache(maxsize=64)
def _activity(
    path: Path,
    as_of: tuple[int, ...],
    frames: int,
    bit_depth: int,
    options: tuple[tuple[str, str], ...],
) -> SourceActivity:
    """`as_of` only tells one state of the file from another."""
    layout = _raw_layout(path, dict(options))
    if layout is None:
        packets = packet_sizes(path)
        sizes, keys = packets.sizes, packets.keys
        cuts, busy, step = packet_cuts(sizes, keys), sizes.copy(), frames / len(sizes)
        if not keys.all():
            # a key frame's size tells of detail, not of change
            at = np.flatnonzero(keys)
            busy[at] = sizes[np.minimum(at + 1, len(sizes) - 1)]
    else:
        luma, sampled = _read_luma(path, layout, bit_depth)
        cuts, busy = luma_cuts(luma)
        step = sampled * frames / layout.count
    # with filters that drop or repeat frames a cut is about where it was
    starts = keep_cuts({round(at * step): n for at, n in cuts.items()}, frames, LEAST_SCENE)
    at = np.minimum((np.arange(frames) / step).astype(int), len(busy) - 1)
    smooth = ndimage.uniform_filter1d(busy, max(1, round(SMOOTHING / step)), mode="nearest")[at]
    # the square root: errors of sampling grow with activity, but less than in proportion
    density = np.sqrt(REST + smooth / (smooth.mean() or 1.0))
    return SourceActivity((0, *starts), np.clip(density, *DENSITY))


def packet_cuts(sizes: Values, keys: npt.NDArray[np.bool_]) -> dict[int, float]:
    """First frames of scenes, with the strength of each cut (1 and more), of compressed video.

    Args:
        sizes: Bytes of each frame's packet, in order of display.
        keys: Which of them are key frames.
    """
    if keys.all():
        jumps = np.abs(np.diff(np.log(sizes), prepend=math.log(sizes[0])))
        second = ndimage.rank_filter(jumps, -2, size=_WINDOW + 1)
        usual = ndimage.median_filter(jumps, _WINDOW + 1)
        strength = np.minimum(jumps / _INTRA_JUMP, jumps / (_INTRA_SPIKES[0] * second + 1e-9))
        strength = np.minimum(strength, jumps / (_INTRA_SPIKES[1] * usual + 1e-9))
    else:
        strength = np.where(keys, _key_strength(sizes, keys), _predicted_strength(sizes, keys))
    return {int(at): float(strength[at]) for at in np.flatnonzero(strength > 1) if at}


def _predicted_strength(sizes: Values, keys: npt.NDArray[np.bool_]) -> Values:
    """How far predicted frames exceed what one at a cut has at least, 1 being as much."""
    around = np.ones(2 * _WINDOW + 1, bool)
    # neighbours of a cut may be large as well: they refer to the scene on its other side
    around[_WINDOW - 1 : _WINDOW + 2] = False
    predicted = np.where(keys, 0.0, sizes)
    largest = ndimage.maximum_filter(predicted, footprint=around, mode="constant")
    at = np.flatnonzero(keys)
    before = np.searchsorted(at, np.arange(len(sizes)), side="right") - 1
    nearest = [sizes[at[np.clip(before + side, 0, len(at) - 1)]] for side in (0, 1)]
    spike, part = _PREDICTED
    found: Values = np.minimum(
        sizes / (spike * largest + 1), sizes / (part * np.minimum(*nearest))
    )
    return found


def _key_strength(sizes: Values, keys: npt.NDArray[np.bool_]) -> Values:
    """The same of key frames."""
    found, at = np.zeros(len(sizes)), np.flatnonzero(keys)
    gaps = np.diff(at, append=len(sizes))
    for before, here in zip(at, at[1:], strict=False):
        jump = abs(math.log(sizes[here] / sizes[before])) / _KEY_JUMP
        sides = slice(max(0, here - _WINDOW), here), slice(here + 1, here + 1 + _WINDOW)
        levels = [sizes[side][~keys[side]] for side in sides]
        level = 0.0
        if all(len(part) >= _LEAST_LEVEL for part in levels):
            level = abs(math.log(levels[1].mean() / levels[0].mean())) / _LEVEL_JUMP
        # the schedule's own gap is the longest: an earlier key frame was set for its content
        early = 1.01 * (here - before < _EARLY * gaps.max())
        found[here] = max(jump, level, early)
    return found


@dataclass(frozen=True)
class _Layout:
    """Where the luma of a raw file's frames is, in bytes."""

    first: int
    frame_bytes: int
    """From one frame to the next."""
    count: int
    width: int
    height: int


def _raw_layout(path: Path, options: dict[str, str]) -> _Layout | None:
    """None for a file that is no raw video. InputError where frames are not all of one length."""
    if options.get("f") == "rawvideo":
        width, height = map(int, options["video_size"].split("x"))
        count = count_raw_frames(path, options["pixel_format"], width, height)
        return _Layout(0, os.stat(path).st_size // count, count, width, height)
    with open(path, "rb") as file:
        head = file.read(MAX_HEADER_BYTES)
    if not head.startswith(Y4M_MAGIC):
        return None
    header, line = parse_y4m_header(head, path.name), len(b"FRAME\n")
    size = header.frame_bytes + line
    count, rest = divmod(os.stat(path).st_size - header.header_bytes, size)
    if rest:
        raise InputError(f"{quoted(path)} has parameters in its FRAME lines")
    return _Layout(header.header_bytes + line, size, count, header.width, header.height)


def _read_luma(path: Path, layout: _Layout, bit_depth: int) -> tuple[Values, int]:
    """(N, rows, parts) means of luma on some rows of every `step`th frame, and that step.

    Of packed formats it is the mean of all that a pixel holds, which serves as well.
    """
    kind = np.dtype("<u2" if bit_depth > 8 else "u1")
    step = -(-layout.count // MOST_READ)
    rows = np.linspace(0, layout.height - 1, min(GRID, layout.height)).astype(int)
    parts = np.linspace(0, layout.width, min(GRID, layout.width), endpoint=False).astype(int)
    row_bytes = layout.width * kind.itemsize
    frames = []
    with open(path, "rb") as file:
        for index in range(0, layout.count, step):
            means = []
            for row in rows:
                file.seek(layout.first + index * layout.frame_bytes + row * row_bytes)
                samples = np.frombuffer(file.read(row_bytes), kind).astype(float)
                means.append(np.add.reduceat(samples, parts) / np.diff(parts, append=len(samples)))
            frames.append(means)
    return np.array(frames), step


def luma_cuts(luma: Values) -> tuple[dict[int, float], Values]:
    """First frames of scenes, with the strength of each cut, and the activity of each frame.

    Args:
        luma: (N, rows, parts) block means.
    """
    if len(luma) < 2:
        return {}, np.ones(len(luma))
    squares = np.diff(luma, axis=0) ** 2
    spread = luma.var((1, 2))
    changes = np.zeros(len(luma))
    changes[1:] = squares.mean((1, 2)) / (spread[1:] + spread[:-1] + 1)
    usual = ndimage.median_filter(changes, _WINDOW + 1)
    strength = np.minimum(changes / _UNRELATED, changes / (_SPIKE * usual + 1e-9))
    activity = np.sqrt(squares).mean((1, 2))
    activity = np.concatenate([activity[:1], activity])
    cuts = {int(at): float(strength[at]) for at in np.flatnonzero(strength > 1)}
    for at in cuts:
        # a cut itself is no activity of its scene
        activity[at] = activity[at - 1]
    return cuts, activity
