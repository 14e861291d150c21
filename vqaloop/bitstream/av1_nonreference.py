"""Drops AV1 non-reference frames from a coded stream, so that they need not be decoded.

Encoders build pyramids whose lowest level, half of all frames, refreshes no reference slot
(refresh_frame_flags = 0, AV1 Bitstream & Decoding Process Specification, 5.9.2). Without such
frames all others decode to the same pictures. H.264 and HEVC decoders skip non-reference frames
themselves when asked to (skip_frame); AV1 decoders cannot be asked frame by frame.
"""

from dataclasses import dataclass

from vqaloop.bitstream.obu import (
    FRAME,
    FRAME_HEADER,
    INTRA_ONLY_FRAME,
    KEY_FRAME,
    SEQUENCE_HEADER,
    SWITCH_FRAME,
    read_frame_start,
    read_obus,
)

_PER_FRAME = 2
"""SELECT_SCREEN_CONTENT_TOOLS, SELECT_INTEGER_MV: each frame header has a flag of its own."""
_FRAME_START_BITS = 4
"""show_existing_frame, frame_type, show_frame."""
_HEADER_BYTES = 96
"""More than the part read here of any header takes."""


class _Unsupported(ValueError):
    """The stream uses syntax that is not parsed here."""


class _Bits:
    """Bits of a header, the most significant first; raises _Unsupported at the end."""

    def __init__(self, data: bytes) -> None:
        head = data[:_HEADER_BYTES]
        self._value, self._left = int.from_bytes(head, "big"), 8 * len(head)

    def __call__(self, count: int = 1) -> int:
        self._left -= count
        if self._left < 0:
            raise _Unsupported("a header is longer than expected")
        return self._value >> self._left & (1 << count) - 1


@dataclass(frozen=True)
class _Sequence:
    """The fields of a sequence header that decide where refresh_frame_flags lies in a frame's."""

    screen_content_tools: int
    integer_mv: int
    order_hint_bits: int


class NonReferenceFilter:
    """Drops non-reference frames from the packets of one stream, which are given in order."""

    def __init__(self) -> None:
        self._sequence: _Sequence | None = None

    def filtered(self, packet: bytes, wanted: bool) -> bytes | None:
        """A packet without the frame that it shows, where that is no reference.

        Args:
            packet: A temporal unit.
            wanted: Whether the shown frame is wanted; nothing is dropped then.

        Returns:
            The packet without the frame, None where nothing to decode is left. A packet that
            cannot be parsed is returned whole.
        """
        kept, frames, dropped = [], 0, 0
        try:
            for obu in read_obus(packet):
                # dropping from layered streams, or by a wrong size, would lose references
                if obu.is_layer or not obu.has_size or not obu.is_whole or obu.data[0] & 0x80:
                    return packet
                if obu.type == SEQUENCE_HEADER:
                    self._sequence = _read_sequence(obu.payload)
                if obu.type == FRAME and not wanted and self._is_non_reference(obu.payload):
                    dropped += 1
                    continue
                frames += obu.type in (FRAME, FRAME_HEADER)
                kept.append(obu.data)
        except _Unsupported:
            return packet
        if not dropped:
            return packet
        return b"".join(kept) if frames else None

    def _is_non_reference(self, header: bytes) -> bool:
        """Whether a shown frame has refresh_frame_flags = 0; the fields are those of 5.9.2."""
        sequence = self._sequence
        if sequence is None:
            return False
        read = _Bits(header)
        read(_FRAME_START_BITS)
        start = read_frame_start(header)
        # key and switch frames refresh all slots
        if start.is_repeat or not start.is_shown or start.type in (KEY_FRAME, SWITCH_FRAME):
            return False
        error_resilient = read()
        read()  # disable_cdf_update
        tools = sequence.screen_content_tools
        allow_tools = read() if tools == _PER_FRAME else tools
        if allow_tools and sequence.integer_mv == _PER_FRAME:
            read()  # force_integer_mv
        read()  # frame_size_override_flag
        read(sequence.order_hint_bits)
        if start.type != INTRA_ONLY_FRAME and not error_resilient:
            read(3)  # primary_ref_frame
        return read(8) == 0


def _read_sequence(payload: bytes) -> _Sequence:
    """Section 5.5.1; raises _Unsupported for what would add fields to frame headers."""
    read = _Bits(payload)
    read(3)  # seq_profile
    if read(2):  # still_picture, reduced_still_picture_header
        raise _Unsupported("a still picture")
    if read():  # timing_info_present_flag
        raise _Unsupported("timing information")
    has_delays = read()  # initial_display_delay_present_flag
    for _ in range(read(5) + 1):  # operating points
        read(12)  # operating_point_idc
        if read(5) > 7:  # seq_level_idx
            read()  # seq_tier
        if has_delays and read():
            read(4)  # initial_display_delay_minus_1
    width_bits, height_bits = read(4) + 1, read(4) + 1
    read(width_bits + height_bits)
    if read():  # frame_id_numbers_present_flag
        raise _Unsupported("frame numbers")
    read(3)  # use_128x128_superblock, enable_filter_intra, enable_intra_edge_filter
    read(4)  # interintra_compound, masked_compound, warped_motion, dual_filter
    has_order_hints = read()
    if has_order_hints:
        read(2)  # enable_jnt_comp, enable_ref_frame_mvs
    screen_content_tools = _PER_FRAME if read() else read()
    integer_mv = _PER_FRAME
    if screen_content_tools:
        integer_mv = _PER_FRAME if read() else read()
    return _Sequence(screen_content_tools, integer_mv, read(3) + 1 if has_order_hints else 0)
