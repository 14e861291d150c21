"""Bjontegaard deltas, on curves whose difference is known without them."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqaloop.errors import VqaloopError
from vqaloop.quality.bdrate import Curve, Method, NotComparable, bd_rate, bd_score

METHODS: tuple[Method, ...] = ("pchip", "akima")
CURVE = ((180.0, 31.0), (420.0, 52.5), (1000.0, 74.0), (2600.0, 88.0), (6100.0, 95.5))

steps = st.lists(st.tuples(st.floats(0.05, 2), st.floats(0.5, 20)), min_size=2, max_size=8)


@st.composite
def curves(draw: st.DrawFn) -> Curve:
    """Rising curves that all reach from score 30 to 90, by different ways."""
    taken = np.cumsum([(0.0, 0.0), *draw(steps)], axis=0)
    rates = draw(st.floats(20, 2000)) * np.exp(taken[:, 0])
    return list(zip(rates.tolist(), (30 + 60 * taken[:, 1] / taken[-1, 1]).tolist(), strict=True))


def logistic(rate: float) -> float:
    return 100 / (1 + math.exp(-1.3 * (math.log(rate) - math.log(700))))


def scaled(curve: Curve, factor: float) -> Curve:
    return [(rate * factor, score) for rate, score in curve]


@pytest.mark.parametrize("method", METHODS)
@given(curve=curves(), factor=st.floats(0.1, 10))
def test_rates_times_a_constant_differ_by_that_constant(
    method: Method, curve: Curve, factor: float
) -> None:
    answer = bd_rate(curve, scaled(curve, factor), method=method)
    assert answer == pytest.approx(100 * (factor - 1), rel=1e-9, abs=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_scores_plus_a_constant_differ_by_that_constant(method: Method) -> None:
    better = [(rate, score + 2.5) for rate, score in CURVE]
    assert bd_score(CURVE, better, method=method) == pytest.approx(2.5, abs=1e-9)
    assert bd_score(CURVE, CURVE, method=method) == bd_rate(CURVE, CURVE, method=method) == 0


@pytest.mark.parametrize("method", METHODS)
def test_straight_lines_give_the_mean_of_their_gap(method: Method) -> None:
    # log rate is s / 20 and s / 10, so over scores 20..80 the gap is s / 20, on average 2.5
    slow = [(math.exp(s / 20), s) for s in (20.0, 40.0, 60.0, 80.0)]
    fast = [(math.exp(s / 10), s) for s in (10.0, 30.0, 75.0, 90.0)]
    assert bd_rate(slow, fast, method=method) == pytest.approx(100 * math.expm1(2.5))
    # over log rates 1..4 the scores are 20 x and 10 x, on average 25 apart
    assert bd_score(slow, fast, method=method) == pytest.approx(-25)


@pytest.mark.parametrize("method", METHODS)
@given(anchor=curves(), test=curves())
def test_swapped_curves_give_the_inverse_ratio(method: Method, anchor: Curve, test: Curve) -> None:
    there = 1 + bd_rate(anchor, test, method=method) / 100
    back = 1 + bd_rate(test, anchor, method=method) / 100
    assert math.log(there) == pytest.approx(-math.log(back), rel=1e-9, abs=1e-9)


@given(anchor=curves(), test=curves())
def test_pchip_stays_between_the_extremes_of_the_points(anchor: Curve, test: Curve) -> None:
    # monotone interpolation cannot leave the rates it was given
    ratio = 1 + bd_rate(anchor, test) / 100
    assert test[0][0] / anchor[-1][0] <= ratio * (1 + 1e-9)
    assert ratio <= test[-1][0] / anchor[0][0] * (1 + 1e-9)


@given(curve=curves(), order=st.randoms(use_true_random=False))
def test_the_order_of_points_does_not_matter(curve: Curve, order: random.Random) -> None:
    mixed = list(curve)
    order.shuffle(mixed)
    assert bd_rate(CURVE, mixed, least_overlap=0) == bd_rate(CURVE, curve, least_overlap=0)


def test_on_smooth_curves_the_methods_agree_with_each_other_and_with_the_truth() -> None:
    rates = (150, 300, 600, 1200, 2400, 4800)
    anchor = [(float(r), logistic(r)) for r in rates]
    # the same shape at 0.83 of the rate, measured at other rates
    test = [(0.83 * r * 1.13, logistic(r * 1.13)) for r in rates]
    answers = [bd_rate(anchor, test, method=method) for method in METHODS]
    assert answers[0] == pytest.approx(answers[1], abs=0.3)
    assert answers == pytest.approx([-17, -17], abs=0.4)


@pytest.mark.parametrize(
    ("curve", "says"),
    [
        (CURVE[:2], r"test curve has 2 points; at least 3"),
        ((), r"test curve has 0 points"),
        ((*CURVE, (800.0, 80.0)), r"from \(800 kb/s, score 80\) to \(1000 kb/s, score 74\)"),
        ((*CURVE, (420.0, 60.0)), r"from \(420 kb/s, score 52.5\) to \(420 kb/s, score 60\)"),
        ((*CURVE, (9000.0, 95.5)), r"to \(9000 kb/s, score 95.5\)"),
        ((*CURVE, (0.0, 10.0)), r"holds \(0 kb/s, score 10\)"),
        ((*CURVE, (math.inf, 99.0)), r"holds \(inf kb/s"),
        ((*CURVE, (9000.0, math.nan)), r"holds .* score nan"),
    ],
)
def test_a_curve_that_does_not_rise_is_refused_with_the_points(curve: Curve, says: str) -> None:
    for judge in (bd_rate, bd_score):
        with pytest.raises(NotComparable, match=says):
            judge(CURVE, curve)
        with pytest.raises(NotComparable, match=says.replace("test", "anchor")):
            judge(curve, CURVE)
    assert issubclass(NotComparable, VqaloopError) and NotComparable.exit_code == 2


def test_too_little_overlap_is_refused_with_how_much_there_is() -> None:
    low = [(100.0, 20.0), (200.0, 30.0), (400.0, 40.0)]
    high = [(100.0, 34.0), (200.0, 44.0), (400.0, 64.0)]
    with pytest.raises(NotComparable, match=r"share 30 % .* score span.* 75 %.*from 20 to 40"):
        bd_rate(low, high)
    assert bd_rate(low, high, least_overlap=0.3) < 0
    with pytest.raises(NotComparable, match=r"share 0 % .* bitrate span.*from 1000 kb/s to 4000"):
        bd_score(low, scaled(low, 10))
    # not even when asked for: there is nothing to take the mean of
    apart = [(rate, score + 20) for rate, score in low]
    with pytest.raises(NotComparable, match="share 0 %"):
        bd_rate(low, apart, least_overlap=0)


def test_a_short_curve_inside_a_long_one_overlaps_wholly() -> None:
    inside = [(rate * 1.1, score) for rate, score in CURVE[1:4]]
    assert bd_rate(CURVE, inside) == pytest.approx(10, abs=2)


def test_numbers_beyond_reason_are_refused_too() -> None:
    tiny = [(5e-324, 1.0), (1e-300, 2.0), (1e-299, 3.0)]
    huge = [(1e306, 1.0), (1e307, 2.0), (1e308, 3.0)]
    with pytest.raises(NotComparable, match="too far apart"):
        bd_rate(tiny, huge)
    with pytest.raises(NotComparable, match="cubic"):
        bd_rate(CURVE, CURVE, method="cubic")  # type: ignore[arg-type]
