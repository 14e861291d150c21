"""`vqaloop regress` on real builds: the same one twice, a worse one, and ones that misbehave."""

import json
import os
import shutil
import sys
import textwrap
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.commandline import Room, slow_but
from tests.support.media import make_clip
from vqaloop import InputError, compare_builds
from vqaloop.cli.main import main
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.records import Source
from vqaloop.regress.statistics import ClipRuns
from vqaloop.regress.summary import markdown

FFMPEG = ffmpeg_path()


def run_main(argv: Sequence[Path | str]) -> int:
    return main([os.fspath(word) for word in argv])


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    return {
        name: make_clip(
            folder / f"{name}.y4m", frames=20, vf=f"noise=alls={6 + 4 * seed}:allf=t:all_seed=1"
        )
        for seed, name in enumerate(("good", "crash", "hang", "cut", "drop"))
    }


def wrapper(path: Path, body: str) -> Path:
    """A build that is a script around the real one; `args` are those of the call."""
    path.write_text(
        f"#!{sys.executable}\nimport os, subprocess, sys, time\nargs = sys.argv[1:]\n"
        f"real = [{FFMPEG!r}]\n{textwrap.dedent(body)}\nos.execv(real[0], [*real, *args])\n"
    )
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9", "av1", "avs2"])
def test_the_same_build_twice_is_no_change(clips: dict[str, Path], codec: str) -> None:
    compared = compare_builds(FFMPEG, FFMPEG, codec=codec, clips=[clips["good"]])
    document = compared.document
    assert compared.verdict == "no change", compared.summary
    assert compared.exit_code == 0
    for found in document["metrics"].values():
        assert abs(found["bd_rate_percent"]) <= found["noise_floor_percent"] + 1e-9
    assert document["decoded_equal"] is True


def test_a_build_wrapped_to_a_faster_preset_is_a_regression_of_the_right_size(
    clips: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fast = wrapper(
        tmp_path / "fast",
        """
        if "-c:v" in args and "libx264" in args:
            args[args.index("-preset") + 1] = "superfast"
        """,
    )
    out = tmp_path / "out.json"
    names = ["junit.xml", "note.md", "page.html", "history.db"]
    junit, note, page, history = (tmp_path / name for name in names)
    argv: list[Path | str] = [
        "regress",
        "--baseline",
        FFMPEG,
        "--candidate",
        fast,
        "--codec",
        "h264",
    ]
    argv += [clips["good"], clips["drop"], "--json", out, "--quiet"]
    argv += ["--junit", junit, "--markdown", note, "--html", page, "--history", history]
    assert run_main(argv) == 1
    assert "regression" in capsys.readouterr().out
    document = json.loads(out.read_text())
    assert document["verdict"] == "regression"
    bjontegaard = pytest.importorskip("bjontegaard")
    for clip in document["clips"]:
        for metric in ("vmaf", "psnr_y"):
            (a, b), (c, d) = (
                zip(
                    *sorted(
                        (run["bitrate_kbps"], run["scores"][metric])
                        for run in clip["runs"]
                        if run["build"] == build
                    ),
                    strict=True,
                )
                for build in ("baseline", "candidate")
            )
            expected = bjontegaard.bd_rate(
                a, b, c, d, method="pchip", require_matching_points=False
            )
            assert clip["bd_rate"][metric]["pchip"] == pytest.approx(expected, abs=0.01)
            assert expected > 5
    assert document["metrics"]["psnr_y"]["clips"] == 2
    cases = ET.parse(junit).getroot().iter("testcase")
    assert any(case.find("failure") is not None for case in cases)
    assert "regression" in note.read_text() and "<html" in page.read_text().lower()
    assert run_main(["regress", "--history", history, "--quiet"]) == 0
    assert "h264" in capsys.readouterr().out


@pytest.mark.programs
@pytest.mark.parametrize(
    ("program", "codec", "worse"),
    slow_but(
        [
            ("x264", "h264", "--subme 1 --me dia --ref 1 --trellis 0"),
            ("x265", "hevc", "--rd 1 --me 0 --ref 1 --subme 0"),
            ("SvtAv1EncApp", "av1", "--preset 12"),
            ("vpxenc", "vp9", "--cpu-used=5 --auto-alt-ref=0"),
        ],
        ("x264", "h264", "--subme 1 --me dia --ref 1 --trellis 0"),
    ),
)
def test_an_encoder_s_own_program_against_itself_and_against_worse_arguments(
    clips: dict[str, Path], program: str, codec: str, worse: str
) -> None:
    build = shutil.which(program)
    if build is None:
        pytest.skip(f"{program} is not installed")
    asked: dict[str, Any] = dict(codec=codec, clips=[clips["good"]])
    same = compare_builds(build, build, **asked)
    assert same.verdict == "no change" and same.document["baseline"]["kind"] == "standalone"
    assert same.document["metrics"]["psnr_y"]["bd_rate_percent"] == 0
    other = compare_builds(build, build, candidate_args=worse.split(), **asked)
    assert other.verdict == "regression", other.summary
    assert other.document["metrics"]["psnr_y"]["bd_rate_percent"] > 1


def test_builds_that_misbehave_on_one_clip_are_named_as_what_they_did(
    clips: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = wrapper(
        tmp_path / "bad",
        """
        line = " ".join(args)
        if "crash.y4m" in line:
            os.kill(os.getpid(), 11)
        if "hang.y4m" in line:
            time.sleep(600)
        if "drop.y4m" in line:
            args[-1:-1] = ["-filter:v", "select='not(eq(n,7))',setpts=N"]
        if "cut.y4m" in line:
            code = subprocess.run([*real, *args]).returncode
            path = args[-1]
            os.truncate(path, os.path.getsize(path) * 6 // 10)
            sys.exit(code)
        """,
    )
    junit = tmp_path / "junit.xml"
    argv: list[Path | str] = [
        "regress",
        "--baseline",
        FFMPEG,
        "--candidate",
        bad,
        "--codec",
        "h264",
        "--quiet",
    ]
    argv += [*clips.values(), "--junit", junit, "--time-limit", "3"]
    assert run_main(argv) == 1
    capsys.readouterr()
    failures = {
        (case.attrib["classname"].split("/")[-1], case.attrib["name"]): found.get("type")
        for case in ET.parse(junit).getroot().iter("testcase")
        if (found := case.find("failure")) is not None
    }
    assert failures == {
        ("crash.y4m", "encode"): "crash",
        ("hang.y4m", "encode"): "hang",
        ("cut.y4m", "decode"): "truncated",
        ("drop.y4m", "frames"): "frame-count",
    }


def test_a_saved_baseline_stands_in_for_its_build(
    clips: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"  # what it is, its content tells
    argv: list[Path | str] = ["regress", "--codec", "h264", clips["good"], "--quiet"]
    assert run_main([*argv, "--baseline", FFMPEG, "--save", base]) == 0
    out = tmp_path / "out.json"
    compared = [*argv, "--baseline", base, "--candidate", FFMPEG, "--json", out]
    assert run_main(compared) == 0
    document = json.loads(out.read_text())
    assert document["bit_exact"] is True and document["baseline"]["saved"] is True
    assert document["cost"]["encodes"] == 4
    assert run_main([*compared, "--preset", "fast"]) == 2
    assert "preset fast here and medium there" in capsys.readouterr().err
    other = [clips["crash"] if word is clips["good"] else word for word in compared]
    assert run_main(other) == 2
    assert "not among the clips" in capsys.readouterr().err


def test_a_baseline_that_fails_at_everything_is_not_saved(
    clips: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = wrapper(tmp_path / "broken", """
        if "good.y4m" in " ".join(args):
            sys.exit("no such thing")
        """)  # fmt: skip
    base = tmp_path / "base.json"
    argv: list[Path | str] = ["regress", "--codec", "h264", clips["good"], "--quiet"]
    assert run_main([*argv, "--baseline", broken, "--save", base]) == 2
    err = capsys.readouterr().err
    assert "every run of the baseline failed" in err and "no such thing" in err
    assert not base.exists()


def test_an_interrupted_comparison_goes_on_with_the_clips_it_lacks(
    clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vqaloop.regress import interleaved_runs

    one: list[str] = []
    real = interleaved_runs.run_clip

    def stop_at_the_second(source: Source, name: str, *rest: Any) -> ClipRuns:
        one.append(name)
        if len(one) == 2:
            raise KeyboardInterrupt
        return real(source, name, *rest)

    monkeypatch.setattr(interleaved_runs, "run_clip", stop_at_the_second)
    asked: dict[str, Any] = dict(
        codec="h264", clips=[clips["good"], clips["crash"]], preset="ultrafast"
    )
    with pytest.raises(KeyboardInterrupt):
        compare_builds(FFMPEG, FFMPEG, **asked)
    again = compare_builds(FFMPEG, FFMPEG, **asked)
    assert one == ["good.y4m", "crash.y4m", "crash.y4m"]
    assert again.document["cost"]["encodes"] == 12
    assert len(again.document["clips"]) == 2 and again.verdict == "no change"
    # and what ended well is not taken up again
    compare_builds(FFMPEG, FFMPEG, **asked)
    assert len(one) == 5


@pytest.mark.slow
def test_several_sizes_are_compared_as_hulls_and_bitrates_as_targets(
    clips: dict[str, Path],
) -> None:
    sizes = compare_builds(
        FFMPEG,
        FFMPEG,
        codec="h264",
        clips=[clips["good"]],
        resolutions=[(160, 90), (128, 72)],
        candidate_args=["-preset", "ultrafast"],
        preset="superfast",
    )
    assert sizes.document["sizes"] == ["160x90", "128x72"]
    assert {(r["width"], r["height"]) for r in sizes.document["clips"][0]["runs"]} == {
        (160, 90),
        (128, 72),
    }
    assert sizes.document["metrics"]["psnr_y"]["bd_rate_percent"] > 0
    aimed = compare_builds(
        FFMPEG,
        FFMPEG,
        codec="h264",
        clips=[clips["good"]],
        bitrates=[150, 250, 400, 700],
        preset="superfast",
    )
    assert aimed.document["rate"]["what"] == "distance from the target bitrate"
    assert aimed.document["rate"]["mean_percent"] is not None
    assert aimed.document["points"] == ["150 kb/s", "250 kb/s", "400 kb/s", "700 kb/s"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--candidate": "nowhere"}, "nowhere"),
        ({"--codec": "vp8"}, "unknown codec"),
        ({"--knobs": "20,30"}, "at least 4 different points"),
        ({"--knobs": "20,30,40,52"}, "takes crf from 1 to 51"),
        ({"--gate": "colour"}, "not measured here"),
        ({"--threshold": "-1"}, "not below 0"),
        ({"--junit": "/nowhere/x.xml"}, "/nowhere"),
        ({"--html": "/"}, "is a folder"),
        ({"--frames": "1"}, "at least 2"),
        ({"--candidate-args": "'open"}, "--candidate-args"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_encode(
    clips: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    message: str,
) -> None:
    asked: dict[str, str] = {
        "--baseline": FFMPEG,
        "--candidate": FFMPEG,
        "--codec": "h264",
        **change,
    }
    argv = [word for pair in asked.items() for word in pair]
    assert run_main(["regress", *argv, clips["good"]]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err
    assert "compare" not in err


def test_a_clip_named_twice_counts_once_and_is_refused(
    clips: dict[str, Path], tmp_path: Path
) -> None:
    copy = tmp_path / "copy.y4m"
    os.link(clips["good"], copy)
    with pytest.raises(InputError, match="there twice"):
        compare_builds(FFMPEG, FFMPEG, codec="h264", clips=[clips["good"], Path(copy)])


def test_a_wrong_word_among_the_arguments_is_no_regression(
    room: Room, clips: dict[str, Path]
) -> None:
    clip = next(iter(clips.values()))
    words = ("regress", "--baseline", "bundled", "--candidate", "bundled", "--codec", "h264", clip)
    said = room.run(*words, "--candidate-args=-nonsense 3")
    assert said.status == 2 and said.out == ""
    assert "encodes without --candidate-args and fails with them (-nonsense 3)" in said.err
    assert said.err.count("\n") == 1


def test_a_pool_decides_and_the_mean_stands_beside(clips: dict[str, Path], tmp_path: Path) -> None:
    saved = tmp_path / "saved.json"
    asked: dict[str, Any] = dict(codec="h264", clips=[clips["good"]], metric="vmaf", pool="p5")
    compare_builds(FFMPEG, **asked, preset="ultrafast", save=saved)
    compared = compare_builds(saved, FFMPEG, **asked, preset="ultrafast")
    document = compared.document
    assert document["metric"] == {"name": "vmaf p5", "weights_sha256": None, "pool": "p5"}
    assert document["gate"] == ["vmaf p5", "psnr_y p5"]
    assert {"vmaf p5", "psnr_y p5", "vmaf", "psnr_y"} <= set(document["metrics"])
    run = document["clips"][0]["runs"][0]
    # a clip of less than a second has one: its mean
    assert run["scores"]["vmaf p5"] == pytest.approx(run["scores"]["vmaf"])
    assert "VMAF p5" in markdown(document)
    with pytest.raises(InputError, match="pool mean here and p5 there"):
        compare_builds(saved, FFMPEG, **{**asked, "pool": "mean"}, preset="ultrafast")
