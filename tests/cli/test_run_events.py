"""--progress json, --log and --notify; what a resumed run says of the one before."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.commandline import SMALL, Room, Said
from tests.support.media import make_clip
from vqaloop.cli import run_events
from vqaloop.cli.main import main
from vqaloop.report.events import SCHEMA, RunEvents
from vqaloop.report.progress import Progress

EVENT = {"schema", "time", "event"}
FIELDS = {
    "start": {"command", "arguments", "version", "pid"},
    "progress": {"stage", "message", "done", "total", "at_most", "left_s", "trial"},
    "message": {"level", "message"},
    "end": {"command", "status", "outcome", "error", "elapsed_s"},
}
"""Of each kind of event, as docs/progress.md has them."""


@pytest.fixture
def clip(room: Room) -> Path:
    return make_clip(room.folder / "clip.mp4", size="64x64", frames=10)


def events_of(said: Said) -> list[dict[str, Any]]:
    """All lines of stderr, each an event of the schema with exactly its fields."""
    found = [json.loads(line) for line in said.err.splitlines()]
    for event in found:
        assert event["schema"] == SCHEMA
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["time"])
        assert set(event) == EVENT | FIELDS[event["event"]]
    return found


def notifier(path: Path, status: int = 0) -> Path:
    """A program that keeps what it is given, then ends with a status."""
    path.write_text(
        "#!/bin/sh\n"
        'printf "%s|" "$@" > words; cat > stdin.json\n'
        'echo "$VQALOOP_COMMAND $VQALOOP_STATUS $VQALOOP_OUTCOME" > environment\n'
        f"exit {status}\n"
    )
    path.chmod(0o755)
    return path


def test_a_ladder_in_events_log_and_notification(room: Room, clip: Path) -> None:
    program = notifier(room.folder / "a program.sh", status=4)
    asked = f"'{program}' 'one title' $(touch injected) | cat"
    told = ("--progress", "json", "--log", "run.log", "--notify", asked)
    said = room.run("ladder", clip, *SMALL, "-o", "out", *told)
    assert said.status in (0, 3)
    events = events_of(said)
    assert events[0]["event"] == "start" and events[0]["arguments"][:2] == ["ladder", str(clip)]
    trials = [e["trial"] for e in events if e["event"] == "progress" and e["trial"]]
    assert trials == room.document()["trials"][: len(trials)] and len(trials) >= 2
    assert {e["stage"] for e in events if e["event"] == "progress"} >= {"probe", "search", "write"}
    *_, warned, ended = events
    assert warned["level"] == "warning" and "exit status 4" in warned["message"]
    assert (ended["event"], ended["status"]) == ("end", said.status)
    # the program got the same end, and its words without a shell
    given = json.loads((room.folder / "stdin.json").read_text())
    assert {**given, "time": ""} == {**ended, "time": ""}
    assert (room.folder / "words").read_text() == "one title|$(touch|injected)|||cat|"
    assert not (room.folder / "injected").exists()
    environment = (room.folder / "environment").read_text()
    assert environment == f"ladder {said.status} {ended['outcome']}\n"
    # the log has start, every trial and the end, each line with its time; a second run appends
    log = (room.folder / "run.log").read_text()
    assert all(re.match(r"\S{23}Z \[\d+\] ", line) for line in log.splitlines())
    assert len(re.findall(r"search \d+/\d+ at most: ", log)) == len(trials)
    assert "] end: " in log.splitlines()[-1]
    # a second run says what it found, and keeps the first one's cost
    first = room.document()["cost"]
    again = room.run("ladder", clip, *SMALL, "-o", "out", "--quiet", "--log", "run.log")
    assert again.err == ""
    longer = (room.folder / "run.log").read_text()
    assert longer.startswith(log) and longer.count("] start: vqaloop ladder") == 2
    count = len(room.document()["trials"])
    assert f": going on: {count} of {count} encodes kept" in longer
    assert first["encodes"] > 0 and "earlier" not in first
    cost = room.document()["cost"]
    assert cost["encodes"] == 0
    earlier = cost["earlier"]
    assert (earlier["runs"], earlier["encodes"]) == (1, first["encodes"])
    assert earlier["encode_cpu_s"] == pytest.approx(first["encode_cpu_s"], abs=0.002)
    page = (room.folder / "out/report.html").read_text("utf-8")
    assert all(f"1 earlier run: {first['encodes']} encodes" in text for text in (again.out, page))


@pytest.mark.slow
def test_costs_of_several_runs_add_up(room: Room, clip: Path) -> None:
    first = room.ladder(clip, *SMALL)["cost"]
    room.ladder(clip, *SMALL)
    third = room.ladder(clip, *SMALL)["cost"]["earlier"]
    assert (third["runs"], third["encodes"]) == (2, first["encodes"])
    # what another ladder in that folder costs is its own
    other = room.ladder(clip, *SMALL, "--bit-depth", "8", "--preset", "superfast")["cost"]
    assert "earlier" not in other


@pytest.mark.slow
def test_the_cost_of_a_killed_run_is_not_lost(room: Room, clip: Path) -> None:
    """Killed outright after its second trial: what it spent is beside the next one's."""
    code = (
        "import os, signal, sys\nfrom vqaloop.report.progress import Progress\n"
        "before, seen = Progress.__call__, []\n"
        "def call(self, event):\n"
        "    before(self, event)\n"
        "    seen.extend([event.trial] if event.trial else [])\n"
        "    if len(seen) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Progress.__call__ = call\n"
        "from vqaloop.cli.main import main; sys.exit(main())"
    )
    words = [sys.executable, "-c", code, "ladder", str(clip), *SMALL, "-o", "out"]
    killed = subprocess.run(words, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    cost = room.ladder(clip, *SMALL)["cost"]
    assert cost["earlier"]["runs"] == 1 and cost["earlier"]["encodes"] == 2
    assert cost["encodes"] + 2 >= len(room.document()["trials"])


@pytest.mark.parametrize(
    ("words", "status", "outcome", "reason"),
    [
        (("ladder", "no such.mp4", "--codec", "h264"), 2, "refused", "no such.mp4"),
        (("ladder", "clip.mp4", "--codec", "h264", "--rungs", "many"), 2, "refused", "--rungs"),
        (("nonsense",), 2, "refused", "nonsense"),
        (("encoders",), 0, "done", None),
    ],
)
def test_every_end_is_an_event(
    room: Room, words: tuple[str, ...], status: int, outcome: str, reason: str | None
) -> None:
    for told in (("--progress", "json"), ("--progress=json",)):
        said = room.run(*words, *told)
        end = events_of(said)[-1]
        assert (said.status, end["status"], end["outcome"]) == (status, status, outcome)
        assert reason in end["error"] if reason else end["error"] is None


def test_warnings_are_events_and_passwords_are_left_out(room: Room) -> None:
    events = RunEvents(as_json=True)
    events.start("ladder", ["ladder", "--storage", "postgresql://me:s3cret@host/db", "a\nb"])
    with run_events.relayed_warnings(events):
        logging.getLogger("vqaloop.somewhere").warning("dark%s", "\x1b[0m")
        logging.getLogger("vqaloop.somewhere").info("of no interest")
    logging.getLogger("vqaloop.somewhere").warning("after the end")
    found = events_of(Said(0, "", room.capture.readouterr().err))
    assert found[0]["arguments"][2:] == ["postgresql://me:***@host/db", "a\nb"]
    assert (found[1]["level"], found[1]["message"]) == ("warning", "dark\x1b[0m")
    assert len(found) == 2


def test_a_log_that_is_none_of_ours_is_left_alone(room: Room, clip: Path) -> None:
    before = clip.read_bytes()
    os.mkfifo(room.folder / "pipe")
    for name in ("clip.mp4", ".", "nowhere/run.log", "pipe"):
        said = room.run("encoders", "--log", name)
        assert said.status == 2 and "--log" in said.err and said.out == ""
    assert clip.read_bytes() == before


def test_a_full_log_ends_no_work(room: Room) -> None:
    events = RunEvents()
    events.open_log(room.folder / "run.log")
    progress = Progress(events=events)
    assert events._log is not None
    os.dup2(os.open("/dev/full", os.O_WRONLY), events._log)
    progress.log("one")
    progress.log("two")
    err = room.capture.readouterr().err
    assert err.count("the log ends here: No space left") == 1 and "two" in err
    events.close()


def test_a_notification_that_fails_changes_no_status(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_events, "NOTIFY_S", 0.3)
    for command in ("/no/such/program", "false", "sleep 60", "'a=b' c", "-c true"):
        said = room.run("encoders", "--notify", command)
        assert said.status == 0 and "warning: --notify" in said.err, command
    for command in ("", "  ", "'open", "''"):
        said = room.run("encoders", "--notify", command)
        assert said.status == 2 and "--notify" in said.err and said.out == ""
    program = notifier(room.folder / "notify")
    room.run("ladder", "missing.mp4", "--codec", "h264", "--notify", str(program))
    assert (room.folder / "environment").read_text() == "ladder 2 refused\n"
    assert "missing.mp4" in json.loads((room.folder / "stdin.json").read_text())["error"]


def test_an_interruption_is_an_event(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("vqaloop.cli.encoders.run_encoders", interrupted)
    assert main(["encoders", "--progress", "json"]) == 130
    end = events_of(Said(130, "", room.capture.readouterr().err))[-1]
    assert (end["outcome"], end["status"]) == ("interrupted", 130)
