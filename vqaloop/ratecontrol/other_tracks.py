"""Audio, subtitles, chapters, metadata and attachments that accompany a title's new video.

Each is copied from the original file where the container takes it, else converted, else left out
with a note. The sets of codecs are what players of that container play in practice.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av

from vqaloop.core.ffmpeg import file_url
from vqaloop.media.container import opened
from vqaloop.media.picture_data import is_stereo
from vqaloop.records import Source

_PCM = {f"pcm_{kind}" for kind in ("u8", "s16le", "s16be", "s24le", "s24be", "s32le", "f32le")}
_AUDIO = {
    "mp4": {"aac", "ac3", "alac", "dts", "eac3", "flac", "mp2", "mp3", "opus"},
    "matroska": {"aac", "ac3", "alac", "dts", "eac3", "flac", "mlp", "mp1", "mp2", "mp3", "opus"}
    | {"truehd", "tta", "vorbis", "wavpack"}
    | _PCM,
    "webm": {"opus", "vorbis"},
}
_AUDIO_ENCODER = {"mp4": "aac", "matroska": "libopus", "webm": "libopus"}
_KBPS_A_CHANNEL = {"aac": 96, "libopus": 64}
_MOST_KBPS = 512

_TEXT = {"ass", "mov_text", "srt", "ssa", "subrip", "text", "webvtt"}
_SUBTITLES = {
    "mp4": {"dvd_subtitle", "mov_text"},
    "matroska": {"ass", "dvb_subtitle", "dvd_subtitle", "hdmv_pgs_subtitle", "ssa", "subrip"}
    | {"webvtt"},
    "webm": {"webvtt"},
}
_TEXT_ENCODER = {"mp4": "mov_text", "matroska": "srt", "webm": "webvtt"}

_PICTURES = {"png": ("png", "image/png"), "mjpeg": ("jpg", "image/jpeg")}
_STALE = ("bps", "duration", "number_of_", "_statistics", "encoder", "rotate", "vendor_id") + (
    "alpha_mode",
)
"""Prefixes of tags of a video track that describe the old bitstream only."""
_OF_MP4 = ("major_brand", "minor_version", "compatible_brands")


@dataclass(frozen=True)
class OtherTracks:
    """The accompanying tracks, as options of an ffmpeg run whose input 1 is the original file."""

    options: tuple[str, ...] = ()
    """Output options; the new video is output stream 0."""
    audio: tuple[int, ...] = ()
    """Stream indices in the original of the audio tracks that are included."""
    notes: tuple[str, ...] = ()
    """Tracks that were converted or left out, one sentence each."""


def tracks_of(source: Source, muxer: str, folder: Path, *, packed: bool = False) -> OtherTracks:
    """All but the video of the original file, for an output of that muxer.

    Args:
        source: The title.
        muxer: ffmpeg's name: mp4, matroska or webm.
        folder: Where cover pictures are written that have to be attached.
        packed: The new video signals stereo 3D in its own stream (frame packing SEI).

    Raises:
        InputError: The original cannot be read any more.
    """
    if source.is_raw:
        return OtherTracks()
    output = _Options(muxer)
    with opened(source.path) as container:
        output.drop_tags(container.metadata, "g", _OF_MP4 + ("encoder",))
        # ffmpeg puts attachments behind all mapped streams, so they are numbered last
        for stream in sorted(container.streams, key=lambda s: (s.type == "attachment", s.index)):
            match _kind(stream):
                case "video":
                    output.video(stream)
                    output.stereo(stream, packed, is_stereo(container, stream))
                case "audio":
                    output.audio_track(stream)
                case "subtitle":
                    output.subtitles(stream)
                case "attachment":
                    output.attachment(stream)
                case "cover":
                    output.cover(container, stream, folder)
                case "data":
                    output.notes.append(f"Data track {stream.index} cannot be included.")
    output.attach_covers()
    options = ("-map_metadata", "1", "-map_chapters", "1", *output.options)
    return OtherTracks(options, tuple(output.audio), tuple(output.notes))


def _kind(stream: Any) -> str:
    """The stream's type, with "cover" for pictures and "chapters" for chapter names."""
    if stream.type == "video" and stream.disposition & av.stream.Disposition.attached_pic:
        return "cover"
    if stream.type == "data" and is_chapter_text(stream):
        # -map_chapters copies these
        return "chapters"
    return str(stream.type)


def is_chapter_text(stream: Any) -> bool:
    """Whether it is the text track in which MP4 stores the names of chapters."""
    return "text" in str(getattr(stream, "codec_tag", "")) or (
        stream.metadata.get("handler_name") == "SubtitleHandler"
    )


def _codec(stream: Any) -> str:
    context = getattr(stream, "codec_context", None)
    return str(context.codec.canonical_name) if context else "unknown"


def _disposition(stream: Any) -> str:
    return "+".join(str(d.name) for d in av.stream.Disposition if stream.disposition & d) or "0"


class _Options:
    """Builds the options; output streams are numbered in the order in which they are mapped."""

    def __init__(self, muxer: str) -> None:
        self.muxer = muxer
        self.options: list[str] = []
        self.notes: list[str] = []
        self.mapped = 1
        self.audio: list[int] = []
        self.attachments = 0
        self.pictures: list[tuple[Path, str]] = []

    def drop_tags(self, tags: dict[str, str], where: str, drop: tuple[str, ...]) -> None:
        """Clear those of `tags`, which ffmpeg copies, that begin with a prefix in `drop`."""
        for key in tags:
            if key.lower().startswith(drop) and "=" not in key:
                self.options += [f"-metadata:{where}", f"{key}="]

    def video(self, stream: Any) -> None:
        """Title, language and flags of the old video track for the new one."""
        for key, value in stream.metadata.items():
            if not key.lower().startswith((*_STALE, "handler_name")) and "=" not in key:
                self.options += ["-metadata:s:0", f"{key}={value}"]
        self._titled(stream, 0)
        self.options += ["-disposition:0", _disposition(stream)]

    def stereo(self, stream: Any, packed: bool, was_stereo: bool) -> None:
        """The stereo 3D mode: in the new stream, in Matroska's header, or lost."""
        mode = stream.metadata.get("stereo_mode", "mono")
        if mode == "mono" and not was_stereo:
            return
        kept = mode != "mono" and self.muxer != "mp4"
        if packed:
            # ffmpeg refuses to decode a file in which both the stream and the header have it
            self.options += ["-metadata:s:0", "stereo_mode="]
            self.notes.append(
                "The stereo 3D mode is in the video stream (frame packing SEI) and not in the "
                "container; players that look for it there alone show both views."
            )
        elif not kept:
            self.notes.append(
                "The stereo 3D mode is lost: neither this container nor the codec holds it; "
                "an .mkv takes the mode of an .mkv."
            )

    def audio_track(self, stream: Any) -> None:
        codec = _codec(stream)
        if codec == "unknown":
            self.notes.append(f"Audio of track {stream.index} is of an unknown codec; left out.")
            return
        self.audio.append(stream.index)
        index = self._map(stream)
        if codec in _AUDIO[self.muxer]:
            self.options += [f"-c:{index}", "copy"]
            return
        encoder, channels = _AUDIO_ENCODER[self.muxer], stream.codec_context.channels
        kbps = min(_MOST_KBPS, _KBPS_A_CHANNEL[encoder] * max(1, channels))
        self.options += [f"-c:{index}", encoder, f"-b:{index}", f"{kbps}k"]
        # libopus refuses other layouts of as many channels
        self.options += [f"-filter:{index}", "aformat=channel_layouts=7.1|5.1|stereo|mono"]
        name = encoder.removeprefix("lib")
        self.drop_tags(
            stream.metadata, f"s:{index}", ("encoder", "bps", "number_of_", "_statistics")
        )
        self.notes.append(
            f"Audio track {len(self.audio)} is {codec}, which the container does not take; "
            f"converted to {name} at {kbps} kb/s."
        )

    def subtitles(self, stream: Any) -> None:
        codec = _codec(stream)
        text = _TEXT_ENCODER[self.muxer]
        if codec in _SUBTITLES[self.muxer]:
            self.options += [f"-c:{self._map(stream)}", "copy"]
        elif codec in _TEXT:
            self.options += [f"-c:{self._map(stream)}", text]
            self.notes.append(
                f"Subtitles of track {stream.index} converted from {codec} to {text}."
            )
        else:
            self.notes.append(
                f"Subtitles of track {stream.index} ({codec}) cannot go into this container; "
                "an .mkv takes most kinds."
            )

    def attachment(self, stream: Any) -> None:
        if self.muxer != "matroska":
            self.notes.append(
                f"Attachment of track {stream.index} can go into .mkv only; left out."
            )
            return
        self.options += [f"-c:{self._map(stream, tagged=False)}", "copy"]
        self.attachments += 1

    def cover(self, container: Any, stream: Any, folder: Path) -> None:
        codec = _codec(stream)
        if codec in _PICTURES and self.muxer == "mp4":
            self.options += [f"-c:{self._map(stream)}", "copy"]
        elif codec in _PICTURES and self.muxer == "matroska":
            # ffmpeg would write it as a second video track
            suffix, mime = _PICTURES[codec]
            container.seek(0)
            packet = next(p for p in container.demux(stream) if p.size)
            number = f"-{len(self.pictures)}" if self.pictures else ""
            path = folder / f"cover{number}.{suffix}"
            path.write_bytes(bytes(packet))
            self.pictures.append((path, mime))
        else:
            self.notes.append(f"Cover picture ({codec}) cannot go into this container; left out.")

    def attach_covers(self) -> None:
        """Attach the cover pictures; ffmpeg puts attached files behind all mapped streams."""
        for path, mime in self.pictures:
            where = f"-metadata:s:t:{self.attachments}"
            self.options += ["-attach", file_url(path), where, f"mimetype={mime}"]
            self.options += [where, f"filename={path.name}"]
            self.attachments += 1

    def _map(self, stream: Any, tagged: bool = True) -> int:
        """Map a stream with its title and flags; its index in the output."""
        index = self.mapped
        self.mapped += 1
        self.options += ["-map", f"1:{stream.index}"]
        if tagged:
            self._titled(stream, index)
            self.options += [f"-disposition:{index}", _disposition(stream)]
        return index

    def _titled(self, stream: Any, index: int) -> None:
        """The track's title: ffmpeg reads MP4's as `name`, and writes Matroska's from `title`."""
        tags = stream.metadata
        if self.muxer == "mp4":
            return
        if "name" in tags and "title" not in tags:
            self.options += [f"-metadata:s:{index}", f"title={tags['name']}"]
        for key in ("name", "handler_name", "vendor_id"):
            self.options += [f"-metadata:s:{index}", f"{key}="]
