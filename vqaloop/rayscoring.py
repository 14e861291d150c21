"""The scoring processes of a Ray cluster: one a GPU, or one a node where there is none.

Without GPUs a score could be a task like any other, but then each of a node's many processes would
load PyTorch and the network, and look at the source of every title anew, which takes about as
long as the score itself. One process a node loads it once, keeps to a title while it has room,
and batches what comes at once. It reserves no processor: whoever asks for a score holds a place
that an encode could have had.
"""

import contextlib
import math
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterator
from typing import Any

from vqaloop.errors import ToolError
from vqaloop.rayconnection import Node, import_ray, nodes
from vqaloop.rayworker import Scoring

AT_ONCE = 8
"""Encodes that one process scores at once."""
DOUBT_S = 30.0
"""Seconds for which a place whose process died is the last choice: its node may be dying too, and
Ray takes a while to know."""
TITLES_KEPT = 4096
"""Titles of which it is known where they were scored."""

Place = tuple[str, int]
"""Id of a node, and which of its GPUs."""


class Scorers:
    """Hands out scoring processes; makes those that are needed, anew where one died."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[Place, Any] = {}
        self._busy: Counter[Place] = Counter()
        self._homes: OrderedDict[Hashable, Place] = OrderedDict()
        self._died: dict[Place, float] = {}

    @contextlib.contextmanager
    def taken(self, whose: Hashable) -> Iterator[Any]:
        """A handle of the title's own process, or of the least busy where that has no room.

        Raises ToolError where the cluster has no node left.
        """
        with self._lock:
            place, node = self._choose(whose)
            if place not in self._made:
                self._made[place] = _start(node, node.gpus > 0)
            handle = self._made[place]
            self._busy[place] += 1
        try:
            yield handle
        finally:
            with self._lock:
                self._busy[place] -= 1

    def dropped(self, handle: Any) -> bool:
        """Not to be given out again: it is dead. False where that was known."""
        with self._lock:
            found = [place for place, made in self._made.items() if made is handle]
            for place in found:
                del self._made[place]
                self._died[place] = time.monotonic()
            return bool(found)

    def close(self) -> None:
        ray = import_ray()
        with self._lock, contextlib.suppress(Exception):
            for handle in self._made.values():
                ray.kill(handle)
            self._made.clear()

    def _choose(self, whose: Hashable) -> tuple[Place, Node]:
        places = scoring_places(nodes())
        if not places:
            raise ToolError(
                "the Ray cluster has no node left that can score; start some, and the same call "
                "goes on from here"
            )
        now = time.monotonic()
        sound = [p for p in places if now - self._died.get(p, -math.inf) > DOUBT_S]
        places = {place: places[place] for place in sound or places}
        home = self._homes.get(whose)
        if home is None or home not in places:
            home = min(places, key=self._load)
            self._homes[whose] = home
            if len(self._homes) > TITLES_KEPT:
                self._homes.popitem(last=False)
        if self._busy[home] >= AT_ONCE:
            place = min(places, key=lambda place: self._busy[place])
            return place, places[place]
        return home, places[home]

    def _load(self, place: Place) -> tuple[int, int]:
        """Titles, then orders, of a process."""
        return sum(home == place for home in self._homes.values()), self._busy[place]


def scoring_places(there: list[Node]) -> dict[Place, Node]:
    """Where scoring processes belong: at every GPU, or where there is none on every node."""
    gpus = {(node.id, n): node for node in there for n in range(node.gpus)}
    return gpus or {(node.id, 0): node for node in there if node.cpus >= 1}


def _start(node: Node, gpu: bool) -> Any:
    ray = import_ray()
    strategies = ray.util.scheduling_strategies
    # calls have a thread of their own: to call something off must not wait for it
    actor = ray.remote(concurrency_groups={"calls": 1})(Scoring).options(
        num_cpus=0,
        num_gpus=int(gpu),
        max_concurrency=AT_ONCE,
        max_restarts=0,
        scheduling_strategy=strategies.NodeAffinitySchedulingStrategy(node.id, soft=False),
    )
    return actor.remote(0 if gpu else max(1, int(node.cpus)))
