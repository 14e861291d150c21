"""Windows in time and space, cut out of clips of a shard that are longer and larger than used.

A step of training draws a window anew for each clip, the same for all encodes, their source and
the teacher's view; evaluation takes the middle ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vqaloop.errors import InputError
from vqaloop.media.planes import CLIP_FRAMES, CLIP_SIZE, cut
from vqaloop.training.shards import Shard


@dataclass(frozen=True)
class Window:
    """Frames and pixels a side of a clip; 0: as many as are stored."""

    frames: int = 0
    crop: int = 0

    def __bool__(self) -> bool:
        return bool(self.frames or self.crop)


class Place(NamedTuple):
    """Where a window lies."""

    offset: float
    """Of its middle from that of the clip, in frames of the video."""
    down: float
    """0..1, of the room that the window has."""
    across: float


def check_window(shard: Shard, window: Window) -> None:
    """Raises InputError where a window cannot be cut out of a shard's clips."""
    if not window:
        return
    frames, size = shard.distorted.shape[2], shard.distorted.shape[-1]
    if window.frames > frames or window.crop > size:
        raise InputError(
            f"the recipe draws {window.frames or frames} frames of {window.crop or size} pixels "
            f"and {shard.name} has clips of {frames} frames of {size}; prepare it with larger "
            "--frames and --size, or lower `frames` and `crop`"
        )
    if shard.region_labels is not None:
        raise InputError(
            f"{shard.name} has labels of single crops, which are not those of their parts; leave "
            "out `frames` and `crop`"
        )
    if window.crop % 2 or window.crop and (shard.view or {}).get("kind") == "fragments":
        raise InputError(
            f"`crop` = {window.crop}: give an even number, and none for fragments, which are "
            "crops already"
        )


def draw_place(shard: Shard, window: Window, rng: np.random.Generator) -> Place:
    """A window's place in clips of a shard, each as likely."""
    count = shard.distorted.shape[2]
    frames = window.frames or count
    first = int(rng.integers(count - frames + 1))
    down, across = rng.random(2)
    return Place((first + (frames - count) / 2) * _stride(shard), float(down), float(across))


def cut_window(clips: Tensor, shard: Shard, window: Window, place: Place) -> Tensor:
    """(..., T, S·3/2, S) clips of a shard to the window, whose place may be of another view."""
    count, size = clips.shape[-3], clips.shape[-1]
    frames, side = window.frames or count, window.crop or size
    # of two views of a clip the middles are at the same time
    first = round(place.offset / _stride(shard) + (count - frames) / 2)
    first = min(max(first, 0), count - frames)
    room = (size - side) // 2 + 1
    top, left = (2 * min(int(part * room), room - 1) for part in (place.down, place.across))
    some = clips[..., first : first + frames, :, :]
    planes = some.reshape(-1, *some.shape[-2:]).numpy()
    return torch.from_numpy(cut(planes, top, left, side, side)).reshape(
        *some.shape[:-2], side * 3 // 2, side
    )


def middle_windows(shard: Shard, window: Window) -> Shard:
    """The shard with clips as long and large as the window: the middle of each picture.

    Of each stored clip as many windows as fit one after the other, spread evenly over its time.
    """
    if not window:
        return shard
    count = shard.distorted.shape[2]
    frames = window.frames or count
    many = max(1, count // frames)
    spread = np.linspace(0, count - frames, many) if many > 1 else [(count - frames) / 2]
    middle = (count - frames) / 2
    places = [Place((first - middle) * _stride(shard), 0.5, 0.5) for first in spread]

    def windows(clips: Tensor, axis: int) -> Tensor:
        parts = [cut_window(clips, shard, window, place) for place in places]
        return torch.stack(parts, axis + 1).flatten(axis, axis + 1)

    return replace(
        shard,
        distorted=windows(shard.distorted, 1),
        reference=None if shard.reference is None else windows(shard.reference, 0),
        view=view_of(shard, window),
    )


def view_of(shard: Shard, window: Window) -> dict[str, Any] | None:
    """How clips of a shard's windows are cut out of a video, as weights' headers record it."""
    view = shard.view
    if view is None or not window:
        return view
    frames = window.frames or view["frames"]
    view = {**view, "frames": frames, "clips": view["clips"] * max(1, view["frames"] // frames)}
    # a native crop of a native crop is one; of a squeezed picture the scale would be another
    if window.crop and window.crop != view["size"]:
        view["size" if view["kind"] == "native" else "crop"] = window.crop
    return view


def window_between(view: dict[str, Any] | None, shard: Shard) -> Window:
    """The window that clips of `view` are of a shard's; a whole one where they are alike."""
    own = shard.view
    if view is None or own is None or view["kind"] != own["kind"]:
        return Window()
    frames, size = view["frames"], view.get("crop") or view["size"]
    window = Window(frames if frames < own["frames"] else 0, size if size < own["size"] else 0)
    check_window(shard, window)
    return window


def differing_view(view: dict[str, Any] | None, shard: Shard) -> str:
    """How a shard's middle windows differ from clips of weights with `view`; "" if they do not."""
    *_, frames, _, size = shard.distorted.shape
    crops = {"kind": "native", "stride": 1}
    theirs = _clips(view or {**crops, "frames": CLIP_FRAMES, "size": CLIP_SIZE})
    ours = _clips(shard.view or {**crops, "frames": frames, "size": size})
    return "" if theirs == ours else f"{theirs}, and {shard.name} has {ours}"


def _clips(view: Mapping[str, Any]) -> str:
    """A view in words, but for how many clips there are of a video."""
    side = view.get("crop") or view["size"]
    part = f" of pictures of {view['size']}" if side != view["size"] else ""
    apart = f", {view['stride']} apart" if view["frames"] > 1 else ""
    return f"{view['kind']} clips of {view['frames']} frames{apart}, of {side} pixels{part}"


def _stride(shard: Shard) -> int:
    return int((shard.view or {}).get("stride", 1))
