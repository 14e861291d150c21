"""What a student learns: the label of a region, measured or fused, and its auxiliary outputs.

A label is on 0..100, higher is better. The fused label (`panel.soft_minimum`) is VMAF v1 where
the other judges of its panel agree with it, and lower where one of them sees more damage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vqaloop.errors import InputError
from vqaloop.panel.labels import LABELS

if TYPE_CHECKING:
    from vqaloop.panel.soft_minimum import Panel
    from vqaloop.training.shards import Shard

POINTS = ("v1", "v0.6.1", "neg")
"""Labels that are on 0..100 as measured."""
FUSED = "panel"
"""Name of the fused label."""
BASE = "v1"
"""The label that a fused one is where no judge sees more."""
PANEL = ("xpsnr", "ssimulacra2", "fdim", "cvvdp", "neg", "cambi")
"""Members of the usual panel, beside BASE."""
SPANS: dict[str, tuple[float, float]] = {
    "v1": (0.0, 100.0),
    "neg": (0.0, 100.0),
    "v0.6.1": (0.0, 100.0),
    "cambi": (0.0, 20.0),
    "xpsnr": (20.0, 50.0),
    "ssimulacra2": (0.0, 100.0),
    "fdim": (1.0, 5.0),
    "cvvdp": (5.0, 10.0),
}
"""Of each label, the values that an auxiliary output has at 0 and at 1."""
PANEL_KEY = "panel"
"""Key of the fused label in the header of weights."""
MEMBERS = tuple(name for name in SPANS if name != BASE)
"""What a panel may hold beside BASE."""


@dataclass(frozen=True)
class Label:
    """What the score of a student predicts on regions with several measured labels."""

    name: str
    """One of POINTS, or FUSED."""
    panel: Panel | None = None
    """How labels are fused; None where the label is as measured."""

    @property
    def text(self) -> str:
        """As the header of weights has it."""
        if self.panel is None:
            return LABELS[self.name].name
        others = ", ".join(LABELS[member.name].name for member in self.panel.members)
        return f"{LABELS[BASE].name}, lowered by {others}" if others else LABELS[BASE].name

    @property
    def judges(self) -> list[str]:
        """The measured labels that it is made of."""
        if self.panel is None:
            return [self.name]
        return [BASE, *(member.name for member in self.panel.members)]

    def is_in(self, names: Sequence[str]) -> bool:
        """Whether measured labels `names` give it."""
        return (self.name if self.panel is None else BASE) in names

    def values(self, labels: Tensor, names: Sequence[str]) -> Tensor:
        """(...) label of (..., M) measured labels `names`; nan where it was not measured.

        Raises InputError when the one it takes is not among them.
        """
        if self.panel is None:
            return labels[..., _column(self.name, names)]
        fused = self.panel.fuse(labels.double().numpy(), names)
        return torch.from_numpy(np.asarray(fused, np.float32))

    def of_frames(self, shard: Shard) -> Tensor:
        """(E, R) label of the whole frames at the place of each region of a shard.

        Some members of a panel are measured on regions alone. What those take off a region's
        label is taken off that of its frames, since its place was drawn at random.
        """
        regions, frames = measured(shard)
        label = self.values(frames, shard.labels)
        if self.panel is None:
            return label
        alike = torch.where(frames.isnan(), torch.nan, regions)
        more = self.values(regions, shard.labels) - self.values(alike, shard.labels)
        return (label + more).clamp(0, 100)


def measured(shard: Shard) -> tuple[Tensor, Tensor]:
    """(E, R, M) labels of regions and of frames. Raises InputError for a shard without."""
    if shard.region_labels is None or shard.frame_labels is None:
        raise InputError(f"{shard.name} has no measured labels; make it with `vqaloop corpus`")
    return shard.region_labels, shard.frame_labels


def label_of(name: str, members: Sequence[str], shards: Sequence[Shard]) -> Label:
    """A label by its name; a fused one is fitted to the plain encodes of some shards.

    Args:
        name: One of POINTS, or FUSED.
        members: Of the panel, beside BASE.
        shards: Those trained on, with the same labels.

    Raises:
        InputError: The shards lack a label, or too little of it was measured to fit a panel.
    """
    if name != FUSED:
        return Label(name)
    from vqaloop.panel.soft_minimum import fit

    for member in (BASE, *members):
        _column(member, shards[0].labels)
    labels = torch.cat([measured(shard)[0].flatten(0, 1) for shard in shards])
    plain = torch.cat([(~s.attacked).repeat_interleave(len(s.places)) for s in shards])
    return Label(FUSED, fit(labels.numpy(), shards[0].labels, plain.numpy(), members))


def label_of_weights(about: Mapping[str, str], name: str) -> Label | None:
    """What weights were fitted to, by their header; None for opinions and other labels.

    Raises InputError for a fused label that is damaged.
    """
    if PANEL_KEY in about:
        from vqaloop.panel.soft_minimum import Panel

        return Label(FUSED, Panel.from_json(about[PANEL_KEY], name))
    known = {LABELS[key].name: key for key in POINTS}
    text = about.get("label", "")
    return Label(known[text]) if text in known else None


def with_targets(shard: Shard, label: Label, auxiliary: Sequence[str]) -> Shard:
    """The shard with what a student answers in place of its labels.

    Its (E, R, 1 + A) labels are the score's and those of the auxiliary outputs, all of about
    0..1. Raises InputError when one of them was not measured.
    """
    regions, frames = measured(shard)
    columns = [_column(name, shard.labels) for name in auxiliary]
    low, high = torch.tensor([SPANS[name] for name in auxiliary]).reshape(-1, 2).T

    def joined(label: Tensor, labels: Tensor) -> Tensor:
        return torch.cat([label[..., None] / 100, (labels[..., columns] - low) / (high - low)], -1)

    return replace(
        shard,
        labels=(label.name, *auxiliary),
        region_labels=joined(label.values(regions, shard.labels), regions),
        frame_labels=joined(label.of_frames(shard), frames),
    )


def _column(name: str, names: Sequence[str]) -> int:
    if name not in names:
        raise InputError(
            f"the corpus has no label {name!r}, only {', '.join(names)}; make it anew with "
            "`vqaloop corpus`, or take another label in the recipe"
        )
    return names.index(name)
