"""Structured pruning: a smaller student from a larger one of its family, before distillation.

By magnitude (Li et al., arXiv 1608.08710, here on transformers): the channels, heads and units of
largest weight norm are kept; blocks are taken at even distances.
"""

import torch
from torch import Tensor

from vqaloop.errors import InputError
from vqaloop.models.head_config import HeadConfig
from vqaloop.models.internvideo2 import Config, InternVideo2
from vqaloop.models.rankdvqa import Config as Pyramid
from vqaloop.models.rankdvqa import RankDVQA
from vqaloop.models.student import Student

STACKED = (
    "anchored.source_energy.weight",
    "anchored.compare_energy.weight",
    "alone.energy.weight",
)
"""Layers whose input is several energies of each channel, one after the other."""


def prune(larger: Student, smaller: Student) -> Student:
    """Fill `smaller` with the weights of `larger` that have the largest norms.

    Args:
        larger: The trained student; with token heads of the same kind if `smaller` has them.
        smaller: Its weights are overwritten.

    Returns:
        `smaller`.

    Raises:
        InputError: They are no two sizes of one family.
    """
    keep = _keep(larger, smaller)
    if smaller.alone is not None and larger.alone is None:
        raise InputError("a student with token heads cannot be cut out of one without")
    if smaller.alone is not None and _of_heads(larger.config) != _of_heads(smaller.config):
        raise InputError(
            "a student with other token heads cannot be cut out of this one: their outputs or "
            "inputs differ; give it the same configuration of heads"
        )
    taken, result = larger.state_dict(), {}
    for name, value in smaller.state_dict().items():
        source = taken[keep.name(name)]
        for axis, index in enumerate(keep.axes(name)):
            if index is not None:
                source = source.index_select(axis, index)
        if source.shape != value.shape:
            raise InputError(
                f"{name} cannot be cut: {tuple(source.shape)} to {tuple(value.shape)}"
            )
        result[name] = source.clone()
    smaller.load_state_dict(result)
    return smaller


def _keep(larger: Student, smaller: Student) -> "_Keep | _KeepPyramid":
    """What is kept of the larger student. Raises InputError for two of different families."""
    big, small, values = larger.backbone, smaller.backbone, larger.state_dict()
    if isinstance(big, InternVideo2) and isinstance(small, InternVideo2):
        one, other = big.config, small.config
        sizes = ((c.width, c.depth, c.mlp_width) for c in (one, other))
        if _fixed(one) == _fixed(other) and all(x >= y for x, y in zip(*sizes, strict=True)):
            return _Keep(values, one, other)
        raise InputError(f"a model of {other} cannot be cut out of one of {one}")
    if isinstance(big, RankDVQA) and isinstance(small, RankDVQA):
        wide, narrow = big.config, small.config
        alike = (wide.heads, wide.frames, len(wide.channels)) == (
            narrow.heads, narrow.frames, len(narrow.channels),
        )  # fmt: skip
        pairs = zip((wide.width, *wide.channels), (narrow.width, *narrow.channels), strict=False)
        if alike and all(x >= y for x, y in pairs):
            return _KeepPyramid(values, wide, narrow)
        raise InputError(f"a model of {narrow} cannot be cut out of one of {wide}")
    raise InputError(
        "only students of one family can be pruned, of InternVideo2 or of RankDVQA; leave `start` "
        "out, or name weights of the recipe's model"
    )


def _fixed(config: Config) -> tuple[int, ...]:
    """Sizes that pruning does not change: input, patches, heads' width, pooling."""
    head_width = config.width // config.heads
    return (
        config.frames, config.size, config.patch, config.pool_heads, config.pooled_width,
        config.outputs, head_width,
    )  # fmt: skip


def _of_heads(config: HeadConfig) -> tuple[object, ...]:
    """What the heads' weights depend on."""
    return config.outputs, config.change, config.worst, config.canvas, config.bits


class _Keep:
    """Which channels, heads and units of the larger model are kept."""

    def __init__(self, values: dict[str, Tensor], one: Config, other: Config) -> None:
        self.one, self.other, self.values = one, other, values
        self.blocks = torch.linspace(0, one.depth - 1, other.depth).round().int().tolist()
        self.width = _best(_channel_weight(values, one), other.width)
        self.heads, self.hidden = {}, {}
        for block in self.blocks:
            at = f"backbone.blocks.{block}."
            head_width = one.width // one.heads
            # a head counts by the weights that read its output
            spent = values[at + "attn.proj.weight"].square().sum(0)
            heads = _best(spent.view(one.heads, -1).sum(1), other.heads)
            self.heads[block] = (heads[:, None] * head_width + torch.arange(head_width)).flatten()
            # a hidden unit by the product of the weights into it and out of it
            units = values[at + "mlp.fc2.weight"].norm(dim=0)
            self.hidden[block] = _best(
                units * values[at + "mlp.fc1.weight"].norm(dim=1), other.mlp_width
            )
        # pooling keeps its number of heads, so each head gives up as many channels
        each, wanted = one.width // one.pool_heads, other.width // other.pool_heads
        inner = values["backbone.clip_projector.cross_attn.v.weight"].norm(dim=1)
        self.pool = torch.cat(
            [_best(inner[i : i + each], wanted) + i for i in range(0, one.width, each)]
        )

    def name(self, name: str) -> str:
        """The parameter of the larger model that one of the smaller is cut from."""
        if ".blocks." not in name:
            return name
        before, _, after = name.partition(".blocks.")
        number, _, rest = after.partition(".")
        return f"{before}.blocks.{self.blocks[int(number)]}.{rest}"

    def axes(self, name: str) -> list[Tensor | None]:
        """Indices to keep along each axis of a parameter of the smaller model."""
        part = name.removeprefix("backbone.")
        if part.startswith("blocks."):
            block = self.blocks[int(part.split(".")[1])]
            heads, rest = self.heads[block], part.split(".", 2)[2]
            # queries, keys and values are stacked in one matrix
            inner = torch.cat([heads + i * self.one.width for i in range(3)])
            axes: dict[str, list[Tensor | None]] = {
                "attn.qkv.weight": [inner, self.width],
                "attn.q_norm.weight": [heads],
                "attn.k_norm.weight": [heads],
                "attn.proj.weight": [self.width, heads],
                "mlp.fc1.weight": [self.hidden[block], self.width],
                "mlp.fc1.bias": [self.hidden[block]],
                "mlp.fc2.weight": [self.width, self.hidden[block]],
            }
            return axes.get(rest, [self.width])
        if part in ("cls_token", "pos_embed"):
            return [None, None, self.width]
        if part.startswith("patch_embed.") or part.startswith("clip_projector.norm"):
            return [self.width]
        if part.startswith("clip_projector."):
            rest = part.removeprefix("clip_projector.cross_attn.")
            if rest.startswith("proj."):
                return [None, self.pool] if rest == "proj.weight" else []
            return [self.pool, self.width] if "weight" in rest else [self.pool]
        if part.startswith("anchored.project.") and part.endswith((".0.weight", ".0.bias")):
            return [self.width]
        if part.startswith("anchored.project.") and part.endswith("weight"):
            return [None, self.width]
        if part in STACKED:
            inputs = range(0, self.values[part].shape[1], self.one.width)
            return [None, torch.cat([self.width + first for first in inputs])]
        return []


class _KeepPyramid:
    """Which channels of a RankDVQA are kept: of its levels, and of each level's Swin block."""

    def __init__(self, values: dict[str, Tensor], one: Pyramid, other: Pyramid) -> None:
        self.one, self.values = one, values
        self.outer = [torch.arange(3)]
        """Of the pictures, then of each level."""
        self.inner: list[Tensor] = []
        """Between the two convolutions of a level."""
        for level, count in enumerate(other.channels):
            first, second = (values[f"backbone.levels.{level}.{i}.weight"] for i in (0, 2))
            # a channel inside by the product of the weights into it and out of it
            reads = second.transpose(0, 1).flatten(1).norm(dim=1)
            self.inner.append(_best(reads * first.flatten(1).norm(dim=1), count))
            self.outer.append(_best(second.flatten(1).norm(dim=1), count))
        self.wide: list[Tensor] = []
        self.within: list[Tensor] = []
        self.hidden: list[Tensor] = []
        each, wanted = one.width // one.heads, other.width // other.heads
        for level in range(len(other.channels) - 1):
            at = f"backbone.compared.{level}."
            first = values[at + "conv_first.weight"].flatten(1).norm(dim=1)
            self.wide.append(_best(first, other.width))
            # heads keep their number, so each gives up as many channels
            spent = values[at + "attn.proj.weight"].norm(dim=0)
            parts = range(0, one.width, each)
            self.within.append(torch.cat([_best(spent[i : i + each], wanted) + i for i in parts]))
            units = values[at + "fc2.weight"].norm(dim=0) * values[at + "fc1.weight"].norm(dim=1)
            self.hidden.append(_best(units, 2 * other.width))

    def name(self, name: str) -> str:
        """The same: no level is left out."""
        return name

    def axes(self, name: str) -> list[Tensor | None]:
        """Indices to keep along each axis of a parameter of the smaller model."""
        kind, *rest = name.removeprefix("backbone.").split(".")
        if kind == "levels":
            level, second = int(rest[0]), rest[1] == "2"
            inner, after = self.inner[level], self.outer[level + 1]
            both = (after, inner) if second else (inner, self.outer[level])
            return [*both] if rest[2] == "weight" else [both[0]]
        if kind == "compared":
            return self._of_block(int(rest[0]), ".".join(rest[1:]))
        if kind == "heads":
            return [None, self.wide[int(rest[0])]]
        if name.startswith("anchored.project."):
            # of the third and fourth level
            kept = self.outer[int(rest[1]) + 3]
            if rest[2] == "0":
                return [kept]
            return [None, kept] if rest[3] == "weight" else []
        if name == "anchored.compare.weight":
            return [None, self._compared()]
        return []

    def _of_block(self, level: int, part: str) -> list[Tensor | None]:
        wide, within, hidden = self.wide[level], self.within[level], self.hidden[level]
        if part == "conv_first.weight":
            # frame by frame: the source's channels, the clip's, the differences'
            channels = self.one.channels[level]
            starts = range(0, 3 * self.one.frames * channels, channels)
            return [wide, torch.cat([self.outer[level + 1] + start for start in starts])]
        stacked = torch.cat([within + i * self.one.width for i in range(3)])
        axes: dict[str, list[Tensor | None]] = {
            "attn.qkv.weight": [stacked, wide],
            "attn.qkv.bias": [stacked],
            "attn.proj.weight": [wide, within],
            "fc1.weight": [hidden, wide],
            "fc1.bias": [hidden],
            "fc2.weight": [wide, hidden],
            "conv_after_body.weight": [wide, wide],
        }
        if part.startswith("attn.relative"):
            return []
        return axes.get(part, [wide])

    def _compared(self) -> Tensor:
        """Inputs of the anchored head: its own, then each level's block and distance."""
        width = self.one.width
        total = self.values["anchored.compare.weight"].shape[1]
        own = total - len(self.wide) * (width + 1)
        kept = [torch.arange(own)]
        for level, wide in enumerate(self.wide):
            first = own + level * (width + 1)
            kept += [wide + first, torch.tensor([first + width])]
        return torch.cat(kept)


def _best(weight: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest, ascending."""
    return weight.topk(count).indices.sort().values


def _channel_weight(values: dict[str, Tensor], config: Config) -> Tensor:
    """(D,) how much weight reads or writes each channel of the residual stream.

    Channels of the patch embedding that the heads read as energies count with what reads them.
    """
    total = torch.zeros(config.width)
    for name, value in values.items():
        if name.endswith(("attn.qkv.weight", "mlp.fc1.weight")):
            total += value.float().square().sum(0)
        elif name.endswith(("attn.proj.weight", "mlp.fc2.weight")) and ".blocks." in name:
            total += value.float().square().sum(1)
        elif name in ("anchored.compare_energy.weight", "alone.energy.weight"):
            total += value.float().square().sum(0).view(-1, config.width).sum(0)
    return total
