"""Looking at more of a title until its score is estimated well enough.

Decoding is what a score costs, so whole places in time are added, not crops of a place. How far
the mean of k of n places may be from that of all is told by Student's t (n is finite: Cochran
1977, section 2.8); what all n leave open is told by the bootstrap over crops, as without this.

Both are made for a number of places that was fixed before. Who looks, and stops as soon as places
happen to agree, is sure too often (Chow and Robbins 1965 show that it comes right only as the
places become many): what is called 95 % here is an estimate, no guarantee, and FIRST is not
smaller because with two or three places agreement is mostly luck.
"""

import math
from collections.abc import Iterator, Sequence

from vqaloop.core.text import counted
from vqaloop.errors import InputError
from vqaloop.records import Score

FIRST = 4
"""Places looked at first; part of cache keys of scores that may stop early."""


def check_precision(precision: float | None) -> None:
    """Raises InputError for one that is not above 0."""
    if precision is not None and not 0 < precision < math.inf:
        raise InputError(f"--score-precision must be above 0, not {precision:g}")


def rounds(places: Sequence[int], precision: float | None) -> Iterator[list[int]]:
    """Places to look at in turn, ascending within a round; all at once without a precision.

    Each round about doubles what is seen and spreads it evenly (van der Corput's order).
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


def reach(apart: tuple[float, float], times: Sequence[float], count: int) -> tuple[float, float]:
    """How far below and above the mean of `times` that of all `count` places may be, about 95 %.

    `times` are the scores of the places seen, each standing for as much of the title, and `apart`
    how far below and above the mean the ends of an interval over crops are; neither is clipped to
    0..100, where they would seem nearer than they are.
    """
    seen = len(times)
    if seen >= count:
        return apart
    if seen < 2:
        return math.inf, math.inf
    from scipy.stats import t

    mean = math.fsum(times) / seen
    variance = math.fsum((x - mean) ** 2 for x in times) / (seen - 1)
    between = float(t.ppf(0.975, seen - 1)) * math.sqrt(variance / seen * (1 - seen / count))
    return math.hypot(between, apart[0]), math.hypot(between, apart[1])


def around(value: float, apart: tuple[float, float]) -> tuple[float, float]:
    """The interval within 0..100 that goes so far below and above a score."""
    return max(0.0, value - apart[0]), min(100.0, value + apart[1])


def unreached(scores: Sequence[Score], metric: object) -> list[str]:
    """What to warn of where some of these scores, by `metric`, are not as precise as was asked."""
    asked = getattr(metric, "precision", None)
    widest, missed = 0.0, 0
    for score in scores:
        low, high = score.interval or (-math.inf, math.inf)
        apart = max(score.value - low, high - score.value)
        widest, missed = max(widest, apart), missed + (apart > (asked or math.inf))
    if not missed:
        return []
    told = f"the widest is ±{widest:.2f}" if widest < math.inf else "of some there is no interval"
    return [
        f"a score precision of ±{asked:g} was asked and not reached for {missed} of "
        f"{counted(len(scores), 'score')}, though all places were looked at: {told}"
    ]


def is_enough(apart: tuple[float, float], precision: float | None) -> bool:
    """Whether neither end is farther away than `precision`."""
    return precision is not None and max(apart) <= precision
