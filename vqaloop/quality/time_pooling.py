"""Pools a title's scores over time into one: mean, harmonic mean, percentile or worst scene.

Metrics of all frames are pooled over seconds, not frames: encoders spend unlike bits on kinds of
frames (IDR, reference and non-reference ones), so a low percentile of single frames is that of the
worst kind, and one broken frame decides a harmonic mean. A second holds all kinds, and is what a
viewer notices. Metrics that sample a title are pooled over the places they looked at, each
weighted by the part of the title that it stands for.
"""

import math
from bisect import bisect
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from vqaloop.core.option_fields import fault_of
from vqaloop.errors import InputError
from vqaloop.records import Score

PERCENTILES = {"p5": 5.0, "p1": 1.0}
POOLS = ("mean", "harmonic", *PERCENTILES, "min-scene")
"""Names, as --pool takes them. The mean is the metric's own value."""

Values = npt.NDArray[np.float64]


def check_pool(pool: str) -> None:
    """Raises InputError for a name that is none of POOLS."""
    if pool not in POOLS:
        with fault_of("pool"):
            raise InputError(f"unknown pool {pool!r}; choose one of {', '.join(POOLS)}")


def pooled(score: Score, pool: str, fps: Fraction, starts: Sequence[int]) -> Score:
    """A score with the value of another pool; `mean` keeps the metric's own value.

    Args:
        score: As measured; one of places needs their `shares`.
        pool: A name of POOLS.
        fps: Frame rate of the title.
        starts: First frame of each scene, ascending; the first is 0.
    """
    if pool == "mean":
        return score
    if score.moments:
        firsts, values = (np.array(column, float) for column in zip(*score.moments, strict=True))
        weights = np.array(score.shares)
    else:
        values = np.array(score.clips)
        firsts, weights = np.arange(len(values)), np.ones(len(values))
    if pool == "min-scene":
        value = _lowest_scene([bisect(starts, first) for first in firsts], values, weights)
    else:
        if not score.moments:
            values, weights = seconds(values, fps)
        if pool == "harmonic":
            value = harmonic_mean(values, weights)
        else:
            value = percentile(values, weights, PERCENTILES[pool])
    return replace(score, value=value, pool=pool, mean=score.value)


def seconds(frames: Values, fps: Fraction) -> tuple[Values, Values]:
    """Means of frames over whole seconds, and the frames in each.

    A remainder of less than half a second belongs to the second before it.
    """
    count = max(1, math.floor(len(frames) / fps + Fraction(1, 2)))
    edges = [math.ceil(second * fps) for second in range(count)]
    sizes = np.diff([*edges, len(frames)]).astype(float)
    return np.add.reduceat(frames, edges) / sizes, sizes


def harmonic_mean(values: Values, weights: Values) -> float:
    """The weighted harmonic mean of scores from 0, shifted by 1 as libvmaf's is."""
    return float(weights.sum() / (weights / (values + 1)).sum() - 1)


def percentile(values: Values, weights: Values, percent: float) -> float:
    """The weighted percentile: linear between values, each in the middle of its own weight.

    Of equal weights it is Hazen's (the fifth definition of Hyndman & Fan 1996).
    """
    order = np.argsort(values, kind="stable")
    ascending, own = values[order], weights[order]
    middles = np.cumsum(own) - own / 2
    return float(np.interp(percent / 100 * own.sum(), middles, ascending))


def _lowest_scene(scenes: Sequence[int], values: Values, weights: Values) -> float:
    """The lowest weighted mean of a scene; scenes without a value do not count."""
    which = np.array(scenes)
    sums = np.bincount(which, weights * values), np.bincount(which, weights)
    seen = sums[1] > 0
    return float((sums[0][seen] / sums[1][seen]).min())
