"""The clips of a title that a student judges alone, at the same times and places in all encodes.

Where its weights judge crops at the display size they are those of `crop_sampling`; else they are
cut by the view that the weights were trained on, with its places fixed on the source's canvas.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from vqaloop.media.planes import CLIP_FRAMES, Frames
from vqaloop.quality.clip_views import MOST_CLIPS, PlacedView, View, clips_of
from vqaloop.quality.crop_sampling import (
    POSITIONS,
    Crops,
    CropSampling,
    Distances,
    Places,
    middle_of,
    read_crops,
)

Read = Callable[[list[int]], Iterable[Frames]]
"""Gives (H·3/2, W) frames of a video by ascending index."""


@dataclass(frozen=True)
class TitleClips:
    """The clips of a title, in order of time."""

    counts: list[int]
    """Clips of each moment, which are pooled as one picture."""
    times: list[int]
    """Of each moment the first of the CLIP_FRAMES frames in its middle."""
    shares: list[float]
    """Of each moment the part of the title that it stands for."""
    places: tuple[tuple[int, int, int], ...]
    """(frame, top, left) of each clip where they are crops; none for views."""
    each: Callable[[Read], Iterator[Frames]]
    """Cuts the clips out of a video, some (C, T, S·3/2, S) at a time."""


def clips_by_crops(crops: Crops, shares: Places, distances: Distances, frames: int) -> TitleClips:
    """The clips of a title of so many frames by crops at the display size."""
    return TitleClips(
        counts=[len(places) for places in crops.values()],
        times=[middle_of(start, distances[start]) for start in crops],
        shares=[shares[time] for time in crops],
        places=tuple((time, *place) for time, places in crops.items() for place in places),
        each=lambda read: iter([read_crops(crops, distances, frames, read)]),
    )


def clips_by_view(
    view: View, sampling: CropSampling, frames: int, canvas: tuple[int, int]
) -> TitleClips:
    """The clips of a title of so many frames by a view on `canvas`, (width, height).

    As many clips more than the view's own as `sampling` has more positions than usual; with
    scenes each is sampled as a title of its own. Raises InputError where the canvas is too small.
    """
    count = min(MOST_CLIPS, max(1, view.clips * sampling.positions // POSITIONS))
    view = replace(view, clips=count)
    placed = PlacedView(view, canvas, [sampling.seed])
    scenes = sampling.scenes or [(0, frames)]
    rows = [
        (clip, [first + index for index in row])
        for first, length in scenes
        for clip, row in enumerate(view.times(length).tolist())
    ]
    return TitleClips(
        counts=[1] * len(rows),
        times=[row[0] + max(0, row[-1] - row[0] + 1 - CLIP_FRAMES) // 2 for _, row in rows],
        shares=[length / frames / count for _, length in scenes for _ in range(count)],
        places=(),
        each=lambda read: clips_of(placed, rows, read),
    )
