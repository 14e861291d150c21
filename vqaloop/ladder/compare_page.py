"""Two ladders compared, as one plot and as one HTML page that opens offline."""

import os
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from vqaloop.core.text import cut, printable
from vqaloop.core.version import __version__
from vqaloop.ladder.compare import LadderComparison, curve_of, own_metric, settings, size_ranges
from vqaloop.ladder.compare_table import (
    GAP_HEADINGS,
    gap_rows,
    rate_words,
    refusal_lines,
    rung_cells,
    rung_headings,
    rung_rows,
    side_by_side,
)
from vqaloop.ladder.rd_plot import metric_words
from vqaloop.records import Ladder
from vqaloop.report.html import render
from vqaloop.report.plotting import (
    COLOURS,
    INK,
    as_png,
    as_svg,
    label_octaves,
    open_frame,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


LOOKS = {"A": (COLOURS[0], "o", "full"), "B": (COLOURS[1], "s", "none")}
"""Colour, marker, filling: distinct by shape as well, and where one covers the other."""


def pair_page(compared: LadderComparison) -> str:
    """The page of a comparison, whole."""
    a, b = compared.a, compared.b
    doubts = [*refusal_lines(compared), *compared.warnings]
    one, other = ({"folder": str(ladder.folder), **settings(ladder)} for ladder in (a, b))
    return render(
        "ladder_pair.html",
        title=pair_title(compared),
        kind="calm" if compared.exit_code == 0 else "alarm",
        summary=_sentence(compared.summary),
        doubts=list(map(_sentence, doubts)),
        gaps=(GAP_HEADINGS, gap_rows(compared)),
        broad=pair_svg(compared),
        narrow=pair_svg(compared, narrow=True),
        caption=_caption(compared),
        side_by_side=(
            [*rung_headings(a, "A"), *rung_headings(b, "B")],
            [
                [*rung_cells(a, left, 2), *rung_cells(b, right, 2)]
                for left, right in side_by_side(a.rungs, b.rungs)
            ],
        ),
        below=rung_rows(compared),
        sizes=_size_rows(compared),
        settings=[[key, value, other[key]] for key, value in one.items()],
        version=__version__,
    )


def pair_title(compared: LadderComparison) -> str:
    source = os.path.basename(compared.a.about["source"]["path"])
    codecs = [ladder.about["codec"] for ladder in (compared.a, compared.b)]
    return printable(f"{source}: {' and '.join(dict.fromkeys(codecs))}, two ladders")


def pair_png(compared: LadderComparison) -> bytes:
    with style(14, "black"):
        return as_png(_figure(compared, (12, 8), pair_title(compared)))


def pair_svg(compared: LadderComparison, narrow: bool = False) -> Markup:
    """The plot for the page, in the page's own text colour; `narrow` for a phone."""
    with style(10, INK):
        figure = _figure(compared, (4.2, 5.4) if narrow else (7.6, 5.4), narrow=narrow)
        salt = "narrow" if narrow else "vqaloop"
        return as_svg(figure, "Score over bitrate of both ladders", salt)


def _figure(
    compared: LadderComparison,
    inches: tuple[float, float],
    title: str = "",
    narrow: bool = False,
) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(cut(title, 80))
    axes.set_xscale("log", base=2)
    axes.set_xlabel("bitrate (kb/s, log scale)")
    metric = _plotted(compared)
    guards = {"vmaf": "VMAF", "psnr_y": "PSNR-Y (dB)", "vmaf_v1": "VMAF v1", "xpsnr": "XPSNR (dB)"}
    axes.set_ylabel(cut(guards.get(metric) or metric_words(compared.a), 60))
    open_frame(axes)
    # what lies above has its labels above
    upper = "A" if compared.more_bits == "b" else "B"
    for name, ladder in (("A", compared.a), ("B", compared.b)):
        _draw(axes, ladder, name, metric, above=name == upper)
    # room for the size that is written left of the lowest rung
    axes.margins(x=0.32 if narrow else 0.12)
    label_octaves(axes, most=6 if narrow else 12)
    if narrow:
        figure.legend(loc="outside lower center", framealpha=0, fontsize=8)
    else:
        axes.legend(loc="lower right", framealpha=0)
    return figure


def _draw(axes: "Axes", ladder: Ladder, name: str, metric: str, above: bool) -> None:
    """Hull and rungs of one ladder; its first rung of each size bears the size."""
    import matplotlib

    colour, marker, filling = LOOKS[name]
    points = matplotlib.rcParams["font.size"]
    look: dict[str, Any] = {"color": colour, "linewidth": 1.2}
    made = f"{ladder.about['codec']}, preset {ladder.about['encoder']['preset']}"
    if _is_own(ladder, metric):
        hull = sorted((p["bitrate_kbps"], p["score"]) for p in ladder.about["hull"])
        hull = [point for point in hull if point[0] > 0]
        if hull:
            axes.plot(*zip(*hull, strict=True), **look, linestyle="--", label=f"{name}: hull")
    rungs = curve_of(ladder, metric)
    axes.plot(
        *zip(*rungs, strict=True), **look, linestyle="none", marker=marker,
        fillstyle=filling, markersize=0.7 * points,
        label=f"{name}: rungs, {cut(printable(made), 40)}",
    )  # fmt: skip
    seen: set[tuple[int, int]] = set()
    for rung, (rate, value) in zip(ladder.rungs, rungs, strict=True):
        size = rung.width, rung.height
        if size not in seen and value == value:
            seen.add(size)
            axes.annotate(
                f"{size[0]}x{size[1]}",
                (rate, value),
                (-0.6 * points, 0.6 * points) if above else (0.6 * points, -0.6 * points),
                textcoords="offset points",
                color=colour,
                size=0.85 * points,
                ha="right" if above else "left",
                va="bottom" if above else "top",
            )


def _plotted(compared: LadderComparison) -> str:
    """The metric of the plot: the one of the answer, else the first."""
    return (compared.headline or compared.gaps[0]).metric


def _is_own(ladder: Ladder, metric: str) -> bool:
    return own_metric(ladder) == metric


def _caption(compared: LadderComparison) -> str:
    metric = _plotted(compared)
    hulls = [name for name, it in (("A", compared.a), ("B", compared.b)) if _is_own(it, metric)]
    drawn = f"Dashed: the hull of {' and of '.join(hulls)}. " if hulls else ""
    return f"{drawn}Each ladder's first rung of a size bears that size."


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _size_rows(compared: LadderComparison) -> list[list[str]]:
    """Sizes down, ladders across: the bitrates at which each sends it."""
    sent = [
        {(size.width, size.height): rate_words(size) for size in size_ranges(ladder)}
        for ladder in (compared.a, compared.b)
    ]
    sizes = sorted({*sent[0], *sent[1]}, key=lambda size: (size[0] * size[1], size))
    return [[f"{w}x{h}", *(rates.get((w, h), "-") for rates in sent)] for w, h in sizes]
