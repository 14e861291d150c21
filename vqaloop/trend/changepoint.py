"""Change-point detection in a series of measurements, with p-values.

One change: the split into two parts whose means differ most for its length (least squares, Hawkins
1977, "Testing a sequence of observations for a shift in location"), with a p-value by permutation
of the series, so that no distribution need be assumed. Several: binary segmentation (Scott and
Knott 1974). One or two stray values in a row are left out first: those far from the median of the
five about them (Hampel's identifier, Davies and Gather 1993). Three in a row are a change.

What is assumed is that errors of different rows are independent. Drifting errors are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

LEVEL = 0.01
"""Largest p-value of a change that is reported: one series of pure noise in a hundred has one."""
LEAST_PART = 3
"""Values on either side of a change. With fewer, no p-value could be small enough."""
LARGEST = 1000
"""Values looked at, the newest."""
DRAWS = 2000
"""Permutations."""
STRAY = 4.0
"""Standard deviations from the median about it beyond which a value is left out."""
WINDOW = 5
"""Values that median is of: two of them may be strays."""


@dataclass(frozen=True)
class ChangePoint:
    """A change of level."""

    index: int
    """Of the first value after it."""
    step: float
    """Median of the part after it less that of the part before, in the unit of the values."""
    p_value: float
    """Share of series without a change that look as changed as this one, 0..1."""


def change_point(
    values: Sequence[float], noise: float = 0.0, *, level: float = LEVEL, seed: int = 0
) -> ChangePoint | None:
    """The most significant change of level in a series, or None.

    Args:
        values: In the order of time; finite.
        noise: In their unit; a smaller step is never reported, whatever its p-value.
        level: Largest p-value that is reported, 0..1.
        seed: Of the permutations; the same seed gives the same result.
    """
    start = max(len(values) - LARGEST, 0)
    series = np.asarray(values, float)[start:]
    if len(series) < 2 * LEAST_PART:
        return None
    kept = np.flatnonzero(~_strays(series))
    series = series[kept]
    if len(series) < 2 * LEAST_PART:
        return None
    found = _splits(series[None, :])[0]
    if not found.max() > 1e-9 * np.abs(series).max():  # all the same
        return None
    at = int(found.argmax()) + LEAST_PART
    step = float(np.median(series[at:]) - np.median(series[:at]))
    if step == 0 or abs(step) < noise:
        return None
    p_value = _p_value(series, float(found.max()), seed)
    return ChangePoint(start + int(kept[at]), step, p_value) if p_value <= level else None


def change_points(
    values: Sequence[float], noise: float = 0.0, *, level: float = LEVEL, seed: int = 0
) -> list[ChangePoint]:
    """All changes of a series in order, by binary segmentation.

    Arguments as of `change_point`. Steps are between neighbouring parts.
    """
    bounds, certain = [0, len(values)], {}
    waiting = [(0, len(values))]
    while waiting:
        start, stop = waiting.pop()
        found = change_point(values[start:stop], noise, level=level, seed=seed)
        if found is not None:
            at = start + found.index
            certain[at] = found.p_value
            bounds.append(at)
            waiting += [(start, at), (at, stop)]
    bounds.sort()
    changes = []
    for before, at, after in zip(bounds, bounds[1:], bounds[2:], strict=False):
        step = float(np.median(values[at:after]) - np.median(values[before:at]))
        changes.append(ChangePoint(at, step, certain[at]))
    return changes


def spread(values: Sequence[float]) -> float:
    """Standard deviation of a series about a level that may change, from its differences.

    Their median absolute value, scaled to a normal distribution: robust to few steps and strays.
    """
    if len(values) < 2:
        return 0.0
    return float(np.median(np.abs(np.diff(np.asarray(values, float))))) / (0.67449 * 2**0.5)


def _strays(series: Values) -> npt.NDArray[np.bool_]:
    reach = STRAY * spread(series.tolist())
    windows = np.lib.stride_tricks.sliding_window_view(series, WINDOW)
    # at the ends the nearest window that lies inside
    nearest = np.clip(np.arange(len(series)) - WINDOW // 2, 0, len(windows) - 1)
    far: npt.NDArray[np.bool_] = np.abs(series - np.median(windows, axis=1)[nearest]) > reach
    # without any spread nothing can be called far
    return far & (reach > 0)


def _splits(series: Values) -> Values:
    """Of (R, N) series the scaled difference of means at every split, (R, N - 2 LEAST_PART + 1).

    |S_k - k S_N / N| / sqrt(k (N - k) / N): of equal spread at every k where nothing changed.
    """
    count = series.shape[1]
    parts = np.arange(LEAST_PART, count - LEAST_PART + 1)
    sums = np.cumsum(series - series.mean(axis=1, keepdims=True), axis=1)
    found: Values = np.abs(sums[:, parts - 1]) / np.sqrt(parts * (count - parts) / count)
    return found


def _p_value(series: Values, seen: float, seed: int) -> float:
    random = np.random.default_rng(seed)
    above = 0
    # in batches, to bound the memory
    for _ in range(DRAWS // 500):
        shuffled = random.permuted(np.tile(series, (500, 1)), axis=1)
        # equal but for rounding is equal
        above += int((_splits(shuffled).max(axis=1) >= seen * (1 - 1e-9)).sum())
    return (1 + above) / (DRAWS + 1)
