"""A ladder against another for an audience, at a terminal."""

import sys
from typing import TYPE_CHECKING

from vqaloop.core.text import change, printable, shown_rate
from vqaloop.ladder.against import GB_HOUR, Against, Offer, percent, rung_words
from vqaloop.report.console import WIDTH, console_for, encodable, table

if TYPE_CHECKING:
    from rich.table import Table


def offer_table(found: Against) -> "Table":
    """What the audience gets of A and B, and what that costs."""
    a, b = found.a, found.b

    def row(name: str, *cells: str) -> list[str]:
        return [name, *cells]

    rows = [
        row("rungs", str(len(a.rungs)), str(len(b.rungs)), ""),
        row("mean score", *(f"{o.delivered.score:.2f}" for o in (a, b)), f"{found.gain:+.2f}"),
        row("too slow for any", *(f"{o.delivered.unserved:.1%}" for o in (a, b)), ""),
        row("egress, kb/s", *map(_egress, (a, b)), _more(a.delivered.kbps, b.delivered.kbps)),
        row("GB an hour watched", *(f"{o.delivered.kbps * GB_HOUR:.2f}" for o in (a, b)), ""),
        row("storage, kb/s", *map(_storage, (a, b)), _more(a.storage_kbps, b.storage_kbps)),
        row("GB an hour kept", *(f"{o.storage_kbps * GB_HOUR:.2f}" for o in (a, b)), ""),
    ]
    return table(("", "A", "B", "A to B"), rows, left=(0,))


def _egress(offer: Offer) -> str:
    return shown_rate(offer.delivered.kbps)


def _storage(offer: Offer) -> str:
    return shown_rate(offer.storage_kbps)


def _more(ours: float, theirs: float) -> str:
    return change(percent(ours, theirs), " %")


def print_against(found: Against) -> None:
    """Both ladders for the audience, and the rungs of B, on stdout."""
    console = console_for(sys.stdout)
    console.width = min(console.width, WIDTH)

    def line(text: str) -> None:
        console.print(encodable(printable(text), console.encoding))

    share = found.audience.bandwidth_share
    line(f"A  {found.a.name}")
    line(f"B  {found.b.name}")
    line(f"audience {found.audience.name}, by {share:.0%} of each session's bandwidth")
    line("")
    console.print(offer_table(found))
    line("")
    headings = ("B: size", "kb/s", "score", "basis")
    console.print(table(headings, rung_words(found.b.rungs), left=(0, 3)))
    for note in found.notes:
        line(note)
