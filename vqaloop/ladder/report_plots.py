"""Plots of a ladder's report other than rate against score, as inline SVG."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from vqaloop.core.text import printable
from vqaloop.ladder.rd_plot import draw_trials, in_db, metric_words, size_looks
from vqaloop.quality.guard import FIGURES
from vqaloop.records import Ladder, RDPoint
from vqaloop.report.plotting import (
    COLOURS,
    INK,
    as_svg,
    ink,
    label_octaves,
    panel,
    spread,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


LABEL = 9
"""Points; the size of the number at the end of a line."""
GRID = 64
"""Rates over which a hull's scores are averaged."""
MOST_PARAMETERS = 12
"""Parameters that a plot names; the rest matter least."""
LOWEST = 0.7
"""Part of the last value at which a plot of growth ends below."""
SALIENT = 0.005
"""Share of importance below which a parameter is left out."""


def bitrate_svg(ladder: Ladder) -> Markup:
    """Bitrate over time, a line a rung; nothing where it is not known."""
    lines = [(rung.over_time.get("step_s"), rung.over_time.get("kbps")) for rung in ladder.rungs]
    if not any(rates for _, rates in lines):
        return Markup()
    with style(10, INK):
        figure, axes = panel("time (s)", "bitrate (kb/s, log scale)")
        axes.set_yscale("log", base=2)
        duration_s, ends = _duration_s(ladder), []
        for index, (step_s, rates) in enumerate(lines):
            if rates and step_s and step_s > 0:
                edges = [step_s * n for n in range(len(rates))]
                edges.append(max(duration_s, edges[-1] + 1e-3))
                # a span without any frame has no place on a log scale
                seen = [rate if rate > 0 else math.nan for rate in rates]
                look = _look(ladder, index, marker="")
                axes.plot(edges, [*seen, seen[-1]], drawstyle="steps-post", **look)
                ends.append((index, edges[-1], seen[-1]))
            if cap := ladder.rungs[index].cap:
                look = _look(ladder, index, marker="", linestyle=":", linewidth=1)
                axes.axhline(cap.maxrate_kbps, **look)
        label_octaves(axes, "y")
        axes.set_xlim(0, duration_s)
        _label_ends(axes, ends)
        return as_svg(figure, "Bitrate of each rung over time", "bitrate")


def score_svg(ladder: Ladder) -> Markup:
    """Score over time, a line a rung; points where the title was looked at here and there."""
    lines = [
        [point for point in rung.over_time.get("scores") or () if len(point) == 2]
        for rung in ladder.rungs
    ]
    if not any(lines):
        return Markup()
    sampled, ends = is_sampled(ladder), []
    with style(10, INK):
        figure, axes = panel("time (s)", _score_words(ladder))
        for index, points in enumerate(lines):
            if points:
                look = _look(ladder, index, marker=None if sampled else "")
                if sampled:
                    look.update(linestyle=":", linewidth=0.8, markersize=4)
                axes.plot(*zip(*points, strict=True), **look)
                ends.append((index, *points[-1]))
        axes.set_xlim(0, _duration_s(ladder))
        _label_ends(axes, ends)
        return as_svg(figure, "Score of each rung over time", "score")


def scenes_svg(ladder: Ladder) -> Markup:
    """Score of each scene of a per-shot ladder, a line a rung, and the cuts; else nothing."""
    if not any(scene.score is not None for rung in ladder.rungs for scene in rung.scenes):
        return Markup()
    fps, ends = float(ladder.about["source"]["fps"] or 1.0), []
    with style(10, INK):
        figure, axes = panel("time (s)", _score_words(ladder))
        for index, rung in enumerate(ladder.rungs):
            edges = [scene.start_frame / fps for scene in rung.scenes]
            edges += [scene.end_frame / fps for scene in rung.scenes[-1:]]
            scores = [scene.score for scene in rung.scenes if scene.score is not None]
            if scores and len(scores) == len(rung.scenes):
                look = _look(ladder, index, marker="")
                axes.plot(edges, [*scores, scores[-1]], drawstyle="steps-post", **look)
                ends.append((index, edges[-1], scores[-1]))
        longest = max((rung.scenes for rung in ladder.rungs), key=len)
        for scene in longest[1:]:
            axes.axvline(scene.start_frame / fps, color=ink(), linestyle=":", linewidth=0.6)
        axes.set_xlim(0, _duration_s(ladder))
        _label_ends(axes, ends)
        return as_svg(figure, "Score of each scene of each rung, with the cuts", "scenes")


def is_sampled(ladder: Ladder) -> bool:
    """Whether scores over time are of single moments, rather than of all frames."""
    covered = [
        len(rung.over_time.get("scores") or ()) * (rung.over_time.get("span_s") or 0.0)
        for rung in ladder.rungs
    ]
    return bool(max(covered, default=0.0) < 0.9 * _duration_s(ladder))


def promise_svg(ladder: Ladder) -> Markup:
    """What the search expected of each rung against what was measured on its file."""
    with style(10, INK):
        figure, axes = panel("predicted score", "verified score")
        scores = [(rung.score_predicted, rung.score) for rung in ladder.rungs]
        low, high = min(map(min, scores)), max(map(max, scores))
        room = max(1.0, 0.08 * (high - low))
        ends = low - room, high + room
        axes.plot(ends, ends, color=ink(), linestyle="--", linewidth=1)
        for index, (predicted, score) in enumerate(scores):
            axes.plot([predicted], [score], **_look(ladder, index, linestyle="none"), markersize=6)
            axes.annotate(
                f"{index + 1}: {score - predicted:+.1f}",
                (predicted, score),
                (8, -3),
                textcoords="offset points",
                va="top",
            )
        axes.set(xlim=(ends[0], high + 3 * room), ylim=ends)
        return as_svg(figure, "Predicted against verified score of each rung", "promise")


def guard_svg(ladder: Ladder) -> Markup:
    """Score and guard of the rungs over bitrate; points and decibels have a scale each."""
    rates = [rung.bitrate_kbps for rung in ladder.rungs]
    guards = {
        name: [rung.guard.get(name, math.nan) for rung in ladder.rungs] for name in GUARD_LOOKS
    }
    # what steers the search is there already
    same = FIGURES.get(ladder.about["metric"]["name"])
    known = [
        name
        for name, values in guards.items()
        if name != same and not all(map(math.isnan, values))
    ]
    if not known:
        return Markup()
    with style(10, INK):
        figure, axes = panel("bitrate (kb/s, log scale)", _score_words(ladder))
        axes.set_xscale("log", base=2)
        axes.plot(
            rates, [rung.score for rung in ladder.rungs], color=ink(), marker="o", label="score"
        )
        other = None
        for name in known:
            words, look = GUARD_LOOKS[name]
            # points and decibels have scales of their own
            own = (name in ("psnr_y", "xpsnr")) == in_db(ladder)
            if not own and other is None:
                other = axes.twinx()
                other.set_ylabel("VMAF" if in_db(ladder) else "PSNR-Y, XPSNR (dB)")
                other.spines["top"].set_visible(False)
            (axes if own or other is None else other).plot(rates, guards[name], **look)
            # the legend lists the lines of its own axes only
            axes.plot([], [], **look, label=words)
        label_octaves(axes)
        axes.legend(loc="lower right", framealpha=0)
        if other is not None:
            axes.set_position((0.13, 0.16, 0.74, 0.81))
            other.set_position((0.13, 0.16, 0.74, 0.81))
        return as_svg(figure, "Score, VMAF, PSNR-Y and XPSNR of the rungs over bitrate", "guard")


GUARD_LOOKS: dict[str, tuple[str, dict[str, Any]]] = {
    "vmaf": ("VMAF", {"color": COLOURS[0], "marker": "D", "linestyle": "--"}),
    "vmaf_v1": ("VMAF v1", {"color": COLOURS[2], "marker": "d", "linestyle": "--"}),
    "psnr_y": ("PSNR-Y (dB)", {"color": COLOURS[1], "marker": "s", "linestyle": ":"}),
    "xpsnr": ("XPSNR (dB)", {"color": COLOURS[3], "marker": "^", "linestyle": ":"}),
}


def history_svg(ladder: Ladder) -> Markup:
    """Trial after trial: at what size, and what it scored."""
    trials = ladder.about["trials"]
    if not trials:
        return Markup()
    with style(10, INK):
        figure, axes = panel("trial", _score_words(ladder))
        draw_trials(axes, ladder, lambda number, _: number, line=False)
        failed = [number for number, trial in enumerate(trials, 1) if trial["score"] is None]
        if failed:
            bottom = axes.get_ylim()[0]
            axes.plot(
                failed, [bottom] * len(failed), color=ink(), marker="x", linestyle="none",
                clip_on=False, label="failed",
            )  # fmt: skip
        _whole_numbers(axes, len(trials))
        _legend_below(figure, axes)
        return as_svg(figure, "Score of each trial, in the order of the study", "history")


def growth_svg(ladder: Ladder) -> Markup:
    """How good the best known hull was after each trial."""
    curves = hull_growth(ladder)
    if not curves:
        return Markup()
    with style(10, INK):
        figure, axes = panel("trial", "mean score on the best known hull")
        for whole, points in curves.items():
            label = "whole title" if whole else "excerpt"
            axes.plot(
                *zip(*points, strict=True), color=COLOURS[0 if whole else 1], marker=".",
                linestyle="-" if whole else ":", drawstyle="steps-post", label=label,
            )  # fmt: skip
        _whole_numbers(axes, len(ladder.about["trials"]))
        # of the first trials, which reach few of the rates, only that they are far below
        last = min(points[-1][1] for points in curves.values())
        if axes.get_ylim()[0] < LOWEST * last:
            axes.set_ylim(bottom=LOWEST * last)
        if len(curves) > 1:
            axes.legend(loc="lower right", framealpha=0)
        return as_svg(figure, "How the best known hull grew, trial after trial", "growth")


def hull_growth(ladder: Ladder) -> dict[bool, list[tuple[int, float]]]:
    """Trial number and mean score that the hull of all trials so far reaches.

    The mean is over the logarithm of the rate, from the lowest rung's to the highest's; what lies
    below all that is known counts as 0. Those of the whole title (True) and of its excerpt
    (False), whose scores are others, apart.
    """
    import numpy as np

    from vqaloop.search.hull import convex_hull

    low, high = (math.log(ladder.rungs[at].bitrate_kbps) for at in (0, -1))
    # a rung that was rounded on its way through JSON is still reached
    grid = np.exp(np.linspace(low, high, GRID) + 1e-6)
    known: dict[bool, list[RDPoint]] = {}
    curves: dict[bool, list[tuple[int, float]]] = {}
    for number, trial in enumerate(ladder.about["trials"], 1):
        rate, score = trial["bitrate_kbps"], trial["score"]
        if not rate or rate <= 0 or score is None:
            continue
        whole = trial.get("whole_title", True)
        points = known.setdefault(whole, [])
        points.append(RDPoint(trial["width"], trial["height"], trial["knob"], rate, score))
        hull = convex_hull(points)
        # straight over the rate, as the hull is: so no trial makes it smaller
        rates = [point.bitrate_kbps for point in hull]
        scores = np.interp(grid, rates, [point.score for point in hull], left=0.0)
        curves.setdefault(whole, []).append((number, float(scores.mean())))
    return curves


def importance_svg(ladder: Ladder) -> Markup:
    """Which of the encoder's parameters mattered, where they were tuned."""
    shares = (ladder.about.get("tuning") or {}).get("importance") or {}
    named = sorted(shares.items(), key=lambda item: -item[1])[:MOST_PARAMETERS]
    named = [(name, share) for name, share in named if share >= SALIENT]
    if not named:
        return Markup()
    with style(10, INK):
        words = [printable(name)[:24] for name, _ in named]
        values = [100 * share for _, share in named]
        figure = _bars(words, values, [f"{value:.0f}" for value in values], "importance (%)")
        return as_svg(figure, "Importance of the encoder's parameters", "importance")


def tuning_svg(ladder: Ladder) -> Markup:
    """What each trial of the encoder's parameters saved, and the best so far."""
    trials = (ladder.about.get("tuning") or {}).get("trials") or []
    valued = [(t["number"] + 1, t["saving_percent"], t["feasible"]) for t in trials]
    valued = [trial for trial in valued if trial[1] is not None]
    if not valued:
        return Markup()
    with style(10, INK):
        figure, axes = panel("trial", "bitrate saved at equal score (%)")
        for feasible, colour, marker, label in (
            (True, COLOURS[0], "o", "allowed"),
            (False, COLOURS[1], "x", "too slow, too low in PSNR, given up"),
        ):
            points = [(n, saving) for n, saving, allowed in valued if allowed == feasible]
            if points:
                axes.plot(
                    *zip(*points, strict=True), color=colour, marker=marker, linestyle="none",
                    label=label,
                )  # fmt: skip
        best, so_far = 0.0, []
        for number, saving, allowed in valued:
            best = max(best, saving) if allowed else best
            so_far.append((number, best))
        axes.plot(
            *zip(*so_far, strict=True), color=ink(), linewidth=1, drawstyle="steps-post",
            label="best so far",
        )  # fmt: skip
        _whole_numbers(axes, max(n for n, *_ in valued))
        _legend_below(figure, axes)
        return as_svg(figure, "Bitrate saved by each trial of encoder parameters", "tuning")


def cost_svg(ladder: Ladder) -> Markup:
    """CPU seconds by what they went into."""
    cost = ladder.about["cost"]
    parts = [("encoding", "encode_cpu_s"), ("scoring", "score_s"), ("guard", "guard_s")]
    found = [(name, float(cost[key])) for name, key in parts if cost.get(key) is not None]
    total = sum(value for _, value in found)
    if total <= 0:
        return Markup()
    with style(10, INK):
        words = [f"{value:.1f} s, {100 * value / total:.0f} %" for _, value in found]
        figure = _bars(
            [name for name, _ in found], [value for _, value in found], words, "CPU seconds"
        )
        return as_svg(figure, "CPU seconds of encoding, scoring and guard", "cost")


def _duration_s(ladder: Ladder) -> float:
    return max(1e-3, float(ladder.about["source"]["duration"]))


def _legend_below(figure: "Figure", axes: "Axes") -> None:
    """The legend of a panel in room of its own, off the data: the figure grows by as much."""
    words = axes.get_legend_handles_labels()
    columns = 3 if max(map(len, words[1])) < 12 else 2
    left, bottom, wide, high = axes.get_position().bounds
    tall, room = figure.get_figheight(), 0.1 + 0.18 * math.ceil(len(words[1]) / columns)
    figure.set_figheight(tall + room)
    up, scale = room / (tall + room), tall / (tall + room)
    axes.set_position((left, up + scale * bottom, wide, scale * high))
    figure.legend(*words, loc="lower center", framealpha=0, fontsize=8, ncols=columns)


def _bars(names: Sequence[str], values: Sequence[float], words: Sequence[str], x: str) -> "Figure":
    """Horizontal bars, the first on top, each with its words behind it."""
    from matplotlib.figure import Figure

    tall = 0.75 + 0.32 * len(names)
    figure = Figure(figsize=(4.8, tall), dpi=100)
    wide = 0.03 + 0.02 * max(map(len, names))
    axes = figure.add_axes((wide, 0.6 / tall, 0.97 - wide, 1 - 0.65 / tall))
    bars = axes.barh(range(len(names)), values, color=COLOURS[0], height=0.65)
    axes.bar_label(bars, list(words), padding=4)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.35 * max(values))
    axes.set_xlabel(x)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#888888", alpha=0.3)
    axes.set_axisbelow(True)
    return figure


def _look(ladder: Ladder, index: int, **other: Any) -> dict[str, Any]:
    """Of a rung's line: the colour and marker of its size; `marker` None is that one."""
    rung = ladder.rungs[index]
    colour, marker = size_looks(ladder)[rung.width, rung.height]
    look = {"color": colour, "marker": marker, **other}
    return {**look, "marker": marker if look["marker"] is None else look["marker"]}


def _label_ends(axes: "Axes", ends: Sequence[tuple[int, float, float]]) -> None:
    """The number of each rung where its line ends, within axes that are as they will stay."""
    known = sorted((y, index, x) for index, x, y in ends if math.isfinite(y))
    if not known:
        return
    points = 72 / axes.figure.dpi
    heights = [points * axes.transData.transform((x, y))[1] for y, _, x in known]
    ends_at = [points * axes.transAxes.transform((0, y))[1] for y in (0, 1)]
    for (y, index, x), height, place in zip(
        known, heights, spread(heights, 1.25 * LABEL, *ends_at), strict=True
    ):
        axes.annotate(
            str(index + 1), (x, y), (3, place - height), textcoords="offset points",
            va="center_baseline", annotation_clip=False, size=LABEL, weight="bold",
        )  # fmt: skip


def _whole_numbers(axes: "Axes", last: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(0.5, last + 0.5)


def _score_words(ladder: Ladder) -> str:
    words = metric_words(ladder)
    return words if len(words) <= 42 else f"{words[:39]}..."
