"""Ladders over a Ray cluster: the same as on one machine, whatever dies meanwhile."""

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.commandline import FAILURES, fake_ffmpeg, running
from tests.media import REPOSITORY, make_clip
from vqaloop import process, rayconnection
from vqaloop.errors import Cancelled, DecodeFailed, EncodeFailed, InputError, ToolError
from vqaloop.executor import Executor, Local
from vqaloop.job import Job
from vqaloop.ladder import build_ladder
from vqaloop.records import Ladder, Rendition, Source
from vqaloop.score import open_metric
from vqaloop.source import probe_source

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


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'vqaloop\[ray\]'"):
        from vqaloop.rayexecutor import RayCluster

        RayCluster("auto")


ray = pytest.importorskip("ray", reason="needs Ray: pip install 'vqaloop[ray]'")

from vqaloop.rayexecutor import RayCluster  # noqa: E402


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
        with _environment(TMPDIR=self.temp, VQALOOP_CACHE=self.cache):
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
def _environment(**values: Any) -> Iterator[None]:
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
    from ray.cluster_utils import Cluster

    # Ray's sockets lie in it, whose names must not be long
    place = Path(tempfile.mkdtemp(prefix="vq"))
    temp, cache = place / "temp", place / "cache"
    temp.mkdir()
    head = dict(num_cpus=2, num_gpus=0, include_dashboard=False, object_store_memory=100 << 20)
    with _environment(TMPDIR=temp, VQALOOP_CACHE=cache, PYTHONPATH=REPOSITORY):
        made = Nodes(Cluster(initialize_head=True, head_node_args=head), temp, cache)
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
    return probe_source(clip, ffmpeg=process.ffmpeg_path())


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
        ffmpeg=process.ffmpeg_path(ffmpeg),
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


@pytest.mark.parametrize("address", ["nonsense", "host", "a:b:1", "127.0.0.1:99999", "-x:1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="auto, local, HOST:PORT|does not answer"):
        RayCluster(address)


@pytest.mark.parametrize("prefix", ["", "ray://"])
@pytest.mark.parametrize("answer", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_an_address_without_a_cluster_is_refused_in_time(
    answer: bytes | None, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rayconnection, "ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                link, _ = server.accept()
                with link:
                    link.recv(100)
                    link.sendall(answer) if answer is not None else time.sleep(2)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        started = time.monotonic()
        with pytest.raises(InputError, match="no Ray cluster|does not answer"):
            RayCluster(f"{prefix}127.0.0.1:{server.getsockname()[1]}")
        assert time.monotonic() - started < 10
        thread.join()


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"processors": 0}, {"workers": -1}])
def test_numbers_that_are_none_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match="at least one"):
        RayCluster("local", **wrong)


def test_a_cluster_makes_the_same_ladder(cluster: RayCluster, clip: Path, tmp_path: Path) -> None:
    there = build_ladder(clip, out=tmp_path / "there", workers=cluster, **TINY)
    here = build_ladder(clip, out=tmp_path / "here", workers=Local(2), **TINY)
    assert decided(there) == decided(here)
    for rung in here.rungs:
        files = [tmp_path / place / rung.file for place in ("here", "there")]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_more_processors_than_a_node_has_are_refused(nodes: Nodes) -> None:
    with pytest.raises(InputError, match="the 3 processors .* the largest has 2"):
        RayCluster(nodes.address, processors=3)
    assert not ray.is_initialized()


@pytest.mark.slow
def test_all_that_fits_runs_at_once_and_the_signals_stay_ours(nodes: Nodes) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with RayCluster(nodes.address) as cluster:
        assert cluster.workers == 2 and signal.getsignal(signal.SIGTERM) is before
    with RayCluster(nodes.address, processors=2) as cluster:
        assert cluster.workers == 1


@pytest.mark.slow
def test_a_student_scores_as_it_does_here(
    cluster: RayCluster, source: Source, tmp_path: Path
) -> None:
    metric = open_metric("internvqa", ffmpeg=process.ffmpeg_path(), device="cpu", seed=3)
    made = [
        encoded(cluster, source, tmp_path / f"{knob}.mp4", knob=knob).path for knob in (25, 35, 45)
    ]
    finer = metric.finer()
    assert finer is not None
    for meter in (metric, finer):
        measure = partial(cluster.measure, meter, source, decoder="pyav", whose="a")
        with ThreadPoolExecutor(3) as pool:
            there = list(pool.map(measure, made))
        here = [meter.measure(source, path, "pyav") for path in made]
        for score, other in zip(there, here, strict=True):
            # what is batched together rounds a little differently
            assert score.clips == pytest.approx(other.clips, abs=1e-3)
            for name in ("value", "interval"):
                assert getattr(score, name) == pytest.approx(getattr(other, name), abs=1e-3)
            alike: Any = dict(value=0, interval=None, clips=(), moments=(), cpu_s=0, wall_s=0)
            assert replace(score, **alike) == replace(other, **alike)


@pytest.mark.slow
def test_without_a_shared_folder_a_source_travels_once(
    nodes: Nodes, cluster: RayCluster, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqaloop.parcels.CHUNK_BYTES", 100_000)
    own = tmp_path / "own.y4m"
    own.write_bytes(clip.read_bytes() + b"FRAME\n" + bytes(160 * 96 * 3 // 2))
    put: list[int] = []

    def counted(data: bytes) -> Any:
        put.append(len(data))
        return ray.put(data)

    monkeypatch.setattr(cluster._sender, "_put", counted)
    # the nodes cannot see our files
    monkeypatch.setattr(cluster, "_look", False)
    there = build_ladder(own, out=tmp_path / "there", workers=cluster, **TINY)
    size = own.stat().st_size
    assert put[: size // 100_000 + 1] == [100_000] * (size // 100_000) + [size % 100_000]
    assert put.count(100_000) == size // 100_000
    name = f"{process.file_sha256(own)}.y4m"
    assert (nodes.cache / "sources" / name).read_bytes() == own.read_bytes()
    # what was put was all that was needed: the file itself may go
    source = probe_source(own, ffmpeg=process.ffmpeg_path())
    here = build_ladder(own, out=tmp_path / "here", workers=Local(2), **TINY)
    assert decided(there) == decided(here)
    out = encoded(cluster, source, tmp_path / "x.mp4").path
    metric = open_metric("psnr", ffmpeg=process.ffmpeg_path())
    assert cluster.measure(metric, source, out, "pyav", 1).value > 20
    assert not nodes.left()


@pytest.mark.slow
def test_a_large_encode_comes_in_chunks(
    cluster: RayCluster, source: Source, tmp_path: Path
) -> None:
    from vqaloop.parcels import CHUNK_BYTES

    title = make_clip(tmp_path / "big.mkv", size="1280x720", frames=60, vf="noise=alls=100:allf=t")
    big = probe_source(title, ffmpeg=process.ffmpeg_path())
    asked = Rendition(1280, 720, "libx264", 1, "ultrafast")
    told: Any = dict(ffmpeg=process.ffmpeg_path(), timeout_s=None, whose=1)
    there = cluster.encode(big, asked, tmp_path / "there.mp4", **told)
    here = Local(1).encode(big, asked, tmp_path / "here.mp4", **told)
    assert here.size_bytes > CHUNK_BYTES
    assert here.path.read_bytes() == there.path.read_bytes()


@pytest.mark.slow
def test_another_ffmpeg_on_a_node_is_refused(
    cluster: RayCluster, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vqaloop.rayworker import Tools

    def elsewhere(path: str, sha256: str) -> Tools:
        return Tools("/where/no/node/has/one/ffmpeg", sha256)

    monkeypatch.setattr("vqaloop.rayexecutor.Tools", elsewhere)
    # the node's own is the same, so that its path does not matter
    assert encoded(cluster, source, tmp_path / "a.mp4").size_bytes
    other = fake_ffmpeg(tmp_path / "ffmpeg", {})
    with pytest.raises(ToolError, match=rf"node {socket.gethostname()} .*another ffmpeg") as error:
        encoded(cluster, source, tmp_path / "b.mp4", other)
    assert "VQALOOP_FFMPEG" in str(error.value) and not (tmp_path / "b.mp4").exists()


@pytest.mark.slow
def test_another_vqaloop_on_a_node_is_refused(
    cluster: RayCluster, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vqaloop.rayworker import Tools

    monkeypatch.setattr(
        "vqaloop.rayexecutor.Tools", lambda path, sha256: Tools(path, sha256, "9.9")
    )
    with pytest.raises(ToolError, match="pip install vqaloop==9.9"):
        encoded(cluster, source, tmp_path / "a.mp4")


@pytest.mark.slow
def test_errors_arrive_as_what_they_are(
    nodes: Nodes, cluster: RayCluster, source: Source, tmp_path: Path
) -> None:
    out = tmp_path / "a.mp4"
    crashing = fake_ffmpeg(tmp_path / "crash", {ENCODES: FAILURES["crash"]})
    with pytest.raises(EncodeFailed, match="killed by SIGSEGV") as failed:
        encoded(cluster, source, out, crashing)
    assert failed.value.again and failed.value.__context__ is None
    broken = fake_ffmpeg(tmp_path / "broken", {ENCODES: "exit 3"})
    with pytest.raises(EncodeFailed, match="exit status 3") as failed:
        encoded(cluster, source, out, broken)
    assert not failed.value.again and not out.exists()
    out.write_bytes(b"no video")
    metric = open_metric("psnr", ffmpeg=process.ffmpeg_path())
    with pytest.raises(DecodeFailed, match="a.mp4"):
        cluster.measure(metric, source, out, "pyav", 1)
    with pytest.raises(InputError, match="cannot read"):
        encoded(cluster, replace(source, path=tmp_path / "gone.y4m"), out)
    with pytest.raises(InputError, match="cannot write in the folder"):
        encoded(cluster, source, tmp_path / "nowhere" / "a.mp4")
    assert not nodes.left()


@pytest.mark.slow
def test_an_encode_that_is_called_off_ends_at_once(
    nodes: Nodes, cluster: RayCluster, clip: Path, tmp_path: Path
) -> None:
    note = tmp_path / "pid"
    hang = fake_ffmpeg(tmp_path / "ffmpeg", {ENCODES: f"echo $$ > '{note}'; exec sleep 600"})
    job = Job(build_ladder, clip, out=tmp_path / "out", workers=cluster, ffmpeg=hang, **TINY)
    pid = int(waited(lambda: note.exists() and note.read_text()))
    assert running(pid)
    job.cancel()
    with pytest.raises(Cancelled):
        job.result(30)
    waited(lambda: not running(pid), 5)
    waited(lambda: not nodes.left(), 5)
    # the cluster is as good as before
    assert encoded(cluster, probe_source(clip, ffmpeg=str(hang)), tmp_path / "a.mp4").frames == 12


@pytest.mark.slow
def test_a_worker_killed_while_it_encodes_is_replaced(
    nodes: Nodes,
    cluster: RayCluster,
    source: Source,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, note = tmp_path / "first", tmp_path / "pid"
    action = f"if mkdir '{first}' 2> /dev/null; then echo $$ $PPID > '{note}'; exec sleep 600; fi"
    ffmpeg = fake_ffmpeg(tmp_path / "ffmpeg", {ENCODES: action})
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(encoded, cluster, source, tmp_path / "a.mp4", ffmpeg)
        pid, worker = map(int, waited(lambda: note.exists() and note.read_text()).split())
        os.kill(worker, signal.SIGKILL)
        made = job.result(60)
    waited(lambda: not running(pid), 10)
    waited(lambda: not nodes.left(), 10)
    assert warnings(caplog) == [
        "a process of the Ray cluster died while encoding 160x96 libx264 30; it is given out again"
    ]
    undisturbed = encoded(Local(1), source, tmp_path / "b.mp4", ffmpeg)
    assert made.path.read_bytes() == undisturbed.path.read_bytes()


@pytest.mark.slow
def test_an_encode_that_kills_its_worker_each_time_is_a_failed_one(
    nodes: Nodes, cluster: RayCluster, source: Source, tmp_path: Path
) -> None:
    killer = fake_ffmpeg(tmp_path / "ffmpeg", {ENCODES: "kill -9 $PPID; exec sleep 600"})
    with pytest.raises(EncodeFailed, match="3 processes died of it"):
        encoded(cluster, source, tmp_path / "a.mp4", killer)
    waited(lambda: not nodes.left(), 10)
    assert list(tmp_path.iterdir()) == [killer]


@pytest.mark.slow
def test_a_scoring_process_that_dies_is_made_anew(
    cluster: RayCluster, source: Source, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metric = open_metric("internvqa", ffmpeg=process.ffmpeg_path(), device="cpu")
    out = encoded(cluster, source, tmp_path / "a.mp4").path
    before = cluster.measure(metric, source, out, "pyav", "a")
    with cluster._scorers.taken("a") as handle:
        ray.kill(handle)
    with ThreadPoolExecutor(3) as pool:
        after = list(
            pool.map(lambda _: cluster.measure(metric, source, out, "pyav", "a"), range(3))
        )
    assert [score.value for score in after] == pytest.approx([before.value] * 3, abs=1e-3)
    assert len(warnings(caplog)) == 1 and "given out again" in warnings(caplog)[0]


@pytest.mark.slow
def test_a_node_lost_with_its_scoring_process_is_done_without(
    nodes: Nodes, source: Source, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metric = open_metric("internvqa", ffmpeg=process.ffmpeg_path(), device="cpu")
    out = encoded(Local(1), source, tmp_path / "a.mp4").path
    with (
        nodes.another(num_cpus=1) as node,
        RayCluster(nodes.address, workers=2) as cluster,
    ):
        cluster._scorers._homes["a"] = node.node_id, 0
        before = cluster.measure(metric, source, out, "pyav", "a")
        assert list(cluster._scorers._made) == [(node.node_id, 0)]
        nodes.cluster.remove_node(node, allow_graceful=False)
        after = cluster.measure(metric, source, out, "pyav", "a")
    assert after.value == before.value
    # Ray tells of the process at once, and of the node some seconds later
    assert ["given out again" in line for line in warnings(caplog)] == [True]


@pytest.mark.slow
def test_gpus_score_and_batch_what_comes_at_once(
    nodes: Nodes, source: Source, tmp_path: Path
) -> None:
    metric = open_metric("internvqa", ffmpeg=process.ffmpeg_path(), device="auto")
    made = [
        encoded(Local(1), source, tmp_path / f"{k}.mp4", knob=k).path for k in range(20, 44, 4)
    ]
    here = [metric.measure(source, path, "pyav").value for path in made]
    # a GPU in name only: what is looked at is where the scores are made, and how many at once
    with (
        nodes.another(num_cpus=1, num_gpus=1) as node,
        RayCluster(nodes.address, workers=2) as cluster,
    ):
        assert cluster.suited(metric).identity() == metric.identity()
        with ThreadPoolExecutor(len(made)) as pool:
            there = list(pool.map(lambda p: cluster.measure(metric, source, p, "pyav", p), made))
        places = list(cluster._scorers._made)
        assert places == [(node.node_id, 0)]
        assert ray.available_resources().get("GPU", 0) == 0
        with cluster._scorers.taken("a") as handle:
            assert 1 < ray.get(handle.most_at_once.remote()) <= len(made)
    assert [score.value for score in there] == pytest.approx(here, abs=1e-3)


def is_of(note: Path, raylet: int) -> bool:
    """Whether an encode runs on a node; its note is called by its number and has its worker's."""
    worker = note.read_text().strip()
    if not worker or not running(int(note.name)):
        return False
    with contextlib.suppress(OSError):
        parent = Path(f"/proc/{worker}/stat").read_text().rsplit(")", 1)[1].split()[1]
        return int(parent) == raylet
    return False


@pytest.mark.slow
def test_a_node_lost_in_the_middle_of_six_titles_changes_nothing(
    nodes: Nodes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    began = tmp_path / "began"
    began.mkdir()
    # slow enough that the node surely is at work when it goes
    ffmpeg = fake_ffmpeg(tmp_path / "ffmpeg", {ENCODES: f"echo $PPID > '{began}'/$$; sleep 0.4"})
    clips = [
        make_clip(tmp_path / f"{n}.y4m", size="160x96", frames=10 + n, vf=f"hue=h={40 * n}")
        for n in range(6)
    ]
    told: dict[str, Any] = {**TINY, "ffmpeg": ffmpeg}
    undisturbed = [
        build_ladder(path, out=tmp_path / f"here{n}", workers=Local(4), **told)
        for n, path in enumerate(clips)
    ]
    encodes = len(list(began.iterdir()))
    with (
        nodes.another(num_cpus=2) as node,
        RayCluster(nodes.address, workers=4) as cluster,
    ):
        jobs = [
            Job(build_ladder, path, out=tmp_path / f"there{n}", workers=cluster, **told)
            for n, path in enumerate(clips)
        ]
        waited(lambda: len(list(began.iterdir())) >= encodes * 4 // 3, 120)
        [raylet] = node.all_processes["raylet"]
        waited(lambda: any(is_of(path, raylet.process.pid) for path in began.iterdir()), 120)
        nodes.cluster.remove_node(node, allow_graceful=False)
        ladders = [job.result(240) for job in jobs]
    assert list(map(decided, ladders)) == list(map(decided, undisturbed))
    assert len(warnings(caplog)) == 1
    assert "left the Ray cluster; what it was doing is given out again" in warnings(caplog)[0]
    # only what the node was doing was done twice
    assert len(list(began.iterdir())) <= 2 * encodes + 2
    waited(lambda: not nodes.left(), 15)


@pytest.mark.slow
def test_the_command_speaks_of_nothing_but_the_answer_on_stdout(
    nodes: Nodes, clip: Path, tmp_path: Path
) -> None:
    note = tmp_path / "first"
    action = f"if mkdir '{note}' 2> /dev/null; then kill -9 $PPID; exec sleep 600; fi"
    ffmpeg = fake_ffmpeg(tmp_path / "ffmpeg", {ENCODES: action})
    words = "--codec h264 --metric psnr --preset ultrafast --rungs 2 --min-step 0.2 --no-cache"
    argv = [sys.executable, "-m", "vqaloop", "ladder", str(clip), *words.split()]
    argv += ["--min-ratio", "1.2", "--ray", nodes.address, "--ffmpeg", str(ffmpeg)]
    argv += ["--json", "-", "--quiet", "-o", "out"]
    with _environment(PYTHONPATH=REPOSITORY, TMPDIR=tempfile.mkdtemp(dir=tmp_path)):
        done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, timeout=240)
    assert done.returncode in (0, 3), done.stderr
    assert json.loads(done.stdout)["schema"] == "vqaloop.ladder/1"
    said = done.stderr.splitlines()
    assert len(said) == 1 and said[0].startswith("vqaloop: a process of the Ray cluster died")
