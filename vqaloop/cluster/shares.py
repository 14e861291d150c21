"""Shares of a Ray cluster: how several processes that search use it at once.

Each has workers and scoring places of its own, so that none waits for another, and all of what it
depends on lives and dies with one node.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vqaloop.cluster.connection import Node
from vqaloop.cluster.scoring import Place, scoring_places

WORKERS_EACH = 8
"""Workers for which a process searches: search and reports take some 4 % of what short tasks take,
and as Python they compute on one processor only."""
WORKERS_ALONE = 16
"""Workers up to which the driver itself searches for all."""


@dataclass(frozen=True)
class Share:
    """What one process that searches may use of the cluster."""

    node: Node
    """Where it lives."""
    workers: int
    """Encodes, or scores on processors, that it may run at once, wherever there is room."""
    places: frozenset[Place]
    """Where it may score."""

    @property
    def most_open(self) -> int:
        """Titles to have open at a time: each has several tasks at once, so that no worker waits,
        and with more of them all would end, and have their reports made, at the same time."""
        return max(2, self.workers // 2)


def shares(there: Sequence[Node], workers: int, processors: int) -> list[Share]:
    """`workers` spread over the nodes that score, in shares of WORKERS_EACH; none for few workers.

    A GPU is of one share alone, so where there are any, there are no more shares than GPUs.
    """
    if workers <= WORKERS_ALONE:
        return []
    places = scoring_places(list(there))
    on_gpus = any(node.gpus for node in there)
    weights = [
        node.gpus if on_gpus else int(node.cpus // processors if node.cpus >= 1 else 0)
        for node in there
    ]
    found, total = list[Share](), sum(weights)
    for n, node in enumerate(there):
        if not weights[n]:
            continue
        own = _part(workers, sum(weights[:n]), weights[n], total)
        scoring = sorted(place for place in places if place[0] == node.id)
        most = len(scoring) if on_gpus else max(1, int(node.cpus))
        count = min(math.ceil(own / WORKERS_EACH), most)
        for k in range(count):
            kept = frozenset(scoring[k::count] if on_gpus else scoring)
            found.append(Share(node, _part(own, k, 1, count), kept))
    return found


def _part(whole: int, before: int, weight: int, total: int) -> int:
    """The part of a whole number that a weight has, such that all parts together are the whole."""
    return whole * (before + weight) // total - whole * before // total
