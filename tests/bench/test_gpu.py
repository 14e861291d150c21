"""The bench of GPUs, in miniature on a CPU, and how it goes on from failures."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench import gpu, gpu_sections
from bench.gpu_sections import Findings, Run, Untestable
from tests.support.lessons import shard
from vqaloop.models.weights import load_student
from vqaloop.training.shards import write_shard

Section = Callable[[Run], Findings]


def run_of(folder: Path, minutes: float = 1.0) -> Run:
    deadline = time.monotonic() + 60 * minutes
    lines: list[str] = []
    return Run(torch.device("cpu"), True, deadline, lines.append, out=folder / "gpu.json")


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Section]], None]:
    return lambda sections: monkeypatch.setattr(gpu, "SECTIONS", sections)


def test_the_miniature_passes_on_a_cpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for number, name in enumerate("abcde", 1):
        made = shard(name, number)
        parts = {"distorted": made.distorted, "reference": made.reference}
        parts |= {"region_labels": made.region_labels, "frame_labels": made.frame_labels}
        arrays = {key: value.numpy() for key, value in parts.items() if value is not None}
        path = tmp_path / f"{name}.safetensors"
        scene: dict[str, object] = {"content": name, "canvas": made.canvas}
        scene |= {"distances": made.distances, "places": made.places}
        write_shard(
            path, arrays, scene, made.encodes, made.label, labels=made.labels, region=made.region
        )
    out = tmp_path / "gpu.json"
    status = gpu.main(["--small", "--out", str(out), "--data", str(tmp_path), "--minutes", "5"])
    done = json.loads(out.read_text())["sections"]
    assert {name: row["status"] for name, row in done.items()} == {
        **dict.fromkeys(gpu.SECTIONS, "ok"),
        "memory": "skipped",
    }, capsys.readouterr().out
    assert status == 0
    for name in gpu_sections.SHIPPED:
        assert done["agreement"][name]["anchored_largest"] <= gpu_sections.TOLERANCE
    ways = [row["way"] for row in done["throughput"]["internvqa-mini"]]
    assert ways == ["as it runs"] * 2 + ["cast"] * 2
    errors = [row["error"] for row in done["throughput"]["internvqa-mini"]]
    assert all(0 < error < 0.05 for error in errors)  # of bf16
    assert done["risks"]["TF32 set by the host program"]["status"] == "ok"
    assert done["risks"]["1B student"]["status"] == "not testable here"
    assert done["teacher"]["held_out"] == ["e"] and done["teacher"]["steps"] == 3
    assert done["teacher"]["figures"]["rmse"] > 0
    student, about = load_student(tmp_path / done["teacher"]["weights"])
    assert student.anchored is not None and json.loads(about["titles"]) == ["a", "b", "c", "d"]
    capsys.readouterr()
    assert gpu.main(["--table", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "| internvqa-tiny | 2 | 0.0" in printed
    assert "| memory | skipped: there is no card to fill" in printed
    assert "| internvqa-mini | cast | 2 |" in printed


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_the_miniature_passes_on_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.json"
    assert gpu.main(["--small", "--out", str(out), "--minutes", "5"]) == 0, capsys.readouterr().out
    done = json.loads(out.read_text())["sections"]
    assert done["agreement"]["status"] == done["memory"]["status"] == "ok"


def test_scores_that_differ_by_device_are_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(range(100))
    monkeypatch.setattr(
        gpu_sections, "scores", lambda *_: dict.fromkeys(("anchored", "alone"), next(answers))
    )
    found = gpu_sections.agreement(run_of(tmp_path))
    assert found.faults[0] == "internvqa-mini anchored: scores differ by 1.0000 points"


def test_a_section_that_fails_is_recorded_and_the_next_goes_on(
    tmp_path: Path, replaced: Callable[[dict[str, Section]], None]
) -> None:
    def broken(run: Run) -> Findings:
        raise RuntimeError("CUDA error")

    def absent(run: Run) -> Findings:
        raise ModuleNotFoundError("No module named 'msgspec'", name="msgspec")

    def impossible(run: Run) -> Findings:
        assert list(json.loads(run.out.read_text())["sections"]) == ["broken", "absent"]
        raise Untestable("no card")

    sections = {
        "broken": broken,
        "absent": absent,
        "impossible": impossible,
        "wrong": lambda run: Findings({"points": 3}, ["too many points"]),
        "right": lambda run: Findings({"points": 2}),
    }
    replaced(sections)
    done = gpu.run_all(run_of(tmp_path))["sections"]
    assert json.loads((tmp_path / "gpu.json").read_text())["sections"] == done
    found = [(row["status"], row.get("why")) for row in done.values()]
    assert found == [
        ("failed", "RuntimeError: CUDA error"),
        ("skipped", "the package msgspec is missing: carry its wheel"),
        ("skipped", "no card"),
        ("failed", "too many points"),
        ("ok", None),
    ]
    assert done["wrong"]["points"] == 3
    assert gpu.main(["--small", "--out", str(tmp_path / "gpu.json")]) == 1
    replaced({"right": sections["right"], "impossible": sections["absent"]})
    assert gpu.main(["--small", "--out", str(tmp_path / "gpu.json")]) == 0


def test_the_time_is_kept(
    tmp_path: Path,
    replaced: Callable[[dict[str, Section]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = threading.Event()
    left: list[int] = []

    def leave(status: int) -> None:
        left.append(status)
        ended.set()

    def hangs(run: Run) -> Findings:
        assert ended.wait(30)
        return Findings()

    monkeypatch.setattr("bench.gpu.os._exit", leave)
    monkeypatch.setattr(gpu, "GRACE_S", 0)
    written: list[str] = []
    write = gpu.write

    def noted(path: Path, document: dict[str, object]) -> None:
        write(path, document)
        written.append(path.read_text())

    monkeypatch.setattr(gpu, "write", noted)
    replaced({"hangs": hangs, "late": lambda run: Findings()})
    done = gpu.run_all(run_of(tmp_path, minutes=0.01))["sections"]
    assert left == [1] and "did not end in time and was cut off" in written[0]
    assert done["late"] == {"status": "skipped", "why": "no time left"}


def test_wrong_places_are_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["--small", "--out", str(tmp_path / "no" / "gpu.json")]) == 2
    assert gpu.main(["--small", "--data", str(tmp_path / "no")]) == 2
    assert gpu.main(["--small", "--minutes", "0", "--out", str(tmp_path / "gpu.json")]) == 2
    assert gpu.main(["--table", str(tmp_path / "no.json")]) == 2
    assert not (tmp_path / "gpu.json").exists()
    said = capsys.readouterr().err
    assert "there is no such folder" in said and "is no folder" in said
