"""The student: a network that scores a rendition alone, or anchored to its source.

No reference: the paper's head (arXiv 2502.19026), one linear layer on the pooled feature, joined
by statistics of the tokens, like those of the anchored head but estimated without a source.
Anchored: tokens of the rendition are compared with the source's tokens of the same crop, at the
patch embedding and at two depths. Each token gives K values and, from the source alone, K weights;
a crop's, frame's or title's statistics are the K weighted means, and a small MLP turns them into
the score. Weighted means of local ratios are the form VIF (Sheikh & Bovik 2006) has, and they pool
over any number of crops without a change of scale, so a title is scored as one large frame.

`HeadConfig` says what the heads take in besides. Statistics beyond the K are generalised means,
which the worst tokens dominate; their powers are what is summed, and the root is taken last.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqaloop.errors import InputError
from vqaloop.models.backbone import GRID, Backbone, Prompt, Seen, TokenBackbone
from vqaloop.models.head_config import OUTPUTS as OUTPUTS
from vqaloop.models.head_config import HeadConfig
from vqaloop.models.internvideo2 import InternVideo2, PatchEmbed
from vqaloop.models.stream_facts import COLUMNS

STATISTICS = 24
"""K: pooled statistics (weighted means over tokens) of a crop."""
ENERGY_FLOOR = 1e-4
"""Energy below which a patch coefficient counts as nothing: about half a code value of 8 bits."""
LARGEST_WORST = 1000.0
"""Bound on what is raised to the fourth power: sums of any title stay finite in fp32 and bf16."""
LEAST_WORST = 1e-8
"""Added before the fourth root, whose slope at 0 is infinite."""
ENERGIES = 96
"""Channels of the patch embedding of heads on a network that has none of its own. Of patches of
GRID they reach as high a frequency as those of internvqa-mini."""
CANVAS_HEIGHT = 1080
"""Height in pixels at which the heads' input of the canvas is 0."""

Height = float | Tensor | None
"""Height in pixels of the canvas that clips are cut from: one for all, or of each."""
Stream = Sequence[float] | Tensor | None
"""(..., COLUMNS) `StreamFacts.inputs` of the videos that clips are of: one for all, or of each."""


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
    """(B, N, S) positive weight of each token in each statistic."""
    maps: tuple[Tensor, ...] = ()
    """(B, T, h, w, C) features at their own sizes, of a network that compares them itself."""

    def each(self, change: Callable[[Tensor], Tensor]) -> "Anchor":
        """The anchor with all its tensors changed alike, along their first axis."""
        return Anchor(
            change(self.embedding),
            tuple(change(tokens) for tokens in self.deep),
            change(self.context),
            change(self.weights),
            tuple(change(features) for features in self.maps),
        )


class AnchoredHead(nn.Module):
    """Compares tokens of a rendition with those of its source; see the module's docstring."""

    def __init__(
        self,
        width: int,
        deep: Sequence[int],
        config: HeadConfig,
        differences: int = 0,
        hidden: int = 128,
        projected: int = 64,
    ) -> None:
        """`width` and `deep`: channels of the embedding and of each deeper tap; `differences`:
        those of what the network says of both itself."""
        super().__init__()
        self.config, taps = config, len(deep)
        self.project = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(of_tap), nn.Linear(of_tap, projected)) for of_tap in deep
        )
        self.source_energy = nn.Linear(2 * width, hidden)
        statistics, energies = STATISTICS + config.worst, 5 if config.change else 3
        self.source_context = nn.Linear(hidden + taps * projected + config.canvas, hidden)
        self.weight = nn.Linear(hidden, statistics)
        self.compare_energy = nn.Linear(energies * width, hidden)
        self.compare = nn.Linear(2 * hidden + 2 * taps * projected + differences, hidden)
        self.value = nn.Linear(hidden, statistics)
        self.fuse = _fuse(config, 0)

    def anchor(
        self, embedding: Tensor, deep: list[Tensor], frames: int, canvas_height: Height
    ) -> Anchor:
        """Reference side: (B, N, D) embedding and deeper taps of clips of `frames` frames."""
        energies = torch.cat([log_energy(embedding), change_energy(embedding, frames)], -1)
        energies = energies.to(self.weight.weight.dtype)
        projected = tuple(p(x) for p, x in zip(self.project, deep, strict=True))
        seen = [F.gelu(self.source_energy(energies)), *projected]
        if self.config.canvas:
            seen.append(_of_tokens(canvas_height, seen[0]))
        context = F.gelu(self.source_context(torch.cat(seen, -1)))
        return Anchor(embedding, projected, context, F.softplus(self.weight(context)) + 1e-4)

    def values(
        self,
        anchor: Anchor,
        embedding: Tensor,
        projected: Sequence[Tensor],
        frames: int,
        differences: Tensor | None = None,
    ) -> Tensor:
        """(B, N, S) values of the rendition's tokens, against `anchor`.

        `differences`: (B, N, C) what the network itself says of both.
        """
        error = embedding - anchor.embedding
        seen = [log_energy(embedding), log_energy(anchor.embedding), log_energy(error)]
        if self.config.change:
            # the difference of two changes is the change of the difference
            seen += [change_energy(embedding, frames), change_energy(error, frames)]
        energies = torch.cat(seen, -1).to(self.value.weight.dtype)
        parts = [F.gelu(self.compare_energy(energies)), anchor.context]
        for tokens, source in zip(projected, anchor.deep, strict=True):
            parts += [(tokens - source).abs(), tokens * source]
        if differences is not None:
            parts.append(differences.to(parts[0].dtype))
        return self.value(F.gelu(self.compare(torch.cat(parts, -1))))  # type: ignore[no-any-return]


class AloneHead(nn.Module):
    """No-reference head: estimates the statistics of `AnchoredHead` without a source.

    The spectrum of each patch, and of its change over time, shows what a codec removed; deeper
    tokens hold what the patch depicts. The output of the paper's linear head is added.
    """

    def __init__(
        self, width: int, taps: int, config: HeadConfig, hidden: int = 128, projected: int = 64
    ) -> None:
        super().__init__()
        self.config = config
        self.energy = nn.Linear(2 * width, hidden)
        statistics = STATISTICS + config.worst
        self.context = nn.Linear(hidden + taps * projected + config.canvas, hidden)
        self.weight = nn.Linear(hidden, statistics)
        self.value = nn.Linear(hidden, statistics)
        self.fuse = _fuse(config, COLUMNS * config.bits)

    def forward(
        self, energies: Tensor, projected: Sequence[Tensor], canvas_height: Height
    ) -> tuple[Tensor, Tensor]:
        """(B, N, S) values and weights of tokens with (B, N, 2·D) energies."""
        seen = [F.gelu(self.energy(energies)), *projected]
        if self.config.canvas:
            seen.append(_of_tokens(canvas_height, seen[0]))
        context = F.gelu(self.context(torch.cat(seen, -1)))
        return self.value(context), F.softplus(self.weight(context)) + 1e-4


def _fuse(config: HeadConfig, facts: int) -> nn.Sequential:
    """The MLP that turns pooled statistics, and so many facts of a stream, into answers."""
    inputs = STATISTICS + config.worst + config.canvas + facts
    return nn.Sequential(nn.Linear(inputs, 64), nn.GELU(), nn.Linear(64, len(config.outputs)))


def _summed(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """(B, S) sums over tokens: of the first K values as they are, of the others' fourth powers."""
    if values.shape[-1] > STATISTICS:
        worst = F.softplus(values[..., STATISTICS:]).clamp(max=LARGEST_WORST)
        values = torch.cat([values[..., :STATISTICS], worst.square().square()], -1)
    return (values * weights).sum(1), weights.sum(1)


def _rooted(means: Tensor) -> Tensor:
    """(..., S) means of `_summed` as statistics: those of fourth powers as generalised means."""
    if means.shape[-1] == STATISTICS:
        return means
    worst = (means[..., STATISTICS:] + LEAST_WORST).sqrt().sqrt()
    return torch.cat([means[..., :STATISTICS], worst], -1)


def _canvas_input(height: Height, like: Tensor) -> Tensor:
    """log2 of heights over CANVAS_HEIGHT, in the type and on the device of `like`."""
    if height is None:
        raise ValueError("these heads take the height of the canvas, and none was given")
    heights = torch.as_tensor(height, dtype=torch.float32, device=like.device)
    return (heights / CANVAS_HEIGHT).log2().to(like.dtype)


def _stream_input(stream: Stream, like: Tensor) -> Tensor:
    """(..., COLUMNS) facts beside (..., S) statistics, in their type and on their device."""
    if stream is None:
        raise ValueError("these heads take what the bitstream says, and it was not given")
    facts = torch.as_tensor(stream, dtype=torch.float32, device=like.device).to(like.dtype)
    return facts.expand(*like.shape[:-1], COLUMNS)


def _of_tokens(height: Height, tokens: Tensor) -> Tensor:
    """(B, N, 1) input of the canvas beside (B, N, C) tokens."""
    return _canvas_input(height, tokens).reshape(-1, 1, 1).expand(*tokens.shape[:2], 1)


@dataclass(frozen=True)
class StudentOutput:
    """What a student computes of B clips.

    Sums and weights of several clips may be added before the last layer, which then scores them
    as one large picture. S is STATISTICS and `HeadConfig.worst` together.
    """

    alone: tuple[Tensor, Tensor]
    """(B, S + 1) sums and weights without reference; the last column is the output of the
    paper's linear head."""
    anchored: tuple[Tensor, Tensor] | None
    """(B, S) sums and weights against the anchor; None without one."""
    feature: Tensor
    """(B, 768) pooled feature, which distillation compares."""
    projected: tuple[Tensor, ...]
    """(B, N, P) tokens at the deeper taps, as the heads see them; they compare across students."""
    values: tuple[Tensor, Tensor, Tensor] | None = None
    """(B, N, S) values of tokens without reference, against the anchor, and the weights of the
    latter; None without an anchor."""


class Student(nn.Module):
    """A backbone with its heads. Clips are (B, 3, T, H, W), ImageNet-normalised RGB.

    Args:
        backbone: The network that gives a pooled feature, and tokens if there are `heads`.
        heads: With the token heads, which need a TokenBackbone. Without them it is the paper's
            model alone: no-reference, a score of the pooled feature.
        config: Of the token heads; None: the first generation's.

    Raises:
        InputError: A configuration of other heads is given without `heads`.
    """

    def __init__(
        self, backbone: Backbone, heads: bool = True, config: HeadConfig | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config or HeadConfig()
        self.anchored: AnchoredHead | None = None
        self.alone: AloneHead | None = None
        self.patch_embed: PatchEmbed | None = None
        self.prompt: Prompt | None = None
        if heads:
            assert isinstance(backbone, TokenBackbone), "heads need tokens"
            width, deep = backbone.energies or ENERGIES, backbone.tap_widths
            if not backbone.energies:
                self.patch_embed = PatchEmbed(width, GRID)
            self.anchored = AnchoredHead(width, deep, self.config, backbone.difference_width)
            self.alone = AloneHead(width, len(deep), self.config)
        elif self.config != HeadConfig():
            raise InputError(
                "a configuration of token heads is given for a student without them; leave it "
                "out, or give it losses that need the heads"
            )

    def anchor(self, reference: Tensor, canvas_height: Height = None) -> Anchor:
        """What comparisons need of (B, 3, T, H, W) reference clips, computed once.

        Args:
            reference: The clips.
            canvas_height: In pixels, of the pictures that they are cut from: a number, or (B,).

        Raises:
            ValueError: The heads take the height of the canvas, and none is given.
        """
        assert self.anchored is not None
        seen, embedding = self._seen(reference, pooled=False)
        with torch.autocast(reference.device.type, enabled=False):
            deep = [x.to(self._head_type) for x in seen.deep]
            found = self.anchored.anchor(embedding, deep, reference.shape[2], canvas_height)
        return replace(found, maps=seen.maps)

    @property
    def embedding(self) -> PatchEmbed | None:
        """The patch embedding whose squares heads take; None where there are none for it."""
        own = self.backbone
        return own.patch_embed if isinstance(own, InternVideo2) else self.patch_embed

    def _seen(self, clips: Tensor, pooled: bool) -> tuple[Seen, Tensor]:
        """What the network sees in (B, 3, T, H, W) clips, and the embedding of their patches."""
        assert isinstance(self.backbone, TokenBackbone)
        seen = self.backbone.see(clips, pooled)
        if self.patch_embed is not None:
            return seen, self.patch_embed(clips)
        assert seen.embedding is not None
        return seen, seen.embedding

    def look(
        self, clips: Tensor, anchor: Anchor | None = None, canvas_height: Height = None
    ) -> StudentOutput:
        """Run the network on (B, 3, T, H, W) clips.

        Args:
            clips: Of renditions.
            anchor: Of the same clips of their sources; None: no-reference only.
            canvas_height: As of `anchor`, for the head without reference.

        Raises:
            ValueError: The heads take the height of the canvas, and none is given.
        """
        if self.alone is None or self.anchored is None:
            score, feature = self.backbone.judge(clips)
            return StudentOutput(
                (score[:, None], torch.ones_like(score[:, None])), None, feature, ()
            )
        assert isinstance(self.backbone, TokenBackbone)
        seen, embedding = self._seen(clips, pooled=True)
        feature = self.backbone.features(seen.whole)
        answer = self.backbone.answer(feature)
        differences = None if anchor is None else self.backbone.differences(anchor.maps, seen.maps)
        with torch.autocast(clips.device.type, enabled=False):
            # the embedding stays fp32: bf16 would round away the differences that energies are of
            deep = [x.to(self._head_type) for x in seen.deep]
            projected = tuple(p(x) for p, x in zip(self.anchored.project, deep, strict=True))
            frames = clips.shape[2]
            moving = torch.cat([log_energy(embedding), change_energy(embedding, frames)], -1)
            values, weights = self.alone(moving.to(self._head_type), projected, canvas_height)
            sums, weights = _summed(values, weights)
            ones = torch.ones_like(answer)
            alone = (
                torch.cat([sums, answer.to(sums.dtype)], 1),
                torch.cat([weights, ones.to(sums.dtype)], 1),
            )
            if anchor is None:
                return StudentOutput(alone, None, feature, projected)
            against = self.anchored.values(anchor, embedding, projected, frames, differences)
            anchored = _summed(against, anchor.weights)
        of_tokens = values, against, anchor.weights
        return StudentOutput(alone, anchored, feature, projected, of_tokens)

    def compare(self, clips: Tensor, anchor: Anchor) -> tuple[Tensor, Tensor]:
        """`look(clips, anchor).anchored` alone, which takes less time."""
        assert self.anchored is not None and isinstance(self.backbone, TokenBackbone)
        seen, embedding = self._seen(clips, pooled=False)
        differences = self.backbone.differences(anchor.maps, seen.maps)
        with torch.autocast(clips.device.type, enabled=False):
            deep = [x.to(self._head_type) for x in seen.deep]
            projected = [p(x) for p, x in zip(self.anchored.project, deep, strict=True)]
            values = self.anchored.values(
                anchor, embedding, projected, clips.shape[2], differences
            )
            return _summed(values, anchor.weights)

    @property
    def _head_type(self) -> torch.dtype:
        """fp32, unless a training engine has cast the whole module."""
        assert self.alone is not None
        return self.alone.energy.weight.dtype

    def anchored_answers(
        self, sums: Tensor, weights: Tensor, canvas_height: Height = None
    ) -> Tensor:
        """Answers of pooled sums of `StudentOutput.anchored`.

        Args:
            sums: (..., S).
            weights: (..., S).
            canvas_height: As of `anchor`: a number, or what broadcasts to the leading dimensions.

        Returns:
            (..., len(config.outputs)).

        Raises:
            ValueError: The heads take the height of the canvas, and none is given.
        """
        assert self.anchored is not None
        seen = self._statistics(sums / weights, canvas_height)
        return self._answers(self.anchored.fuse(seen), "anchored")

    def alone_answers(
        self,
        sums: Tensor,
        weights: Tensor,
        canvas_height: Height = None,
        stream: Stream = None,
    ) -> Tensor:
        """Answers of pooled sums of `StudentOutput.alone`.

        Args:
            sums: (..., S + 1).
            weights: (..., S + 1).
            canvas_height: As of `anchored_answers`.
            stream: What the bitstream says, (..., COLUMNS) `StreamFacts.inputs`, which broadcast
                to the leading dimensions; zeros where it is not known.

        Returns:
            (..., len(config.outputs)). Without heads (..., 1): the output of the paper's linear
            head, unbounded.

        Raises:
            ValueError: The heads take the height of the canvas, or what the bitstream says, and
                it is not given.
        """
        means = sums / weights
        if self.alone is None:
            return means if self.prompt is None else self.prompt.answer(means, "alone")
        seen = self._statistics(means[..., :-1], canvas_height)
        if self.config.bits:
            seen = torch.cat([seen, _stream_input(stream, seen)], -1)
        out = self.alone.fuse(seen)
        out = torch.cat([out[..., :1] + means[..., -1:], out[..., 1:]], -1)
        return self._answers(out, "alone")

    def _answers(self, out: Tensor, head: str) -> Tensor:
        """The score through a sigmoid to 0..1; the auxiliary outputs as they are."""
        if self.prompt is not None:
            out = self.prompt.answer(out, head)
        return torch.cat([out[..., :1].sigmoid(), out[..., 1:]], -1)

    def _statistics(self, means: Tensor, canvas_height: Height) -> Tensor:
        """What the last layers of both heads take, of (..., S) pooled means."""
        means = _rooted(means)
        if self.config.canvas:
            canvas = _canvas_input(canvas_height, means).expand(means.shape[:-1])
            means = torch.cat([means, canvas[..., None]], -1)
        return means

    def forward(
        self,
        clips: Tensor,
        reference: Tensor | None = None,
        canvas_height: Height = None,
        stream: Stream = None,
    ) -> Tensor:
        """(B,) score 0..1 of each clip: anchored when `reference` is given, else without.

        `stream`: as of `alone_answers`, for the score without reference.
        """
        if reference is None:
            alone = self.look(clips, canvas_height=canvas_height).alone
            return self.alone_answers(*alone, canvas_height, stream)[:, 0]
        anchored = self.compare(clips, self.anchor(reference, canvas_height))
        return self.anchored_answers(*anchored, canvas_height)[:, 0]


def log_energy(coefficients: Tensor) -> Tensor:
    """Log of squared patch coefficients, 0 at the floor: local signal, error, or change."""
    return torch.log(coefficients.square() / ENERGY_FLOOR + 1) / 4


def change_energy(embedding: Tensor, frames: int) -> Tensor:
    """(B, T·n, D) log energy of each token's difference to the frame before.

    Of the first frame to the one after, and 0 where there is but one.
    """
    if frames == 1:
        return torch.zeros_like(embedding)
    x = torch.unflatten(embedding, 1, (frames, -1))
    # one logarithm of what the first two frames share
    steps = log_energy(x[:, 1:] - x[:, :-1])
    return torch.cat([steps[:, :1], steps], 1).flatten(1, 2)


def start_from_cosines(embedding: PatchEmbed) -> None:
    """Initialise a patch embedding as a 2-D cosine transform of luma, lowest frequency first.

    Quality is read from fine differences between patches; a random projection of 588 samples to a
    few hundred channels blurs them, an orthogonal one keeps nearly all of luma. The last eighth of
    the channels takes the lowest coefficients of the two colour differences (BT.709).
    """
    width, patch = embedding.proj.weight.shape[0], embedding.proj.weight.shape[-1]
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
    colour = width // 16
    kernels = [
        colours[:, None, None] * std[:, None, None] / std.mean() * plane
        for colours, count in ((luma, width - 2 * colour), (blue, colour), (red, colour))
        for plane in planes[:count]
    ]
    weight = torch.zeros_like(embedding.proj.weight)
    weight[: len(kernels), :, 0] = torch.stack(kernels).float()
    with torch.no_grad():
        embedding.proj.weight.copy_(weight)
        nn.init.zeros_(embedding.proj.bias)  # type: ignore[arg-type]
