"""Progress on stderr: a bar on a terminal, plain lines elsewhere."""

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vqaloop.core.scopes import check_cancelled
from vqaloop.core.text import printable
from vqaloop.errors import CalledOff
from vqaloop.records import Event
from vqaloop.report.console import console_for, encodable, is_terminal, print_line
from vqaloop.report.events import RunEvents

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

LOADING_S = 0.3
"""Seconds of imports after which they are announced."""


SHOWN_LEFT_S = 5.0
"""Seconds from which on the time left is shown."""


def left_words(event: Event) -> str:
    """The time that an event's stage will take from here; "" where it is short or not known."""
    if event.left_s is None or event.left_s < SHOWN_LEFT_S:
        return ""
    minutes, seconds = divmod(round(event.left_s), 60)
    hours, minutes = divmod(minutes, 60)
    time = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
    return f"{'at most ' * event.at_most}{time} left"


class Progress:
    """Progress on stderr: a live bar on a terminal, plain lines elsewhere, nothing when quiet.

    A context manager, and the watcher that `build_ladder` calls; safe to call from any thread.
    Trouble with stderr itself (closed, full) never stops the work. `events` get all of it too, and
    alone where they go to stderr.
    """

    def __init__(self, quiet: bool = False, events: RunEvents | None = None) -> None:
        self._events = events or RunEvents()
        self.quiet = quiet or self._events.json
        self._stream = sys.stderr
        self._lock = threading.Lock()
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._counted: tuple[str, int, int] | None = None

    def __enter__(self) -> "Progress":
        if not self.quiet and is_terminal(self._stream):
            self._bar = _make_bar(console_for(self._stream))
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """Around imports: they are announced where they take long."""
        timer = threading.Timer(LOADING_S, self._announce)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _announce(self) -> None:
        with contextlib.suppress(CalledOff):
            self(Event("start", "loading libraries"))

    @property
    def live(self) -> bool:
        """Whether there is a bar."""
        return self._bar is not None

    def __call__(self, event: "Event") -> None:
        """Show an event; on a terminal a failed trial leaves a line that stays.

        Raises CalledOff where that work was cancelled.
        """
        check_cancelled()
        self._events.progress(event)
        if self._bar is None:
            # a count is repeated only when it has changed
            now, count = (event.stage, event.done, event.total), ""
            if event.total and now != self._counted:
                count = f" {event.done}/{event.total}{' at most' * event.at_most}"
            if left := left_words(event):
                count += f", {left}"
            self._counted = now
            self._show(f"{event.stage}{count}: {event.message}")
            return
        if event.trial is not None and event.trial.error:
            self._show(event.message)
        with self._lock:
            if self._task is None:
                self._task = self._bar.add_task(event.stage, total=None, message="", left="")
            self._bar.update(
                self._task,
                description=event.stage,
                completed=event.done,
                # without a total the bar pulses
                total=event.total or None,
                message=printable(event.message),
                left=left_words(event),
            )

    def log(self, line: str) -> None:
        """One line, above the bar where there is one. Raises CalledOff as above."""
        check_cancelled()
        self._events.message(line)
        self._show(line)

    def _show(self, line: str) -> None:
        if self.quiet:
            return
        with self._lock, contextlib.suppress(OSError, ValueError):
            if self._bar is not None:
                print_line(self._bar.console, line)
                return
            self._stream.write(encodable(printable(line), self._stream.encoding) + "\n")
            self._stream.flush()


def _make_bar(console: "Console") -> "Bar":
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as Bar
    from rich.table import Column

    message = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    return Bar(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}", markup=False),
        TextColumn("{task.fields[message]}", markup=False, table_column=message),
        console=console,
        transient=True,
        expand=True,
        redirect_stdout=False,  # stdout is the caller's
    )
