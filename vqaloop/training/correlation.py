"""Correlation of scores with labels: SRCC, KRCC, PLCC and RMSE, with 95 % intervals.

ITU-T P.1401 and the reports of VQEG compare a metric with opinions after a monotonic mapping,
because a metric may have a scale of its own; learned metrics are often compared without one.
Both are computed here: raw, and after two logistic mappings (`fit_logistic`). A figure that does
not exist (a constant side, too few values) is None, never nan.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

WITHIN_MEMBERS = 4
"""Encodes a title needs for a correlation of its own."""
FIT_VALUES = 3
"""Values a mapping needs for each of its parameters; with fewer it would only flatter."""
FIT_STEPS = 100
"""Evaluations from one start; a fit without an optimum, such as to a step, would not end."""
INTERVAL_TITLES = 4
"""Titles an interval needs; a bootstrap of fewer is meaningless."""


@dataclass(frozen=True)
class Logistic:
    """A fitted mapping from scores to labels; see `fit_logistic`."""

    parameters: tuple[float, ...]
    """Four or five, in the units of scores and labels."""

    def __call__(self, scores: Values) -> Values:
        return _FORMS[len(self.parameters)](scores, np.array(self.parameters))


@dataclass(frozen=True)
class Correlations:
    """Correlations of N scores with their labels, over several titles."""

    count: int
    titles: int
    srcc: float | None = None
    krcc: float | None = None
    """Kendall's tau-b."""
    plcc: float | None = None
    rmse: float | None = None
    """None as well for a metric with a scale of its own, such as dB."""
    plcc4: float | None = None
    rmse4: float | None = None
    """After the mapping of four parameters; the mean is over N, not N less the parameters."""
    plcc5: float | None = None
    rmse5: float | None = None
    within_srcc: float | None = None
    """Mean over titles of the SRCC inside each."""
    within_krcc: float | None = None
    within_sd: float | None = None
    """Standard deviation of score less label inside a title; see `within_sd`."""
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """95 % intervals over the choice of titles, of all figures above that have one."""
    fits: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Parameters of the mappings, under "4" and "5"."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def correlations(
    scores: Values,
    labels: Values,
    titles: Sequence[str],
    *,
    same_scale: bool = True,
    draws: int = 1000,
    seed: int = 0,
) -> Correlations:
    """All correlations of N scores with their labels, raw and after the logistic mappings.

    Args:
        scores: (N,) finite.
        labels: (N,) finite.
        titles: Of each score; intervals are over the choice of titles.
        same_scale: Scores predict the labels themselves, so that RMSE has a meaning.
        draws: Of the bootstrap; 0: no intervals.
        seed: Of the bootstrap.
    """
    raw = raw_correlations(scores, labels)
    mapped: dict[str, Values] = {}
    fits: dict[str, tuple[float, ...]] = {}
    for count in _FORMS:
        fit = fit_logistic(scores, labels, count)
        if fit is not None:
            fits[str(count)] = fit.parameters
            mapped[str(count)] = fit(scores)
    row = {
        **raw,
        **{f"plcc{key}": plcc(values, labels) for key, values in mapped.items()},
        **{f"rmse{key}": rmse(values, labels) for key, values in mapped.items()},
        "within_srcc": mean_within(scores, labels, titles),
        "within_krcc": mean_within(scores, labels, titles, krcc),
        "within_sd": within_sd(scores, labels, titles),
    }
    if not same_scale:
        row |= {"rmse": None, "within_sd": None}
    ranges = _intervals(scores, labels, titles, mapped, draws, seed) if draws else {}
    return Correlations(
        len(scores),
        len(set(titles)),
        **row,
        intervals={key: ranges[key] for key in row if row[key] is not None and key in ranges},
        fits=fits,
    )


def raw_correlations(scores: Values, labels: Values) -> dict[str, float | None]:
    """SRCC, KRCC, PLCC and RMSE of two (N,) arrays; PLCC raw, without a fitted mapping."""
    return {
        "srcc": srcc(scores, labels),
        "krcc": krcc(scores, labels),
        "plcc": plcc(scores, labels),
        "rmse": rmse(scores, labels),
    }


def srcc(scores: Values, labels: Values) -> float | None:
    """Spearman's rank correlation; ties have their mean rank."""
    if _constant(scores) or _constant(labels):
        return None
    # here and below: training imports this module, and needs SciPy only where it evaluates
    from scipy import stats

    return plcc(stats.rankdata(scores), stats.rankdata(labels))


def krcc(scores: Values, labels: Values) -> float | None:
    """Kendall's tau-b."""
    if _constant(scores) or _constant(labels):
        return None
    from scipy import stats

    return float(stats.kendalltau(scores, labels).statistic)


def plcc(scores: Values, labels: Values) -> float | None:
    """Pearson's correlation; None for fewer than three values, or a side without spread."""
    if _constant(scores) or _constant(labels):
        return None
    x, y = (values - values.mean() for values in (scores, labels))
    return float(np.clip((x / np.linalg.norm(x)) @ (y / np.linalg.norm(y)), -1, 1))


def rmse(scores: Values, labels: Values) -> float | None:
    return float(np.sqrt(np.mean((scores - labels) ** 2))) if len(scores) else None


def mean_within(
    scores: Values,
    labels: Values,
    titles: Sequence[str],
    correlation: Callable[[Values, Values], float | None] = srcc,
) -> float | None:
    """Mean over titles of the correlation inside each; those under 4 members are left out."""
    values = _by_title(scores, labels, titles, correlation)
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


def within_sd(scores: Values, labels: Values, titles: Sequence[str]) -> float | None:
    """Standard deviation of score less label, less its mean of each title.

    What remains of the error where encodes of one title are compared, as a ladder does. Pooled
    over titles; None where no title has two members.
    """
    names, member = np.unique(np.asarray(titles), return_inverse=True)
    if len(scores) <= len(names):
        return None
    inside = _inside(scores - labels, member)
    return float(np.sqrt(np.square(inside).sum() / (len(scores) - len(names))))


def _inside(values: Values, member: npt.NDArray[np.intp]) -> Values:
    """Values less the mean of those of the same title."""
    return np.asarray(values - (_title_sums(member, values) / np.bincount(member))[member])


def fit_logistic(scores: Values, labels: Values, parameters: int = 4) -> Logistic | None:
    """Least-squares logistic mapping of scores to labels; None where there is too little to fit.

    4: b2 + (b1 - b2) / (1 + exp(-(x - b3) / |b4|)), monotonic, of VQEG's reports.
    5: b1 (1/2 - 1 / (1 + exp(b2 (x - b3)))) + b4 x + b5, of Sheikh, Sabir & Bovik 2006; the linear
    term need not have the sign of the rest, so it may turn back.

    Both sides are standardised for the fit, and the best of several starts is taken, a straight
    line among those of the five, so that no mapping is worse than a linear one for want of luck.
    """
    if len(scores) < FIT_VALUES * parameters or _constant(scores) or _constant(labels):
        return None
    from scipy.optimize import least_squares

    (at, scale), (level, spread) = ((v.mean(), v.std()) for v in (scores, labels))
    x, y = (scores - at) / scale, (labels - level) / spread
    form = _FORMS[parameters]
    line = float(np.mean(x * y))
    sign = -1.0 if line < 0 else 1.0
    low, high = (y.min(), y.max())[:: int(sign)]  # the asymptotes at small and at large scores
    if parameters == 4:
        starts = [[high, low, 0.0, width] for width in (0.25, 0.5, 1.0, 2.0)]
    else:
        starts = [[high - low, width, 0.0, 0.0, 0.0] for width in (1.0, 4.0)]
        starts.append([0.1 * sign, 1.0, 0.0, line, 0.0])
    best, least = None, np.inf
    with np.errstate(all="ignore"):
        for start in starts:
            try:
                result = least_squares(
                    lambda b: form(x, b) - y, start, method="lm", max_nfev=FIT_STEPS
                )
            except ValueError:  # it left the finite numbers
                continue
            if np.isfinite(result.x).all() and result.cost < least:
                best, least = result.x, result.cost
    if best is None:
        return None
    # back from standardised to the units of scores and labels
    if parameters == 4:
        b1, b2, b3, b4 = best
        back = [level + spread * b1, level + spread * b2, at + scale * b3, scale * abs(b4)]
    else:
        b1, b2, b3, b4, b5 = best
        slope = spread * b4 / scale
        back = [spread * b1, b2 / scale, at + scale * b3, slope, level + spread * b5 - slope * at]
    return Logistic(tuple(map(float, back)))


def _logistic4(x: Values, b: Values) -> Values:
    from scipy.special import expit

    return np.asarray(b[1] + (b[0] - b[1]) * expit((x - b[2]) / max(abs(b[3]), 1e-9)))


def _logistic5(x: Values, b: Values) -> Values:
    from scipy.special import expit

    return np.asarray(b[0] * (expit(b[1] * (x - b[2])) - 0.5) + b[3] * x + b[4])


_FORMS: dict[int, Callable[[Values, Values], Values]] = {4: _logistic4, 5: _logistic5}


def _constant(values: Values) -> bool:
    """Whether there is no spread beyond rounding, or nothing to correlate."""
    return len(values) < 3 or bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def _by_title(
    scores: Values,
    labels: Values,
    titles: Sequence[str],
    correlation: Callable[[Values, Values], float | None],
) -> Values:
    """(titles,) correlation inside each, in sorted order; nan where there is none."""
    names = np.asarray(titles)
    correlations = []
    for name in np.unique(names):
        mask = names == name
        value = correlation(scores[mask], labels[mask]) if mask.sum() >= WITHIN_MEMBERS else None
        correlations.append(np.nan if value is None else value)
    return np.array(correlations)


@dataclass(frozen=True)
class Difference:
    """A figure of one metric less that of another on the same encodes."""

    one: float
    other: float
    difference: float
    interval: tuple[float, float] | None
    """95 %, over the choice of titles; None with too few."""


def paired_differences(
    scores: Values,
    other: Values,
    labels: Values,
    titles: Sequence[str],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Difference]:
    """Differences of raw figures of two metrics, with intervals by a paired bootstrap.

    Both metrics have the same titles in each draw, so that what a title does to both cancels out:
    the interval of a difference is narrower than intervals of the two suggest (Efron & Tibshirani
    1993).

    Args:
        scores: (N,) of one metric, finite.
        other: (N,) of the other on the same encodes, finite.
        labels: (N,) finite.
        titles: Of each encode.
        draws: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        By figure (srcc, krcc, plcc, rmse, within_srcc, within_krcc, within_sd), where both have
        it.
    """
    figures = [
        {
            **raw_correlations(values, labels),
            "within_srcc": mean_within(values, labels, titles),
            "within_krcc": mean_within(values, labels, titles, krcc),
            "within_sd": within_sd(values, labels, titles),
        }
        for values in (scores, other)
    ]
    drawn = [_resampled(values, labels, titles, {}, draws, seed) for values in (scores, other)]
    found = {}
    for key, one in figures[0].items():
        two = figures[1][key]
        if one is None or two is None:
            continue
        gaps = [d[key] for d in drawn if key in d]
        interval = _central(gaps[0] - gaps[1]) if gaps else None
        found[key] = Difference(one, two, one - two, interval)
    return found


def _central(drawn: Values) -> tuple[float, float] | None:
    """Central 95 % of the draws; None where the figure is seldom there."""
    finite = drawn[np.isfinite(drawn)]
    # an interval of few draws would be of the titles that happen to have the figure
    if len(finite) <= len(drawn) / 2:
        return None
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)


def _intervals(
    scores: Values,
    labels: Values,
    titles: Sequence[str],
    mapped: dict[str, Values],
    draws: int,
    seed: int,
) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals (percentiles) over the choice of titles, see `_resampled`."""
    drawn = _resampled(scores, labels, titles, mapped, draws, seed)
    ends = {key: _central(values) for key, values in drawn.items()}
    return {key: pair for key, pair in ends.items() if pair is not None}


def _resampled(
    scores: Values,
    labels: Values,
    titles: Sequence[str],
    mapped: dict[str, Values],
    draws: int,
    seed: int,
) -> dict[str, Values]:
    """(draws,) values of each figure over draws of titles; none of too few titles.

    A draw takes whole titles, with all their encodes, because encodes of one title are alike
    (Field & Welsh 2007). Mappings are not fitted anew, so theirs are a little too narrow. A draw
    is the number of times that each title is in it, of which every figure is a function; no row is
    ever copied.
    """
    names, member = np.unique(np.asarray(titles), return_inverse=True)
    if len(names) < INTERVAL_TITLES:
        return {}
    rng = np.random.default_rng(seed)
    times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), draws).astype(float)
    with np.errstate(all="ignore"):
        resampled = {
            "plcc": _bootstrap_plcc(times, member, scores, labels),
            "rmse": _bootstrap_rmse(times, member, scores, labels),
            "srcc": _bootstrap_srcc(times, member, scores, labels),
            "krcc": _bootstrap_krcc(times, member, scores, labels),
            "within_sd": _bootstrap_within_sd(times, member, scores - labels),
        }
        for key, values in mapped.items():
            resampled[f"plcc{key}"] = _bootstrap_plcc(times, member, values, labels)
            resampled[f"rmse{key}"] = _bootstrap_rmse(times, member, values, labels)
        for key, correlation in (("within_srcc", srcc), ("within_krcc", krcc)):
            inside = _by_title(scores, labels, titles, correlation)
            known = np.isfinite(inside)  # titles with a correlation of their own
            resampled[key] = (times[:, known] @ inside[known]) / times[:, known].sum(1)
    return resampled


def _title_sums(member: npt.NDArray[np.intp], values: Values) -> Values:
    return np.asarray(np.bincount(member, values, member.max() + 1), np.float64)


def _bootstrap_plcc(times: Values, member: npt.NDArray[np.intp], x: Values, y: Values) -> Values:
    """(draws,) Pearson's correlation."""
    x, y = x - x.mean(), y - y.mean()
    parts = (np.ones_like(x), x, y, x * x, y * y, x * y)
    n, sx, sy, sxx, syy, sxy = (times @ _title_sums(member, part) for part in parts)
    spread = (sxx - sx * sx / n) * (syy - sy * sy / n)
    return np.asarray(np.where(spread > 0, (sxy - sx * sy / n) / np.sqrt(spread), np.nan))


def _bootstrap_rmse(times: Values, member: npt.NDArray[np.intp], x: Values, y: Values) -> Values:
    squares = times @ _title_sums(member, (x - y) ** 2)
    return np.asarray(np.sqrt(squares / (times @ _title_sums(member, np.ones_like(x)))))


def _bootstrap_within_sd(times: Values, member: npt.NDArray[np.intp], gaps: Values) -> Values:
    squares = times @ _title_sums(member, np.square(_inside(gaps, member)))
    return np.asarray(np.sqrt(squares / (times @ (np.bincount(member) - 1.0))))


def _bootstrap_srcc(times: Values, member: npt.NDArray[np.intp], x: Values, y: Values) -> Values:
    """(draws,) Spearman's correlation; a few draws at a time, each of N ranks."""
    at_once = max(1, 2_000_000 // len(x))  # 16 MB for each array of (draws, N)
    parts = []
    for first in range(0, len(times), at_once):
        weights = times[first : first + at_once, member]
        n = weights.sum(1, keepdims=True)
        # ranks of n values have the mean (n + 1) / 2, whatever the ties
        a, b = (_bootstrap_ranks(weights, values) - (n + 1) / 2 for values in (x, y))
        spread = (weights * a * a).sum(1) * (weights * b * b).sum(1)
        together = (weights * a * b).sum(1)
        parts.append(np.where(spread > 0, together / np.sqrt(spread), np.nan))
    return np.concatenate(parts)


def _bootstrap_ranks(weights: Values, values: Values) -> Values:
    """(draws, N) mean rank of each value where it is there `weights` (draws, N) times."""
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    first = np.searchsorted(ascending, values, "left")
    last = np.searchsorted(ascending, values, "right")
    below = np.concatenate([np.zeros((len(weights), 1)), weights[:, order].cumsum(1)], 1)
    return np.asarray((below[:, first] + below[:, last] + 1) / 2)


def _bootstrap_krcc(times: Values, member: npt.NDArray[np.intp], x: Values, y: Values) -> Values:
    """(draws,) Kendall's tau-b, from pairs counted once for every two titles."""
    count = times.shape[1]
    # concordant less discordant pairs, and pairs untied in x and in y, for every two titles: the
    # sums of a draw are then quadratic forms in its numbers of titles
    pairs = np.zeros((3, count, count))
    for title in range(count):
        rows = member == title
        dx, dy = (np.sign(v[rows, None] - v[None]) for v in (x, y))
        for part, values in enumerate((dx * dy, np.abs(dx), np.abs(dy))):
            pairs[part, title] = _title_sums(member, values.sum(0))
    same, untied_x, untied_y = (((times @ matrix) * times).sum(1) for matrix in pairs)
    untied = untied_x * untied_y
    return np.asarray(np.where(untied > 0, same / np.sqrt(untied), np.nan))
