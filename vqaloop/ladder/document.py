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
