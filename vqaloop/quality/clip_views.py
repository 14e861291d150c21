"""Clip sampling for training and no-reference models: crops, resized frames, or fragments.

A view says how clips are cut out of a video; `PlacedView` fixes the places for one content. Two
views of one video take the same number of clips and, where its length allows, at the same times.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vqaloop.errors import InputError
from vqaloop.media.planes import Frames, cut

VIEWS = ("native", "squeezed", "fragments")
FRAGMENT = 32
"""Height and width of a fragment in pixels."""
FRAMES_AT_ONCE = 64
"""Frames of a video held together while its clips are cut: 64 of 8 bit 4K take 0.8 GB."""
MOST_CLIPS = 64
"""Clips that a view may have."""
CLIPS_AT_ONCE = 32
"""Clips of a video held together."""


@dataclass(frozen=True)
class View:
    """How clips are cut out of a video. Raises InputError for values out of range."""

    kind: str = "native"
    """native: square crops at the display size, that of the content's largest file. squeezed:
    the whole picture, its shorter side brought to `size`, its middle cut out (InternVQA).
    fragments: patches of 32 from a grid over the picture, put together (FAST-VQA)."""
    frames: int = 8
    """Frames of a clip."""
    stride: int = 8
    """Frames of the video from one of the clip to the next."""
    size: int = 224
    """Height and width of a clip in pixels."""
    clips: int = 4
    """Clips of each video, spread over its time."""
    crop: int = 0
    """Pixels a side that are cut out of the middle of a squeezed clip; 0: all of it."""

    @classmethod
    def of_weights(cls, about: Mapping[str, str], name: str) -> "View | None":
        """The view in the metadata of weights `name`; None where they take a ladder's crops.

        Raises InputError for one that is damaged.
        """
        try:
            found = json.loads(about.get("view", "null"))
            if found is None:
                return None
            given = {key: value for key, value in found.items() if key != "seed"}
            if not all(type(v) is (str if key == "kind" else int) for key, v in given.items()):
                raise TypeError("a value is of another type")
            view = cls(**given)
            if not given.keys() >= {"kind", "frames", "stride", "size", "clips"}:
                raise TypeError("a part of it is missing")
            return view
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"the header of {name} has no view that is known: {error}; train them again"
            ) from error

    def __post_init__(self) -> None:
        if self.kind not in VIEWS:
            raise InputError(f"view {self.kind!r} is not known; choose one of {', '.join(VIEWS)}")
        spans = {
            "frames": (1, 512),
            "stride": (1, 64),
            "size": (32, 1024),
            "clips": (1, MOST_CLIPS),
            "crop": (0, self.size if self.kind == "squeezed" else 0),
        }
        for key, (low, high) in spans.items():
            if not low <= getattr(self, key) <= high:
                raise InputError(f"{key} must be {low} to {high}, not {getattr(self, key)}")
        unit = FRAGMENT if self.kind == "fragments" else 2
        if self.size % unit or self.crop % 2:
            raise InputError(f"the size of a {self.kind} clip is a multiple of {unit}")

    @property
    def side(self) -> int:
        """Height and width of a clip as it is cut."""
        return self.crop or self.size

    def times(self, count: int) -> npt.NDArray[np.int64]:
        """(C, T) indices of the clips' frames in a video of `count`; the last one is repeated."""
        span = (self.frames - 1) * self.stride + 1
        middles = (np.arange(self.clips) + 0.5) / self.clips
        starts = (middles * max(0, count - span)).round().astype(np.int64)
        steps = np.arange(self.frames) * self.stride
        times: npt.NDArray[np.int64] = np.minimum(starts[:, None] + steps, count - 1)
        return times


class PlacedView:
    """A view with its places fixed for one content, so that all its encodes are cut alike."""

    def __init__(self, view: View, canvas: tuple[int, int], seed: Sequence[int]) -> None:
        """`canvas` is (width, height). Raises InputError where it is too small for the view."""
        self.view = view
        width, height = self.canvas = canvas
        rng = np.random.default_rng(seed)
        if view.kind == "native":
            if min(canvas) < view.size:
                raise InputError(
                    f"the picture is {width}x{height}, less than a clip of {view.size} pixels; "
                    "ask for a smaller size, or another view"
                )
            rooms = (height - view.size) // 2 + 1, (width - view.size) // 2 + 1
            self.places = 2 * rng.integers(0, rooms, (view.clips, 2))
        elif view.kind == "fragments":
            from vqaloop.models.fragments import fragment_places

            grid = view.size // FRAGMENT
            self.places = np.stack(
                [fragment_places(height, width, rng, grid, FRAGMENT) for _ in range(view.clips)]
            )

    def scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height at which a video of `size` is to be decoded."""
        return size if self.view.kind == "squeezed" else self.canvas

    def cut(self, frame: Frames, clip: int) -> Frames:
        """(1, H·3/2, W) to (1, S·3/2, S), as clip number `clip` has it."""
        if self.view.kind == "squeezed":
            size, crop = self.view.size, self.view.side
            whole, at = squeezed(frame, size), (size - crop) // 4 * 2
            return cut(whole, at, at, crop, crop) if at else whole
        if self.view.kind == "fragments":
            from vqaloop.models.fragments import cut_fragments

            return cut_fragments(frame, self.places[clip], FRAGMENT)
        top, left = self.places[clip]
        return cut(frame, int(top), int(left), self.view.size, self.view.size)


def squeezed(frames: Frames, size: int) -> Frames:
    """(N, H·3/2, W) to (N, S·3/2, S): the shorter side to `size`, the middle of the longer.

    Bilinear between the nearest four samples, without a low-pass before, as InternVQA does.
    """
    import torch
    import torch.nn.functional as F

    count, lines, width = frames.shape
    height = lines * 2 // 3
    scale = size / min(height, width)
    tall, wide = (max(size, round(side * scale / 2) * 2) for side in (height, width))
    chroma = frames[:, height:].reshape(count, 2, height // 2, width // 2)
    planes = []
    for plane, part in ((frames[:, None, :height], 1), (chroma, 2)):
        small = F.interpolate(
            torch.tensor(plane, dtype=torch.float32),
            (tall // part, wide // part),
            mode="bilinear",
            align_corners=False,
        )
        rounded = small.round().numpy().astype(frames.dtype)
        top, left = ((side - size) // 4 * 2 // part for side in (tall, wide))
        square = rounded[:, :, top : top + size // part, left : left + size // part]
        planes.append(square.reshape(count, -1))
    return np.concatenate(planes, 1).reshape(count, size * 3 // 2, size)


def clips_of(
    placed: PlacedView,
    rows: Sequence[tuple[int, Sequence[int]]],
    read: Callable[[list[int]], Iterable[Frames]],
) -> Iterator[Frames]:
    """Cut clips out of a video, in groups of which each is read at once.

    Args:
        placed: Where in the picture.
        rows: Of each clip its number in `placed` and the indices of its frames.
        read: Gives (H·3/2, W) frames by ascending index. It may hold those of a group, which are
            FRAMES_AT_ONCE, or those of a single clip.

    Yields:
        (C, T, S·3/2, S) clips of at most CLIPS_AT_ONCE rows, in their order.
    """
    groups: list[list[tuple[int, Sequence[int]]]] = []
    frames: set[int] = set()
    for clip, row in rows:
        frames |= set(row)
        if not groups or len(frames) > FRAMES_AT_ONCE or len(groups[-1]) == CLIPS_AT_ONCE:
            groups.append([])
            frames = set(row)
        groups[-1].append((clip, row))
    view = placed.view
    for group in groups:
        wanted: dict[int, list[tuple[int, int, int]]] = {}
        for place, (clip, row) in enumerate(group):
            for step, index in enumerate(row):
                wanted.setdefault(index, []).append((place, step, clip))
        clips = np.empty((len(group), view.frames, view.side * 3 // 2, view.side), np.uint8)
        indices = sorted(wanted)
        for index, frame in zip(indices, read(indices), strict=True):
            clips = clips.astype(frame.dtype, copy=False)
            for place, step, clip in wanted[index]:
                clips[place, step] = placed.cut(frame[None], clip)[0]
        yield clips
