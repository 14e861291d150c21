"""What could be better about a ladder: wasted bits, gaps, sizes, peaks, wrong manifests."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from vqaloop.audit.measure import Measured
from vqaloop.execution.capping import PEAK_RATIO
from vqaloop.records import RDPoint
from vqaloop.search.hull import convex_hull, front

WASTE = 1.10
"""Times the rate of the ladder's own hull at a rung's score from which it wastes bits."""
WIDE = 2.0
"""Steps between neighbours from which a rung is missing."""
NARROW = 0.5
"""Steps between neighbours up to which nobody sees a difference."""
DECLARED = 0.10
"""Part by which declared rates may miss measured ones (Apple 1.26, 1.27)."""
RATE_TOLERANCE = Fraction(1, 1000)


@dataclass(frozen=True)
class Finding:
    """One thing that could be better."""

    kind: str
    """waste, ceiling, dominated, size, missing, narrow, top, peak, bandwidth, average_bandwidth,
    codecs, resolution or frame_rate."""
    rungs: tuple[str, ...]
    text: str
    kbps: float | None = None
    """Bitrate that could be saved, or of the missing rung."""


@dataclass(frozen=True)
class Scored:
    """A rung with its score."""

    measured: Measured
    score: float
    interval: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        return self.measured.name

    @property
    def kbps(self) -> float:
        return self.measured.kbps

    @property
    def point(self) -> RDPoint:
        """As a point in the plane of rate and score; the knob is unknown."""
        return RDPoint(self.measured.width, self.measured.height, 0.0, self.kbps, self.score)


def find_all(rungs: Sequence[Scored], step: float, ceiling: float) -> list[Finding]:
    """All findings, codec by codec, the manifest's errors last."""
    found: list[Finding] = []
    for codec in dict.fromkeys(rung.measured.codec for rung in rungs):
        same = [rung for rung in rungs if rung.measured.codec == codec]
        same.sort(key=lambda rung: (rung.kbps, rung.score))
        found += _dominated(same)
        found += _waste(same, ceiling)
        found += _sizes(same)
        found += _steps(same, step, ceiling)
    for rung in rungs:
        found += _peaks(rung)
        found += _declared(rung.measured)
    return found


def _dominated(rungs: Sequence[Scored]) -> list[Finding]:
    found = []
    for rung in rungs:
        better = [
            other
            for other in rungs
            if other is not rung
            and other.kbps <= rung.kbps
            and other.score >= rung.score
            and (other.kbps, -other.score) != (rung.kbps, -rung.score)
        ]
        if better:
            best = min(better, key=lambda other: other.kbps)
            text = (
                f"{rung.name} is beaten by {best.name}: {best.score:.1f} at {best.kbps:.0f} kb/s "
                f"against {rung.score:.1f} at {rung.kbps:.0f}"
            )
            found.append(Finding("dominated", (rung.name, best.name), text, rung.kbps - best.kbps))
    return found


def _waste(rungs: Sequence[Scored], ceiling: float) -> list[Finding]:
    """Rungs above the ceiling, and rungs far right of the hull of all."""
    found, hull = [], convex_hull(rung.point for rung in rungs)
    reached = next((rung for rung in rungs if rung.score >= ceiling), None)
    best = {id(rung) for rung in rungs if rung.point in front(r.point for r in rungs)}
    for rung in rungs:
        if reached and rung is not reached and rung.kbps > reached.kbps:
            text = (
                f"{rung.name} spends {rung.kbps:.0f} kb/s above the ceiling: {reached.name} "
                f"reaches {reached.score:.1f} of {ceiling:g} with {reached.kbps:.0f}"
            )
            kbps = rung.kbps - reached.kbps
            found.append(Finding("ceiling", (rung.name, reached.name), text, kbps))
            continue
        needed = _rate_on(hull, rung.score)
        # what another rung beats is said already
        if id(rung) in best and needed and rung.kbps > needed * WASTE:
            text = (
                f"{rung.name} spends {rung.kbps:.0f} kb/s on {rung.score:.1f}, where the hull of "
                f"the ladder's other rungs needs about {needed:.0f}"
            )
            found.append(Finding("waste", (rung.name,), text, rung.kbps - needed))
    return found


def _rate_on(hull: Sequence[RDPoint], score: float) -> float | None:
    """The rate at which a hull has a score, between its points."""
    for low, high in pairwise(hull):
        if low.score <= score <= high.score:
            part = (score - low.score) / (high.score - low.score)
            return low.bitrate_kbps + part * (high.bitrate_kbps - low.bitrate_kbps)
    return None


def _sizes(rungs: Sequence[Scored]) -> list[Finding]:
    sizes = dict.fromkeys(rung.point.size for rung in rungs)
    good = {point.size for point in front(rung.point for rung in rungs)}
    found = []
    for width, height in sizes:
        if (width, height) not in good:
            names = tuple(r.name for r in rungs if r.point.size == (width, height))
            text = f"no rung of {width}x{height} is worth its rate: other sizes beat them all"
            found.append(Finding("size", names, text))
    return found


def _steps(rungs: Sequence[Scored], step: float, ceiling: float) -> list[Finding]:
    """Steps of score between neighbours that are too wide, or too narrow to be seen."""
    found = []
    rising = [r for r in rungs if r.point in front(other.point for other in rungs)]
    for low, high in pairwise(rising):
        gap = high.score - low.score
        if gap >= WIDE * step:
            kbps = math.sqrt(low.kbps * high.kbps)
            text = (
                f"between {low.name} and {high.name} a rung is missing: {gap:.1f} points from "
                f"{low.score:.1f} to {high.score:.1f} are {gap / step:.1f} steps of {step:g}; one "
                f"near {kbps:.0f} kb/s would halve them"
            )
            found.append(Finding("missing", (low.name, high.name), text, kbps))
        elif gap < NARROW * step:
            text = (
                f"{low.name} and {high.name} look alike: {gap:.1f} points are {gap / step:.1f} "
                f"steps of {step:g}"
            )
            found.append(Finding("narrow", (low.name, high.name), text, low.kbps))
    if rising and math.isfinite(ceiling) and rising[-1].score < ceiling - step:
        top = rising[-1]
        text = (
            f"the best rung, {top.name}, ends at {top.score:.1f}, more than a step below the "
            f"ceiling of {ceiling:g}"
        )
        found.append(Finding("top", (top.name,), text))
    return found


def _peaks(rung: Scored) -> list[Finding]:
    ratio = rung.measured.peak_kbps / rung.kbps
    if ratio <= PEAK_RATIO:
        return []
    text = (
        f"{rung.name}: its peak of {rung.measured.peak_kbps:.0f} kb/s is {ratio:.1f} times its "
        f"average; at most {PEAK_RATIO:g} is advised (Apple 1.30)"
    )
    return [Finding("peak", (rung.name,), text)]


def _declared(rung: Measured) -> list[Finding]:
    """What the manifest says that is not so."""
    said = rung.listed.declared
    if said is None:
        return []
    found = []

    def add(kind: str, text: str) -> None:
        found.append(Finding(kind, (rung.name,), f"{rung.name}: {text}"))

    for kind, declared, real in (
        ("bandwidth", said.bandwidth, rung.bandwidth),
        ("average_bandwidth", said.average_bandwidth, rung.average_bandwidth),
    ):
        if declared and real and abs(declared - real) > DECLARED * real:
            word = "BANDWIDTH" if said.kind == "hls" else "@bandwidth"
            word = f"AVERAGE-{word}" if kind == "average_bandwidth" else word
            add(
                kind,
                f"{word} is {declared} and {real} is measured (Apple 1.26, 1.27: within 10 %)",
            )
    if said.kind == "hls" and said.average_bandwidth is None:
        add("average_bandwidth", "AVERAGE-BANDWIDTH is missing")
    if said.codecs is None:
        add("codecs", "CODECS is missing" + (f"; it is {rung.codecs}" if rung.codecs else ""))
    elif rung.codecs and rung.codecs not in [part.strip() for part in said.codecs.split(",")]:
        add("codecs", f"CODECS is {said.codecs} and the pictures are {rung.codecs}")
    if said.size is None:
        add("resolution", f"RESOLUTION is missing; it is {rung.width}x{rung.height}")
    elif said.size != (rung.width, rung.height):
        real_size = f"{rung.width}x{rung.height}"
        add("resolution", f"RESOLUTION is {said.size[0]}x{said.size[1]} and it is {real_size}")
    if said.frame_rate and abs(said.frame_rate - rung.fps) > RATE_TOLERANCE * rung.fps:
        add(
            "frame_rate",
            f"FRAME-RATE is {float(said.frame_rate):.3f} and it is {float(rung.fps):.3f}",
        )
    return found
