"""Chooses which encodes to make, so that few of them suffice for the best ladder.

A surrogate model (surrogates.py) predicts a title's convex hull, the hull gives the rungs, and a
rung that was not measured is encoded next: so most encodes are rungs. Once all are measured,
further encodes are made where their expected improvement of the hull is largest (Mockus 1978),
as long as that is worth one. Every proposal is a function of the finished trials alone, so the
same trials lead to the same ladder whoever makes them and in whatever order they end.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from scipy.special import ndtr

from vqaloop.records import RDPoint
from vqaloop.search.hull import convex_hull, front, rising_front
from vqaloop.search.rungs import (
    LEAST_RUNGS,
    Rules,
    choose_rungs,
    near_hull,
    up_to_ceiling,
    with_fillers,
    with_least_top,
    with_required_sizes,
    with_smaller_bottom,
)
from vqaloop.search.space import Space, TrialPoint
from vqaloop.search.surrogates import Predictions, Surrogate

BATCH = 3
"""Encodes proposed at a time; the results of each change what is proposed next."""
GAIN = 0.05
"""Least expected improvement of the hull, in steps, for which one more encode is made."""
CLOSE = 1.03
"""Ratio of rates within which another encode of a size is not worth making: rates and scores of
neighbouring knobs jump about more than their curves rise."""
MOST_A_RUNG = 1.5
"""Encodes a rung beyond which none is made for the hull's sake alone."""
SHUN = 1 / 16
"""Part of the search range around a failed knob in which no rung is planned."""
GIVE_UP = 4
"""Failures after which a size that never succeeded is left alone."""

Measurement = tuple[float, float] | None
"""kb/s and score of an encode; None when it failed."""


def propose(
    space: Space,
    rules: Rules,
    points: Sequence[RDPoint],
    failed: Sequence[TrialPoint],
    surrogate: Surrogate,
    most: int,
    most_a_rung: float = MOST_A_RUNG,
) -> list[TrialPoint]:
    """What to encode next, given all measured points; empty when nothing is worth an encode.

    First the surrogate's anchors, then planned rungs that were not measured, then the point of the
    largest expected improvement.
    """
    tried = {p.key for p in points} | set(failed)
    anchors = surrogate.anchors(failed)
    waiting = [point for point in anchors if point not in tried]
    if waiting:
        return waiting
    if len(tried) >= most or (anchors and not points):
        return []
    dense = worth_trying(space, surrogate.dense(points), points, failed)
    chosen = plan(rules, points, dense)
    # a rung that is only predicted must be encoded anyway, if the prediction holds
    wanted = [p.key for p in chosen if not p.measured]
    wanted = [point for point in wanted if point not in tried]
    if not points and len(wanted) > 2:
        # one near each end of the ladder constrains the curves most
        wanted = [wanted[-1], wanted[len(wanted) // 3]]
    elif len(wanted) > BATCH:
        # spread over the ladder, since neighbours say much about each other
        wanted = [wanted[i * len(wanted) // BATCH] for i in range(BATCH)]
    elif not wanted and len(chosen) > 1 and len(tried) < most_a_rung * len(chosen):
        wanted = _improvement(space, rules, points, dense, chosen)
    elif not wanted and len(chosen) < LEAST_RUNGS:
        # no ladder is predicted: the ends of the search space show whether there is one
        ends = [(*space.sizes[-1], space.knob_at(0.0)), (*space.sizes[0], space.knob_at(1.0))]
        wanted = [point for point in ends if point not in tried]
    return wanted[: most - len(tried)]


def plan(rules: Rules, points: Sequence[RDPoint], dense: Predictions) -> list[RDPoint]:
    """The ladder as far as it is known: rungs on the hull of all points, measured where near.

    On the hull of the front on which resolution rises with the rate: where two resolutions are as
    good as each other, the plain hull could hop between them, and a ladder must not.
    """
    every = [*points, *dense.points]
    chosen = with_least_top(_chosen(every, rules, points), every, rules)
    chosen = with_required_sizes(chosen, every, rules)
    return with_smaller_bottom(chosen, every, rules)


def rungs_of(
    space: Space,
    rules: Rules,
    points: Sequence[RDPoint],
    surrogate: Surrogate,
    failed: Sequence[TrialPoint] = (),
) -> list[RDPoint]:
    """The best ladder of measured points alone: what stands on or near the predicted hull, then
    required sizes, a smaller lowest rung and rungs that fit between."""
    dense = worth_trying(space, surrogate.dense(points), points, failed)
    # the hull of all points, so that a measured one far below what could be made is no rung
    best = convex_hull(rising_front([*points, *dense.points]))
    near = near_hull(points, best, rules)
    planned = [point for point in plan(rules, points, dense) if point.measured]
    # those that a required size or the lowest rung brought in lie below the hull, and stay
    kept = front({*near, *planned})
    chosen = choose_rungs(rising_front(kept), rules) if len(kept) > 1 else kept
    if len(chosen) < (rules.count or LEAST_RUNGS):
        chosen = max(chosen, _chosen(points, rules), key=len)
    chosen = with_least_top(chosen, points, rules)
    chosen = with_required_sizes(chosen, points, rules)
    chosen = with_smaller_bottom(chosen, points, rules)
    # where the front bends the other way the hull leaps over points that a ladder has room for
    return with_fillers(chosen if len(chosen) >= len(planned) else planned, points, rules)


def _chosen(
    every: Iterable[RDPoint], rules: Rules, measured: Sequence[RDPoint] = ()
) -> list[RDPoint]:
    """Rungs on the hull; or on the front where the hull has too few.

    Where a curve bends the other way, as at low rates it may, a hull leaves a gap without points.
    """
    rising = up_to_ceiling(rising_front(every), rules)
    chosen = choose_rungs(convex_hull(rising), rules, measured)
    if len(chosen) < (rules.count or LEAST_RUNGS):
        return max(chosen, choose_rungs(rising, rules, measured), key=len)
    return chosen


def explore(
    space: Space,
    rules: Rules,
    evaluate: Callable[[Sequence[TrialPoint]], Mapping[TrialPoint, Measurement]],
    *,
    surrogate: Surrogate,
    most: int,
    most_a_rung: float = MOST_A_RUNG,
) -> tuple[list[RDPoint], list[TrialPoint], dict[TrialPoint, float]]:
    """Propose and evaluate until nothing is proposed, or `evaluate` gives nothing back.

    `evaluate` takes a batch of points that may run at the same time, and may do only some of them.
    Returns the measured points, those that failed, and the predicted score of each point for
    which there was a prediction before it was encoded.
    """
    points: list[RDPoint] = []
    failed: list[TrialPoint] = []
    predicted: dict[TrialPoint, float] = {}
    while batch := propose(space, rules, points, failed, surrogate, most, most_a_rung):
        expected = {p.key: p.score for p in surrogate.dense(points).points}
        results = evaluate(batch)
        if not results:
            break
        for point in batch:
            if point not in results:
                continue
            result = results[point]
            if point in expected:
                predicted[point] = expected[point]
            if result is None:
                failed.append(point)
            else:
                points.append(RDPoint(*point, bitrate_kbps=result[0], score=result[1]))
    return points, failed, predicted


def worth_trying(
    space: Space, dense: Predictions, points: Sequence[RDPoint], failed: Sequence[TrialPoint]
) -> Predictions:
    """The predictions without points too near to a measured one to differ from it, without points
    near failed ones, and without sizes that only ever failed."""
    low, high = space.knob.search
    shunned = (high - low) * SHUN
    rates: dict[tuple[int, int], list[float]] = {}
    for point in points:
        rates.setdefault(point.size, []).append(point.bitrate_kbps)
    alive = {p.size for p in points}
    # a size that has succeeded once is not given up: its failures are of single knobs
    losses = [(w, h) for w, h, _ in failed if (w, h) not in alive]
    dead = {size for size in losses if losses.count(size) >= GIVE_UP}
    keep = [
        p.size not in dead
        and all(
            max(rate, p.bitrate_kbps) > CLOSE * min(rate, p.bitrate_kbps)
            for rate in rates.get(p.size, ())
        )
        and all((w, h) != p.size or abs(knob - p.knob) > shunned for w, h, knob in failed)
        for p in dense.points
    ]
    kept = [point for point, kept in zip(dense.points, keep, strict=True) if kept]
    return Predictions(kept, dense.deviation[np.array(keep, bool)])


def _improvement(
    space: Space,
    rules: Rules,
    points: Sequence[RDPoint],
    dense: Predictions,
    chosen: Sequence[RDPoint],
) -> list[TrialPoint]:
    """The point of the largest expected improvement of the hull between the ladder's ends.

    Of a normal score of mean m and deviation s over a hull at h: s (z Phi(z) + phi(z)) with
    z = (m - h) / s. Empty where that is less than GAIN steps.
    """
    # curve fits give no uncertainty, and so no expected improvement
    if not dense.deviation.any():
        return []
    best = convex_hull(rising_front([*points, *dense.points]))
    rates = np.log([p.bitrate_kbps for p in dense.points])
    hull = np.interp(rates, np.log([p.bitrate_kbps for p in best]), [p.score for p in best])
    deviation = np.maximum(dense.deviation, 1e-9)
    z = (np.array([p.score for p in dense.points]) - hull) / deviation
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    gain = deviation * (z * ndtr(z) + density)
    low, high = np.log(chosen[0].bitrate_kbps), np.log(chosen[-1].bitrate_kbps)
    gain[(rates < low) | (rates > high)] = 0.0
    # near a measured point the prediction is already as good as a measurement
    gain[[space.is_beside(p.key, points) for p in dense.points]] = 0.0
    first = int(np.argmax(gain))
    if gain[first] < GAIN * rules.min_step:
        return []
    found = dense.points[first]
    return [found.key]
