"""What all plots share: colours, matplotlib style, axes in octaves, SVG and PNG output."""

import contextlib
import io
import math
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette, distinct to colour-blind people on white and on black."""
INK = "#010203"
"""Placeholder in a page's plots for the text colour, which CSS decides."""

_one_at_a_time = threading.RLock()


def as_png(figure: "Figure") -> bytes:
    """A figure drawn within `style`, for a file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def as_svg(figure: "Figure", label: str, salt: str = "vqaloop") -> Markup:
    """A figure drawn within `style` in INK, as inline SVG in the page's text colour.

    `label`, never data of others, is its accessible name. Figures of one page need a `salt` each,
    from which their identifiers are made.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    nameless = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.set_facecolor("none")
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata=nameless)  # type: ignore[no-untyped-call]
    # groups are named alike in every figure, and nothing refers to them
    drawing = re.sub(r'<g id="[\w.]+"', "<g", buffer.getvalue())
    drawing = drawing[drawing.index("<svg") + 4 :].replace(INK, "currentColor")
    return Markup(f'<svg role="img" aria-label="{label}"{drawing}')


@contextlib.contextmanager
def style(points: float, ink: str) -> Iterator[None]:
    """Matplotlib's settings for plots that hold text of others, in one text colour.

    They are global to the process: threads that draw take turns.
    """
    import matplotlib

    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    settings: dict[Any, Any] = {
        "font.size": points,
        "text.parse_math": False,
        "text.usetex": False,
        "svg.fonttype": "none",
        "axes.facecolor": "none",
        "legend.facecolor": "none",
        **dict.fromkeys(inked, ink),
    }
    with _one_at_a_time, matplotlib.rc_context(settings), warnings.catch_warnings():
        # a file name may hold letters that the font lacks; a box for them is good enough
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        yield


def label_octaves(axes: "Axes", which: str = "x", most: int = 12) -> None:
    """Ticks at 125, 250, 500, 1000 kb/s and so on, and at 64, 32, 16 and so on below.

    Powers of two apart, or nearly, and round; on the x or the y axis, `most` at a time.
    """
    ends = axes.get_xlim() if which == "x" else axes.get_ylim()
    low, high = _octave(ends[0], math.floor), _octave(ends[1], math.ceil)
    step = math.ceil((high - low) / most)
    # the last one is at or beyond the end, so that nothing is cut off
    octaves = range(low, high + step, step)
    ticks = [125 * 2.0**n if n >= 0 else 2.0 ** (n + 7) for n in octaves]
    words = [f"{tick:.3g}" if tick < 1 else f"{tick:.0f}" for tick in ticks]
    if which == "x":
        axes.set_xlim(min(ticks), max(ticks))
        axes.set_xticks(ticks, words)
    else:
        axes.set_ylim(min(ticks), max(ticks))
        axes.set_yticks(ticks, words)
    axes.minorticks_off()


def _octave(kbps: float, whole: Callable[[float], int]) -> int:
    """The number of the tick before or after a rate: 0 at 125 kb/s, 1 at 250, -1 at 64."""
    return whole(math.log2(kbps / 125)) if kbps >= 125 else whole(math.log2(kbps)) - 7


def panel(x: str, y: str, left: float = 0.15, width: float = 0.80) -> "tuple[Figure, Axes]":
    """A small figure of one plot, with labels for both axes.

    `left` and `width` place the axes, as parts of the figure's width.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 3.4), dpi=100)
    # a constrained layout takes most of the drawing time, and all these figures are alike
    axes = figure.add_axes((left, 0.16, width, 0.81))
    axes.set(xlabel=x, ylabel=y)
    open_frame(axes)
    return figure, axes


def open_frame(axes: "Axes") -> None:
    """Axes without the upper and right spine, over a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#888888", alpha=0.3)


def ink() -> str:
    """The text colour of the `style` in force."""
    import matplotlib

    return str(matplotlib.rcParams["text.color"])


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending places from low to high, `gap` apart, with the least squares to those wanted.

    Nearer each other where they have not the room.
    """
    import numpy as np
    from scipy.optimize import isotonic_regression

    steps = min(gap, (high - low) / len(wanted)) * np.arange(len(wanted))
    # less their distances, places need only ascend
    free = isotonic_regression(np.asarray(wanted) - steps).x
    return [float(place) for place in np.clip(free, low, high - steps[-1]) + steps]
