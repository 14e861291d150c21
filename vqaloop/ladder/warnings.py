"""Warnings of a ladder, and whether its scores are to be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vqaloop.quality.metric import LEARNED, Metric
from vqaloop.records import RDPoint, Rung
from vqaloop.search.rungs import Rules

TOLERANCE_STEPS = 1.5
"""Steps (of the metric's own) by which a rung may miss its prediction before the ladder is not to
be trusted; on VMAF's scale 6 points, about one just noticeable difference."""


@dataclass(frozen=True)
class Doubts:
    """Rungs of which prediction, score and guard do not agree."""

    missed: tuple[Rung, ...]
    """Scored other than predicted from the excerpt."""
    astray: tuple[Rung, ...]
    """Scored other than VMAF, on whose scale the metric is."""

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
                f"{rung.file}: score {rung.score:.1f}, but VMAF {rung.guard['vmaf']:.1f}; the "
                "student does not know such material, use --metric vmaf"
                for rung in self.astray
            ),
        ]


def guard_falls(rungs: Sequence[Rung]) -> list[str]:
    """Warnings of neighbours whose VMAF does not rise with the score."""
    return [
        f"VMAF does not rise from {low.file} ({low.guard['vmaf']:.1f}) to "
        f"{high.file} ({high.guard['vmaf']:.1f}), though the score does"
        for low, high in zip(rungs, rungs[1:], strict=False)
        if low.guard["vmaf"] >= high.guard["vmaf"]
    ]


def find_doubts(rungs: Sequence[Rung], metric: Metric, whole: bool) -> Doubts:
    """`whole`: the search measured the very files, and planned with their scores."""
    tolerance = TOLERANCE_STEPS * metric.step
    missed = [r for r in rungs if not whole and abs(r.score - r.score_predicted) > tolerance]
    # only a score on VMAF's own scale can be held against VMAF
    gap = metric.guard_gap if metric.mode in LEARNED else math.inf
    astray = [rung for rung in rungs if abs(rung.score - rung.guard["vmaf"]) > gap]
    return Doubts(tuple(missed), tuple(astray))


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
