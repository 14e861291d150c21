"""How a title's bitrate differs from its excerpt's, as the source's own frames tell.

Few windows never hold exactly as much as the title they stand for, and that, not their joins, is
what an excerpt is off by: each window begins with a key frame where the title has one as often. A
compressed source has been through an encoder already, and the bytes of all its frames are read
without decoding. What its windows take more or less than the rest an encode takes likewise, the
more so the nearer its bitrate is to the source's (`python -m bench.excerpts`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vqaloop.bitstream.packets import packet_sizes
from vqaloop.errors import ToolError
from vqaloop.media.selective_decode import TROUBLE
from vqaloop.records import Source

MOST = math.log(2)
"""Bound of what is corrected, as a logarithm of a ratio."""
SHARE, SHARE_BY_RATE = 1.5, 0.33
"""Part of the source's difference that an encode shows: of one at the source's own rate, and how
much more it is where the rate is e times as high. It is kept from 0 to 1."""


@dataclass(frozen=True)
class ExcerptRate:
    """What the source's own bytes say of an excerpt's bitrates."""

    missing: float = 0.0
    """Logarithm of the source's bitrate over that of its windows."""
    source_kbps: float = 1.0

    def of_title(self, kbps: float) -> float:
        """The bitrate of a title whose excerpt has this one."""
        share = SHARE + SHARE_BY_RATE * math.log(max(kbps, 1e-3) / self.source_kbps)
        return kbps * math.exp(self.missing * min(1.0, max(0.0, share)))


def excerpt_rate(source: Source, windows: Sequence[tuple[int, int]]) -> ExcerptRate:
    """Compare the bytes of a source's frames in windows with those of all.

    Args:
        source: The title.
        windows: Start frame and number of frames of each.

    Returns:
        What to expect; no difference where the frames cannot be read, or are raw.
    """
    try:
        packets = packet_sizes(source.path)
    except (*TROUBLE, ToolError):
        return ExcerptRate()
    sizes = packets.sizes
    if not packets.lossy or len(sizes) < 2:
        return ExcerptRate()
    # filters that drop or repeat frames move windows a little
    step = len(sizes) / source.frames
    parts = [sizes[round(start * step) : round((start + n) * step)] for start, n in windows]
    inside = np.concatenate(parts)
    if not inside.sum():
        return ExcerptRate()
    missing = math.log(sizes.mean() / inside.mean())
    kbps = float(sizes.sum()) * 8 / 1000 / source.duration_s
    return ExcerptRate(min(MOST, max(-MOST, missing)), kbps)
