"""Trends of a regress history as a plot and as an HTML page."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from vqaloop.core.files import write_whole
from vqaloop.core.text import quoted
from vqaloop.core.version import __version__
from vqaloop.errors import InputError
from vqaloop.report.html import render
from vqaloop.report.plotting import COLOURS, INK, as_png, as_svg, ink, open_frame, style
from vqaloop.trend.table import short_name, trend_text
from vqaloop.trend.trend import Change, Trend, read_trend, trend_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


PANELS = 8
"""Of a plot, the newest trends."""
TICKS = 8
STEPS = 3
"""Heights at which changes are named, one below the other."""


def show_trend(
    store: Path,
    out: Path | None = None,
    *,
    codec: str | None = None,
    metric: str | None = None,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> list[Trend]:
    """Print the trends of a store, line by line, and draw them to `out` (.png, .svg, .html).

    Raises InputError for a store that is missing or not ours, or an `out` that cannot be written.
    """
    trends = read_trend(store, codec, metric=metric, seed=seed)
    if out is not None and trends:
        write_trend(trends, out)
    for trend in trends:
        for line in trend_text(trend).splitlines():
            say(line)
        say("")
    if not trends:
        say(f"nothing in the history {quoted(store)} yet" + " for these options" * bool(codec))
    elif out is not None:
        say(f"wrote {out}")
    return trends


def write_trend(trends: Sequence[Trend], out: Path) -> None:
    """The trends as a plot or a page, whole or not at all. Raises InputError."""
    makers: dict[str, Callable[[Sequence[Trend]], bytes | str]] = {
        ".png": trend_png,
        ".svg": trend_svg,
        ".html": trend_page,
    }
    if out.suffix.lower() not in makers:
        raise InputError(f"the trend {quoted(out)} must end in {', '.join(makers)}")
    write_whole(out, makers[out.suffix.lower()](trends))


def trend_page(trends: Sequence[Trend]) -> str:
    """A page that opens offline, the newest trend first."""
    drawn = [
        (trend_svg([trend], f"trend{number}"), trend_text(trend))
        for number, trend in enumerate(reversed(trends))
    ]
    return render("trend.html", title="Trend of builds", trends=drawn, version=__version__)


def trend_png(trends: Sequence[Trend]) -> bytes:
    """A panel for each of the newest trends."""
    with style(11, "black"):
        return as_png(_figure(trends))


def trend_svg(trends: Sequence[Trend], salt: str = "trend") -> Markup:
    """As `trend_png`, in the text colour of the page it is put into."""
    with style(10, INK):
        return as_svg(_figure(trends), "Bitrate at equal score over time", salt)


def _figure(trends: Sequence[Trend]) -> "Figure":
    from matplotlib.figure import Figure

    trends = trends[-PANELS:]
    figure = Figure(figsize=(10, 1 + 3.5 * len(trends)), dpi=100, layout="constrained")
    for axes, trend in zip(figure.subplots(len(trends), squeeze=False).flat, trends, strict=True):
        _draw(axes, trend)
    return figure


def _draw(axes: "Axes", trend: Trend) -> None:
    axes.set_title(trend_title(trend))
    axes.set_ylabel("bitrate at equal score,\n% against the first baseline")
    open_frame(axes)
    axes.axhline(0, color=ink(), linewidth=0.8)
    places = [i for i, level in enumerate(trend.levels) if level is not None]
    levels = [level for level in trend.levels if level is not None]
    if places:
        axes.errorbar(
            places,
            levels,
            yerr=_bars(trend, places, levels),
            color=COLOURS[0],
            marker="o",
            markersize=4,
            linewidth=1,
            elinewidth=0.8,
            label="candidates, with the interval over clips",
        )
    floors = [trend.rows[i].noise_floor or 0.0 for i in places]
    if any(floors):
        low = [level - floor for level, floor in zip(levels, floors, strict=True)]
        high = [level + floor for level, floor in zip(levels, floors, strict=True)]
        axes.fill_between(
            places, low, high, color=COLOURS[0], alpha=0.15, linewidth=0, label="noise floor"
        )
    lost = [i for i in range(len(trend.rows)) if i not in set(places)]
    if lost:
        axes.plot(
            lost,
            [0] * len(lost),
            color=ink(),
            marker="x",
            linestyle="none",
            label="could not be told",
        )
    # room for the words at the changes
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top + (top - bottom) * 0.08 * min(len(trend.changes), STEPS))
    for number, change in enumerate(trend.changes):
        _mark(axes, trend, change, number % STEPS)
    count = len(trend.rows)
    ticks = range(0, count, max(1, -(-count // TICKS)))
    axes.set_xticks(list(ticks), [f"{trend.rows[i].when:%Y-%m-%d}" for i in ticks])
    axes.set_xlim(-0.7, max(count - 0.3, 1.7))
    below: Any = {"loc": "upper left", "bbox_to_anchor": (0, -0.1), "ncols": 3}
    axes.legend(**below, framealpha=0, fontsize="small")


def _bars(
    trend: Trend, places: Sequence[int], levels: Sequence[float]
) -> tuple[list[float], list[float]]:
    """How far each row's interval reaches below and above its level."""
    below, above = [], []
    for place, level in zip(places, levels, strict=True):
        row = trend.rows[place]
        value = row.bd_rate or 0.0
        low, high = row.interval or (value, value)
        # a row's own baseline is itself at some level
        scale = (1 + level / 100) / (1 + value / 100)
        below.append(max(value - low, 0.0) * scale)
        above.append(max(high - value, 0.0) * scale)
    return below, above


def _mark(axes: "Axes", trend: Trend, change: Change, step: int) -> None:
    import matplotlib

    colour = COLOURS[1] if change.step > 0 else COLOURS[2]
    axes.axvline(change.row - 0.5, color=colour, linestyle="--", linewidth=1.2)
    # beyond the middle the words stand left of their line, so that they stay inside
    right = change.row > len(trend.rows) / 2
    axes.annotate(
        f"{change.step:+.2f} %: {short_name(trend.rows[change.row].candidate, 32)}",
        (change.row - 0.5, 1.0),
        (-4 if right else 4, -4 - 1.3 * step * matplotlib.rcParams["font.size"]),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="right" if right else "left",
        va="top",
        size="small",
        color=colour,
    )
