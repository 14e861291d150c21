"""Speed-up by several workers: wall time of a few titles' ladders, one processor an encode.

    python -m bench.workers CLIP... [--codec h264] [--metric internvqa] [--workers 1 2] [--ray]

Every run builds the same catalogue from nothing (no cache, no prior), so that its time is that of
all encodes and scores. The ladders of all runs must be equal. Run it on an idle machine. Ray's
cluster is of this machine, and started before the clock.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vqaloop.catalogue.build import build_catalogue
from vqaloop.cluster.ray_cluster import RayCluster
from vqaloop.execution.executor import Executor, Local


@contextmanager
def opened(kind: str, workers: int) -> Iterator[Executor]:
    if kind == "local":
        yield Local(workers, processors=1)
        return
    with RayCluster("local", workers=workers, processors=1) as cluster:
        yield cluster


def timed(
    clips: list[Path], kind: str, workers: int, **options: Any
) -> tuple[dict[str, Any], list[Any]]:
    """The figures of one run, and its ladders."""
    with tempfile.TemporaryDirectory() as folder, opened(kind, workers) as executor:
        started, cpu = time.monotonic(), os.times()
        made = build_catalogue(
            clips, out=Path(folder, "out"), workers=executor, cache=False, prior=False, **options
        )
        wall_s, after = time.monotonic() - started, os.times()
        failed = [entry.reason for entry in made.entries if not entry.about]
        if failed:
            raise SystemExit(f"no figures: {failed}")
        ladders = [entry.about["rungs"] for entry in made.entries]
    cost = made.cost()
    row = {
        "executor": kind,
        "workers": workers,
        "wall_s": wall_s,
        "driver_cpu_s": after.user + after.system - cpu.user - cpu.system,
        "encodes": cost["encodes"],
        "encode_cpu_s": cost["encode_cpu_s"],
        "score_s": cost["score_s"],
    }
    return row, ladders


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.workers")
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--codec", default="h264")
    parser.add_argument("--metric", default="internvqa")
    parser.add_argument("--preset")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--ray", action="store_true", help="on a Ray cluster as well")
    options = parser.parse_args()
    told = {"codec": options.codec, "metric": options.metric, "preset": options.preset}
    rows: list[dict[str, Any]] = []
    first: list[Any] | None = None
    for kind in ("local", "ray") if options.ray else ("local",):
        alone_s = 0.0
        for workers in options.workers:
            row, ladders = timed(options.clips, kind, workers, **told)
            alone_s = alone_s or row["wall_s"]
            first = first or ladders
            row |= {"speed_up": alone_s / row["wall_s"], "same_ladders": ladders == first}
            print(json.dumps(row), file=sys.stderr)
            rows.append(row)
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
