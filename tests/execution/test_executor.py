"""Turns among titles, processors of encoders, programs that do nothing, and the guardian."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.commandline import Room, fake_ffmpeg, running
from tests.support.media import REPOSITORY, make_clip
from vqaloop.core import process, scopes
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.encoding.footprint import footprint
from vqaloop.encoding.registry import get_encoder
from vqaloop.errors import CalledOff, InputError
from vqaloop.execution.executor import Local, Needs, Turns, calls_at_once
from vqaloop.execution.executor import Room as Place
from vqaloop.media.probe import probe_source
from vqaloop.records import Rendition

PATIENCE_S = 30


def wait(until: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not until():
        assert time.monotonic() < end
        time.sleep(0.01)


# --- turns --------------------------------------------------------------------------------------


def test_titles_take_turns_whatever_each_asks_for() -> None:
    turns, order = Turns(1), list[str]()
    threads = []

    def ask(whose: str) -> None:
        with turns.taken(whose):
            order.append(whose)

    with turns.taken("first"):
        # one title asks for five places before the others ask for one
        for whose in ["greedy"] * 5 + ["modest", "late"]:
            threads.append(threading.Thread(target=ask, args=(whose,)))
            threads[-1].start()
            wait(lambda: len(turns._waiting) == len(threads))
    for thread in threads:
        thread.join(PATIENCE_S)
    assert order[:3] == ["greedy", "modest", "late"] and order[3:] == ["greedy"] * 4


def test_no_place_is_held_twice_and_all_come_back() -> None:
    turns, busy, most = Turns(3), Counter[int](), list[tuple[int, int, int]]()
    lock = threading.Lock()

    def work(whose: int) -> None:
        for _ in range(20):
            with turns.taken(whose) as place:
                with lock:
                    busy[place] += 1
                    most.append((busy[place], sum(busy.values()), place))
                time.sleep(0.0005)
                with lock:
                    busy[place] -= 1

    threads = [threading.Thread(target=work, args=(n % 4,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert max(one for one, _, _ in most) == 1
    assert {place for _, _, place in most} == {0, 1, 2} and max(n for _, n, _ in most) == 3
    assert sorted(turns._free) == [0, 1, 2] and not turns._held


def test_who_is_called_off_while_waiting_gives_up_the_turn() -> None:
    turns, ended, scope = Turns(1), list[str](), scopes.Scope()

    def ask() -> None:
        try:
            with scope.entered(), turns.taken("title"):
                ended.append("served")
        except CalledOff:
            ended.append("called off")

    with turns.taken("other"):
        thread = threading.Thread(target=ask)
        thread.start()
        wait(lambda: turns._waiting)
        scope.cancel()
        thread.join(PATIENCE_S)
    assert ended == ["called off"] and not turns._waiting
    with turns.taken("next") as place:
        assert place == 0


# --- a number of workers that nobody gave -------------------------------------------------------

X264 = Needs(True, 2, 100)
SCORE = Needs(False, 1, 10)


@pytest.mark.parametrize(
    ("held", "asks", "may"),
    [
        ([], replace(X264, memory_bytes=2000), True),
        ([X264], X264, True),
        ([X264, X264], X264, False),
        ([replace(X264, threads=1)] * 2, replace(X264, threads=1), True),
        ([X264, X264], SCORE, True),
        ([SCORE] * 3, SCORE, False),
        ([SCORE] * 3, X264, True),
        ([X264], replace(X264, memory_bytes=950), False),
    ],
)
def test_what_may_begin_beside_what_runs(held: list[Needs], asks: Needs, may: bool) -> None:
    assert Place(processors=2, memory_bytes=1000).takes(asks, held) is may


def test_a_score_goes_before_an_encode_that_waits_for_processors() -> None:
    turns, order = Turns(6, Place(2, 1000)), list[str]()
    threads = []

    def ask(name: str, needs: Needs) -> None:
        with turns.taken("title", needs):
            order.append(name)

    with contextlib.ExitStack() as running_encodes:
        for _ in range(2):
            running_encodes.enter_context(turns.taken("title", X264))
        for name, needs in (("encode", X264), ("score", SCORE)):
            threads.append(threading.Thread(target=ask, args=(name, needs)))
            threads[-1].start()
            wait(lambda: turns._waiting)
        wait(lambda: order)
        assert order == ["score"]
    for thread in threads:
        thread.join(PATIENCE_S)
    assert order == ["score", "encode"] and not turns._begun


@pytest.mark.parametrize(
    ("name", "size", "params", "threads"),
    [
        ("libx264", (1920, 1080), (), 6),
        ("libx264", (320, 180), (), 1),
        # under a cap it has one thread, so that its bytes are the same each time
        ("libx264", (1920, 1080), (("buffer", "500"), ("cap", "1000")), 1),
        ("libsvtav1", (1920, 1080), (), 16),
        # as in two passes
        ("libsvtav1", (1920, 1080), (("mean", "500"),), 1),
        ("libx265", (640, 360), (), 4),
        ("libxavs2", (1920, 1080), (), 1),
    ],
)
def test_threads_follow_encoder_and_size(
    room: Room,
    name: str,
    size: tuple[int, int],
    params: tuple[tuple[str, str], ...],
    threads: int,
) -> None:
    source = probe_source(make_clip(room.folder / "a.y4m", size="160x96", frames=10))
    spec = get_encoder(name)
    knob = spec.knob.snap(sum(spec.knob.search) / 2)
    rendition = Rendition(*size, name, knob, spec.default_preset, params=params)
    found, memory = footprint(source, rendition, 16)
    assert found == threads and memory > 100 * size[0] * size[1]


def test_who_chooses_pins_nobody_and_asks_for_one_trial_at_a_time() -> None:
    chosen, have = Local(None), len(os.sched_getaffinity(0))
    assert chosen.workers == 1 and calls_at_once(chosen) == (have + 1 if have > 1 else 1)
    before = os.sched_getaffinity(0)
    with chosen._taken("title", X264) as threads:
        assert os.sched_getaffinity(0) == before and threads == 2
    # cores that were given are of one worker
    assert calls_at_once(Local(None, processors=1)) == calls_at_once(Local()) == 1


# --- calling off --------------------------------------------------------------------------------


def test_a_team_is_called_off_as_a_whole_and_nobody_else(tmp_path: Path) -> None:
    """Also the teams of its members, and members who have only just begun."""
    begun, apart = list[Path](), scopes.Scope()

    def member(name: str) -> None:
        with scopes.team(2) as submit:
            jobs = [submit(sleeping, tmp_path / f"{name}{n}") for n in range(3)]
            for job in jobs:
                job.result()

    def sleeping(path: Path) -> None:
        begun.append(path)
        process.run(["sleep", "600"], timeout_s=PATIENCE_S)

    def stranger() -> None:
        with apart.entered(), contextlib.suppress(CalledOff):
            process.run(["sleep", "600"], timeout_s=PATIENCE_S)

    other = threading.Thread(target=stranger)
    other.start()
    started = time.monotonic()
    with pytest.raises(ValueError, match="stop"), scopes.team(2) as submit:
        for name in "ab":
            submit(member, name)
        wait(lambda: len(begun) == 4)
        raise ValueError("stop")
    assert time.monotonic() - started < PATIENCE_S / 2
    # what waited for a place never began
    assert len(begun) == 4
    assert other.is_alive()
    apart.cancel()
    other.join(PATIENCE_S / 2)
    assert not other.is_alive()


def test_who_is_interrupted_while_waiting_for_a_team_leaves_nothing_running() -> None:
    before, started = signal.signal(signal.SIGINT, signal.default_int_handler), time.monotonic()
    running = threading.Event()

    def sleeping() -> None:
        running.set()
        process.run(["sleep", "600"], timeout_s=PATIENCE_S)

    def interrupt() -> None:
        running.wait(PATIENCE_S)
        time.sleep(0.2)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    try:
        with pytest.raises(KeyboardInterrupt), scopes.team(1) as submit:
            submit(sleeping)
            threading.Thread(target=interrupt).start()
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < PATIENCE_S / 2


def test_what_is_begun_in_a_scope_that_was_called_off_never_runs(tmp_path: Path) -> None:
    whole = scopes.Scope()
    with whole.entered():
        part = scopes.Scope()
    part.cancel()
    with whole.entered():
        scopes.check_cancelled()
    whole.cancel()
    with whole.entered(), pytest.raises(CalledOff):
        process.run(["touch", str(tmp_path / "made")], timeout_s=PATIENCE_S)
    assert not list(tmp_path.iterdir())
    scopes.check_cancelled()


# --- processors ---------------------------------------------------------------------------------


def test_each_encoder_keeps_to_its_processors(room: Room) -> None:
    have = sorted(os.sched_getaffinity(0))
    make_clip(room.folder / "a.y4m", size="160x96")
    seen = room.folder / "seen"
    watch = f"grep Cpus_allowed_list /proc/self/status >> {seen}"
    ffmpeg = str(fake_ffmpeg(room.folder / "ffmpeg", {"*a.y4m*' -crf '*": watch}))
    source = probe_source(room.folder / "a.y4m")
    rendition = Rendition(160, 96, "libx264", 30, "ultrafast")
    local = Local(2, processors=1)

    def encode() -> None:
        out = room.folder / "a.mp4"
        local.encode(source, rendition, out, ffmpeg=ffmpeg, timeout_s=None, whose="a")

    encode()
    with local._turns.taken("another"):
        encode()
    # the first place's processor, then the second's, if there is another
    first, second = (line.split()[1] for line in seen.read_text().splitlines())
    assert (first, second) == (str(have[0]), str(have[1 % len(have)]))
    assert sorted(os.sched_getaffinity(0)) == have


@pytest.mark.parametrize(
    "name", ["libx264", "libx265", "libvpx-vp9", "libsvtav1", "libaom-av1", "libxavs2"]
)
def test_what_an_encoder_writes_does_not_depend_on_its_processors(room: Room, name: str) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one processor only")
    make_clip(room.folder / "a.y4m", size="320x192", frames=30)
    spec = get_encoder(name)
    source, ffmpeg = probe_source(room.folder / "a.y4m"), ffmpeg_path()
    knob = spec.knob.snap(sum(spec.knob.search) / 2)
    rendition = Rendition(320, 192, name, knob, spec.presets[-1])
    for processors in (1, 2):
        Local(1, processors=processors).encode(
            source, rendition, room.folder / f"{processors}", ffmpeg=ffmpeg, timeout_s=None,
            whose="a",
        )  # fmt: skip
    assert (room.folder / "1").read_bytes() == (room.folder / "2").read_bytes()


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"workers": 1, "processors": 0}])
def test_numbers_that_make_no_workers(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match="at least one"):
        Local(**wrong)


# --- programs that do nothing -------------------------------------------------------------------


def test_a_program_that_does_nothing_is_stopped() -> None:
    done = process.run(["sh", "-c", "sleep 60; :"], timeout_s=PATIENCE_S, idle_s=1)
    assert done.timed_out and done.idle and done.stalled and done.wall_s < PATIENCE_S / 2
    assert "since it did nothing any more" in done.reason()


def test_a_program_that_works_may_do_so_until_its_limit() -> None:
    done = process.run(["sh", "-c", "while :; do :; done"], timeout_s=3, idle_s=1)
    assert done.timed_out and not done.idle and done.wall_s > 2.5
    assert "doing nothing" not in done.reason()


# --- the guardian -------------------------------------------------------------------------------

CHILD = """
import os, sys, threading, time
from pathlib import Path
from vqaloop.core import files
from vqaloop.core import process
folder = files.scratch()
part = files.unfinished(Path(sys.argv[1]))
part.write_text("half")
say = f"echo $$ > {sys.argv[1]}/pid; trap '' TERM INT HUP; sleep 600 & sleep 600"
thread = threading.Thread(target=process.run, args=(["sh", "-c", say],), kwargs={"timeout_s": 900})
thread.daemon = True
thread.start()
while not Path(sys.argv[1], "pid").exists():
    time.sleep(0.01)
print(folder.name, part, flush=True)
exec(sys.argv[2])
"""


@pytest.mark.parametrize(
    ("end", "number"), [("time.sleep(600)", signal.SIGKILL), ("os._exit(7)", None)]
)
def test_what_a_process_leaves_is_cleaned_up(
    tmp_path: Path, end: str, number: signal.Signals | None
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path), end],
        env=environment, stdout=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        folder, part = map(Path, child.stdout.readline().split())
        pid = int((tmp_path / "pid").read_text())
        kept = tmp_path / ".another-0123.part"
        kept.touch()
        if number:
            assert folder.is_dir() and part.is_file() and running(pid)
            child.send_signal(number)
    wait(lambda: not (running(pid) or folder.exists() or part.exists()))
    # of others nothing is touched
    assert kept.exists()


def test_a_guardian_that_was_killed_is_replaced(tmp_path: Path) -> None:
    code = (
        "import os; from vqaloop.core import guardian; from vqaloop.core import process\n"
        "process.run(['true'], timeout_s=9)\n"
        "first = guardian._state.process.pid; os.kill(first, 9)\n"
        "guardian._state.process.wait()\n"
        "process.run(['true'], timeout_s=9)\n"
        "print(first != guardian._state.process.pid, guardian._state.process.poll())"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("True None\n", "")
