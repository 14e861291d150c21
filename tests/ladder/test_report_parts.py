"""What a ladder's report is made of: curves over time, pictures, commands, importance."""

import base64
import hashlib
import itertools
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.ladder.test_store import Page, make_ladder, make_pictures, page_of
from tests.support.commandline import SMALL, Room
from tests.support.media import REPOSITORY, make_clip
from vqaloop.bitstream.packets import Packet
from vqaloop.cli.parser import make_parser
from vqaloop.errors import InputError
from vqaloop.ladder import report_plots
from vqaloop.ladder.options import LadderOptions
from vqaloop.ladder.pictures import _most_different, find_pictures, pictures_json, worst_json
from vqaloop.ladder.report_plots import hull_growth, is_sampled
from vqaloop.ladder.reproduce import ladder_command
from vqaloop.ladder.store import read_ladder, write_reports
from vqaloop.ladder.timeline import MOST_POINTS, rates_of, scores_of, step_of
from vqaloop.records import Ladder, Score, Source
from vqaloop.report.plotting import spread
from vqaloop.tuning.param_study import importance

TITLE = Source(Path("a.mp4"), "0" * 64, 640, 360, Fraction(25), 250, "yuv420p")


def test_rates_add_up_to_all_bytes() -> None:
    packets = [Packet(n / 25, 100 + n, n % 50 == 0) for n in range(235)]
    rates = rates_of(packets, 9.4, 1.0)
    # the rest of 0.4 s is counted with the second before it
    assert len(rates) == 9
    assert rates[0] == pytest.approx(sum(range(100, 125)) * 8 / 1000, abs=0.01)
    spans = [1.0] * 8 + [1.4]
    held = sum(rate * span for rate, span in zip(rates, spans, strict=True))
    assert held == pytest.approx(sum(p.size_bytes for p in packets) * 8 / 1000, abs=0.1)


@pytest.mark.parametrize("duration_s", [0.04, 2.5, 3.99, 4.0, 239, 240, 7200, 10**6])
def test_curves_have_a_bounded_number_of_points(duration_s: float) -> None:
    step_s = step_of(duration_s)
    assert len(rates_of([Packet(0.0, 1, True)], duration_s, step_s)) <= MOST_POINTS + 1
    assert step_s >= 1 or duration_s < 4


def test_scores_over_time_are_moments_or_means_of_all_frames() -> None:
    seen = Score(70.0, "internvqa-mini", "anchored", moments=((100, 60.0), (25, 80.0)))
    assert scores_of(TITLE, seen, 1.0) == {"span_s": 0.08, "scores": [[1.04, 80.0], [4.04, 60.0]]}
    whole = Score(50.0, "vmaf", "full-reference", clips=tuple(float(n % 100) for n in range(250)))
    found = scores_of(TITLE, whole, 1.0)
    assert found["span_s"] == 1.0 and len(found["scores"]) == 10
    assert found["scores"][0] == [0.5, 12.0]
    assert scores_of(TITLE, Score(50.0, "x", "anchored", clips=(1.0, 2.0)), 1.0) == {}


def test_the_worst_places_are_apart_and_of_all_rungs() -> None:
    places = tuple((frame, 8 * crop, 16) for frame in (10, 90, 170, 240) for crop in range(3))
    low = Score(0, "m", "anchored", places=places, clips=tuple(float(n) for n in range(12)))
    # the second rung was looked at in more places
    high = Score(
        0, "m", "anchored", places=(*places, (120, 0, 0)), clips=(*([50.0] * 12), 0.0)
    )  # fmt: skip
    found = worst_json(TITLE, [low, high])
    assert [place["frame"] for place in found] == [10, 90, 170, 240]
    assert found[0] == {"frame": 10, "left": 16, "top": 0, "size": 112, "scores": [0.0, 50.0]}
    frames = tuple(100.0 - 90 * (n == 77) for n in range(250))
    whole = worst_json(TITLE, [Score(0, "vmaf", "full-reference", clips=frames)])
    assert whole[0] == {"frame": 77, "left": None, "top": None, "size": None, "scores": [10.0]}
    assert worst_json(TITLE, [Score(0, "m", "anchored", clips=(1.0,))]) == []


def test_the_part_that_differs_most_is_found() -> None:
    one = np.zeros((60, 80), np.uint8)
    other = one.copy()
    other[33:43, 21:41] = 200
    assert _most_different(one, other, 20, 10) == (21, 33)
    assert _most_different(one, other, 80, 60) == (0, 0)


def test_the_parameter_that_decides_is_the_important_one() -> None:
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1)
    )

    def saving(trial: optuna.Trial) -> float:
        strength, kind = trial.suggest_float("aq", 0, 1), trial.suggest_categorical("me", "ab")
        return 10 * strength + 0.01 * (kind == "a")

    study.optimize(saving, n_trials=20)
    found = importance(study.trials)
    assert max(found, key=found.__getitem__) == "aq"
    assert sum(found.values()) == pytest.approx(1, abs=0.01)
    assert importance(study.trials[:3]) == {}


def test_what_was_asked_is_recorded_where_it_is_no_default() -> None:
    options = LadderOptions(
        codec="av1",
        seed=3,
        weights=Path("w"),
        max_bitrate=math.inf,
        require=(),
        storage="x",
        resolutions=[(640, 360)],
        framerate="25",
        cache=False,
    )
    asked = options.asked()
    assert json.dumps(asked) == (
        '{"resolutions": [[640, 360]], "weights": "w", "seed": 3, "framerate": "25"}'
    )


def test_inputs_may_stand_apart() -> None:
    asked = ["ladder", "a", "--codec", "x", "b", "--rungs", "3", "--", "-c"]
    options = make_parser().parse_args(asked)
    assert options.input == [Path("a"), Path("b"), Path("-c")] and options.rungs == 3
    compared = make_parser().parse_args(["report", "a", "--html", "f", "b"])
    assert (compared.folder, compared.other) == (Path("a"), Path("b"))
    for words, why in (
        ([*asked[:5], "--fast"], "unrecognized arguments: --fast"),
        (["report", "a", "--html", "f", "b", "c"], "unrecognized arguments: c"),
        (["ladder", "a", "b"], "required: --codec"),
    ):
        with pytest.raises(InputError, match=why):
            make_parser().parse_args(words)


@given(st.floats(0, 1e15, exclude_min=True))
@example(12345.678)
@example(1e6)
@example(1e-7)
@example(30.0)
@settings(max_examples=30)
def test_the_command_asks_for_the_very_same_numbers(value: float) -> None:
    options = _options_of({"max_bitrate": value, "budget_s": value, "score_precision": value})
    assert options.max_bitrate == options.score_precision == value
    assert options.budget_s == value


def test_the_command_asks_for_negative_numbers_too() -> None:
    asked = {"score_precision": 0.5, "budget_s": 90.0, "min_score": -3.5}
    options = _options_of(asked)
    assert (options.score_precision, options.budget_s, options.min_score) == (0.5, 90, -3.5)


def test_the_command_asks_for_the_same_sizes_pool_and_audience() -> None:
    options = LadderOptions(
        codec="h264",
        min_top_size=(1280, 720),
        require=[(640, 360)],
        pool="p5",
        audience="mine.csv",
    )
    again = _options_of(json.loads(json.dumps(options.asked())))
    assert (again.min_top_size, again.require) == ((1280, 720), [(640, 360)])
    assert (again.pool, str(again.audience), again.min_bottom_size) == ("p5", "mine.csv", None)


def _options_of(asked: dict[str, Any]) -> Any:
    """What the command line makes of the report's command."""
    about = {"source": {"path": "a.mp4"}, "codec": "h264", "asked": asked}
    words = ladder_command(Ladder(Path("a.ladder"), (), about))
    return make_parser().parse_args(words[1:])


def test_the_best_known_hull_never_shrinks(tmp_path: Path) -> None:
    ladder = make_ladder(tmp_path)
    (curve,) = hull_growth(ladder).values()
    numbers, means = zip(*curve, strict=True)
    assert list(numbers) == list(range(1, 13))
    assert all(a <= b + 1e-9 for a, b in zip(means, means[1:], strict=False))
    assert ladder.rungs[0].score < means[-1] < ladder.rungs[-1].score
    assert is_sampled(ladder)


def test_what_runs_in_the_page_is_named_by_its_policy(tmp_path: Path) -> None:
    text, _ = page_of(make_ladder(tmp_path))
    policy = text.split('Content-Security-Policy" content="')[1].split('"')[0]
    code = text.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    allowed = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert allowed == {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "script-src": f"'sha256-{digest}'",
    }


def test_pictures_outlive_their_source(tmp_path: Path) -> None:
    ladder = make_ladder(tmp_path)
    pictures = make_pictures(ladder)
    write_reports(ladder, pictures)
    before = (tmp_path / "report.html").read_bytes()
    again = read_ladder(tmp_path)
    assert find_pictures(again) == pictures
    write_reports(again)
    assert (tmp_path / "report.html").read_bytes() == before


@pytest.mark.parametrize("lost", ["file", "other", "source picture", "place", "no picture"])
def test_without_source_and_pictures_the_rest_is_made(tmp_path: Path, lost: str) -> None:
    ladder = make_ladder(tmp_path)
    page_of(ladder)
    kept = tmp_path / "pictures.json"
    document = json.loads(kept.read_text())
    if lost == "file":
        # as in folders of before it was written: report.html alone has them
        kept.unlink()
    elif lost == "other":
        # pictures of another ladder that lay there
        ladder.about["source"]["sha256"] = "1" * 64
    elif lost == "source picture":
        del document["places"][0]["pictures"]["0"]
    elif lost == "place":
        del document["places"][1]
    else:
        for place in document["places"]:
            place["pictures"]["1"] = base64.b64encode(b"<svg>").decode()
    if lost != "file":
        kept.write_text(json.dumps(document))
    write_reports(ladder)
    text = (tmp_path / "report.html").read_text()
    if lost == "no picture":
        # one rung's picture is none: the others stay
        assert "data:image" in text and "<svg>" not in text.split("data:image", 1)[1][:99]
        assert text.count('data-rung="1"') == 0 and text.count('data-rung="2"') == 2
        return
    assert "data:image" not in text
    assert "No pictures: the source &#39;clips/park.y4m&#39; is not there" in text
    assert Page(text).tags.count("svg") == 11


MISSHAPEN: dict[str, Any] = {
    "no pairs": {"over_time": {"step_s": 1.0, "kbps": [1.0], "scores": [[1.0], [1.0, 2.0, 3.0]]}},
    "no step": {"over_time": {"kbps": [1.0, 2.0]}},
    "a step of 0": {"over_time": {"step_s": 0.0, "kbps": [1.0, 2.0]}},
    "nothing sent": {"over_time": {"step_s": 1.0, "kbps": [0.0, 0.0, -1.0]}},
    "nothing": {"over_time": {}},
}


@pytest.mark.parametrize("name", MISSHAPEN)
def test_odd_curves_are_drawn_or_left_out(tmp_path: Path, name: str) -> None:
    document = make_ladder(tmp_path).to_json()
    for rung in document["rungs"]:
        rung.update(MISSHAPEN[name])
    document["worst"] = [{"frame": 10**9, "scores": []}]
    document["asked"] = {"rungs": {"a": 1}, "require": [5], "seed": "-1", "other": 3}
    document["source"]["fps"] = document["source"]["duration"] = 0
    (tmp_path / "ladder.json").write_text(json.dumps(document))
    write_reports(read_ladder(tmp_path))
    page = Page((tmp_path / "report.html").read_text())
    words = ["vqaloop", "ladder", "clips/park.y4m", "--codec", "h264", "--seed=-1"]
    assert shlex.split(page.pre[-2]) == [*words, "-o", tmp_path.name]


@pytest.mark.parametrize("gone", [0, 2])
def test_what_is_chosen_is_what_is_shown_where_rungs_are_missing(
    tmp_path: Path, gone: int
) -> None:
    ladder = make_ladder(tmp_path)
    # without the first, and without the middle one, which is shown otherwise
    pictures = make_pictures(ladder)
    for place in pictures.places:
        del place.pictures[gone + 1]
    write_reports(ladder, pictures)
    text = (tmp_path / "report.html").read_text()
    for figure in text.split('<figure class="place"')[1:]:
        shown = figure.split('<img class="right" data-rung="')[1].split('"')[0]
        right = figure.split("<b>right</b>")[1].split("</label>")[0]
        assert right.count(" selected") == 1
        assert right.split(" selected")[0].rsplit('value="', 1)[1].startswith(f'{shown}"')


@pytest.mark.parametrize(
    "change",
    [
        {"box": [0, 0, 0, 0]},
        {"box": [0, 0, 48, 0]},
        {"box": [0, 0, -48, 32]},
        {"box": [-2, 0, 48, 32]},
        {"box": [10**14, 0, 1, 1]},
        {"box": [0, 0, 48]},
        {"box": "0 0 48 32"},
        {"pictures": {"0": "", "77": ""}},
        {"pictures": []},
    ],
)
def test_places_that_are_none_of_ours_are_not_taken(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    ladder = make_ladder(tmp_path)
    pictures = make_pictures(ladder)
    (tmp_path / "pictures.json").write_text(json.dumps(pictures_json(ladder, pictures)))
    assert find_pictures(ladder) == pictures
    document = pictures_json(ladder, pictures)
    document["places"][0] |= change
    (tmp_path / "pictures.json").write_text(json.dumps(document))
    assert "the source" in find_pictures(ladder).trouble


@pytest.mark.parametrize("what", ["bytes", "size", "digest", "nothing"])
def test_only_the_very_source_is_looked_at(tmp_path: Path, what: str) -> None:
    """It is no video, so that pictures of it fail for that reason alone."""
    title, ladder = tmp_path / "title.y4m", make_ladder(tmp_path)
    title.write_bytes(b"no video")
    about: dict[str, Any] = {
        "path": str(title),
        "sha256": hashlib.sha256(b"no video").hexdigest(),
        "size_bytes": 8,
    }
    if what == "bytes":
        title.write_bytes(b"no-video")
    elif what != "nothing":
        about["size_bytes" if what == "size" else "sha256"] = 9 if what == "size" else None
    ladder.about["source"] |= about
    said = find_pictures(ladder).trouble
    assert ("is not the file it was" in said) == (what != "nothing"), said
    if what == "nothing":
        assert "is not a video" in said
        # as in documents of before there was a size
        del ladder.about["source"]["size_bytes"]
        assert find_pictures(ladder).trouble == said


@pytest.mark.parametrize("rate", ["12.5", "50"])
def test_pictures_are_made_again_at_the_rate_that_was_asked(room: Room, rate: str) -> None:
    make_clip(room.folder / "a.mp4", size="160x96", frames=30)
    room.ladder("a.mp4", *SMALL, "--resolutions", "160x96", "--framerate", rate)
    ladder = read_ladder(room.folder / "out")
    kept = find_pictures(ladder)
    assert kept.places and not kept.trouble
    (ladder.folder / "pictures.json").unlink()
    assert find_pictures(ladder) == kept
    # as where another version reads the file otherwise
    about = ladder.about["source"]
    for other in ({"frames": about["frames"] - 1}, {"fps_exact": "24/1"}):
        ladder.about["source"] = {**about, **other}
        said = find_pictures(ladder).trouble
        assert f"is read as {about['frames']} frames at {about['fps_exact']} fps" in said


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.ladder.test_store import make_ladder
from vqaloop.ladder import store as report
from vqaloop.ladder.store import write_reports

ladder = make_ladder(Path(sys.argv[1]))
write = Path.write_bytes

def die(path, data):
    write(path, data[:5])
    if data.startswith(b"<!"):
        os.kill(os.getpid(), signal.SIGKILL)

Path.write_bytes = die
write_reports(ladder)
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")
def test_killed_while_it_writes_it_leaves_nothing_behind(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], cwd=REPOSITORY)
    assert done.returncode == -signal.SIGKILL
    end = time.monotonic() + 30
    while (left := list(tmp_path.glob(".*"))) and time.monotonic() < end:
        time.sleep(0.05)
    assert not left and not (tmp_path / "ladder.json").exists()
    assert len(os.listdir(tmp_path)) == len(make_ladder(tmp_path).rungs)


@given(st.lists(st.floats(-50, 250), min_size=1, max_size=20).map(sorted))
def test_places_are_apart_and_within_bounds(wanted: list[float]) -> None:
    places = spread(wanted, 10, 0, 200)
    steps = [above - below for below, above in itertools.pairwise(places)]
    assert all(step > 10 - 1e-6 for step in steps)
    assert min(places) > -1e-6 and max(places) < 200 + 1e-6
    # what is good already stays
    assert spread(places, 10 - 1e-6, -1e-6, 200 + 1e-6) == pytest.approx(places, abs=1e-4)


@pytest.mark.parametrize("draw", [report_plots.bitrate_svg, report_plots.score_svg])
@pytest.mark.parametrize("apart", [0.0, 0.5, 1.0])
def test_numbers_at_the_ends_of_curves_never_overlap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draw: Any, apart: float
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Annotation

    ladder = make_ladder(tmp_path)
    over = ladder.rungs[0].over_time
    rungs = [
        replace(
            ladder.rungs[0],
            over_time={
                **over,
                "kbps": [rate * (1 + n * apart) for rate in over["kbps"]],
                "scores": [[at, score + n * apart] for at, score in over["scores"]],
            },
        )
        for n in range(14)
    ]
    figures: list[Any] = []
    monkeypatch.setattr(report_plots, "as_svg", lambda figure, *_: figures.append(figure))
    draw(replace(ladder, rungs=tuple(rungs)))
    renderer = FigureCanvasAgg(figures[0]).get_renderer()  # type: ignore[no-untyped-call]
    labels = [text for text in figures[0].axes[0].texts if isinstance(text, Annotation)]
    boxes = [text.get_window_extent(renderer) for text in labels]
    assert len(boxes) == 14
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    # in the order of the curves
    if apart:
        heights = {text.get_text(): box.y0 for text, box in zip(labels, boxes, strict=True)}
        assert sorted(heights, key=lambda number: heights[number]) == sorted(heights, key=int)
