"""Reads the one video stream of a container: its header and first frame, then a full decode.

PyAV reads headers and flags, the ffmpeg program decodes from end to end: only that gives the exact
number of frames, their presentation times, and whether they are all intact.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.logging
import numpy as np
import numpy.typing as npt

from vqaloop.bitstream.colour_tags import HDR_TRANSFERS, MATRICES, PRIMARIES, RANGES, TRANSFERS
from vqaloop.bitstream.demux import open_video, video_streams
from vqaloop.bitstream.formats import SOURCES, SOURCES_AND_SOUND
from vqaloop.bitstream.hdr_metadata import static_of
from vqaloop.bitstream.nal import count_sps, read_sps
from vqaloop.core import ffmpeg as ffmpeg_graph
from vqaloop.core import process, scopes
from vqaloop.core.ffmpeg import compiled, file_url
from vqaloop.core.text import quoted
from vqaloop.errors import InputError
from vqaloop.media.frame_properties import FrameLog
from vqaloop.media.limits import MAX_PIXELS, MAX_SIDE, MIN_SIDE, check_count, check_size
from vqaloop.records import REUSE, StaticHdr

LOSSLESS = "rewrite it with `ffmpeg -i INPUT -an -c:v ffv1 OUTPUT.mkv` and look at the result"
"""The remedy for a file that decodes badly, for the end of a message."""

# libavcodec's field orders, by the field that is coded first
_FIELD_ORDERS = {2: "tff", 4: "tff", 3: "bff", 5: "bff"}
_SAR_IN_HEADERS = {"h264", "hevc", "mpeg2video", "mpeg4"}
"""Codecs whose headers hold the pixel aspect ratio, and may change it inside the stream."""
_HEADERS = {
    "mpeg2video": re.compile(rb"(?s)\x00\x00\x01\xb3.*?(?=\x00\x00\x01[\x00\xb2\xb8]|\Z)"),
    "mpeg4": re.compile(rb"(?s)\x00\x00\x01[\x20-\x2f].*?(?=\x00\x00\x01[\xb2\xb3\xb6]|\Z)"),
}
"""A sequence header with its extensions, a video object layer: up to what each picture has."""
_DOLBY_VISION = {"av1", "h264", "hevc"}

_INPUTS = "y4m, mp4, mov, mkv, webm, or raw yuv with --video-size, --pix-fmt and --framerate"


@dataclass(frozen=True)
class StreamHeader:
    """The video stream by its container and its first frame."""

    rates: tuple[Fraction, ...]
    """Frame rates that the container gives, in fps, the most trustworthy first."""
    pix_fmt: str
    """ffmpeg's name of the pixel format that decodes."""
    codec: str
    """ffmpeg's name of the codec."""
    field_order: str | None
    """tff or bff where the header says that it is interlaced."""
    orientation: str | None
    """How pictures are stored where they have to be turned upright: "Rotated by 90 degrees"."""
    hdr: str | None
    """PQ or HLG."""
    static_hdr: StaticHdr | None
    """Mastering display and light levels, as the first frame has them."""
    alpha: bool
    """True where a second, transparent layer lies beside the frames (VP8 and VP9)."""
    colour: tuple[tuple[str, str], ...]
    """ffmpeg options that tag the output alike."""


@dataclass(frozen=True)
class DecodedVideo:
    """The frames of a file as ffmpeg's decoder and filters give them."""

    width: int
    """Pixels, turned upright."""
    height: int
    """Pixels, turned upright."""
    sar: Fraction
    """Width of a pixel over its height."""
    tick_s: float
    """Seconds to which the times are rounded."""
    times_s: npt.NDArray[np.float64]
    """Presentation time of each frame, in seconds."""
    interlaced: int
    """Number of frames that are flagged as interlaced."""
    complaint: str
    """The first line of ffmpeg's log, or nothing."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a source with PyAV, without its log.

    Args:
        path: The file; its name counts for nothing.

    Yields:
        The container.

    Raises:
        InputError: The file cannot be opened, or fails while it is read.
    """
    level = av.logging.get_level()
    av.logging.set_level(None)
    limits = {"max_pixels": str(MAX_PIXELS)}
    try:
        with open_video(path, SOURCES_AND_SOUND, options=limits, by_name=False) as container:
            yield container
    except InputError:
        raise
    except (av.FFmpegError, OSError, ValueError, MemoryError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"{quoted(path)} is not a video that can be read ({reason}): it is cut short, damaged "
            f"or of another kind; taken are {_INPUTS}"
        ) from error
    finally:
        av.logging.set_level(level)


def read_stream(path: Path) -> StreamHeader:
    """Read the header, check it against the limits, then decode the first frame.

    Args:
        path: The file.

    Returns:
        The header of its video stream.

    Raises:
        InputError: The file holds no video, more than one, or one outside the limits.
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
        return StreamHeader(
            rates=tuple(Fraction(rate) for rate in rates if rate and rate > 0),
            pix_fmt=frame.format.name,
            codec=codec.codec.canonical_name,
            field_order=_FIELD_ORDERS.get(order),
            orientation=_orientation(frame),
            hdr=HDR_TRANSFERS.get(TRANSFERS.get(int(codec.color_trc), "")),
            static_hdr=static_of(frame),
            alpha=stream.metadata.get("alpha_mode") == "1",
            colour=_colour(codec, frame.format),
        )


def pixel_shapes(path: Path) -> tuple[tuple[float, Fraction], ...]:
    """Pixel aspect ratios by the headers inside the stream, which may change.

    Only key frames are decoded, since headers change there, and of them only those whose headers
    differ from the last.

    Args:
        path: The file.

    Returns:
        Of each run of pictures with one ratio: its first second, and width over height of a pixel.
        Empty for codecs without it.

    Raises:
        InputError: The file cannot be read.
    """
    found: list[tuple[float, Fraction]] = []
    with opened(path) as container:
        stream = _video_stream(container, quoted(path))
        codec = stream.codec_context
        if codec.name not in _SAR_IN_HEADERS:
            return ()
        codec.skip_frame, codec.options = "NONKEY", {"max_pixels": str(MAX_PIXELS)}
        start = stream.start_time or 0
        config, last = codec.extradata or b"", None
        headers: tuple[bytes, ...] = ()
        for packet in container.demux(stream):
            scopes.check_cancelled()
            if not packet.size or not packet.is_keyframe or packet.pts is None:
                continue
            if packet.has_sidedata("new_extradata"):
                config = bytes(packet.get_sidedata("new_extradata"))
            inside = _headers(codec.name, config, bytes(packet))
            headers = inside or headers
            # of several sets each picture names its own
            sets = len(headers)
            if codec.name not in _HEADERS:
                sets = max(sets, count_sps(codec.name, config))
            if sets < 2 and (config, headers) == last:
                continue
            if shape := _decoded_shape(codec, packet):
                last = config, headers
                if not found or found[-1][1] != shape:
                    found.append((float((packet.pts - start) * stream.time_base), shape))
    return tuple(found)


def _headers(codec: str, config: bytes, packet: bytes) -> tuple[bytes, ...]:
    """The headers in a packet that hold the pixel aspect ratio."""
    if codec not in _HEADERS:
        return read_sps(codec, config, packet)
    found = _HEADERS[codec].search(packet)
    return (found[0],) if found else ()


def _decoded_shape(codec: Any, packet: Any) -> Fraction | None:
    """The pixel aspect ratio after a packet is decoded, None where it does not decode."""
    # the pictures themselves are checked by `decode_all`
    with contextlib.suppress(av.FFmpegError):
        codec.decode(packet)
        return Fraction(codec.sample_aspect_ratio or 1)
    return None


def _orientation(frame: Any) -> str | None:
    """The display matrix, by which ffmpeg turns pictures upright, in words."""
    degrees = round(frame.rotation) % 360
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is not None:
        a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].astype(float)
        if a * d < b * c:
            if abs(b) > abs(a):
                return "Mirrored along a diagonal"
            return "Mirrored left to right" if a < 0 else "Mirrored top to bottom"
    return f"Rotated by {degrees} degrees" if degrees else None


def dolby_vision(path: Path, codec: str, ffmpeg: str) -> tuple[int, int] | None:
    """The Dolby Vision profile and compatibility id by the container.

    With the id 0 the base layer cannot be shown without the metadata; the base layers of others
    are HDR10, HLG or SDR and tagged as that.

    Args:
        path: The file.
        codec: ffmpeg's name of its codec.
        ffmpeg: The ffmpeg program.

    Returns:
        Both, None of any other file.
    """
    if codec not in _DOLBY_VISION:
        return None
    rest = b""

    def records(chunk: bytes) -> bytes:
        # picked out as they come: of the log the end alone is kept, and long tags may follow
        nonlocal rest
        *lines, rest = (rest + chunk).split(b"\n")
        return b"".join(line + b"\n" for line in lines if b"DOVI configuration record:" in line)

    # without an output it prints what the file holds and fails
    argv = [ffmpeg, "-nostdin", "-i", file_url(path)]
    done = process.run(argv, timeout_s=60, stderr_reader=lambda: records)
    found = re.search(
        r"DOVI configuration record:.* profile: (\d+),.* compatibility id: (\d+),", done.stderr
    )
    return (int(found[1]), int(found[2])) if found else None


def _video_stream(container: Any, name: str) -> Any:
    """The one video stream, or InputError; cover art is none."""
    streams = video_streams(container)
    if not streams:
        found = "only sound and a cover picture" if container.streams.video else "no video stream"
        raise InputError(f"{name} holds {found}; give a file with video")
    if len(streams) > 1:
        raise InputError(
            f"{name} holds {len(streams)} video streams; keep one with "
            "`ffmpeg -i INPUT -map 0:v:0 -c copy OUTPUT.mkv`"
        )
    if not set(container.format.name.split(",")) & set(SOURCES.split(",")):
        raise InputError(f"{name} is of the kind {container.format.name}; taken are {_INPUTS}")
    if streams[0].codec_context is None:
        raise InputError(f"{name} holds a codec that cannot be decoded here; {LOSSLESS}")
    return streams[0]


def _colour(codec: Any, layout: Any) -> tuple[tuple[str, str], ...]:
    tags = [
        ("color_primaries", PRIMARIES.get(int(codec.color_primaries))),
        ("color_trc", TRANSFERS.get(int(codec.color_trc))),
    ]
    # RGB has neither matrix nor range; encodes get those of their conversion to Y'CbCr
    if not (layout.is_rgb or layout.has_palette):
        tags.append(("colorspace", MATRICES.get(int(codec.colorspace))))
        tags.append(("color_range", RANGES.get(int(codec.color_range))))
    return tuple((key, value) for key, value in tags if value)


def decode_all(
    path: Path, prep: Sequence[str], ffmpeg: str, log: FrameLog | None = None
) -> DecodedVideo:
    """Decode a file from end to end.

    Args:
        path: The file.
        prep: Filters that frames pass through.
        ffmpeg: The ffmpeg program.
        log: Takes the properties of each frame as decoded; without `prep` only.

    Returns:
        The frames behind the filters.

    Raises:
        InputError: ffmpeg reports damage, or fewer than MIN_FRAMES frames come out.
    """
    name = quoted(path)
    # without prep the interlaced flag travels in the time stamps: in a time base twice as fine,
    # those of interlaced frames are odd
    flags = ("settb=intb/2", "setpts=PTS+INTERLACED")
    filters = prep or ((FrameLog.FILTER, *flags) if log else flags)
    # one filter graph for all frames; without prep it is made anew where rotation changes
    before = dict([REUSE]) if prep else {}
    # framecrc prints a line with the time of each frame; wrapped frames cost no encoding
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
        argv,
        timeout_s=timeout_s,
        stderr_reader=log.begin if log else lambda: bytes,
    )
    if done.timed_out:
        raise InputError(f"{name} did not decode: {done.reason()}; {LOSSLESS}")
    # addresses differ from run to run
    lines = [re.sub(r" @ 0x[0-9a-f]+", "", line) for line in done.stderr.splitlines() if line]
    damage = [s for s in lines if re.match(r"\[(dec:)?\w+\] ", s) or "prematurely" in s]
    if done.returncode or damage:
        first = (damage or lines or ["no reason given"])[0][:200]
        raise InputError(f"{name} is cut short or damaged; decoding it said: {first}; {LOSSLESS}")
    text, complaint = done.stdout.decode("ascii", "replace"), lines[0] if lines else ""
    return _parse_framecrc(text, name, complaint, flagged=not prep)


def _parse_framecrc(text: str, name: str, complaint: str, flagged: bool) -> DecodedVideo:
    head = dict(re.findall(r"^#(tb|dimensions|sar) 0: (\S+)$", text, re.MULTILINE))
    stamps = [int(pts) for pts in re.findall(r"^0,[^,]*,\s*(-?\d+),", text, re.MULTILINE)]
    if not stamps or not {"tb", "dimensions"} <= head.keys():
        raise InputError(f"{name} holds no frame that decodes; {LOSSLESS}")
    check_count(name, len(stamps))
    width, height = map(int, head["dimensions"].split("x"))
    across, down = map(int, head.get("sar", "0/1").split("/"))
    tick_s, interlaced = float(Fraction(head["tb"])), 0
    if flagged:
        tick_s *= 2
        interlaced = sum(stamp & 1 for stamp in stamps)
        stamps = [stamp >> 1 for stamp in stamps]
    return DecodedVideo(
        width=width,
        height=height,
        sar=Fraction(across, down) if across and down else Fraction(1),
        tick_s=tick_s,
        times_s=np.array(stamps, dtype=np.float64) * tick_s,
        interlaced=interlaced,
        complaint=complaint,
    )
