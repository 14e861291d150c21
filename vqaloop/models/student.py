"""The student: a video transformer that scores a rendition alone, or anchored to its source.

No reference: the paper's head (arXiv 2502.19026), one linear layer on the pooled feature, joined
by statistics of the tokens, like those of the anchored head but estimated without a source.
Anchored: tokens of the rendition are compared with the source's tokens of the same crop, at the
patch embedding and at two depths. Each token gives K values and, from the source alone, K weights;
a crop's, frame's or title's statistics are the K weighted means, and a small MLP turns them into
the score. Weighted means of local ratios are the form VIF (Sheikh & Bovik 2006) has, and they pool
over any number of crops without a change of scale, so a title is scored as one large frame.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqaloop.models.fastvqa import FastVQA
from vqaloop.models.internvideo2 import InternVideo2

STATISTICS = 24
"""K: pooled statistics (weighted means over tokens) of a crop."""
OUTPUTS = ("vmaf", "adm2", "vif_scale0", "vif_scale1", "vif_scale2", "vif_scale3", "motion2")
"""Outputs of the heads: the score / 100, and the elementary features of VMAF as auxiliary
targets of training."""
ENERGY_FLOOR = 1e-4
"""Energy below which a patch coefficient counts as nothing: about half a code value of 8 bits."""


@dataclass(frozen=True)
class Anchor:
    """What the comparison needs of a reference, computed once for all rungs of a title."""

    embedding: Tensor
    """(B, N, D) patch embedding, fp32."""
    deep: tuple[Tensor, ...]
    """(B, N, P) projected tokens at the deeper taps."""
    context: Tensor
    """(B, N, C) features of the reference in the head's hidden layer."""
    weights: Tensor
    """(B, N, K) positive weight of each token in each statistic."""


class AnchoredHead(nn.Module):
    """Compares tokens of a rendition with those of its source; see the module's docstring."""

    def __init__(self, width: int, taps: int, hidden: int = 128, projected: int = 64) -> None:
        super().__init__()
        self.project = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, projected)) for _ in range(taps)
        )
        self.source_energy = nn.Linear(2 * width, hidden)
        self.source_context = nn.Linear(hidden + taps * projected, hidden)
        self.weight = nn.Linear(hidden, STATISTICS)
        self.compare_energy = nn.Linear(3 * width, hidden)
        self.compare = nn.Linear(2 * hidden + 2 * taps * projected, hidden)
        self.value = nn.Linear(hidden, STATISTICS)
        self.fuse = nn.Sequential(
            nn.Linear(STATISTICS, 64), nn.GELU(), nn.Linear(64, len(OUTPUTS))
        )

    def anchor(self, embedding: Tensor, deep: list[Tensor], frames: int) -> Anchor:
        """Reference side: (B, N, D) embedding and deeper taps of clips of `frames` frames."""
        energies = torch.cat([log_energy(embedding), log_energy(change(embedding, frames))], -1)
        energies = energies.to(self.weight.weight.dtype)
        projected = tuple(p(x) for p, x in zip(self.project, deep, strict=True))
        context = F.gelu(
            self.source_context(torch.cat([F.gelu(self.source_energy(energies)), *projected], -1))
        )
        return Anchor(embedding, projected, context, F.softplus(self.weight(context)) + 1e-4)

    def statistics(self, anchor: Anchor, embedding: Tensor, projected: Sequence[Tensor]) -> Tensor:
        """(B, N, K) values of the rendition's tokens, against `anchor`."""
        energies = torch.cat(
            [
                log_energy(embedding),
                log_energy(anchor.embedding),
                log_energy(embedding - anchor.embedding),
            ],
            -1,
        )
        energies = energies.to(self.value.weight.dtype)
        parts = [F.gelu(self.compare_energy(energies)), anchor.context]
        for tokens, source in zip(projected, anchor.deep, strict=True):
            parts += [(tokens - source).abs(), tokens * source]
        return self.value(F.gelu(self.compare(torch.cat(parts, -1))))  # type: ignore[no-any-return]


class AloneHead(nn.Module):
    """No-reference head: estimates the statistics of `AnchoredHead` without a source.

    The spectrum of each patch, and of its change over time, shows what a codec removed; deeper
    tokens hold what the patch depicts. The output of the paper's linear head is added.
    """

    def __init__(self, width: int, taps: int, hidden: int = 128, projected: int = 64) -> None:
        super().__init__()
        self.energy = nn.Linear(2 * width, hidden)
        self.context = nn.Linear(hidden + taps * projected, hidden)
        self.weight = nn.Linear(hidden, STATISTICS)
        self.value = nn.Linear(hidden, STATISTICS)
        self.fuse = nn.Sequential(
            nn.Linear(STATISTICS, 64), nn.GELU(), nn.Linear(64, len(OUTPUTS))
        )

    def forward(self, energies: Tensor, projected: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """(B, N, K) values and weights of tokens with (B, N, 2·D) energies."""
        seen = torch.cat([F.gelu(self.energy(energies)), *projected], -1)
        context = F.gelu(self.context(seen))
        return self.value(context), F.softplus(self.weight(context)) + 1e-4


@dataclass(frozen=True)
class StudentOutput:
    """What a student computes of B clips.

    Sums and weights of several clips may be added before the last layer, which then scores them
    as one large picture.
    """

    alone: tuple[Tensor, Tensor]
    """(B, K + 1) sums and weights without reference; the last column is the output of the
    paper's linear head."""
    anchored: tuple[Tensor, Tensor] | None
    """(B, K) sums and weights against the anchor; None without one."""
    feature: Tensor
    """(B, 768) pooled feature, which distillation compares."""
    projected: tuple[Tensor, ...]
    """(B, N, P) tokens at the deeper taps, as the heads see them; they compare across students."""


class Student(nn.Module):
    """A backbone with its heads. Clips are (B, 3, T, H, W), ImageNet-normalised RGB.

    Args:
        backbone: The network that gives tokens and a pooled feature.
        heads: With the token heads, which need the tokens of an InternVideo2. Without them it is
            the paper's model alone: no-reference, one linear layer on the pooled feature.
    """

    def __init__(self, backbone: InternVideo2 | FastVQA, heads: bool = True) -> None:
        super().__init__()
        self.backbone = backbone
        self.anchored: AnchoredHead | None = None
        self.alone: AloneHead | None = None
        if heads:
            assert isinstance(backbone, InternVideo2), "heads need an InternVideo2's tokens"
            depth, width = backbone.config.depth, backbone.config.width
            self.taps = (0, depth // 2, depth)
            self.anchored = AnchoredHead(width, taps=len(self.taps) - 1)
            self.alone = AloneHead(width, taps=len(self.taps) - 1)

    def anchor(self, reference: Tensor) -> Anchor:
        """What comparisons need of (B, 3, T, H, W) reference clips, computed once."""
        assert self.anchored is not None and isinstance(self.backbone, InternVideo2)
        _, (embedding, *deep) = self.backbone.tokens(reference, self.taps)
        with torch.autocast(reference.device.type, enabled=False):
            deep = [x.to(self._head_type) for x in deep]
            return self.anchored.anchor(embedding, deep, reference.shape[2])

    def look(self, clips: Tensor, anchor: Anchor | None = None) -> StudentOutput:
        """Run the network on (B, 3, T, H, W) clips.

        Args:
            clips: Of renditions.
            anchor: Of the same clips of their sources; None: no-reference only.
        """
        if self.alone is None or self.anchored is None:
            score, feature = self.backbone.judge(clips)
            return StudentOutput(
                (score[:, None], torch.ones_like(score[:, None])), None, feature, ()
            )
        assert isinstance(self.backbone, InternVideo2)
        tokens, (embedding, *deep) = self.backbone.tokens(clips, self.taps)
        feature = self.backbone.features(tokens)
        answer = self.backbone.head(feature)
        with torch.autocast(clips.device.type, enabled=False):
            # the embedding stays fp32: bf16 would round away the differences that energies are of
            deep = [x.to(self._head_type) for x in deep]
            projected = tuple(p(x) for p, x in zip(self.anchored.project, deep, strict=True))
            energies = log_energy(embedding)
            moving = torch.cat([energies, log_energy(change(embedding, clips.shape[2]))], -1)
            values, weights = self.alone(moving.to(self._head_type), projected)
            ones = torch.ones_like(answer)
            alone = (
                torch.cat([(values * weights).sum(1), answer.to(values.dtype)], 1),
                torch.cat([weights.sum(1), ones.to(values.dtype)], 1),
            )
            anchored = None
            if anchor is not None:
                values = self.anchored.statistics(anchor, embedding, projected)
                anchored = (values * anchor.weights).sum(1), anchor.weights.sum(1)
        return StudentOutput(alone, anchored, feature, projected)

    def compare(self, clips: Tensor, anchor: Anchor) -> tuple[Tensor, Tensor]:
        """`look(clips, anchor).anchored` alone, which takes less time."""
        assert self.anchored is not None and isinstance(self.backbone, InternVideo2)
        _, (embedding, *deep) = self.backbone.tokens(clips, self.taps)
        with torch.autocast(clips.device.type, enabled=False):
            deep = [x.to(self._head_type) for x in deep]
            projected = [p(x) for p, x in zip(self.anchored.project, deep, strict=True)]
            values = self.anchored.statistics(anchor, embedding, projected)
            return (values * anchor.weights).sum(1), anchor.weights.sum(1)

    @property
    def _head_type(self) -> torch.dtype:
        """fp32, unless a training engine has cast the whole module."""
        assert self.alone is not None
        return self.alone.energy.weight.dtype

    def anchored_answers(self, sums: Tensor, weights: Tensor) -> Tensor:
        """(..., len(OUTPUTS)) answers of (..., K) pooled sums of `StudentOutput.anchored`."""
        assert self.anchored is not None
        return _answers(self.anchored.fuse(sums / weights))

    def alone_answers(self, sums: Tensor, weights: Tensor) -> Tensor:
        """(..., len(OUTPUTS)) answers of (..., K + 1) pooled sums of `StudentOutput.alone`.

        Without heads (..., 1): the output of the paper's linear head, unbounded.
        """
        means = sums / weights
        if self.alone is None:
            return means
        out = self.alone.fuse(means[..., :-1])
        return _answers(torch.cat([out[..., :1] + means[..., -1:], out[..., 1:]], -1))

    def forward(self, clips: Tensor, reference: Tensor | None = None) -> Tensor:
        """(B,) score 0..1 of each clip: anchored when `reference` is given, else without."""
        if reference is None:
            return self.alone_answers(*self.look(clips).alone)[:, 0]
        seen = self.look(clips, self.anchor(reference)).anchored
        assert seen is not None
        return self.anchored_answers(*seen)[:, 0]


def _answers(out: Tensor) -> Tensor:
    """The score through a sigmoid to 0..1; the elementary features as they are."""
    return torch.cat([out[..., :1].sigmoid(), out[..., 1:]], -1)


def log_energy(coefficients: Tensor) -> Tensor:
    """Log of squared patch coefficients, 0 at the floor: local signal, error, or change."""
    return torch.log(coefficients.square() / ENERGY_FLOOR + 1) / 4


def change(embedding: Tensor, frames: int) -> Tensor:
    """(B, T·n, D) difference of each token to the frame before (the first: to the one after)."""
    if frames == 1:
        return torch.zeros_like(embedding)
    x = torch.unflatten(embedding, 1, (frames, -1))
    steps = x[:, 1:] - x[:, :-1]
    return torch.cat([steps[:, :1], steps], 1).flatten(1, 2)


def start_from_cosines(backbone: InternVideo2) -> None:
    """Initialise the patch embedding as a 2-D cosine transform of luma, lowest frequency first.

    Quality is read from fine differences between patches; a random projection of 588 samples to a
    few hundred channels blurs them, an orthogonal one keeps nearly all of luma. The last eighth of
    the channels takes the lowest coefficients of the two colour differences (BT.709).
    """
    config = backbone.config
    patch = config.patch
    order = torch.arange(patch, dtype=torch.float64)
    basis = torch.cos(math.pi / patch * (order + 0.5) * order[:, None]) * math.sqrt(2 / patch)
    basis[0] /= math.sqrt(2)
    planes = torch.einsum("iy,jx->ijyx", basis, basis).flatten(0, 1)
    radius = (order[:, None] ** 2 + order[None] ** 2).flatten()
    planes = planes[radius.argsort(stable=True)]
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64)  # undo the input's scaling
    luma = torch.tensor([0.2126, 0.7152, 0.0722], dtype=torch.float64)
    blue = (torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64) - luma) / 1.8556
    red = (torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64) - luma) / 1.5748
    colour = config.width // 16
    kernels = [
        colours[:, None, None] * std[:, None, None] / std.mean() * plane
        for colours, count in ((luma, config.width - 2 * colour), (blue, colour), (red, colour))
        for plane in planes[:count]
    ]
    weight = torch.zeros_like(backbone.patch_embed.proj.weight)
    weight[: len(kernels), :, 0] = torch.stack(kernels).float()
    with torch.no_grad():
        backbone.patch_embed.proj.weight.copy_(weight)
        nn.init.zeros_(backbone.patch_embed.proj.bias)  # type: ignore[arg-type]
