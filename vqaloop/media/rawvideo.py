"""Reads uncompressed video: YUV4MPEG2 headers, and the number of frames of y4m and raw files.

Sizes are checked against the limits and against the file's size; no frame is read.
"""

import math
import os
import re
from dataclasses import dataclass
from fractions import Fraction

import av

from vqaloop.core.text import quoted
from vqaloop.errors import InputError
from vqaloop.media.limits import check_count, check_rate, check_size

Y4M_MAGIC = b"YUV4MPEG2"
"""How a y4m file begins."""
MAX_HEADER_BYTES = 1024
"""Longest y4m stream header read; real ones are below 100 bytes."""
MAX_FRAME_HEADER_BYTES = 128
"""Longest y4m frame header read; real ones are 6 bytes."""

# (horizontal and vertical chroma divisor or 0 for none, planes of full size)
_Y4M_CHROMA = {
    "420": (2, 2, 1), "420jpeg": (2, 2, 1), "420mpeg2": (2, 2, 1), "420paldv": (2, 2, 1),
    "411": (4, 1, 1), "422": (2, 1, 1), "444": (1, 1, 1), "444alpha": (1, 1, 2), "mono": (0, 0, 1),
}  # fmt: skip
_Y4M_DEEP = re.compile(r"(?:(420|422|444)p|(mono))(9|10|12|14|16)")


@dataclass(frozen=True)
class Y4mHeader:
    """A YUV4MPEG2 stream header, checked against the limits."""

    width: int
    """Pixels."""
    height: int
    """Pixels."""
    fps: Fraction
    """Frame rate."""
    frame_bytes: int
    """Bytes of one frame without its FRAME line."""
    header_bytes: int
    """Bytes of the stream header with its line end."""


def parse_y4m_header(data: bytes, name: str) -> Y4mHeader:
    """Parse a YUV4MPEG2 header.

    Args:
        data: A file's first bytes, of which MAX_HEADER_BYTES are read at most.
        name: The file's name for messages.

    Returns:
        The header.

    Raises:
        InputError: It is malformed, or outside the limits.
    """
    data = data[:MAX_HEADER_BYTES]
    end = data.find(b"\n")
    fields = data[:end].split(b" ") if end > 0 else []
    if not fields or fields[0] != Y4M_MAGIC:
        raise InputError(f"{name} has no complete y4m header; make it again")
    tags = {field[:1]: field[1:].decode("ascii", "replace") for field in fields[1:] if field}
    # X fields repeat and only comment; int() alone would take "1_0" and "+1"
    if not all(re.fullmatch(r"[0-9]{1,15}", tags.get(key, "")) for key in (b"W", b"H")):
        raise InputError(f"{name} has no width or height in its y4m header; make it again")
    width, height = int(tags[b"W"]), int(tags[b"H"])
    rate = re.fullmatch(r"([0-9]{1,10}):([0-9]{1,10})", tags.get(b"F", ""))
    if not rate or not int(rate[1]) or not int(rate[2]):
        raise InputError(f"{name} has no frame rate in its y4m header; it must say F25:1 or alike")
    fps = Fraction(int(rate[1]), int(rate[2]))
    check_size(name, width, height)
    check_rate(name, fps)
    frame_bytes = _y4m_frame_bytes(tags.get(b"C", "420"), width, height)
    if frame_bytes is None:
        raise InputError(
            f"{name} has the y4m colour space {tags[b'C'][:20]!r}, which is not known here; "
            "write it as 420, 422 or 444"
        )
    return Y4mHeader(width, height, fps, frame_bytes, end + 1)


def _y4m_frame_bytes(colour_space: str, width: int, height: int) -> int | None:
    deep = _Y4M_DEEP.fullmatch(colour_space)
    layout = _Y4M_CHROMA.get(deep[1] or deep[2] if deep else colour_space)
    if layout is None:
        return None
    across, down, full_planes = layout
    chroma = 2 * math.ceil(width / across) * math.ceil(height / down) if across else 0
    return (width * height * full_planes + chroma) * (2 if deep else 1)


def count_y4m_frames(path: str | os.PathLike[str]) -> int:
    """Count the frames of a y4m file by reading its FRAME lines alone.

    Args:
        path: The file.

    Returns:
        The exact number of frames.

    Raises:
        InputError: A bad header, a missing FRAME line, a last frame cut short, or fewer than
            MIN_FRAMES frames.
    """
    name = quoted(path)
    with open(path, "rb") as file:
        header = parse_y4m_header(file.read(MAX_HEADER_BYTES), name)
        size = file.seek(0, os.SEEK_END)
        position, frames = header.header_bytes, 0
        while position < size:
            file.seek(position)
            line = re.match(rb"FRAME( [^\n]*)?\n", file.read(MAX_FRAME_HEADER_BYTES))
            if not line:
                raise InputError(
                    f"{name} has no FRAME line where frame {frames} (counted from 0) should "
                    "begin; it is cut short or its header is wrong; make or copy it again"
                )
            position += line.end() + header.frame_bytes
            if position > size:
                raise InputError(
                    f"{name} is cut short inside frame {frames} (counted from 0): "
                    f"{position - size} bytes are missing; copy it again, or drop the part frame "
                    "with `ffmpeg -i INPUT OUTPUT.y4m`"
                )
            frames += 1
    check_count(name, frames)
    return frames


def count_raw_frames(path: str | os.PathLike[str], pix_fmt: str, width: int, height: int) -> int:
    """Count the frames of a raw file by its size.

    Args:
        path: The file.
        pix_fmt: ffmpeg's name of the pixel format.
        width: Pixels.
        height: Pixels.

    Returns:
        The number of frames.

    Raises:
        InputError: The pixel format has no fixed layout of planes, the size is no whole number of
            frames, or there are fewer than MIN_FRAMES.
    """
    name = quoted(path)
    size_bytes, frame_bytes = os.stat(path).st_size, _raw_frame_bytes(pix_fmt, width, height)
    frames, rest = divmod(size_bytes, frame_bytes)
    if rest:
        raise InputError(
            f"{name} has {size_bytes} bytes, which is not a whole number of {width}x{height} "
            f"{pix_fmt} frames of {frame_bytes} bytes ({frames} and {rest} bytes over); "
            "check --video-size and --pix-fmt, or whether the file was cut short"
        )
    check_count(name, frames)
    return frames


def _raw_frame_bytes(pix_fmt: str, width: int, height: int) -> int:
    def size_bytes(layout: av.VideoFormat) -> int:
        return sum(c.width * c.height * (1 if c.bits <= 8 else 2) for c in layout.components)

    # PyAV reads a name up to its first zero byte
    known = re.fullmatch(r"[a-z0-9_]{1,32}", pix_fmt) is not None
    try:
        trial = av.VideoFormat(pix_fmt if known else "", 64, 64)
    except ValueError as error:
        raise InputError(
            f"--pix-fmt {pix_fmt!r} is not a pixel format; yuv420p, yuv422p10le, nv12 are some"
        ) from error
    if (
        trial.has_palette
        or not trial.components
        or size_bytes(trial) * 8 != trial.padded_bits_per_pixel * 64 * 64
    ):
        raise InputError(
            f"--pix-fmt {pix_fmt!r} is not taken as raw video; convert the file to yuv420p"
        )
    return size_bytes(av.VideoFormat(pix_fmt, width, height))
