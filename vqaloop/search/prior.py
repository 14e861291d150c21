"""Hierarchical prior over rate and score curves, learnt from earlier titles.

For one encoder and one metric, every title's curves are taken as one draw from a population: log
rate and logit of the score are polynomials in the quality knob and the log of the size, whose
coefficients are normal over titles (a linear mixed model, Laird & Ware 1982), plus a smooth
residual of the title's own (a Gaussian process). Learning is EM over finished titles; conditioning
on a few measured points of a new title then predicts all its curves, with their uncertainty.

Everything here is plain arithmetic on numbers without units: u is log2 of a rendition's width over
the source's, q the knob as a part of its search range (0 worst, 1 best quality), rate is log2 of
bits per source pixel, and score the logit of its share of the metric's top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
"""An array of numbers, in the whole package."""

TERMS = 9
"""Coefficients of each of the two polynomials."""
LEAST_SHARE = 0.002
"""Distance from 0 and from the top, as a part of the top, within which scores count as equal."""

RATE_REST, SCORE_REST = 0.1, 0.12
"""Standard deviation of a title's own residual, in log2 of rate and in logits."""
REST_Q, REST_U = 0.25, 0.3
"""Length scales of that residual in q and u."""
RATE_NOISE, SCORE_NOISE = 0.01, 0.003
"""Standard deviation between encodes of nearly the same knob: log2 of rate, share of the top."""
TAILS = 5.0
"""Degrees of freedom of the predictive Student's t: where a title's points lie far from the
population, its other predictions are given wider intervals."""
INERTIA = 4.0
"""Titles that the spread of another population counts for, when a new one is learnt."""


@dataclass(frozen=True)
class TitlePoints:
    """Measured points of one title: arrays of one length."""

    u: Values
    q: Values
    rate: Values
    score: Values
    """Share of the metric's top, 0..1."""


@dataclass(frozen=True)
class Prior:
    """Curves of a population of titles: a normal distribution of 2 x TERMS coefficients."""

    mean: Values
    """(2 TERMS,): of rate, then of score."""
    spread: Values
    """(2 TERMS, 2 TERMS): their covariance over titles."""
    titles: float
    """How many it was learnt from."""

    def given(self, seen: TitlePoints) -> Posterior:
        """The posterior of a title of which these points (perhaps none) were measured."""
        rows = _design(seen.u, seen.q)
        cross = rows @ self.spread
        covariance = cross @ rows.T + _rest(seen, seen) + np.diag(_noise(seen))
        known = np.concatenate([seen.rate, logit(seen.score)])
        precision = np.asarray(np.linalg.inv(covariance) if len(known) else covariance, float)
        off = known - rows @ self.mean
        weights = precision @ off
        return Posterior(self, seen, weights, precision, float(off @ weights))


@dataclass(frozen=True)
class Posterior:
    """The distribution of a title's curves, given its measured points."""

    prior: Prior
    seen: TitlePoints
    weights: Values
    precision: Values
    distance: float
    """Squared Mahalanobis distance of the measured points from the population's prediction."""

    def at(self, u: Values, q: Values) -> tuple[Values, Values, Values, Values]:
        """Rate and score (share of the top) at these points, and the standard deviations of log2
        rate and of the logit of the score there."""
        # rates and scores of these points are unknown, and the covariance does not need them
        blank = np.zeros_like(u)
        there = TitlePoints(u, q, blank, blank + 0.5)
        rows = _design(u, q)
        cross = rows @ self.prior.spread @ _design(self.seen.u, self.seen.q).T
        cross = cross + _rest(there, self.seen)
        mean = rows @ self.prior.mean + cross @ self.weights
        own = np.einsum("ij,jk,ik->i", rows, self.prior.spread, rows)
        rest = np.repeat([RATE_REST**2, SCORE_REST**2], len(u))
        variance = own + rest - np.einsum("ij,jk,ik->i", cross, self.precision, cross)
        # scale of the multivariate t distribution, given what was measured
        surprise = (TAILS + self.distance) / (TAILS + len(self.weights))
        deviation = np.sqrt(np.maximum(variance, 0.0) * surprise)
        n = len(u)
        return mean[:n], expit(mean[n:]), deviation[:n], deviation[n:]


def learn(titles: Sequence[TitlePoints], start: Prior | None = None, rounds: int = 30) -> Prior:
    """The population these titles come from, by EM; with `start`, an update of that population."""
    if start is None:
        # only where EM starts: without earlier titles it has no weight
        mean, base = np.zeros(2 * TERMS), np.diag(np.full(2 * TERMS, 4.0))
        before = 0.0
    else:
        mean, base, before = start.mean, start.spread, start.titles
    first, spread, count = mean, base, len(titles)
    for _ in range(rounds if count else 0):
        # E step: each title's coefficients; M step: mean and spread over titles
        guesses, rests = zip(*(_coefficients(t, mean, spread) for t in titles), strict=True)
        mean = (before * first + np.sum(guesses, axis=0)) / (before + count)
        scatter = sum(
            rest + np.outer(guess - mean, guess - mean)
            for guess, rest in zip(guesses, rests, strict=True)
        )
        # shrinkage: few titles alone would underestimate the spread of the population
        held = max(before, INERTIA)
        held_spread = base if before else np.diag(np.diag(scatter)) / count
        spread = (held * held_spread + scatter) / (held + count)
    return Prior(mean, spread, before + count)


def _coefficients(title: TitlePoints, mean: Values, spread: Values) -> tuple[Values, Values]:
    """Mean and covariance of one title's coefficients, given the population."""
    rows = _design(title.u, title.q)
    covariance = _rest(title, title) + np.diag(_noise(title))
    gain = spread @ rows.T @ np.linalg.inv(rows @ spread @ rows.T + covariance)
    known = np.concatenate([title.rate, logit(title.score)])
    return mean + gain @ (known - rows @ mean), spread - gain @ rows @ spread


def _design(u: Values, q: Values) -> Values:
    """(2 n, 2 TERMS): rows of the two polynomials, rate first."""
    one = np.ones_like(q)
    terms = [one, q, q * q, q**3, u, u * q, u * u, u * q * q, u * u * q]
    basis = np.stack(terms, axis=1)
    zero = np.zeros_like(basis)
    return np.block([[basis, zero], [zero, basis]])


def _rest(a: TitlePoints, b: TitlePoints) -> Values:
    """Covariance of the smooth residuals of two sets of points of one title."""
    far = ((a.q[:, None] - b.q) / REST_Q) ** 2 + ((a.u[:, None] - b.u) / REST_U) ** 2
    near = np.exp(-far / 2)
    zero = np.zeros_like(near)
    return np.block([[RATE_REST**2 * near, zero], [zero, SCORE_REST**2 * near]])


def _noise(title: TitlePoints) -> Values:
    """Variance of each measurement; that of a logit grows towards the ends of the scale."""
    share = np.clip(title.score, LEAST_SHARE, 1 - LEAST_SHARE)
    slope = 1 / (share * (1 - share))
    return np.concatenate([np.full(len(title.q), RATE_NOISE**2), (SCORE_NOISE * slope) ** 2])


def logit(share: Values) -> Values:
    """Log odds of shares in 0..1, held away from both ends."""
    share = np.clip(share, LEAST_SHARE, 1 - LEAST_SHARE)
    found: Values = np.log(share / (1 - share))
    return found


def expit(value: Values) -> Values:
    """The inverse of `logit`."""
    found: Values = 1 / (1 + np.exp(-value))
    return found
