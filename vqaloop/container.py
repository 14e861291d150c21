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
import ffmpeg as ffmpeg_graph
import numpy as np
import numpy.typing as npt

from vqaloop import process
from vqaloop.errors import InputError
from vqaloop.limits import MAX_PIXELS, MAX_SIDE, MIN_SIDE, check_count, check_size
from vqaloop.process import quoted
from vqaloop.rates import snapped

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
    9: "bt2020nc", 10: "bt2020c", 12: "chroma-derived-nc", 13: "chroma-derived-c", 14: "ictcp",
}  # fmt: skip
_RANGES = {1: "tv", 2: "pc"}
_HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
# libavcodec's field orders, by the field that is coded first
_TOP_FIRST, _BOTTOM_FIRST = (2, 4), (3, 5)

# the others are let in only to say "no video" of them; playlists, which open other files, are not
_READ_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,yuv4mpegpipe"
_KNOWN_FORMATS = _READ_FORMATS + ",mp3,wav,flac,ogg,aac,aiff"
_INPUTS = "y4m, mp4, mov, mkv, webm, or raw yuv with --video-size, --pix-fmt and --framerate"


@dataclass(frozen=True)
class VideoStream:
    """What the container and the first decoded frames say of the video stream."""

    rates: tuple[Fraction, ...]
    """Frames a second as the container has it, the most trustworthy first."""
    pix_fmt: str
    """ffmpeg's name of the pixel format that decodes."""
    interlaced: bool
    """True where the frames or the header are flagged so."""
    bottom_first: bool
    """True where only the header says it is interlaced, bottom field first."""
    rotation: int
    """Degrees, 0..359, by which ffmpeg turns it upright."""
    hdr: str | None
    """PQ or HLG."""
    colour: tuple[tuple[str, str], ...]
    """ffmpeg options that tag the output alike."""


@dataclass(frozen=True)
class Delivery:
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
    """Read the header, check it against the limits, then decode a few frames for their flags.

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
        frames = [frame for frame, _ in zip(container.decode(stream), range(8), strict=False)]
        if not frames:
            raise InputError(f"{name} holds no frame that decodes; {LOSSLESS}")
        rates = (stream.guessed_rate, stream.average_rate, stream.base_rate)
        flagged = sum(frame.interlaced_frame for frame in frames) * 2 >= len(frames)
        order = int(codec.field_order)
        return VideoStream(
            rates=tuple(snapped(Fraction(rate)) for rate in rates if rate and rate > 0),
            pix_fmt=frames[0].format.name,
            interlaced=flagged or order in (*_TOP_FIRST, *_BOTTOM_FIRST),
            bottom_first=order in _BOTTOM_FIRST and not flagged,
            rotation=round(frames[0].rotation) % 360,
            hdr=_HDR_TRANSFERS.get(int(codec.color_trc)),
            colour=_colour(codec, frames[0].format.is_rgb),
        )


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


def _colour(codec: Any, is_rgb: bool) -> tuple[tuple[str, str], ...]:
    tags = [
        ("color_primaries", _PRIMARIES.get(int(codec.color_primaries))),
        ("color_trc", _TRANSFERS.get(int(codec.color_trc))),
    ]
    # RGB has neither matrix nor range, and becomes limited-range YUV on the way out
    if not is_rgb:
        tags.append(("colorspace", _MATRICES.get(int(codec.colorspace))))
        tags.append(("color_range", _RANGES.get(int(codec.color_range))))
    return tuple((key, value) for key, value in tags if value)


def deliver(path: Path, prep: Sequence[str], ffmpeg: str) -> Delivery:
    """Decode all of a container through the filters in `prep`.

    Raises InputError when ffmpeg reports damage or fewer than MIN_FRAMES frames come out.
    """
    name = quoted(path)
    filters = {"vf": ",".join(prep)} if prep else {}
    # wrapped frames: the lines with each frame's time, at no cost but the decoding
    graph = ffmpeg_graph.input("INPUT", max_pixels=MAX_PIXELS).output(
        "pipe:1",
        f="framecrc",
        map="0:V:0",
        **{"c:v": "wrapped_avframe", "enc_time_base": "filter" if prep else "demux"},
        fps_mode="passthrough",
        **filters,
    )
    timeout_s = 60 + os.stat(path).st_size / 50_000
    argv = process.compiled(graph, ffmpeg, {"INPUT": path}, "-xerror")
    done = process.run(argv, timeout_s=timeout_s)
    if done.timed_out:
        raise InputError(f"{name} did not decode: {done.reason()}; {LOSSLESS}")
    said = [re.sub(r" @ 0x[0-9a-f]+", "", line) for line in done.stderr.splitlines() if line]
    damage = [s for s in said if re.match(r"\[(dec:)?\w+\] ", s) or "prematurely" in s]
    if done.returncode or damage:
        first = (damage or said or ["no reason given"])[0][:200]
        raise InputError(f"{name} is cut short or damaged; decoding it said: {first}; {LOSSLESS}")
    return _parse_framecrc(done.stdout.decode("ascii", "replace"), name, said[0] if said else "")


def _parse_framecrc(text: str, name: str, complaint: str) -> Delivery:
    facts = dict(re.findall(r"^#(tb|dimensions|sar) 0: (\S+)$", text, re.MULTILINE))
    stamps = [int(pts) for pts in re.findall(r"^0,[^,]*,\s*(-?\d+),", text, re.MULTILINE)]
    if not stamps or not {"tb", "dimensions"} <= facts.keys():
        raise InputError(f"{name} holds no frame that decodes; {LOSSLESS}")
    check_count(name, len(stamps))
    width, height = map(int, facts["dimensions"].split("x"))
    across, down = map(int, facts.get("sar", "0/1").split("/"))
    tick_s = float(Fraction(facts["tb"]))
    return Delivery(
        width=width,
        height=height,
        sar=Fraction(across, down) if across and down else Fraction(1),
        tick_s=tick_s,
        times_s=np.array(stamps, dtype=np.float64) * tick_s,
        complaint=complaint,
    )
