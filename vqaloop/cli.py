"""The command line. Tables and messages on stdout, progress and errors on stderr.

Exit status: 0 done; 1 done and the answer is no; 2 refused; 3 an answer not to be trusted;
130 interrupted, and the same command goes on from there.
"""

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from vqaloop import process
from vqaloop.errors import InputError, VqaloopError
from vqaloop.parser import make_parser
from vqaloop.terminal import printable

INTERRUPTED = 130
TWICE_S = 0.5
"""Seconds in which a signal that comes twice was sent once: to us, and to our group."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    # whoever closed them wants to hear nothing, which is no reason to fail
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    logging.basicConfig(format="vqaloop: %(message)s", level=logging.WARNING)
    with _ended_by_signals():
        try:
            options = make_parser().parse_args(argv)
            _check_common(options)
            with _chosen_ffmpeg(options.ffmpeg):
                status = int(options.run(options))
            sys.stdout.flush()
            return status
        except VqaloopError as error:
            return _refuse(str(error), error.exit_code)
        except KeyboardInterrupt:
            return _interrupted()
        except BrokenPipeError:
            # whoever read our stdout has left; nothing more can be said there
            _drop_stdout()
            return 0
        except OSError as error:
            _drop_stdout()
            place = f"{process.quoted(error.filename)}: " if error.filename else ""
            return _refuse(f"{place}{error.strerror or error}", InputError.exit_code)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end a command as Ctrl-C does, with no program left behind; the second
    time any of them comes, at once."""
    first: list[float] = []

    def interrupt(*_: object) -> None:
        if first and time.monotonic() - first[0] < TWICE_S:
            return
        if first:
            # the cursor may be hidden; the guardian stops the programs and removes what is left
            shown = b"\x1b[?25h" if os.isatty(2) else b""
            os.write(
                2, shown + b"\nvqaloop: stopped at once; the same command goes on from there\n"
            )
            os._exit(INTERRUPTED)
        first.append(time.monotonic())
        raise KeyboardInterrupt

    # whoever ignores them (nohup) or handles them, or calls from a thread, is left alone
    ours = threading.current_thread() is threading.main_thread()
    ends = {
        number: before
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if ours
        and (before := signal.getsignal(number)) in (signal.SIG_DFL, signal.default_int_handler)
    }
    for number in ends:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, before in ends.items():
            signal.signal(number, before)


@contextlib.contextmanager
def _chosen_ffmpeg(path: str | None) -> Iterator[None]:
    """--ffmpeg stands for $VQALOOP_FFMPEG while a command runs."""
    before = os.environ.get("VQALOOP_FFMPEG")
    if path is not None:
        os.environ["VQALOOP_FFMPEG"] = path
    try:
        yield
    finally:
        if path is not None:
            os.environ.pop("VQALOOP_FFMPEG")
            if before is not None:
                os.environ["VQALOOP_FFMPEG"] = before


def _refuse(message: str, status: int) -> int:
    print(f"vqaloop: {printable(message)}", file=sys.stderr)
    return status


def _interrupted() -> int:
    process.kill_all()
    kept = "what was finished is kept, and the same command goes on from there"
    return _refuse(f"interrupted; {kept}", INTERRUPTED)


def _drop_stdout() -> None:
    """Let go of a stdout that takes nothing more, or Python complains of it when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check_common(options: argparse.Namespace) -> None:
    """Refuse what no command can do, before any work: also a JSON document with no place."""
    from vqaloop.request import check_run, check_writable

    check_run(options.workers, options.seed, options.device)
    if not options.json or options.json == "-":
        return
    path = Path(options.json)
    if path.is_dir():
        raise InputError(f"--json {process.quoted(path)} is a folder; name a file")
    check_writable(path.parent, "name another file with --json")
