"""Parts of the document `vqaloop.ladder/1`, and what is to be said of a ladder in words."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vqaloop.records import RDPoint, Rung, rounded
from vqaloop.search.hull import convex_hull, rising_front
from vqaloop.search.rungs import Rules
from vqaloop.search.surrogates import Predictions


def doubts(rungs: Sequence[Rung], missed: Sequence[Rung], astray: Sequence[Rung]) -> list[str]:
    """Where prediction, score and guard do not agree, in words."""
    doubts = [
        f"{rung.file}: score {rung.score:.1f}, predicted {rung.score_predicted:.1f}"
        for rung in missed
    ]
    doubts += [
        f"{rung.file}: score {rung.score:.1f}, but VMAF {rung.guard['vmaf']:.1f}; the student "
        "does not know such material, use --metric vmaf"
        for rung in astray
    ]
    for low, high in zip(rungs, rungs[1:], strict=False):
        if low.guard["vmaf"] >= high.guard["vmaf"]:
            doubts.append(
                f"VMAF does not rise from {low.file} ({low.guard['vmaf']:.1f}) to "
                f"{high.file} ({high.guard['vmaf']:.1f}), though the score does"
            )
    return doubts


def hull_json(points: Sequence[RDPoint], dense: Predictions) -> list[dict[str, Any]]:
    """The hull that rungs are taken from, ascending: of what was measured, and of what is believed
    between two measurements of a size. What is believed beyond them is a guess."""
    rates: dict[tuple[int, int], list[float]] = {}
    for point in points:
        rates.setdefault(point.size, []).append(point.bitrate_kbps)
    between = [
        point
        for point in dense.points
        if point.size in rates
        and min(rates[point.size]) <= point.bitrate_kbps <= max(rates[point.size])
    ]
    return [
        {
            "width": point.width,
            "height": point.height,
            "bitrate_kbps": rounded(point.bitrate_kbps),
            "score": rounded(point.score),
            "knob": point.knob,
            "measured": point.measured,
        }
        for point in convex_hull(rising_front([*points, *between]))
    ]


def rules_json(rules: Rules) -> dict[str, Any]:
    """The rules a ladder kept to; None for no limit."""
    return {
        name: rounded(value) if isinstance(value, float) else value
        for name, value in asdict(rules).items()
    }


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
