"""Windows of stored clips: drawn in training, the middle in evaluation, the same in all views."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.lessons import RECIPE
from vqaloop.errors import InputError
from vqaloop.media.planes import cut
from vqaloop.quality.clip_views import PlacedView, View, squeezed
from vqaloop.training.batch import draw
from vqaloop.training.recipe import Losses, Teacher
from vqaloop.training.shards import Shard
from vqaloop.training.windows import (
    Window,
    check_window,
    differing_view,
    middle_windows,
    view_of,
    window_between,
)

VIEW = {"kind": "squeezed", "frames": 12, "stride": 4, "size": 40, "clips": 1, "seed": 0}
WIDE = {**VIEW, "frames": 24, "stride": 2}


def ramp(encodes: int, frames: int, stride: int, size: int) -> Tensor:
    """(E, 1, T, S·3/2, S): luma is the time in frames of the video plus 2 for each encode; the
    corner's row and column of a part can be read from its chroma."""
    clips = torch.empty(encodes, 1, frames, size * 3 // 2, size, dtype=torch.uint8)
    times = torch.arange(frames) * stride
    clips[..., :size, :] = (
        times[None, None, :, None, None] + 100 * torch.arange(encodes)[:, None, None, None, None]
    ).to(torch.uint8)
    half = torch.arange(size // 2, dtype=torch.uint8)
    chroma = torch.stack([half[:, None].expand(-1, size // 2), half.expand(size // 2, -1)])
    clips[..., size:, :] = chroma.reshape(size // 2, size)
    return clips


def shard(name: str = "a", view: dict[str, Any] = VIEW) -> Shard:
    clips = ramp(2, view["frames"], view["stride"], view["size"])
    rows = [{"score": 20.0, "path": "0"}, {"score": 80.0, "path": "1"}]
    return Shard(name, name, "MOS", rows, clips, reference=clips[0], view=view)


def read(clip: Tensor) -> tuple[int, int, int]:
    """First frame (modulo 100), row and column of a window."""
    size = clip.shape[-1]
    chroma = clip[0, size:].reshape(2, size // 2, size // 2)
    assert torch.equal(chroma[0, :, 0] - chroma[0, 0, 0], torch.arange(size // 2).byte())
    return int(clip[0, 0, 0]) % 100, 2 * int(chroma[0, 0, 0]), 2 * int(chroma[1, 0, 0])


SMALL = replace(RECIPE, loss=Losses(alone=1.0), scenes=1, crops=1, encodes=2, frames=5, crop=28)


def test_a_window_is_one_for_all_encodes_and_the_source_and_another_each_time() -> None:
    seen = set()
    for seed in range(60):
        batch = draw([shard()], SMALL, np.random.default_rng(seed))
        assert batch.reference is not None
        assert batch.distorted.shape == (2, 5, 42, 28) and batch.reference.shape == (1, 5, 42, 28)
        places = {read(clip) for clip in (*batch.distorted, *batch.reference)}
        assert len(places) == 1
        seen |= places
        steps = batch.reference[0, :, 0, 0].diff()
        assert (steps == 4).all(), "frames follow each other as they were stored"
    times, rows, columns = map(set, zip(*seen, strict=True))
    assert times == set(range(0, 32, 4)) and rows == columns == set(range(0, 14, 2))


@pytest.mark.parametrize(("window", "stored"), [(Window(10, 28), WIDE), (Window(5, 28), VIEW)])
def test_the_teacher_sees_the_same_window_in_its_view(
    window: Window, stored: dict[str, Any]
) -> None:
    teacher = Teacher("internvqa-tiny", corpus=("t",), frames=window.frames, crop=window.crop)
    taught = replace(SMALL, teacher=teacher)
    for seed in range(30):
        batch = draw([shard()], taught, np.random.default_rng(seed), [shard(view=stored)])
        assert batch.teacher_view is not None
        mine, theirs = read(batch.distorted[0]), read(batch.teacher_view[0])
        assert mine[1:] == theirs[1:]
        spans = (4 * 4, stored["stride"] * (window.frames - 1))
        middles = [
            first + span / 2 for first, span in zip((mine[0], theirs[0]), spans, strict=True)
        ]
        # clips of 45 and of 47 frames, about the same middle
        assert abs(middles[0] - middles[1] + (stored is WIDE)) <= 2


def test_evaluation_takes_the_middle_and_windows_over_the_whole_time() -> None:
    found = middle_windows(shard(), Window(5, 28))
    assert found.distorted.shape == (2, 2, 5, 42, 28) and found.reference is not None
    assert [read(clip) for clip in found.reference] == [(0, 6, 6), (28, 6, 6)]
    one = middle_windows(shard(), Window(8))
    assert one.distorted.shape == (2, 1, 8, 60, 40) and read(one.distorted[1, 0]) == (8, 0, 0)
    assert found.view == {**VIEW, "frames": 5, "clips": 2, "crop": 28}
    assert middle_windows(shard(), Window()).distorted.shape == (2, 1, 12, 60, 40)


def test_the_view_of_weights_is_that_of_their_windows() -> None:
    view = view_of(shard(), Window(5, 28))
    assert window_between(view, shard()) == Window(5, 28)
    assert window_between(VIEW, shard()) == window_between(None, shard()) == Window()
    native = {**VIEW, "kind": "native"}
    assert view_of(shard(view=native), Window(0, 28)) == {**native, "size": 28}


def test_other_clips_than_those_of_the_weights_are_named() -> None:
    trained = view_of(shard(), Window(5, 28))
    assert differing_view(trained, middle_windows(shard(), Window(5, 28))) == ""
    assert differing_view({**VIEW, "clips": 9}, shard()) == "", "how many do not matter"
    for view, says in (
        ({**VIEW, "stride": 3}, "squeezed clips of 12 frames, 3 apart, of 40 pixels, and a has"),
        (trained, "squeezed clips of 5 frames, 4 apart, of 28 pixels of pictures of 40, and"),
        (None, "native clips of 2 frames, 1 apart, of 112 pixels, and a has squeezed clips"),
    ):
        assert differing_view(view, shard()).startswith(says)
    crops = differing_view(None, replace(shard(), view=None))
    assert crops.endswith("and a has native clips of 12 frames, 1 apart, of 40 pixels")


def test_windows_that_cannot_be_are_refused() -> None:
    labels = torch.zeros(2, 1, 7)
    whole = replace(shard(), region_labels=labels, frame_labels=labels)
    cases = [
        (shard(), Window(13), "draws 13 frames of 40 pixels and a has clips of 12 frames of 40"),
        (shard(), Window(0, 42), "prepare it with larger --frames and --size"),
        (whole, Window(5), "labels of single crops"),
        (shard(view={**VIEW, "kind": "fragments"}), Window(0, 32), "none for fragments"),
        (shard(), Window(0, 27), "an even number"),
    ]
    for given, window, says in cases:
        with pytest.raises(InputError, match=says):
            check_window(given, window)


def test_a_view_cuts_the_middle_of_a_squeezed_picture_at_its_scale() -> None:
    frame = np.random.default_rng(0).integers(0, 255, (1, 90 * 3 // 2, 160), np.uint8)
    placed = PlacedView(View("squeezed", size=64, crop=48), (160, 90), [0])
    assert np.array_equal(placed.cut(frame, 0), cut(squeezed(frame, 64), 8, 8, 48, 48))
    for wrong in ({"crop": 65}, {"crop": 33}, {"kind": "native", "crop": 32}):
        with pytest.raises(InputError):
            View(**{"kind": "squeezed", "size": 64, **wrong})  # type: ignore[arg-type]
