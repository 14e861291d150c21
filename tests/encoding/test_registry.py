"""Every file in encoders/ goes through one suite; none of these tests encodes a title."""

import stat
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.core.resources import data_folder
from vqaloop.encoding import registry
from vqaloop.encoding import spec as spec_module
from vqaloop.encoding.options import check_rendition, gop_frames, output_options
from vqaloop.encoding.registry import get_encoder
from vqaloop.encoding.spec import EncoderSpec
from vqaloop.encoding.survey import available, encoder_version
from vqaloop.errors import EncoderMissing, InputError
from vqaloop.records import Rendition, Source

SPECS = registry.load_encoders()
SOFTWARE = [name for name, spec in SPECS.items() if not spec.hardware]
SOURCE = Source(
    path=Path("in.y4m"),
    sha256="0" * 64,
    width=640,
    height=361,
    fps=Fraction(30000, 1001),
    frames=90,
    pix_fmt="yuv420p",
    prep=("crop=640:360:0:0",),
    colour=(("color_primaries", "bt709"), ("color_range", "tv")),
)

every_encoder = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def rendition_of(spec: EncoderSpec) -> Rendition:
    knob = spec.knob.snap(sum(spec.knob.search) / 2)
    return Rendition(320, 180, spec.name, knob, spec.default_preset)


def test_each_codec_has_one_default() -> None:
    defaults = {spec.codec: name for name, spec in SPECS.items() if spec.default}
    assert defaults == {
        "h264": "libx264",
        "hevc": "libx265",
        "vp9": "libvpx-vp9",
        "av1": "libsvtav1",
        "avs2": "libxavs2",
    }
    assert sum(spec.default for spec in SPECS.values()) == 5
    assert registry.codecs() == ("av1", "avs2", "h264", "hevc", "vp9")
    assert registry.default_encoder("av1").name == "libsvtav1"


@every_encoder
def test_ranges_are_sane(spec: EncoderSpec) -> None:
    knob = spec.knob
    assert knob.min <= knob.search[0] < knob.search[1] <= knob.max
    for value in (*knob.search, knob.min, knob.max):
        assert knob.snap(value) == value
    assert knob.snap(knob.min - 5) == knob.min
    assert knob.snap(knob.max + 5) == knob.max
    assert 0 < spec.cost[1] <= spec.cost[0]
    assert 8 in spec.bit_depths
    assert spec.suffix == (".avs2" if spec.codec == "avs2" else ".mp4")
    names = [tunable.name for tunable in spec.tunables]
    assert len(set(names)) == len(names)
    assert spec.quirks


@every_encoder
def test_options_are_complete(spec: EncoderSpec) -> None:
    rendition = rendition_of(spec)
    options = output_options(spec, rendition, SOURCE)
    assert all(isinstance(v, str) and v for v in options.values())
    assert options["map"] == "0:V:0"
    assert options["c:v"] == spec.ffmpeg
    assert options["f"] == spec.muxer
    assert options["g"] == "60"
    assert options["r"] == "30000/1001"
    assert options["color_primaries"] == "bt709"
    crop, scale, square, fmt, timebase, index = options["vf"].split(",")
    assert crop == SOURCE.prep[0]
    assert scale == "scale=320:180:flags=lanczos+accurate_rnd+full_chroma_int"
    assert square == "setsar=1"
    assert fmt == f"format={dict(spec.pixel_formats)[8]}"
    assert (timebase, index) == ("settb=expr=1001/30000", "setpts=expr=N")
    assert options[spec.preset_option] == spec.default_preset
    option, _, key = spec.knob.option.partition(":")
    wanted = f"{rendition.knob:g}"
    assert (f"{key}={wanted}" in options[option].split(":")) if key else options[option] == wanted


@every_encoder
def test_no_scaling_at_the_size_of_the_source(spec: EncoderSpec) -> None:
    same = replace(rendition_of(spec), width=640, height=360)
    assert "scale" not in output_options(spec, same, SOURCE)["vf"]


@every_encoder
def test_tunables_are_written_where_they_belong(spec: EncoderSpec) -> None:
    params = tuple((t.name, t.default) for t in spec.tunables)
    options = output_options(spec, replace(rendition_of(spec), params=params), SOURCE)
    for tunable in spec.tunables:
        option, _, key = tunable.option.partition(":")
        if key:
            assert f"{key}={tunable.default}" in options[option].split(":")
        else:
            assert options[option] == tunable.default


@every_encoder
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bit_depth": 14}, "14 bit is not possible"),
        ({"preset": "warp"}, "unknown preset 'warp'"),
        ({"width": 322, "height": 181}, "must be even"),
        ({"width": 2, "height": 2}, "width 2 is outside"),
        ({"width": 99998}, "width 99998 is outside"),
        ({"knob": 1000.0}, "1000 is outside"),
        ({"knob": float("nan")}, "nan is outside"),
        ({"knob": 30.1}, "not in steps of"),
        ({"params": (("no-such", "1"),)}, "unknown parameter 'no-such'"),
        ({"encoder": "other"}, "meant for other"),
    ],
)
def test_refusals(spec: EncoderSpec, change: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_rendition(spec, replace(rendition_of(spec), **change))  # type: ignore[arg-type]


def test_parameter_values_are_checked() -> None:
    x264 = get_encoder("libx264")
    base = rendition_of(x264)
    for params, said in [
        ((("aq-mode", "9"),), "must be one of 0, 1, 2, 3"),
        ((("bframes", "2.5"),), "must be an integer"),
        ((("qcomp", "x:crf=1"),), "must be a number"),
        ((("qcomp", "nan"),), "must lie between"),
        ((("qcomp", "0.5"), ("qcomp", "0.6")), "given twice"),
    ]:
        with pytest.raises(InputError, match=said):
            check_rendition(x264, replace(base, params=params))


def test_ten_bit_is_offered_where_the_encoder_has_it() -> None:
    ten = {name for name, spec in SPECS.items() if 10 in spec.bit_depths}
    assert ten == set(SPECS) - {"libxavs2", "h264_nvenc"}
    with pytest.raises(InputError, match="10 bit is not possible, only 8 bit"):
        avs2 = get_encoder("libxavs2")
        check_rendition(avs2, replace(rendition_of(avs2), bit_depth=10))


def test_own_programs_and_rates_are_told_of() -> None:
    programs = {n: spec.standalone.program for n, spec in SPECS.items() if spec.standalone}
    assert programs == {
        "libaom-av1": "aomenc",
        "librav1e": "rav1e",
        "libsvtav1": "SvtAv1EncApp",
        "libvpx-vp9": "vpxenc",
        "libx264": "x264",
        "libx265": "x265",
    }
    assert {name for name, spec in SPECS.items() if spec.bitrate_option} == set(SOFTWARE)
    for spec in SPECS.values():
        assert all("{threads}" in value for _, value in spec.thread_options)
        assert not spec.standalone or spec.standalone.bitrate


def test_too_short_a_source_is_refused() -> None:
    avs2 = get_encoder("libxavs2")
    with pytest.raises(InputError, match="needs 2"):
        output_options(avs2, rendition_of(avs2), replace(SOURCE, frames=1))


@pytest.mark.parametrize(("fps", "gop"), [("24", 48), ("60000/1001", 120), ("1/10", 1)])
def test_gop_is_two_seconds(fps: str, gop: int) -> None:
    assert gop_frames(get_encoder("libx264"), Fraction(fps)) == gop


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(InputError, match="unknown encoder 'x'.*libx264"):
        get_encoder("x")
    with pytest.raises(InputError, match="unknown codec 'vvc'.*av1, avs2, h264, hevc, vp9"):
        registry.default_encoder("vvc")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('codec = "h264"', "", "codec is missing"),
        ('codec = "h264"', "codec = 3", "codec should be text and is 3"),
        (
            'codec = "h264"',
            'codec = "h264"\ncolour = "red"',
            "colour is no key that vqaloop knows",
        ),
        ("step = 0.25", "step = 0", "knob.step: must be above 0"),
        ("search = [16, 44]", "search = [44, 16]", "knob.search: must ascend, inside 1..51"),
        ("search = [16, 44]", "search = [16, 99]", "knob.search: must ascend, inside 1..51"),
        ('default = "medium"', 'default = "no"', "presets.default: 'no' is not among"),
        ('probe = "veryfast"', 'probe = "no"', "presets.probe: 'no' is not among"),
        ('8 = "yuv420p"', '9 = "yuv420p"', "a key of pixel_formats should be one of 8, 10, 12"),
        ('default = "0.6"', 'default = "7"', r"tunable\[3\].default: must lie between"),
        ('g = "{gop}"', "g = 48", "gop.options.g should be text and is 48"),
        ('decoder = "pyav"', 'decoder = "vlc"', "container.decoder should be one of pyav, ffmpeg"),
        ("[knob]", "[knob", "cannot be read as TOML"),
        ('program = "x264"', "program = 264", "standalone.program should be text and is 264"),
        ('program = "x264"', "", "standalone.program is missing"),
        ('suffix = ".264"', 'suffix = "264"', "standalone.suffix: '264' must be a dot"),
        (
            'suffix = ".264"',
            'suffix = ".264"\nquiet = []',
            "standalone.quiet is no key that vqaloop knows; known are arguments",
        ),
        ("--crf {knob}", "--crf {crf}", "standalone.knob: {crf} stands for nothing here"),
        ("--crf {knob}", "--crf", "standalone.knob: {knob} is missing"),
        (
            'knob = ["--crf {knob}"]',
            "knob = []",
            "standalone.knob should be a list of length >= 1",
        ),
        ("{output} {input}", "{output}", "standalone.arguments: {input} is missing"),
        ("{output} {input}", "{output", "standalone.arguments: has braces"),
        ("'^x264 (", "'^x264 ((", "standalone.version_pattern: is no regular expression"),
        ("'^x264 (", "'^x264 ()(", "standalone.version_pattern: must have one group"),
        ("--bitrate {kbps}", "--bitrate 800", "bitrate.arguments: {kbps} is missing"),
        ('option = "b:v"', "option = 1", "bitrate.option should be text and is 1"),
        (
            'option = "b:v"',
            'options = "b:v"',
            r"bitrate.options is no key that vqaloop knows \(did you mean option\?\)",
        ),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = (data_folder("encoders") / "libx264.toml").read_text()
    assert old in text
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=said) as refused:
        spec_module.read_spec(wrong)
    assert str(wrong) in str(refused.value)


@pytest.mark.parametrize("name", SOFTWARE)
def test_version_is_told(name: str) -> None:
    version = encoder_version(get_encoder(name), ffmpeg_path())
    assert version.startswith(name)
    told = name not in ("librav1e", "libxavs2")
    assert ("does not tell its version" in version) is not told
    assert any(character.isdigit() for character in version.removeprefix(name))


@pytest.mark.parametrize("name", sorted(set(SPECS) - set(SOFTWARE)))
def test_hardware_is_tried_and_not_believed(name: str) -> None:
    spec, ffmpeg = get_encoder(name), ffmpeg_path()
    if available(spec, ffmpeg):
        assert encoder_version(spec, ffmpeg).startswith(name)
    else:
        with pytest.raises(EncoderMissing, match="no device here|built without"):
            encoder_version(spec, ffmpeg)


def test_an_ffmpeg_without_the_encoder(tmp_path: Path) -> None:
    fake = tmp_path / "ffmpeg"
    fake.write_text("#!/bin/sh\necho \"Unknown encoder 'libx264'\" >&2\nexit 8\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    assert not available(get_encoder("libx264"), str(fake))
    with pytest.raises(EncoderMissing, match="built without libx264.*--ffmpeg"):
        encoder_version(get_encoder("libx264"), str(fake))
