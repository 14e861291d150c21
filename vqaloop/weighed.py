"""What the runs of two builds amount to: the part of `vqaloop.regress/1` that is worked out."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from vqaloop.regression import (
    BASELINE,
    CANDIDATE,
    ClipRuns,
    Failure,
    Gap,
    Limits,
    Mean,
    Ratio,
    Run,
    clip_gap,
    compare_ratio,
    is_comparable,
    judged,
    mean_gap,
    rate_errors,
    rounded_all,
)
from vqaloop.terminal import counted, metric_name

ALL = "all clips"
"""In the place of a clip, for checks of the mean."""
STEPS = {
    "encode": ("crash", "hang", "no-output"),
    "decode": ("undecodable", "truncated", "not-scored"),
    "frames": ("frame-count",),
}
"""What can go wrong with a run, by the check that it fails."""


def weigh(
    clips: Sequence[ClipRuns],
    limits: Limits,
    *,
    metrics: Sequence[str],
    lead: str,
    gate: Sequence[str],
    targets: bool,
    timed: bool,
    seed: int,
) -> dict[str, Any]:
    """Verdict, reasons, means, checks and clips. `targets`: the points are bitrates asked for;
    `timed`: both builds ran on the same machine."""
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
    errors = [rate_errors(clips, index) for index in (0, 1)] if targets else None
    checks = [check for clip in clips for check in _run_checks(clip)]
    checks += [
        check
        for name in metrics
        for check in _gap_checks(name, gaps[name], means[name], limits, name in gate)
    ]
    checks += _ratio_checks("time", "CPU time", ratios["cpu"], limits.time)
    checks += _ratio_checks("memory", "peak memory", ratios["peak"], limits.memory)
    checks += (
        _error_checks(errors, limits)
        if errors
        else _ratio_checks("rate", "bitrate at the same knob", ratios["rate"], limits.rate)
    )
    failed = [check for check in checks if check["status"] == "failed"]
    # runs that failed, then the means, then single clips
    failed.sort(key=lambda check: (check["check"] not in STEPS, check["clip"] != ALL))
    reasons = [
        check["message"] if check["clip"] == ALL else f"{check['clip']}: {check['message']}"
        for check in failed
    ]
    exact = [_equal(clip, lambda run: run.stream_sha256) for clip in clips]
    equal = [_equal(clip, lambda run: run.decoded_md5) for clip in clips]
    untold = _untold(clips, gaps, gate)
    # what a metric says that may not judge is no part of the verdict, nor of its words
    judge = lead if lead in gate else gate[0]
    verdict = _verdict(reasons, [means[name] for name in gate], means[judge], untold, _all(exact))
    head = means[lead]
    found = {
        "threshold_percent": limits.threshold,
        "clip_threshold_percent": limits.clip,
        "gate": list(gate),
        "bd_rate_percent": head.value,
        "interval_percent": head.interval,
        "noise_floor_percent": head.noise_floor,
        "verdict": verdict,
        "summary": _cannot_tell(untold, len(clips))
        if verdict == "cannot tell"
        else _summary(verdict, reasons, judge, means[judge], limits, _all(exact), len(clips))
        + _unjudged(limits, ratios),
        "reasons": reasons,
        "metrics": {name: _mean_json(mean) for name, mean in means.items()},
        "time": {
            "cpu_ratio": _factor(ratios["cpu"].value),
            "wall_ratio": _factor(ratios["wall"].value),
            "noise_percent": ratios["cpu"].noise_floor,
            "verdict": ratios["cpu"].verdict,
        },
        "memory": {
            "peak_ratio": _factor(ratios["peak"].value),
            "verdict": ratios["peak"].verdict,
        },
        "rate": _rate_json(ratios["rate"], errors, limits),
        "bit_exact": _all(exact),
        "decoded_equal": _all(equal),
        "checks": checks,
        "clips": [
            {
                **{key: getattr(clip, key) for key in ("clip", "sha256", "width", "height")},
                "frames": clip.frames,
                "fps": clip.fps,
                "bit_exact": exact[index],
                "decoded_equal": equal[index],
                "bd_rate": {name: asdict(gaps[name][clip.clip]) for name in metrics},
                "cpu_ratio": _factor(ratios["cpu"].by_clip.get(clip.clip)),
                "wall_ratio": _factor(ratios["wall"].by_clip.get(clip.clip)),
                "peak_ratio": _factor(ratios["peak"].by_clip.get(clip.clip)),
                "rate_percent": (errors[1] if errors else ratios["rate"].by_clip).get(clip.clip),
                "failures": [asdict(failure) for failure in clip.failures],
                "runs": [{**asdict(run), "knob": run.value} for run in clip.runs],
            }
            for index, clip in enumerate(clips)
        ],
    }
    return dict(rounded_all(found))


def _rate_json(
    ratio: Ratio, errors: Sequence[Mapping[str, float]] | None, limits: Limits
) -> dict[str, Any]:
    if errors is None:
        return {
            "what": "bitrate at the same knob",
            "mean_percent": ratio.value,
            "verdict": ratio.verdict,
        }
    before, after = (sum(e.values()) / len(e) if e else None for e in errors)
    verdict = "cannot tell" if before is None or after is None else "not judged"
    if before is not None and after is not None and limits.rate is not None:
        verdict = judged(after - before, limits.rate, None)
    return {
        "what": "distance from the target bitrate",
        "mean_percent": after,
        "baseline_percent": before,
        "verdict": verdict,
    }


def _check(clip: str, check: str, status: str, message: str, kind: str = "") -> dict[str, str]:
    return {"clip": clip, "check": check, "status": status, "message": message, "kind": kind}


def _judged_check(
    clip: str, check: str, judged: bool, bad: bool, text: str, kind: str
) -> dict[str, str]:
    """One that fails, passes, or is told alone because nothing limits it."""
    if not judged:
        return _check(clip, check, "skipped", f"not judged: {text}")
    return _check(clip, check, "failed" if bad else "passed", text, kind)


def _run_checks(clip: ClipRuns) -> list[dict[str, str]]:
    """Whether the candidate's runs came about, were decoded, and have all frames."""
    failed = [failure for failure in clip.failures if failure.build == CANDIDATE]
    before = [failure for failure in clip.failures if failure.build != CANDIDATE]
    sound = {(run.width, run.height, run.point) for run in clip.of(BASELINE)}
    checks = []
    for check, kinds in STEPS.items():
        own = [failure for failure in failed if failure.kind in kinds]
        theirs = [failure for failure in before if failure.kind in kinds]
        # nothing is new where either of the baseline's runs failed alike, or none came about
        alike = {failure.where for failure in theirs}
        new = [f for f in own if f.where in sound - alike]
        if new:
            checks.append(_check(clip.clip, check, "failed", _told(new), new[0].kind))
        elif own:
            text = f"the baseline fails too: {_told(theirs or before or own)}"
            checks.append(_check(clip.clip, check, "skipped", text))
        elif failed and not clip.of(CANDIDATE):
            checks.append(_check(clip.clip, check, "skipped", "no run came so far"))
        elif theirs:
            text = f"of the baseline: {_told(theirs)}"
            checks.append(_check(clip.clip, check, "skipped", text))
        else:
            checks.append(_check(clip.clip, check, "passed", ""))
    return checks


def _told(failures: Sequence[Failure]) -> str:
    first = failures[0]
    more = f" (and at {len(failures) - 1} more)" if len(failures) > 1 else ""
    return f"{first.kind} at {first.width}x{first.height} {first.point}{more}: {first.message}"


def _gap_checks(
    metric: str, gaps: Mapping[str, Gap], mean: Mean, limits: Limits, gated: bool
) -> list[dict[str, str]]:
    """BD-rate of each clip against the limit of a clip, and of the mean."""
    name, shown = f"bd-rate {metric}", metric_name(metric)
    # of a single clip the noise is that of the mean, times the root of their number
    noise = (mean.noise_floor or 0.0) * math.sqrt(max(1, len(mean.values)))
    limit = max(limits.clip, noise)
    checks = []
    for clip, gap in gaps.items():
        if gap.pchip is None and gated and gap.worse:
            text = f"every point is worse by {shown}, too far for a BD-rate"
            checks.append(_check(clip, name, "failed", text, "bd-rate"))
            continue
        if gap.pchip is None:
            checks.append(_check(clip, name, "skipped", gap.refused or "not measured"))
            continue
        bad = gated and gap.pchip > limit
        text = f"{_bits(gap.pchip)} at equal {shown}"
        if bad:
            text += f"; the limit of one clip is {limit:.2g} %"
        checks.append(_judged_check(clip, name, gated, bad, text, "bd-rate"))
    if mean.value is None:
        checks.append(_check(ALL, name, "skipped", "no clip could be compared"))
    else:
        bad = gated and mean.verdict == "regression"
        text = f"{_spread(mean)} at equal {shown}, over {counted(len(mean.values), 'clip')}"
        if bad:
            above = max(limits.threshold, mean.noise_floor or 0.0)
            text += f"; the limit is {above:.2g} %"
        checks.append(_judged_check(ALL, name, gated, bad, text, "bd-rate"))
    return checks


def _ratio_checks(name: str, what: str, ratio: Ratio, limit: float | None) -> list[dict[str, str]]:
    if ratio.value is None:
        why = "not measured on the same machine, or no clip has runs of both"
        return [_check(ALL, name, "skipped", why)]
    given = limit is not None
    checks = [
        _judged_check(clip, name, given, False, f"{what} {value:+.1f} %", name)
        for clip, value in ratio.by_clip.items()
    ]
    bad = ratio.verdict == "regression"
    text = f"{what} {ratio.value:+.1f} %"
    if bad and limit is not None:
        text += f"; the limit is {max(limit, ratio.noise_floor or 0.0):.2g} %"
    return [*checks, _judged_check(ALL, name, given, bad, text, name)]


def _error_checks(errors: Sequence[Mapping[str, float]], limits: Limits) -> list[dict[str, str]]:
    before, after = errors
    checks = [
        _judged_check(
            clip,
            "rate",
            limits.rate is not None,
            False,
            f"{error:.1f} % off the target bitrate (baseline {before[clip]:.1f} %)",
            "rate",
        )
        for clip, error in after.items()
    ]
    if not before or not after:
        return [*checks, _check(ALL, "rate", "skipped", "no clip has runs of both")]
    means = [sum(part.values()) / len(part) for part in errors]
    bad = limits.rate is not None and means[1] - means[0] > limits.rate
    text = f"{means[1]:.1f} % off the target bitrate, where the baseline is {means[0]:.1f} %"
    return [*checks, _judged_check(ALL, "rate", limits.rate is not None, bad, text, "rate")]


def _untold(
    clips: Sequence[ClipRuns], gaps: Mapping[str, Mapping[str, Gap]], gate: Sequence[str]
) -> dict[str, str]:
    """Clips of which no metric that counts can tell anything, though the baseline's curve is a
    good one, and the reason: a build that ruins one clip must not pass by that."""
    found = {}
    for clip in clips:
        refused = [gaps[name][clip.clip].refused for name in gate]
        sound = any(is_comparable(clip.of(BASELINE), name) for name in gate)
        if all(refused) and sound and not _equal(clip, lambda run: run.stream_sha256):
            found[clip.clip] = refused[0] or ""
    return found


def _verdict(
    reasons: Sequence[str],
    gated: Sequence[Mean],
    lead: Mean,
    untold: Mapping[str, str],
    exact: bool | None,
) -> str:
    if reasons:
        return "regression"
    if exact:
        return "no change"
    if untold or all(mean.value is None for mean in gated):
        return "cannot tell"
    return "improvement" if lead.verdict == "improvement" else "no change"


def _cannot_tell(untold: Mapping[str, str], clips: int) -> str:
    if len(untold) in (0, clips):
        why = f": {next(iter(untold.values()))}" if untold else ""
        return (
            f"Nothing can be said: by no metric could any of {counted(clips, 'clip')} be "
            f"compared{why}."
        )
    more = f" (and {len(untold) - 1} more)" if len(untold) > 1 else ""
    clip, why = next(iter(untold.items()))
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
    told = f"by {metric} no clip could be compared"
    if mean.value is not None:
        told = f"{_spread(mean)} at equal {metric}, over {counted(len(mean.values), 'clip')}"
        told += f" ({mean.refused} left out)" if mean.refused else ""
    if verdict == "improvement":
        return f"Better: {told}."
    limit = max(limits.threshold, mean.noise_floor or 0.0)
    if mean.value is not None and abs(mean.value) > limit:
        return f"No clear change, as the interval over clips holds 0: {told}."
    return f"No change beyond {limit:.2g} %: {told}."


def _unjudged(limits: Limits, ratios: Mapping[str, Ratio]) -> str:
    """A limit that was asked for and could not be held against anything must not pass silently."""
    asked = {"cpu": (limits.time, "CPU time"), "peak": (limits.memory, "peak memory")}
    names = [name for kind, (limit, name) in asked.items() if limit and ratios[kind].value is None]
    return f" {' and '.join(names)} could not be judged." if names else ""


def _bits(change: float) -> str:
    return f"{abs(change):.2f} % {'fewer' if change < 0 else 'more'} bits"


def _spread(mean: Mean) -> str:
    """The mean in words, with its interval."""
    value = mean.value or 0.0
    if mean.interval is None:
        return _bits(value)
    return f"{_bits(value)} ({mean.interval[0]:+.2f} to {mean.interval[1]:+.2f})"


def _mean_json(mean: Mean) -> dict[str, Any]:
    return {
        "bd_rate_percent": mean.value,
        "akima_percent": mean.akima,
        "interval_percent": mean.interval,
        "noise_floor_percent": mean.noise_floor,
        "clips": len(mean.values),
        "refused": mean.refused,
        "verdict": mean.verdict,
    }


def _factor(change: float | None) -> float | None:
    return None if change is None else 1 + change / 100


def _equal(clip: ClipRuns, what: Callable[[Run], str]) -> bool | None:
    """None where nothing differs so far, but one of the two lacks a run, or both all."""
    pairs = clip.pairs(BASELINE, CANDIDATE)
    if any(what(a) != what(b) for a, b in pairs):
        return False
    whole = len(pairs) == len(clip.of(BASELINE)) == len(clip.of(CANDIDATE))
    return True if pairs and whole else None


def _all(parts: Sequence[bool | None]) -> bool | None:
    known = [part for part in parts if part is not None]
    return (
        all(known) if known and len(known) == len(parts) else (False if False in known else None)
    )
