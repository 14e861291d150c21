"""Executors: where encodes and scores run, how many at once, and in which order among titles.

A caller waits in a thread of its own (`Workshop.map`). `Local`, the default, runs the work on this
machine; `ray_cluster.RayCluster` spreads it over several.
"""

import bisect
import contextlib
import os
import threading
from collections import Counter
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from vqaloop.core import scopes
from vqaloop.errors import InputError
from vqaloop.records import Encode, Rendition, Score, Source

if TYPE_CHECKING:
    from vqaloop.quality.guard import GuardPlan
    from vqaloop.quality.metric import Metric

POLL_S = 0.2
"""Seconds between two checks of a waiting thread whether its work was cancelled."""


@runtime_checkable
class Executor(Protocol):
    """Runs a workshop's encodes and scores; any number of threads may call it.

    `whose` is the title (any hashable) that the work is for: titles take turns.
    """

    @property
    def workers(self) -> int:
        """How many encodes or scores run at once."""

    def encode(
        self,
        source: Source,
        rendition: Rendition,
        out: Path,
        *,
        ffmpeg: str,
        timeout_s: float | None,
        whose: Hashable,
    ) -> Encode:
        """As `encode.encode`, with what it raises: afterwards the file is at `out`."""

    def measure(
        self, metric: "Metric", source: Source, path: Path, decoder: str, whose: Hashable
    ) -> Score:
        """As `metric.measure`."""

    def guard(
        self, source: Source, path: Path, plan: "GuardPlan", *, ffmpeg: str, whose: Hashable
    ) -> dict[str, Score]:
        """As `plan.measure`."""


@runtime_checkable
class Suiting(Protocol):
    """An executor whose machines may need another form of a metric, as those with GPUs do."""

    def suited(self, metric: "Metric") -> "Metric":
        """The metric as it will score there, so that its identity, and cache keys, are right."""


class Turns:
    """A fair semaphore over titles: its places, numbered from 0, go to the title that holds
    fewest, then to the one that has waited longest since it was last given one."""

    def __init__(self, places: int) -> None:
        self._free = list(range(places))
        self._lock = threading.Lock()
        self._waiting: dict[_Ticket, None] = {}
        self._held: Counter[Hashable] = Counter()
        self._given: dict[Hashable, int] = {}
        self._grants = 0

    @contextlib.contextmanager
    def taken(self, whose: Hashable) -> Iterator[int]:
        """Wait for a place, and hold it while inside. Raises CalledOff as `process.run` does."""
        ticket = _Ticket(whose)
        with self._lock:
            self._waiting[ticket] = None
            self._give()
        try:
            while not ticket.called.wait(POLL_S):
                scopes.check_cancelled()
            yield ticket.place
        finally:
            with self._lock:
                if ticket.called.is_set():
                    bisect.insort(self._free, ticket.place)
                    self._held[whose] -= 1
                    if not self._held[whose]:
                        del self._held[whose]
                else:
                    # cancelled while it waited
                    del self._waiting[ticket]
                self._give()

    def _give(self) -> None:
        def order(ticket: _Ticket) -> tuple[int, int]:
            return self._held[ticket.whose], self._given.get(ticket.whose, 0)

        while self._free and self._waiting:
            # of equals the first in line: dicts keep the order of insertion
            ticket = min(self._waiting, key=order)
            del self._waiting[ticket]
            ticket.place = self._free.pop(0)
            self._held[ticket.whose] += 1
            self._grants += 1
            self._given[ticket.whose] = self._grants
            ticket.called.set()


class _Ticket:
    """A thread's place in the queue."""

    def __init__(self, whose: Hashable) -> None:
        self.whose, self.place = whose, -1
        self.called = threading.Event()


class Local:
    """Runs encodes and scores on this machine.

    Each encode is a process in a process group of its own, pinned to CPU cores of its own so that
    encoders do not compete for them; scores share one copy of the network. What an encoder writes
    does not depend on it.

    Args:
        workers: Encodes or scores that run at once, at least 1.
        processors: CPU cores per encode, at least 1; by default an equal share of this machine's.

    Raises:
        InputError: One of them is less than 1.
    """

    def __init__(self, workers: int = 1, *, processors: int | None = None) -> None:
        if workers < 1:
            raise InputError(f"there must be at least one worker, not {workers}")
        if processors is not None and processors < 1:
            raise InputError(f"an encoder needs at least one processor, not {processors}")
        self.workers = workers
        self._turns = Turns(workers)
        have = sorted(os.sched_getaffinity(0))
        self._share = min(processors or max(1, len(have) // workers), len(have))
        self._have = have

    @contextlib.contextmanager
    def _taken(self, whose: Hashable) -> Iterator[int]:
        """A turn, with the programs this thread starts pinned to the place's processors."""
        with self._turns.taken(whose) as place:
            # modulo: with more workers than cores places share them
            first = place * self._share
            own = {self._have[(first + n) % len(self._have)] for n in range(self._share)}
            before = os.sched_getaffinity(0)
            with contextlib.suppress(OSError):  # this process may have lost processors meanwhile
                os.sched_setaffinity(0, own)
            try:
                yield self._share
            finally:
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(0, before)

    def encode(
        self,
        source: Source,
        rendition: Rendition,
        out: Path,
        *,
        ffmpeg: str,
        timeout_s: float | None,
        whose: Hashable,
    ) -> Encode:
        # here, as below, since it brings decoders, which training does without
        from vqaloop.encoding.encode import encode

        with self._taken(whose):
            return encode(source, rendition, out, ffmpeg=ffmpeg, timeout_s=timeout_s)

    def measure(
        self, metric: "Metric", source: Source, path: Path, decoder: str, whose: Hashable
    ) -> Score:
        # not pinned: the network's threads, once made, are those of all workers
        with self._turns.taken(whose):
            return metric.measure(source, path, decoder)

    def guard(
        self, source: Source, path: Path, plan: "GuardPlan", *, ffmpeg: str, whose: Hashable
    ) -> dict[str, Score]:
        with self._taken(whose) as processors:
            return plan.measure(source, path, ffmpeg=ffmpeg, threads=processors)


def executor_of(workers: int | Executor) -> Executor:
    """A `Local` executor for a number of workers; an executor as it is. Raises InputError."""
    return workers if isinstance(workers, Executor) else Local(workers)
