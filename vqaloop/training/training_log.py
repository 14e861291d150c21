"""Training log: losses and held-out correlations by step, as a CSV and a plot."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vqaloop.core.files import renamed_to
from vqaloop.errors import InputError


class TrainingLog:
    """Rows of one run; a resumed run drops those of steps that it will repeat."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []

    def open(self, step: int) -> None:
        """Go on after `step`. Raises InputError when the file is no such log."""
        if step and self.path.exists():
            try:
                with self.path.open(newline="", encoding="utf-8") as file:
                    rows = [{k: float(v) for k, v in r.items() if v} for r in csv.DictReader(file)]
                self.rows = [row for row in rows if row["step"] <= step]
            except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
                raise InputError(f"{self.path} is no log of a run; move it: {error}") from error

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row of figures by name, `step` among them; those that are None are left out."""
        self.rows.append({k: float(v) for k, v in row.items() if v is not None})

    def summary(self, last: int, steps_left: int) -> str:
        """Mean pace and root of each loss over the last rows, and the time left at that pace."""
        rows = [row for row in self.rows if "seconds" in row][-last:]
        names = dict.fromkeys(k for row in rows for k in row if k not in ("step", "lr", "seconds"))
        means = {k: sum(row.get(k, 0.0) for row in rows) / len(rows) for k in ("seconds", *names)}
        shown = ", ".join(f"{k} {math.sqrt(means[k]):.4f}" for k in names)
        minutes, seconds = divmod(round(steps_left * means["seconds"]), 60)
        pace = f"{means['seconds']:.2f} s a step, {minutes}:{seconds:02} left"
        return f"{pace}; root of each loss: {shown}"

    def plot(self, path: Path) -> None:
        """Losses over steps, and the correlations on titles held out, as a PNG."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.write()
        names = list(dict.fromkeys(k for row in self.rows for k in row))
        taken = {k for row in self.rows if "seconds" in row for k in row}
        losses = [k for k in names if k in taken - {"step", "lr", "seconds"}]
        figures = [k for k in names if k not in taken and "cc" in k]
        figure = Figure(figsize=(12, 5), layout="constrained")
        left, right = figure.subplots(1, 2)
        for axes, chosen in ((left, losses), (right, figures)):
            for name in chosen:
                points = [(row["step"], row[name]) for row in self.rows if name in row]
                axes.plot(*zip(*points, strict=True), label=name, marker="." * (axes is right))
            axes.set_xlabel("step")
            axes.grid(alpha=0.3)
            if chosen:
                axes.legend(fontsize="small")
        left.set_yscale("log")
        left.set_title("parts of the loss")
        right.set_title("titles held out")
        with renamed_to(path) as part:
            FigureCanvasAgg(figure).print_png(str(part))  # type: ignore[no-untyped-call]

    def write(self) -> None:
        """Write the file anew, since its columns may have grown; it is small."""
        names = list(dict.fromkeys(k for row in self.rows for k in row))
        with renamed_to(self.path) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)
