"""Warnings of a ladder: a budget that ended the search, rules not met, scores that fall."""

from __future__ import annotations

from collections.abc import Sequence

from vqaloop.records import RDPoint
from vqaloop.search.rungs import Rules


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
