"""Ladders with real encodes of the clips of a grid, measured against the grid's hull.

    python -m bench.encoded --grid DIR --out DIR [--metric vmaf] [--codecs h264,...] [--csv FILE]

`bench.search` looks encodes up in the grid; this encodes, with an empty cache and the shipped
prior, at the grid's sizes. Ladders stay in `--out`, and existing ones are kept.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

import vqaloop
from bench.oracle import Encoded, Oracle
from bench.search import delta, read_oracles
from vqaloop.records import Ladder


def made(ladder: Ladder) -> list[Encoded]:
    """Its rungs; the student's score only where the student steered."""
    learned = ladder.about["metric"]["mode"] == "anchored"
    blank = float("nan")
    return [
        Encoded(
            *(r.width, r.height, r.knob[1], r.bitrate_kbps, r.guard["vmaf"], r.guard["psnr_y"]),
            *(r.score if learned else blank, blank, blank, blank),
        )
        for r in ladder.rungs
    ]


def row(oracle: Oracle, clip: Path, metric: str, out: Path) -> dict[str, Any]:
    """One ladder, built unless its folder has it."""
    folder = out / f"{oracle.clip}.{oracle.codec}.{metric}"
    if (folder / "ladder.json").exists():
        ladder = vqaloop.read_ladder(folder)
    else:
        # a cache of its own: what this machine learns of one title must not help the next
        with tempfile.TemporaryDirectory() as cache:
            os.environ["VQALOOP_CACHE"] = cache
            ladder = vqaloop.build_ladder(
                clip, codec=oracle.codec, metric=metric, resolutions=oracle.sizes, out=folder
            )
    cost, rungs = ladder.about["cost"], made(ladder)
    bd, loss, dropped = delta(oracle, "vmaf", rungs)
    return {
        "clip": oracle.clip,
        "codec": oracle.codec,
        "metric": metric,
        "rungs": len(rungs),
        "encodes": cost["encodes"],
        "encodes_per_rung": cost["encodes"] / len(rungs),
        "loss_vmaf": loss,
        "bd_vmaf": bd,
        "dropped_vmaf": dropped,
        "encode_cpu_s": cost["encode_cpu_s"],
        "score_cpu_s": cost["score_s"],
        "guard_cpu_s": cost["guard_s"],
        "trusted": ladder.trusted,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--grid", type=Path, required=True, help="with its clips (.y4m)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--metric", default="vmaf")
    parser.add_argument("--clips")
    parser.add_argument("--codecs")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    rows = []
    for oracle in read_oracles(options.grid, options.clips, options.codecs):
        clip = options.grid / f"{oracle.clip}.y4m"
        rows.append(row(oracle, clip, options.metric, options.out))
        print(rows[-1], file=sys.stderr, flush=True)
    table = pd.DataFrame(rows)
    means = table.drop(columns=["clip", "metric"]).groupby("codec").mean()
    means["encodes_per_rung"] = means.encodes / means.rungs
    if options.csv:
        table.to_csv(options.csv, index=False, float_format="%.4f")
    print(means.to_string(float_format=lambda v: f"{v:.2f}"))
    total = table.encodes.sum() / table.rungs.sum()
    print(f"{len(table)} ladders: {total:.2f} encodes a rung, loss {table.loss_vmaf.mean():.2f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
