"""What training refuses of titles, teachers and DeepSpeed's file, and what weights tell of it."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import training
from tests.support.training import CPU, make_shard
from vqaloop.errors import InputError
from vqaloop.models import create_student
from vqaloop.models.weights import load_student, save_student
from vqaloop.training.recipe import Losses, Recipe, Teacher
from vqaloop.training.split import split_corpus, teacher_shards
from vqaloop.training.starting_weights import initial_student, initial_teacher
from vqaloop.training.train import train

data, recipe, pytestmark = training.data, training.recipe, training.QUIET


# --- titles -------------------------------------------------------------------------------------


def test_weights_know_what_they_were_trained_on(
    recipe: Recipe, data: Path, tmp_path: Path
) -> None:
    short = replace(recipe, steps=1, accumulate=1, engine=str(tmp_path / "zero.json"))
    (tmp_path / "zero.json").write_text('{"zero_optimization": {"stage": 1}}', encoding="utf-8")
    weights = train(short, device=CPU)
    _, about = load_student(weights)
    assert json.loads(about["titles"]) == ["a", "b", "c"]
    assert json.loads(about["recipe"])["engine"] == "zero.json"
    # who begins with them has seen their titles, and so has who is taught by them
    (tmp_path / "more").mkdir()
    make_shard(tmp_path / "more", "z", 5)
    other = replace(
        recipe, corpus=(str(tmp_path / "more"),), out=str(tmp_path / "other"), steps=1, scenes=1
    )
    for how in (
        {"start": str(weights)},
        {"teacher": Teacher(recipe.model, str(weights)), "loss": Losses(region=1.0, answers=1.0)},
    ):
        _, about = load_student(train(replace(other, **how), device=CPU, resume=False))
        assert json.loads(about["titles"]) == ["a", "b", "c", "z"]
        leaky = replace(other, held_out=recipe.corpus, **how)
        with pytest.raises(InputError, match="trained on titles that this recipe holds out: a, b"):
            train(leaky, device=CPU, resume=False)


def test_another_split_needs_another_folder(recipe: Recipe, data: Path, tmp_path: Path) -> None:
    short = replace(recipe, steps=1, accumulate=1, held_out=(), split="fold 1/3", scenes=1)
    train(short, device=CPU)
    turned = replace(short, split="fold 2/3", steps=2)
    with pytest.raises(InputError, match="trained on titles that this recipe holds out.*another"):
        train(turned, device=CPU)
    weights = train(turned, device=CPU, resume=False)
    assert len(json.loads(load_student(weights)[1]["titles"])) == 2


def test_sources_of_some_are_sources_of_none(recipe: Recipe, tmp_path: Path) -> None:
    for title, source in (("s", True), ("t", False), ("u", True)):
        make_shard(tmp_path, title, 3, opinions=True, label="MOS", source=source)
    mixed = replace(recipe, corpus=(str(tmp_path),), held_out=(), split="fold 1/3", scenes=1)
    shards, unseen = split_corpus(mixed)
    assert len(shards) == 2 and all(s.reference is None for s in shards)
    with pytest.raises(InputError, match="region, pooled, ordered, auxiliary of the loss cannot"):
        train(mixed, device=CPU)


def test_what_is_held_out_must_be_labelled_alike(recipe: Recipe, tmp_path: Path) -> None:
    make_shard(tmp_path, "q", 3, label="MOS of something")
    with pytest.raises(InputError, match="held out have another label or view"):
        split_corpus(replace(recipe, held_out=(str(tmp_path),)))


def test_the_teachers_corpus_has_the_same_encodes_in_order(
    recipe: Recipe, data: Path, tmp_path: Path
) -> None:
    for title in "abc":
        make_shard(tmp_path, title, ord(title))
    taught = replace(recipe, teacher=Teacher("internvqa-tiny", corpus=(str(tmp_path),)))
    shards, _ = split_corpus(taught)
    shown = teacher_shards(taught, shards)
    assert shown is not None and [s.name for s in shown] == ["a", "b", "c"]
    make_shard(tmp_path, "b", 1 + ord("b"))
    with pytest.raises(InputError, match="b has other encodes in the teacher's corpus"):
        teacher_shards(taught, shards)


def test_a_teacher_of_another_name_is_refused(tmp_path: Path) -> None:
    save_student(create_student("internvqa-mini"), tmp_path / "t", "internvqa-mini", "", {})
    with pytest.raises(InputError, match="weights of internvqa-mini; .* is internvqa-tiny"):
        initial_teacher(Teacher("internvqa-tiny", str(tmp_path / "t")))


def test_damaged_weights_of_ours_are_called_by_their_name(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_student(create_student("internvqa-mini"), path, "internvqa-tiny", "", {})
    with pytest.raises(InputError, match="do not fit internvqa-tiny"):
        initial_student(replace(recipe, start=str(path)))


# --- the engine's file --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1]", "must hold one JSON object"),
        ('{"zero_optimization": {"stage": 3}}', "stage is 0, 1 or 2, not 3"),
        ('{"zero_optimization": {"stage": "3"}}', "stage is 0, 1 or 2"),
        ('{"fp16": {"enabled": true}}', "not in fp16"),
        ('{"zero_optimization": {"stage": 1, "speed": 9}}', "does not take its file"),
        ('{"train_batch_size": 7}', "does not take its file"),
    ],
)
def test_engines_that_cannot_train_are_refused(
    recipe: Recipe, tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "zero.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=says):
        train(replace(recipe, engine=str(tmp_path / "zero.json")), device=CPU)


def test_without_deepspeed_nothing_is_read(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(InputError, match=r"needs DeepSpeed: pip install 'vqaloop\[train\]'"):
        train(replace(recipe, corpus=("none",)), device=CPU)
    assert not Path(recipe.out).exists()
