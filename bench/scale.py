"""Scaling of a catalogue: simulation of 1,000 titles on 1 to 512 workers from measured times.

    python -m bench.scale record CLIPS --codec h264 --out bench/scale-tasks.json
    python -m bench.rayoverhead > bench/rayoverhead.json
    python -m bench.scale run bench/scale-tasks.json bench/rayoverhead.json --csv bench/scale.csv

`record` builds ladders with one worker and one processor an encoder, and records the duration of
each encode, score and guard, which of them could have run at the same time, and the driver's time
in between. `run` replays that in a discrete-event simulation: titles drawn from those recorded, a
bounded number open at a time as `build_catalogue` has it, workers that take tasks first come first
served, and one driver whose Python is sequential: the search between batches, and Ray's overhead
for every task, measured by bench.rayoverhead. Efficiency is the workers' useful time over all
their time.
"""

import argparse
import heapq
import itertools
import json
import random
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
from vqaloop.catalogue.build import MOST_OPEN
from vqaloop.execution.executor import Local
from vqaloop.execution.workshop import Workshop
from vqaloop.search.shared_study import SharedStudy

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
OPEN_A_WORKER = 2
"""Titles open at a time for every worker, up to MOST_OPEN, as build_catalogue has it."""


class Recorder(Local):
    """One worker on one processor that records its tasks."""

    def __init__(self) -> None:
        super().__init__(1, processors=1)
        self.steps: list[dict[str, Any]] = []
        self._mark = time.monotonic(), time.process_time()
        self._depth = 0

    def begin(self) -> None:
        """Tasks from here on could run at the same time."""
        self._depth += 1
        if self._depth == 1:
            wall, cpu = time.monotonic() - self._mark[0], time.process_time() - self._mark[1]
            self.steps.append({"driver_s": wall, "driver_cpu_s": min(cpu, wall), "chains": []})

    def end(self) -> None:
        self._depth -= 1
        if not self._depth:
            self._mark = time.monotonic(), time.process_time()

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
    finally:
        SharedStudy.settle, Workshop.map = settle, spread  # type: ignore[method-assign]
    return {"title": clip.stem, "codec": codec, "steps": recorder.steps}


@dataclass
class Simulation:
    """Events in time; one driver, several workers, titles that are opened in turn."""

    traces: list[dict[str, Any]]
    workers: int
    titles: int
    submit_s: float
    """Seconds of the driver's Python for each task."""
    latency_s: float
    """Seconds that a task takes beyond its own work, its worker held."""
    waiting_s: float
    """Seconds of the driver's Python that a thread which waits for a task takes every second."""
    most_open: int = MOST_OPEN
    now: float = 0.0
    driver_free: float = 0.0
    driver_busy_s: float = 0.0
    useful_s: float = 0.0
    tasks: int = 0
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _order: "itertools.count[int]" = field(default_factory=itertools.count)
    _queue: "deque[tuple[float, Callable[[], None]]]" = field(default_factory=deque)

    def run(self) -> float:
        """Seconds until the last title is done."""
        chosen = random.Random(0).choices(self.traces, k=self.titles)
        self.idle, self.waiting = self.workers, iter(chosen)
        most = min(self.most_open, OPEN_A_WORKER * self.workers if self.workers > 1 else 1)
        for _ in range(most):
            self._open()
        while self._events:
            self.now, _, then = heapq.heappop(self._events)
            then()
        return self.now

    def _at(self, when: float, then: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), then))

    def _drive(self, cpu_s: float, then: Callable[[], None], wait_s: float = 0.0) -> None:
        """Hold the driver's Python for a time, then wait for its programs."""
        # what waits takes its share of every second
        cpu_s /= max(0.05, 1 - self.waiting_s * (self.workers - self.idle))
        self.driver_free = max(self.now, self.driver_free) + cpu_s
        self.driver_busy_s += cpu_s
        self._at(self.driver_free + wait_s, then)

    def _open(self) -> None:
        trace = next(self.waiting, None)
        if trace is not None:
            self._step(trace["steps"], 0)

    def _step(self, steps: list[dict[str, Any]], number: int) -> None:
        if number == len(steps):
            self._open()
            return
        step = steps[number]
        left = len(step["chains"])

        def ended() -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                self._step(steps, number + 1)

        def begin() -> None:
            for chain in step["chains"]:
                self._chain(chain, 0, ended)
            if not step["chains"]:
                ended()

        cpu = step["driver_cpu_s"]
        self._drive(cpu, begin, step["driver_s"] - cpu)

    def _chain(self, chain: list[Any], number: int, ended: Callable[[], None]) -> None:
        if number == len(chain):
            ended()
            return

        def queue() -> None:
            self._queue.append((chain[number][1], lambda: self._chain(chain, number + 1, ended)))
            self._serve()

        self._drive(self.submit_s, queue)

    def _serve(self) -> None:
        while self.idle and self._queue:
            seconds, then = self._queue.popleft()
            self.idle -= 1
            self.useful_s += seconds
            self.tasks += 1

            def done(then: Callable[[], None] = then) -> None:
                self.idle += 1
                then()
                self._serve()

            self._at(self.now + seconds + self.latency_s, done)


def table(
    traces: list[dict[str, Any]], titles: int, costs: dict[str, float], most_open: int
) -> pd.DataFrame:
    rows = []
    for workers in WORKERS:
        measured = costs["driver_cpu_s"], costs["latency_s"], costs["waiting_cpu_s"]
        sim = Simulation(traces, workers, titles, *measured, most_open=most_open)
        wall = sim.run()
        rows.append(
            {
                "workers": workers,
                "hours": wall / 3600,
                "efficiency": sim.useful_s / (workers * wall),
                "driver_busy": sim.driver_busy_s / wall,
                "tasks_per_s": sim.tasks / wall,
            }
        )
    return pd.DataFrame(rows)


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
    running.add_argument("--titles", type=int, default=1000)
    running.add_argument("--most-open", type=int, default=MOST_OPEN)
    running.add_argument(
        "--longer", type=float, default=1.0, help="as if tasks took times as long"
    )
    running.add_argument("--csv", type=Path)
    options = parser.parse_args()
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
    costs = json.loads(options.overhead.read_text())
    found = table(traces, options.titles, costs, options.most_open)
    print(found.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    if options.csv:
        found.to_csv(options.csv, index=False, float_format="%.5g")


if __name__ == "__main__":
    main()
