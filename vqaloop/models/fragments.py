"""Fragments: small patches of a frame at their own size, put together as one small picture.

Wu et al., "FAST-VQA", arXiv 2207.02595: a grid of cells over the frame, one place in each cell,
the same in all frames of a clip. Places are even, since chroma has half the size, and drawn from
a seed the caller keeps, so that a score can be repeated.
"""

import numpy as np
import numpy.typing as npt

from vqaloop.errors import InputError

FRAGMENTS = 7
"""Fragments along one side of the picture."""
FRAGMENT = 32
"""Height and width of a fragment in pixels."""


def fragment_places(
    height: int,
    width: int,
    rng: np.random.Generator,
    grid: int = FRAGMENTS,
    patch: int = FRAGMENT,
) -> npt.NDArray[np.int64]:
    """(grid, grid, 2) even (top, left) of one fragment inside each cell of a grid over the frame.

    Each even place inside the cell is as likely. Raises InputError for a frame smaller than
    grid · patch pixels.
    """
    side = grid * patch
    if height < side or width < side:
        raise InputError(
            f"fragments need frames of at least {side}x{side} pixels, not {width}x{height}; "
            "scale them up"
        )

    def drawn(length: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        cell = length // grid
        firsts = np.arange(grid) * cell // 2 * 2
        return firsts, 2 * rng.integers(0, (cell - patch) // 2 + 1, (grid, grid))

    tops, down = drawn(height)
    lefts, across = drawn(width)
    return np.stack([tops[:, None] + down, lefts[None] + across], -1)


def cut_fragments(
    frames: npt.NDArray[np.uint8], places: npt.NDArray[np.int64], patch: int = FRAGMENT
) -> npt.NDArray[np.uint8]:
    """(N, H·3/2, W) planar 4:2:0 to (N, S·3/2, S) made of its fragments, S = grid · patch.

    Raises ValueError for sizes that are no 4:2:0 and for places that are odd or outside.
    """
    count, lines, width = frames.shape
    height, side = lines * 2 // 3, len(places) * patch
    if lines % 3 or height % 2 or width % 2:
        raise ValueError(f"frames are no planar 4:2:0 with even sides: {frames.shape = }")
    inside = (places >= 0).all() and (places <= (height - patch, width - patch)).all()
    if patch % 2 or (places % 2).any() or not inside:
        raise ValueError("fragments must lie at even places inside the frame")
    chroma = frames[:, height:].reshape(count, 2, height // 2, width // 2)
    cut = []
    for plane, scale in ((frames[:, :height], 1), (chroma[:, 0], 2), (chroma[:, 1], 2)):
        size = patch // scale
        rows = [
            np.concatenate([plane[:, y : y + size, x : x + size] for y, x in row], axis=2)
            for row in places // scale
        ]
        cut.append(np.concatenate(rows, axis=1).reshape(count, -1))
    return np.concatenate(cut, axis=1).reshape(count, side * 3 // 2, side)
