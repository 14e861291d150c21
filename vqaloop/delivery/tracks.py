"""Plans what is delivered of a source's audio and subtitle tracks, and lists what is left out."""

import contextlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from av.stream import Disposition

from vqaloop.bitstream.demux import main_video
from vqaloop.core.files import file_sha256
from vqaloop.core.text import counted, quoted
from vqaloop.delivery.content import ORIGINAL, STEREO, Label
from vqaloop.delivery.languages import language_name, language_tag
from vqaloop.media.container import opened
from vqaloop.ratecontrol.other_tracks import is_chapter_text
from vqaloop.records import Ladder

_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*")
_ALSO = {"attachment": "attachment", "data": "data track", "video": "cover picture"}
_ROLES = ("comment", "hearing_impaired", "visual_impaired", "forced", "dub")
_LAYOUT_WORDS = re.compile(
    r"\b(mono|stereo|surround|[2-9]\.[0-9](\.[0-9])?|aac|e?-?ac-?3)\b", re.I
)
_LONGEST_NAME = 80
_KEPT = {"aac": ("LC", "HE-AAC", "HE-AACv2"), "ac3": (), "eac3": (), "opus": ()}
"""Codecs that are delivered as they are, and of AAC the profiles."""
_DASH_ALONE = ("opus",)
_DOLBY = ("ac3", "eac3")
_AAC_LAYOUTS = {
    "mono": "mono",
    "stereo": "stereo",
    "3.0": "3.0",
    "4.0": "4.0",
    "5.0": "5.0",
    "5.0(side)": "5.0",
    "5.1": "5.1",
    "5.1(side)": "5.1",
}
"""Channel layouts that every AAC decoder takes, by those of sources that lose nothing in them."""
TEXT_CODECS = ("ass", "mov_text", "srt", "ssa", "subrip", "text", "webvtt")


@dataclass(frozen=True)
class AudioPlan:
    """One rendition of an audio track to be made."""

    place: int
    """Index among the source's audio tracks."""
    about: str
    """The track in words, for messages."""
    label: Label
    programme: int
    kinds: tuple[str, ...]
    tiers: tuple[str, ...] = ()
    copied: bool = False
    """Whether the coded track is taken over; else it is coded as AAC."""
    layout: str = "stereo"
    """Channel layout to code."""
    channels: int = 2
    """Of what is coded."""
    mixed: bool = False
    """Whether channels are mixed together, which changes the loudness."""


@dataclass(frozen=True)
class TextPlan:
    """A subtitle track to be made WebVTT."""

    place: int
    """Index among the source's subtitle tracks."""
    about: str
    label: Label


@dataclass(frozen=True)
class TrackPlan:
    """What is delivered of a source beside its pictures, and what is not."""

    audio: tuple[AudioPlan, ...]
    texts: tuple[TextPlan, ...]
    warnings: tuple[str, ...]
    """Tracks that are left out or reduced."""


def source_of(ladder: Ladder, wanted: str, warnings: list[str]) -> Path | None:
    """The source file, if it is unchanged and may hold more than video.

    Appends to `warnings` where it is missing or changed and tracks of it are `wanted`, such as
    "audio is left out", in words; empty where none are.
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
    if wanted:
        warnings.append(f"{wanted}, since the source {quoted(path)} {why}")
    return None


def plan_tracks(
    source: Path,
    kinds: Sequence[str],
    *,
    audio: bool,
    texts: bool,
    gapless: Collection[int] = (),
) -> TrackPlan:
    """What to make of a source's audio and subtitle tracks, for these kinds of manifest.

    `gapless` are the places of the audio tracks that may be taken over as they are coded. Without
    `audio` or `texts` none of them is planned, nor warned of. Raises InputError for a file that
    cannot be read.
    """
    with opened(source) as container:
        sounds = list(container.streams.audio) if audio and container.streams.video else []
        words = list(container.streams.subtitles) if texts and container.streams.video else []
        warnings: list[str] = []
        plans = _audio_plans(sounds, tuple(kinds), gapless, warnings)
        subtitles = _text_plans(words, warnings)
        rest = _rest(container)
        if rest:
            warnings.append(f"left out of the source too: {', '.join(rest)}")
        return TrackPlan(plans, subtitles, tuple(warnings))


def _audio_plans(
    tracks: Sequence[Any], kinds: tuple[str, ...], gapless: Collection[int], warnings: list[str]
) -> tuple[AudioPlan, ...]:
    known = []
    for place, track in enumerate(tracks):
        if track.codec_context is None or not track.codec_context.layout.nb_channels:
            about = f"audio track {place + 1} ({_described(track)})"
            warnings.append(f"{about} is left out; its codec cannot be decoded here")
        else:
            known.append((place, track))
    programmes = _programmes([track for _, track in known])
    numbers = list(dict.fromkeys(programmes))
    labels = _labels(
        [[t for (_, t), p in zip(known, programmes, strict=True) if p == n] for n in numbers]
    )
    plans: list[AudioPlan] = []
    for (place, track), programme in zip(known, programmes, strict=True):
        about = f"audio track {place + 1} ({_described(track)})"
        keeps = _is_kept(track, kinds)
        if keeps and place not in gapless:
            keeps = False
            warnings.append(
                f"{about} is coded again as AAC, since it has gaps or does not last as long as "
                "the pictures"
            )
        first = AudioPlan(place, about, labels[numbers.index(programme)], programme, kinds)
        paired = programmes.count(programme) > 1
        plans += _renditions(first, track, keeps, paired, warnings)
        alone = track.codec_context.codec.canonical_name in _DASH_ALONE and not keeps
        if alone and place in gapless and "dash" in kinds:
            plans.append(replace(first, kinds=("dash",), copied=True))
    return tuple(plans)


def _renditions(
    plan: AudioPlan, track: Any, keeps: bool, paired: bool, warnings: list[str]
) -> list[AudioPlan]:
    """A track's own rendition, kept or as AAC, and where it needs one what every player decodes.

    A track that is `paired` is one of two layouts of a programme, of which the other is that.
    """
    layout, codec = track.codec_context.layout, track.codec_context.codec.canonical_name
    few, aac = layout.nb_channels <= 2, _aac_layout(layout)
    if keeps:
        own = replace(plan, copied=True, channels=layout.nb_channels)
    else:
        mixed = layout.name not in _AAC_LAYOUTS and not few
        channels = {"mono": 1, "stereo": 2, "5.1": 6}.get(aac, layout.nb_channels)
        own = replace(plan, layout=aac, channels=channels, mixed=mixed)
        if mixed:
            warnings.append(f"{plan.about} is reduced to {aac}, which players of AAC take")
    plain = few and not (keeps and codec in _DOLBY)
    if paired:
        return [replace(own, tiers=(STEREO,) if few else (ORIGINAL,))]
    if plain:
        return [replace(own, tiers=(STEREO, ORIGINAL))]
    layout_name, channels = ("mono", 1) if layout.nb_channels == 1 else ("stereo", 2)
    stereo = replace(plan, tiers=(STEREO,), layout=layout_name, channels=channels, mixed=not few)
    return [replace(own, tiers=(ORIGINAL,)), stereo]


def _aac_layout(layout: Any) -> str:
    """The layout in which AAC holds most of another one."""
    few = "mono" if layout.nb_channels == 1 else "stereo"
    return _AAC_LAYOUTS.get(layout.name, "5.1" if layout.nb_channels > 3 else few)


def _is_kept(track: Any, kinds: tuple[str, ...]) -> bool:
    context = track.codec_context
    codec, profiles = context.codec.canonical_name, _KEPT.get(context.codec.canonical_name)
    if profiles is None or (codec in _DASH_ALONE and "hls" in kinds):
        return False
    return not profiles or context.profile is None or context.profile in profiles


def _programmes(tracks: Sequence[Any]) -> list[int]:
    """A number for each track, the same for two that are one programme in two layouts.

    That is one track of up to two channels and one of more, where they alone have their language,
    title and roles.
    """
    keys = []
    for track in tracks:
        title = _LAYOUT_WORDS.sub("", _title(track)).strip(" -()[]/,").lower()
        keys.append((language_tag(_language(track)), title, _roles(track)))
    found = list(range(len(tracks)))
    for key in set(keys):
        same = [n for n, other in enumerate(keys) if other == key]
        wide = [n for n in same if tracks[n].codec_context.layout.nb_channels > 2]
        narrow = [n for n in same if n not in wide]
        if len(wide) == 1 and len(narrow) == 1 and _is_plain(tracks[narrow[0]]):
            found[max(same)] = min(same)
    return found


def _is_plain(track: Any) -> bool:
    """Whether a track of up to two channels ends up as AAC."""
    return str(track.codec_context.codec.canonical_name) not in _DOLBY


def _text_plans(tracks: Sequence[Any], warnings: list[str]) -> tuple[TextPlan, ...]:
    plans, labels = [], _labels([[track] for track in tracks], one_default=False)
    for place, (track, label) in enumerate(zip(tracks, labels, strict=True)):
        about = f"subtitle track {place + 1} ({_described(track)})"
        context = track.codec_context
        codec = context.codec.canonical_name if context is not None else ""
        if codec in TEXT_CODECS:
            plans.append(TextPlan(place, about, label))
        else:
            kind = "holds pictures and no text" if codec else "is of a codec unknown here"
            warnings.append(f"{about} is left out; it {kind}, and WebVTT is made of text")
    return tuple(plans)


def _labels(groups: Sequence[Sequence[Any]], one_default: bool = True) -> list[Label]:
    """Names, languages and flags of programmes, each with its tracks.

    One is the default: the first that is flagged, of audio else the first.
    """
    flagged = [n for n, tracks in enumerate(groups) if any(_is_default(track) for track in tracks)]
    default = flagged[0] if flagged else 0 if one_default else -1
    labels: list[Label] = []
    for place, (track, *_) in enumerate(groups):
        language, roles = language_tag(_language(track)), _roles(track)
        name = _title(track) or (language_name(language) if language else f"Track {place + 1}")
        names, count, plain = {label.name for label in labels}, 2, name
        while name in names:
            name, count = f"{plain} {count}", count + 1
        labels.append(Label(name, language, place == default, roles))
    return labels


def _is_default(track: Any) -> bool:
    return bool(track.disposition & Disposition.default)


def _title(track: Any) -> str:
    """A track's title, of one line and as an attribute of a playlist may hold it."""
    text = str(track.metadata.get("title") or track.metadata.get("name") or "")
    clean = "".join(c if c.isprintable() else " " for c in text.replace('"', "'"))
    return " ".join(clean.split())[:_LONGEST_NAME].strip()


def _language(track: Any) -> str:
    return str(track.metadata.get("language", ""))


def _roles(track: Any) -> tuple[str, ...]:
    return tuple(name for name in _ROLES if track.disposition & Disposition[name])


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
