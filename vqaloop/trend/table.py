"""Trends as text: a table of 80 columns and the changes in words."""

import io
import json
from typing import TYPE_CHECKING

from vqaloop.core.text import counted, printable, shown
from vqaloop.report.console import WIDTH, table
from vqaloop.trend.store import BuildName
from vqaloop.trend.trend import Change, Trend, trend_title

if TYPE_CHECKING:
    from rich.table import Table


ROWS = 20
"""Of a table, the newest."""


def trend_text(trend: Trend) -> str:
    """Heading, table and changes, in lines of at most 80 columns."""
    from rich.console import Console

    buffer = io.StringIO()
    console = Console(file=buffer, width=WIDTH, color_system=None, highlight=False, markup=False)
    console.print(trend_title(trend), markup=False)
    console.print(trend_table(trend))
    for line in change_lines(trend):
        console.print(line, markup=False)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def trend_table(trend: Trend) -> "Table":
    """The newest rows, within 80 columns. BD-rate and level in percent, + is worse; * changes."""
    changed = {change.row for change in trend.changes}
    start = max(len(trend.rows) - ROWS, 0)
    rows = []
    for index, row in list(enumerate(trend.rows))[start:]:
        ends = row.interval or (None, None)
        cells = [
            "*" if index in changed else "",
            f"{row.when:%Y-%m-%d}",
            _build_label(row.candidate, 22),
            _signed(row.bd_rate),
            " ".join(_signed(end) for end in ends) if row.interval else "-",
            _signed(trend.levels[index]),
            shown(row.cpu_ratio, 2),
            row.overall,
        ]
        rows.append(cells)
    headings = ("", "when", "candidate", "BD %", "interval", "total", "CPU", "verdict")
    return table(headings, rows, left=(0, 1, 2, 7), padding=0)


def change_lines(trend: Trend) -> list[str]:
    """What changed and where, in words."""
    lines = []
    hidden = len(trend.rows) - ROWS
    if hidden > 0:
        lines.append(f"({counted(hidden, 'older comparison')} not shown)")
    for change in trend.changes:
        row = trend.rows[change.row]
        lines.append(
            f"* {row.when:%Y-%m-%d}: {'worse' if change.step > 0 else 'better'} by "
            f"{abs(change.step):.2f} % at {_full_name(row.candidate)}, {_since(trend, change)}"
        )
    known = [level for level in trend.levels if level is not None]
    if not trend.changes:
        lines.append("no change found")
    if known:
        lines.append(f"total {_signed(known[-1])} % against {_full_name(trend.rows[0].baseline)}")
    return lines


def _since(trend: Trend, change: Change) -> str:
    row = trend.rows[change.row]
    if change.p_value is None:
        return f"by its own comparison with {_full_name(row.baseline)}"
    before = [
        earlier
        for earlier in trend.rows[: change.row]
        if earlier.baseline == row.baseline and earlier.bd_rate is not None
    ]
    return f"after {_full_name(before[-1].candidate)} (p = {change.p_value:.2g})"


def short_name(build: BuildName, width: int = 24) -> str:
    """Version, cut in its middle, and the start of the hash: at most `width` characters."""
    room = width - 8
    version = printable(build.version)
    if len(version) > room:
        version = f"{version[: (room - 2) // 2]}..{version[len(version) - (room - 1) // 2 :]}"
    return f"{version} {build.sha256[:7]}"


def _build_label(build: BuildName, width: int) -> str:
    """What distinguishes a build in a table: its version, or its arguments where it has some."""
    args = printable(" ".join(json.loads(build.args)))
    label = f"{build.sha256[:7]} {args}" if args else short_name(build, width)
    return label if len(label) <= width else f"{label[: width - 2]}.."


def _full_name(build: BuildName) -> str:
    args = printable(" ".join(json.loads(build.args)))
    return short_name(build, 68) + (f" {args[:60]}" if args else "")


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"
