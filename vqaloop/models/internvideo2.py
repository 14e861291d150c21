"""InternVideo2's single-modality vision transformer, in plain PyTorch.

Wang et al., "InternVideo2: Scaling Foundation Models for Multimodal Video Understanding",
arXiv 2403.15377; used as a quality model with one output by InternVQA, arXiv 2502.19026. Names of
parameters and shapes are those of the released checkpoints, so that their files load as they are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vqaloop.models.backbone import TokenBackbone
from vqaloop.models.drop_path import drop_path, set_drop_path


@dataclass(frozen=True)
class Config:
    """Shape of one member of the family; the defaults are common to the released ones."""

    width: int
    """Channels of a token."""
    depth: int
    """Number of blocks."""
    heads: int
    """Attention heads of a block; `width` is a multiple of it."""
    mlp_width: int
    """Hidden channels of a block's MLP."""
    frames: int = 8
    """Frames of a clip the position table is made for."""
    size: int = 224
    """Height and width of a clip in pixels, a multiple of `patch`."""
    patch: int = 14
    """Height and width of a patch in pixels; patches span one frame."""
    pool_heads: int = 16
    """Heads of the attention pooling."""
    pooled_width: int = 768
    """Channels after pooling, the same in all members, so that features compare across them."""
    outputs: int = 1
    """Values the head returns: 1 for quality, 400 for Kinetics classes."""
    layer_scale: float = 1e-5
    """First value of LayerScale; a small network trained from scratch needs about 0.1."""

    @property
    def grid(self) -> int:
        """Patches along one side of a frame."""
        return self.size // self.patch


MINI = Config(width=64, depth=3, heads=1, mlp_width=128, frames=2, size=112, layer_scale=0.1)
TINY = Config(width=128, depth=4, heads=2, mlp_width=512, frames=2, size=112, layer_scale=0.1)
SMALL = Config(width=384, depth=12, heads=6, mlp_width=1536)
BASE = Config(width=768, depth=12, heads=12, mlp_width=3072)
ONE_B = Config(width=1408, depth=40, heads=16, mlp_width=6144)


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last axis, statistics in fp32 (arXiv 1910.07467)."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        normed = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)


class LayerScale(nn.Module):
    """x · gamma, in fp32 as the released weights were trained (arXiv 2103.17239)."""

    def __init__(self, width: int, value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), value))

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() * self.gamma.float()).to(x.dtype)


class Attention(nn.Module):
    """Self-attention whose queries and keys are RMS-normalised over the full width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm = RMSNorm(width)
        self.k_norm = RMSNorm(width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # each (B, N, D)
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, D/heads)
            for t in (self.q_norm(q), self.k_norm(k), v)
        )
        # under autocast the norms may leave q and k wider than v, which SDPA refuses
        out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        return self.proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Two linear layers around a GELU in its tanh form, which the released weights expect."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm transformer block with LayerScale on both branches."""

    drop_path = 0.0

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.width)
        self.attn = Attention(config.width, config.heads)
        self.ls1 = LayerScale(config.width, config.layer_scale)
        self.norm2 = RMSNorm(config.width)
        self.mlp = Mlp(config.width, config.mlp_width)
        self.ls2 = LayerScale(config.width, config.layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        rate, training = self.drop_path, self.training
        x = x + drop_path(self.ls1(self.attn(self.norm1(x))), rate, training)
        return x + drop_path(self.ls2(self.mlp(self.norm2(x))), rate, training)


class CrossAttention(nn.Module):
    """One query over all tokens; biases are parameters of their own, as in the checkpoints."""

    def __init__(self, width: int, heads: int, out_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.k_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, out_width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (
            torch.unflatten(
                F.linear(x, layer.weight, bias.to(x.dtype)), -1, (self.heads, -1)
            ).transpose(1, 2)
            for x, layer, bias in (
                (query, self.q, self.q_bias),
                (key, self.k, self.k_bias),
                (value, self.v, self.v_bias),
            )
        )
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class AttentionPool(nn.Module):
    """(B, N, D) tokens to one (B, out_width) vector: cross-attention with their mean as query."""

    def __init__(self, width: int, heads: int, out_width: int) -> None:
        super().__init__()
        self.norm1_q = nn.LayerNorm(width)
        self.norm1_k = nn.LayerNorm(width)
        self.norm1_v = nn.LayerNorm(width)
        self.cross_attn = CrossAttention(width, heads, out_width)

    def forward(self, x: Tensor) -> Tensor:
        query = self.norm1_q(x.mean(1, keepdim=True))
        out = self.cross_attn(query, self.norm1_k(x), self.norm1_v(x))
        return out.squeeze(1)  # type: ignore[no-any-return]


class PatchEmbed(nn.Module):
    """(B, 3, T, H, W) pixels to (B, T·h·w, D) tokens, frame by frame, rows first.

    In fp32 whatever the weights are in and whatever autocast asks: quality lives in differences of
    a few code values between large ones.
    """

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, width, (1, patch, patch), (1, patch, patch))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.proj.weight.float(), self.proj.bias.float()  # type: ignore[union-attr]
        with torch.autocast(x.device.type, enabled=False):
            x = F.conv3d(x.float(), weight, bias, (1, *weight.shape[-2:]))
        return x.flatten(2).transpose(1, 2)


class InternVideo2(TokenBackbone):
    """The transformer with attention pooling and a linear head: InternVQA's quality model.

    `forward` takes (B, 3, T, H, W) clips, ImageNet-normalised RGB, and returns (B, outputs),
    unbounded. T, H and W may differ from the configured ones if H and W are multiples of the
    patch: the position table is interpolated. Runs in fp32, under autocast, or cast to bf16 as a
    whole (as DeepSpeed does); clips may be fp32 in each case.

    Args:
        config: Shape of the network.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.feature_width = config.pooled_width
        self.taps = (config.depth // 2, config.depth)
        self.tap_widths = (config.width,) * 2
        self.energies = config.width
        tokens = config.frames * config.grid**2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens + 1, config.width))
        self.patch_embed = PatchEmbed(config.width, config.patch)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.clip_projector = AttentionPool(config.width, config.pool_heads, config.pooled_width)
        self.fc_norm = nn.LayerNorm(config.pooled_width)
        self.head = nn.Linear(config.pooled_width, config.outputs)
        self.reset()

    def reset(self) -> None:
        """Initialise as published: truncated normals, sine positions, deep blocks scaled down."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        config = self.config
        with torch.no_grad():
            self.pos_embed[:, 1:] = sine_positions(config.width, config.frames, config.grid)
            blocks = (module for module in self.modules() if isinstance(module, Block))
            for i, block in enumerate(blocks):
                block.attn.proj.weight.div_(math.sqrt(2 * (i + 1)))
                block.mlp.fc2.weight.div_(math.sqrt(2 * (i + 1)))
            self.head.weight.mul_(0.001)

    def reset_head(self) -> None:
        """Initialise `fc_norm` and `head` alone: a score near 0 whatever the clip."""
        self.fc_norm.reset_parameters()
        nn.init.trunc_normal_(self.head.weight, std=0.02 * 0.001)
        nn.init.zeros_(self.head.bias)

    def set_drop_path(self, rate: float) -> None:
        """Leave out branches of blocks in training, see `drop_path.set_drop_path`."""
        set_drop_path(self.blocks, rate)  # type: ignore[arg-type]

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raises ValueError where clips of (B, C, T, H, W) do not fit."""
        _, channels, _, height, width = shape
        patch = self.config.patch
        if channels != 3 or height % patch or width % patch:
            raise ValueError(
                f"clips must be (B, 3, T, H, W), H and W multiples of {patch}, not {tuple(shape)}"
            )

    def tokens(
        self, clips: Tensor, taps: tuple[int, ...] = (), pooled: bool = True
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the transformer blocks.

        Args:
            clips: (B, 3, T, H, W).
            taps: Numbers of the blocks after which tokens are returned too; 0: the patch
                embedding, before positions.
            pooled: Of no effect: all blocks are before the last tap.

        Returns:
            (B, 1 + T·h·w, D) tokens, the class token first, and for each tap (B, T·h·w, D)
            tokens without it: tap 0 in fp32, the others in the parameters' type (fp32 under
            autocast).

        Raises:
            ValueError: H or W is no multiple of the patch.
        """
        self.check_shape(clips.shape)
        batch, _, frames, height, width = clips.shape
        patch = self.config.patch
        embedded = self.patch_embed(clips)
        kept = [embedded] if 0 in taps else []
        x = torch.cat([self.cls_token.float().expand(batch, -1, -1), embedded], 1)
        x = x + self.positions(frames, height // patch, width // patch).float()
        x = x.to(self.cls_token.dtype)
        again = self.recompute and torch.is_grad_enabled()
        for i, block in enumerate(self.blocks, 1):
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
            if i in taps:
                kept.append(x[:, 1:])
        return x, kept

    def features(self, tokens: Tensor) -> Tensor:
        """(B, N, D) tokens to the (B, pooled_width) feature that distillation compares."""
        return self.fc_norm(self.clip_projector(tokens))  # type: ignore[no-any-return]

    def answer(self, feature: Tensor) -> Tensor:
        """(B, outputs), unbounded."""
        return self.head(feature)  # type: ignore[no-any-return]

    def styled(self) -> dict[str, tuple[nn.Module, int]]:
        """Its blocks, see `Backbone.styled`."""
        return {f"blocks.{i}": (block, self.config.width) for i, block in enumerate(self.blocks)}

    def forward(self, clips: Tensor) -> Tensor:
        return self.answer(self.features(self.tokens(clips)[0]))

    def judge(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and pooled features of (B, 3, T, H, W) clips.

        Returns:
            (B,) scores, unbounded, and (B, feature_width) features after `clip_projector` and
            `fc_norm`, which distillation compares; both fp32.

        Raises:
            ValueError: The model has another number of outputs than one.
        """
        if self.config.outputs != 1:
            raise ValueError(f"a judge has one output, this model {self.config.outputs}")
        return super().judge(clips)

    def positions(self, frames: int, rows: int, columns: int) -> Tensor:
        """The position table for T × h × w tokens: linear over time, bicubic over space."""
        config = self.config
        if (frames, rows, columns) == (config.frames, config.grid, config.grid):
            return self.pos_embed
        return interpolate_positions(self.pos_embed, config, frames, rows, columns)


def interpolate_positions(
    table: Tensor, config: Config, frames: int, rows: int, columns: int
) -> Tensor:
    """A (1, 1 + T·h·w, D) position table made for `config`, for other frame counts and sizes."""
    grid, width = config.grid, config.width
    first, rest = table[:, :1], table[:, 1:].float()
    x = rest.reshape(config.frames, grid * grid * width).T[None]  # (1, h·w·D, T)
    if frames != config.frames:
        x = F.interpolate(x, frames, mode="linear", align_corners=False)
    x = x[0].T.reshape(frames, grid, grid, width).permute(0, 3, 1, 2)  # (T, D, h, w)
    if (rows, columns) != (grid, grid):
        x = F.interpolate(x, (rows, columns), mode="bicubic", align_corners=False)
    x = x.permute(0, 2, 3, 1).reshape(1, frames * rows * columns, width)
    return torch.cat([first, x.to(first.dtype)], 1)


def sine_positions(width: int, frames: int, grid: int) -> Tensor:
    """(T·h·w, D) sines and cosines: a quarter of the channels for time, the rest for space."""
    time_width = width // 4
    half = (width - time_width) // 2

    def sines(positions: Tensor, channels: int) -> Tensor:
        omega = 10000 ** -(torch.arange(channels // 2, dtype=torch.float64) / (channels / 2))
        angles = positions.double().flatten()[:, None] * omega
        return torch.cat([angles.sin(), angles.cos()], 1).float()

    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    space = torch.cat([sines(columns, half), sines(rows, half)], 1)  # (h·w, 2·half)
    time = sines(torch.arange(frames), time_width)
    return torch.cat([time.repeat_interleave(grid * grid, 0), space.repeat(frames, 1)], 1)
