"""Training a prompt on a frozen student, and training on few labels."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support import training
from tests.support.lessons import SHARDS
from tests.support.nets import random_student
from tests.support.training import CPU, left_in
from vqaloop.errors import InputError
from vqaloop.models.head_config import HeadConfig
from vqaloop.models.style_prompt import load_prompt
from vqaloop.models.weights import load_student
from vqaloop.training.recipe import Prompt, Recipe, read_recipe
from vqaloop.training.split import LABELLED_OF_SCENE, labelled_part
from vqaloop.training.train import train

data, recipe, pytestmark = training.data, training.recipe, training.QUIET


def test_a_prompt_is_trained_and_nothing_else(recipe: Recipe, tmp_path: Path) -> None:
    heads = HeadConfig(("v1", "cambi", "xpsnr"))
    start = random_student(tmp_path, "internvqa-mini", "VMAF v1", heads)
    before = start.read_bytes()
    asked = replace(
        recipe, start=str(start), prompt=Prompt(), steps=2, accumulate=1, labelled=8,
        learning_rate=0.05,
    )  # fmt: skip
    path = train(asked, device=CPU)
    out = Path(recipe.out)
    assert path == out / "internvqa-mini.prompt.safetensors" and start.read_bytes() == before
    assert "internvqa-mini.safetensors" not in left_in(out)
    values = load_file(path)
    assert sum(v.numel() for v in values.values()) == 900
    assert all(v.any() for v in values.values())
    student, about = load_student(start)
    joined = load_prompt(path, student, about)
    assert joined["label"] == "VMAF v1" and joined["titles"] == '["a", "b", "c"]'
    path.unlink()
    # all steps are done, so this is the checkpoint's
    again = load_file(train(asked, device=CPU))
    for name, value in values.items():
        torch.testing.assert_close(again[name], value)

    # refusals come before anything is written
    wrong = replace(asked, model="internvqa-tiny", out=str(tmp_path / "none"))
    with pytest.raises(InputError, match='set model = "internvqa-mini"'):
        train(wrong, device=CPU)
    with pytest.raises(InputError, match="are no weights of a student, and a prompt is of one"):
        train(replace(wrong, start=str(tmp_path / "gone")), device=CPU)
    assert not (tmp_path / "none").exists()


def test_recipes_of_prompts_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    base = 'extends = "internvqa-mini"\n[prompt]\n'
    for text, why in (
        (base, r"\[prompt\] is of a student; name its weights in `start`"),
        (f'start = "a"\n{base}', r"\[prompt\] leaves the student and its heads as they are"),
        (f'start = "a"\n{base}basic = 0', "basic"),
    ):
        path.write_text(text.replace('"internvqa-mini"', '"internvqa-mini"'), "utf-8")
        with pytest.raises(InputError, match=why):
            read_recipe(path)


def test_few_labels_are_spread_over_scenes(recipe: Recipe) -> None:
    few = replace(recipe, labelled=5, scenes=2)
    found = labelled_part(SHARDS, few)
    assert sum(len(shard.encodes) for shard in found) == 5
    assert max(len(shard.encodes) for shard in found) <= LABELLED_OF_SCENE
    names = {shard.name: shard for shard in SHARDS}
    for shard in found:
        whole = names[shard.name]
        rows = [whole.encodes.index(row) for row in shard.encodes]
        assert torch.equal(shard.distorted, whole.distorted[rows])
        assert whole.region_labels is not None and shard.region_labels is not None
        assert torch.equal(shard.region_labels.isnan(), whole.region_labels[rows].isnan())
    assert [s.name for s in labelled_part(SHARDS, few)] == [s.name for s in found]
    every = labelled_part(SHARDS, replace(few, labelled=11))
    assert sum(len(shard.encodes) for shard in every) == 11
    with pytest.raises(InputError, match="asks for 12 encodes, and the corpus has 11"):
        labelled_part(SHARDS, replace(few, labelled=12))
    with pytest.raises(InputError, match="takes encodes of 1 scene, and a step takes 2"):
        labelled_part(SHARDS, replace(few, labelled=2))
