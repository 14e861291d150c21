"""Equal-slope bit allocation over scenes, by Lagrange multiplier.

At a price of score in bits every scene takes the point of its curve of least Lagrangian cost, bits
less the price of its score; the same price for all scenes gives the best mean score for the bits
spent (Everett, Operations Research 11, 1963). The price is found by bisection.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Picks = npt.NDArray[np.int64]

ROUNDS = 40
"""Bisections of the price, over PRICES."""
PRICES = (1e-6, 1e4)
"""Range of the price of a point of mean score, in the title's mean bits."""


def equal_slope(
    scores: Values, bits: Values, weights: Values, target: float
) -> tuple[Values, float]:
    """Scores for the scenes to aim at, and the price of a point of mean score in bits.

    Where curves are not concave no price may lead to a mean of just `target`; one scene then gets
    a score between two points of its curve.

    Args:
        scores: (N, K) of N scenes at K knobs, rising along K.
        bits: (N, K) likewise.
        weights: (N,), which sum to 1.
        target: The weighted mean score to reach.

    Returns:
        (N,) scores, whose weighted mean is `target` as far as it can be reached; the price.
    """
    rows = np.arange(len(scores))

    def mean(picks: Picks) -> float:
        return float(weights @ scores[rows, picks])

    low, high, price = _bracket(scores, bits, weights, lambda picks: mean(picks) <= target)
    # from the cheaper picks on, raise scene after scene to the dearer one until the mean is met
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
    """The points that all scenes pick at two neighbouring prices, of which only the lower one's
    are `modest`, and that price in bits; twice the same points beyond the ends of PRICES."""
    # prices in units of the title's bits, so that one range of them serves all titles
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
