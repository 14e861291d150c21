"""BD-rate between two ladders of one title: which needs more bits at equal score, and how many.

The ladders may differ in codec, encoder, preset, parameters or tools. Each is the curve through
its rungs, measured on the whole title; the mean gap between the curves is BD-rate (bdrate.py), by
the ladders' score where both have the same metric, and by the guard's VMAF and PSNR-Y.
"""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vqaloop.core.text import counted, metric_name, printable, quoted
from vqaloop.core.version import __version__
from vqaloop.errors import InputError
from vqaloop.ladder.store import read_ladder
from vqaloop.ladder.warnings import UNTRUSTED
from vqaloop.quality.bdrate import (
    LEAST_OVERLAP,
    MIN_POINTS,
    Curve,
    NotComparable,
    bd_rate,
    bd_score,
)
from vqaloop.quality.guard import FIGURES
from vqaloop.records import Ladder, Rung, rounded

SCHEMA = "vqaloop.ladder-comparison/1"
LEVEL = 0.05
"""Percent of BD-rate under which two ladders need the same bits."""
OPPOSED = 0.5
"""Percent of BD-rate from which two metrics of opposite sign contradict each other."""
UNSURE = 2.0
"""Percentage points between PCHIP and Akima from which there are too few rungs."""
BROAD = 2 / 3
"""Part of either ladder's log bitrates that the other must cover, for a gain at equal bitrate."""


@dataclass(frozen=True)
class SizeRange:
    """The rungs of one size."""

    width: int
    height: int
    rungs: int
    lowest_kbps: float
    highest_kbps: float


@dataclass(frozen=True)
class MetricGap:
    """How far B's curve is from A's by one metric; None where that is not defined."""

    metric: str
    """vmaf, psnr_y, or the metric of both ladders."""
    bd_rate_percent: float | None
    """Bitrate that B needs more (+) or less (-) than A at equal score (PCHIP)."""
    akima_percent: float | None
    """The same by Akima's interpolation: far off where rungs are too few."""
    bd_score: float | None
    """Score that B gains (+) or loses (-) over A at equal bitrate, in points or dB.

    None where the bitrates of the two have less than BROAD of each ladder's in common.
    """
    scores: tuple[float, float] | None
    """Lowest and highest score that both reach, over which BD-rate is the mean."""
    refused: str | None
    """Why there is no BD-rate, in words of ladders."""
    remedy: str | None = None
    """What to do about that."""


@dataclass(frozen=True)
class LadderComparison:
    """Two ladders of one title, A the anchor, B set against it."""

    a: Ladder
    b: Ladder
    gaps: tuple[MetricGap, ...]
    """The ladders' own metric first, where both have the same; then vmaf and psnr_y."""
    differences: dict[str, tuple[str, str]]
    """Settings in which the ladders differ: A's and B's by name."""
    warnings: tuple[str, ...]

    @property
    def headline(self) -> MetricGap | None:
        """The first metric that gives a BD-rate."""
        return next((gap for gap in self.gaps if gap.bd_rate_percent is not None), None)

    @property
    def more_bits(self) -> Literal["a", "b"] | None:
        """The ladder that needs more bits at equal score, by the headline; None for neither."""
        percent = self.headline.bd_rate_percent if self.headline else None
        if percent is None or abs(percent) < LEVEL:
            return None
        return "b" if percent > 0 else "a"

    @property
    def exit_code(self) -> int:
        """2 where no metric gives a BD-rate, 3 where a ladder is untrusted, else 0."""
        if self.headline is None:
            return NotComparable.exit_code
        return 0 if self.a.trusted and self.b.trusted else 3

    @property
    def summary(self) -> str:
        """The answer in a sentence."""
        gap = self.headline
        if gap is None or gap.bd_rate_percent is None or gap.scores is None:
            return "no metric can tell the bitrates of A and B at equal score"
        low, high = gap.scores
        where = f"at equal {metric_name(gap.metric)}, from {low:.1f} to {high:.1f}"
        if self.more_bits is None:
            return f"A and B need the same bits {where}"
        # the mean is one of log rates, so that the other way round is its inverse
        more = 100 * (math.exp(abs(math.log1p(gap.bd_rate_percent / 100))) - 1)
        fewer = 100 * more / (100 + more)
        loser, winner = ("B", "A") if self.more_bits == "b" else ("A", "B")
        return (
            f"{loser} needs {more:.1f} % more bits than {winner} ({winner} {fewer:.1f} % fewer "
            f"than {loser}) {where}"
        )

    def to_json(self) -> dict[str, Any]:
        """The document `vqaloop.ladder-comparison/1`."""
        gap = self.headline
        return {
            "schema": SCHEMA,
            "vqaloop": __version__,
            "source": self.a.about["source"],
            "summary": self.summary,
            "metric": gap and gap.metric,
            "bd_rate_percent": gap and rounded(gap.bd_rate_percent),
            "more_bits": self.more_bits,
            "metrics": {gap.metric: _gap_json(gap) for gap in self.gaps},
            "differences": {key: list(pair) for key, pair in self.differences.items()},
            "warnings": list(self.warnings),
            "a": _ladder_json(self.a),
            "b": _ladder_json(self.b),
        }


def compare_ladders(
    a: Ladder | str | os.PathLike[str], b: Ladder | str | os.PathLike[str]
) -> LadderComparison:
    """Compare two ladders of one title by BD-rate.

    Args:
        a: The anchor: a ladder, or the folder it is in.
        b: The ladder set against it, or its folder.

    Returns:
        The comparison. A metric without a BD-rate has the reason in its `MetricGap`.

    Raises:
        InputError: A folder holds no ladder, or the two are not of the same source: of one content
            (sha256), read alike.
    """
    one, other = (item if isinstance(item, Ladder) else read_ladder(Path(item)) for item in (a, b))
    check_same_title(one, other)
    shared = has_same_metric(one, other)
    names = [own_metric(one)] if shared else []
    names += [name for name in _shared_figures(one, other) if name not in names]
    gaps = tuple(_gap(one, other, name) for name in names)
    differences = {
        key: (mine, theirs)
        for (key, mine), theirs in zip(
            settings(one).items(), settings(other).values(), strict=True
        )
        if mine != theirs
    }
    return LadderComparison(
        one, other, gaps, differences, tuple(_warnings(one, other, gaps, shared))
    )


def own_metric(ladder: Ladder) -> str:
    """The metric of a ladder's scores, by its name in the guard where it is one of those."""
    name = str(ladder.about["metric"]["name"])
    return FIGURES.get(name, name)


def _shared_figures(one: Ladder, other: Ladder) -> list[str]:
    """Figures of the guard to compare by: VMAF and PSNR-Y, and others that both ladders have."""
    found = []
    for name in ("vmaf", "psnr_y", "vmaf_v1", "xpsnr"):
        rungs = [*one.rungs, *other.rungs]
        if name in ("vmaf", "psnr_y") or all(name in rung.guard for rung in rungs):
            found.append(name)
    return found


def value_of(rung: Rung, ladder: Ladder, metric: str) -> float:
    """The score of a rung by a metric; NaN where it was not measured."""
    if metric == own_metric(ladder):
        return rung.score
    return rung.guard.get(metric, math.nan)


def curve_of(ladder: Ladder, metric: str) -> Curve:
    return [(rung.bitrate_kbps, value_of(rung, ladder, metric)) for rung in ladder.rungs]


def size_ranges(ladder: Ladder) -> list[SizeRange]:
    """The range of bitrates of each size, lowest first."""
    found: dict[tuple[int, int], list[float]] = {}
    for rung in ladder.rungs:
        found.setdefault((rung.width, rung.height), []).append(rung.bitrate_kbps)
    return [SizeRange(*size, len(rates), min(rates), max(rates)) for size, rates in found.items()]


def settings(ladder: Ladder) -> dict[str, str]:
    """Settings that a ladder was made with, as text; the keys are always the same."""
    about, encoder, metric = ladder.about, ladder.about["encoder"], ladder.about["metric"]
    params = sorted({f"{k}={v}" for rung in ladder.rungs for k, v in rung.params.items()})
    weights = metric.get("weights_sha256")
    by_pool = f", by {metric['pool']}" if metric.get("pool") else ""
    return {
        "codec": about["codec"],
        "encoder": encoder["name"],
        "library": encoder["library_version"],
        "ffmpeg": str(encoder.get("ffmpeg") or "unknown")[:12],
        "preset": encoder["preset"],
        "parameters": ", ".join(params) or "the preset's",
        "metric": f"{metric['name']}, {metric['mode']}{by_pool}",
        "weights": str(weights)[:12] if weights else "none",
        "fitted to": metric.get("label") or "nothing",
        "vqaloop": about["vqaloop"],
    }


def check_same_title(a: Ladder, b: Ladder) -> None:
    """Raises InputError unless two ladders are of the same content, read alike."""
    one, other = (ladder.about["source"] for ladder in (a, b))
    for ladder, source in ((a, one), (b, other)):
        if not isinstance(source.get("sha256"), str):
            raise InputError(
                f"{quoted(ladder.folder)} does not say of which content it is (source.sha256); "
                "make the ladder again"
            )
    if one["sha256"] != other["sha256"]:
        titles = " and ".join(
            f"{quoted(ladder.folder)} of {quoted(source['path'])} "
            f"(sha256 {printable(source['sha256'][:12])})"
            for ladder, source in ((a, one), (b, other))
        )
        raise InputError(
            f"these are ladders of different titles: {titles}; bitrates compare only over the "
            "same content, so give two ladders that were made of the same file"
        )
    for key in ("width", "height", "fps", "duration"):
        if one[key] != other[key]:
            raise InputError(
                f"the ladders read the same file in different ways: {key} is {one[key]:g} in "
                f"{quoted(a.folder)} and {other[key]:g} in {quoted(b.folder)}; make one of them "
                "again with the options of the other"
            )


def has_same_metric(a: Ladder, b: Ladder) -> bool:
    """Whether the scores of two ladders mean the same."""
    keys = ("name", "mode", "weights_sha256", "pool")
    one, other = (ladder.about["metric"] for ladder in (a, b))
    return all(one.get(key) == other.get(key) for key in keys)


def _gap(a: Ladder, b: Ladder, metric: str) -> MetricGap:
    curves = curve_of(a, metric), curve_of(b, metric)
    rates = [[math.log(rate) for rate, _ in curve if rate > 0] for curve in curves]
    broad = all(rates) and _shared(rates, max) >= BROAD
    gain = _or_none(lambda: bd_score(*curves)) if broad else None
    try:
        percent = bd_rate(*curves, names=("A", "B"))
    except NotComparable as error:
        return MetricGap(metric, None, None, gain, None, *_refusal(curves, error))
    akima = _or_none(lambda: bd_rate(*curves, method="akima"))
    spans = [sorted(score for _, score in curve) for curve in curves]
    common = max(span[0] for span in spans), min(span[-1] for span in spans)
    return MetricGap(metric, percent, akima, gain, common, None)


def _shared(spans: Sequence[Sequence[float]], of: Callable[[Iterable[float]], float]) -> float:
    """What two spans of values share, 0..1: of the longer one (max) or the shorter one (min)."""
    common = min(map(max, spans)) - max(map(min, spans))
    length = of(max(span) - min(span) for span in spans)
    return max(0.0, common) / length if length > 0 else 0.0


def _refusal(curves: Sequence[Curve], error: NotComparable) -> tuple[str, str]:
    """Why two ladders have no BD-rate, and what to do."""
    few = [
        f"{name} has {counted(len(curve), 'rung')}"
        for name, curve in zip("AB", curves, strict=True)
        if len(curve) < MIN_POINTS
    ]
    if few:
        return (
            f"{' and '.join(few)}, and at least {MIN_POINTS} are needed",
            "make such a ladder again with more (--rungs, --min-score, --max-score)",
        )
    scores = [[score for _, score in curve] for curve in curves]
    finite = all(math.isfinite(score) for span in scores for score in span)
    if finite and _shared(scores, min) < LEAST_OVERLAP:
        ranges = " and ".join(
            f"{name} from {min(span):.1f} to {max(span):.1f}"
            for name, span in zip("AB", scores, strict=True)
        )
        return (
            f"too few scores in common, {ranges}",
            "make one of them again with --min-score, --max-score or --rungs so that their scores "
            "overlap",
        )
    # bd_rate's own remedy, after the semicolon, is to measure more points of a curve
    return str(error).partition("; ")[0], "make that ladder again with other --rungs"


def _or_none(measure: Callable[[], float]) -> float | None:
    try:
        return measure()
    except NotComparable:
        return None


def _warnings(a: Ladder, b: Ladder, gaps: tuple[MetricGap, ...], shared: bool) -> list[str]:
    found = [
        f"{name} is not to be trusted: {UNTRUSTED}"
        for name, ladder in (("A", a), ("B", b))
        if not ladder.trusted
    ]
    if not shared:
        one, other = (settings(ladder) for ladder in (a, b))
        key = "weights" if one["metric"] == other["metric"] else "metric"
        found.append(
            f"the scores are not compared, only the guard's figures: the {key} of A is "
            f"{one[key]} and of B {other[key]}"
        )
    known = [(g.metric, g.bd_rate_percent) for g in gaps if g.bd_rate_percent is not None]
    lead = known[0] if known else None
    for metric, percent in known[1:]:
        if lead and lead[1] * percent < 0 and min(abs(lead[1]), abs(percent)) >= OPPOSED:
            found.append(
                f"{metric_name(metric)} says the opposite of {metric_name(lead[0])}: BD-rate "
                f"{percent:+.2f} % against {lead[1]:+.2f} %; look at the files"
            )
    for gap in gaps:
        if gap.bd_rate_percent is not None and gap.akima_percent is not None:
            apart = abs(gap.bd_rate_percent - gap.akima_percent)
            if apart >= UNSURE:
                found.append(
                    f"by {metric_name(gap.metric)} PCHIP and Akima are {apart:.1f} points apart: "
                    "few rungs to tell by; make ladders with more (--rungs N)"
                )
    return found


def _gap_json(gap: MetricGap) -> dict[str, Any]:
    return {
        "bd_rate_percent": rounded(gap.bd_rate_percent),
        "akima_percent": rounded(gap.akima_percent),
        "bd_score": rounded(gap.bd_score),
        "scores": gap.scores and [rounded(score) for score in gap.scores],
        "refused": gap.refused and f"{gap.refused}; {gap.remedy}",
    }


def _ladder_json(ladder: Ladder) -> dict[str, Any]:
    about = ladder.about
    return {
        "folder": str(ladder.folder),
        **{key: about[key] for key in ("vqaloop", "codec", "encoder", "metric")},
        "trusted": ladder.trusted,
        "sizes": [
            {
                "width": size.width,
                "height": size.height,
                "rungs": size.rungs,
                "bitrate_kbps": [rounded(size.lowest_kbps), rounded(size.highest_kbps)],
            }
            for size in size_ranges(ladder)
        ],
        "rungs": [rung.to_json() for rung in ladder.rungs],
    }
