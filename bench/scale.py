"""Scaling of a catalogue: simulation of 1,000 titles on 1 to 512 workers from measured times.

    python -m bench.scale record CLIPS --codec h264 --out bench/scale-tasks.json
    python -m bench.rayoverhead > bench/rayoverhead.json
    python -m bench.scale drive
    python -m bench.scale run bench/scale-tasks.json bench/rayoverhead.json --csv bench/scale.csv

`record` builds ladders with one worker and one processor an encoder, and records the duration of
each encode, score and guard, which of them could have run at the same time, and the CPU time of
the search in between, and of the reports after. `drive` makes a small catalogue on a real Ray
cluster of two nodes (of this machine's processes), searched by the driver itself and by processes
on the nodes, and measures what either takes of the driver. `run` replays what was recorded in a
discrete-event simulation: titles drawn from those, a bounded number open at a time as
`build_catalogue` has it, workers that take tasks first come first served, and searches whose
Python is sequential: the computing between batches, and Ray's overhead for every task, measured by
bench.rayoverhead. They run in the driver (`searched: driver`), or in a process for every
WORKERS_EACH workers, with the driver's own time for every title on top (`nodes`). Efficiency is
the workers' useful time over all their time.
"""

import argparse
import functools
import heapq
import importlib
import itertools
import json
import math
import os
import random
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

import vqaloop
from vqaloop.catalogue.build import build_catalogue
from vqaloop.catalogue.title import MOST_OPEN
from vqaloop.cluster import shares
from vqaloop.cluster.ray_cluster import RayCluster
from vqaloop.cluster.shares import WORKERS_EACH
from vqaloop.execution.executor import Local
from vqaloop.execution.workshop import Workshop
from vqaloop.media.sample import write_sample
from vqaloop.records import Event
from vqaloop.search.shared_study import SharedStudy

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TITLE_S = 0.02
"""Assumed; see --title-s."""


class Recorder(Local):
    """One worker on one processor that records its tasks."""

    def __init__(self) -> None:
        super().__init__(1, processors=1)
        self.steps: list[dict[str, Any]] = []
        self._mark = self._spent()
        self._depth = 0

    @staticmethod
    def _spent() -> tuple[float, float]:
        """CPU seconds of this process, and of the programs that it has run: on a machine that
        does other things as well, wall time is not what a search takes."""
        times = os.times()
        return time.process_time(), times.children_user + times.children_system

    def begin(self) -> None:
        """Tasks from here on could run at the same time."""
        self._depth += 1
        if self._depth == 1:
            own, programs = (
                now - then for now, then in zip(self._spent(), self._mark, strict=True)
            )
            self.steps.append({"driver_s": own + programs, "driver_cpu_s": own, "chains": []})

    def end(self) -> None:
        self._depth -= 1
        if not self._depth:
            self._mark = self._spent()

    def _timed(self, kind: str, work: Callable[..., Any], *args: Any, **more: Any) -> Any:
        alone = self._depth == 0
        if alone:
            self.begin()
        try:
            made = work(*args, **more)
            # on one processor the CPU time is the wall time, whatever else the machine does
            spent = [made] if hasattr(made, "cpu_s") else made.values()
            chains = self.steps[-1]["chains"]
            # a score follows its encode; all else stands alone
            if kind != "measure" or not chains or chains[-1][-1][0] != "encode":
                chains.append([])
            chains[-1].append((kind, round(sum(each.cpu_s for each in spent), 4)))
            return made
        finally:
            if alone:
                self.end()

    def encode(self, *args: Any, **more: Any) -> Any:
        return self._timed("encode", super().encode, *args, **more)

    def measure(self, *args: Any, **more: Any) -> Any:
        return self._timed("measure", super().measure, *args, **more)

    def guard(self, *args: Any, **more: Any) -> Any:
        return self._timed("guard", super().guard, *args, **more)


def record(clip: Path, codec: str, preset: str | None) -> dict[str, Any]:
    """One ladder of a clip, without cache or prior: its steps and their durations."""
    recorder = Recorder()
    settle, spread = SharedStudy.settle, Workshop.map

    def marked(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **more: Any) -> Any:
            recorder.begin()
            try:
                return function(*args, **more)
            finally:
                recorder.end()

        return wrapper

    SharedStudy.settle, Workshop.map = marked(settle), marked(spread)  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            vqaloop.build_ladder(
                clip, codec=codec, preset=preset, out=Path(folder) / "out", cache=False,
                workers=recorder, prior=False,
            )  # fmt: skip
            # the files and reports that follow the last task are the search's work as well
            recorder.begin()
    finally:
        SharedStudy.settle, Workshop.map = settle, spread  # type: ignore[method-assign]
    return {"title": clip.stem, "codec": codec, "steps": recorder.steps}


@dataclass
class Costs:
    """What is not useful work, in seconds."""

    task_s: float
    """Of a searching process's Python for each task."""
    latency_s: float
    """That a task takes beyond its own work, its worker held."""
    waiting_s: float
    """Of its Python that a thread which waits for a task takes every second."""
    title_s: float
    """Of the driver's Python for each title that another process searches."""


@dataclass
class Searcher:
    """A process that searches, and its workers."""

    workers: int
    idle: int
    busy_s: float = 0.0
    share_s: float = 0.0
    """Seconds of Python that each of those that compute at a time was given so far: threads take
    turns of some milliseconds."""
    at: float = 0.0
    """The time of that."""
    computing: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    """By the share at which each is done."""
    turn: int = 0
    """How often it was looked at when the next is done."""
    queue: "deque[tuple[float, Callable[[], None]]]" = field(default_factory=deque)


@dataclass
class Simulation:
    """Events in time; processes that search, each with its workers; titles opened in turn."""

    traces: list[dict[str, Any]]
    workers: int
    titles: int
    costs: Costs
    apart: bool
    """Whether searches are in processes of their own and not in the driver."""
    most_open: int = MOST_OPEN
    now: float = 0.0
    driver_free: float = 0.0
    driver_busy_s: float = 0.0
    useful_s: float = 0.0
    tasks: int = 0
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _order: "itertools.count[int]" = field(default_factory=itertools.count)

    def run(self) -> float:
        """Seconds until the last title is done."""
        chosen = random.Random(0).choices(self.traces, k=self.titles)
        count = math.ceil(self.workers / WORKERS_EACH) if self.apart else 1
        own = [self.workers * (n + 1) // count - self.workers * n // count for n in range(count)]
        self.searchers, self.waiting = [Searcher(n, n) for n in own], iter(chosen)
        for searcher in self.searchers:
            most = (
                max(2, searcher.workers // 2)
                if count > 1
                else min(MOST_OPEN, 2 * searcher.workers)
            )
            for _ in range(min(self.most_open, most)):
                self._open(searcher)
        while self._events:
            self.now, _, then = heapq.heappop(self._events)
            then()
        if count == 1:
            self.driver_busy_s = self.searchers[0].busy_s
        return self.now

    def _at(self, when: float, then: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), then))

    def _compute(
        self, by: Searcher, cpu_s: float, then: Callable[[], None], wait_s: float = 0.0
    ) -> None:
        """Take so much of a process's Python, then wait for its programs."""
        # what waits takes its share of every second
        cpu_s /= max(0.05, 1 - self.costs.waiting_s * (by.workers - by.idle))
        by.busy_s += cpu_s
        self._shared(by)
        ended: Callable[[], None] = functools.partial(self._at_after, wait_s, then)
        heapq.heappush(by.computing, (by.share_s + cpu_s, next(self._order), ended))
        self._look(by)

    def _at_after(self, wait_s: float, then: Callable[[], None]) -> None:
        self._at(self.now + wait_s, then)

    def _shared(self, by: Searcher) -> None:
        """Give what time has passed to those that compute."""
        if by.computing:
            by.share_s += (self.now - by.at) / len(by.computing)
        by.at = self.now

    def _look(self, by: Searcher) -> None:
        """Look again when the next is done, unless others have begun or ended by then."""
        if by.computing:
            left = (by.computing[0][0] - by.share_s) * len(by.computing)
            by.turn += 1
            self._at(self.now + max(0.0, left), functools.partial(self._done, by, by.turn))

    def _done(self, by: Searcher, turn: int) -> None:
        if turn == by.turn:
            self._shared(by)
            _, _, then = heapq.heappop(by.computing)
            then()
            self._look(by)

    def _open(self, by: Searcher) -> None:
        trace = next(self.waiting, None)
        if trace is None:
            return
        if len(self.searchers) > 1:
            self.driver_free = max(self.now, self.driver_free) + self.costs.title_s
            self.driver_busy_s += self.costs.title_s
        self._at(max(self.now, self.driver_free), lambda: self._step(by, trace["steps"], 0))

    def _step(self, by: Searcher, steps: list[dict[str, Any]], number: int) -> None:
        if number == len(steps):
            self._open(by)
            return
        step = steps[number]
        left = len(step["chains"])

        def ended() -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                self._step(by, steps, number + 1)

        def begin() -> None:
            for chain in step["chains"]:
                self._chain(by, chain, 0, ended)
            if not step["chains"]:
                ended()

        cpu = step["driver_cpu_s"]
        self._compute(by, cpu, begin, step["driver_s"] - cpu)

    def _chain(
        self, by: Searcher, chain: list[Any], number: int, ended: Callable[[], None]
    ) -> None:
        if number == len(chain):
            ended()
            return

        def queue() -> None:
            then = functools.partial(self._chain, by, chain, number + 1, ended)
            by.queue.append((chain[number][1], then))
            self._serve(by)

        self._compute(by, self.costs.task_s, queue)

    def _serve(self, by: Searcher) -> None:
        while by.idle and by.queue:
            seconds, then = by.queue.popleft()
            by.idle -= 1
            self.useful_s += seconds
            self.tasks += 1

            def done(then: Callable[[], None] = then) -> None:
                by.idle += 1
                then()
                self._serve(by)

            self._at(self.now + seconds + self.costs.latency_s, done)


def table(traces: list[dict[str, Any]], titles: int, costs: Costs, most_open: int) -> pd.DataFrame:
    rows = []
    for workers, apart in itertools.product(WORKERS, (False, True)):
        if apart and workers <= shares.WORKERS_ALONE:
            continue
        sim = Simulation(traces, workers, titles, costs, apart, most_open=most_open)
        wall = sim.run()
        rows.append(
            {
                "workers": workers,
                "searched": "nodes" if apart else "driver",
                "hours": wall / 3600,
                "efficiency": sim.useful_s / (workers * wall),
                "driver_busy": sim.driver_busy_s / wall,
                "searcher_busy": max(each.busy_s for each in sim.searchers) / wall,
                "tasks_per_s": sim.tasks / wall,
            }
        )
    return pd.DataFrame(rows)


# --- on a real cluster --------------------------------------------------------------------------


def drive(titles: int, processors: int) -> list[dict[str, Any]]:
    """The driver's CPU time for a catalogue on two nodes, searched by itself and by the nodes.

    Titles are short and small, so that what is measured is not the encoders.
    """
    cluster_utils: Any = importlib.import_module("ray.cluster_utils")
    with tempfile.TemporaryDirectory(prefix="vq") as folder:
        place = Path(folder)
        clips = [place / f"{n}.y4m" for n in range(titles)]
        for n, clip in enumerate(clips):
            write_sample(clip, seconds=0.5, size=(128, 72), fps=25, seed=n)
        head = {"num_cpus": processors, "include_dashboard": False}
        nodes = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
        try:
            nodes.add_node(num_cpus=processors)
            with RayCluster(nodes.address) as cluster:
                # at first for the start of the workers
                _driven(clips[:1], place / "out", cluster, 2 * processors)
                return [
                    _driven(clips, place / "out", cluster, each)
                    for each in (2 * processors, processors)
                ]
        finally:
            nodes.shutdown()


def _driven(clips: list[Path], out: Path, cluster: RayCluster, each: int) -> dict[str, Any]:
    """A catalogue with a process for `each` workers; one for all is the driver itself."""
    shares.WORKERS_EACH = shares.WORKERS_ALONE = each
    events: list[Event] = []
    started, cpu = time.monotonic(), time.process_time()
    made = build_catalogue(
        clips, codec="h264", metric="psnr", preset="ultrafast", guard="off", out=out,
        workers=cluster, progress=events.append, cache=False, prior=False,
    )  # fmt: skip
    cpu_s = time.process_time() - cpu
    if made.of_status("failed"):
        raise SystemExit(f"no figures: {made.of_status('failed')[0].reason}")
    encodes = made.cost()["encodes"]
    shutil.rmtree(out)
    return {
        "workers": cluster.workers,
        "searched": "driver" if each >= cluster.workers else "nodes",
        "titles": len(clips),
        "encodes": encodes,
        "events": len(events),
        "wall_s": time.monotonic() - started,
        "driver_cpu_s": cpu_s,
        "driver_cpu_s_a_title": cpu_s / len(clips),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.scale")
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("folder", type=Path, help="of clips, with MANIFEST.csv")
    recording.add_argument("--codec", default="h264")
    recording.add_argument("--preset")
    recording.add_argument("--titles", type=int, default=6)
    recording.add_argument("--out", type=Path, required=True)
    running = commands.add_parser("run")
    running.add_argument("tasks", type=Path, help="as record wrote them")
    running.add_argument("overhead", type=Path, help="as bench.rayoverhead wrote it")
    running.add_argument(
        "--title-s",
        type=float,
        default=TITLE_S,
        help="CPU seconds of the driver for a title that a node searches, as drive measures them",
    )
    running.add_argument("--titles", type=int, default=1000)
    running.add_argument("--most-open", type=int, default=MOST_OPEN)
    running.add_argument(
        "--longer", type=float, default=1.0, help="as if tasks took times as long"
    )
    running.add_argument("--csv", type=Path)
    driving = commands.add_parser("drive")
    driving.add_argument("--titles", type=int, default=8)
    driving.add_argument("--processors", type=int, default=4, help="of each of the two nodes")
    options = parser.parse_args()
    if options.command == "drive":
        print(json.dumps(drive(options.titles, options.processors), indent=1))
        return
    if options.command == "record":
        clips = pd.read_csv(options.folder / "MANIFEST.csv")
        clips = clips[(clips["fps"] <= 30) & ~clips["file"].str.contains("hlg")]
        films = clips.drop_duplicates("group")["file"].tolist()
        traces = []
        for name in random.Random(0).sample(films, options.titles + 1):
            traces.append(record(options.folder / name, options.codec, options.preset))
            print(name, file=sys.stderr)
        # the first pays for the imports of all
        options.out.write_text(json.dumps(traces[1:]))
        return
    traces = json.loads(options.tasks.read_text())
    for step in (step for trace in traces for step in trace["steps"]):
        step["chains"] = [[(k, s * options.longer) for k, s in chain] for chain in step["chains"]]
    ray = json.loads(options.overhead.read_text())
    costs = Costs(ray["driver_cpu_s"], ray["latency_s"], ray["waiting_cpu_s"], options.title_s)
    found = table(traces, options.titles, costs, options.most_open)
    print(found.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    if options.csv:
        found.to_csv(options.csv, index=False, float_format="%.5g")


if __name__ == "__main__":
    main()
