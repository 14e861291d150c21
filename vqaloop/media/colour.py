"""Converts planar 4:2:0 to the normalised RGB of the models, to 8-bit RGB, and back.

BT.709 coefficients, limited range, for every input: what matters is that a rung and its source
pass through the same matrix.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
"""ImageNet's mean of R, G, B in 0..1, as InternVideo2 was trained."""
STD = (0.229, 0.224, 0.225)
"""Its standard deviation."""


def to_clips(frames: Tensor) -> Tensor:
    """(B, T, H·3/2, W) uint8 4:2:0 to (B, 3, T, H, W) fp32 RGB, ImageNet-normalised, unclipped."""
    rgb = _to_rgb(frames)
    shape = (1, 3, 1, 1, 1)
    # in place: memory for a copy costs as much time as the arithmetic
    return rgb.sub_(rgb.new_tensor(MEAN).view(shape)).div_(rgb.new_tensor(STD).view(shape))


def to_pictures(frames: Tensor) -> Tensor:
    """(B, H·3/2, W) uint8 4:2:0 to (B, 3, H, W) uint8 R'G'B', as a display of 8 bits shows it."""
    rgb = _to_rgb(frames[:, None])[:, :, 0]
    return (rgb * 255).round().clamp(0, 255).to(torch.uint8)


def _to_rgb(frames: Tensor) -> Tensor:
    """(B, T, H·3/2, W) uint8 4:2:0 to (B, 3, T, H, W) fp32 R'G'B', 0..1 but unclipped."""
    batch, count, rows, width = frames.shape
    height = rows * 2 // 3
    x = frames.float()
    luma = (x[:, :, :height] - 16) / 219
    chroma = x[:, :, height:].reshape(batch * count, 2, height // 2, width // 2)
    chroma = F.interpolate((chroma - 128) / 224, scale_factor=2, mode="nearest")
    blue, red = chroma.reshape(batch, count, 2, height, width).unbind(2)
    return torch.stack(
        [luma + 1.5748 * red, luma - 0.1873 * blue - 0.4681 * red, luma + 1.8556 * blue], 1
    )


def to_planes(rgb: Tensor) -> Tensor:
    """(T, 3, H, W) RGB in 0..1, H and W even, to (T, H·3/2, W) uint8 4:2:0."""
    count, _, height, width = rgb.shape
    red, green, blue = rgb.clamp(0, 1).unbind(1)
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    chroma = torch.stack([(blue - luma) / 1.8556, (red - luma) / 1.5748], 1)
    small = F.avg_pool2d(chroma, 2).reshape(count, height // 2, width)
    planes = torch.cat([luma * 219 + 16, small * 224 + 128], 1)
    return planes.round().clamp(0, 255).to(torch.uint8)
