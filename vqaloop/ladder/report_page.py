"""A ladder as one page that opens offline; everything that is data in it is escaped."""

import contextlib
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vqaloop.core.text import shown, shown_rate
from vqaloop.ladder import report_plots
from vqaloop.ladder.pictures import PREFIX, Box, Pictures, Place, digest
from vqaloop.ladder.rd_plot import ladder_title, metric_words, rd_svg
from vqaloop.ladder.reproduce import folder_name, ladder_command, report_command
from vqaloop.ladder.summary import cost_line, estimate_line
from vqaloop.records import Ladder, Rung
from vqaloop.report.html import bullets, filled, safe, shell_word, table


def html_page(ladder: Ladder, pictures: Pictures) -> str:
    """The whole page; `pictures` are those of the places where the score is worst."""
    return filled(
        "report.html",
        title=safe(ladder_title(ladder)),
        script="report.js",
        summary=safe(_summary(ladder)),
        doubts=_doubts(ladder),
        rungs=_rung_table(ladder),
        metric=safe(metric_words(ladder)),
        plot=rd_svg(ladder),
        narrow=rd_svg(ladder, narrow=True),
        pictures=_places(ladder, pictures),
        overtime=_over_time(ladder),
        promise=_promise(ladder),
        study=_study(ladder),
        trials=_trial_table(ladder),
        tuning=_tuning(ladder),
        costs=_plots([(report_plots.cost_svg(ladder), "")]),
        cost=safe(cost_line(ladder)),
        commands=_commands(ladder),
        version=safe(ladder.about["vqaloop"]),
    )


def _summary(ladder: Ladder) -> str:
    about, low, high = ladder.about, ladder.rungs[0], ladder.rungs[-1]
    source, encoder = about["source"], about["encoder"]
    return (
        f"{len(ladder.rungs)} rungs from {shown_rate(low.bitrate_kbps)} to "
        f"{shown_rate(high.bitrate_kbps)} kb/s, scores {shown(low.score)} to "
        f"{shown(high.score)} by {metric_words(ladder)}, {about['metric']['mode']}. Source "
        f"{source['width']}x{source['height']}, {source['fps']:.6g} frames a second, "
        f"{source['duration']:.1f} s. Encoded by {encoder['library_version']}, preset "
        f"{encoder['preset']}."
    )


def _doubts(ladder: Ladder) -> str:
    lines = bullets(map(safe, ladder.about.get("warnings") or ()))
    found = f"<h2>Warnings</h2>\n{lines}" if lines else ""
    if ladder.trusted:
        return found
    why = "a score missed its prediction, or VMAF contradicts it"
    return f'<p class="alarm">Not to be trusted: {why}.</p>\n{found}'


def _rung_table(ladder: Ladder) -> str:
    knob = safe(ladder.rungs[0].knob[0])
    headings = ["rung", "size", "kb/s", "peak kb/s", knob, "score", "predicted", "VMAF", "PSNR-Y"]
    rows = [
        [
            str(number),
            f"{rung.width}x{rung.height}",
            shown_rate(rung.bitrate_kbps),
            shown_rate(rung.peak_kbps),
            f"{rung.knob[1]:g}",
            shown(rung.score, 2),
            shown(rung.score_predicted, 2),
            shown(rung.guard.get("vmaf"), 2),
            shown(rung.guard.get("psnr_y"), 2),
            _file_size(ladder.folder, rung.file),
            f'<a href="{quote(rung.file, errors="replace")}">{safe(rung.file)}</a>',
        ]
        for number, rung in enumerate(ladder.rungs, 1)
    ]
    return table("cards", [*headings, "bytes", "file"], rows)


def _file_size(folder: Path, name: str) -> str:
    with contextlib.suppress(OSError, ValueError):
        return f"{(folder / name).stat().st_size:,}"
    return "missing"


def _places(ladder: Ladder, pictures: Pictures) -> str:
    """The source beside each rung, where the rungs together score worst."""
    if not pictures.places:
        why = pictures.trouble or "none were taken"
        return f'<p class="faint">No pictures: {safe(why)}.</p>'
    figures = "\n".join(
        _place(ladder, place, number) for number, place in enumerate(pictures.places, 1)
    )
    whole = ladder.about["worst"][0]["left"] is None
    where = (
        "The frames that score lowest over all rungs, and of each the part that differs most."
        if whole
        else "Of all places that were looked at, those that score lowest over all rungs; scores "
        "are of the dashed square."
    )
    return (
        f'<p class="faint">{where} Move the slider, or drag in the picture; choose what lies on '
        "either side. The rungs are scaled to the source's size as they were for the score.</p>\n"
        f'<div class="pair" data-ladder="{digest(ladder)}">\n{figures}\n</div>'
    )


def _place(ladder: Ladder, place: Place, number: int) -> str:
    """One place, as `kept_pictures` (crops.py) reads it back."""
    left, top, width, height = place.box
    at_s = place.frame / (ladder.about["source"]["fps"] or 1.0)
    rungs = [n for n in sorted(place.pictures) if n]
    other = rungs[len(rungs) // 2]
    shown_at_first = {0: "left", other: "right"}
    images = "".join(
        f'<img class="{shown_at_first.get(n, "")}" data-rung="{n}" width="{width}" '
        f'height="{height}" alt="{_side_name(n)} at {at_s:.2f} s" src="{PREFIX}{data}">'
        for n, data in sorted(place.pictures.items())
    )
    names = [_side_name(n) for n in shown_at_first]
    square = _square(ladder.about["worst"][number - 1], place.box)
    return (
        f'<figure class="place" data-box="{left} {top} {width} {height}">\n'
        f'<div class="stage">{images}{square}<span>{names[0]}</span>'
        f"<span>{names[1]}</span></div>\n"
        f'<input type="range" min="0" max="100" value="50" aria-label="Place {number}: share of '
        'the picture that shows the left side, in percent">\n'
        f'<div class="sides">{_side(ladder, place, 0, "left")}\n'
        f"{_side(ladder, place, other, 'right')}</div>\n"
        f"<figcaption>{at_s:.2f} s, frame {place.frame}, {width}x{height} pixels from "
        f"({left}, {top})</figcaption>\n</figure>"
    )


def _square(found: Mapping[str, Any], box: Box) -> str:
    """What was scored, drawn into the picture; nothing where that was the whole frame."""
    left_at, top_at, size = (found.get(name) for name in ("left", "top", "size"))
    if left_at is None or top_at is None or size is None:
        return ""
    at = left_at, top_at
    left, top = (100 * (at[n] - box[n]) / box[n + 2] for n in (0, 1))
    wide, tall = (100 * size / side for side in box[2:])
    return f'<i style="left:{left:.2f}%;top:{top:.2f}%;width:{wide:.2f}%;height:{tall:.2f}%"></i>'


def _side(ladder: Ladder, place: Place, chosen: int, side: str) -> str:
    options = []
    for n in sorted(place.pictures):
        words = "source"
        if n:
            rung, score = ladder.rungs[n - 1], dict(enumerate(place.scores, 1)).get(n)
            # a menu's words do not wrap, and a phone has room for few
            here = f", {shown(score)} here" if score is not None else ""
            size = f"{rung.width}x{rung.height}"
            words = f"{n}: {size}, {shown_rate(rung.bitrate_kbps)} kb/s{here}"
        mark = " selected" if n == chosen else ""
        options.append(f'<option value="{n}" data-name="{_side_name(n)}"{mark}>{words}</option>')
    return f"<label><b>{side}</b> <select>{''.join(options)}</select></label>"


def _side_name(number: int) -> str:
    return f"rung {number}" if number else "source"


def _over_time(ladder: Ladder) -> str:
    about = _first(rung.over_time for rung in ladder.rungs)
    rates = f"Means over {about.get('step_s') or 0:g} s, frames alone, without the container."
    scores = "Means of all frames"
    span_s = about.get("span_s") or 0.0
    if report_plots.is_sampled(ladder):
        scores = (
            f"Points are the moments that were looked at, {span_s:.2g} s each; what lies between "
            "them was not, and the lines only lead the eye."
        )
    elif span_s > 0:
        fps = ladder.about["source"]["fps"]
        frames = max(1, round(span_s * fps))
        scores = "Every frame." if frames == 1 else f"Means over {span_s:.2g} s, all frames."
    plots = _plots(
        [(report_plots.bitrate_svg(ladder), rates), (report_plots.score_svg(ladder), scores)]
    )
    return plots or '<p class="faint">Not kept in this ladder.json.</p>'


def _first(found: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    return next(filter(None, found), {})


def _promise(ladder: Ladder) -> str:
    off = [abs(rung.score - rung.score_predicted) for rung in ladder.rungs]
    worst = off.index(max(off)) + 1
    said = (
        "Score expected before a rung was made, and measured on its file; beside each its number "
        f"and by how much it is off. On average {sum(off) / len(off):.2f}, at worst "
        f"{max(off):.2f} (rung {worst})."
    )
    guard = "VMAF and PSNR-Y, measured on all frames of each file beside the score."
    plots = _plots(
        [
            (report_plots.promise_svg(ladder), safe(said)),
            (report_plots.guard_svg(ladder), guard),
        ]
    )
    estimate = ladder.about.get("estimate")
    return plots + (f"\n<p>{safe(_sentence(estimate_line(estimate)))}</p>" if estimate else "")


def _study(ladder: Ladder) -> str:
    low, high = ladder.rungs[0].bitrate_kbps, ladder.rungs[-1].bitrate_kbps
    grown = (
        "The mean, over the logarithm of the rate from "
        f"{shown_rate(low)} to {shown_rate(high)} kb/s, of the best score known for each rate."
    )
    return _plots(
        [
            (report_plots.history_svg(ladder), "What was tried, in order."),
            (report_plots.growth_svg(ladder), grown),
        ]
    )


def _tuning(ladder: Ladder) -> str:
    """Of the encoder's parameters, where they were tuned."""
    tuning = ladder.about.get("tuning")
    if not tuning:
        return ""
    chosen = " ".join(f"{name}={value}" for name, value in ladder.rungs[0].params.items())
    said = f"Chosen after {len(tuning['trials'])} trials: {chosen or 'the defaults'}."
    few = "" if tuning["importance"] else " Too few trials to tell which parameters matter."
    plots = _plots(
        [
            (report_plots.tuning_svg(ladder), "Trials of encoder parameters, before the search."),
            (
                report_plots.importance_svg(ladder),
                "How much each parameter told good trials from bad ones (PED-ANOVA).",
            ),
        ]
    )
    return f"<h2>Encoder parameters</h2>\n<p>{safe(said + few)}</p>\n{plots}"


def _plots(found: Sequence[tuple[str, str]]) -> str:
    """Plots beside each other where there is room, each with a caption that is HTML."""
    figures = [
        f"<figure>{plot}" + (f"<figcaption>{words}</figcaption>" if words else "") + "</figure>"
        for plot, words in found
        if plot
    ]
    return f'<div class="pair">{"".join(figures)}</div>' if figures else ""


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _trial_table(ladder: Ladder) -> str:
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
                safe(outcome),
            ]
        )
    knob = safe(ladder.rungs[0].knob[0])
    return table("dense", ["size", knob, "kb/s", "score", "outcome"], rows)


def _commands(ladder: Ladder) -> str:
    parts = [
        f'<p class="faint">{_needed(ladder.about["encoder"])}</p>',
        *(_pre(_rung_command(ladder, rung)) for rung in ladder.rungs),
        f'<p class="faint">The ladder again{"" if "asked" in ladder.about else _AS_FAR}; what is '
        "in the cache is not encoded again.</p>",
        _pre(ladder_command(ladder)),
        '<p class="faint">This page, rd.png and ladder.csv again, from the folder '
        f"{safe(folder_name(ladder))} alone.</p>",
        _pre(report_command(ladder)),
    ]
    return "\n".join(parts)


_AS_FAR = ", as far as ladder.json tells what was asked"


def _pre(command: Sequence[str]) -> str:
    return f"<pre>{html.escape(' '.join(map(shell_word, command)))}</pre>"


def _rung_command(ladder: Ladder, rung: Rung) -> list[str]:
    about = ladder.about["source"]
    before = [
        word
        for name, value in (about.get("input_options") or {}).items()
        for word in (f"-{name}", value)
    ]
    source, out = _as_ffmpeg_file(about["path"]), _as_ffmpeg_file(rung.file)
    program = ladder.about["encoder"].get("ffmpeg_path") or "ffmpeg"
    return [program, *before, "-i", source, *rung.ffmpeg_args, out]


def _needed(encoder: Mapping[str, Any]) -> str:
    """Which ffmpeg the commands are for, as HTML."""
    version, digest = encoder.get("ffmpeg_version"), encoder.get("ffmpeg")
    made_by = f"{version} with {encoder['library_version']}" if version else "the same ffmpeg"
    text = f"Each gives its rung again, by {made_by}. "
    text += "Another may take options otherwise, and without a word"
    if digest:
        text += f": sha256sum of this one is {digest}"
    return f"{safe(text)}."


def _as_ffmpeg_file(name: str) -> str:
    """A name that ffmpeg would take for an option or a protocol, said to be a file."""
    return f"file:{name}" if name.startswith("-") or ":" in name else name
