"""A mini Waterloo set, five encoders, goes through prepare, distil (killed, resumed), evaluate."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.support.media import REPOSITORY
from tests.support.waterloo import make_waterloo
from vqaloop.cli.main import main
from vqaloop.models.weights import load_student

pytestmark = pytest.mark.slow

RECIPE = """
model = "internvqa-tiny"
corpus = ["shards"]
split = "fold 1/3"
out = "{out}"
engine = "deepspeed.json"
steps = 4
accumulate = 2
learning_rate = 1e-4
layer_decay = 0.75
warm_up = 1
average = 0.5
augment = "mirror"
scenes = 2
crops = 1
encodes = 3

[teacher]
model = "base-thin"
freeze = "paper"

[loss]
alone = 1.0
teacher = 1.0
feature = 1.0
"""
TRAIN = """
import sys
import vqaloop.models as models
from vqaloop.models.internvideo2 import Config

# Base's twelve blocks and heads, thin
models.CONFIGS["base-thin"] = Config(width=96, depth=12, heads=12, mlp_width=192)
models.MODELS = (*models.MODELS, "base-thin")

from vqaloop.training import train as distill
from vqaloop.cli.main import main

distill.CHECKPOINT_EVERY = 1
sys.exit(main(["distill", sys.argv[1], "--device", "cpu"]))
"""


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the set, its shards, and two recipes that differ in `out`."""
    room = tmp_path_factory.mktemp("waterloo")
    make_waterloo(room / "set", header="encoder, content, resolution, level, MOS")
    (room / "set" / "AV1" / "02").joinpath("128x72_1.mp4").unlink(missing_ok=True)
    view = ["--view", "squeezed", "--frames", "2", "--stride", "4", "--size", "112"]
    prepared = ["corpus", str(room / "set"), str(room / "shards"), "--dataset", "waterloo", *view]
    assert main([*prepared, "--clips", "2", "--workers", "2", "--quiet"]) == 0
    for name in ("straight", "killed"):
        (room / f"{name}.toml").write_text(RECIPE.format(out=name), encoding="utf-8")
    engine = {"zero_optimization": {"stage": 1}, "bf16": {"enabled": True}}
    (room / "deepspeed.json").write_text(json.dumps(engine), encoding="utf-8")
    return room


def start(room: Path, recipe: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    argv = [sys.executable, "-c", TRAIN, recipe]
    return subprocess.Popen(argv, cwd=room, env=environment, stdout=subprocess.PIPE)


def test_report_says_how_much_of_the_set_is_there(room: Path) -> None:
    report = json.loads((room / "shards" / "report.json").read_text(encoding="utf-8"))
    assert report["expected"] == 1200
    assert report["found"] == 3 * 5 * 3 * 2 - len(report["missing"])
    assert len(report["encoders"]) == 5


def test_distilled_killed_resumed_and_evaluated(room: Path) -> None:
    straight = start(room, "straight.toml")
    said, _ = straight.communicate(timeout=300)
    assert straight.returncode == 0
    assert said.decode().strip() == f"weights in {Path('straight') / 'internvqa-tiny.safetensors'}"

    killed, latest = start(room, "killed.toml"), room / "killed" / "latest"
    deadline = time.monotonic() + 200
    while not (latest.exists() and latest.read_text() >= "checkpoint-2"):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=30)
    assert not (room / "killed" / "internvqa-tiny.safetensors").exists()
    resumed = start(room, "killed.toml")
    resumed.communicate(timeout=300)
    assert resumed.returncode == 0

    one, other = (
        load_student(room / name / "internvqa-tiny.safetensors")[0].state_dict()
        for name in ("straight", "killed")
    )
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-5, msg=name)
    with (room / "killed" / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    trained = [row for row in rows if row["alone"]]
    assert [float(row["step"]) for row in trained] == [1, 2, 3, 4]
    assert all(float(row[part]) > 0 for row in trained for part in ("teacher", "feature"))
    assert (room / "killed" / "log.png").stat().st_size > 1000

    weights = room / "killed" / "internvqa-tiny.safetensors"
    found = room / "figures.json"
    argv = ["evaluate", str(weights), str(room / "shards"), "-o", str(room / "figures")]
    assert main([*argv, "--json", str(found), "--quiet", "--device", "cpu"]) == 0
    figures = json.loads(found.read_text(encoding="utf-8"))
    assert "MOS of Waterloo IVC 4K" in json.dumps(figures)
    assert figures["titles"] == 1  # the other two were trained on
    _, about = load_student(weights)
    assert len(json.loads(about["titles"])) == 2
    assert json.loads(about["recipe"])["engine"] == "deepspeed.json"
    assert (room / "figures" / "predictions.csv").exists()
    assert (room / "figures" / "scatter-no-reference.png").exists()
