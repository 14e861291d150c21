"""Ladder searches compared on exhaustive grids: encodes spent and bitrate lost.

    python -m bench.search --grid DIR_OR_CSV [--csv OUT.csv] [--table OUT.md] [--plot OUT.png]
                           [--clips NAME,...] [--codecs NAME,...]

The grid comes from `python -m bench.grid`. Nothing is encoded: encodes are looked up in the grid.
Each method is steered by VMAF, by the student and, where the grid has it, by sampled VMAF, and its
ladder is measured by the first two: the loss, in rate at equal score, against the hull of the
whole grid (by that metric). Clips whose grid is incomplete are left out, and named.
"""

import argparse
import itertools
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from bench import rivals
from bench.content import TABLE, Clip, read_content
from bench.grid import read_grid
from bench.oracle import METRICS, SAMPLED, Encoded, Oracle, Tally, read_oracle
from bench.rivals import Result
from vqaloop.core.files import renamed_to, write_whole
from vqaloop.encoding.registry import default_encoder, get_encoder
from vqaloop.ladder.rd_plot import MARKERS
from vqaloop.media.content import Content
from vqaloop.quality.bdrate import Curve, NotComparable, bd_rate
from vqaloop.quality.registry import DEFAULT_STUDENT
from vqaloop.report.plotting import COLOURS, style
from vqaloop.search.explore import Measurement, explore, rungs_of
from vqaloop.search.hull import front
from vqaloop.search.prior_store import chosen_prior
from vqaloop.search.rungs import Rules, keep_rules
from vqaloop.search.space import Space, TrialPoint
from vqaloop.search.surrogates import CurveFits, Surrogate, TitlePrior

RULES = Rules(min_step=4.0, floor=30.0, ceiling=95.0)
"""Default rules of `vqaloop ladder`, equal for VMAF and the students."""
TOP, MOST = 100.0, 40
"""Largest score, and the bound on the encodes of a search."""


@cache
def contents() -> dict[str, Clip]:
    """What the pictures of the grids' clips hold."""
    return read_content(TABLE)


def vqaloop_ladder(
    oracle: Oracle, metric: str, rules: Rules = RULES, content: Content | None = None
) -> Result:
    """The product's own search with its defaults: every rung is an encode of the search."""
    name = {"student": DEFAULT_STUDENT, SAMPLED: "vmaf"}.get(metric, metric)
    spec = default_encoder(oracle.codec)
    prior = chosen_prior("shipped", spec.name, spec.default_preset, [name], "", content)
    space = Space(oracle.sizes, oracle.knob, oracle.sizes[0], oracle.fps)
    return _explored(
        oracle, metric, rules, space, TitlePrior(space, prior, TOP) if prior else None
    )


def vqaloop_by_content(oracle: Oracle, metric: str, rules: Rules = RULES) -> Result:
    """The same with the prior of what the clip's pictures hold, where that is known."""
    clip = contents().get(oracle.clip)
    return vqaloop_ladder(oracle, metric, rules, clip.content if clip else None)


def vqaloop_alone(oracle: Oracle, metric: str, rules: Rules = RULES) -> Result:
    """The same without a prior, as for an encoder or metric that has none."""
    return _explored(oracle, metric, rules, Space(oracle.sizes, oracle.knob), None)


def _explored(
    oracle: Oracle, metric: str, rules: Rules, space: Space, prior: Surrogate | None
) -> Result:
    tally, belief = Tally(oracle, metric), prior or CurveFits(space, TOP)

    def evaluate(batch: Sequence[TrialPoint]) -> dict[TrialPoint, Measurement]:
        made = [(point, tally.measure(point)) for point in batch]
        return {point: (p.bitrate_kbps, p.score) for point, p in made}

    points, failed, _ = explore(space, rules, evaluate, surrogate=belief, most=MOST)
    kept = keep_rules(rungs_of(space, rules, points, belief, failed), rules)
    rungs = [oracle.at(p.width, p.height, p.knob) for p in kept]
    return rivals.delivered(rungs, tally.searched.values())


METHODS: dict[str, Callable[[Oracle, str, Rules], Result]] = {
    "vqaloop": vqaloop_ladder,
    "vqaloop, by content": vqaloop_by_content,
    "vqaloop, no prior": vqaloop_alone,
    "ab-av1, size by table": rivals.bisection_by_table,
    "ab-av1, every size": rivals.bisection_of_all,
    "viser 21": rivals.viser_grid,
    "AOM 24": rivals.aom_hull,
    "Apple fixed": rivals.fixed_ladder,
    "exhaustive": rivals.exhaustive,
}


def figures(oracle: Oracle, metric: str, result: Result) -> dict[str, Any]:
    """The row of one result: cost, loss by either metric, and the ladder's shape by `metric`.

    `bd_*` and `loss_*` are Bjontegaard deltas in percent (see `delta`), `excess_*` is the mean
    over the rungs of how much more rate they take than the hull at their own scores; NaN where
    there is none. `dropped_*` counts the rungs that a cheaper one equals or beats by that metric:
    the deltas are without them.
    """
    rungs, encodes = result.rungs, result.encodes
    row: dict[str, Any] = {
        "rungs": len(rungs),
        "encodes": len(encodes),
        "encodes_per_rung": len(encodes) / len(rungs) if rungs else math.nan,
        "megapixel_frames": sum(e.width * e.height for e in encodes) * oracle.frames / 1e6,
        "cpu_s": sum(e.encode_s for e in encodes)
        + sum(e.score_s(metric) for e in result.searched),
    }
    for judge in METRICS:
        found = delta(oracle, judge, rungs)
        row |= zip((f"bd_{judge}", f"loss_{judge}", f"dropped_{judge}"), found, strict=True)
        row[f"excess_{judge}"] = mean(
            100 * (e.kbps / oracle.hull_kbps(judge, e.score(judge)) - 1) for e in rungs
        )
    pairs = list(itertools.pairwise(rungs))
    scores = [e.score(metric) for e in rungs]
    rises = [b.score(metric) - a.score(metric) for a, b in pairs]
    return row | {
        "least_ratio": min((b.kbps / a.kbps for a, b in pairs), default=math.nan),
        "least_step": min(rises, default=math.nan),
        "largest_step": max(rises, default=math.nan),
        "lowest": min(scores, default=math.nan),
        "highest": max(scores, default=math.nan),
    }


def delta(oracle: Oracle, judge: str, rungs: Sequence[Encoded]) -> tuple[float, float, int]:
    """Two Bjontegaard deltas of rungs to the exhaustive hull, and how many rungs do not rise.

    Over the scores that the ladder spans, all of which the hull has. The first is to the hull as
    it is. A curve through five rungs is not the hull even when all of them lie on it: it may bulge
    beyond it by some percent, the more so the fewer the rungs. So the second is to a curve drawn
    alike, through the hull's points at the rungs' own scores: what the rungs lose, nothing else.
    """
    hull = [(p.bitrate_kbps, p.score) for p in oracle.hull(judge)]
    rising = [(p.bitrate_kbps, p.score) for p in front(e.judged(judge) for e in rungs)]
    scores = [score for _, score in rising if hull[0][1] <= score <= hull[-1][1]]
    alike = [(oracle.hull_kbps(judge, score), score) for score in scores]
    return _bd_rate(hull, rising), _bd_rate(alike, rising), len(rungs) - len(rising)


def _bd_rate(anchor: Curve, test: Curve) -> float:
    try:
        return bd_rate(anchor, test)
    except NotComparable:
        return math.nan


def mean(values: Iterable[float]) -> float:
    """NaN of nothing."""
    known = list(values)
    return statistics.fmean(known) if known else math.nan


def compare(oracles: Iterable[Oracle]) -> pd.DataFrame:
    """One row for each clip, codec, method and steering metric."""
    rows = []
    for oracle in oracles:
        for (name, method), metric in itertools.product(METHODS.items(), oracle.steers):
            head = {"clip": oracle.clip, "codec": oracle.codec, "method": name, "metric": metric}
            found = method(oracle, metric, RULES)
            rows.append(head | figures(oracle, metric, found))
    return pd.DataFrame(rows)


def read_oracles(folder: Path, clips: str | None, codecs: str | None) -> Iterator[Oracle]:
    """Oracles of a grid, of those names alone; incomplete ones are logged and left out."""
    table = read_grid(folder).astype({"clip": str})
    for column, names in (("clip", clips), ("codec", codecs)):
        wanted = names.split(",") if names else sorted(set(table[column]))
        if unknown := set(wanted) - set(table[column]):
            there = ", ".join(sorted(set(table[column])))
            raise SystemExit(
                f"no {column} {', '.join(sorted(unknown))} in {folder}; it has {there}"
            )
        table = table[table[column].isin(wanted)]
    for (clip, codec), group in table.groupby(["clip", "codec"]):
        try:
            yield read_oracle(group, get_encoder(str(group.encoder.iloc[0])))
        except ValueError as error:
            print(f"{clip} {codec} is left out: {error}", file=sys.stderr)


COLUMNS = {
    "ladders": "ladders",
    "rungs": "rungs",
    "encodes": "encodes",
    "encodes_per_rung": "a rung",
    "megapixel_frames": "Mpx frames",
    "cpu_s": "CPU s",
    "loss_vmaf": "loss VMAF %",
    "loss_student": "loss student %",
    "bd_vmaf": "BD VMAF %",
    "bd_student": "BD student %",
    "excess_vmaf": "excess VMAF %",
    "excess_student": "excess student %",
    "dropped_vmaf": "dropped VMAF",
    "dropped_student": "dropped student",
    "least_ratio": "least ratio",
    "least_step": "least step",
    "largest_step": "largest step",
    "lowest": "lowest",
    "highest": "highest",
}


def means(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Means over ladders; encodes a rung are all encodes over all rungs."""
    groups = table.groupby(list(by), sort=False)
    found = groups[[c for c in COLUMNS if c != "ladders"]].mean()
    found["encodes_per_rung"] = found.encodes / found.rungs
    found.insert(0, "ladders", groups.size())
    return found


def markdown(table: pd.DataFrame) -> str:
    """Means over all codecs, then of each codec, one table for each steering metric."""
    parts = []
    for metric in table.metric.unique():
        own = table[table.metric == metric]
        parts.append(f"### Steered by {metric}: all codecs\n\n" + _rows(means(own, ["method"])))
        by_codec = means(own.sort_values("codec", kind="stable"), ["codec", "method"])
        parts.append(f"### Steered by {metric}: each codec\n\n" + _rows(by_codec))
    return "\n".join(parts)


def _rows(found: pd.DataFrame) -> str:
    heads = [str(name) for name in found.index.names] + list(COLUMNS.values())
    lines = [heads, ["---"] * len(heads)]
    for index, row in zip(found.index, found.itertuples(index=False), strict=True):
        words = [index] if isinstance(index, str) else list(index)
        lines.append([*words, str(row[0]), *(_number(value) for value in row[1:])])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.0f}" if abs(value) >= 1000 else f"{value:.2f}"


def draw(table: pd.DataFrame, out: Path) -> None:
    """Encodes a rung against loss by VMAF: a marker for each method, a dot for each codec of it.

    One panel for each steering metric; a dashed line for what the exhaustive search loses.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    with style(13, "black"):
        figure = Figure(figsize=(14, 7), dpi=100, layout="constrained")
        metrics = table.metric.unique()
        panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for axes, metric in zip(panels, metrics, strict=True):
            own = table[table.metric == metric]
            overall, by_codec = means(own, ["method"]), means(own, ["method", "codec"])
            best = overall.loss_vmaf["exhaustive"]
            axes.axhline(best, color="black", linestyle="--", linewidth=1, label="exhaustive")
            for index, method in enumerate(name for name in METHODS if name != "exhaustive"):
                colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
                dots = by_codec.loc[method]
                axes.plot(dots.encodes_per_rung, dots.loss_vmaf, ".", color=colour, markersize=5)
                whole = overall.loc[[method]]
                places = whole.encodes_per_rung, whole.loss_vmaf
                axes.plot(*places, marker, color=colour, markersize=13, label=method)
            axes.set_xscale("log")
            axes.set_yscale("symlog", linthresh=1)
            axes.xaxis.set_major_locator(FixedLocator([1, 2, 3, 4, 6, 8, 12, 16]))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_locator(FixedLocator([0, 0.5, 1, 2, 5, 10, 20, 50, 100]))
            axes.yaxis.set_minor_locator(NullLocator())
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.set_xlabel("encodes a rung (log scale)")
            axes.set_title(f"steered by {metric}")
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(color="#888888", alpha=0.3)
        panels[0].set_ylabel("loss by VMAF to the exhaustive hull (BD-rate, %)")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, framealpha=0)
        with renamed_to(out) as part:
            FigureCanvasAgg(figure).print_png(str(part))  # type: ignore[no-untyped-call]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--grid", type=Path, required=True)
    parser.add_argument("--csv", type=Path, help="all rows")
    parser.add_argument("--table", type=Path, help="means, in Markdown")
    parser.add_argument("--plot", type=Path, help="encodes a rung against loss, PNG")
    parser.add_argument("--clips", help="names, with commas between")
    parser.add_argument("--codecs", help="names, with commas between")
    options = parser.parse_args(argv)
    table = compare(read_oracles(options.grid, options.clips, options.codecs))
    if table.empty:
        raise SystemExit(f"no whole grid in {options.grid} yet")
    text = markdown(table)
    if options.csv:
        write_whole(options.csv, table.to_csv(index=False, float_format="%.4f"))
    if options.table:
        write_whole(options.table, text)
    if options.plot:
        draw(table, options.plot)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
