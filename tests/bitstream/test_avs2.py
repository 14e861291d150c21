"""Reading raw AVS2: sizes and pictures of hand-made streams."""

from fractions import Fraction
from pathlib import Path

import pytest

from vqaloop.bitstream.avs2 import (
    SEQUENCE_END,
    has_avs2_name,
    picture_size,
    read_picture_size,
    read_pictures,
    starts_as_avs2,
)
from vqaloop.bitstream.coded_frames import read_bitstream
from vqaloop.bitstream.packets import Packet, stream_packets
from vqaloop.errors import ToolError


def header(width: int, height: int) -> bytes:
    """A sequence header up to the sides: profile, level, two flags, 14 bits each."""
    return b"\0\0\1\xb0\x20\x22" + (width << 16 | height << 2).to_bytes(4, "big")


INTRA, INTER = b"\0\0\1\xb3aaaa", b"\0\0\1\xb6bb"


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    path = tmp_path / "a.avs2"
    path.write_bytes(header(1920, 1080) + INTRA + INTER + header(1920, 1080) + INTRA)
    return path


def test_the_size_is_in_the_sequence_header(stream: Path) -> None:
    assert picture_size(header(1920, 1080)) == read_picture_size(stream) == (1920, 1080)
    assert picture_size(header(16383, 1)) == (16383, 1)
    assert picture_size(b"\0\0\1\xb0\x20\x22\x07") == (7 << 8, 0)
    assert picture_size(b"") == (0, 0)


def test_headers_count_for_the_picture_behind_them(stream: Path) -> None:
    assert read_pictures(stream) == [(18, True), (6, False), (18, True)]
    assert stream_packets(stream, "avs2", Fraction(25)) == [
        Packet(0.0, 18, True),
        Packet(0.04, 6, False),
        Packet(0.08, 18, True),
    ]


def test_a_bitstream_is_the_whole_file(stream: Path) -> None:
    found = read_bitstream(stream, "avs2")
    assert (found.size, found.frames, found.size_bytes) == ((1920, 1080), 3, 42)
    assert found.last_at == 24


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "is empty"),
        (header(64, 64), "not an AVS2 stream"),
        (INTRA + header(64, 64), "not an AVS2 stream"),
        (b"\0\0\0\x01\x67", "not an AVS2 stream"),
    ],
)
def test_what_is_no_stream_is_refused(data: bytes, match: str, tmp_path: Path) -> None:
    path = tmp_path / "a.avs2"
    path.write_bytes(data)
    with pytest.raises(ToolError, match=match):
        read_pictures(path)


def test_streams_are_known_by_name_and_by_their_first_bytes() -> None:
    assert has_avs2_name(Path("A.AVS2")) and has_avs2_name(Path("a.avs"))
    assert not has_avs2_name(Path("avs2.mp4"))
    assert starts_as_avs2(header(64, 64)) and not starts_as_avs2(SEQUENCE_END)
