"""Training by DeepSpeed's engine, on shards of noise: its end, its start, its refusals."""

import json
import math
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support import training
from tests.support.media import REPOSITORY
from tests.support.nets import noise
from tests.support.training import (
    CPU,
    left_in,
    logged,
    make_shard,
    same_weights,
    stop_at,
)
from vqaloop.cli.main import main
from vqaloop.core.resources import WEIGHTS
from vqaloop.errors import InputError
from vqaloop.media.colour import to_clips
from vqaloop.models import create_student
from vqaloop.models.head_config import HeadConfig
from vqaloop.models.internvideo2 import InternVideo2
from vqaloop.models.stream_facts import StreamFacts
from vqaloop.models.weights import load_student, save_student
from vqaloop.training import deepspeed_engine, starting_weights
from vqaloop.training import train as train_module
from vqaloop.training.batch import draw
from vqaloop.training.deepspeed_engine import engine_config
from vqaloop.training.recipe import Losses, Recipe, Teacher
from vqaloop.training.shards import load_corpus
from vqaloop.training.split import split_corpus
from vqaloop.training.starting_weights import initial_student, initial_teacher
from vqaloop.training.step import TrainingModel
from vqaloop.training.targets import Label, with_targets
from vqaloop.training.train import parameter_groups, train

data, recipe, pytestmark = training.data, training.recipe, training.QUIET


# --- a whole run ---------------------------------------------------------------------------------


def test_a_run_is_logged_and_goes_on_where_it_was_stopped(
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    said: list[str] = []
    whole = train(recipe, device=CPU, report=said.append)
    assert capfd.readouterr().out == "", "stdout is for results"
    out = Path(recipe.out)
    assert whole == out / "internvqa-mini.safetensors"
    assert left_in(out) == {
        "internvqa-mini.safetensors", "log.csv", "log.png", "latest", "checkpoint-4",
    }  # fmt: skip
    assert (out / "log.png").read_bytes().startswith(b"\x89PNG")
    rows = logged(out)
    steps = [row for row in rows if row["seconds"]]
    assert [float(row["step"]) for row in steps] == [1, 2, 3, 4]
    for row in steps:
        assert float(row["lr"]) > 0
        assert all(
            float(row[k]) >= 0 for k in ("region", "pooled", "ordered", "auxiliary", "alone")
        )
    assert said[0] == "3 scenes, 2 held out; 4 steps"
    told = [line for line in said if "held out, " in line]
    assert [re.match(r"step 4 held out, ([a-z ]+): ", line)[1] for line in told] == [  # type: ignore[index]
        "anchored",
        "no reference",
    ]
    rmse = float(rows[-1]["rmse"])
    assert math.isfinite(rmse) and f"RMSE {rmse:.3f}" in told[0] and "{" not in told[0]
    student, about = load_student(whole)
    assert (about["model"], about["label"]) == ("internvqa-mini", "VMAF v1")
    assert "panel" not in about
    assert student.config.outputs == ("v1", "cambi", "xpsnr")
    assert json.loads(about["recipe"]) == json.loads(json.dumps(asdict(recipe)))
    assert student.anchored is not None

    halves = replace(recipe, out=str(tmp_path / "halves"))
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "CHECKPOINT_EVERY", 1)
        stop_at(2, recipe.accumulate, patch)
        with pytest.raises(KeyboardInterrupt):
            train(halves, device=CPU)
    assert left_in(Path(halves.out)) == {"log.csv", "latest", "checkpoint-2"}
    said.clear()
    weights = train(halves, device=CPU, report=said.append)
    assert said[0] == "resumed at step 2"
    same_weights(weights, whole, atol=1e-6)
    # all steps are done: one more call only writes the weights again
    weights.unlink()
    assert train(halves, device=CPU, report=said.append) == weights
    assert "resumed at step 4" in said
    same_weights(weights, whole, atol=1e-6)
    # and from the start if asked
    said.clear()
    train(replace(halves, steps=1), device=CPU, resume=False, report=said.append)
    assert not any("resumed" in line for line in said)
    assert {row["step"] for row in logged(Path(halves.out))} == {"1.0"}


def test_the_engine_does_what_a_plain_loop_does(recipe: Recipe) -> None:
    """AdamW on the mean gradient of two batches, clipped; the mean of weights follows."""
    found = load_student(train(recipe, device=CPU))[0].state_dict()
    torch.manual_seed(recipe.seed)
    model = TrainingModel(initial_student(recipe)[0], None, recipe)
    mean: dict[str, Tensor] = {k: v.detach().clone() for k, v in model.student.named_parameters()}
    optimizer = torch.optim.AdamW(
        parameter_groups(model, recipe), lr=recipe.learning_rate, betas=(0.9, 0.99)
    )
    shards = [with_targets(s, Label("v1"), recipe.auxiliary) for s in load_corpus(recipe.corpus)]
    for step in range(4):
        done = (step - 1) / 3
        rate = 1e-3 if step == 0 else 1e-3 * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        for part in range(2):
            rng = np.random.default_rng([1, step, part, 0])
            batch = draw(shards, recipe, rng)
            parts: dict[str, Tensor] = model(batch, int(rng.integers(1 << 30)))
            total = sum((getattr(recipe.loss, k) * v for k, v in parts.items()), torch.zeros(()))
            (total / 2).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(0.9, (step + 1) / (step + 11))
        for name, new in model.student.named_parameters():
            mean[name] = decay * mean[name] + (1 - decay) * new.detach()
    for name, value in mean.items():
        # matrices come from the file in fp16
        torch.testing.assert_close(found[name], value, rtol=2e-3, atol=2e-4, msg=name)


def test_a_teacher_teaches_on_opinion_scores(
    recipe: Recipe, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The paper's recipe in small: no sources, a fold held out, last block and head training."""
    torch.manual_seed(7)
    large = create_student("internvqa-tiny", heads=False)
    save_student(large, tmp_path / "large.safetensors", "internvqa-tiny", "", {})
    taught = replace(
        recipe,
        corpus=(str(data / "mos"),),
        held_out=(),
        split="fold 1/2",
        loss=Losses(alone=1.0, teacher=1.0, feature=1.0),
        teacher=Teacher(
            "internvqa-tiny",
            str(tmp_path / "large.safetensors"),
            "paper",
            drop_path=0.3,
            recompute=True,
        ),
        steps=2,
        accumulate=1,
        augment="colour",
        layer_decay=0.75,
        betas=(0.9, 0.999),
        drop_path=0.1,
        recompute=True,
        rate_clips=4,
    )
    models: list[TrainingModel] = []

    def kept_model(*args: object) -> TrainingModel:
        models.append(TrainingModel(*args))  # type: ignore[arg-type]
        return models[-1]

    monkeypatch.setattr(train_module, "TrainingModel", kept_model)
    said: list[str] = []
    whole = train(taught, device=CPU, report=said.append)
    student, about = load_student(whole)
    assert said[0] == "2 scenes, 2 held out; 2 steps"
    assert "no scale in VMAF points" in said[-1] and "with their sources" in said[-1]
    assert "scale" not in about
    # 2 scenes x 2 crops x 2 encodes, of 4 that the rate is for
    assert [float(row["lr"]) for row in logged(Path(taught.out)) if row["lr"]] == pytest.approx(
        [2e-3 * train_module._schedule(step, taught) for step in (0, 1)]
    )
    assert student.anchored is None and student.alone is None
    first, last = logged(Path(taught.out))[0], logged(Path(taught.out))[1]
    for name in ("alone", "teacher", "feature"):
        assert float(first[name]) > 0 and first[name] != last[name]
    model = models[0]
    assert model.teacher is not None
    # checkpoints are without what is frozen
    (file,) = Path(taught.out).glob("checkpoint-2/*model_states.pt")
    names = set(deepspeed_engine.read(str(file))["module"])
    assert {n for n, p in model.named_parameters() if p.requires_grad} == names
    assert not any(n.startswith("teacher.backbone.blocks.0.") for n in names)
    # and a run that was stopped goes on from them all the same
    halves = replace(taught, out=str(tmp_path / "halves"))
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "CHECKPOINT_EVERY", 1)
        stop_at(1, taught.accumulate, patch)
        with pytest.raises(KeyboardInterrupt):
            train(halves, device=CPU)
    said.clear()
    same_weights(train(halves, device=CPU, report=said.append), whole, atol=1e-6)
    assert said[0] == "resumed at step 1"
    kept = load_student(tmp_path / "large.safetensors")[0].state_dict()
    moved = {k for k, v in model.teacher.state_dict().items() if not torch.equal(v, kept[k])}
    assert {"backbone.head.weight", "backbone.blocks.3.mlp.fc2.weight"} <= moved
    assert all(k.startswith(("backbone.head.", "backbone.blocks.3.")) for k in moved)


def test_a_fused_label_is_learnt_and_judged_by(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fitted to the plain encodes, kept in the header, and what `evaluate` compares with."""
    for side, titles in (("many", "xyz"), ("apart", "pq")):
        (tmp_path / side).mkdir()
        for title in titles:
            count = 26 if side == "many" else 6
            make_shard(tmp_path / side, title, ord(title), encodes=count, size=28)
    fused = replace(
        recipe,
        corpus=(str(tmp_path / "many"),),
        held_out=(str(tmp_path / "apart"),),
        label="panel",
        panel=("xpsnr", "cambi"),
        auxiliary=("v1", "xpsnr"),
        heads=HeadConfig(change=True, worst=2, canvas=True, two_distances=True),
        loss=replace(recipe.loss, pairs=0.1, fidelity=0.1),
        steps=2,
    )
    said: list[str] = []
    weights = train(fused, device=CPU, report=said.append)
    student, about = load_student(weights)
    assert student.config.outputs == ("panel", "v1", "xpsnr") and student.config.worst == 2
    assert about["label"] == "VMAF v1, lowered by XPSNR, CAMBI"
    members = json.loads(about["panel"])["members"]
    assert [member["name"] for member in members] == ["xpsnr", "cambi"]
    judges = json.loads(about["judges"])
    assert list(judges) == ["v1", "xpsnr", "cambi"] and judges["cambi"]["licence"]
    assert any("share of attacks below 92" in line for line in said)
    found = tmp_path / "f.json"
    argv = ["evaluate", str(weights), str(tmp_path / "apart"), "--quiet", "--device", "cpu"]
    assert main([*argv, "--json", str(found)]) == 0
    document = json.loads(found.read_text("utf-8"))
    assert document["label"] == about["label"]
    assert (document["encodes"], document["titles"]) == (10, 2), "without what is damaged"
    assert set(document["judges"]["anchored"]["labels"]) == {"v1", "cambi", "xpsnr"}
    assert document["judges"]["alone"]["attacks"]["flicker"]["count"] == 2
    rows = [row for row in logged(Path(fused.out)) if not row["seconds"]]
    assert float(rows[-1]["rmse"]) == pytest.approx(
        document["judges"]["anchored"]["overall"]["rmse"], abs=0.02
    )
    assert "attack" in capsys.readouterr().out


def test_an_engine_in_bf16_trains_and_goes_on(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "engine.json"
    config = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}}
    path.write_text(json.dumps(config), encoding="utf-8")
    half = replace(recipe, engine=str(path), steps=2, fixed_embedding=True)
    train(replace(half, steps=1), device=CPU)
    said: list[str] = []
    student, _ = load_student(train(half, device=CPU, report=said.append))
    assert said[0] == "resumed at step 1"
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in student.parameters())
    torch.manual_seed(recipe.seed)
    start = initial_student(recipe)[0].state_dict()
    moved = [k for k, v in student.state_dict().items() if (v - start[k]).abs().max() > 1e-4]
    assert len(moved) > len(start) / 2
    # bf16 would round what energies are computed of
    embedding = "backbone.patch_embed.proj.weight"
    assert not torch.equal(start[embedding], start[embedding].bfloat16().float())
    assert torch.equal(student.state_dict()[embedding], start[embedding])
    first, last = (row for row in logged(Path(half.out)) if row["seconds"])
    assert all(float(first[k]) > 0 for k in vars(recipe.loss) if getattr(recipe.loss, k))
    assert first["region"] != last["region"]


def test_an_embedding_may_stay_as_it_began(recipe: Recipe) -> None:
    fixed = replace(recipe, fixed_embedding=True, steps=1)
    found = load_student(train(fixed, device=CPU))[0].state_dict()
    torch.manual_seed(recipe.seed)
    start = initial_student(fixed)[0].state_dict()
    same = {k for k, v in found.items() if "patch_embed" in k and torch.equal(v, start[k])}
    assert same == {f"backbone.patch_embed.proj.{part}" for part in ("weight", "bias")}
    moved = "alone.fuse.2.bias"
    assert not torch.equal(found[moved], start[moved])


def test_training_twice_in_a_process_leaves_the_environment_usable(
    recipe: Recipe, tmp_path: Path
) -> None:
    short = replace(recipe, steps=1, accumulate=1)
    one = train(short, device=CPU)
    other = train(replace(short, out=str(tmp_path / "again")), device=CPU)
    # a program started later is no part of this run
    assert not os.environ.keys() & {
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
    }
    same_weights(one, other)


# --- what is refused before the first step -------------------------------------------------------


def test_titles_on_both_sides_are_refused(recipe: Recipe) -> None:
    leaky = replace(recipe, held_out=recipe.held_out + recipe.corpus)
    with pytest.raises(InputError, match="both sides of the split: a, b, c"):
        train(leaky, device=CPU)


def test_a_corpus_of_mixed_labels_is_refused(recipe: Recipe, data: Path, tmp_path: Path) -> None:
    make_shard(tmp_path, "other", 3, opinions=True, label="MOS of something")
    with pytest.raises(InputError, match="mixes labels or views"):
        train(replace(recipe, corpus=(*recipe.corpus, str(tmp_path))), device=CPU)


def test_a_fold_is_held_out(recipe: Recipe, data: Path) -> None:
    sides = []
    for fold in ("fold 1/2", "fold 2/2"):
        folded = replace(recipe, corpus=(str(data / "mos"),), held_out=(), split=fold)
        sides.append([sorted(s.content for s in side) for side in split_corpus(folded)])
    assert sides[0] == sides[1][::-1]
    assert sorted(sides[0][0] + sides[0][1]) == list("fghi") and len(sides[0][0]) == 2
    with pytest.raises(InputError, match="split 'halves' is not known"):
        train(replace(recipe, held_out=(), split="halves"), device=CPU)


def test_more_scenes_than_there_are_is_refused(recipe: Recipe) -> None:
    message = "takes 4 scenes and the corpus has 3; add clips to the corpus, or lower `scenes`"
    with pytest.raises(InputError, match=message):
        train(replace(recipe, scenes=4), device=CPU)
    apart = replace(recipe, scenes=4, held_out=(), split="fold 1/3")
    with pytest.raises(InputError, match="the corpus has 2 beside the 1 held out; add clips"):
        train(apart, device=CPU)


def test_a_teachers_corpus_must_match(recipe: Recipe, data: Path) -> None:
    teacher = Teacher("internvqa-tiny", corpus=(str(data / "mos"),))
    with pytest.raises(InputError, match="the teacher's corpus has no a of as many encodes"):
        train(replace(recipe, teacher=teacher), device=CPU)


def test_a_loss_that_is_no_number_ends_the_run(recipe: Recipe) -> None:
    with pytest.raises(InputError, match="no longer a number at step .; lower learning_rate"):
        train(replace(recipe, learning_rate=1e30, clip_norm=0.0, warm_up=0), device=CPU)


NAN = """
import os, sys
import torch
from vqaloop.training.deepspeed_engine import any_process

rank = int(os.environ["RANK"])
torch.distributed.init_process_group("gloo")
cpu = torch.device("cpu")
found = [any_process(rank == 1, cpu), any_process(False, cpu)]
torch.distributed.destroy_process_group()
sys.exit(0 if found == [True, False] else 1)
"""


def test_a_loss_that_is_no_number_in_one_process_stops_all() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", NAN],
            env={**os.environ, **shared, "RANK": str(rank), "PYTHONPATH": str(REPOSITORY)},
        )
        for rank in range(2)
    ]
    try:
        assert [child.wait(60) for child in children] == [0, 0]
    finally:
        for child in children:
            child.kill()


def test_an_engines_file_that_cannot_be_read_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "zero.json").write_text("{", encoding="utf-8")
    for name in ("zero.json", "none.json"):
        with pytest.raises(InputError, match=r"DeepSpeed's file .*\.json cannot be read"):
            train(replace(recipe, engine=str(tmp_path / name)), device=CPU)


# --- its parts -----------------------------------------------------------------------------------


def test_the_recipe_overrules_the_engines_file(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    path.write_text('{"bf16": {"enabled": true}, "gradient_clipping": 9}', encoding="utf-8")
    config = engine_config(replace(recipe, engine=str(path), clip_norm=0.5), 8)
    assert config["bf16"] == {"enabled": True} and config["gradient_clipping"] == 0.5
    assert config["train_micro_batch_size_per_gpu"] == 8
    assert config["gradient_accumulation_steps"] == 2
    assert "zero_optimization" not in config
    assert engine_config(recipe, 8)["zero_optimization"] == {"stage": 1}


def test_learning_rate_warms_up_and_falls(recipe: Recipe) -> None:
    schedule: Callable[[int, Recipe], float] = train_module._schedule
    long = replace(recipe, steps=100, warm_up=10)
    rates = [schedule(step, long) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert schedule(100, long) == pytest.approx(0.01)


def test_deep_blocks_learn_faster_and_only_matrices_decay(recipe: Recipe) -> None:
    decayed = replace(recipe, layer_decay=0.5, weight_decay=0.1)
    model = TrainingModel(create_student("internvqa-mini"), None, decayed)
    names = {id(p): n.removeprefix("student.") for n, p in model.named_parameters()}
    groups = parameter_groups(model, decayed)
    found = {names[id(p)]: (g["weight_decay"], g["scale"]) for g in groups for p in g["params"]}
    assert len(found) == len(names) == sum(len(g["params"]) for g in groups)
    expected = {
        "backbone.patch_embed.proj.weight": (0.1, 0.5**4),
        "backbone.patch_embed.proj.bias": (0.0, 0.5**4),
        "backbone.pos_embed": (0.0, 0.5**4),
        "backbone.cls_token": (0.0, 0.5**4),
        "backbone.blocks.0.mlp.fc1.weight": (0.1, 0.5**3),
        "backbone.blocks.2.mlp.fc1.weight": (0.1, 0.5),
        "backbone.blocks.2.norm1.weight": (0.0, 0.5),
        "backbone.head.weight": (0.1, 1.0),
        "anchored.fuse.0.bias": (0.0, 1.0),
    }
    for name, pair in expected.items():
        assert found[name] == pytest.approx(pair), name
    model.requires_grad_(False)
    assert parameter_groups(model, decayed) == []


def test_students_begin_from_nothing_from_weights_or_pruned(
    recipe: Recipe, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    fresh, _ = initial_student(recipe)
    assert isinstance(fresh.backbone, InternVideo2) and fresh.anchored is not None
    kernel = fresh.backbone.patch_embed.proj.weight[0, :, 0]
    assert kernel.std((1, 2)).max() < 1e-6 and kernel.abs().max() > 0, "a flat cosine"
    bare, _ = initial_student(replace(recipe, loss=Losses(alone=1.0)))
    assert bare.anchored is None

    paths = {
        name: tmp_path / f"{name}.safetensors" for name in ("internvqa-mini", "internvqa-tiny")
    }
    for name, path in paths.items():
        save_student(create_student(name), path, name, "", {})
        started, _ = initial_student(replace(recipe, start=str(path), loss=Losses(region=1.0)))
        assert started.config == HeadConfig()
        assert isinstance(started.backbone, InternVideo2) and started.backbone.config.depth == 3
        kept = load_student(path)[0].state_dict()
        wanted = {name: v for name, v in kept.items() if not name.startswith("backbone.blocks.")}
        bias = started.state_dict()["alone.context.bias"]
        assert torch.equal(bias, wanted["alone.context.bias"])
        with pytest.raises(
            InputError, match="has the auxiliary outputs adm2, .* cambi, xpsnr; name"
        ):
            initial_student(replace(recipe, start=str(path)))
    with pytest.raises(InputError):
        initial_student(replace(recipe, start=str(tmp_path / "none.safetensors")))


def test_heads_are_those_of_the_recipe(recipe: Recipe, tmp_path: Path) -> None:
    wide = HeadConfig(change=True, worst=3, canvas=True, two_distances=True)
    fresh, _ = initial_student(replace(recipe, heads=wide))
    outputs = ("v1", "cambi", "xpsnr")
    assert fresh.config == replace(wide, outputs=outputs)
    scored, _ = initial_student(replace(recipe, heads=wide), opinions=True)
    assert scored.config == replace(wide, outputs=("score",))
    path = tmp_path / "w.safetensors"
    save_student(fresh, path, recipe.model, "VMAF v1", {})
    started = replace(recipe, start=str(path))
    assert initial_student(started)[0].config == fresh.config, "those of what it begins with"
    timed = replace(wide, time_power=2.0)
    found, _ = initial_student(replace(started, heads=timed))
    assert found.config == replace(timed, outputs=outputs)
    for key, value in load_student(path)[0].state_dict().items():
        assert torch.equal(found.state_dict()[key], value)
    with pytest.raises(InputError, match="other token heads"):
        initial_student(replace(started, heads=replace(wide, worst=2)))


def test_opinions_train_no_head_that_takes_bitrates(recipe: Recipe, tmp_path: Path) -> None:
    bits = HeadConfig(bits=True)
    with pytest.raises(InputError, match="opinion scores do not record; leave it out"):
        initial_student(replace(recipe, heads=bits), opinions=True)
    fresh, _ = initial_student(replace(recipe, heads=bits))
    path = tmp_path / "w.safetensors"
    save_student(fresh, path, recipe.model, "VMAF v1", {})
    started = replace(recipe, start=str(path), loss=Losses(pooled=1.0))
    assert initial_student(started)[0].config.bits
    without, _ = initial_student(started, opinions=True)
    assert without.config == replace(fresh.config, bits=False)
    known, clips = load_student(path)[0], noise(2, 3, 2, 112, 112)
    with torch.inference_mode():
        expected = known(clips, stream=StreamFacts().inputs())
        torch.testing.assert_close(without(clips), expected)
        assert not torch.allclose(known(clips, stream=StreamFacts(0.5, 0.5).inputs()), expected)


def test_teachers_are_what_their_file_holds(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_student("internvqa-tiny")
    save_student(model, tmp_path / "t.safetensors", "internvqa-tiny", "", {})
    teacher, _ = initial_teacher(Teacher("internvqa-tiny", str(tmp_path / "t.safetensors")))
    assert teacher is not None and teacher.anchored is not None
    assert not any(p.requires_grad for p in teacher.parameters())
    clip = to_clips(torch.randint(16, 236, (1, 2, 168, 112), dtype=torch.uint8))
    with torch.inference_mode():
        torch.testing.assert_close(teacher(clip), model(clip), rtol=0, atol=1e-3)
    assert initial_teacher(None) == (None, frozenset())
    with pytest.raises(InputError):
        initial_teacher(Teacher("internvqa-tiny", str(tmp_path / "none.safetensors")))


@pytest.mark.parametrize("name", ["internvqa-mini", "fastvqa-tiny"])
def test_a_released_file_is_the_only_copy_in_memory(
    recipe: Recipe, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher of 1 G parameters is not filled with random values first, nor copied after."""
    torch.manual_seed(0)
    model = create_student(name, heads=False).backbone
    values = {k: v for k, v in model.state_dict().items() if not k.startswith(("head.", "vqa_h"))}
    torch.save(values, tmp_path / "released.pth")
    made: list[torch.device] = []

    def created(*args: object) -> object:
        student = create_student(*args)  # type: ignore[arg-type]
        made.append(next(student.parameters()).device)
        return student

    monkeypatch.setattr(starting_weights, "create_student", created)
    path = str(tmp_path / "released.pth")
    teacher, _ = initial_teacher(Teacher(name, path))
    student, _ = initial_student(replace(recipe, model=name, start=path, loss=Losses(alone=1.0)))
    assert teacher is not None and {device.type for device in made} == {"meta"}
    for found in (teacher, student):
        assert not any(value.is_meta for value in found.state_dict().values())
        for key, value in values.items():
            assert torch.equal(found.backbone.state_dict()[key], value), key
    assert all(p.requires_grad for p in student.parameters())
    mean = train_module._copy(student, replace(recipe, model=name), CPU)
    for key, value in mean.state_dict().items():
        own = student.state_dict()[key]
        assert torch.equal(value, own) and value.data_ptr() != own.data_ptr()


def test_a_shipped_student_is_named(recipe: Recipe) -> None:
    bare = replace(recipe, loss=Losses(region=1.0), start="internvqa-mini")
    found, known = initial_student(bare)
    shipped, about = load_student(WEIGHTS / "internvqa-mini.safetensors")
    assert known == frozenset(json.loads(about["titles"])) and known
    for key, value in shipped.state_dict().items():
        assert torch.equal(found.state_dict()[key], value)


def test_blocks_of_a_fastvqa_are_counted_through_its_stages(recipe: Recipe) -> None:
    decayed = replace(recipe, layer_decay=0.5)
    with torch.device("meta"):
        model = TrainingModel(create_student("fastvqa-tiny", heads=False), None, decayed)
    names = {id(p): n.split("backbone.", 1)[1] for n, p in model.named_parameters()}
    groups = parameter_groups(model, decayed)
    found = {names[id(p)]: g["scale"] for g in groups for p in g["params"]}
    for name, below in (
        ("fragments_backbone.patch_embed.proj.weight", 13),
        ("fragments_backbone.layers.0.blocks.0.mlp.fc1.weight", 12),
        ("fragments_backbone.layers.0.blocks.1.mlp.fc1.weight", 11),
        ("fragments_backbone.layers.0.downsample.reduction.weight", 11),
        ("fragments_backbone.layers.1.blocks.0.mlp.fc1.weight", 10),
        ("fragments_backbone.layers.3.blocks.1.mlp.fc1.weight", 1),
        ("fragments_backbone.norm.weight", 0),
        ("vqa_head.fc_hid.weight", 0),
    ):
        match = [n for n in found if n.startswith(name.removesuffix("fc1.weight"))]
        assert match and all(found[n] == 0.5**below for n in match), name
