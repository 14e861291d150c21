"""The figures of the bench of the panel, and their Markdown."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.interpolate import PchipInterpolator

from bench import gaming
from bench.attacks import SEEN, SEEN_BELOW
from bench.judges import pipes
from bench.panel_jobs import AGREEMENT, ATTACKED, COST, GAMED
from bench.panel_labels import PANEL
from vqaloop.panel.labels import LABELS
from vqaloop.training.correlation import (
    Correlations,
    correlations,
    fit_logistic,
    mean_within,
    paired_differences,
    srcc,
)

Values = npt.NDArray[np.float64]

MEASURED = {"vmaf": "v0.6.1", "vmaf-v1": "v1", "vmaf-neg": "neg"}
"""Judges over all frames, and the labels that they are."""
POINTS = (PANEL, "v1", "v0.6.1", "neg")
"""Labels of 0..100, against which a score has an error."""
DECIBELS = ("xpsnr", "psnr")
PAIRED = {"srcc": "SRCC", "rmse": "RMSE", "within_srcc": "SRCC inside", "within_sd": "SD inside"}
RATES = 64
"""Bitrates, even in their logarithm, at which a size is chosen."""
DRAWS = 1000


def markdown(table: pd.DataFrame, judges: Sequence[str], words: Sequence[str]) -> str:
    """All tables that there is something for."""
    table = table.reset_index(drop=True)
    for judge, label in MEASURED.items():
        if judge in judges and label in table:
            table[judge] = table[label]
    parts = {part: rows for part, rows in table.groupby("part")}
    found = [f"```sh\npython -m bench.panel {shlex.join(words)}\n```\n"]
    if (own := parts.get(AGREEMENT)) is not None:
        present = [judge for judge in judges if judge in own]
        found += [agreement(own, present), losses(own, present)]
    if (own := parts.get(ATTACKED)) is not None and PANEL in own:
        found.append(attacked(own, [judge for judge in judges if judge in own]))
    if (own := parts.get(GAMED)) is not None:
        found.append(tricks(own, [judge for judge in judges if judge in own]))
    if (own := parts.get(COST)) is not None:
        found.append(cost(own, judges))
    return "\n".join(found)


def scores_of(rows: pd.DataFrame, judge: str, label: str) -> Values:
    """A judge's scores; of one in dB mapped to a label in points by a logistic, where it fits."""
    scores = rows[judge].to_numpy(float)
    if judge in DECIBELS and label in POINTS:
        fit = fit_logistic(scores, rows[label].to_numpy(float))
        return fit(scores) if fit else scores
    return scores


def agreement(table: pd.DataFrame, judges: Sequence[str]) -> str:
    """Every judge against every label."""
    canvases = ", ".join(f"{c} ({len(r)})" for c, r in table.groupby("canvas", sort=False))
    text = (
        f"## Agreement\n\n{len(table)} encodes of {table['title'].nunique()} titles ("
        f"{', '.join(sorted(set(table['set'])))}); encodes by canvas: {canvases}. 95 % intervals "
        'over titles (bootstrap). "Inside": inside a title; SD of score less label, each '
        "title's mean removed. dB are mapped by a logistic of four parameters. VMAF, VMAF v1 and "
        "NEG over all frames are labels themselves. The panel's label of an encode is of those "
        "judges that all encodes of its clip have.\n"
    )
    for label in (name for name in POINTS if name in table):
        text += f"\n### Against {label}\n\n" + _against(table, judges, label)
        text += f"\nDifferences to {judges[0]}, paired:\n\n" + _paired(table, judges, label)
    text += "\n### Against every label: SRCC, and inside a title\n\n" + _ranks(table, judges)
    return text + "\n### By size of the source: bias and SD inside\n\n" + _by_canvas(table, judges)


def _against(table: pd.DataFrame, judges: Sequence[str], label: str) -> str:
    lines = [["judge", "encodes", "SRCC", "PLCC", "RMSE", "SRCC inside", "SD inside"]]
    for judge in judges:
        rows = table[table[judge].notna() & table[label].notna()]
        values = rows[label].to_numpy(float)
        scores = scores_of(rows, judge, label)
        found = correlations(scores, values, rows["title"].tolist(), draws=DRAWS)
        keys = ("srcc", "plcc", "rmse", "within_srcc", "within_sd")
        lines.append([judge, str(len(rows)), *(_with_interval(found, name) for name in keys)])
    return pipes(lines)


def _with_interval(found: Correlations, name: str) -> str:
    value, digits = getattr(found, name), 3 if name.endswith(("srcc", "plcc")) else 2
    if value is None:
        return "-"
    ends = found.intervals.get(name)
    between = f" ({ends[0]:.{digits}f} to {ends[1]:.{digits}f})" if ends else ""
    return f"{value:.{digits}f}{between}"


def _paired(table: pd.DataFrame, judges: Sequence[str], label: str) -> str:
    lines = [["judge", *PAIRED.values()]]
    first = judges[0]
    for judge in judges[1:]:
        rows = table[table[[judge, first, label]].notna().all(axis=1)]
        one, other = (scores_of(rows, name, label) for name in (judge, first))
        titles, values = rows["title"].tolist(), rows[label].to_numpy(float)
        found = paired_differences(one, other, values, titles, draws=DRAWS)
        cells = []
        for name in PAIRED:
            gap, digits = found.get(name), 3 if name.endswith("srcc") else 2
            if gap is None:
                cells.append("-")
                continue
            ends = gap.interval
            between = f" ({ends[0]:+.{digits}f} to {ends[1]:+.{digits}f})" if ends else ""
            cells.append(f"{gap.difference:+.{digits}f}{between}")
        lines.append([judge, *cells])
    return pipes(lines)


def _ranks(table: pd.DataFrame, judges: Sequence[str]) -> str:
    labels = [name for name in (PANEL, *LABELS) if name in table and table[name].notna().any()]
    counts = {name: int(table[name].notna().sum()) for name in labels}
    lines = [["judge", *(f"{name} ({count})" for name, count in counts.items())]]
    for judge in judges:
        cells = []
        for label in labels:
            rows = table[table[judge].notna() & table[label].notna()]
            worse = label in LABELS and not LABELS[label].higher_is_better
            values = rows[label].to_numpy(float) * (-1 if worse else 1)
            scores = rows[judge].to_numpy(float)
            pair = srcc(scores, values), mean_within(scores, values, rows["title"].tolist())
            cells.append(" / ".join("-" if v is None else f"{v:.3f}" for v in pair))
        lines.append([judge, *cells])
    return pipes(lines)


def _by_canvas(table: pd.DataFrame, judges: Sequence[str]) -> str:
    """Classes of canvases by their lines; all figures are against the panel, or else v1."""
    label = PANEL if PANEL in table else "v1"
    lines_of = table["canvas"].map(lambda text: min(map(int, str(text).split("x"))))
    classes = {"up to 720 lines": lines_of <= 720, "1080": (lines_of > 720) & (lines_of <= 1440)}
    classes["2160"] = lines_of > 1440
    classes = {name: mask for name, mask in classes.items() if mask.any()}
    lines = [["judge", *(f"{name} ({mask.sum()})" for name, mask in classes.items())]]
    for judge in judges:
        cells = []
        # one mapping for all sizes, as for the other tables
        known = table[judge].notna() & table[label].notna()
        error = pd.Series(np.nan, table.index)
        own = table[known]
        error[known] = scores_of(own, judge, label) - own[label]
        for mask in classes.values():
            inside = error[mask] - error[mask].groupby(table["title"]).transform("mean")
            cells.append(f"{error[mask].mean():+.2f} / {inside.std(ddof=0):.2f}")
        lines.append([judge, *cells])
    return pipes(lines)


def losses(table: pd.DataFrame, judges: Sequence[str]) -> str:
    """What is lost where a judge chooses the size at each bitrate, by every truth."""
    truths = [name for name in (PANEL, "v1", "v0.6.1") if name in table]
    rows = []
    for (title, encoder), own in table.assign(
        encoder=table["encode"].str.partition(" ")[0]
    ).groupby(["title", "encoder"]):
        for truth in truths:
            for judge in judges:
                if found := loss(own, judge, truth):
                    head = {"title": title, "encoder": encoder, "judge": judge, "truth": truth}
                    rows.append({**head, "rate": found[0], "points": found[1]})
    if not rows:
        return ""
    found_all = pd.DataFrame(rows)
    count = len(found_all.groupby(["title", "encoder"]))
    lines = [["size chosen by", *(f"{t}: rate %, points" for t in truths)]]
    for judge in judges:
        cells = []
        for truth in truths:
            own = found_all[(found_all.judge == judge) & (found_all.truth == truth)]
            if own.empty:
                cells.append("-")
                continue
            by_title = own.groupby("title")[["rate", "points"]].mean()
            low, high = _interval(by_title.rate.to_numpy())
            mean = own.rate.mean()
            cells.append(f"{mean:.2f} ({low:.2f} to {high:.2f}), {own.points.mean():.2f}")
        lines.append([judge, *cells])
    return (
        f"## Loss of a ladder\n\nOf {count} ladders (title and encoder): at each bitrate the size "
        "is chosen by a judge's scores, interpolated between encodes; the loss is the bitrate "
        "beyond what the best choice needs for the label that is had, and the label's points "
        "below the best at that bitrate.\n\n" + pipes(lines)
    )


def loss(rows: pd.DataFrame, judge: str, truth: str) -> tuple[float, float] | None:
    """(percent of rate, points) lost by choosing sizes by a judge; None of too few encodes."""
    known = rows[rows[[judge, truth, "kbps"]].notna().all(axis=1)]
    curves = []
    for _, own in known.groupby("size"):
        ordered = own.sort_values("kbps").drop_duplicates("kbps")
        if len(ordered) >= 3:
            rate = np.log(ordered["kbps"].to_numpy(float))
            scores = (ordered[name].to_numpy(float) for name in (judge, truth))
            curves.append((rate[0], rate[-1], *(PchipInterpolator(rate, s) for s in scores)))
    if len(curves) < 2:
        return None
    rates = np.linspace(min(c[0] for c in curves), max(c[1] for c in curves), RATES)
    choice, value = (np.full((len(curves), RATES), np.nan) for _ in range(2))
    for row, (low, high, chooses, measures) in enumerate(curves):
        inside = (rates >= low) & (rates <= high)
        choice[row, inside], value[row, inside] = chooses(rates[inside]), measures(rates[inside])
    # where there is one size there is no choice
    open_to = np.isfinite(value).sum(0) > 1
    if not open_to.any():
        return None
    there = np.isfinite(value).any(0)
    best = np.maximum.accumulate(np.nanmax(np.where(there, value, -np.inf), 0)[there])
    chosen = np.nanargmax(choice[:, open_to], 0)
    had = value[:, open_to][chosen, np.arange(open_to.sum())]
    highest = np.nanmax(value[:, open_to], 0)
    # the least rate at which the best choices have as much
    steps, first = np.unique(best, return_index=True)
    needed = np.interp(had, steps, rates[there][first])
    more = np.maximum(np.expm1(rates[open_to] - needed), 0) * 100
    # where the best choice itself falls with the rate, or a step lies between rates
    more[had >= highest - 1e-9] = 0
    return float(more.mean()), float((highest - had).mean())


def _interval(values: Values) -> tuple[float, float]:
    """95 % bootstrap interval of a mean."""
    drawn = np.random.default_rng(0).choice(values, (DRAWS, len(values))).mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def seen_by(rows: pd.DataFrame, judge: str) -> pd.Series:
    """Whether a judge sees the damage of each row, as in `bench.attacks`."""
    return rows[judge] < SEEN_BELOW.get(judge, SEEN)


def attacked(table: pd.DataFrame, judges: Sequence[str]) -> str:
    """Of the attacks that the panel sees, how many each judge does."""
    table = table.assign(attack=table["encode"].str.rpartition(" ")[0])
    visible = seen_by(table, PANEL)
    counts = {name: table[name].notna().sum() for name in LABELS if name in table}
    measured = ", ".join(f"{name} ({count})" for name, count in counts.items())

    def cells(mask: pd.Series[bool]) -> list[str]:
        own = table[mask]
        return [f"{seen_by(own, judge).sum()}" for judge in judges]

    lines = [["attack", "files", "seen by the panel", *judges]]
    for name, own in table.groupby("attack", sort=False):
        mask = (table["attack"] == name) & visible
        lines.append([str(name), str(len(own)), str(mask.sum()), *cells(mask)])
    lines.append(["all", str(len(table)), str(visible.sum()), *cells(visible)])
    shares = [
        100 * seen_by(table[visible], j).mean() if visible.any() else math.nan for j in judges
    ]
    lines.append(["share of them", "", "", *(f"{share:.1f} %" for share in shares)])
    lines.append(["seen, and not by the panel", "", "", *cells(~visible)])
    return (
        f"## Damage\n\n{table['attack'].nunique()} kinds at three strengths on "
        f"{table['clip'].nunique()} clips. The panel sees what its measured label puts below "
        f"{SEEN:g}; a judge what it scores below {SEEN:g}, XPSNR below 35 dB, PSNR below 41 dB. "
        f"Counted are files that the panel sees, whose judges measured {measured}.\n\n"
        + pipes(lines)
    )


def tricks(table: pd.DataFrame, judges: Sequence[str]) -> str:
    """BD-rates of x264 with a trick, by every judge and by the panel."""
    parts = table["encode"].str.rpartition(" ")
    curves = table.assign(trick=parts[0], crf=parts[2].astype(float))
    by = [name for name in (PANEL, *judges) if name in table]
    curves = curves[[*gaming.KEY, gaming.RATE, *by]]
    return (
        "## Tricks\n\nBD-rate in percent against plain x264, clip by clip: bitrate that a trick "
        "needs more (+) or less (-) at an equal score.\n\n" + gaming.markdown(curves)
    )


def cost(table: pd.DataFrame, judges: Sequence[str]) -> str:
    """CPU seconds of one rung, all processes and decoding included."""
    heads = table["clip"].tolist()
    lines = [["judge", *heads]]
    for judge in judges:
        cells = []
        for _, row in table.iterrows():
            spent, once = (float(row.get(f"{kind} {judge}", math.nan)) for kind in ("cpu", "once"))
            cells.append(
                "-" if spent != spent else f"{spent:.2f}" + (f" (+ {once:.2f})" if once else "")
            )
        lines.append([judge, *cells])
    return (
        "## CPU seconds of a score\n\nOf one rung, x264 at the title's size, decoding and all "
        "processes included; in brackets what a title's first score takes besides.\n\n"
        + pipes(lines)
    )
