"""CPU-time accounting for pieces of work that run concurrently in one process."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vqaloop.core import process


@dataclass
class Spent:
    """What one piece of work took; filled in when it ends."""

    cpu_s: float = 0.0
    wall_s: float = 0.0


class Meter:
    """Splits the CPU time of a clock evenly among the pieces of work under way.

    The threads of decoders and of PyTorch work for all pieces, so no thread's own clock measures
    one; the pieces together never count a second twice.
    """

    def __init__(self, clock: Callable[[], float] = time.process_time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._active = 0
        self._each = 0.0
        """CPU seconds of a piece that had run from the beginning."""
        self._at = 0.0

    @property
    def active(self) -> int:
        """Pieces of work under way."""
        return self._active

    def share(self, most: int) -> int:
        """Threads for one of the pieces of work under way: an equal part of the processors."""
        return max(1, min(most, len(os.sched_getaffinity(0)) // max(1, self.active)))

    def _turn(self, change: int) -> float:
        with self._lock:
            now = self._clock()
            # since the last change: shared evenly by those that were under way
            if self._active:
                self._each += (now - self._at) / self._active
            self._at = now
            self._active += change
            return self._each

    @contextmanager
    def running(self) -> Iterator[Callable[[], float]]:
        """Around a piece of work: gives its CPU seconds so far by the clock alone."""
        begun = self._turn(1)
        try:
            yield lambda: self._turn(0) - begun
        finally:
            self._turn(-1)

    @contextmanager
    def measured(self) -> Iterator[Spent]:
        """Around a piece of work; the programs that this thread runs in it count as its own."""
        spent = Spent()
        wall, programs, own = time.monotonic(), process.spent_cpu_s(), self._turn(1)
        try:
            yield spent
        finally:
            spent.cpu_s = self._turn(-1) - own + process.spent_cpu_s() - programs
            spent.wall_s = time.monotonic() - wall


class Busy:
    """How many processors this process and its programs used, from the first to the last of
    some pieces of work, which may overlap."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or _with_programs
        self._lock = threading.Lock()
        self._first: tuple[float, float] | None = None
        self._last = (0.0, 0.0)

    @contextmanager
    def during(self) -> Iterator[None]:
        """Around a piece of work."""
        with self._lock:
            self._first = self._first or (time.monotonic(), self._clock())
        try:
            yield
        finally:
            with self._lock:
                self._last = (time.monotonic(), self._clock())

    def processors(self) -> float | None:
        """CPU seconds over wall seconds; None before the first piece has ended."""
        if self._first is None or self._last[0] <= self._first[0]:
            return None
        return (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])


def _with_programs() -> float:
    """CPU seconds of this process and of all programs of its that have ended."""
    return sum(os.times()[:4])


METER = Meter()
"""Of this process: its clock is one for all."""
JOBS = Meter(_with_programs)
"""Of whole jobs, with all programs that they run on this machine."""
