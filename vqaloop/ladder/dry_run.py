"""What a ladder will probably be and cost, from the prior, before anything is encoded."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from typing import Any

from vqaloop.core.text import counted, quoted, shown, shown_rate
from vqaloop.encoding.encode import cost_per_megapixel
from vqaloop.execution.session import Session, open_session
from vqaloop.ladder.build import checked_request, fitted, space_of
from vqaloop.ladder.options import LadderOptions
from vqaloop.quality.cvvdp_metric import Cvvdp
from vqaloop.quality.registry import kindred
from vqaloop.records import RDPoint, rounded
from vqaloop.search.explore import plan, propose
from vqaloop.search.prior_store import chosen_prior
from vqaloop.search.surrogates import CurveFits, Predictions, TitlePrior

SCHEMA = "vqaloop.plan/1"
ENCODES_A_RUNG = 2.2
"""Encodes of a search for each rung of its ladder, in the mean (docs/search.md)."""
GUARD_COST = 0.09
"""CPU seconds of the guard's metrics for a million pixels of the source, roughly
(docs/scoring.md)."""
SCORE_COST_S = 1.0
"""CPU seconds of a student's score of one encode, roughly."""


@dataclass(frozen=True)
class LadderPlan:
    """A ladder as predicted before its first encode. Its cost is an estimate to a factor of two.

    Attributes:
        input: The video.
        seconds: Its duration.
        searched_s: Seconds of it that are searched: all, or an excerpt's windows.
        sizes: Widths and heights to try, largest first.
        encoder: By name.
        preset: Of the encoder.
        knob: Name of its quality knob.
        metric: Name of the metric.
        rungs: Predicted rungs, the lowest first; empty where no prior is known for this encoder
            and metric.
        deviations: Standard deviation of each predicted score, in points.
        first: What is encoded first: width, height and knob of each.
        encodes: Encodes of what is searched and, of an excerpt, of the whole title.
        cpu_s: CPU seconds by kind of work: encoding, scoring, guard.
    """

    input: str
    seconds: float
    searched_s: float
    sizes: tuple[tuple[int, int], ...]
    encoder: str
    preset: str
    knob: str
    metric: str
    rungs: tuple[RDPoint, ...]
    deviations: tuple[float, ...]
    first: tuple[tuple[int, int, float], ...]
    encodes: tuple[int, int]
    cpu_s: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """The document `vqaloop.plan/1`.

        Returns:
            JSON types.
        """
        rungs = [
            {
                "width": point.width,
                "height": point.height,
                "bitrate_kbps": rounded(point.bitrate_kbps),
                "knob": point.knob,
                "score": rounded(point.score),
                "deviation": rounded(deviation),
            }
            for point, deviation in zip(self.rungs, self.deviations, strict=True)
        ]
        costs = {name: rounded(value) for name, value in self.cpu_s.items()}
        return {"schema": SCHEMA, **asdict(self), "rungs": rungs, "cpu_s": costs}


def plan_ladder(input: str | os.PathLike[str], *, codec: str, **options: Any) -> LadderPlan:
    """What `build_ladder` would begin with and roughly cost; nothing is encoded or written.

    Args:
        input: The video, which is read once.
        codec: As of `build_ladder`.
        options: Those of `build_ladder`.

    Returns:
        Sizes, predicted rungs and cost.

    Raises:
        InputError: As of `build_ladder`.
    """
    request = checked_request(input, LadderOptions(codec=codec, **options))
    with open_session(request.input, request.options, request.tools) as session:
        request, session = fitted(request, session)
        source, space = session.source, space_of(session)
        windows = session.windows()
        searched = sum(count for _, count in windows)
        names, top = kindred(session.metric), session.metric.top
        prior = chosen_prior(
            request.prior, session.spec.name, session.preset, names, source.sha256
        )
        surrogate = TitlePrior(space, prior, top) if prior else CurveFits(space, top)
        dense = surrogate.dense([]) if prior else None
        rungs = plan(request.rules, [], dense) if dense else []
        first = propose(space, request.rules, [], [], surrogate, most=40)
        return LadderPlan(
            os.fspath(input),
            source.duration_s,
            searched / float(source.fps),
            session.sizes,
            session.spec.name,
            session.preset,
            session.spec.knob.name,
            session.metric.name,
            tuple(rungs),
            _deviations(dense, rungs),
            tuple(first),
            *_cost(session, rungs, searched),
        )


def _deviations(dense: Predictions | None, rungs: list[RDPoint]) -> tuple[float, ...]:
    if dense is None:
        return ()
    known = dict(zip((p.key for p in dense.points), dense.deviation.tolist(), strict=True))
    return tuple(known[rung.key] for rung in rungs)


def _cost(
    session: Session[LadderOptions], rungs: list[RDPoint], searched: int
) -> tuple[tuple[int, int], dict[str, float]]:
    """Encodes of the search and of the whole title, and CPU seconds."""
    source = session.source
    sizes = [rung.size for rung in rungs] or list(session.sizes)
    count = len(rungs) or session.options.rungs or len(sizes)
    search = math.ceil(count * ENCODES_A_RUNG)
    whole = 0 if searched == source.frames else count
    mean = sum(map(math.prod, sizes)) / len(sizes) / 1e6
    each = cost_per_megapixel(session.spec, session.preset) * mean
    guarded = math.prod(source.canvas) / 1e6 * source.frames * count
    return (search, whole), {
        "encoding": each * (search * searched + whole * source.frames),
        "scoring": _score_cost_s(session) * (search + whole),
        "guard": GUARD_COST * guarded,
    }


def _score_cost_s(session: Session[LadderOptions]) -> float:
    """CPU seconds of a score of one encode, roughly."""
    metric = session.metric
    return metric.cost_s(session.source) if isinstance(metric, Cvvdp) else SCORE_COST_S


def plan_lines(made: LadderPlan) -> list[str]:
    """The plan in words, a topic a line.

    Args:
        made: What `plan_ladder` gave.

    Returns:
        The lines.
    """
    part = (
        ""
        if math.isclose(made.searched_s, made.seconds)
        else (f", of which {made.searched_s:.0f} s are searched")
    )
    lines = [
        f"{quoted(made.input)}: {made.seconds:.1f} s{part}",
        f"sizes to try: {', '.join(f'{w}x{h}' for w, h in made.sizes)}",
        f"by {made.encoder}, preset {made.preset}; scored by {made.metric}",
    ]
    if made.rungs:
        lines += [
            "predicted, before any encode:",
            f"{'size':>10} {'kb/s':>7} {made.knob:>6}  score",
        ]
        lines += [
            f"{f'{p.width}x{p.height}':>10} {shown_rate(p.bitrate_kbps):>7} {p.knob:>6g}  "
            f"{shown(p.score)} ± {shown(deviation)}"
            for p, deviation in zip(made.rungs, made.deviations, strict=True)
        ]
    else:
        lines.append("no prior for this encoder and metric: rungs are not predicted")
    first = ", ".join(f"{w}x{h} at {knob:g}" for w, h, knob in made.first)
    search, whole = made.encodes
    more = f", and {whole} of the whole title" if whole else ""
    total = sum(made.cpu_s.values())
    kinds = ", ".join(f"{name} {value:.0f}" for name, value in made.cpu_s.items())
    return [
        *lines,
        f"first encodes: {first}",
        f"about {counted(search, 'encode')}{more}; about {total:.0f} s of CPU time ({kinds})",
        "nothing was encoded; the same command without --dry-run makes the ladder",
    ]
