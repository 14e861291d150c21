"""The programs of docs/pipeline.md, run as they stand there."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.media import REPOSITORY, make_clip
from vqaloop import build_ladder
from vqaloop.core.ffmpeg import ffmpeg_path

TEXT = (REPOSITORY / "docs" / "pipeline.md").read_text("utf-8")
QUICK: dict[str, Any] = dict(metric="psnr", preset="ultrafast", rungs=2, min_step=0.2)


def program(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n```python\n(.*?)^```$", TEXT, re.DOTALL | re.M)
    assert found, name
    return found[1]


def run(name: str, **known: Any) -> dict[str, Any]:
    """Run a program as often as somebody tries it: twice. What it leaves of its second run."""
    space = {}
    for _ in range(2):
        space = {"__name__": "docs", **known}
        exec(compile(program(name), "docs/pipeline.md", "exec"), space)
    return space


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_watched_folder_fills_another_with_deliveries(folder: Path) -> None:
    inbox, outbox = folder / "in", folder / "out"
    inbox.mkdir()
    make_clip(inbox / "good.mp4", size="256x144", frames=50)
    (inbox / "bad.mp4").write_text("no video")
    (inbox / ".half.mp4").write_text("still being copied")
    watch: Callable[..., None] = run("watch folder")["watch"]
    watch(inbox, outbox, once=True, codec="h264", min_ratio=1.2, **QUICK)
    good = json.loads((outbox / "good.mp4.json").read_text())
    assert len(good["rungs"]) == 2 and good["delivery"]["hls"]["playlist"] == "master.m3u8"
    assert (outbox / "good.mp4" / "delivery" / "master.m3u8").is_file()
    assert "bad.mp4" in json.loads((outbox / "bad.mp4.json").read_text())["error"]
    assert not (outbox / ".half.mp4.json").exists()
    before = (outbox / "good.mp4.json").stat().st_mtime_ns
    watch(inbox, outbox, once=True, codec="h264", min_ratio=1.2, **QUICK)
    assert (outbox / "good.mp4.json").stat().st_mtime_ns == before


def test_a_job_tells_as_it_goes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_clip(folder / "in.mp4", size="256x144", frames=50, vf="noise=alls=12:allf=t")
    run("job")
    told = capsys.readouterr().out.splitlines()
    assert any(line.startswith("encode") for line in told)
    assert abs(float(told[-1]) - 80) <= 0.5
    assert (folder / "out.mp4").is_file()


def test_a_rung_is_made_again_elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = make_clip(folder / "title.y4m", size="192x108", frames=24)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    (folder / "ffmpeg").symlink_to(ffmpeg_path())
    ladder = build_ladder(clip, codec="h264", min_ratio=1.2, **QUICK)
    # ffmpeg asks before it writes over a file, and takes no answer for a no
    for number in range(len(ladder.rungs)):
        (folder / f"again{number}.mp4").write_text("of an earlier run")
    run("elsewhere")
    for number, rung in enumerate(ladder.rungs):
        made = (folder / f"again{number}.mp4").read_bytes()
        assert made == (ladder.folder / rung.file).read_bytes()


def test_a_loop_of_one_s_own_drives_the_controller(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import math

    def encode_and_score(scene: Any, knob: float) -> tuple[float, float]:
        ease = 0.0 if scene.start_frame else 6.0
        return 2e6 * 2 ** (-(knob + ease) / 6), 100 / (1 + math.exp((knob - ease - 38) / 6))

    space = run("controller", encode_and_score=encode_and_score)
    controller = space["controller"]
    assert abs(controller.mean_score - 85) <= 0.5 and not controller.remarks()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[:2] == lines[2:]
