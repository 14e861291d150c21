"""Reads fragmented MP4: the sample entry of an initialisation segment, offsets of fragments.

ISO/IEC 14496-12 (ISO base media file format); nothing is written here, ffmpeg muxes.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from vqaloop.bitstream.hdr_metadata import static_of_boxes
from vqaloop.errors import ToolError
from vqaloop.records import StaticHdr

_TO_ENTRIES = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")
_CONFIGS = (b"avcC", b"hvcC", b"vpcC", b"av1C")
_STSD_HEAD, _VISUAL_HEAD = 8, 78
"""Bytes before the first entry of stsd, and before the first box of a VisualSampleEntry."""


@dataclass(frozen=True)
class VideoEntry:
    """The sample entry of a video track."""

    kind: str
    """Four-character code: avc1, hvc1, vp09, av01; of an encrypted track the one below it."""
    width: int
    """Coded width in pixels."""
    height: int
    """Coded height in pixels."""
    config: bytes
    """Payload of avcC, hvcC, vpcC or av1C: the decoder's configuration."""
    primaries: int = 2
    """Colour primaries as a code point of ITU-T H.273; 2 is unspecified."""
    transfer: int = 2
    """Transfer characteristics, likewise."""
    matrix: int = 2
    """Matrix coefficients, likewise."""
    full_range: bool = False
    """True for full-range samples."""
    sar: tuple[int, int] = (1, 1)
    """Width and height of a pixel."""
    static_hdr: StaticHdr | None = None
    """Mastering display and light levels."""


def walk(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """Read the sibling boxes in data[start:end].

    Args:
        data: A file or segment.
        start: Offset of the first box.
        end: Offset behind the last one, None for the end of the data.

    Yields:
        Type, offset, and offset behind the end of each box.

    Raises:
        ToolError: A box claims more bytes than there are.
    """
    end = len(data) if end is None else end
    while start < end:
        if end - start < 8:
            raise ToolError("a fragmented MP4 ends inside the head of a box")
        size, kind = struct.unpack_from(">I4s", data, start)
        if size == 1 and end - start >= 16:
            size = struct.unpack_from(">Q", data, start + 8)[0]
        if size < 8 or start + size > end:
            raise ToolError(f"a fragmented MP4 holds a box {kind!r} of impossible size {size}")
        yield kind, start, start + size
        start += size


def read_video_entry(init: bytes) -> VideoEntry:
    """Read the sample entry of the one video track of an initialisation segment.

    Args:
        init: The segment.

    Returns:
        The entry.

    Raises:
        ToolError: There is no video entry with a decoder configuration in it.
    """
    start, end = 0, len(init)
    for wanted in _TO_ENTRIES:
        start, end = _inside(init, wanted, start, end)
    kind, first, last = next(walk(init, start + _STSD_HEAD, end), (b"", 0, 0))
    if last - first < _VISUAL_HEAD + 8:
        raise ToolError("an initialisation segment holds no video sample entry")
    width, height = struct.unpack_from(">HH", init, first + 32)
    parts = {
        part: init[at + 8 : after]
        for part, at, after in walk(init, first + 8 + _VISUAL_HEAD, last)
    }
    if kind == b"encv" and len(parts.get(b"sinf", b"")) >= 12:
        # the first box in it (frma) names the entry that was encrypted
        kind = parts[b"sinf"][8:12]
    config = next((parts[name] for name in _CONFIGS if name in parts), b"")
    if not config:
        raise ToolError(f"a sample entry {kind!r} holds no decoder configuration")
    sar = struct.unpack_from(">II", parts[b"pasp"]) if len(parts.get(b"pasp", b"")) >= 8 else ()
    colour: tuple[int, ...] = (2, 2, 2, 0)
    if parts.get(b"colr", b"")[:4] == b"nclx" and len(parts[b"colr"]) >= 11:
        colour = struct.unpack_from(">HHHB", parts[b"colr"], 4)
    elif b"vpcC" in parts and len(config) >= 10:
        # vpcC holds the colour itself, after version and flags, profile, level and depth
        colour = (*config[7:10], (config[6] & 1) << 7)
    return VideoEntry(
        kind.decode("latin-1"),
        width,
        height,
        config,
        primaries=colour[0],
        transfer=colour[1],
        matrix=colour[2],
        full_range=bool(colour[3] & 0x80),
        sar=(sar[0], sar[1]) if len(sar) == 2 and all(sar) else (1, 1),
        static_hdr=static_of_boxes(parts.get(b"mdcv", b""), parts.get(b"clli", b"")),
    )


def fragment_starts(segment: bytes) -> list[int]:
    """Offset of each moof box in a media segment."""
    return [start for kind, start, _ in walk(segment) if kind == b"moof"]


def _inside(data: bytes, wanted: bytes, start: int, end: int) -> tuple[int, int]:
    for kind, first, last in walk(data, start, end):
        if kind == wanted:
            return first + 8, last
    raise ToolError(f"an initialisation segment lacks the box {wanted!r}")
