"""What a bitstream says of a video's quality before it is decoded, as the heads take it.

Bits a pixel and the coded resolution go into the score without reference, as in ITU-T P.1204.3.
"""

import math
from dataclasses import dataclass

COLUMNS = 3
"""Numbers in `StreamFacts.inputs`."""
BITS_MIDDLE, BITS_SPAN = -4.0, 3.0
"""log2 of bits a pixel where the input is 0, and from there to 1. Of encodes from poor to
transparent it is -7 to -1."""
SCALE_SPAN = 2.0
"""log2 of the scale, from 1 to a quarter: 0 to -1."""
BOUND = 2.0
"""Largest magnitude of an input: intermediate formats have far more bits a pixel."""


@dataclass(frozen=True)
class StreamFacts:
    """Facts of one video; by default nothing is known, as of raw and lossless video."""

    bits_pixel: float = 0.0
    """Mean coded bits of a frame, over the pixels of a coded frame; 0: not known."""
    scale: float = 0.0
    """Coded height over that of the canvas; 0: not known."""

    def inputs(self) -> tuple[float, float, float]:
        """The two as logarithms, of about -1..1, and 1; three zeros where either is not known."""
        if not (self.bits_pixel > 0 and self.scale > 0):
            return 0.0, 0.0, 0.0
        bits = (math.log2(self.bits_pixel) - BITS_MIDDLE) / BITS_SPAN
        scale = math.log2(self.scale) / SCALE_SPAN
        return _bounded(bits), _bounded(scale), 1.0


def stream_facts(
    frame_bits: float, coded: tuple[int, int], canvas: tuple[int, int]
) -> StreamFacts:
    """Facts of a video.

    Args:
        frame_bits: Mean coded bits of a frame.
        coded: (width, height) of coded frames, also where they are turned for display.
        canvas: (width, height) of the pictures that are scored.
    """
    pixels, shown = math.prod(coded), math.prod(canvas)
    if pixels <= 0 or shown <= 0:
        return StreamFacts()
    # by area, which is the same of pictures that are turned
    return StreamFacts(frame_bits / pixels, math.sqrt(pixels / shown))


def _bounded(value: float) -> float:
    return max(-BOUND, min(BOUND, value))
