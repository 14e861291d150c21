"""A command's run for programs and for later: NDJSON events on stderr, and a log file.

docs/progress.md has the schema. Trouble with stderr or the log never stops the work.
"""

import contextlib
import json
import os
import re
import stat
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vqaloop.core.rounding import finite
from vqaloop.core.text import printable, quoted
from vqaloop.core.version import __version__
from vqaloop.errors import InputError
from vqaloop.records import Event

SCHEMA = "vqaloop.events/1"
"""Of every line. A field may be added within it; what a field means does not change."""
OUTCOMES = {0: "done", 1: "negative", 2: "refused", 3: "untrusted", 130: "interrupted"}
"""Of exit statuses."""
_LOGGED = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ")
"""How every line of a log begins."""
_PASSWORD = re.compile(r"(\w://[^/@\s:]*):[^/@\s]*@")


def now_text() -> str:
    """The time now as events have it: UTC, to the millisecond."""
    return f"{datetime.now(UTC).isoformat(timespec='milliseconds')[:23]}Z"


class RunEvents:
    """Start, progress, messages and end of one command. Safe to call from any thread."""

    def __init__(self, as_json: bool = False) -> None:
        self.json, self.quiet = as_json, False
        self._log: int | None = None
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._command = ""
        self._logged: tuple[object, ...] | None = None

    def open_log(self, path: Path) -> None:
        """Have the lines appended to a file. Raises InputError for what is no log of ours."""
        try:
            # a pipe that nobody reads is refused, not waited for
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
            opened = os.open(path, flags, 0o666)
        except OSError as error:
            raise InputError(
                f"--log {quoted(path)} cannot be written: {error.strerror or error}; name another "
                "file"
            ) from error
        start = b""
        regular = stat.S_ISREG(os.fstat(opened).st_mode)
        if regular:
            start = os.pread(opened, 64, 0)
        if not regular or (start and not _LOGGED.match(start)):
            os.close(opened)
            raise InputError(
                f"--log {quoted(path)} is there and is no log of vqaloop; name another file"
            )
        self._log = opened

    def close(self) -> None:
        """Write no more to the log."""
        if self._log is not None:
            os.close(self._log)
            self._log = None

    def start(self, command: str, words: Sequence[str]) -> None:
        """The command with its arguments, passwords in URLs left out."""
        self._command = command
        words = [_PASSWORD.sub(r"\1:***@", word) for word in words]
        about = {"command": command, "arguments": words, "version": __version__}
        self._emit("start", {**about, "pid": os.getpid()})
        self._write_log(f"start: vqaloop {' '.join(map(_shown, words))} (version {__version__})")

    def progress(self, event: Event) -> None:
        """An event of the work; of those that differ in counts of frames the log has the first."""
        if not self.quiet:
            about = {name: getattr(event, name) for name in ("stage", "message", "done", "total")}
            about |= {"at_most": event.at_most, "left_s": event.left_s}
            self._emit("progress", {**about, "trial": event.trial and event.trial.to_json()})
        key = event.stage, event.done, event.total, re.sub(r"\d+", "", event.message)
        if event.trial is not None or key != self._logged:
            self._logged = key
            count = f" {event.done}/{event.total}{' at most' * event.at_most}" * bool(event.total)
            self._write_log(f"{event.stage}{count}: {event.message}")

    def message(self, text: str, level: str = "info") -> None:
        """A line for people; level is info or warning."""
        if not (self.quiet and level == "info"):
            self._emit("message", {"level": level, "message": text})
        self._write_log(text if level == "info" else f"{level}: {text}")

    def ending(self, status: int, error: str | None, outcome: str | None = None) -> dict[str, Any]:
        """The fields of the end: what `end` reports and `--notify` is given."""
        return {
            "command": self._command,
            "status": status,
            "outcome": outcome or OUTCOMES.get(status, "failed"),
            "error": error,
            "elapsed_s": round(time.monotonic() - self._began, 3),
        }

    def end(self, about: dict[str, Any]) -> None:
        """The last line."""
        self._emit("end", about)
        self._write_log(self._end_line(about))

    def last_words(self, status: int, message: str) -> None:
        """The end of a process that runs no more Python: without locks and buffers."""
        about = self.ending(status, message)
        if self.json:
            with contextlib.suppress(OSError):
                os.write(2, _line("end", about))
        with contextlib.suppress(OSError):
            self._write_log(self._end_line(about))

    def _end_line(self, about: dict[str, Any]) -> str:
        why = f": {about['error']}" if about["error"] else ""
        return f"end: {about['outcome']}, status {about['status']}, {about['elapsed_s']} s{why}"

    def _emit(self, kind: str, fields: dict[str, Any]) -> None:
        if not self.json:
            return
        with self._lock, contextlib.suppress(OSError, ValueError):
            sys.stderr.write(_line(kind, fields).decode("ascii"))
            sys.stderr.flush()

    def _write_log(self, text: str) -> None:
        if self._log is None:
            return
        line = f"{now_text()} [{os.getpid()}] {printable(text)}\n"
        try:
            # one write: lines of runs that share a log stay whole
            os.write(self._log, line.encode("utf-8", "backslashreplace"))
        except OSError as error:
            with contextlib.suppress(OSError):
                os.close(self._log)
            self._log = None
            self._trouble(f"the log ends here: {error.strerror or error}")

    def _trouble(self, text: str) -> None:
        if self.json:
            self._emit("message", {"level": "warning", "message": text})
            return
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"vqaloop: warning: {printable(text)}\n")


def _line(kind: str, fields: dict[str, Any]) -> bytes:
    document = {"schema": SCHEMA, "time": now_text(), "event": kind, **finite(fields)}
    return json.dumps(document, default=str).encode("ascii") + b"\n"


def _shown(word: str) -> str:
    return word if re.fullmatch(r"[\w./:=,@%+-]+", word) else repr(word)
