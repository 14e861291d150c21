"""Studies that several processes share: each point made once, whoever dies, is slow or leaves."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import TrialState

from tests.support.media import REPOSITORY
from vqaloop.core.folders import STUDY_FILE, is_study_file
from vqaloop.errors import InputError, ToolError
from vqaloop.search import shared_study
from vqaloop.search.shared_study import (
    Outcome,
    SharedStudy,
    default_storage,
    kept_in,
    key_of,
    open_storage,
)

SPACE = {"size": CategoricalDistribution(["a", "b"]), "knob": IntDistribution(0, 50)}
POINTS: list[dict[str, Any]] = [{"size": s, "knob": k} for k in range(4) for s in ("a", "b")]


def worth(params: dict[str, Any]) -> Outcome:
    """Two numbers that only the point decides; a point that always fails."""
    if params == POINTS[3]:
        return Outcome(None, {"error": "this one never works"})
    return Outcome((float(params["knob"]), 10.0 + ord(params["size"])), {"note": params["knob"]})


def seat(storage: "optuna.storages.BaseStorage | None" = None, name: str = "it") -> SharedStudy:
    chosen = storage or open_storage(None)
    return SharedStudy(chosen, name, ["minimize", "maximize"], SPACE)


@pytest.fixture(params=["sqlite", "journal"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/s.db" if request.param == "sqlite" else f"journal:{tmp_path}/s"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_study, "POLL_S", 0.02)


# --- storages -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("study.db", "is no URL; give sqlite:///FILE"),
        ("", "is no URL"),
        ("cloud://somewhere", "cloud"),
        ("sqlite:///none/study.db", "unable to open database file"),
        ("sqlite:///text", "file is not a database"),
        ("sqlite:///folder", "unable to open database file"),
        ("journal:none/file", "No such file"),
        ("journal:folder", "Is a directory"),
        ("postgresql+nodriver://a/b", "nodriver"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shared_study, "POLL_S", 0.0)
    (tmp_path / "text").write_text("dear diary, " * 200)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError) as caught:
        open_storage(where)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert "journal:FILE" in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"text", "folder"}


@pytest.mark.parametrize("name", ["plain", "a b", "what?", "{x}", "50%41", "a#b&c=d", "ü"])
def test_a_folder_of_any_name_has_its_study(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    with seat(open_storage(default_storage(folder))) as study:
        study.settle(POINTS[:1], worth)
    names = {path.name for path in folder.iterdir()}
    assert STUDY_FILE in names and {path.name for path in tmp_path.iterdir()} == {name}
    assert all(is_study_file(folder / each) for each in names)
    assert not is_study_file(folder / "ladder.json")
    # also with SQLite's own tools
    with sqlite3.connect(folder / STUDY_FILE) as base:
        assert base.execute("select count(*) from trials").fetchone() == (1,)
    base.close()


def test_a_storage_that_fails_is_spoken_of(tmp_path: Path) -> None:
    storage = open_storage(default_storage(tmp_path))
    said = "the study could not be kept in 'here'"
    with pytest.raises(ToolError, match=said), kept_in("here"), seat(storage) as study:
        with sqlite3.connect(tmp_path / STUDY_FILE) as base:
            base.execute("drop table trials")
        base.close()
        study.settle(POINTS, worth)


# --- one process --------------------------------------------------------------------------------


def test_every_point_is_made_once_and_in_order() -> None:
    made: list[dict[str, Any]] = []

    def work(params: dict[str, Any]) -> Outcome:
        made.append(params)
        return worth(params)

    with seat() as study:
        first = study.settle(POINTS[:5], work)
        again = study.settle(POINTS[::-1], work)
    assert made == POINTS[:5] + POINTS[:4:-1]
    assert [trial.params for trial in first] == POINTS[:5]
    assert [trial.params for trial in again] == POINTS[::-1]
    assert [trial.number for trial in first] == [0, 1, 2, 3, 4]
    assert again[-1].values == list(worth(POINTS[0]).values or ())
    assert again[-1].user_attrs["note"] == 0


def test_a_failure_keeps_its_reason_and_is_not_tried_again_in_the_same_run(where: str) -> None:
    with seat(open_storage(where)) as study:
        (failed,) = study.settle([POINTS[3]], worth)
        assert failed.state == TrialState.FAIL
        assert failed.user_attrs["error"] == "this one never works"
        # nor by one who joins
        with seat(open_storage(where)) as other:
            for each in (study, other):
                (again,) = each.settle([POINTS[3]], lambda params: pytest.fail("it is known"))
                assert again.number == failed.number


def test_a_later_run_tries_what_failed_again(where: str) -> None:
    """A full disk, a killed encoder: what failed once may not fail for ever."""
    with seat(open_storage(where)) as study:
        study.settle(POINTS[2:4], worth)

    def mended(params: dict[str, Any]) -> Outcome:
        assert params == POINTS[3], "what went well is not made again"
        return Outcome((7.0, 7.0))

    with seat(open_storage(where)) as study:
        # whoever joins before it is made forgives the same
        with seat(open_storage(where)) as other:
            (found,) = study.settle([POINTS[3]], mended)
            (seen,) = other.settle([POINTS[3]], lambda params: pytest.fail("it is made"))
        assert found.values == [7.0, 7.0] and seen.number == found.number
        study.settle(POINTS[2:4], mended)


def test_the_order_of_parameters_is_no_matter() -> None:
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    with seat() as study:
        one = study.settle([{"size": "a", "knob": 1}], worth)
        two = study.settle([{"knob": 1, "size": "a"}], worth)
    assert one[0].number == two[0].number


def test_threads_share_the_points(where: str, quick: None) -> None:
    made: Counter[int] = Counter()
    lock = threading.Lock()

    def work(params: dict[str, Any]) -> Outcome:
        with lock:
            made[POINTS.index(params)] += 1
        time.sleep(0.02)
        return worth(params)

    def crew(drain: Callable[[int], None]) -> None:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(drain, range(3)))

    with seat(open_storage(where)) as study:
        found = study.settle(POINTS, work, crew)
    assert set(made.values()) == {1} and len(made) == len(POINTS)
    assert [trial.params for trial in found] == POINTS


def test_two_studies_of_one_storage_know_nothing_of_each_other(where: str) -> None:
    storage = open_storage(where)
    with seat(storage, "one") as one, seat(storage, "two") as two:
        one.settle(POINTS[:3], worth)
        assert len(two.standing()) == 0
        two.settle(POINTS[:1], worth)
    assert (len(one.standing()), len(two.standing())) == (3, 1)


def test_an_interruption_leaves_a_trial_that_is_given_out_again(where: str, quick: None) -> None:
    made = []

    def interrupted(params: dict[str, Any]) -> Outcome:
        made.append(params)
        if len(made) == 3:
            raise KeyboardInterrupt
        return worth(params)

    with pytest.raises(KeyboardInterrupt), seat(open_storage(where)) as study:
        study.settle(POINTS, interrupted)
    assert len(study.standing()) == len(POINTS)
    again: list[dict[str, Any]] = []

    def work(params: dict[str, Any]) -> Outcome:
        again.append(params)
        return worth(params)

    with seat(open_storage(where)) as study:
        found = study.settle(POINTS, work)
    # the third is made anew, the first two are not
    assert sorted(map(key_of, again)) == sorted(map(key_of, POINTS[2:]))
    assert [trial.values for trial in found if trial.values] == [
        list(worth(params).values or ()) for params in POINTS if worth(params).values
    ]


# --- whose process is gone ----------------------------------------------------------------------


def left_by(storage: "optuna.storages.BaseStorage", beat: dict[str, Any] | None) -> SharedStudy:
    """A study of which another process took the first point and was never heard of again."""
    study = seat(storage)
    study.study.enqueue_trial(POINTS[0], user_attrs={"asked": True})
    trial = study.study.ask(SPACE)
    trial.set_user_attr("owner", "stranger")
    if beat is not None:
        study.study.set_user_attr("alive stranger", beat)
    return study


def dead_process() -> int:
    """The number of a process that was there and is gone."""
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


@pytest.mark.parametrize(
    ("host", "age", "process", "gone"),
    [
        ("elsewhere", 5.0, "first", False),
        ("elsewhere", shared_study.STALE_S + 5, "first", True),
        ("here", 5.0, "ours", False),
        ("here", 5.0, "dead", True),
        # whatever the clock says; but another process may have its number by now
        ("here", shared_study.STALE_S + 5, "ours", False),
        ("here", 5.0, "another", True),
    ],
)
def test_who_counts_as_gone(
    tmp_path: Path, host: str, age: float, process: str, gone: bool
) -> None:
    named = {"ours": os.getpid, "another": os.getpid, "first": lambda: 1, "dead": dead_process}
    ident = named[process]()
    born = (shared_study._born(ident) or 0) - (process == "another")
    where = shared_study._host() if host == "here" else host
    beat = {"host": where, "process": ident, "born": born, "at": time.time() - age}
    study = left_by(open_storage(default_storage(tmp_path)), beat)
    assert study.release_lost() == gone
    assert study.release_lost() == 0


def test_a_trial_that_nobody_signed_for_waits_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = seat(open_storage(default_storage(tmp_path)))
    study.study.enqueue_trial(POINTS[0], user_attrs={"asked": True})
    study.study.ask(SPACE)
    assert study.release_lost() == 0
    monkeypatch.setattr(shared_study, "STALE_S", 0.0)
    assert study.release_lost() == 1


def test_a_silent_process_elsewhere_is_waited_for_and_then_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    monkeypatch.setattr(shared_study, "STALE_S", 0.6)
    monkeypatch.setattr(shared_study, "BEAT_S", 0.1)
    storage = open_storage(default_storage(tmp_path))
    left_by(storage, {"host": "elsewhere", "process": 1, "at": time.time()})
    started = time.monotonic()
    with seat(storage) as study:
        (found,) = study.settle(POINTS[:1], worth)
    assert time.monotonic() - started > 0.3
    assert found.number > 0 and found.values == list(worth(POINTS[0]).values or ())


def test_one_who_comes_back_too_late_changes_nothing(tmp_path: Path) -> None:
    storage = open_storage(default_storage(tmp_path))
    slow = seat(storage)
    trial = slow.ask()
    beat = {"host": shared_study._host(), "process": dead_process(), "at": time.time()}
    slow.study.set_user_attr(f"alive {slow._me}", beat)
    with seat(storage) as other:
        assert other.release_lost() == 1
    assert slow.tell(trial, (1.0, 2.0)) is False
    assert slow.study.trials[0].state == TrialState.FAIL


# --- several processes --------------------------------------------------------------------------

CHILD = """
import json, os, sys, time
from tests.search.test_shared_study import POINTS, seat, worth
from vqaloop.search import shared_study as studies
from vqaloop.search.shared_study import open_storage
where, log, pause = sys.argv[1], sys.argv[2], float(sys.argv[3])
studies.POLL_S = 0.05

def work(params):
    with open(log, "a") as file:
        file.write(f"{os.getpid()} {POINTS.index(params)}\\n")
    time.sleep(pause)
    return worth(params)

while not os.path.exists(log + ".go"):
    time.sleep(0.005)
with seat(open_storage(where)) as study:
    found = study.settle(POINTS, work)
print(json.dumps([[t.params, t.values, t.user_attrs.get("error")] for t in found]))
"""


def start(where: str, log: Path, pause: float) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    argv = [sys.executable, "-c", CHILD, where, str(log), str(pause)]
    return subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def reaped() -> "Iterator[list[subprocess.Popen[str]]]":
    children: list[subprocess.Popen[str]] = []
    yield children
    for child in children:
        if child.poll() is None:
            child.kill()
            child.communicate()


def taken(log: Path) -> list[tuple[int, int]]:
    """Process and point of each piece of work that was begun."""
    if not log.exists():
        return []
    return [(int(p), int(i)) for p, i in map(str.split, log.read_text().splitlines())]


def expected() -> list[list[Any]]:
    outcomes = [(params, worth(params)) for params in POINTS]
    return [[p, o.values and list(o.values), o.attrs.get("error")] for p, o in outcomes]


def test_processes_share_the_points_and_agree(
    where: str, tmp_path: Path, reaped: "list[subprocess.Popen[str]]"
) -> None:
    log = tmp_path / "log"
    count = 3 if where.startswith("sqlite") else 2
    reaped += [start(where, log, 0.1) for _ in range(count)]
    (tmp_path / "log.go").touch()
    said = [child.communicate(timeout=120)[0] for child in reaped]
    assert [child.returncode for child in reaped] == [0] * count
    assert all(json.loads(text) == expected() for text in said)
    # none twice, none left out
    assert sorted(point for _, point in taken(log)) == list(range(len(POINTS)))
    shown = optuna.load_study(study_name="it", storage=open_storage(where))
    complete = [t for t in shown.trials if t.state == TrialState.COMPLETE]
    assert len(complete) == len(POINTS) - 1


def test_what_a_killed_process_was_at_is_made_by_another(
    where: str, tmp_path: Path, reaped: "list[subprocess.Popen[str]]"
) -> None:
    log = tmp_path / "log"
    doomed = start(where, log, 600.0)
    reaped.append(doomed)
    (tmp_path / "log.go").touch()
    deadline = time.monotonic() + 60
    while not taken(log):
        assert doomed.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    other = start(where, log, 0.0)
    reaped.append(other)
    # alive and at work: the other makes the rest, and waits
    while len(taken(log)) < len(POINTS):
        assert other.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    assert other.poll() is None
    os.kill(doomed.pid, signal.SIGKILL)
    doomed.communicate()
    out, _ = other.communicate(timeout=60)
    assert json.loads(out) == expected()
    counts = Counter(point for _, point in taken(log))
    assert counts.pop(taken(log)[0][1]) == 2 and set(counts.values()) == {1}
    # and whoever comes later has nothing to do
    with seat(open_storage(where)) as study:
        sound = [params for params in POINTS if worth(params).values]
        found = study.settle(sound, lambda params: pytest.fail(f"{params} is made"))
    assert [tuple(t.values) for t in found] == [worth(params).values for params in sound]
