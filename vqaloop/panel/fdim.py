"""FDIM's opinion score and features of frames in memory."""

import functools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from vqaloop.core.files import as_of
from vqaloop.media.planes import Frames, require_pair
from vqaloop.models.device import exact
from vqaloop.models.fdim import FEATURES, Fdim, load_fdim

BATCH_PIXELS = 1 << 20
"""Luma pixels of a batch: larger ones are no faster on a CPU and take memory."""


@torch.inference_mode()
def measure(
    reference: Frames, distorted: Frames, weights: Path, *, device: str = "cpu"
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float16]]:
    """FDIM's deep part, frame by frame.

    Args:
        reference: (B, H * 3/2, W) planar 4:2:0, 8 bit, BT.709, limited range.
        distorted: As `reference`.
        weights: FDIM's wheel or checkpoint, see `load_fdim`; loaded once.
        device: Of PyTorch.

    Returns:
        (B,) opinion scores, about 1..5, and (B, FEATURES) features.

    Raises:
        InputError: The arrays are of another form, or the weights are not FDIM's.
    """
    height, width = require_pair(reference, distorted)
    network = _loaded(weights, as_of(weights) if weights.is_file() else (), device)
    count, step = len(reference), max(1, BATCH_PIXELS // (height * width))
    scores, features = np.empty(count, np.float32), np.empty((count, FEATURES), np.float16)
    with exact():
        for first in range(0, count, step):
            part = slice(first, first + step)
            pair = [
                to_rgb(torch.tensor(side[part], device=device)) for side in (reference, distorted)
            ]
            found = network.features(*pair)
            scores[part] = network.mos(found).cpu().numpy()
            features[part] = found.cpu().numpy()
    return scores, features


def to_rgb(frames: Tensor) -> Tensor:
    """(B, H * 3/2, W) 4:2:0 to (B, 3, H, W) R'G'B' in 0..1, to the bit as FDIM reads it.

    It has pictures from ffmpeg's default conversion, which rounds each term down and loses a level
    by that. FDIM's answer moves by some hundredths where they are rounded to the nearest.
    """
    batch, rows, width = frames.shape
    height = rows * 2 // 3
    x = frames.float()
    luma = ((x[:, :height] - 16) * (255 / 219)).floor()
    chroma = (x[:, height:].reshape(batch, 2, height // 2, width // 2) - 128) * (255 / 224)
    blue, red = F.interpolate(chroma, scale_factor=2, mode="nearest").unbind(1)
    terms = (
        (1.5748 * red).floor(),
        (-0.1873 * blue).floor() + (-0.4681 * red).floor(),
        (1.8556 * blue).floor(),
    )
    return torch.stack([luma + term for term in terms], 1).clamp(0, 255) / 255


@functools.lru_cache(maxsize=2)
def _loaded(weights: Path, as_of: tuple[int, ...], device: str) -> Fdim:
    """The network, loaded anew where the file has changed."""
    return load_fdim(weights).to(device)
