"""Overhead of Ray and of vqaloop's tasks: latency and the driver's CPU time of empty tasks.

    python -m bench.rayoverhead [--tasks 300] [--processors 2] > bench/rayoverhead.json

A task has the arguments of an encode (source, rendition, files, ffmpeg), and the worker does all
its checks before an encode: whether file and ffmpeg are the driver's. Figures are for a cluster of
this one machine, whose processors driver, head and workers share; `head` is Ray's own two
programs. In the JSON:

- driver_cpu_s, latency_s: CPU of the driver and wall time of one task, one after another.
- empty: the same of a bare Ray task without arguments.
- waiting_cpu_s: the driver's CPU per second and thread that waits for a task.
- threads: tasks per second, and CPU a task, with 1 to N threads that wait at the same time.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from vqaloop.cluster import worker
from vqaloop.cluster.connection import connect, import_ray
from vqaloop.cluster.ray_cluster import RayCluster
from vqaloop.cluster.worker import Answer, Order
from vqaloop.core import scopes
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.media.probe import probe_source
from vqaloop.media.sample import write_sample
from vqaloop.records import Rendition, Source

THREADS = (1, 2, 4, 8, 16, 32, 64, 128)
WAIT_S = 4.0
"""Seconds for which waiting threads are watched."""


@contextmanager
def spent(into: dict[str, float], count: int) -> Iterator[None]:
    """Wall seconds and CPU seconds of driver and head, each divided by `count`."""
    wall, driver, head = time.perf_counter(), time.process_time(), _head_cpu_s()
    yield
    into["wall_s"] = (time.perf_counter() - wall) / count
    into["driver_cpu_s"] = (time.process_time() - driver) / count
    into["head_cpu_s"] = (_head_cpu_s() - head) / count


def _head_cpu_s() -> float:
    """CPU seconds of the head's programs, which this process started."""
    ticks = 0
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            name, _, rest = (entry / "stat").read_text().rpartition(")")
            words = rest.split()
            if int(words[1]) == os.getpid() and name.endswith(("(gcs_server", "(raylet")):
                ticks += int(words[11]) + int(words[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(tasks: int, processors: int) -> dict[str, Any]:
    """All figures, as the module's docstring lists them."""
    ray = import_ray()
    started = time.perf_counter()
    connect("local", processors)
    found: dict[str, Any] = {
        "ray": ray.__version__,
        "processors": processors,
        "connect_s": time.perf_counter() - started,
    }
    with tempfile.TemporaryDirectory() as folder:
        try:
            _measure(found, tasks, Path(folder))
        finally:
            ray.shutdown()
    return found


def _measure(found: dict[str, Any], tasks: int, folder: Path) -> None:
    ray, ffmpeg = import_ray(), ffmpeg_path()
    source = probe_source(
        write_sample(folder / "a.y4m", seconds=1, size=(160, 90), fps=25, seed=0), ffmpeg=ffmpeg
    )
    asked = Rendition(160, 90, "libx264", 30, "veryfast")

    def orders(cluster: RayCluster, threads: int, each: int) -> None:
        def some(_: int) -> None:
            for _ in range(each):
                _order_nothing(cluster, source, asked, ffmpeg)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(some, range(threads)))

    empty = ray.remote(_nothing)
    found["empty"] = _watched(lambda: [ray.get(empty.remote()) for _ in range(tasks)], tasks)
    with RayCluster("local", workers=max(THREADS)) as cluster:
        cluster._task = ray.remote(_carry_out).options(num_cpus=1, max_retries=0)
        orders(cluster, 8, 4)  # the workers start, and hash the files
        one = _watched(lambda: orders(cluster, 1, tasks), tasks)
        found |= {"driver_cpu_s": one["driver_cpu_s"], "latency_s": one["wall_s"]}
        found["waiting_cpu_s"] = _waiting_cpu_s(max(THREADS))
        found["threads"] = []
        for threads in THREADS:
            each = max(1, tasks // threads)
            costs = _watched(partial(orders, cluster, threads, each), threads * each)
            row: dict[str, float] = {
                "threads": threads,
                "orders_per_s": 1 / costs.pop("wall_s"),
                **costs,
            }
            found["threads"].append(row)
            print(json.dumps(row), file=sys.stderr)


def _nothing() -> None:
    pass


def _order_nothing(cluster: RayCluster, source: Source, asked: Rendition, ffmpeg: str) -> None:
    """An order as `RayCluster.encode` gives it, of which nothing is made."""
    facts = {"source": source, "rendition": asked, "suffix": ".mp4", "timeout_s": None}
    parcels = {"source": cluster._sender.parcel(source.path)}
    order = cluster._order("nothing", ffmpeg, parcels, facts)
    with cluster._turns.taken(None):
        cluster._result(order, "doing nothing", lambda made: None)


def _carry_out(order: Order) -> Answer:
    """On a worker: all that goes before an encode."""
    worker.WORK["nothing"] = lambda order, files, ffmpeg: None
    return worker.carry_out(order)


def _watched(work: Callable[[], object], count: int) -> dict[str, float]:
    work()
    into: dict[str, float] = {}
    with spent(into, count):
        work()
    return into


def _waiting_cpu_s(threads: int) -> float:
    """CPU seconds a second of a thread that waits as those of a RayCluster do."""
    from vqaloop.execution.executor import POLL_S

    over = threading.Event()

    def wait() -> None:
        done = threading.Event()
        while not over.is_set() and not done.wait(POLL_S):
            scopes.check_cancelled()

    waiting = [threading.Thread(target=wait) for _ in range(threads)]
    for thread in waiting:
        thread.start()
    before = time.process_time()
    time.sleep(WAIT_S)
    cpu = time.process_time() - before
    over.set()
    for thread in waiting:
        thread.join()
    return cpu / WAIT_S / threads


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.rayoverhead")
    parser.add_argument("--tasks", type=int, default=300)
    parser.add_argument("--processors", type=int, default=2)
    options = parser.parse_args()
    print(json.dumps(measure(options.tasks, options.processors), indent=1))


if __name__ == "__main__":
    main()
