"""What may go wrong while a ladder is made, really done: the same ladder comes out in the end.

docs/reliability.md has the table of these tests.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.commandline import BLANK, FAILURES, Room, children, fake_ffmpeg, slow_but
from tests.support.media import REPOSITORY, make_clip
from vqaloop.core import guardian, process
from vqaloop.errors import ToolError

WORDS = (
    *("--codec", "h264", "--metric", "psnr", "--preset", "ultrafast", "--min-step", "0.5"),
    *("--min-ratio", "1.25", "--resolutions", "160x96,112x64", "--quiet"),
)
MAIN = f"{BLANK}import sys; from vqaloop.cli.main import main; sys.exit(main())"
PATIENCE_S = 120


@pytest.fixture
def clip(room: Room) -> str:
    make_clip(room.folder / "a.y4m", size="160x96")
    return "a.y4m"


def environment(room: Room) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "TMPDIR": str(room.temp),
        "VQALOOP_CACHE": str(room.cache),
    }


def begun(room: Room, *words: str | Path, code: str = MAIN) -> "subprocess.Popen[str]":
    """`vqaloop WORDS` as a program of its own, in the room."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *(os.fspath(word) for word in words)],
        cwd=room.folder, env=environment(room), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The ladder of that clip when nothing comes in between."""
    folder, temp, cache = (tmp_path_factory.mktemp(name) for name in ("calm", "temp", "cache"))
    room = Room(folder, temp, cache, capture=None)  # type: ignore[arg-type]
    make_clip(room.folder / "a.y4m", size="160x96")
    started = time.monotonic()
    child = begun(room, "ladder", "a.y4m", *WORDS, "-o", "out")
    assert child.communicate(timeout=PATIENCE_S)[1] == ""
    return {**room.document(), "took_s": time.monotonic() - started}


def answer(document: dict[str, Any]) -> tuple[Any, ...]:
    """What a ladder is, without what it took to find it."""
    trials = [(t["width"], t["knob"], t["bitrate_kbps"], t["score"]) for t in document["trials"]]
    return document["rungs"], document["hull"], sorted(trials)


def of_the_room(room: Room) -> Iterator[str]:
    """Command lines of programs that were started for this room, but for our own guardian."""
    mark = os.fsencode(f"VQALOOP_CACHE={room.cache}")
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if int(entry.name) != os.getpid() and mark in (entry / "environ").read_bytes():
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if guardian.mark() not in line:
                    yield line
        except OSError:
            continue


def settled(room: Room) -> None:
    """Wait for the guardian: then nothing runs and no unfinished file is there."""
    deadline = time.monotonic() + 20
    places = (room.temp, room.cache, room.folder)

    def left() -> list[str]:
        files = [str(p) for place in places for p in place.rglob("*.part")]
        return [*of_the_room(room), *files, *map(str, room.temp.iterdir())]

    while left():
        assert time.monotonic() < deadline, left()
        time.sleep(0.02)


def in_cache(room: Room) -> int:
    """Encodes that are in the cache as a whole."""
    data = room.cache.glob("v1/**/*.mp4")
    return sum(path.with_name(f"{path.stem[:64]}.json").exists() for path in data)


# --- encoders -----------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", slow_but([*FAILURES, "killed"], "crash", "lost frame"))
def test_an_encode_that_fails_once_is_made_again(
    room: Room, clip: str, calm: dict[str, Any], failure: str
) -> None:
    """Killed from outside, a segmentation fault, a hang, garbage with exit status 0 ..."""
    once = room.folder / "once"
    once.touch()
    action = {**FAILURES, "killed": "kill -s KILL $$"}[failure]
    fake = fake_ffmpeg(
        room.folder / "ffmpeg", {"*' -crf '*": f"if rm {once} 2>/dev/null; then {action}; fi"}
    )
    said = room.run(
        "ladder",
        clip,
        *WORDS,
        "--time-limit",
        "5",
        "--ffmpeg",
        fake,
        "--workers",
        "2",
        "-o",
        "out",
    )
    assert said.status == 0, said.err
    document = room.document()
    assert answer(document) == answer(calm)
    assert document["cost"]["encodes"] == len(calm["trials"]) + 1
    (told,) = [note for note in document["warnings"] if note.endswith("it was made again")]
    assert not children() and not once.exists()
    assert "failed: " in told


# --- the driver ---------------------------------------------------------------------------------


def killed_and_resumed(room: Room, calm: dict[str, Any], moment: float, workers: int) -> None:
    words = ("ladder", "a.y4m", *WORDS, "-o", "out", "--workers", str(workers))
    child = begun(room, *words)
    time.sleep(moment * calm["took_s"])
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=PATIENCE_S)
    settled(room)
    done = in_cache(room)
    again = begun(room, *words)
    _, err = again.communicate(timeout=PATIENCE_S)
    assert (again.returncode, err) == (0, "")
    document = room.document()
    assert answer(document) == answer(calm)
    assert document["cost"]["encodes"] == len(calm["trials"]) - done
    settled(room)
    files = {path.name for path in (room.folder / "out").iterdir()}
    assert not [name for name in files if name.endswith((".part", ".delivering"))]


@pytest.mark.parametrize("moment", slow_but([0.5, 0.8], 0.8))
def test_killed_outright_a_driver_leaves_nothing_and_goes_on(
    room: Room, clip: str, calm: dict[str, Any], moment: float
) -> None:
    killed_and_resumed(room, calm, moment, workers=2)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_killed_at_a_random_moment(
    room: Room, clip: str, calm: dict[str, Any], number: int
) -> None:
    killed_and_resumed(room, calm, random.Random(number).uniform(0.05, 1.0), 1 + number % 2)


def test_a_second_ctrl_c_ends_it_at_once(room: Room, clip: str) -> None:
    """While the first is still clearing up; what it leaves, the guardian takes away."""
    clearing = room.folder / "clearing"
    slow = (
        "import pathlib, signal, sys, time; from vqaloop.execution.workshop import Workshop\n"
        # ignored in a shell's background jobs
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from vqaloop.cli.main import main\n"
        f"clearing = pathlib.Path({str(clearing)!r})\n"
        "Workshop.__exit__ = lambda *_: (clearing.touch(), time.sleep(60))\n"
        "sys.exit(main())"
    )
    pids = room.folder / "pids"
    fake = fake_ffmpeg(
        room.folder / "ffmpeg", {"*' -crf '*": f"echo $$ >> {pids}; exec sleep 600"}
    )
    child = begun(room, "ladder", clip, *WORDS, "--ffmpeg", fake, "-o", "out", code=slow)
    deadline = time.monotonic() + PATIENCE_S
    while not (pids.exists() and pids.read_text().strip()):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    while not clearing.exists():
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.6)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=10)
    assert child.returncode == 130
    assert err == "\nvqaloop: stopped at once; the same command goes on from there\n"
    settled(room)


def test_two_drivers_in_one_folder(room: Room, clip: str, calm: dict[str, Any]) -> None:
    log = room.folder / "encodes"
    fake = fake_ffmpeg(room.folder / "ffmpeg", {"*' -crf '*": f"echo $$ >> {log}"})
    words = ("ladder", clip, *WORDS, "-o", "out", "--ffmpeg", fake)
    pair = [begun(room, *words) for _ in range(2)]
    said = [child.communicate(timeout=PATIENCE_S)[1] for child in pair]
    assert [child.returncode for child in pair] == [0, 0], said
    assert answer(room.document()) == answer(calm)
    assert len(log.read_text().split()) == len(calm["trials"])
    settled(room)


@pytest.mark.parametrize("jump_s", slow_but([90_000.0, -90_000.0], 90_000.0))
def test_clocks_that_jump(room: Room, clip: str, calm: dict[str, Any], jump_s: float) -> None:
    """Of two drivers on one study; the clock of one is a day off every other time it looks."""
    jumps = (
        f"{BLANK}import itertools, sys, time\n"
        f"real, by = time.time, itertools.cycle([0.0, {jump_s}])\n"
        "time.time = lambda: real() + next(by)\n"
        "from vqaloop.cli.main import main; sys.exit(main())"
    )
    where = ("--storage", f"sqlite:///{room.folder}/shared.db")
    pair = [
        begun(room, "ladder", clip, *WORDS, *where, "-o", out, code=code)
        for out, code in (("one", MAIN), ("two", jumps))
    ]
    said = [child.communicate(timeout=PATIENCE_S)[1] for child in pair]
    assert [child.returncode for child in pair] == [0, 0], said
    one, two = room.document("one"), room.document("two")
    assert answer(one) == answer(two) == answer(calm)
    assert one["cost"]["encodes"] + two["cost"]["encodes"] == len(one["trials"])


# --- disks --------------------------------------------------------------------------------------


def spoil(room: Room) -> int:
    """Flip a bit in one file of the cache, cut the next short, empty the third, and so on."""
    files = sorted(path for path in room.cache.glob("v1/??/*") if path.suffix != ".lock")
    for number, path in enumerate(files):
        content = bytearray(path.read_bytes())
        if number % 3 == 0:
            content[len(content) // 2] ^= 1
        path.write_bytes((content, content[: len(content) // 2], b"")[number % 3])
    return len(files)


def test_a_cache_that_was_damaged(
    room: Room, clip: str, calm: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    room.ladder(clip, *WORDS)
    assert spoil(room) > 2 * len(calm["trials"])
    shutil.rmtree(room.folder / "out")
    document = room.ladder(clip, *WORDS)
    assert answer(document) == answer(calm)
    assert document["cost"]["encodes"] == len(calm["trials"])
    dropped = [line for line in caplog.messages if "dropped: " in line]
    assert dropped and len(dropped) == len(caplog.messages)


def can_mount() -> bool:
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        return process.run(probe, timeout_s=10).returncode == 0
    except ToolError:
        return False


@pytest.mark.parametrize("place", slow_but(["out", "temp", "cache"], "cache"))
def test_a_full_disk(room: Room, clip: str, calm: dict[str, Any], place: str) -> None:
    """A small file system, filled up; then it grows, and the same command goes on."""
    if not can_mount():
        pytest.skip("no file system can be mounted here (unshare -rm)")
    (room.folder / "out").mkdir()
    disk = {"out": room.folder / "out", "temp": room.temp, "cache": room.cache}[place]
    script = (
        'disk="$1"; keep="$2"; shift 2; mount -t tmpfs -o size=24k tmpfs "$disk" || exit 99\n'
        '"$@" 2> "$keep/first"; echo $? > "$keep/status"; find "$disk" -name "*.part" >&2\n'
        'mount -o remount,size=64m "$disk"; "$@"; status=$?\n'
        'cp "$keep/out/ladder.json" "$keep/"; exit $status'
    )
    command = [sys.executable, "-c", MAIN, "ladder", clip, *WORDS, "-o", "out"]
    done = subprocess.run(
        ["unshare", "-rm", "/bin/sh", "-c", script, "sh", str(disk), str(room.folder), *command],
        cwd=room.folder, env=environment(room), capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    first = (room.folder / "first").read_text()
    assert (done.returncode, done.stderr) == (0, ""), (done.stderr, first)
    document = json.loads((room.folder / "ladder.json").read_text())
    assert answer(document) == answer(calm)
    status = int((room.folder / "status").read_text())
    assert first.count("\n") == 1 and "Traceback" not in first, first
    if place == "cache":
        # it can be done without
        assert status == 0 and "going on without the cache" in first
    else:
        assert status == 2 and ("full" in first or "No space" in first), first
