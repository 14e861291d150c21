"""A command's own events: where its options send them, and who is notified of its end."""

import argparse
import contextlib
import json
import logging
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vqaloop.core.text import printable
from vqaloop.errors import InputError, VqaloopError
from vqaloop.report.events import SCHEMA, RunEvents, now_text

NOTIFY_S = 60.0
"""Seconds that the program of --notify may take."""
_GIVEN = ("command", "status", "outcome")
"""Fields of the last event that it has in its environment too."""


def add_run_events(group: Any) -> None:
    """The options of all commands about their events; `group` is an argument group."""
    group.add_argument(
        "--progress",
        metavar="auto|json",
        choices=("auto", "json"),
        default="auto",
        help="on stderr: a bar or lines for people, or NDJSON events",
    )
    group.add_argument(
        "--log", metavar="FILE", type=Path, help="append what happens, with times, to a log"
    )
    group.add_argument(
        "--notify",
        metavar="COMMAND",
        type=notify_words,
        help="a program with arguments, run at the end with a JSON document on its stdin",
    )


def notify_words(text: str) -> list[str]:
    """The program of --notify with its arguments, quoted as in a shell. Raises InputError."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"--notify {text[:80]!r}: {error}; correct its quotes") from error
    if not words or not words[0] or "\0" in text:
        raise InputError("--notify takes a program with its arguments, such as 'notify.sh title'")
    return words


def asks_for_json(words: Sequence[str]) -> bool:
    """Whether words that are not parsed yet ask for events: a refusal of them is one as well."""
    pairs = zip(words, [*words[1:], ""], strict=False)
    return any(w == "--progress=json" or (w, n) == ("--progress", "json") for w, n in pairs)


def begin(events: RunEvents, options: argparse.Namespace, words: Sequence[str]) -> None:
    """Have the options' events go where they ask, and the start reported. Raises InputError."""
    events.json, events.quiet = options.progress == "json", options.quiet
    if options.log is not None:
        events.open_log(options.log)
    options.events = events
    events.start(words[0], words)


class _Relay(logging.Handler):
    """Warnings of the library, as events and on stderr."""

    def __init__(self, events: RunEvents, shown: bool) -> None:
        super().__init__(logging.WARNING)
        self._events, self._shown = events, shown

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if self._shown and not self._events.json:
            with contextlib.suppress(OSError, ValueError):
                print(f"vqaloop: {text}", file=sys.stderr)
        self._events.message(text, "warning")


@contextlib.contextmanager
def relayed_warnings(events: RunEvents) -> Iterator[None]:
    """While inside, what is logged is reported; a program around us that shows it still does."""
    root = logging.getLogger()
    relay = _Relay(events, shown=not root.handlers)
    root.addHandler(relay)
    try:
        yield
    finally:
        root.removeHandler(relay)


def notify(words: Sequence[str], about: dict[str, Any]) -> str:
    """Run the program of --notify; why it failed, or "".

    It gets the fields of the last event on stdin, and status and outcome in its environment.
    """
    from vqaloop.core import process

    text = json.dumps({"schema": SCHEMA, "time": now_text(), "event": "end", **about})
    given = {f"VQALOOP_{name.upper()}": str(about[name]) for name in _GIVEN}
    try:
        with tempfile.TemporaryFile() as document, process.working_in(None, given):
            document.write(text.encode("ascii") + b"\n")
            document.seek(0)
            done = process.run(
                words,
                timeout_s=NOTIFY_S,
                again=False,
                stdin=document,
                stdout=subprocess.DEVNULL,
            )
    except (VqaloopError, OSError) as error:
        return printable(str(error))
    return "" if done.returncode == 0 and not done.timed_out else printable(done.reason())
