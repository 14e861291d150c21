"""Hierarchical prior over rate and score curves, learnt from earlier titles.

For one encoder and one metric, every title's curves are taken as one draw from a population: log
rate and logit of the score are polynomials in the quality knob and the log of the size, whose
coefficients are normal over titles (a linear mixed model, Laird & Ware 1982), plus a smooth
residual of the title's own (a Gaussian process). Learning is EM over finished titles; conditioning
on a few measured points of a new title then predicts all its curves, with their uncertainty. Where
a title's content is known (media/content.py), the mean of its coefficients follows that by a ridge
regression.

Probes, encodes at a faster preset or of an excerpt, have curves of their own, which differ from
those of the title by a polynomial of fewer terms, again a draw from a population (a Link). So they
condition the title's curves too, the more the less that population varies.

Everything here is plain arithmetic on numbers without units: u is log2 of a rendition's width over
the source's, q the knob as a part of its search range (0 worst, 1 best quality), rate is log2 of
bits per source pixel, and score the logit of its share of the metric's top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
LINK_TERMS = (0, 1, 2, 4, 5)
"""Of those the ones by which probes differ: 1, q, q^2, u, uq."""
RIDGE = 4.0
"""Titles that a weight of 0 counts for, in the regression on titles' content."""
FAR = 3.0
"""Standard deviations beyond which a number of a title's content counts as no further off."""


@dataclass(frozen=True)
class TitlePoints:
    """Measured points of one title: arrays of one length."""

    u: Values
    q: Values
    rate: Values
    score: Values
    """Share of the metric's top, 0..1."""
    probe: Values | None = None
    """1 for each that is of a probe, else 0; None: none is."""


@dataclass(frozen=True)
class Link:
    """How probes differ from encodes that count, over a population of titles: log2 of rate and
    logit of score, probe less the other."""

    mean: Values
    """(2 x LINK_TERMS,): of rate, then of score."""
    spread: Values
    """(2 x LINK_TERMS, 2 x LINK_TERMS): their covariance over titles."""
    rest: Values
    """(2,): standard deviation of what the polynomials leave, of rate and of score."""

    def wider(self, deviations: Values) -> Link:
        """One whose constant terms vary more: standard deviations (2,) of rate and of score."""
        more = np.zeros_like(self.mean)
        more[[0, len(LINK_TERMS)]] = deviations**2
        return replace(self, spread=self.spread + np.diag(more))


_SIZE = 2 * len(LINK_TERMS)
NO_LINK = Link(np.zeros(_SIZE), np.zeros((_SIZE, _SIZE)), np.zeros(2))
"""Of probes at the preset of the encodes that count."""


@dataclass(frozen=True)
class Prior:
    """Curves of a population of titles: a normal distribution of 2 x TERMS coefficients."""

    mean: Values
    """(2 TERMS,): of rate, then of score."""
    spread: Values
    """(2 TERMS, 2 TERMS): their covariance over titles."""
    titles: float
    """How many it was learnt from."""
    link: Link = NO_LINK
    """How the title's probes differ."""

    def given(self, seen: TitlePoints) -> Posterior:
        """The posterior of a title of which these points (perhaps none) were measured."""
        rows, link = _design(seen.u, seen.q), self.link
        cross = rows @ self.spread
        covariance = cross @ rows.T + _rest(seen, seen) + np.diag(_noise(seen))
        known = np.concatenate([seen.rate, logit(seen.score)])
        off = known - rows @ self.mean
        if seen.probe is not None:
            probed = np.tile(seen.probe, 2)
            differ = probed[:, None] * _design(seen.u, seen.q, LINK_TERMS)
            covariance = covariance + differ @ link.spread @ differ.T
            covariance += np.diag(probed * np.repeat(link.rest**2, len(seen.q)))
            off = off - differ @ link.mean
        precision = np.asarray(np.linalg.inv(covariance) if len(known) else covariance, float)
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


@dataclass(frozen=True)
class ContentPrior:
    """Curves of a population whose mean follows what a title's pictures hold: a multivariate
    linear regression of the coefficients, with the uncertainty of its weights."""

    centre: Values
    """(K,): mean over titles of each number that describes their content."""
    scale: Values
    """(K,): their standard deviations."""
    weights: Values
    """(2 TERMS, 1 + K): of a constant and of each number."""
    spread: Values
    """(2 TERMS, 2 TERMS): covariance over titles of what the weights leave."""
    precision: Values
    """(1 + K, 1 + K): of the weights, in units of `spread`."""
    titles: float

    def row(self, content: Sequence[float]) -> Values:
        """What the weights multiply."""
        far = (np.asarray(content, float) - self.centre) / self.scale
        return np.concatenate([[1.0], np.clip(far, -FAR, FAR)])

    def at(self, content: Sequence[float]) -> Prior:
        """The prior of a title of that content: the less is known of such, the wider."""
        row = self.row(content)
        unknown = float(row @ np.linalg.solve(self.precision, row))
        return Prior(self.weights @ row, self.spread * (1 + unknown), self.titles)


def learn_link(titles: Sequence[tuple[TitlePoints, TitlePoints]]) -> Link:
    """The link of these titles' probes, first, to their other encodes of the same points.

    Least squares of each title, then moments over titles, shrunk as those of `learn`.
    """
    found, left = [], []
    for probes, others in titles:
        basis = _design(probes.u, probes.q, LINK_TERMS)[: len(probes.q), : len(LINK_TERMS)]
        off = probes.rate - others.rate, logit(probes.score) - logit(others.score)
        # a logit near the ends of the scale is mostly noise
        share = np.minimum(probes.score * (1 - probes.score), others.score * (1 - others.score))
        weights = np.ones_like(share), np.maximum(share, 0.0) + 1e-3
        fits = [
            np.linalg.lstsq(basis * w[:, None], d * w, rcond=None)[0]
            for d, w in zip(off, weights, strict=True)
        ]
        found.append(np.concatenate(fits))
        left.append(
            [
                np.sqrt(np.average((d - basis @ fit) ** 2, weights=w**2))
                for d, fit, w in zip(off, fits, weights, strict=True)
            ]
        )
    fits_of_all = np.array(found)
    mean, count = fits_of_all.mean(axis=0), len(titles)
    scatter = (fits_of_all - mean).T @ (fits_of_all - mean)
    spread = (scatter + INERTIA * np.diag(np.diag(scatter)) / count) / (count + INERTIA)
    return Link(mean, spread, np.sqrt(np.mean(np.square(left), axis=0)))


def learn(titles: Sequence[TitlePoints], start: Prior | None = None, rounds: int = 30) -> Prior:
    """The population these titles come from, by EM; with `start`, an update of that population."""
    if start is None:
        # only where EM starts: without earlier titles it has no weight
        start = Prior(np.zeros(2 * TERMS), np.diag(np.full(2 * TERMS, 4.0)), 0.0)
    known = _Known(start.mean[:, None], start.spread, np.array([[start.titles]]), start.titles)
    found = _updated(known, titles, np.ones((len(titles), 1)), rounds)
    return Prior(found.weights[:, 0], found.spread, found.titles, start.link)


def learn_content(
    titles: Sequence[TitlePoints],
    contents: Sequence[Sequence[float]],
    start: ContentPrior | None = None,
    rounds: int = 30,
) -> ContentPrior:
    """`learn` of titles whose content is known."""
    if start is None:
        values = np.array(contents, float)
        size, count = 2 * TERMS, 1 + values.shape[1]
        # of a number that is the same of all titles nothing is learnt
        scale = np.maximum(values.std(axis=0), 1e-3)
        ridge = np.diag([0.0] + [RIDGE] * (count - 1))
        begun = np.zeros((size, count)), np.diag(np.full(size, 4.0)), ridge, 0.0
        start = ContentPrior(values.mean(axis=0), scale, *begun)
    rows = np.array([start.row(content) for content in contents])
    known = _Known(start.weights, start.spread, start.precision, start.titles)
    found = _updated(known, titles, rows, rounds)
    return replace(start, **vars(found))


@dataclass(frozen=True)
class _Known:
    """A regression of titles' coefficients: fields as of ContentPrior."""

    weights: Values
    spread: Values
    precision: Values
    titles: float


def _updated(known: _Known, titles: Sequence[TitlePoints], rows: Values, rounds: int) -> _Known:
    """What is known with these titles too, of which `rows` are what the weights multiply."""
    weights, spread, before, count = known.weights, known.spread, known.titles, len(titles)
    precision = known.precision + rows.T @ rows
    for _ in range(rounds if count else 0):
        # E step: each title's coefficients; M step: regression and spread over titles
        found = [
            _coefficients(t, weights @ row, spread) for t, row in zip(titles, rows, strict=True)
        ]
        guesses = np.array([guess for guess, _ in found])
        pulled = known.precision @ known.weights.T + rows.T @ guesses
        weights = np.linalg.solve(precision, pulled).T
        off = guesses - rows @ weights.T
        scatter = np.sum([rest for _, rest in found], axis=0) + off.T @ off
        # shrinkage: few titles alone would underestimate the spread of the population
        held = max(before, INERTIA)
        held_spread = known.spread if before else np.diag(np.diag(scatter)) / count
        spread = (held * held_spread + scatter) / (held + count)
    return _Known(weights, spread, precision, before + count)


def _coefficients(title: TitlePoints, mean: Values, spread: Values) -> tuple[Values, Values]:
    """Mean and covariance of one title's coefficients, given the population."""
    rows = _design(title.u, title.q)
    covariance = _rest(title, title) + np.diag(_noise(title))
    gain = spread @ rows.T @ np.linalg.inv(rows @ spread @ rows.T + covariance)
    known = np.concatenate([title.rate, logit(title.score)])
    return mean + gain @ (known - rows @ mean), spread - gain @ rows @ spread


def _design(u: Values, q: Values, terms: Sequence[int] = range(TERMS)) -> Values:
    """(2 n, 2 x terms): rows of the two polynomials, rate first."""
    one = np.ones_like(q)
    every = [one, q, q * q, q**3, u, u * q, u * u, u * q * q, u * u * q]
    basis = np.stack([every[term] for term in terms], axis=1)
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
