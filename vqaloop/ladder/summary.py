"""A ladder at a terminal: the table of rungs, warnings and cost."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vqaloop.core.text import counted, printable, shown, shown_rate
from vqaloop.ladder.warnings import UNTRUSTED
from vqaloop.quality.guard import WORST_SECOND
from vqaloop.records import Ladder
from vqaloop.report.console import WIDTH, console_for, print_line, table
from vqaloop.report.cost import spent_words

if TYPE_CHECKING:
    from rich.table import Table


def ladder_table(ladder: Ladder) -> "Table":
    """The rungs, lowest first, within 80 columns; bitrates in kb/s."""
    knob = printable(ladder.rungs[0].knob[0])[:9] if ladder.rungs else "knob"
    opinions = has_opinions(ladder)
    rows = [
        [
            str(number),
            f"{rung.width}x{rung.height}",
            shown_rate(rung.bitrate_kbps),
            shown_rate(rung.peak_kbps),
            f"{rung.knob[1]:g}",
            shown(rung.score),
            *([shown(rung.opinion)] if opinions else []),
            shown(rung.score_predicted),
            *(shown(rung.guard.get(name)) for name in ("vmaf", WORST_SECOND)),
        ]
        for number, rung in enumerate(ladder.rungs, 1)
    ]
    headings = ["#", "size", "kb/s", "peak", knob, "score", "predicted"]
    headings += ["VMAF", "worst s"]
    if opinions:
        headings.insert(headings.index("predicted"), "opinion")
    return table(headings, rows)


def has_opinions(ladder: Ladder) -> bool:
    """Whether its scores are mapped from a scale of opinions, which is shown beside."""
    return any(rung.opinion is not None for rung in ladder.rungs)


def label_line(ladder: Ladder) -> str:
    """How scores mapped from a scale of opinions came about; "" for others."""
    metric = ladder.about["metric"]
    scale = metric.get("scale")
    if not scale:
        return ""
    return (
        f"opinion: {printable(metric['label'] or 'no label')}, for the score mapped to "
        f"{printable(scale['target'])} (error {scale['rmse']:.1f} points on titles left out)"
    )


def cost_line(ladder: Ladder) -> str:
    """Cost of making the ladder, in one line.

    The encodes are the encoder runs of that call, the pixels theirs; encodes taken from the cache
    come on top.
    """
    cost = ladder.about["cost"]
    cached = sum(bool(trial.get("cached")) for trial in ladder.about["trials"])
    encodes = counted(cost["encodes"], "encode")
    encodes += f" ({cached} more from the cache)" if cached else ""
    frames = f"{cost['encoded_frames']} frames, {_si(cost['encoded_pixels'])}pixel"
    return f"{encodes}: {frames}, {spent_words(cost)}"


def estimate_line(estimate: Mapping[str, Any]) -> str:
    """How far the excerpt's predictions were from the whole title."""
    if not estimate["encodes"]:
        return "the excerpt made no prediction for these renditions"
    return (
        f"the whole title took {estimate['bitrate_percent']:+.1f} % of bitrate and scored "
        f"{estimate['score']:+.1f} against what its excerpt predicted (at worst "
        f"{estimate['bitrate_percent_worst']:+.1f} % and {estimate['score_worst']:+.1f}), "
        "corrected in these rungs"
    )


def _si(value: float) -> str:
    for prefix in ("", "k", "M", "G"):
        if value < 999.5:
            return f"{value:.3g} {prefix}"
        value /= 1000
    return f"{value:.4g} T"


def print_ladder(ladder: Ladder) -> None:
    """Table, warnings, cost and folder, on stdout."""
    console = console_for(sys.stdout)
    console.print(ladder_table(ladder), width=min(console.width, WIDTH))
    print_line(console, "")
    if label_line(ladder):
        print_line(console, label_line(ladder))
    for warning in ladder.about.get("warnings") or ():
        print_line(console, f"warning: {warning}", "yellow")
    if not ladder.trusted:
        print_line(console, f"not to be trusted: {UNTRUSTED}", "bold red")
    if ladder.about.get("estimate"):
        print_line(console, estimate_line(ladder.about["estimate"]))
    print_line(console, cost_line(ladder))
    print_line(console, f"in {ladder.folder}")
