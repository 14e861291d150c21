"""Jobs of a server in SQLite: each change is on disk before anybody is told of it."""

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqaloop.core.text import quoted
from vqaloop.errors import InputError
from vqaloop.service.titles import TitleWork

STATES = ("queued", "running", "done", "untrusted", "failed", "cancelled")
ENDED = STATES[2:]
ATTEMPTS = 3
"""Times that a job may be begun and take its process, or the server, down with it."""
_COLUMNS = (
    *("number", "id", "input", "asked", "codecs", "ladder", "deliver", "state", "error"),
    *("attempts", "cancelling", "created", "started", "ended"),
)
_TABLE = """
CREATE TABLE IF NOT EXISTS jobs (
  number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, input TEXT NOT NULL,
  asked TEXT NOT NULL, codecs TEXT NOT NULL, ladder TEXT NOT NULL, deliver TEXT,
  state TEXT NOT NULL, error TEXT, attempts INTEGER NOT NULL DEFAULT 0,
  cancelling INTEGER NOT NULL DEFAULT 0, created REAL NOT NULL, started REAL, ended REAL);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, number);
"""


@dataclass(frozen=True)
class Job:
    """One title to be made, or made."""

    number: int
    """Order of submission."""
    id: str
    input: str
    """As it was submitted: the name of a folder, and a path in it."""
    asked: Mapping[str, Any]
    """The submission."""
    work: TitleWork
    state: str
    """One of STATES."""
    error: str | None
    attempts: int
    cancelling: bool
    created: float
    started: float | None
    ended: float | None

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "number": self.number,
            "input": self.input,
            "codecs": list(self.work.codecs),
            "asked": dict(self.asked),
            "state": "cancelling" if self.cancelling and self.state == "running" else self.state,
            "error": self.error,
            "created": self.created,
            "started": self.started,
            "ended": self.ended,
        }


class JobStore:
    """The jobs of one server. Safe to use from any thread."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        try:
            self._base = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=FULL")
            self._base.executescript(_TABLE)
            self._base.execute(f"SELECT {', '.join(_COLUMNS)} FROM jobs LIMIT 1")
        except sqlite3.Error as error:
            raise InputError(
                f"the jobs in {quoted(path)} cannot be read: {error}; name another folder, or "
                "move that file away"
            ) from error

    def close(self) -> None:
        with self._lock:
            self._base.close()

    def add(self, input: str, asked: Mapping[str, Any], work: TitleWork, most: int) -> Job | None:
        """A new job at the end of the queue; None where that holds `most` already."""
        deliver = None if work.deliver is None else json.dumps(work.deliver)
        values = (
            *(secrets.token_hex(8), input, json.dumps(asked), json.dumps(work.codecs)),
            *(json.dumps(work.ladder), deliver, "queued", time.time()),
        )
        with self._lock:
            # one statement: the queue cannot grow between counting and adding
            added = self._base.execute(
                "INSERT INTO jobs (id, input, asked, codecs, ladder, deliver, state, created) "
                "SELECT ?, ?, ?, ?, ?, ?, ?, ? "
                "WHERE (SELECT count(*) FROM jobs WHERE state = 'queued') < ?",
                (*values, most),
            )
            return self._one("number = ?", added.lastrowid) if added.rowcount == 1 else None

    def get(self, id: str) -> Job | None:
        with self._lock:
            return self._one("id = ?", id)

    def latest(self, state: str | None = None, limit: int = 100, before: int = 2**62) -> list[Job]:
        """Jobs, newest first, of numbers below `before`."""
        with self._lock:
            rows = self._base.execute(
                f"SELECT {', '.join(_COLUMNS)} FROM jobs WHERE number < ?1 AND "
                "(?2 IS NULL OR state = ?2) ORDER BY number DESC LIMIT ?3",
                (before, state, limit),
            ).fetchall()
        return [_job(row) for row in rows]

    def counts(self) -> dict[str, int]:
        """How many jobs there are in each state."""
        with self._lock:
            rows = self._base.execute("SELECT state, count(*) FROM jobs GROUP BY state")
            return {**dict.fromkeys(STATES, 0), **dict(rows.fetchall())}

    def claim(self) -> Job | None:
        """The oldest waiting job, which now runs and is that of the caller."""
        with self._lock:
            row = self._base.execute(
                "UPDATE jobs SET state = 'running', attempts = attempts + 1, started = ? WHERE "
                "number = (SELECT min(number) FROM jobs WHERE state = 'queued') RETURNING number",
                (time.time(),),
            ).fetchall()
            return self._one("number = ?", row[0][0]) if row else None

    def end(self, job: Job, state: str, error: str | None = None) -> None:
        """Write down how a running job ended."""
        self._change(
            "state = ?, error = ?, ended = ?, cancelling = 0 WHERE number = ?",
            (state, error, time.time(), job.number),
        )

    def requeue(self, job: Job, counted: bool) -> None:
        """Put a job that was stopped back into its place; `counted`: that was an attempt."""
        self._change(
            "state = 'queued', attempts = attempts - ? WHERE number = ?",
            (0 if counted else 1, job.number),
        )

    def cancel(self, id: str) -> Job | None:
        """Cancel a waiting job, or note that a running one shall end; None if there is none."""
        now = time.time()
        self._change("state = 'cancelled', ended = ? WHERE id = ? AND state = 'queued'", (now, id))
        self._change("cancelling = 1 WHERE id = ? AND state = 'running'", (id,))
        return self.get(id)

    def recover(self) -> int:
        """After a server that was killed: its running jobs wait again; returns how many.

        What was being cancelled is, and one that took the server down ATTEMPTS times has failed.
        """
        now = time.time()
        why = f"it was begun {ATTEMPTS} times and the server was killed each time"
        self._change(
            "state = 'cancelled', ended = ?, cancelling = 0 WHERE state = 'running' AND "
            "cancelling = 1",
            (now,),
        )
        self._change(
            "state = 'failed', error = ?, ended = ? WHERE state = 'running' AND attempts >= ?",
            (why, now, ATTEMPTS),
        )
        return self._change("state = 'queued' WHERE state = 'running'", ())

    def _change(self, what: str, values: Sequence[Any]) -> int:
        with self._lock:
            return self._base.execute(f"UPDATE jobs SET {what}", values).rowcount

    def _one(self, condition: str, value: Any) -> Job | None:
        row = self._base.execute(
            f"SELECT {', '.join(_COLUMNS)} FROM jobs WHERE {condition}", (value,)
        ).fetchone()
        return _job(row) if row else None


def _job(row: Sequence[Any]) -> Job:
    of = dict(zip(_COLUMNS, row, strict=True))
    deliver = None if of["deliver"] is None else tuple(json.loads(of["deliver"]))
    work = TitleWork(tuple(json.loads(of["codecs"])), tuple(json.loads(of["ladder"])), deliver)
    plain = {name: of[name] for name in ("number", "id", "input", "state", "error", "attempts")}
    times = {name: of[name] for name in ("created", "started", "ended")}
    return Job(
        **plain,
        **times,
        asked=json.loads(of["asked"]),
        work=work,
        cancelling=bool(of["cancelling"]),
    )
