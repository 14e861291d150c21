"""Which crops of a title a student scores, and how they are cut out of its frames.

A crop is CLIP_SIZE pixels square and CLIP_FRAMES frames long: one clip of the network's input.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vqaloop.media.planes import CLIP_FRAMES, CLIP_SIZE, Frames, cut
from vqaloop.quality.sampling_precision import FIRST

POSITIONS = 8
"""Positions in time at which a title is sampled."""
MOST_POSITIONS = 96
"""Most positions in time of a title of many scenes."""
FINER = 4
"""Factor on the positions in time where scores are in doubt."""
CROPS_EACH = 16
"""Crops at each position in time; fewer where the picture has no room for so many."""

Crops = Mapping[int, list[tuple[int, int]]]
"""{first frame: [(top, left), ...]}, in luma pixels."""


@dataclass(frozen=True)
class CropSampling:
    """All that decides which crops of a title are scored."""

    positions: int = POSITIONS
    """Positions in time, of the title or of each scene."""
    scenes: tuple[tuple[int, int], ...] = ()
    """(first frame, number of frames) of each scene; none: the title is sampled as one."""
    seed: int = 0
    """Of the jitter in time and in the picture."""
    precision: float | None = None
    """Half-width of the score's interval at which no further positions are scored; None: all."""

    def identity(self) -> dict[str, Any]:
        """The part of cache keys that names the crops; JSON values only."""
        found: dict[str, Any] = {
            "positions": self.positions,
            "clips": CROPS_EACH,
            "seed": self.seed,
        }
        if self.precision is not None:
            found |= {"precision": self.precision, "first": FIRST}
        if self.scenes:
            found["scenes"] = [list(scene) for scene in self.scenes]
        return found

    def finer(self) -> "CropSampling":
        """FINER times as many positions in time."""
        return replace(self, positions=self.positions * FINER, scenes=())

    def scene_by_scene(self, scenes: Sequence[tuple[int, int]]) -> "CropSampling":
        """Each scene sampled as if it were a title of its own, at fewer positions if many.

        With more than MOST_POSITIONS scenes the title is sampled as one, at as many positions.
        """
        positions = min(self.positions, MOST_POSITIONS // len(scenes))
        if not positions:
            return replace(self, positions=MOST_POSITIONS, scenes=())
        return replace(self, positions=positions, scenes=tuple(scenes))

    def crops(self, frames: int, size: tuple[int, int]) -> Crops:
        """The crops of a title of so many frames, `size` being (width, height)."""
        found: dict[int, list[tuple[int, int]]] = {}
        for first, count in self.scenes or [(0, frames)]:
            own = choose_crops(count, size, self.seed, self.positions)
            found |= {first + start: places for start, places in own.items()}
        return found

    def shares(self, times: Sequence[int]) -> list[float] | None:
        """The part of the title each time stands for, by its scene's length; None: equal parts."""
        if not self.scenes:
            return None
        scene_of = [
            next(scene for scene in reversed(self.scenes) if scene[0] <= time) for time in times
        ]
        return [scene[1] / scene_of.count(scene) for scene in scene_of]


def choose_crops(
    frames: int, size: tuple[int, int], seed: int = 0, positions: int = POSITIONS
) -> Crops:
    """Crops of a title: {first frame: [(top, left), ...]}, all even.

    Stratified over time and over the picture, with seeded jitter; the same title, seed and size
    always give the same crops, so that every rung is scored on the same ones.
    """
    width, height = (max(side, CLIP_SIZE) for side in size)
    rng = np.random.default_rng([seed, frames, width, height])
    last = max(0, frames - CLIP_FRAMES)
    count = min(positions, last // CLIP_FRAMES + 1)
    edges = np.linspace(0, last + 1, count + 1)
    starts = np.unique(np.minimum((edges[:-1] + rng.random(count) * np.diff(edges)), last))
    # a Latin square over the picture, so that no part is sampled twice while another is not
    rows, columns = (height - CLIP_SIZE) // 2 + 1, (width - CLIP_SIZE) // 2 + 1
    each = min(CROPS_EACH, rows * columns)
    total = len(starts) * each
    y, x = ((rng.permutation(total) + rng.random(total)) / total for _ in range(2))
    tops = (y * rows).astype(int) * 2
    lefts = (x * columns).astype(int) * 2
    places = [(int(t), int(left)) for t, left in zip(tops, lefts, strict=True)]
    chosen: dict[int, list[tuple[int, int]]] = {}
    for i, start in enumerate(starts.astype(int)):
        chosen.setdefault(int(start), []).extend(places[i * each : (i + 1) * each])
    return chosen


def read_crops(crops: Crops, count: int, read: Callable[[list[int]], Iterable[Frames]]) -> Frames:
    """Cut crops out of a video of `count` frames.

    No more than one frame is held at a time, unless `read` holds them.

    Args:
        crops: Where.
        count: Frames of the video; times after the last frame repeat it.
        read: Gives (H·3/2, W) frames of planar 4:2:0 by ascending index.

    Returns:
        (B, T, S·3/2, S) clips, in the order of `crops`.
    """
    wanted: dict[int, list[tuple[int, int, int, int]]] = {}
    places = [(start, *place) for start, group in crops.items() for place in group]
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
