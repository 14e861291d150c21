"""SwinV2 coarse-to-fine: a Swin Transformer V2 a frame, its stages and then its frames fused.

Yu et al., "Video Quality Assessment Based on Swin TransformerV2 and Coarse to Fine Strategy",
arXiv 2401.08522; the stages are those of Liu et al., "Swin Transformer V2", arXiv 2111.09883. The
paper leaves the sizes of the fusion open: here the means of the stages are tokens of a small
transformer a frame, and its class tokens those of another over time. Its coarse-to-fine strategy
is the losses `coarse` and `fine` of a recipe.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqaloop.models.backbone import GRID, StagedBackbone, on_grid
from vqaloop.models.drop_path import drop_path
from vqaloop.models.fastvqa import (
    Layout,
    Mlp,
    from_windows,
    lay_out,
    neighbours,
    padded,
    position_index,
    to_windows,
)

BIAS_SPAN = 16.0
"""Largest position bias."""
BIAS_WIDTH = 512
"""Hidden channels of the network that gives position biases."""
LARGEST_SCALE = math.log(100.0)
"""Of the logarithm of what cosines of queries and keys are multiplied by."""


@dataclass(frozen=True)
class Config:
    """Shape of the network."""

    width: int
    """Channels of the first stage; each further stage doubles them."""
    depths: tuple[int, ...]
    """Blocks of each stage."""
    heads: tuple[int, ...]
    """Attention heads of each stage."""
    fused: int
    """Channels of the fusion, and of the pooled feature."""
    patch: int = 4
    """Height and width of a patch; patches and windows span one frame."""
    window: int = 7
    """Rows and columns of tokens that attend to each other."""
    layers: int = 2
    """Transformer layers that fuse stages, and as many that fuse frames."""
    fusing_heads: int = 4
    frames: int = 8
    """Frames of a clip the table of positions in time is made for; others are interpolated."""


TINY = Config(96, (2, 2, 6, 2), (3, 6, 12, 24), 256)
"""Swin V2's own Tiny: 27,578,154 parameters before the fusion."""
MINI = Config(32, (2, 2, 2), (2, 4, 8), 64, patch=8)
"""For CPUs."""


class CosineAttention(nn.Module):
    """Self-attention inside windows by scaled cosines, with biases of log-spaced positions."""

    index: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10.0)))
        self.cpb_mlp = nn.Sequential(
            nn.Linear(2, BIAS_WIDTH), nn.ReLU(), nn.Linear(BIAS_WIDTH, heads, bias=False)
        )
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)
        self.register_buffer("index", position_index((1, window, window)))

    def bias(self, layout: Layout) -> Tensor:
        """(windows or 1, heads, N, N)."""
        _, rows, columns = layout.window
        side = self.window
        steps = log_steps(side).to(self.q_bias)
        table: Tensor = BIAS_SPAN * self.cpb_mlp(steps).sigmoid()
        index = self.index.view(side, side, side, side)[:rows, :columns, :rows, :columns]
        size = rows * columns
        bias = table[index.reshape(-1)].view(size, size, -1).permute(2, 0, 1)[None]
        # logits reach 100 and more, which a mask of -100 would let through
        return bias if layout.mask is None else bias + 10 * layout.mask[:, None]

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """(B, windows, N, C) to the same."""
        batch, count, size, _ = x.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = torch.unflatten(F.linear(x, self.qkv.weight, bias), -1, (3, self.heads, -1))
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)  # each (B, windows, heads, N, d)
        scale = self.logit_scale.clamp(max=LARGEST_SCALE).exp()
        q, k = F.normalize(q.float(), dim=-1) * scale, F.normalize(k.float(), dim=-1)
        # windows and heads on one axis, so that the bias is shared by the batch, not repeated
        q, k, v = (t.to(v.dtype).flatten(1, 2) for t in (q, k, v))
        added = self.bias(layout).to(v.dtype).expand(count, -1, -1, -1).flatten(0, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=added[None], scale=1.0)
        out = out.reshape(batch, count, self.heads, size, -1).transpose(2, 3).flatten(3)
        return self.proj(out)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Swin V2 block on (B, T, H, W, C) tokens: branches are normed after, not before."""

    drop_path = 0.0

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.attn = CosineAttention(width, heads, window)
        self.norm1 = nn.LayerNorm(width)
        self.mlp = Mlp(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        rate, training = self.drop_path, self.training
        x = x + drop_path(self.norm1(self.attend(x, layout)), rate, training)
        return x + drop_path(self.norm2(self.mlp(x)), rate, training)

    def attend(self, x: Tensor, layout: Layout) -> Tensor:
        """Attention inside the windows of `layout`; the grid is padded with zeros to fill them."""
        _, frames, rows, columns, _ = x.shape
        grid = padded((frames, rows, columns), layout.window)
        x = F.pad(x, (0, 0, 0, grid[2] - columns, 0, grid[1] - rows))
        x = x.roll([-step for step in layout.shift], (1, 2, 3))
        x = from_windows(self.attn(to_windows(x, layout.window), layout), grid, layout.window)
        return x.roll(layout.shift, (1, 2, 3))[:, :, :rows, :columns]


class PatchMerging(nn.Module):
    """(B, T, H, W, C) to (B, T, H/2, W/2, 2C): four neighbours projected, then normed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(2 * width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(neighbours(x)))  # type: ignore[no-any-return]


class Stage(nn.Module):
    """Blocks in turn with plain and shifted windows; a merging before all but the first stage."""

    def __init__(self, config: Config, number: int) -> None:
        super().__init__()
        width = config.width << number
        self.window = (1, config.window, config.window)
        self.downsample = PatchMerging(width // 2) if number else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(width, config.heads[number], config.window) for _ in range(config.depths[number])
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        grid = (x.shape[1], x.shape[2], x.shape[3])
        layouts = [lay_out(grid, self.window, shifted, x.device) for shifted in (False, True)]
        for i, block in enumerate(self.blocks):
            x = block(x, layouts[i % 2])
        return x


class PatchEmbed(nn.Module):
    """(B, 3, T, H, W) pixels to (B, T, H/p, W/p, C) normed tokens, computed in fp32."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, width, (1, patch, patch), (1, patch, patch))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        conv, norm = self.proj, self.norm
        assert conv.bias is not None
        with torch.autocast(x.device.type, enabled=False):
            weight = conv.weight.float()
            x = F.conv3d(x.float(), weight, conv.bias.float(), weight.shape[2:])
            shape = norm.normalized_shape
            x = x.permute(0, 2, 3, 4, 1)
            return F.layer_norm(x, shape, norm.weight.float(), norm.bias.float(), norm.eps)


class Layer(nn.Module):
    """Pre-norm transformer layer on (B, N, C) tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = torch.unflatten(self.qkv(self.norm1(x)), -1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.proj(out)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class Fusion(nn.Module):
    """(B, N, C) tokens to (B, C): the class token after some transformer layers."""

    def __init__(self, config: Config, tokens: int) -> None:
        super().__init__()
        width = config.fused
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        self.layers = nn.ModuleList(
            Layer(width, config.fusing_heads) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        table: Tensor = self.pos_embed
        if x.shape[1] != table.shape[1]:
            wide = F.interpolate(table.float().mT, x.shape[1], mode="linear", align_corners=False)
            table = wide.mT.to(table.dtype)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x + table], 1)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x[:, 0])  # type: ignore[no-any-return]


class SwinV2(StagedBackbone):
    """The stages, their fusion and a linear head.

    `forward` takes (B, 3, T, H, W) clips, ImageNet-normalised RGB with H and W that are multiples
    of 16, and returns (B, 1) scores, unbounded. Runs in fp32, under autocast, or cast to bf16 as a
    whole.

    Args:
        config: Shape of the network.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.width, stages = config, config.width, len(config.depths)
        widths = [config.width << i for i in range(stages)]
        self.feature_width = config.fused
        # where tokens are 8 and 16 pixels apart
        last = (GRID // config.patch).bit_length()
        self.taps, self.tap_widths = (last - 1, last), tuple(widths[last - 2 : last])
        self.patch_embed = PatchEmbed(config.width, config.patch)
        self.stages = nn.ModuleList(Stage(config, i) for i in range(stages))
        self.norm = nn.LayerNorm(widths[-1])
        self.stage_tokens = nn.ModuleList(nn.Linear(width, config.fused) for width in widths)
        self.spatial = Fusion(config, stages)
        self.temporal = Fusion(config, config.frames)
        self.head = nn.Linear(config.fused, 1)
        self.reset()

    def reset(self) -> None:
        """Initialise as published: truncated normals, and norms after branches at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, Fusion):
                for table in (module.cls_token, module.pos_embed):
                    nn.init.trunc_normal_(table, std=0.02)
            elif isinstance(module, Block):
                # blocks begin as the identity
                for norm in (module.norm1, module.norm2):
                    nn.init.zeros_(norm.weight)
        self.reset_head()

    def tokens(
        self, clips: Tensor, taps: tuple[int, ...] = (), pooled: bool = True
    ) -> tuple[Tensor, list[Tensor]]:
        """(B, T, stages, fused) means of the stages, and (B, T·h·w, C) tokens of some stages.

        Taps are numbers of stages from 1, on a grid of 16 pixels. Raises ValueError.
        """
        self.check_shape(clips.shape)
        rows, columns = (side // GRID for side in clips.shape[-2:])
        x = self.patch_embed(clips).to(self.norm.weight.dtype)
        means, kept = [], []
        run = len(self.stages) if pooled else max(taps)
        pairs = zip(self.stages[:run], self.stage_tokens, strict=False)
        for number, (stage, to_token) in enumerate(pairs, 1):
            x = stage(x)
            last = self.norm(x) if number == len(self.stages) else x
            means.append(to_token(last.mean((2, 3))))
            if number in taps:
                kept.append(on_grid(x, rows, columns))
        return torch.stack(means, 2), kept

    def features(self, tokens: Tensor) -> Tensor:
        """(B, T, stages, fused) means of the stages to the (B, fused) feature."""
        frames = self.spatial(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        return self.temporal(frames)  # type: ignore[no-any-return]


def log_steps(window: int) -> Tensor:
    """((2·window - 1)², 2) steps between two places, rows first, log-spaced to about -1..1."""
    steps = torch.arange(1.0 - window, window) * 8 / max(1, window - 1)
    steps = steps.sign() * (steps.abs() + 1).log2() / math.log2(8)
    return torch.cartesian_prod(steps, steps)
