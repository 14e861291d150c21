"""The report of an evaluation: tables, scatter plots, and the encodes with the largest errors."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vqaloop.core.documents import document_text
from vqaloop.core.files import renamed_to
from vqaloop.core.text import counted, printable, shown
from vqaloop.ladder.rd_plot import MARKERS
from vqaloop.report.plotting import COLOURS, as_png, style
from vqaloop.training.correlation import Logistic
from vqaloop.training.evaluate import HEADS, NOTICED, LargestError, ShardScores

WORST = 10
"""Encodes with the largest errors that are reported, one a title."""
COLUMNS = {
    "srcc": "SRCC",
    "krcc": "KRCC",
    "plcc": "PLCC",
    "rmse": "RMSE",
    "plcc4": "PLCC4",
    "rmse4": "RMSE4",
    "plcc5": "PLCC5",
    "rmse5": "RMSE5",
    "within_srcc": "within",
}


def figures_text(document: dict[str, Any]) -> str:
    """The figures of `evaluate` as a table of at most 80 columns."""
    lines = [
        f"{counted(document['encodes'], 'encode')} of {counted(document['titles'], 'title')}, "
        f"labels: {printable(document['label'])[:40]}"
    ]
    used: set[str] = set()
    for name, judge in document["judges"].items():
        parts = [("all", judge["overall"])]
        if "centre_clip" in judge:
            parts.append(("centre clip", judge["centre_clip"]))
        parts += [*judge["by_encoder"].items(), *judge["by_size"].items()]
        if "single_regions" in judge:
            parts.append(("regions", judge["single_regions"]))
        columns = [key for key in COLUMNS if any(p.get(key) is not None for _, p in parts)]
        used |= {*columns, *("intervals" for _, p in parts if p["intervals"])}
        head = "".join(f"{COLUMNS[key]:>7}" for key in columns)
        lines += ["", f"{HEADS.get(name, name)[:12]:<12}{'n':>5}{head}"]
        for part, figures in parts:
            # a part too small for any correlation would be a row of dashes
            if part == "all" or any(figures.get(key) is not None for key in columns[:2]):
                lines += _rows(part, figures, columns)
        if "crop_spread" in judge and judge["crop_spread"]["rms"] is not None:
            rms, p95 = (shown(judge["crop_spread"][key], 2) for key in ("rms", "p95"))
            lines.append(f"other crops would move a score by {rms} rms ({p95} at worst in 20)")
        if judge["overall"].get("within_sd") is not None:
            lines.append(
                f"inside a title errors have an SD of {judge['overall']['within_sd']:.2f}"
            )
        lines += [*_label_lines(judge), *_attack_lines(judge)]
    fitted = [words for key, words in COLUMNS.items() if key in used and key[-1] in "45"]
    notes = [f"{', '.join(fitted)}: after a logistic mapping of 4 or 5 parameters"] * bool(fitted)
    if "within_srcc" in used:
        notes.append("within: mean SRCC inside a title")
    if any("centre_clip" in judge for judge in document["judges"].values()):
        notes.append("centre clip: one clip a video, as arXiv 2502.19026 tests; all: mean of all")
    ranges = "from, to: 95 % intervals over the choice of titles"
    notes.append(ranges if "intervals" in used else "no intervals: those take several titles")
    if "paper" in document:
        lines += ["", *_paper_lines(document)]
    if "against" in document:
        lines += ["", *_difference_lines(document["against"])]
    return "\n".join([*lines, "", *notes])


def _label_lines(judge: dict[str, Any]) -> list[str]:
    """Agreement with each measured label; errors where it is on the scale of the score."""
    columns = {"srcc": "SRCC", "plcc": "PLCC", "within_srcc": "within", "rmse": "RMSE"}
    columns["within_sd"] = "SD"
    labels = judge.get("labels", {})
    heading = f"{'against':<12}{'n':>5}" + "".join(f"{words:>7}" for words in columns.values())
    rows = [
        _row(name, str(figures["count"]), figures, columns) for name, figures in labels.items()
    ]
    return [heading, *rows] if rows else []


def _attack_lines(judge: dict[str, Any]) -> list[str]:
    """Of each attack: encodes, mean label, mean score, and the share that is noticed."""
    attacks = judge.get("attacks", {})
    heading = f"{'attack':<22}{'n':>5}{'label':>7}{'score':>7}{f'<{NOTICED:.0f}':>7}"
    rows = [
        f"{printable(name)[:22]:<22}{of['count']:>5}{of['label']:>7.1f}{of['score']:>7.1f}"
        f"{of['noticed']:>7.2f}"
        for name, of in attacks.items()
    ]
    return [heading, *rows] if rows else []


def _paper_lines(document: dict[str, Any]) -> list[str]:
    """The published row beside ours, each under its own name."""
    paper, judge = document["paper"], document["judges"]["alone"]
    rows = [("ours, centre clip", judge.get("centre_clip")), ("ours, all clips", judge["overall"])]
    theirs = "theirs" if paper["same_titles"] else "theirs, on other titles"
    lines = [f"{paper['source']}, {paper['row']}", f"{'':<28}{'SRCC':>7}{'PLCC':>7}"]
    for words, figures in ((theirs, paper), *rows):
        if figures is not None:
            cells = "".join(f"{shown(figures.get(key), 3):>7}" for key in ("srcc", "plcc"))
            lines.append(f"{words:<28}{cells}")
    return lines


def _difference_lines(against: dict[str, Any]) -> list[str]:
    """Figures of two students on the same encodes, and their differences with intervals."""
    lines = [f"against {printable(against['weights'])[:60]}, on the same encodes"]
    for head, figures in against["judges"].items():
        lines += ["", f"{HEADS[head]:<20}{'this':>8}{'other':>8}{'diff':>8}{'from':>8}{'to':>8}"]
        for key, found in figures.items():
            words = {"within_srcc": "SRCC within titles", "within_krcc": "KRCC within titles"}
            words["within_sd"] = "SD within titles"
            ends = found["interval"] or (None, None)
            values = (found["one"], found["other"], found["difference"], *ends)
            cells = "".join(f"{shown(value, 3):>8}" for value in values)
            lines.append(f"{words.get(key, key.upper()):<20}{cells}")
    return [*lines, "", "diff: this less other; from, to: its 95 % interval"]


def _rows(name: str, figures: dict[str, Any], columns: Sequence[str]) -> list[str]:
    lines = [_row(name, str(figures["count"]), figures, columns)]
    for end, title in enumerate(("  from", "  to")):
        if figures["intervals"]:
            ends = {key: pair[end] for key, pair in figures["intervals"].items()}
            lines.append(_row(title, "", ends, columns))
    return lines


def _row(title: str, count: str, values: dict[str, Any], columns: Iterable[str]) -> str:
    digits = {key: 2 if key.startswith("rmse") or key == "within_sd" else 3 for key in columns}
    cells = "".join(f"{shown(values.get(key), digits[key]):>7}" for key in columns)
    return f"{printable(title)[:12]:<12}{count:>5}{cells}"


def write_evaluation(folder: Path, scores: ShardScores, document: dict[str, Any]) -> list[Path]:
    """Write predictions.csv, figures.json, worst.csv, worst.png and a scatter plot a head.

    Args:
        folder: Created if missing; each file is written whole or not at all.
        scores: Of `evaluate.score_shards`.
        document: The figures of `evaluate.evaluate`.

    Returns:
        Paths of the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    worst = worst_titles(scores.largest_errors)
    rows = [{**error.row, "error": error.error, "region": error.region} for error in worst]
    contents = {
        "predictions.csv": scores.table.to_csv(index=False).encode(),
        "figures.json": document_text(document).encode(),
        "worst.csv": pd.DataFrame(rows).to_csv(index=False).encode(),
        "worst.png": worst_png(worst),
    }
    for head, words in HEADS.items():
        if head in document["judges"]:
            name = f"scatter-{words.replace(' ', '-')}.png"
            contents[name] = scatter_png(scores.table, head, document)
    for name, content in contents.items():
        with renamed_to(folder / name) as part:
            part.write_bytes(content)
    return [folder / name for name in contents]


def worst_titles(largest_errors: Sequence[LargestError]) -> list[LargestError]:
    """The first WORST of errors in falling order, one a title."""
    by_title: dict[str, LargestError] = {}
    for error in largest_errors:
        by_title.setdefault(error.row["content"], error)
    return list(by_title.values())[:WORST]


def scatter_png(table: pd.DataFrame, head: str, document: dict[str, Any]) -> bytes:
    """Answers of one head over labels: encoders, the identity, the mapping of four parameters."""
    from matplotlib.figure import Figure

    overall = document["judges"][head]["overall"]
    part = table[table[head].notna() & table["attack"].isna()]
    with style(12, "black"):
        figure = Figure(figsize=(8, 8), dpi=100, layout="constrained")
        axes = figure.add_subplot()
        for i, (name, rows) in enumerate(part.groupby(part["encoder"].fillna("unknown"))):
            axes.plot(
                rows["label"],
                rows[head],
                color=COLOURS[i % len(COLOURS)],
                marker=MARKERS[i % len(MARKERS)],
                markersize=4,
                alpha=0.7,
                linestyle="none",
                label=printable(str(name)),
            )
        axes.axline((0, 0), slope=1, color="#666666", linewidth=1, label="identity")
        if "4" in overall["fits"]:
            scores = np.linspace(part[head].min(), part[head].max(), 200)
            fit = Logistic(tuple(overall["fits"]["4"]))
            axes.plot(fit(scores), scores, color="black", linestyle="--", label="logistic, 4")
        ends = [f(f(part["label"]), f(part[head])) for f in (min, max)]
        axes.set(
            xlim=(ends[0] - 2, ends[1] + 2),
            ylim=(ends[0] - 2, ends[1] + 2),
            aspect="equal",
            xlabel=f"label: {printable(document['label'])[:60]}",
            ylabel=f"{HEADS[head]} score",
            title=f"SRCC {shown(overall['srcc'], 3)}, PLCC {shown(overall['plcc'], 3)}, "
            f"RMSE {shown(overall['rmse'], 2)}",
        )
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#888888", alpha=0.3)
        axes.legend(loc="upper left", framealpha=0.6)
        return as_png(figure)


def worst_png(worst: Sequence[LargestError]) -> bytes:
    """The region of largest error of each encode, beside the same region of its source."""
    from matplotlib.figure import Figure

    with style(9, "black"):
        figure = Figure(figsize=(12, 1 + 2.6 * ((len(worst) + 1) // 2)), dpi=100)
        figure.set_layout_engine("constrained")
        grid = figure.subplots((len(worst) + 1) // 2, 4, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for error, (left, right) in zip(worst, grid.reshape(-1, 2), strict=False):
            row = error.row
            score = row["alone"] if np.isnan(row["anchored"]) else row["anchored"]
            size = f"{row['width']}x{row['height']}" if row["width"] else ""
            what = (row["encoder"], row["attack"] or "", size)
            if error.reference is not None:
                left.imshow(_rgb(error.reference), interpolation="nearest")
            right.imshow(_rgb(error.distorted), interpolation="nearest")
            left.set_title(printable(row["scene"])[:28], loc="left")
            right.set_title(
                f"{', '.join(printable(part)[:18] for part in what if part)}\n"
                f"label {row['label']:.1f}, score {score:.1f}",
                loc="left",
            )
        return as_png(figure)


def _rgb(planes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """(S·3/2, S) planar 4:2:0 to (S, S, 3) in 0..1."""
    import torch

    from vqaloop.media.colour import MEAN, STD, to_clips

    clip = to_clips(torch.from_numpy(planes)[None, None])[0, :, 0].permute(1, 2, 0)
    picture = clip * torch.tensor(STD) + torch.tensor(MEAN)
    return np.asarray(picture.clamp(0, 1).numpy())
