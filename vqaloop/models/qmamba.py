"""Q-Mamba: a hierarchical state-space model that scans frames window by window.

Guan et al., "Q-Mamba: On First Exploration of Vision Mamba for Image Quality Assessment", arXiv
2406.09546: VMamba (arXiv 2401.10166) with the local scans of LocalMamba (arXiv 2403.09338). The
paper leaves the sizes open and has no code; blocks here are VMamba's second form, with one state a
channel, no gate, and an MLP. Frames are looked at one by one, and their features averaged.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqaloop.models.backbone import GRID, StagedBackbone, on_grid
from vqaloop.models.drop_path import drop_path
from vqaloop.models.fastvqa import PatchMerging
from vqaloop.models.selective_scan import cross_merge, cross_scan, selective_scan
from vqaloop.models.swinv2 import PatchEmbed

SHORTEST_STEP, LONGEST_STEP = 1e-3, 1e-1
"""Between which the scan's steps are initialised."""


@dataclass(frozen=True)
class Config:
    """Shape of the network."""

    width: int
    """Channels of the first stage; each further stage doubles them."""
    depths: tuple[int, ...]
    """Blocks of each stage."""
    mlp_ratio: int
    """Hidden channels of a block's MLP, over its width."""
    patch: int = 4
    """Height and width of a patch; patches span one frame."""
    directions: int = 4
    """In which windows are scanned: 4, or 2 (see `cross_scan`)."""
    states: int = 1
    """States of a channel of the scan."""
    window: int = 7
    """Rows and columns of tokens that are scanned together."""


TINY = Config(96, (2, 2, 8, 2), 4)
MINI = Config(32, (2, 2, 2), 2, patch=8)
"""For CPUs."""
MINI_2WAY = replace(MINI, directions=2)


class LocalScan(nn.Module):
    """Depthwise convolution and selective scans of (B, H, W, C) tokens in several directions."""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.config, self.rank = config, -(-width // 16)
        directions, states = config.directions, config.states
        self.in_proj = nn.Linear(width, width, bias=False)
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.x_proj = nn.Parameter(torch.empty(directions, self.rank + 2 * states, width))
        self.dt_weight = nn.Parameter(torch.empty(directions, width, self.rank))
        self.dt_bias = nn.Parameter(torch.empty(directions, width))
        self.a_logs = nn.Parameter(torch.empty(directions, width, states))
        self.skips = nn.Parameter(torch.empty(directions, width))
        self.norm = nn.LayerNorm(width)
        self.out_proj = nn.Linear(width, width, bias=False)
        self.reset()

    def reset(self) -> None:
        """Initialise as published: slow decays, and steps spread over two decades."""
        with torch.no_grad():
            nn.init.uniform_(self.x_proj, -1, 1).div_(math.sqrt(self.x_proj.shape[-1]))
            nn.init.uniform_(self.dt_weight, -1, 1).div_(math.sqrt(self.rank))
            low, high = math.log(SHORTEST_STEP), math.log(LONGEST_STEP)
            steps = nn.init.uniform_(self.dt_bias, low, high).exp()
            self.dt_bias.copy_(steps + (-(-steps).expm1()).log())  # the inverse of softplus
            self.a_logs.copy_(torch.arange(1.0, self.config.states + 1).log())
            nn.init.ones_(self.skips)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1], x.shape[2]
        window = min(self.config.window, max(height, width))
        x = self.in_proj(x).permute(0, 3, 1, 2)
        x = F.silu(self.conv(x)).permute(0, 2, 3, 1)
        u = cross_scan(x, window, self.config.directions)  # (B, K, L, C)
        parts = torch.einsum("bklc,krc->bklr", u, self.x_proj)
        states = self.config.states
        steps, b, c = torch.split(parts, [self.rank, states, states], -1)
        delta = torch.einsum("bklr,kcr->bklc", steps, self.dt_weight) + self.dt_bias[:, None]
        a = -self.a_logs.float().exp()
        y = selective_scan(u, F.softplus(delta.float()), a, b, c, self.skips)
        y = cross_merge(y, height, width, window).to(self.norm.weight.dtype)
        return self.out_proj(self.norm(y))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm block on (B, T, H, W, C) tokens: scans, then an MLP."""

    drop_path = 0.0

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.scan = LocalScan(width, config)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.mlp_ratio * width)
        self.fc2 = nn.Linear(config.mlp_ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        rate, training = self.drop_path, self.training
        branch = self.scan(self.norm1(x).flatten(0, 1)).unflatten(0, x.shape[:2])
        x = x + drop_path(branch, rate, training)
        return x + drop_path(self.fc2(F.gelu(self.fc1(self.norm2(x)))), rate, training)


class Stage(nn.Module):
    """Blocks, after a merging of patches in all but the first stage."""

    def __init__(self, config: Config, number: int) -> None:
        super().__init__()
        width = config.width << number
        self.downsample = PatchMerging(width // 2) if number else nn.Identity()
        self.blocks = nn.ModuleList(Block(width, config) for _ in range(config.depths[number]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        for block in self.blocks:
            x = block(x)
        return x


class QMamba(StagedBackbone):
    """The stages and a linear head.

    `forward` takes (B, 3, T, H, W) clips, ImageNet-normalised RGB with H and W that are multiples
    of 16, and returns (B, 1) scores, unbounded. Runs in fp32, under autocast, or cast to bf16 as a
    whole; the state of the scans is fp32 in each case.

    Args:
        config: Shape of the network.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.width, stages = config, config.width, len(config.depths)
        widths = [config.width << i for i in range(stages)]
        self.feature_width = widths[-1]
        # where tokens are 8 and 16 pixels apart
        last = (GRID // config.patch).bit_length()
        self.taps, self.tap_widths = (last - 1, last), tuple(widths[last - 2 : last])
        self.patch_embed = PatchEmbed(config.width, config.patch)
        self.stages = nn.ModuleList(Stage(config, i) for i in range(stages))
        self.norm = nn.LayerNorm(widths[-1])
        self.head = nn.Linear(widths[-1], 1)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.reset_head()

    def tokens(
        self, clips: Tensor, taps: tuple[int, ...] = (), pooled: bool = True
    ) -> tuple[Tensor, list[Tensor]]:
        """(B, T·h·w, C) normed tokens of the last stage, and those of some stages.

        Taps are numbers of stages from 1, on a grid of 16 pixels. Raises ValueError.
        """
        self.check_shape(clips.shape)
        rows, columns = (side // GRID for side in clips.shape[-2:])
        x = self.patch_embed(clips).to(self.norm.weight.dtype)
        kept = []
        run = len(self.stages) if pooled else max(taps)
        for number, stage in enumerate(self.stages[:run], 1):
            x = stage(x)
            if number in taps:
                kept.append(on_grid(x, rows, columns))
        return (self.norm(x) if pooled else x).flatten(1, 3), kept

    def features(self, tokens: Tensor) -> Tensor:
        """(B, feature_width): the mean over places and frames."""
        return tokens.mean(1)
