"""Frame rates: parsing, finding the constant one of presentation times, resampling to one."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from vqaloop.errors import InputError
from vqaloop.media.limits import MAX_FPS, MAX_REPEATS, MAX_VARIABLE_FPS, MIN_FPS

STANDARD_RATES = tuple(
    Fraction(n, d)
    for n, d in (
        *((10, 1), (12, 1), (25, 2), (15000, 1001), (15, 1), (20, 1), (24000, 1001), (24, 1)),
        *((25, 1), (30000, 1001), (30, 1), (48000, 1001), (48, 1), (50, 1), (60000, 1001)),
        *((60, 1), (90, 1), (100, 1), (120000, 1001), (120, 1), (240, 1)),
    )
)
"""Rates, in fps, to which a variable or rounded rate is brought."""

_CADENCE_TOLERANCE = 0.1
"""Frames by which a time stamp may deviate from a constant rate."""

_MOST_LATE = 2.0
"""Frames by which one may be delayed where time stamps jitter: 67 ms at 30 fps."""

_JITTER = 1.5
"""From this many times the frames on, delaying some is better than a rate that keeps them all."""

_ALIKE = Fraction(105, 100)
"""Rates this near each other (24 and 25, 48 and 50) keep the same frames of a short title: the
right one is that which the time stamps fit best."""

_SHORT = Fraction(5, 4)
"""Rates even this far apart keep the same frames of a title of a few; the better fit decides."""

_FITS_ALIKE = 0.02
"""Frames by which mean distances from two rates must differ for one to be the better fit."""


def parse_rate(text: str) -> Fraction:
    """Parse a frame rate.

    Args:
        text: In fps: "25", "30000/1001" or "29.97", which stands for 30000/1001.

    Returns:
        The rate.

    Raises:
        InputError: The text is no number, or out of range.
    """
    if not re.fullmatch(r"[0-9]{1,9}([.][0-9]{1,6}|[:/][1-9][0-9]{0,8})?", text):
        raise InputError(f"--framerate {text!r} is not a rate; write 25, 29.97 or 30000/1001")
    rate = Fraction(text.replace(":", "/"))
    if not MIN_FPS <= rate <= MAX_FPS:
        raise InputError(f"--framerate {text!r} is out of range; {MIN_FPS} to {MAX_FPS} are taken")
    near = nearest_standard(rate)
    rounded = "." in text and near.denominator == 1001 and abs(near - rate) < near / 3000
    return near if rounded else rate


def nearest_standard(rate: Fraction | float) -> Fraction:
    """The standard rate nearest in ratio to `rate`, which is above 0."""
    return min(STANDARD_RATES, key=lambda standard: abs(math.log(standard / rate)))


def snapped(rate: Fraction) -> Fraction:
    """The standard rate that a container rounds: in Matroska, 59.94 becomes 19001/317."""
    near = nearest_standard(rate)
    return near if abs(near - rate) < near / 50_000 else rate


def mean_rate(times_s: npt.ArrayLike) -> float:
    """Mean frame rate, in fps, of presentation times in seconds; 0 where they do not advance."""
    times = np.asarray(times_s, dtype=np.float64)
    span = float(times[-1] - times[0]) if len(times) > 1 else 0.0
    return (len(times) - 1) / span if span > 0 else 0.0


def regular_rate(
    times_s: npt.ArrayLike, tick_s: float, hints: Sequence[Fraction] = ()
) -> Fraction | None:
    """The constant frame rate of presentation times.

    Args:
        times_s: Presentation times in seconds.
        tick_s: Resolution of the times: rounding to it (1 ms in Matroska) is no variation.
        hints: Rates that win where several fit, such as the container's.

    Returns:
        The rate, None where it varies.
    """
    mean = mean_rate(times_s)
    if not mean:
        return None
    fitted = Fraction(mean).limit_denominator(1001)
    candidates = (*hints, *STANDARD_RATES, fitted)
    return next((rate for rate in candidates if follows(times_s, tick_s, rate)), None)


def follows(times_s: npt.ArrayLike, tick_s: float, rate: Fraction) -> bool:
    """Whether presentation times in seconds, rounded to `tick_s`, are those of a constant rate."""
    times = np.asarray(times_s, dtype=np.float64)
    if bool((np.diff(times) <= 0).any()):
        return False
    tolerance = min(max(_CADENCE_TOLERANCE, 0.75 * tick_s * float(rate)), 0.25)
    offsets = times * float(rate) - np.arange(len(times))
    return bool((offsets.max() - offsets.min()) / 2 <= tolerance)


@dataclass(frozen=True)
class Regrid:
    """Resampling of a variable frame rate to a constant one."""

    fps: Fraction
    lost: int
    """Frames that are dropped."""
    delayed: bool
    """True where frames that would fall on one place are delayed to the next free one."""

    @property
    def filters(self) -> tuple[str, ...]:
        """ffmpeg's filters for it; the first frame is at time 0."""
        rate = f"{self.fps.numerator}/{self.fps.denominator}"
        if not self.delayed:
            return (f"fps={rate}",)
        tick = f"settb=expr={self.fps.denominator}/{self.fps.numerator}"
        # max takes its second argument where the first is no number, as before the first frame
        return tick, "setpts=expr='max(PREV_OUTPTS+1,PTS)'", f"fps={rate}"


def regrid(times_s: npt.ArrayLike, fps: Fraction) -> Regrid:
    """Resampling of frames with these presentation times, in seconds, to a given rate."""
    places, late = _places(times_s, fps)
    lost = len(places) - len(np.unique(places))
    if lost and late <= _MOST_LATE:
        return Regrid(fps, 0, True)
    return Regrid(fps, lost, False)


def best_regrid(times_s: npt.ArrayLike, tick_s: float, hints: Sequence[Fraction] = ()) -> Regrid:
    """The constant rate that keeps every frame of a variable one with the fewest repeated.

    Where no rate within MAX_VARIABLE_FPS and MAX_REPEATS keeps them all, the one that drops the
    fewest.

    Args:
        times_s: Presentation times in seconds.
        tick_s: Resolution of the times.
        hints: The container's rates, the most trustworthy first.

    Returns:
        The resampling.
    """
    times = np.asarray(times_s, dtype=np.float64)
    times = times - times[0]
    rates = _candidates(times, tick_s, hints)
    ways = [regrid(times, rate) for rate in rates]
    whole = [way for way in ways if not way.lost]
    if not whole:
        return min(ways, key=lambda way: (way.lost, way.fps))
    # delays are visible, so a rate without them is preferred, unless it repeats far more frames
    undelayed = [way for way in whole if not way.delayed]
    least = min(way.fps for way in whole)
    if undelayed and min(way.fps for way in undelayed) <= _JITTER * least:
        whole = undelayed
        least = min(way.fps for way in whole)
    # among rates that keep the same frames, the time stamps decide
    distances = {way.fps: _distance(times, way.fps) for way in whole}
    alike = [
        way
        for way in whole
        if way.fps <= least * _SHORT
        and distances[way.fps] <= _FITS_ALIKE + tick_s * float(way.fps) / 2
    ] or [way for way in whole if way.fps <= least * _ALIKE]
    closest = min(distances[way.fps] for way in alike)
    return next(way for way in alike if distances[way.fps] <= closest + _FITS_ALIKE)


def _candidates(
    times: npt.NDArray[np.float64], tick_s: float, hints: Sequence[Fraction]
) -> list[Fraction]:
    """Rates worth a try, the likelier ones first."""
    steps = np.diff(times)
    steps = np.sort(steps[steps > 0])
    measured = []
    for step in (steps[len(steps) // 2], steps[0]):
        like = steps[np.abs(steps - step) <= max(0.1 * step, 1.5 * tick_s)]
        measured.append(Fraction(1 / float(like.mean())).limit_denominator(1001))
    # 29.97 and the like only where the container says so or the stamps fit nothing else
    usual = sorted(
        STANDARD_RATES,
        key=lambda rate: (rate.denominator == 1001, abs(math.log(rate / measured[0]))),
    )
    # the usual ones first: of a rate that varies, a container may give the mean as its rate
    meant = [rate for rate in hints if rate in STANDARD_RATES]
    rates = dict.fromkeys((*meant, *usual, *hints, *measured))
    taken = [rate for rate in rates if MIN_FPS <= rate <= MAX_VARIABLE_FPS]
    most = MAX_REPEATS * len(times) / float(times[-1])
    return [rate for rate in taken if rate <= most] or [min(taken)]


def _places(times_s: npt.ArrayLike, fps: Fraction) -> tuple[npt.NDArray[np.float64], float]:
    """The grid's place nearest to each frame; how late a frame is, in frames, if none shares one.

    Halves are rounded up, as ffmpeg does.
    """
    exact = np.asarray(times_s, dtype=np.float64) * float(fps)
    nearest = np.floor(exact + 0.5 + 1e-6)
    index = np.arange(len(exact))
    own = np.maximum.accumulate(nearest - index) + index
    return nearest, float((own - exact).max())


def _distance(times: npt.NDArray[np.float64], fps: Fraction) -> float:
    """Mean distance of the times from the grid's places, in frames."""
    exact = times * float(fps)
    return float(np.abs(exact - np.round(exact)).mean())
