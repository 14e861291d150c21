"""What tests of training steps share: shards of noise in memory, small networks, a recipe."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tests.support.nets import MINI, shaken
from vqaloop.models.head_config import HeadConfig
from vqaloop.models.internvideo2 import InternVideo2
from vqaloop.models.student import Student
from vqaloop.training.recipe import TAUGHT, Losses, Recipe, Teacher
from vqaloop.training.shards import FDIM_FEATURES, Shard
from vqaloop.training.step import Batch, draw

RECIPE = Recipe(
    "internvqa-mini", ("a",), "out", 1, 1e-3, Losses(region=1.0), ("b",),
    scenes=2, regions=2, crops=2, encodes=2, augment="none",
)  # fmt: skip
NAMES = ("v1", "cambi", "fdim")
CROPS = 2
"""Of a region."""
HEADS = HeadConfig(NAMES, change=True, worst=2, canvas=True)


def with_losses(**weights: float) -> Recipe:
    loss = Losses(**weights)
    taught = any(getattr(loss, name) for name in TAUGHT)
    return replace(RECIPE, loss=loss, teacher=Teacher("internvqa-tiny") if taught else None)


def pixels(rng: np.random.Generator, *shape: int, size: int = 28) -> Tensor:
    return torch.from_numpy(rng.integers(16, 236, (*shape, 2, size * 3 // 2, size), np.uint8))


def shard(name: str, seed: int, encodes: int = 3, regions: int = 4, size: int = 28) -> Shard:
    """A scene whose labels are those that a student answers, of about 0..1."""
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.random((2, encodes, regions, len(NAMES)), np.float32))
    labels[1, ..., 2] = torch.nan  # of regions alone
    labels[0, 0, :, 2] = torch.nan  # not measured
    features = rng.random((encodes, regions, FDIM_FEATURES), np.float32).astype(np.float16)
    features[:, 1:2] = np.nan
    return Shard(
        name,
        name,
        "VMAF v1",
        [{"score": float(10 * e + 5)} for e in range(encodes)],
        pixels(rng, encodes, CROPS * regions, size=size),
        reference=pixels(rng, CROPS * regions, size=size),
        region_labels=labels[0],
        frame_labels=labels[1],
        fdim_features=torch.from_numpy(features),
        labels=NAMES,
        region=CROPS,
        canvas=(1920, 540 * (seed + 1)),
        distances=(1, 5) * (regions // 2),
        places=tuple(10 * (r // 2) for r in range(regions)),
    )


def opinions(whole: Shard) -> Shard:
    return replace(
        whole, reference=None, labels=(), region=1, region_labels=None, frame_labels=None,
        fdim_features=None, places=(), distances=(),
    )  # fmt: skip


SHARDS = [shard("a", 1), shard("b", 2, encodes=5), shard("c", 3, regions=2)]


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
    student = Student(InternVideo2(MINI), heads, HEADS if heads else None)
    shaken(student, seed, scale=0.05)
    return student


def batch_of(recipe: Recipe = RECIPE, seed: int = 0) -> Batch:
    return draw(SHARDS, recipe, np.random.default_rng(seed))
