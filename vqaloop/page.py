"""A ladder as one page that opens offline; everything that is data in it is escaped."""

import contextlib
import html
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template
from urllib.parse import quote

from vqaloop.plot import ladder_title, metric_words, rd_svg
from vqaloop.records import Ladder
from vqaloop.terminal import cost_line, printable, shown, shown_rate


def html_page(ladder: Ladder) -> str:
    return filled(
        "report.html",
        title=safe(ladder_title(ladder)),
        summary=safe(_summary(ladder)),
        doubts=_doubts(ladder),
        rungs=_rung_table(ladder),
        metric=safe(metric_words(ladder)),
        plot=rd_svg(ladder),
        commands=_commands(ladder),
        trials=_trial_table(ladder),
        cost=safe(cost_line(ladder)),
        version=safe(ladder.about["vqaloop"]),
    )


def filled(body: str, *, title: str, **parts: str) -> str:
    """A page: `body`, a file beside this one, with its parts (HTML), in the frame of all."""

    def beside(name: str) -> str:
        return Path(__file__).with_name(name).read_text(encoding="utf-8")

    inner = Template(beside(body)).substitute(parts, title=title)
    return Template(beside("page.html")).substitute(
        title=title, style=beside("page.css"), body=inner
    )


def bullets(lines: Iterable[str]) -> str:
    """A list of lines that are HTML already; nothing where there are none."""
    items = "\n".join(f"<li>{line}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def escaped(rows: Iterable[Iterable[str]]) -> list[list[str]]:
    """Cells of others for `table`."""
    return [list(map(safe, row)) for row in rows]


def safe(text: str) -> str:
    """Text of others for HTML: on one line, control characters as escapes."""
    return html.escape(printable(text))


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
    return '<p class="alarm">Not to be trusted: a score missed its prediction.</p>\n' + found


def table(kind: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already.

    On a phone a row of kind "cards" is a list of what it holds; "dense" stays a table.
    """
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    body = "\n".join(
        "<tr>"
        + "".join(
            f'<td data-label="{heading}">{cell}</td>'
            for heading, cell in zip(headings, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


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


def _commands(ladder: Ladder) -> str:
    about = ladder.about["source"]
    before = [
        word
        for name, value in about.get("input_options", {}).items()
        for word in (f"-{name}", value)
    ]
    source = _as_ffmpeg_file(about["path"])
    commands = [
        ["ffmpeg", *before, "-i", source, *rung.ffmpeg_args, _as_ffmpeg_file(rung.file)]
        for rung in ladder.rungs
    ]
    lines = [" ".join(map(shell_word, command)) for command in commands]
    return "\n".join(f"<pre>{html.escape(line)}</pre>" for line in lines)


def shell_word(word: str) -> str:
    """A word quoted for the shell; one with control characters so that it is safe to paste."""
    if word.isprintable():
        return shlex.quote(word)
    parts = [
        c
        if c.isprintable() and c not in "\\'"
        else "".join(f"\\{byte:03o}" for byte in c.encode("utf-8", "backslashreplace"))
        for c in word
    ]
    return f"$'{''.join(parts)}'"


def _as_ffmpeg_file(name: str) -> str:
    """A name that ffmpeg would take for an option or a protocol, said to be a file."""
    return f"file:{name}" if name.startswith("-") or ":" in name else name


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
