"""The batch of a training step: which scenes, regions and encodes are drawn, and their labels.

A step takes a few scenes; of each, the same regions of several encodes and of the source.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from vqaloop.training.recipe import Recipe
from vqaloop.training.shards import FDIM_FEATURES, Shard
from vqaloop.training.windows import Place, Window, cut_window, draw_place

UNKNOWN_STREAMS = 0.4
"""Chance that what is known of an encode's bitstream is left out, so that heads learn to do
without: of raw video, say, nothing is known."""


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
    stream: Tensor | None = None
    """(scenes, E, 3) what the bitstreams say, `StreamFacts.inputs`."""
    rates: Tensor | None = None
    """(scenes, E) log2 of the bits for a pixel of the canvas; nan: not known."""
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
    # of its own, so that all else is drawn as without
    left_out = rng.spawn(1)[0]
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
        kept = torch.from_numpy(left_out.random(len(encodes)) >= UNKNOWN_STREAMS)
        parts["stream"].append((shard.stream[encodes] * kept[:, None])[None])
        parts["rates"].append(shard.rates[encodes][None])
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
