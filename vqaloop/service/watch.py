"""A watched folder: each video that has arrived whole becomes a ladder and a delivery, once."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqaloop.core.scopes import check_cancelled
from vqaloop.core.text import counted, quoted
from vqaloop.errors import CalledOff, InputError, VqaloopError
from vqaloop.records import Event
from vqaloop.report.events import now_text
from vqaloop.report.progress import Progress
from vqaloop.service.titles import DELIVERY, LADDER, TitleWork, check_apart, make_title
from vqaloop.service.watch_state import State, Version

SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".y4m", ".yuv", ".avi", ".ts", ".m2ts", ".mts"),
    *(".mpg", ".mpeg", ".mxf", ".wmv", ".flv", ".ogv", ".3gp", ".vob", ".ivf", ".obu", ".av1"),
    *(".264", ".h264", ".265", ".h265", ".hevc"),
)
"""Of files that are taken for videos, in either case."""
ATTEMPTS = 3
"""Times that a title may be begun and neither end nor be interrupted; then it is a dead letter."""
LOOK_S = 0.2


@dataclass(frozen=True)
class WatchOptions:
    """What is watched, and what is made of it."""

    folder: Path
    out: Path
    work: TitleWork
    settle_s: float
    """Seconds for which a file must not have changed."""
    interval_s: float
    """Seconds between two looks at the folder."""
    recursive: bool = False
    ended: Callable[[dict[str, Any]], None] = lambda record: None
    """Called with the record of each title that has ended."""


class FolderWatch:
    """One watcher of a folder. Several, also on several machines, may share an output folder."""

    def __init__(self, options: WatchOptions, progress: Progress) -> None:
        check_apart(options.folder, options.out)
        if not options.folder.is_dir():
            raise InputError(f"{quoted(options.folder)} is no folder; name the one to watch")
        self.options, self.progress = options, progress
        self.state = State(options.out)
        self.records: list[dict[str, Any]] = []
        """Of the titles that have ended here, in order."""
        self._seen: dict[str, tuple[Version, float]] = {}
        self._complaints: set[str] = set()

    def once(self) -> None:
        """Make all that is there and does not grow; what has changed meanwhile is left."""
        if list(self._new()):
            self._wait(self.options.settle_s)
        # again for one whose process was killed
        for _ in range(ATTEMPTS):
            for name, version in list(self._new()):
                self._take(name, version)

    def forever(self) -> None:
        """Make titles as they arrive, until this thread's work is cancelled."""
        while True:
            for name, version in list(self._new()):
                self._take(name, version)
            self._wait(self.options.interval_s)

    @property
    def exit_code(self) -> int:
        """0, 1 where a title failed, else 3 where one is not to be trusted."""
        outcomes = {record["outcome"] for record in self.records}
        return 1 if "failed" in outcomes else 3 if "untrusted" in outcomes else 0

    def _new(self) -> Iterator[tuple[str, Version]]:
        """Titles without a result, with what they were when they were first seen so."""
        try:
            found = dict(self._videos())
        except OSError as error:
            # such as a share that comes back
            self._complain(f"cannot look into the folder: {error.strerror or error}")
            return
        now = time.monotonic()
        for name, version in sorted(found.items()):
            seen, _ = self._seen.get(name, (None, 0.0))
            if seen != version:
                self._seen[name] = version, now
            record = self.state.read(name)
            settled = record is not None and record.is_of(version) and record.outcome != "begun"
            if not settled:
                yield name, version
        self._seen = {name: seen for name, seen in self._seen.items() if name in found}

    def _videos(self) -> Iterator[tuple[str, Version]]:
        """Names, relative to the folder, of the files that are videos by their names."""
        top = os.fspath(self.options.folder)
        out = self.options.out.resolve()

        def refuse(error: OSError) -> None:
            if error.filename == top:
                raise error

        for place, folders, files in os.walk(top, onerror=refuse):
            folders[:] = [f for f in folders if self.options.recursive and not f.startswith(".")]
            for file in files:
                path = Path(place, file)
                if file.startswith(".") or path.suffix.lower() not in SUFFIXES:
                    continue
                try:
                    # a link to what we made is no new title; a pipe or a device is none either
                    if not path.is_file() or out in path.resolve().parents:
                        continue
                    status = path.stat()
                except OSError:
                    continue
                if status.st_size:
                    name = os.path.relpath(path, top)
                    yield name, Version(status.st_size, status.st_mtime_ns)

    def _take(self, name: str, version: Version) -> None:
        """Make a title, unless it still grows or another watcher has it."""
        seen, since = self._seen.get(name, (None, 0.0))
        if seen != version or time.monotonic() - since < self.options.settle_s:
            return
        if self._version(name) != version:
            return
        try:
            with self.state.taken(name) as ours:
                record = self.state.read(name)
                # another may have made it since we looked
                old = record is not None and record.is_of(version)
                if ours and not (old and record is not None and record.outcome != "begun"):
                    self._make(name, version, record.attempts if old and record else 0)
        except (VqaloopError, OSError) as error:
            # the output folder: tried again at the next look
            self._complain(f"{quoted(name)}: {error}")

    def _make(self, name: str, version: Version, attempts: int) -> None:
        if attempts >= ATTEMPTS:
            why = f"it was begun {counted(attempts, 'time')} and the process was killed each time"
            self._end(name, version, "failed", time.monotonic(), why)
            return
        begun, state = time.monotonic(), self.state
        self.progress.log(f"{quoted(name)}: begun")
        state.write(name, version, "begun", attempts=attempts + 1, began=now_text())
        source = self.options.folder.absolute() / name
        folder = state.folder(name).absolute()
        try:
            made = make_title(source, folder, self.options.work, self._forward(name))
        except CalledOff:
            # somebody wants the watcher to end, which is no fault of the title
            state.write(name, version, "begun", attempts=attempts, began=now_text())
            raise
        if self._version(name) != version:
            # it had only paused; or it is gone, and nobody waits for it
            self.progress.log(f"{quoted(name)}: it changed meanwhile; made again if it is there")
            state.write(name, version, "begun", attempts=0, began=now_text())
            return
        if made.outcome == "killed" and attempts + 1 < ATTEMPTS:
            self._complain(f"{quoted(name)}: {made.error}; it is begun again")
            return
        outcome = "failed" if made.outcome == "killed" else made.outcome
        self._end(name, version, outcome, begun, made.error)

    def _end(
        self, name: str, version: Version, outcome: str, begun: float, error: str | None
    ) -> None:
        work = self.options.work
        record = self.state.write(
            name,
            version,
            outcome,
            error=error,
            ended=now_text(),
            seconds=round(time.monotonic() - begun, 3),
            codecs=list(work.codecs),
            ladder=LADDER if outcome != "failed" else None,
            delivery=DELIVERY if outcome != "failed" and work.deliver is not None else None,
        )
        self.records.append(record)
        self.progress.log(f"{quoted(name)}: {outcome}{f': {error}' if error else ''}")
        self.options.ended(record)

    def _forward(self, name: str) -> Callable[[dict[str, Any]], None]:
        """Shows a child's events as ours, under the title's name."""

        def forward(event: dict[str, Any]) -> None:
            if event.get("event") == "progress":
                about = {
                    key: event[key] for key in ("message", "done", "total", "at_most", "left_s")
                }
                self.progress(Event(f"{name}: {event['stage']}", **about))
            elif event.get("level") == "warning":
                self.progress.log(f"{quoted(name)}: warning: {event['message']}")

        return forward

    def _version(self, name: str) -> Version | None:
        try:
            status = os.stat(self.options.folder / name)
        except OSError:
            return None
        return Version(status.st_size, status.st_mtime_ns)

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            check_cancelled()
            time.sleep(min(LOOK_S, left))

    def _complain(self, text: str) -> None:
        """Once, however often the same is met."""
        if text not in self._complaints:
            self._complaints.add(text)
            self.progress.log(f"warning: {text}")
