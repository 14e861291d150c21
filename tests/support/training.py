"""What tests of training share: shards of noise, a small recipe, what a run left.

A test module takes the fixtures over by `data, recipe = training.data, training.recipe`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vqaloop.models.weights import load_student
from vqaloop.training import train
from vqaloop.training.batch import draw
from vqaloop.training.recipe import Losses, Recipe
from vqaloop.training.shards import write_shard

pytest.importorskip("deepspeed", reason="training needs DeepSpeed")

CPU = torch.device("cpu")
ENCODES, REGIONS, CROPS = 3, 2, 2
"""Of a scene; crops of a region, or of a scene of opinion scores."""
NAMES = ("v1", "cambi", "xpsnr")
QUIET = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
"""Marks against what DeepSpeed and the compiler it imports say of themselves."""


def make_shard(
    folder: Path,
    title: str,
    seed: int,
    opinions: bool = False,
    label: str = "VMAF v1",
    source: bool = False,
    encodes: int = ENCODES,
    size: int = 112,
) -> None:
    """A scene of regions, the last encode of which is damaged; or one of `opinions`."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = [
        {"score": (20.0 + 25 * e + seed % 5) % 100, "encoder": "x264", "width": 112, "height": 112}
        for e in range(encodes)
    ]
    crops = CROPS if opinions else REGIONS * CROPS
    arrays = {
        "distorted": rng.integers(16, 236, (encodes, crops, 2, size * 3 // 2, size), np.uint8)
    }
    if source or not opinions:
        arrays["reference"] = rng.integers(16, 236, (crops, 2, size * 3 // 2, size), np.uint8)
    path, scene = folder / f"{title}.safetensors", {"content": title, "canvas": [224, 112]}
    if opinions:
        write_shard(path, arrays, scene, rows, label)
        return
    labels = rng.random((2, encodes, REGIONS, len(NAMES)), np.float32) * (100, 20, 50)
    labels[1, ..., 2] = np.nan
    arrays["region_labels"], arrays["frame_labels"] = labels.astype(np.float32)
    scene |= {"distances": [1, 5], "places": [0, 20]}
    rows[-1]["attack"] = {"name": "flicker", "strength": 0.5}
    write_shard(path, arrays, scene, rows, label, labels=NAMES, region=CROPS)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards: `train` a to c, `held` d and e, `mos` f to i without sources."""
    base = tmp_path_factory.mktemp("data")
    for side, titles in (("train", "abc"), ("held", "de"), ("mos", "fghi")):
        (base / side).mkdir()
        for title in titles:
            label = "MOS of people" if side == "mos" else "VMAF v1"
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
        loss=Losses(region=1.0, pooled=1.0, ordered=1.0, auxiliary=0.5, alone=0.2),
        auxiliary=("cambi", "xpsnr"),
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
