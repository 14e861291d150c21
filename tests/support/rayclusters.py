"""A Ray cluster of this machine's processes, and what tests of it share.

The fixtures are `nodes`, `cluster`, `clip` and `source`.
"""

import contextlib
import importlib
import json
import logging
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.media import REPOSITORY, make_clip
from vqaloop.cluster.ray_cluster import RayCluster
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.execution.executor import Executor
from vqaloop.media.probe import probe_source
from vqaloop.records import Ladder, Rendition, Score, Source

TINY: dict[str, Any] = dict(
    codec="h264",
    metric="psnr",
    preset="ultrafast",
    rungs=2,
    min_step=0.2,
    min_ratio=1.2,
    resolutions=[(160, 96)],
    cache=False,
    prior=False,
)
ENCODES = "*' -crf '*"
"""Command lines that encode."""


@dataclass(frozen=True)
class Nodes:
    """A cluster of this machine's processes, and where they keep their files."""

    cluster: Any
    temp: Path
    cache: Path

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    @contextlib.contextmanager
    def another(self, **resources: Any) -> Iterator[Any]:
        """A further node, which may be gone at the end."""
        with environment(TMPDIR=self.temp, VQALOOP_CACHE=self.cache):
            node = self.cluster.add_node(object_store_memory=100 << 20, **resources)
        try:
            yield node
        finally:
            with contextlib.suppress(Exception):
                self.cluster.remove_node(node)

    def left(self) -> list[str]:
        """Unfinished files of the workers."""
        folders = (self.temp, self.cache / "sources")
        names = [path.name for folder in folders if folder.exists() for path in folder.iterdir()]
        return [name for name in names if "vqaloop-" in name or name.endswith(".part")]


@contextlib.contextmanager
def environment(**values: Any) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: str(value) for name, value in values.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    # by name: the type checker runs where Ray is not installed as well
    cluster_utils: Any = importlib.import_module("ray.cluster_utils")

    # Ray's sockets lie in it, whose names must not be long
    place = Path(tempfile.mkdtemp(prefix="vq"))
    temp, cache = place / "temp", place / "cache"
    temp.mkdir()
    head = dict(num_cpus=2, num_gpus=0, include_dashboard=False, object_store_memory=100 << 20)
    with environment(TMPDIR=temp, VQALOOP_CACHE=cache, PYTHONPATH=REPOSITORY):
        made = Nodes(cluster_utils.Cluster(initialize_head=True, head_node_args=head), temp, cache)
    yield made
    made.cluster.shutdown()
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def cluster(nodes: Nodes) -> Iterator[RayCluster]:
    with RayCluster(nodes.address, workers=2) as made:
        yield made


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "a.y4m", size="160x96")


@pytest.fixture
def source(clip: Path) -> Source:
    return probe_source(clip, ffmpeg=ffmpeg_path())


def rendition(knob: float = 30.0) -> Rendition:
    return Rendition(160, 96, "libx264", knob, "ultrafast")


def encoded(
    executor: Executor,
    source: Source,
    out: Path,
    ffmpeg: str | Path | None = None,
    knob: float = 30,
) -> Any:
    return executor.encode(
        source,
        rendition(knob),
        out,
        ffmpeg=ffmpeg_path(ffmpeg),
        timeout_s=None,
        whose="a",
    )


def decided(ladder: Ladder) -> dict[str, Any]:
    """What of a ladder must not depend on where it was made."""
    document = ladder.to_json()
    trials = sorted(json.dumps(trial, sort_keys=True) for trial in document["trials"])
    return {"rungs": document["rungs"], "trials": trials}


def waited(until: Callable[[], Any], timeout_s: float = 60) -> Any:
    end = time.monotonic() + timeout_s
    while not (found := until()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
    return found


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


@dataclass(frozen=True)
class NotedMetric:
    """A metric in name: it notes each time that it is begun, in a folder, and the first waits for
    `company` of them. With `kills` it then kills its process."""

    name: str
    begun: str
    company: int
    kills: bool
    mode: str = "full-reference"
    top: float = 100.0
    step: float = 4.0
    ceiling: float = 95.0
    floor: float = 30.0
    guard_gap: float = 10.0
    scale: None = None
    guarded_by: None = None

    def identity(self) -> dict[str, Any]:
        return {"metric": self.name}

    def measure(self, source: Source, path: Path, decoder: str) -> Score:
        folder = Path(self.begun)
        (folder / f"{self.name} {time.monotonic_ns()}").touch()
        waited(lambda: len(list(folder.iterdir())) >= self.company)
        if self.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        if len(list(folder.glob(f"{self.name} *"))) < 2:
            time.sleep(60)  # until it is killed
        return Score(1.0, self.name, self.mode)

    def finer(self) -> None:
        return None

    def confirming(self) -> None:
        return None

    def scene_by_scene(self, scenes: Any) -> "NotedMetric":
        return self
