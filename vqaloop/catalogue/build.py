"""Ladders of many titles at once: each with a study of its own, all with the same workers.

A title that fails stops no other. Titles do not learn from each other while the catalogue is made,
so that it comes out the same in whatever order they end, and however often it is interrupted.
"""

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqaloop.catalogue.entries import Catalogue, Entry
from vqaloop.catalogue.plan import STATE, Task, plan
from vqaloop.catalogue.report import write_catalogue
from vqaloop.catalogue.state import begun_with
from vqaloop.catalogue.title import TitleThreads, make_title, most_open
from vqaloop.catalogue.titles import Titles, listed
from vqaloop.core import scopes
from vqaloop.execution.executor import Executor, executor_of
from vqaloop.execution.stage_progress import TimeLeft
from vqaloop.records import Event, Watcher

if TYPE_CHECKING:
    from vqaloop.catalogue.title_actors import TitleActors

DEFAULT_OUT = "catalogue.ladders"
STAGE = "catalogue"
"""Of the events that tell of titles that ended."""
POLL_S = 0.2


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
    entries = _made(tasks, executor, known, folder, progress)
    catalogue = Catalogue(folder, tuple(entries), time.monotonic() - started)
    write_catalogue(catalogue)
    return catalogue


def _made(
    tasks: Sequence[Task],
    executor: Executor,
    known: Mapping[str, Any],
    folder: Path,
    progress: Watcher,
) -> list[Entry]:
    """Each task's entry, in order. Whatever is raised here ends them all, cleanly, first."""
    several = len({task.codec for task in tasks}) > 1
    names = [f"{task.name} {task.codec}" if several else task.name for task in tasks]
    titles = TimeLeft(progress)
    waiting, entries = deque(range(len(tasks))), dict[int, Entry]()
    with _makers(tasks, executor, known, folder) as makers:
        while len(entries) < len(tasks):
            scopes.check_cancelled()
            makers.take(waiting)
            for index, told in makers.news(POLL_S):
                if isinstance(told, Event):
                    progress(replace(told, stage=f"{names[index]}: {told.stage}"))
                    continue
                entries[index] = told
                message = f"{names[index]}: {_outcome(told)}"
                titles(Event(STAGE, message, len(entries), len(tasks)))
    return [entries[index] for index in range(len(tasks))]


@contextlib.contextmanager
def _makers(
    tasks: Sequence[Task], executor: Executor, known: Mapping[str, Any], folder: Path
) -> "Iterator[TitleThreads | TitleActors]":
    """Whoever makes the titles: threads of this process, or processes all over a large cluster."""

    def make(index: int, progress: Watcher) -> Entry:
        return make_title(tasks[index], executor, known, progress)

    with contextlib.closing(TitleThreads(make, most_open(executor))) as here:
        # only those who use a cluster pay for loading this
        ray_cluster = sys.modules.get("vqaloop.cluster.ray_cluster")
        if ray_cluster is None or not isinstance(executor, ray_cluster.RayCluster):
            yield here
            return
        from vqaloop.catalogue.title_actors import opened_actors

        with opened_actors(tasks, executor, known, folder, here) as makers:
            yield makers


def _outcome(entry: Entry) -> str:
    if entry.status == "failed":
        return f"failed: {entry.reason}"
    there = " (was there already)" if entry.kept else ""
    doubt = ", not to be trusted" if entry.status == "untrusted" else ""
    return f"{len(entry.about['rungs'])} rungs{there}{doubt}"
