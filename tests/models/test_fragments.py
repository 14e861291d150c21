"""Fragments: where they may lie, and what is cut out of the three planes."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqaloop.errors import InputError
from vqaloop.models.fastvqa import cut_fragments, fragment_places


@given(st.integers(224, 900), st.integers(224, 900), st.integers(0, 99))
def test_fragments_lie_at_even_places_inside_the_frame_and_never_overlap(
    height: int, width: int, seed: int
) -> None:
    places = fragment_places(height, width, np.random.default_rng(seed))
    assert places.shape == (7, 7, 2) and not (places % 2).any()
    assert places.min() >= 0
    assert places[..., 0].max() + 32 <= height and places[..., 1].max() + 32 <= width
    assert (np.diff(places[..., 0], axis=0) >= 32).all()
    assert (np.diff(places[..., 1], axis=1) >= 32).all()


def test_fragments_of_a_seed_are_always_the_same_and_of_another_not() -> None:
    one, same, other = (
        fragment_places(720, 1280, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_fragments_reach_all_even_places_of_their_cells() -> None:
    rng = np.random.default_rng(0)
    drawn = np.stack([fragment_places(7 * 36, 7 * 34, rng) for _ in range(60)])
    for row, column in np.ndindex(7, 7):
        tops, lefts = drawn[:, row, column].T
        assert set(tops.tolist()) == {36 * row, 36 * row + 2, 36 * row + 4}
        assert set(lefts.tolist()) == {34 * column, 34 * column + 2}


def test_small_frames_have_no_fragments() -> None:
    with pytest.raises(InputError, match="224x224 pixels, not 300x222"):
        fragment_places(222, 300, np.random.default_rng(0))
    assert fragment_places(64, 64, np.random.default_rng(0), grid=2).shape == (2, 2, 2)


def test_fragments_are_cut_from_luma_and_both_chroma_planes() -> None:
    rng = np.random.default_rng(0)
    height, width = 250, 262
    frames: npt.NDArray[np.uint8] = rng.integers(0, 256, (3, height * 3 // 2, width), np.uint8)
    places = fragment_places(height, width, rng)
    found = cut_fragments(frames, places)
    assert found.shape == (3, 336, 224) and found.dtype == np.uint8
    flat, cut = frames.reshape(3, -1), found.reshape(3, -1)
    for row, column in np.ndindex(7, 7):
        top, left = places[row, column]
        for y, x in ((0, 0), (31, 30), (12, 7)):
            at = (32 * row + y) * 224 + 32 * column + x
            assert (cut[:, at] == flat[:, (top + y) * width + left + x]).all()
            for plane in (0, 1):
                source = height * width + plane * (height // 2) * (width // 2)
                source += ((top + y) // 2) * (width // 2) + (left + x) // 2
                target = 224 * 224 + plane * 112 * 112 + (16 * row + y // 2) * 112
                target += 16 * column + x // 2
                assert (cut[:, target] == flat[:, source]).all()


def test_places_and_frames_that_do_not_fit_are_refused() -> None:
    frames = np.zeros((1, 96, 64), np.uint8)
    with pytest.raises(ValueError, match="even places"):
        cut_fragments(frames, np.array([[[0, 1]]]))
    with pytest.raises(ValueError, match="inside"):
        cut_fragments(frames, np.array([[[34, 0]]]))
    with pytest.raises(ValueError, match="4:2:0"):
        cut_fragments(frames[:, :95], np.array([[[0, 0]]]))
