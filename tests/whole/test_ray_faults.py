"""Ladders over a Ray cluster of which a part dies: the same as of one that is whole."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support import rayclusters
from tests.support.commandline import fake_ffmpeg, running
from tests.support.media import REPOSITORY, make_clip, run_ffmpeg
from tests.support.rayclusters import (
    ENCODES,
    TINY,
    Nodes,
    NotedMetric,
    decided,
    encoded,
    environment,
    waited,
    warnings,
)
from vqaloop.cluster.ray_cluster import RayCluster
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.errors import Cancelled, DecodeFailed, EncodeFailed
from vqaloop.execution.executor import Local
from vqaloop.execution.job import Job
from vqaloop.ladder.build import build_ladder
from vqaloop.media.probe import probe_source
from vqaloop.quality.registry import open_metric
from vqaloop.records import Source

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'vqaloop[ray]'")

# fixtures
nodes, cluster = rayclusters.nodes, rayclusters.cluster
clip, source = rayclusters.clip, rayclusters.source


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
    metric = open_metric("internvqa", ffmpeg=ffmpeg_path(), device="cpu")
    out = encoded(cluster, source, tmp_path / "a.mp4").path
    before = cluster.measure(metric, source, out, "pyav", "a")
    with cluster._scorers.taken("a") as visit:
        ray.kill(visit.handle)
    with ThreadPoolExecutor(3) as pool:
        after = list(
            pool.map(lambda _: cluster.measure(metric, source, out, "pyav", "a"), range(3))
        )
    assert [score.value for score in after] == pytest.approx([before.value] * 3, abs=1e-3)
    assert len(warnings(caplog)) == 1 and "given out again" in warnings(caplog)[0]


@pytest.mark.slow
def test_a_score_that_kills_its_process_fails_alone(
    nodes: Nodes, source: Source, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun = tmp_path / "begun"
    begun.mkdir()
    metrics = [NotedMetric(f"m{n}", str(begun), 7, kills=n == 3) for n in range(7)]
    with RayCluster(nodes.address, workers=7) as cluster, ThreadPoolExecutor(7) as pool:
        jobs = [
            pool.submit(cluster.measure, metric, source, source.path, "pyav", "a")
            for metric in metrics
        ]
        with pytest.raises(DecodeFailed, match="3 processes died of it"):
            jobs.pop(3).result(120)
        assert [job.result(120).metric for job in jobs] == ["m0", "m1", "m2", "m4", "m5", "m6"]
    # with the others, then three times alone; of those, each but once more
    times = [len(list(begun.glob(f"{metric.name} *"))) for metric in metrics]
    assert times == [2, 2, 2, 4, 2, 2, 2]
    assert len(warnings(caplog)) == 4


@pytest.mark.slow
def test_a_node_lost_with_its_scoring_process_is_done_without(
    nodes: Nodes, source: Source, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metric = open_metric("internvqa", ffmpeg=ffmpeg_path(), device="cpu")
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
@pytest.mark.parametrize("per_shot", [False, True])
def test_a_node_lost_in_the_middle_of_six_titles_changes_nothing(
    nodes: Nodes, tmp_path: Path, caplog: pytest.LogCaptureFixture, per_shot: bool
) -> None:
    """Or of one whose scenes are the units of work."""
    began = tmp_path / "began"
    began.mkdir()
    # held up so that the node surely is at work when it goes
    hold, held = tmp_path / "hold", tmp_path / "held"
    held.mkdir()
    wait = f"while [ -e '{hold}' ]; do echo $PPID > '{held}'/$$; sleep 0.1; done"
    action = f"echo > '{began}'/$$; {wait}; sleep 0.2"
    ffmpeg = fake_ffmpeg(tmp_path / "ffmpeg", {ENCODES: action})
    clips = [shots(tmp_path / "shots.mkv")] if per_shot else six_clips(tmp_path)
    told: dict[str, Any] = {**TINY, "ffmpeg": ffmpeg}
    if per_shot:
        told |= {"per_shot": True, "no_cap": True, "rungs": 3}
    undisturbed = [
        build_ladder(path, out=tmp_path / f"here{n}", workers=Local(4), **told)
        for n, path in enumerate(clips)
    ]
    assert per_shot == all(rung.scenes for made in undisturbed for rung in made.rungs)
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
        hold.touch()
        [raylet] = node.all_processes["raylet"]
        waited(lambda: any(is_of(path, raylet.process.pid) for path in held.iterdir()), 120)
        at_work = [path for path in held.iterdir() if is_of(path, raylet.process.pid)]
        nodes.cluster.remove_node(node, allow_graceful=False)
        # a worker outlives its node by a moment, in which it could still answer
        waited(lambda: not any(running(int(path.name)) for path in at_work), 60)
        hold.unlink()
        ladders = [job.result(240) for job in jobs]
    assert list(map(decided, ladders)) == list(map(decided, undisturbed))
    assert len(warnings(caplog)) == 1
    assert "left the Ray cluster; what it was doing is given out again" in warnings(caplog)[0]
    # only what the node was doing was done twice
    assert len(list(began.iterdir())) <= 2 * encodes + 2
    waited(lambda: not nodes.left(), 15)


def six_clips(folder: Path) -> list[Path]:
    return [
        make_clip(folder / f"{n}.y4m", size="160x96", frames=10 + n, vf=f"hue=h={40 * n}")
        for n in range(6)
    ]


def shots(path: Path) -> Path:
    """Eight scenes that are unlike their neighbours, of 12 frames each."""
    form = "s=160x96:r=25"
    kinds = (f"testsrc2={form}", f"mandelbrot={form}", f"smptebars={form}", f"life={form}")
    parts = [
        f"{kinds[n % 4]},trim=end_frame=12,setpts=PTS-STARTPTS,hue=h={90 * (n // 4)},"
        f"format=yuv420p[s{n}]"
        for n in range(8)
    ]
    joined = "".join(f"[s{n}]" for n in range(8)) + "concat=n=8"
    run_ffmpeg("-filter_complex", ";".join([*parts, joined]), "-c:v", "ffv1", file_url(path))
    return path


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
    with environment(PYTHONPATH=REPOSITORY, TMPDIR=tempfile.mkdtemp(dir=tmp_path)):
        done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, timeout=240)
    assert done.returncode in (0, 3), done.stderr
    assert json.loads(done.stdout)["schema"] == "vqaloop.ladder/1"
    said = done.stderr.splitlines()
    assert len(said) == 1 and said[0].startswith("vqaloop: a process of the Ray cluster died")
