"""Surrogate models: predict rate and score of renditions that are not encoded yet.

From curve fits of each size, from a prior learnt on other titles, or from probes. A surrogate has
`anchors`, the points that it needs measured before it can predict, and `dense`, its predictions of
all other points with the standard deviation of their scores.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from vqaloop.records import RDPoint
from vqaloop.search.curve_fit import densify
from vqaloop.search.prior import NO_LINK, Prior, TitlePoints, Values, expit, logit
from vqaloop.search.space import Space, TrialPoint

FIRST_ANCHORS = (0.15, 0.7)
"""Knobs of the largest resolution, as parts of the search range from worst to best quality."""
LOWER_ANCHORS = (0.2, 0.6)
"""Knobs of the others, whose best end lies beyond the front."""
LAST_ANCHORS = (0.1, 0.5)
"""Knobs of the smallest, where the lowest rung may need more compression."""
PER_PRESET = np.array([0.05, 0.05])
"""Standard deviation of log2 rate and of the logit of the score by which a link is wider for each
preset from the one that it was learnt at."""
OF_EXCERPT = np.array([0.15, 0.08])
"""The same of an excerpt's title from the excerpt."""
SUBSTITUTES = 2
"""Further anchors for a resolution whose anchors failed."""
FINEST = 1 / 120
"""Part of the search range below which knobs are not distinguished while planning."""


@dataclass(frozen=True)
class Predictions:
    """Predicted points, with the uncertainty of their scores."""

    points: list[RDPoint]
    deviation: Values
    """Standard deviation of each score, in points; 0 where a surrogate gives none."""


class Surrogate(Protocol):
    """Predicts points from measured ones."""

    def anchors(self, failed: Sequence[TrialPoint]) -> list[TrialPoint]:
        """Points to measure before all others."""

    def dense(self, points: Sequence[RDPoint]) -> Predictions:
        """Predictions of all other points, given these measured ones."""


@dataclass(frozen=True)
class CurveFits:
    """Monotone curve fits of each size, from the measured points of the title alone."""

    space: Space
    top: float = 100.0

    def anchors(self, failed: Sequence[TrialPoint]) -> list[TrialPoint]:
        found = []
        for i, (width, height) in enumerate(self.space.sizes):
            last = i == len(self.space.sizes) - 1
            parts: tuple[float, ...] = (
                FIRST_ANCHORS if i == 0 else LAST_ANCHORS if last else LOWER_ANCHORS
            )
            spare = [(a + b) / 2 for a, b in zip(parts, parts[1:], strict=False)] + [0.05]
            parts_all = (*parts, *spare[:SUBSTITUTES])
            own = [(width, height, self.space.knob_at(part)) for part in parts_all]
            # each failed anchor is replaced by a spare one
            lost = sum(point in failed for point in dict.fromkeys(own))
            found += own[: len(parts) + lost]
        return list(dict.fromkeys(found))

    def dense(self, points: Sequence[RDPoint]) -> Predictions:
        every = densify(points, self.space.grid(), self.top)
        fitted = [point for point in every if not point.measured]
        return Predictions(fitted, np.zeros(len(fitted)))


@dataclass(frozen=True)
class TitlePrior:
    """The hierarchical prior of other titles of the same encoder and metric, conditioned on the
    measured points of this one."""

    space: Space
    prior: Prior
    top: float = 100.0
    probes: Sequence[RDPoint] = ()
    """Encodes of which the prior's link says how they differ."""

    def anchors(self, failed: Sequence[TrialPoint]) -> list[TrialPoint]:
        return []

    def dense(self, points: Sequence[RDPoint]) -> Predictions:
        posterior = self.prior.given(self._seen(points))
        low, high = self.space.knob.search
        grid = self.space.grid()
        # every knob of a fine grid would only make planning slow
        grid = grid[:: max(1, math.ceil((high - low) * FINEST / self.space.knob.step))]
        known = {p.key for p in points}
        found: list[RDPoint] = []
        deviations = [np.zeros(0)]
        for width, height in self.space.sizes:
            knobs = [knob for knob in grid if (width, height, knob) not in known]
            u = np.full(len(knobs), math.log2(width / self.space.source_width))
            q = np.array([self.space.quality(knob) for knob in knobs])
            rate, score, rate_sd, score_sd = posterior.at(u, q)
            # an error of rate moves a point along its curve: for the hull it is one of score
            slope = np.gradient(score, rate) if len(knobs) > 1 else np.zeros(len(knobs))
            # delta method: the derivative of the inverse logit is s (1 - s)
            own = score * (1 - score) * score_sd
            deviations.append(self.top * np.hypot(own, np.nan_to_num(slope) * rate_sd))
            found += [
                RDPoint(width, height, k, 2**r * self.space.pixel_rate, s * self.top, False)
                for k, r, s in zip(knobs, rate.tolist(), score.tolist(), strict=True)
            ]
        return Predictions(found, np.concatenate(deviations))

    def _seen(self, points: Sequence[RDPoint]) -> TitlePoints:
        if not self.probes:
            return as_title(self.space, points, self.top)
        probe = np.repeat([1.0, 0.0], [len(self.probes), len(points)])
        return replace(as_title(self.space, [*self.probes, *points], self.top), probe=probe)


@dataclass(frozen=True)
class Apart:
    """A surrogate for encodes of an excerpt, which predict a title's and are delivered to nobody:
    what it predicts near a measured point stands for itself, and needs no encode."""

    space: Space
    surrogate: Surrogate

    def anchors(self, failed: Sequence[TrialPoint]) -> list[TrialPoint]:
        return self.surrogate.anchors(failed)

    def dense(self, points: Sequence[RDPoint]) -> Predictions:
        every = self.surrogate.dense(points)
        keep = [not self.space.is_beside(p.key, points) for p in every.points]
        kept = [point for point, kept in zip(every.points, keep, strict=True) if kept]
        return Predictions(kept, every.deviation[np.array(keep, bool)])


@dataclass(frozen=True)
class ProbeShift:
    """The points of probes, shifted to the encodes that count, where there is no prior.

    Log rate and the logit of the score are moved by the mean difference between the points that
    were measured and those of the probes.
    """

    probes: list[RDPoint]
    """All points of the probes, measured and predicted."""
    top: float = 100.0

    def anchors(self, failed: Sequence[TrialPoint]) -> list[TrialPoint]:
        return []

    def shift(self, points: Sequence[RDPoint]) -> tuple[float, float]:
        """How much larger log2 rate and the logit of the score are than of the probes."""
        known = {p.key: p for p in self.probes}
        pairs = [(known[key], p) for p in points if (key := p.key) in known]
        if not pairs:
            return 0.0, 0.0
        rate = np.mean([math.log2(p.bitrate_kbps / e.bitrate_kbps) for e, p in pairs])
        shares = np.array([[e.score, p.score] for e, p in pairs]) / self.top
        # near the ends of the scale a logit is mostly noise
        weights = (shares * (1 - shares)).min(axis=1) ** 2 + 1e-6
        score = np.average(np.diff(logit(shares), axis=1)[:, 0], weights=weights)
        return float(rate), float(score)

    def dense(self, points: Sequence[RDPoint]) -> Predictions:
        rate, score = self.shift(points)
        known = {p.key for p in points}
        left = [p for p in self.probes if p.key not in known]
        shares = expit(logit(np.array([p.score for p in left]) / self.top) + score)
        moved = [
            RDPoint(p.width, p.height, p.knob, p.bitrate_kbps * 2**rate, s * self.top, False)
            for p, s in zip(left, shares.tolist(), strict=True)
        ]
        return Predictions(moved, np.zeros(len(moved)))


def given_probes(
    surrogate: CurveFits | TitlePrior, probes: Sequence[RDPoint], away: int | None
) -> Surrogate:
    """The surrogate of a title's encodes, given probes of its excerpt.

    Args:
        surrogate: What the probes were searched with.
        probes: Their points.
        away: Presets from the encoder's default, which links are learnt at, to that of the
            title's encodes; None where probes have that too.
    """
    if isinstance(surrogate, CurveFits):
        return ProbeShift([*probes, *surrogate.dense(probes).points], surrogate.top)
    prior = surrogate.prior
    link = NO_LINK if away is None else prior.link.wider(away * PER_PRESET)
    link = link.wider(OF_EXCERPT)
    return replace(surrogate, prior=replace(prior, link=link), probes=tuple(probes))


def as_title(space: Space, points: Sequence[RDPoint], top: float) -> TitlePoints:
    """Measured points in the units of the prior."""
    return TitlePoints(
        np.array([math.log2(p.width / space.source_width) for p in points]),
        np.array([space.quality(p.knob) for p in points]),
        np.array([math.log2(p.bitrate_kbps / space.pixel_rate) for p in points]),
        np.array([p.score / top for p in points]),
    )
