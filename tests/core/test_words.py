"""The words people use for codecs, rates, sizes and times, on the command line and in Python."""

import math
from typing import Any

import pytest

import vqaloop
from vqaloop.cli.parser import make_parser
from vqaloop.core.option_fields import given_options, kbps, to_argv
from vqaloop.core.text import parse_duration, parse_size, size_within
from vqaloop.encoding.registry import codec_names
from vqaloop.errors import InputError
from vqaloop.ladder.options import LadderOptions
from vqaloop.regress.options import RegressOptions
from vqaloop.tuning.options import TuneOptions

WORDS = (
    *("--codec", "H.265,avc,SVT-AV1", "--max-bitrate", "5M", "--min-bitrate", "80k"),
    *("--resolutions", "720p,640x360", "--require", "720P", "--rungs", "auto"),
    *("--budget", "10min", "--time-limit", "1:30", "--min-top-size", "720p"),
)
MEANT: dict[str, Any] = {
    "codec": "hevc,h264,av1",
    "max_bitrate": 5000.0,
    "min_bitrate": 80.0,
    "resolutions": [(0, 720), (640, 360)],
    "require": [(0, 720)],
    "budget_s": 600.0,
    "timeout_s": 90.0,
    "min_top_size": (0, 720),
}


def test_the_command_line_takes_them() -> None:
    found = make_parser().parse_args(["ladder", "a.y4m", *WORDS])
    assert given_options(LadderOptions, found) == MEANT


def test_python_takes_them() -> None:
    options = LadderOptions(
        codec="H.265,avc,SVT-AV1",
        max_bitrate="5M",  # type: ignore[arg-type]
        min_bitrate="80k",  # type: ignore[arg-type]
        resolutions=["720p", (640, 360)],  # type: ignore[list-item]
        require="720P",  # type: ignore[arg-type]
        rungs="auto",  # type: ignore[arg-type]
        budget_s="10min",  # type: ignore[arg-type]
        timeout_s="1:30",  # type: ignore[arg-type]
        min_top_size="720p",  # type: ignore[arg-type]
        progress=None,  # type: ignore[arg-type]
    )
    assert {name: getattr(options, name) for name in MEANT} == MEANT
    assert options.rungs is None
    options.progress(vqaloop.Event("probe", ""))
    # a second reading changes nothing
    within = options.within((1920, 800))
    assert within.require == ((1280, 534),) and within.min_top_size == (1280, 534)
    assert within.resolutions == [(1280, 534), (640, 360)]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rungs": "many"}, "rungs: --rungs 'many' is neither"),
        ({"max_bitrate": "5MB"}, "max_bitrate: '5MB' is not"),
        ({"budget_s": "soon"}, "budget_s: 'soon' is no duration"),
        ({"resolutions": ["big"]}, "resolutions: 'big' is not a resolution"),
    ],
)
def test_python_refuses_others_by_the_argument_s_name(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as refused:
        vqaloop.build_ladder("a.y4m", codec="h264", **options)
    assert str(refused.value).startswith(says)
    assert refused.value.options == tuple(options)


def test_other_commands_take_them() -> None:
    tuned = TuneOptions(codec="x265", bitrate="1.5M", resolution="360p")  # type: ignore[arg-type]
    assert (tuned.codec, tuned.bitrate, tuned.resolution) == ("hevc", 1500.0, (0, 360))
    compared = RegressOptions(
        codec="H264",
        baseline="a",
        clips=["b"],
        bitrates=["1M", 500],  # type: ignore[list-item]
        resolutions="360p",  # type: ignore[arg-type]
        gate=["vmaf"],
    )
    assert (compared.codec, compared.bitrates) == ("h264", [1000.0, 500.0])
    assert (compared.resolutions, compared.gate) == ([(0, 360)], ["vmaf"])


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        *(("H264", "h264"), ("h265", "hevc"), ("x264", "h264"), ("AVC", "h264"), ("Av1", "av1")),
        *(("libx265", "hevc"), ("vp-9", "vp9"), ("avs2", "avs2")),
        # another encoder than the default one, another codec, a slip: for whoever refuses them
        *(("aom", "aom"), ("libaom-av1", "libaom-av1"), ("vp8", "vp8"), ("h246", "h246")),
    ],
)
def test_codecs(word: str, meant: str) -> None:
    assert codec_names(word) == meant


@pytest.mark.parametrize(
    ("text", "rate"),
    [("500", 500), ("5M", 5000), ("5 Mb/s", 5000), ("1.5mbps", 1500), ("0.0015g", 1500)],
)
def test_rates(text: str, rate: float) -> None:
    assert kbps(text) == rate


@pytest.mark.parametrize(("text", "s"), [("1:30", 90), ("1:00:01.5", 3601.5), ("90 s", 90)])
def test_times(text: str, s: float) -> None:
    assert parse_duration(text) == s


@pytest.mark.parametrize(
    ("canvas", "size"),
    [
        ((1920, 1080), (1280, 720)),
        ((1080, 1920), (720, 1280)),
        ((1440, 1080), (960, 720)),
        ((3840, 1600), (1280, 534)),
    ],
)
def test_lines_are_those_of_the_box_that_a_picture_fits_into(
    canvas: tuple[int, int], size: tuple[int, int]
) -> None:
    assert size_within(parse_size("720p"), canvas) == size
    assert math.prod(size_within((96, 64), canvas)) == 96 * 64


def test_sizes_by_lines_are_asked_for_again_as_they_were() -> None:
    asked = {"resolutions": [[0, 720], [640, 360]], "min_top_size": [0, 720]}
    words = to_argv(LadderOptions, asked)
    assert words == ["--resolutions", "720p,640x360", "--min-top-size", "720p"]
