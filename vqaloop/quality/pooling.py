"""From the sums of crops to the score of a title, with its interval."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


RESAMPLES = 200
"""Bootstrap draws behind an interval."""


@dataclass(frozen=True)
class PooledScore:
    """What the crops that were looked at say of a title."""

    value: float
    clips: tuple[float, ...]
    interval: tuple[float, float]
    times: tuple[float, ...]
    """Of each time that was looked at, not clipped to 0..100."""
    apart: tuple[float, float]
    """How far below and above the value the interval's ends are, before it is clipped."""
    places: tuple[tuple[int, int, int], ...] = ()
    moments: tuple[tuple[int, float], ...] = ()


def judged(
    answers: "Callable[..., torch.Tensor]",
    seen: "tuple[torch.Tensor, torch.Tensor]",
    counts: list[int],
    seed: int,
    shares: Sequence[float] | None = None,
) -> PooledScore:
    """Score of a title from (B, K) sums and weights of its crops, and of each crop.

    `counts` says how many crops each time has, `shares` what part of the title each time stands
    for (default: equal ones). With a 95 % bootstrap interval over the choice of crops at each
    time, or over times where each has but one.
    """
    import torch

    sums, weights = seen
    rng = np.random.default_rng(seed)
    among = [len(counts)] if set(counts) == {1} else counts
    firsts = np.cumsum([0, *among[:-1]])
    draw = np.concatenate(
        [
            first + rng.integers(0, n, (RESAMPLES, n))
            for first, n in zip(firsts, among, strict=True)
        ],
        axis=1,
    )
    picked = torch.from_numpy(draw).to(sums.device)
    of_times = _of_times(answers, sums, weights, counts)
    share = of_times.new_tensor(shares or [1.0] * len(counts))
    mean = _mean(of_times, share)
    drawn = _mean(_of_times(answers, sums[picked], weights[picked], counts), share)
    low, high = _middle(drawn.clamp(0, 100))
    lowest, highest = _middle(drawn)
    return PooledScore(
        float(mean.clamp(0, 100)),
        tuple((100 * answers(sums, weights)[:, 0]).clamp(0, 100).tolist()),
        (low, high),
        tuple(of_times.tolist()),
        (float(mean) - lowest, highest - float(mean)),
    )


def _middle(drawn: "torch.Tensor") -> tuple[float, float]:
    """Between which 95 % of (RESAMPLES,) draws are."""
    low, high = np.percentile(drawn.float().cpu().numpy(), [2.5, 97.5])
    return float(low), float(high)


def _mean(of_times: "torch.Tensor", share: "torch.Tensor") -> "torch.Tensor":
    """Scores (...), not clipped, from (T, ...) of times that stand for (T,) shares of the title.

    Averaging over time, as VMAF does, keeps a scene of strong contrasts from speaking for all
    others.
    """
    weight = (share / share.sum()).reshape(-1, *[1] * (of_times.dim() - 1))
    return (of_times * weight).sum(0)


def _of_times(
    answers: "Callable[..., torch.Tensor]",
    sums: "torch.Tensor",
    weights: "torch.Tensor",
    counts: list[int],
) -> "torch.Tensor":
    """(T, ...) scores, not clamped, of each time, its crops as one picture."""
    import torch

    parts = zip(torch.split(sums, counts, -2), torch.split(weights, counts, -2), strict=True)
    return 100 * torch.stack([answers(s.sum(-2), w.sum(-2))[..., 0] for s, w in parts])
