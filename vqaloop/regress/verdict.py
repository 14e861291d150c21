"""Decides whether the candidate regressed: BD-rates against limits, checks, and the verdict.

`regress.document` writes it as JSON.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from vqaloop.core.text import counted, metric_name
from vqaloop.regress.statistics import (
    BASELINE,
    CANDIDATE,
    ClipRuns,
    Failure,
    Gap,
    Limits,
    Mean,
    Ratio,
    ScoredRun,
    clip_gap,
    compare_ratio,
    is_comparable,
    mean_gap,
    rate_errors,
)

ALL = "all clips"
"""In the place of a clip, for checks of the mean."""
RATE_AT_KNOB = "bitrate at the same knob"


class CheckKind(StrEnum):
    """What a check is about."""

    ENCODE = "encode"
    DECODE = "decode"
    FRAMES = "frames"
    BD_RATE = "bd-rate"
    TIME = "time"
    MEMORY = "memory"
    RATE = "rate"


STEPS = {
    CheckKind.ENCODE: ("crash", "hang", "no-output"),
    CheckKind.DECODE: ("undecodable", "truncated", "not-scored"),
    CheckKind.FRAMES: ("frame-count",),
}
"""What can go wrong with a run, by the check that it fails."""
Status = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Check:
    """One check of a clip, or of the mean over all clips."""

    clip: str
    """Name of the clip, or ALL."""
    kind: CheckKind
    status: Status
    message: str
    metric: str | None = None
    """Of a BD-rate."""
    failure: str | None = None
    """Kind of the failure, where a run failed."""

    @property
    def name(self) -> str:
        """As documents have it: bd-rate vmaf, time."""
        return check_name(self.kind, self.metric)


def check_name(kind: CheckKind, metric: str | None = None) -> str:
    """How documents name a check; a BD-rate's holds its metric."""
    return f"{kind} {metric}" if metric else str(kind)


@dataclass(frozen=True)
class Outcome:
    """Two builds compared on some clips."""

    clips: tuple[ClipRuns, ...]
    limits: Limits
    lead: str
    """The metric in the headline."""
    gate: tuple[str, ...]
    """The metrics that may call a regression."""
    gaps: Mapping[str, Mapping[str, Gap]]
    """BD-rates by metric, then by clip."""
    means: Mapping[str, Mean]
    """By metric."""
    ratios: Mapping[str, Ratio]
    """By cpu, wall, peak and rate, as in RUN_KINDS."""
    errors: tuple[Mapping[str, float], Mapping[str, float]] | None
    """Distance from the target bitrate in percent by clip, of the baseline and of the candidate;
    None where the points are knobs."""
    bit_exact: tuple[bool | None, ...]
    """By clip: whether the coded streams are equal, None where that is not known."""
    decoded_equal: tuple[bool | None, ...]
    """The same of the decoded frames."""
    checks: tuple[Check, ...]
    verdict: str
    """regression, improvement, no change or cannot tell."""
    summary: str
    """In a sentence or two."""
    reasons: tuple[str, ...]
    """What calls for a regression, the gravest first."""


def judge(
    clips: Sequence[ClipRuns],
    limits: Limits,
    *,
    metrics: Sequence[str],
    lead: str,
    gate: Sequence[str],
    targets: bool,
    timed: bool,
    seed: int,
) -> Outcome:
    """Compare the runs of two builds and decide whether the candidate regressed.

    Args:
        clips: The runs of both builds, the baseline's repeat among them where it has one.
        limits: From when on a difference counts, in percent.
        metrics: By which BD-rates are computed.
        lead: The metric of the headline.
        gate: The metrics that may call a regression.
        targets: Whether the points are target bitrates, rather than values of the knob.
        timed: Whether both builds ran on the same machine, so that times compare.
        seed: Of the bootstrap.

    Returns:
        BD-rates, ratios, checks and the verdict.
    """
    gaps = {name: {clip.clip: clip_gap(clip, name) for clip in clips} for name in metrics}
    means = {name: mean_gap(gaps[name], limits.threshold, seed=seed) for name in metrics}
    ratios = {
        kind: compare_ratio(clips if timed or kind == "rate" else (), kind, limit, seed)
        for kind, limit in (
            ("cpu", limits.time),
            ("wall", None),
            ("peak", limits.memory),
            ("rate", limits.rate if not targets else None),
        )
    }
    errors = (rate_errors(clips, 0), rate_errors(clips, 1)) if targets else None
    checks = [check for clip in clips for check in _run_checks(clip)]
    for name in metrics:
        checks += _gap_checks(name, gaps[name], means[name], limits, name in gate)
    checks += _ratio_checks(CheckKind.TIME, "CPU time", ratios["cpu"], limits.time)
    checks += _ratio_checks(CheckKind.MEMORY, "peak memory", ratios["peak"], limits.memory)
    checks += (
        _error_checks(errors, limits)
        if errors
        else _ratio_checks(CheckKind.RATE, RATE_AT_KNOB, ratios["rate"], limits.rate)
    )
    reasons = _reasons(checks)
    bit_exact = tuple(_equal(clip, lambda run: run.stream_sha256) for clip in clips)
    exact = all_equal(bit_exact)
    unknown = _unknown_clips(clips, gaps, gate)
    # a metric outside the gate is no part of the verdict, nor of the summary
    leader = lead if lead in gate else gate[0]
    verdict = _verdict(reasons, [means[name] for name in gate], means[leader], unknown, exact)
    if verdict == "cannot tell":
        summary = _cannot_tell(unknown, len(clips))
    else:
        summary = _summary(verdict, reasons, leader, means[leader], limits, exact, len(clips))
        summary += _unjudged(limits, ratios)
    return Outcome(
        clips=tuple(clips),
        limits=limits,
        lead=lead,
        gate=tuple(gate),
        gaps=gaps,
        means=means,
        ratios=ratios,
        errors=errors,
        bit_exact=bit_exact,
        decoded_equal=tuple(_equal(clip, lambda run: run.decoded_md5) for clip in clips),
        checks=tuple(checks),
        verdict=verdict,
        summary=summary,
        reasons=tuple(reasons),
    )


def _reasons(checks: Sequence[Check]) -> list[str]:
    """The checks that failed, in words: runs first, then the means, then single clips."""
    failed = [check for check in checks if check.status == "failed"]
    failed.sort(key=lambda check: (check.kind not in STEPS, check.clip != ALL))
    return [
        check.message if check.clip == ALL else f"{check.clip}: {check.message}"
        for check in failed
    ]


def _judged_check(
    clip: str, kind: CheckKind, judged: bool, bad: bool, text: str, metric: str | None = None
) -> Check:
    """One that fails or passes, or is skipped because nothing limits it."""
    if not judged:
        return Check(clip, kind, "skipped", f"not judged: {text}", metric)
    return Check(clip, kind, "failed" if bad else "passed", text, metric)


def _run_checks(clip: ClipRuns) -> list[Check]:
    """Checks that the candidate's runs encoded, decoded, and have all frames."""
    failed = [failure for failure in clip.failures if failure.build == CANDIDATE]
    before = [failure for failure in clip.failures if failure.build != CANDIDATE]
    sound = {(run.width, run.height, run.point) for run in clip.of(BASELINE)}
    checks = []
    for check, kinds in STEPS.items():
        status: Status = "skipped"
        text, failure = "", None
        own = [failure for failure in failed if failure.kind in kinds]
        theirs = [failure for failure in before if failure.kind in kinds]
        # nothing is new where either of the baseline's runs failed alike, or none came about
        alike = {failure.where for failure in theirs}
        new = [f for f in own if f.where in sound - alike]
        if new:
            status, text, failure = "failed", _first_of(new), new[0].kind
        elif own:
            text = f"the baseline fails too: {_first_of(theirs or before or own)}"
        elif failed and not clip.of(CANDIDATE):
            text = "no run came so far"
        elif theirs:
            text = f"of the baseline: {_first_of(theirs)}"
        else:
            status = "passed"
        checks.append(Check(clip.clip, check, status, text, failure=failure))
    return checks


def _first_of(failures: Sequence[Failure]) -> str:
    first = failures[0]
    more = f" (and at {len(failures) - 1} more)" if len(failures) > 1 else ""
    return f"{first.kind} at {first.width}x{first.height} {first.point}{more}: {first.message}"


def _gap_checks(
    metric: str, gaps: Mapping[str, Gap], mean: Mean, limits: Limits, gated: bool
) -> list[Check]:
    """BD-rate of each clip against the limit of a clip, and of the mean."""
    kind, shown = CheckKind.BD_RATE, metric_name(metric)
    # of a single clip the noise is that of the mean, times the root of their number
    noise = (mean.noise_floor or 0.0) * math.sqrt(max(1, len(mean.values)))
    limit = max(limits.clip, noise)
    checks = []
    for clip, gap in gaps.items():
        if gap.pchip is None and gated and gap.worse:
            text = f"every point is worse by {shown}, too far for a BD-rate"
            checks.append(Check(clip, kind, "failed", text, metric))
            continue
        if gap.pchip is None:
            why = gap.refused or "not measured"
            checks.append(Check(clip, kind, "skipped", why, metric))
            continue
        bad = gated and gap.pchip > limit
        text = f"{_bits(gap.pchip)} at equal {shown}"
        if bad:
            text += f"; the limit of one clip is {limit:.2g} %"
        checks.append(_judged_check(clip, kind, gated, bad, text, metric))
    if mean.value is None:
        checks.append(Check(ALL, kind, "skipped", "no clip could be compared", metric))
    else:
        bad = gated and mean.verdict == "regression"
        text = f"{_spread(mean)} at equal {shown}, over {counted(len(mean.values), 'clip')}"
        if bad:
            above = max(limits.threshold, mean.noise_floor or 0.0)
            text += f"; the limit is {above:.2g} %"
        checks.append(_judged_check(ALL, kind, gated, bad, text, metric))
    return checks


def _ratio_checks(kind: CheckKind, what: str, ratio: Ratio, limit: float | None) -> list[Check]:
    if ratio.value is None:
        why = "not measured on the same machine, or no clip has runs of both"
        return [Check(ALL, kind, "skipped", why)]
    given = limit is not None
    checks = [
        _judged_check(clip, kind, given, False, f"{what} {value:+.1f} %")
        for clip, value in ratio.by_clip.items()
    ]
    bad = ratio.verdict == "regression"
    text = f"{what} {ratio.value:+.1f} %"
    if bad and limit is not None:
        text += f"; the limit is {max(limit, ratio.noise_floor or 0.0):.2g} %"
    return [*checks, _judged_check(ALL, kind, given, bad, text)]


def _error_checks(errors: Sequence[Mapping[str, float]], limits: Limits) -> list[Check]:
    kind, limited = CheckKind.RATE, limits.rate is not None
    before, after = errors
    checks = [
        _judged_check(
            clip,
            kind,
            limited,
            False,
            f"{error:.1f} % off the target bitrate (baseline {before[clip]:.1f} %)",
        )
        for clip, error in after.items()
    ]
    if not before or not after:
        return [*checks, Check(ALL, kind, "skipped", "no clip has runs of both")]
    means = [sum(part.values()) / len(part) for part in errors]
    bad = limits.rate is not None and means[1] - means[0] > limits.rate
    text = f"{means[1]:.1f} % off the target bitrate, where the baseline is {means[0]:.1f} %"
    return [*checks, _judged_check(ALL, kind, limited, bad, text)]


def _unknown_clips(
    clips: Sequence[ClipRuns], gaps: Mapping[str, Mapping[str, Gap]], gate: Sequence[str]
) -> dict[str, str]:
    """Clips that no gating metric can compare though the baseline's curve is sound, and why.

    A build that ruins one clip must not pass by having it left out.
    """
    unknown = {}
    for clip in clips:
        refused = [gaps[name][clip.clip].refused for name in gate]
        sound = any(is_comparable(clip.of(BASELINE), name) for name in gate)
        if all(refused) and sound and not _equal(clip, lambda run: run.stream_sha256):
            unknown[clip.clip] = refused[0] or ""
    return unknown


def _verdict(
    reasons: Sequence[str],
    gated: Sequence[Mean],
    lead: Mean,
    unknown: Mapping[str, str],
    exact: bool | None,
) -> str:
    if reasons:
        return "regression"
    if exact:
        return "no change"
    if unknown or all(mean.value is None for mean in gated):
        return "cannot tell"
    return "improvement" if lead.verdict == "improvement" else "no change"


def _cannot_tell(unknown: Mapping[str, str], clips: int) -> str:
    if len(unknown) in (0, clips):
        why = f": {next(iter(unknown.values()))}" if unknown else ""
        return (
            f"Nothing can be said: by no metric could any of {counted(clips, 'clip')} be "
            f"compared{why}."
        )
    more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
    clip, why = next(iter(unknown.items()))
    return (
        f"Cannot tell: by no metric could {clip}{more} be compared, though the baseline's curve "
        f"is sound there: {why}."
    )


def _summary(
    verdict: str,
    reasons: Sequence[str],
    metric: str,
    mean: Mean,
    limits: Limits,
    exact: bool | None,
    clips: int,
) -> str:
    if verdict == "regression":
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        return f"Worse: {reasons[0]}{more}."
    if exact:
        return f"No change: the two are equal bit for bit on {counted(clips, 'clip')}."
    metric = metric_name(metric)
    gap = f"by {metric} no clip could be compared"
    if mean.value is not None:
        gap = f"{_spread(mean)} at equal {metric}, over {counted(len(mean.values), 'clip')}"
        gap += f" ({mean.refused} left out)" if mean.refused else ""
    if verdict == "improvement":
        return f"Better: {gap}."
    limit = max(limits.threshold, mean.noise_floor or 0.0)
    if mean.value is not None and abs(mean.value) > limit:
        return f"No clear change, as the interval over clips holds 0: {gap}."
    return f"No change beyond {limit:.2g} %: {gap}."


def _unjudged(limits: Limits, ratios: Mapping[str, Ratio]) -> str:
    """A sentence on the limits that were given and could not be checked, or nothing."""
    given = {"cpu": (limits.time, "CPU time"), "peak": (limits.memory, "peak memory")}
    names = [name for kind, (limit, name) in given.items() if limit and ratios[kind].value is None]
    return f" {' and '.join(names)} could not be judged." if names else ""


def _bits(change: float) -> str:
    return f"{abs(change):.2f} % {'fewer' if change < 0 else 'more'} bits"


def _spread(mean: Mean) -> str:
    """The mean in words, with its interval."""
    value = mean.value or 0.0
    if mean.interval is None:
        return _bits(value)
    return f"{_bits(value)} ({mean.interval[0]:+.2f} to {mean.interval[1]:+.2f})"


def _equal(clip: ClipRuns, what: Callable[[ScoredRun], str]) -> bool | None:
    """None where nothing differs so far, but one of the two lacks a run, or both all."""
    pairs = clip.pairs(BASELINE, CANDIDATE)
    if any(what(a) != what(b) for a, b in pairs):
        return False
    whole = len(pairs) == len(clip.of(BASELINE)) == len(clip.of(CANDIDATE))
    return True if pairs and whole else None


def all_equal(parts: Sequence[bool | None]) -> bool | None:
    """Whether all parts are equal; False where one is known not to be, None where that is open."""
    known = [part for part in parts if part is not None]
    return (
        all(known) if known and len(known) == len(parts) else (False if False in known else None)
    )
