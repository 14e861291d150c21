"""The plot of a ladder: rate against score of every trial, the hull, and the rungs."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from vqaloop.core.text import printable
from vqaloop.records import Ladder
from vqaloop.report.plotting import (
    COLOURS,
    INK,
    as_png,
    as_svg,
    ink,
    label_octaves,
    open_frame,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MARKERS = "osv^PX*"
"""One more than colours, so that 42 sizes look different; diamonds are for VMAF."""


def ladder_title(ladder: Ladder) -> str:
    return (
        f"{printable(os.path.basename(ladder.about['source']['path']))}, {ladder.about['codec']}"
    )


def rd_png(ladder: Ladder) -> bytes:
    with style(14, "black"):
        return as_png(_figure(ladder, (12, 8), ladder_title(ladder)))


def rd_svg(ladder: Ladder, narrow: bool = False) -> Markup:
    """The plot for the page, in the page's own text colour; `narrow` for a phone."""
    with style(10, INK):
        figure = _figure(ladder, (4.2, 5.4) if narrow else (7.6, 5.4), narrow=narrow)
        return as_svg(figure, "Score over bitrate", "narrow" if narrow else "vqaloop")


def _figure(
    ladder: Ladder, inches: tuple[float, float], title: str = "", narrow: bool = False
) -> "Figure":
    from matplotlib.figure import Figure

    # a constrained layout takes most of the drawing time; only the legend below needs one
    figure = Figure(figsize=inches, dpi=100, layout="constrained" if narrow else None)
    if narrow:
        axes = figure.add_subplot()
    else:
        right, top = (0.92 if in_db(ladder) else 0.965), (0.95 if title else 0.985)
        axes = figure.add_axes((0.08, 0.1, right - 0.08, top - 0.1))
    axes.set_title(title if len(title) <= 80 else f"{title[:50]}...{title[-27:]}")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("bitrate (kb/s, log scale)")
    axes.set_ylabel(metric_words(ladder))
    open_frame(axes)
    draw_trials(axes, ladder, lambda _, trial: trial["bitrate_kbps"], line=True)
    hull = [(p["bitrate_kbps"], p["score"]) for p in ladder.about["hull"]]
    axes.plot(*_columns(hull), color=ink(), linestyle="--", linewidth=1, label="hull")
    _draw_rungs(axes, ladder)
    label_octaves(axes, most=6 if narrow else 12)
    if narrow:
        figure.legend(loc="outside lower center", framealpha=0, ncols=2, fontsize=8)
    else:
        axes.legend(loc="lower right", framealpha=0, ncols=1 + (len(axes.get_lines()) > 10))
    return figure


def _draw_rungs(axes: "Axes", ladder: Ladder) -> None:
    import matplotlib

    points = matplotlib.rcParams["font.size"]
    rungs = [(rung.bitrate_kbps, rung.score) for rung in ladder.rungs]
    # rings, with the number outside: the trial and the VMAF at the same place stay in sight
    ring: dict[str, Any] = {"color": ink(), "fillstyle": "none", "linestyle": "none"}
    axes.plot(
        *_columns(rungs),
        **ring,
        marker="o",
        markersize=1.4 * points,
        markeredgewidth=0.2 * points,
        label="rungs, numbered",
    )
    for number, place in enumerate(rungs, 1):
        axes.annotate(
            str(number),
            place,
            (-points, points),
            textcoords="offset points",
            weight="bold",
            size=1.2 * points,
            ha="center",
            va="center_baseline",
        )
    guard = [(rung.bitrate_kbps, rung.guard.get("vmaf", math.nan)) for rung in ladder.rungs]
    if ladder.about["metric"]["name"] != "vmaf":
        # decibels have a scale of their own
        other = axes.twinx() if in_db(ladder) else axes
        if other is not axes:
            other.set_ylabel("VMAF")
            other.spines["top"].set_visible(False)
        other.plot(*_columns(guard), **ring, marker="D", markersize=0.45 * points)
        # the legend lists the lines of its own axes only
        axes.plot([], [], **ring, marker="D", label="VMAF of the rungs")


def size_looks(ladder: Ladder) -> dict[tuple[int, int], tuple[str, str]]:
    """Colour and marker of each size, largest first: the same in all plots of a ladder."""
    sizes = {(trial["width"], trial["height"]) for trial in ladder.about["trials"]}
    sizes |= {(rung.width, rung.height) for rung in ladder.rungs}
    return {
        size: (COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)])
        for index, size in enumerate(sorted(sizes, key=lambda s: (-s[0] * s[1], s)))
    }


def draw_trials(
    axes: "Axes", ladder: Ladder, across: Callable[[int, Mapping[str, Any]], float], line: bool
) -> None:
    """The trials that have a score, by size, those of an excerpt hollow.

    `across` gives the place of a trial on the x axis, by its number from 1 and its record; with
    `line` those of a size are joined.
    """
    trials = list(enumerate(ladder.about["trials"], 1))
    for size, (colour, marker) in size_looks(ladder).items():
        for whole in (True, False):
            points = [
                (across(number, trial), trial["score"])
                for number, trial in trials
                if (trial["width"], trial["height"]) == size
                and trial.get("whole_title", True) == whole
                and trial["score"] is not None
            ]
            if points:
                axes.plot(
                    *_columns(points),
                    color=colour,
                    marker=marker,
                    linestyle=("-" if whole else ":") if line else "none",
                    fillstyle="full" if whole else "none",
                    label=f"{size[0]}x{size[1]}" + ("" if whole else ", excerpt"),
                )


def _columns(points: Sequence[tuple[Any, float]]) -> tuple[list[float], list[float]]:
    kept = sorted((rate, score) for rate, score in points if rate and rate > 0)
    return [rate for rate, _ in kept], [score for _, score in kept]


def in_db(ladder: Ladder) -> bool:
    return ladder.about["metric"]["name"] in ("psnr", "xpsnr")


def metric_words(ladder: Ladder) -> str:
    metric = ladder.about["metric"]
    label = metric["label"] and printable(metric["label"])
    by = f" by {printable(metric['pool'])}" if metric.get("pool") else ""
    if metric["mode"] == "full-reference" and label:
        # the label names the metric itself, not what its weights were fitted to
        return f"{printable(metric['name'])}{by} ({label})"
    notes = ["dB"] * in_db(ladder) + [f"fitted to {label}"] * bool(label)
    return printable(metric["name"]) + by + (f" ({', '.join(notes)})" if notes else "")
