"""A small set laid out like Waterloo IVC 4K, up to ladders that its students steer, delivered."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.media import REPOSITORY, make_clip
from tests.support.waterloo import make_waterloo
from vqaloop.cli.main import main
from vqaloop.models.weights import load_student

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

ANCHORED = f"""
extends = "{REPOSITORY}/recipes/waterloo-mini/recipe.toml"
split = "fold 1/3"
steps = 3
scenes = 2
crops = 2
encodes = 3
warm_up = 1
"""
SQUEEZED = f"""
extends = "{REPOSITORY}/recipes/waterloo-small/recipe.toml"
model = "internvqa-mini"
start = "internvqa-mini"
corpus = ["squeezed"]
split = "fold 1/3"
out = "runs/squeezed"
steps = 3
scenes = 2
encodes = 3
warm_up = 1
frames = 2
crop = 112

[teacher]
model = "internvqa-tiny"
weights = "internvqa-tiny"
"""


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the set, one of whose files is missing, and a title of another."""
    room = tmp_path_factory.mktemp("waterloo")
    sizes = ((208, 118), (416, 234))
    made = make_waterloo(room / "set", encoders=("h264", "avs2"), sizes=sizes, frames=20)
    (made / "H264" / "02" / "208x118_1.mp4").unlink()
    make_clip(room / "title.y4m", size="320x180", frames=30)
    return room


def run(room: Path, *argv: str) -> str:
    """Run a program there with this tree's vqaloop; its stdout."""
    tools = room / "tools"
    tools.mkdir(exist_ok=True)
    program = tools / "vqaloop"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vqaloop "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "PATH": f"{tools}:{os.environ['PATH']}",
        "DEVICE": "cpu",
    }
    done = subprocess.run(
        argv, cwd=room, env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def steered(room: Path, weights: Path, name: str) -> dict[str, Any]:
    """The document of a ladder of the title by these weights, delivered."""
    out = room / name
    argv = ["ladder", str(room / "title.y4m"), "-o", str(out), "--weights", str(weights)]
    argv += ["--codec", "h264", "--preset", "ultrafast", "--prior", "none", "--device", "cpu"]
    assert main([*argv, "--resolutions", "320x180,160x90", "--rungs", "2", "--quiet"]) in (0, 3)
    assert main(["deliver", str(out), "-o", str(room / f"{name}-delivered"), "--quiet"]) == 0
    assert (room / f"{name}-delivered" / "master.m3u8").is_file()
    document: dict[str, Any] = json.loads((out / "ladder.json").read_text(encoding="utf-8"))
    assert document["metric"]["label"] == "MOS of Waterloo IVC 4K"
    return document


def check_rungs(document: dict[str, Any]) -> None:
    scores = [rung["score"] for rung in document["rungs"]]
    points = [rung["guard"]["vmaf"] for rung in document["rungs"]]
    assert len(scores) == 2 and scores == sorted(scores) and points == sorted(points)


def test_one_command_from_the_sets_folder_to_an_anchored_student(room: Path) -> None:
    (room / "waterloo-mini.toml").write_text(ANCHORED, encoding="utf-8")
    script = str(REPOSITORY / "recipes" / "waterloo-small" / "make.sh")
    said = run(room, "bash", script, "set", "waterloo-mini.toml")
    weights = room / "runs" / "waterloo-mini" / "internvqa-mini.safetensors"
    assert said.splitlines()[-1].endswith(f"--weights {weights.relative_to(room)}")
    shards = room / "runs" / "waterloo-native"
    report = json.loads((shards / "report.json").read_text(encoding="utf-8"))
    assert report["expected"] == 1200 and report["found"] == 23
    assert report["missing"] == ["H264/02/208x118_1.mp4"]
    figures = json.loads((weights.parent / "figures.json").read_text(encoding="utf-8"))
    assert figures["titles"] == 1, "the other two were trained on"
    assert set(figures["judges"]) == {"anchored", "alone"}
    student, about = load_student(weights)
    trained = [name for name in json.loads(about["titles"]) if name.startswith("waterloo-")]
    assert student.anchored is not None and len(trained) == 2
    scale = json.loads(about["scale"])
    assert (scale["mode"], scale["titles"]) == ("anchored", 2)
    assert (np.diff(scale["to_vmaf"], axis=0) > 0).all()

    document = steered(room, weights, "anchored")
    assert document["metric"]["scale"] == scale
    check_rungs(document)


@pytest.mark.slow
def test_a_student_of_squeezed_pictures_with_a_teacher(room: Path) -> None:
    """The paper's recipe in small: random windows, drop path, a frozen teacher, bf16."""
    (room / "squeezed.toml").write_text(SQUEEZED, encoding="utf-8")
    view = ["--view", "squeezed", "--frames", "5", "--stride", "4", "--size", "128"]
    argv = ["corpus", str(room / "set"), str(room / "squeezed"), "--dataset", "waterloo", *view]
    assert main([*argv, "--clips", "1", "--workers", "2", "--quiet"]) == 0
    said = run(room, "vqaloop", "distill", "squeezed.toml", "--device", "cpu")
    weights = room / said.split()[-1]
    _, about = load_student(weights)
    view_of_weights = json.loads(about["view"])
    assert (view_of_weights["size"], view_of_weights["crop"]) == (128, 112)
    assert (view_of_weights["frames"], view_of_weights["clips"]) == (2, 2)
    (held,) = {f"waterloo-0{i}" for i in (1, 2, 3)} - set(json.loads(about["titles"]))
    argv = ["evaluate", str(weights), str(room / "squeezed"), "-o", str(room / "figures")]
    assert main([*argv, "--quiet", "--device", "cpu"]) == 0
    figures = json.loads((room / "figures" / "figures.json").read_text(encoding="utf-8"))
    assert figures["titles"] == 1 and held in (room / "figures" / "predictions.csv").read_text()
    assert figures["judges"]["alone"]["centre_clip"]["count"] == 8 - (held == "waterloo-02")
    document = steered(room, weights, "squeezed-ladder")
    assert document["metric"]["mode"] == "difference"
    assert document["metric"]["scale"] == json.loads(about["scale"])
    check_rungs(document)
