"""4:2:0 to the models' RGB and back."""

import numpy as np
import pytest
import torch
from torch import Tensor

from vqaloop.media.colour import MEAN, STD, to_clips, to_pictures, to_planes


def planes(y: int, u: int, v: int, size: int = 4) -> Tensor:
    """One clip of one flat frame."""
    frame = torch.full((1, 1, size * 3 // 2, size), y, dtype=torch.uint8)
    frame[:, :, size : size + size // 4] = u
    frame[:, :, size + size // 4 :] = v
    return frame


def rgb(clips: Tensor) -> Tensor:
    """(B, 3, T, H, W) normalised to 0..1."""
    shape = (1, 3, 1, 1, 1)
    return clips * torch.tensor(STD).view(shape) + torch.tensor(MEAN).view(shape)


@pytest.mark.parametrize(
    ("yuv", "expected"),
    [
        ((16, 128, 128), (0, 0, 0)),
        ((235, 128, 128), (1, 1, 1)),
        ((126, 128, 128), (110 / 219,) * 3),
        # 75 % and 100 % bars of BT.709, 8-bit limited range
        ((63, 102, 240), (1, 0, 0)),
        ((173, 42, 26), (0, 1, 0)),
        ((32, 240, 118), (0, 0, 1)),
        ((133, 63, 52), (0, 0.75, 0)),
    ],
)
def test_known_values_of_bt709(
    yuv: tuple[int, int, int], expected: tuple[float, float, float]
) -> None:
    found = rgb(to_clips(planes(*yuv)))[0, :, 0, 0, 0]
    np.testing.assert_allclose(found.numpy(), expected, atol=0.008)
    pictures = to_pictures(planes(*yuv)[0])
    assert pictures.shape == (1, 3, 4, 4) and pictures.dtype == torch.uint8
    np.testing.assert_allclose(pictures[0, :, 0, 0] / 255, expected, atol=0.008)


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        ((0.0, 0.0, 0.0), (16, 128, 128)),
        ((1.0, 1.0, 1.0), (235, 128, 128)),
        ((1.0, 0.0, 0.0), (63, 102, 240)),
        ((0.0, 1.0, 0.0), (173, 42, 26)),
        ((0.0, 0.0, 1.0), (32, 240, 118)),
        ((7.0, 7.0, 7.0), (235, 128, 128)),
    ],
)
def test_known_values_the_other_way(
    colour: tuple[float, float, float], expected: tuple[int, int, int]
) -> None:
    picture = torch.tensor(colour)[None, :, None, None].expand(1, 3, 4, 4)
    assert torch.equal(to_planes(picture), planes(*expected)[0])


def test_shapes_and_the_place_of_the_chroma() -> None:
    frames = torch.full((2, 3, 12, 8), 128, dtype=torch.uint8)
    frames[1, 2, 8, 0] = 255  # first sample of U
    frames[1, 2, 11, 7] = 255  # last sample of V
    found = to_clips(frames)
    assert found.shape == (2, 3, 3, 8, 8) and found.dtype == torch.float32
    grey = found[0, :, 0, 0, 0].view(3, 1, 1)
    marked = (found[1, :, 2] - grey).abs().amax(0) > 1e-6
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:2, :2] = expected[-2:, -2:] = True
    assert torch.equal(marked, expected)


def test_grey_stays_grey() -> None:
    levels = torch.arange(16, 236, dtype=torch.uint8)
    frames = torch.full((len(levels), 1, 6, 4), 128, dtype=torch.uint8)
    frames[:, :, :4] = levels[:, None, None, None]
    found = rgb(to_clips(frames))
    assert (found.amax(1) - found.amin(1)).max() < 1e-6
    assert torch.equal(to_planes(found[:, :, 0]), frames[:, 0])


def test_smooth_pictures_come_back() -> None:
    y, x = torch.meshgrid(torch.linspace(0, 1, 32), torch.linspace(0, 1, 48), indexing="ij")
    picture = torch.stack([0.2 + 0.5 * x, 0.3 + 0.4 * y, 0.8 - 0.3 * x * y])[None]
    back = rgb(to_clips(to_planes(picture)[None]))[:, :, 0]
    # a code value of luma is 1/219; chroma is shared by 2 × 2 pixels and coded in 1/224
    assert (back - picture).abs().max() < 0.025
    assert (back - picture).abs().mean() < 0.006


def test_values_beyond_the_range_are_not_clipped() -> None:
    """Overshoot of a scaler is a difference the model may look at."""
    assert rgb(to_clips(planes(250, 128, 128))).max() > 1.05
    assert rgb(to_clips(planes(2, 128, 128))).min() < -0.05
