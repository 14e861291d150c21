"""The results part of the document `vqaloop.regress/1`: an outcome as JSON values."""

from dataclasses import asdict
from typing import Any

from vqaloop.core.rounding import finite
from vqaloop.regress.statistics import Limits, Mean, change_verdict
from vqaloop.regress.verdict import RATE_AT_KNOB, STEPS, Check, Outcome, all_equal


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """Verdict, reasons, means, checks and clips, with numbers rounded to six digits."""
    head, ratios, limits = outcome.means[outcome.lead], outcome.ratios, outcome.limits
    document = {
        "threshold_percent": limits.threshold,
        "clip_threshold_percent": limits.clip,
        "gate": outcome.gate,
        "bd_rate_percent": head.value,
        "interval_percent": head.interval,
        "noise_floor_percent": head.noise_floor,
        "verdict": outcome.verdict,
        "summary": outcome.summary,
        "reasons": outcome.reasons,
        "metrics": {name: _mean_json(mean) for name, mean in outcome.means.items()},
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
        "rate": _rate_json(outcome, limits),
        "bit_exact": all_equal(outcome.bit_exact),
        "decoded_equal": all_equal(outcome.decoded_equal),
        "checks": [_check_json(check) for check in outcome.checks],
        "clips": [_clip_json(outcome, index) for index in range(len(outcome.clips))],
    }
    return dict(finite(document, 6))


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


def _rate_json(outcome: Outcome, limits: Limits) -> dict[str, Any]:
    if outcome.errors is None:
        ratio = outcome.ratios["rate"]
        return {"what": RATE_AT_KNOB, "mean_percent": ratio.value, "verdict": ratio.verdict}
    before, after = (sum(e.values()) / len(e) if e else None for e in outcome.errors)
    verdict = "cannot tell" if before is None or after is None else "not judged"
    if before is not None and after is not None and limits.rate is not None:
        verdict = change_verdict(after - before, limits.rate, None)
    return {
        "what": "distance from the target bitrate",
        "mean_percent": after,
        "baseline_percent": before,
        "verdict": verdict,
    }


def _check_json(check: Check) -> dict[str, str]:
    # of a run the kind of its failure, of all else what is limited
    named = check.kind not in STEPS and check.status != "skipped"
    return {
        "clip": check.clip,
        "check": check.name,
        "status": check.status,
        "message": check.message,
        "kind": check.failure or (str(check.kind) if named else ""),
    }


def _clip_json(outcome: Outcome, index: int) -> dict[str, Any]:
    clip, ratios = outcome.clips[index], outcome.ratios
    rates = outcome.errors[1] if outcome.errors else ratios["rate"].by_clip
    return {
        **{key: getattr(clip, key) for key in ("clip", "sha256", "width", "height")},
        "frames": clip.frames,
        "fps": clip.fps,
        "bit_exact": outcome.bit_exact[index],
        "decoded_equal": outcome.decoded_equal[index],
        "bd_rate": {name: asdict(gaps[clip.clip]) for name, gaps in outcome.gaps.items()},
        "cpu_ratio": _factor(ratios["cpu"].by_clip.get(clip.clip)),
        "wall_ratio": _factor(ratios["wall"].by_clip.get(clip.clip)),
        "peak_ratio": _factor(ratios["peak"].by_clip.get(clip.clip)),
        "rate_percent": rates.get(clip.clip),
        "failures": [asdict(failure) for failure in clip.failures],
        "runs": [{**asdict(run), "knob": run.value} for run in clip.runs],
    }


def _factor(change: float | None) -> float | None:
    """A change in percent as a ratio."""
    return None if change is None else 1 + change / 100
