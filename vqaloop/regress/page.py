"""A comparison of two builds as one HTML page that opens offline, with rate-quality curves.

It shows the document that `vqaloop regress --json` writes.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from vqaloop.core.text import change, metric_name, printable, shown, shown_rate
from vqaloop.regress.summary import (
    builds_line,
    clip_cells,
    clip_line,
    clip_rows,
    cost_line,
    failure_rows,
    headline,
    more_reasons,
    other_rows,
    overall_rows,
    refusals,
)
from vqaloop.report.html import render, shell_word
from vqaloop.report.plotting import COLOURS, INK, as_svg, ink, label_octaves, panel, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vqaloop.quality.bdrate import Curve, Values
    from vqaloop.regress.statistics import ClipRuns


Document = Mapping[str, Any]

LOOKS: dict[str, dict[str, Any]] = {
    "baseline": {"color": COLOURS[0], "marker": "o"},
    "candidate": {"color": COLOURS[1], "marker": "s"},
    "repeat": {"color": INK, "marker": ".", "linestyle": ":", "linewidth": 1},
}
"""Distinct by shape as well as by colour."""
WORDS = {"baseline": "baseline", "repeat": "baseline again", "candidate": "candidate"}
MANY_CLIPS = 6
"""With more, those are folded that passed all checks."""
STEPS = 100
"""Points at which a difference is drawn."""
PLACE = {"left": 0.17, "width": 0.77}
"""Of the axes in their figure: room for percents of four digits."""


def regress_page(document: Document) -> str:
    """The page of a document `vqaloop.regress/1`, whole."""
    verdict, builds = document["verdict"].capitalize(), builds_line(document)
    return render(
        "regress.html",
        title=f"{verdict}: {builds}",
        document=document,
        verdict=verdict,
        kind="alarm" if document["verdict"] in ("regression", "cannot tell") else "calm",
        builds=builds,
        reasons=more_reasons(document),
        overall=overall_rows(document),
        others=other_rows(document),
        failures=failure_rows(document),
        refusals=[f"{clip}, {names}: {why}" for clip, names, why in refusals(document)],
        metrics=[metric_name(name) for name in document["metrics"]],
        clips=[_clip(document, clip) for clip in document["clips"]],
        about=[_build_cells(key, document[key] or {}) for key in ("baseline", "candidate")],
        settings=_settings(document),
        cost=cost_line(document),
    )


def _clip(document: Document, clip: Mapping[str, Any]) -> dict[str, Any]:
    cells = clip_cells(document, clip)
    trouble = any(cell.endswith("!") for cell in cells.values()) or clip["failures"]
    return {
        "title": f"{clip['clip']}: {headline(document, clip)}",
        "unfolded": bool(trouble or len(document["clips"]) <= MANY_CLIPS),
        "line": clip_line(clip, cells),
        "rows": clip_rows(document, clip),
        "figures": {metric_name(name): _pair(clip, name) for name in document["metrics"]},
        "runs": _runs(document, clip),
    }


def _runs(document: Document, clip: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            WORDS.get(run["build"], run["build"]),
            f"{run['width']}x{run['height']}",
            str(run["point"]),
            shown_rate(run["bitrate_kbps"]),
            *(shown(run["scores"].get(name), 2) for name in document["metrics"]),
            shown(run["cpu_s"], 2),
            shown(run["peak_bytes"] and run["peak_bytes"] / 2**20),
        ]
        for run in clip["runs"]
    ]


def _build_cells(role: str, about: Mapping[str, Any]) -> list[str]:
    """A build and its arguments; what is for copying as code."""
    args = " ".join(map(shell_word, about.get("args") or ()))
    return [
        role,
        *(str(about.get(name) or "-") for name in ("name", "kind", "version")),
        "yes" if about.get("saved") else "no",
        Markup("<code>{}</code>").format(args) if args else "-",
        Markup("<code>{}</code>").format(printable(str(about.get("sha256") or "-"))),
    ]


def _settings(document: Document) -> list[str]:
    """What was asked of both builds."""
    metric = document["metric"]
    return [
        f"{document['codec']} by {document['encoder']}, preset {document['preset']}",
        f"points {', '.join(map(str, document['points']))}, sizes {', '.join(document['sizes'])}",
        f"threshold {document['threshold_percent']} % by {', '.join(document['gate'])}",
        f"headline metric {metric['name']}, weights {metric.get('weights_sha256') or 'none'}",
        f"machine {document['machine']}",
    ]


def _pair(clip: Mapping[str, Any], metric: str) -> list[Markup]:
    """Rate and score of both builds, and how far apart they are; nothing without a run."""
    figures = []
    with style(10, INK):
        for figure, what in (
            (curves_figure(clip, metric), "Score over bitrate"),
            (difference_figure(clip, metric), "Difference in bitrate over score"),
        ):
            if figure is not None:
                salt = f"{clip['clip']} {metric} {what}"
                figures.append(as_svg(figure, what, salt))
    return figures


def curves_figure(clip: Mapping[str, Any], metric: str) -> "Figure | None":
    """Score over log rate: every run, and the curves through them. None without a run."""
    curves = _curves(clip, metric)
    if not curves:
        return None
    figure, axes = panel("bitrate (kb/s, log scale)", _axis(metric), **PLACE)
    axes.set_xscale("log", base=2)
    for build, curve in curves.items():
        look = _look(build)
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
    from vqaloop.regress.statistics import curve_pair

    runs = _drawn(clip, metric)
    pairs = {build: curve_pair(runs, build, metric) for build in ("repeat", "candidate")}
    gaps = {build: _gap(*pair) for build, pair in pairs.items() if all(pair)}
    if gaps.get("candidate") is None:
        return None
    figure, axes = panel(_axis(metric), "bitrate difference (%)", **PLACE)
    axes.axhline(0, color=ink(), linewidth=1)
    for build, gap in gaps.items():
        if gap is not None:
            look = _look(build) | {"marker": ""}
            axes.plot(*gap, **look, label=WORDS[build])
    mean = (clip["bd_rate"].get(metric) or {}).get("pchip")
    if mean is not None:
        look = {"color": COLOURS[1], "linestyle": "--", "linewidth": 1}
        axes.axhline(mean, **look, label=f"BD-rate {change(mean)} %")
    axes.legend(loc="best", framealpha=0)
    return figure


def _axis(metric: str) -> str:
    return metric_name(metric)[:40] + " (dB)" * (metric == "psnr_y")


def _look(build: str) -> dict[str, Any]:
    """LOOKS, with INK as the text colour of the style in force."""
    look = LOOKS[build]
    return look | {"color": ink()} if look["color"] == INK else look


def _is_drawn(run: Mapping[str, Any], metric: str) -> bool:
    return bool(run["bitrate_kbps"]) and run["scores"].get(metric) is not None


def _curves(clip: Mapping[str, Any], metric: str) -> "dict[str, Curve]":
    """The curve of each build that has any: of several sizes the hull."""
    from vqaloop.regress.statistics import rate_curve

    found = {build: rate_curve(_drawn(clip, metric).of(build), metric) for build in WORDS}
    return {build: curve for build, curve in found.items() if curve}


def _drawn(clip: Mapping[str, Any], metric: str) -> "ClipRuns":
    """The clip with those of its runs that can be drawn."""
    from vqaloop.regress.statistics import ClipRuns, ScoredRun

    names = ("build", "width", "height", "point", "bitrate_kbps", "scores", "cpu_s", "wall_s")
    runs = tuple(
        ScoredRun(
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

    from vqaloop.quality.bdrate import NotComparable, bd_rate

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
