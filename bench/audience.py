"""Rungs placed for an audience against even spacing, at the same number of rungs.

    python -m bench.audience --grid bench/grid-sampled.csv [--metric student] [--clips NAME,...]
                             [--codecs NAME,...] [--csv OUT.csv]

Nothing is encoded: encodes are looked up in the grid. The clips are small and short, so bandwidths
are scaled to each title: of the default audience the median session may spend the rate of the
exhaustive hull at a score of 80; "two modes" has half its sessions around the rate at 55, half
around that at 92. Expected scores are means over the sessions: of rungs anywhere on the exhaustive
hull ("hull"), and of those that the product's search makes ("search"), with its encodes a rung.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from bench.oracle import Oracle
from bench.search import RULES, read_oracles, vqaloop_ladder
from vqaloop.core.files import write_whole
from vqaloop.ladder.options import BANDWIDTH_SHARE
from vqaloop.records import RDPoint
from vqaloop.report.markdown import pipes
from vqaloop.search.audience import Audience, Session, delivered, read_audience
from vqaloop.search.hull import convex_hull, rising_front
from vqaloop.search.rungs import Rules, choose_rungs, up_to_ceiling

COUNTS = (3, 4, 5, 6)
SPREAD = (0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15)
"""Bandwidths around a mode, as parts of it."""


def audiences(oracle: Oracle, metric: str) -> dict[str, Audience]:
    """Audiences by name, scaled to a title."""
    usual = read_audience("default", BANDWIDTH_SHARE)
    middle = usual.sessions[len(usual.sessions) // 2].bandwidth_kbps
    factor = oracle.hull_kbps(metric, 80) / BANDWIDTH_SHARE / middle
    scaled = tuple(replace(s, bandwidth_kbps=s.bandwidth_kbps * factor) for s in usual.sessions)
    modes = [oracle.hull_kbps(metric, score) / BANDWIDTH_SHARE for score in (55, 92)]
    share = 1 / len(modes) / len(SPREAD)
    both = tuple(Session(mode * part, share) for mode in modes for part in SPREAD)
    return {
        "default": replace(usual, sessions=scaled),
        "two modes": Audience("two modes", both, BANDWIDTH_SHARE),
    }


def compare(oracle: Oracle, metric: str) -> Iterator[dict[str, Any]]:
    """A row for each audience and number of rungs that even spacing gives."""
    points = [p.judged(metric) for p in oracle.dense()]
    best = convex_hull(up_to_ceiling(rising_front(points), RULES))
    for name, audience in audiences(oracle, metric).items():
        for count in COUNTS:
            even, placed = (
                replace(RULES, count=count),
                replace(RULES, count=count, audience=audience),
            )
            row: dict[str, Any] = {
                "clip": oracle.clip, "codec": oracle.codec, "audience": name, "rungs": count,
            }  # fmt: skip
            for way, rules in (("even", even), ("audience", placed)):
                rungs = choose_rungs(best, rules)
                found, encodes = _searched(oracle, metric, rules)
                row |= {f"hull {way}": delivered(audience, rungs).score if rungs else None}
                row |= {f"search {way}": delivered(audience, found).score}
                row |= {f"encodes {way}": encodes / len(found), f"made {way}": len(found)}
            if len(choose_rungs(best, even)) == count:
                yield row


def _searched(oracle: Oracle, metric: str, rules: Rules) -> tuple[list[RDPoint], int]:
    made = vqaloop_ladder(oracle, metric, rules)
    return [rung.judged(metric) for rung in made.rungs], len(made.encodes)


def markdown(table: pd.DataFrame) -> str:
    """Means over the titles, for each audience and number of rungs."""
    gain = table["hull audience"] - table["hull even"]
    found = table["search audience"] - table["search even"]
    table = table.assign(gain=gain, least=gain, found=found)
    rows = []
    for (name, count), part in table.groupby(["audience", "rungs"], sort=False):
        mean = part.drop(columns=["clip", "codec", "audience"]).mean()
        cells = [
            *(f"{mean[f'hull {way}']:.2f}" for way in ("even", "audience")),
            f"{mean['gain']:+.2f}",
            f"{part['least'].min():+.2f}",
            *(f"{mean[f'search {way}']:.2f}" for way in ("even", "audience")),
            f"{mean['found']:+.2f}",
            *(f"{mean[f'encodes {way}']:.2f}" for way in ("even", "audience")),
        ]
        rows.append([str(name), str(count), str(len(part)), *cells])
    head = ["audience", "rungs", "ladders", "hull, even", "placed", "gain", "least gain"]
    head += ["search, even", "placed", "gain", "encodes a rung, even", "placed"]
    return pipes(head, rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--grid", type=Path, required=True)
    parser.add_argument("--metric", default="student", choices=("student", "vmaf"))
    parser.add_argument("--clips", help="names, with commas between")
    parser.add_argument("--codecs", help="names, with commas between")
    parser.add_argument("--csv", type=Path, help="all rows")
    options = parser.parse_args(argv)
    oracles = read_oracles(options.grid, options.clips, options.codecs)
    table = pd.DataFrame(row for oracle in oracles for row in compare(oracle, options.metric))
    if table.empty:
        raise SystemExit(f"no whole grid in {options.grid} yet")
    if options.csv:
        write_whole(options.csv, table.to_csv(index=False, float_format="%.4f"))
    print(markdown(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
