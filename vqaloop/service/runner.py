"""The jobs of a server, made one after another or several at a time, each by commands of its own.

Whatever ends the server, no job is lost: those that ran wait again, and go on from the cache.
"""

import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vqaloop.core import scopes
from vqaloop.core.files import write_whole
from vqaloop.errors import CalledOff, VqaloopError
from vqaloop.service.job_store import ATTEMPTS, Job, JobStore
from vqaloop.service.places import Places
from vqaloop.service.titles import make_title

EVENTS = "events.ndjson"
"""In the folder of a job: the events of its commands, as they came."""
MOST_EVENTS = 32 << 20
"""Bytes of them; then only ends and warnings are kept."""
LOOK_S = 0.5


@dataclass
class _Live:
    """A job that runs."""

    scope: scopes.Scope
    last: dict[str, Any] = field(default_factory=dict)
    """Its last event of progress."""


class JobRunner:
    """Threads that make the jobs of a store. Its work is part of the scope it is made in."""

    def __init__(self, store: JobStore, places: Places, threads: int) -> None:
        self.store, self.places = store, places
        self._scope, self._wake = scopes.Scope(), threading.Event()
        self._live: dict[str, _Live] = {}
        self._lock = threading.Lock()
        self.ended: dict[str, int] = {}
        """How many jobs have ended here, by outcome."""
        self.seconds = 0.0
        """Wall seconds that they took."""
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """There is a new job."""
        self._wake.set()

    def stop(self) -> None:
        """End what runs, with all its programs; it waits again in the store."""
        self._scope.cancel()
        self._wake.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def cancel(self, id: str) -> Job | None:
        """Cancel a job; None if there is none of that id."""
        job = self.store.cancel(id)
        with self._lock:
            if live := self._live.get(id):
                live.scope.cancel()
        return job

    def progress(self, id: str) -> dict[str, Any]:
        """The last event of progress of a job that runs; else empty."""
        with self._lock:
            live = self._live.get(id)
            return dict(live.last) if live else {}

    def _run(self) -> None:
        with self._scope.entered():
            while not self._scope.called_off:
                job = self.store.claim()
                if job is None:
                    self._wake.wait(LOOK_S)
                    self._wake.clear()
                    continue
                self._make(job)

    def _make(self, job: Job) -> None:
        began = time.monotonic()
        live = _Live(scopes.Scope())
        with self._lock:
            self._live[job.id] = live
        try:
            # cancelled between its claim and now
            if (now := self.store.get(job.id)) and now.cancelling:
                live.scope.cancel()
            with live.scope.entered():
                outcome, error = self._made(job, live)
        except CalledOff:
            cancelled = (now := self.store.get(job.id)) is not None and now.cancelling
            if not cancelled:
                self.store.requeue(job, counted=False)
                return
            outcome, error = "cancelled", None
        except (VqaloopError, OSError) as fault:
            outcome, error = "failed", str(fault)
        except Exception as fault:  # a fault of ours in one job of a thousand
            outcome, error = "failed", f"unexpected {type(fault).__name__}: {fault}"
        finally:
            with self._lock:
                del self._live[job.id]
        if outcome == "killed" and job.attempts < ATTEMPTS:
            self.store.requeue(job, counted=True)
            return
        outcome = "failed" if outcome == "killed" else outcome
        self.store.end(job, outcome, error)
        with self._lock:
            self.ended[outcome] = self.ended.get(outcome, 0) + 1
            self.seconds += time.monotonic() - began

    def _made(self, job: Job, live: _Live) -> tuple[str, str | None]:
        scopes.check_cancelled()
        source = self.places.video(job.input)
        folder = self.places.job(job.id)
        folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        write_whole(folder / "job.json", json.dumps(job.to_json(), indent=1) + "\n")
        with open(folder / EVENTS, "ab") as events:

            def keep(event: dict[str, Any]) -> None:
                progress = event.get("event") == "progress"
                if progress:
                    live.last = event
                if not progress or events.tell() < MOST_EVENTS:
                    events.write(json.dumps(event).encode("ascii") + b"\n")
                    events.flush()

            made = make_title(source, folder, job.work, keep, live.scope)
        return made.outcome, made.error


def read_events(path: Path, offset: int, most: int = 1 << 20) -> tuple[list[bytes], int]:
    """Whole lines of a job's events from a place on, and the place after them."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            text = file.read(most)
    except OSError:
        return [], offset
    whole = text[: text.rfind(b"\n") + 1]
    return whole.splitlines(), offset + len(whole)
