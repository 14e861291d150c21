"""The document `vqaloop.ladder/1`, as ladder.json and --json have it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vqaloop.execution.document_parts import cost_json, head_json
from vqaloop.ladder.pictures import worst_json
from vqaloop.ladder.store import SCHEMA
from vqaloop.quality.guard import GuardPlan
from vqaloop.records import RDPoint, Source, rounded
from vqaloop.search.audience import Audience, delivered
from vqaloop.search.hull import convex_hull, rising_front
from vqaloop.search.rungs import Rules
from vqaloop.search.surrogates import Predictions, Surrogate

if TYPE_CHECKING:
    from vqaloop.execution.session import Session
    from vqaloop.ladder.options import LadderOptions
    from vqaloop.ladder.stage import SearchResult
    from vqaloop.ladder.steps import Checked, Loop


@dataclass(frozen=True)
class LadderRun:
    """All that the document of a ladder is made from."""

    session: Session[LadderOptions]
    loop: Loop
    windows: Sequence[tuple[int, int]]
    """Start and length in frames of what was searched."""
    whole: bool
    """Whether that is the title itself."""
    tuning: dict[str, Any]
    found: SearchResult
    surrogate: Surrogate
    checked: Sequence[Checked]
    shots: Mapping[str, Any] = field(default_factory=dict)
    """What the document has more of a per-shot ladder."""
    earlier: Mapping[str, float] = field(default_factory=dict)
    """The cost of earlier runs of the same ladder; empty where there were none."""
    grain: Mapping[str, Any] = field(default_factory=dict)
    """What was found of the source's film grain, and done about it; empty where nothing was."""


def ladder_json(run: LadderRun, warnings: Sequence[str]) -> dict[str, Any]:
    """ladder.json but for its rungs; `warnings` are those of its scores."""
    session, loop, found = run.session, run.loop, run.found
    scores = [item.score for item in run.checked]
    audience = loop.rules.audience
    return {
        **head_json(SCHEMA, session, scores[0]),
        "hull": hull_json(found.points, run.surrogate.dense(found.points)),
        "trials": [trial.to_json() for trial in loop.trials],
        "cost": {
            **cost_json(session.shop.cost, time.monotonic() - session.started),
            **({"earlier": dict(run.earlier)} if run.earlier else {}),
        },
        "rules": rules_json(loop.rules),
        **({"audience": audience_json(audience, run.checked)} if audience else {}),
        "guard": guard_json(loop.guard, session.source),
        **run.shots,
        "windows": [list(window) for window in run.windows],
        "estimate": loop.estimate,
        "tuning": run.tuning or None,
        **({"film_grain": dict(run.grain)} if run.grain else {}),
        "worst": worst_json(session.source, scores),
        "asked": session.options.asked(),
        "warnings": [
            *(*session.source.notes, *session.shop.remarks, *loop.warnings),
            *warnings,
        ],
    }


def guard_json(plan: GuardPlan | None, source: Source) -> dict[str, Any]:
    """What the guard looked at of each rung; rungs whose verdict was open have more places."""
    if plan is None or plan.sampling is None:
        return {"mode": "full" if plan else "off"}
    return {
        "mode": "sampled",
        "places": plan.places(source),
        "confidence": 0.95,
        "frames": source.frames,
    }


def hull_json(points: Sequence[RDPoint], dense: Predictions) -> list[dict[str, Any]]:
    """The hull that rungs are taken from, ascending: measured points, and those predicted between
    two measurements of a size; predictions beyond them are guesses."""
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
    # what not every ladder has is named where it is asked for
    unset = {"audience"} if rules.least_top else {"audience", "least_top"}
    return {
        name: rounded(value) if isinstance(value, float) else value
        for name, value in asdict(replace(rules, audience=None)).items()
        if name not in unset
    }


def audience_json(audience: Audience, checked: Sequence[Checked]) -> dict[str, Any]:
    """The audience, and what it gets of the rungs in the mean."""
    found = delivered(audience, [item.point for item in checked])
    return {
        **audience.to_json(),
        "score": rounded(found.score),
        "bitrate_kbps": rounded(found.kbps),
        "unserved": rounded(found.unserved),
    }
