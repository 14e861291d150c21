"""Training a student on a corpus: batches, the loss, the loop, and figures on held-out titles.

A step takes a few scenes; of each, the same crops of several encodes and of the source, whose
features are computed once. Labels and losses are fp32 throughout.
"""

import json
import math
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vqaloop.colour import to_clips
from vqaloop.device import autocast
from vqaloop.errors import InputError
from vqaloop.models import create_student
from vqaloop.models.student import OUTPUTS, Anchor, Student, start_from_cosines
from vqaloop.shards import Shard, load_corpus
from vqaloop.stats import agreement, within
from vqaloop.weights import save_student

FEATURE_SCALES = (100.0, 1.0, 1.0, 1.0, 1.0, 1.0, 20.0)
"""What each label of `OUTPUTS` is divided by, so that all count about the same."""
CHECKPOINT_EVERY = 100
"""Steps between two checkpoints."""


@dataclass(frozen=True)
class Recipe:
    """A training recipe; see the comments in recipes/*/recipe.toml."""

    model: str
    corpus: tuple[str, ...]
    held_out: tuple[str, ...]
    out: str
    seed: int
    steps: int
    learning_rate: float
    warm_up: int
    weight_decay: float
    clip_norm: float
    average: float
    scenes: int
    crops: int
    encodes: int
    crop: float
    pooled: float
    ordered: float
    features: float
    alone: float


def read_recipe(path: Path) -> Recipe:
    """A recipe from its TOML. Raises InputError naming the key that is missing or unknown."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"recipe {path} cannot be read: {error}") from error
    known = {field.name: field.type for field in fields(Recipe)}
    wrong = sorted(known.keys() ^ data.keys())
    if wrong:
        raise InputError(f"recipe {path}: missing or unknown: {', '.join(wrong)}")
    for key, kind in known.items():
        value = data[key]
        if kind == tuple[str, ...]:
            if not (isinstance(value, list) and all(isinstance(v, str) for v in value)):
                raise InputError(f"recipe {path}: {key} must be a list of folders, not {value!r}")
            data[key] = tuple(value)
        elif kind is float and type(value) is int:
            data[key] = float(value)
        elif type(value) is not kind:
            kind_name = getattr(kind, "__name__", str(kind))
            raise InputError(f"recipe {path}: {key} must be a {kind_name}, not {value!r}")
    for key in ("steps", "scenes", "crops", "encodes"):
        if data[key] < 1:
            raise InputError(f"recipe {path}: {key} must be at least 1, not {data[key]}")
    return Recipe(**data)


@dataclass(frozen=True)
class Batch:
    """Clips of one step: G groups (scene × crop), each with one reference and E encodes."""

    reference: Tensor
    """(G, T, rows, S) uint8."""
    distorted: Tensor
    """(G·E, T, rows, S) uint8, encodes of a group together."""
    crop_labels: Tensor
    """(G, E, len(OUTPUTS)), scaled."""
    frame_labels: Tensor
    """(scenes, E, len(OUTPUTS)), scaled, mean over the crops' frames."""


def draw(shards: Sequence[Shard], recipe: Recipe, rng: np.random.Generator) -> Batch:
    """One step's clips; scenes with more encodes and crops come up more often."""
    chance = np.array([len(s.encodes) * len(s.reference) for s in shards], float)
    chosen = rng.choice(len(shards), recipe.scenes, replace=False, p=chance / chance.sum())
    scales = torch.tensor(FEATURE_SCALES)
    reference, distorted, crop_labels, frame_labels = [], [], [], []
    for i in chosen:
        shard = shards[i]
        crops = torch.from_numpy(
            rng.choice(len(shard.reference), recipe.crops, len(shard.reference) < recipe.crops)
        )
        encodes = torch.from_numpy(
            rng.choice(len(shard.encodes), recipe.encodes, len(shard.encodes) < recipe.encodes)
        )
        pick = shard.distorted[encodes][:, crops].transpose(0, 1)  # (crops, encodes, ...)
        reference.append(shard.reference[crops])
        distorted.append(pick.flatten(0, 1))
        crop_labels.append(shard.crop_labels[encodes][:, crops].transpose(0, 1) / scales)
        frame_labels.append(shard.frame_labels[encodes][:, crops].mean(1) / scales)
    return Batch(
        torch.cat(reference),
        torch.cat(distorted),
        torch.cat(crop_labels),
        torch.stack(frame_labels),
    )


def turned(clips: Tensor, turn: int) -> Tensor:
    """One of eight mirrorings and turns of (..., H, W) clips; VMAF hardly minds them."""
    if turn & 1:
        clips = clips.flip(-1)
    if turn & 2:
        clips = clips.flip(-2)
    return clips.transpose(-1, -2) if turn & 4 else clips


def repeat_anchor(anchor: Anchor, times: int) -> Anchor:
    """The anchor of B references as that of B·times clips, `times` of each together."""
    return Anchor(
        anchor.embedding.repeat_interleave(times, 0),
        tuple(x.repeat_interleave(times, 0) for x in anchor.deep),
        anchor.context.repeat_interleave(times, 0),
        anchor.weights.repeat_interleave(times, 0),
    )


def losses(student: Student, batch: Batch, recipe: Recipe, turn: int) -> dict[str, Tensor]:
    """The parts of the loss, unweighted."""
    per_group = recipe.encodes
    with autocast(batch.reference.device):
        anchor = student.anchor(turned(to_clips(batch.reference), turn))
        sums, weights, alone = student.compare(
            repeat_anchor(anchor, per_group), turned(to_clips(batch.distorted), turn)
        )
    sums, weights = (torch.unflatten(x, 0, (-1, per_group)) for x in (sums, weights))  # (G, E, K)
    crop = student.answers(sums, weights)
    pooled = student.answers(
        *(torch.unflatten(x, 0, (-1, recipe.crops)).sum(1) for x in (sums, weights))
    )
    score, label = crop[..., 0], batch.crop_labels[..., 0]
    return {
        "crop": F.mse_loss(score, label),
        "pooled": F.mse_loss(pooled[..., 0], batch.frame_labels[..., 0]),
        "ordered": F.mse_loss(
            score - score.mean(1, keepdim=True), label - label.mean(1, keepdim=True)
        ),
        "features": F.mse_loss(crop[..., 1:], batch.crop_labels[..., 1:])
        + F.mse_loss(pooled[..., 1:], batch.frame_labels[..., 1:]),
        "alone": F.mse_loss(torch.unflatten(alone, 0, (-1, per_group)), label),
    }


def train(
    recipe: Recipe,
    *,
    device: torch.device,
    resume: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Train to the recipe's last step; returns the weights file (running mean of weights).

    A checkpoint is kept every CHECKPOINT_EVERY steps and picked up again unless `resume` is false;
    the corpus is read anew then, so it may have grown. Raises InputError for a corpus or a
    checkpoint that does not fit the recipe.
    """
    out = Path(recipe.out)
    out.mkdir(parents=True, exist_ok=True)
    shards, held_out = load_corpus(recipe.corpus), load_corpus(recipe.held_out)
    both = {s.content for s in shards} & {s.content for s in held_out}
    if both:
        raise InputError(f"titles on both sides of the split: {', '.join(sorted(both))}")
    if len(shards) < recipe.scenes:
        raise InputError(f"a step takes {recipe.scenes} scenes and the corpus has {len(shards)}")
    torch.manual_seed(recipe.seed)
    student = create_student(recipe.model)
    start_from_cosines(student.backbone)
    student.to(device)
    mean = create_student(recipe.model).to(device)
    mean.load_state_dict(student.state_dict())
    decay = [p for p in student.parameters() if p.ndim > 1]
    plain = [p for p in student.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decay, "weight_decay": recipe.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        betas=(0.9, 0.99),
    )
    step, checkpoint = 0, out / "checkpoint.pt"
    if resume and checkpoint.exists():
        try:
            state = torch.load(checkpoint, map_location=device, weights_only=True)
            student.load_state_dict(state["student"])
            mean.load_state_dict(state["mean"])
            optimizer.load_state_dict(state["optimizer"])
            step = int(state["step"])
        except (
            OSError,
            RuntimeError,
            ValueError,
            LookupError,
            EOFError,
            UnpicklingError,
        ) as error:
            raise InputError(
                f"{checkpoint} is no checkpoint of this recipe; remove it to start anew: {error}"
            ) from error
        report(f"resumed at step {step}")
    report(f"{len(shards)} scenes, {len(held_out)} held out; {recipe.steps} steps")
    seen: dict[str, float] = {}
    since = time.monotonic()
    while step < recipe.steps:
        rng = np.random.default_rng([recipe.seed, step])
        batch = _to(draw(shards, recipe, rng), device)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(step, recipe)
        parts = losses(student, batch, recipe, int(rng.integers(8)))
        total = sum((getattr(recipe, k) * v for k, v in parts.items()), torch.zeros(()))
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), recipe.clip_norm)
        optimizer.step()
        step += 1
        follow = min(recipe.average, step / (step + 10))
        with torch.no_grad():
            for kept, new in zip(mean.parameters(), student.parameters(), strict=True):
                kept.lerp_(new, 1 - follow)
        for key, value in parts.items():
            seen[key] = 0.98 * seen.get(key, value.item()) + 0.02 * value.item()
        if step % 20 == 0:
            pace = (time.monotonic() - since) / 20
            since = time.monotonic()
            shown = " ".join(f"{k} {math.sqrt(v):.4f}" for k, v in seen.items())
            report(f"step {step}/{recipe.steps} {pace:.2f} s/step  rms {shown}")
        if step % CHECKPOINT_EVERY == 0 or step == recipe.steps:
            part = checkpoint.with_suffix(".part")
            torch.save(
                {
                    "student": student.state_dict(),
                    "mean": mean.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step,
                },
                part,
            )
            part.rename(checkpoint)
        if step % 500 == 0 or step == recipe.steps:
            figures = evaluate(mean, held_out, device)
            report(f"step {step} held out: {json.dumps(figures)}")
            since = time.monotonic()
    weights = out / f"{recipe.model}.safetensors"
    save_student(
        mean, weights, recipe.model, "VMAF v0.6.1", {"recipe": json.dumps(asdict(recipe))}
    )
    return weights


def _to(batch: Batch, device: torch.device) -> Batch:
    return Batch(*(getattr(batch, field.name).to(device) for field in fields(Batch)))


def _schedule(step: int, recipe: Recipe) -> float:
    if step < recipe.warm_up:
        return (step + 1) / recipe.warm_up
    done = (step - recipe.warm_up) / max(1, recipe.steps - recipe.warm_up)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * min(1, done))) / 2


@torch.inference_mode()
def predict(
    student: Student, shard: Shard, device: torch.device, crops: int | None = None
) -> tuple[Tensor, Tensor]:
    """(E,) anchored and (E,) no-reference scores 0..100 of a shard's encodes, crops pooled."""
    count = len(shard.reference) if crops is None else min(crops, len(shard.reference))
    with autocast(device):
        anchor = student.anchor(to_clips(shard.reference[:count].to(device)))
        anchored, alone = [], []
        for clips in shard.distorted[:, :count]:
            sums, weights, single = student.compare(anchor, to_clips(clips.to(device)))
            anchored.append(student.answers(sums.sum(0), weights.sum(0))[0])
            alone.append(single.mean())
    return torch.stack(anchored).cpu() * 100, torch.stack(alone).cpu() * 100


def evaluate(
    student: Student, shards: Sequence[Shard], device: torch.device, crops: int | None = 8
) -> dict[str, float]:
    """SRCC, KRCC, PLCC, RMSE against VMAF, and SRCC within a title, of both heads."""
    anchored, alone, labels, titles = [], [], [], []
    for shard in shards:
        one, other = predict(student, shard, device, crops)
        anchored.append(one)
        alone.append(other)
        labels.append(shard.scores)
        titles += [shard.content] * len(shard.encodes)
    label = torch.cat(labels).double().numpy()
    figures: dict[str, float] = {}
    for name, scores in (("", anchored), ("alone_", alone)):
        values = torch.cat(scores).double().numpy()
        found = {**agreement(values, label), "within_srcc": within(values, label, titles)}
        figures |= {name + key: round(value, 4) for key, value in found.items()}
    return figures


assert len(FEATURE_SCALES) == len(OUTPUTS)
