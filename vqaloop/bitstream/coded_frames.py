"""Reads the coded frames of an encoder's file, independent of their container, without decoding.

The same frames have the same hash in MP4, IVF or a raw stream: what a container moves or drops
(parameter sets, delimiters) and SEI messages about the encoder do not count.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from vqaloop.bitstream.avs2 import read_picture_size
from vqaloop.bitstream.nal import is_slice, read_nal_units
from vqaloop.bitstream.obu import (
    FRAME,
    FRAME_HEADER,
    REDUNDANT_FRAME_HEADER,
    TILE_GROUP,
    read_obus,
)
from vqaloop.bitstream.packets import opened_encode, stream_packets
from vqaloop.core.files import file_sha256
from vqaloop.core.text import quoted
from vqaloop.errors import ToolError

_AV1_FRAME_PARTS = (FRAME_HEADER, TILE_GROUP, FRAME, REDUNDANT_FRAME_HEADER)
_BARE = ("h264", "hevc", "obu")
"""ffmpeg's names of streams without a container."""


@dataclass(frozen=True)
class Bitstream:
    """The coded video of a file."""

    size: tuple[int, int]
    """Width and height in pixels."""
    frames: int
    """Coded frames that are shown, one a packet."""
    size_bytes: int
    """Bytes of the coded frames."""
    sha256: str
    """Hash of the same bytes, in coding order."""
    cut: bool
    """True when the container ends inside a frame."""
    last_at: int | None
    """Offset of the last coded frame in a file without a container, where `cut` is not known."""


def read_bitstream(path: Path, codec: str) -> Bitstream:
    """Read the coded frames of an encode.

    Args:
        path: The file.
        codec: ffmpeg's name of the codec that it should hold.

    Returns:
        Its size, frames and hash.

    Raises:
        ToolError: It cannot be parsed, holds no frame or another codec.
    """
    if codec == "avs2":
        # PyAV lacks AVS2; the raw stream is all frames, and the rate does not matter here
        packets = stream_packets(path, codec, Fraction(25))
        length, sha256 = path.stat().st_size, file_sha256(path)
        last = length - packets[-1].size_bytes
        return Bitstream(read_picture_size(path), len(packets), length, sha256, False, last)
    with opened_encode(path, codec) as (container, stream):
        context = stream.codec_context
        config = bytes(context.extradata or b"")
        digest, frames, total, cut = hashlib.sha256(), 0, 0, False
        last_at: int | None = None
        for packet in container.demux(stream):
            if not packet.size:
                continue
            for part in coded_parts(codec, config, bytes(packet)):
                digest.update(part)
                total += len(part)
            frames += 1
            cut = cut or bool(packet.is_corrupt)
            last_at = packet.pos
        raw = container.format.name in _BARE
        size_px = (context.width, context.height)
    if not frames:
        raise ToolError(f"{quoted(path)} holds no frame")
    return Bitstream(size_px, frames, total, digest.hexdigest(), cut, last_at if raw else None)


def is_cut_mp4(path: Path) -> bool:
    """Whether an MP4 file ends inside one of its boxes, or before the one with its index.

    ISO/IEC 14496-12, 4.2: a box begins with a size of 4 bytes and a type of 4; size 1 means that 8
    more bytes hold it, size 0 that the box reaches to the end.
    """
    end = path.stat().st_size
    at, index = 0, False
    with path.open("rb") as file:
        while at < end:
            file.seek(at)
            head = file.read(16)
            size, kind = int.from_bytes(head[:4]), head[4:8]
            if not at and kind != b"ftyp":
                return False
            if size == 1:
                size = int.from_bytes(head[8:16])
            index = index or kind == b"moov"
            at = at + size if size else end
            if 0 < size < 8:
                return False
    return at > end or not index


def coded_parts(codec: str, config: bytes, packet: bytes) -> Iterator[bytes]:
    """The coded picture data of a packet, which is the same in every container.

    Args:
        codec: ffmpeg's name of the codec.
        config: The decoder configuration, as PyAV's extradata; used of h264 and hevc alone.
        packet: The packet, of which any bytes are taken.

    Yields:
        Slices, frames and tile groups; of other codecs than h264, hevc and av1 the whole packet.
    """
    if codec == "av1":
        yield from (unit.payload for unit in read_obus(packet) if unit.type in _AV1_FRAME_PARTS)
    elif codec in ("h264", "hevc"):
        units = read_nal_units(codec, config, packet)
        yield from (unit for unit in units if is_slice(codec, unit))
    else:
        yield packet
