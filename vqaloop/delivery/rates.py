"""Average and peak bitrates of tracks and variants, from their segments."""

from dataclasses import dataclass

from vqaloop.bitstream.mp4_boxes import VideoEntry
from vqaloop.delivery.segments import Track, mean_rate, peak_rate


@dataclass(frozen=True)
class Rates:
    """Bits a second, measured."""

    peak: int
    mean: int


def track_rates(track: Track) -> Rates:
    """Of the segments as they are fetched, container included."""
    parts = [(s.size_bytes, s.duration) for s in track.segments]
    return Rates(peak_rate(parts), mean_rate(parts))


def iframe_rates(track: Track) -> Rates:
    """Of the key frames alone."""
    parts = [(k.size_bytes, k.duration) for k in track.keyframes]
    return Rates(peak_rate(parts), mean_rate(parts))


def variant_rates(track: Track, audio: Track | None) -> Rates:
    """What a player of this rung fetches: pictures and sound."""
    video = track_rates(track)
    sound = track_rates(audio) if audio else Rates(0, 0)
    return Rates(video.peak + sound.peak, video.mean + sound.mean)


def rate_of(track: Track) -> VideoEntry:
    assert track.entry is not None
    return track.entry
