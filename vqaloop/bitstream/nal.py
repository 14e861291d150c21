"""Reads NAL units of H.264 and HEVC, and the decoder configuration that MP4 keeps beside them.

Units as in ITU-T H.264 and H.265, clause 7 and annex B; configurations (avcC, hvcC) as in ISO/IEC
14496-15. Nothing is decoded.
"""

import re
from collections.abc import Iterator

from vqaloop.errors import ToolError

_SLICES = {"h264": range(1, 6), "hevc": range(32)}
"""nal_unit_type of coded picture data (table 7-1 of H.264 and of H.265)."""
_IDR = {"h264": (5,), "hevc": (19, 20)}
"""Of slices of IDR pictures; in HEVC, IDR_W_RADL and IDR_N_LP."""
_SPS = {"h264": 7, "hevc": 33}
_HEVC_SEI = (39, 40)
_LENGTH_SIZE_AT = {"h264": 4, "hevc": 21}
_HVCC_ARRAYS_AT = 23


def read_nal_units(codec: str, config: bytes, packet: bytes) -> Iterator[bytes]:
    """The NAL units of a packet.

    Args:
        codec: h264 or hevc.
        config: The stream's avcC or hvcC, after which a length precedes each unit; anything else
            (nothing, or parameter sets between start codes) means start codes.
        packet: An access unit, of which any bytes are taken: the reader never fails.

    Yields:
        Each unit, its header included; empty ones too.
    """
    # avcC and hvcC begin with their version 1, annex B with a start code
    if config[:1] == b"\x01":
        return _length_prefixed(packet, _length_size(codec, config))
    return _between_start_codes(packet)


def is_slice(codec: str, unit: bytes) -> bool:
    """Whether a unit of `codec` (h264 or hevc) carries coded picture data."""
    return _type(codec, unit) in _SLICES[codec]


def is_idr(codec: str, unit: bytes) -> bool:
    """Whether a unit of `codec` (h264 or hevc) is a slice of an IDR picture."""
    return _type(codec, unit) in _IDR[codec]


def read_sps(codec: str, config: bytes, packet: bytes) -> tuple[bytes, ...]:
    """The sequence parameter sets in a packet; arguments as of `read_nal_units`."""
    units = read_nal_units(codec, config, packet)
    return tuple(unit for unit in units if _type(codec, unit) == _SPS[codec])


def count_sps(codec: str, config: bytes) -> int:
    """Number of sequence parameter sets in an avcC, an hvcC or between start codes."""
    if config[:1] != b"\x01":
        return len(read_sps(codec, b"", config))
    if codec == "h264":
        return config[5] & 31 if len(config) > 5 else 0
    found, at = 0, _HVCC_ARRAYS_AT
    while at + 3 <= len(config):
        kind, units = config[at] & 63, int.from_bytes(config[at + 1 : at + 3], "big")
        found += units if kind == _SPS["hevc"] else 0
        at += 3
        for _ in range(units):
            at += 2 + int.from_bytes(config[at : at + 2], "big")
    return found


def has_one_temporal_layer(hvcc: bytes | None) -> bool:
    """Whether an HEVC configuration says that there are no temporal sub-layers (8.3.3.1)."""
    return (
        hvcc is not None
        and len(hvcc) >= _HVCC_ARRAYS_AT
        and hvcc[0] == 1
        and hvcc[21] >> 3 & 7 == 1
    )


def without_sei(hvcc: bytes) -> bytes:
    """An HEVC configuration record (8.3.3) without its SEI messages and its count of arrays.

    x265 writes its settings into an SEI message, the knob among them, which no decoder needs.

    Args:
        hvcc: Payload of hvcC.

    Returns:
        The fixed part, then the arrays of parameter sets.

    Raises:
        ToolError: The record is cut short.
    """
    kept, at = hvcc[:22], _HVCC_ARRAYS_AT
    for _ in range(hvcc[22] if len(hvcc) > 22 else 0):
        if at + 3 > len(hvcc):
            raise ToolError("an HEVC decoder configuration is cut short")
        begin, kind, units = at, hvcc[at] & 63, int.from_bytes(hvcc[at + 1 : at + 3], "big")
        at += 3
        for _ in range(units):
            at += 2 + int.from_bytes(hvcc[at : at + 2], "big")
            if at > len(hvcc):
                raise ToolError("an HEVC decoder configuration is cut short")
        if kind not in _HEVC_SEI:
            kept += hvcc[begin:at]
    return kept


def _type(codec: str, unit: bytes) -> int | None:
    """nal_unit_type; None of an empty unit."""
    if not unit:
        return None
    return unit[0] & 31 if codec == "h264" else unit[0] >> 1 & 63


def _length_size(codec: str, config: bytes) -> int:
    """Bytes of the length before each unit; 4, as nearly all have it, of a record cut short."""
    at = _LENGTH_SIZE_AT[codec]
    return (config[at] & 3) + 1 if len(config) > at else 4


def _length_prefixed(packet: bytes, length_size: int) -> Iterator[bytes]:
    at = 0
    while at + length_size <= len(packet):
        begin = at + length_size
        at = begin + int.from_bytes(packet[at:begin], "big")
        yield packet[begin:at]


def _between_start_codes(packet: bytes) -> Iterator[bytes]:
    begins = [match.end() for match in re.finditer(b"\x00\x00\x01", packet)]
    ends = [begin - 3 for begin in begins[1:]] + [len(packet)]
    for begin, end in zip(begins, ends, strict=False):
        # a unit never ends in a zero byte: those belong to the next start code
        yield packet[begin:end].rstrip(b"\x00")
