"""Packaging of ladders for players: HLS and DASH on shared CMAF segments, or plain files.

The coded frames are those of the rungs, never re-encoded. All is written to a folder beside the
final one, measured there, and renamed when complete.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from vqaloop.core.documents import document_text
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.core.files import file_sha256, place_file
from vqaloop.core.text import quoted
from vqaloop.core.version import __version__
from vqaloop.delivery.audio import CodedAudio, inspect_audio, make_audio
from vqaloop.delivery.checks import (
    HLS_CODECS,
    RungInput,
    check_alignment,
    check_file,
    check_ranges,
    check_track,
    coarsest,
    common_metric,
    find_refusals,
    find_warnings,
    is_wanted,
    open_rung,
    read_ladders,
    segment_length,
)
from vqaloop.delivery.content import AudioRendition, Content, Sheets, TextRendition, audio_groups
from vqaloop.delivery.dash import MPD, mpd
from vqaloop.delivery.document import (
    audio_json,
    default_audio_json,
    images_json,
    rendition_json,
    text_json,
    variant_json,
)
from vqaloop.delivery.encryption import (
    Encryption,
    check_codec,
    encrypt,
    open_encryption,
    read_keys,
)
from vqaloop.delivery.hls import (
    IFRAMES,
    IMAGES,
    MASTER,
    MEDIA,
    iframe_playlist,
    image_playlist,
    master_playlist,
    media_playlist,
    text_playlist,
)
from vqaloop.delivery.options import SEGMENT_S, DeliveryOptions
from vqaloop.delivery.page import write_page
from vqaloop.delivery.place import RECORD, SCHEMA, checked_place, placed
from vqaloop.delivery.segments import Track, mux_video
from vqaloop.delivery.single_file import joined
from vqaloop.delivery.subtitles import make_texts
from vqaloop.delivery.thumbnails import THUMBNAIL_HEIGHT, make_sheets
from vqaloop.delivery.tracks import AudioPlan, TextPlan, TrackPlan, plan_tracks, source_of
from vqaloop.errors import InputError, ToolError
from vqaloop.execution.stage_progress import TimeLeft
from vqaloop.media.picture_data import find_captions
from vqaloop.records import Event, Ladder, Watcher

FILES_SCHEMA = "vqaloop.files/1"
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
    subtitles: bool = True,
    single_file: bool = False,
    thumbnail_s: float = 0.0,
    keys: str | os.PathLike[str] | None = None,
    packager: str = "auto",
    page: bool = False,
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
        audio: Include the source's audio tracks, if the source is still where the ladder found it.
        subtitles: Include its subtitles that are text, as WebVTT.
        single_file: One file for each rendition, of which players fetch byte ranges.
        thumbnail_s: Seconds between preview images for seeking; 0 for none.
        keys: A file of keys, with which segments are encrypted.
        packager: What encrypts: auto, ffmpeg or shaka.
        page: Write play.html too, a page that plays the delivery in a browser.
        ffmpeg: Path of the binary; None for the one that comes with vqaloop.
        progress: Called with each Event.

    Returns:
        The delivery, with its document.

    Raises:
        InputError: No codec is left for what was asked for, a player could not switch between the
            rungs, a ladder or the file of keys is damaged, or `out` holds files that are not of a
            delivery.
        ToolError: ffmpeg or the packager failed.
    """
    given = DeliveryOptions(
        hls, dash, segment_s, audio, subtitles, single_file, thumbnail_s, keys, packager, page
    )
    binary = ffmpeg_path(ffmpeg)
    given.check()
    named = [folders] if isinstance(folders, str | os.PathLike) else list(folders)
    ladders = read_ladders([Path(folder) for folder in named])
    asked = [kind for kind, wanted in (("hls", hls), ("dash", dash)) if wanted]
    refused = find_refusals(asked, [ladder.about["codec"] for ladder in ladders])
    if page and all(ladder.about["codec"] not in HLS_CODECS for ladder in ladders):
        raise InputError("--page plays HLS, in which none of these codecs is; leave it out")
    encryption = _opened_keys(given, ladders, asked, binary)
    target = Path(out) if out is not None else _default_place(Path(named[0]))
    target = checked_place(target)
    progress = TimeLeft(progress)
    items = _checked_rungs(ladders, asked, progress)
    warnings = [
        f"no {note['kind'].upper()} for {note['codec']}: {note['reason']}" for note in refused
    ]
    with placed(target) as folder:
        job = _Job(folder, tuple(items), tuple(asked), given, encryption, binary, warnings)
        content = job.content(progress)
        progress(Event("write", f"writing {quoted(target)}"))
        about = _document(job, ladders, content, refused)
        text = document_text(about)
        (folder / RECORD).write_text(text, encoding="ascii")
    return Delivery(target, about)


def _opened_keys(
    given: DeliveryOptions, ladders: Sequence[Ladder], asked: Sequence[str], ffmpeg: str
) -> Encryption | None:
    """The keys that were given, with a program that encrypts all of these codecs."""
    if given.keys is None:
        return None
    codecs = [ladder.about["codec"] for ladder in ladders]
    hls = "hls" in asked and any(codec in HLS_CODECS for codec in codecs)
    encryption = open_encryption(read_keys(Path(given.keys), hls), given.packager, ffmpeg)
    for codec in codecs:
        if codec == "avs2":
            raise InputError("AVS2 is delivered as files, which are not encrypted; leave it out")
        if is_wanted(asked, codec):
            check_codec(encryption, codec)
    return encryption


def _document(
    job: "_Job",
    ladders: Sequence[Ladder],
    content: Content,
    refused: Sequence[dict[str, str]],
) -> dict[str, Any]:
    """Write the manifests and the rungs that are delivered as files; the whole document."""
    source = ladders[0].about["source"]
    hls = "hls" in job.asked
    about: dict[str, Any] = {
        "schema": SCHEMA,
        "vqaloop": __version__,
        "source": {key: str(source.get(key)) for key in ("path", "sha256")},
        **_write_manifests(job, content),
        "renditions": [
            rendition_json(track, item)
            for track, item in zip(content.videos, job.items, strict=True)
        ],
        "audio": default_audio_json(content),
        "audio_renditions": [audio_json(item) for item in content.audio],
        "subtitles": [text_json(text) for text in content.texts],
        "images": images_json(content.sheets, hls),
        "encryption": job.encryption.keys.scheme if job.encryption else None,
        "single_file": job.given.single_file,
        "plain": [_copied(job.folder, ladder) for ladder in ladders if _is_plain(ladder)],
        "refused": list(refused),
        "warnings": job.warnings,
    }
    if job.given.page:
        write_page(job.folder, about)
    # last, as it lists what was written
    return {**about, "files": _listing(job.folder)}


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


Made = TypeVar("Made")


@dataclass(frozen=True)
class _Job:
    """What is packaged into a folder, and how; collects warnings."""

    folder: Path
    items: tuple[RungInput, ...]
    asked: tuple[str, ...]
    """Kinds of manifest."""
    given: DeliveryOptions
    encryption: Encryption | None
    ffmpeg: str
    warnings: list[str]

    def content(self, progress: Watcher) -> Content:
        """All renditions, written to the folder and measured."""
        if not self.items:
            self.warnings.append(
                "AVS2 is delivered as files of pictures alone: no audio, no subtitles"
            )
            return Content(())
        cut = segment_length(coarsest(self.items).stream, self.given.segment_s)
        tracks = self._videos(cut, progress)
        self.warnings.extend(find_warnings(tracks))
        scores = self._scores(tracks)
        sheets = self._sheets(tracks)
        source = source_of(self.items[0].ladder, self._wanted(), self.warnings)
        audio, texts = self._from_source(source, tracks, cut, progress) if source else ([], [])
        if self.given.single_file:
            tracks = [joined(self.folder / track.name, track) for track in tracks]
            audio = [
                replace(item, track=joined(self.folder / item.track.name, item.track))
                for item in audio
            ]
        return Content(tuple(tracks), tuple(audio), tuple(texts), sheets, scores)

    def _wanted(self) -> str:
        """What goes with the source, in words; empty where nothing of it is wanted."""
        if self.given.audio and self.given.subtitles:
            return "audio is left out, and so are subtitles"
        if self.given.audio:
            return "audio is left out"
        return "subtitles are left out" if self.given.subtitles else ""

    def _videos(self, cut: Fraction, progress: Watcher) -> list[Track]:
        tracks: list[Track] = []
        for done, item in enumerate(self.items, 1):
            codec, rung = item.stream.codec, item.rung
            place = item.ladder.rungs.index(rung) + 1
            name = f"{codec}_{place:02d}_{rung.width}x{rung.height}"
            finish = self._finish(cut, audio=False)
            track = mux_video(item.path, item.stream, self.folder / name, cut, self.ffmpeg, finish)
            check_track(track, tracks[0] if tracks else track, item, self.given.segment_s)
            tracks.append(track)
            progress(
                Event("package", f"{codec} {rung.width}x{rung.height}", done, len(self.items))
            )
        return tracks

    def _finish(self, cut: Fraction, audio: bool) -> Callable[[Path], None]:
        """What is done to segments before they are measured."""

        def finish(folder: Path) -> None:
            if self.encryption:
                encrypt(folder, self.encryption, cut, audio)

        return finish

    def _scores(self, tracks: Sequence[Track]) -> dict[str, float]:
        """Scores of the rungs that HLS lists, where they can be compared with each other."""
        listed = [
            (track, item)
            for track, item in zip(tracks, self.items, strict=True)
            if track.codec in HLS_CODECS
        ]
        if "hls" not in self.asked or not listed:
            return {}
        if not common_metric([item.ladder for _, item in listed]):
            self.warnings.append(
                "no SCORE in the master playlist, as the ladders were measured by different "
                "metrics; players choose among the codecs by themselves"
            )
            return {}
        return {track.name: max(0.0, item.rung.score) for track, item in listed}

    def _sheets(self, tracks: Sequence[Track]) -> Sheets | None:
        every = self.given.thumbnail_s
        if not every:
            return None
        # the smallest that is not enlarged for it decodes fastest
        tall = [t for t in tracks if t.video.height >= THUMBNAIL_HEIGHT] or [tracks[-1]]
        best = min(tall, key=lambda t: t.video.height)
        item = self.items[list(tracks).index(best)]
        return make_sheets(
            item.path, item.stream, best, self.folder / "thumbnails", every, self.ffmpeg
        )

    def _from_source(
        self, source: Path, tracks: Sequence[Track], cut: Fraction, progress: Watcher
    ) -> tuple[list[AudioRendition], list[TextRendition]]:
        given = self.given
        try:
            coded = inspect_audio(source, self.items[0].stream.end) if given.audio else {}
            plan = plan_tracks(
                source,
                self.asked,
                audio=given.audio,
                texts=given.subtitles,
                gapless=[place for place, each in coded.items() if each.gapless],
            )
            captioned = any(track.captions for track in tracks) or not find_captions(source)
        except InputError as error:
            # a delivery without audio is of more use than none
            self.warnings.append(f"audio is left out: {error}")
            return [], []
        self.warnings.extend(plan.warnings)
        if not captioned:
            self.warnings.append(
                "no rung has the closed captions that are in the source's pictures"
            )
        audio = self._audio(source, plan, coded, cut, progress)
        texts = self._texts(source, plan, tracks[0], progress)
        return audio, texts

    def _audio(
        self,
        source: Path,
        plan: TrackPlan,
        coded: Mapping[int, CodedAudio],
        cut: Fraction,
        progress: Watcher,
    ) -> list[AudioRendition]:
        end, made = self.items[0].stream.end, list[AudioRendition]()
        for number, each in enumerate(plan.audio, 1):
            progress(Event("package", "audio", len(self.items), len(self.items)))
            folder = self.folder / (
                "audio" if len(plan.audio) == 1 else f"audio_{number:02d}_{each.channels}ch"
            )

            def make(each: AudioPlan = each, folder: Path = folder) -> AudioRendition:
                finish = self._finish(cut, audio=True)
                return make_audio(
                    source, each, coded[each.place], folder, cut, end, self.ffmpeg, finish
                )

            if item := self._tried(each.about, folder, make):
                made.append(item)
        return made

    def _texts(
        self, source: Path, plan: TrackPlan, track: Track, progress: Watcher
    ) -> list[TextRendition]:
        cuts = [*(s.start for s in track.segments), track.duration]
        made = []
        for each in plan.texts:
            progress(Event("package", "subtitles", len(self.items), len(self.items)))
            folder = self.folder / f"subtitles_{each.place + 1:02d}"

            def make(each: TextPlan = each, folder: Path = folder) -> TextRendition:
                return make_texts(source, each, folder, cuts, self.asked, self.ffmpeg)

            if item := self._tried(each.about, folder, make):
                made.append(item)
        return made

    def _tried(self, about: str, folder: Path, make: Callable[[], Made]) -> Made | None:
        """What `make` makes; where it fails, a warning: one track less is better than none."""
        try:
            return make()
        except (InputError, ToolError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            self.warnings.append(f"{about} is left out: {error}")
        return None


def _write_manifests(job: _Job, content: Content) -> dict[str, Any]:
    """Write the manifests asked for that have a track; their entries in the document."""
    about: dict[str, Any] = {"hls": None, "dash": None}
    keys = job.encryption.keys if job.encryption else None
    apple = replace(
        content,
        videos=tuple(track for track in content.videos if track.codec in HLS_CODECS),
    )
    if "hls" in job.asked and apple.videos:
        texts = {MASTER: master_playlist(apple, keys)}
        for track in apple.videos:
            texts[f"{track.name}/{MEDIA}"] = media_playlist(track, keys)
            texts[f"{track.name}/{IFRAMES}"] = iframe_playlist(track, keys)
        for item in content.audio:
            if "hls" in item.kinds:
                texts[f"{item.track.name}/{MEDIA}"] = media_playlist(item.track, keys, audio=True)
        for text in content.texts:
            texts[f"{text.name}/{MEDIA}"] = text_playlist(text)
        if content.sheets:
            texts[f"{content.sheets.name}/{IMAGES}"] = image_playlist(content.sheets)
        for name, written in texts.items():
            (job.folder / name).write_text(written, encoding="utf-8")
        variants = [
            variant_json(track, group, apple)
            for group in audio_groups(content.audio) or (None,)
            for track in apple.videos
        ]
        about["hls"] = {"playlist": MASTER, "variants": variants}
    if "dash" in job.asked and content.videos:
        (job.folder / MPD).write_text(mpd(content, keys), encoding="utf-8")
        names = [track.name for track in content.videos]
        about["dash"] = {"manifest": MPD, "representations": names}
    return about


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
