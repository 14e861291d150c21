"""Rate and score of one resolution as functions of the knob: monotone fits of measured points."""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression

from vqaloop.records import RDPoint
from vqaloop.search.prior import Values, logit

REACH_DOWN, REACH_UP = 0.6, 0.8
"""How far a fit is extrapolated beyond its measured knobs, as parts of their span, towards worse
and towards better quality. Predictions are encoded before they are used, so too much costs an
encode; too little hides a size that would have been better, and nothing ever shows it."""


def fit_curve(points: Sequence[RDPoint], top_score: float = 100.0) -> Callable[[float], RDPoint]:
    """Rate and score of one resolution as a function of its knob; scores stay under `top_score`.

    Monotone cubic (PCHIP, Fritsch & Carlson 1980) through log rate and the logit of the score,
    after pooling neighbours that violate the order (isotonic regression); straight lines beyond
    the ends. Scores level off towards the top, and their logit hardly bends, so two points
    determine most of a curve. Needs at least two points, no two with the same knob.
    """
    points = sorted(points, key=lambda p: p.knob)
    knobs = np.array([p.knob for p in points])
    columns = []
    # with a quantiser as knob the rate falls, with a bitrate or a quality it rises
    rising = points[0].bitrate_kbps < points[-1].bitrate_kbps
    rates = [math.log2(p.bitrate_kbps) for p in points]
    for values in (rates, logit(np.array([p.score / top_score for p in points]))):
        ordered = isotonic_regression(values, increasing=rising).x
        columns.append(_extended(knobs, ordered))
    log_rate, odds = columns

    def at(knob: float) -> RDPoint:
        first = points[0]
        score = top_score / (1 + math.exp(-odds(knob)))
        return RDPoint(first.width, first.height, knob, 2 ** log_rate(knob), score, measured=False)

    return at


def _extended(x: Values, y: Values) -> Callable[[float], float]:
    # beyond the ends the cubic would turn: the chord of the last two points goes on instead
    curve = PchipInterpolator(x, y)
    left = (y[1] - y[0]) / (x[1] - x[0])
    right = (y[-1] - y[-2]) / (x[-1] - x[-2])

    def at(value: float) -> float:
        if value < x[0]:
            return float(y[0] + left * (value - x[0]))
        if value > x[-1]:
            return float(y[-1] + right * (value - x[-1]))
        return float(curve(value))

    return at


def densify(
    points: Iterable[RDPoint], knobs: Sequence[float], top_score: float = 100.0
) -> list[RDPoint]:
    """Every resolution's fit at every knob within its reach, measured points as they are.

    `knobs` ascend; `top_score` bounds the fits (the metric's maximum).
    """
    by_size: dict[tuple[int, int], list[RDPoint]] = {}
    for point in points:
        by_size.setdefault(point.size, []).append(point)
    dense: list[RDPoint] = []
    for group in by_size.values():
        measured = {point.knob: point for point in group}
        dense += measured.values()
        if len(measured) < 2:
            continue
        curve = fit_curve(list(measured.values()), top_score)
        least, most = _reach(measured)
        dense += [curve(k) for k in knobs if k not in measured and least <= k <= most]
    return dense


def _reach(measured: dict[float, RDPoint]) -> tuple[float, float]:
    """Least and largest knob at which a resolution's fit is used."""
    low, high = min(measured), max(measured)
    down, up = (reach * (high - low) for reach in (REACH_DOWN, REACH_UP))
    # a larger knob is worse quality, as with a quantiser
    if measured[low].score >= measured[high].score:
        return low - up, high + down
    return low - down, high + up
