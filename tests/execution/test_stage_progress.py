"""What is told of the work: no stage is silent, and each counts up to what it takes."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import vqaloop
from tests.support.commandline import Room
from tests.support.media import make_clip
from vqaloop.core import frame_progress, process
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.execution.stage_progress import TimeLeft
from vqaloop.records import Event
from vqaloop.report.progress import left_words

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
    guarded = {e.done for e in by_stage["guard"]}
    assert {0, total} <= guarded and len(guarded) > 2
    # with the frames of the pictures in between
    assert list(dict.fromkeys((e.done, e.total) for e in by_stage["write"])) == [(0, 2), (1, 2)]


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


def test_the_time_left_follows_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now, seen = [100.0], list[Event]()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watcher = TimeLeft(seen.append)

    def left(after_s: float, stage: str, done: int, total: int) -> float | None:
        now[0] += after_s
        watcher(Event(stage, "", done, total))
        return seen[-1].left_s

    assert left(0, "guard", 0, 100) is None
    assert left(10, "guard", 20, 100) == pytest.approx(40)
    # nothing more is done meanwhile: the end comes no nearer than time has passed
    assert left(4, "guard", 20, 100) == pytest.approx(36)
    assert left(6, "guard", 40, 100) == pytest.approx(30)
    assert left(500, "guard", 40, 100) == 0
    # another stage, and one of unknown length, begin anew
    assert left(3, "write", 1, 2) is None and left(1, "write", 2, 2) == 0
    assert left(1, "probe", 0, 0) is None


def test_the_time_left_in_words() -> None:
    assert left_words(Event("guard", "", 1, 9, left_s=83.4)) == "1:23 left"
    assert left_words(Event("guard", "", 1, 9, left_s=7384)) == "2:03:04 left"
    assert left_words(Event("search", "", 1, 9, at_most=True, left_s=60)) == "at most 1:00 left"
    assert left_words(Event("guard", "", 1, 9, left_s=2)) == left_words(Event("probe", "")) == ""
