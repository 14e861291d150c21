"""What a ladder will probably be and cost, from the prior, before anything is encoded."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vqaloop.core.text import counted, quoted, shown, shown_rate
from vqaloop.encoding.encode import cost_per_megapixel
from vqaloop.execution.session import Session, open_session
from vqaloop.ladder.build import (
    LadderRequest,
    checked_request,
    content_of_title,
    fitted,
    probe_preset,
    space_of,
)
from vqaloop.ladder.options import LadderOptions
from vqaloop.ladder.steps import MOST_TRIALS
from vqaloop.ladder.store import PLAN_SCHEMA
from vqaloop.media.content import Content
from vqaloop.media.excerpt_windows import excerpt_frames
from vqaloop.quality.cvvdp_metric import Cvvdp
from vqaloop.quality.registry import kindred
from vqaloop.records import RDPoint, rounded
from vqaloop.search.explore import plan, propose
from vqaloop.search.forecast import (
    COVERED,
    NORMAL,
    Asked,
    Forecast,
    Unlike,
    forecast,
    shipped_stretch,
    unlike_learnt,
)
from vqaloop.search.prior import Prior
from vqaloop.search.prior_store import chosen_prior
from vqaloop.search.surrogates import CurveFits, TitlePrior

ENCODES_A_RUNG = 1.9
"""Encodes of a search for each rung of its ladder, in the mean (docs/search.md)."""
PROBES_A_RUNG = 1.4
"""The same of the probes of an excerpt, and of the encodes of its title."""
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
        kbps_intervals: Ends of each rung's interval of 90 %, in kb/s.
        score_intervals: The same of its score.
        unlike: In what title or encodes are unlike those that the prior was learnt from, by which
            intervals are wider; how much wider is a rule, and not measured.
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
    kbps_intervals: tuple[tuple[float, float], ...]
    score_intervals: tuple[tuple[float, float], ...]
    unlike: tuple[str, ...]
    first: tuple[tuple[int, int, float], ...]
    encodes: tuple[int, int]
    cpu_s: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """The document `vqaloop.plan/1`.

        Returns:
            JSON types.
        """
        each = zip(self.rungs, self.kbps_intervals, self.score_intervals, strict=True)
        rungs = [
            {
                "width": point.width,
                "height": point.height,
                "bitrate_kbps": rounded(point.bitrate_kbps),
                "bitrate_kbps_interval": [rounded(end) for end in kbps],
                "knob": point.knob,
                "score": rounded(point.score),
                "score_interval": [rounded(end) for end in score],
                "deviation": rounded((score[1] - score[0]) / (2 * NORMAL)),
            }
            for point, kbps, score in each
        ]
        costs = {name: rounded(value) for name, value in self.cpu_s.items()}
        told = {k: v for k, v in asdict(self).items() if not k.endswith("_intervals")}
        measured = {"predicted": True, "interval": COVERED}
        return {"schema": PLAN_SCHEMA, **measured, **told, "rungs": rungs, "cpu_s": costs}


def plan_ladder(input: str | os.PathLike[str], *, codec: str, **options: Any) -> LadderPlan:
    """The ladder that `build_ladder` will probably make, and its cost; nothing is encoded.

    Nothing is written either. A few frames of the video are looked at.

    Args:
        input: The video.
        codec: As of `build_ladder`.
        options: Those of `build_ladder`.

    Returns:
        Sizes, predicted rungs with intervals, and cost.

    Raises:
        InputError: As of `build_ladder`.
    """
    request = checked_request(input, LadderOptions(codec=codec, **options))
    with open_session(request.input, request.options, request.tools) as session:
        request, session = fitted(request, session)
        source, space = session.source, space_of(session)
        searched, top = excerpt_frames(source), session.metric.top
        rungs, unlike = _predicted(request, session)
        begun = _prior(request, session)
        surrogate = TitlePrior(space, begun, top) if begun else CurveFits(space, top)
        first = propose(space, request.rules, [], [], surrogate, most=MOST_TRIALS)
        return LadderPlan(
            os.fspath(input),
            source.duration_s,
            searched / float(source.fps),
            session.sizes,
            session.spec.name,
            session.preset,
            session.spec.knob.name,
            session.metric.name,
            tuple(found.point for found in rungs),
            tuple(found.kbps for found in rungs),
            tuple(found.score for found in rungs),
            unlike.reasons if rungs else (),
            tuple(first),
            *_cost(session, [found.point for found in rungs], searched),
        )


def _prior(
    request: LadderRequest, session: Session[LadderOptions], content: Content | None = None
) -> Prior | None:
    """The prior of titles of that content; the search begins with that of all titles."""
    kind = session.spec.name, session.preset, kindred(session.metric)
    return chosen_prior(request.prior, *kind, session.source.sha256, content)


def _predicted(
    request: LadderRequest, session: Session[LadderOptions]
) -> tuple[list[Forecast], Unlike]:
    """The rungs, and in what they are unlike what the prior was learnt from."""
    if request.prior == "none":
        return [], Unlike()
    content, names = content_of_title(session), kindred(session.metric)
    prior = _prior(request, session, content)
    if prior is None:
        return [], Unlike()
    space, top = space_of(session), session.metric.top
    points = plan(request.rules, [], TitlePrior(space, prior, top).dense([]))
    others = tuple(_others(session))
    asked = Asked(session.source, session.spec, session.preset, names, content, others)
    unlike, stretch = unlike_learnt(asked), shipped_stretch(names, content)
    return forecast(space, prior, points, top, stretch, unlike), unlike


def _others(session: Session[LadderOptions]) -> Iterator[str]:
    """What of the options no title was learnt from with."""
    options = session.options
    if session.depth > 8:
        yield f"{session.depth} bits a sample; it was learnt from 8"
    if options.pool != "mean":
        yield f"scores pooled by {options.pool}; it was learnt from means"
    if options.weights or options.prompt:
        yield "scores by other weights"
    if options.tune_trials is not None:
        yield "tuned parameters of the encoder; it was learnt from the defaults"
    if options.per_shot:
        yield "a knob for every scene; it was learnt from one for the title"
    if options.two_pass:
        yield "two passes; it was learnt from one"


def _cost(
    session: Session[LadderOptions], rungs: list[RDPoint], searched: int
) -> tuple[tuple[int, int], dict[str, float]]:
    """Encodes of the search and of the whole title, and CPU seconds."""
    source = session.source
    sizes = [rung.size for rung in rungs] or list(session.sizes)
    count = len(rungs) or session.options.rungs or len(sizes)
    excerpt = searched < source.frames
    search = math.ceil(count * (PROBES_A_RUNG if excerpt else ENCODES_A_RUNG))
    whole = math.ceil(count * PROBES_A_RUNG) if excerpt else 0
    mean = sum(map(math.prod, sizes)) / len(sizes) / 1e6
    each = cost_per_megapixel(session.spec, session.preset) * mean
    preset = probe_preset(session) if excerpt else session.preset
    probe = cost_per_megapixel(session.spec, preset) * mean
    guarded = math.prod(source.canvas) / 1e6 * source.frames * count
    return (search, whole), {
        "encoding": probe * search * searched + each * whole * source.frames,
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
    lines += _rung_lines(made)
    first = ", ".join(f"{w}x{h} at {knob:g}" for w, h, knob in made.first)
    search, whole = made.encodes
    more = f", and {whole} of the whole title" if whole else ""
    total = sum(made.cpu_s.values())
    kinds = ", ".join(f"{name} {value:.0f}" for name, value in made.cpu_s.items())
    return [
        *lines,
        f"first encodes: {first}",
        f"about {counted(search, 'encode')}{more}; about {total:.0f} s of CPU time ({kinds})",
        "nothing was encoded; the same command without --predict makes the ladder",
    ]


def _rung_lines(made: LadderPlan) -> list[str]:
    """The predicted rungs, and what to know of their intervals."""
    if not made.rungs:
        return ["no prior for this encoder and metric: rungs are not predicted"]
    rows = [("size", "kb/s", f"{COVERED:.0%} within", made.knob, "score", f"{COVERED:.0%} within")]
    for point, kbps, score in zip(
        made.rungs, made.kbps_intervals, made.score_intervals, strict=True
    ):
        ends = " to ".join(map(shown_rate, kbps)), " to ".join(map(shown, score))
        rows.append(
            (
                f"{point.width}x{point.height}",
                shown_rate(point.bitrate_kbps),
                ends[0],
                f"{point.knob:g}",
                shown(point.score),
                ends[1],
            )
        )
    lines = ["predicted, before any encode:", *_table(rows)]
    if made.unlike:
        lines += [
            "intervals are widened by rule, not by measurement, since the prior does not know:",
            *(f"  {reason}" for reason in made.unlike),
        ]
    return lines


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(word.rjust(w) for word, w in zip(row, widths, strict=True))
        for row in rows
    ]
