"""Reading an encoder's file without decoding it: its coded frames, told apart from their wrapping.

The same frames give the same bytes whether they lie in MP4, IVF or a raw stream: headers that a
container moves or drops (parameter sets, delimiters) and words about the encoder do not count.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from vqaloop.bitstream.packets import opened_encode, stream_packets
from vqaloop.core.files import file_sha256
from vqaloop.core.text import quoted
from vqaloop.errors import ToolError


@dataclass(frozen=True)
class Bitstream:
    """What a file holds, as far as it shows without decoding."""

    size: tuple[int, int]
    """Width and height in pixels."""
    frames: int
    """Coded frames that are shown, one a packet."""
    size_bytes: int
    """Of the coded frames."""
    sha256: str
    """Of the same bytes, in order of coding."""
    cut: bool
    """True when the container ends inside a frame."""
    last_at: int | None
    """Where the last coded frame begins in a file without a container, which cannot tell `cut`."""


def read_bitstream(path: Path, codec: str) -> Bitstream:
    """Read an encode of `codec`; ToolError when it cannot be, or holds another codec."""
    if codec == "avs2":
        # PyAV lacks AVS2; the raw stream is all frames, and the rate does not matter here
        packets = stream_packets(path, codec, Fraction(25))
        length, sha256 = path.stat().st_size, file_sha256(path)
        last = length - packets[-1].size_bytes
        return Bitstream(avs2_size(path), len(packets), length, sha256, False, last)
    with opened_encode(path, codec) as (container, stream):
        context = stream.codec_context
        coded = _splitter(codec, bytes(context.extradata or b""))
        digest, frames, total, cut = hashlib.sha256(), 0, 0, False
        last_at: int | None = None
        for packet in container.demux(stream):
            if not packet.size:
                continue
            for part in coded(bytes(packet)):
                digest.update(part)
                total += len(part)
            frames += 1
            cut = cut or bool(packet.is_corrupt)
            last_at = packet.pos
        raw = container.format.name in ("h264", "hevc", "obu")
        size_px = (context.width, context.height)
    if not frames:
        raise ToolError(f"{quoted(path)} holds no frame")
    return Bitstream(size_px, frames, total, digest.hexdigest(), cut, last_at if raw else None)


def avs2_size(path: Path) -> tuple[int, int]:
    """Width and height of the first sequence header (GB/T 33475.2, 7.1.2.2).

    After the start code: profile and level of 8 bits, two flags, and the sides, 14 bits each.
    """
    with path.open("rb") as file:
        bits = int.from_bytes(file.read(10)[6:])
    return bits >> 16 & 0x3FFF, bits >> 2 & 0x3FFF


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


def _splitter(codec: str, extradata: bytes) -> Callable[[bytes], Iterator[bytes]]:
    """What takes the coded parts out of one packet."""
    if codec == "av1":
        return _av1_frames
    if codec not in ("h264", "hevc"):
        return lambda data: iter((data,))
    # avcC and hvcC (ISO/IEC 14496-15) begin with their version 1, Annex B with a start code
    boxed = extradata[:1] == b"\x01"
    width = (extradata[4 if codec == "h264" else 21] & 3) + 1 if boxed else 0

    def slices(data: bytes) -> Iterator[bytes]:
        for unit in _length_units(data, width) if boxed else _start_code_units(data):
            if _is_slice(unit, codec):
                yield unit

    return slices


def _is_slice(unit: bytes, codec: str) -> bool:
    """Whether a NAL unit carries coded picture data (table 7-1 of H.264 and of H.265)."""
    if not unit:
        return False
    return 1 <= unit[0] & 31 <= 5 if codec == "h264" else unit[0] >> 1 & 63 < 32


def _length_units(data: bytes, width: int) -> Iterator[bytes]:
    at = 0
    while at + width < len(data):
        size = int.from_bytes(data[at : at + width])
        yield data[at + width : at + width + size]
        at += width + size


def _start_code_units(data: bytes) -> Iterator[bytes]:
    begins = [match.end() for match in re.finditer(b"\x00\x00\x01", data)]
    ends = [begin - 3 for begin in begins[1:]] + [len(data)]
    for begin, end in zip(begins, ends, strict=False):
        # a unit never ends in a zero byte: those belong to the next start code
        yield data[begin:end].rstrip(b"\x00")


_AV1_FRAME_PARTS = (3, 4, 6, 7)
"""Frame header, tile group, frame, redundant frame header (section 6.2.2 of the AV1 standard)."""


def _av1_frames(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        head = data[at]
        at += 2 if head & 4 else 1
        size = len(data) - at
        if head & 2:
            size = 0
            # leb128() of section 4.10.5: eight bytes at most
            for shift in range(0, 56, 7):
                byte = data[at] if at < len(data) else 0
                at += 1
                size |= (byte & 127) << shift
                if byte < 128:
                    break
        if head >> 3 & 15 in _AV1_FRAME_PARTS:
            yield data[at : at + size]
        at += size
