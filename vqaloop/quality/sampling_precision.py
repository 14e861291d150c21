"""Sequential sampling: further positions in time until a score is precise enough.

Decoding dominates the cost of a score, so whole positions in time are added, not crops of one. How
far the mean of k of n positions may be from the mean of all follows from Student's t with the
finite-population correction (Cochran 1977, section 2.8); what remains with all n is the bootstrap
over crops, as without a precision.

Both assume a number of positions fixed in advance. Stopping as soon as positions happen to agree
makes the interval too narrow (Chow and Robbins 1965: its coverage is right only as the number
grows), so 95 % is nominal here, no guarantee. FIRST is not smaller because two or three positions
agree by chance too often.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt

from vqaloop.core.text import counted
from vqaloop.errors import InputError
from vqaloop.quality.pooling import RESAMPLES
from vqaloop.records import Score

FIRST = 5
"""Positions of the first round; part of cache keys of scores that may stop early."""


def check_precision(precision: float | None) -> None:
    """Raises InputError for one that is not above 0."""
    if precision is not None and not 0 < precision < math.inf:
        raise InputError(f"--score-precision must be above 0, not {precision:g}")


def rounds(places: Sequence[int], precision: float | None) -> Iterator[list[int]]:
    """Positions in rounds, ascending within each; one round of all without a precision.

    Each round about doubles their number and spreads them evenly (van der Corput's sequence).
    """
    if precision is None:
        yield list(places)
        return
    count = len(places)
    digits = max(1, (count - 1).bit_length())
    order = sorted(range(count), key=lambda i: f"{i:0{digits}b}"[::-1])
    done = 0
    while done < count:
        upto = min(count, max(FIRST, 2 * done))
        yield [places[i] for i in sorted(order[done:upto])]
        done = upto


def reach(
    apart: tuple[float, float], times: Sequence[float], shares: Sequence[float]
) -> tuple[float, float]:
    """Half-widths, below and above, of the 95 % interval of the weighted mean over all positions.

    Args:
        apart: Half-widths of the interval over the choice of crops.
        times: Scores of the positions so far. Neither is clipped to 0..100, where they would seem
            nearer than they are.
        shares: The part of the title that each of these stands for.
    """
    seen, known = len(times), math.fsum(shares)
    if known > 1 - 1e-9:
        return apart
    if seen < 2:
        return math.inf, math.inf
    # of scipy.stats the import takes as long as that of everything else here
    from scipy.special import stdtrit

    weights = np.array(shares) / known
    mean = weights @ times
    variance = weights @ (np.array(times) - mean) ** 2 * seen / (seen - 1)
    # as of a sample of equal weights that is as precise
    spread = variance * (weights @ weights) * (1 - known)
    between = float(stdtrit(seen - 1, 0.975)) * math.sqrt(spread)
    return math.hypot(between, apart[0]), math.hypot(between, apart[1])


def around(value: float, apart: tuple[float, float]) -> tuple[float, float]:
    """The interval of these half-widths about a score, clipped to 0..100."""
    return max(0.0, value - apart[0]), min(100.0, value + apart[1])


def unreached(scores: Sequence[Score], metric: object) -> list[str]:
    """A warning where scores by `metric` are less precise than was asked; none otherwise."""
    asked = getattr(metric, "precision", None)
    widest, missed = 0.0, 0
    for score in scores:
        low, high = score.interval or (-math.inf, math.inf)
        apart = max(score.value - low, high - score.value)
        widest, missed = max(widest, apart), missed + (apart > (asked or math.inf))
    if not missed:
        return []
    shown = f"the widest is ±{widest:.2f}" if widest < math.inf else "of some there is no interval"
    return [
        f"a score precision of ±{asked:g} was asked and not reached for {missed} of "
        f"{counted(len(scores), 'score')}, though all places were looked at: {shown}"
    ]


def is_enough(apart: tuple[float, float], precision: float | None) -> bool:
    """Whether neither half-width exceeds `precision`."""
    return precision is not None and max(apart) <= precision


def interval_of(
    each: npt.NDArray[np.float64],
    shares: npt.NDArray[np.float64],
    scenes: Sequence[int],
    seed: int,
    top: float = 100.0,
) -> tuple[float, float]:
    """95 % bootstrap interval of a mean over places: each drawn anew among those of its scene.

    So differences of scenes, all of which are sampled, do not count.

    Args:
        each: Values at the places.
        shares: The part of the title that each stands for.
        scenes: The scene of each.
        seed: Of the draws.
        top: Largest value there is; the least is 0.
    """
    rng = np.random.default_rng(seed)
    drawn = np.full(RESAMPLES, float(each @ shares))
    for group in _groups(scenes):
        own, count = each[group], len(group)
        if count > 1:
            # few are drawn from few: their variance is too small by this factor
            wide = math.sqrt(count / (count - 1))
            picked = own[rng.integers(0, count, (RESAMPLES, count))] - own.mean()
            drawn += wide * picked @ shares[group]
    low, high = np.percentile(np.clip(drawn, 0, top), [2.5, 97.5])
    return float(low), float(high)


def _groups(scenes: Sequence[int]) -> list[list[int]]:
    """Places by scene, of two at least: a scene with one place goes with its neighbour."""
    found: list[list[int]] = []
    for _, places in groupby(range(len(scenes)), key=lambda place: scenes[place]):
        if found and len(found[-1]) < 2:
            found[-1] += places
        else:
            found.append(list(places))
    if len(found) > 1 and len(found[-1]) < 2:
        found[-2:] = [found[-2] + found[-1]]
    return found
