"""Learns the shipped prior of every encoder and metric from the titles of a grid.

    python -m bench.prior GRID... [-o vqaloop/search/priors.json]

The grid (`python -m bench.grid ... --knobs 4`) should hold none of the titles that the search is
evaluated on.
"""

import argparse
import json
import sys
from pathlib import Path

import pandas as pd

from bench.grid import read_grid
from vqaloop.encoding.registry import default_encoder
from vqaloop.quality.registry import DEFAULT_STUDENT
from vqaloop.records import RDPoint
from vqaloop.search.prior import TitlePoints, learn
from vqaloop.search.prior_store import SHIPPED, prior_json
from vqaloop.search.space import Space
from vqaloop.search.surrogates import as_title

METRICS = {"vmaf": "vmaf", "psnr_y": "psnr", "student": DEFAULT_STUDENT}
"""Columns of a grid, and the metrics whose scores they hold."""


def titles_of(table: pd.DataFrame, codec: str, column: str) -> list[TitlePoints]:
    """Every clip of a grid as the prior has it."""
    spec = default_encoder(codec)
    found = []
    for _, rows in table[table.codec == codec].groupby("clip"):
        sizes = sorted(set(zip(rows.width, rows.height, strict=True)), reverse=True)
        space = Space(tuple(sizes), spec.knob, sizes[0], float(rows.fps.iloc[0]))
        points = [
            RDPoint(w, h, knob, kbps, score)
            for w, h, knob, kbps, score in zip(
                rows.width, rows.height, rows.knob, rows.kbps, rows[column], strict=True
            )
        ]
        found.append(as_title(space, points, 100.0))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("grids", nargs="+", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=SHIPPED)
    options = parser.parse_args()
    table = pd.concat(map(read_grid, options.grids), ignore_index=True)
    encoders: dict[str, dict[str, object]] = {}
    for codec in sorted(set(table.codec)):
        for column, metric in METRICS.items():
            prior = learn(titles_of(table, codec, column))
            encoders.setdefault(default_encoder(codec).name, {})[metric] = prior_json(prior)
    clips = sorted(set(table["clip"]))
    about = f"{len(clips)} clips: {', '.join(clips)}"
    options.output.write_text(json.dumps({"learnt_from": about, "encoders": encoders}) + "\n")
    print(f"{options.output}: {about}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
