"""What codecs are called in manifests, on the standards' own examples and real files; rates."""

import io
import math
import re
from fractions import Fraction
from pathlib import Path

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.deliveries import (
    DASH,
    rungs,
)
from tests.support.media import make_clip
from vqaloop.bitstream.codec_strings import codec_string, vp9_level
from vqaloop.bitstream.mp4_boxes import VideoEntry, read_video_entry
from vqaloop.bitstream.random_access import is_random_access
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.delivery.package import Delivery
from vqaloop.delivery.rates import average_rate, peak_rate
from vqaloop.delivery.segments import mux_video, read_rung
from vqaloop.errors import ToolError


def entry(kind: str, config: str, colour: tuple[int, int, int] = (2, 2, 2)) -> VideoEntry:
    return VideoEntry(kind, 1920, 1080, bytes.fromhex(config), *colour)


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        # the examples of RFC 6381, ISO/IEC 14496-15 E.3 and the bindings of VP9 and AV1
        (entry("avc1", "01 42 E0 1E FF E1"), "avc1.42E01E"),
        (entry("avc1", "01 64 00 0A FF E1"), "avc1.64000A"),
        (entry("hvc1", "01 01 60000000 B00000000000 5D"), "hvc1.1.6.L93.B0"),
        (entry("hvc1", "01 22 20000000 9000000000 01 99"), "hvc1.2.4.H153.90.0.0.0.0.1"),
        (entry("hvc1", "01 41 80000000 000000000000 1E"), "hvc1.A1.1.L30"),
        (entry("vp09", "01000000 02 0A A3 09 10 09 0000"), "vp09.02.10.10.01.09.16.09.01"),
        (entry("vp09", "01000000 00 0B 82 02 02 02 0000"), "vp09.00.11.08"),
        (entry("vp09", "01000000 01 1F 86 01 01 01 0000"), "vp09.01.31.08.03.01.01.01.00"),
        (entry("av01", "81 04 4E"), "av01.0.04M.10"),
        (entry("av01", "81 08 0C", (1, 1, 1)), "av01.0.08M.08"),
        (
            entry("av01", "81 04 4E", (9, 16, 9)),
            "av01.0.04M.10.0.112.09.16.09.0",
        ),
        (entry("av01", "81 2D F0"), "av01.1.13H.12.1.000.02.02.02.0"),
    ],
)
def test_codec_strings_are_those_of_the_standards(entry: VideoEntry, name: str) -> None:
    assert codec_string(entry) == name


def test_codec_strings_of_real_files_agree_with_what_ffmpeg_reads(delivered: Delivery) -> None:
    for folder in rungs(delivered, DASH):
        init = (folder / "init.mp4").read_bytes()
        found = read_video_entry(init)
        name = codec_string(found)
        with av.open(
            io.BytesIO(init + (folder / "00001.m4s").read_bytes()), mode="r"
        ) as container:
            stream = container.streams.video[0]
            next(container.decode(stream))
            profile, size = stream.codec_context.profile, (stream.width, stream.height)
        assert (found.width, found.height) == size
        if name.startswith("avc1"):
            kinds = {"High": "64", "Main": "4D", "Constrained Baseline": "42"}
            assert name[5:7] == kinds[str(profile)]
        if name.startswith("hvc1"):
            assert profile == "Main" and re.fullmatch(r"hvc1\.1\.6\.L\d+(\.[0-9A-F]+)*", name)
        if name.startswith("av01"):
            assert re.fullmatch(r"av01\.0\.\d\dM\.08", name)
        if name.startswith("vp09"):
            assert re.fullmatch(r"vp09\.00\.(10|11)\.08", name)


@pytest.mark.parametrize(
    ("size", "fps", "level"),
    [
        # the tables of the VP9 bitstream's levels: luma samples a second and of a picture, a side
        ((256, 144), 15, 10),
        ((256, 144), 30, 11),
        ((640, 360), 30, 21),
        ((640, 360), 60, 30),
        ((1280, 720), 30, 31),
        ((1280, 720), 60, 40),
        ((1920, 1080), 25, 40),
        ((1920, 1080), Fraction(60000, 1001), 41),
        ((1920, 1080), 60, 41),
        ((1080, 1920), 120, 50),
        ((3840, 2160), 30, 50),
        ((3840, 2160), 60, 51),
        ((3840, 2160), 120, 52),
        ((7680, 4320), 30, 60),
        ((7680, 4320), 120, 62),
        ((2048, 64), 1, 30),
        ((8192, 8192), 1000, 62),
    ],
)
def test_the_level_of_vp9_counts_size_and_rate(
    size: tuple[int, int], fps: int | Fraction, level: int
) -> None:
    assert vp9_level(*size, Fraction(fps)) == level


@pytest.mark.parametrize(("rate", "level"), [("30", "11"), ("60", "20"), ("120", "21")])
def test_segments_of_vp9_tell_the_level_of_their_rate(
    rate: str, level: str, tmp_path: Path
) -> None:
    rung = make_clip(tmp_path / "rung.mp4", size="320x180", frames=30, rate=rate, codec="vp9")
    track = mux_video(rung, read_rung(rung), tmp_path / "out", Fraction(6), ffmpeg_path())
    assert track.codecs == f"vp09.00.{level}.08"
    found = read_video_entry((tmp_path / "out" / "init.mp4").read_bytes())
    assert found.config[5] == int(level)


def test_another_sample_entry_or_a_short_configuration_is_refused() -> None:
    with pytest.raises(ToolError, match="mp4v"):
        codec_string(entry("mp4v", "00"))
    with pytest.raises(ToolError, match="cut short"):
        codec_string(entry("hvc1", "01 01"))


@given(st.binary(max_size=60))
def test_no_bytes_upset_the_readers(data: bytes) -> None:
    for codec in DASH:
        assert is_random_access(codec, data, data) in (True, False)
    with pytest.raises(ToolError):
        read_video_entry(data)


# rates


@given(
    st.lists(
        st.tuples(st.integers(1, 10**8), st.fractions(Fraction(1, 10), 10, max_denominator=1001)),
        min_size=1,
        max_size=6,
    )
)
def test_a_peak_lies_between_the_rates_of_the_parts(found: list[tuple[int, Fraction]]) -> None:
    rates = [size * 8 / seconds for size, seconds in found]
    assert min(rates) <= peak_rate(found) <= math.ceil(max(rates))
    assert min(rates) <= average_rate(found) <= math.ceil(max(rates))
    # a part that lasts half the target alone always counts
    target = max(1, math.floor(max(seconds for _, seconds in found) + Fraction(1, 2)))
    alone = [r for r, (_, s) in zip(rates, found, strict=True) if s * 2 >= target]
    assert not alone or peak_rate(found) >= max(alone)
