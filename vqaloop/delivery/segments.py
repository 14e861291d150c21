"""CMAF segments of a rung: muxed by ffmpeg without re-encoding, then measured as written.

ffmpeg's dash muxer cuts at key frames and starts a fragment at each, so that every key frame can
be fetched alone; HLS and DASH share the files.
"""

import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av

from vqaloop.bitstream.codec_strings import AAC_LC, codec_string, vp9_level
from vqaloop.bitstream.demux import main_video
from vqaloop.bitstream.mp4_boxes import VideoEntry, fragment_starts, read_video_entry
from vqaloop.bitstream.random_access import is_random_access
from vqaloop.core import ffmpeg as ffmpeg_graph
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
"""Priming samples of ffmpeg's AAC encoder."""
_READ_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm"
_TAGS = {"h264": "avc1", "hevc": "hvc1", "vp9": "vp09", "av1": "av01"}


class CodedFrame(NamedTuple):
    """One coded frame of a rung."""

    time: Fraction
    """Presentation time, in seconds."""
    key: bool


@dataclass(frozen=True)
class RungStream:
    """The coded frames of a rung file."""

    codec: str
    """h264, hevc, vp9 or av1."""
    fps: Fraction
    """Frames per second."""
    frames: tuple[CodedFrame, ...]
    """In coding order."""
    captions: bool = False
    """Whether the frames hold closed captions (CEA-608, CEA-708)."""

    @property
    def keys(self) -> tuple[Fraction, ...]:
        """Times of the key frames, in seconds."""
        return tuple(frame.time for frame in self.frames if frame.key)

    @property
    def end(self) -> Fraction:
        """When the last frame ends, in seconds."""
        return max(frame.time for frame in self.frames) + 1 / self.fps


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
    """The bytes from a fragment's moof box to the end of its first frame, a key frame."""

    file: str
    offset: int
    size_bytes: int
    duration: Fraction
    """Seconds, to the next key frame."""


@dataclass(frozen=True)
class Track:
    """A rung, or the audio, as segments in a folder of its own."""

    name: str
    """The folder's name, which is also its id in the manifests."""
    codecs: str
    """RFC 6381."""
    segments: tuple[Segment, ...]
    time_base: Fraction
    """Seconds of a tick of the media timescale."""
    codec: str = "aac"
    entry: VideoEntry | None = None
    """None for audio."""
    fps: Fraction = Fraction(0)
    keyframes: tuple[KeyFrame, ...] = ()
    captions: bool = False
    """Whether the frames hold closed captions (CEA-608, CEA-708)."""
    language: str | None = None
    """Of audio, as an ISO 639 code, where the source has it."""

    @property
    def video(self) -> VideoEntry:
        """The sample entry of a video track."""
        assert self.entry is not None
        return self.entry

    @property
    def duration(self) -> Fraction:
        """Seconds."""
        return sum((s.duration for s in self.segments), Fraction(0))


def read_rung(path: Path) -> RungStream:
    """The coded frames of a rung file, checked for closed GOPs.

    The file must start at time 0 with a random access point, every key frame must be one, and no
    frame after one in coding order may precede it in presentation order. Raises InputError that
    names the file and the time.
    """
    name = quoted(path)
    frames: list[CodedFrame] = []
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
            frames.append(CodedFrame(time, packet.is_keyframe))
            captions = captions or holds_captions(bytes(packet))
        rate = stream.average_rate
    if not frames or not frames[0].key or not rate:
        raise InputError(f"{name} does not start with a key frame; make the ladder again")
    fps = snapped(Fraction(rate))
    if abs(frames[0].time) > 1 / (2 * fps):
        raise InputError(f"{name} starts at {float(frames[0].time):.3f} s and not at 0")
    return RungStream(codec, fps, tuple(frames), captions)


def mux_video(rung: Path, stream: RungStream, folder: Path, cut_s: Fraction, ffmpeg: str) -> Track:
    """Write the rung's coded frames, unchanged, as segments of `cut_s` seconds into a new folder.

    A segment ends at the first key frame not earlier than that, so `cut_s` should be a whole
    number of GOPs. Raises ToolError when ffmpeg fails or frames are lost.
    """
    graph = ffmpeg_graph.input("INPUT", format_whitelist=_READ_FORMATS).output(
        "OUTPUT",
        # half a frame less, or rounding may make ffmpeg miss the key frame at `cut_s`
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
    """Set the level in vpcC by size and frame rate: ffmpeg's dash muxer knows the size alone."""
    data = bytearray(init.read_bytes())
    entry = read_video_entry(bytes(data))
    # the level follows four bytes of version and flags and one of the profile
    at = data.index(b"vpcC" + entry.config) + len(b"vpcC") + 5
    data[at] = max(data[at], vp9_level(entry.width, entry.height, fps))
    init.write_bytes(data)


def measure_video(folder: Path, stream: RungStream) -> Track:
    """Read back the segments in `folder`; ToolError unless their frames are those of `stream`."""
    init = (folder / INIT).read_bytes()
    entry = read_video_entry(init)
    files, parts, heads = _media(folder), [], []
    time_base = Fraction(1)
    for file in files:
        found, offsets, time_base = _read_segment(
            init, (folder / file).read_bytes(), 1 / stream.fps
        )
        parts.append([frame for frame, *_ in found])
        heads += [(file, *head) for head in _key_ranges(found, offsets)]
    written = [frame for part in parts for frame in part]
    # ffmpeg rounds times to the timescale it chose, by far less than half a frame
    if len(written) != len(stream.frames) or any(
        new.key != old.key or abs(new.time - old.time) * stream.fps > Fraction(1, 2)
        for new, old in zip(written, stream.frames, strict=True)
    ):
        raise ToolError(f"ffmpeg wrote {len(written)} frames that are not those of the rung")
    end = max(frame.time for frame in written) + 1 / stream.fps
    starts = [min(frame.time for frame in part) for part in parts]
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
    """An audio track of `source` as AAC segments in `folder`, from its first picture on.

    Audio that starts late or ends early is padded with silence to `end` seconds, the duration of
    the video. `place` is the track's index among the audio tracks. Raises InputError for a source
    that cannot be read, ToolError when ffmpeg fails.
    """
    with opened(source) as container:
        language = str(container.streams.audio[place].metadata.get("language", ""))
        video = main_video(container) or container.streams.video[0]
        begin_s = (container.start_time or 0) / 1_000_000
        late_s = float((video.start_time or 0) * video.time_base) - begin_s
    # async fills gaps with silence, first_pts a late start; trimming starts at the first picture
    samples = (
        ffmpeg_graph.input("INPUT", format_whitelist=_READ_FORMATS)[f"a:{place}"]
        .filter("aresample", AUDIO_RATE, **{"async": 1, "first_pts": 0})
        .filter("atrim", start=f"{max(0.0, late_s):.6f}")
        .filter("asetpts", "PTS-STARTPTS")
        .filter("apad", whole_dur=f"{float(end):.6f}")
        # the encoder's priming samples replace as many of the first, so that without an edit list
        # all others are played at the right time, by any player
        .filter("atrim", start_sample=_AAC_DELAY, end=f"{float(end):.6f}")
    )
    graph = samples.output(
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
    # ffmpeg's own manifest has neither peak rates nor the other rungs
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


Located = tuple[CodedFrame, int, int]
"""A coded frame, the offset of its first byte in the segment, and of the byte after its last."""


def _read_segment(
    init: bytes, segment: bytes, frame: Fraction
) -> tuple[list[Located], list[int], Fraction]:
    """The coded frames of one segment, the offsets of its fragments, and its time base.

    `frame` is a frame's duration, the time base where the file has none. Raises ToolError for a
    segment that cannot be read.
    """
    found: list[Located] = []
    try:
        with av.open(io.BytesIO(init + segment), mode="r") as container:
            stream = container.streams[0]
            time_base = Fraction(stream.time_base or frame)
            for packet in container.demux(stream):
                if packet.size and packet.pts is not None and packet.pos is not None:
                    start = packet.pos - len(init)
                    coded = CodedFrame(packet.pts * time_base, packet.is_keyframe)
                    found.append((coded, start, start + packet.size))
    except (av.FFmpegError, OSError) as error:
        raise ToolError(f"a segment that ffmpeg wrote cannot be read: {error}") from error
    if not found:
        raise ToolError("ffmpeg wrote a segment without a frame")
    return found, fragment_starts(segment), time_base


def _key_ranges(found: Sequence[Located], heads: Sequence[int]) -> list[tuple[Fraction, int, int]]:
    """Time, offset and size of each key frame's bytes, from its fragment's moof box on."""
    ranges = []
    for frame, start, end in found:
        if frame.key:
            # the fragment that holds the frame; no other frame may come before it there
            head = max(at for at in heads if at < start)
            if any(head < other < start for _, other, _ in found):
                raise ToolError("ffmpeg wrote a fragment that does not start with a key frame")
            ranges.append((frame.time, head, end - head))
    return ranges
