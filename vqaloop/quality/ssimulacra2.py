"""SSIMULACRA 2 of frames in memory, by PyPI's `ssimulacra2` (BSD-3-Clause)."""

import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from vqaloop.errors import InputError
from vqaloop.media.planes import Frames, require_pair


def measure(reference: Frames, distorted: Frames) -> npt.NDArray[np.float32]:
    """SSIMULACRA 2, frame by frame.

    Args:
        reference: (B, H * 3/2, W) planar 4:2:0, 8 bit, BT.709, limited range.
        distorted: As `reference`.

    Returns:
        (B,) scores: 100 for equal frames, 90 for hardly visible damage, below 0 for worse than
        anything watchable.

    Raises:
        InputError: The arrays are of another form or smaller than 8 pixels, or the package is
            not installed.
    """
    size = require_pair(reference, distorted)
    if min(size) < 8:
        # it would return 100 for any frames
        raise InputError(f"SSIMULACRA 2 takes frames of at least 8 pixels each way, not {size}")
    compute = require_package()
    # here: it brings PyTorch
    from vqaloop.media.pictures import bitmap

    pairs = zip(reference, distorted, strict=True)
    scores = [compute(*(io.BytesIO(bitmap(side)) for side in pair)) for pair in pairs]
    return np.asarray(scores, np.float32)


def require_package() -> Callable[..., float]:
    """The package's function. Raises InputError where it is not installed."""
    try:
        from ssimulacra2 import compute_ssimulacra2
    except ImportError as error:
        raise InputError(
            f"SSIMULACRA 2 cannot be measured: {error}; run `pip install 'vqaloop[panel]'`"
        ) from error
    return compute_ssimulacra2  # type: ignore[no-any-return]
