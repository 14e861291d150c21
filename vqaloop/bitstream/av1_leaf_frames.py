"""AV1 frames that no other frame refers to, taken out of a stream that is still coded.

Encoders build pyramids whose lowest level, half of all frames, refreshes no reference slot
(refresh_frame_flags = 0, AV1 Bitstream & Decoding Process Specification, 5.9.2). Where such a
frame is not wanted it need not be decoded: all others come out the same. H.264 and HEVC decoders
leave such frames out themselves when asked to; AV1's cannot be asked frame by frame.
"""

from collections.abc import Iterator
from dataclasses import dataclass

_SEQUENCE_HEADER, _FRAME_HEADER, _FRAME = 1, 3, 6
_KEY, _INTRA_ONLY, _SWITCH = 0, 2, 3
_SELECT = 2
"""Of a tool: each frame says itself whether it is used."""


class _Unknown(ValueError):
    """The stream uses what is not read here."""


class _Bits:
    """Bits of a header, the most significant first; raises _Unknown at the end."""

    def __init__(self, data: bytes) -> None:
        head = data[:96]
        self._value, self._left = int.from_bytes(head, "big"), 8 * len(head)

    def __call__(self, count: int = 1) -> int:
        self._left -= count
        if self._left < 0:
            raise _Unknown("a header is longer than expected")
        return self._value >> self._left & (1 << count) - 1


@dataclass(frozen=True)
class _Sequence:
    """What of a sequence header decides where in a frame header the refreshed slots stand."""

    screen_tools: int
    whole_motion: int
    order_bits: int


class Leaves:
    """Finds unneeded frames in the packets of one stream, which are to be given in order."""

    def __init__(self) -> None:
        self._sequence: _Sequence | None = None

    def pruned(self, data: bytes, wanted: bool) -> bytes | None:
        """A packet without the frame it shows, if no other needs that and it is not `wanted`.

        None where nothing to decode is left. A packet that is not understood is given back whole.
        """
        kept, frames, left_out = [], 0, 0
        try:
            for kind, whole, body in _units(data):
                if kind == _SEQUENCE_HEADER:
                    self._sequence = _sequence(body)
                if kind == _FRAME and not wanted and self._is_leaf(body):
                    left_out += 1
                    continue
                frames += kind in (_FRAME, _FRAME_HEADER)
                kept.append(whole)
        except (_Unknown, IndexError):
            return data
        if not left_out:
            return data
        return b"".join(kept) if frames else None

    def _is_leaf(self, header: bytes) -> bool:
        """Whether a frame that is shown refreshes no slot."""
        sequence = self._sequence
        if sequence is None:
            return False
        read = _Bits(header)
        if read():  # show_existing_frame
            return False
        kind, shown = read(2), read()
        if not shown or kind in (_KEY, _SWITCH):
            return False
        resilient = read()
        read()  # disable_cdf_update
        tools = read() if sequence.screen_tools == _SELECT else sequence.screen_tools
        if tools and sequence.whole_motion == _SELECT:
            read()
        read()  # frame_size_override_flag
        read(sequence.order_bits)
        if kind != _INTRA_ONLY and not resilient:
            read(3)  # primary_ref_frame
        return read(8) == 0


def _units(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Kind, all bytes and payload of each unit (OBU) of a packet."""
    at = 0
    while at < len(data):
        begin, head = at, data[at]
        if head & 0b10000110 != 0b10:
            raise _Unknown("a unit of layers, or without a size")
        at += 1
        size = shift = 0
        while True:  # leb128
            byte = data[at]
            at += 1
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
            if shift > 28:
                raise _Unknown("a size beyond any packet's")
        if at + size > len(data):
            raise _Unknown("a unit that is cut short")
        yield head >> 3 & 15, data[begin : at + size], data[at : at + size]
        at += size


def _sequence(body: bytes) -> _Sequence:
    """Section 5.5.1; raises _Unknown for streams with a decoder model or frame numbers."""
    read = _Bits(body)
    read(3)
    if read(2):  # still_picture, reduced_still_picture_header
        raise _Unknown("a still picture")
    if read():
        raise _Unknown("timing information")
    delays = read()
    for _ in range(read(5) + 1):  # operating points
        read(12)
        if read(5) > 7:
            read()  # tier
        if delays and read():
            read(4)
    width_bits, height_bits = read(4) + 1, read(4) + 1
    read(width_bits + height_bits)
    if read():
        raise _Unknown("frame numbers")
    read(3)  # superblocks, filter_intra, intra_edge
    read(4)  # interintra, masked, warped, dual filter
    ordered = read()
    if ordered:
        read(2)
    screen_tools = _SELECT if read() else read()
    whole_motion = _SELECT
    if screen_tools:
        whole_motion = _SELECT if read() else read()
    return _Sequence(screen_tools, whole_motion, read(3) + 1 if ordered else 0)
