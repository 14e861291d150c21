"""What tests of training share: shards of noise, a small recipe, what a run left.

A test module takes the fixtures over by `data, recipe = training.data, training.recipe`.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from vqaloop.models.student import OUTPUTS
from vqaloop.models.weights import load_student
from vqaloop.training import train
from vqaloop.training.recipe import Losses, Recipe
from vqaloop.training.shards import write_shard
from vqaloop.training.step import draw

pytest.importorskip("deepspeed", reason="training needs DeepSpeed")

CPU = torch.device("cpu")
ENCODES, CROPS = 3, 2
QUIET = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
"""Marks against what DeepSpeed and the compiler it imports say of themselves."""


def make_shard(
    folder: Path, title: str, seed: int, opinions: bool = False, label: str = "VMAF v0.6.1"
) -> None:
    rng = np.random.default_rng(seed)
    rows = [
        {"score": 20.0 + 25 * e + seed % 5, "encoder": "x264", "width": 112, "height": 112}
        for e in range(ENCODES)
    ]
    arrays = {"distorted": rng.integers(16, 236, (ENCODES, CROPS, 2, 168, 112), np.uint8)}
    if not opinions:
        arrays["reference"] = rng.integers(16, 236, (CROPS, 2, 168, 112), np.uint8)
        labels = rng.random((2, ENCODES, CROPS, 7)).astype(np.float32)
        labels[..., 0] *= 100
        arrays["region_labels"], arrays["frame_labels"] = labels
    scene = {"content": title, "canvas": [112, 112], "distances": [1] * CROPS}
    scene["places"] = [0] * CROPS
    names = () if opinions else OUTPUTS
    write_shard(folder / f"{title}.safetensors", arrays, scene, rows, label, labels=names)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards: `train` a to c, `held` d and e, `mos` f to i without sources."""
    base = tmp_path_factory.mktemp("data")
    for side, titles in (("train", "abc"), ("held", "de"), ("mos", "fghi")):
        (base / side).mkdir()
        for title in titles:
            label = "MOS of people" if side == "mos" else "VMAF v0.6.1"
            make_shard(base / side, title, ord(title), opinions=side == "mos", label=label)
    return base


@pytest.fixture
def recipe(data: Path, tmp_path: Path) -> Recipe:
    return Recipe(
        model="internvqa-mini",
        corpus=(str(data / "train"),),
        held_out=(str(data / "held"),),
        out=str(tmp_path / "out"),
        steps=4,
        learning_rate=1e-3,
        loss=Losses(crop=1.0, pooled=1.0, ordered=1.0, features=0.5, alone=0.2),
        seed=1,
        accumulate=2,
        warm_up=1,
        average=0.9,
        scenes=2,
        crops=2,
        encodes=2,
    )


def stop_at(step: int, accumulate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt training when it draws the first batch of that step."""
    real, drawn = draw, 0

    def interrupted(*args: object) -> object:
        nonlocal drawn
        if drawn == step * accumulate:
            raise KeyboardInterrupt
        drawn += 1
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(train, "draw", interrupted)


def same_weights(one: Path, other: Path, atol: float = 0.0) -> None:
    first, second = (load_student(path)[0].state_dict() for path in (one, other))
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=atol, msg=name)


def logged(out: Path) -> list[dict[str, str]]:
    names, *rows = (out / "log.csv").read_text(encoding="utf-8").splitlines()
    return [dict(zip(names.split(","), row.split(","), strict=True)) for row in rows]


def left_in(out: Path) -> set[str]:
    """What a run leaves, but for the tools that DeepSpeed puts beside its checkpoints."""
    return {path.name for path in out.iterdir() if not path.name.startswith("zero_to_")}
