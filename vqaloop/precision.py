"""Looking at more of a title until its score is known well enough.

Decoding is what a score costs, so whole places in time are added, not crops of a place. How far
the mean of k of n places may be from that of all is told by Student's t (n is finite: Cochran
1977, section 2.8); what all n leave open is told by the bootstrap over crops, as without this.
"""

import math
from collections.abc import Iterator, Sequence

from vqaloop.errors import InputError

FIRST = 2
"""Places looked at first: the fewest whose difference tells anything."""


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


def widened(
    value: float, interval: tuple[float, float], times: Sequence[float], count: int
) -> tuple[float, float]:
    """A 95 % interval over crops made one over places as well, of which `times` are the scores.

    `count` is how many there are in all; once all were looked at the interval stays what it was.
    """
    seen = len(times)
    if seen >= count:
        return interval
    if seen < 2:
        return 0.0, 100.0
    from scipy.stats import t

    mean = math.fsum(times) / seen
    variance = math.fsum((x - mean) ** 2 for x in times) / (seen - 1)
    between = float(t.ppf(0.975, seen - 1)) * math.sqrt(variance / seen * (1 - seen / count))
    low, high = (math.hypot(between, value - end) for end in interval)
    return max(0.0, value - low), min(100.0, value + high)


def is_enough(interval: tuple[float, float], precision: float | None) -> bool:
    """Whether an interval is narrower than ± `precision`."""
    return precision is not None and (interval[1] - interval[0]) / 2 <= precision
