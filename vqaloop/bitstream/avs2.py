"""Reads raw AVS2 streams (GB/T 33475.2), which ffmpeg's libraries can neither parse nor wrap.

Pictures are found by their start codes; nothing is decoded.
"""

import mmap
import re
from pathlib import Path
from typing import NamedTuple

from vqaloop.core.text import quoted
from vqaloop.errors import ToolError

SEQUENCE_START = b"\x00\x00\x01\xb0"
"""video_sequence_start_code, with which a stream begins."""
SEQUENCE_END = b"\x00\x00\x01\xb1"
"""video_sequence_end_code: what follows starts to count its pictures anew."""

_SUFFIXES = (".avs2", ".avs")
_SEQUENCE, _INTRA = b"\xb0", b"\xb3"
_STARTS = re.compile(rb"\x00\x00\x01([\xb0\xb3\xb6])")
"""Sequence headers, intra pictures, inter pictures."""
_SIZE_AT, _SIZE_BYTES = 6, 4


class Picture(NamedTuple):
    """One coded picture."""

    size_bytes: int
    """With the sequence header before it, if there is one."""
    is_intra: bool


def has_avs2_name(path: Path) -> bool:
    """Whether a file's name says that it is a raw AVS2 stream."""
    return path.suffix.lower() in _SUFFIXES


def starts_as_avs2(head: bytes) -> bool:
    """Whether a file of these first bytes is a raw AVS2 stream."""
    return head.startswith(SEQUENCE_START)


def picture_size(head: bytes) -> tuple[int, int]:
    """Width and height in pixels by the sequence header (7.1.2.2).

    After the start code: profile and level of 8 bits, two flags, and the sides, 14 bits each.

    Args:
        head: The first bytes of a stream, of which 10 are read; missing ones count as 0.

    Returns:
        Width and height, which may be 0.
    """
    field = head[_SIZE_AT : _SIZE_AT + _SIZE_BYTES].ljust(_SIZE_BYTES, b"\0")
    bits = int.from_bytes(field, "big")
    return bits >> 16 & 0x3FFF, bits >> 2 & 0x3FFF


def read_picture_size(path: Path) -> tuple[int, int]:
    """`picture_size` of a file."""
    with path.open("rb") as file:
        return picture_size(file.read(_SIZE_AT + _SIZE_BYTES))


def read_pictures(path: Path) -> list[Picture]:
    """The pictures of a raw AVS2 stream.

    Args:
        path: The file.

    Returns:
        Its pictures in coding order, together as long as the file.

    Raises:
        ToolError: The file is empty, or does not begin with a sequence header.
    """
    size = path.stat().st_size
    if not size:
        raise ToolError(f"{quoted(path)} is empty")
    begins: list[int] = []
    intra: list[bool] = []
    headers_at: int | None = None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for match in _STARTS.finditer(data):
            if match[1] == _SEQUENCE:
                headers_at = match.start()
                continue
            # a header belongs to the picture that follows it
            begins.append(match.start() if headers_at is None else headers_at)
            intra.append(match[1] == _INTRA)
            headers_at = None
        head = data[: len(SEQUENCE_START)]
    if not starts_as_avs2(head) or not begins:
        raise ToolError(f"{quoted(path)} is not an AVS2 stream")
    sizes = [end - begin for begin, end in zip(begins, [*begins[1:], size], strict=True)]
    return [Picture(*pair) for pair in zip(sizes, intra, strict=True)]
