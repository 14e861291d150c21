"""Agreement figures against hand numbers, scipy, known mappings, and simulated titles."""

import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as reference

from vqaloop.training import correlation
from vqaloop.training.correlation import (
    correlations,
    fit_logistic,
    mean_within,
    paired_differences,
    raw_correlations,
    rmse,
    within_sd,
)


def corpus(rng: np.random.Generator, titles: int = 12, each: int = 15) -> tuple[np.ndarray, ...]:
    """Scores, labels and titles; a title shifts all its scores alike; many ties."""
    labels = rng.uniform(0, 100, titles * each).round()
    names = np.repeat([f"t{i:02}" for i in range(titles)], each)
    shift = np.repeat(rng.normal(0, 12, titles), each)
    return (labels + shift + rng.normal(0, 3, len(labels))).round(), labels, names


def test_hand_numbers() -> None:
    # ranks 1 2 3 4 against 1 3 2 4: one swapped pair
    found = raw_correlations(np.array([1.0, 2, 3, 4]), np.array([10.0, 30, 20, 40]))
    assert found["srcc"] == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert found["krcc"] == pytest.approx((5 - 1) / 6)
    assert found["plcc"] == pytest.approx(0.8)
    assert found["rmse"] == pytest.approx(math.sqrt((81 + 784 + 289 + 1296) / 4))


def test_perfect_and_reversed() -> None:
    x = np.array([3.0, 1, 2, 7])
    assert raw_correlations(x, x) == pytest.approx({"srcc": 1, "krcc": 1, "plcc": 1, "rmse": 0})
    turned = raw_correlations(x, -x)
    assert [turned[key] for key in ("srcc", "krcc", "plcc")] == pytest.approx([-1, -1, -1])


def test_ties_are_taken_as_scipy_takes_them() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 6, (2, 40)).astype(float)
    found = raw_correlations(scores, labels)
    assert found["srcc"] == pytest.approx(reference.spearmanr(scores, labels).statistic)
    assert found["krcc"] == pytest.approx(reference.kendalltau(scores, labels).statistic)
    assert found["plcc"] == pytest.approx(np.corrcoef(scores, labels)[0, 1])


@pytest.mark.parametrize(
    ("scores", "labels"),
    [
        ([1.0, 1, 1, 1], [1.0, 2, 3, 4]),
        ([1.0, 2, 3, 4], [5.0, 5, 5, 5]),
        ([0.1 + 0.2, 0.3, 0.3, 0.3], [1.0, 2, 3, 4]),
        ([1.0, 2], [2.0, 1]),
    ],
)
def test_no_correlation_without_spread(scores: list[float], labels: list[float]) -> None:
    found = raw_correlations(np.array(scores), np.array(labels))
    assert [found[key] for key in ("srcc", "krcc", "plcc")] == [None, None, None]
    assert found["rmse"] is not None


def test_within_is_the_mean_over_titles() -> None:
    scores = np.array([1.0, 2, 3, 4, 4, 3, 2, 1])
    labels = np.array([1.0, 2, 3, 4, 1, 2, 3, 4])
    assert mean_within(scores, labels, ["a"] * 4 + ["b"] * 4) == pytest.approx(0.0)
    assert mean_within(scores[:4], labels[:4], ["a"] * 4, correlation.krcc) == pytest.approx(1.0)


def test_within_leaves_out_small_and_constant_titles() -> None:
    scores = np.array([1.0, 2, 3, 4, 9, 8, 7, 5, 5, 5, 5])
    labels = np.array([1.0, 2, 3, 4, 1, 2, 3, 1, 2, 3, 4])
    groups = ["a"] * 4 + ["small"] * 3 + ["constant"] * 4
    assert mean_within(scores, labels, groups) == pytest.approx(1.0)
    assert mean_within(scores[4:], labels[4:], groups[4:]) is None


def test_noise_inside_a_title_is_free_of_its_offset() -> None:
    labels, titles = np.array([10.0, 20, 30, 40, 50, 60]), ["a", "a", "a", "b", "b", "b"]
    scores = labels + np.array([5.0, 5, 5, -9, -9, -9])
    assert within_sd(scores, labels, titles) == pytest.approx(0)
    scores[:2] += [2, -2]
    # deviations 2, -2, 0 and three of 0
    assert within_sd(scores, labels, titles) == pytest.approx(math.sqrt(8 / (6 - 2)))
    assert within_sd(scores[:0], labels[:0], []) is None


def test_noise_inside_a_title_has_an_interval_and_a_paired_difference() -> None:
    rng = np.random.default_rng(4)
    scores, labels, titles = corpus(rng)
    found = correlations(scores, labels, titles.tolist())
    assert found.within_sd == within_sd(scores, labels, titles.tolist())
    low, high = found.intervals["within_sd"]
    assert (
        found.within_sd is not None
        and low < found.within_sd < high
        and found.within_sd == pytest.approx(3, abs=0.5)
    )
    calmer = (labels + (scores - labels) / 2).round(2)
    gap = paired_differences(scores, calmer, labels, titles.tolist())["within_sd"]
    assert gap.difference == pytest.approx(found.within_sd / 2, rel=0.01)
    assert gap.interval is not None and gap.interval[0] > 0.5
    assert correlations(scores, labels, titles.tolist(), same_scale=False).within_sd is None


def test_errors_inside_a_title_are_less_its_own_mean() -> None:
    labels = np.arange(7.0)
    gaps = np.array([3.0, 5, 4, 8, -10, -12, 50])  # of the last title there is but one
    titles = ["a"] * 4 + ["b"] * 2 + ["c"]
    squares = [4, 0, 1, 9, 1, 1]
    expected = np.sqrt(sum(squares) / (7 - 3))
    assert within_sd(labels + gaps, labels, titles) == pytest.approx(expected)
    assert within_sd(labels, labels, list("abcdefg")) is None
    found = correlations(labels + gaps, labels, titles, draws=0)
    assert found.within_sd == pytest.approx(expected)
    other = correlations(labels + gaps, labels, titles, draws=0, same_scale=False)
    assert other.within_sd is None
    # a draw has each title as a new one each time
    member, times = np.array([0] * 4 + [1] * 2 + [2]), np.array([[2.0, 1, 0], [0, 1, 2]])
    drawn = correlation._bootstrap_within_sd(times, member, gaps)
    assert drawn == pytest.approx([np.sqrt((2 * 14 + 2) / (2 * 3 + 1)), np.sqrt(2 / 1)])


@pytest.mark.parametrize("parameters", [(95.0, 5.0, 50.0, 8.0), (90.0, 20.0, 30.0, 20.0)])
@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1e-4, 3.0), (-0.2, 40.0)])
def test_the_logistic_of_four_parameters_is_found_again(
    parameters: tuple[float, ...], scale: float, offset: float
) -> None:
    x = np.random.default_rng(1).uniform(0, 100, 200)
    b1, b2, b3, b4 = parameters
    y = b2 + (b1 - b2) / (1 + np.exp(-(x - b3) / b4))
    fit = fit_logistic(offset + scale * x, y)
    assert fit is not None
    ends = (b1, b2) if scale > 0 else (b2, b1)
    expected = (*ends, offset + scale * b3, abs(scale) * b4)
    assert fit.parameters == pytest.approx(expected, rel=1e-5)
    assert fit(offset + scale * x) == pytest.approx(y, abs=1e-6)


def test_the_logistic_of_five_parameters_is_found_again() -> None:
    x = np.random.default_rng(2).uniform(0, 100, 200)
    expected = (60.0, 0.12, 45.0, 0.3, 40.0)
    y = 60 * (0.5 - 1 / (1 + np.exp(0.12 * (x - 45)))) + 0.3 * x + 40
    fit = fit_logistic(x, y, 5)
    assert fit is not None and fit.parameters == pytest.approx(expected, rel=1e-5)
    assert fit(x) == pytest.approx(y, abs=1e-6)


def test_a_mapping_makes_plcc_and_rmse_better_and_leaves_ranks() -> None:
    x = np.random.default_rng(3).uniform(0, 100, 100)
    y = 100 / (1 + np.exp(-(x - 60) / 5))
    found = correlations(x, y, ["a"] * 100)
    assert found.plcc is not None and found.plcc < 0.95
    assert (found.srcc, found.plcc4, found.rmse4) == pytest.approx((1, 1, 0), abs=1e-6)


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 2), st.integers(0, 5)), max_size=40),
    st.sampled_from([1e-9, 1.0, 1e12]),
)
@settings(max_examples=60)
def test_figures_are_numbers_or_none_and_quiet(
    rows: list[tuple[int, int, int]], scale: float
) -> None:
    scores, labels = (np.array([row[i] for row in rows], float) * scale for i in (0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = correlations(scores, labels, [f"t{row[2]}" for row in rows], draws=20)
    json.dumps(found.to_json(), allow_nan=False)
    if len(rows) < 12:
        assert found.plcc4 is None and found.plcc5 is None
    for key, (low, high) in found.intervals.items():
        assert low <= high and (not key.startswith(("srcc", "krcc", "plcc")) or high <= 1 + 1e-9)


def test_draws_are_what_copies_of_the_rows_would_give() -> None:
    rng = np.random.default_rng(4)
    scores, labels, titles = corpus(rng)
    names, member = np.unique(titles, return_inverse=True)
    times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), 6).astype(float)
    found = [
        draw(times, member, scores, labels)
        for draw in (
            correlation._bootstrap_srcc,
            correlation._bootstrap_krcc,
            correlation._bootstrap_plcc,
            correlation._bootstrap_rmse,
        )
    ]
    for k, row in enumerate(times):
        copies = np.repeat(np.arange(len(scores)), row[member].astype(int))
        x, y = scores[copies], labels[copies]
        expected = [
            reference.spearmanr(x, y).statistic,
            reference.kendalltau(x, y).statistic,
            np.corrcoef(x, y)[0, 1],
            np.sqrt(np.mean((x - y) ** 2)),
        ]
        assert [values[k] for values in found] == pytest.approx(expected)


def test_intervals_cover_and_those_that_ignore_titles_would_not() -> None:
    """RMSE of many simulated sets: the truth is inside in most, though not without titles."""
    truth = math.sqrt(12**2 + 3**2)
    covered = {"titles": 0, "rows": 0}
    for seed in range(60):
        scores, labels, titles = corpus(np.random.default_rng(seed), titles=20, each=10)
        rows = [str(i) for i in range(len(scores))]
        for name, groups in (("titles", list(titles)), ("rows", rows)):
            found = correlation._intervals(scores, labels, groups, {}, 300, seed)["rmse"]
            covered[name] += found[0] <= truth <= found[1]
    assert covered["titles"] >= 48  # of 95 % in theory; percentiles of 20 titles give less
    assert covered["rows"] <= 40


def test_intervals_hold_the_figures_and_come_again_with_the_seed() -> None:
    scores, labels, titles = corpus(np.random.default_rng(5))
    found = correlations(scores, labels, list(titles), seed=3)
    assert found == correlations(scores, labels, list(titles), seed=3)
    assert found.intervals != correlations(scores, labels, list(titles), seed=4).intervals
    assert found.intervals.keys() >= {"srcc", "krcc", "plcc", "rmse", "plcc4", "within_srcc"}
    for key, (low, high) in found.intervals.items():
        assert low < getattr(found, key) < high


def test_few_titles_have_no_intervals() -> None:
    scores, labels, titles = corpus(np.random.default_rng(6), titles=3)
    assert correlations(scores, labels, list(titles)).intervals == {}


def test_another_scale_has_no_rmse_of_its_own() -> None:
    scores, labels, titles = corpus(np.random.default_rng(7))
    found = correlations(scores, labels, list(titles), same_scale=False)
    assert found.rmse is None and "rmse" not in found.intervals
    assert found.rmse4 is not None and found.plcc is not None


def test_a_difference_is_of_the_same_titles_in_every_draw() -> None:
    rng = np.random.default_rng(0)
    titles = [f"t{i // 6}" for i in range(60)]
    labels = rng.uniform(0, 100, 60)
    common = labels + rng.normal(0, 15, 60) + np.repeat(rng.normal(0, 20, 10), 6)
    one, other = common + rng.normal(0, 1, 60), common + rng.normal(0, 4, 60)
    found = paired_differences(one, other, labels, titles, draws=400)
    gap = found["rmse"]
    assert gap.one == rmse(one, labels) and gap.other == rmse(other, labels)
    assert gap.difference == pytest.approx(gap.one - gap.other)
    # by hand: whole titles drawn with replacement, both metrics judged on the same ones
    draws = []
    for _ in range(400):
        rows = np.concatenate(
            [np.flatnonzero(np.array(titles) == f"t{i}") for i in rng.integers(0, 10, 10)]
        )
        draws.append([np.sqrt(np.mean((x[rows] - labels[rows]) ** 2)) for x in (one, other)])
    pairs = np.array(draws)
    expected = np.percentile(pairs[:, 0] - pairs[:, 1], [2.5, 97.5])
    assert gap.interval == pytest.approx(expected, abs=0.35)
    apart = np.percentile(pairs, [2.5, 97.5], axis=0)
    assert gap.interval is not None
    assert gap.interval[1] - gap.interval[0] < (apart[1] - apart[0]).min() / 2
    same = paired_differences(one, one, labels, titles, draws=50)
    assert {d.interval for d in same.values()} == {(0.0, 0.0)}
    few = paired_differences(one[:12], other[:12], labels[:12], titles[:12])
    assert few["srcc"].interval is None and few["srcc"].difference != 0
