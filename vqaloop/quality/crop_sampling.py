"""Which crops of a title a student scores, and how they are cut out of its frames.

A crop is CLIP_SIZE pixels square and has CLIP_FRAMES frames: one clip of the network's input. Its
frames are successive ones or, by `CropSampling.distances`, some frames of the title apart.
"""

from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple, Self

import numpy as np

from vqaloop.media.activity import SourceActivity
from vqaloop.media.planes import CLIP_FRAMES, CLIP_SIZE, Frames, cut
from vqaloop.quality.sampling_precision import FIRST

POSITIONS = 10
"""Least positions in time at which a title is sampled."""
EACH_SCENE = 2
"""Positions of each scene, on average."""
MOST = 2.4
"""Factor on POSITIONS for titles of many scenes. With more scenes than positions a title is
sampled without regard to them."""
ENDS = 0.05
"""Part of a title, at its beginning and at its end, that always has a position of its own."""
MOST_POSITIONS = 96
"""Most positions in time of a title that is sampled scene by scene."""
FINER = 4
"""Factor on the positions in time where scores are in doubt."""
CROPS_EACH = 16
"""Crops at each position in time; fewer where the picture has no room for so many."""
CHOICE = "scenes 1"
"""Names the choice of positions in cache keys."""

Crops = Mapping[int, list[tuple[int, int]]]
"""{first frame: [(top, left), ...]}, in luma pixels."""
Places = Mapping[int, float]
"""{first frame: the part of the title that it stands for}, ascending; the parts add up to 1."""
Distances = Mapping[int, int]
"""{first frame: frames of the title from one of a clip there to the next}."""


class _Position(NamedTuple):
    """What is known of a position in time besides its first frame."""

    share: float
    """The part of the title that it stands for."""
    distance: int
    """Frames from one of a clip to the next."""


@dataclass(frozen=True)
class CropSampling:
    """All that decides which crops of a title are scored."""

    positions: int = POSITIONS
    """Least positions in time, of the title or of each of `scenes`."""
    scenes: tuple[tuple[int, int], ...] = ()
    """(first frame, number of frames) of each scene; none: scenes are those of the activity."""
    seed: int = 0
    """Of the jitter in time and in the picture."""
    precision: float | None = None
    """Half-width of the score's interval at which no further positions are scored; None: all."""
    distances: tuple[int, ...] = (1,)
    """Frames from one of a clip to the next, in turns from position to position. Where a clip of
    such a distance would leave its scene, its frames are successive."""

    def identity(self) -> dict[str, Any]:
        """The part of cache keys that names the crops; JSON values only."""
        found: dict[str, Any] = {
            "choice": CHOICE,
            "positions": self.positions,
            "clips": CROPS_EACH,
            "seed": self.seed,
        }
        if self.precision is not None:
            found |= {"precision": self.precision, "first": FIRST}
        if self.scenes:
            found["scenes"] = [list(scene) for scene in self.scenes]
        if self.distances != (1,):
            found["distances"] = list(self.distances)
        return found

    def finer(self) -> "CropSampling":
        """FINER times as many positions in time."""
        return replace(self, positions=self.positions * FINER, scenes=())

    def confirming(self) -> "CropSampling":
        """FINER times as many positions in time, and other crops, to confirm what these chose."""
        return replace(self.finer(), seed=self.seed + 1)

    def scene_by_scene(self, scenes: Sequence[tuple[int, int]]) -> "CropSampling":
        """Each scene sampled as if it were a title of its own, at fewer positions if many.

        With more than MOST_POSITIONS scenes the title is sampled as one, at as many at most.
        """
        positions = min(self.positions, MOST_POSITIONS // len(scenes))
        if not positions:
            # of a title of so many scenes MOST times as many are taken
            return replace(self, positions=int(MOST_POSITIONS / MOST), scenes=())
        return replace(self, positions=positions, scenes=tuple(scenes))

    def places(self, activity: SourceActivity) -> Places:
        """The positions in time of a title, and the part of it that each stands for."""
        return {
            first + start: each.share * own.frames / activity.frames if self.scenes else each.share
            for first, own, chosen in self._chosen(activity)
            for start, each in chosen.items()
        }

    def scenes_of(self, activity: SourceActivity, places: Iterable[int]) -> list[int]:
        """The scene of each of some places of a title, as a number from 1."""
        starts = [first for first, _ in self.scenes] or activity.starts
        return [bisect(starts, place) for place in places]

    def distances_at(self, activity: SourceActivity) -> Distances:
        """The distance in time of the frames of clips at each of `places`."""
        return {
            first + start: each.distance
            for first, _, chosen in self._chosen(activity)
            for start, each in chosen.items()
        }

    def crops(self, activity: SourceActivity, size: tuple[int, int]) -> Crops:
        """The crops of a title whose canvas is of that size, (width, height)."""
        found: dict[int, list[tuple[int, int]]] = {}
        for first, own, chosen in self._chosen(activity):
            crops = choose_crops(list(chosen), own.frames, size, self.seed)
            found |= {first + start: places for start, places in crops.items()}
        return found

    def _chosen(
        self, activity: SourceActivity
    ) -> Iterator[tuple[int, SourceActivity, dict[int, _Position]]]:
        """The first frame of each of `_parts`, the part, and the positions in it."""
        count = 0
        for first, own in self._parts(activity):
            chosen = _choose_positions(own, self.seed, self.positions, self.distances, count)
            count += len(chosen)
            yield first, own, chosen

    def _parts(self, activity: SourceActivity) -> list[tuple[int, SourceActivity]]:
        """What is sampled as one title each, and the first frame of each."""
        if not self.scenes:
            return [(0, activity)]
        return [(first, SourceActivity.flat(count)) for first, count in self.scenes]


class Sampled:
    """A metric, a dataclass, that looks at a title where its `sampling` says."""

    sampling: CropSampling

    def finer(self) -> Self:
        """The same with FINER times as many positions in time."""
        return self._with(self.sampling.finer())

    def confirming(self) -> Self:
        """The same with FINER times as many positions in time, and others."""
        return self._with(self.sampling.confirming())

    def scene_by_scene(self, scenes: Sequence[tuple[int, int]]) -> Self:
        """The same sampling each scene (first frame, number of frames) of a title.

        Where it would were the scene a title of its own; each counts by its length.
        """
        return self._with(self.sampling.scene_by_scene(scenes))

    def _with(self, sampling: CropSampling) -> Self:
        return replace(self, sampling=sampling)  # type: ignore[type-var]


def _choose_positions(
    activity: SourceActivity, seed: int, positions: int, distances: Sequence[int], before: int
) -> dict[int, _Position]:
    """Positions in time of a title, by the first frame of each.

    Stratified: scenes are parted into strata in proportion to duration and density, each scene
    and either end of the title having one at least, and a position drawn in each. It stands for
    its stratum, so that the weighted mean is that of the title whatever the density. The same
    title and seed always give the same positions, and so every rung is scored on the same ones.
    There are `before` other ones earlier, which have had their turns of `distances`.
    """
    rng = np.random.default_rng([seed, activity.frames])
    found: dict[int, _Position] = {}
    for first, end in _strata(activity, positions):
        # both frames in the stratum, and so in one scene
        room = max(1, end - first - CLIP_FRAMES + 1)
        start = min(first + int(rng.random() * room), max(0, activity.frames - CLIP_FRAMES))
        distance = distances[(before + len(found)) % len(distances)]
        if distance > 1:
            start, distance = _within_scene(start, distance, first, activity)
        share = (end - first) / activity.frames
        if start in found:
            found[start] = found[start]._replace(share=found[start].share + share)
        else:
            found[start] = _Position(share, distance)
    return found


def _within_scene(
    start: int, distance: int, first: int, activity: SourceActivity
) -> tuple[int, int]:
    """Start and distance of a clip of a stratum, which begins at `first`, within its scene.

    It is moved back as far as it has to; where that is too far, its frames are successive.
    """
    scene = bisect(activity.starts, start)
    end = [*activity.starts, activity.frames][scene]
    moved = min(start, end - 1 - distance * (CLIP_FRAMES - 1))
    if moved < max(first, activity.starts[scene - 1]):
        return start, 1
    return moved, distance


def _strata(activity: SourceActivity, positions: int) -> list[tuple[int, int]]:
    """(first frame, end) of each stratum of a title, ascending."""
    frames = activity.frames
    most = round(MOST * positions)
    end = max(CLIP_FRAMES, round(ENDS * frames))
    scenes = len(activity.starts)
    starts = list(activity.starts) if scenes + 2 <= most else [0]
    count = min(max(positions, EACH_SCENE * scenes * positions // POSITIONS), most)
    edges = [*starts, frames]
    if positions >= POSITIONS:
        # of a scene not much longer than that the whole is the end
        if edges[1] >= 2 * end:
            edges.insert(1, end)
        if edges[-1] - edges[-2] >= 2 * end:
            edges.insert(-1, frames - end)
    mass = np.concatenate([[0.0], np.cumsum(activity.density)])
    parts = list(pairwise(edges))
    shares = _apportion([mass[b] - mass[a] for a, b in parts], [b - a for a, b in parts], count)
    found: list[tuple[int, int]] = []
    for (first, last), share in zip(parts, shares, strict=True):
        inner = np.interp(
            np.linspace(mass[first], mass[last], share + 1),
            mass[first : last + 1],
            np.arange(first, last + 1),
        )
        # every stratum has room for a clip: bounds are moved apart from the left, then the right
        steps = CLIP_FRAMES * np.arange(share + 1)
        bounds = np.maximum.accumulate(inner.round().astype(int) - steps) + steps
        bounds = np.minimum(bounds, last - steps[::-1]) if share > 1 else bounds
        found += pairwise([first, *map(int, bounds[1:-1]), last])
    return found


def _apportion(masses: Sequence[float], lengths: Sequence[int], count: int) -> list[int]:
    """Strata of each part by its mass (Sainte-Laguë's method): one at least, each of a clip."""
    shares = [1] * len(masses)
    while sum(shares) < count:
        room = [n // CLIP_FRAMES > share for n, share in zip(lengths, shares, strict=True)]
        if not any(room):
            break
        worth = [m / (s + 0.5) * r for m, s, r in zip(masses, shares, room, strict=True)]
        shares[worth.index(max(worth))] += 1
    return shares


def choose_crops(
    starts: Sequence[int], frames: int, size: tuple[int, int], seed: int = 0
) -> Crops:
    """Crops of a title at these positions in time: {first frame: [(top, left), ...]}, all even.

    Stratified over the picture, with seeded jitter.
    """
    width, height = (max(side, CLIP_SIZE) for side in size)
    rng = np.random.default_rng([seed, frames, width, height])
    # a Latin square over the picture, so that no part is sampled twice while another is not
    rows, columns = (height - CLIP_SIZE) // 2 + 1, (width - CLIP_SIZE) // 2 + 1
    each = min(CROPS_EACH, rows * columns)
    total = len(starts) * each
    y, x = ((rng.permutation(total) + rng.random(total)) / total for _ in range(2))
    tops = (y * rows).astype(int) * 2
    lefts = (x * columns).astype(int) * 2
    places = [(int(t), int(left)) for t, left in zip(tops, lefts, strict=True)]
    return {start: places[i * each : (i + 1) * each] for i, start in enumerate(starts)}


def middle_of(start: int, distance: int) -> int:
    """The first of the CLIP_FRAMES frames in the middle of a clip, where its score is shown."""
    return start + (distance - 1) * (CLIP_FRAMES - 1) // 2


def read_crops(
    crops: Crops,
    distances: Distances,
    count: int,
    read: Callable[[list[int]], Iterable[Frames]],
) -> Frames:
    """Cut crops out of a video of `count` frames.

    No more than one frame is held at a time, unless `read` holds them.

    Args:
        crops: Where.
        distances: Of the frames of clips at each time of `crops`.
        count: Frames of the video; times after the last frame repeat it.
        read: Gives (H·3/2, W) frames of planar 4:2:0 by ascending index.

    Returns:
        (B, T, S·3/2, S) clips, in the order of `crops`, of the frames' type.
    """
    wanted: dict[int, list[tuple[int, int, int, int]]] = {}
    places = [(start, *place) for start, group in crops.items() for place in group]
    for clip, (start, top, left) in enumerate(places):
        for step in range(CLIP_FRAMES):
            row = wanted.setdefault(min(start + step * distances[start], count - 1), [])
            row.append((clip, step, top, left))
    clips = np.empty((len(places), CLIP_FRAMES, CLIP_SIZE * 3 // 2, CLIP_SIZE), np.uint8)
    indices = sorted(wanted)
    for index, frame in zip(indices, read(indices), strict=True):
        clips = clips.astype(frame.dtype, copy=False)
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
