"""Catalogues searched by processes all over a Ray cluster: the same as by one process."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import rayclusters
from tests.support.commandline import fake_ffmpeg, running
from tests.support.media import make_clip
from tests.support.rayclusters import ENCODES, TINY, Nodes, waited, warnings
from vqaloop.catalogue import title_actors
from vqaloop.catalogue.build import build_catalogue
from vqaloop.catalogue.entries import Catalogue
from vqaloop.catalogue.title_actors import Setting
from vqaloop.cluster import shares
from vqaloop.cluster.ray_cluster import RayCluster
from vqaloop.errors import Cancelled
from vqaloop.execution.executor import Local
from vqaloop.execution.job import Job
from vqaloop.records import Event

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'vqaloop[ray]'")

nodes = rayclusters.nodes
ASKED: dict[str, Any] = {**TINY, "cache": True, "guard": "off"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQALOOP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def titles(tmp_path: Path) -> list[Path]:
    return [
        make_clip(tmp_path / f"{n}.y4m", size="160x96", frames=10 + n, vf=f"hue=h={40 * n}")
        for n in range(3)
    ]


@pytest.fixture
def spread(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> Iterator[RayCluster]:
    """Of two nodes with two processors and one process that searches each."""
    monkeypatch.setattr(shares, "WORKERS_EACH", 2)
    monkeypatch.setattr(shares, "WORKERS_ALONE", 2)
    with nodes.another(num_cpus=2) as node, RayCluster(nodes.address) as cluster:
        cluster.second = node  # type: ignore[attr-defined]
        yield cluster


def searched_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this process cannot search."""

    def fails(*_: object, **__: object) -> None:
        pytest.fail("it was searched by the driver")

    monkeypatch.setattr("vqaloop.catalogue.title.build_ladder", fails)


def decided(made: Catalogue) -> list[Any]:
    """What of the ladders must not depend on where they were searched."""
    assert not made.of_status("failed"), made.of_status("failed")
    documents = [json.loads((e.folder / "ladder.json").read_text()) for e in made.entries]
    return [(d["rungs"], d["hull"], len(d["trials"])) for d in documents]


@pytest.mark.slow
def test_a_large_cluster_s_nodes_search(
    spread: RayCluster, titles: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = build_catalogue(titles, out=tmp_path / "here", workers=Local(2), **ASKED)
    monkeypatch.setenv("VQALOOP_CACHE", str(tmp_path / "another"))
    searched_elsewhere(monkeypatch)
    # names relative to the folder of the driver
    monkeypatch.chdir(tmp_path)
    own = [Path(path.name) for path in titles]
    events: list[Event] = []
    there = build_catalogue(own, out="there", workers=spread, progress=events.append, **ASKED)
    assert decided(there) == decided(here)
    assert there.cost()["encodes"] == here.cost()["encodes"] > 0
    assert there.cost()["encode_cpu_s"] > 0
    ended = [event for event in events if event.stage == "catalogue"]
    assert [(event.done, event.total) for event in ended] == [(n, 3) for n in range(1, 4)]
    assert {f"{n}: search" for n in range(3)} < {event.stage for event in events}
    assert not [path for path in Path("there").iterdir() if path.name.startswith(".vqaloop")]
    again = build_catalogue(own, out="there", workers=spread, **ASKED)
    assert all(entry.kept for entry in again.entries)


def processes() -> list[int]:
    """Those that search, as Ray titles them."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "cmdline").read_bytes().startswith(b"ray::TitleActor"):
                found.append(int(entry.name))
    return found


def held(folder: Path) -> tuple[Path, Path, Path]:
    """An ffmpeg whose encodes wait as long as a file is there; that file; a folder with one file
    for each encode that began."""
    hold, began = folder / "hold", folder / "began"
    began.mkdir()
    hold.touch()
    wait = f"while [ -e '{hold}' ]; do sleep 0.1; done"
    return fake_ffmpeg(folder / "ffmpeg", {ENCODES: f"echo > '{began}'/$$; {wait}"}), hold, began


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["process", "node"])
def test_titles_of_what_is_lost_go_on_elsewhere(
    spread: RayCluster,
    titles: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    nodes: Nodes,
    lost: str,
) -> None:
    ffmpeg, hold, began = held(tmp_path)
    asked = {**ASKED, "ffmpeg": ffmpeg}
    searched_elsewhere(monkeypatch)
    job = Job(build_catalogue, titles, out=tmp_path / "there", workers=spread, **asked)
    waited(lambda: len(list(began.iterdir())) >= 4, 300)
    if lost == "process":
        os.kill(processes()[0], signal.SIGKILL)
    else:
        nodes.cluster.remove_node(spread.second, allow_graceful=False)  # type: ignore[attr-defined]
    waited(lambda: warnings(caplog), 300)
    hold.unlink()
    there = job.result(500)
    said = warnings(caplog)
    # of a node Ray may report the process first
    words = {"died while it searched"} | ({"left the Ray cluster"} if lost == "node" else set())
    assert len(said) == 1 and any(each in said[0] for each in words)
    monkeypatch.undo()
    monkeypatch.setenv("VQALOOP_CACHE", str(tmp_path / "another"))
    here = build_catalogue(titles, out=tmp_path / "here", workers=Local(2), **asked)
    assert decided(there) == decided(here)
    # only what was under way was done twice
    count = len(list(began.iterdir()))
    assert count - 2 * here.cost()["encodes"] <= 4
    waited(lambda: not processes() and not nodes.left(), 60)


@pytest.mark.slow
def test_a_catalogue_that_is_called_off_ends_everywhere(
    spread: RayCluster, titles: list[Path], tmp_path: Path, nodes: Nodes
) -> None:
    ffmpeg, _, began = held(tmp_path)
    asked = {**ASKED, "ffmpeg": ffmpeg}
    job = Job(build_catalogue, titles, out=tmp_path / "there", workers=spread, **asked)
    waited(lambda: len(list(began.iterdir())) >= 4, 300)
    started = time.monotonic()
    job.cancel()
    with pytest.raises(Cancelled):
        job.result(120)
    assert time.monotonic() - started < 60
    waited(lambda: not processes() and not nodes.left(), 60)
    assert not any(running(int(path.name)) for path in began.iterdir())
    assert not list((tmp_path / "there").glob(".vqaloop*"))
    assert not [event for event in job if "failed" in event.message]


@pytest.mark.slow
def test_where_a_node_has_another_folder_the_driver_searches(
    spread: RayCluster,
    titles: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    of = Setting.of

    def unseen(tasks: Any, marks: Any) -> Setting:
        return of(tasks, [str(tmp_path / "another machine's")])

    monkeypatch.setattr(title_actors.Setting, "of", unseen)
    made = build_catalogue(titles[:1], out=tmp_path / "there", workers=spread, **ASKED)
    assert not made.of_status("failed")
    [line] = warnings(caplog)
    assert "searched on this machine alone" in line and "does not see" in line
