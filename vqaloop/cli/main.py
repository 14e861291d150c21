"""The command line. Tables and messages on stdout, progress and errors on stderr.

Exit status: 0 done; 1 done and the answer is no; 2 refused; 3 an answer not to be trusted;
130 interrupted, and the same command goes on from there.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vqaloop.errors import InputError, VqaloopError

if TYPE_CHECKING:
    import argparse

    from vqaloop.report.events import RunEvents


INTERRUPTED = 130
TWICE_S = 0.5
"""Seconds in which a signal that comes twice was sent once: to us, and to our group."""
LOOK_S = 0.05
"""Seconds between looks at whether the work is over, or a signal came."""
GRACE_S = 10.0
"""Seconds that work which was called off has to clear up, before all ends at once."""
_KEPT = "what was finished is kept, and the same command goes on from there"


class _Signals:
    """The signals that end a command set a flag, at which whoever waits for the work looks.

    An exception raised from a handler would come up in whatever Python runs at that moment, and is
    lost in a finaliser or the callback of a weak reference.
    """

    def __init__(self) -> None:
        self.first: float | None = None
        """When the first of them came."""
        self.over = False
        """True once there is no work left to call off."""
        self.events: RunEvents | None = None
        """Of the command."""

    def note(self, *_: object) -> None:
        """The handler: the second time, or with nothing begun, all ends at once."""
        now = time.monotonic()
        if self.first is not None:
            if now - self.first > TWICE_S:
                self.end_at_once("stopped at once; the same command goes on from there")
            return
        self.first = now
        if self.over or not _anything_begun():
            self.end_at_once(f"interrupted; {_KEPT}")

    def end_at_once(self, message: str) -> None:
        """No more Python is run; the guardian stops the programs and removes what is left."""
        # the cursor may be hidden
        shown = b"\x1b[?25h" if os.isatty(2) else b""
        if self.events is None or not self.events.json:
            with contextlib.suppress(OSError):
                os.write(2, shown + f"\nvqaloop: {message}\n".encode())
        if self.events is not None:
            self.events.last_words(INTERRUPTED, message)
        os._exit(INTERRUPTED)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    Args:
        argv: The words of the command. Without them they are this program's own, which then ends
            with the command: its signals are not given back.
    """
    with _noted_signals(kept=argv is None) as signals:
        # whoever closed them wants to hear nothing, which is no reason to fail
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:
                setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        from vqaloop.cli.run_events import asks_for_json
        from vqaloop.report.events import RunEvents

        words = sys.argv[1:] if argv is None else list(argv)
        run = _Run(words, RunEvents(asks_for_json(words)))
        if signals is not None:
            signals.events = run.events
        with contextlib.closing(run.events):
            return _ended(run, *_outcome(run, signals))


def _outcome(run: "_Run", signals: _Signals | None) -> tuple[int, str | None]:
    """Exit status of a command, and why it was refused or ended."""
    try:
        status = _awaited(run, signals)
        sys.stdout.flush()
        return status, None
    except VqaloopError as error:
        return error.exit_code, str(error)
    except KeyboardInterrupt:
        from vqaloop.core.scopes import kill_all

        kill_all()
        return INTERRUPTED, f"interrupted; {_KEPT}"
    except BrokenPipeError:
        # whoever read our stdout has left; nothing more can be written there
        _drop_stdout()
        return 0, None
    except OSError as error:
        from vqaloop.core.text import quoted

        _drop_stdout()
        place = f"{quoted(error.filename)}: " if error.filename else ""
        return InputError.exit_code, f"{place}{error.strerror or error}"
    except Exception as error:
        # Python ends with this status, after a traceback
        unexpected = f"unexpected {type(error).__name__}: {error}"
        run.events.end(run.events.ending(1, unexpected, "failed"))
        raise


def _ended(run: "_Run", status: int, error: str | None) -> int:
    """Report the end of a command, to whom it asked for; the exit status."""
    from vqaloop.core.text import printable

    about = run.events.ending(status, error)
    if error is not None and not run.events.json:
        print(f"vqaloop: {printable(error)}", file=sys.stderr)
    if run.notify:
        from vqaloop.cli.run_events import notify

        if why := notify(run.notify, about):
            text = f"--notify {run.notify[0]}: {why}"
            run.events.message(text, "warning")
            if not run.events.json:
                print(f"vqaloop: warning: {printable(text)}", file=sys.stderr)
    run.events.end(about)
    return status


class _Run:
    """One command."""

    def __init__(self, words: Sequence[str], events: "RunEvents") -> None:
        self.words, self.events = words, events
        self.notify: Sequence[str] = ()

    def __call__(self) -> int:
        # what is heavy is imported once signals are noted
        from vqaloop.cli.parser import parse_words
        from vqaloop.cli.run_events import begin, relayed_warnings

        options = parse_words(self.words)
        begin(self.events, options, self.words)
        self.notify = options.notify or ()
        with relayed_warnings(self.events):
            _check_common(options)
            return int(options.run(options))


def _awaited(work: Callable[[], int], signals: _Signals | None) -> int:
    """The answer of `work`, which a signal calls off. Raises what it raises, and
    KeyboardInterrupt where it was called off."""
    if signals is None:
        return work()
    from vqaloop.core.scopes import BackgroundCall

    try:
        aside = BackgroundCall(work)
        while not aside.over.wait(LOOK_S):
            if signals.first is None:
                continue
            aside.scope.cancel()
            if time.monotonic() - signals.first > GRACE_S:
                signals.end_at_once(f"interrupted; {_KEPT}")
        if signals.first is not None:
            raise KeyboardInterrupt
        return aside.result()
    finally:
        signals.over = True


def _anything_begun() -> bool:
    """Whether there may be programs that run, or unfinished files: then there is a guardian."""
    guardian = sys.modules.get("vqaloop.core.guardian")
    return guardian is not None and guardian.is_needed()


@contextlib.contextmanager
def _noted_signals(kept: bool) -> Iterator[_Signals | None]:
    """SIGINT, SIGTERM and SIGHUP end a command with no program left behind; the second time any
    of them comes, at once. None where all of them are somebody else's."""
    signals = _Signals()
    # whoever ignores them (nohup) or handles them, or calls from a thread, is left alone
    ours = threading.current_thread() is threading.main_thread()
    ends = {
        number: before
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if ours
        and (before := signal.getsignal(number)) in (signal.SIG_DFL, signal.default_int_handler)
    }
    for number in ends:
        signal.signal(number, signals.note)
    try:
        yield signals if ends else None
    finally:
        for number, before in ends.items():
            if kept:
                # Python gives signals back as it ends: one more would kill it, and hide the status
                atexit.register(signal.signal, number, signal.SIG_IGN)
            else:
                signal.signal(number, before)


def _drop_stdout() -> None:
    """Let go of a stdout that takes nothing more, or Python complains of it when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check_common(options: "argparse.Namespace") -> None:
    """Refuse what no command can do, before any work: also a JSON document with no place."""
    from vqaloop.core.folders import check_writable
    from vqaloop.core.option_fields import given_options
    from vqaloop.core.text import quoted
    from vqaloop.execution.checks import check_run
    from vqaloop.execution.options import Running

    running = Running(**given_options(Running, options))
    check_run(running.workers, running.seed, running.device)
    if not options.json or options.json == "-":
        return
    path = Path(options.json)
    if path.is_dir():
        raise InputError(f"--json {quoted(path)} is a folder; name a file")
    check_writable(path.parent, "name another file with --json")
