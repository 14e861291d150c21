"""Sharing bits over scenes so that none would buy more score elsewhere.

With a price of score in bits, every scene takes the point of its curve that costs least, bits less
the price of its score; one price for all makes the best mean score at the bits it takes (Everett,
Operations Research 11, 1963). The price is found by bisection.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Picks = npt.NDArray[np.int64]

ROUNDS = 40
"""Of bisection of the price, over PRICES."""
PRICES = (1e-6, 1e4)
"""Of a point of mean score, in the title's mean bits."""


def equal_slope(
    scores: Values, bits: Values, weights: Values, target: float
) -> tuple[Values, float]:
    """(N,) scores to aim at, of which the weighted mean is `target` as far as it can be reached,
    and the price of a point of mean score in bits.

    `scores` and `bits` are (N, K), rising along K; `weights` (N,) sum to 1. Where a curve is bent
    such that no price leads to a mean of just `target`, one scene gets a score between.
    """
    rows = np.arange(len(scores))

    def mean(picks: Picks) -> float:
        return float(weights @ scores[rows, picks])

    low, high, price = _bracket(scores, bits, weights, lambda picks: mean(picks) <= target)
    aims: Values = scores[rows, low]
    left = target - float(weights @ aims)
    for i in np.flatnonzero(low != high):
        gain = scores[i, high[i]] - aims[i]
        aims[i] += min(gain, max(left, 0.0) / weights[i])
        left -= weights[i] * gain
        if left <= 0:
            break
    return aims, price


def mean_at_bits(scores: Values, bits: Values, weights: Values, budget: float) -> float:
    """The best weighted mean score that `budget` bits in all can buy; arguments as above."""
    rows = np.arange(len(scores))

    def spent(picks: Picks) -> float:
        return float(bits[rows, picks].sum())

    low, high, _ = _bracket(scores, bits, weights, lambda picks: spent(picks) <= budget)
    means = [float(weights @ scores[rows, picks]) for picks in (low, high)]
    found: float = np.interp(budget, [spent(low), spent(high)], means)
    return float(found)


def _bracket(
    scores: Values, bits: Values, weights: Values, modest: Callable[[Picks], bool]
) -> tuple[Picks, Picks, float]:
    """What all scenes pick at two neighbouring prices, of which only the lower is `modest`, and
    that price in bits; twice the same beyond the ends."""
    whole = float(bits.sum(axis=0).mean())
    unit = bits / whole
    value = weights[:, None] * scores

    def at(price: float) -> Picks:
        picks: Picks = np.argmin(unit - price * value, axis=1)
        return picks

    low, high = PRICES
    least, most = at(low), at(high)
    if not modest(least):
        return least, least, low * whole
    if modest(most):
        return most, most, high * whole
    for _ in range(ROUNDS):
        price = float(np.sqrt(low * high))
        picks = at(price)
        if modest(picks):
            low, least = price, picks
        else:
            high, most = price, picks
    return least, most, low * whole
