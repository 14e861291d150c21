"""Ladders over a Ray cluster: the same as on one machine."""

import contextlib
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support import rayclusters
from tests.support.commandline import FAILURES, fake_ffmpeg
from tests.support.media import make_clip
from tests.support.rayclusters import ENCODES, TINY, Nodes, decided, encoded
from vqaloop.cluster import connection
from vqaloop.cluster.parity import Tools
from vqaloop.cluster.ray_cluster import RayCluster
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.core.files import file_sha256
from vqaloop.errors import DecodeFailed, EncodeFailed, InputError, ToolError
from vqaloop.execution.executor import Local
from vqaloop.ladder.build import build_ladder
from vqaloop.media.probe import probe_source
from vqaloop.quality.registry import open_metric
from vqaloop.records import Rendition, Source

# fixtures
nodes, cluster = rayclusters.nodes, rayclusters.cluster
clip, source = rayclusters.clip, rayclusters.source


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'vqaloop\[ray\]'"):
        RayCluster("auto")


ray = pytest.importorskip("ray", reason="needs Ray: pip install 'vqaloop[ray]'")


@pytest.mark.parametrize("address", ["nonsense", "host", "a:b:1", "127.0.0.1:99999", "-x:1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="auto, local, HOST:PORT|does not answer"):
        RayCluster(address)


@pytest.mark.parametrize("prefix", ["", "ray://"])
@pytest.mark.parametrize("answer", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_an_address_without_a_cluster_is_refused_in_time(
    answer: bytes | None, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "ANSWER_S", 0.5)
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
@pytest.mark.parametrize("name", ["internvqa", "vmaf-sampled"])
def test_a_sampling_metric_scores_as_it_does_here(
    name: str, cluster: RayCluster, source: Source, tmp_path: Path
) -> None:
    metric = open_metric(name, ffmpeg=ffmpeg_path(), device="cpu", seed=3)
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
    monkeypatch.setattr("vqaloop.cluster.file_transfer.CHUNK_BYTES", 100_000)
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
    name = f"{file_sha256(own)}.y4m"
    assert (nodes.cache / "sources" / name).read_bytes() == own.read_bytes()
    # what was put was all that was needed: the file itself may go
    source = probe_source(own, ffmpeg=ffmpeg_path())
    here = build_ladder(own, out=tmp_path / "here", workers=Local(2), **TINY)
    assert decided(there) == decided(here)
    out = encoded(cluster, source, tmp_path / "x.mp4").path
    metric = open_metric("psnr", ffmpeg=ffmpeg_path())
    assert cluster.measure(metric, source, out, "pyav", 1).value > 20
    assert not nodes.left()


@pytest.mark.slow
def test_a_large_encode_comes_in_chunks(
    cluster: RayCluster, source: Source, tmp_path: Path
) -> None:
    from vqaloop.cluster.file_transfer import CHUNK_BYTES

    title = make_clip(tmp_path / "big.mkv", size="1280x720", frames=60, vf="noise=alls=100:allf=t")
    big = probe_source(title, ffmpeg=ffmpeg_path())
    asked = Rendition(1280, 720, "libx264", 1, "ultrafast")
    told: Any = dict(ffmpeg=ffmpeg_path(), timeout_s=None, whose=1)
    there = cluster.encode(big, asked, tmp_path / "there.mp4", **told)
    here = Local(1).encode(big, asked, tmp_path / "here.mp4", **told)
    assert here.size_bytes > CHUNK_BYTES
    assert here.path.read_bytes() == there.path.read_bytes()


@pytest.mark.slow
def test_another_ffmpeg_on_a_node_is_refused(
    cluster: RayCluster, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(path: str, sha256: str) -> Tools:
        return Tools("/where/no/node/has/one/ffmpeg", sha256)

    monkeypatch.setattr("vqaloop.cluster.ray_cluster.Tools", elsewhere)
    # the node's own is the same, so that its path does not matter
    assert encoded(cluster, source, tmp_path / "a.mp4").size_bytes
    other = fake_ffmpeg(tmp_path / "ffmpeg", {})
    with pytest.raises(ToolError, match=rf"node {socket.gethostname()} .*another ffmpeg") as error:
        encoded(cluster, source, tmp_path / "b.mp4", other)
    assert "VQALOOP_FFMPEG" in str(error.value) and not (tmp_path / "b.mp4").exists()


@pytest.mark.slow
def test_another_encoder_library_on_a_node_is_refused(
    cluster: RayCluster, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "vqaloop.cluster.parity.encoder_version", lambda spec, ffmpeg: "libx264 core 1"
    )
    refusal = rf"node {socket.gethostname()} .*has libx264 .* and this machine libx264 core 1"
    with pytest.raises(ToolError, match=refusal):
        encoded(cluster, source, tmp_path / "a.mp4")
    assert not (tmp_path / "a.mp4").exists()


@pytest.mark.slow
def test_another_vqaloop_on_a_node_is_refused(
    cluster: RayCluster, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "vqaloop.cluster.ray_cluster.Tools", lambda path, sha256: Tools(path, sha256, "9.9")
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
    metric = open_metric("psnr", ffmpeg=ffmpeg_path())
    with pytest.raises(DecodeFailed, match="a.mp4"):
        cluster.measure(metric, source, out, "pyav", 1)
    with pytest.raises(InputError, match="cannot read"):
        encoded(cluster, replace(source, path=tmp_path / "gone.y4m"), out)
    with pytest.raises(InputError, match="cannot write in the folder"):
        encoded(cluster, source, tmp_path / "nowhere" / "a.mp4")
    assert not nodes.left()


@pytest.mark.slow
def test_gpus_score_and_batch_what_comes_at_once(
    nodes: Nodes, source: Source, tmp_path: Path
) -> None:
    metric = open_metric("internvqa", ffmpeg=ffmpeg_path(), device="auto")
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
        with cluster._scorers.taken("a") as visit:
            ray.kill(visit.handle)
        # which must not be the end of a command that has just begun
        assert cluster.suited(metric).identity() == metric.identity()
        with ThreadPoolExecutor(len(made)) as pool:
            there = list(pool.map(lambda p: cluster.measure(metric, source, p, "pyav", p), made))
        places = list(cluster._scorers._made)
        assert places == [(node.node_id, 0)]
        assert ray.available_resources().get("GPU", 0) == 0
    assert [score.value for score in there] == pytest.approx(here, abs=1e-3)
