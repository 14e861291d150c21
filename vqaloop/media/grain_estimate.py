"""Film grain of a source: whether it has any, and how strong it is.

Grain is what remains everywhere in a picture when each block is predicted from the frame before:
noise of about one strength, also in blocks that were predicted well. What codecs and motion leave
behind differs from block to block, and many blocks have none of it.
"""

import functools
import math

import numpy as np

from vqaloop.media.content import BLOCK, blocks_of, frame_pairs
from vqaloop.records import Source

LEAST = 1.0
"""Standard deviation, in levels of 8 bits, below which noise is none that costs bits."""
EVENNESS = 0.7
"""Part of the third-lowest tenth's noise that the lowest tenth of the blocks must have: of titles
without grain it was 0.57 at most, with grain 0.78 and more."""
DARKEST, BRIGHTEST = 24.0, 228.0
"""Means of blocks in which noise is not clipped."""
FEWEST = 24
"""Blocks in all below which nothing is said."""


@functools.lru_cache(maxsize=64)
def grain_of(source: Source, *, ffmpeg: str) -> float | None:
    """The strength of a title's grain, from six pairs of frames.

    Args:
        source: The title.
        ffmpeg: The ffmpeg program.

    Returns:
        Its standard deviation in levels of 8 bits, None of a title without grain, or one of which
        too little could be seen.
    """
    if source.frames < 2 or min(source.canvas) < 2 * BLOCK:
        return None
    found = [np.empty(0, np.float32)]
    for before, now in frame_pairs(source, ffmpeg):
        blocks = blocks_of(before, now)
        means = blocks.samples.mean((1, 2))
        usable = (means > DARKEST) & (means < BRIGHTEST)
        # the difference of two frames has the noise of both
        found.append(blocks.rests[usable].std((1, 2)) / math.sqrt(2))
    noise = np.concatenate(found)
    if len(noise) < FEWEST:
        return None
    tenth, fifth, third = np.quantile(noise, (0.1, 0.2, 0.3)).tolist()
    return float(fifth) if tenth >= max(LEAST, EVENNESS * third) else None
