"""Stochastic depth: branches of residual blocks left out at random in training."""

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor


class Block(Protocol):
    """A residual block that calls `drop_path` on its branches."""

    drop_path: float


def set_drop_path(blocks: Iterable[Block], rate: float) -> None:
    """Let blocks leave branches out, at shares that rise linearly from 0 to `rate` with depth."""
    blocks = list(blocks)
    for i, block in enumerate(blocks):
        block.drop_path = rate * i / max(1, len(blocks) - 1)


def drop_path(branch: Tensor, rate: float, training: bool) -> Tensor:
    """A branch (B, ...) with a share `rate` of its samples set to 0 and the others scaled up.

    Huang et al., arXiv 1603.09382. The expectation is that of the whole branch, which is what
    comes back outside training.
    """
    if not rate or not training:
        return branch
    kept = torch.rand(len(branch), *[1] * (branch.ndim - 1), device=branch.device) >= rate
    return branch * kept.to(branch.dtype) / (1 - rate)
