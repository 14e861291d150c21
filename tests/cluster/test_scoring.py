"""Which process scores what, without a cluster: who waits, and who is alone."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from vqaloop.cluster import scoring
from vqaloop.cluster.connection import Node
from vqaloop.cluster.scoring import Scorers, Visit
from vqaloop.core import scopes
from vqaloop.errors import CalledOff, ToolError

SMALL, OTHER = Node("a", "a (1)", 2, 0), Node("b", "b (2)", 2, 0)
GPU = Node("g", "g (3)", 2, 1)


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> list[Node]:
    """The nodes of a cluster, which may come and go; a process is only its node's id."""
    found: list[Node] = []
    monkeypatch.setattr(scoring, "nodes", lambda: found)
    monkeypatch.setattr(scoring, "_start", lambda node, gpu: [node.id])
    return found


class Order(threading.Thread):
    """Stays in its process until it is let go."""

    def __init__(self, scorers: Scorers, whose: str = "title", **how: Any) -> None:
        super().__init__(daemon=True)
        self.scorers, self.whose, self.how = scorers, whose, how
        self.inside, self.leave = threading.Event(), threading.Event()
        self.scope = scopes.Scope()
        self.visit: Visit | None = None
        self.failed: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            with (
                self.scope.entered(),
                self.scorers.taken(self.whose, **self.how) as self.visit,
            ):
                self.inside.set()
                self.leave.wait(30)
        except BaseException as error:
            self.failed = error

    def where(self) -> Any:
        assert self.inside.wait(10) and self.visit
        return self.visit.place

    def over(self) -> None:
        self.leave.set()
        self.join(10)
        assert not self.is_alive()


def settled(waits: Callable[[], bool]) -> bool:
    """Whether it is so, and is still after a while."""
    time.sleep(0.5)
    return waits()


def test_without_a_node_it_is_waited_for(
    there: list[Node], caplog: pytest.LogCaptureFixture
) -> None:
    scorers = Scorers()
    order = Order(scorers)
    assert settled(lambda: not order.inside.is_set() and order.is_alive())
    there.append(SMALL)
    assert order.where() == ("a", 0)
    order.over()
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert said == ["the Ray cluster has no node left to score on; waiting for one"]


def test_who_waits_can_be_called_off(there: list[Node]) -> None:
    order = Order(Scorers())
    assert settled(order.is_alive)
    order.scope.cancel()
    order.join(5)
    assert isinstance(order.failed, CalledOff) and not order.inside.is_set()


def test_what_needs_a_gpu_waits_for_one(there: list[Node]) -> None:
    there += [SMALL, GPU]
    scorers = Scorers(had_gpus=True)
    first = Order(scorers, on_gpu=True)
    assert first.where() == ("g", 0)
    first.over()
    there.remove(GPU)
    # a process on processors would refuse it
    second, third = Order(scorers, on_gpu=True), Order(scorers)
    assert third.where() == ("a", 0)
    assert settled(lambda: not second.inside.is_set() and second.is_alive())
    there.append(GPU)
    assert second.where() == ("g", 0)
    second.over()
    third.over()


def test_a_cluster_that_never_had_a_gpu_is_refused_one(there: list[Node]) -> None:
    there.append(SMALL)
    scorers = Scorers()
    with (
        pytest.raises(ToolError, match="no node .* --device cpu"),
        scorers.taken("a", on_gpu=True),
    ):
        pytest.fail("it has none")


def test_who_is_alone_waits_for_the_others_and_they_for_it(there: list[Node]) -> None:
    there.append(SMALL)
    scorers = Scorers()
    first, second = Order(scorers), Order(scorers)
    first.where(), second.where()
    assert first.visit and first.visit.shared and second.visit and second.visit.shared
    alone = Order(scorers, alone=True)
    first.over()
    assert settled(lambda: not alone.inside.is_set())
    third, also_alone = Order(scorers), Order(scorers, alone=True)
    assert settled(lambda: not third.inside.is_set())
    second.over()
    alone.where()
    assert settled(lambda: not third.inside.is_set() and not also_alone.inside.is_set())
    assert alone.visit and not alone.visit.shared
    # two are alone one after the other, and all get in, in whatever order
    for order in (alone, also_alone, third):
        order.leave.set()
    for order in (alone, also_alone, third):
        order.over()
    assert third.visit and also_alone.visit and not also_alone.visit.shared


def test_who_is_alone_leaves_the_other_processes_to_the_others(there: list[Node]) -> None:
    there += [SMALL, OTHER]
    scorers = Scorers()
    alone = Order(scorers, alone=True)
    place = alone.where()
    others = [Order(scorers, f"{n}") for n in range(3)]
    assert all(other.where() != place for other in others)
    for order in (alone, *others):
        order.over()


def one_inside_and_one_to_be_alone(there: list[Node]) -> tuple[Scorers, Order, Order]:
    """On one node: the second waits until the first has left."""
    there.append(SMALL)
    scorers = Scorers()
    first = Order(scorers)
    first.where()
    alone = Order(scorers, alone=True)
    assert settled(lambda: not alone.inside.is_set())
    return scorers, first, alone


def test_a_node_lost_while_it_is_cleared_is_not_waited_for(there: list[Node]) -> None:
    scorers, first, alone = one_inside_and_one_to_be_alone(there)
    there[:] = [OTHER]
    assert alone.where() == ("b", 0)
    alone.over()
    first.over()


def test_whoever_gives_up_being_alone_holds_nobody_up(there: list[Node]) -> None:
    scorers, first, alone = one_inside_and_one_to_be_alone(there)
    alone.scope.cancel()
    alone.join(5)
    second = Order(scorers)
    second.where()
    first.over()
    second.over()
