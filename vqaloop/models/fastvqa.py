"""FAST-VQA in plain PyTorch: a 3-D Swin transformer that reads a clip as fragments.

Wu et al., "FAST-VQA: Efficient End-to-end Video Quality Assessment with Fragment Sampling",
ECCV 2022, arXiv 2207.02595; the network is Video Swin (arXiv 2106.13230) with gated relative
position biases. A clip is not scaled down but cut up: 7 x 7 patches of 32 x 32 pixels at their
own size, the same places in all frames, put together as one 224 x 224 picture (`fragment_places`,
`cut_fragments`). Names of parameters and shapes are those of the released checkpoints.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqaloop.models.backbone import Backbone, styled_stages
from vqaloop.models.drop_path import drop_path, set_drop_path
from vqaloop.models.fragments import FRAGMENT, FRAGMENTS, cut_fragments, fragment_places

__all__ = ["BASE", "TINY", "Config", "FastVQA", "cut_fragments", "fragment_places"]

PATCH = (2, 4, 4)
"""Frames, height and width of a patch."""
MASKED = -100.0
"""Added to what may not be attended to; finite, as in the released network."""

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Config:
    """Shape of the network; the defaults are those of the released FAST-VQA-B and FasterVQA."""

    width: int = 96
    """Channels of a token of the first stage; each further stage doubles them."""
    depths: tuple[int, ...] = (2, 2, 6, 2)
    """Blocks of each stage."""
    heads: tuple[int, ...] = (3, 6, 12, 24)
    """Attention heads of each stage."""
    window: Triple = (8, 7, 7)
    """Frames, rows and columns of tokens that attend to each other."""
    gated: int = 3
    """How many of the first stages have gated position biases."""
    hidden: int = 64
    """Channels inside the head."""

    @property
    def feature_width(self) -> int:
        """Channels of the last stage."""
        return self.width << len(self.depths) - 1


TINY = Config()
BASE = Config(width=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32))


class Layout(NamedTuple):
    """How a grid of tokens falls into windows."""

    window: Triple
    shift: Triple
    gate: Tensor
    """(windows, N, N) steps between the fragments of two tokens, rows and columns added."""
    mask: Tensor | None
    """(windows, N, N) MASKED between tokens that only the cyclic shift brought together."""


class WindowAttention(nn.Module):
    """Self-attention inside windows with gated relative position biases.

    With g the fragments between two tokens the bias is g · relative + (1 - g) · fragment: inside
    one fragment the second table counts, one fragment away the first, farther away both are
    extrapolated, as the released weights were trained.
    """

    relative_position_index: Tensor

    def __init__(self, width: int, heads: int, window: Triple, gated: bool) -> None:
        super().__init__()
        self.window, self.heads, self.gated = window, heads, gated
        entries = math.prod(2 * side - 1 for side in window)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(entries, heads))
        if gated:
            self.fragment_position_bias_table = nn.Parameter(torch.zeros(entries, heads))
        self.register_buffer("relative_position_index", position_index(window))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def bias(self, layout: Layout) -> Tensor:
        """(windows, heads, N, N) in fp32, or (1, heads, N, N) where all windows share it."""
        t, h, w = layout.window
        size = t * h * w
        index = self.relative_position_index.view(*self.window, *self.window)
        index = index[:t, :h, :w, :t, :h, :w].reshape(-1)

        def looked_up(table: Tensor) -> Tensor:
            return table.float()[index].view(size, size, -1).permute(2, 0, 1)  # (heads, N, N)

        bias = looked_up(self.relative_position_bias_table)[None]
        if self.gated:
            fragment = looked_up(self.fragment_position_bias_table)[None]
            bias = torch.addcmul(fragment, layout.gate[:, None], bias - fragment)
        return bias if layout.mask is None else bias + layout.mask[:, None]

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """(B, windows, N, C) to the same."""
        batch, count, size, _ = x.shape
        qkv = torch.unflatten(self.qkv(x), -1, (3, self.heads, -1))  # (B, windows, N, 3, heads, d)
        # windows and heads on one axis, so that the bias is shared by the batch, not repeated
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).flatten(2, 3).unbind(0)
        bias = self.bias(layout).to(q.dtype).expand(count, -1, -1, -1).flatten(0, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        out = out.reshape(batch, count, self.heads, size, -1).transpose(2, 3).flatten(3)
        return self.proj(out)  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm Swin block on (B, T, H, W, C) tokens."""

    drop_path = 0.0

    def __init__(self, width: int, heads: int, window: Triple, gated: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window, gated)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        rate, training = self.drop_path, self.training
        x = x + drop_path(self.attend(self.norm1(x), layout), rate, training)
        return x + drop_path(self.mlp(self.norm2(x)), rate, training)

    def attend(self, x: Tensor, layout: Layout) -> Tensor:
        """Attention inside the windows of `layout`; the grid is padded with zeros to fill them."""
        _, frames, rows, columns, _ = x.shape
        grid = padded((frames, rows, columns), layout.window)
        x = F.pad(x, (0, 0, 0, grid[2] - columns, 0, grid[1] - rows, 0, grid[0] - frames))
        x = x.roll([-step for step in layout.shift], (1, 2, 3))
        x = from_windows(self.attn(to_windows(x, layout.window), layout), grid, layout.window)
        x = x.roll(layout.shift, (1, 2, 3))
        return x[:, :frames, :rows, :columns]


class PatchMerging(nn.Module):
    """(B, T, H, W, C) to (B, T, H/2, W/2, 2C): four neighbours in a row, normed, projected."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(neighbours(x)))  # type: ignore[no-any-return]


def neighbours(x: Tensor) -> Tensor:
    """(B, T, H, W, C) to (B, T, H/2, W/2, 4C): four neighbours in a row, zeros beyond an edge."""
    x = F.pad(x, (0, 0, 0, x.shape[3] % 2, 0, x.shape[2] % 2))
    parts = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    return torch.cat(parts, -1)


class Stage(nn.Module):
    """Blocks in turn with plain and shifted windows, then a merging unless it is the last."""

    def __init__(self, config: Config, number: int) -> None:
        super().__init__()
        width = config.width * 2**number
        self.window = config.window
        self.blocks = nn.ModuleList(
            Block(width, config.heads[number], config.window, number < config.gated)
            for _ in range(config.depths[number])
        )
        last = number == len(config.depths) - 1
        self.downsample = None if last else PatchMerging(width)

    def forward(self, x: Tensor) -> Tensor:
        _, frames, rows, columns, _ = x.shape
        layouts = [
            lay_out((frames, rows, columns), self.window, shifted, x.device)
            for shifted in (False, True)
        ]
        for i, block in enumerate(self.blocks):
            x = block(x, layouts[i % 2])
        return x if self.downsample is None else self.downsample(x)


class PatchEmbed(nn.Module):
    """(B, 3, T, H, W) pixels to (B, T/2, H/4, W/4, C) normed tokens, computed in fp32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, width, PATCH, PATCH)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        conv, norm = self.proj, self.norm
        with torch.autocast(x.device.type, enabled=False):
            tokens = F.conv3d(x.float(), conv.weight.float(), _float(conv.bias), PATCH)
            return F.layer_norm(
                tokens.permute(0, 2, 3, 4, 1),
                norm.normalized_shape,
                norm.weight.float(),
                norm.bias.float(),
                norm.eps,
            )


class Swin3D(nn.Module):
    """(B, 3, T, H, W) clips to the (B, T/2, H/32, W/32, feature_width) map of the last stage."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config.width)
        self.layers = nn.ModuleList(Stage(config, i) for i in range(len(config.depths)))
        self.norm = nn.LayerNorm(config.feature_width)

    def forward(self, clips: Tensor) -> Tensor:
        x = self.patch_embed(clips).to(self.norm.weight.dtype)
        for stage in self.layers:
            x = stage(x)
        return self.norm(x)  # type: ignore[no-any-return]


class Head(nn.Module):
    """(..., C) features to a (...) score of each place: two 1 x 1 x 1 convolutions."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc_hid = nn.Conv3d(width, hidden, 1)
        self.fc_last = nn.Conv3d(hidden, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        # one place at a time is a linear layer, and the channels are last here
        x = F.gelu(F.linear(x, self.fc_hid.weight.flatten(1), self.fc_hid.bias))
        return F.linear(x, self.fc_last.weight.flatten(1), self.fc_last.bias).squeeze(-1)


class FastVQA(Backbone):
    """The backbone with its head.

    `forward` takes (B, 3, T, H, W) clips, ImageNet-normalised RGB of 7 x 7 fragments, and returns
    (B, 1) scores, unbounded. T is even, H and W are multiples of 32; the released weights were
    trained on 32 x 224 x 224. On grids smaller than a window the window shrinks, as in the
    released network. Runs in fp32, under autocast, or cast to bf16 as a whole.

    Args:
        config: Shape of the network.
    """

    def __init__(self, config: Config = TINY) -> None:
        super().__init__()
        self.config = config
        self.feature_width = config.feature_width
        self.fragments_backbone = Swin3D(config)
        self.vqa_head = Head(config.feature_width, config.hidden)
        self.reset()

    def reset(self) -> None:
        """Initialise as published; the gate begins without effect, since both tables are alike."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, WindowAttention):
                nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)
                if module.gated:
                    with torch.no_grad():
                        module.fragment_position_bias_table.copy_(
                            module.relative_position_bias_table
                        )
        self.reset_head()

    def reset_head(self) -> None:
        """Initialise the head alone: small scores."""
        for layer in (self.vqa_head.fc_hid, self.vqa_head.fc_last):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def set_drop_path(self, rate: float) -> None:
        """Leave out branches of blocks in training, see `drop_path.set_drop_path`."""
        set_drop_path((b for b in self.modules() if isinstance(b, Block)), rate)

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raises ValueError where clips of (B, C, T, H, W) do not fit."""
        _, channels, frames, height, width = shape
        if channels != 3 or frames % 2 or height % FRAGMENT or width % FRAGMENT:
            raise ValueError(
                f"clips must be (B, 3, T, H, W), T even, H and W multiples of {FRAGMENT}, "
                f"not {tuple(shape)}"
            )

    def styled(self) -> dict[str, tuple[nn.Module, int]]:
        """Its blocks, see `Backbone.styled`."""
        return styled_stages(self.fragments_backbone.layers, self.config.width)

    def feature_map(self, clips: Tensor) -> Tensor:
        """(B, T/2, H/32, W/32, feature_width) features. Raises ValueError for other shapes."""
        self.check_shape(clips.shape)
        return self.fragments_backbone(clips)  # type: ignore[no-any-return]

    def forward(self, clips: Tensor) -> Tensor:
        local = self.vqa_head(self.feature_map(clips))
        return local.flatten(1).mean(1, keepdim=True)  # type: ignore[no-any-return]

    def judge(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and features of (B, 3, T, H, W) clips.

        Returns:
            (B,) means of the local scores, unbounded, and (B, feature_width) means of the last
            feature map, which distillation compares; both fp32.

        Raises:
            ValueError: Clips are of another shape, see `feature_map`.
        """
        features = self.feature_map(clips)
        score = self.vqa_head(features).float().flatten(1).mean(1)
        return score, features.float().flatten(1, 3).mean(1)


def _float(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.float()


def position_index(window: Triple) -> Tensor:
    """(N, N) int64: row of the bias table for each pair of tokens of a window."""
    places = torch.cartesian_prod(*(torch.arange(side) for side in window))  # (N, 3)
    steps = places[:, None] - places[None]
    _, rows, columns = (2 * side - 1 for side in window)
    strides = torch.tensor([rows * columns, columns, 1])
    return ((steps + torch.tensor(window) - 1) * strides).sum(-1)


def padded(grid: Triple, window: Triple) -> Triple:
    """`grid` rounded up to whole windows."""
    t, h, w = (-(-n // side) * side for n, side in zip(grid, window, strict=True))
    return t, h, w


def to_windows(x: Tensor, window: Triple) -> Tensor:
    """(B, T, H, W, C) to (B, windows, N, C)."""
    t, h, w = window
    batch, frames, rows, columns, width = x.shape
    x = x.reshape(batch, frames // t, t, rows // h, h, columns // w, w, width)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6).flatten(1, 3)


def from_windows(x: Tensor, grid: Triple, window: Triple) -> Tensor:
    """The way back from `to_windows`."""
    counts = [n // side for n, side in zip(grid, window, strict=True)]
    x = x.reshape(len(x), *counts, *window, -1)
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).flatten(5, 6).flatten(3, 4).flatten(1, 2)


def lay_out(grid: Triple, window: Triple, shifted: bool, device: torch.device) -> Layout:
    """Windows over a grid of tokens, shifted by half a window if asked.

    Along an axis no longer than the window, the window is the axis and is not shifted.
    """
    t, h, w = (min(n, side) for n, side in zip(grid, window, strict=True))
    dt, dh, dw = (
        side // 2 if shifted and n > side else 0 for n, side in zip(grid, window, strict=True)
    )
    window, shift = (t, h, w), (dt, dh, dw)
    grid = padded(grid, window)
    fragments, regions = [], []
    for n, step in zip(grid, shift, strict=True):
        order = torch.arange(n, device=device)
        fragments.append((order * FRAGMENTS // n).roll(-step))
        # after the shift the last `step` places hold what was first
        regions.append((order >= n - step).long())
    _, rows, columns = torch.meshgrid(*fragments, indexing="ij")
    places = to_windows(torch.stack([rows, columns], -1)[None].float(), window)[0]
    gate = torch.cdist(places, places, p=1)
    mask = None
    if any(shift):
        a, b, c = torch.meshgrid(*regions, indexing="ij")
        region = to_windows((4 * a + 2 * b + c)[None, ..., None], window)[0]
        mask = MASKED * (region != region.mT).float()
    return Layout(window, shift, gate, mask)
