"""Which shards a run trains on, which are held out, and which the teacher sees."""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from vqaloop.core.text import counted
from vqaloop.errors import InputError
from vqaloop.training.datasets import held_out
from vqaloop.training.recipe import Recipe
from vqaloop.training.shards import Shard, load_corpus

LABELLED_OF_SCENE = 4
"""Encodes of a scene that are labelled, where few are."""


def split_corpus(recipe: Recipe) -> tuple[list[Shard], list[Shard]]:
    """Shards to train on and shards held out.

    Where some shards to train on have no source, those of the others are dropped: which losses a
    step has must not depend on which shards were drawn. Raises InputError when the sides share a
    title or differ in labels or view.
    """
    shards = load_corpus(recipe.corpus)
    if len({_kind(shard) for shard in shards}) > 1:
        raise InputError("the corpus mixes labels or views; train on one of each")
    if recipe.held_out:
        unseen = load_corpus(recipe.held_out)
        both = {s.content for s in shards} & {s.content for s in unseen}
        if both:
            raise InputError(f"titles on both sides of the split: {', '.join(sorted(both))}")
        if {_kind(shard) for shard in unseen} != {_kind(shards[0])}:
            raise InputError(
                "the titles held out have another label or view than the corpus; make both alike"
            )
        return _alike(shards), unseen
    names = held_out(shards, recipe.split)
    return (
        _alike([shard for shard in shards if shard.content not in names]),
        [shard for shard in shards if shard.content in names],
    )


def labelled_part(shards: list[Shard], recipe: Recipe) -> list[Shard]:
    """As many encodes of some shards as the recipe's `labelled`, drawn by its seed.

    LABELLED_OF_SCENE of a scene, as a panel rates several versions of a video; more only where the
    scenes do not suffice. Raises InputError for too few, of encodes or of scenes for a step.
    """
    rng = np.random.default_rng(recipe.seed)
    turns = [rng.permutation(len(shard.encodes)) for shard in shards]
    order = rng.permutation(len(shards)).tolist()
    taken = [0] * len(shards)
    left = recipe.labelled
    while left and any(taken[i] < len(turns[i]) for i in order):
        for i in order:
            count = min(left, LABELLED_OF_SCENE, len(turns[i]) - taken[i])
            taken[i] += count
            left -= count
    some = [i for i, count in enumerate(taken) if count]
    if left:
        raise InputError(
            f"`labelled` asks for {recipe.labelled} encodes, and the corpus has "
            f"{recipe.labelled - left}; lower it, or add to the corpus"
        )
    if len(some) < recipe.scenes:
        raise InputError(
            f"`labelled` takes encodes of {counted(len(some), 'scene')}, and a step takes "
            f"{recipe.scenes}; raise it, or lower `scenes`"
        )
    return [_with_encodes(shards[i], sorted(turns[i][: taken[i]].tolist())) for i in some]


def _with_encodes(shard: Shard, rows: list[int]) -> Shard:
    """The shard with some of its encodes."""

    def chosen(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[rows]

    return replace(
        shard,
        encodes=[shard.encodes[row] for row in rows],
        distorted=shard.distorted[rows],
        region_labels=chosen(shard.region_labels),
        frame_labels=chosen(shard.frame_labels),
        fdim_features=chosen(shard.fdim_features),
    )


def _kind(shard: Shard) -> tuple[object, ...]:
    """Labels and view, in which all shards of a run agree."""
    return shard.label, shard.labels, shard.region, json.dumps(shard.view, sort_keys=True)


def _alike(shards: list[Shard]) -> list[Shard]:
    """The shards with what all of them have, see `split_corpus`."""
    if any(shard.reference is None for shard in shards):
        shards = [replace(shard, reference=None) for shard in shards]
    return shards


def teacher_shards(recipe: Recipe, shards: Sequence[Shard]) -> list[Shard] | None:
    """The shards as the teacher sees them, in the same order; None when it sees the same."""
    if recipe.teacher is None or not recipe.teacher.corpus:
        return None
    known = {shard.name: shard for shard in load_corpus(recipe.teacher.corpus)}
    for shard in shards:
        other = known.get(shard.name)
        if other is None or other.distorted.shape[:2] != shard.distorted.shape[:2]:
            raise InputError(
                f"the teacher's corpus has no {shard.name} of as many encodes and clips; "
                "prepare both views from the same files, with the same number of clips"
            )
        mine, theirs = ([(e.get("path"), e["score"]) for e in s.encodes] for s in (shard, other))
        if mine != theirs:
            raise InputError(
                f"{shard.name} has other encodes in the teacher's corpus, or in another order; "
                "prepare both views from the same files and scores"
            )
    return [known[shard.name] for shard in shards]
