"""The comparison of searches, on oracles whose curves are known in closed form."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import astuple, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench import rivals, search
from bench.grid import COLUMNS, reusable
from bench.oracle import FIGURES, METRICS, SAMPLED, Encoded, Oracle, Tally, read_oracle
from tests.support.titles import CRF, SIZES, Title, random_title
from vqaloop.encoding.registry import default_encoder
from vqaloop.search.space import TrialPoint

GRID = [(w, h, CRF.snap(k)) for w, h in SIZES[:4] for k in np.linspace(*CRF.search, 12)]


def encoded(title: Title, point: TrialPoint) -> Encoded:
    """The student is VMAF bent a little, so that the two agree on the order and on little else."""
    found = title.measure(point)
    student = 100 * (found.score / 100) ** (0.9 + 0.1 * point[0] / SIZES[0][0])
    work = point[0] * point[1] / 1e6
    figures = found.bitrate_kbps, found.score, found.score / 2, student
    return Encoded(*point, *figures, work, 1, 0.5, found.score * 0.99, 0.25)


@cache
def oracle(seed: int) -> Oracle:
    title = random_title(seed)
    return Oracle(f"title{seed}", "h264", [encoded(title, point) for point in GRID], CRF)


@cache
def ladder(method: str, seed: int, metric: str) -> rivals.Result:
    return search.METHODS[method](oracle(seed), metric, search.RULES)


def rows(oracle: Oracle, clip: str) -> pd.DataFrame:
    head = [clip, oracle.fps, oracle.frames, "h264", "libx264"]
    figures = [
        dict(zip(("width", "height", "knob", *FIGURES), astuple(e), strict=True))
        for e in oracle.known.values()
    ]
    named = dict(zip(COLUMNS, head, strict=False))
    return pd.DataFrame([named | row for row in figures])[list(COLUMNS)]


def test_the_oracle_is_the_grid_where_it_has_a_point_and_near_the_truth_between() -> None:
    title, made = random_title(3), oracle(3)
    assert [made.at(*point) for point in GRID] == [encoded(title, point) for point in GRID]
    for size in made.sizes:
        knobs = np.arange(CRF.search[0], CRF.search[1], 0.25).tolist()
        curve = made.curve(*size, knobs)
        assert all(a.kbps > b.kbps and a.vmaf > b.vmaf for a, b in itertools.pairwise(curve))
        for found, knob in zip(curve, knobs, strict=True):
            true = encoded(title, (*size, knob))
            assert found.kbps == pytest.approx(true.kbps, rel=0.003)
            assert found.vmaf == pytest.approx(true.vmaf, abs=0.15)


@pytest.mark.parametrize("name", search.METHODS)
def test_no_method_beats_the_hull(name: str) -> None:
    for seed, metric in enumerate(METRICS):
        made = oracle(seed)
        found = ladder(name, seed, metric)
        assert len(found.rungs) >= 3
        assert [e.kbps for e in found.rungs] == sorted(e.kbps for e in found.rungs)
        for judge in METRICS:
            for rung in found.rungs:
                assert rung.kbps >= made.hull_kbps(judge, rung.score(judge)) * (1 - 1e-3)
        row = search.figures(made, metric, found)
        assert row[f"excess_{metric}"] > -0.01
        assert row[f"loss_{metric}"] > -0.01
        # a curve drawn through few points of the hull bulges beyond it
        assert row[f"bd_{metric}"] > -4


def test_the_exhaustive_search_lies_on_the_hull_and_a_table_of_sizes_costs_bits() -> None:
    for seed in range(3):
        made = oracle(seed)
        excess = {}
        for method in (rivals.exhaustive, rivals.bisection_of_all, rivals.bisection_by_table):
            found = method(made, "vmaf", search.RULES)
            excess[method] = search.figures(made, "vmaf", found)["excess_vmaf"]
        assert abs(excess[rivals.exhaustive]) < 0.01
        assert excess[rivals.bisection_by_table] > excess[rivals.bisection_of_all]


def bisections() -> Iterator[tuple[Tally, float, Encoded | None]]:
    for seed in range(12):
        made = oracle(seed)
        for size in made.sizes[:2]:
            for target in rivals.TARGETS:
                tally = Tally(made, "vmaf")
                yield tally, target, rivals.bisect(tally, size, target)


def test_bisection_meets_its_target_in_four_or_five_runs() -> None:
    knobs = rivals.steps(CRF)
    runs = []
    for tally, target, found in bisections():
        size = next(iter(tally.searched))[:2]
        if found is None:
            assert tally.oracle.at(*size, knobs[0]).vmaf < target
            continue
        assert found.vmaf >= target
        tolerance = max(0.1, 0.1 * CRF.step * 2 ** (len(tally.searched) - 1))
        if found.knob == knobs[-1]:
            continue
        runs.append(len(tally.searched))
        if found.vmaf >= target + tolerance:
            next_worse = knobs[knobs.index(found.knob) + 1]
            assert tally.oracle.at(*found.point[:2], next_worse).vmaf < target
    assert len(runs) > 80
    assert 3.5 < np.mean(runs) < 5.5
    assert max(runs) <= 10


def test_knobs_run_from_best_to_worst_whichever_way_the_encoder_counts() -> None:
    knobs = rivals.steps(CRF)
    assert (knobs[0], knobs[-1], len(knobs)) == (*CRF.search, 113)
    upward = replace(CRF, lower_is_better=False)
    assert rivals.steps(upward) == knobs[::-1]


def test_the_fixed_ladder_has_the_rates_of_its_table() -> None:
    made = oracle(5)
    found = rivals.fixed_ladder(made, "vmaf", search.RULES)
    assert not found.searched
    assert set(found.finals) == set(found.rungs)
    # a source of 1080p takes the table as it is
    reached = 0
    for height, kbps in rivals.APPLE["h264"]:
        size = rivals.nearest_size(made, height / 1080)
        low, high = (made.at(*size, knob).kbps for knob in CRF.search[::-1])
        if low <= kbps <= high:
            assert any(
                e.point[:2] == size and math.isclose(e.kbps, kbps, rel_tol=1e-4)
                for e in found.rungs
            )
            reached += 1
        else:
            end = rivals.at_rate(made, size, kbps)
            assert end in found.rungs and end.knob in CRF.search
    assert reached >= 4


def test_rates_of_the_fixed_ladder_fall_with_the_pixels_of_the_source() -> None:
    made = oracle(5)
    quarter = [
        replace(e, width=e.width // 2, height=e.height // 2, kbps=e.kbps / 4)
        for e in made.known.values()
    ]
    small = Oracle("small", "h264", quarter, CRF)
    for a, b in zip(
        rivals.fixed_ladder(made, "vmaf", search.RULES).rungs,
        rivals.fixed_ladder(small, "vmaf", search.RULES).rungs,
        strict=True,
    ):
        assert (b.width, b.height) == (a.width // 2, a.height // 2)
        assert b.kbps == pytest.approx(a.kbps / 4, rel=1e-3)


def test_encodes_are_counted() -> None:
    made = oracle(0)
    found = {name: ladder(name, 0, "vmaf") for name in search.METHODS}
    assert len(found["viser 21"].encodes) == 21
    assert len(found["AOM 24"].searched) == 24
    assert 24 < len(found["AOM 24"].encodes) <= 24 + len(found["AOM 24"].rungs)
    assert len(found["exhaustive"].encodes) == 4 * 113
    for result in found.values():
        points = [e.point for e in result.encodes]
        assert len(points) == len(set(points))
        assert {e.point for e in result.rungs} <= set(points)
    row = search.figures(made, "student", found["AOM 24"])
    encodes = found["AOM 24"].encodes
    assert row["encodes_per_rung"] == len(encodes) / row["rungs"]
    assert row["megapixel_frames"] == pytest.approx(40 * sum(e.encode_s for e in encodes))
    # an encode for delivery is not scored; the student takes half a second
    assert row["cpu_s"] == pytest.approx(sum(e.encode_s for e in encodes) + 24 * 0.5)


def test_an_encode_made_before_costs_nothing() -> None:
    tally = Tally(oracle(0), "student")
    first = tally.measure(GRID[5])
    assert tally.measure(GRID[5]) == first
    assert len(tally.searched) == 1
    assert first.score == tally.oracle.at(*GRID[5]).student


def test_rungs_that_do_not_rise_by_the_other_metric_are_dropped_and_counted() -> None:
    made = oracle(2)
    rungs = [made.at(*SIZES[0], knob) for knob in (42, 36, 30, 24, 18)]
    rungs[2] = replace(rungs[2], student=rungs[1].student - 5)
    row = search.figures(made, "vmaf", rivals.delivered(rungs))
    assert (row["dropped_vmaf"], row["dropped_student"]) == (0, 1)
    assert all(math.isfinite(row[f"{kind}_{m}"]) for kind in ("bd", "loss") for m in METRICS)
    none = search.figures(made, "vmaf", rivals.delivered([]))
    assert none["rungs"] == 0 and math.isnan(none["loss_vmaf"])


def test_a_grid_that_is_not_whole_is_refused() -> None:
    spec = default_encoder("h264")
    whole = rows(oracle(0), "clip")
    assert read_oracle(pd.concat([whole, whole]), spec).known == oracle(0).known
    for part in (whole[whole.knob != 44], whole[whole.width != 640]):
        with pytest.raises(ValueError, match="knobs so far"):
            read_oracle(part, spec)


def test_the_command_writes_rows_means_and_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("AOM 24", "Apple fixed", "exhaustive")
    monkeypatch.setattr(search, "METHODS", {name: search.METHODS[name] for name in few})
    grid, out = tmp_path / "grid.csv", {n: tmp_path / n for n in ("a.csv", "a.md", "a.png")}
    part = rows(oracle(1), "started").iloc[:20]
    pd.concat([rows(oracle(0), "one"), part]).to_csv(grid, index=False)
    options = [f"--{k}={v}" for k, v in zip(("csv", "table", "plot"), out.values(), strict=True)]
    assert search.main([f"--grid={grid}", *options]) == 0
    table = pd.read_csv(out["a.csv"])
    assert list(table.metric.unique()) == [*METRICS, SAMPLED]
    assert len(table) == len(few) * 3
    assert set(table["clip"]) == {"one"}
    assert "started h264 is left out" in capsys.readouterr().err
    assert "| AOM 24 | 1 |" in out["a.md"].read_text()
    assert out["a.png"].read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="no clip two"):
        search.main([f"--grid={grid}", "--clips=two"])


def test_loss_is_the_rate_that_rungs_take_beyond_the_hull() -> None:
    made = oracle(0)
    on_hull = made.hull("vmaf")[10:-10:40]
    rungs = [made.at(p.width, p.height, p.knob) for p in on_hull]
    for factor in (1.0, 1.1):
        dearer = [replace(e, kbps=e.kbps * factor) for e in rungs]
        row = search.figures(made, "vmaf", rivals.delivered(dearer))
        assert row["loss_vmaf"] == pytest.approx(100 * (factor - 1), abs=1e-6)
        assert row["excess_vmaf"] == pytest.approx(100 * (factor - 1), abs=1e-6)


def test_a_grid_without_sampled_vmaf_is_read_and_not_steered_by_it() -> None:
    spec = default_encoder("h264")
    older = rows(oracle(0), "clip").drop(columns=["vmaf_sampled", "vmaf_sampled_s"])
    found = read_oracle(older, spec)
    assert found.steers == METRICS and oracle(0).steers == (*METRICS, SAMPLED)
    size = found.sizes[0]
    one, other = found.at(*size, 30.3), oracle(0).at(*size, 30.3)
    assert astuple(one)[:-2] == astuple(other)[:-2]
    assert math.isnan(one.vmaf_sampled) and other.vmaf_sampled < other.vmaf


def test_what_was_measured_over_all_frames_is_reused_at_the_same_bitrate() -> None:
    known = rows(oracle(0), "clip")
    first = known.iloc[0]
    found = reusable(known, "clip", "h264")
    key = int(first.width), int(first.height), float(first.knob)
    assert found[(*key, round(first.kbps, 4))] == [first.vmaf, first.psnr_y, first.vmaf_s]
    assert (*key, round(first.kbps + 1, 4)) not in found
    assert reusable(known, "other", "h264") == {} == reusable(None, "clip", "h264")
