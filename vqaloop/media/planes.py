"""Decoded frames as numpy arrays: planar 4:2:0, how they are scaled, and how crops are cut.

A frame is (H·3/2, W) of uint8: the U and V planes (half size each) stacked as rows below luma.
"""

import numpy as np
import numpy.typing as npt

from vqaloop.errors import InputError

SCALER = "bicubic+accurate_rnd+full_chroma_int"
"""swscale flags with which every rung is scaled to the source's canvas."""

Frames = npt.NDArray[np.uint8]
"""(N, H·3/2, W) planar 4:2:0."""

CLIP_FRAMES = 2
"""Consecutive frames of a clip."""
CLIP_SIZE = 112
"""Height and width of a clip in luma pixels."""


def require_pair(reference: Frames, distorted: Frames, sample: str = "uint8") -> tuple[int, int]:
    """Luma height and width of two equal (N, H·3/2, W) of `sample`. Raises InputError for
    others."""
    shape = reference.shape
    if distorted.shape != shape or len(shape) != 3 or 0 in shape or shape[1] % 3 or shape[2] % 2:
        raise InputError(f"frames must be two equal (N, H * 3/2, W): {shape}, {distorted.shape}")
    if reference.dtype != sample or distorted.dtype != sample:
        raise InputError(f"frames must be {sample}: {reference.dtype}, {distorted.dtype}")
    return shape[1] // 3 * 2, shape[2]


def cut(frames: Frames, top: int, left: int, height: int, width: int) -> Frames:
    """A crop of (N, H·3/2, W) frames, in the same form; all four numbers are even."""
    count, lines, wide = frames.shape
    tall = lines * 2 // 3
    out = np.empty((count, height * 3 // 2, width), frames.dtype)
    out[:, :height] = frames[:, top : top + height, left : left + width]
    chroma = frames[:, tall:].reshape(count, 2, tall // 2, wide // 2)
    small = chroma[:, :, top // 2 : (top + height) // 2, left // 2 : (left + width) // 2]
    out[:, height:] = small.reshape(count, height // 2, width)
    return out


def limited(frames: Frames) -> Frames:
    """(N, H·3/2, W) frames of full range in limited range, with 8 or 10 bits as they have."""
    step, most = (1, 255) if frames.dtype == "uint8" else (4, 1023)
    rows = frames.shape[1] * 2 // 3
    made = frames.astype(np.float32)
    made[:, :rows] = 16 * step + made[:, :rows] * (219 * step / most)
    made[:, rows:] = 128 * step + (made[:, rows:] - 128 * step) * (224 * step / most)
    return made.round().astype(frames.dtype)
