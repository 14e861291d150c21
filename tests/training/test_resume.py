"""Training that was stopped, killed or damaged: what goes on, and what is refused."""

import json
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from tests.support import training
from tests.support.media import REPOSITORY
from tests.support.training import (
    CPU,
    left_in,
    logged,
    same_weights,
    stop_at,
)
from vqaloop.errors import InputError
from vqaloop.training import deepspeed_engine
from vqaloop.training.recipe import Losses, Recipe
from vqaloop.training.train import train
from vqaloop.training.training_log import TrainingLog

data, recipe, pytestmark = training.data, training.recipe, training.QUIET


# --- a killed run --------------------------------------------------------------------------------

CHILD = """
import sys
from pathlib import Path
import torch
from vqaloop.training import train as distill
from vqaloop.training import deepspeed_engine as engine
from vqaloop.training.recipe import read_recipe
distill.CHECKPOINT_EVERY = 1
distill.train(read_recipe(Path(sys.argv[1])), device=torch.device("cpu"))
"""


def written(recipe: Recipe, path: Path) -> Path:
    """The recipe as TOML."""
    rows, tables = [], []
    for key, value in asdict(recipe).items():
        if isinstance(value, dict):
            tables += [f"[{key}]", *(f"{k} = {json.dumps(v)}" for k, v in value.items())]
        elif value is not None:
            rows.append(f"{key} = {json.dumps(value)}")
    path.write_text("\n".join([*rows, *tables]) + "\n", encoding="utf-8")
    return path


def test_a_run_killed_outright_goes_on_in_a_new_process(recipe: Recipe, tmp_path: Path) -> None:
    long = replace(recipe, steps=400, accumulate=1)
    path = written(long, tmp_path / "recipe.toml")
    root = REPOSITORY
    errors = tmp_path / "errors.txt"
    with errors.open("w", encoding="utf-8") as file:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path)],
            cwd=root, stdout=subprocess.DEVNULL, stderr=file,
        )  # fmt: skip
    latest = Path(recipe.out) / "latest"
    try:
        end = time.monotonic() + 120
        while not (latest.exists() and int(latest.read_text().split("-")[1]) >= 2):
            assert child.poll() is None, errors.read_text(encoding="utf-8")
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait(30)
    step = int(latest.read_text(encoding="ascii").split("-")[1])
    said: list[str] = []
    train(replace(long, steps=step + 1), device=CPU, report=said.append)
    assert said[0] == f"resumed at step {step}"
    assert left_in(Path(recipe.out)) == {
        "internvqa-mini.safetensors", "log.csv", "log.png", "latest", f"checkpoint-{step + 1}",
    }  # fmt: skip
    rows = [row["step"] for row in logged(Path(recipe.out)) if row["seconds"]]
    assert rows[-1] == f"{step + 1}.0" and len(set(rows)) == len(rows)


# --- checkpoints that do not fit -----------------------------------------------------------------


class Trap:
    """Writes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one step."""
    out = tmp_path_factory.mktemp("finished") / "out"
    train(one_step(data, out), device=CPU)
    return out


def one_step(data: Path, out: Path) -> Recipe:
    return Recipe(
        "internvqa-mini", (str(data / "train"),), str(out), 1, 1e-3, Losses(region=1.0),
        (str(data / "held"),), scenes=1, crops=1, encodes=1,
    )  # fmt: skip


def copied(finished: Path, to: Path) -> Path:
    checkpoint = to / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    (to / "latest").write_text("checkpoint-1", encoding="ascii")
    for file in (finished / "checkpoint-1").iterdir():
        (checkpoint / file.name).write_bytes(file.read_bytes())
    return checkpoint


def refused(recipe: Recipe) -> str:
    with pytest.raises(InputError, match="is no checkpoint of this recipe") as error:
        train(recipe, device=CPU)
    text = str(error.value)
    assert "--restart" in text and str(Path(recipe.out) / "latest") in text
    return text


@pytest.mark.parametrize("kind", ["model_states", "optim_states"])
@pytest.mark.parametrize("how", ["garbage", "cut", "empty", "trap", "gone"])
def test_damaged_checkpoints_are_refused_and_never_run(
    data: Path, finished: Path, tmp_path: Path, kind: str, how: str
) -> None:
    out = tmp_path / "out"
    (file,) = copied(finished, out).glob(f"*{kind}.pt")
    whole, sprung = file.read_bytes(), tmp_path / "sprung"
    if how == "gone":
        file.unlink()
    elif how == "trap":
        torch.save({"module": Trap(sprung), "optimizer_state_dict": Trap(sprung)}, file)
    else:
        file.write_bytes({"garbage": b"garbage", "cut": whole[:999], "empty": b""}[how])
    refused(one_step(data, out))
    assert not sprung.exists()
    assert (out / "latest").exists(), "what was there is left for the user to look at"
    if how == "trap":  # the trap is a trap: plain pickle springs it
        torch.load(file, weights_only=False)
        assert sprung.exists()
        sprung.unlink()
        file.write_bytes(pickle.dumps(Trap(sprung), protocol=2))
        refused(one_step(data, out))
        assert not sprung.exists()


def test_a_checkpoint_of_another_model_is_refused(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    copied(finished, tmp_path / "out")
    refused(replace(one_step(data, tmp_path / "out"), model="internvqa-tiny"))


@pytest.mark.parametrize("tag", ["checkpoint-7", "../out/checkpoint-1", "", "\xff"])
def test_a_tag_that_names_no_checkpoint_is_refused(
    data: Path, finished: Path, tmp_path: Path, tag: str
) -> None:
    copied(finished, tmp_path / "out")
    (tmp_path / "out" / "latest").write_bytes(tag.encode("latin-1"))
    refused(one_step(data, tmp_path / "out"))


def test_a_checkpoint_of_more_processes_is_refused(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    (file,) = copied(finished, tmp_path / "out").glob("*model_states.pt")
    state = deepspeed_engine.read(str(file))
    assert state["dp_world_size"] == 1 and state["titles"] == ["a", "b", "c"]
    torch.save({**state, "dp_world_size": 2}, file)
    assert "world size" in refused(one_step(data, tmp_path / "out"))


def test_a_run_begun_anew_forgets_its_checkpoint_at_once(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(finished, tmp_path / "out")
    stop_at(0, 1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(one_step(data, tmp_path / "out"), device=CPU, resume=False)
    assert not (tmp_path / "out" / "latest").exists()


def test_a_damaged_checkpoint_can_be_left_behind(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for file in copied(finished, out).iterdir():
        file.write_bytes(b"garbage")
    (out / "checkpoint-9").mkdir()
    (out / "checkpoint-best").mkdir()  # somebody's own
    train(one_step(data, out), device=CPU, resume=False)
    assert {p.name for p in out.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-best"}
    same_weights(out / "internvqa-mini.safetensors", finished / "internvqa-mini.safetensors")


@pytest.mark.parametrize("text", ["step,crop\n1,2,3\n", "a,b\n1,2\n", "step\nx\n"])
def test_a_log_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "log.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"log\.csv is no log of a run"):
        TrainingLog(tmp_path / "log.csv").open(1)


def test_a_log_forgets_steps_that_will_be_taken_again(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path / "log.csv")
    log.open(0)
    for step in range(1, 31):
        log.add({"step": step, "lr": 1e-3, "seconds": 0.5, "crop": 0.04})
    log.add({"step": 30, "srcc": -0.5, "plcc4": 0.5, "rmse": None})
    log.plot(tmp_path / "log.png")
    again = TrainingLog(tmp_path / "log.csv")
    again.open(12)
    assert [row["step"] for row in again.rows] == list(range(1, 13))
    assert again.summary(5, 130) == "0.50 s a step, 1:05 left; root of each loss: crop 0.2000"
    again.write()
    whole = TrainingLog(tmp_path / "log.csv")
    whole.open(30)
    assert len(whole.rows) == 12


def test_enums_of_other_pythons_are_read_and_no_other_attribute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepspeed.runtime.zero.config import ZeroStageEnum

    stage, file = ZeroStageEnum.gradients, tmp_path / "state.pt"

    # as Python 3.11.2 has it
    def save(name: str) -> None:
        monkeypatch.setattr(
            ZeroStageEnum, "__reduce_ex__", lambda self, _: (getattr, (type(self), name))
        )
        torch.save({"zero_stage": stage}, file)

    save(stage.name)
    assert deepspeed_engine.read(str(file)) == {"zero_stage": stage}
    save("__init__")
    with pytest.raises(pickle.UnpicklingError, match="not allowed"):
        deepspeed_engine.read(str(file))
