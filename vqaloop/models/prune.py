"""Structured pruning: a smaller student from a larger one of its family, before distillation.

By magnitude (Li et al., arXiv 1608.08710, here on transformers): the channels, heads and units of
largest weight norm are kept; blocks are taken at even distances.
"""

import torch
from torch import Tensor

from vqaloop.errors import InputError
from vqaloop.models.head_config import HeadConfig
from vqaloop.models.internvideo2 import Config, InternVideo2
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
    big, small = larger.backbone, smaller.backbone
    if not (isinstance(big, InternVideo2) and isinstance(small, InternVideo2)):
        raise InputError("only students of the InternVideo2 family can be pruned")
    one, other = big.config, small.config
    sizes = ((c.width, c.depth, c.mlp_width) for c in (one, other))
    if _fixed(one) != _fixed(other) or any(x < y for x, y in zip(*sizes, strict=True)):
        raise InputError(f"a model of {other} cannot be cut out of one of {one}")
    if smaller.alone is not None and larger.alone is None:
        raise InputError("a student with token heads cannot be cut out of one without")
    if smaller.alone is not None and _of_heads(larger.config) != _of_heads(smaller.config):
        raise InputError(
            "a student with other token heads cannot be cut out of this one: their outputs or "
            "inputs differ; give it the same configuration of heads"
        )
    taken = larger.state_dict()
    keep = _Keep(taken, one, other)
    result = {}
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
