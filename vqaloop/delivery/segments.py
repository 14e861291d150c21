"""A rung becomes CMAF segments: muxed by ffmpeg without encoding, then measured as written.

ffmpeg's dash muxer cuts at key frames and begins a fragment at each, so that every key frame can
be fetched alone; HLS and DASH share the files.
"""

import io
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import ffmpeg as ffmpeg_graph

from vqaloop.bitstream.codec_strings import AAC_LC, codec_string, vp9_level
from vqaloop.bitstream.demux import main_video
from vqaloop.bitstream.mp4_boxes import VideoEntry, fragment_starts, read_video_entry
from vqaloop.bitstream.random_access import is_random_access
from vqaloop.core import process
from vqaloop.core.ffmpeg import compiled
from vqaloop.core.text import quoted
from vqaloop.errors import InputError, ToolError
from vqaloop.media.container import opened
from vqaloop.media.framerate import snapped
from vqaloop.media.picture_data import holds_captions

INIT = "init.mp4"
"""File name of an initialisation segment."""
AUDIO_RATE, AUDIO_KBPS, AUDIO_CHANNELS = 48_000, 128, 2
_AAC_DELAY = 1024
"""Samples that ffmpeg's AAC encoder puts before the first."""
_READ_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm"
_TAGS = {"h264": "avc1", "hevc": "hvc1", "vp9": "vp09", "av1": "av01"}


class Picture(NamedTuple):
    """One coded frame of a rung."""

    time: Fraction
    """When it is shown, in seconds."""
    key: bool


@dataclass(frozen=True)
class Stream:
    """What lies in a rung file."""

    codec: str
    """h264, hevc, vp9 or av1."""
    fps: Fraction
    """Frames a second."""
    pictures: tuple[Picture, ...]
    """In coding order."""
    captions: bool = False
    """True where the pictures hold closed captions."""

    @property
    def keys(self) -> tuple[Fraction, ...]:
        """Times of the key frames, in seconds."""
        return tuple(picture.time for picture in self.pictures if picture.key)

    @property
    def end(self) -> Fraction:
        """When the last frame ends, in seconds."""
        return max(picture.time for picture in self.pictures) + 1 / self.fps


@dataclass(frozen=True)
class Segment:
    """One media segment as written."""

    file: str
    size_bytes: int
    start: Fraction
    """Seconds."""
    duration: Fraction
    """Seconds, to the start of the next one."""


@dataclass(frozen=True)
class KeyFrame:
    """The bytes from a fragment's head to the end of its first picture, a key frame."""

    file: str
    offset: int
    size_bytes: int
    duration: Fraction
    """Seconds, to the next key frame."""


@dataclass(frozen=True)
class Track:
    """A rendition, or the sound, as segments in a folder of its own."""

    name: str
    """The folder's name, which is also its id in the manifests."""
    codecs: str
    """RFC 6381."""
    segments: tuple[Segment, ...]
    time_base: Fraction
    """Seconds a tick of the media's own clock."""
    codec: str = "aac"
    entry: VideoEntry | None = None
    """None for sound."""
    fps: Fraction = Fraction(0)
    keyframes: tuple[KeyFrame, ...] = ()
    captions: bool = False
    """True where the pictures hold closed captions."""
    language: str | None = None
    """Of the sound, ISO 639, where the source tells it."""

    @property
    def duration(self) -> Fraction:
        """Seconds."""
        return sum((s.duration for s in self.segments), Fraction(0))


def read_stream(path: Path) -> Stream:
    """The coded frames of a rung file, checked: it starts with a picture that needs nothing before
    it at time 0, every key frame is such a picture, and nothing after one is shown before it.

    Raises InputError that names the file and the time.
    """
    name = quoted(path)
    pictures: list[Picture] = []
    with opened(path) as container:
        streams = container.streams.video
        if len(streams) != 1 or streams[0].codec_context is None:
            raise InputError(f"{name} holds {len(streams)} video streams; make the ladder again")
        stream, context = streams[0], streams[0].codec_context
        codec, config = context.codec.canonical_name, context.extradata or b""
        if codec not in _TAGS:
            raise InputError(f"{name} holds {codec}, for which there are no segments")
        latest, captions = Fraction(0), False
        for packet in container.demux(stream):
            if not packet.size or packet.pts is None:
                continue
            time = packet.pts * packet.time_base
            if packet.is_keyframe:
                if not is_random_access(codec, config, bytes(packet)):
                    raise InputError(
                        f"{name}: the key frame at {float(time):.3f} s is no IDR picture; a "
                        "segment cannot start there; encode with a closed GOP"
                    )
                latest = time
            elif time < latest:
                raise InputError(
                    f"{name}: after the key frame at {float(latest):.3f} s a frame of "
                    f"{float(time):.3f} s follows; the GOP is open; encode with a closed one"
                )
            pictures.append(Picture(time, packet.is_keyframe))
            captions = captions or holds_captions(bytes(packet))
        rate = stream.average_rate
    if not pictures or not pictures[0].key or not rate:
        raise InputError(f"{name} does not start with a key frame; make the ladder again")
    fps = snapped(Fraction(rate))
    if abs(pictures[0].time) > 1 / (2 * fps):
        raise InputError(f"{name} starts at {float(pictures[0].time):.3f} s and not at 0")
    return Stream(codec, fps, tuple(pictures), captions)


def mux_video(rung: Path, stream: Stream, folder: Path, cut_s: Fraction, ffmpeg: str) -> Track:
    """Write the rung's coded frames, unchanged, as segments of `cut_s` seconds into `folder`.

    A segment ends at the first key frame not earlier than that, so `cut_s` should be a number of
    GOPs. `folder` is made. Raises ToolError when ffmpeg fails or frames are lost.
    """
    graph = ffmpeg_graph.input("INPUT", format_whitelist=_READ_FORMATS).output(
        "OUTPUT",
        # half a frame less, or rounding may make it miss the key frame that is meant
        **_segmenting(cut_s - 1 / (2 * stream.fps), "cmaf+frag_keyframe+skip_sidx"),
        map="0:v:0",
        **{"c:v": "copy", "tag:v": _TAGS[stream.codec]},
        map_metadata="-1",
        map_chapters="-1",
    )
    _mux(graph, rung, folder, ffmpeg)
    if stream.codec == "vp9":
        _set_vp9_level(folder / INIT, stream.fps)
    return measure_video(folder, stream)


def _set_vp9_level(init: Path, fps: Fraction) -> None:
    """Give vpcC the level of this frame rate: ffmpeg's muxer of segments knows the size alone."""
    data = bytearray(init.read_bytes())
    entry = read_video_entry(bytes(data))
    # four bytes of version and flags and one of the profile come first
    at = data.index(b"vpcC" + entry.config) + len(b"vpcC") + 5
    data[at] = max(data[at], vp9_level(entry.width, entry.height, fps))
    init.write_bytes(data)


def measure_video(folder: Path, stream: Stream) -> Track:
    """What was written to `folder`, read back.

    Raises ToolError when it is not what `stream` was, frame by frame.
    """
    init = (folder / INIT).read_bytes()
    entry = read_video_entry(init)
    files, pictures, heads = _media(folder), [], []
    time_base = Fraction(1)
    for file in files:
        found, offsets, time_base = _read_segment(
            init, (folder / file).read_bytes(), 1 / stream.fps
        )
        pictures.append([picture for picture, *_ in found])
        heads += [(file, *head) for head in _key_ranges(found, offsets)]
    written = [picture for part in pictures for picture in part]
    if len(written) != len(stream.pictures) or any(
        new.key != old.key or abs(new.time - old.time) * stream.fps > Fraction(1, 2)
        for new, old in zip(written, stream.pictures, strict=True)
    ):
        raise ToolError(f"ffmpeg wrote {len(written)} frames that are not those of the rung")
    end = max(picture.time for picture in written) + 1 / stream.fps
    starts = [min(picture.time for picture in part) for part in pictures]
    times = [head[1] for head in heads]
    return Track(
        folder.name,
        codec_string(entry),
        _segments(folder, files, [*starts, end]),
        time_base,
        codec=stream.codec,
        entry=entry,
        fps=stream.fps,
        keyframes=tuple(
            KeyFrame(file, offset, size, after - time)
            for (file, time, offset, size), after in zip(heads, [*times[1:], end], strict=True)
        ),
        captions=stream.captions,
    )


def mux_audio(
    source: Path, place: int, folder: Path, cut_s: Fraction, end: Fraction, ffmpeg: str
) -> Track:
    """An audio track of `source` as AAC segments in `folder`, `end` s from its first picture.

    `place` is the track's among the audio, from 0. Sound that begins late or ends early is filled
    up with silence, so that it lasts as long as the pictures. Raises InputError for a source that
    cannot be read, ToolError when ffmpeg fails.
    """
    with opened(source) as container:
        language = str(container.streams.audio[place].metadata.get("language", ""))
        video = main_video(container) or container.streams.video[0]
        begin_s = (container.start_time or 0) / 1_000_000
        late_s = float((video.start_time or 0) * video.time_base) - begin_s
    sound = (
        ffmpeg_graph.input("INPUT", format_whitelist=_READ_FORMATS)[f"a:{place}"]
        .filter("aresample", AUDIO_RATE, **{"async": 1, "first_pts": 0})
        .filter("atrim", start=f"{max(0.0, late_s):.6f}")
        .filter("asetpts", "PTS-STARTPTS")
        .filter("apad", whole_dur=f"{float(end):.6f}")
        # what the encoder puts before the first sample takes the place of as many of silence or
        # sound, so that all the rest is heard when it should be, by any player
        .filter("atrim", start_sample=_AAC_DELAY, end=f"{float(end):.6f}")
    )
    graph = sound.output(
        "OUTPUT",
        **_segmenting(cut_s, "cmaf+skip_sidx", ":use_editlist=0"),
        use_timeline=0,
        **{"c:a": "aac", "b:a": f"{AUDIO_KBPS}k"},
        ac=AUDIO_CHANNELS,
        map_metadata="-1",
        map_chapters="-1",
    )
    _mux(graph, source, folder, ffmpeg)
    init, files = (folder / INIT).read_bytes(), _media(folder)
    frame = Fraction(_AAC_DELAY, AUDIO_RATE)
    parts = [_read_segment(init, (folder / file).read_bytes(), frame)[0] for file in files]
    starts = [part[0][0].time for part in parts]
    return Track(
        folder.name,
        AAC_LC,
        _segments(folder, files, [*starts, parts[-1][-1][0].time + frame]),
        Fraction(1, AUDIO_RATE),
        language=language if re.fullmatch(r"[a-z]{2,3}", language) and language != "und" else None,
    )


def peak_rate(parts: Sequence[tuple[int, Fraction]]) -> int:
    """Bits a second: RFC 8216's peak segment bit rate of parts of so many bytes and seconds.

    The largest rate over neighbours that together last 0.5 to 1.5 target durations; shorter rests
    do not count alone.
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
    # a title shorter than half a second
    return math.ceil(peak or mean_rate(parts))


def mean_rate(parts: Sequence[tuple[int, Fraction]]) -> int:
    """Bits a second over all the parts, of so many bytes and seconds each."""
    return math.ceil(sum(size for size, _ in parts) * 8 / sum(seconds for _, seconds in parts))


def target_duration(durations: Sequence[Fraction]) -> int:
    """EXT-X-TARGETDURATION: the longest, to the nearest second, at least 1."""
    return max(1, math.floor(max(durations) + Fraction(1, 2)))


def _segmenting(cut_s: Fraction, flags: str, more: str = "") -> dict[str, Any]:
    return {
        "f": "dash",
        "dash_segment_type": "mp4",
        "seg_duration": f"{float(cut_s):.6f}",
        "format_options": f"movflags=+{flags}{more}",
        "init_seg_name": INIT,
        "media_seg_name": "$Number%05d$.m4s",
        # no date, no version: the same rung gives the same bytes
        "fflags": "+bitexact",
    }


def _mux(graph: Any, source: Path, folder: Path, ffmpeg: str) -> None:
    folder.mkdir()
    # ffmpeg's own manifest knows neither peaks nor the other rungs
    manifest = folder / "ffmpeg.mpd"
    argv = compiled(graph, ffmpeg, {"INPUT": source, "OUTPUT": manifest})
    done = process.run(argv, timeout_s=120 + os.stat(source).st_size / 1_000_000)
    if done.returncode or done.timed_out:
        raise ToolError(f"{quoted(source)} could not be packaged: {done.reason()}")
    manifest.unlink(missing_ok=True)
    if not _media(folder):
        raise ToolError(f"{quoted(source)} could not be packaged: ffmpeg wrote no segment")


def _media(folder: Path) -> list[str]:
    return sorted((path.name for path in folder.glob("*.m4s")), key=lambda name: int(name[:-4]))


def _segments(
    folder: Path, files: Sequence[str], times: Sequence[Fraction]
) -> tuple[Segment, ...]:
    return tuple(
        Segment(file, (folder / file).stat().st_size, start, end - start)
        for file, start, end in zip(files, times[:-1], times[1:], strict=True)
    )


Read = tuple[Picture, int, int]
"""A coded frame, its first byte in the segment, the byte after its last."""


def _read_segment(
    init: bytes, segment: bytes, frame: Fraction
) -> tuple[list[Read], list[int], Fraction]:
    """The coded frames of one segment, the offsets of its fragments, and its time base.

    `frame` is how long one lasts, for the message only. Raises ToolError when it cannot be read.
    """
    found: list[Read] = []
    try:
        with av.open(io.BytesIO(init + segment), mode="r") as container:
            stream = container.streams[0]
            time_base = Fraction(stream.time_base or frame)
            for packet in container.demux(stream):
                if packet.size and packet.pts is not None and packet.pos is not None:
                    start = packet.pos - len(init)
                    picture = Picture(packet.pts * time_base, packet.is_keyframe)
                    found.append((picture, start, start + packet.size))
    except (av.FFmpegError, OSError) as error:
        raise ToolError(f"a segment that ffmpeg wrote cannot be read: {error}") from error
    if not found:
        raise ToolError("ffmpeg wrote a segment without a frame")
    return found, fragment_starts(segment), time_base


def _key_ranges(found: Sequence[Read], heads: Sequence[int]) -> list[tuple[Fraction, int, int]]:
    """Time, offset and size of each key frame's bytes, from its fragment's head on."""
    ranges = []
    for picture, start, end in found:
        if picture.key:
            head = max(at for at in heads if at < start)
            if any(head < other < start for _, other, _ in found):
                raise ToolError("ffmpeg wrote a fragment that does not start with a key frame")
            ranges.append((picture.time, head, end - head))
    return ranges
