"""Attacks on decoded frames: what each changes, and what it leaves."""

from typing import Any

import numpy as np
import pytest

from vqaloop.errors import InputError
from vqaloop.media.planes import Frames
from vqaloop.training.attacks import ATTACKS, PERIOD, attack, chroma_of, luma_of

LUMA_ONLY = (
    *("luma flicker", "brightness pumping", "blur pumping", "posterised", "crushed blacks"),
    *("grain", "contrast", "sharpened"),
)
CHROMA_ONLY = ("grey", "swapped chroma", "blurred chroma", "quantised chroma")


def scene(count: int = PERIOD, height: int = 98, width: int = 114) -> Frames:
    """Textured frames in motion, no two alike; chroma far from grey, sides no multiple of 16."""
    rng = np.random.default_rng(5)
    frames = np.empty((count, height * 3 // 2, width), np.uint8)
    y, x = np.mgrid[:height, :width]
    for n, luma in enumerate(luma_of(frames)):
        luma[:] = 110 + 60 * np.sin((x + 3 * n) / 7) * np.cos(y / 5) + rng.normal(0, 12, y.shape)
    noise = rng.normal(0, 10, (count, 1, height // 2, width // 2))
    chroma_of(frames)[:] = np.array([90, 170])[:, None, None] + noise
    return frames


def test_planes_are_views_of_the_frames() -> None:
    frames = scene(2, 6, 4)
    luma_of(frames)[1] = 1
    chroma_of(frames)[1, 0], chroma_of(frames)[1, 1] = 2, 3
    assert bytes(frames[1]) == bytes([1] * 24 + [2] * 6 + [3] * 6)


@pytest.mark.parametrize("name", ATTACKS)
def test_frames_in_frames_out(name: str) -> None:
    frames = scene()
    kept = frames.copy()
    none, half, full = (attack(frames, name, strength, seed=1) for strength in (0, 0.5, 1))
    assert np.array_equal(frames, kept) and np.array_equal(none, frames)
    assert np.array_equal(half, attack(frames, name, 0.5, seed=1))
    for damaged in (half, full):
        assert damaged.shape == frames.shape and damaged.dtype == np.uint8
        assert not np.array_equal(damaged, frames)
    least = attack(frames, name, 0.02, seed=1)
    error, most = (np.abs(d - frames.astype(float)).mean() for d in (least, full))
    # less is lost than half a level of rounding and a tenth of the whole damage
    assert error <= 0.1 * most + 0.3


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_changes_the_planes_it_names(name: str) -> None:
    frames = scene()
    damaged = attack(frames, name, 0.5)
    luma = not np.array_equal(luma_of(damaged), luma_of(frames))
    chroma = not np.array_equal(chroma_of(damaged), chroma_of(frames))
    assert (luma, chroma) == (name not in CHROMA_ONLY, name not in LUMA_ONLY)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("shape", [(1, 3, 2), (3, 24, 20), (2, 168, 112)])
def test_frames_of_any_size(name: str, shape: tuple[int, int, int]) -> None:
    frames = np.full(shape, 100, np.uint8)
    for strength in (0.01, 0.5, 1):
        assert attack(frames, name, strength).shape == shape


@pytest.mark.parametrize("name", ["local blur", "local damage"])
def test_local_attacks_change_one_part_in_25(name: str) -> None:
    frames = scene(4, 100, 200)
    damaged = attack(frames, name, 1)
    changed = (damaged != frames).any(0)[:100].nonzero()
    height, width = (int(np.ptp(places)) + 1 for places in changed)
    assert 15 <= height <= 20 and 34 <= width <= 40
    assert not np.array_equal(damaged, attack(frames, name, 1, seed=1))


def test_levels_are_those_described() -> None:
    frames = np.full((PERIOD, 6, 4), 100, np.uint8)
    flicker = luma_of(attack(frames, "luma flicker", 0.5))
    assert list(flicker[:3, 0, 0]) == [108, 92, 108]
    assert "±8" in ATTACKS["luma flicker"].describe(0.5)
    pumping = luma_of(attack(frames, "brightness pumping", 0.5))
    assert (pumping.max(), pumping.min()) == (108, 92)
    assert np.abs(np.diff(pumping[:, 0, 0].astype(int))).max() <= 3
    ramp = np.tile(np.arange(256, dtype=np.uint8), (1, 6, 1))
    levels = np.unique(luma_of(attack(ramp, "posterised", 0.5)))
    assert list(levels) == list(range(4, 256, 8))


def test_crushed_blacks_keep_what_is_bright_and_what_is_black() -> None:
    frames = np.full((1, 6, 6), 128, np.uint8)
    luma_of(frames)[0, 0] = 16, 10, 30, 50, 60, 200
    assert list(luma_of(attack(frames, "crushed blacks", 0.5))[0, 0]) == [16, 10, 16, 40, 60, 200]


def test_chroma_is_greyed_swapped_and_complemented() -> None:
    frames = scene(2)
    u, v = chroma_of(frames).astype(int).transpose(1, 0, 2, 3)
    assert (chroma_of(attack(frames, "grey", 0.5)) == 128).all()
    assert np.array_equal(chroma_of(attack(frames, "grey", 1))[:, 0], 256 - u)
    swapped = chroma_of(attack(frames, "swapped chroma", 1))
    assert np.array_equal(swapped[:, 0], v) and np.array_equal(swapped[:, 1], u)
    grey = np.full((2, 36, 20), 128, np.uint8)
    assert np.array_equal(attack(grey, "quantised chroma", 1), grey)


def test_frames_are_repeated_late_and_lost() -> None:
    frames = np.arange(40, dtype=np.uint8)[:, None, None] + np.full((40, 6, 4), 10, np.uint8)
    shown = {name: attack(frames, name, 0.5)[:, 0, 0] - 10 for name in ("freezes", "late")}
    assert list(shown["freezes"]) == [n // 10 * 10 for n in range(40)]
    assert list(shown["late"]) == [0, 0, *range(38)]
    lost = (attack(frames, "green frames", 0.5) == 0).all((1, 2))
    assert lost.sum() == 4 and set(np.diff(lost.nonzero()[0])) == {10}
    noisy = scene(40)
    late = (attack(noisy, "late drop", 0.5) != noisy).any((1, 2))
    assert list(late.nonzero()[0]) == [36, 37, 38, 39]


def test_grain_has_the_deviation_described_and_no_frame_the_same() -> None:
    frames = np.full((3, 300, 200), 128, np.uint8)
    noise = luma_of(attack(frames, "grain", 0.5)).astype(float) - 128
    assert noise.std() == pytest.approx(8, rel=0.05) and abs(noise.mean()) < 0.1
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.05


def test_what_is_no_attack_is_refused() -> None:
    frames = scene(1)
    with pytest.raises(InputError, match="unknown attack 'blur'; choose from luma flicker"):
        attack(frames, "blur", 0.5)
    with pytest.raises(InputError, match=r"strength 1\.5 of grain is outside 0\.\.1"):
        attack(frames, "grain", 1.5)
    wide: Any = frames.astype(np.int16)
    for wrong in (frames[0], wide, frames[:, 1:]):
        with pytest.raises(InputError, match=r"frames must be \(N, H \* 3/2, W\) of uint8"):
            attack(wrong, "grain", 0.5)
