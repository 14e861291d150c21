"""What a delivery holds: pictures, audio, subtitles, preview images; how HLS groups audio."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from vqaloop.delivery.segments import Segment, Track

STEREO, ORIGINAL = "stereo", "original"
"""What an audio rendition is of its programme: AAC for every player, and as the source has it."""


@dataclass(frozen=True)
class Label:
    """What players show of an audio or subtitle rendition, and by which they choose it."""

    name: str
    """Of one line, without quotation marks; no other of its kind has it."""
    language: str | None
    """RFC 5646."""
    default: bool
    roles: tuple[str, ...] = ()
    """ffmpeg's names of dispositions: comment, hearing_impaired, visual_impaired, forced, dub."""


@dataclass(frozen=True)
class AudioRendition:
    """One coding of an audio programme, as segments."""

    track: Track
    label: Label
    programme: int
    """What is heard: renditions of one programme differ in codec and channels alone."""
    tiers: tuple[str, ...]
    """STEREO, ORIGINAL or both."""
    kinds: tuple[str, ...]
    """The manifests that list it: hls, dash."""
    source_track: int
    """Place among the source's audio tracks, from 1."""
    channels: int
    rate: int
    """Samples per second."""
    copied: bool
    """Whether it is the source's own bytes."""
    atmos: bool = False
    """Whether objects are coded with it (Dolby Digital Plus with Dolby Atmos)."""
    gain_db: float = 0.0
    """Put on it so that it is as loud as the source."""


@dataclass(frozen=True)
class TextRendition:
    """Subtitles as WebVTT."""

    name: str
    """The folder's name, which is also its id in the manifests."""
    label: Label
    segments: tuple[Segment, ...]
    whole: Segment
    """All of it in one file."""
    source_track: int
    """Place among the source's subtitle tracks, from 1."""
    cues: int


@dataclass(frozen=True)
class Sheets:
    """Preview images: small pictures at equal distances in time, several to a JPEG."""

    name: str
    """The folder's name, which is also its id in the manifests."""
    segments: tuple[Segment, ...]
    width: int
    """Of one small picture, in pixels."""
    height: int
    across: int
    """Small pictures in a row of a sheet."""
    down: int
    every_s: Fraction
    """Seconds from one small picture to the next."""


@dataclass(frozen=True)
class Content:
    """All renditions of a delivery."""

    videos: tuple[Track, ...]
    audio: tuple[AudioRendition, ...] = ()
    texts: tuple[TextRendition, ...] = ()
    sheets: Sheets | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    """Scores of the pictures by the names of their tracks, where one metric gave them all."""


@dataclass(frozen=True)
class AudioGroup:
    """Renditions of which a player takes one, for HLS: one for each programme."""

    id: str
    members: tuple[AudioRendition, ...]


def audio_groups(renditions: Sequence[AudioRendition]) -> tuple[AudioGroup, ...]:
    """Groups for HLS, each with all programmes: what every player decodes, and the source's own.

    One group where both are the same, none without audio.
    """
    listed = [r for r in renditions if "hls" in r.kinds]
    programmes = list(dict.fromkeys(r.programme for r in listed))
    found: list[AudioGroup] = []
    for id, tier in (("audio", STEREO), ("audio-original", ORIGINAL)):
        members = []
        for programme in programmes:
            same = [r for r in listed if r.programme == programme]
            members.append(next((r for r in same if tier in r.tiers), same[0]))
        if members and tuple(members) not in [group.members for group in found]:
            found.append(AudioGroup(id, tuple(members)))
    return tuple(found)
