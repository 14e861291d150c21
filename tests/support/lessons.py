"""What tests of training steps share: shards of noise in memory, small networks, a recipe."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tests.support.nets import MINI, shaken
from vqaloop.models.internvideo2 import InternVideo2
from vqaloop.models.student import OUTPUTS, Student
from vqaloop.training.recipe import Losses, Recipe, Teacher
from vqaloop.training.shards import Shard
from vqaloop.training.step import FEATURE_SCALES, Batch, draw

RECIPE = Recipe(
    "internvqa-mini", ("a",), "out", 1, 1e-3, Losses(crop=1.0), ("b",),
    scenes=2, crops=2, encodes=2, augment="none",
)  # fmt: skip


def with_losses(**weights: float) -> Recipe:
    loss = Losses(**weights)
    taught = loss.teacher or loss.feature or loss.levels or loss.answers
    return replace(RECIPE, loss=loss, teacher=Teacher("internvqa-tiny") if taught else None)


def pixels(rng: np.random.Generator, *shape: int, size: int = 28) -> Tensor:
    return torch.from_numpy(rng.integers(16, 236, (*shape, 2, size * 3 // 2, size), np.uint8))


def shard(name: str, seed: int, encodes: int = 3, crops: int = 4, size: int = 28) -> Shard:
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.random((2, encodes, crops, 7), np.float32))
    labels *= torch.tensor(FEATURE_SCALES)
    return Shard(
        name,
        name,
        "VMAF",
        [{"score": float(10 * e + 5)} for e in range(encodes)],
        pixels(rng, encodes, crops, size=size),
        reference=pixels(rng, crops, size=size),
        region_labels=labels[0],
        frame_labels=labels[1],
        labels=OUTPUTS,
        canvas=(1920, 1080),
        distances=(1,) * crops,
        places=tuple(range(crops)),
    )


def opinions(whole: Shard) -> Shard:
    return replace(whole, reference=None, labels=(), region_labels=None, frame_labels=None)


SHARDS = [shard("a", 1), shard("b", 2, encodes=5), shard("c", 3, crops=2)]


def found_at(clip: Tensor, among: Tensor) -> int:
    return next(i for i, other in enumerate(among) if torch.equal(other, clip))


def origin(reference: Tensor) -> tuple[Shard, int]:
    """The shard a reference clip is from, and which crop it is."""
    for whole in SHARDS:
        assert whole.reference is not None
        for crop, clip in enumerate(whole.reference):
            if torch.equal(clip, reference):
                return whole, crop
    raise AssertionError("no reference of any shard")


def made(seed: int, heads: bool = True) -> Student:
    torch.manual_seed(seed)
    student = Student(InternVideo2(MINI), heads)
    shaken(student, seed, scale=0.05)
    return student


def batch_of(recipe: Recipe = RECIPE, seed: int = 0) -> Batch:
    return draw(SHARDS, recipe, np.random.default_rng(seed))
