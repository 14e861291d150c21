"""A long call as an iterator of events, called off and awaited."""

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.commandline import children
from tests.support.media import make_clip
from vqaloop import Cancelled, InputError, Job, build_ladder
from vqaloop.core import process
from vqaloop.records import Event

QUICK: dict[str, Any] = dict(
    codec="h264", metric="psnr", preset="ultrafast", rungs=2, min_step=0.2, min_ratio=1.2
)


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_clip(tmp_path / "clip.y4m", size="192x108", frames=24)


def sleeper(
    *, progress: Callable[[Event], None], seconds: float = 60, told: list[str] | None = None
) -> str:
    """A call that runs a program for long."""
    progress(Event("sleep", "begun"))
    try:
        process.run(["sleep", str(seconds)], timeout_s=120)
    finally:
        if told is not None:
            told.append("cleaned up")
    return "rested"


def test_events_come_one_by_one_and_the_result_at_the_end(clip: Path) -> None:
    job = Job(build_ladder, clip, **QUICK)
    stages = {event.stage for event in job}
    assert {"probe", "search", "write"} <= stages
    assert len(job.result().rungs) == 2 and not job.running
    assert list(job) == []


def test_what_the_call_raises_comes_from_its_result(tmp_path: Path) -> None:
    job = Job(build_ladder, tmp_path / "none.mp4", codec="h264")
    assert list(job) == []
    with pytest.raises(InputError, match="does not exist"):
        job.result()


def test_a_job_called_off_stops_its_program_at_once_and_cleans_up() -> None:
    told: list[str] = []
    before = time.monotonic()
    job = Job(sleeper, told=told)
    next(iter(job))
    with pytest.raises(TimeoutError):
        job.result(0.2)
    job.cancel()
    with pytest.raises(Cancelled):
        job.result(10)
    assert told == ["cleaned up"] and time.monotonic() - before < 10
    assert not [name for name in children().values() if name == "sleep"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_ladder_called_off_leaves_nothing_behind_and_goes_on_later(
    clip: Path, tmp_path: Path, workers: int
) -> None:
    slow = dict(QUICK, preset="placebo", workers=workers)
    job = Job(build_ladder, clip, **slow)
    for event in job:
        if event.stage == "search":
            job.cancel()
    with pytest.raises(Cancelled):
        job.result(30)
    assert not [path for path in tmp_path.rglob("*.mp4")]
    assert len(Job(build_ladder, clip, **slow).result().rungs) == 2


def test_a_cancelled_task_takes_the_call_with_it() -> None:
    async def watch() -> Job[str]:
        job = Job(sleeper)

        async def follow() -> None:
            async for _ in job:
                pass

        task = asyncio.create_task(follow())
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return job

    job = asyncio.run(watch())
    assert not job.running
    with pytest.raises(Cancelled):
        job.result()


def test_a_job_can_be_awaited_while_others_run() -> None:
    async def both() -> list[str]:
        return await asyncio.gather(*(Job(sleeper, seconds=0.2) for _ in range(2)))

    assert asyncio.run(both()) == ["rested", "rested"]
    assert "vqaloop job" not in {thread.name for thread in threading.enumerate()}
