"""Two ladders compared, as rows of tables and at a terminal."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vqaloop.core.text import change, cut, metric_name, printable, shown, shown_rate
from vqaloop.ladder.compare import (
    LadderComparison,
    SizeRange,
    own_metric,
    settings,
    size_ranges,
    value_of,
)
from vqaloop.ladder.summary import has_opinions, label_line, pool_of, score_headings
from vqaloop.records import Ladder, Rung
from vqaloop.report.console import WIDTH, console_for, encodable, table

if TYPE_CHECKING:
    from rich.table import Table


NEAR = 1.2
"""Ratio of bitrates up to which a rung of A and one of B share a row; rungs of one ladder are
further apart."""
GAP_HEADINGS = ("B against A", "BD-rate %", "Akima %", "gain at equal rate", "scores")
LONGEST_NAME = 24


def gap_rows(compared: LadderComparison) -> list[list[str]]:
    """For each metric: name, BD-rate, Akima, gain in score at equal rate, scores in common."""
    return [
        [
            cut(metric_name(gap.metric), LONGEST_NAME),
            "refused" if gap.refused else change(gap.bd_rate_percent),
            change(gap.akima_percent),
            change(gap.bd_score, " dB" * (gap.metric in ("psnr_y", "xpsnr"))),
            f"{gap.scores[0]:.1f} to {gap.scores[1]:.1f}" if gap.scores else "-",
        ]
        for gap in compared.gaps
    ]


def side_by_side(a: Sequence[Rung], b: Sequence[Rung]) -> list[tuple[Rung | None, Rung | None]]:
    """Rungs of both by bitrate; two that are near each other in one row."""
    rows: list[tuple[Rung | None, Rung | None]] = []
    left, right = list(a), list(b)
    while left or right:
        one, other = (rungs[0].bitrate_kbps if rungs else float("inf") for rungs in (left, right))
        near = bool(left and right) and max(one, other) <= NEAR * min(one, other)
        row = (
            left.pop(0) if near or one < other else None,
            right.pop(0) if near or other <= one else None,
        )
        rows.append(row)
    return rows


def rung_headings(ladder: Ladder, name: str) -> list[str]:
    """Of one side of the table; a metric of the guard that is the score has no second column."""
    scores = score_headings(ladder)
    return [f"{name} kb/s", "size", *scores, *map(metric_name, _shown_guards(ladder))]


def rung_cells(ladder: Ladder, rung: Rung | None, digits: int = 1) -> list[str]:
    if rung is None:
        return [""] * len(rung_headings(ladder, ""))
    return [
        shown_rate(rung.bitrate_kbps),
        f"{rung.width}x{rung.height}",
        shown(rung.score, digits),
        *([shown(rung.score_mean, digits)] if pool_of(ladder) != "mean" else []),
        *([shown(rung.opinion, digits)] if has_opinions(ladder) else []),
        *(shown(value_of(rung, ladder, metric), digits) for metric in _shown_guards(ladder)),
    ]


def rung_rows(compared: LadderComparison) -> tuple[list[str], list[list[str]]]:
    """Headings, and the rungs of both by bitrate one below the other, for a narrow page."""
    ladders = {"A": compared.a, "B": compared.b}
    known = {name for ladder in ladders.values() for name in _guards(ladder)}
    guards = [name for name in ("vmaf", "psnr_y") if name in known]
    found = [(name, rung) for name, ladder in ladders.items() for rung in ladder.rungs]
    opinions = any(map(has_opinions, ladders.values()))
    # ladders of two pools have two metrics, and are not compared
    pool = pool_of(compared.a)
    pooled = pool != "mean"
    rows = [
        [
            name,
            *rung_cells(ladders[name], rung, 2)[: 3 + pooled],
            *([shown(rung.opinion, 2)] if opinions else []),
            *(shown(value_of(rung, ladders[name], metric), 2) for metric in guards),
        ]
        for name, rung in sorted(found, key=lambda item: item[1].bitrate_kbps)
    ]
    scores = [pool, "mean"] if pooled else ["score"]
    head = ["", "kb/s", "size", *scores, *["opinion"] * opinions]
    return [*head, *map(metric_name, guards)], rows


def _shown_guards(ladder: Ladder) -> list[str]:
    """Of one side of the table, which has no room for an opinion or a mean beside all."""
    more = has_opinions(ladder) or pool_of(ladder) != "mean"
    return _guards(ladder)[: 1 if more else None]


def _guards(ladder: Ladder) -> list[str]:
    return [name for name in ("vmaf", "psnr_y") if name != own_metric(ladder)]


def ladder_words(ladder: Ladder) -> str:
    """Encoder and metric of a ladder, in one line."""
    made = settings(ladder)
    params = f", {made['parameters']}" if any(rung.params for rung in ladder.rungs) else ""
    return printable(
        f"{made['codec']}, {made['library']}, preset {made['preset']}{params}, scored by "
        f"{made['metric']}"
    )


def sizes_line(ladder: Ladder) -> str:
    """The bitrates of each size."""
    sizes = [f"{size.width}x{size.height} at {rate_words(size)}" for size in size_ranges(ladder)]
    return f"{', '.join(sizes)} kb/s"


def rate_words(size: SizeRange) -> str:
    low, high = shown_rate(size.lowest_kbps), shown_rate(size.highest_kbps)
    return low if size.rungs == 1 else f"{low} to {high}"


def difference_line(compared: LadderComparison) -> str:
    """Settings in which the ladders differ."""
    if not compared.differences:
        return "made alike"
    found = [f"{key} ({one}; {other})" for key, (one, other) in compared.differences.items()]
    return printable(f"differ in {', '.join(found)}")


def refusal_lines(compared: LadderComparison) -> list[str]:
    """Why there is no BD-rate, metrics with one reason in one line; then what to do, once."""
    found: dict[str, list[str]] = {}
    for gap in compared.gaps:
        if gap.refused:
            found.setdefault(gap.refused, []).append(metric_name(gap.metric))
    remedies = dict.fromkeys(gap.remedy for gap in compared.gaps if gap.remedy)
    return [
        *(f"no BD-rate by {', '.join(names)}: {why}" for why, names in found.items()),
        *remedies,
    ]


def gap_table(compared: LadderComparison, encoding: str = "utf-8") -> "Table":
    """BD-rates by metric, within 80 columns."""
    return table(GAP_HEADINGS, gap_rows(compared), left=(0,), encoding=encoding)


def pair_table(compared: LadderComparison) -> "Table":
    """The rungs of both by bitrate, within 80 columns: A left, B right."""
    a, b = compared.a, compared.b
    headings = [*rung_headings(a, "A"), " ", *rung_headings(b, "B")]
    rows = [
        [*rung_cells(a, one), " ", *rung_cells(b, other)]
        for one, other in side_by_side(a.rungs, b.rungs)
    ]
    return table(headings, rows)


def print_pair(compared: LadderComparison) -> None:
    """Summary, BD-rates, both ladders and warnings on stdout."""
    console = console_for(sys.stdout)
    console.width = min(console.width, WIDTH)
    encoding = console.encoding

    def line(text: str, style: str | None = None) -> None:
        console.print(encodable(printable(text), encoding), style=style)

    line(compared.summary, "bold")
    line("")
    for name, ladder in (("A", compared.a), ("B", compared.b)):
        line(f"{name}  {ladder.folder}: {ladder_words(ladder)}")
        if label_line(ladder):
            line(f"   {label_line(ladder)}")
    line(difference_line(compared))
    line("")
    console.print(gap_table(compared, encoding))
    line("BD-rate: + needs more bits than A at equal score, - fewer; over the rungs")
    line("")
    console.print(pair_table(compared))
    line("")
    for name, ladder in (("A", compared.a), ("B", compared.b)):
        line(f"{name}  {sizes_line(ladder)}")
    for text in refusal_lines(compared):
        line(text, "yellow")
    for text in compared.warnings:
        line(f"warning: {text}", "yellow")
