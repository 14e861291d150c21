"""Console tables and lines, for a terminal or a log.

Names of files and messages of programs are data: no control character of theirs reaches a
terminal, and letters that its encoding lacks are written as escapes.
"""

import contextlib
import os
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

from vqaloop.core.text import printable

if TYPE_CHECKING:
    from rich.console import Console, JustifyMethod, OverflowMethod
    from rich.table import Table
    from rich.text import Text


WIDTH = 80
"""Columns a table keeps to, however wide the terminal."""


def encodable(text: str, encoding: str | None = None) -> str:
    """The text with what an encoding, by default UTF-8, lacks as backslash escapes."""
    encoding = encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence["str | Text"]],
    *,
    left: Collection[int] = (),
    padding: int = 1,
    overflow: "OverflowMethod" = "ellipsis",
    encoding: str = "utf-8",
) -> "Table":
    """A table with a line under its headings and none around it; cells are printable text.

    Columns with an index in `left` are aligned to the left, the others, of numbers, to the right.
    `padding` columns stand between them; `overflow` is what becomes of a cell without room. Cells
    get escapes for what the `encoding` lacks before they are measured.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, padding), pad_edge=False, show_edge=False)
    for index, heading in enumerate(headings):
        side: JustifyMethod = "left" if index in left else "right"
        drawn.add_column(Text(heading), justify=side, no_wrap=True, overflow=overflow)
    for row in rows:
        drawn.add_row(
            *(
                Text(encodable(printable(cell), encoding)) if isinstance(cell, str) else cell
                for cell in row
            )
        )
    return drawn


def console_for(stream: TextIO) -> "Console":
    """A console with colours only on a terminal, even where FORCE_COLOR is set."""
    from rich.console import Console

    class Candid(Console):
        # rich would end the program with status 1; it calls this while it handles the error
        def on_broken_pipe(self) -> None:
            raise

    live = is_terminal(stream)
    return Candid(
        file=stream,
        force_terminal=live,
        force_jupyter=False,
        width=None if live else WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
    )


def is_terminal(stream: TextIO) -> bool:
    with contextlib.suppress(ValueError):  # a closed stream
        return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    return False


def print_line(console: "Console", line: str, style: str | None = None) -> None:
    console.print(encodable(printable(line), console.encoding), style=style, soft_wrap=True)
