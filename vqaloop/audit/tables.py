"""An audit as text for a terminal and as Markdown."""

import sys

from vqaloop.audit.audit import Audit
from vqaloop.core.text import counted, metric_name, printable, shown_rate
from vqaloop.ladder.against import percent
from vqaloop.report.console import WIDTH, console_for, encodable, table
from vqaloop.report.markdown import code, pipes, prose

_HEADINGS = ("rung", "codec", "size", "kb/s", "peak", "score", "findings")


def rows(audit: Audit) -> list[list[str]]:
    """The rungs by codec and rate, each with the kinds of its findings."""
    ordered = sorted(audit.rungs, key=lambda r: (r.measured.codec, r.kbps))
    return [
        [
            rung.name,
            rung.measured.codec,
            f"{rung.measured.width}x{rung.measured.height}",
            shown_rate(rung.kbps),
            shown_rate(rung.measured.peak_kbps),
            f"{rung.score:.1f}",
            ", ".join(dict.fromkeys(f.kind for f in audit.findings if rung.name == f.rungs[0]))
            or "-",
        ]
        for rung in ordered
    ]


def summary(audit: Audit) -> list[str]:
    """What our ladder would save, in a sentence or two; none without one."""
    found = audit.against
    if found is None:
        return []
    more = percent(found.a.delivered.kbps, found.b.delivered.kbps)
    lines = [
        f"Our ladder delivers {found.gain:+.2f} points of mean score to the default audience with "
        f"{more:+.1f} % egress and {percent(found.a.storage_kbps, found.b.storage_kbps):+.1f} % "
        "storage."
    ]
    if audit.bd_rate is not None:
        lines.append(f"At the same score it needs {audit.bd_rate:+.1f} % bitrate (BD-rate).")
    return lines


def print_audit(audit: Audit) -> None:
    """The table of rungs, then the findings, on stdout."""
    console = console_for(sys.stdout)
    console.width = max(console.width, WIDTH)

    def line(text: str) -> None:
        console.print(encodable(printable(text), console.encoding), soft_wrap=True)

    console.print(table(_HEADINGS, rows(audit), left=(0, 1, 6), overflow="fold"))
    line(f"scores: {metric_name(audit.metric['name'])}")
    for finding in audit.findings:
        line(f"{finding.kind}: {finding.text}")
    if not audit.findings:
        line("nothing to be found fault with")
    for text in (*summary(audit), *(f"note: {note}" for note in audit.notes)):
        line(text)


def markdown(audit: Audit) -> str:
    """The same as Markdown."""
    lines = [f"# Audit of {code(str(audit.target))}", ""]
    source, name = code(str(audit.source.path)), metric_name(audit.metric["name"])
    lines += [f"Source: {source}. Scores: {prose(name)}.", "", pipes(_HEADINGS, rows(audit)), ""]
    lines += [f"## {counted(len(audit.findings), 'finding')}", ""]
    lines += [f"- **{finding.kind}**: {prose(finding.text)}" for finding in audit.findings]
    said = [*summary(audit), *audit.notes]
    return "\n".join([*lines, *([""] if said else []), *map(prose, said)]) + "\n"
