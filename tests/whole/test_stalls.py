"""Programs that stop working, at every stage: stopped, said, run once more, given up by name.

And those that would work longer than the budget has time for.
"""

import itertools
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping

import pytest

from tests.support.commandline import SMALL, Room, children, fake_ffmpeg, slow_but
from tests.support.media import REPOSITORY, make_clip
from vqaloop.core import process
from vqaloop.encoding import encode
from vqaloop.media import excerpt

HANG = "exec sleep 600"
LADDER = {
    "probe": "*framecrc*",
    "windows": "*vstack*",
    "excerpt": "*ffv1*",
    "trial of the encoder": "*global_header*",
    "encode": "*libx264*scale=112:64:*",
    # before the score, of which it has the metric as well
    "guard": "*libvmaf*-f\\ null*",
    "score": "*psnr*-f\\ null*",
}
"""Command lines of a long title's ladder, by what is done."""
TARGET = {"scenes": "*scdet*", "join": "*-f\\ concat*"}
SIZES = ("--resolutions", "160x96,112x64", "--no-prior")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "STALL_S", 1.5)
    monkeypatch.setattr(encode, "IDLE_S", 1.5)
    monkeypatch.setattr(excerpt, "STALLED_S", 1.5)


def once(room: Room, patterns: Mapping[str, str]) -> str:
    """An ffmpeg that hangs the first time it comes to each of these."""
    cases = {
        pattern: f"[ -e {mark} ] || {{ touch {mark}; {HANG}; }}"
        for stage, pattern in patterns.items()
        for mark in [shlex.quote(f"{room.folder}/{stage}")]
    }
    return str(fake_ffmpeg(room.folder / "ffmpeg", cases))


def long_clip(room: Room) -> str:
    make_clip(room.folder / "long.mp4", size="160x96", frames=60, rate="2")
    return "long.mp4"


def test_a_ladder_goes_on_when_each_program_hangs_once(
    room: Room, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    fake = once(room, LADDER)
    said = room.run("ladder", long_clip(room), *SMALL, *SIZES, "-o", "out", "--ffmpeg", fake)
    assert said.status in (0, 3), said.err
    assert {path.name for path in room.folder.iterdir()} >= set(LADDER)
    again = [line for line in caplog.messages if "nothing any more" in line and "again" in line]
    assert len(again) == len(LADDER)
    assert not children()


def test_an_encode_goes_on_when_each_program_hangs_once(
    room: Room, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    make_clip(room.folder / "a.mp4", size="160x96", frames=12)
    fake = once(room, TARGET)
    said = room.run(
        *("encode", "a.mp4", "b.mp4", "--codec", "h264", "--preset", "ultrafast"),
        *("--metric", "psnr", "--target-score", "30", "--ffmpeg", fake),
    )
    assert said.status in (0, 1, 3), said.err
    assert (room.folder / "b.mp4").exists()
    assert {path.name for path in room.folder.iterdir()} >= set(TARGET)
    assert sum("it is run again" in line for line in caplog.messages) == len(TARGET)


def test_packaging_that_hangs(
    room: Room, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    make_clip(room.folder / "a.mp4", size="160x96", frames=30)
    room.ladder("a.mp4", *SMALL, *SIZES, "--guard", "off")
    fake = once(room, {"mux": "*-f\\ dash*"})
    said = room.run("deliver", "out", "-o", "delivery", "--ffmpeg", fake)
    assert said.status == 0, said.err
    assert sum("it is run again" in line for line in caplog.messages) == 1
    fake = str(fake_ffmpeg(room.folder / "ffmpeg", {"*-f\\ dash*": HANG}))
    said = room.run("deliver", "out", "-o", "other", "--ffmpeg", fake)
    assert said.status == 2 and "did nothing any more" in said.err, said.err
    assert not (room.folder / "other").exists()


@pytest.mark.parametrize("stage", slow_but(LADDER, "probe", "guard"))
def test_what_hangs_each_time_is_given_up(room: Room, impatient: None, stage: str) -> None:
    fake = str(fake_ffmpeg(room.folder / "ffmpeg", {LADDER[stage]: HANG}))
    said = room.run("ladder", long_clip(room), *SMALL, *SIZES, "-o", "out", "--ffmpeg", fake)
    if stage == "encode":
        # one size of two fails, and the other gives the ladder
        assert said.status in (0, 3) and "since it did nothing any more" in said.out, said
    else:
        assert said.status in (1, 2) and "since it did nothing any more" in said.err, said.err
    assert not children() and not list(room.temp.iterdir())


STOPPED = """
from vqaloop.core import process
process.PAUSE_S = 0.25
print("begun", flush=True)
print(process.run(["sleep", "3"], timeout_s=20, idle_s=2.5, again=False).returncode, flush=True)
"""


def test_time_in_which_this_process_is_stopped_does_not_count() -> None:
    """As by Ctrl-Z: nobody reads then what a program writes, so that it does nothing."""
    argv = [sys.executable, "-c", STOPPED]
    one = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert one.stdout is not None and one.stdout.readline() == "begun\n"
    time.sleep(0.5)
    one.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    one.send_signal(signal.SIGCONT)
    assert one.communicate(timeout=30)[0] == "0\n"


def test_a_program_that_only_looks_at_the_time_does_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(ticks: int) -> process.Finished:
        """With so many ticks of work a look, of which there are four in idle_s."""
        used = itertools.count(0, ticks)
        monkeypatch.setattr(process, "_group_ticks", lambda group: next(used))
        return process.run(["sleep", "60"], timeout_s=2, idle_s=1, again=False)

    monkeypatch.setattr(process, "STILL", 8)
    assert run(2).stalled
    assert not run(3).stalled


# --- the time budget ----------------------------------------------------------------------------

BUDGET_S = 6


def two_and_then_none(room: Room, patterns: Mapping[str, str]) -> str:
    """An ffmpeg that makes the first two of each kind of encode, and is slow without end after."""
    cases = {}
    for kind, pattern in patterns.items():
        one, two = (shlex.quote(f"{room.folder}/{kind}{n}") for n in (1, 2))
        slow = "end=$(($(date +%s) + 120)); while [ $(date +%s) -lt $end ]; do :; done"
        cases[pattern] = f"mkdir {one} 2>/dev/null || mkdir {two} 2>/dev/null || {{ {slow}; }}"
    return str(fake_ffmpeg(room.folder / "ffmpeg", cases))


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_budget_ends_what_is_being_encoded(room: Room, workers: str) -> None:
    make_clip(room.folder / "a.mp4", size="160x96", frames=12)
    fake = two_and_then_none(room, {"whole": "*' -crf '*"})
    began = time.monotonic()
    said = room.run(
        *("ladder", "a.mp4", *SMALL, *SIZES, "-o", "out", "--ffmpeg", fake),
        *("--budget", str(BUDGET_S), "--workers", workers),
    )
    assert BUDGET_S <= time.monotonic() - began < BUDGET_S + 30
    if said.status == 1:
        assert "the time budget ended the search early" in said.err
    else:
        document = room.document()
        assert said.status == 0 and len(document["trials"]) == 2, said.err
        assert any(f"budget of {BUDGET_S} s ended the search" in w for w in document["warnings"])
    assert not children() and not list(room.temp.iterdir())


def test_a_budget_ends_the_excerpt_and_the_whole(room: Room) -> None:
    """Each makes its two encodes, and those in flight at its end are called off."""
    patterns = {"part": "*excerpt.mkv*' -crf '*", "whole": "*' -crf '*"}
    fake = two_and_then_none(room, patterns)
    began = time.monotonic()
    said = room.run(
        *("ladder", long_clip(room), *SMALL, *SIZES, "-o", "out", "--ffmpeg", fake),
        *("--budget", str(BUDGET_S)),
    )
    assert time.monotonic() - began < BUDGET_S + 40
    assert (room.folder / "part2").exists() and (room.folder / "whole2").exists()
    assert said.status in (0, 1, 3) and not children(), said.err
    assert "time budget" in (said.err if said.status == 1 else said.out)
