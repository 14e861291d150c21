"""What a student needs of the network that it looks at clips with."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from vqaloop.models.drop_path import set_drop_path

GRID = 16
"""Pixels a side of a place of the heads' grid, for networks without patches of their own there."""


class Prompt(nn.Module):
    """What adapts a frozen student, see `style_prompt.StylePrompt`."""

    basic: int
    """Prompts of a place."""
    of: str
    """SHA-256 of the weights of its student, where that has a file."""

    @abstractmethod
    def answer(self, out: Tensor, head: str) -> Tensor:
        """(..., answers) of a head, "anchored" or "alone", before the sigmoid, adapted."""


class Backbone(nn.Module):
    """A network with a score of its own, without reference."""

    feature_width: int
    """Channels of the pooled feature, which distillation compares."""
    recompute: bool = False
    """Whether activations inside blocks are computed again for the gradient, which InternVideo2
    alone can."""

    @abstractmethod
    def check_shape(self, shape: Sequence[int]) -> None:
        """Raises ValueError where clips of (B, C, T, H, W) do not fit."""

    @abstractmethod
    def judge(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) scores, unbounded, and (B, feature_width) features of clips; both fp32."""

    @abstractmethod
    def set_drop_path(self, rate: float) -> None:
        """Leave out branches of blocks in training, see `drop_path.set_drop_path`."""

    @abstractmethod
    def styled(self) -> dict[str, tuple[nn.Module, int]]:
        """Modules whose input a style prompt may shift (`style_prompt`), with its channels.

        Inputs have the samples first and the channels last; all between is pooled.
        """


@dataclass(frozen=True)
class Seen:
    """What a network sees in B clips."""

    whole: Tensor
    """What the pooled feature is of, where that is asked for."""
    deep: list[Tensor]
    """(B, N, C) tokens at each tap."""
    embedding: Tensor | None = None
    """(B, N, D) patch embedding, fp32, where the network has one that is linear in the pixels."""
    maps: tuple[Tensor, ...] = ()
    """(B, T, h, w, C) features at their own sizes, where it compares those of two clips itself."""


class TokenBackbone(Backbone):
    """One whose tokens the token heads take: T·h·w of a clip, frame by frame, rows first."""

    taps: tuple[int, ...]
    """Depths at which the heads take tokens."""
    tap_widths: tuple[int, ...]
    """Channels of the tokens at each of `taps`."""
    energies: int = 0
    """Channels of the patch embedding, tap 0, where it is linear in the pixels, so that heads take
    its squares; 0: heads embed patches of GRID themselves."""
    difference_width: int = 0
    """Channels of `differences`; 0: the network does not compare clips itself."""

    @abstractmethod
    def tokens(
        self, clips: Tensor, taps: tuple[int, ...] = (), pooled: bool = True
    ) -> tuple[Tensor, list[Tensor]]:
        """What `features` takes of (B, 3, T, H, W) clips, and (B, T·h·w, C) tokens at `taps`.

        Without `pooled` the first is not used, and need not be computed. Raises ValueError for
        clips of another shape.
        """

    @abstractmethod
    def features(self, tokens: Tensor) -> Tensor:
        """(B, feature_width) pooled feature."""

    @abstractmethod
    def answer(self, feature: Tensor) -> Tensor:
        """(B, 1) score of a pooled feature, unbounded."""

    def see(self, clips: Tensor, pooled: bool = True) -> Seen:
        """What the heads take of (B, 3, T, H, W) clips, see `tokens`."""
        if not self.energies:
            return Seen(*self.tokens(clips, self.taps, pooled))
        whole, (embedding, *deep) = self.tokens(clips, (0, *self.taps), pooled)
        return Seen(whole, deep, embedding)

    def differences(self, source: Sequence[Tensor], maps: Sequence[Tensor]) -> Tensor | None:
        """(B, N, difference_width) how the maps of a clip and its source differ."""
        return None

    def judge(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and pooled features, see `Backbone.judge`."""
        feature = self.features(self.tokens(clips)[0])
        return self.answer(feature).float().squeeze(-1), feature.float()


class StagedBackbone(TokenBackbone):
    """One of stages that each halve the size and double the channels, with a linear head.

    A stage has its blocks in `blocks`.
    """

    stages: nn.ModuleList
    width: int
    """Channels of the first stage."""
    head: nn.Linear

    def reset_head(self) -> None:
        """Initialise the head alone: a score near 0 whatever the clip."""
        nn.init.trunc_normal_(self.head.weight, std=0.02 * 0.001)
        nn.init.zeros_(self.head.bias)

    def set_drop_path(self, rate: float) -> None:
        """Leave out branches of blocks in training, see `drop_path.set_drop_path`."""
        set_drop_path((b for b, _ in self.styled().values()), rate)  # type: ignore[misc]

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raises ValueError where clips of (B, C, T, H, W) do not fit."""
        check_clips(shape, GRID)

    def styled(self) -> dict[str, tuple[nn.Module, int]]:
        """Its blocks, see `Backbone.styled`."""
        return styled_stages(self.stages, self.width)

    def answer(self, feature: Tensor) -> Tensor:
        """(B, 1), unbounded."""
        return self.head(feature)  # type: ignore[no-any-return]

    def forward(self, clips: Tensor) -> Tensor:
        return self.answer(self.features(self.tokens(clips)[0]))


def styled_stages(stages: nn.ModuleList, width: int) -> dict[str, tuple[nn.Module, int]]:
    """Blocks of stages that each double the channels, as `Backbone.styled` gives them."""
    return {
        f"{i}.{j}": (block, width << i)
        for i, stage in enumerate(stages)
        for j, block in enumerate(stage.blocks)  # type: ignore[arg-type]
    }


def check_clips(shape: Sequence[int], side: int, frames: int = 0, least: int = 0) -> None:
    """Raises ValueError unless clips are RGB of H and W that are multiples of `side`.

    And, where they are given, at least `least` pixels, and of T frames that divide `frames`.
    """
    _, channels, count, height, width = shape
    wrong = channels != 3 or height % side or width % side or min(height, width) < least
    if wrong or (frames and (count < 1 or frames % count)):
        size = f"H and W multiples of {side}" + f" from {least} on" * bool(least)
        some = f"T a divisor of {frames}, " if frames else ""
        raise ValueError(f"clips must be (B, 3, T, H, W), {some}{size}, not {tuple(shape)}")


def on_grid(x: Tensor, rows: int, columns: int) -> Tensor:
    """(B, T, H, W, C) features, as means over each place of a coarser grid: (B, T·h·w, C)."""
    batch, frames, height, width, channels = x.shape
    if (height, width) != (rows, columns):
        x = x.reshape(
            batch, frames, rows, height // rows, columns, width // columns, channels
        ).mean((3, 5))
    return x.flatten(1, 3)
