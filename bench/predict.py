"""Ladders predicted without an encode against the encodes: errors, and whether intervals hold.

    python -m bench.predict [--grid bench/grid.csv] [--learnt bench/grid-prior.csv]
                            [--content bench/content.csv] [--csv OUT.csv]
                            [--clips NAME,...] [--codecs NAME,...]

For every clip and codec of the grid the ladder is predicted as `vqaloop ladder --predict` does it,
by the shipped prior on the clip's content and, to compare, by that of all titles; each rung is
then looked up in the grid. No clip of the grid may be among those that the prior was learnt from,
and intervals of a clip are stretched by the errors of all titles but its own.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bench.content import TABLE, Clip, read_content
from bench.grid import read_grid
from bench.oracle import Oracle
from bench.prior import FITS, GRID, OTHERS, all_misses, stretch_of
from bench.search import RULES, TOP, read_oracles
from vqaloop.core.files import write_whole
from vqaloop.encoding.registry import default_encoder
from vqaloop.quality.registry import DEFAULT_STUDENT
from vqaloop.search.explore import plan
from vqaloop.search.forecast import forecast, unlike_title
from vqaloop.search.prior import Prior, Values
from vqaloop.search.prior_store import SHIPPED, shipped_content_prior, shipped_prior
from vqaloop.search.space import Space
from vqaloop.search.surrogates import TitlePrior

Misses = dict[tuple[str, str], list[tuple[str, Values]]]
"""Errors of titles that were left out, by column and prior."""
METRICS = {"vmaf": "vmaf", "student": DEFAULT_STUDENT}
"""Columns of a grid, and the metrics whose priors predict them."""


def priors_of(encoder: str, metric: str, clip: Clip) -> dict[str, Prior]:
    """The priors that are compared, by name."""
    known, usual = shipped_content_prior(encoder, metric), shipped_prior(encoder, metric)
    if known is None or usual is None:
        raise SystemExit(f"no prior is shipped for {encoder} and {metric}")
    return {"content": known.at(clip.content.values()), "all": usual}


def rows_of(oracle: Oracle, clip: Clip, off: Misses) -> Iterable[dict[str, object]]:
    """One row for each rung that is predicted."""
    space = Space(oracle.sizes, oracle.knob, oracle.sizes[0], oracle.fps)
    unlike = unlike_title(oracle.sizes[0], oracle.fps, oracle.frames, clip.content)
    for column, metric in METRICS.items():
        encoder = default_encoder(oracle.codec).name
        for name, prior in priors_of(encoder, metric, clip).items():
            rungs = plan(RULES, [], TitlePrior(space, prior, TOP).dense([]))
            stretch = stretch_of([(g, e) for g, e in off[column, name] if g != clip.group])
            for found in forecast(space, prior, rungs, TOP, stretch, unlike):
                point = found.point
                made = oracle.at(*point.key)
                score = made.score(column)
                hull = oracle.hull_kbps(column, point.score)
                yield {
                    "clip": oracle.clip,
                    "codec": oracle.codec,
                    "metric": column,
                    "prior": name,
                    "width": point.width,
                    "height": point.height,
                    "knob": point.knob,
                    "kbps": made.kbps,
                    "score": score,
                    "predicted_kbps": point.bitrate_kbps,
                    "predicted_score": point.score,
                    "kbps_low": found.kbps[0],
                    "kbps_high": found.kbps[1],
                    "score_low": found.score[0],
                    "score_high": found.score[1],
                    "hull_kbps": hull,
                }


COLUMNS = {
    "rungs": "rungs",
    "rate_median": "rate off, median %",
    "rate_mean": "mean, log2",
    "equal_mean": "at equal score, log2",
    "score_median": "score off, median",
    "score_mean": "mean",
    "rate_covered": "rates inside %",
    "score_covered": "scores inside %",
    "rate_width": "interval of rate, x",
    "score_width": "of score",
}


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Errors and coverage for each metric, prior and codec, and of all codecs."""
    figures = table[["metric", "prior", "codec"]].assign(
        off=np.abs(np.log2(table.predicted_kbps / table.kbps)),
        equal=np.abs(np.log2(table.predicted_kbps / table.hull_kbps)),
        score_off=(table.predicted_score - table.score).abs(),
        rate_in=table.kbps.between(table.kbps_low, table.kbps_high),
        score_in=table.score.between(table.score_low, table.score_high),
        rate_wide=np.log2(table.kbps_high / table.kbps_low),
        score_wide=table.score_high - table.score_low,
    )
    every = pd.concat([figures, figures.assign(codec="all")])
    groups = every.groupby(["metric", "prior", "codec"], sort=False)
    return pd.DataFrame(
        {
            "rungs": groups.size(),
            "rate_median": 100 * (2 ** groups.off.median() - 1),
            "rate_mean": groups.off.mean(),
            "equal_mean": groups.equal.mean(),
            "score_median": groups.score_off.median(),
            "score_mean": groups.score_off.mean(),
            "rate_covered": 100 * groups.rate_in.mean(),
            "score_covered": 100 * groups.score_in.mean(),
            "rate_width": 2 ** groups.rate_wide.mean(),
            "score_width": groups.score_wide.mean(),
        }
    )


def markdown(found: pd.DataFrame) -> str:
    """The summary as a table."""
    heads = [*map(str, found.index.names), *COLUMNS.values()]
    lines = [heads, ["---"] * len(heads)]
    for index, row in zip(found.index, found.itertuples(index=False), strict=True):
        numbers = [f"{value:.2f}" if math.isfinite(value) else "" for value in row[1:]]
        lines.append([*index, str(row[0]), *numbers])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def check_held_out(clips: Iterable[str], about: dict[str, Clip], path: Path = SHIPPED) -> None:
    """Raises SystemExit where the prior was learnt from a title of these clips."""
    names = json.loads(path.read_text("utf-8"))["learnt_from"].partition(": ")[2].split(", ")
    learnt = {about[name].group if name in about else name for name in names}
    known = sorted(clip for clip in set(clips) if about[clip].group in learnt)
    if known:
        raise SystemExit(f"the prior was learnt from {', '.join(known)}; leave them out (--clips)")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--grid", type=Path, default=OTHERS)
    parser.add_argument("--learnt", type=Path, default=GRID, help="what the prior is of")
    parser.add_argument("--content", type=Path, default=TABLE)
    parser.add_argument("--csv", type=Path, help="all rungs")
    parser.add_argument("--clips", help="names, with commas between")
    parser.add_argument("--codecs", help="names, with commas between")
    options = parser.parse_args(argv)
    about = read_content(options.content)
    oracles = list(read_oracles(options.grid, options.clips, options.codecs))
    if missing := sorted({oracle.clip for oracle in oracles} - set(about)):
        raise SystemExit(f"{options.content} lacks {', '.join(missing)}; see bench.content")
    check_held_out([oracle.clip for oracle in oracles], about)
    tables = read_grid(options.learnt).astype({"clip": str}), read_grid(options.grid)
    off = {
        (column, name): all_misses(tables, column, about, fit)
        for column in METRICS
        for name, fit in FITS.items()
    }
    table = pd.DataFrame([row for o in oracles for row in rows_of(o, about[o.clip], off)])
    if table.empty:
        raise SystemExit(f"no whole grid in {options.grid} yet")
    if options.csv:
        write_whole(options.csv, table.to_csv(index=False, float_format="%.4f"))
    print(markdown(summary(table)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
