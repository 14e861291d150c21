"""Fits, hulls and the choice of rungs: hand numbers, and rules that hold for any points."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqaloop.records import RDPoint
from vqaloop.search.curve_fit import densify, fit_curve
from vqaloop.search.hull import convex_hull, front, rising_front
from vqaloop.search.rungs import (
    Rules,
    choose_rungs,
    keep_rules,
    up_to_ceiling,
    with_least_top,
    with_required_sizes,
    with_smaller_bottom,
)


def point(
    kbps: float, score: float, knob: float = 0.0, size: tuple[int, int] = (64, 36)
) -> RDPoint:
    return RDPoint(*size, knob=knob, bitrate_kbps=kbps, score=score)


def fitted(kbps: float, score: float) -> RDPoint:
    return replace(point(kbps, score), measured=False)


def pairs(points: Sequence[RDPoint]) -> list[tuple[float, float]]:
    return [(p.bitrate_kbps, p.score) for p in points]


# --- fits ---------------------------------------------------------------------------------------


def test_fit_passes_through_what_was_measured() -> None:
    points = [point(4000, 95, 20), point(1000, 80, 30), point(250, 40, 40)]
    curve = fit_curve(points)
    for p in points:
        at = curve(p.knob)
        assert at.bitrate_kbps == pytest.approx(p.bitrate_kbps)
        assert at.score == pytest.approx(p.score)
        assert not at.measured and (at.width, at.height) == (64, 36)


def test_two_points_give_a_straight_line_in_log_rate_and_logit() -> None:
    curve = fit_curve([point(4000, 90, 20), point(1000, 10, 40)])
    middle = curve(30)
    assert middle.bitrate_kbps == pytest.approx(2000)
    assert middle.score == pytest.approx(50)
    # logit(0.9) = odds of 9 to 1 and of 1 to 9: a factor of 9 every ten knobs
    beyond = curve(10)
    assert beyond.bitrate_kbps == pytest.approx(8000)
    assert beyond.score == pytest.approx(100 * 81 / 82)


def test_fit_keeps_under_the_top_of_its_metric() -> None:
    curve = fit_curve([point(4000, 49, 20), point(1000, 30, 40)], 50.0)
    assert 49 < curve(0).score < 50


def test_fit_of_a_knob_that_rises_with_quality() -> None:
    curve = fit_curve([point(250, 40, 2), point(1000, 80, 4)])
    assert curve(3).bitrate_kbps == pytest.approx(500)
    assert curve(3).score > 40


def test_points_out_of_order_are_pooled() -> None:
    curve = fit_curve(
        [point(4000, 90, 20), point(900, 70, 30), point(1000, 72, 31), point(250, 30, 40)]
    )
    assert curve(30).bitrate_kbps == pytest.approx(curve(31).bitrate_kbps)
    assert curve(30).bitrate_kbps == pytest.approx(math.sqrt(900 * 1000))
    assert 70 < curve(30).score < 72


curves = st.lists(
    st.tuples(st.integers(0, 50), st.floats(20, 50_000), st.floats(0, 100, allow_subnormal=False)),
    min_size=2,
    max_size=7,
    unique_by=lambda row: row[0],
).map(lambda rows: [point(kbps, score, knob) for knob, kbps, score in rows])


@settings(max_examples=150)
@given(curves, st.lists(st.floats(-10, 60), min_size=2, max_size=12))
def test_fits_are_monotone_and_finite_for_any_points(
    points: list[RDPoint], knobs: list[float]
) -> None:
    curve = fit_curve(points)
    # beyond its ends a curve may leave the range of floats; it is used within its reach only
    low, high = min(p.knob for p in points), max(p.knob for p in points)
    knobs = sorted(low + (high - low) * (knob + 10) / 70 for knob in knobs)
    found = [curve(knob) for knob in knobs]
    rates, scores = [p.bitrate_kbps for p in found], [p.score for p in found]
    assert all(math.isfinite(v) and v > 0 for v in rates)
    assert all(0 <= v <= 100 for v in scores)
    ordered = sorted(points, key=lambda p: p.knob)
    rising = ordered[0].bitrate_kbps < ordered[-1].bitrate_kbps
    for values in (rates, scores):
        for a, b in itertools.pairwise(values if rising else values[::-1]):
            assert b >= a - 1e-6 * max(1, abs(a))


def test_densify_keeps_measured_points_and_fills_the_reach() -> None:
    large = [point(4000, 95, 20), point(1000, 80, 30)]
    small = [point(900, 70, 20, (32, 18))]
    dense = densify([*large, *small], range(0, 51))
    assert [p for p in dense if p.measured] == [*large, *small]
    assert {(p.width, p.height) for p in dense if not p.measured} == {(64, 36)}
    knobs = sorted(p.knob for p in dense if p.width == 64)
    assert knobs == list(range(12, 37))  # 0.8 of the span towards better, 0.6 towards worse


def test_densify_believes_more_towards_worse_whatever_the_direction() -> None:
    rising = [point(1000, 80, 30), point(4000, 95, 40)]
    knobs = [p.knob for p in densify(rising, range(0, 61))]
    assert (min(knobs), max(knobs)) == (24, 48)


def test_densify_takes_one_of_two_points_with_the_same_knob() -> None:
    points = [point(4000, 95, 20), point(4010, 95.1, 20), point(1000, 80, 30)]
    assert len([p for p in densify(points, range(0, 51)) if p.measured]) == 2
    assert densify([], [1, 2]) == []


# --- hull and front -----------------------------------------------------------------------------


def test_hull_by_hand() -> None:
    points = [point(100, 20), point(200, 60), point(300, 70), point(400, 90), point(500, 80)]
    # from (200, 60) to (400, 90) the slope is 0.15 and (300, 70) lies under the line at 75
    assert pairs(convex_hull(points)) == [(100, 20), (200, 60), (400, 90)]
    assert pairs(front(points)) == [(100, 20), (200, 60), (300, 70), (400, 90)]


def test_points_on_a_line_and_duplicates() -> None:
    points = [point(100, 10), point(200, 20), point(300, 30), point(300, 30), point(300, 25)]
    assert pairs(convex_hull(points)) == [(100, 10), (300, 30)]
    assert pairs(front(points)) == [(100, 10), (200, 20), (300, 30)]


@pytest.mark.parametrize("points", [[], [point(100, 50)], [point(100, 50)] * 3])
def test_none_and_one(points: list[RDPoint]) -> None:
    assert convex_hull(points) == front(points) == points[:1]


clouds = st.lists(
    st.tuples(st.floats(10, 50_000), st.floats(0, 100, allow_subnormal=False), st.booleans()),
    max_size=30,
).map(lambda rows: [replace(point(k, s), measured=m) for k, s, m in rows])


@settings(max_examples=150)
@given(clouds)
def test_hull_is_increasing_and_concave_and_above_all_points(points: list[RDPoint]) -> None:
    hull = convex_hull(points)
    for a, b in itertools.pairwise(hull):
        assert a.bitrate_kbps < b.bitrate_kbps and a.score < b.score
    slopes = [
        (b.score - a.score) / (b.bitrate_kbps - a.bitrate_kbps)
        for a, b in itertools.pairwise(hull)
    ]
    assert all(b <= a for a, b in itertools.pairwise(slopes))
    for p in points:
        assert any(h.bitrate_kbps <= p.bitrate_kbps for h in hull)
        for (a, b), slope in zip(itertools.pairwise(hull), slopes, strict=True):
            if a.bitrate_kbps <= p.bitrate_kbps <= b.bitrate_kbps:
                line = a.score + slope * (p.bitrate_kbps - a.bitrate_kbps)
                assert p.score <= line + 1e-6
        if p.bitrate_kbps >= hull[-1].bitrate_kbps:
            assert p.score <= hull[-1].score


@settings(max_examples=100)
@given(clouds, st.randoms())
def test_order_of_the_points_does_not_matter(points: list[RDPoint], random: Random) -> None:
    mixed = points[:]
    random.shuffle(mixed)
    assert pairs(convex_hull(points)) == pairs(convex_hull(mixed))
    assert pairs(front(points)) == pairs(front(mixed))


# --- rungs --------------------------------------------------------------------------------------

LINE = [fitted(100 * 2 ** (i / 10), 30 + i) for i in range(0, 71)]
"""Ten points of score for each doubling, from 100 kb/s at 30 to 12,800 at 100."""


def test_rungs_leave_the_larger_of_both_steps() -> None:
    by_rate = choose_rungs(LINE, Rules(min_step=1, min_ratio=2, ceiling=90, slack=1))
    assert [p.score for p in by_rate] == [30, 40, 50, 60, 70, 80, 90]
    by_score = choose_rungs(LINE, Rules(min_step=20, min_ratio=1.1, ceiling=90, slack=1))
    assert [p.score for p in by_score] == [30, 50, 70, 90]


def test_rungs_stay_between_the_bounds() -> None:
    rules = Rules(min_step=1, min_ratio=2, floor=45, min_kbps=200, max_kbps=3300, slack=1)
    found = choose_rungs(LINE, rules)
    assert [p.score for p in found] == [50, 60, 70, 80]
    assert choose_rungs(LINE, Rules(min_step=1, min_kbps=20_000)) == []
    assert choose_rungs(LINE, Rules(min_step=1, floor=101)) == []
    assert choose_rungs([], Rules(min_step=1)) == []


def test_one_point_is_one_rung() -> None:
    assert choose_rungs(LINE[:1], Rules(min_step=1)) == LINE[:1]


def test_count_spreads_the_rungs() -> None:
    found = choose_rungs(LINE, Rules(min_step=1, count=4, ceiling=90))
    assert len(found) == 4 and found[-1].score == 90
    ratios = [b.bitrate_kbps / a.bitrate_kbps for a, b in itertools.pairwise(found)]
    assert max(ratios) / min(ratios) < 1.01
    assert found[0].score <= 34


def test_top_is_where_more_bits_stop_paying() -> None:
    # beyond 80, one more point of score for each doubling
    flat = [fitted(3200 * 2**i, 80 + i) for i in range(1, 5)]
    line = [p for p in LINE if p.score <= 80]
    assert choose_rungs(line + flat, Rules(min_step=4))[-1].score == 80
    assert choose_rungs(line + flat, Rules(min_step=1))[-1].score == 84


@given(st.floats(35, 90))
def test_the_top_is_the_first_to_reach_the_ceiling(ceiling: float) -> None:
    """Also where a curve bends so that a hull would leap over it."""
    curve = [fitted(100 * 1.02**n, 30 + 65 * (n / 150) ** 2) for n in range(150)]
    rules = Rules(min_step=4, ceiling=ceiling)
    seen = up_to_ceiling(curve, rules)
    assert seen[-1].score >= ceiling > seen[-2].score
    assert choose_rungs(convex_hull(seen), rules)[-1] == seen[-1]


@pytest.mark.parametrize(
    ("beside", "stands_in"), [(0.9, True), (-0.9, True), (1.1, False), (-1.1, False)]
)
def test_a_quarter_of_a_step_from_the_ceiling_a_measured_point_stands_in(
    beside: float, stands_in: bool
) -> None:
    curve = [fitted(100 * 2 ** (n / 500), 30 + n / 50) for n in range(3000)]
    measured = point(100 * 2 ** ((50 + beside) / 10), 80 + beside)
    best = convex_hull([*curve, measured])
    top = choose_rungs(best, Rules(min_step=4, ceiling=80), [measured])[-1]
    assert (top == measured) == stands_in and abs(top.score - 80) < 1


def test_a_flat_stretch_below_the_top_does_not_end_the_ladder() -> None:
    line = [p for p in LINE if p.score <= 50 or p.score >= 80]
    line = [replace(p, score=p.score - 25) if p.score >= 80 else p for p in line]
    assert choose_rungs(line, Rules(min_step=4))[-1].score == 75


def test_measured_points_stand_in_for_fitted_neighbours() -> None:
    measured = replace(LINE[60], score=LINE[60].score - 0.15, measured=True)
    rules = Rules(min_step=4, ceiling=90)
    assert measured in choose_rungs(LINE, rules, [measured])
    # further below the hull than a twentieth of a step
    far_below = replace(measured, score=measured.score - 0.1)
    assert far_below not in choose_rungs(LINE, rules, [far_below])
    out_of_bounds = replace(rules, max_kbps=measured.bitrate_kbps - 1)
    assert measured not in choose_rungs(LINE, out_of_bounds, [measured])


rule_sets = st.builds(
    Rules,
    min_step=st.floats(0.5, 12),
    min_ratio=st.floats(1.05, 3),
    floor=st.floats(0, 60),
    ceiling=st.floats(61, 110),
    min_kbps=st.floats(0, 500),
    max_kbps=st.floats(501, 60_000),
    count=st.none() | st.integers(1, 8),
    most=st.integers(1, 10),
)


@settings(max_examples=250)
@given(clouds, rule_sets)
def test_chosen_rungs_obey_every_rule(points: list[RDPoint], rules: Rules) -> None:
    measured = [p for p in points if p.measured]
    chosen = choose_rungs(front(points), rules, measured)
    for p in chosen:
        assert p in points
        assert rules.min_kbps <= p.bitrate_kbps <= rules.max_kbps
        assert p.score >= rules.floor
    assert len(chosen) <= (rules.most if rules.count is None else rules.count)
    for a, b in itertools.pairwise(chosen):
        assert b.bitrate_kbps >= a.bitrate_kbps * rules.min_ratio
        assert b.score >= a.score + rules.min_step
    possible = [
        p
        for p in front(points)
        if rules.min_kbps <= p.bitrate_kbps <= rules.max_kbps and p.score >= rules.floor
    ]
    assert bool(chosen) == bool(possible)


@settings(max_examples=150)
@given(clouds, rule_sets)
def test_kept_points_obey_the_steps(points: list[RDPoint], rules: Rules) -> None:
    kept = keep_rules(points, rules)
    inside = [p for p in points if rules.min_kbps <= p.bitrate_kbps <= rules.max_kbps]
    assert bool(kept) == bool(inside) and set(kept) <= set(inside)
    for a, b in itertools.pairwise(kept):
        assert b.bitrate_kbps >= a.bitrate_kbps * rules.min_ratio
        assert b.score >= a.score + rules.min_step
    if inside:
        assert kept[-1].score == max(p.score for p in inside)


# --- resolutions rise with the rate -------------------------------------------------------------


def test_resolution_does_not_hop_where_two_are_as_good() -> None:
    large = [point(rate, 30 * math.log2(rate / 40), rate, (640, 360)) for rate in range(50, 800)]
    # a hair better and worse in turn
    small = [
        replace(p, width=320, height=180, score=p.score + 0.2 * math.sin(p.bitrate_kbps / 20))
        for p in large
    ]
    hopping = [p.height for p in front([*large, *small])]
    assert sorted(hopping) != hopping
    chosen = rising_front([*large, *small])
    assert [p.height for p in chosen] == sorted(p.height for p in chosen)
    assert all(a.score < b.score for a, b in itertools.pairwise(chosen))


def test_few_points_of_a_size_are_not_lost_between_cells() -> None:
    """Rates at which nothing was measured are no reason to leave out what was, beside them."""
    for low in (37.0, 41.3, 43.9):
        points = [
            point(20.2, 36.4, size=(214, 120)), point(low, 68.3, size=(426, 240)),
            point(53.2, 79.1, size=(640, 360)), point(100.2, 90.2, size=(640, 360)),
        ]  # fmt: skip
        assert rising_front(points) == points


def test_a_gap_before_the_next_size_is_no_reason_to_stay_at_a_worse_one() -> None:
    low = [point(65 * 1.1**n, 38 + 2.4 * n, size=(320, 180)) for n in range(15)]
    middle = [point(80 * 1.1**n, 46 + 2.7 * n, size=(426, 240)) for n in range(12)]
    high = [point(277 * 1.1**n, 79 + 1.5 * n, size=(640, 360)) for n in range(10)]
    chosen = rising_front([*low, *middle, *high])
    assert [p for p in chosen if p.bitrate_kbps >= 80] == [*middle, *high]


def test_a_real_crossing_is_found() -> None:
    small = [point(r, 60 + 10 * math.log2(r / 100), r, (320, 180)) for r in range(25, 1600, 5)]
    large = [point(r, 60 + 20 * math.log2(r / 100), r, (640, 360)) for r in range(50, 3200, 5)]
    for p in rising_front([*small, *large]):
        assert p.height == (
            180 if p.bitrate_kbps < 95 else 360 if p.bitrate_kbps > 105 else p.height
        )


sized_clouds = st.lists(
    st.tuples(st.floats(10, 50_000), st.floats(0, 100), st.sampled_from([90, 180, 360])),
    max_size=40,
).map(lambda rows: [point(kbps, score, i, (2 * h, h)) for i, (kbps, score, h) in enumerate(rows)])


@settings(max_examples=150)
@given(sized_clouds)
def test_ladders_rise_in_rate_score_and_resolution(points: list[RDPoint]) -> None:
    rules = Rules(min_step=2)
    for rungs in (rising_front(points), choose_rungs(rising_front(points), rules, points)):
        for low, high in itertools.pairwise(rungs):
            assert low.bitrate_kbps < high.bitrate_kbps
            assert low.score < high.score
            assert low.height <= high.height


def test_the_lowest_rung_gives_way_to_a_smaller_size() -> None:
    large = [point(r, 60 + 12 * math.log2(r / 100), r, (640, 360)) for r in range(30, 900, 5)]
    small = [replace(p, width=320, height=180, score=p.score - 2) for p in large]
    rules = Rules(min_step=4, floor=30)
    chosen = choose_rungs(rising_front([*large, *small]), rules)
    assert {p.height for p in chosen} == {360}
    mixed = with_smaller_bottom(chosen, [*large, *small], rules)
    assert [p.height for p in mixed] == [180] + [360] * (len(chosen) - 1)
    assert keep_rules(mixed, rules) == mixed
    assert mixed[0].score == pytest.approx(chosen[0].score - 2, abs=1.5)
    # left alone: where one size is enough, where nothing smaller is any good, where there is none
    assert with_smaller_bottom(chosen, [*large, *small], replace(rules, sizes=1)) == chosen
    poor = [replace(p, score=p.score - 30) for p in small]
    assert with_smaller_bottom(chosen, [*large, *poor], rules) == chosen
    assert with_smaller_bottom(chosen, large, rules) == chosen


def test_a_required_size_takes_the_place_of_the_rung_that_loses_least() -> None:
    rules = Rules(min_step=4, min_ratio=1.4, floor=30)
    rungs = [
        point(100, 40, 40, (320, 180)),
        point(200, 60, 36, (320, 180)),
        point(400, 75, 30, (640, 360)),
        point(900, 90, 22, (640, 360)),
    ]
    middle = [point(210, 57, 33, (480, 270)), point(390, 70, 28, (480, 270))]
    asked = replace(rules, required=((480, 270),))
    mixed = with_required_sizes(rungs, [*rungs, *middle], asked)
    assert mixed == [rungs[0], middle[0], *rungs[2:]]
    # one that is there, or that no point of keeps the rules, changes nothing
    assert with_required_sizes(mixed, [*rungs, *middle], asked) == mixed
    assert with_required_sizes(rungs, rungs, asked) == rungs
    assert with_required_sizes(rungs, middle, replace(asked, floor=80)) == rungs
    # of two sizes that are asked for, the one that has a rung already keeps it
    both = replace(rules, required=((640, 360), (480, 270)))
    only = [rungs[1], rungs[2]]
    late = with_required_sizes(only, [*only, *middle], both)
    assert {p.height for p in late} == {270, 360} and rungs[2] in late


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(st.floats(10, 5000), st.floats(0, 100), st.sampled_from([90, 180, 360])),
        max_size=40,
    ),
    st.lists(st.sampled_from([90, 180, 360]), max_size=3, unique=True),
)
def test_required_sizes_break_no_rule(
    rows: list[tuple[float, float, int]], heights: list[int]
) -> None:
    points = [point(kbps, score, i, (2 * h, h)) for i, (kbps, score, h) in enumerate(rows)]
    rules = Rules(min_step=3, floor=10, required=tuple((2 * h, h) for h in heights))
    free = choose_rungs(rising_front(points), rules)
    mixed = with_required_sizes(free, points, rules)
    assert len(mixed) == len(free)
    for low, high in itertools.pairwise(mixed):
        assert high.bitrate_kbps >= low.bitrate_kbps * rules.min_ratio
        assert high.score >= low.score + rules.min_step
        assert low.height <= high.height
    assert all(p.score >= rules.floor for p in mixed)
    gone = {p.height for p in free} - {p.height for p in mixed}
    assert not gone & set(heights)


def test_the_highest_rung_is_as_large_as_it_must_be() -> None:
    rules = Rules(min_step=4, count=3, least_top=1280 * 720)
    points = [
        RDPoint(640, 360, 30, 400, 60),
        RDPoint(640, 360, 26, 800, 75),
        RDPoint(640, 360, 22, 1600, 85),
        RDPoint(1280, 720, 34, 1500, 70),
        RDPoint(1280, 720, 28, 2400, 84),
        RDPoint(1280, 720, 24, 4000, 91),
    ]
    chosen = points[:3]
    # 91 leaves a step to 85, and of three rungs the lowest two stay
    assert with_least_top(chosen, points, rules) == [points[0], points[1], points[5]]
    assert with_least_top(chosen, points, replace(rules, count=4))[:3] == chosen
    # the cheaper top that keeps the most rungs
    assert with_least_top(points[:2], points, replace(rules, count=4))[-1] == points[4]
    # what is large enough stays, and what cannot be had is left
    assert with_least_top(points[3:], points, rules) == points[3:]
    assert with_least_top(chosen, points, replace(rules, least_top=1920 * 1080)) == chosen
