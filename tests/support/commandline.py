"""vqaloop as a user runs it, in a private place: commands, what they leave, ffmpegs that fail."""

import contextlib
import json
import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vqaloop.cli.main import main
from vqaloop.core.ffmpeg import ffmpeg_path

SMALL = (
    *("--codec", "h264", "--metric", "psnr", "--preset", "ultrafast"),
    *("--rungs", "2", "--min-step", "0.2", "--min-ratio", "1.2"),
)
"""Options of a ladder that takes about a second."""

BLANK = "from matplotlib.figure import Figure; Figure.draw = lambda *_: None\n"
"""Before a program's own code, it keeps the program's plots blank, as the tests' own are."""


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Room:
    """A private place for commands: work folder, temporary folder and cache of their own."""

    folder: Path
    """The current folder."""
    temp: Path
    """$TMPDIR; what a command leaves there it has forgotten."""
    cache: Path
    """$VQALOOP_CACHE"""
    capture: pytest.CaptureFixture[str]

    def run(self, *argv: str | Path) -> Said:
        """`vqaloop ARGV` in this process; argparse's own exits count as an exit status."""
        self.capture.readouterr()
        try:
            status = main([os.fspath(word) for word in argv])
        except SystemExit as end:
            status = int(end.code or 0)
        return Said(status, *self.capture.readouterr())

    def ladder(self, *argv: str | Path, out: str = "out") -> dict[str, Any]:
        """`vqaloop ladder ARGV` that must make a ladder; its document."""
        said = self.run("ladder", *argv, "-o", out)
        assert said.status in (0, 3), said.err
        return self.document(out)

    def document(self, out: str = "out") -> dict[str, Any]:
        text = (self.folder / out / "ladder.json").read_text()
        document: dict[str, Any] = json.loads(text)
        return document

    def tree(self) -> dict[str, tuple[int, int]]:
        """Size and time of all files and folders in the three places."""
        found = {}
        for top in (self.folder, self.temp, self.cache):
            for path in sorted(top.rglob("*")):
                status = path.lstat()
                found[os.fspath(path)] = (status.st_mtime_ns, status.st_size)
        return found


def children() -> dict[int, str]:
    """Programs started by this process that still run: their command lines by number."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = entry.joinpath("stat").read_text().rsplit(")", 1)[1].split()[:2]
            if int(parent) == os.getpid() and state != "Z":
                words = entry.joinpath("cmdline").read_bytes().split(b"\0")
                found[int(entry.name)] = b" ".join(words).decode("utf-8", "replace")
    # two live as long as this process: Python's own, once anything has shared memory, and ours
    lasting = ("resource_tracker", "guardian.py")
    return {pid: line for pid, line in found.items() if not any(word in line for word in lasting)}


def running(pid: int) -> bool:
    """Whether a program of that number is there and no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def slow_but(values: Iterable[Any], *quick: Any) -> list[Any]:
    """Values to test with, or tuples of them: those that are not `quick` in the slow run only."""
    rows = [(value, value if isinstance(value, tuple) else (value,)) for value in values]
    slow = pytest.mark.slow
    return [pytest.param(*row, marks=() if value in quick else slow) for value, row in rows]


FAILURES: Mapping[str, str] = {
    "crash": "kill -s SEGV $$",
    "hang": "exec sleep 600",
    "garbage": 'for last; do :; done; echo garbage > "${last#file:}"; exit 0',
    "nothing": 'for last; do :; done; : > "${last#file:}"; exit 0',
    # -frames:v before the last word, which is the output
    "lost frame": (
        'n=$#; for word; do n=$((n - 1)); [ $n -gt 0 ] || set -- "$@" -frames:v 11; '
        'set -- "$@" "$word"; shift; done'
    ),
}
"""What an encoder may do instead of its work, in the language of sh."""


def fake_ffmpeg(path: Path, cases: Mapping[str, str]) -> Path:
    """An ffmpeg that does as the real one, except for command lines that match a pattern of sh."""
    lines = [f"  {pattern}) {action} ;;" for pattern, action in cases.items()]
    real = shlex.quote(ffmpeg_path())
    script = ["#!/bin/sh", 'case "$*" in', *lines, "esac", f'exec {real} "$@"', ""]
    path.write_text("\n".join(script))
    path.chmod(0o755)
    return path


Maker = Callable[[Room], list[str | Path]]
