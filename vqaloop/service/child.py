"""A command of vqaloop as a child process, followed by its events."""

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vqaloop
from vqaloop.core import process, scopes
from vqaloop.errors import CalledOff
from vqaloop.report.events import SCHEMA

STALL_S = 3600.0
"""Seconds without an event after which a child is stopped. It has limits of its own on all
programs that it runs, so this ends what hangs within itself."""
LONGEST_LINE = 1 << 20
"""Bytes beyond which a line of its stderr is none of its events."""
TOKEN_VARIABLE = "VQALOOP_TOKEN"
"""The server's own secret, which children do without."""

Watcher = Callable[[dict[str, Any]], None]
"""Takes the events of a child, as docs/progress.md has them."""


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    status: int
    """Exit status; negative is the signal that killed it."""
    error: str | None
    """Why it was refused or failed."""


class _Lines:
    """Takes apart what a child writes to stderr."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher, self._rest = watcher, b""
        self.last = time.monotonic()
        """When the last event came."""
        self.error: str | None = None

    def __call__(self, piece: bytes) -> bytes:
        """Reports the events; returns the lines that are none, for the message of a failure."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        self._rest = self._rest[-LONGEST_LINE:]
        return b"".join(line + b"\n" for line in lines if not self._is_event(line))

    def _is_event(self, line: bytes) -> bool:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            return False
        if not isinstance(event, dict) or event.get("schema") != SCHEMA:
            return False
        self.last = time.monotonic()
        if event.get("event") == "end":
            self.error = event.get("error")
        self._watcher(event)
        return True


def _variables() -> dict[str, str]:
    """Of a child's environment: this package, and paths that hold from elsewhere too."""
    root = str(Path(vqaloop.__file__).resolve().parents[1])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    found = {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, paths)), TOKEN_VARIABLE: ""}
    for name in ("VQALOOP_CACHE", "VQALOOP_FFMPEG"):
        value = os.environ.get(name, "")
        # a program without a slash is one of the search path
        if value and (name == "VQALOOP_CACHE" or "/" in value):
            found[name] = os.path.abspath(value)
    return found


def run_command(
    words: Sequence[str], folder: Path, watcher: Watcher, scope: scopes.Scope | None = None
) -> Ended:
    """Run `vqaloop WORDS --progress json` in a folder of its own, to its end.

    Args:
        words: The command, its paths absolute.
        folder: Its working folder, in which no settings file may lie that is not meant.
        watcher: Called with every event, in a thread.
        scope: Cancelled by whoever wants the command to end before; it is then killed at once,
            with all that it runs. None: one that nobody cancels.

    Raises:
        CalledOff: The scope, or this thread's work, was cancelled.
        ToolError: Python cannot be started.
    """
    scope = scope or scopes.Scope()
    lines, over = _Lines(watcher), threading.Event()
    stalled = threading.Event()

    def look() -> None:
        while not over.wait(min(5.0, STALL_S / 4)):
            if time.monotonic() - lines.last > STALL_S:
                stalled.set()
                scope.cancel()

    # -P: what lies in the working folder is never imported
    argv = [sys.executable, "-P", "-m", "vqaloop", *words, "--progress", "json"]
    threading.Thread(target=look, daemon=True).start()
    try:
        with process.working_in(folder, _variables()), scope.entered():
            done = process.run(
                argv,
                # its programs use the time, in process groups of their own
                timeout_s=math.inf,
                idle_s=math.inf,
                again=False,
                stdout=subprocess.DEVNULL,
                stderr_reader=lambda: lines,
            )
    except CalledOff:
        if not stalled.is_set():
            raise
        return Ended(-9, f"stopped: no sign of life for {STALL_S:.0f} s")
    finally:
        over.set()
    if lines.error is None and done.returncode not in (0, 1, 3):
        return Ended(done.returncode, done.reason())
    return Ended(done.returncode, lines.error)
