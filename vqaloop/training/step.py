"""One training step: augmentation, and the forward pass of student and teacher to the losses.

Features of a source are computed once for all its encodes. Labels and losses are fp32 throughout.
"""

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqaloop.errors import InputError
from vqaloop.media.colour import to_clips
from vqaloop.models.device import autocast
from vqaloop.models.student import STATISTICS, Anchor, Student, StudentOutput
from vqaloop.training.batch import Batch
from vqaloop.training.losses import distillation_losses, fdim_loss, label_losses
from vqaloop.training.recipe import Losses, Recipe
from vqaloop.training.shards import FDIM_FEATURES


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
    return anchor.each(lambda values: values.repeat_interleave(times, 0))


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
        self.drops |= any(isinstance(module, nn.Dropout) for module in student.modules())
        self.bridge: nn.Module = nn.Identity()
        if teacher is not None:
            widths = student.backbone.feature_width, teacher.backbone.feature_width
            if widths[0] != widths[1]:
                # all of the InternVideo2 family share 768; another family is brought to it
                self.bridge = nn.Linear(*widths)
        self.fdim: nn.Module = nn.Identity()
        """From what is pooled of a region to FDIM's features; of training alone."""
        if recipe.loss.fdim:
            width = student.backbone.feature_width
            self.fdim = nn.Linear(
                width + STATISTICS * (student.anchored is not None), FDIM_FEATURES
            )

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
                f"{', '.join(lacking)} of the loss cannot be computed from this corpus: region, "
                "pooled, ordered and dense need the source of every scene, auxiliary measured "
                "labels and token heads, fdim FDIM's features, levels a teacher with token heads, "
                "coarse and fine a set of scenes with their bitrates"
            )
        return losses

    def _losses(self, batch: Batch, seed: int) -> dict[str, Tensor]:
        recipe = self.recipe

        def clips_of(planes: Tensor) -> Tensor:
            # one seed for all: an encode must stay aligned with its source
            return augmented(to_clips(planes), recipe.augment, seed)

        clips = clips_of(batch.distorted)
        source = None if batch.reference is None else clips_of(batch.reference)
        look = self._look(self.student, clips, source, batch)
        losses = label_losses(self.student, look, batch, recipe.loss)
        if isinstance(self.fdim, nn.Linear) and batch.fdim is not None:
            losses["fdim"] = fdim_loss(self._pooled(look, batch), batch.fdim)
        if self.teacher is not None:
            if batch.teacher_view is not None:
                clips, source = clips_of(batch.teacher_view), None
            trains = any(p.requires_grad for p in self.teacher.parameters())
            with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
                target = self._look(self.teacher, clips, source, batch)
            feature = look.feature
            if isinstance(self.bridge, nn.Linear):  # bf16 under some engines
                feature = self.bridge(feature.to(self.bridge.weight.dtype))
            losses |= distillation_losses(
                self.student, look, feature, self.teacher, target, batch, recipe.loss
            )
        return losses

    def _pooled(self, look: StudentOutput, batch: Batch) -> Tensor:
        """(G, E, FDIM_FEATURES) projection of a student's pooled feature and statistics."""
        groups, encodes = batch.labels.shape[:2]

        def summed(values: Tensor) -> Tensor:
            return values.float().reshape(groups, -1, encodes, values.shape[-1]).sum(1)

        seen = [summed(look.feature) / (len(look.feature) // (groups * encodes))]
        if look.anchored is not None:
            sums, weights = (summed(x[:, :STATISTICS]) for x in look.anchored)
            seen.append(sums / weights)
        assert isinstance(self.fdim, nn.Linear)
        projected: Tensor = self.fdim(torch.cat(seen, -1).to(self.fdim.weight.dtype))
        return projected

    def _look(
        self, student: Student, clips: Tensor, source: Tensor | None, batch: Batch
    ) -> StudentOutput:
        half: AbstractContextManager[Any] = contextlib.nullcontext()
        if next(student.parameters()).dtype == torch.float32:  # else an engine has cast it
            half = autocast(clips.device)
        needed = anchored_losses(self.recipe.loss) and student.anchored is not None
        try:
            with half:
                anchor, height, heights = None, None, batch.heights
                if heights is not None:
                    height = heights.repeat_interleave(len(clips) // len(heights))
                if needed and source is not None:
                    encodes = len(clips) // len(source)
                    of_source = None if height is None else height[::encodes]
                    anchor = repeat_anchor(student.anchor(source, of_source), encodes)
                return student.look(clips, anchor, height)
        except ValueError as error:
            raise InputError(
                f"the corpus does not fit {self.recipe.model} or its teacher: {error}"
            ) from error


def anchored_losses(loss: Losses) -> bool:
    """Whether any part needs the anchored head."""
    names = ("region", "pooled", "ordered", "auxiliary", "dense", "fdim", "answers", "preferences")
    return any(getattr(loss, name) for name in names)
