"""Statistics of two builds: BD-rates with a noise floor and a bootstrap interval over clips.

The rate-quality curves of two builds are compared clip by clip (see quality.bdrate). The mean over
the clips is compared with the noise floor, which is the spread of the mean between two runs of the
same build (0 for a deterministic encoder), and has an interval for the choice of clips: clips are
drawn with replacement (the bootstrap of Efron 1979).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from msgspec import Meta

from vqaloop.core.documents import Number, Positive, Whole, one_of
from vqaloop.core.text import counted
from vqaloop.quality.bdrate import MIN_POINTS, Curve, Method, NotComparable, bd_rate
from vqaloop.records import RDPoint
from vqaloop.search.hull import convex_hull

BASELINE, REPEAT, CANDIDATE = "baseline", "repeat", "candidate"
"""Roles of a run; the repeat is a second run of the baseline."""
SATURATED = 99.5
"""Of 100: above it VMAF and the students fitted to it no longer separate encodes; the common
test conditions of AOM cut a curve there too."""
LEAST_CLIPS = 3
"""With fewer clips there is no interval."""
DRAWS = 4000
"""Bootstrap samples."""
CONFIDENCE = 0.99
"""Share of comparisons of a build with itself that stay within the noise floor."""


@dataclass(frozen=True)
class ScoredRun:
    """One run of a build that was decoded and scored."""

    build: Annotated[str, one_of(BASELINE, REPEAT, CANDIDATE)]
    width: Whole
    """Pixels."""
    height: Whole
    """Pixels."""
    point: str
    """As people read it: crf 27, 800 kb/s."""
    value: Number
    """The knob's value, or the target bitrate in kb/s."""
    bitrate_kbps: Positive
    """Of the coded frames alone."""
    scores: Mapping[str, Number]
    """By name of the metric."""
    cpu_s: Number
    wall_s: Number
    peak_bytes: Whole
    """Largest resident set."""
    stream_sha256: str
    """Of the coded frames, in order of coding."""
    decoded_md5: str
    """Of the decoded frames."""

    @property
    def where(self) -> tuple[int, int, float]:
        return self.width, self.height, self.value


RUN_KINDS: dict[str, Callable[[ScoredRun], float]] = {
    # quantities by which runs are compared, besides their curves
    "cpu": lambda run: run.cpu_s,
    "wall": lambda run: run.wall_s,
    "peak": lambda run: run.peak_bytes,
    "rate": lambda run: run.bitrate_kbps,
}


@dataclass(frozen=True)
class Failure:
    """One run of a build that failed, so that there is nothing to score."""

    build: str
    width: Whole
    height: Whole
    point: str
    kind: str
    """crash, hang, no-output, truncated, undecodable, frame-count or not-scored."""
    message: str

    @property
    def where(self) -> tuple[int, int, str]:
        return self.width, self.height, self.point


@dataclass(frozen=True)
class ClipRuns:
    """All runs on one clip."""

    clip: str
    """Its name."""
    sha256: str
    """Of the file."""
    width: Whole
    """Pixels."""
    height: Whole
    """Pixels."""
    frames: Whole
    fps: Annotated[str, Meta(pattern=r"\A[1-9]\d{0,9}/[1-9]\d{0,9}\Z")]
    """Frames per second, as a fraction."""
    runs: tuple[ScoredRun, ...] = ()
    failures: tuple[Failure, ...] = ()

    def of(self, build: str) -> list[ScoredRun]:
        return [run for run in self.runs if run.build == build]

    def pairs(self, one: str, other: str) -> list[tuple[ScoredRun, ScoredRun]]:
        """The runs of two builds at the same size and point."""
        others = {run.where: run for run in self.of(other)}
        return [(run, others[run.where]) for run in self.of(one) if run.where in others]


@dataclass(frozen=True)
class Limits:
    """Differences from which on a check fails; all in percent."""

    threshold: float = 0.5
    """Mean BD-rate over the clips."""
    clip: float = 5.0
    """BD-rate of a single clip."""
    time: float | None = None
    """CPU time of the encoder; None: reported and not judged, as below."""
    memory: float | None = None
    rate: float | None = None
    """Bitrate at the same knob, or distance from the target bitrate."""


@dataclass(frozen=True)
class Gap:
    """BD-rates of one clip by one metric, in percent; or why there are none."""

    pchip: float | None = None
    akima: float | None = None
    noise: float | None = None
    """Of the baseline against itself; None where it was not run twice or cannot be compared."""
    refused: str | None = None
    worse: bool = False
    """Refused, and the candidate is worse at every point."""


@dataclass(frozen=True)
class Mean:
    """Mean BD-rate over the clips by one metric, in percent; with fields as of Gap."""

    values: Mapping[str, float] = field(default_factory=dict)
    """PCHIP by clip, of those that could be compared."""
    value: float | None = None
    akima: float | None = None
    interval: tuple[float, float] | None = None
    noise_floor: float | None = None
    refused: int = 0
    verdict: str = "cannot tell"


@dataclass(frozen=True)
class Ratio:
    """Change of a quantity of RUN_KINDS from baseline to candidate, in percent."""

    by_clip: Mapping[str, float]
    value: float | None
    noise_floor: float | None
    verdict: str
    """not judged, where no limit was given."""


def clip_gap(clip: ClipRuns, metric: str) -> Gap:
    """BD-rate of the candidate against the baseline on one clip, PCHIP with Akima beside it.

    With several sizes, of the two hulls.
    """
    if clip.failures and (both := len(clip.pairs(BASELINE, CANDIDATE))) < MIN_POINTS:
        points = counted(both, "point")
        return Gap(refused=f"the two have runs in common at {points}; {MIN_POINTS} are needed")
    baseline, candidate = curve_pair(clip, CANDIDATE, metric)
    try:
        pchip = bd_rate(baseline, candidate, names=(BASELINE, CANDIDATE))
    except NotComparable as error:
        return Gap(refused=str(error), worse=_worse_everywhere(baseline, candidate))
    return Gap(
        pchip,
        akima=_or_none(baseline, candidate, "akima"),
        noise=_or_none(*curve_pair(clip, REPEAT, metric), "pchip"),
    )


def _worse_everywhere(baseline: Curve, candidate: Curve) -> bool:
    """Whether the baseline has, for every point of the candidate, a better one for no more bits.

    It is defined for curves that have no score in common too, and so no BD-rate.
    """
    return bool(candidate) and all(
        any(bits <= kbps and better > score for bits, better in baseline)
        for kbps, score in candidate
    )


def curve_pair(clip: ClipRuns, build: str, metric: str) -> tuple[Curve, Curve]:
    """The baseline's curve and that of `build`, through the sizes and points that both have.

    Without one of its points a curve would be interpolated otherwise, though the build is as good.
    """
    pairs = clip.pairs(BASELINE, build)
    ours, theirs = [one for one, _ in pairs], [other for _, other in pairs]
    return rate_curve(ours, metric), rate_curve(theirs, metric)


def is_comparable(runs: Sequence[ScoredRun], metric: str) -> bool:
    """Whether a curve through these runs could be compared with another."""
    curve = rate_curve(runs, metric)
    return _or_none(curve, curve, "pchip") is not None


def _or_none(one: Curve, other: Curve, method: Method) -> float | None:
    try:
        return bd_rate(one, other, method=method)
    except NotComparable:
        return None


def rate_curve(runs: Sequence[ScoredRun], metric: str) -> Curve:
    """(kb/s, score) ascending; of several sizes the hull; without a saturated tail."""
    points = [
        RDPoint(run.width, run.height, run.value, run.bitrate_kbps, run.scores[metric])
        for run in runs
        if metric in run.scores
    ]
    if len({point.size for point in points}) > 1:
        points = convex_hull(points)
    points.sort(key=lambda point: point.bitrate_kbps)
    # at saturation the order of scores is chance, not a property of the build
    while len(points) > 1 and SATURATED <= points[-2].score >= points[-1].score:
        points.pop()
    return [(point.bitrate_kbps, point.score) for point in points]


def mean_gap(gaps: Mapping[str, Gap], threshold: float, *, seed: int = 0) -> Mean:
    """The mean BD-rate over the clips that can be compared, with its verdict.

    A regression (or improvement) lies beyond the threshold and the noise floor, and its interval
    leaves 0 out.
    """
    values = {clip: gap.pchip for clip, gap in gaps.items() if gap.pchip is not None}
    refused = len(gaps) - len(values)
    if not values:
        return Mean(refused=refused)
    mean = float(np.mean(list(values.values())))
    akimas = [gap.akima for gap in gaps.values() if gap.pchip is not None]
    noises = [gap.noise for gap in gaps.values() if gap.pchip is not None]
    known = [noise for noise in noises if noise is not None]
    # where the repeat of a clip failed, the noise of the others stands for all, scaled to the mean
    floor = noise_floor(known, len(values)) if known else None
    interval = bootstrap(list(values.values()), seed=seed)
    return Mean(
        values,
        mean,
        float(np.mean([a for a in akimas if a is not None])) if None not in akimas else None,
        interval,
        floor,
        refused,
        change_verdict(mean, max(threshold, floor or 0.0), interval),
    )


def change_verdict(value: float, limit: float, interval: tuple[float, float] | None) -> str:
    """Regression, improvement or no change; `interval` None where there are too few clips."""
    low, high = interval or (value, value)
    if value > limit and low > 0:
        return "regression"
    return "improvement" if value < -limit and high < 0 else "no change"


def noise_floor(differences: Sequence[float], clips: int | None = None) -> float:
    """Limit of the difference of a mean over `clips` between two runs of one build, in percent.

    `differences` are those of one such pair of runs, by clip (`clips` defaults to their number).
    Taken as draws about 0: a mean of m stays within t s / sqrt(m) in CONFIDENCE of
    the cases, with s the root mean square of the n differences and t Student's quantile of n
    degrees of freedom.
    """
    if not differences or not any(differences):
        return 0.0
    from scipy.stats import t

    n = len(differences)
    spread = math.sqrt(sum(d * d for d in differences) / n)
    return float(t.ppf((1 + CONFIDENCE) / 2, n)) * spread / math.sqrt(clips or n)


def bootstrap(values: Sequence[float], *, seed: int = 0) -> tuple[float, float] | None:
    """95 % interval (percentiles) of the mean over the choice of clips; None under LEAST_CLIPS."""
    if len(values) < LEAST_CLIPS:
        return None
    rng = np.random.default_rng(seed)
    drawn = np.asarray(values)[rng.integers(len(values), size=(DRAWS, len(values)))].mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def mean_ratio(
    clips: Iterable[ClipRuns],
    one: str,
    other: str,
    what: Callable[[ScoredRun], float],
) -> dict[str, float]:
    """Geometric mean of other/one over the points of each clip that has any."""
    found = {}
    for clip in clips:
        pairs = [(what(a), what(b)) for a, b in clip.pairs(one, other)]
        mean = geometric_mean([b / a for a, b in pairs if min(a, b) > 0])
        if mean is not None:
            found[clip.clip] = mean
    return found


def geometric_mean(ratios: Iterable[float]) -> float | None:
    """None where there are no ratios."""
    logs = [math.log(ratio) for ratio in ratios]
    return math.exp(sum(logs) / len(logs)) if logs else None


def percent(ratio: float) -> float:
    return 100 * (ratio - 1)


def compare_ratio(clips: Sequence[ClipRuns], kind: str, limit: float | None, seed: int) -> Ratio:
    """By a key of RUN_KINDS; `limit` in percent, None to leave it unjudged."""
    what = RUN_KINDS[kind]
    ratios = mean_ratio(clips, BASELINE, CANDIDATE, what)
    by_clip = {clip: percent(ratio) for clip, ratio in ratios.items()}
    mean = geometric_mean(ratios.values())
    if mean is None:
        return Ratio({}, None, None, "cannot tell")
    again = mean_ratio(clips, BASELINE, REPEAT, what)
    floor = noise_floor([percent(ratio) for ratio in again.values()]) if again else None
    value = percent(mean)
    verdict = "not judged"
    if limit is not None:
        interval = bootstrap(list(by_clip.values()), seed=seed)
        verdict = change_verdict(value, max(limit, floor or 0.0), interval)
        if kind == "rate" and verdict == "improvement":
            # at the same knob neither more nor less is better: it has moved
            verdict = "regression"
    return Ratio(by_clip, value, floor, verdict)


def rate_errors(clips: Sequence[ClipRuns], index: int) -> dict[str, float]:
    """Mean distance of the bitrate from its target, in percent of the target, by clip.

    `index` 0 is the baseline, 1 the candidate; over the points at which both have a run.
    """
    found = {}
    for clip in clips:
        runs = [pair[index] for pair in clip.pairs(BASELINE, CANDIDATE)]
        misses = [abs(run.bitrate_kbps / run.value - 1) for run in runs if run.value > 0]
        if misses:
            found[clip.clip] = 100 * sum(misses) / len(misses)
    return found
