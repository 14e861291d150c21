"""Ladders become what players take: HLS and DASH on the same CMAF segments, or plain files.

The coded frames are those of the rungs, never encoded again. All is written beside its final
place, measured there, and renamed when it is whole.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import Struct

from vqaloop.bitstream.codec_strings import video_range
from vqaloop.core.documents import document_text, read_document
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.core.files import file_sha256, place_file, unfinished
from vqaloop.core.folders import check_writable
from vqaloop.core.text import quoted
from vqaloop.core.version import __version__
from vqaloop.delivery.checks import (
    HLS_CODECS,
    Item,
    check_alignment,
    check_file,
    check_track,
    find_doubts,
    find_refusals,
    is_wanted,
    open_rung,
    read_ladders,
    segment_length,
)
from vqaloop.delivery.dash import MPD, mpd
from vqaloop.delivery.hls import (
    IFRAMES,
    MASTER,
    MEDIA,
    iframe_playlist,
    master_playlist,
    media_playlist,
)
from vqaloop.delivery.rates import iframe_rates, track_rates, variant_rates
from vqaloop.delivery.segments import Track, mux_audio, mux_video
from vqaloop.delivery.tracks import choose_tracks, source_of
from vqaloop.errors import InputError, ToolError
from vqaloop.media.picture_data import find_captions
from vqaloop.records import Event, Ladder, Watcher

SCHEMA = "vqaloop.delivery/1"
FILES_SCHEMA = "vqaloop.files/1"
RECORD = "delivery.json"
"""What marks a folder as a delivery, and lists all that is in it."""
SEGMENT_S, LEAST_SEGMENT_S, MOST_SEGMENT_S = 6.0, 1.0, 30.0
_REMEDY = "choose another folder with -o"


@dataclass(frozen=True)
class Delivery:
    """What was delivered."""

    folder: Path
    about: dict[str, Any]
    """The document `vqaloop.delivery/1`."""

    def to_json(self) -> dict[str, Any]:
        """The document, as delivery.json holds it."""
        return self.about


def package_ladder(
    folders: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    hls: bool = True,
    dash: bool = True,
    out: str | os.PathLike[str] | None = None,
    segment_s: float = SEGMENT_S,
    audio: bool = True,
    ffmpeg: str | os.PathLike[str] | None = None,
    progress: Watcher = lambda event: None,
) -> Delivery:
    """HLS and DASH of a title's ladders, in the folder `out` (by default NAME.delivery here).

    `folders` is what `build_ladder` or `build_ladders` wrote, or several such folders, of one
    title and a codec each. Segments last `segment_s` seconds, rounded to whole GOPs. With `audio`
    the source's default sound goes along, if the source is still where the ladder found it; what
    else it holds is left out with a warning.

    What a codec cannot be delivered as (HLS for VP9, either for AVS2) is left out and told with
    its reason in `refused`; AVS2 goes along as files. Raises InputError where nothing is left of
    what was asked for, where rungs cannot be switched between, and for a folder that is damaged or
    that holds something else than an earlier delivery; ToolError where ffmpeg fails. After any of
    these, or an interruption, `out` is as it was.
    """
    binary = ffmpeg_path(ffmpeg)
    if not LEAST_SEGMENT_S <= segment_s <= MOST_SEGMENT_S:
        raise InputError(
            f"segments of {segment_s:g} s: {LEAST_SEGMENT_S:g} to {MOST_SEGMENT_S:g} s are taken"
        )
    named = [folders] if isinstance(folders, str | os.PathLike) else list(folders)
    ladders = read_ladders([Path(folder) for folder in named])
    asked = [kind for kind, wanted in (("hls", hls), ("dash", dash)) if wanted]
    refused = find_refusals(asked, [ladder.about["codec"] for ladder in ladders])
    target = Path(out) if out is not None else _default_place(Path(named[0]))
    target = _checked_place(target)
    items, plain = [], [ladder for ladder in ladders if ladder.about["codec"] == "avs2"]
    total, done = sum(len(ladder.rungs) for ladder in ladders), 0
    for ladder in ladders:
        for rung in ladder.rungs:
            said = f"reading the rungs of {quoted(ladder.folder)}"
            progress(Event("check", said, done, total))
            done += 1
            if ladder in plain:
                check_file(ladder, rung)
            elif is_wanted(asked, ladder.about["codec"]):
                items.append(open_rung(ladder, rung))
    check_alignment(items)
    warnings = [
        f"no {note['kind'].upper()} for {note['codec']}: {note['reason']}" for note in refused
    ]
    source = ladders[0].about["source"]
    with _placed(target) as folder:
        tracks, sound = _packaged(folder, items, segment_s, audio, binary, warnings, progress)
        progress(Event("write", f"writing {quoted(target)}"))
        about = {
            "schema": SCHEMA,
            "vqaloop": __version__,
            "source": {key: str(source.get(key)) for key in ("path", "sha256")},
            **_write_manifests(folder, asked, tracks, sound),
            "renditions": [
                _rendition_json(track, item) for track, item in zip(tracks, items, strict=True)
            ],
            "audio": _audio_json(sound),
            "plain": [_copied(folder, ladder) for ladder in plain],
            "refused": refused,
            "warnings": warnings,
            "files": _listing(folder),
        }
        text = document_text(about)
        (folder / RECORD).write_text(text, encoding="ascii")
    return Delivery(target, about)


def _default_place(ladder: Path) -> Path:
    name = ladder.resolve().name
    return Path(f"{name.removesuffix('.ladders').removesuffix('.ladder')}.delivery")


def _checked_place(out: Path) -> Path:
    """Where to write, links resolved; InputError unless it is free or an earlier delivery."""
    target = out.resolve()
    if not target.parent.is_dir():
        raise InputError(f"the folder {quoted(target.parent)} does not exist; create it first")
    check_writable(target.parent, _REMEDY)
    if not target.exists():
        return target
    if not target.is_dir():
        raise InputError(f"{quoted(out)} is a file; {_REMEDY}")
    try:
        there = sorted(p for p in target.rglob("*") if p.is_symlink() or not p.is_dir())
    except OSError as error:
        raise InputError(f"cannot read {quoted(out)}: {error.strerror or error}") from error
    listed = _listed(target)
    strange = [path for path in there if os.fspath(path.relative_to(target)) not in listed]
    if strange:
        raise InputError(
            f"{quoted(out)} holds {quoted(strange[0].relative_to(target))}, which is not of an "
            f"earlier delivery; {_REMEDY}"
        )
    return target


class _Listed(Struct):
    path: str


class _Record(Struct):
    files: list[_Listed]


def _listed(folder: Path) -> set[str]:
    """What an earlier delivery says it wrote to this folder; nothing if there is none."""
    try:
        record = read_document(folder / RECORD, _Record, schema=SCHEMA, give="", remedy="")
    except InputError:
        return set()
    return {RECORD, *(file.path for file in record.files)}


@contextlib.contextmanager
def _placed(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that takes its place if all goes well, and else goes away."""
    part = unfinished(target.parent)
    try:
        _put_back(target)
        part.mkdir()
        yield part
        _replace(part, _checked_place(target))
    except OSError as error:
        raise InputError(
            f"could not write {quoted(target)}: {error.strerror or error}; make room or {_REMEDY}"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _set_aside(target: Path) -> Path:
    """Where an earlier delivery is while another takes its place; whole, so never cleaned up."""
    return target.with_name(f".{target.name}.before")


def _put_back(target: Path) -> None:
    """Undo a replacement of which the end was cut off, or end it."""
    old = _set_aside(target)
    if old.is_dir() and not target.exists():
        old.rename(target)
    else:
        shutil.rmtree(old, ignore_errors=True)


def _replace(part: Path, target: Path) -> None:
    if not target.exists():
        part.rename(target)
        return
    # a folder that is not empty cannot be renamed over
    old = _set_aside(target)
    target.rename(old)
    try:
        part.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _packaged(
    folder: Path,
    items: Sequence[Item],
    segment_s: float,
    audio: bool,
    ffmpeg: str,
    warnings: list[str],
    progress: Watcher,
) -> tuple[list[Track], Track | None]:
    """The tracks of all rungs and of the sound, written to `folder` and measured."""
    if not items:
        warnings.append("AVS2 is delivered as files of pictures alone: no sound, no subtitles")
        return [], None
    cut, tracks = segment_length(items[0].stream, segment_s), list[Track]()
    for done, item in enumerate(items):
        codec, rung = item.stream.codec, item.rung
        place = item.ladder.rungs.index(rung) + 1
        name = f"{codec}_{place:02d}_{rung.width}x{rung.height}"
        progress(Event("package", f"{codec} {rung.width}x{rung.height}", done, len(items)))
        track = mux_video(item.path, item.stream, folder / name, cut, ffmpeg)
        check_track(track, tracks[0] if tracks else track, item, segment_s)
        tracks.append(track)
    warnings += find_doubts(tracks)
    path = source_of(items[0].ladder, audio, warnings)
    if path is None:
        return tracks, None
    try:
        choice = choose_tracks(path, audio)
        warnings += choice.warnings
        if not any(track.captions for track in tracks) and find_captions(path):
            warnings.append("no rung has the closed captions that are in the source's pictures")
        if choice.audio is None:
            return tracks, None
        progress(Event("package", "the sound", len(items), len(items)))
        end = items[0].stream.end
        return tracks, mux_audio(path, choice.audio, folder / "audio", cut, end, ffmpeg)
    except (InputError, ToolError) as error:
        shutil.rmtree(folder / "audio", ignore_errors=True)
        warnings.append(f"the sound is left out: {error}")
    return tracks, None


def _write_manifests(
    folder: Path, asked: Sequence[str], tracks: Sequence[Track], sound: Track | None
) -> dict[str, Any]:
    """The manifests that were asked for and have anything to hold, as the document tells them."""
    apple = [track for track in tracks if track.codec in HLS_CODECS]
    made: dict[str, Any] = {"hls": None, "dash": None}
    if "hls" in asked and apple:
        texts = {MASTER: master_playlist(apple, sound)}
        for track in (*apple, *([sound] if sound else [])):
            texts[f"{track.name}/{MEDIA}"] = media_playlist(track)
        for track in apple:
            texts[f"{track.name}/{IFRAMES}"] = iframe_playlist(track)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="ascii")
        variants = [_variant_json(track, sound) for track in apple]
        made["hls"] = {"playlist": MASTER, "variants": variants}
    if "dash" in asked and tracks:
        (folder / MPD).write_text(mpd(tracks, sound), encoding="utf-8")
        made["dash"] = {"manifest": MPD, "representations": [track.name for track in tracks]}
    return made


def _variant_json(track: Track, sound: Track | None) -> dict[str, Any]:
    """With the sound, as a player fetches it."""
    rates, keys = variant_rates(track, sound), iframe_rates(track)
    return {
        "id": track.name,
        "playlist": f"{track.name}/{MEDIA}",
        "bandwidth": rates.peak,
        "average_bandwidth": rates.mean,
        "iframe_playlist": f"{track.name}/{IFRAMES}",
        "iframe_bandwidth": keys.peak,
        "iframe_average_bandwidth": keys.mean,
    }


def _rendition_json(track: Track, item: Item) -> dict[str, Any]:
    """The pictures alone."""
    rates, entry = track_rates(track), track.entry
    assert entry is not None
    return {
        "id": track.name,
        "rung": item.rung.file,
        "codec": track.codec,
        "codecs": track.codecs,
        "width": entry.width,
        "height": entry.height,
        "frame_rate": str(track.fps),
        "frames": len(item.stream.pictures),
        "video_range": video_range(entry),
        "closed_captions": track.captions,
        "bandwidth": rates.peak,
        "average_bandwidth": rates.mean,
        "score": item.rung.score,
        "segments": len(track.segments),
        "key_frames": len(track.keyframes),
        "duration": float(track.duration),
    }


def _audio_json(sound: Track | None) -> dict[str, Any] | None:
    if sound is None:
        return None
    rates = track_rates(sound)
    return {
        "id": sound.name,
        "codecs": sound.codecs,
        "language": sound.language,
        "bandwidth": rates.peak,
        "average_bandwidth": rates.mean,
        "segments": len(sound.segments),
        "duration": float(sound.duration),
    }


def _copied(folder: Path, ladder: Ladder) -> dict[str, Any]:
    """The rungs as they are, with a list of what they are; what the document says of them."""
    codec, source = ladder.about["codec"], ladder.about["source"]
    (folder / codec).mkdir()
    rungs = []
    for place, rung in enumerate(ladder.rungs, 1):
        name = f"{codec}_{place:02d}_{rung.width}x{rung.height}.{codec}"
        copy = place_file(ladder.folder / rung.file, folder / codec / name)
        told = rung.to_json()
        kept = ("width", "height", "bitrate_kbps", "peak_kbps", "score")
        rungs.append(
            {
                "file": name,
                "bytes": copy.stat().st_size,
                "sha256": file_sha256(copy),
                **{key: told[key] for key in kept},
            }
        )
    manifest = {
        "schema": FILES_SCHEMA,
        "codec": codec,
        # a raw stream does not tell its rate to everyone
        "frame_rate": str(source.get("fps_exact", source["fps"]))[:40],
        "duration": source["duration"],
        "rungs": rungs,
    }
    text = document_text(manifest)
    (folder / codec / "manifest.json").write_text(text, encoding="ascii")
    return {"codec": codec, "manifest": f"{codec}/manifest.json", "rungs": rungs}


def _listing(folder: Path) -> list[dict[str, Any]]:
    """All files, by their path from the folder."""
    return [
        {"path": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
