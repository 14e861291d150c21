"""RankDVQA's network of patches, PQANet: a pyramid of features, compared with a source's.

Feng, Danier, Zhang & Bull, "RankDVQA: Deep VQA based on Ranking-inspired Hybrid Training", arXiv
2202.08595, and "RankDVQA-mini: Knowledge Distillation-Driven Deep Video Quality Assessment", arXiv
2312.08864. Of each level of the pyramid, unit-normalised features of a clip, of its source, and
their absolute difference, all frames side by side, pass one Swin block; the level's distance is a
1 x 1 convolution of that, and the sum of the levels' means that of the clip.

Pooling over space and time (the paper's STANet) is that of the heads of `Student`, which weigh
each place by what is seen there and take the outputs of the Swin blocks besides the distances.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqaloop.models.backbone import GRID, Seen, TokenBackbone, check_clips, on_grid
from vqaloop.models.fastvqa import WindowAttention, from_windows, lay_out, to_windows

SLOPE = 0.1
"""Of the leaky ReLUs."""
WINDOW = 4
"""Rows and columns of features that attend to each other."""
LEAST_ENERGY = 1e-6
"""Added to the squared norm of features, so that those of a flat area have a gradient."""
LEAST_SIDE = 80
"""Pixels a side of a clip: the features of the fifth level can then be reflected at the edges."""


@dataclass(frozen=True)
class Config:
    """Shape of the network."""

    channels: tuple[int, ...] = (16, 32, 64, 96, 128, 192)
    """Of the levels of the pyramid, each half the size of the one before. The last is in the
    pooled feature alone: it is too small for the Swin blocks."""
    width: int = 32
    """Channels of the Swin blocks."""
    heads: int = 2
    """Attention heads."""
    frames: int = 12
    """Frames that the first convolution of a Swin block takes. In a clip of fewer, a divisor, each
    stands for several; their kernels are summed, which is the same."""


FULL = Config()
"""The paper's: 4,594,938 parameters."""
MINI = Config((5, 10, 20, 30, 40, 60), width=10)
"""449,830 parameters, 9.8 % of FULL's; the paper's RankDVQA-mini has less than 10 %."""


class Difference(nn.Module):
    """(B, T, 3C, h, w) features of clip, source and difference to (B, width, h, w)."""

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__()
        width, self.frames = config.width, config.frames
        self.conv_first = nn.Conv2d(config.frames * 3 * channels, width, 3, padding=1)
        self.attn = WindowAttention(width, config.heads, (1, WINDOW, WINDOW), gated=False)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)
        self.conv_after_body = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        frames, height, width = x.shape[1], x.shape[-2], x.shape[-1]
        pad = -width % WINDOW, -height % WINDOW
        x = F.pad(x.flatten(1, 2), (0, pad[0], 0, pad[1]), "reflect")
        weight: Tensor = self.conv_first.weight
        if frames != self.frames:
            shape = frames, self.frames // frames, -1
            weight = torch.unflatten(weight, 1, shape).sum(2).flatten(1, 2)
        x = F.conv2d(x, weight, self.conv_first.bias, padding=1)
        x = x.permute(0, 2, 3, 1)[:, None]  # (B, 1, h, w, C)
        grid = (1, x.shape[2], x.shape[3])
        layout = lay_out(grid, (1, WINDOW, WINDOW), False, x.device)
        parts = self.attn(to_windows(x, layout.window), layout)
        x = x + from_windows(parts, grid, layout.window)
        x = x + self.fc2(F.gelu(self.fc1(x)))
        x = self.conv_after_body(x[:, 0].permute(0, 3, 1, 2))
        return x[..., :height, :width]


class RankDVQA(TokenBackbone):
    """The network; it compares clips with those of their source, and has no score without.

    `forward` takes (B, 3, T, H, W) clips and their references, ImageNet-normalised RGB, H and W
    multiples of 16 from 80 on and T a divisor of 12. It returns (B, 1) distances, unbounded: the
    more, the worse. Runs in fp32, under autocast, or cast to bf16 as a whole.

    Args:
        config: Shape of the network.
    """

    def __init__(self, config: Config = FULL) -> None:
        super().__init__()
        self.config = config
        inputs = (3, *config.channels[:-1])
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, stride=2, padding=1),
                nn.LeakyReLU(SLOPE),
                nn.Conv2d(after, after, 3, padding=1),
                nn.LeakyReLU(SLOPE),
            )
            for before, after in zip(inputs, config.channels, strict=True)
        )
        self.outputs = nn.ModuleList(nn.Identity() for _ in config.channels)
        compared = config.channels[:-1]
        self.compared = nn.ModuleList(Difference(config, channels) for channels in compared)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Dropout(0.5), nn.Conv2d(config.width, 1, 1, bias=False))
            for _ in compared
        )
        self.feature_width = sum(config.channels)
        self.taps, self.tap_widths = (3, 4), config.channels[2:4]
        self.difference_width = len(compared) * (config.width + 1)
        self.reset()

    def reset(self) -> None:
        """Initialise as published."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
            elif isinstance(module, WindowAttention):
                nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def set_drop_path(self, rate: float) -> None:
        """Nothing: one block follows another nowhere."""

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raises ValueError where clips of (B, C, T, H, W) do not fit."""
        check_clips(shape, GRID, self.config.frames, LEAST_SIDE)

    def styled(self) -> dict[str, tuple[nn.Module, int]]:
        """Outputs of the levels that are compared, see `Backbone.styled`."""
        pairs = zip(self.outputs[:-1], self.config.channels, strict=False)
        return {f"levels.{i}": pair for i, pair in enumerate(pairs)}

    def maps(self, clips: Tensor, levels: int) -> list[Tensor]:
        """(B, T, h, w, C) unit-normalised features of the first levels. Raises ValueError.

        In fp32: what a codec changed is a small difference of large values.
        """
        self.check_shape(clips.shape)
        batch = len(clips)
        x = clips.transpose(1, 2).flatten(0, 1).to(next(self.parameters()).dtype)
        found = []
        with torch.autocast(clips.device.type, enabled=False):
            for level, output in zip(self.levels[:levels], self.outputs, strict=False):
                # the input of the network is scaled as that of LPIPS, which is ImageNet's
                x = level(x).permute(0, 2, 3, 1).unflatten(0, (batch, -1))
                x = output(x)
                x32 = x.float()
                found.append(x32 * (x32.square().sum(-1, keepdim=True) + LEAST_ENERGY).rsqrt())
                x = x.flatten(0, 1).permute(0, 3, 1, 2)
        return found

    def see(self, clips: Tensor, pooled: bool = True) -> Seen:
        """See `TokenBackbone.see`; its maps are those of the levels that are compared."""
        compared = len(self.compared)
        maps = self.maps(clips, compared + pooled)
        means = torch.cat([x.mean((1, 2, 3)) for x in maps], -1)
        rows, columns = maps[3].shape[2:4]
        deep = [on_grid(maps[tap - 1], rows, columns) for tap in self.taps]
        return Seen(means, deep, maps=tuple(maps[:compared]))

    def tokens(
        self, clips: Tensor, taps: tuple[int, ...] = (), pooled: bool = True
    ) -> tuple[Tensor, list[Tensor]]:
        """(B, feature_width) means of the levels, and (B, T·h·w, C) features of levels 3 and 4."""
        seen = self.see(clips, pooled)
        return seen.whole, [seen.deep[self.taps.index(tap)] for tap in taps]

    def levels_compared(
        self, source: Sequence[Tensor], maps: Sequence[Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """Of each level the (B, width, h, w) output of its block and the (B, 1, h, w) distance."""
        found = []
        for ours, theirs, block, head in zip(maps, source, self.compared, self.heads, strict=True):
            joined = torch.cat([theirs, ours, (theirs - ours).abs()], -1).permute(0, 1, 4, 2, 3)
            seen = block(joined.to(next(self.parameters()).dtype))
            found.append((seen, head(seen)))
        return found

    def differences(self, source: Sequence[Tensor], maps: Sequence[Tensor]) -> Tensor:
        """(B, N, difference_width) what the Swin blocks say of a clip and its source.

        All frames are compared at once, so each place of a frame has what the others have there.
        """
        frames, rows, columns = maps[3].shape[1:4]
        parts = []
        for pair in self.levels_compared(source, maps):
            x = torch.cat(pair, 1)
            if x.shape[-1] < columns or x.shape[-2] < rows:
                x = F.interpolate(x, (rows, columns), mode="bilinear", align_corners=False)
            parts.append(on_grid(x.permute(0, 2, 3, 1)[:, None], rows, columns))
        return torch.cat(parts, -1).repeat(1, frames, 1)

    def features(self, tokens: Tensor) -> Tensor:
        """The means themselves."""
        return tokens

    def answer(self, feature: Tensor) -> Tensor:
        """(B, 1) zeros: without a source the statistics of the heads alone say how good it is."""
        return feature.new_zeros(len(feature), 1)

    def judge(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Raises ValueError: the network compares."""
        raise ValueError("RankDVQA compares clips with their source, and has no score without")

    def forward(self, clips: Tensor, reference: Tensor) -> Tensor:
        source, maps = (self.maps(x, len(self.compared)) for x in (reference, clips))
        levels = self.levels_compared(source, maps)
        return torch.stack([q.mean((2, 3)) for _, q in levels]).sum(0)
