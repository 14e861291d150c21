"""One training step: the batch, its augmentation, the forward pass of student and teacher.

A step takes a few scenes; of each, the same regions of several encodes and of the source, whose
features are computed once. Labels and losses are fp32 throughout.
"""

import contextlib
from collections import Counter
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
from vqaloop.models.student import STATISTICS, Anchor, Student, StudentOutput
from vqaloop.training.losses import distillation_losses, fdim_loss, label_losses
from vqaloop.training.recipe import Losses, Recipe
from vqaloop.training.shards import FDIM_FEATURES, Shard
from vqaloop.training.windows import Place, Window, cut_window, draw_place


@dataclass(frozen=True)
class Batch:
    """Clips of one step: G groups (scene × region) of E encodes, those of a scene together.

    A group is P crops of one place; where there are no regions, a single crop. A is the number of
    auxiliary outputs; nan is a label that was not measured.
    """

    distorted: Tensor
    """(G·P·E, T, rows, S), encodes of a crop together."""
    labels: Tensor
    """(G, E, 1 + A) labels of each region, of about 0..1; or one opinion score."""
    pooled: Tensor
    """(scenes, E, 1 + A) labels of the whole frames, mean over the regions drawn."""
    reference: Tensor | None = None
    """(G·P, T, rows, S) uint8."""
    teacher_view: Tensor | None = None
    """(G·P·E, T', rows', S') uint8: `distorted` in the teacher's view, where that is another."""
    heights: Tensor | None = None
    """(scenes,) height of the canvas in pixels."""
    fdim: Tensor | None = None
    """(G, E, FDIM_FEATURES)."""

    def to(self, device: torch.device) -> "Batch":
        moved = {
            field.name: value.to(device)
            for field in fields(self)
            if (value := getattr(self, field.name)) is not None
        }
        return Batch(**moved)


def groups_of(shard: Shard, recipe: Recipe) -> int:
    """Groups drawn of a scene: regions, or crops of one that has none."""
    return recipe.regions if shard.labels else recipe.crops


def clips_of_step(shard: Shard, recipe: Recipe) -> int:
    """Clips of encodes in a batch of scenes like this one."""
    return recipe.scenes * groups_of(shard, recipe) * shard.region * recipe.encodes


def draw(
    shards: Sequence[Shard],
    recipe: Recipe,
    rng: np.random.Generator,
    teacher_view: Sequence[Shard] | None = None,
) -> Batch:
    """One batch; scenes with more encodes and crops come up more often.

    Args:
        shards: With `targets.with_targets` as labels, or of opinion scores.
        recipe: Shape of the batch.
        rng: Of all that is drawn.
        teacher_view: The same shards in the teacher's view.
    """
    # so that every clip of the corpus is drawn about as often
    chance = np.array([len(s.encodes) * s.distorted.shape[1] for s in shards], float)
    chosen = rng.choice(len(shards), recipe.scenes, replace=False, p=chance / chance.sum())
    window = Window(recipe.frames, recipe.crop)
    taught = recipe.teacher
    wide = Window(taught.frames, taught.crop) if taught is not None else Window()
    with_fdim = any(shard.fdim_features is not None for shard in shards)
    parts: dict[str, list[Tensor]] = {field.name: [] for field in fields(Batch)}
    for i in chosen:
        shard = shards[i]
        groups = _drawn_groups(shard, groups_of(shard, recipe), rng)
        encodes = _drawn_encodes(shard, recipe, rng)
        crops = (groups[:, None] * shard.region + torch.arange(shard.region)).flatten()

        def pick(tensor: Tensor, places: Tensor, encodes: Tensor = encodes) -> Tensor:
            return tensor[encodes[None], places[:, None]]  # (places, encodes, ...)

        # no number is drawn where clips are taken whole
        moved = (shard, window)
        if not window and teacher_view is not None:
            moved = (teacher_view[i], wide)
        places = [draw_place(*moved, rng) for _ in crops] if moved[1] else []
        distorted = windows(pick(shard.distorted, crops), shard, window, places)
        parts["distorted"].append(distorted.flatten(0, 1))
        if shard.reference is not None:
            parts["reference"].append(windows(shard.reference[crops], shard, window, places))
        if teacher_view is not None:
            other = teacher_view[i]
            seen = windows(pick(other.distorted, crops), other, wide, places)
            parts["teacher_view"].append(seen.flatten(0, 1))
        if shard.canvas is not None:
            parts["heights"].append(torch.tensor([float(shard.canvas[1])]))
        if shard.region_labels is not None and shard.frame_labels is not None:
            parts["labels"].append(pick(shard.region_labels, groups))
            parts["pooled"].append(pick(shard.frame_labels, groups).nanmean(0)[None])
        else:
            # the opinion score of the whole video stands for each of its crops
            score = shard.scores[encodes, None] / 100
            parts["labels"].append(score.expand(len(groups), -1, -1))
            parts["pooled"].append(score[None])
        if with_fdim:
            features = shard.fdim_features
            unknown = torch.full((len(groups), len(encodes), FDIM_FEATURES), torch.nan)
            parts["fdim"].append(unknown if features is None else pick(features, groups).float())
    # what some scenes lack none has, but for labels
    whole = {name: part for name, part in parts.items() if len(part) == len(chosen)}
    return Batch(**{name: torch.cat(part) for name, part in whole.items()})


def _drawn_groups(shard: Shard, wanted: int, rng: np.random.Generator) -> Tensor:
    """Indices of regions (or crops), of different places as far as there are any."""
    order = rng.permutation(shard.distorted.shape[1] // shard.region).tolist()
    if shard.places:
        seen = Counter[int]()
        turns = []
        for region in order:
            turns.append(seen[shard.places[region]])
            seen[shard.places[region]] += 1
        # the first of each place, then the second of each, and so on
        order = [region for _, region in sorted(zip(turns, order, strict=True), key=_first)]
    # what is scarce comes twice
    return torch.from_numpy(np.resize(order, wanted))


def _first(pair: tuple[int, int]) -> int:
    return pair[0]


def _drawn_encodes(shard: Shard, recipe: Recipe, rng: np.random.Generator) -> Tensor:
    """Indices of encodes, a share of them damaged beyond compression."""
    attacked = shard.attacked.numpy()
    share = recipe.attacks if attacked.any() else 0.0
    count = int((rng.random(recipe.encodes) < (share if not attacked.all() else 1.0)).sum())
    chosen: list[int] = []
    for kind, wanted in ((False, recipe.encodes - count), (True, count)):
        if wanted:
            order = rng.permutation(np.flatnonzero(attacked == kind))
            chosen += np.resize(order, wanted).tolist()
    return torch.tensor(chosen)


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
                "labels and token heads, fdim FDIM's features, levels a teacher with token heads"
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
