"""Builds: what they are, that their runs are real and equal, and every way one can fail.

Faults are planted by small scripts around a real encoder, one fault each.
"""

import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tests.support.media import make_clip
from vqaloop.bitstream.coded_frames import read_bitstream
from vqaloop.core import process
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.core.files import file_sha256
from vqaloop.encoding.registry import load_encoders
from vqaloop.encoding.spec import EncoderSpec
from vqaloop.errors import DecodeFailed, InputError
from vqaloop.media.probe import probe_source
from vqaloop.regress import builds
from vqaloop.regress.build_command import (
    Build,
    BuildInput,
    BuildRun,
    Point,
    default_timeout_s,
    file_suffix,
)
from vqaloop.regress.builds import EncodedRun
from vqaloop.regress.faults import BuildFailed, decode_md5, missing_frames

FFMPEG = ffmpeg_path()
SPECS = {name: spec for name, spec in load_encoders().items() if not spec.hardware}
BY_CODEC = {spec.codec: spec for spec in SPECS.values() if spec.default}
ALONE = {name: spec for name, spec in SPECS.items() if spec.standalone}
FRAMES, LIMIT_S = 30, 60.0

every_codec = pytest.mark.parametrize("spec", BY_CODEC.values(), ids=BY_CODEC)
every_program = pytest.mark.parametrize("spec", ALONE.values(), ids=ALONE)


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> BuildInput:
    """Two and a half seconds, so that a second GOP begins; a blank and a quote in its name."""
    folder = tmp_path_factory.mktemp("view")
    clip = make_clip(folder / "in.mkv", size="192x144", rate="12", frames=FRAMES + 4)
    return builds.write_view(
        probe_source(clip),
        (96, 72),
        folder / "a view's.y4m",
        bit_depth=8,
        frames=FRAMES,
        ffmpeg=FFMPEG,
    )


def program_of(spec: EncoderSpec) -> str:
    assert spec.standalone
    found = shutil.which(spec.standalone.program)
    if not found:
        pytest.skip(f"{spec.standalone.program} is not installed")
    return found


def middle(spec: EncoderSpec) -> Point:
    return Point(spec.knob.name, round(sum(spec.knob.search) / 2))


def run(build: Build, spec: EncoderSpec, view: BuildInput, out: Path, **more: Any) -> EncodedRun:
    limit_s = more.pop("timeout_s", LIMIT_S)
    job = BuildRun(view, middle(spec), spec.presets[-1], out, threads=1)
    return builds.make(build, spec, replace(job, **more), timeout_s=limit_s)


def decoded(made: EncodedRun, spec: EncoderSpec) -> str:
    return decode_md5(made.path, spec, ffmpeg=FFMPEG, frames=FRAMES)


Wrap = Callable[..., Build]

AROUND = """#!{python}
import os, signal, subprocess, sys, time
REAL, args = {real!r}, sys.argv[1:]
def real(args=args):
    code = subprocess.run([REAL, *args]).returncode
    if code:
        sys.exit(code)
out = args[-1]
for at, arg in enumerate(args):
    if arg in ("-b", "--output"):
        out = args[at + 1]
    elif arg.startswith("--output="):
        out = arg[len("--output="):]
out = out.removeprefix("file:")
if "out." not in out:
    real()
    sys.exit()
"""
"""A program around another one, which it leaves alone when that is only asked for its version."""


@pytest.fixture
def wrap(tmp_path: Path) -> Wrap:
    def around(real: str, spec: EncoderSpec, body: str) -> Build:
        path = tmp_path / "wrapped encoder"
        path.write_text(AROUND.format(python=sys.executable, real=real) + body)
        path.chmod(0o755)
        return builds.open_build(path, spec)

    return around


@every_codec
def test_a_run_of_an_ffmpeg(spec: EncoderSpec, view: BuildInput, tmp_path: Path) -> None:
    build = builds.open_build(FFMPEG, spec)
    assert build.kind == "ffmpeg" and build.version.startswith("ffmpeg ")
    assert build.sha256 == file_sha256(FFMPEG) and Path(build.path).is_absolute()
    out = tmp_path / f"-o ut{file_suffix(build, spec)}"
    made = run(build, spec, view, out)
    assert list(tmp_path.iterdir()) == [out]
    assert made.frames == FRAMES and made.path == out
    assert 0 < made.size_bytes <= out.stat().st_size
    assert made.cpu_s > 0 and made.wall_s > 0 and made.peak_bytes > 1 << 20
    assert made.command[0] == FFMPEG and str(out) in made.command
    again = run(build, spec, view, tmp_path / "again")
    assert (again.stream_sha256, again.size_bytes) == (made.stream_sha256, made.size_bytes)
    assert decoded(again, spec) == decoded(made, spec)
    best = Point(spec.knob.name, spec.knob.search[0])
    finer = run(build, spec, view, tmp_path / "finer", point=best)
    assert finer.size_bytes > made.size_bytes and finer.stream_sha256 != made.stream_sha256
    assert decoded(finer, spec) != decoded(made, spec)


@every_program
def test_a_run_of_the_encoders_own_program(
    spec: EncoderSpec, view: BuildInput, tmp_path: Path
) -> None:
    build = builds.open_build(program_of(spec), spec)
    assert spec.standalone and build.kind == "standalone"
    assert build.version.startswith(f"{spec.standalone.program} ")
    assert any(c.isdigit() for c in build.version) and "\n" not in build.version
    made = run(build, spec, view, tmp_path / f"a{file_suffix(build, spec)}")
    assert made.frames == FRAMES and decoded(made, spec)
    stated = run(build, spec, view, tmp_path / "b", point=Point("bitrate", 200))
    assert stated.stream_sha256 != made.stream_sha256
    assert 100 < stated.size_bytes * 8 / 1000 * 12 / FRAMES < 400
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("name", [name for name in ALONE if 10 in ALONE[name].bit_depths])
def test_ten_bits_go_through_an_own_program(name: str, tmp_path: Path) -> None:
    spec, build = ALONE[name], builds.open_build(program_of(ALONE[name]), ALONE[name])
    clip = probe_source(make_clip(tmp_path / "in.mkv", pix_fmt="yuv420p10le", frames=6))
    ten = builds.write_view(
        clip, None, tmp_path / "ten.y4m", bit_depth=10, frames=None, ffmpeg=FFMPEG
    )
    assert (ten.width, ten.height, ten.frames, ten.bit_depth) == (160, 90, 6, 10)
    made = run(build, spec, ten, tmp_path / "a")
    argv = [FFMPEG, "-hide_banner", "-i", file_url(made.path)]
    assert "yuv420p10le" in process.run(argv, timeout_s=60).stderr


def test_the_same_frames_are_the_same_in_any_wrapping(view: BuildInput, tmp_path: Path) -> None:
    for codec, raw in [("h264", "264"), ("hevc", "hevc"), ("av1", "ivf"), ("av1", "obu")]:
        spec = BY_CODEC[codec]
        made = run(builds.open_build(FFMPEG, spec), spec, view, tmp_path / "a.mp4")
        bare = tmp_path / f"a.{raw}"
        copy = [FFMPEG, "-v", "error", "-i", file_url(made.path), "-c", "copy"]
        assert process.run([*copy, file_url(bare)], timeout_s=60).returncode == 0
        stream = read_bitstream(bare, spec.codec)
        assert (stream.sha256, stream.size_bytes) == (made.stream_sha256, made.size_bytes)
        assert stream.frames == FRAMES


def test_an_own_program_is_told_the_gop_of_the_product(view: BuildInput, tmp_path: Path) -> None:
    # the GOP is 24 frames here: the same as ffmpeg's, keyframe for keyframe
    import av

    for spec in ALONE.values():
        if not shutil.which(spec.standalone.program if spec.standalone else ""):
            continue
        build = builds.open_build(program_of(spec), spec)
        made = run(build, spec, view, tmp_path / f"a{file_suffix(build, spec)}")
        with av.open(file_url(made.path)) as container:
            keys = [bool(p.is_keyframe) for p in container.demux(video=0) if p.size]
        assert [at for at, key in enumerate(keys) if key] == [0, 24], spec.name


@every_codec
def test_a_rate_is_aimed_at(spec: EncoderSpec, view: BuildInput, tmp_path: Path) -> None:
    build = builds.open_build(FFMPEG, spec)
    low, high = (
        run(build, spec, view, tmp_path / "a", point=Point("bitrate", kbps)).size_bytes
        for kbps in (40, 200)
    )
    assert 1.3 * low < high


def test_further_arguments_win(view: BuildInput, tmp_path: Path) -> None:
    x264 = SPECS["libx264"]
    plain = builds.open_build(FFMPEG, x264)
    want = run(plain, x264, view, tmp_path / "a", point=Point("crf", 40)).stream_sha256
    other = builds.open_build(FFMPEG, x264, ["-crf", "40"])
    assert run(other, x264, view, tmp_path / "b").stream_sha256 == want
    # inside an option of many keys, theirs come after ours and leave the rest of ours alone
    svt = SPECS["libsvtav1"]
    other = builds.open_build(FFMPEG, svt, ["-svtav1-params", "crf=60"])
    made = run(other, svt, view, tmp_path / "c")
    given = made.command[made.command.index("-svtav1-params") :]
    theirs = given[given.index("-svtav1-params", 1) + 1]
    assert theirs.endswith(":crf=60") and "irefresh-type=2" in theirs
    assert made.size_bytes < run(plain, svt, view, tmp_path / "d").size_bytes


@every_program
def test_further_arguments_win_over_an_own_programs(
    spec: EncoderSpec, view: BuildInput, tmp_path: Path
) -> None:
    assert spec.standalone
    program, point = program_of(spec), middle(spec)
    knob = spec.standalone.knob[-1].format(knob=point.value + 10).split()
    want = run(
        builds.open_build(program, spec),
        spec,
        view,
        tmp_path / "a",
        point=Point(point.name, point.value + 10),
    )
    other = run(builds.open_build(program, spec, knob), spec, view, tmp_path / "b")
    assert other.stream_sha256 == want.stream_sha256


FAULTS = [
    ("crash", "os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
    (
        "crash",
        "real(); print('no more memory', file=sys.stderr); sys.exit(3)",
        "status 3: no more",
    ),
    ("hang", "subprocess.run(['sleep', '600'])", "time limit"),
    ("no-output", "pass", "wrote nothing"),
    ("no-output", "real(); open(out, 'wb').close()", "wrote nothing"),
    ("truncated", "real(); os.truncate(out, os.stat(out).st_size * 6 // 10)", "ends early"),
    ("undecodable", "open(out, 'w').write('not a video' * 999)", "the file"),
]
fault = pytest.mark.parametrize(("kind", "body", "said"), FAULTS)


def check_failure(
    build: Build, spec: EncoderSpec, view: BuildInput, folder: Path, kind: str, said: str
) -> str:
    """The build must fail in this way, in words that hold `said`, and leave nothing behind."""
    folder.mkdir()
    kept = folder / "a"
    kept.write_text("an earlier result")
    limit = 1.5 if kind == "hang" else LIMIT_S
    with pytest.raises(BuildFailed) as failed:
        decoded(run(build, spec, view, kept, timeout_s=limit), spec)
    assert (failed.value.kind, said in str(failed.value)) == (kind, True), str(failed.value)
    assert list(folder.iterdir()) == [kept]
    # what only decoding shows is found after the file has its name
    assert kind == "undecodable" or kept.read_text() == "an earlier result"
    return str(failed.value)


@every_codec
@fault
def test_faults_of_an_ffmpeg(
    spec: EncoderSpec,
    view: BuildInput,
    tmp_path: Path,
    wrap: Wrap,
    kind: str,
    body: str,
    said: str,
) -> None:
    build = wrap(FFMPEG, spec, body)
    assert build.kind == "ffmpeg"
    check_failure(build, spec, view, tmp_path / "out", kind, said)


@fault
def test_faults_of_an_own_program(
    view: BuildInput, tmp_path: Path, wrap: Wrap, kind: str, body: str, said: str
) -> None:
    spec = SPECS["libx264"]
    build = wrap(program_of(spec), spec, body)
    assert build.kind == "standalone"
    check_failure(build, spec, view, tmp_path / "out", kind, said)


FEWER = """
at = args.index("-vf") + 1
args[at] = "select='" + {keep!r} + "'," + args[at]
real()
"""


@every_codec
def test_a_dropped_frame_is_named(
    spec: EncoderSpec, view: BuildInput, tmp_path: Path, wrap: Wrap
) -> None:
    build = wrap(FFMPEG, spec, FEWER.format(keep="not(eq(n,10))"))
    said = "29 of 30 frames, missing 10 (counted from 0)"
    check_failure(build, spec, view, tmp_path / "one", "frame-count", said)
    build = wrap(FFMPEG, spec, FEWER.format(keep="not(eq(n,3)+between(n,20,21))"))
    said = "27 of 30 frames, missing 3, 20 to 21 (counted from 0)"
    check_failure(build, spec, view, tmp_path / "three", "frame-count", said)
    build = wrap(FFMPEG, spec, FEWER.format(keep="lt(n,25)"))
    said = "25 of 30 frames, missing 25 to 29 (counted from 0)"
    check_failure(build, spec, view, tmp_path / "end", "truncated", said)


@every_codec
def test_a_repeated_frame_is_a_wrong_number(
    spec: EncoderSpec, view: BuildInput, tmp_path: Path, wrap: Wrap
) -> None:
    twice = "at = args.index('-vf') + 1\nargs[at] = 'loop=1:1:7,' + args[at]\nreal()\n"
    build = wrap(FFMPEG, spec, twice)
    check_failure(build, spec, view, tmp_path / "o", "frame-count", "31 frames, not 30")


@every_program
def test_a_dropped_frame_of_an_own_program_is_named(
    spec: EncoderSpec, view: BuildInput, tmp_path: Path, wrap: Wrap
) -> None:
    frame = view.width * view.height * 3 // 2 + len("FRAME\n")
    body = f"""
at = next(i for i, arg in enumerate(args) if arg.endswith("view's.y4m"))
data = open(args[at], "rb").read()
first = data.index(b"FRAME")
args[at] = {str(tmp_path / "fewer.y4m")!r}
gone = first + 10 * {frame}
open(args[at], "wb").write(data[:gone] + data[gone + {frame}:])
real()
"""
    build = wrap(program_of(spec), spec, body)
    said = "29 of 30 frames, missing 10 (counted from 0)"
    check_failure(build, spec, view, tmp_path / "out", "frame-count", said)


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9", "av1"])
def test_a_packet_lost_on_the_way_is_a_frame_lost(
    codec: str, view: BuildInput, tmp_path: Path, wrap: Wrap
) -> None:
    body = f"""
real()
whole = out + ".whole.mp4"
os.rename(out, whole)
subprocess.run([{FFMPEG!r}, "-v", "error", "-i", whole, "-c", "copy", "-bsf:v",
                "noise=drop=eq(n\\\\,12)", out], check=True)
"""
    build = wrap(FFMPEG, BY_CODEC[codec], body)
    check_failure(build, BY_CODEC[codec], view, tmp_path / "o", "frame-count", "of 30 frames")


@pytest.mark.parametrize("codec", ["h264", "hevc", "av1"])
def test_damage_inside_is_undecodable(
    codec: str, view: BuildInput, tmp_path: Path, wrap: Wrap
) -> None:
    body = """
real()
with open(out, "r+b") as file:
    file.seek(os.stat(out).st_size * 6 // 10)
    file.write(bytes(range(1, 256)) * 3)
"""
    build = wrap(FFMPEG, BY_CODEC[codec], body)
    words = check_failure(
        build, BY_CODEC[codec], view, tmp_path / "o", "undecodable", "does not decode"
    )
    assert "the decoder says" in words


@every_program
def test_an_own_programs_stream_cut_short(
    spec: EncoderSpec, view: BuildInput, tmp_path: Path, wrap: Wrap
) -> None:
    body = "real(); os.truncate(out, os.stat(out).st_size * 6 // 10)"
    build = wrap(program_of(spec), spec, body)
    check_failure(build, spec, view, tmp_path / "out", "truncated", "ends early")


@pytest.mark.parametrize("name", [name for name in ALONE if name != "libx265"])
def test_a_stream_cut_in_its_last_frame_is_truncated(
    name: str, view: BuildInput, tmp_path: Path, wrap: Wrap
) -> None:
    # x265's raw stream is left out: its decoder fills in the end of a last slice without a word
    spec = ALONE[name]
    body = "real(); os.truncate(out, os.stat(out).st_size - 12)"
    build = wrap(program_of(spec), spec, body)
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(BuildFailed) as failed:
        decoded(run(build, spec, view, folder / "a"), spec)
    assert failed.value.kind == "truncated", str(failed.value)


def test_another_codec_or_size_is_undecodable(
    view: BuildInput, tmp_path: Path, wrap: Wrap
) -> None:
    for codec in ("h264", "avs2"):
        body = "at = args.index('-vf') + 1\nargs[at] += ',scale=80:80'\nreal()"
        build = wrap(FFMPEG, BY_CODEC[codec], body)
        said = "80x80 pictures, not 96x72"
        check_failure(build, BY_CODEC[codec], view, tmp_path / codec, "undecodable", said)
    x264 = SPECS["libx264"]
    body = "at = args.index('libx264')\nargs[at] = 'libx265'\nargs[args.index('avc1')] = 'hvc1'\n"
    build = wrap(FFMPEG, x264, body + "real()")
    check_failure(build, x264, view, tmp_path / "a", "undecodable", "holds hevc, not h264")


def test_where_pictures_stand_still_no_frame_is_named(tmp_path: Path) -> None:
    vf = "select='eq(n,0)',loop=19:1:0,setpts=N/25/TB"
    whole = make_clip(tmp_path / "whole.mp4", frames=1, vf=vf)
    part = make_clip(tmp_path / "part.mp4", frames=1, vf=vf.replace("19", "14"))
    assert missing_frames(whole, part, ffmpeg=FFMPEG, frames=20) is None
    assert missing_frames(whole, whole, ffmpeg=FFMPEG, frames=20) is None


@pytest.mark.parametrize("gone", [{0}, {7}, {19}, {4, 5, 12}, {0, 19}])
def test_missing_frames_are_found(gone: set[int], tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.mp4", frames=20)
    left = "+".join(f"eq(n,{n})" for n in range(20) if n not in gone)
    part = make_clip(tmp_path / "part.mp4", frames=20, vf=f"select='{left}'")
    assert missing_frames(whole, part, ffmpeg=FFMPEG, frames=20) == tuple(sorted(gone))


def test_what_is_no_build_is_refused(tmp_path: Path) -> None:
    x264, svt = SPECS["libx264"], SPECS["libsvtav1"]
    text = tmp_path / "notes.txt"
    text.write_text("not a program")
    for wrong, said in [
        (tmp_path, "is a folder; name the encoder's program"),
        (tmp_path / "none", "there is no program .*none"),
        (text, "may not be executed; `chmod \\+x`"),
    ]:
        with pytest.raises(InputError, match=said):
            builds.open_build(wrong, x264)
    text.chmod(0o755)
    with pytest.raises(InputError, match=r"no program that runs here.*#!/bin/sh"):
        builds.open_build(text, x264)
    with pytest.raises(InputError, match=r"is not an ffmpeg with libx264 or x264.*it said"):
        builds.open_build("/bin/echo", x264)
    with pytest.raises(InputError, match="answers as SvtAv1EncApp, which makes av1"):
        builds.open_build(program_of(svt), x264)


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_an_ffmpeg_without_the_encoder_is_refused(tmp_path: Path) -> None:
    body = 'case "$*" in *encoder=*) echo "not known";; *) echo "ffmpeg version 7.1";; esac'
    with pytest.raises(InputError, match=r"ffmpeg 7\.1 built without libx264.*or a x264"):
        builds.open_build(script(tmp_path / "f", body), SPECS["libx264"])


def test_a_program_that_is_silent_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds, "_ANSWER_S", 0.3)
    with pytest.raises(InputError, match="does not answer"):
        builds.open_build(script(tmp_path / "f", "sleep 60"), SPECS["libx264"])


def test_a_build_that_fails_at_everything_is_still_a_build(
    tmp_path: Path, view: BuildInput
) -> None:
    real = shlex.quote(FFMPEG)
    body = f'case "$*" in *-version*|*encoder=*) exec {real} "$@";; *) exit 9;; esac'
    x264 = SPECS["libx264"]
    build = builds.open_build(script(tmp_path / "f", body), x264)
    assert build.version.startswith("ffmpeg ") and "," not in build.version
    check_failure(build, x264, view, tmp_path / "o", "crash", "exit status 9")


def test_arguments_are_tried_with_the_ffmpeg_that_was_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x264 = SPECS["libx264"]
    build = builds.open_build(FFMPEG, x264, ["-bf", "0"])
    # of what the environment names nothing is used
    monkeypatch.setenv("VQALOOP_FFMPEG", "/no/such/ffmpeg")
    builds.check_arguments(
        build, x264, "--args", point=middle(x264), preset=x264.presets[-1], ffmpeg=FFMPEG
    )


def test_memory_is_the_programs_own(tmp_path: Path, view: BuildInput) -> None:
    ballast = bytearray(b"x") * (200 << 20)
    x264 = SPECS["libx264"]
    made = run(builds.open_build(FFMPEG, x264), x264, view, tmp_path / "a")
    assert 1 << 20 < made.peak_bytes < len(ballast)


def test_points_and_threads_that_cannot_be(view: BuildInput, tmp_path: Path) -> None:
    x264 = SPECS["libx264"]
    build = builds.open_build(FFMPEG, x264)
    assert str(Point("crf", 27)) == "crf 27"
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"point": ("qp", 20)}, "no 'qp'; give crf or bitrate"),
        ({"point": ("crf", 99)}, "99 is outside"),
        ({"point": ("bitrate", 0)}, "bitrate 0 is outside"),
        ({"point": ("bitrate", float("inf"))}, "no number"),
        ({"preset": "warp"}, "unknown preset 'warp'"),
        ({"threads": 0}, "give 1 or more"),
    ]
    for more, said in wrong:
        with pytest.raises(InputError, match=said):
            run(build, x264, view, tmp_path / "a", **more)
    with pytest.raises(InputError, match="does not exist"):
        run(build, x264, view, tmp_path / "no" / "a")
    avs2 = SPECS["libxavs2"]
    with pytest.raises(InputError, match="10 bit is not possible"):
        run(builds.open_build(FFMPEG, avs2), avs2, replace(view, bit_depth=10), tmp_path / "a")


def test_a_view_is_what_it_says(view: BuildInput) -> None:
    assert (view.width, view.height, view.fps) == (96, 72, Fraction(12))
    assert view.path.read_bytes().count(b"FRAME\n") == view.frames == FRAMES
    assert view.path.read_bytes().startswith(b"YUV4MPEG2 W96 H72 F12:1 ")
    assert default_timeout_s(SPECS["libx264"], view) > 60


def test_a_view_that_cannot_be_written(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "in.mp4")
    source = probe_source(clip)
    with pytest.raises(InputError, match="8 or 10 bits"):
        builds.write_view(source, None, tmp_path / "v", bit_depth=12, frames=None, ffmpeg=FFMPEG)
    with pytest.raises(DecodeFailed, match="12 of 20 frames"):
        longer = replace(source, frames=20)
        builds.write_view(longer, None, tmp_path / "v", bit_depth=8, frames=None, ffmpeg=FFMPEG)
    clip.write_bytes(b"")
    with pytest.raises(DecodeFailed, match="was not decoded"):
        builds.write_view(source, None, tmp_path / "v", bit_depth=8, frames=None, ffmpeg=FFMPEG)
    assert list(tmp_path.iterdir()) == [clip]
