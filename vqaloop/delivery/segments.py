"""CMAF segments of a rung: muxed by ffmpeg without re-encoding, then measured as written.

ffmpeg's dash muxer cuts at key frames and starts a fragment at each, so that every key frame can
be fetched alone; HLS and DASH share the files.
"""

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av

from vqaloop.bitstream.codec_strings import codec_string, vp9_level
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
READ_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm"
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
    offset: int | None = None
    """Of its first byte, where the file holds all segments."""


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
    index: range | None = None
    """Where one file holds all segments: the bytes of its index (sidx), behind the
    initialisation segment."""

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


def mux_video(
    rung: Path,
    stream: RungStream,
    folder: Path,
    cut_s: Fraction,
    ffmpeg: str,
    finish: Callable[[Path], None] = lambda folder: None,
) -> Track:
    """Write the rung's coded frames, unchanged, as segments of `cut_s` seconds into a new folder.

    A segment ends at the first key frame not earlier than that, so `cut_s` should be a whole
    number of GOPs. `finish` is called with the folder before it is measured. Raises ToolError when
    ffmpeg fails or frames are lost.
    """
    graph = ffmpeg_graph.input("INPUT", format_whitelist=READ_FORMATS).output(
        "OUTPUT",
        # half a frame less, or rounding may make ffmpeg miss the key frame at `cut_s`
        **segmenting(cut_s - 1 / (2 * stream.fps), "cmaf+frag_keyframe+skip_sidx"),
        map="0:v:0",
        **{"c:v": "copy", "tag:v": _TAGS[stream.codec]},
        map_metadata="-1",
        map_chapters="-1",
    )
    mux(graph, rung, folder, ffmpeg)
    if stream.codec == "vp9":
        _set_vp9_level(folder / INIT, stream.fps)
    finish(folder)
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
    files, parts, heads = media_files(folder), [], []
    time_base = Fraction(1)
    for file in files:
        found, offsets, time_base = read_segment(
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
        listed_segments(folder, files, [*starts, end]),
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


def segmenting(cut_s: Fraction, flags: str, more: str = "") -> dict[str, Any]:
    """Options of ffmpeg's dash muxer for segments of `cut_s` seconds, with these movflags."""
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


def mux(graph: Any, source: Path, folder: Path, ffmpeg: str) -> None:
    """Write the segments of a graph into a new folder; raises ToolError where it fails."""
    folder.mkdir()
    # ffmpeg's own manifest has neither peak rates nor the other rungs
    manifest = folder / "ffmpeg.mpd"
    argv = compiled(graph, ffmpeg, {"INPUT": source, "OUTPUT": manifest})
    done = process.run(argv, timeout_s=120 + os.stat(source).st_size / 1_000_000)
    if done.returncode or done.timed_out:
        raise ToolError(f"{quoted(source)} could not be packaged: {done.reason()}")
    manifest.unlink(missing_ok=True)
    if not media_files(folder):
        raise ToolError(f"{quoted(source)} could not be packaged: ffmpeg wrote no segment")


def media_files(folder: Path) -> list[str]:
    """The media segments in a folder, in their order."""
    return sorted((path.name for path in folder.glob("*.m4s")), key=lambda name: int(name[:-4]))


def listed_segments(
    folder: Path, files: Sequence[str], times: Sequence[Fraction]
) -> tuple[Segment, ...]:
    return tuple(
        Segment(file, (folder / file).stat().st_size, start, end - start)
        for file, start, end in zip(files, times[:-1], times[1:], strict=True)
    )


Located = tuple[CodedFrame, int, int]
"""A coded frame, the offset of its first byte in the segment, and of the byte after its last."""


def read_segment(
    init: bytes, segment: bytes, frame: Fraction
) -> tuple[list[Located], list[int], Fraction]:
    """The coded frames of one segment, the offsets of its fragments, and its time base.

    `frame` is a frame's duration, the time base where the file has none. Raises ToolError for a
    segment that cannot be read.
    """
    found: list[Located] = []
    try:
        # in encrypted frames a parser would take noise for the heads of key frames
        options = {"fflags": "+noparse"} if b"sinf" in init else {}
        data = io.BytesIO(init + segment)
        with av.open(data, mode="r", options=options) as container:
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
