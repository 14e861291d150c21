"""Reading NAL units: lengths, start codes, slices and configurations, all of hand-made bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqaloop.bitstream.coded_frames import coded_parts
from vqaloop.bitstream.nal import (
    has_one_temporal_layer,
    is_idr,
    is_slice,
    read_nal_units,
    without_sei,
)
from vqaloop.bitstream.random_access import is_random_access
from vqaloop.errors import ToolError

AVCC = b"\x01\x64\x00\x1f\xff\xe0"
"""avcC with lengths of 4 bytes and no parameter sets."""
AVCC_SHORT = b"\x01\x64\x00\x1f\xfd\xe0"
"""The same with lengths of 2 bytes."""


def hvcc(arrays: bytes = b"", count: int = 0, layers: int = 1) -> bytes:
    """hvcC with lengths of 4 bytes."""
    return b"\x01" + bytes(20) + bytes([layers << 3 | 3, count]) + arrays


@pytest.mark.parametrize(
    ("config", "packet"),
    [
        (AVCC, b"\0\0\0\x02\x09\xf0\0\0\0\0\0\0\0\x03\x65ab"),
        (AVCC_SHORT, b"\0\x02\x09\xf0\0\0\0\x03\x65ab"),
    ],
)
def test_units_behind_lengths(config: bytes, packet: bytes) -> None:
    assert list(read_nal_units("h264", config, packet)) == [b"\x09\xf0", b"", b"\x65ab"]


@pytest.mark.parametrize("config", [b"", b"\0\0\0\x01\x67\x64"])
def test_units_between_start_codes(config: bytes) -> None:
    packet = b"\0\0\0\x01\x09\xf0\0\0\0\x01\x65ab\0\0\x01\x41c\0\0"
    assert list(read_nal_units("h264", config, packet)) == [b"\x09\xf0", b"\x65ab", b"\x41c"]


def test_a_length_beyond_the_packet_takes_what_is_there() -> None:
    assert list(read_nal_units("h264", AVCC, b"\0\0\xff\xff\x65ab")) == [b"\x65ab"]


@given(st.sampled_from(["h264", "hevc"]), st.binary(max_size=40), st.binary(max_size=200))
def test_no_bytes_upset_the_reader(codec: str, config: bytes, packet: bytes) -> None:
    assert sum(map(len, read_nal_units(codec, config, packet))) <= len(packet)


@pytest.mark.parametrize(
    ("codec", "unit", "slice_", "idr"),
    [
        ("h264", b"\x65", True, True),
        ("h264", b"\x41", True, False),
        ("h264", b"\x67", False, False),
        ("hevc", b"\x26\x01", True, True),
        ("hevc", b"\x28\x01", True, True),
        ("hevc", b"\x2a\x01", True, False),
        ("hevc", b"\x02\x01", True, False),
        ("hevc", b"\x40\x01", False, False),
        ("hevc", b"", False, False),
    ],
)
def test_slices_and_idr_pictures(codec: str, unit: bytes, slice_: bool, idr: bool) -> None:
    assert (is_slice(codec, unit), is_idr(codec, unit)) == (slice_, idr)


def test_the_first_slice_makes_the_random_access_point() -> None:
    sei, idr, other = b"\0\0\0\x02\x06\x05", b"\0\0\0\x01\x65", b"\0\0\0\x01\x41"
    assert is_random_access("h264", AVCC, sei + idr + other)
    assert not is_random_access("h264", AVCC, sei + other + idr)
    assert not is_random_access("h264", AVCC, sei)
    assert is_random_access("hevc", hvcc(), b"\0\0\0\x02\x26\x01")


def test_only_slices_are_coded_picture_data() -> None:
    packet = b"\0\0\0\x02\x06\x05\0\0\0\x02\x65a"
    assert list(coded_parts("h264", AVCC, packet)) == [b"\x65a"]
    assert list(coded_parts("vp9", b"", packet)) == [packet]


def test_temporal_layers_are_those_of_the_configuration() -> None:
    assert has_one_temporal_layer(hvcc())
    for config in (hvcc(layers=2), hvcc(layers=0), b"\0" + hvcc()[1:], hvcc()[:22], b"", None):
        assert not has_one_temporal_layer(config)


def test_sei_messages_leave_a_configuration() -> None:
    vps, sei = b"\x20\x00\x01\x00\x02\x40\x01", b"\x27\x00\x02\x00\x01a\x00\x02bc"
    config = hvcc(vps + sei, count=2)
    assert without_sei(config) == config[:22] + vps
    with pytest.raises(ToolError, match="cut short"):
        without_sei(config[:-1])
