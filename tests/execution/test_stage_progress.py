"""What is told of the work: no stage is silent, and each counts up to what it takes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import vqaloop
from tests.support.commandline import Room
from tests.support.media import make_clip
from vqaloop.core import frame_progress, process
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.records import Event

QUICK: dict[str, Any] = {"metric": "psnr", "preset": "ultrafast"}
RUNGS: dict[str, Any] = {"rungs": 2, "min_step": 0.2, "min_ratio": 1.2, "prior": False}
SIZES = [(160, 96), (112, 64)]


@pytest.fixture(autouse=True)
def at_once(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_progress, "REPORT_S", 0.0)


def stages(events: Sequence[Event]) -> list[str]:
    """Stages in the order in which they were first told of; each has counted to its end."""
    for stage in {event.stage for event in events}:
        counts = [(e.done, e.total) for e in events if e.stage == stage and not e.at_most]
        assert all(0 <= done <= total for done, total in counts if total), counts
        whole = [done == total for done, total in counts if total]
        if stage in ("guard", "scenes", "join"):
            assert whole and whole[-1], (stage, counts)
    return list(dict.fromkeys(event.stage for event in events))


def test_a_ladder_tells_of_all_its_stages(room: Room) -> None:
    clip = make_clip(room.folder / "long.mp4", size="160x96", frames=60, rate="2")
    told: list[Event] = []
    ladder = vqaloop.build_ladder(
        clip, codec="h264", resolutions=SIZES, out="out", progress=told.append, **QUICK, **RUNGS
    )
    assert stages(told) == ["probe", "excerpt", "search", "verify", "guard", "write"]
    by_stage = {stage: [e for e in told if e.stage == stage] for stage in stages(told)}
    assert any("60 frames" in e.message for e in by_stage["probe"])
    # frames of the excerpt, of each encode, of the rungs
    cut = [e.done for e in by_stage["excerpt"] if e.total]
    assert len(cut) >= 2 and cut[-1] == by_stage["excerpt"][-1].total
    for stage in ("search", "verify"):
        assert any(" of " in e.message and e.trial is None for e in by_stage[stage])
    total = 60 * len(ladder.rungs)
    assert {e.total for e in by_stage["guard"]} == {total}
    assert {60, total} <= {e.done for e in by_stage["guard"]}
    assert [(e.done, e.total) for e in by_stage["write"]] == [(0, 2), (1, 2)]


def test_an_encode_and_a_delivery_tell_of_all_their_stages(room: Room) -> None:
    clip = make_clip(room.folder / "a.mp4", size="160x96", frames=24)
    told: list[Event] = []
    vqaloop.encode_to_target(
        clip, "b.mp4", codec="h264", target_score=30, progress=told.append, **QUICK
    )
    assert stages(told) == ["probe", "scenes", "encode", "join", "verify", "guard"]
    ladder = vqaloop.build_ladder(clip, codec="h264", resolutions=SIZES, **QUICK, **RUNGS)
    told.clear()
    vqaloop.package_ladder(ladder.folder, out=Path("delivery"), progress=told.append)
    assert stages(told) == ["check", "package", "write"]
    checks = [e.done for e in told if e.stage == "check"]
    assert checks == list(range(len(ladder.rungs)))


def test_whoever_is_told_may_end_a_program(room: Room) -> None:
    def told(frames: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), frame_progress.counted_frames(told):
        process.run(
            [ffmpeg_path(), "-nostdin", "-v", "error", "-re", "-f", "lavfi", "-i"]
            + ["testsrc2=s=64x64:r=25", "-t", "60", "-f", "null", "-"],
            timeout_s=60,
        )
