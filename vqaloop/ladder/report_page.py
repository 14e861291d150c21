"""The report of a ladder as one HTML page that opens offline: what its template needs."""

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from vqaloop.core.text import shown, shown_rate
from vqaloop.ladder import report_plots
from vqaloop.ladder.pictures import Box, Pictures, Place, shown_places
from vqaloop.ladder.rd_plot import ladder_title, metric_words, rd_svg
from vqaloop.ladder.reproduce import folder_name, ladder_command, report_command
from vqaloop.ladder.summary import (
    audience_line,
    cost_line,
    earlier_line,
    estimate_line,
    film_grain_line,
    has_opinions,
    knob_heading,
    knob_value,
    label_line,
    pool_of,
    score_headings,
    spread_of,
)
from vqaloop.quality.guard import EVERY, WORST_SECOND
from vqaloop.records import Ladder, Rung
from vqaloop.report.html import link, render, shell_word

SHOWN_FIGURES = {
    "vmaf": "VMAF",
    "vmaf_v1": "VMAF v1",
    WORST_SECOND: "worst second",
    "xpsnr": "XPSNR",
    "psnr_y": "PSNR-Y",
    "cambi": "CAMBI",
}
"""Figures of the guard in the table of rungs, and their headings."""
Plots = list[tuple[Markup, str]]
"""SVG and caption of each."""


@dataclass(frozen=True)
class Layer:
    """A picture of a place, of the source or of a rung."""

    number: int
    """Of the rung; 0 for the source."""
    name: str
    words: str
    """In the menus: number, size, bitrate, and the score at this place."""
    picture: str
    """Base64 of a WebP file."""


@dataclass(frozen=True)
class PlaceView:
    """A place of low scores as the page shows it."""

    time: str
    """Seconds."""
    frame: int
    box: Box
    square: tuple[str, ...]
    """Left, top, width and height of the crop that was scored, in percent of the picture; empty
    where the whole frame was scored."""
    layers: tuple[Layer, ...]
    right: int
    """The rung on the right at first."""
    why: str = ""
    """Why it is shown, where that is not its score."""


def html_page(ladder: Ladder, pictures: Pictures) -> str:
    """The whole page; `pictures` are those of the places where the score is worst."""
    worst = ladder.about.get("worst") or []
    estimate = ladder.about.get("estimate")
    return render(
        "ladder.html",
        script="ladder.js",
        title=ladder_title(ladder),
        ladder=ladder,
        summary=_summary(ladder),
        warnings=ladder.about.get("warnings") or [],
        knob=ladder.rungs[0].knob[0],
        rungs=_rung_rows(ladder),
        opinion=_sentence(label_line(ladder)) if label_line(ladder) else "",
        headings=_rung_headings(ladder),
        audience=_sentence(audience_line(ladder)) if audience_line(ladder) else "",
        film_grain=_sentence(film_grain_line(ladder)) if film_grain_line(ladder) else "",
        metric=metric_words(ladder),
        broad=rd_svg(ladder),
        narrow=rd_svg(ladder, narrow=True),
        places=[
            _place_view(ladder, place, found)
            for place, found in zip(pictures.places, shown_places(ladder), strict=False)
        ],
        whole_frames=bool(worst) and worst[0].get("left") is None,
        trouble=pictures.trouble or "none were taken",
        over_time=_over_time(ladder),
        promise=_promise(ladder),
        estimate=_sentence(estimate_line(estimate)) if estimate else "",
        search=_search(ladder),
        trials=_trial_rows(ladder),
        tuned=_tuned(ladder),
        tuning=_plots(
            (report_plots.tuning_svg(ladder), "Trials of encoder parameters, before the search."),
            (
                report_plots.importance_svg(ladder),
                "How much each parameter told good trials from bad ones (PED-ANOVA).",
            ),
        ),
        cost_plots=_plots((report_plots.cost_svg(ladder), "")),
        cost=cost_line(ladder),
        earlier=earlier_line(ladder),
        ffmpeg=_program(ladder),
        rung_commands=["\n".join(map(_shell, rung_commands(ladder, r))) for r in ladder.rungs],
        ladder_command=_shell(ladder_command(ladder)),
        report_command=_shell(report_command(ladder)),
        folder=folder_name(ladder),
    )


def _summary(ladder: Ladder) -> str:
    about, low, high = ladder.about, ladder.rungs[0], ladder.rungs[-1]
    source, encoder = about["source"], about["encoder"]
    return (
        f"{len(ladder.rungs)} rungs from {shown_rate(low.bitrate_kbps)} to "
        f"{shown_rate(high.bitrate_kbps)} kb/s, scores {shown(low.score)} to "
        f"{shown(high.score)} by {metric_words(ladder)}, {about['metric']['mode']}. Source "
        f"{source['width']}x{source['height']}, {source['fps']:.6g} fps, "
        f"{source['duration']:.1f} s. Encoded by {encoder['library_version']}, preset "
        f"{encoder['preset']}."
    )


def _rung_headings(ladder: Ladder) -> list[str]:
    head = [
        "rung",
        "size",
        "kb/s",
        "peak kb/s",
        knob_heading(ladder),
        *score_headings(ladder),
        "predicted",
    ]
    return [*head, *SHOWN_FIGURES.values(), "bytes", "file"]


def _rung_rows(ladder: Ladder) -> list[list[str]]:
    opinions, means = has_opinions(ladder), pool_of(ladder) != "mean"
    return [
        [
            str(number),
            f"{rung.width}x{rung.height}",
            shown_rate(rung.bitrate_kbps),
            shown_rate(rung.peak_kbps),
            knob_value(ladder, rung),
            shown(rung.score, 2),
            *([shown(rung.score_mean, 2)] if means else []),
            *([shown(rung.opinion, 2)] if opinions else []),
            shown(rung.score_predicted, 2),
            *(_figure_cell(rung, name) for name in SHOWN_FIGURES),
            _file_size(ladder.folder, rung.file),
            link(rung.file, rung.file),
        ]
        for number, rung in enumerate(ladder.rungs, 1)
    ]


def _figure_cell(rung: Rung, name: str) -> str:
    spread = spread_of(rung, name)
    more = "" if spread is None else f" ±{spread:.2f}"
    return shown(rung.guard.get(name), 2) + more


def _file_size(folder: Path, name: str) -> str:
    with contextlib.suppress(OSError, ValueError):
        return f"{(folder / name).stat().st_size:,}"
    return "missing"


def _place_view(ladder: Ladder, place: Place, found: Mapping[str, Any]) -> PlaceView:
    """A place with its record in ladder.json."""
    time_s = place.frame / (ladder.about["source"]["fps"] or 1.0)
    layers = tuple(
        Layer(n, f"rung {n}" if n else "source", _layer_words(ladder, place, n), picture)
        for n, picture in sorted(place.pictures.items())
    )
    rungs = [layer.number for layer in layers if layer.number]
    square = _square(found, place.box)
    right, why = rungs[len(rungs) // 2], ""
    if "cambi" in found:
        right = found["rung"] if found["rung"] in rungs else right
        why = f"The most visible banding, in {found['file']}: CAMBI {shown(found['cambi'])}. "
    return PlaceView(f"{time_s:.2f}", place.frame, place.box, square, layers, right, why)


def _layer_words(ladder: Ladder, place: Place, number: int) -> str:
    if not number:
        return "source"
    rung, score = ladder.rungs[number - 1], dict(enumerate(place.scores, 1)).get(number)
    # a menu's words do not wrap, and a phone has room for few
    here = f", {shown(score)} here" if score is not None else ""
    return f"{number}: {rung.width}x{rung.height}, {shown_rate(rung.bitrate_kbps)} kb/s{here}"


def _square(found: Mapping[str, Any], box: Box) -> tuple[str, ...]:
    left, top, size = (found.get(name) for name in ("left", "top", "size"))
    if left is None or top is None or size is None:
        return ()
    parts = (left - box[0]) / box[2], (top - box[1]) / box[3], size / box[2], size / box[3]
    return tuple(f"{100 * part:.2f}" for part in parts)


def _over_time(ladder: Ladder) -> Plots:
    about = next(filter(None, (rung.over_time for rung in ladder.rungs)), {})
    rates = f"Means over {about.get('step_s') or 0:g} s, frames alone, without the container."
    if any(rung.cap for rung in ladder.rungs):
        rates += " Dotted lines are caps: the rate at which the encoder's buffer is refilled."
    if any(rung.scenes for rung in ladder.rungs) and not ladder.about.get("per_shot"):
        rates += (
            " Of some rungs the quality is lower where the title was above its bound of peaks."
        )
    scores = "Means of all frames"
    span_s = about.get("span_s") or 0.0
    if report_plots.is_sampled(ladder):
        scores = (
            f"Points are the moments that were looked at, {span_s:.2g} s each; what lies between "
            "them was not; the lines only connect the points."
        )
    elif span_s > 0:
        fps = ladder.about["source"]["fps"]
        frames = max(1, round(span_s * fps))
        scores = "Every frame." if frames == 1 else f"Means over {span_s:.2g} s, all frames."
    shots = (
        "Means of each scene's own encode; dotted lines are the cuts, at which the knob changes."
    )
    return _plots(
        (report_plots.bitrate_svg(ladder), rates),
        (report_plots.score_svg(ladder), scores),
        (report_plots.scenes_svg(ladder), shots),
    )


def _promise(ladder: Ladder) -> Plots:
    off = [abs(rung.score - rung.score_predicted) for rung in ladder.rungs]
    worst = off.index(max(off)) + 1
    scores = (
        "Score expected before a rung was made, and measured on its file; beside each its number "
        f"and by how much it is off. On average {sum(off) / len(off):.2f}, at worst "
        f"{max(off):.2f} (rung {worst})."
    )
    guard = "Figures of each file that had no part in choosing it: " + _frames_words(ladder)
    return _plots(
        (report_plots.promise_svg(ladder), scores), (report_plots.guard_svg(ladder), guard)
    )


def _frames_words(ladder: Ladder) -> str:
    """Of which frames the guard is."""
    looked = ladder.about.get("guard") or {}
    if looked.get("mode") == "off":
        return "none, the guard was off."
    if looked.get("mode") == "sampled":
        return (
            f"of {looked.get('places')} places in {looked.get('frames')} frames; ± is half of a "
            "95 % interval."
        )
    return f"PSNR-Y and XPSNR of all frames, the others of 1 frame in {EVERY['vmaf']}."


def _search(ladder: Ladder) -> Plots:
    low, high = ladder.rungs[0].bitrate_kbps, ladder.rungs[-1].bitrate_kbps
    grown = (
        "The mean, over the logarithm of the rate from "
        f"{shown_rate(low)} to {shown_rate(high)} kb/s, of the best score known for each rate."
    )
    return _plots(
        (report_plots.history_svg(ladder), "What was tried, in order."),
        (report_plots.growth_svg(ladder), grown),
    )


def _tuned(ladder: Ladder) -> str:
    """The encoder's parameters; empty where they were not tuned."""
    tuning = ladder.about.get("tuning")
    if not tuning:
        return ""
    chosen = " ".join(f"{name}={value}" for name, value in ladder.rungs[0].params.items())
    few = "" if tuning["importance"] else " Too few trials to tell which parameters matter."
    return f"Chosen after {len(tuning['trials'])} trials: {chosen or 'the defaults'}.{few}"


def _plots(*found: tuple[Markup, str]) -> Plots:
    """Those that could be drawn."""
    return [(plot, caption) for plot, caption in found if plot]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _trial_rows(ladder: Ladder) -> list[list[str]]:
    rows = []
    for trial in ladder.about["trials"]:
        outcome = f"failed: {trial['error']}" if trial["error"] else "encoded"
        if trial.get("cached"):
            outcome = "from the cache"
        if not trial.get("whole_title", True):
            outcome += ", of an excerpt"
        rows.append(
            [
                f"{trial['width']}x{trial['height']}",
                f"{trial['knob']:g}",
                shown_rate(trial["bitrate_kbps"]),
                shown(trial["score"], 2),
                outcome,
            ]
        )
    return rows


def _shell(command: Iterable[str]) -> str:
    return " ".join(map(shell_word, command))


def rung_commands(ladder: Ladder, rung: Rung) -> list[list[str]]:
    """The command that gives a rung again, after that of its first pass where it has two."""
    about = ladder.about["source"]
    before = [
        word
        for name, value in (about.get("input_options") or {}).items()
        for word in (f"-{name}", value)
    ]
    # of a rung made of scenes the first one, as an example of all
    stem, suffix = os.path.splitext(rung.file)
    file = f"{stem}.scene1{suffix}" if rung.scenes else rung.file
    source, out = _as_ffmpeg_file(about["path"]), _as_ffmpeg_file(file)
    program = ladder.about["encoder"].get("ffmpeg_path") or "ffmpeg"
    args = rung.scene_args(rung.scenes[0]) if rung.scenes else rung.ffmpeg_args
    head = [program, *before, "-i", source]
    first = [[*head, *rung.two_pass.first_pass_args, "-"]] if rung.two_pass else []
    return [*first, [*head, *args, out]]


def _program(ladder: Ladder) -> str:
    """Which ffmpeg the commands are for."""
    encoder = ladder.about["encoder"]
    version, digest = encoder.get("ffmpeg_version"), encoder.get("ffmpeg")
    made_by = f"{version} with {encoder['library_version']}" if version else "the same ffmpeg"
    text = f"Each gives its rung again, by {made_by}. "
    if any(rung.scenes for rung in ladder.rungs):
        text = (
            f"Each gives its rung again, by {made_by}, or the first scene of a rung made of "
            "scenes; the options of the others are in ladder.json. "
        )
    text += "Another may read an option otherwise and give no warning"
    if digest:
        text += f": sha256sum of this one is {digest}"
    return f"{text}."


def _as_ffmpeg_file(name: str) -> str:
    """A name that ffmpeg would take for an option or a protocol, marked as a file."""
    return f"file:{name}" if name.startswith("-") or ":" in name else name
