"""Packaging of ladders for players: HLS and DASH on shared CMAF segments, or plain files.

The coded frames are those of the rungs, never re-encoded. All is written to a folder beside the
final one, measured there, and renamed when complete.
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
    RungInput,
    check_alignment,
    check_file,
    check_ranges,
    check_track,
    find_refusals,
    find_warnings,
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
from vqaloop.execution.stage_progress import TimeLeft
from vqaloop.media.picture_data import find_captions
from vqaloop.records import Event, Ladder, Watcher

SCHEMA = "vqaloop.delivery/1"
FILES_SCHEMA = "vqaloop.files/1"
RECORD = "delivery.json"
"""The document that marks a folder as a delivery and lists its files."""
SEGMENT_S, LEAST_SEGMENT_S, MOST_SEGMENT_S = 6.0, 1.0, 30.0
_REMEDY = "choose another folder with -o"
_RUNG_FIGURES = ("width", "height", "bitrate_kbps", "peak_kbps", "score")


@dataclass(frozen=True)
class Delivery:
    """A title packaged for players, as `package_ladder` wrote it."""

    folder: Path
    about: dict[str, Any]
    """The document `vqaloop.delivery/1`."""

    def to_json(self) -> dict[str, Any]:
        """The delivery as a document.

        Returns:
            `vqaloop.delivery/1`, as delivery.json holds it.
        """
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
    """Package the ladders of a title as HLS and DASH on shared CMAF segments, without re-encoding.

    Codecs that a kind of manifest has no place for (VP9 in HLS, AVS2 in both) are left out of it,
    and listed in the document's `refused` with the reason; AVS2 is delivered as files. After an
    error or an interruption `out` is as it was.

    Args:
        folders: What `build_ladder` or `build_ladders` wrote, or several such folders, of one
            title and a codec each.
        hls: Write HLS playlists.
        dash: Write a DASH manifest.
        out: The folder to write, which may hold an earlier delivery; by default NAME.delivery in
            the current folder.
        segment_s: Duration of a segment in seconds, 1 to 30, rounded to whole GOPs.
        audio: Include the source's default audio track, if the source is still where the ladder
            found it; its other tracks are left out with a warning.
        ffmpeg: Path of the binary; None for the one that comes with vqaloop.
        progress: Called with each Event.

    Returns:
        The delivery, with its document.

    Raises:
        InputError: No codec is left for what was asked for, a player could not switch between the
            rungs, a ladder is damaged, or `out` holds files that are not of a delivery.
        ToolError: ffmpeg failed.
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
    progress = TimeLeft(progress)
    items = _checked_rungs(ladders, asked, progress)
    warnings = [
        f"no {note['kind'].upper()} for {note['codec']}: {note['reason']}" for note in refused
    ]
    source = ladders[0].about["source"]
    with _placed(target) as folder:
        tracks, audio_track = _packaged(
            folder, items, segment_s, audio, binary, warnings, progress
        )
        progress(Event("write", f"writing {quoted(target)}"))
        about = {
            "schema": SCHEMA,
            "vqaloop": __version__,
            "source": {key: str(source.get(key)) for key in ("path", "sha256")},
            **_write_manifests(folder, asked, tracks, audio_track),
            "renditions": [
                _rendition_json(track, item) for track, item in zip(tracks, items, strict=True)
            ],
            "audio": _audio_json(audio_track),
            "plain": [_copied(folder, ladder) for ladder in ladders if _is_plain(ladder)],
            "refused": refused,
            "warnings": warnings,
            # last, as it lists what the entries above have written
            "files": _listing(folder),
        }
        text = document_text(about)
        (folder / RECORD).write_text(text, encoding="ascii")
    return Delivery(target, about)


def _is_plain(ladder: Ladder) -> bool:
    """Whether its rungs are delivered as files alone."""
    return bool(ladder.about["codec"] == "avs2")


def _checked_rungs(
    ladders: Sequence[Ladder], asked: Sequence[str], progress: Watcher
) -> list[RungInput]:
    """The rungs to be packaged, read and checked; those delivered as files are checked too."""
    items: list[RungInput] = []
    total, done = sum(len(ladder.rungs) for ladder in ladders), 0
    for ladder in ladders:
        for rung in ladder.rungs:
            text = f"reading the rungs of {quoted(ladder.folder)}"
            progress(Event("check", text, done, total))
            done += 1
            if _is_plain(ladder):
                check_file(ladder, rung)
            elif is_wanted(asked, ladder.about["codec"]):
                items.append(open_rung(ladder, rung))
    check_alignment(items)
    check_ranges(items)
    return items


def _default_place(ladder: Path) -> Path:
    name = ladder.resolve().name
    return Path(f"{name.removesuffix('.ladders').removesuffix('.ladder')}.delivery")


def _checked_place(out: Path) -> Path:
    """Where to write, links resolved; InputError unless unused or an earlier delivery."""
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
    # the folder will be replaced: nothing but a delivery's own files may be lost
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
    """The files of an earlier delivery in this folder; none if there is no delivery."""
    try:
        record = read_document(folder / RECORD, _Record, schema=SCHEMA, give="", remedy="")
    except InputError:
        return set()
    return {RECORD, *(file.path for file in record.files)}


@contextlib.contextmanager
def _placed(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that replaces it on success, and is removed on failure."""
    part = unfinished(target.parent)
    try:
        _put_back(target)
        part.mkdir()
        yield part
        # checked again, as packaging took a while
        _replace(part, _checked_place(target))
    except OSError as error:
        raise InputError(
            f"could not write {quoted(target)}: {error.strerror or error}; make room or {_REMEDY}"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _set_aside(target: Path) -> Path:
    """Where an earlier delivery is kept while another replaces it."""
    return target.with_name(f".{target.name}.before")


def _put_back(target: Path) -> None:
    """Undo or complete a replacement that was interrupted."""
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
    items: Sequence[RungInput],
    segment_s: float,
    audio: bool,
    ffmpeg: str,
    warnings: list[str],
    progress: Watcher,
) -> tuple[list[Track], Track | None]:
    """The tracks of all rungs and of the audio, written to `folder` and measured."""
    if not items:
        warnings.append("AVS2 is delivered as files of pictures alone: no audio, no subtitles")
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
    warnings += find_warnings(tracks)
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
        progress(Event("package", "audio", len(items), len(items)))
        end = items[0].stream.end
        return tracks, mux_audio(path, choice.audio, folder / "audio", cut, end, ffmpeg)
    except (InputError, ToolError) as error:
        # a delivery without audio is of more use than none
        shutil.rmtree(folder / "audio", ignore_errors=True)
        warnings.append(f"audio is left out: {error}")
    return tracks, None


def _write_manifests(
    folder: Path, asked: Sequence[str], tracks: Sequence[Track], audio_track: Track | None
) -> dict[str, Any]:
    """Write the manifests asked for that have a track; their entries in the document."""
    apple = [track for track in tracks if track.codec in HLS_CODECS]
    about: dict[str, Any] = {"hls": None, "dash": None}
    if "hls" in asked and apple:
        texts = {MASTER: master_playlist(apple, audio_track)}
        for track in (*apple, *([audio_track] if audio_track else [])):
            texts[f"{track.name}/{MEDIA}"] = media_playlist(track)
        for track in apple:
            texts[f"{track.name}/{IFRAMES}"] = iframe_playlist(track)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="ascii")
        variants = [_variant_json(track, audio_track) for track in apple]
        about["hls"] = {"playlist": MASTER, "variants": variants}
    if "dash" in asked and tracks:
        (folder / MPD).write_text(mpd(tracks, audio_track), encoding="utf-8")
        about["dash"] = {"manifest": MPD, "representations": [track.name for track in tracks]}
    return about


def _variant_json(track: Track, audio_track: Track | None) -> dict[str, Any]:
    """An HLS variant, its rates with the audio."""
    rates, keys = variant_rates(track, audio_track), iframe_rates(track)
    return {
        "id": track.name,
        "playlist": f"{track.name}/{MEDIA}",
        "bandwidth": rates.peak,
        "average_bandwidth": rates.mean,
        "iframe_playlist": f"{track.name}/{IFRAMES}",
        "iframe_bandwidth": keys.peak,
        "iframe_average_bandwidth": keys.mean,
    }


def _rendition_json(track: Track, item: RungInput) -> dict[str, Any]:
    """A rung as packaged, its rates without audio."""
    rates, entry = track_rates(track), track.video
    return {
        "id": track.name,
        "rung": item.rung.file,
        "codec": track.codec,
        "codecs": track.codecs,
        "width": entry.width,
        "height": entry.height,
        "frame_rate": str(track.fps),
        "frames": len(item.stream.frames),
        "video_range": video_range(entry),
        "closed_captions": track.captions,
        "bandwidth": rates.peak,
        "average_bandwidth": rates.mean,
        "score": item.rung.score,
        "segments": len(track.segments),
        "key_frames": len(track.keyframes),
        "duration": float(track.duration),
    }


def _audio_json(audio_track: Track | None) -> dict[str, Any] | None:
    if audio_track is None:
        return None
    rates = track_rates(audio_track)
    return {
        "id": audio_track.name,
        "codecs": audio_track.codecs,
        "language": audio_track.language,
        "bandwidth": rates.peak,
        "average_bandwidth": rates.mean,
        "segments": len(audio_track.segments),
        "duration": float(audio_track.duration),
    }


def _copied(folder: Path, ladder: Ladder) -> dict[str, Any]:
    """Copy the rungs of a ladder, with a manifest; their entry in the document."""
    codec, source = ladder.about["codec"], ladder.about["source"]
    (folder / codec).mkdir()
    rungs = []
    for place, rung in enumerate(ladder.rungs, 1):
        name = f"{codec}_{place:02d}_{rung.width}x{rung.height}.{codec}"
        copy = place_file(ladder.folder / rung.file, folder / codec / name)
        figures = rung.to_json()
        rungs.append(
            {
                "file": name,
                "bytes": copy.stat().st_size,
                "sha256": file_sha256(copy),
                **{key: figures[key] for key in _RUNG_FIGURES},
            }
        )
    manifest = {
        "schema": FILES_SCHEMA,
        "codec": codec,
        # not every reader finds the frame rate of a raw stream
        "frame_rate": str(source.get("fps_exact", source["fps"]))[:40],
        "duration": source["duration"],
        "rungs": rungs,
    }
    text = document_text(manifest)
    (folder / codec / "manifest.json").write_text(text, encoding="ascii")
    return {"codec": codec, "manifest": f"{codec}/manifest.json", "rungs": rungs}


def _listing(folder: Path) -> list[dict[str, Any]]:
    """All files with their sizes, by their path from the folder."""
    return [
        {"path": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
