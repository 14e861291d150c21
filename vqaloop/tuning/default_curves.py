"""Rate-quality curves of an encoder's default parameters, and the gains of other parameters.

The rate of an encode is compared with the rates at which the defaults reach the same score, and
the same value of each guard, on the same window; its PSNR-Y and VMAF with theirs at the same rate,
its CPU seconds with theirs at the same knob.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vqaloop.records import RDPoint
from vqaloop.search.curve_fit import fit_curve

DENSE = 400
"""Knobs at which the curves are tabulated."""
GUARDS = {"vmaf": "VMAF", "vmaf_v1": "VMAF v1", "xpsnr": "XPSNR"}
"""Measures beside the metric that steers, by which savings of bitrate are computed; in words."""


@dataclass(frozen=True)
class CurvePoint:
    """One measured encode of a window, or of the title."""

    knob: float
    kbps: float
    score: float
    vmaf: float
    psnr_y: float
    cpu_s: float
    xpsnr: float | None = None
    vmaf_v1: float | None = None
    """None where the pictures are too small for it."""
    ffmpeg_args: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gains:
    """One encode compared with the defaults."""

    kbps: float
    score: float
    saving: float
    """Percent of bitrate at equal score; negative when it needs more."""
    guards: Mapping[str, float]
    """The same at equal value of each of GUARDS that was measured."""
    vmaf: float
    """VMAF points gained at equal bitrate."""
    psnr_y: float
    """dB gained at equal bitrate."""
    cpu_s: float
    default_cpu_s: float
    """Seconds of the defaults at the same knob, by their curve."""
    beside_cpu_s: float | None = None
    """Those of the defaults timed right after it, where that was done."""


def saved_words(percent: float) -> str:
    """What a saving of bitrate is in words; a negative one is a loss."""
    return f"{abs(percent):.1f} % {'saved' if percent > -0.05 else 'more bitrate'}"


def time_ratio(gains: Sequence[Gains]) -> float:
    """CPU time over the defaults'.

    CPU seconds drift by ten percent and more with the machine's load, so the curve of the
    defaults, measured once, is rescaled by the encodes whose defaults were timed again.
    """
    timed = [(g.beside_cpu_s, g.default_cpu_s) for g in gains if g.beside_cpu_s is not None]
    drift = sum(a for a, _ in timed) / sum(b for _, b in timed) if timed else 1.0
    return sum(g.cpu_s for g in gains) / (drift * sum(g.default_cpu_s for g in gains))


def measured_guards(points: Sequence[CurvePoint]) -> list[str]:
    """Those of GUARDS that all the points have."""
    return [name for name in GUARDS if all(getattr(point, name) is not None for point in points)]


class DefaultCurves:
    """The defaults on one window: curves through the points of at least two knobs."""

    def __init__(self, points: Sequence[CurvePoint], top: float) -> None:
        self.points = sorted(points, key=lambda p: p.knob)
        knobs = [p.knob for p in self.points]
        # a little beyond the ends, where encodes of other parameters may lie
        reach = (knobs[-1] - knobs[0]) / 4
        self.knobs = np.linspace(knobs[0] - reach, knobs[-1] + reach, DENSE)
        curve = self._tabulated("score", top)
        self.log_rate = np.array([np.log(p.bitrate_kbps) for p in curve])
        self.score = np.array([p.score for p in curve])
        self.guards = {
            name: np.array([p.score for p in self._tabulated(name, 100.0)])
            for name in measured_guards(self.points)
        }
        self.psnr_y = np.array([p.score for p in self._tabulated("psnr_y", 100.0)])
        # single times are noisy, and their logarithm is nearly linear in the knob
        seconds = np.log([max(p.cpu_s, 1e-3) for p in self.points])
        self._cpu = np.polynomial.Polynomial.fit(knobs, seconds, 1)

    def _tabulated(self, what: str, top: float) -> list[RDPoint]:
        points = [RDPoint(0, 0, p.knob, p.kbps, getattr(p, what)) for p in self.points]
        fitted = fit_curve(points, top)
        return [fitted(float(knob)) for knob in self.knobs]

    def compare(self, point: CurvePoint) -> Gains:
        """The gains of an encode of other parameters."""
        rising = np.argsort(self.log_rate, kind="stable")
        log_rate = self.log_rate[rising]
        there = np.log(point.kbps)

        def saving(value: float, values: npt.NDArray[np.float64]) -> float:
            equal = float(np.exp(np.interp(value, values[rising], log_rate)))
            return 100 * (1 - point.kbps / equal)

        return Gains(
            kbps=point.kbps,
            score=point.score,
            saving=saving(point.score, self.score),
            guards={
                name: saving(getattr(point, name), self.guards[name])
                for name in measured_guards([point])
                if name in self.guards
            },
            vmaf=point.vmaf - float(np.interp(there, log_rate, self.guards["vmaf"][rising])),
            psnr_y=point.psnr_y - float(np.interp(there, log_rate, self.psnr_y[rising])),
            cpu_s=point.cpu_s,
            default_cpu_s=float(np.exp(self._cpu(point.knob))),
        )
