"""Pools the network's per-crop sums into the score of a title, with a bootstrap interval.

The crops of one moment are pooled as one picture: the network's sums and weights are added before
its last layer. Scores of moments are averaged over time, by the mean or, for students whose
header says so, by a power mean of what they lack to 100.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


RESAMPLES = 200
"""Bootstrap draws behind an interval."""


@dataclass(frozen=True)
class PooledScore:
    """The score of a title, 0..100, and what it is made of."""

    value: float
    clips: tuple[float, ...]
    """Of each crop."""
    interval: tuple[float, float]
    """95 % bootstrap interval, clipped to 0..100."""
    times: tuple[float, ...]
    """Of each moment, not clipped to 0..100."""
    apart: tuple[float, float]
    """How far below and above the value the interval's ends are, before it is clipped."""
    places: tuple[tuple[int, int, int], ...] = ()
    """(frame, top, left) of each crop."""
    moments: tuple[tuple[int, float], ...] = ()
    """(frame, score) of each moment."""
    shares: tuple[float, ...] = ()
    """The part of the title that each moment stands for, equal if none was given."""

    def placed(
        self, times: Sequence[int], places: Sequence[tuple[int, int, int]]
    ) -> "PooledScore":
        """The score with the frame of each moment, and with the places of its crops."""
        scores = (min(100.0, max(0.0, score)) for score in self.times)
        moments = tuple(zip(times, scores, strict=True))
        return replace(self, places=tuple(places), moments=moments)

    def mapped(self, points: Callable[[float], float]) -> "PooledScore":
        """The score on the scale that `points` maps to, by a rising function."""
        low, high = self.interval
        return replace(
            self,
            value=points(self.value),
            clips=tuple(map(points, self.clips)),
            interval=(points(low), points(high)),
            moments=tuple((time, points(score)) for time, score in self.moments),
        )


def pool(
    answers: "Callable[..., torch.Tensor]",
    seen: "tuple[torch.Tensor, torch.Tensor]",
    counts: list[int],
    seed: int,
    shares: Sequence[float] | None = None,
    time_power: float = 1.0,
) -> PooledScore:
    """Score of a title from its crops, with a 95 % bootstrap interval.

    The bootstrap resamples the crops of each moment, or the moments where each has but one crop.

    Args:
        answers: The network's last layer: pooled (..., K) sums and weights to (..., M) answers,
            of which the first is the score in 0..1.
        seen: (B, K) sums and (B, K) weights of the crops, those of a moment together.
        counts: Crops of each moment.
        seed: Of the bootstrap.
        shares: The part of the title that each moment stands for; None: equal parts.
        time_power: Exponent of the power mean over time; 1: the mean.
    """
    import torch

    sums, weights = seen
    rng = np.random.default_rng(seed)
    # one crop a moment leaves nothing to resample within it: resample the moments
    groups = [len(counts)] if set(counts) == {1} else counts
    firsts = np.cumsum([0, *groups[:-1]])
    draw = np.concatenate(
        [
            first + rng.integers(0, n, (RESAMPLES, n))
            for first, n in zip(firsts, groups, strict=True)
        ],
        axis=1,
    )
    drawn_rows = torch.from_numpy(draw).to(sums.device)
    of_moments = _moment_scores(answers, sums, weights, counts)
    share = of_moments.new_tensor(shares or [1.0] * len(counts))
    mean = mean_over_time(of_moments, share, time_power)
    # clipped after the mean: clipped draws would narrow the half-widths near 0 and 100
    of_draws = _moment_scores(answers, sums[drawn_rows], weights[drawn_rows], counts)
    drawn = mean_over_time(of_draws, share, time_power)
    low, high = _central(drawn.clamp(0, 100))
    lowest, highest = _central(drawn)
    return PooledScore(
        float(mean.clamp(0, 100)),
        tuple((100 * answers(sums, weights)[:, 0]).clamp(0, 100).tolist()),
        (low, high),
        tuple(of_moments.tolist()),
        (float(mean) - lowest, highest - float(mean)),
        shares=tuple(shares or [1 / len(counts)] * len(counts)),
    )


def pool_difference(
    answers: "Callable[..., torch.Tensor]",
    own_answers: "Callable[..., torch.Tensor]",
    ours: "tuple[torch.Tensor, torch.Tensor]",
    of_source: "tuple[torch.Tensor, torch.Tensor]",
    counts: list[int],
    seed: int,
    shares: Sequence[float] | None = None,
    time_power: float = 1.0,
) -> tuple[PooledScore, float]:
    """100 less by how much the answer on a source exceeds that on an encode of it.

    What the title's content does to no-reference answers cancels out, and the bootstrap draws the
    same clips of both.

    Args:
        answers: As of `pool`, without a reference: what is compared, of encode and source.
        own_answers: The same of the encode's own score, which may know of its bitstream.
        ours: (B, K) sums and (B, K) weights of the encode's clips.
        of_source: The same of the same clips of the source.
        counts: As of `pool`.
        seed: As of `pool`.
        shares: As of `pool`.
        time_power: As of `pool`.

    Returns:
        The difference, and the encode's own score.
    """
    import torch

    width = ours[0].shape[-1]

    def compared(sums: "torch.Tensor", weights: "torch.Tensor") -> "torch.Tensor":
        own = answers(sums[..., :width], weights[..., :width])
        original = answers(sums[..., width:], weights[..., width:])
        return 1 - (original - own)[..., :1]

    sums, weights = (torch.cat(parts, -1) for parts in zip(ours, of_source, strict=True))
    found = pool(compared, (sums, weights), counts, seed, shares, time_power)
    return found, pool(own_answers, ours, counts, seed, shares, time_power).value


def linearised(times: Sequence[float], shares: Sequence[float], time_power: float) -> list[float]:
    """Scores whose weighted mean is the power mean of `times` and varies as it does.

    To first order (delta method), so that what holds of the error of a mean holds of theirs.
    """
    if time_power == 1:
        return list(times)
    weights = np.array(shares) / np.sum(shares)
    lacks = 100 - np.array(times)
    powers = np.sign(lacks) * np.abs(lacks) ** time_power
    mean = weights @ powers
    whole = np.sign(mean) * np.abs(mean) ** (1 / time_power)
    if whole == 0:
        return list(times)
    slope = time_power * np.abs(whole) ** (time_power - 1)
    found: list[float] = (100 - whole - (powers - mean) / slope).tolist()
    return found


def _central(drawn: "torch.Tensor") -> tuple[float, float]:
    """Ends of the central 95 % of (RESAMPLES,) draws."""
    low, high = np.percentile(drawn.float().cpu().numpy(), [2.5, 97.5])
    return float(low), float(high)


def mean_over_time(scores: "torch.Tensor", shares: "torch.Tensor", power: float) -> "torch.Tensor":
    """(...) weighted mean over time of (T, ...) scores with (T,) shares of the title.

    Averaging over time, as VMAF does, keeps a scene of strong contrasts from outweighing the rest.
    A power above 1 is that of the mean of what scores lack to 100: bad moments count for more.
    """
    weight = (shares / shares.sum()).reshape(-1, *[1] * (scores.dim() - 1))
    if power == 1:
        return (scores * weight).sum(0)
    # signed, since differences exceed 100 at times, and are not clipped before the mean
    lacks = 100 - scores
    mean = (lacks.sign() * lacks.abs() ** power * weight).sum(0)
    return 100 - mean.sign() * mean.abs() ** (1 / power)


def _moment_scores(
    answers: "Callable[..., torch.Tensor]",
    sums: "torch.Tensor",
    weights: "torch.Tensor",
    counts: list[int],
) -> "torch.Tensor":
    """(T, ...) scores, not clipped, of each moment, its crops as one picture."""
    import torch

    parts = zip(torch.split(sums, counts, -2), torch.split(weights, counts, -2), strict=True)
    return 100 * torch.stack([answers(s.sum(-2), w.sum(-2))[..., 0] for s, w in parts])
