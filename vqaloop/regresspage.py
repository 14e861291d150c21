"""A comparison of two builds as one page that opens offline: curves, differences, and the rest.

Made from the document that `vqaloop regress --json` writes; everything that is data is escaped.
"""

import html
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from vqaloop.page import bullets, escaped, filled, safe, shell_word, table
from vqaloop.plot import COLOURS, INK, as_svg, label_octaves, style
from vqaloop.terminal import metric_name, shown, shown_rate
from vqaloop.verdicts import (
    builds_line,
    change,
    clip_cells,
    clip_line,
    failure_rows,
    headline,
    more_reasons,
    other_rows,
    overall_rows,
    price_line,
    refusals,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vqaloop.bdrate import Curve, Values
    from vqaloop.regression import ClipRuns

Document = Mapping[str, Any]

LOOKS: dict[str, dict[str, Any]] = {
    "baseline": {"color": COLOURS[0], "marker": "o"},
    "candidate": {"color": COLOURS[1], "marker": "s"},
    "repeat": {"color": INK, "marker": ".", "linestyle": ":", "linewidth": 1},
}
"""Told apart by shape as well as by colour."""
WORDS = {"baseline": "baseline", "repeat": "baseline again", "candidate": "candidate"}
MANY_CLIPS = 6
"""With more, those are folded that passed all checks."""
STEPS = 100
"""Points at which a difference is drawn."""


def regress_page(document: Document) -> str:
    verdict = document["verdict"]
    headline, builds = safe(verdict.capitalize()), safe(builds_line(document))
    return filled(
        "regress.html",
        title=f"{headline}: {builds}",
        verdict=headline,
        kind="alarm" if verdict in ("regression", "cannot tell") else "calm",
        summary=safe(document["summary"]),
        builds=builds,
        reasons=bullets(map(safe, more_reasons(document))),
        overall=_overall(document),
        failures=_failures(document),
        refusals=_refusals(document),
        clips="\n".join(_clip(document, clip) for clip in document["clips"]),
        about=_about(document),
        cost=safe(price_line(document)),
        version=safe(document["vqaloop"]),
        when=safe(document["when"]),
    )


def _overall(document: Document) -> str:
    headings = ["metric", "BD-rate %", "Akima %", "95 % interval", "noise floor %", "clips"]
    metrics = table("cards", [*headings, "verdict"], escaped(overall_rows(document)))
    others = ["candidate to baseline", "value", "noise", "verdict"]
    return metrics + "\n" + table("dense", others, escaped(other_rows(document)))


def _failures(document: Document) -> str:
    rows = escaped(failure_rows(document))
    headings = ["clip", "build", "kind", "where", "message"]
    return table("cards words", headings, rows) if rows else "<p>None.</p>"


def _refusals(document: Document) -> str:
    lines = [
        f"{safe(clip)}, {safe(names)}: {safe(why)}" for clip, names, why in refusals(document)
    ]
    return f"<h2>No BD-rate</h2>\n{bullets(lines)}" if lines else ""


def _clip(document: Document, clip: Mapping[str, Any]) -> str:
    cells = clip_cells(document, clip)
    rows = [
        [
            metric_name(name),
            cells[f"bd-rate {name}"],
            *(change((clip["bd_rate"].get(name) or {}).get(key)) for key in ("akima", "noise")),
        ]
        for name in document["metrics"]
    ]
    trouble = any(cell.endswith("!") for cell in cells.values()) or clip["failures"]
    title = f"{safe(clip['clip'])}: {safe(headline(document, clip))}"
    unfolded = " open" if trouble or len(document["clips"]) <= MANY_CLIPS else ""
    return "\n".join(
        [
            f'<details class="clip"{unfolded}><summary>{title}</summary>',
            f"<p>{safe(clip_line(clip, cells))}.</p>",
            table("dense numbers", ["metric", "BD-rate %", "Akima %", "noise %"], escaped(rows)),
            *(_pair(clip, name) for name in document["metrics"]),
            "<details><summary>All runs</summary>",
            _runs(document, clip),
            "</details></details>",
        ]
    )


def _runs(document: Document, clip: Mapping[str, Any]) -> str:
    names = list(document["metrics"])
    headings = ["build", "size", "point", "kb/s", *map(safe, map(metric_name, names))]
    rows = [
        [
            WORDS.get(run["build"], run["build"]),
            f"{run['width']}x{run['height']}",
            str(run["point"]),
            shown_rate(run["bitrate_kbps"]),
            *(shown(run["scores"].get(name), 2) for name in names),
            shown(run["cpu_s"], 2),
            shown(run["peak_bytes"] and run["peak_bytes"] / 2**20),
        ]
        for run in clip["runs"]
    ]
    return table("dense numbers", [*headings, "CPU s", "peak MiB"], escaped(rows))


def _about(document: Document) -> str:
    """The builds, their arguments, and what was asked of them."""
    rows = []
    for key in ("baseline", "candidate"):
        about = document[key] or {}
        args = " ".join(map(shell_word, about.get("args") or ()))
        rows.append(
            [
                key,
                *(safe(str(about.get(name) or "-")) for name in ("name", "kind", "version")),
                "yes" if about.get("saved") else "no",
                f"<code>{html.escape(args)}</code>" if args else "-",
                f"<code>{safe(str(about.get('sha256') or '-'))}</code>",
            ]
        )
    metric = document["metric"]
    said = [
        f"{document['codec']} by {document['encoder']}, preset {document['preset']}",
        f"points {', '.join(map(str, document['points']))}, sizes {', '.join(document['sizes'])}",
        f"threshold {document['threshold_percent']} % by {', '.join(document['gate'])}",
        f"headline metric {metric['name']}, weights {metric.get('weights_sha256') or 'none'}",
        f"machine {document['machine']}",
    ]
    headings = ["build", "file", "kind", "version", "saved", "arguments", "sha256"]
    return table("cards words", headings, rows) + "\n" + bullets(map(safe, said))


def _pair(clip: Mapping[str, Any], metric: str) -> str:
    """Rate and score of both builds, and beside it how far apart they are."""
    name = metric_name(metric)
    figures = []
    with style(10, INK):
        for figure, what in (
            (curves_figure(clip, metric), "Score over bitrate"),
            (difference_figure(clip, metric), "Difference in bitrate over score"),
        ):
            if figure is not None:
                salt = f"{clip['clip']} {metric} {what}"
                figures.append(f"<figure>{as_svg(figure, what, salt)}</figure>")
    if not figures:
        return f"<p>Nothing was measured by {safe(name)}.</p>"
    return f'<h4>{safe(name)}</h4>\n<div class="pair">{"".join(figures)}</div>'


def curves_figure(clip: Mapping[str, Any], metric: str) -> "Figure | None":
    """Score over log rate: every run, and the curves through them. None without a run."""
    curves = _curves(clip, metric)
    if not curves:
        return None
    figure, axes = _panel("bitrate (kb/s, log scale)", _axis(metric))
    axes.set_xscale("log", base=2)
    for build, curve in curves.items():
        look = {**LOOKS[build], "color": _ink(LOOKS[build]["color"])}
        points = [
            (run["bitrate_kbps"], run["scores"][metric])
            for run in clip["runs"]
            if run["build"] == build and _is_drawn(run, metric)
        ]
        axes.plot(*zip(*points, strict=True), **look | {"linestyle": "none"}, markersize=5)
        axes.plot(*_smooth(curve), **look | {"marker": ""})
        # for the legend: line and marker as one
        axes.plot([], [], **look, markersize=5, label=WORDS[build])
    label_octaves(axes)
    axes.legend(loc="lower right", framealpha=0)
    return figure


def difference_figure(clip: Mapping[str, Any], metric: str) -> "Figure | None":
    """Bitrate needed over the baseline's at equal score, in percent, over score.

    The curve of which BD-rate is a mean (see bdrate): it shows where on the range a build loses.
    The baseline's second run shows what is noise. None where the curves cannot be compared.
    """
    from vqaloop.regression import curve_pair

    runs = _drawn(clip, metric)
    pairs = {build: curve_pair(runs, build, metric) for build in ("repeat", "candidate")}
    gaps = {build: _gap(*pair) for build, pair in pairs.items() if all(pair)}
    if gaps.get("candidate") is None:
        return None
    figure, axes = _panel(_axis(metric), "bitrate difference (%)")
    axes.axhline(0, color=_ink(INK), linewidth=1)
    for build, gap in gaps.items():
        if gap is not None:
            look = {**LOOKS[build], "color": _ink(LOOKS[build]["color"]), "marker": ""}
            axes.plot(*gap, **look, label=WORDS[build])
    mean = (clip["bd_rate"].get(metric) or {}).get("pchip")
    if mean is not None:
        look = {"color": COLOURS[1], "linestyle": "--", "linewidth": 1}
        axes.axhline(mean, **look, label=f"BD-rate {change(mean)} %")
    axes.legend(loc="best", framealpha=0)
    return figure


def _axis(metric: str) -> str:
    return metric_name(metric)[:40] + " (dB)" * (metric == "psnr_y")


def _ink(colour: str) -> str:
    """INK stands for whatever the text is drawn in."""
    import matplotlib

    return str(matplotlib.rcParams["text.color"]) if colour == INK else colour


def _panel(x: str, y: str) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 3.4), dpi=100)
    # a layout that is worked out takes most of the time, and all figures are alike
    axes = figure.add_axes((0.17, 0.16, 0.77, 0.81))
    axes.set(xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#888888", alpha=0.3)
    return figure, axes


def _is_drawn(run: Mapping[str, Any], metric: str) -> bool:
    return bool(run["bitrate_kbps"]) and run["scores"].get(metric) is not None


def _curves(clip: Mapping[str, Any], metric: str) -> "dict[str, Curve]":
    """The curve of each build that has any: of several sizes the hull."""
    from vqaloop.regression import rate_curve

    found = {build: rate_curve(_drawn(clip, metric).of(build), metric) for build in WORDS}
    return {build: curve for build, curve in found.items() if curve}


def _drawn(clip: Mapping[str, Any], metric: str) -> "ClipRuns":
    """The clip with those of its runs that can be drawn."""
    from vqaloop.regression import ClipRuns, Run

    names = ("build", "width", "height", "point", "bitrate_kbps", "scores", "cpu_s", "wall_s")
    runs = tuple(
        Run(
            **{key: run[key] for key in (*names, "peak_bytes", "stream_sha256", "decoded_md5")},
            value=run["knob"],
        )
        for run in clip["runs"]
        if _is_drawn(run, metric)
    )
    about = {key: clip[key] for key in ("clip", "sha256", "width", "height", "frames", "fps")}
    return ClipRuns(**about, runs=runs)


def _fit(curve: "Curve") -> "Callable[[Values], Values] | None":
    """Log rate over score, as BD-rate has it; None where that is not defined."""
    import numpy as np
    from scipy.interpolate import PchipInterpolator

    from vqaloop.bdrate import NotComparable, bd_rate

    try:
        bd_rate(curve, curve)
    except NotComparable:
        return None
    rates, scores = zip(*curve, strict=True)
    found: Callable[[Values], Values] = PchipInterpolator(scores, np.log(rates))
    return found


def _smooth(curve: "Curve") -> "tuple[Any, Any]":
    """Rates and scores along a curve; straight from point to point where it has no fit."""
    import numpy as np

    fit = _fit(curve)
    rates, scores = zip(*curve, strict=True)
    if fit is None:
        return rates, scores
    along = np.linspace(scores[0], scores[-1], STEPS)
    return np.exp(fit(along)), along


def _gap(anchor: "Curve", test: "Curve") -> "tuple[Values, Values] | None":
    """Scores that both reach, and by how many percent the rates differ there."""
    import numpy as np

    fits = _fit(anchor), _fit(test)
    low, high = max(anchor[0][1], test[0][1]), min(anchor[-1][1], test[-1][1])
    if fits[0] is None or fits[1] is None or not low < high:
        return None
    along = np.linspace(low, high, STEPS)
    return along, 100 * np.expm1(fits[1](along) - fits[0](along))
