"""Choice of rungs: which points of the hull become the ladder, under its rules."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise, starmap

import numpy as np

from vqaloop.records import RDPoint
from vqaloop.search.audience import Audience, best_rungs, delivered
from vqaloop.search.hull import front

NEAR_RATE = 1.3
"""Ratio of bitrates within which a measured point stands in: it saves an encode."""

STAND_IN = 0.05
"""Steps of an audience's mean score that a measured point may lose in place of a predicted one."""

LEAST_RUNGS = 2
"""Fewer than this is no ladder."""


@dataclass(frozen=True)
class Rules:
    """What a ladder must keep to."""

    min_step: float
    """Least difference in score between neighbours: one that a viewer could notice."""
    min_ratio: float = 1.4
    """Least ratio of bitrates between neighbours; players switch on rates."""
    floor: float = 0.0
    """Score under which no rung is worth sending."""
    ceiling: float = math.inf
    """Score above which more bits are not seen; the top rung is the first to reach it."""
    min_kbps: float = 0.0
    max_kbps: float = math.inf
    count: int | None = None
    """Number of rungs; None for as many as the other rules ask for."""
    most: int = 10
    """Largest number of rungs when `count` is None."""
    sizes: int = 2
    """Least number of resolutions, where there is a choice: small screens and slow decoders need
    one of their own. With 2 the lowest rung gives way; 1 leaves it to the scores."""
    near: float = 0.05
    """Steps below the hull at which a measured point stands in for a fitted one."""
    near_top: float = 0.25
    """Steps by which a measured point may miss the score of the top rung and stand in for it."""
    slack: float = 1.05
    """Times the least step and ratio kept by rungs not yet measured, which come out a bit off."""
    required: tuple[tuple[int, int], ...] = ()
    """Widths and heights that must have a rung, where the other rules allow it."""
    least_top: int = 0
    """Pixels of the highest rung at least, where the other rules allow it."""
    audience: Audience | None = None
    """Whose mean score places the rungs; None: their spacing does."""


def choose_rungs(
    best: Sequence[RDPoint], rules: Rules, measured: Sequence[RDPoint] = ()
) -> list[RDPoint]:
    """Rungs on (or, for measured points, near) a front, ascending, keeping to `rules`.

    From the top rung down: each next one is the best that leaves both the step in score and the
    ratio of rates. The top is the first point that reaches the ceiling, or from which no higher
    rate gains half a step each time that it doubles. With `rules.count` the rungs are spread as
    evenly over log rate as the other rules allow. With `rules.audience` they are those that
    deliver it the highest mean score, as many as without it.
    """
    usable = [
        p
        for p in best
        if rules.min_kbps <= p.bitrate_kbps <= rules.max_kbps and p.score >= rules.floor
    ]
    if not usable:
        return []
    near = near_hull(measured, best, rules)
    if rules.audience:
        return _for_audience(usable, near, rules, rules.audience)
    top = _top(usable, rules)
    # a measured point may miss the score of the top rung by a little: that saves an encode
    alike = [p for p in near if abs(p.score - top.score) <= rules.near_top * rules.min_step]
    top = _or_measured(top, alike)
    if rules.count is None:
        return _descend(usable, near, top, rules, rules.min_ratio * rules.slack, rules.most)
    # the widest ratio that still leaves the number asked for
    low, high = rules.min_ratio, 8.0
    chosen = _descend(usable, near, top, rules, low, rules.count)
    # bisection in log ratio; 30 halvings are below any difference of rates
    for _ in range(30):
        middle = math.sqrt(low * high)
        wider = _descend(usable, near, top, rules, middle, rules.count)
        if len(wider) >= len(chosen):
            low, chosen = middle, wider
        else:
            high = middle
    return chosen


def _for_audience(
    usable: Sequence[RDPoint], near: Sequence[RDPoint], rules: Rules, audience: Audience
) -> list[RDPoint]:
    """The rungs that deliver most score, measured points standing in where that loses little."""
    count = rules.count or len(choose_rungs(usable, replace(rules, audience=None), near))
    keeps = partial(_keeps, rules=rules)
    chosen = best_rungs(usable, audience, count, keeps)
    lost = rules.min_step * STAND_IN
    best = delivered(audience, chosen).score
    for i, point in enumerate(chosen):
        if point.measured:
            continue
        swaps = [[*chosen[:i], other, *chosen[i + 1 :]] for other in near]
        able = [
            (delivered(audience, rungs).score, -place, rungs)
            for place, rungs in enumerate(swaps)
            if all(starmap(keeps, pairwise(rungs[max(0, i - 1) : i + 2])))
        ]
        if able and max(able)[0] >= best - lost:
            chosen = max(able)[2]
    return chosen


def _keeps(low: RDPoint, high: RDPoint, *, rules: Rules) -> bool:
    """Whether two rungs may be neighbours; those not yet measured leave `slack` more room."""
    slack = 1.0 if low.measured and high.measured else rules.slack
    return (
        low.bitrate_kbps * rules.min_ratio * slack <= high.bitrate_kbps
        and low.score + rules.min_step * slack <= high.score
        and low.width * low.height <= high.width * high.height
    )


def _top(usable: Sequence[RDPoint], rules: Rules) -> RDPoint:
    for i, point in enumerate(usable):
        gained = (
            p.score - point.score
            >= rules.min_step / 2 * math.log2(p.bitrate_kbps / point.bitrate_kbps)
            for p in usable[i + 1 :]
        )
        if _reaches(point, rules) or not any(gained):
            return point
    return usable[-1]


def _reaches(point: RDPoint, rules: Rules) -> bool:
    """Whether a point is as good as the ceiling asks; a measured one may fall a little short."""
    return point.score >= rules.ceiling - point.measured * rules.near_top * rules.min_step


def up_to_ceiling(rising: Sequence[RDPoint], rules: Rules) -> list[RDPoint]:
    """A front, ascending, as far as its first point that reaches the ceiling."""
    end = next((i for i, p in enumerate(rising, 1) if _reaches(p, rules)), len(rising))
    return list(rising[:end])


def _descend(
    usable: Sequence[RDPoint],
    near: Sequence[RDPoint],
    top: RDPoint,
    rules: Rules,
    ratio: float,
    most: int,
) -> list[RDPoint]:
    chosen = [top]
    while len(chosen) < most:
        last = chosen[-1]
        # predicted rungs leave `slack` more room, since their encodes come out a bit off
        fits = [
            p
            for p in usable
            if p.bitrate_kbps * ratio <= last.bitrate_kbps
            and p.score + rules.min_step * rules.slack <= last.score
        ]
        if not fits:
            break
        # a measured point is what it is: the plain rules suffice
        allowed = [
            p
            for p in near
            if p.bitrate_kbps * rules.min_ratio <= last.bitrate_kbps
            and p.score + rules.min_step <= last.score
            and p.width * p.height <= last.width * last.height
        ]
        chosen.append(_or_measured(fits[-1], allowed))
    return chosen[::-1]


def with_smaller_bottom(
    chosen: Sequence[RDPoint], points: Iterable[RDPoint], rules: Rules
) -> list[RDPoint]:
    """Rungs of one resolution, the lowest replaced by the best of a smaller one.

    `points` are all there are. The rungs stay as they are when they have two resolutions already,
    or when nothing smaller keeps to the rules within a third of the floor.
    """
    if rules.sizes < 2 or len(chosen) < 2 or len({p.size for p in chosen}) > 1:
        return list(chosen)
    lowest, second = chosen[:2]
    smaller = [
        p
        for p in points
        if p.width * p.height < lowest.width * lowest.height
        and rules.min_kbps <= p.bitrate_kbps <= second.bitrate_kbps / rules.min_ratio
        and rules.floor * 2 / 3 <= p.score <= second.score - rules.min_step
    ]
    if not smaller:
        return list(chosen)
    best = max(smaller, key=lambda p: p.score)
    least = best.score - rules.near * rules.min_step
    near = [p for p in smaller if p.measured and p.score >= least]
    return [_or_measured(best, near), *chosen[1:]]


def near_hull(measured: Iterable[RDPoint], best: Sequence[RDPoint], rules: Rules) -> list[RDPoint]:
    """The measured points that are as good as a rung on `best`, within a part of a step."""
    return [p for p in measured if _stands_in(p, best, rules)]


def with_least_top(
    chosen: Sequence[RDPoint], points: Iterable[RDPoint], rules: Rules
) -> list[RDPoint]:
    """Rungs of which the highest is as large as it must be, where a point keeps the rules.

    The best such point goes on top where there is room for a rung more, else in the place of the
    highest ones that leave it none.
    """
    if not chosen or chosen[-1].width * chosen[-1].height >= rules.least_top:
        return list(chosen)
    able = [
        p
        for p in points
        if p.width * p.height >= rules.least_top
        and rules.min_kbps <= p.bitrate_kbps <= rules.max_kbps
        and p.score >= rules.floor
    ]
    tops = [([r for r in chosen if _keeps(r, top, rules=rules)], top) for top in front(able)]
    if not any(below for below, _ in tops):
        return list(chosen)
    # the one that leaves most rungs in place; of several the cheapest
    below, top = max(tops, key=lambda found: (len(found[0]), -found[1].bitrate_kbps))
    return [*below[: (rules.count or rules.most) - 1], top]


def with_required_sizes(
    chosen: Sequence[RDPoint], points: Iterable[RDPoint], rules: Rules
) -> list[RDPoint]:
    """Rungs of which one gives way, where one is missing, to each size that must be there.

    The rung that gives way, and the point of that size that takes its place, are those that lose
    least score and still keep the rules; a size with no such point stays away.
    """
    rungs, every = list(chosen), list(points)
    for size in rules.required:
        if any(p.size == size for p in rungs):
            continue
        swaps = [
            (i, point)
            for i in _replaceable(rungs, rules)
            for point in every
            if point.size == size and _fits_between(point, rungs, i, rules)
        ]
        if swaps:
            i, point = min(swaps, key=lambda swap: _loss(rungs[swap[0]], swap[1], rules))
            rungs[i] = point
    return rungs


def _replaceable(rungs: Sequence[RDPoint], rules: Rules) -> list[int]:
    """Indices of rungs whose size is not required, or has another rung."""
    sizes = [p.size for p in rungs]
    return [i for i, s in enumerate(sizes) if s not in rules.required or sizes.count(s) > 1]


def _loss(rung: RDPoint, point: RDPoint, rules: Rules) -> float:
    """What it costs to put `point` in a rung's place: score, and distance in log rate in steps."""
    loss = rung.score - point.score
    loss += rules.min_step * abs(math.log2(rung.bitrate_kbps / point.bitrate_kbps))
    # of equals the measured one
    return loss - rules.min_step / 4 * point.measured


def with_fillers(
    chosen: Sequence[RDPoint], points: Iterable[RDPoint], rules: Rules
) -> list[RDPoint]:
    """More rungs, up to `rules.most`: measured points that leave room to their neighbours."""
    rungs = list(chosen)
    spare = [p for p in front(points) if p not in rungs and p.score <= rules.ceiling]
    for point in sorted(spare, key=lambda p: -p.bitrate_kbps):
        at = sum(p.bitrate_kbps < point.bitrate_kbps for p in rungs)
        with_it = [*rungs[:at], point, *rungs[at:]]
        rising = all(a.height * a.width <= b.height * b.width for a, b in pairwise(with_it))
        room = len(rungs) < (rules.count or rules.most)
        if room and rising and _fits_between(point, with_it, at, rules):
            rungs = with_it
    return rungs


def _fits_between(point: RDPoint, rungs: Sequence[RDPoint], i: int, rules: Rules) -> bool:
    """Whether a point could take the place of rung i."""
    inside = rules.min_kbps <= point.bitrate_kbps <= rules.max_kbps and point.score >= rules.floor
    pairs = [(rungs[i - 1], point)] if i else []
    pairs += [(point, rungs[i + 1])] if i + 1 < len(rungs) else []
    return inside and all(
        low.bitrate_kbps * rules.min_ratio <= high.bitrate_kbps
        and low.score + rules.min_step <= high.score
        and low.width * low.height <= high.width * high.height
        for low, high in pairs
    )


def _stands_in(point: RDPoint, best: Sequence[RDPoint], rules: Rules) -> bool:
    rates = [p.bitrate_kbps for p in best]
    there = float(np.interp(point.bitrate_kbps, rates, [p.score for p in best]))
    nearest = min(best, key=lambda p: abs(math.log(p.bitrate_kbps / point.bitrate_kbps)))
    return (
        point.size == nearest.size
        and rules.min_kbps <= point.bitrate_kbps <= rules.max_kbps
        and point.score >= max(rules.floor, there - rules.near * rules.min_step)
    )


def _or_measured(point: RDPoint, near: Sequence[RDPoint]) -> RDPoint:
    if point.measured:
        return point
    log_rate = math.log(point.bitrate_kbps)
    distances = [(abs(math.log(p.bitrate_kbps) - log_rate), i) for i, p in enumerate(near)]
    if distances and min(distances)[0] <= math.log(NEAR_RATE):
        return near[min(distances)[1]]
    return point


def keep_rules(points: Iterable[RDPoint], rules: Rules) -> list[RDPoint]:
    """Of measured points, the largest set from the top down that keeps to the rules."""
    kept: list[RDPoint] = []
    inside = [p for p in points if rules.min_kbps <= p.bitrate_kbps <= rules.max_kbps]
    for point in sorted(front(inside), key=lambda p: -p.bitrate_kbps):
        if not kept or (
            point.bitrate_kbps * rules.min_ratio <= kept[-1].bitrate_kbps
            and point.score + rules.min_step <= kept[-1].score
        ):
            kept.append(point)
    return kept[::-1]
