"""Which process makes which title, and what becomes of those of a process that dies."""

from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vqaloop.catalogue import title_actors
from vqaloop.catalogue.entries import Entry
from vqaloop.catalogue.title import TitleThreads
from vqaloop.catalogue.title_actors import TitleActors
from vqaloop.cluster.connection import Node
from vqaloop.cluster.shares import Share


class RayError(Exception):
    pass


class Died(RayError):
    pass


class FakeActor:
    """Answers when it is given an answer; notes the titles it is asked for."""

    def __init__(self, share: Share, *_: object) -> None:
        self.share, self.asked = share, list[int]()
        self.answers: deque[Any] = deque([None])
        self.begin = self.close = SimpleNamespace(remote=lambda *_: self)
        self.news = SimpleNamespace(options=lambda **_: self.begin)
        self.make = SimpleNamespace(remote=self._make)

    def _make(self, wanted: list[Any]) -> None:
        self.asked += [each for each in wanted]


class FakeCluster:
    """Two nodes with a process each; what is lost is lost with its node as `with_node` says."""

    processors, losses, with_node = 1, (Died,), False

    def __init__(self) -> None:
        self.found = [
            Share(Node(name, name, 2, 0), 2, frozenset({(name, 0)})) for name in ("a", "b")
        ]

    def shares(self) -> list[Share]:
        return self.found

    def log_lost(self) -> None:
        pass

    def lost_node(self, error: BaseException) -> bool:
        if self.with_node:
            self.found = self.found[1:]
        return self.with_node


class Room:
    """What is looked at in these tests."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.actors: list[FakeActor] = []
        self.cluster = FakeCluster()

        def start(*args: Any) -> FakeActor:
            self.actors.append(FakeActor(*args))
            return self.actors[-1]

        def wait(asked: list[FakeActor], **_: object) -> tuple[list[FakeActor], list[FakeActor]]:
            return [a for a in asked if a.answers], [a for a in asked if not a.answers]

        def get(actor: FakeActor, **_: object) -> Any:
            answer = actor.answers.popleft()
            if isinstance(answer, Exception):
                raise answer
            return answer

        ray = SimpleNamespace(
            wait=wait, get=get, kill=lambda _: None, exceptions=SimpleNamespace(RayError=RayError)
        )
        monkeypatch.setattr(title_actors, "import_ray", lambda: ray)
        monkeypatch.setattr(title_actors, "_actor", start)
        monkeypatch.setattr(title_actors.Wanted, "of", staticmethod(lambda index, _: index))
        monkeypatch.setattr(title_actors, "failed", lambda task, error: entry(task, str(error)))
        self.here = TitleThreads(lambda index, _: entry(index, "here"), 2)
        self.waiting = deque(range(9))
        cluster: Any = self.cluster
        setting: Any = None
        tasks: Any = range(9)
        self.titles = TitleActors(tasks, cluster, {}, setting, self.here)

    def turn(self) -> list[Any]:
        """Once around: what is new, then titles are handed out."""
        found = self.titles.news(0)
        self.titles.take(self.waiting)
        return found

    def die(self, actor: FakeActor) -> list[Any]:
        actor.answers.append(Died("no more"))
        ended = self.turn()
        # the one in its place begins
        return ended + self.turn()


def entry(index: Any, reason: str) -> Entry:
    return Entry(f"{index}", "", "h264", Path(), "failed", reason)


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Room:
    made = Room(monkeypatch)
    assert made.titles.begun() is None
    made.turn()
    return made


def test_titles_are_spread_and_follow_as_others_end(room: Room) -> None:
    a, b = room.actors
    assert (sorted(a.asked + b.asked), len(a.asked)) == ([0, 1, 2, 3], 2)
    done = entry(a.asked[0], "so")
    a.answers.append([(a.asked[0], done)])
    assert room.turn() == [(a.asked[0], done)] and a.asked[2:] == [4]


def test_a_node_s_titles_go_elsewhere_before_others(room: Room) -> None:
    a, b = room.actors
    room.cluster.with_node = True
    assert room.die(a) == [] and len(room.actors) == 2
    b.answers.append([(b.asked[0], entry(0, "")), (b.asked[1], entry(1, ""))])
    room.turn()
    assert b.asked[2:] == a.asked


def test_a_title_that_kills_its_processes_fails_and_no_other(room: Room) -> None:
    guilty = room.actors[0].asked[0]
    ended = dict[int, Entry]()
    most_alone = 0
    for _ in range(100):
        for actor in room.actors[-4:]:
            mine = [p for p in room.titles._processes if p.actor is actor]
            if not mine or not mine[0].open:
                continue
            if guilty in mine[0].open:
                most_alone += len(mine[0].open) == 1
                ended |= dict(room.die(actor))
            else:
                actor.answers.append([(n, entry(n, "done")) for n in sorted(mine[0].open)])
        ended |= dict(room.turn())
    assert sorted(ended) == list(range(9)) and most_alone == 3
    assert "3 processes died of it" in str(ended.pop(guilty).reason)
    assert {each.reason for each in ended.values()} == {"done"}


def test_where_no_process_can_begin_titles_are_made_here(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    for actor in list(room.actors):
        actor.answers.append(Died("no more"))
    room.titles.news(0)
    for actor in room.actors[2:]:
        actor.answers[0] = "it has another ffmpeg"
    ended = dict[int, Any]()
    for _ in range(50):
        ended |= dict(room.titles.news(0.1))
        room.titles.take(room.waiting)
    assert {each.reason for each in ended.values()} == {"here"} and len(ended) == 9
    assert sum("it only encodes" in r.getMessage() for r in caplog.records) == 2
