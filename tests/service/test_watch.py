"""A watched folder: what is taken and when, what becomes of it, and what a kill leaves."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.commandline import SMALL, Room, running
from tests.support.media import make_clip
from vqaloop.core import scopes
from vqaloop.errors import CalledOff, InputError
from vqaloop.report.progress import Progress
from vqaloop.service import child, titles, watch
from vqaloop.service.child import Ended
from vqaloop.service.titles import TitleWork, title_work
from vqaloop.service.watch import FolderWatch, WatchOptions
from vqaloop.service.watch_state import LETTERS, RECORD, State, Version

QUICK = (*SMALL, "--settle", "0.1", "--once")


class Commands:
    """Stands for the commands of titles: keeps their words, answers by the title's name."""

    def __init__(self) -> None:
        self.words: list[list[str]] = []
        self.answers: dict[str, Ended] = {}
        self.during: Callable[[Path], None] = lambda source: None

    def __call__(self, words: Sequence[str], folder: Path, *_: Any) -> Ended:
        self.words.append(list(words))
        assert folder.is_dir()
        if words[0] == "ladder":
            self.during(Path(words[1]))
            (folder / "ladder").mkdir(exist_ok=True)
        return self.answers.get(f"{words[0]} {folder.name}", Ended(0, None))

    @property
    def made(self) -> list[str]:
        return [Path(words[1]).name for words in self.words if words[0] == "ladder"]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    made = Commands()
    monkeypatch.setattr(titles, "run_command", made)
    return made


def watcher(room: Room, deliver: bool = True, **more: Any) -> FolderWatch:
    (room.folder / "in").mkdir(exist_ok=True)
    work = TitleWork(("h264",), ("--codec", "h264"), ("--segment=2",) if deliver else None)
    options = {"settle_s": 0.05, "interval_s": 0.1, **more}
    place = room.folder / "in", room.folder / "out"
    return FolderWatch(WatchOptions(*place, work, **options), Progress(quiet=True))


def outcome(room: Room, name: str) -> str:
    found = State(room.folder / "out").read(name)
    return found.outcome if found else ""


def put(room: Room, name: str, text: str = "frames") -> Path:
    path = room.folder / "in" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_each_title_is_made_once(room: Room, commands: Commands) -> None:
    names = ["a.mp4", "B C.MKV", "Ünï'$(x).mov", "-o.webm", "new\nline.mp4"]
    for name in names:
        put(room, name)
    (room.folder / "in" / os.fsdecode(b"\xff.mp4")).write_text("no UTF-8")
    watcher(room).once()
    assert sorted(commands.made) == sorted([*names, os.fsdecode(b"\xff.mp4")])
    for words in commands.words:
        # absolute, so that no name is an option
        assert words[1].startswith("/") and words[words.index("-o") + 1].startswith("/")
    assert {outcome(room, name) for name in names} == {"done"}
    again = watcher(room)
    again.once()
    assert len(commands.made) == len(names) + 1 and not again.records
    # another content under the same name is another title
    put(room, "a.mp4", "more frames")
    watcher(room).once()
    assert commands.made[len(names) + 1 :] == ["a.mp4"]


def test_what_is_no_whole_video_is_left_alone(room: Room, commands: Commands) -> None:
    for name in (".hidden.mp4", "notes.txt", "a.mp4.part", "sub/inner.mp4", "noname"):
        put(room, name)
    put(room, "empty.mp4", "")
    os.mkfifo(room.folder / "in/pipe.mp4")
    (room.folder / "in/gone.mp4").symlink_to("nowhere")
    (room.folder / "in/folder.mp4").mkdir()
    made = room.folder / "out/x.mp4/ladder"
    made.mkdir(parents=True)
    (made / "rung.mp4").write_text("made before")
    (room.folder / "in/loop.mp4").symlink_to(made / "rung.mp4")
    watcher(room).once()
    assert not commands.made
    watcher(room, recursive=True).once()
    assert commands.made == ["inner.mp4"]
    assert (room.folder / "out/sub/inner.mp4" / RECORD).is_file()


def test_a_file_that_grows_is_waited_for(room: Room, commands: Commands) -> None:
    path = put(room, "live.mp4")
    growing, seen = threading.Event(), list[str]()
    seeing = watcher(room, settle_s=0.4)

    def grow() -> None:
        for _ in range(8):
            time.sleep(0.1)
            seen.extend(commands.made)
            with path.open("a") as file:
                file.write("more")
        growing.set()

    def end_when_made() -> None:
        while not commands.made:
            time.sleep(0.02)
        scope.cancel()

    scope = scopes.Scope()
    threads = [threading.Thread(target=work) for work in (grow, end_when_made)]
    for thread in threads:
        thread.start()
    with scope.entered(), pytest.raises(CalledOff):
        seeing.forever()
    for thread in threads:
        thread.join()
    assert growing.is_set() and not seen and commands.made == ["live.mp4"]


def test_one_that_goes_on_growing_while_it_is_made_is_made_again(
    room: Room, commands: Commands
) -> None:
    def grow(source: Path) -> None:
        if len(commands.made) == 1:
            source.write_text("it had only paused")

    commands.during = grow
    put(room, "a.mp4")
    first = watcher(room)
    first.once()
    assert not first.records and outcome(room, "a.mp4") == "begun"
    watcher(room).once()
    assert commands.made == ["a.mp4"] * 2 and outcome(room, "a.mp4") == "done"


def test_failures_are_dead_letters_with_their_reason(room: Room, commands: Commands) -> None:
    long = "x" * 240 + ".mp4"
    for name in ("bad.mp4", "undeliverable.mp4", "odd.mp4", "good.mp4", long):
        put(room, name)
    commands.answers = {
        "ladder bad.mp4": Ended(2, "it is no video"),
        "deliver undeliverable.mp4": Ended(1, None),
        "ladder odd.mp4": Ended(3, None),
        f"ladder {long}": Ended(1, "too few rungs"),
    }
    seen: list[dict[str, Any]] = []
    watching = watcher(room, ended=seen.append)
    watching.once()
    assert watching.exit_code == 1 and watching.records == seen
    letters = {
        json.loads(path.read_text())["title"]: json.loads(path.read_text())["error"]
        for path in (room.folder / "out" / LETTERS).iterdir()
    }
    assert letters == {
        "bad.mp4": "ladder: it is no video",
        "undeliverable.mp4": "delivery: not all that was asked for could be made",
        long: "ladder: too few rungs",
    }
    assert [outcome(room, name) for name in ("odd.mp4", "good.mp4")] == ["untrusted", "done"]
    count = len(commands.made)
    watcher(room).once()
    assert len(commands.made) == count
    # who takes the letter away has it tried again
    (room.folder / "out" / LETTERS / "bad.mp4.json").unlink()
    commands.answers.clear()
    retry = watcher(room)
    retry.once()
    assert commands.made[count:] == ["bad.mp4"] and retry.exit_code == 0


def test_one_that_kills_its_process_is_given_up(room: Room, commands: Commands) -> None:
    put(room, "bomb.mp4")
    put(room, "good.mp4")
    commands.answers = {"ladder bomb.mp4": Ended(-9, "killed by SIGKILL")}
    watching = watcher(room)
    watching.once()
    assert commands.made.count("bomb.mp4") == watch.ATTEMPTS
    assert outcome(room, "bomb.mp4") == "failed" and outcome(room, "good.mp4") == "done"
    assert "SIGKILL" in next(r["error"] for r in watching.records if r["outcome"] == "failed")


def test_one_that_kills_the_watcher_is_given_up(room: Room, commands: Commands) -> None:
    put(room, "bomb.mp4")
    state = State(room.folder / "out")
    status = (room.folder / "in/bomb.mp4").stat()
    version = Version(status.st_size, status.st_mtime_ns)
    state.write("bomb.mp4", version, "begun", attempts=watch.ATTEMPTS)
    watcher(room).once()
    assert not commands.made and outcome(room, "bomb.mp4") == "failed"
    # an interruption is not the title's fault
    put(room, "long.mp4")

    def interrupt(source: Path) -> None:
        raise CalledOff("called off")

    commands.during = interrupt
    for _ in range(watch.ATTEMPTS + 1):
        with pytest.raises(CalledOff):
            watcher(room).once()
    commands.during = lambda source: None
    watcher(room).once()
    assert outcome(room, "long.mp4") == "done"


def test_two_watchers_do_not_take_one_title(room: Room, commands: Commands) -> None:
    for number in range(6):
        put(room, f"{number}.mp4")
    commands.during = lambda source: time.sleep(0.05)
    threads = [threading.Thread(target=watcher(room).once) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(commands.made) == [f"{number}.mp4" for number in range(6)]


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff" * 9, b'{"schema": 1}', b"[" * 9999])
def test_a_damaged_record_is_none(room: Room, commands: Commands, damage: bytes) -> None:
    put(room, "a.mp4")
    watcher(room).once()
    (room.folder / "out/a.mp4" / RECORD).write_bytes(damage)
    watcher(room).once()
    assert commands.made == ["a.mp4"] * 2 and outcome(room, "a.mp4") == "done"


def test_the_output_never_lies_in_the_scan(room: Room) -> None:
    (room.folder / "in/sub").mkdir(parents=True)
    (room.folder / "link").symlink_to("in/sub")
    for out in ("in", "in/out", "link", "link/out", "in/../in/x"):
        said = room.run("watch", "in", "-o", out, *QUICK)
        assert said.status == 2 and "lies in" in said.err and "-o" in said.err
    os.chdir("in")
    said = room.run("watch", ".", *QUICK)
    assert said.status == 2 and "lies in" in said.err
    assert not list((room.folder / "in/sub").iterdir())


def test_what_would_be_refused_of_every_title_is_refused_first(room: Room) -> None:
    (room.folder / "in").mkdir()
    put(room, "a.mp4")
    for words in (
        ("--codec", "mpeg9"),
        ("--codec", "h264,h264"),
        ("--codec", "h264", "--rungs", "1"),
        ("--codec", "h264,av1", "--encoder", "libx264"),
        ("--codec", "h264", "--settle", "-1"),
    ):
        said = room.run("watch", "in", "--once", *words)
        assert said.status == 2 and not (room.folder / "in.watched").exists(), words
    assert room.run("watch", "nowhere", *QUICK).status == 2


def test_options_reach_the_commands(room: Room, commands: Commands) -> None:
    put(room, "a.mp4")
    (room.folder / "vqaloop.toml").write_text(
        "[ladder]\nrungs = 4\nmin-ratio = 1.5\n[deliver]\nsegment = 4\n"
        '[profiles.ours]\nresolutions = "64x64,32x32"\nmetric = "psnr"\n'
    )
    told = (
        *("--codec", "h264", "--profile", "ours", "--min-ratio", "1.3", "--workers", "2"),
        *("--hls", "--no-audio", "--no-cache"),
    )
    said = room.run("watch", "in", "--once", "--settle", "0", *told)
    assert said.status == 0, said.err
    ladder, deliver = commands.words
    for pair in (
        ("--rungs", "4"),
        ("--min-ratio", "1.3"),
        ("--resolutions", "64x64,32x32"),
        ("--metric", "psnr"),
        ("--workers", "2"),
    ):
        assert pair in zip(ladder, ladder[1:], strict=False), ladder
    assert "--no-cache" in ladder
    assert {"--hls", "--no-audio", "--segment=4.0"} <= set(deliver) and "False" not in deliver


def test_files_that_options_name_are_found_from_elsewhere(room: Room) -> None:
    (room.folder / "audience.csv").write_text("bandwidth_kbps,share\n1000,1\n")
    given = {"codec": "h264", "metric": "psnr", "audience": Path("audience.csv")}
    words = title_work(given, room.folder, None).ladder
    assert words[words.index("--audience") + 1] == str(room.folder / "audience.csv")
    words = title_work({**given, "audience": Path("default")}, room.folder, None).ladder
    assert words[words.index("--audience") + 1] == "default"
    with pytest.raises(InputError, match="missing.csv"):
        title_work({**given, "audience": Path("missing.csv")}, room.folder, None)


def test_a_program_is_run_at_the_end_of_each_title(room: Room, commands: Commands) -> None:
    for name in ("a.mp4", "b.mp4"):
        put(room, name)
    commands.answers = {"ladder b.mp4": Ended(2, "no video")}
    (room.folder / "each").write_text('#!/bin/sh\necho "$VQALOOP_OUTCOME" >> seen; exit 1\n')
    (room.folder / "each").chmod(0o755)
    words = ("--codec", "h264", "--metric", "psnr", "--settle", "0", "--once")
    said = room.run("watch", "in", *words, "--notify-each", f"{room.folder}/each")
    assert (room.folder / "seen").read_text() == "done\nfailed\n"
    assert said.status == 1 and said.err.count("warning: --notify-each") == 2


def test_a_child_that_says_nothing_any_more_is_stopped(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "STALL_S", 0.4)
    monkeypatch.setattr(sys, "executable", str(room.folder / "hangs"))
    (room.folder / "hangs").write_text("#!/bin/sh\nexec sleep 60\n")
    (room.folder / "hangs").chmod(0o755)
    began = time.monotonic()
    ended = child.run_command(["ladder"], room.folder, lambda event: None)
    assert ended.status < 0 and "no sign of life" in str(ended.error)
    assert time.monotonic() - began < 20


def test_what_a_child_writes_is_taken_apart(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    line = '{"schema": "vqaloop.events/1", "event": "%s"}'
    lines = [line % "progress", "Traceback: [1", "[[[", '{"a": 1}', "[" * 9999]
    (room.folder / "lines").write_text("\n".join([*lines, line % "cut"])[:-1])
    (room.folder / "says").write_text("#!/bin/sh\ncat lines >&2; kill -SEGV $$\n")
    (room.folder / "says").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(room.folder / "says"))
    events: list[dict[str, Any]] = []
    ended = child.run_command(["ladder"], room.folder, events.append)
    assert [event["event"] for event in events] == ["progress"]
    assert ended.status == -signal.SIGSEGV and "SIGSEGV" in str(ended.error)


def test_a_child_has_the_paths_of_its_parent(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    (room.folder / "says").write_text(
        '#!/bin/sh\necho "$VQALOOP_CACHE $VQALOOP_FFMPEG $VQALOOP_TOKEN." > said\n'
    )
    (room.folder / "says").chmod(0o755)
    (room.folder / "place").mkdir()
    monkeypatch.setattr(sys, "executable", str(room.folder / "says"))
    for name, value in {"CACHE": "a/cache", "FFMPEG": "./ffmpeg", "TOKEN": "secret"}.items():
        monkeypatch.setenv(f"VQALOOP_{name}", value)
    child.run_command(["ladder"], room.folder / "place", lambda event: None)
    said = (room.folder / "place/said").read_text()
    assert said == f"{room.folder}/a/cache {room.folder}/ffmpeg .\n"


# ---- with real commands


@pytest.mark.slow
def test_real_titles(room: Room) -> None:
    make_clip(room.folder / "in.mp4", size="64x64", frames=10)
    (room.folder / "in").mkdir()
    os.link(room.folder / "in.mp4", room.folder / "in/a title é.mp4")
    put(room, "bad.mp4", "garbage")
    # neither a settings file of the place nor what lies there is the children's
    (room.folder / "vqaloop.toml").write_text("[watch]\nrungs = 3\n")
    said = room.run("watch", "in", *QUICK)
    assert said.status == 1, said.err
    done = room.folder / "in.watched/a title é.mp4"
    assert len(json.loads((done / "ladder/ladder.json").read_text())["rungs"]) == 2
    assert (done / "delivery/master.m3u8").is_file() and (done / "delivery/manifest.mpd").is_file()
    assert "end: done" in (done / "run.log").read_text()
    letter = json.loads((room.folder / "in.watched" / LETTERS / "bad.mp4.json").read_text())
    assert "not a video that can be read" in letter["error"]


@pytest.mark.slow
def test_a_killed_watcher_goes_on(room: Room) -> None:
    """Killed outright in the middle of a ladder: nothing runs on, and the next one resumes it."""
    make_clip(room.folder / "in.mp4", size="192x108", frames=30)
    (room.folder / "in").mkdir()
    os.link(room.folder / "in.mp4", room.folder / "in/a.mp4")
    words = [sys.executable, "-m", "vqaloop", "watch", "in", *QUICK, "--progress", "json"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, cwd=room.folder)
    assert process.stderr
    for line in process.stderr:
        if b'"stage": "a.mp4: search"' in line:
            break
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
    ).stdout.split()
    process.kill()
    process.communicate()
    end = time.monotonic() + 30
    while any(map(running, map(int, children))):
        assert time.monotonic() < end, "a child runs on"
        time.sleep(0.1)
    assert outcome(room, "a.mp4") == ""
    record = State(room.folder / "in.watched").read("a.mp4")
    assert record and (record.outcome, record.attempts) == ("begun", 1)
    said = room.run("watch", "in", *QUICK)
    assert said.status == 0 and "going on: " in said.err, said.err
    cost = json.loads((room.folder / "in.watched/a.mp4/ladder/ladder.json").read_text())["cost"]
    assert cost["earlier"]["encodes"] >= 1
