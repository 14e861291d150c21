"""Average and peak bitrates of tracks and variants, from their segments as written."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from vqaloop.delivery.content import AudioGroup, Sheets, TextRendition
from vqaloop.delivery.segments import Track

Parts = Sequence[tuple[int, Fraction]]
"""Bytes and seconds of consecutive segments or key frames."""


@dataclass(frozen=True)
class Rates:
    """Measured rates in bit/s."""

    peak: int
    mean: int


def track_rates(track: Track) -> Rates:
    """Rates of the segments as they are fetched, container included."""
    return _rates([(s.size_bytes, s.duration) for s in track.segments])


def iframe_rates(track: Track) -> Rates:
    """Rates of the key frames alone."""
    return _rates([(k.size_bytes, k.duration) for k in track.keyframes])


def text_rates(item: TextRendition | Sheets) -> Rates:
    """Rates of subtitles or of preview images as they are fetched."""
    return _rates([(s.size_bytes, s.duration) for s in item.segments])


def variant_rates(
    track: Track, group: AudioGroup | None, texts: Sequence[TextRendition] = ()
) -> Rates:
    """Rates of a variant as a player fetches it, with the largest audio and subtitles of it."""
    kinds = [
        [track_rates(track)],
        [track_rates(each.track) for each in group.members] if group else [],
        [text_rates(each) for each in texts],
    ]
    listed = [rates for rates in kinds if rates]
    return Rates(
        sum(max(r.peak for r in rates) for rates in listed),
        sum(max(r.mean for r in rates) for rates in listed),
    )


def _rates(parts: Parts) -> Rates:
    return Rates(peak_rate(parts), average_rate(parts))


def peak_rate(parts: Parts) -> int:
    """The peak segment bit rate of RFC 8216 (section 4.1), in bit/s.

    The largest rate of consecutive segments that together last 0.5 to 1.5 target durations; a
    shorter last segment does not count alone.
    """
    target = target_duration([seconds for _, seconds in parts])
    peak = Fraction(0)
    for first in range(len(parts)):
        size, seconds = 0, Fraction(0)
        for part_size, part_seconds in parts[first:]:
            size, seconds = size + part_size, seconds + part_seconds
            if seconds * 2 > target * 3:
                break
            if seconds * 2 >= target:
                peak = max(peak, size * 8 / seconds)
    # no run is long enough in a title shorter than half a second
    return math.ceil(peak or average_rate(parts))


def average_rate(parts: Parts) -> int:
    """Mean rate in bit/s."""
    return math.ceil(sum(size for size, _ in parts) * 8 / sum(seconds for _, seconds in parts))


def target_duration(durations: Sequence[Fraction]) -> int:
    """EXT-X-TARGETDURATION: the longest duration to the nearest second, at least 1."""
    return max(1, math.floor(max(durations) + Fraction(1, 2)))
