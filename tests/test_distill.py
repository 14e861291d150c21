"""Training on a real, tiny corpus, end to end."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.media import make_clip
from vqaloop import distill, process
from vqaloop.corpus import Plan, build_corpus, find_scenes
from vqaloop.distill import Recipe, draw, evaluate, losses, read_recipe, train, turned
from vqaloop.errors import InputError
from vqaloop.models import create_student
from vqaloop.models.student import OUTPUTS
from vqaloop.shards import load_corpus
from vqaloop.weights import load_student

CPU = torch.device("cpu")
RECIPE = """
model = "internvqa-tiny"
corpus = [{train}]
held_out = [{held_out}]
out = {out}
seed = 1
steps = 3
learning_rate = 1e-3
warm_up = 1
weight_decay = 0.05
clip_norm = 1
average = 0.9
scenes = 2
crops = 2
encodes = 2
crop = 1.0
pooled = 1.0
ordered = 1.0
features = 0.5
alone = 0.2
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Shards of two training titles and of one held out."""
    base = tmp_path_factory.mktemp("data")
    for side, names in (("train", ("a", "b")), ("held-out", ("c",))):
        clips = base / f"{side}-clips"
        clips.mkdir()
        for name in names:
            make_clip(clips / f"{name}.mp4", size="144x128", frames=8, vf=f"hue=h={ord(name)}")
        build_corpus(
            find_scenes([clips]),
            base / side,
            Plan(encodes=2, crops=3, frames=6),
            ffmpeg=process.ffmpeg_path(),
        )
    return base / "train", base / "held-out"


def write_recipe(path: Path, folders: tuple[Path, Path], out: Path, **changes: str) -> Path:
    text = RECIPE.format(
        train=json.dumps(str(folders[0])),
        held_out=json.dumps(str(folders[1])),
        out=json.dumps(str(out)),
    )
    for key, value in changes.items():
        text = "".join(
            f"{key} = {value}\n" if line.startswith(f"{key} ") else line
            for line in text.splitlines(keepends=True)
        )
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def recipe(folders: tuple[Path, Path], tmp_path: Path) -> Recipe:
    return read_recipe(write_recipe(tmp_path / "recipe.toml", folders, tmp_path / "out"))


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt training when it begins that step."""
    real, done = distill.losses, 0

    def interrupted(*args: object) -> dict[str, torch.Tensor]:
        nonlocal done
        if done == step:
            raise KeyboardInterrupt
        done += 1
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(distill, "losses", interrupted)


def test_training_goes_on_where_it_was_stopped(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_student(train(recipe, device=CPU))[0].state_dict()
    halves = replace(recipe, out=str(tmp_path / "halves"))
    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(distill, "CHECKPOINT_EVERY", 1)
        stop_at(2, patch)
        with pytest.raises(KeyboardInterrupt):
            train(halves, device=CPU, report=said.append)
    assert sorted(p.name for p in Path(halves.out).iterdir()) == ["checkpoint.pt"]
    weights = train(halves, device=CPU, report=said.append)
    assert "resumed at step 2" in said
    student, about = load_student(weights)
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, whole[name], rtol=1e-3, atol=1e-5, msg=name)
    assert about["model"] == recipe.model
    assert json.loads(about["recipe"])["steps"] == recipe.steps
    figures = json.loads(next(line for line in said if "held out: " in line).split("out: ", 1)[1])
    assert {"srcc", "krcc", "plcc", "rmse", "within_srcc", "alone_srcc"} <= figures.keys()
    assert math.isfinite(figures["rmse"])
    # all steps are done: one more call only writes the weights again
    assert train(halves, device=CPU, report=said.append) == weights
    assert "resumed at step 3" in said


def test_resume_can_be_refused(recipe: Recipe) -> None:
    short = replace(recipe, steps=1)
    train(short, device=CPU)
    said: list[str] = []
    train(short, device=CPU, resume=False, report=said.append)
    assert not any("resumed" in line for line in said)


def test_titles_on_both_sides_are_refused(recipe: Recipe) -> None:
    leaky = replace(recipe, held_out=recipe.held_out + recipe.corpus[:1])
    with pytest.raises(InputError, match="both sides of the split: a, b"):
        train(leaky, device=CPU)


def test_more_scenes_than_there_are_is_refused(recipe: Recipe) -> None:
    with pytest.raises(InputError, match="takes 3 scenes and the corpus has 2"):
        train(replace(recipe, scenes=3), device=CPU)


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 cut short"])
def test_a_damaged_checkpoint_is_refused(recipe: Recipe, content: bytes) -> None:
    checkpoint = Path(recipe.out) / "checkpoint.pt"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(content)
    with pytest.raises(InputError, match="remove it to start anew"):
        train(recipe, device=CPU)


def test_a_checkpoint_of_something_else_is_refused(recipe: Recipe) -> None:
    checkpoint = Path(recipe.out) / "checkpoint.pt"
    checkpoint.parent.mkdir()
    torch.save({"student": {"x": torch.zeros(1)}}, checkpoint)
    with pytest.raises(InputError, match="remove it to start anew"):
        train(recipe, device=CPU)


def test_recipe_is_read_with_its_types(folders: tuple[Path, Path], recipe: Recipe) -> None:
    assert recipe.corpus == (str(folders[0]),)
    assert type(recipe.clip_norm) is float and recipe.clip_norm == 1.0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"steps": '"3"'}, "steps must be a int"),
        ({"steps": "true"}, "steps must be a int"),
        ({"steps": "0"}, "steps must be at least 1"),
        ({"crops": "-1"}, "crops must be at least 1"),
        ({"average": "true"}, "average must be a float"),
        ({"corpus": '"folder"'}, "corpus must be a list"),
        ({"corpus": "[1]"}, "corpus must be a list"),
        ({"model": "3"}, "model must be a str"),
        ({"alone": "0.2\nelephants = 3"}, "missing or unknown: elephants"),
        ({"alone": "0.2\n["}, "cannot be read"),
    ],
)
def test_wrong_recipes_are_refused(
    folders: tuple[Path, Path], tmp_path: Path, changes: dict[str, str], says: str
) -> None:
    path = write_recipe(tmp_path / "recipe.toml", folders, tmp_path, **changes)
    with pytest.raises(InputError, match=says):
        read_recipe(path)


def test_missing_recipe_and_missing_key(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "few.toml").write_text('model = "internvqa-tiny"\n', encoding="utf-8")
    with pytest.raises(InputError, match="missing or unknown: alone, average"):
        read_recipe(tmp_path / "few.toml")


def test_shipped_recipe_can_be_read() -> None:
    root = Path(distill.__file__).resolve().parent.parent / "recipes"
    recipes = sorted(root.glob("*/recipe.toml"))
    assert recipes
    for path in recipes:
        assert read_recipe(path).model in ("internvqa-tiny",)


def test_drawn_clips_belong_together(folders: tuple[Path, Path], recipe: Recipe) -> None:
    shards = load_corpus([folders[0]])
    batch = draw(shards, recipe, np.random.default_rng(0))
    assert batch.reference.shape == (4, 2, 168, 112)
    assert batch.distorted.shape == (8, 2, 168, 112)
    assert batch.crop_labels.shape == (4, 2, len(OUTPUTS))
    assert batch.frame_labels.shape == (2, 2, len(OUTPUTS))
    scales = torch.tensor(distill.FEATURE_SCALES)
    for group in range(4):
        shard, crop = next(
            (s, c)
            for s in shards
            for c, clip in enumerate(s.reference)
            if torch.equal(clip, batch.reference[group])
        )
        for i in range(2):
            clip, label = batch.distorted[2 * group + i], batch.crop_labels[group, i]
            encode = next(
                e for e in range(len(shard.encodes)) if torch.equal(shard.distorted[e, crop], clip)
            )
            torch.testing.assert_close(label * scales, shard.crop_labels[encode, crop])


def test_same_draw_for_the_same_step(folders: tuple[Path, Path], recipe: Recipe) -> None:
    shards = load_corpus([folders[0]])
    one, other = (draw(shards, recipe, np.random.default_rng([0, 5])) for _ in range(2))
    assert torch.equal(one.distorted, other.distorted)


def test_losses_are_finite_and_named_in_the_recipe(
    folders: tuple[Path, Path], recipe: Recipe
) -> None:
    torch.manual_seed(0)
    student = create_student(recipe.model)
    batch = draw(load_corpus([folders[0]]), recipe, np.random.default_rng(0))
    parts = losses(student, batch, recipe, 3)
    assert set(parts) == {"crop", "pooled", "ordered", "features", "alone"}
    assert all(hasattr(recipe, name) for name in parts)
    assert all(value.isfinite() and value >= 0 for value in parts.values())


def test_eight_different_turns() -> None:
    clips = torch.arange(16.0).reshape(1, 1, 1, 4, 4)
    found = {tuple(turned(clips, turn).flatten().tolist()) for turn in range(8)}
    assert len(found) == 8
    assert torch.equal(turned(clips, 0), clips)


def test_evaluate_gives_figures_of_both_heads(folders: tuple[Path, Path]) -> None:
    torch.manual_seed(0)
    student = create_student("internvqa-tiny").eval()
    figures = evaluate(student, load_corpus(folders), CPU, crops=2)
    assert 0 <= figures["rmse"] <= 100
    assert {f"alone_{key}" for key in ("srcc", "krcc", "plcc", "rmse", "within_srcc")} <= set(
        figures
    )


def test_learning_rate_warms_up_and_falls(recipe: Recipe) -> None:
    schedule: Callable[[int, Recipe], float] = distill._schedule
    long = replace(recipe, steps=100, warm_up=10)
    rates = [schedule(step, long) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert schedule(100, long) == pytest.approx(0.01)
