"""`vqaloop ladder` over many titles."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqaloop.catalogue.titles import is_table
from vqaloop.cli.output import emit, say
from vqaloop.records import Event

if TYPE_CHECKING:
    from rich.table import Table

    from vqaloop.catalogue.entries import Catalogue, Entry
    from vqaloop.report.progress import Progress


def are_many(inputs: Sequence[Path]) -> bool:
    """Whether these inputs make a catalogue rather than one ladder."""
    return len(inputs) > 1 or is_table(inputs[0])


def build_from(
    inputs: Sequence[Path], codecs: Sequence[str], asked: Mapping[str, Any]
) -> "Catalogue":
    """The catalogue of the inputs; `asked` are the arguments of `build_ladder`."""
    from vqaloop.catalogue.build import build_catalogue

    board = Board(asked["progress"])
    return build_catalogue(inputs, codec=codecs, **{**asked, "progress": board})


def show(options: argparse.Namespace, catalogue: "Catalogue") -> int:
    """Print it, write the document; the exit status."""
    if options.json != "-":
        print_catalogue(options, catalogue)
    emit(options, catalogue.to_json())
    return catalogue.exit_code


class Board:
    """Progress of all titles: a line an event, or on a terminal one bar that counts titles."""

    def __init__(self, progress: "Progress") -> None:
        self.progress, self.done, self.total = progress, 0, 0
        self.left_s: float | None = None

    def __call__(self, event: Event) -> None:
        from vqaloop.catalogue.build import STAGE

        if not self.progress.live:
            self.progress(event)
            return
        message = event.message
        if event.stage == STAGE:
            self.done, self.total, self.left_s = event.done, event.total, event.left_s
            self.progress.log(message)
        else:
            message = f"{event.stage}: {message}"
        counted = Event("titles", message, self.done, self.total, event.trial)
        self.progress(replace(counted, left_s=self.left_s))


def catalogue_table(catalogue: "Catalogue", encoding: str = "utf-8") -> "Table":
    """A row a ladder, in their order, within 80 columns; bitrates in kb/s."""
    from vqaloop.catalogue.report import has_means
    from vqaloop.report.console import table

    means = has_means(catalogue.entries)
    rows = [[entry.name, entry.codec, *_cells(entry, means)] for entry in catalogue.entries]
    headings = ["title", "codec", "rungs", "top size", "kb/s", "score", *["mean"] * means]
    headings += ["encodes", "state"]
    drawn = table(headings, rows, left=(0, len(headings) - 1), encoding=encoding)
    drawn.columns[0].max_width = 22
    return drawn


def _cells(entry: "Entry", means: bool) -> list[str]:
    from vqaloop.core.text import shown, shown_rate

    if not entry.about:
        return ["-"] * (5 + means) + ["failed"]
    rungs = entry.about["rungs"]
    low, top = rungs[0], rungs[-1]
    return [
        str(len(rungs)),
        f"{top['width']}x{top['height']}",
        f"{shown_rate(low['bitrate_kbps'])}-{shown_rate(top['bitrate_kbps'])}",
        shown(top["score"]),
        *([shown(top.get("score_mean"))] if means else []),
        str(entry.about["cost"]["encodes"]),
        "done" if entry.status == "done" else "doubtful",
    ]


def print_catalogue(options: argparse.Namespace, catalogue: "Catalogue") -> None:
    """Table, reasons, what it took and where it is, on stdout."""
    from vqaloop.catalogue.report import cost_line
    from vqaloop.report.console import WIDTH, console_for

    console = console_for(sys.stdout)
    table = catalogue_table(catalogue, console.encoding)
    console.print(table, width=min(console.width, WIDTH))
    say(options, "")
    for status, words in (("failed", "failed"), ("untrusted", "not to be trusted")):
        for entry in catalogue.of_status(status):
            say(options, f"{entry.name} {entry.codec} {words}: {entry.reason}")
    say(options, f"{catalogue.summary}: {cost_line(catalogue)}")
    say(options, f"in {catalogue.folder}")
