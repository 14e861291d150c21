"""Other ways to find a ladder, re-implemented from their descriptions, on an oracle.

Each takes an oracle, the metric that steers it and the rules of our own ladders (for those that
have no rule of their own), and returns the delivered rungs and the encodes spent on them.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from bench.oracle import Encoded, Oracle, Tally
from vqaloop.encoding.spec import Knob
from vqaloop.records import RDPoint
from vqaloop.search.hull import convex_hull
from vqaloop.search.rungs import Rules, choose_rungs
from vqaloop.search.space import Space

Size = tuple[int, int]

TARGETS = (35, 45, 55, 65, 75, 85, 95)
"""Targets for a ladder from a single-target search."""

APPLE = {
    "h264": [
        (234, 145), (360, 365), (432, 730), (432, 1100), (540, 2000), (720, 3000), (720, 4500),
        (1080, 6000), (1080, 7800),
    ],
    "hevc": [
        (360, 145), (432, 300), (540, 600), (540, 900), (540, 1600), (720, 2400), (720, 3400),
        (1080, 4500), (1080, 5800),
    ],
}  # fmt: skip
"""Height and average kb/s, up to 1080p and 30 fps: HLS Authoring Specification for
Apple Devices, item 1.25, "Video average bit rate". Codecs that it lacks take HEVC's."""
APPLE_TOP = (1920, 1080)

VISER_CRF = range(18, 43, 4)
VISER_HEIGHTS = (1080, 720, 480)
VISER_RUNGS, VISER_KBPS, VISER_SCORES = 6, (200.0, 8000.0), (40.0, 97.0)
CRF_SEARCH = (16.0, 44.0)
"""The range that our encoder files search for x264 and x265, to which viser's CRFs belong."""

AOM_RATIOS = (1, 1.5, 2, 3)
"""Of 1, 1.5, 2, 3, 4 and 6: the grid has no smaller sizes."""
AOM_KNOBS = 6


@dataclass(frozen=True)
class Result:
    """The rungs of a method, and its encodes."""

    rungs: tuple[Encoded, ...]
    """Ascending in rate."""
    searched: tuple[Encoded, ...]
    """Encoded and scored."""
    finals: tuple[Encoded, ...] = ()
    """Encoded only, to be delivered."""

    @property
    def encodes(self) -> tuple[Encoded, ...]:
        return self.searched + self.finals


def delivered(rungs: Iterable[Encoded], searched: Iterable[Encoded] = ()) -> Result:
    """A result whose rungs are encodes of the search where it has them, else one more each."""
    known = {e.point: e for e in searched}
    chosen = {e.point: e for e in rungs}
    finals = [e for point, e in chosen.items() if point not in known]
    ordered = sorted(chosen.values(), key=lambda e: (e.kbps, e.point))
    return Result(tuple(ordered), tuple(known.values()), tuple(finals))


def steps(knob: Knob) -> list[float]:
    """Every knob of the search range, from best to worst quality."""
    values = Space((), knob).grid()
    return values if knob.lower_is_better else values[::-1]


def nearest_size(oracle: Oracle, part: float) -> Size:
    """The size whose side is nearest, as a ratio, to `part` of the largest."""
    height = oracle.sizes[0][1]
    return min(oracle.sizes, key=lambda s: abs(math.log(s[1] / (height * part))))


def bisect(tally: Tally, size: Size, target: float) -> Encoded | None:
    """The worst knob that reaches a score, by the bisection of `ab-av1 crf-search`.

    The middle first; then 20 or 80 % of the range, then its end, until two probes bracket the
    target; then the straight line between the two nearest probes, kept inside them. A probe does
    that exceeds the target by less than a tolerance of 0.1, which doubles with each run (times the
    knob's step, never under 0.1), or whose next worse neighbour is known to fail. None when even
    the best knob fails. Differences: the range is the search range of our encoder file (theirs is
    wider, which costs them probes), the step is the encoder's, and a bound on size is not set.
    https://github.com/alexheretic/ab-av1, src/command/crf_search.rs
    """
    knobs = steps(tally.oracle.knob)
    last = len(knobs) - 1
    tried: dict[int, float] = {}
    at = last // 2
    while True:
        tried[at] = tally.measure((*size, knobs[at])).score
        tolerance = max(0.1, tally.oracle.knob.step * 0.1 * 2 ** (len(tried) - 1))
        reached = tried[at] >= target
        if reached and tried[at] < target + tolerance:
            return tally.searched[(*size, knobs[at])]
        end = last if reached else 0
        others = [i for i in tried if (i > at if reached else i < at)]
        if not others:
            if at == end:
                return tally.searched[(*size, knobs[at])] if reached else None
            first = round(last * (0.8 if reached else 0.2))
            at = first if len(tried) == 1 and first != at else end
            continue
        other = min(others, key=lambda i: abs(i - at))
        better, worse = sorted((at, other))
        if worse == better + 1:
            return tally.searched[(*size, knobs[better])]
        share = (target - tried[worse]) / (tried[better] - tried[worse])
        at = min(max(round(worse - (worse - better) * share), better + 1), worse - 1)


def bisection_by_table(oracle: Oracle, metric: str, rules: Rules) -> Result:
    """One size for each target: the one that a fixed ladder has at that place.

    A one-target search knows no sizes, so its user takes them from a table: of Apple's nine rungs
    the seven evenly spread ones, for TARGETS. The probe that met the target is delivered as it is;
    a target that is out of reach at its size has no rung.
    """
    table = _apple(oracle.codec)
    tally = Tally(oracle, metric)
    places = np.linspace(0, len(table) - 1, len(TARGETS)).round().astype(int)
    found = [
        bisect(tally, nearest_size(oracle, table[place][0] / APPLE_TOP[1]), target)
        for place, target in zip(places, TARGETS, strict=True)
    ]
    return delivered([e for e in found if e], tally.searched.values())


def bisection_of_all(oracle: Oracle, metric: str, rules: Rules) -> Result:
    """Every target searched at every size, and the cheapest taken; targets share their probes."""
    tally = Tally(oracle, metric)
    rungs = []
    for target in TARGETS:
        found = [e for size in oracle.sizes if (e := bisect(tally, size, target))]
        if found:
            rungs.append(min(found, key=lambda e: e.kbps))
    return delivered(rungs, tally.searched.values())


def viser_grid(oracle: Oracle, metric: str, rules: Rules) -> Result:
    """viser's default: three sizes by seven CRFs, the hull of the measured points, six of them.

    1080p, 720p and 480p become those sizes of the grid that are nearest to the same parts of the
    source; CRF 18 to 42 the same parts of other encoders' ranges. Points within the bounds of rate
    (scaled with the pixels, from 1080p) and score, none below the crossover to its resolution; of
    those the nearest unused one to each of six evenly spaced scores. Searched at the delivered
    preset, so the rungs are the trial encodes. https://github.com/vbasky/viser, viser-ladder
    """
    tally = Tally(oracle, metric)
    low, high = oracle.knob.search
    parts = [(crf - CRF_SEARCH[0]) / (CRF_SEARCH[1] - CRF_SEARCH[0]) for crf in VISER_CRF]
    knobs = [oracle.knob.snap(low + (high - low) * part) for part in parts]
    sizes = dict.fromkeys(nearest_size(oracle, h / VISER_HEIGHTS[0]) for h in VISER_HEIGHTS)
    hull = convex_hull(tally.measure((*size, knob)) for size in sizes for knob in knobs)
    crossover: dict[Size, float] = {}
    for a, b in zip(hull, hull[1:], strict=False):
        if (a.width, a.height) != (b.width, b.height):
            crossover[b.width, b.height] = (a.bitrate_kbps + b.bitrate_kbps) / 2
    scale = _pixels(oracle.sizes[0]) / _pixels(APPLE_TOP)
    left = [
        p
        for p in hull
        if VISER_KBPS[0] * scale <= p.bitrate_kbps <= VISER_KBPS[1] * scale
        and p.score >= VISER_SCORES[0]
        and p.bitrate_kbps >= crossover.get((p.width, p.height), 0)
    ]
    rungs = left
    if len(left) > VISER_RUNGS:
        top = min(left[-1].score, VISER_SCORES[1])
        rungs = []
        for target in np.linspace(left[0].score, top, VISER_RUNGS):
            rungs.append(min(left, key=lambda p: abs(p.score - target)))
            left.remove(rungs[-1])
    return delivered(_encodes(oracle, rungs), tally.searched.values())


def aom_hull(oracle: Oracle, metric: str, rules: Rules) -> Result:
    """AOM's convex hull framework: ratios by six QPs, PCHIP at every QP between, then the hull.

    Four of its six ratios, so 24 encodes where it has 36; the QPs evenly over the search range. It
    makes a hull and no ladder: rungs are chosen on it by our rules, and each that is not among the
    24 is one more encode. https://gitlab.com/AOMediaCodec/convexhull_framework
    """
    tally = Tally(oracle, metric)
    knobs = [oracle.knob.snap(k) for k in np.linspace(*oracle.knob.search, AOM_KNOBS)]
    for size in dict.fromkeys(nearest_size(oracle, 1 / ratio) for ratio in AOM_RATIOS):
        for knob in knobs:
            tally.measure((*size, knob))
    seen = Oracle(oracle.clip, oracle.codec, tally.searched.values(), oracle.knob)
    chosen = choose_rungs(seen.hull(metric, oracle.knob.step), rules)
    return delivered(_encodes(oracle, chosen), tally.searched.values())


def fixed_ladder(oracle: Oracle, metric: str, rules: Rules) -> Result:
    """Apple's ladder for HLS: no search, one encode a rung at the table's rate.

    Sizes are the grid's nearest to the same parts of the source, rates are scaled with the pixels
    (source to 1080p). The encode is the one whose rate is the table's, as a perfect rate control
    would make it; where no knob gives that rate, the end of the knob's range.
    """
    scale = _pixels(oracle.sizes[0]) / _pixels(APPLE_TOP)
    rungs = []
    for height, kbps in _apple(oracle.codec):
        size = nearest_size(oracle, height / APPLE_TOP[1])
        rungs.append(at_rate(oracle, size, kbps * scale))
    return delivered(rungs)


def at_rate(oracle: Oracle, size: Size, kbps: float) -> Encoded:
    """The encode of a size that has a rate, or is nearest to it in the knob's range."""

    def excess(knob: float) -> float:
        return math.log(oracle.at(*size, knob).kbps / kbps)

    low, high = oracle.knob.search
    ends = excess(low), excess(high)
    if ends[0] * ends[1] >= 0:
        return oracle.at(*size, low if abs(ends[0]) < abs(ends[1]) else high)
    return oracle.at(*size, float(brentq(excess, low, high, xtol=1e-6)))


def exhaustive(oracle: Oracle, metric: str, rules: Rules) -> Result:
    """Every size at every knob the encoder takes, and rungs chosen on the hull by our rules.

    What the figures of a perfect search are: its rungs lie on the hull, and its Bjontegaard delta
    is that of drawing the hull through so few points.
    """
    knobs = steps(oracle.knob)
    searched = [e for size in oracle.sizes for e in oracle.curve(*size, knobs)]
    hull = convex_hull(e.judged(metric) for e in searched)
    return delivered(_encodes(oracle, choose_rungs(hull, rules)), searched)


def _apple(codec: str) -> list[tuple[int, int]]:
    return APPLE.get(codec, APPLE["hevc"])


def _pixels(size: Size) -> int:
    return size[0] * size[1]


def _encodes(oracle: Oracle, points: Iterable[RDPoint]) -> list[Encoded]:
    return [oracle.at(p.width, p.height, p.knob) for p in points]
