"""Ladders of many titles at once: each with a study of its own, all with the same workers.

A title that fails stops no other. Titles do not learn from each other while the catalogue is made,
so that it comes out the same in whatever order they end, and however often it is interrupted.
"""

import logging
import os
import queue
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vqaloop.catalogue.entries import Catalogue, Entry
from vqaloop.catalogue.plan import STATE, Task, plan
from vqaloop.catalogue.report import write_catalogue
from vqaloop.catalogue.state import begun_with, digest, made_before, note_made
from vqaloop.catalogue.titles import Titles, listed
from vqaloop.core import scopes
from vqaloop.core.text import utf8
from vqaloop.errors import VqaloopError
from vqaloop.execution.executor import Executor, calls_at_once, executor_of
from vqaloop.execution.job import Job
from vqaloop.execution.stage_progress import TimeLeft
from vqaloop.ladder.build import build_ladder
from vqaloop.ladder.warnings import UNTRUSTED, find_doubts
from vqaloop.records import Event, Ladder, Watcher, rounded
from vqaloop.search import prior_store

log = logging.getLogger(__name__)
DEFAULT_OUT = "catalogue.ladders"
STAGE = "catalogue"
"""Of the events that tell of titles that ended."""
MOST_OPEN = 64
"""Titles begun and not ended, however many workers there are."""
POLL_S = 0.2
LONGEST_REASON = 2000


def build_catalogue(
    titles: Titles,
    *,
    codec: str | Sequence[str],
    out: str | os.PathLike[str] = DEFAULT_OUT,
    workers: int | Executor | None = None,
    progress: Watcher = lambda event: None,
    **options: Any,
) -> Catalogue:
    """A ladder for each title and codec, in folders of `out`, and a report of them all.

    `titles` is a .csv with a column `input` (see docs/ladder.md for the others), or videos, tables
    and `Title`s one after another. `options` are those of `build_ladder`; what a title says itself
    wins. With one worker titles are made one after another, with several so many at once that no
    worker waits, all of them sharing the workers in turns; with None two at once.

    Raises InputError for what is refused before any work: nothing is then written. A title that
    fails later stops no other: it is in the answer with its reason. What was encoded until an
    interruption is kept, and the same call goes on from there.
    """
    started = time.monotonic()
    executor, folder = executor_of(workers), Path(out)
    codecs = [codec] if isinstance(codec, str) else list(codec)
    tasks = plan(listed(titles), codecs, folder, options)
    folder.mkdir(parents=True, exist_ok=True)
    known = begun_with(folder / STATE, [kind for task in tasks for kind in task.kinds])
    entries = _made(tasks, executor, known, progress)
    catalogue = Catalogue(folder, tuple(entries), time.monotonic() - started)
    write_catalogue(catalogue)
    return catalogue


def _made(
    tasks: Sequence[Task], executor: Executor, known: Mapping[str, Any], progress: Watcher
) -> list[Entry]:
    """Each task's entry, in order. Whatever is raised here ends them all, cleanly, first."""
    news: queue.SimpleQueue[tuple[int, Event | None]] = queue.SimpleQueue()
    jobs, scope = dict[int, Job[Entry]](), scopes.Scope()
    several = len({task.codec for task in tasks}) > 1
    names = [f"{task.name} {task.codec}" if several else task.name for task in tasks]

    def work(index: int, *, progress: Watcher) -> Entry:
        def report(event: Event) -> None:
            progress(event)
            news.put((index, event))

        try:
            with prior_store.using_snapshot(known):
                return _make(tasks[index], executor, report)
        finally:
            news.put((index, None))

    titles = TimeLeft(progress)
    asked = executor.workers
    # a second title works while the first decides what to try next
    most = min(MOST_OPEN, 2 * asked if asked > 1 else min(2, calls_at_once(executor)))
    waiting, entries = deque(range(len(tasks))), dict[int, Entry]()
    try:
        while waiting or jobs:
            scopes.check_cancelled()
            while waiting and len(jobs) < most:
                index = waiting.popleft()
                with scope.entered():
                    jobs[index] = Job(work, index)
            try:
                index, event = news.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if event is not None:
                progress(replace(event, stage=f"{names[index]}: {event.stage}"))
                continue
            # a title that was called off with all the others did not fail
            scopes.check_cancelled()
            entries[index] = _ended(tasks[index], jobs[index])
            del jobs[index]
            message = f"{names[index]}: {_outcome(entries[index])}"
            titles(Event(STAGE, message, len(entries), len(tasks)))
    except BaseException:
        # all at once: none may take the turn of another that was stopped
        scope.cancel()
        while any(job.running for job in jobs.values()):
            time.sleep(0.02)
        raise
    return [entries[index] for index in range(len(tasks))]


def _ended(task: Task, job: Job[Entry]) -> Entry:
    try:
        return job.result()
    except (VqaloopError, OSError) as error:
        reason = str(error)
    except Exception as error:  # a fault of ours in one title of a thousand
        log.debug("%s", task.name, exc_info=error)
        reason = f"unexpected {type(error).__name__}: {error}; try this title alone"
    return _entry(task, "failed", reason[:LONGEST_REASON])


def _outcome(entry: Entry) -> str:
    if entry.status == "failed":
        return f"failed: {entry.reason}"
    there = " (was there already)" if entry.kept else ""
    doubt = ", not to be trusted" if entry.status == "untrusted" else ""
    return f"{len(entry.about['rungs'])} rungs{there}{doubt}"


def _make(task: Task, executor: Executor, progress: Watcher) -> Entry:
    """The ladder, made now or found made; its entry."""
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


def _entry(task: Task, status: str, reason: str | None, **more: Any) -> Entry:
    return Entry(
        task.name, utf8(task.title.input), task.codec, task.folder, status, reason, **more
    )


def _entry_of(task: Task, ladder: Ladder, kept: bool = False) -> Entry:
    about = ladder.about
    source, warnings = about["source"], list(about.get("warnings") or ())
    cost = {name: value for name, value in about["cost"].items() if name != "earlier"}
    whole = about.get("windows") == [[0, source["frames"]]]
    doubts = find_doubts(ladder.rungs, task.metric, whole).lines
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
