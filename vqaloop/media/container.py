"""Compressed video: what a container and its decoder tell of the one video stream in it.

PyAV reads headers and flags, the ffmpeg program decodes from end to end: only that tells the exact
number of frames, when each is shown, and whether they are all sound.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import av.logging
import numpy as np
import numpy.typing as npt

from vqaloop.bitstream.colour_tags import RANGES
from vqaloop.core import ffmpeg as ffmpeg_graph
from vqaloop.core import process
from vqaloop.core.ffmpeg import compiled, file_url
from vqaloop.core.text import quoted
from vqaloop.errors import InputError
from vqaloop.media.frame_properties import FrameLog
from vqaloop.media.framerate import snapped
from vqaloop.media.limits import MAX_PIXELS, MAX_SIDE, MIN_SIDE, check_count, check_size
from vqaloop.records import REUSE

LOSSLESS = "rewrite it with `ffmpeg -i INPUT -an -c:v ffv1 OUTPUT.mkv` and look at the result"
"""What to do about a file that decodes badly, for the end of a message."""

# ITU-T H.273 code points that ffmpeg names, unspecified and reserved ones left out
_PRIMARIES = {
    1: "bt709", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "film",
    9: "bt2020", 10: "smpte428", 11: "smpte431", 12: "smpte432", 22: "ebu3213",
}  # fmt: skip
_TRANSFERS = {
    1: "bt709", 4: "gamma22", 5: "gamma28", 6: "smpte170m", 7: "smpte240m", 8: "linear",
    9: "log100", 10: "log316", 11: "iec61966-2-4", 12: "bt1361e", 13: "iec61966-2-1",
    14: "bt2020-10", 15: "bt2020-12", 16: "smpte2084", 17: "smpte428", 18: "arib-std-b67",
}  # fmt: skip
_MATRICES = {
    1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "ycgco",
    9: "bt2020nc", 10: "bt2020c", 11: "smpte2085", 12: "chroma-derived-nc",
    13: "chroma-derived-c", 14: "ictcp", 15: "ipt-c2", 16: "ycgco-re", 17: "ycgco-ro",
}  # fmt: skip
_HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
# libavcodec's field orders, by the field that is coded first
_FIELD_ORDERS = {2: "tff", 4: "tff", 3: "bff", 5: "bff"}
_SHAPED = {"h264", "hevc", "mpeg2video", "mpeg4"}
"""Codecs whose headers tell the shape of pixels, and may tell another on the way."""
_DOLBY_VISION = {"av1", "h264", "hevc"}

# the others are let in only to say "no video" of them; playlists, which open other files, are not
_READ_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,yuv4mpegpipe"
_KNOWN_FORMATS = _READ_FORMATS + ",mp3,wav,flac,ogg,aac,aiff"
_INPUTS = "y4m, mp4, mov, mkv, webm, or raw yuv with --video-size, --pix-fmt and --framerate"


@dataclass(frozen=True)
class VideoStream:
    """What the container and the first frame say of the video stream."""

    rates: tuple[Fraction, ...]
    """Frames a second as the container has it, the most trustworthy first."""
    pix_fmt: str
    """ffmpeg's name of the pixel format that decodes."""
    codec: str
    """ffmpeg's name of it."""
    field_order: str | None
    """tff or bff where the header says that it is interlaced."""
    turned: str | None
    """How it is stored, where ffmpeg has to turn it upright: "Rotated by 90 degrees"."""
    hdr: str | None
    """PQ or HLG."""
    alpha: bool
    """True where a second, transparent layer lies beside the frames (VP8 and VP9)."""
    colour: tuple[tuple[str, str], ...]
    """ffmpeg options that tag the output alike."""


@dataclass(frozen=True)
class DecodedFacts:
    """What ffmpeg's decoder and filters deliver of a file."""

    width: int
    """Pixels, turned upright."""
    height: int
    """Pixels, turned upright."""
    sar: Fraction
    """Width of a pixel over its height."""
    tick_s: float
    """Seconds to which the times are rounded."""
    times_s: npt.NDArray[np.float64]
    """When each frame is shown, in seconds."""
    interlaced: int
    """Number of frames that are flagged so."""
    complaint: str
    """What ffmpeg said without failing, or nothing."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file as PyAV opens it: silent, without its name, all errors made InputError."""
    level = av.logging.get_level()
    av.logging.set_level(None)
    limits = {"format_whitelist": _KNOWN_FORMATS, "max_pixels": str(MAX_PIXELS)}
    try:
        # by descriptor: a name is then never taken for a protocol, nor has to be UTF-8
        with (
            open(path, "rb") as file,
            av.open(_Nameless(file), options=limits, metadata_errors="replace") as container,
        ):
            yield container
    except InputError:
        raise
    except (av.FFmpegError, OSError, ValueError, MemoryError, OverflowError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"{quoted(path)} is not a video that can be read ({said}): it is cut short, damaged "
            f"or of another kind; taken are {_INPUTS}"
        ) from error
    finally:
        av.logging.set_level(level)


class _Nameless:
    """A binary file without its name, for PyAV."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def read_stream(path: Path) -> VideoStream:
    """Read the header, check it against the limits, then decode the first frame.

    Raises InputError for a file that holds no video, more than one, or one that is not taken.
    """
    name = quoted(path)
    with opened(path) as container:
        stream = _video_stream(container, name)
        codec = stream.codec_context
        if not (codec.width and codec.height):
            raise InputError(
                f"{name} has no usable picture size: its header says none, or more than any "
                f"decoder takes; {MIN_SIDE} to {MAX_SIDE} pixels a side are taken"
            )
        check_size(name, codec.width, codec.height)
        size_bytes = os.stat(path).st_size
        if any(e.pos + e.size > size_bytes for e in stream.index_entries):
            raise InputError(
                f"{name} is cut short: its index points beyond its {size_bytes} bytes; copy it "
                "again"
            )
        codec.options = {"max_pixels": str(MAX_PIXELS)}
        frame = next(container.decode(stream), None)
        if frame is None:
            raise InputError(f"{name} holds no frame that decodes; {LOSSLESS}")
        rates = (stream.guessed_rate, stream.average_rate, stream.base_rate)
        order = int(codec.field_order)
        return VideoStream(
            rates=tuple(snapped(Fraction(rate)) for rate in rates if rate and rate > 0),
            pix_fmt=frame.format.name,
            codec=codec.codec.canonical_name,
            field_order=_FIELD_ORDERS.get(order),
            turned=_turned(frame),
            hdr=_HDR_TRANSFERS.get(int(codec.color_trc)),
            alpha=stream.metadata.get("alpha_mode") == "1",
            colour=_colour(codec, frame.format),
        )


def pixel_shapes(path: Path) -> tuple[tuple[float, Fraction], ...]:
    """Of each run of pictures with one pixel shape by the stream's own headers: its first second,
    and width over height of a pixel. Only key frames are decoded, since headers change there."""
    found: list[tuple[float, Fraction]] = []
    with opened(path) as container:
        stream = _video_stream(container, quoted(path))
        codec = stream.codec_context
        if codec.name not in _SHAPED:
            return ()
        codec.skip_frame, codec.options = "NONKEY", {"max_pixels": str(MAX_PIXELS)}
        start = stream.start_time or 0
        for packet in container.demux(stream):
            if packet.size and packet.is_keyframe and packet.pts is not None:
                codec.decode(packet)
                shape = codec.sample_aspect_ratio or Fraction(1)
                if not found or found[-1][1] != shape:
                    found.append((float((packet.pts - start) * stream.time_base), shape))
    return tuple(found)


def _turned(frame: Any) -> str | None:
    """What the display matrix, by which ffmpeg turns pictures upright, says in words."""
    degrees = round(frame.rotation) % 360
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is not None:
        a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].astype(float)
        if a * d < b * c:
            if abs(b) > abs(a):
                return "Mirrored along a diagonal"
            return "Mirrored left to right" if a < 0 else "Mirrored top to bottom"
    return f"Rotated by {degrees} degrees" if degrees else None


def dolby_vision(path: Path, codec: str, ffmpeg: str) -> int | None:
    """The profile of Dolby Vision whose base layer cannot be shown without its metadata, if any.

    Base layers of the other profiles are HDR10, HLG or SDR and tagged as that.
    """
    if codec not in _DOLBY_VISION:
        return None
    # without an output it prints what the file holds and fails
    done = process.run([ffmpeg, "-nostdin", "-i", file_url(path)], timeout_s=60)
    found = re.search(
        r"DOVI configuration record:.* profile: (\d+),.* compatibility id: 0,", done.stderr
    )
    return int(found[1]) if found else None


def main_video(container: Any) -> Any:
    """The first video stream that is no cover art, or None."""
    cover = av.stream.Disposition.attached_pic
    return next((s for s in container.streams.video if not s.disposition & cover), None)


def _video_stream(container: Any, name: str) -> Any:
    """The one video stream, or InputError; cover art is none."""
    pictures = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & pictures]
    if not streams:
        seen = "only sound and a cover picture" if container.streams.video else "no video stream"
        raise InputError(f"{name} holds {seen}; give a file with video")
    if len(streams) > 1:
        raise InputError(
            f"{name} holds {len(streams)} video streams; keep one with "
            "`ffmpeg -i INPUT -map 0:v:0 -c copy OUTPUT.mkv`"
        )
    if not set(container.format.name.split(",")) & set(_READ_FORMATS.split(",")):
        raise InputError(f"{name} is of the kind {container.format.name}; taken are {_INPUTS}")
    if streams[0].codec_context is None:
        raise InputError(f"{name} holds a codec that cannot be decoded here; {LOSSLESS}")
    return streams[0]


def _colour(codec: Any, layout: Any) -> tuple[tuple[str, str], ...]:
    tags = [
        ("color_primaries", _PRIMARIES.get(int(codec.color_primaries))),
        ("color_trc", _TRANSFERS.get(int(codec.color_trc))),
    ]
    # RGB has neither matrix nor range; what it is made on the way out, it is tagged with
    if not (layout.is_rgb or layout.has_palette):
        tags.append(("colorspace", _MATRICES.get(int(codec.colorspace))))
        tags.append(("color_range", RANGES.get(int(codec.color_range))))
    return tuple((key, value) for key, value in tags if value)


def deliver(
    path: Path, prep: Sequence[str], ffmpeg: str, log: FrameLog | None = None
) -> DecodedFacts:
    """Decode all of a container through the filters in `prep`, or, with `log`, note in it what
    each frame is as decoded.

    Raises InputError when ffmpeg reports damage or fewer than MIN_FRAMES frames come out.
    """
    name = quoted(path)
    # without prep: a time base twice as fine, in which odd times are those of interlaced frames
    flags = ("settb=intb/2", "setpts=PTS+INTERLACED")
    filters = prep or ((FrameLog.FILTER, *flags) if log else flags)
    # prep takes frames as they come; without it, rotation has to follow each of them
    before = dict([REUSE]) if prep else {}
    # wrapped frames: the lines with each frame's time, at no cost but the decoding
    graph = ffmpeg_graph.input("INPUT", max_pixels=MAX_PIXELS, **before).output(
        "pipe:1",
        f="framecrc",
        map="0:V:0",
        vf=",".join(filters),
        **{"c:v": "wrapped_avframe", "enc_time_base": "filter"},
        fps_mode="passthrough",
    )
    timeout_s = 60 + os.stat(path).st_size / 50_000
    level = ("-v", FrameLog.LEVEL, "-nostats") if log else ()
    argv = compiled(graph, ffmpeg, {"INPUT": path}, "-xerror", *level)
    done = process.run(
        argv, timeout_s=timeout_s, read_stderr=log.read if log else bytes, again=log is None
    )
    if done.timed_out:
        raise InputError(f"{name} did not decode: {done.reason()}; {LOSSLESS}")
    said = [re.sub(r" @ 0x[0-9a-f]+", "", line) for line in done.stderr.splitlines() if line]
    damage = [s for s in said if re.match(r"\[(dec:)?\w+\] ", s) or "prematurely" in s]
    if done.returncode or damage:
        first = (damage or said or ["no reason given"])[0][:200]
        raise InputError(f"{name} is cut short or damaged; decoding it said: {first}; {LOSSLESS}")
    text, complaint = done.stdout.decode("ascii", "replace"), said[0] if said else ""
    return _parse_framecrc(text, name, complaint, flagged=not prep)


def _parse_framecrc(text: str, name: str, complaint: str, flagged: bool) -> DecodedFacts:
    facts = dict(re.findall(r"^#(tb|dimensions|sar) 0: (\S+)$", text, re.MULTILINE))
    stamps = [int(pts) for pts in re.findall(r"^0,[^,]*,\s*(-?\d+),", text, re.MULTILINE)]
    if not stamps or not {"tb", "dimensions"} <= facts.keys():
        raise InputError(f"{name} holds no frame that decodes; {LOSSLESS}")
    check_count(name, len(stamps))
    width, height = map(int, facts["dimensions"].split("x"))
    across, down = map(int, facts.get("sar", "0/1").split("/"))
    tick_s, interlaced = float(Fraction(facts["tb"])), 0
    if flagged:
        tick_s *= 2
        interlaced = sum(stamp & 1 for stamp in stamps)
        stamps = [stamp >> 1 for stamp in stamps]
    return DecodedFacts(
        width=width,
        height=height,
        sar=Fraction(across, down) if across and down else Fraction(1),
        tick_s=tick_s,
        times_s=np.array(stamps, dtype=np.float64) * tick_s,
        interlaced=interlaced,
        complaint=complaint,
    )
