"""One training step: the batch, its augmentation, the forward pass of student and teacher.

A step takes a few scenes; of each, the same crops of several encodes and of the source, whose
features are computed once. Labels and losses are fp32 throughout.
"""

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqaloop.errors import InputError
from vqaloop.media.colour import to_clips
from vqaloop.models.device import autocast
from vqaloop.models.student import OUTPUTS, Anchor, Student, StudentOutput
from vqaloop.training.losses import distillation_losses, label_losses
from vqaloop.training.recipe import Losses, Recipe
from vqaloop.training.shards import Shard
from vqaloop.training.windows import Place, Window, cut_window, draw_place

FEATURE_SCALES = (100.0, 1.0, 1.0, 1.0, 1.0, 1.0, 20.0)
"""Divisors of the labels, in the order of `OUTPUTS`, so that all have about the same spread."""

assert len(FEATURE_SCALES) == len(OUTPUTS)


@dataclass(frozen=True)
class Batch:
    """Clips of one step: G groups (scene × crop) of E encodes, those of a scene together."""

    distorted: Tensor
    """(G·E, T, rows, S) uint8, encodes of a group together."""
    scores: Tensor
    """(G, E, K) labels of each crop, scaled: VMAF and its features, or one opinion score."""
    pooled: Tensor
    """(scenes, E, K) labels of the crops taken together."""
    reference: Tensor | None = None
    """(G, T, rows, S) uint8."""
    teacher_view: Tensor | None = None
    """(G·E, T', rows', S') uint8: `distorted` in the teacher's view, where that is another."""

    def to(self, device: torch.device) -> "Batch":
        moved = {
            field.name: value.to(device)
            for field in fields(self)
            if (value := getattr(self, field.name)) is not None
        }
        return Batch(**moved)


def draw(
    shards: Sequence[Shard],
    recipe: Recipe,
    rng: np.random.Generator,
    teacher_view: Sequence[Shard] | None = None,
) -> Batch:
    """One batch; scenes with more encodes and crops come up more often.

    `teacher_view` are the same shards in the teacher's view.
    """
    # so that every clip of the corpus is drawn about as often
    chance = np.array([len(s.encodes) * s.distorted.shape[1] for s in shards], float)
    chosen = rng.choice(len(shards), recipe.scenes, replace=False, p=chance / chance.sum())
    window = Window(recipe.frames, recipe.crop)
    taught = recipe.teacher
    wide = Window(taught.frames, taught.crop) if taught is not None else Window()
    parts: dict[str, list[Tensor]] = {field.name: [] for field in fields(Batch)}
    for i in chosen:
        shard = shards[i]
        encode_count, crop_count = shard.distorted.shape[:2]
        crops, encodes = (
            torch.from_numpy(rng.choice(count, wanted, count < wanted))
            for count, wanted in ((crop_count, recipe.crops), (encode_count, recipe.encodes))
        )

        def pick(tensor: Tensor, encodes: Tensor = encodes, crops: Tensor = crops) -> Tensor:
            return tensor[encodes][:, crops].transpose(0, 1)  # (crops, encodes, ...)

        # no number is drawn where clips are taken whole
        moved = (shard, window)
        if not window and teacher_view is not None:
            moved = (teacher_view[i], wide)
        places = [draw_place(*moved, rng) for _ in crops] if moved[1] else []
        distorted = windows(pick(shard.distorted), shard, window, places)
        parts["distorted"].append(distorted.flatten(0, 1))
        if shard.reference is not None:
            parts["reference"].append(windows(shard.reference[crops], shard, window, places))
        if teacher_view is not None:
            other = teacher_view[i]
            seen = windows(pick(other.distorted), other, wide, places)
            parts["teacher_view"].append(seen.flatten(0, 1))
        if shard.region_labels is not None and shard.frame_labels is not None:
            scales = torch.tensor(FEATURE_SCALES)
            parts["scores"].append(pick(shard.region_labels) / scales)
            parts["pooled"].append(pick(shard.frame_labels).mean(0) / scales)
        else:
            # the opinion score of the whole video stands for each of its crops
            score = shard.scores[encodes, None] / 100
            parts["scores"].append(score.expand(recipe.crops, -1, -1))
            parts["pooled"].append(score)
    return Batch(
        torch.cat(parts["distorted"]),
        torch.cat(parts["scores"]),
        torch.stack(parts["pooled"]),
        torch.cat(parts["reference"]) if len(parts["reference"]) == len(chosen) else None,
        torch.cat(parts["teacher_view"]) if teacher_view is not None else None,
    )


def windows(clips: Tensor, shard: Shard, window: Window, places: Sequence[Place]) -> Tensor:
    """(crops, ...) clips of a shard, of each crop the window at its place."""
    if not window:
        return clips
    pairs = zip(clips, places, strict=True)
    return torch.stack([cut_window(clip, shard, window, place) for clip, place in pairs])


def augmented(clips: Tensor, kind: str, seed: int) -> Tensor:
    """(B, 3, T, H, W) clips, all changed in the one way that `kind` and `seed` give.

    Args:
        clips: ImageNet-normalised RGB.
        kind: turns: one of the eight flips and 90-degree rotations, to which VMAF is nearly
            invariant. mirror: horizontal flip or none. colour: as in the paper's code, a random
            resized crop, horizontal flip, brightness and contrast jitter and random erasing;
            they change quality itself, which is what a comparison with it shows.
        seed: Of the choice; one for clips that must stay aligned.
    """
    if kind in ("turns", "mirror"):
        # three bits: horizontal flip, vertical flip, transposition
        turn = seed % (8 if kind == "turns" else 2)
        if turn & 1:
            clips = clips.flip(-1)
        if turn & 2:
            clips = clips.flip(-2)
        return clips.transpose(-1, -2) if turn & 4 else clips
    if kind == "colour":
        rng = np.random.default_rng(seed)
        height, width = clips.shape[-2:]
        part = float(np.sqrt(rng.uniform(0.08, 1.0)))  # of each side, for a share of the area
        h, w = max(2, int(height * part)), max(2, int(width * part))
        top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
        taken = clips[..., top : top + h, left : left + w].transpose(1, 2).flatten(0, 1)
        taken = F.interpolate(taken, (height, width), mode="bicubic", align_corners=False)
        clips = torch.unflatten(taken, 0, (clips.shape[0], -1)).transpose(1, 2)
        clips = clips * float(rng.uniform(0.6, 1.4)) + float(rng.uniform(-0.4, 0.4))
        if rng.random() < 0.5:
            clips = clips.flip(-1)
        if rng.random() < 0.25:
            h, w = height // 4, width // 4
            top, left = int(rng.integers(height - h)), int(rng.integers(width - w))
            clips = clips.clone()
            clips[..., top : top + h, left : left + w] = 0
    return clips


def repeat_anchor(anchor: Anchor, times: int) -> Anchor:
    """The anchor of B references as that of B·times clips, `times` of each together."""
    return Anchor(
        anchor.embedding.repeat_interleave(times, 0),
        tuple(x.repeat_interleave(times, 0) for x in anchor.deep),
        anchor.context.repeat_interleave(times, 0),
        anchor.weights.repeat_interleave(times, 0),
    )


def freeze(teacher: Student, kind: str) -> None:
    """Freeze a teacher but for the parameters that `kind` (see `recipe.Teacher`) trains.

    paper: "only the last ViT block and head", as arXiv 2502.19026 says. as_released: as its
    authors' code has it, where every parameter outside the blocks trains as well.
    """
    teacher.requires_grad_(False)
    if kind == "all":
        return
    backbone = teacher.backbone
    names = [name for name, _ in backbone.named_parameters()]
    outside = [name for name in names if "blocks." not in name]
    blocks = [name.rpartition("blocks.") for name in names if "blocks." in name]
    last = "{}blocks.{}.".format(blocks[-1][0], blocks[-1][2].partition(".")[0])
    head = ("head.", "vqa_head.")
    training = outside if kind == "as_released" else [n for n in outside if n.startswith(head)]
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(name in training or name.startswith(last))


class TrainingModel(nn.Module):
    """Student and teacher as the one module that the engine trains: a batch to its losses."""

    def __init__(self, student: Student, teacher: Student | None, recipe: Recipe) -> None:
        super().__init__()
        self.student, self.teacher, self.recipe = student, teacher, recipe
        taught = recipe.teacher
        self.drops = bool(recipe.drop_path or (taught is not None and taught.drop_path))
        self.bridge: nn.Module = nn.Identity()
        if teacher is not None:
            widths = student.backbone.feature_width, teacher.backbone.feature_width
            if widths[0] != widths[1]:
                # all of the InternVideo2 family share 768; another family is brought to it
                self.bridge = nn.Linear(*widths)

    def forward(self, batch: Batch, seed: int) -> dict[str, Tensor]:
        """Losses that have a weight, by name and unweighted.

        The networks run in bf16 where `device.autocast` chooses it, scores and losses in fp32
        even under another autocast.

        Args:
            batch: On the device of the networks.
            seed: Of the augmentation, which is one for all clips of the batch, and of drop path.

        Raises:
            InputError: Batch or teacher lack what a loss needs, or clips do not fit the networks.
        """
        if self.drops:
            torch.manual_seed(seed)  # a resumed run drops what a straight one would
        with torch.autocast(batch.distorted.device.type, enabled=False):
            losses = self._losses(batch, seed)
        weights = vars(self.recipe.loss).items()
        lacking = [name for name, weight in weights if weight and name not in losses]
        if lacking:
            raise InputError(
                f"{', '.join(lacking)} of the loss cannot be computed from this corpus: crop, "
                "pooled and ordered need the source of every scene, features VMAF's labels, "
                "levels a teacher with token heads"
            )
        return losses

    def _losses(self, batch: Batch, seed: int) -> dict[str, Tensor]:
        recipe = self.recipe

        def clips_of(planes: Tensor) -> Tensor:
            # one seed for all: an encode must stay aligned with its source
            return augmented(to_clips(planes), recipe.augment, seed)

        clips = clips_of(batch.distorted)
        source = None if batch.reference is None else clips_of(batch.reference)
        look = self._look(self.student, clips, source)
        losses = label_losses(self.student, look, batch.scores, batch.pooled, recipe)
        if self.teacher is not None:
            if batch.teacher_view is not None:
                clips, source = clips_of(batch.teacher_view), None
            trains = any(p.requires_grad for p in self.teacher.parameters())
            with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
                target = self._look(self.teacher, clips, source)
            feature = look.feature
            if isinstance(self.bridge, nn.Linear):  # bf16 under some engines
                feature = self.bridge(feature.to(self.bridge.weight.dtype))
            labels = batch.scores[..., 0].flatten()
            losses |= distillation_losses(
                self.student, look, feature, self.teacher, target, labels, recipe.loss
            )
        return losses

    def _look(self, student: Student, clips: Tensor, source: Tensor | None) -> StudentOutput:
        half: AbstractContextManager[Any] = contextlib.nullcontext()
        if next(student.parameters()).dtype == torch.float32:  # else an engine has cast it
            half = autocast(clips.device)
        needed = anchored_losses(self.recipe.loss) and student.anchored is not None
        try:
            with half:
                anchor = None
                if needed and source is not None:
                    anchor = repeat_anchor(student.anchor(source), self.recipe.encodes)
                return student.look(clips, anchor)
        except ValueError as error:
            raise InputError(
                f"the corpus does not fit {self.recipe.model} or its teacher: {error}"
            ) from error


def anchored_losses(loss: Losses) -> bool:
    """Whether any part needs the anchored head."""
    return any((loss.crop, loss.pooled, loss.ordered, loss.features, loss.answers))
