"""Selects the audio track of a source to deliver, and lists the tracks that are left out."""

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from av.stream import Disposition

from vqaloop.bitstream.demux import main_video
from vqaloop.core.files import file_sha256
from vqaloop.core.text import counted, quoted
from vqaloop.media.container import opened
from vqaloop.ratecontrol.other_tracks import is_chapter_text
from vqaloop.records import Ladder

_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*")
_ALSO = {"attachment": "attachment", "data": "data track", "video": "cover picture"}


@dataclass(frozen=True)
class TrackChoice:
    """The audio that is delivered of a source, and what is not."""

    audio: int | None
    """Index of the track among the source's audio tracks; None for no audio."""
    warnings: tuple[str, ...]
    """Tracks that are left out or mixed down."""


def source_of(ladder: Ladder, audio: bool, warnings: list[str]) -> Path | None:
    """The source file, if it is unchanged and may hold more than video.

    Appends to `warnings` where it is missing or changed and audio is wanted.
    """
    source = ladder.about["source"]
    if (source.get("input_options") or {}).get("f") == "rawvideo":
        return None
    path, same = Path(source["path"]), None
    with contextlib.suppress(OSError, ValueError):
        # by content: ladder.json may have come from anywhere, and so may the file
        same = file_sha256(path) == source.get("sha256") if path.is_file() else None
    if same:
        return path
    why = "is not there" if same is None else "is no longer the file it was"
    if audio:
        warnings.append(f"audio is left out, since the source {quoted(path)} {why}")
    return None


def choose_tracks(source: Path, audio: bool) -> TrackChoice:
    """The audio track to deliver: the first that is flagged default, else the first.

    Tracks of unknown codecs do not count. Without `audio` none is chosen, nor warned of. Raises
    InputError for a file that cannot be read.
    """
    with opened(source) as container:
        tracks = list(container.streams.audio) if audio and container.streams.video else []
        known = [track for track in tracks if track.codec_context is not None]
        flagged = [track for track in known if track.disposition & Disposition.default]
        chosen: Any = next(iter(flagged or known), None)
        warnings = []
        for place, track in enumerate(tracks, 1):
            about = f"audio track {place} ({_described(track)})"
            if track is not chosen:
                warnings.append(f"{about} is left out; {_instead(tracks, chosen)} is delivered")
            elif track.codec_context.layout.nb_channels > 2:
                warnings.append(f"{about} is reduced to stereo")
        warnings += [
            f"subtitle track {place} ({_described(track)}) is left out; no subtitles are delivered"
            for place, track in enumerate(container.streams.subtitles, 1)
        ]
        rest = _rest(container)
        if rest:
            warnings.append(f"left out of the source too: {', '.join(rest)}")
        return TrackChoice(tracks.index(chosen) if chosen in tracks else None, tuple(warnings))


def _instead(tracks: list[Any], chosen: Any) -> str:
    return "none" if chosen is None else f"track {tracks.index(chosen) + 1} ({_described(chosen)})"


def _rest(container: Any) -> list[str]:
    """Other kinds of streams, with their numbers."""
    main = main_video(container)
    kinds = [
        _ALSO[stream.type]
        for stream in container.streams
        if stream.type in _ALSO and stream is not main and not is_chapter_text(stream)
    ]
    kinds += ["chapter"] * len(container.chapters())
    return [counted(kinds.count(kind), kind) for kind in dict.fromkeys(kinds)]


def _described(stream: Any) -> str:
    """Language, codec and channel layout, as far as known."""
    language, context = str(stream.metadata.get("language", "")), stream.codec_context
    named = language if _LANGUAGE.fullmatch(language) and language != "und" else ""
    codec = context.codec.canonical_name if context is not None else "unknown codec"
    layout = context.layout.name if context is not None and stream.type == "audio" else ""
    return ", ".join(filter(None, (named, codec, layout)))
