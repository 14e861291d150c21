"""Tells whether a coded picture is a random access point: decoding may begin there."""

from vqaloop.bitstream import nal, obu


def is_random_access(codec: str, config: bytes, packet: bytes) -> bool:
    """Whether decoding may begin at this coded picture and needs nothing before it.

    Args:
        codec: h264, hevc, vp9 or av1.
        config: The track's avcC or hvcC; of other codecs it is not used.
        packet: The coded picture.

    Returns:
        True for an IDR picture, for a shown AV1 key frame with its sequence header, and for a VP9
        key frame.
    """
    if codec in ("h264", "hevc"):
        units = nal.read_nal_units(codec, config, packet)
        first = next((unit for unit in units if nal.is_slice(codec, unit)), b"")
        return nal.is_idr(codec, first)
    return _is_vp9_key(packet) if codec == "vp9" else _is_av1_key(packet)


def _is_vp9_key(packet: bytes) -> bool:
    """By the uncompressed header (VP9 Bitstream & Decoding Process Specification, 6.2)."""
    if not packet or packet[0] >> 6 != 2:
        return False
    profile = (packet[0] >> 5 & 1) | (packet[0] >> 4 & 1) << 1
    # profile 3 has a reserved bit before show_existing_frame and frame_type
    shift = 1 if profile == 3 else 2
    return packet[0] >> shift & 3 == 0


def _is_av1_key(packet: bytes) -> bool:
    has_sequence = False
    for unit in obu.read_obus(packet):
        has_sequence = has_sequence or unit.type == obu.SEQUENCE_HEADER
        if unit.type in (obu.FRAME_HEADER, obu.FRAME):
            if not unit.payload:
                return False
            start = obu.read_frame_start(unit.payload)
            is_key = not start.is_repeat and start.type == obu.KEY_FRAME and start.is_shown
            return has_sequence and is_key
    return False
