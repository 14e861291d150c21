"""Reading AV1 OBUs: hand-made units, sizes in leb128, layers, and packets that end too early."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqaloop.bitstream.coded_frames import coded_parts
from vqaloop.bitstream.obu import FRAME, SEQUENCE_HEADER, read_frame_start, read_obus
from vqaloop.bitstream.random_access import is_random_access

DELIMITER = b"\x12\x00"
SEQUENCE = b"\x0a\x03abc"
KEY, INTER = b"\x32\x02\x10k", b"\x32\x02\x30i"
"""Frame OBUs of a shown key frame and of a shown inter frame."""


def test_each_unit_has_its_type_and_payload() -> None:
    units = list(read_obus(DELIMITER + SEQUENCE + KEY))
    assert [(unit.type, unit.payload) for unit in units] == [
        (2, b""),
        (SEQUENCE_HEADER, b"abc"),
        (FRAME, b"\x10k"),
    ]
    assert b"".join(unit.data for unit in units) == DELIMITER + SEQUENCE + KEY
    assert all(unit.is_whole and unit.has_size and not unit.is_layer for unit in units)


def test_sizes_are_leb128() -> None:
    (one,) = read_obus(b"\x32\x83\x80\x00xyz")
    assert one.payload == b"xyz" and one.is_whole
    (long,) = read_obus(b"\x32\xac\x02" + bytes(300))
    assert len(long.payload) == 300


def test_a_unit_without_a_size_reaches_to_the_end() -> None:
    (unit,) = read_obus(b"\x30\x10rest")
    assert (unit.has_size, unit.payload) == (False, b"\x10rest")


def test_the_extension_header_of_a_layer_is_no_payload() -> None:
    (unit,) = read_obus(b"\x36\x20\x02xy")
    assert (unit.type, unit.is_layer, unit.payload) == (FRAME, True, b"xy")


@pytest.mark.parametrize("packet", [b"\x32", b"\x32\x05ab", b"\x36", b"\x32\xff\xff"])
def test_a_unit_cut_short_is_not_whole(packet: bytes) -> None:
    assert [unit.is_whole for unit in read_obus(packet)] == [False]


@given(st.binary(max_size=200))
def test_units_cover_any_bytes_once(packet: bytes) -> None:
    assert b"".join(unit.data for unit in read_obus(packet)) == packet


def test_the_start_of_a_frame_header() -> None:
    assert read_frame_start(b"\x10") == (False, 0, True)
    assert read_frame_start(b"\x20") == (False, 1, False)
    assert read_frame_start(b"\x80")[0]


@pytest.mark.parametrize(
    ("packet", "anew"),
    [
        (DELIMITER + SEQUENCE + KEY, True),
        (DELIMITER + KEY, False),
        (SEQUENCE + INTER, False),
        (SEQUENCE + b"\x32\x02\x00k", False),
        (SEQUENCE + b"\x32\x00", False),
        (SEQUENCE, False),
    ],
)
def test_a_shown_key_frame_with_its_sequence_header_is_a_random_access_point(
    packet: bytes, anew: bool
) -> None:
    assert is_random_access("av1", b"", packet) is anew


def test_headers_are_no_coded_picture_data() -> None:
    assert list(coded_parts("av1", b"", DELIMITER + SEQUENCE + KEY)) == [b"\x10k"]
