"""Which parts of a title are looked at, and how they are cut out of its frames."""

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from vqaloop.media.frames import CLIP_FRAMES, CLIP_SIZE, Frames, cut

POSITIONS = 8
"""Places in time at which a title is looked at."""
CLIPS_EACH = 16
"""Crops looked at in each place; fewer where the picture has no room for so many."""

Where = Mapping[int, list[tuple[int, int]]]
"""{first frame: [(top, left), ...]}, in luma pixels."""


def spots(frames: int, size: tuple[int, int], seed: int = 0, positions: int = POSITIONS) -> Where:
    """Which crops of a title are looked at: {first frame: [(top, left), ...]}, all even.

    Stratified over time and over the picture, with seeded jitter; the same title, seed and size
    always give the same crops, so that every rung is judged on the same ones.
    """
    width, height = (max(side, CLIP_SIZE) for side in size)
    rng = np.random.default_rng([seed, frames, width, height])
    last = max(0, frames - CLIP_FRAMES)
    count = min(positions, last // CLIP_FRAMES + 1)
    edges = np.linspace(0, last + 1, count + 1)
    starts = np.unique(np.minimum((edges[:-1] + rng.random(count) * np.diff(edges)), last))
    # a Latin square over the picture, so that no part of it is looked at twice while another waits
    rows, columns = (height - CLIP_SIZE) // 2 + 1, (width - CLIP_SIZE) // 2 + 1
    each = min(CLIPS_EACH, rows * columns)
    total = len(starts) * each
    y, x = ((rng.permutation(total) + rng.random(total)) / total for _ in range(2))
    tops = (y * rows).astype(int) * 2
    lefts = (x * columns).astype(int) * 2
    places = [(int(t), int(left)) for t, left in zip(tops, lefts, strict=True)]
    chosen: dict[int, list[tuple[int, int]]] = {}
    for i, start in enumerate(starts.astype(int)):
        chosen.setdefault(int(start), []).extend(places[i * each : (i + 1) * each])
    return chosen


def read_clips(where: Where, count: int, read: Callable[[list[int]], Iterable[Frames]]) -> Frames:
    """(B, T, rows, S) crops at `where`; `read` gives frames by ascending index, (H·3/2, W) each.

    No more than one frame is held at a time, unless `read` holds them.
    """
    wanted: dict[int, list[tuple[int, int, int, int]]] = {}
    places = [(start, *place) for start, group in where.items() for place in group]
    for clip, (start, top, left) in enumerate(places):
        for step in range(CLIP_FRAMES):
            row = wanted.setdefault(min(start + step, count - 1), [])
            row.append((clip, step, top, left))
    clips = np.empty((len(places), CLIP_FRAMES, CLIP_SIZE * 3 // 2, CLIP_SIZE), np.uint8)
    indices = sorted(wanted)
    for index, frame in zip(indices, read(indices), strict=True):
        padded = _padded(frame[None])
        for clip, step, top, left in wanted[index]:
            clips[clip, step] = cut(padded, top, left, CLIP_SIZE, CLIP_SIZE)[0]
    return clips


def _padded(frames: Frames) -> Frames:
    """Frames smaller than a crop, their last row and column repeated up to its size."""
    count, rows, width = frames.shape
    height = rows * 2 // 3
    if height >= CLIP_SIZE and width >= CLIP_SIZE:
        return frames
    tall, wide = max(height, CLIP_SIZE), max(width, CLIP_SIZE)
    luma = np.pad(frames[:, :height], ((0, 0), (0, tall - height), (0, wide - width)), mode="edge")
    chroma = np.pad(
        frames[:, height:].reshape(count, 2, height // 2, width // 2),
        ((0, 0), (0, 0), (0, (tall - height) // 2), (0, (wide - width) // 2)),
        mode="edge",
    )
    return np.concatenate([luma, chroma.reshape(count, tall // 2, wide)], 1)
