"""Executors: where encodes and scores run, how many at once, and in which order among titles.

A caller waits in a thread of its own (`Workshop.map`). `Local`, the default, runs the work on this
machine; `ray_cluster.RayCluster` spreads it over several.
"""

import bisect
import contextlib
import os
import threading
from collections import Counter
from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from vqaloop.core import scopes
from vqaloop.core.memory import frame_bytes, memory_bytes
from vqaloop.errors import InputError
from vqaloop.records import Encode, Rendition, Score, Source

if TYPE_CHECKING:
    from vqaloop.quality.guard import GuardPlan
    from vqaloop.quality.metric import Metric

POLL_S = 0.2
"""Seconds between two checks of a waiting thread whether its work was cancelled."""
MEMORY_SHARE = 0.5
"""Part of the machine's memory that work beside other work may be expected to take."""
MEASURING_THREADS = 2
"""Threads of libvmaf where the number of workers is chosen here: other work has the rest."""
MEASURING_FRAMES = 150
"""Frames of a source's size that scores and guards are taken to hold, threads and both videos
included."""


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


@runtime_checkable
class Overlapping(Protocol):
    """An executor that has more calls in flight than it has workers, as it sees fit."""

    @property
    def at_once(self) -> int:
        """Calls that find something to do beside each other."""


def calls_at_once(executor: Executor) -> int:
    """How many encodes and scores of a title to have in flight."""
    return executor.at_once if isinstance(executor, Overlapping) else executor.workers


@dataclass(frozen=True)
class Needs:
    """What a piece of work takes of a machine."""

    encodes: bool = False
    threads: int = 1
    """Processors that it keeps busy at most."""
    memory_bytes: int = 0


@dataclass(frozen=True)
class Room:
    """Which work may begin on a machine beside what runs there.

    Encodes begin until together they could keep all processors busy and one more, since each has
    times at which it cannot; so do scores and guards, whatever is encoded meanwhile.
    """

    processors: int
    memory_bytes: int

    def takes(self, needs: Needs, held: Collection[Needs]) -> bool:
        """Whether work may begin; beside no other it always may."""
        memory = sum(one.memory_bytes for one in held) + needs.memory_bytes
        alike = sum(one.threads for one in held if one.encodes == needs.encodes)
        return not held or (memory <= self.memory_bytes and alike <= self.processors)


class Turns:
    """A fair semaphore over titles: its places, numbered from 0, go to the title that holds
    fewest, then to the one that has waited longest since it was last given one.

    With a `room` only to work that this has room for: a score goes before an encode that waits.
    """

    def __init__(self, places: int, room: Room | None = None) -> None:
        self._free, self._room = list(range(places)), room
        self._begun: dict[_Ticket, Needs] = {}
        self._lock = threading.Lock()
        self._waiting: dict[_Ticket, None] = {}
        self._held: Counter[Hashable] = Counter()
        self._given: dict[Hashable, int] = {}
        self._grants = 0

    @contextlib.contextmanager
    def taken(self, whose: Hashable, needs: Needs = Needs()) -> Iterator[int]:
        """Wait for a place, and hold it while inside. Raises CalledOff as `process.run` does."""
        ticket = _Ticket(whose, needs)
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
                    del self._begun[ticket]
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

        while self._free and (able := list(filter(self._has_room, self._waiting))):
            # of equals the first in line: dicts keep the order of insertion
            ticket = min(able, key=order)
            del self._waiting[ticket]
            self._begun[ticket] = ticket.needs
            ticket.place = self._free.pop(0)
            self._held[ticket.whose] += 1
            self._grants += 1
            self._given[ticket.whose] = self._grants
            ticket.called.set()

    def _has_room(self, ticket: "_Ticket") -> bool:
        return self._room is None or self._room.takes(ticket.needs, self._begun.values())


class _Ticket:
    """A thread's place in the queue."""

    def __init__(self, whose: Hashable, needs: Needs) -> None:
        self.whose, self.needs, self.place = whose, needs, -1
        self.called = threading.Event()


class Local:
    """Runs encodes and scores on this machine.

    Each encode is a process in a process group of its own; scores share one copy of the network.
    With a number of workers each encode is pinned to CPU cores of its own, so that encoders do
    not compete for them. Without one as much runs at once as keeps the processors busy, by the
    threads that an encoder uses at a size and by memory, and all share the processors: so what
    runs last has them all. What an encoder writes does not depend on it.

    Args:
        workers: Encodes or scores that run at once, at least 1; None: as the processors allow.
        processors: CPU cores per encode, at least 1, of one worker if no number is given; by
            default an equal share of this machine's.

    Raises:
        InputError: One of them is less than 1.
    """

    def __init__(self, workers: int | None = 1, *, processors: int | None = None) -> None:
        if workers is not None and workers < 1:
            raise InputError(f"there must be at least one worker, not {workers}")
        if processors is not None and processors < 1:
            raise InputError(f"an encoder needs at least one processor, not {processors}")
        self._have = have = sorted(os.sched_getaffinity(0))
        self._chooses = workers is None and processors is None and len(have) > 1
        self.workers = workers or 1
        """Those asked for, else 1: how many trials a search that depends on it asks for."""
        self.at_once = len(have) + 1 if self._chooses else self.workers
        self._share = min(processors or max(1, len(have) // self.workers), len(have))
        room = Room(len(have), int(memory_bytes() * MEMORY_SHARE)) if self._chooses else None
        # of encodes, and of scores and guards, as many as there are processors and one more
        self._turns = Turns(2 * self.at_once if room else self.workers, room)

    @property
    def processors(self) -> int:
        """CPU cores of this machine that this process may use."""
        return len(self._have)

    @contextlib.contextmanager
    def _taken(self, whose: Hashable, needs: Needs) -> Iterator[int]:
        """A turn and its number of threads; with the programs this thread starts pinned to the
        place's processors where each place has its own."""
        with self._turns.taken(whose, needs) as place:
            if self._chooses:
                yield needs.threads
                return
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
        from vqaloop.encoding.footprint import footprint

        needs = Needs(True, *footprint(source, rendition, self.processors))
        with self._taken(whose, needs):
            return encode(source, rendition, out, ffmpeg=ffmpeg, timeout_s=timeout_s)

    def measure(
        self, metric: "Metric", source: Source, path: Path, decoder: str, whose: Hashable
    ) -> Score:
        # not pinned: the network's threads, once made, are those of all workers
        with self._turns.taken(whose, _measuring(source, 1)):
            return metric.measure(source, path, decoder)

    def guard(
        self, source: Source, path: Path, plan: "GuardPlan", *, ffmpeg: str, whose: Hashable
    ) -> dict[str, Score]:
        with self._taken(whose, _measuring(source, MEASURING_THREADS)) as threads:
            return plan.measure(source, path, ffmpeg=ffmpeg, threads=threads)


def _measuring(source: Source, threads: int) -> Needs:
    return Needs(False, threads, MEASURING_FRAMES * frame_bytes(*source.canvas, source.bit_depth))


def executor_of(workers: int | Executor | None) -> Executor:
    """A `Local` executor for a number of workers; an executor as it is. Raises InputError.

    None: the `Local` executor that chooses it.
    """
    return workers if isinstance(workers, Executor) else Local(workers)
