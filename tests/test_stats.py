"""Agreement figures against hand numbers and scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from vqaloop.stats import agreement, within


def test_hand_numbers() -> None:
    # ranks 1 2 3 4 against 1 3 2 4: one swapped pair
    found = agreement(np.array([1.0, 2, 3, 4]), np.array([10.0, 30, 20, 40]))
    assert found["srcc"] == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert found["krcc"] == pytest.approx((5 - 1) / 6)
    assert found["plcc"] == pytest.approx(0.8)
    assert found["rmse"] == pytest.approx(math.sqrt((81 + 784 + 289 + 1296) / 4))


def test_perfect_and_reversed() -> None:
    x = np.array([3.0, 1, 2, 7])
    same = agreement(x, x)
    assert same == {"srcc": 1.0, "krcc": 1.0, "plcc": pytest.approx(1.0), "rmse": 0.0}
    turned = agreement(x, -x)
    assert (turned["srcc"], turned["krcc"]) == (-1.0, -1.0)
    assert turned["plcc"] == pytest.approx(-1)


def test_ties_are_taken_as_scipy_takes_them() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 6, (2, 40)).astype(float)
    found = agreement(scores, labels)
    assert found["srcc"] == pytest.approx(stats.spearmanr(scores, labels).statistic)
    assert found["krcc"] == pytest.approx(stats.kendalltau(scores, labels).statistic)
    assert found["plcc"] == pytest.approx(np.corrcoef(scores, labels)[0, 1])


@pytest.mark.parametrize(
    ("scores", "labels"),
    [([1.0, 1, 1, 1], [1.0, 2, 3, 4]), ([1.0, 2, 3, 4], [5.0, 5, 5, 5]), ([1.0, 2], [2.0, 1])],
)
def test_no_correlation_without_spread(scores: list[float], labels: list[float]) -> None:
    found = agreement(np.array(scores), np.array(labels))
    assert all(math.isnan(found[key]) for key in ("srcc", "krcc", "plcc"))
    assert math.isfinite(found["rmse"])


def test_within_is_the_mean_over_titles() -> None:
    scores = np.array([1.0, 2, 3, 4, 4, 3, 2, 1])
    labels = np.array([1.0, 2, 3, 4, 1, 2, 3, 4])
    assert within(scores, labels, ["a"] * 4 + ["b"] * 4) == pytest.approx(0.0)
    assert within(scores[:4], labels[:4], ["a"] * 4) == 1.0


def test_within_leaves_out_small_and_constant_titles() -> None:
    scores = np.array([1.0, 2, 3, 4, 9, 8, 7, 5, 5, 5, 5])
    labels = np.array([1.0, 2, 3, 4, 1, 2, 3, 1, 2, 3, 4])
    groups = ["a"] * 4 + ["small"] * 3 + ["constant"] * 4
    assert within(scores, labels, groups) == 1.0
    assert math.isnan(within(scores[4:], labels[4:], groups[4:]))
