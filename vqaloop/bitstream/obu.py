"""Reads AV1 open bitstream units (OBUs) of a temporal unit, without decoding them.

Low-overhead format of the AV1 Bitstream & Decoding Process Specification, 5.2 to 5.4.
"""

from collections.abc import Iterator
from typing import NamedTuple

SEQUENCE_HEADER, FRAME_HEADER, TILE_GROUP, FRAME, REDUNDANT_FRAME_HEADER = 1, 3, 4, 6, 7
"""obu_type (6.2.2)."""
KEY_FRAME, INTRA_ONLY_FRAME, SWITCH_FRAME = 0, 2, 3
"""frame_type (6.8.2)."""

_MOST_LEB128_BYTES = 8


class Obu(NamedTuple):
    """One OBU."""

    type: int
    """obu_type."""
    is_layer: bool
    """True where an extension header names a temporal and spatial layer."""
    has_size: bool
    """False where it reaches to the end of the packet without saying so."""
    is_whole: bool
    """False where it claims more bytes than the packet holds."""
    data: bytes
    """All of it, its header included."""
    payload: bytes
    """What follows the header and the size."""


class FrameStart(NamedTuple):
    """The first bits of a frame header (5.9.2); the others mean nothing where `is_repeat`."""

    is_repeat: bool
    """show_existing_frame."""
    type: int
    """frame_type."""
    is_shown: bool
    """show_frame."""


def read_obus(packet: bytes) -> Iterator[Obu]:
    """The OBUs of a packet.

    Args:
        packet: A temporal unit, of which any bytes are taken: the reader never fails.

    Yields:
        Each OBU; the last one may not be whole.
    """
    at = 0
    while at < len(packet):
        begin, header = at, packet[at]
        is_layer, has_size = bool(header & 4), bool(header & 2)
        at += 2 if is_layer else 1
        size = len(packet) - at
        if has_size:
            size, at = _leb128(packet, at)
        end = at + size
        yield Obu(
            type=header >> 3 & 15,
            is_layer=is_layer,
            has_size=has_size,
            is_whole=at <= end <= len(packet),
            data=packet[begin:end],
            payload=packet[at:end],
        )
        at = end


def read_frame_start(payload: bytes) -> FrameStart:
    """The first bits of a frame header or frame OBU.

    Args:
        payload: The OBU's payload, not empty.

    Returns:
        What the first byte says, for streams other than still pictures.
    """
    bits = payload[0]
    return FrameStart(bool(bits >> 7), bits >> 5 & 3, bool(bits >> 4 & 1))


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    """leb128() of 4.10.5 and the place behind it; bytes that are missing count as 0."""
    value = 0
    for index in range(_MOST_LEB128_BYTES):
        byte = data[at] if at < len(data) else 0
        at += 1
        value |= (byte & 127) << 7 * index
        if byte < 128:
            break
    return value, at
