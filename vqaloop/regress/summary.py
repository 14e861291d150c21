"""Summary of a comparison of two builds: tables for a terminal, Markdown for a pull request.

All of it is made from the document that `vqaloop regress --json` writes. Names and messages in it
come from others: they reach a terminal as `printable` text and Markdown as text without markup.
"""

import html
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from vqaloop.core.text import change, counted, cut, metric_name, printable
from vqaloop.regress.verdict import STEPS, CheckKind, check_name
from vqaloop.report.console import WIDTH, console_for, encodable, table
from vqaloop.report.cost import spent_words
from vqaloop.report.markdown import code, listed, pipes, prose

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table


Document = Mapping[str, Any]

MOST_REASONS = 8
"""Reasons listed at a terminal; the other outputs have all."""
STYLES = {"regression": "bold red", "improvement": "green", "cannot tell": "yellow"}
"""Beside the word, never instead of it."""
ACROSS = 3
"""Metrics beside each other in 80 columns."""
LONGEST_COMMENT = 60_000
"""Characters; GitHub takes 65,536."""


def times(ratio: float | None) -> str:
    """Candidate over baseline."""
    return "-" if ratio is None or not math.isfinite(ratio) else f"{ratio:.2f}x"


def span(interval: Sequence[float | None] | None) -> str:
    return " to ".join(change(end) for end in interval) if interval else "-"


def margin(percent: float | None, unit: str = "") -> str:
    """Noise floor, a half-width, in percent."""
    return change(percent, unit).lstrip("+")


def builds_line(document: Document) -> str:
    """Which build against which."""
    words = [
        " ".join([about["version"] or about["name"], *about["args"]]) if about else "nothing"
        for about in (document["candidate"], document["baseline"])
    ]
    return printable(f"{words[0]} against {words[1]}, {document['codec']}")


def overall_rows(document: Document) -> list[list[str]]:
    """For each metric: name, BD-rate, Akima, 95 % interval, noise floor, clips, verdict."""
    clips = len(document["clips"])
    return [
        [
            metric_name(name),
            change(found["bd_rate_percent"]),
            change(found["akima_percent"]),
            span(found["interval_percent"]),
            margin(found["noise_floor_percent"]),
            f"{found['clips']} of {clips}",
            found["verdict"] if name in document["gate"] else "not judged",
        ]
        for name, found in document["metrics"].items()
    ]


def other_rows(document: Document) -> list[list[str]]:
    """What else was measured: what, value, noise, verdict."""
    time, memory, rate = (document.get(key) or {} for key in ("time", "memory", "rate"))
    bits = change(rate.get("mean_percent"), " %")
    if rate.get("baseline_percent") is not None:
        bits += f" (baseline {change(rate['baseline_percent'])})"
    rows = [
        [
            "encode time, CPU",
            times(time.get("cpu_ratio")),
            margin(time.get("noise_percent"), " %"),
        ],
        ["encode time, clock", times(time.get("wall_ratio")), "-"],
        ["peak memory", times(memory.get("peak_ratio")), "-"],
        [printable(rate.get("what") or "bitrate"), bits, "-"],
    ]
    verdicts = (time.get("verdict"), None, memory.get("verdict"), rate.get("verdict"))
    rows = [[*row, verdict or "-"] for row, verdict in zip(rows, verdicts, strict=True)]
    for key, what in (
        ("bit_exact", "streams equal bit by bit"),
        ("decoded_equal", "decoded frames equal"),
    ):
        answer = {True: "yes", False: "no", None: "-"}[document.get(key)]
        rows.append([what, answer, "-", "-"])
    return rows


def clip_cells(document: Document, clip: Mapping[str, Any]) -> dict[str, str]:
    """By check: each BD-rate, time, memory and rate of a clip, with "!" where it failed."""
    failed, cells = _failed(document, clip), {}
    for name in document["metrics"]:
        found = clip["bd_rate"].get(name) or {}
        cells[check_name(CheckKind.BD_RATE, name)] = (
            "refused" if found.get("refused") else change(found.get("pchip"))
        )
    cells["time"] = times(clip.get("cpu_ratio"))
    cells["memory"] = times(clip.get("peak_ratio"))
    cells["rate"] = change(clip.get("rate_percent"))
    return {check: cell + "!" * (check in failed) for check, cell in cells.items()}


def clip_rows(document: Document, clip: Mapping[str, Any]) -> list[list[str]]:
    """For each metric: name, BD-rate, Akima, noise floor of a clip."""
    cells = clip_cells(document, clip)
    return [
        [
            metric_name(name),
            cells[check_name(CheckKind.BD_RATE, name)],
            *(change((clip["bd_rate"].get(name) or {}).get(key)) for key in ("akima", "noise")),
        ]
        for name in document["metrics"]
    ]


def headline(document: Document, clip: Mapping[str, Any]) -> str:
    """The BD-rate of a clip by the metric that leads, and which checks it failed."""
    found = clip["bd_rate"].get(document["metric"]["name"]) or {}
    cell = "refused" if found.get("refused") else change(found.get("pchip"), " %")
    names = {
        check_name(CheckKind.BD_RATE, name): metric_name(name) for name in document["metrics"]
    }
    failed = [names.get(check, printable(check)) for check in _failed(document, clip)]
    return f"BD-rate {cell}" + f"; failed: {', '.join(failed)}" * bool(failed)


def _failed(document: Document, clip: Mapping[str, Any]) -> list[str]:
    """The checks that a clip failed."""
    return [
        check["check"]
        for check in document["checks"]
        if check["clip"] == clip["clip"] and check["status"] == "failed"
    ]


def more_reasons(document: Document) -> list[str]:
    """The reasons but for the first, which the summary of a regression holds."""
    reasons: list[str] = document["reasons"]
    return reasons[1:] if document["verdict"] == "regression" else reasons


def clip_line(clip: Mapping[str, Any], cells: Mapping[str, str]) -> str:
    """What the clip is, whether the builds gave the same, and what else they took."""
    same = ", equal as decoded" if clip.get("decoded_equal") else ""
    if clip.get("bit_exact"):
        same = ", streams equal bit by bit"
    size, frames = f"{clip['width']}x{clip['height']}", f"{clip['frames']} frames"
    bits = change(clip.get("rate_percent"), " %") + "!" * cells["rate"].endswith("!")
    return (
        f"{size}, {frames} at {float(Fraction(clip['fps'])):.6g} a second{same}; "
        f"time {cells['time']}, memory {cells['memory']}, bits {bits}"
    )


def failure_rows(document: Document) -> list[list[str]]:
    """Clip, build, kind, where, message; the points of a clip that failed alike are one row."""
    found: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for clip in document["clips"]:
        for failure in clip["failures"]:
            key = (clip["clip"], failure["build"], failure["kind"])
            found.setdefault(key, []).append(failure)
    rows = []
    for key, failures in found.items():
        by_size: dict[str, list[str]] = {}
        for failure in failures:
            size = f"{failure['width']}x{failure['height']}"
            by_size.setdefault(size, []).append(str(failure["point"]))
        where = "; ".join(f"{size} at {', '.join(points)}" for size, points in by_size.items())
        rows.append([*key, where, cut(failures[0]["message"])])
    return rows


def other_failures(document: Document) -> list[str]:
    """The failures that are no reason of the verdict: the baseline's, and those of both."""
    reasons = {
        (check["clip"], check["check"])
        for check in document["checks"]
        if check["status"] == "failed"
    }
    steps = {kind: check for check, kinds in STEPS.items() for kind in kinds}
    return [
        f"{clip}: {build}: {kind}, {where}: {message}"
        for clip, build, kind, where, message in failure_rows(document)
        if build != "candidate" or (clip, steps.get(kind)) not in reasons
    ]


def refusals(document: Document) -> list[tuple[str, str, str]]:
    """Clip, metrics, and the reason why they give no BD-rate."""
    found: dict[tuple[str, str], list[str]] = {}
    for clip in document["clips"]:
        for name, gap in clip["bd_rate"].items():
            if gap and gap.get("refused"):
                found.setdefault((clip["clip"], gap["refused"]), []).append(metric_name(name))
    return [(clip, ", ".join(names), cut(why)) for (clip, why), names in found.items()]


def cost_line(document: Document) -> str:
    """Cost of the comparison, in one line."""
    cost = document["cost"]
    return f"{counted(cost['encodes'], 'encode')}, {spent_words(cost)}"


def regress_table(document: Document) -> "Group":
    """The verdict in words, then clip by clip, then overall, within 80 columns."""
    from rich.console import Group
    from rich.text import Text

    verdict = document["verdict"]
    parts: list[Any] = [
        Text(printable(verdict), STYLES.get(verdict, "bold")),
        _line(document["summary"]),
        _line(builds_line(document)),
    ]
    names = list(document["metrics"])
    groups = [names[i : i + ACROSS] for i in range(0, len(names), ACROSS)] or [[]]
    for number, group in enumerate(groups):
        parts += ["", _clip_table(document, group, last=number == len(groups) - 1)]
    parts += ["BD-rate: + needs more bits; bits: at equal knob; time, memory: times; !: bad", ""]
    headings = ("overall", "BD-rate", "Akima", "95 % interval", "noise", "clips", "verdict")
    parts += [_plain_table(headings, overall_rows(document)), ""]
    parts += [_plain_table(("", "", "noise", "verdict"), other_rows(document)), ""]
    reasons = document["reasons"]
    parts += [_line(f"failed: {reason}", "red") for reason in reasons[:MOST_REASONS]]
    if len(reasons) > MOST_REASONS:
        parts.append(_line(f"and {len(reasons) - MOST_REASONS} more, marked ! above", "red"))
    parts += [_line(f"also failed: {line}") for line in other_failures(document)]
    parts += [
        _line(f"no BD-rate: {clip}, {names}: {why}", "yellow")
        for clip, names, why in refusals(document)
    ]
    return Group(*parts, _line(cost_line(document)))


def print_verdict(document: Document) -> None:
    """The whole summary on stdout."""
    console = console_for(sys.stdout)
    shown = regress_table(_encodable(document, console.encoding))
    # a log is searched line by line; the tables have no more than WIDTH in any case
    console.width = min(console.width, WIDTH) if console.is_terminal else 4000
    console.print(shown)


def _encodable(value: Any, encoding: str) -> Any:
    if isinstance(value, str):
        return encodable(value, encoding)
    if isinstance(value, Mapping):
        return {_encodable(key, encoding): _encodable(v, encoding) for key, v in value.items()}
    return [_encodable(v, encoding) for v in value] if isinstance(value, list) else value


def _line(text: str, style: str = "") -> Any:
    from rich.text import Text

    return Text(printable(text), style, overflow="fold")


def _plain_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> "Table":
    """Numbers to the right, names and verdicts to the left; verdicts, the last ones, in colour."""
    from rich.text import Text

    coloured: Iterator[list[str | Text]] = (
        [*cells, Text(printable(verdict), STYLES.get(verdict, ""))] for *cells, verdict in rows
    )
    return table(headings, coloured, left=(0, len(headings) - 1), overflow="fold")


def _clip_table(
    document: Document, names: Sequence[str], last: bool, hyphen: str = "-"
) -> "Table":
    """BD-rates of some metrics by clip; the last such table holds time, memory and rate too."""
    from rich.console import Console

    checks = {
        check_name(CheckKind.BD_RATE, name): _LONG.sub(hyphen, cut(metric_name(name), 20))
        for name in names
    }
    if last:
        checks |= {"time": "time", "memory": "memory", "rate": "bits %"}
    drawn = _plain_table(("clip", *checks.values(), ""), [])
    drawn.columns[0].no_wrap = False
    broken = {(clip, build) for clip, build, *_ in failure_rows(document)}
    for clip in document["clips"]:
        cells = clip_cells(document, clip)
        failed = (clip["clip"], "candidate") in broken
        drawn.add_row(
            _line(cut(clip["clip"], 80)),
            *(
                _line(cells[check], "red" if cells[check].endswith("!") else "")
                for check in checks
            ),
            _line("failed", "bold red") if failed else _line(""),
        )
    if hyphen == "-" and Console(width=1000).measure(drawn).maximum > WIDTH:
        # a long name on two lines, and a clip's on as many as it needs
        return _clip_table(document, names, last, "-\n")
    return drawn


def markdown(document: Document) -> str:
    """The comparison as a comment of at most LONGEST_COMMENT characters, clips folded away."""
    verdict = document["verdict"]
    blocks = [f"### vqaloop regress: {prose(verdict)}", prose(cut(document["summary"], 1000))]
    blocks += listed([prose(cut(reason)) for reason in more_reasons(document)])
    headings = ("metric", "BD-rate %", "Akima %", "95 % interval", "noise floor %", "clips")
    blocks.append(pipes((*headings, "verdict"), overall_rows(document)))
    others = ("candidate to baseline", "value", "noise", "verdict")
    blocks.append(pipes(others, other_rows(document)))
    refused = [
        f"{code(cut(clip, 120))}, {prose(names)}: {prose(why)}"
        for clip, names, why in refusals(document)
    ]
    crashes = [prose(line) for line in other_failures(document)]
    blocks += ["#### Other crashes and broken output"] * bool(crashes) + listed(crashes)
    blocks += ["#### No BD-rate"] * bool(refused) + listed(refused)
    blocks += [_folded(document, clip) for clip in document["clips"]]
    foot = f"{prose(cut(builds_line(document), 1000))}. {prose(cost_line(document))}. "
    foot += f"vqaloop {prose(document['vqaloop'])}. BD-rate: + needs more bits at equal score, "
    foot += "! failed its check."
    return _within(blocks, foot)


def _within(blocks: Sequence[str], foot: str) -> str:
    """As many of the blocks as the longest comment holds, with a note where some are left out."""
    left_out = "The rest is left out: too long for a comment."
    room = LONGEST_COMMENT - len(foot) - len(left_out) - 5
    kept: list[str] = []
    for block in blocks:
        room -= len(block) + 2
        if room < 0:
            kept.append(left_out)
            break
        kept.append(block)
    return "\n\n".join([*kept, foot]) + "\n"


def _folded(document: Document, clip: Mapping[str, Any]) -> str:
    """One clip behind its name and the BD-rate of the headline metric."""
    cells = clip_cells(document, clip)
    name = html.escape(printable(cut(clip["clip"], 120)))
    return "\n\n".join(
        [
            f"<details><summary><code>{name}</code>: {prose(headline(document, clip))}</summary>",
            pipes(("metric", "BD-rate %", "Akima %", "noise %"), clip_rows(document, clip)),
            prose(clip_line(clip, cells)),
            "</details>",
        ]
    )


_LONG = re.compile("(?<=.{6})-")
