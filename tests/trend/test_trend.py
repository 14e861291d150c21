"""The history of builds: what is kept, what is refused, where a series changed, what is shown."""

import copy
import hashlib
import json
import multiprocessing
import re
import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqaloop.errors import InputError
from vqaloop.report.console import WIDTH
from vqaloop.trend import changepoint
from vqaloop.trend.changepoint import change_point, change_points
from vqaloop.trend.plot import show_trend, trend_page, trend_png, trend_svg
from vqaloop.trend.store import append, check_store
from vqaloop.trend.table import trend_text
from vqaloop.trend.trend import Trend, read_trend

pytestmark = pytest.mark.drawn

METRIC = "internvqa-mini"
START = datetime(2026, 1, 1, tzinfo=UTC)


def build(name: str) -> dict[str, Any]:
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    return {"name": name, "kind": "standalone", "version": name, "sha256": sha256, "args": []}


def verdict_of(value: float | None, threshold: float = 0.5) -> str:
    if value is None:
        return "cannot tell"
    return "no change" if abs(value) <= threshold else "regression" if value > 0 else "improvement"


def document(
    value: float | None,
    *,
    day: int = 0,
    baseline: str = "x264 r100",
    candidate: str = "x264 r101",
    noise: float | None = 0.0,
    **more: Any,
) -> dict[str, Any]:
    """As `vqaloop regress --json` writes it, of two clips."""
    low_high = None if value is None else [value - 0.1, value + 0.1]
    gap = {"pchip": value, "akima": value, "noise": noise, "refused": None}
    measured = {
        "bd_rate_percent": value,
        "akima_percent": value,
        "interval_percent": low_high,
        "noise_floor_percent": noise,
        "clips": 2,
        "refused": 0,
        "verdict": verdict_of(value),
    }
    return {
        "schema": "vqaloop.regress/1",
        "when": (START + timedelta(days=day)).isoformat(),
        "codec": "h264",
        "encoder": "x264",
        "preset": "medium",
        "points": ["crf 22", "crf 27"],
        "sizes": ["source"],
        "threshold_percent": 0.5,
        "metric": {"name": METRIC, "label": "VMAF", "weights_sha256": "ab"},
        "baseline": build(baseline),
        "candidate": build(candidate),
        "metrics": {METRIC: measured, "vmaf": {**measured, "bd_rate_percent": 7.0}},
        "time": {"cpu_ratio": 1.01, "wall_ratio": 1.0, "noise_percent": 1, "verdict": "no change"},
        "memory": {"peak_ratio": 1.0, "verdict": "no change"},
        "rate": {"mean_percent": 0.1, "verdict": "no change", "what": "bitrate at equal crf"},
        "verdict": verdict_of(value),
        "summary": "as it is",
        "clips": [
            {"clip": name, "sha256": name * 8, "frames": 50, "bd_rate": {METRIC: gap, "vmaf": gap}}
            for name in ("a.y4m", "b.y4m")
        ],
        **more,
    }


def hub(store: Path, values: Sequence[float | None], noise: float = 0.0, **more: Any) -> None:
    """Candidates r1, r2, ... against r0, a day each."""
    for day, value in enumerate(values):
        append(
            document(value, day=day, baseline="r0", candidate=f"r{day + 1}", noise=noise, **more),
            store,
        )


def chain(store: Path, values: Sequence[float | None], start: int = 0) -> None:
    """Each build against the one before it."""
    for day, value in enumerate(values, start):
        append(document(value, day=day, baseline=f"r{day}", candidate=f"r{day + 1}"), store)


def only(store: Path, **wanted: Any) -> Trend:
    (trend,) = read_trend(store, **wanted)
    return trend


# the store


def test_a_comparison_is_read_as_it_was_written(tmp_path: Path) -> None:
    store = tmp_path / "history.db"
    append(document(1.25, noise=0.3), store)
    row = only(store).rows[0]
    assert (row.bd_rate, row.noise_floor, row.verdict) == (1.25, 0.3, "regression")
    assert row.interval == (1.15, 1.35)
    assert (row.baseline.version, row.candidate.version) == ("x264 r100", "x264 r101")
    assert (row.cpu_ratio, row.wall_ratio, row.peak_ratio) == (1.01, 1.0, 1.0)
    assert row.when == START
    assert only(store, metric="vmaf").rows[0].bd_rate == 7.0
    assert read_trend(store, "av1") == []
    with sqlite3.connect(store) as db:
        clips = db.execute("SELECT clip, metric, bd_rate_percent FROM clip ORDER BY 1, 2")
        assert clips.fetchall()[:2] == [("a.y4m", METRIC, 1.25), ("a.y4m", "vmaf", 1.25)]
    db.close()


def test_the_same_document_counts_once(tmp_path: Path) -> None:
    store = tmp_path / "history.db"
    for _ in range(3):
        append(document(1.0), store)
    append(document(1.0, day=1), store)
    assert len(only(store).rows) == 2


def test_what_cannot_be_told_is_kept_as_such(tmp_path: Path) -> None:
    store = tmp_path / "history.db"
    hub(store, [0.1, None, float("nan"), 0.2])
    trend = only(store)
    assert [row.bd_rate for row in trend.rows] == [0.1, None, None, 0.2]
    assert [level is None for level in trend.levels] == [False, True, True, False]
    assert "cannot tell" in trend_text(trend)


def _append_ten(store: Path, first: int) -> None:
    for day in range(first, first + 10):
        append(document(day / 100, day=day, candidate=f"r{day}"), store)


def test_several_processes_append_to_a_store_that_none_of_them_has_made(tmp_path: Path) -> None:
    store = tmp_path / "history.db"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append_ten, args=(store, 10 * n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert [row.bd_rate for row in only(store).rows] == [n / 100 for n in range(30)]


def test_a_document_that_breaks_off_leaves_no_row(tmp_path: Path) -> None:
    store = tmp_path / "history.db"
    append(document(0.0), store)
    broken = document(1.0, day=1)
    # fits no column, which is found out when its first row is written already
    broken["metrics"][METRIC]["clips"] = 1 << 70
    with pytest.raises(InputError):
        append(broken, store)
    assert len(only(store).rows) == 1
    with sqlite3.connect(store) as db:
        assert db.execute("SELECT count(*) FROM comparison").fetchone() == (1,)
    db.close()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("schema", "vqaloop.ladder/1", "schema"),
        ("schema", None, "schema"),
        ("when", "yesterday", "not whole"),
        ("metrics", None, "not whole"),
        ("clips", [{}], "not whole"),
        ("baseline", {}, "version"),
    ],
)
def test_what_is_no_comparison_is_refused_and_makes_no_file(
    tmp_path: Path, key: str, value: Any, said: str
) -> None:
    store = tmp_path / "history.db"
    with pytest.raises(InputError, match=said):
        append({**document(0.0), key: value}, store)
    assert not store.exists()


def test_a_bd_rate_that_leaves_no_bits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="-100"):
        append(document(-100.0), tmp_path / "history.db")


def test_files_that_are_not_ours_are_refused_and_stay_as_they_are(tmp_path: Path) -> None:
    text, other, newer = (tmp_path / name for name in ("text.db", "other.db", "newer.db"))
    text.write_text("when,candidate,bd_rate\n" * 200)
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE comparison (id INTEGER)")
    db.close()
    append(document(0.0), newer)
    with sqlite3.connect(newer) as db:
        db.execute("PRAGMA user_version = 2")
    db.close()
    for path, said in ((text, "not a database"), (other, "something else"), (newer, "version 2")):
        before = path.read_bytes()
        for attempt in (
            lambda path: append(document(0.0, day=1), path),
            read_trend,
            check_store,
        ):
            with pytest.raises(InputError, match=said):
                attempt(path)
        assert path.read_bytes() == before


def test_a_store_in_no_folder_or_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "history.db"):
        with pytest.raises(InputError):
            append(document(0.0), path)
        with pytest.raises(InputError):
            check_store(path)
        with pytest.raises(InputError):
            read_trend(path)


def test_a_store_is_checked_without_a_trace(tmp_path: Path) -> None:
    store = tmp_path / "history.db"
    check_store(store)
    assert not list(tmp_path.iterdir())
    append(document(0.0), store)
    check_store(store)
    assert [path.name for path in tmp_path.iterdir()] == ["history.db"]


def test_odd_names_are_kept_and_shown_as_text(tmp_path: Path) -> None:
    store = tmp_path / "his?tory #1%20 '\udcff.db"
    named = document(0.0, candidate="x\x1b[31m\u202e[bold]$x_1$'); DROP TABLE clip;--<script>")
    named["clips"][0]["clip"] = "\udcff'.y4m"
    append(named, store)
    assert [path.name for path in tmp_path.iterdir()] == [store.name]
    text = trend_text(only(store))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert trend_svg([only(store)]).startswith("<svg")
    assert "<script" not in trend_page([only(store)])


def test_damage_is_refused_in_words(tmp_path: Path) -> None:
    store = tmp_path / "history.db"
    append(document(0.0), store)
    with sqlite3.connect(store) as db:
        db.execute("UPDATE comparison SET made = 'never'")
    db.close()
    with pytest.raises(InputError, match="damaged"):
        read_trend(store)


# levels


def test_a_chain_and_a_common_baseline_tell_the_same_levels(tmp_path: Path) -> None:
    steps = [1.0, 0.0, -2.0, 3.0]
    levels = [100 * (float(v) - 1) for v in np.cumprod([1 + s / 100 for s in steps])]
    chain(tmp_path / "chain.db", steps)
    hub(tmp_path / "hub.db", levels)
    assert only(tmp_path / "chain.db").levels == pytest.approx(levels)
    assert only(tmp_path / "hub.db").levels == pytest.approx(levels)


def test_a_new_baseline_that_was_a_candidate_goes_on_at_its_level(tmp_path: Path) -> None:
    store = tmp_path / "history.db"
    hub(store, [0.0, 2.0])
    append(document(1.0, day=2, baseline="r2", candidate="r3"), store)
    assert only(store).levels == pytest.approx([0.0, 2.0, 100 * (1.02 * 1.01 - 1)])


def test_nothing_is_claimed_where_nothing_links_two_builds(tmp_path: Path) -> None:
    store = tmp_path / "history.db"
    chain(store, [1.0, None, 1.0])
    assert [trend.levels for trend in read_trend(store)] == [
        (pytest.approx(1.0), None),
        (pytest.approx(1.0),),
    ]


def test_other_codecs_presets_clips_and_arguments_are_other_trends(tmp_path: Path) -> None:
    store = tmp_path / "history.db"
    append(document(0.0), store)
    append(document(0.0, codec="av1"), store)
    append(document(0.0, preset="slow"), store)
    append(document(0.0, points=["crf 22"]), store)
    fewer = document(0.0)
    fewer["clips"] = fewer["clips"][:1]
    append(fewer, store)
    tuned = document(0.0)
    tuned["baseline"] = {**tuned["baseline"], "args": ["--aq-mode", "2"]}
    append(tuned, store)
    assert len(read_trend(store)) == 6
    assert len(read_trend(store, "av1")) == 1
    assert len(read_trend(store, preset="slow")) == 1


@settings(max_examples=20)
@given(st.lists(st.floats(-50, 100), min_size=1, max_size=5))
def test_there_and_back_again_is_where_one_was(
    tmp_path_factory: pytest.TempPathFactory, steps: list[float]
) -> None:
    store = tmp_path_factory.mktemp("store") / "history.db"
    chain(store, steps)
    back = [100 * (1 / (1 + step / 100) - 1) for step in reversed(steps)]
    for day, value in enumerate(back):
        builds: dict[str, Any] = {
            "baseline": f"r{len(steps) - day}",
            "candidate": f"r{len(steps) - day}b",
        }
        if day:
            builds["baseline"] = f"r{len(steps) - day + 1}b"
        append(document(value, day=100 + day, **builds), store)
    assert only(store).levels[-1] == pytest.approx(0.0, abs=1e-6)


# changes


def noisy(seed: int, count: int = 20) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.random.default_rng(seed).normal(size=count)


def test_pure_noise_has_no_change_more_often_than_it_says() -> None:
    false = sum(change_point(noisy(seed).tolist()) is not None for seed in range(200))
    heavy = sum(
        change_point(np.random.default_rng(seed).standard_t(2, size=20).tolist()) is not None
        for seed in range(100)
    )
    # 1 % is promised: more than 7 of 200 would be a chance of 1 in 1000
    assert false <= 7
    assert heavy <= 5


@pytest.mark.parametrize(("at", "least"), [(10, 34), (5, 31)])
def test_a_step_of_three_sigma_in_twenty_is_found_where_it_is(at: int, least: int) -> None:
    found = 0
    for seed in range(40):
        values = noisy(seed)
        values[at:] += 3
        change = change_point(values.tolist())
        found += change is not None and abs(change.index - at) <= 1 and 1.5 < change.step < 4.5
    assert found >= least


def test_strays_neither_hide_a_change_nor_make_one() -> None:
    found, false = 0, 0
    for seed in range(40):
        where = np.random.default_rng(1000 + seed).choice(20, 2, replace=False)
        values = noisy(seed)
        values[where] += 15
        false += change_point(values.tolist()) is not None
        values[10:] += 3
        change = change_point(values.tolist())
        found += change is not None and abs(change.index - 10) <= 1
    assert found >= 30
    assert false <= 3


def test_a_build_that_repeats_itself_has_a_change_at_the_first_row_that_differs() -> None:
    change = change_point([0.0] * 15 + [0.25] * 5)
    assert change is not None
    assert (change.index, change.step) == (15, 0.25)
    assert change.p_value < 0.01
    assert change_point([0.25] * 20) is None
    assert change_point([1e9] * 20) is None


def test_a_step_within_the_noise_floor_is_not_reported() -> None:
    values = [0.0, 0.01] * 10 + [0.2, 0.21] * 10
    assert change_point(values) is not None
    assert change_point(values, noise=0.3) is None


@pytest.mark.parametrize("count", range(9))
def test_few_values_tell_nothing(count: int) -> None:
    assert change_point([float(n > count / 2) for n in range(count)]) is None


def test_several_changes_are_found_in_order() -> None:
    up_down = noisy(1, 60)
    up_down[20:40] += 4
    assert [c.index for c in change_points(up_down.tolist())] == pytest.approx([20, 40], abs=1)
    stairs = noisy(2, 60)
    stairs[20:] += 4
    stairs[40:] += 4
    found = change_points(stairs.tolist())
    assert [c.index for c in found] == pytest.approx([20, 40], abs=1)
    assert [c.step for c in found] == pytest.approx([4, 4], abs=1)


def test_the_same_seed_gives_the_same_answer_whatever_the_unit() -> None:
    values = noisy(3)
    values[12:] += 2.5
    one = change_point(values.tolist(), seed=7)
    assert one == change_point(values.tolist(), seed=7)
    other = change_point((100 + 1000 * values).tolist(), seed=7)
    assert one is not None and other is not None
    assert (one.index, one.p_value) == (other.index, other.p_value)


def test_of_a_very_long_series_the_newest_part_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(changepoint, "LARGEST", 20)
    change = change_point([0.0] * 100 + [5.0] * 50 + [0.0] * 10 + [1.0] * 10)
    assert change is not None
    assert (change.index, change.step) == (160, 1.0)


def test_a_change_too_small_for_any_row_is_found_in_the_series(tmp_path: Path) -> None:
    values = 0.1 * noisy(6, 24)
    values[12:] += 0.3
    assert max(values) < 0.5  # no row is a regression by itself
    hub(tmp_path / "history.db", values.tolist(), noise=0.1)
    (change,) = only(tmp_path / "history.db").changes
    assert change.row in (11, 12, 13)
    assert change.p_value is not None and change.p_value <= 0.01
    assert change.step == pytest.approx(0.3, abs=0.1)


def test_in_a_chain_the_row_that_tells_is_the_change(tmp_path: Path) -> None:
    chain(tmp_path / "history.db", [0.0] * 6 + [2.0] + [0.0] * 6 + [-1.0, 0.0])
    trend = only(tmp_path / "history.db")
    assert [(c.row, c.step, c.p_value) for c in trend.changes] == [
        (6, 2.0, None),
        (13, -1.0, None),
    ]
    assert trend.levels[-1] == pytest.approx(100 * (1.02 * 0.99 - 1))


def test_noise_along_a_chain_makes_no_change(tmp_path: Path) -> None:
    chain(tmp_path / "history.db", (0.1 * noisy(5, 40)).tolist())
    assert only(tmp_path / "history.db").changes == ()


def test_a_change_before_the_first_row_is_told_by_that_row(tmp_path: Path) -> None:
    hub(tmp_path / "history.db", [3.0] * 15)
    assert [c.row for c in only(tmp_path / "history.db").changes] == [0]


# what is shown


def test_the_table_keeps_to_80_columns_and_names_the_build(tmp_path: Path) -> None:
    store = tmp_path / "history.db"
    hub(store, [*([-88.88] * 15), *([123.45] * 15)], encoder="a-very-long-name" * 4)
    text = trend_text(only(store))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "(10 older comparisons not shown)" in text
    assert "* 2026-01-16: worse by 212.33 % at r16 " in text.replace("\n", " ")
    assert "after r15 " in text.replace("\n", " ")
    assert re.search(r"2026-01-30 .* regression$", text, re.MULTILINE)


def test_lines_and_plots_are_given_for_every_trend(tmp_path: Path) -> None:
    store, lines = tmp_path / "history.db", list[str]()
    hub(store, [*([0.0] * 10), None, *([2.0] * 10)], noise=0.1)
    append(document(0.0, codec="av1", encoder="svt-av1"), store)
    for name, magic in (
        ("trend.png", b"\x89PNG"),
        ("trend.svg", b"<svg"),
        ("trend.html", b"<!DOCTYPE html>"),
    ):
        shown = show_trend(store, tmp_path / name, say=lines.append)
        assert (tmp_path / name).read_bytes().startswith(magic)
    assert [trend.codec for trend in shown] == ["av1", "h264"]
    assert "".join(lines).count("* 2026-01-12: worse by 2.00 %") == 3
    page = (tmp_path / "trend.html").read_text()
    assert page.count("<svg") == 2
    assert "* 2026-01-12: worse by 2.00 %" in page
    drawing = (tmp_path / "trend.svg").read_text()
    (change,) = shown[1].changes
    assert f"+2.00 %: r12 {shown[1].rows[change.row].candidate.sha256[:7]}" in drawing
    assert len(trend_png(shown)) > 10_000


def test_a_plot_of_another_kind_is_refused(tmp_path: Path) -> None:
    store = tmp_path / "history.db"
    hub(store, [0.0])
    with pytest.raises(InputError, match=r"\.png, \.svg, \.html"):
        show_trend(store, tmp_path / "trend.gif")
    with pytest.raises(InputError, match="could not write"):
        show_trend(store, tmp_path / "none" / "trend.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["history.db"]


def test_trends_are_told_as_json(tmp_path: Path) -> None:
    hub(tmp_path / "history.db", [0.0, None])
    found = json.loads(json.dumps(only(tmp_path / "history.db").to_json(), allow_nan=False))
    assert found["rows"][0]["when"] == "2026-01-01T00:00:00+00:00"
    assert found["rows"][0]["baseline"]["args"] == []
    assert found["levels"] == [0.0, None]


def test_an_empty_history_says_so(tmp_path: Path) -> None:
    store, lines = tmp_path / "history.db", list[str]()
    store.touch()
    assert show_trend(store, say=lines.append) == []
    assert "nothing in the history" in lines[0]
    with pytest.raises(InputError, match="no history"):
        show_trend(tmp_path / "other.db")


def test_documents_are_not_changed_by_being_kept(tmp_path: Path) -> None:
    given_document = document(1.0)
    before = copy.deepcopy(given_document)
    append(given_document, tmp_path / "history.db")
    assert given_document == before
