"""Frame rates: reading them, and recognising the constant one that display times follow."""

import math
import re
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from vqaloop.errors import InputError
from vqaloop.limits import MAX_FPS, MIN_FPS

STANDARD_RATES = tuple(
    Fraction(n, d)
    for n, d in (
        *((10, 1), (12, 1), (25, 2), (15000, 1001), (15, 1), (20, 1), (24000, 1001), (24, 1)),
        *((25, 1), (30000, 1001), (30, 1), (48000, 1001), (48, 1), (50, 1), (60000, 1001)),
        *((60, 1), (90, 1), (100, 1), (120000, 1001), (120, 1), (240, 1)),
    )
)
"""Frames a second that a variable or rounded rate is brought to."""

_CADENCE_TOLERANCE = 0.1
"""Frames by which a timestamp may leave the regular grid and still be constant rate."""


def parse_rate(text: str) -> Fraction:
    """Frames a second from "25", "30000/1001" or "29.97" (taken as 30000/1001).

    Raises InputError when it is no number or out of range.
    """
    if not re.fullmatch(r"[0-9]{1,9}([.][0-9]{1,6}|[:/][1-9][0-9]{0,8})?", text):
        raise InputError(f"--framerate {text!r} is not a rate; write 25, 29.97 or 30000/1001")
    rate = Fraction(text.replace(":", "/"))
    if not MIN_FPS <= rate <= MAX_FPS:
        raise InputError(f"--framerate {text!r} is out of range; {MIN_FPS} to {MAX_FPS} are taken")
    near = nearest_standard(rate)
    rounded = "." in text and near.denominator == 1001 and abs(near - rate) < near / 4000
    return near if rounded else rate


def nearest_standard(rate: Fraction | float) -> Fraction:
    """The standard rate nearest in ratio to `rate`, which is above 0."""
    return min(STANDARD_RATES, key=lambda standard: abs(math.log(standard / rate)))


def snapped(rate: Fraction) -> Fraction:
    """The standard rate a container meant: Matroska's nanoseconds give 19001/317 for 59.94."""
    near = nearest_standard(rate)
    return near if abs(near - rate) < near / 50_000 else rate


def mean_rate(times_s: npt.ArrayLike) -> float:
    """Frames a second over display times in seconds; 0 where they do not advance."""
    times = np.asarray(times_s, dtype=np.float64)
    span = float(times[-1] - times[0]) if len(times) > 1 else 0.0
    return (len(times) - 1) / span if span > 0 else 0.0


def regular_rate(
    times_s: npt.ArrayLike, tick_s: float, hints: Sequence[Fraction] = ()
) -> Fraction | None:
    """The constant rate that display times in seconds follow, or None when the rate varies.

    `tick_s` is the resolution of the times: their rounding to it (1 ms in Matroska) is not
    variation. `hints` are rates that win where several fit, such as the container's.
    """
    times = np.asarray(times_s, dtype=np.float64)
    mean = mean_rate(times)
    if not mean or bool((np.diff(times) <= 0).any()):
        return None
    fitted = Fraction(mean).limit_denominator(1001)
    for rate in (*hints, *STANDARD_RATES, fitted):
        tolerance = min(max(_CADENCE_TOLERANCE, 0.75 * tick_s * float(rate)), 0.25)
        offsets = times * float(rate) - np.arange(len(times))
        if float(offsets.max() - offsets.min()) / 2 <= tolerance:
            return rate
    return None
