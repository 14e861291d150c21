"""A title of a catalogue made: its ladder, or why there is none, as an entry."""

import logging
import queue
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from vqaloop.catalogue.entries import Entry
from vqaloop.catalogue.plan import Task
from vqaloop.catalogue.state import digest, made_before, note_made
from vqaloop.catalogue.titles import Title
from vqaloop.core import scopes
from vqaloop.core.text import utf8
from vqaloop.errors import VqaloopError
from vqaloop.execution.executor import Executor, calls_at_once
from vqaloop.execution.job import Job
from vqaloop.ladder.build import build_ladder
from vqaloop.ladder.warnings import UNTRUSTED, find_doubts
from vqaloop.records import Event, Ladder, Watcher, rounded
from vqaloop.search import prior_store

log = logging.getLogger(__name__)
MOST_OPEN = 64
"""Titles that a process has begun and not ended, however many workers there are."""
LONGEST_REASON = 2000


class Named(Protocol):
    """A title to make, as it is called."""

    @property
    def title(self) -> Title: ...
    @property
    def name(self) -> str: ...
    @property
    def codec(self) -> str: ...
    @property
    def folder(self) -> Path: ...


def most_open(executor: Executor) -> int:
    """Titles to have open at a time, so that no worker waits."""
    asked = executor.workers
    # a second title works while the first decides what to try next
    return min(MOST_OPEN, 2 * asked if asked > 1 else min(2, calls_at_once(executor)))


def make_title(
    task: Task, executor: Executor, known: Mapping[str, Any], progress: Watcher
) -> Entry:
    """The ladder, made now or found made, or why it failed; `known`: what priors began with."""
    try:
        with prior_store.using_snapshot(known):
            return _made(task, executor, progress)
    except Exception as error:
        return failed(task, error)


def failed(task: Named, error: Exception) -> Entry:
    """The entry of a title without a ladder."""
    reason = str(error)
    if not isinstance(error, VqaloopError | OSError):  # a fault of ours in one title of a thousand
        log.debug("%s", task.name, exc_info=error)
        reason = f"unexpected {type(error).__name__}: {error}; try this title alone"
    return _entry(task, "failed", reason[:LONGEST_REASON])


class TitleThreads:
    """Makes titles in this process, each in a thread of its own."""

    def __init__(self, make: Callable[[int, Watcher], Entry], most: int) -> None:
        """`make`: of a title by its number; `most`: open at a time."""
        self._make, self._most, self._scope = make, most, scopes.Scope()
        self._jobs: dict[int, Job[Entry]] = {}
        self._news: queue.SimpleQueue[tuple[int, Event | None]] = queue.SimpleQueue()

    def take(self, waiting: deque[int]) -> None:
        """Begin those of the titles that there is room for."""
        while waiting and len(self._jobs) < self._most:
            index = waiting.popleft()
            with self._scope.entered():
                self._jobs[index] = Job(self._work, index)

    def _work(self, index: int, *, progress: Watcher) -> Entry:
        def report(event: Event) -> None:
            progress(event)
            self._news.put((index, event))

        try:
            return self._make(index, report)
        finally:
            self._news.put((index, None))

    def news(self, timeout_s: float) -> list[tuple[int, Event | Entry]]:
        """What titles reported, and the entries of those that ended, once there is any."""
        found = list[tuple[int, Event | Entry]]()
        try:
            while True:
                index, event = self._news.get(timeout=0 if found else timeout_s)
                # a title that was called off with all the others has no entry
                scopes.check_cancelled()
                found.append((index, event or self._jobs.pop(index).result()))
        except queue.Empty:
            return found

    def close(self) -> None:
        """End what is under way, all at once: none may take the turn of another that was ended."""
        self._scope.cancel()
        while any(job.running for job in list(self._jobs.values())):
            time.sleep(0.02)


def _made(task: Task, executor: Executor, progress: Watcher) -> Entry:
    request = digest(task)
    ladder = made_before(task.folder, request)
    if ladder is not None:
        return _entry_of(task, ladder, kept=True)
    ladder = build_ladder(
        task.title.input,
        codec=task.codec,
        out=task.folder,
        workers=executor,
        progress=progress,
        **task.arguments,
    )
    note_made(ladder, request)
    return _entry_of(task, ladder)


def _entry(task: Named, status: str, reason: str | None, **more: Any) -> Entry:
    return Entry(
        task.name, utf8(task.title.input), task.codec, task.folder, status, reason, **more
    )


def _entry_of(task: Task, ladder: Ladder, kept: bool = False) -> Entry:
    about = ladder.about
    source, warnings = about["source"], list(about.get("warnings") or ())
    cost = {name: value for name, value in about["cost"].items() if name != "earlier"}
    whole = about.get("windows") == [[0, source["frames"]]]
    hdr = (source.get("hdr") or {}).get("range", "SDR") != "SDR"
    doubts = find_doubts(ladder.rungs, task.metric, whole, hdr).lines
    doubt = "; ".join(doubts) or UNTRUSTED
    rungs = [
        {
            "width": rung.width,
            "height": rung.height,
            "bitrate_kbps": rounded(rung.bitrate_kbps),
            "score": rounded(rung.score),
            "vmaf": rounded(rung.guard.get("vmaf", float("nan"))),
            **({} if rung.score_mean is None else {"score_mean": rounded(rung.score_mean)}),
        }
        for rung in ladder.rungs
    ]
    return _entry(
        task,
        "done" if ladder.trusted else "untrusted",
        None if ladder.trusted else doubt[:LONGEST_REASON],
        kept=kept,
        about={
            "source": {key: source[key] for key in ("width", "height", "fps", "duration")},
            "encoder": about["encoder"]["name"],
            "preset": about["encoder"]["preset"],
            "metric": about["metric"]["name"],
            "rungs": rungs,
            "warnings": warnings,
            # of this call: what was there already has cost it nothing
            "cost": dict.fromkeys(cost, 0) if kept else cost,
        },
    )
