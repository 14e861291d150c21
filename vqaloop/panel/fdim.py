"""FDIM's opinion score and features of frames in memory."""

import functools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from vqaloop.core.files import as_of
from vqaloop.media.colour import to_pictures
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
                to_pictures(torch.tensor(side[part], device=device)).float() / 255
                for side in (reference, distorted)
            ]
            found = network.features(*pair)
            scores[part] = network.mos(found).cpu().numpy()
            features[part] = found.cpu().numpy()
    return scores, features


@functools.lru_cache(maxsize=2)
def _loaded(weights: Path, as_of: tuple[int, ...], device: str) -> Fdim:
    """The network, loaded anew where the file has changed."""
    return load_fdim(weights).to(device)
