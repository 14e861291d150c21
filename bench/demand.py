"""How many processors a program and those it starts ask for, whatever else runs on the machine."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

STEP_S = 0.05
"""Seconds between two samples."""
ENCODES = b"\0-c:v\0"
"""In the command line of an encode, and of nothing else that a ladder runs."""


class Demand(threading.Thread):
    """Samples the programs of this process, as a context manager, from their first encode to the
    last: a thread counts that runs or waits for a processor."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._have, self._over = len(os.sched_getaffinity(0)), threading.Event()
        self._seen: list[int] = []
        self._kept = 0
        """Samples up to the last one with an encode."""

    def __enter__(self) -> "Demand":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    @property
    def share(self) -> float:
        """Part of the processors that were asked for, on average; NaN without an encode."""
        kept = self._seen[: self._kept]
        return sum(kept) / len(kept) / self._have if kept else float("nan")

    def run(self) -> None:
        while not self._over.wait(STEP_S):
            programs = list(_below(os.getpid()))
            encoding = any(ENCODES in _read(f"/proc/{pid}/cmdline") for pid in programs)
            if encoding or self._seen:
                self._seen.append(min(self._have, sum(map(_runnable, programs))))
            if encoding:
                self._kept = len(self._seen)


def _below(pid: int) -> Iterator[int]:
    """The programs that a process has started, and those that these have."""
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in map(int, _read(f"/proc/{pid}/task/{task}/children").split()):
                yield child
                yield from _below(child)


def _runnable(pid: int) -> int:
    with contextlib.suppress(OSError):
        tasks = os.listdir(f"/proc/{pid}/task")
        stats = (_read(f"/proc/{pid}/task/{task}/stat").rpartition(b")")[2] for task in tasks)
        return sum(stat.split()[:1] == [b"R"] for stat in stats)
    return 0


def _read(path: str) -> bytes:
    """A file of /proc; empty where the process has ended."""
    with contextlib.suppress(OSError):
        return Path(path).read_bytes()
    return b""
