"""Warnings of a ladder, and whether its scores are to be trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vqaloop.core.text import counted, metric_name
from vqaloop.execution.capping import TOLERANCE, PeakLimit
from vqaloop.quality.full_reference import CAMBI
from vqaloop.quality.guard import FIGURES, Guarded
from vqaloop.quality.metric import Metric
from vqaloop.quality.sampled_vmaf import SAMPLED
from vqaloop.records import RDPoint, Rendition, Rung, RungScene, TwoPasses
from vqaloop.search.rungs import Rules

TOLERANCE_STEPS = 1.5
"""Steps (of the metric's own) by which a rung may miss its prediction before the ladder is not to
be trusted; on VMAF's scale 6 points, about one just noticeable difference."""
V1_GAP = 8.0
"""Points of VMAF v1 below VMAF v0.6.1 that show a flaw which the latter does not see. Plain
encodes have 5 at most (35 of nine clips); crushed blacks 11 to 16, swapped chroma 13 to 20."""


NO_LADDER_CAPPED = (
    "rungs have peaks above 2 times their average: brought below, too few would be left for a "
    "ladder; --peak-ratio with more is a bound that they may keep"
)
"""Where the default bound of peaks is given up."""
BANDING = 5.0
"""CAMBI from which banding is slightly annoying (Tandon et al. 2021), the limit of a warning where
no other is asked for."""
UNTRUSTED = (
    "a score is far from its prediction or from VMAF, or a bound that was asked for is broken"
)
"""Why a ladder is not to be trusted, in general; its warnings name the rungs."""


@dataclass(frozen=True)
class Doubts:
    """Rungs of which prediction, score and guard do not agree."""

    missed: tuple[Rung, ...]
    """Scored other than predicted from the excerpt."""
    astray: tuple[tuple[Rung, str], ...]
    """Scored other than a figure of the guard on the metric's scale, and the figure's name."""
    advice: str
    """What to make of the latter."""

    @property
    def trusted(self) -> bool:
        return not self.missed and not self.astray

    @property
    def lines(self) -> list[str]:
        """A warning each."""
        return [
            *(
                f"{rung.file}: score {rung.score:.1f}, predicted {rung.score_predicted:.1f}"
                for rung in self.missed
            ),
            *(
                f"{rung.file}: score {_mean(rung):.1f}, but {metric_name(figure)} "
                f"{_with_spread(rung, figure)}; {self.advice}"
                for rung, figure in self.astray
            ),
        ]


def _mean(rung: Rung) -> float:
    """The mean score, as the figures of the guard are means."""
    return rung.score if rung.score_mean is None else rung.score_mean


def _figure(guard: Mapping[str, float], metric: str) -> str:
    """The guard's figure by a metric. VMAF v0.6.1 of any size has one of its own where it is not
    that of `vmaf`."""
    name = FIGURES[metric]
    return FIGURES["vmaf"] if metric == "vmaf-hd" and name not in guard else name


def _with_spread(rung: Rung, figure: str) -> str:
    """A figure, with its interval where it is sampled."""
    spread = rung.guard_interval.get(figure)
    more = f" ({spread[0]:.1f} to {spread[1]:.1f})" if spread else ""
    return f"{rung.guard[figure]:.1f}{more}"


def _farthest(mean: float, value: float, spread: tuple[float, float] | None) -> float:
    """How far a score may be from a figure: from the farther end of its interval."""
    return max(abs(mean - end) for end in spread or (value, value))


def is_undecided(mean: float, guarded: Guarded, metric: Metric) -> bool:
    """Whether a mean score agrees with some values of the guard's interval and not with others."""
    if metric.guarded_by is None:
        return False
    figure = _figure(guarded.figures, metric.guarded_by)
    spread = guarded.intervals.get(figure)
    if spread is None:
        return False
    nearest = abs(mean - min(max(mean, spread[0]), spread[1]))
    return nearest <= metric.guard_gap < _farthest(mean, guarded.figures[figure], spread)


def banded(rungs: Sequence[Rung], limit: float | None) -> list[Rung]:
    """Rungs with more visible banding than a limit, or than annoys where none is asked for.

    A limit that is asked for is kept by the upper end of a sampled figure's interval.
    """

    def most(rung: Rung) -> float:
        value = rung.guard.get(CAMBI, 0.0)
        return value if limit is None else rung.guard_interval.get(CAMBI, (value, value))[1]

    return [
        r for r in rungs if CAMBI in r.guard and most(r) > (BANDING if limit is None else limit)
    ]


def banding_warnings(
    rungs: Sequence[Rung], limit: float | None, depth: int, cure: tuple[str, str] | None = None
) -> list[str]:
    """Of rungs with too much visible banding how much, when, and what helps.

    `cure` is the file of the rung of which that was measured, and its cost in words.
    """
    found = []
    for rung in banded(rungs, limit):
        above = "from about 5 on it annoys" if limit is None else f"the limit is {limit:g}"
        help = "; --bit-depth 10 has finer steps, where the encoder takes it" * (depth == 8)
        if cure and cure[0] == rung.file:
            help = cure[1]
        found.append(
            f"{rung.file}: visible banding, CAMBI {_with_spread(rung, CAMBI)} where {above}, "
            f"most at {rung.banding_at_s or 0:.1f} s{help}"
        )
    return found


def guard_warnings(rungs: Sequence[Rung]) -> list[str]:
    """Where figures of the guard do not agree with the score, or with each other."""
    if not any(rung.guard for rung in rungs):
        return ["the guard was off: nothing but their own score has measured these files"]
    found = [
        f"{metric_name(name)} does not rise from {low.file} ({low.guard[name]:.1f}) to "
        f"{high.file} ({high.guard[name]:.1f}), though the score does"
        for low, high in zip(rungs, rungs[1:], strict=False)
        for name in ("vmaf", "vmaf_v1", "xpsnr")
        # a ladder of an earlier version has fewer figures
        if low.guard.get(name, -math.inf) >= high.guard.get(name, math.inf)
    ]
    return found + [
        f"{rung.file}: VMAF {rung.guard[_figure(rung.guard, 'vmaf-hd')]:.1f}, but VMAF v1 "
        f"{rung.guard['vmaf_v1']:.1f}; it "
        "has flaws that VMAF does not see, of colour, banding or dark parts: look at it"
        for rung in rungs
        if rung.guard.get(_figure(rung.guard, "vmaf-hd"), 0) - rung.guard.get("vmaf_v1", 100)
        > V1_GAP
    ]


def find_doubts(rungs: Sequence[Rung], metric: Metric, whole: bool, hdr: bool = False) -> Doubts:
    """`whole`: the search measured the very files, and planned with their scores; `hdr`: of PQ or
    HLG, on which neither score nor guard holds."""
    tolerance = TOLERANCE_STEPS * metric.step
    missed = [r for r in rungs if not whole and abs(r.score - r.score_predicted) > tolerance]
    judge, advice = metric.guarded_by, ""
    if judge is not None:
        known = judge.removesuffix("-hd")
        advice = f"the student does not know such material, use --metric {known}"
        if metric.name in SAMPLED:
            advice = f"other frames are unlike those sampled, use --metric {known}"
        if hdr:
            advice = "neither is made for HDR, use --metric cvvdp"
    figures = [] if judge is None else [_figure(rung.guard, judge) for rung in rungs]
    astray = [
        (rung, figure)
        for rung, figure in zip(rungs, figures, strict=False)
        if figure in rung.guard
        and _farthest(_mean(rung), rung.guard[figure], rung.guard_interval.get(figure))
        > metric.guard_gap
    ]
    return Doubts(tuple(missed), tuple(astray), advice)


def budget_warning(seconds: float, trials: int) -> str:
    """That the time budget ended the search."""
    return (
        f"the time budget of {seconds:g} s ended the search after {trials} trials; with more time "
        "the ladder may be better"
    )


def rules_warnings(kept: Sequence[RDPoint], rules: Rules) -> list[str]:
    """What was asked for and is not among the rungs that keep the rules."""
    warnings = []
    if rules.count is not None and len(kept) < rules.count:
        warnings.append(
            f"{rules.count} rungs were asked for and the rules leave {len(kept)}; "
            "loosen --min-step or --min-ratio for more"
        )
    if kept and math.prod(kept[-1].size) < rules.least_top:
        warnings.append(
            f"the highest rung is {kept[-1].width}x{kept[-1].height}: none as large as "
            "--min-top-size keeps the other rules"
        )
    sizes = {point.size for point in kept}
    warnings += [
        f"{width}x{height} was required and has no rung that keeps the other rules"
        for width, height in rules.required
        if (width, height) not in sizes
    ]
    return warnings


def falling_score_warning(low: RDPoint, high: RDPoint, looked: str) -> str:
    """That the score of a size falls from one rate to the next; `looked` at how closely."""
    return (
        f"{low.width}x{low.height}: the score falls from {low.score:.2f} at "
        f"{low.bitrate_kbps:.0f} kb/s to {high.score:.2f} at {high.bitrate_kbps:.0f} kb/s "
        f"({looked})"
    )


def capped_away_warning(planned: int, kept: int) -> str:
    """That caps, or second passes, have left fewer rungs."""
    return (
        f"{planned} rungs were chosen and {kept} are left: under the bound of their peaks the "
        "others are too near to each other; --peak-ratio with more, or --no-cap, leaves them"
    )


def two_pass_away_warning(planned: int, kept: int) -> str:
    """That two passes have left fewer rungs."""
    return (
        f"{planned} rungs were chosen and {kept} are left: in two passes the others are too near "
        "to each other; a smaller --min-step or --min-ratio leaves them"
    )


def late_warning(seconds: float, rungs: int) -> str:
    """That the time budget left no time for caps and second passes."""
    return (
        f"the time budget of {seconds:g} s had run out before {rungs} rung(s) could be capped or "
        "made in two passes: they are as the search left them; give more time"
    )


def missed_goal_warning(rendition: Rendition, passes: TwoPasses) -> str:
    """That two passes missed the average they were to reach."""
    return (
        f"{rendition.width}x{rendition.height}: two passes took {passes.mean_kbps:.0f} kb/s where "
        f"{passes.goal_kbps} were the goal ({100 * passes.missed:+.0f} %)"
    )


def one_pass_warning(rendition: Rendition, encoder: str) -> str:
    """That a rung is not in two passes for the sake of its bound."""
    return (
        f"{rendition}: two passes of {encoder} take no cap and its peak is above the bound, so "
        "that this rung is one pass that keeps it; without a bound (--no-cap) there are two"
    )


def unbounded_warning(rendition: Rendition, error: Exception) -> str:
    """That a rung is left as it was, since encoding it for the default bound failed."""
    return (
        f"{rendition}: its peak is above the default bound, and bringing it below failed: {error}"
    )


def failed_passes_warning(rendition: Rendition, error: Exception) -> str:
    """That a rung is not in two passes since its encoder failed at them."""
    return f"{rendition}: two passes failed, so that this rung is one pass: {error}"


def lost_warning(made: int, kept: int) -> str:
    """That rungs as made lie nearer to each other than planned."""
    return (
        f"{made} rungs were made and {kept} are left: as files the others are too near to each "
        "other; loosen --min-step or --min-ratio for more"
    )


@dataclass(frozen=True)
class Starved:
    """A scene below the floor of its rung."""

    scene: RungScene
    held: bool
    """Whether a bound of its peak holds it there."""


def starved_warning(rung: RDPoint, below: Sequence[Starved], floor: float) -> str:
    """That scenes of a rung lie below its floor."""
    lowest = min(below, key=lambda item: item.scene.score or 0.0)
    worst, score = lowest.scene, lowest.scene.score or 0.0
    others = f" (and {counted(len(below) - 1, 'scene')} more)" if len(below) > 1 else ""
    why = "the bound of its peak holds it" if lowest.held else "more bits would buy it little"
    return (
        f"{rung.width}x{rung.height} at {rung.bitrate_kbps:.0f} kb/s: frames {worst.start_frame} "
        f"to {worst.end_frame - 1}{others} score {score:.1f}, below the floor of scenes "
        f"({floor:g} below the rung's {rung.score:.1f}); {why}"
    )


def peak_warnings(rungs: Sequence[Rung], over: Sequence[float], limit: PeakLimit) -> list[str]:
    """Rungs whose peak is above its bound, `over` times, though all caps were tried."""
    bounds = [f"{limit.ratio:g} times the average"] * math.isfinite(limit.ratio)
    bounds += [f"{limit.kbps:g} kb/s"] * math.isfinite(limit.kbps)
    fair = "" if limit.asked else " without a loss of score"
    return [
        f"{rung.file}: its peak is {100 * (part - 1):.0f} % above the bound of "
        f"{' and '.join(bounds)}, and nothing brought it below{fair}"
        for rung, part in zip(rungs, over, strict=True)
        if part > 1 + TOLERANCE
    ]
