"""A ladder at a terminal: the table of rungs, warnings and what it cost."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vqaloop.core.text import counted, printable, shown, shown_rate
from vqaloop.records import Ladder
from vqaloop.report.console import WIDTH, console_for, print_line, table

if TYPE_CHECKING:
    from rich.table import Table


def ladder_table(ladder: Ladder) -> "Table":
    """The rungs, lowest first, within 80 columns; bitrates in kb/s."""
    knob = printable(ladder.rungs[0].knob[0])[:9] if ladder.rungs else "knob"
    rows = [
        [
            str(number),
            f"{rung.width}x{rung.height}",
            shown_rate(rung.bitrate_kbps),
            shown_rate(rung.peak_kbps),
            f"{rung.knob[1]:g}",
            shown(rung.score),
            shown(rung.score_predicted),
            shown(rung.guard.get("vmaf")),
            shown(rung.guard.get("psnr_y")),
        ]
        for number, rung in enumerate(ladder.rungs, 1)
    ]
    headings = ("#", "size", "kb/s", "peak", knob, "score", "predicted", "VMAF", "PSNR-Y")
    return table(headings, rows)


def cost_line(ladder: Ladder) -> str:
    """What making the ladder took, in one line.

    The encodes are the encoder runs of that call, the pixels theirs; those recalled from the
    cache come on top. Seconds are CPU seconds, the last ones are on the clock.
    """
    cost = ladder.about["cost"]
    recalled = sum(bool(trial.get("cached")) for trial in ladder.about["trials"])
    again = f" ({recalled} more from the cache)" if recalled else ""
    encodes = counted(cost["encodes"], "encode") + again
    frames = f"{cost['encoded_frames']} frames, {_si(cost['encoded_pixels'])}pixel"
    spent = [("encoding", "encode_cpu_s"), ("scoring", "score_s"), ("guard", "guard_s")]
    seconds = [f"{what} {cost[key]:.1f} s CPU" for what, key in spent if cost.get(key) is not None]
    return ", ".join([f"{encodes}: {frames}", *seconds, f"{cost['wall_s']:.1f} s in all"])


def estimate_line(estimate: Mapping[str, Any]) -> str:
    """How far the windows were from the title they stood for."""
    if not estimate["encodes"]:
        return "the windows that stood for the title had promised nothing of these files"
    return (
        f"the whole title took {estimate['bitrate_percent']:+.1f} % of bitrate and scored "
        f"{estimate['score']:+.1f} against what its windows promised (at worst "
        f"{estimate['bitrate_percent_worst']:+.1f} % and {estimate['score_worst']:+.1f}), "
        "mended in these rungs"
    )


def _si(value: float) -> str:
    for prefix in ("", "k", "M", "G"):
        if value < 999.5:
            return f"{value:.3g} {prefix}"
        value /= 1000
    return f"{value:.4g} T"


def print_ladder(ladder: Ladder) -> None:
    """Table, warnings, what it cost and where it is, on stdout."""
    console = console_for(sys.stdout)
    console.print(ladder_table(ladder), width=min(console.width, WIDTH))
    print_line(console, "")
    for warning in ladder.about.get("warnings") or ():
        print_line(console, f"warning: {warning}", "yellow")
    if not ladder.trusted:
        print_line(console, "not to be trusted: a score missed its prediction", "bold red")
    if ladder.about.get("estimate"):
        print_line(console, estimate_line(ladder.about["estimate"]))
    print_line(console, cost_line(ladder))
    print_line(console, f"in {ladder.folder}")
