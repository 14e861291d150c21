"""The fixture vqaloop_regress, as a project's own tests use it."""

import configparser
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from tests.support.media import REPOSITORY, make_clip
from tests.trend.test_trend import document
from tests.whole.test_package import loaded_after
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.core.option_fields import number, numbers, options_of, whole
from vqaloop.core.text import parse_duration
from vqaloop.errors import InputError
from vqaloop.pytest_plugin import OPTIONS
from vqaloop.regress.compare import Comparison
from vqaloop.regress.options import RegressOptions
from vqaloop.trend.trend import read_trend

pytest_plugins = ["pytester"]

PLUGIN = ("-p", "vqaloop.pytest_plugin", "-p", "no:cacheprovider")
TEST = "def test_no_worse(vqaloop_regress): vqaloop_regress({})"


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project whose runs of pytest know no plugin but ours, installed or not."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return pytester


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What comparisons were asked for; their answer is a regression if the codec is vp9."""
    calls: list[dict[str, Any]] = []

    def compare(**options: Any) -> Comparison:
        calls.append(options)
        if not Path(options["baseline"]).name.startswith("x"):
            raise InputError("there is no program 'y264'; check the path")
        value = {"vp9": 3.25, "av1": None}.get(options["codec"], 0.0)
        found = document(value, bd_rate_percent=value, checks=[])
        if value:
            found["summary"] = "Worse: it needs +3.25 % of bits."
            found["checks"] = [
                {"clip": f"{n}\x1b.y4m", "check": "vmaf", "status": "failed", "message": "+9 %"}
                for n in range(25)
            ] + [{"clip": "good", "check": "vmaf", "status": "passed", "message": "+0 %"}]
        return Comparison(found)

    monkeypatch.setattr("vqaloop.regress.compare.compare_builds", compare)
    return calls


def given(**options: Any) -> str:
    return TEST.format(", ".join(f"{key}={value!r}" for key, value in options.items()))


def test_the_plugin_costs_nothing_to_import() -> None:
    loaded = loaded_after("import pytest, vqaloop.pytest_plugin")
    ours = {name for name in loaded if name.startswith("vqaloop")}
    core = {"vqaloop", "vqaloop.core", "vqaloop.core.version", "vqaloop.errors"}
    assert ours == {*core, "vqaloop.pytest_plugin"}
    assert not loaded & {"numpy", "torch", "scipy", "matplotlib", "sqlite3"}


@pytest.mark.parametrize("name", sorted(OPTIONS.keys() - {"history"}))
def test_an_option_is_read_as_the_command_reads_it(name: str) -> None:
    made = options_of(RegressOptions)[name]
    text = "32" if made.parse in (number, whole, numbers, parse_duration) else "vmaf, psnr"
    text = "h264" if name == "codec" else text
    assert OPTIONS[name].kind(text) == made.parse(text)


def test_a_build_that_is_no_worse_passes(
    project: pytest.Pytester, asked: list[dict[str, Any]]
) -> None:
    project.makepyfile(given(baseline="x1", candidate="x2", codec="h264", clips=["a.y4m"]))
    result = project.runpytest_inprocess(*PLUGIN, "--junit-xml=report.xml")
    result.assert_outcomes(passed=1)
    assert asked == [{"baseline": "x1", "candidate": "x2", "codec": "h264", "clips": ["a.y4m"]}]
    properties = ET.parse(project.path / "report.xml").findall(".//property")
    assert {item.get("name"): item.get("value") for item in properties} == {
        "vqaloop_verdict": "no change",
        "vqaloop_bd_rate_percent": "0.0",
    }


def test_a_regression_fails_with_the_summary_and_the_checks_that_failed(
    project: pytest.Pytester, asked: list[dict[str, Any]]
) -> None:
    project.makepyfile(given(baseline="x1", candidate="x2", codec="vp9", clips=["a.y4m"]))
    result = project.runpytest_inprocess(*PLUGIN)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*AssertionError: Worse: it needs +3.25 % of bits.",
            "*- 0?x1b.y4m, vmaf: +9 %",
            "*- and 5 more checks failed",
        ]
    )
    result.stdout.no_fnmatch_line("*good*")
    # the test's own line is shown, and none of the plugin's
    result.stdout.no_fnmatch_line("*pytest_plugin.py*")


def test_what_cannot_be_told_is_no_pass(
    project: pytest.Pytester, asked: list[dict[str, Any]]
) -> None:
    project.makepyfile(given(baseline="x1", candidate="x2", codec="av1", clips=["a.y4m"]))
    result = project.runpytest_inprocess(*PLUGIN)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*AssertionError: as it is"])


def test_a_comparison_that_is_refused_fails_in_one_line(
    project: pytest.Pytester, asked: list[dict[str, Any]]
) -> None:
    project.makepyfile(given(baseline="y264", candidate="x2", codec="av1", clips=["a.y4m"]))
    result = project.runpytest_inprocess(*PLUGIN)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["vqaloop: there is no program 'y264'; check the path"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_the_test_goes_before_the_command_line_and_that_before_the_ini_file(
    project: pytest.Pytester, asked: list[dict[str, Any]]
) -> None:
    project.makeini(
        """
        [pytest]
        vqaloop_baseline = x1
        vqaloop_candidate = build/x2
        vqaloop_codec = h264
        vqaloop_threshold = 2.5
        vqaloop_clip_threshold = 8
        vqaloop_gate = vmaf, psnr_y
        vqaloop_knobs = 20,25,30,35
        vqaloop_preset = slow
        vqaloop_clips =
            clips/one clip.y4m
            clips/two.y4m
        """
    )
    project.mkdir("below").joinpath("test_it.py").write_text(given(preset="fast", seed=3))
    project.chdir()
    result = project.runpytest_inprocess(
        *PLUGIN,
        *("--vqaloop-codec", "hevc", "--vqaloop-threshold", "1", "--vqaloop-timeout-s", "9"),
        *("--vqaloop-frames=20", "below"),
    )
    result.assert_outcomes(passed=1)
    assert asked == [
        {
            "baseline": Path("x1"),
            "candidate": project.path / "build" / "x2",
            "codec": "hevc",
            "preset": "fast",
            "gate": ["vmaf", "psnr_y"],
            "knobs": [20, 25, 30, 35],
            "frames": 20,
            "threshold": 1.0,
            "clip_threshold": 8.0,
            "timeout_s": 9.0,
            "clips": [project.path / "clips" / name for name in ("one clip.y4m", "two.y4m")],
            "seed": 3,
        }
    ]


def test_paths_on_the_command_line_are_relative_to_where_one_is(
    project: pytest.Pytester, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    project.makeini("[pytest]\nvqaloop_codec = h264\nvqaloop_clips = other.y4m\n")
    project.makepyfile(given())
    monkeypatch.chdir(project.mkdir("below"))
    Path("x264").touch()
    options = ("--vqaloop-baseline", "x264", "--vqaloop-candidate", "../x2")
    project.runpytest_inprocess(
        *PLUGIN, *options, "--vqaloop-clip", "a.y4m", "--vqaloop-clip", "b.y4m", str(project.path)
    ).assert_outcomes(passed=1)
    below = project.path / "below"
    assert asked[0]["clips"] == [below / "a.y4m", below / "b.y4m"]
    assert asked[0]["baseline"] == below / "x264"
    assert asked[0]["candidate"] == below / ".." / "x2"


def test_what_is_missing_is_asked_for(
    project: pytest.Pytester, asked: list[dict[str, Any]]
) -> None:
    project.makepyfile(given(candidate="x2", codec="h264"))
    result = project.runpytest_inprocess(*PLUGIN)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*baseline, clips not given; * with --vqaloop-baseline, --vqaloop-clip, or *"]
    )
    assert not asked


def test_a_number_that_is_none_is_refused(project: pytest.Pytester) -> None:
    project.makepyfile(given())
    result = project.runpytest_inprocess(*PLUGIN, "--vqaloop-threshold=much")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*vqaloop_threshold = 'much' is not PERCENT*"])


def test_comparisons_are_added_to_the_history(
    project: pytest.Pytester, asked: list[dict[str, Any]]
) -> None:
    project.makeini("[pytest]\nvqaloop_history = ./history.db\n")
    project.makepyfile(given(baseline="x1", candidate="x2", codec="vp9", clips=["a.y4m"]))
    project.runpytest_inprocess(*PLUGIN).assert_outcomes(failed=1)
    (trend,) = read_trend(project.path / "history.db")
    assert [row.bd_rate for row in trend.rows] == [3.25]
    assert "history" not in asked[0]


def test_a_history_that_is_not_one_is_refused_before_the_work(
    project: pytest.Pytester, asked: list[dict[str, Any]]
) -> None:
    project.path.joinpath("history.db").write_text("something else " * 100)
    project.makepyfile(
        given(baseline="x1", candidate="x2", codec="vp9", clips=["a"], history="history.db")
    )
    result = project.runpytest_inprocess(*PLUGIN)
    result.stdout.fnmatch_lines(["vqaloop: the history * file is not a database*"])
    assert not asked


def test_installed_it_needs_no_option(tmp_path: Path) -> None:
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    about = tmp_path / "site" / "some-1.dist-info"
    about.mkdir(parents=True)
    about.joinpath("METADATA").write_text("Name: some\nVersion: 1\n")
    entries = setup["options.entry_points"]["pytest11"]
    about.joinpath("entry_points.txt").write_text(f"[pytest11]{entries}\n")
    tests = tmp_path / "tests"
    tests.mkdir()
    tests.joinpath("test_it.py").write_text("def test_it(vqaloop_regress): vqaloop_regress()")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", tests, tests],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tests,
        env={"PYTHONPATH": f"{about.parent}:{REPOSITORY}", "PATH": "", "OMP_NUM_THREADS": "1"},
    )
    assert "vqaloop: baseline, candidate, codec, clips not given" in done.stdout, done.stdout
    assert "1 failed" in done.stdout


def test_a_real_encoder_is_compared_with_itself_and_with_worse_arguments(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VQALOOP_CACHE", str(project.path / "cache"))
    make_clip(project.path / "clip.mp4", frames=10)
    ffmpeg = ffmpeg_path()
    project.makeini(
        f"""
        [pytest]
        vqaloop_baseline = {ffmpeg}
        vqaloop_candidate = {ffmpeg}
        vqaloop_codec = h264
        vqaloop_clips = clip.mp4
        vqaloop_knobs = 22,27,32,37
        vqaloop_history = history.db
        """
    )
    project.makepyfile(
        """
        def test_itself(vqaloop_regress):
            found = vqaloop_regress()
            assert found.document["bd_rate_percent"] == 0
            assert not found.regressed

        def test_worse(vqaloop_regress):
            vqaloop_regress(candidate_args=["-preset", "ultrafast"])
        """
    )
    result = project.runpytest_inprocess(*PLUGIN)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*AssertionError: Worse: *", "*- *clip*bd-rate*"])
    (trend,) = read_trend(project.path / "history.db")
    assert trend.rows[0].bd_rate == 0
    assert (trend.rows[1].bd_rate or 0) > 5
    assert json.loads(trend.rows[1].candidate.args) == ["-preset", "ultrafast"]
