"""The scoring processes of a Ray cluster: one a GPU, or one a node where there is none.

Without GPUs a score could be a task like any other, but then each of a node's many processes would
load PyTorch and the network, and compute the features of every source anew, which takes about as
long as the score itself. One process a node loads the network once, is given the encodes of one
title while it has room, caches the source features of recent titles (student_metric.ANCHOR_BYTES),
and batches concurrent requests. It reserves no processor: each score holds a place that an
encode could have had.
"""

import contextlib
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

from vqaloop.cluster.connection import Node, import_ray, nodes
from vqaloop.cluster.worker import Scoring
from vqaloop.core import scopes
from vqaloop.errors import ToolError
from vqaloop.execution.executor import POLL_S

AT_ONCE = 8
"""Encodes that one process scores at once."""
DOUBT_S = 30.0
"""Seconds for which a place whose process died is the last choice: its node may be dying too, and
Ray takes a while to know."""
TITLES_KEPT = 4096
"""Titles whose scoring process is remembered."""

Place = tuple[str, int]
"""Id of a node, and which of its GPUs."""

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Visit:
    """An order's time in a scoring process."""

    place: Place
    handle: Any
    shared: bool
    """Whether another order was in the process at any time of it."""


class Scorers:
    """Hands out scoring processes; makes those that are needed, anew where one died."""

    def __init__(self, had_gpus: bool = False, only: Collection[Place] | None = None) -> None:
        """`had_gpus`: whether the cluster has, or had, any; `only`: the places there are to be."""
        self._only = only
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._made: dict[Place, Any] = {}
        self._visits: list[Visit] = []
        self._alone: tuple[object, Place] | None = None
        """Who has, or waits to have, a process to itself, and which; one at a time."""
        self._had_gpus = had_gpus
        self._waits: set[str] = set()
        """What there is none of now, as was logged."""
        self._homes: OrderedDict[Hashable, Place] = OrderedDict()
        self._died: dict[Place, float] = {}

    @contextlib.contextmanager
    def taken(
        self, whose: Hashable, *, on_gpu: bool = False, alone: bool = False
    ) -> Iterator[Visit]:
        """The title's own process, or the least busy where that has no room.

        `on_gpu`: only one that has a GPU; `alone`: with no other order in it. Waits where there is
        none now. Raises ToolError where a GPU is asked of a cluster that never had one, and
        CalledOff as `process.run` does.
        """
        token = object()
        try:
            with self._changed:
                while (visit := self._entered(whose, on_gpu, token if alone else None)) is None:
                    self._changed.wait(POLL_S)
                    scopes.check_cancelled()
            try:
                yield visit
            finally:
                with self._changed:
                    self._visits.remove(visit)
                    self._changed.notify_all()
        finally:
            with self._changed:
                if self._alone and self._alone[0] is token:
                    self._alone = None
                    self._changed.notify_all()

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

    def _entered(self, whose: Hashable, on_gpu: bool, token: object | None) -> Visit | None:
        """A visit that begins now; None where nobody has a place for it yet.

        A `token` is of who must be alone.
        """
        places = self._places(on_gpu)
        if token is None:
            if self._alone:
                places.pop(self._alone[1], None)
            place = self._choose(whose, places) if places else None
        else:
            place = self._cleared(places, token)
        if place is None:
            return None
        if place not in self._made:
            node = places[place]
            self._made[place] = _start(node, node.gpus > 0)
        others = [visit for visit in self._visits if visit.place == place]
        # a crash from now on cannot be blamed on one of them
        for visit in others:
            visit.shared = True
        made = Visit(place, self._made[place], bool(others))
        self._visits.append(made)
        return made

    def _places(self, on_gpu: bool) -> dict[Place, Node]:
        """Where it can be scored now, but for those that are in doubt if others are not."""
        places = scoring_places(nodes())
        if self._only is not None:
            places = {place: node for place, node in places.items() if place in self._only}
        if places and next(iter(places.values())).gpus:
            self._had_gpus = True
        elif on_gpu:
            if not self._had_gpus:
                raise ToolError(
                    "the metric is to run on a GPU and no node of the Ray cluster has one; start "
                    "one that has, or choose --device cpu"
                )
            places = {}
        wanted = "GPU" if on_gpu else "node"
        if places:
            self._waits.discard(wanted)
        elif wanted not in self._waits:
            self._waits.add(wanted)
            log.warning("the Ray cluster has no %s left to score on; waiting for one", wanted)
        now = time.monotonic()
        # a place whose process just died is used only where there is no other
        sound = [p for p in places if now - self._died.get(p, -math.inf) > DOUBT_S]
        return {place: places[place] for place in sound or places}

    def _choose(self, whose: Hashable, places: dict[Place, Node]) -> Place:
        home = self._homes.get(whose)
        if home is None or home not in places:
            # titles are spread evenly, and stay where their source's features are cached
            home = min(places, key=self._load)
            self._homes[whose] = home
            if len(self._homes) > TITLES_KEPT:
                self._homes.popitem(last=False)
        return home if self._busy(home) < AT_ONCE else min(places, key=self._busy)

    def _cleared(self, places: dict[Place, Node], token: object) -> Place | None:
        """The place that is kept for the token's owner, once everyone else has left it."""
        if self._alone and self._alone[0] is token and self._alone[1] not in places:
            self._alone = None
        if not self._alone and places:
            # from now on nobody else is let in there, so that it empties
            self._alone = token, min(places, key=self._busy)
        if not self._alone or self._alone[0] is not token or self._busy(self._alone[1]):
            return None
        return self._alone[1]

    def _busy(self, place: Place) -> int:
        return sum(visit.place == place for visit in self._visits)

    def _load(self, place: Place) -> tuple[int, int]:
        """Titles, then orders, of a process."""
        return sum(home == place for home in self._homes.values()), self._busy(place)


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
