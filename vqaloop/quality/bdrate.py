"""Bjontegaard deltas: the mean difference between two rate-quality curves in one number.

A curve is at least MIN_POINTS points (kb/s, score) in any order, of which the score must strictly
rise with the rate. The integral of the gap between two curves over what they have in common is
due to G. Bjontegaard, "Calculation of average PSNR differences between RD-curves", ITU-T SG16
VCEG-M33 (2001). His cubic polynomial through four points swings between them and answers even for
points out of order, so it is not offered: instead PCHIP, as in JVET-T2010 and the common test
conditions of AOM, and Akima beside it, which Herglotz et al. (arXiv:2202.12565) found to follow
measured curves best. A gap between the two means too few points.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.interpolate import Akima1DInterpolator, PchipInterpolator

from vqaloop.core.text import counted
from vqaloop.errors import VqaloopError

Curve = Sequence[tuple[float, float]]
"""(bitrate in kb/s, score) of each point."""
Method = Literal["pchip", "akima"]
Values = npt.NDArray[np.float64]

MIN_POINTS = 3
"""Fewer do not show the curvature; common test conditions ask for four or more."""
LEAST_OVERLAP = 0.75
"""Part of the shorter curve that the other must cover, for the mean to stand for the curves."""

_INTERPOLATORS = {"pchip": PchipInterpolator, "akima": Akima1DInterpolator}


class NotComparable(VqaloopError):
    """Two curves without a defined mean difference; the message says why.

    Neither a pass nor a regression (exit 2).
    """


def bd_rate(
    anchor: Curve,
    test: Curve,
    *,
    method: Method = "pchip",
    least_overlap: float = LEAST_OVERLAP,
    names: tuple[str, str] = ("anchor", "test"),
) -> float:
    """BD-rate: bitrate that `test` needs more (+) or less (-) than `anchor` at equal score.

    100 (exp(mean) - 1), where the mean is of the difference in log rate over the scores that both
    curves reach.

    Args:
        anchor: (kb/s, score) points, at least MIN_POINTS.
        test: As `anchor`.
        method: The interpolation between points.
        least_overlap: Part, 0..1, of the shorter curve's scores that both must reach.
        names: What messages call the two curves.

    Returns:
        The difference in percent.

    Raises:
        NotComparable: A curve is too short or does not strictly rise, or they overlap too little.
    """
    curves = [_checked(curve, name) for curve, name in zip((anchor, test), names, strict=True)]
    over_score = [(score, rate) for rate, score in curves]
    mean = _mean_gap(over_score, method, least_overlap, "score", lambda x: f"{x:.4g}", names)
    with np.errstate(over="ignore"):
        return _finite(100 * float(np.expm1(mean)))


def bd_score(
    anchor: Curve, test: Curve, *, method: Method = "pchip", least_overlap: float = LEAST_OVERLAP
) -> float:
    """BD-score: points that `test` gains (+) or loses (-) over `anchor` at equal bitrate.

    The mean over the log rates that both curves reach; arguments and errors are those of
    `bd_rate`, the overlap being that of log rates.
    """
    curves = [_checked(anchor, "anchor"), _checked(test, "test")]
    return _mean_gap(curves, method, least_overlap, "bitrate", lambda x: f"{math.exp(x):.4g} kb/s")


def _checked(curve: Curve, name: str) -> tuple[Values, Values]:
    """Log rates and scores in ascending order."""
    points = sorted((float(rate), float(score)) for rate, score in curve)
    if len(points) < MIN_POINTS:
        raise NotComparable(
            f"the {name} curve has {counted(len(points), 'point')}; at least "
            f"{MIN_POINTS} are needed for its shape, better 4 to 6"
        )
    for rate, score in points:
        if not (0 < rate < math.inf and math.isfinite(score)):
            raise NotComparable(
                f"the {name} curve holds {_shown((rate, score))}; bitrates above 0 and finite "
                "scores are needed"
            )
    for low, high in zip(points, points[1:], strict=False):
        if not (low[0] < high[0] and low[1] < high[1]):
            raise NotComparable(
                f"the {name} curve does not rise from {_shown(low)} to {_shown(high)}; at equal "
                "score its bitrate is not defined; drop one of the two or measure further apart"
            )
    return np.log([rate for rate, _ in points]), np.array([score for _, score in points])


def _shown(point: tuple[float, float]) -> str:
    return f"({point[0]:g} kb/s, score {point[1]:g})"


def _mean_gap(
    curves: Sequence[tuple[Values, Values]],
    method: str,
    least_overlap: float,
    axis: str,
    shown: Callable[[float], str],
    names: tuple[str, str] = ("anchor", "test"),
) -> float:
    """Mean of test minus anchor over the x that both have; each curve is (x, y), x ascending."""
    if method not in _INTERPOLATORS:
        raise NotComparable(f"{method = } is not known; pchip and akima are")
    low = float(max(x[0] for x, _ in curves))
    high = float(min(x[-1] for x, _ in curves))
    shorter = float(min(x[-1] - x[0] for x, _ in curves))
    share = max(0.0, high - low) / shorter
    if not share >= max(least_overlap, 1e-9):
        spans = " and ".join(
            f"the {name} from {shown(x[0])} to {shown(x[-1])}"
            for name, (x, _) in zip(names, curves, strict=True)
        )
        raise NotComparable(
            f"the curves share {100 * share:.0f} % of the shorter one's {axis} span, and "
            f"{100 * least_overlap:.0f} % are needed: {spans}; add points until they meet"
        )
    with np.errstate(all="ignore"):
        areas = [float(_INTERPOLATORS[method](x, y).integrate(low, high)) for x, y in curves]
    return _finite((areas[1] - areas[0]) / (high - low))


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise NotComparable("the points lie too far apart, or too near, for a mean difference")
    return value
