"""How several processes that search share a cluster, without one."""

import pytest

from vqaloop.cluster.connection import Node
from vqaloop.cluster.shares import WORKERS_ALONE, WORKERS_EACH, Share, shares


def made(there: list[Node], workers: int, processors: int = 1) -> list[Share]:
    found = shares(there, workers, processors)
    assert sum(share.workers for share in found) == workers
    assert all(share.workers >= 1 and share.places for share in found)
    assert all(place[0] == share.node.id for share in found for place in share.places)
    return found


def test_few_workers_have_one_search() -> None:
    assert shares([Node("a", "a", 64, 0)], WORKERS_ALONE, 1) == []


def test_every_node_searches_for_its_workers() -> None:
    there = [Node("a", "a", 32, 0), Node("head", "h", 0, 0), Node("b", "b", 12, 0)]
    found = made(there, 44)
    assert [share.node.id for share in found] == ["a"] * 4 + ["b"] * 2
    assert all(share.workers <= WORKERS_EACH for share in found)
    # fewer than fit: --workers
    assert [share.node.id for share in made(there, 20)] == ["a", "a", "b"]
    # with two processors an encode a node of 12 has room for 6
    assert [share.workers for share in made(there, 22, processors=2)] == [8, 8, 6]


def test_more_nodes_than_workers() -> None:
    found = made([Node(f"{n}", f"{n}", 2, 0) for n in range(40)], 17)
    assert len(found) == 17


@pytest.mark.parametrize("workers", [17, 64, 500])
def test_a_gpu_is_of_one_search_alone(workers: int) -> None:
    there = [Node("cpus", "c", 400, 0), Node("a", "a", 96, 4), Node("b", "b", 16, 1)]
    found = made(there, workers)
    places = [place for share in found for place in share.places]
    assert sorted(places) == [("a", 0), ("a", 1), ("a", 2), ("a", 3), ("b", 0)]
    assert len(found) <= 5
