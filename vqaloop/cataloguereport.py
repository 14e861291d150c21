"""A catalogue's reports: catalogue.json, catalogue.csv, and a page that opens offline."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from vqaloop import __version__
from vqaloop.files import write_whole
from vqaloop.page import bullets, escaped, filled, safe, table
from vqaloop.process import quoted
from vqaloop.shape import finite
from vqaloop.terminal import shown, shown_rate
from vqaloop.verdicts import cut

if TYPE_CHECKING:
    from vqaloop.catalogue import Catalogue, Entry

COLUMNS = (
    *("name", "input", "codec", "status", "reason", "folder", "width", "height", "fps"),
    *("duration", "encoder", "preset", "metric", "rungs", "lowest_kbps", "lowest_score"),
    *("top_width", "top_height", "top_kbps", "top_score", "top_vmaf", "encodes"),
    *("encode_cpu_s", "wall_s"),
)
"""Of catalogue.csv."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of what a spreadsheet would work out; an apostrophe before it makes it text."""
STATUS = {"done": "done", "untrusted": "not to be trusted", "failed": "failed"}


def write_catalogue(catalogue: "Catalogue") -> None:
    """Write the three into the catalogue's folder, each whole or not at all. Raises InputError."""
    document = json.dumps(finite(catalogue.to_json()), indent=1, allow_nan=False) + "\n"
    # the document last: where it is, the others are
    write_whole(catalogue.folder / "catalogue.csv", catalogue_csv(catalogue))
    write_whole(catalogue.folder / "catalogue.html", catalogue_page(catalogue))
    write_whole(catalogue.folder / "catalogue.json", document)


def catalogue_csv(catalogue: "Catalogue") -> str:
    """One row a ladder; bitrates in kb/s, times in seconds, empty where nothing is known."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    for entry in catalogue.entries:
        row: dict[str, Any] = {key: getattr(entry, key) for key in COLUMNS[:5]}
        row["folder"] = entry.folder.name
        if about := entry.about:
            low, top = about["rungs"][0], about["rungs"][-1]
            row |= about["source"]
            row |= {key: about[key] for key in ("encoder", "preset", "metric")}
            row |= {f"top_{key}": top[key] for key in ("width", "height", "score", "vmaf")}
            row |= {"rungs": len(about["rungs"]), "top_kbps": top["bitrate_kbps"]}
            row |= {"lowest_kbps": low["bitrate_kbps"], "lowest_score": low["score"]}
            row |= {key: about["cost"].get(key) for key in COLUMNS[-3:]}
        writer.writerow({key: _plain(value) for key, value in row.items()})
    return text.getvalue()


def _plain(value: Any) -> Any:
    """A field that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def catalogue_page(catalogue: "Catalogue") -> str:
    """Failures first, then the ladders in their order."""
    failed, doubtful = map(catalogue.of_status, ("failed", "untrusted"))
    made = [entry for entry in catalogue.entries if entry.about]
    return filled(
        "catalogue.html",
        title=safe(f"{catalogue.folder.name}: ladders of many titles"),
        kind="alarm" if catalogue.exit_code else "calm",
        summary=safe(f"{catalogue.summary}."),
        failures=_reasons("No ladder", failed) + _reasons("Not to be trusted", doubtful),
        titles=_title_table(made) if made else "<p>There are none.</p>",
        cost=safe(cost_line(catalogue)),
        version=safe(__version__),
    )


def _reasons(heading: str, entries: Iterable["Entry"]) -> str:
    lines = [
        f"<strong>{_link(entry)}</strong> {safe(f'({quoted(entry.input)}, {entry.codec})')}: "
        f"{safe(cut(entry.reason or ''))}"
        for entry in entries
    ]
    return f"<h2>{heading}</h2>\n{bullets(lines)}\n" if lines else ""


def _title_table(entries: Iterable["Entry"]) -> str:
    headings = ["title", "codec", "source", "rungs", "sizes", "kb/s", "score", "VMAF", "encodes"]
    rows = []
    for entry in sorted(entries, key=lambda entry: entry.status == "done"):
        low, top = entry.about["rungs"][0], entry.about["rungs"][-1]
        source, metric = entry.about["source"], entry.about["metric"]
        cells = [
            entry.codec,
            f"{source['width']}x{source['height']}, {source['duration']:.0f} s",
            str(len(entry.about["rungs"])),
            sizes_words(entry.about["rungs"]),
            f"{shown_rate(low['bitrate_kbps'])} to {shown_rate(top['bitrate_kbps'])}",
            f"{shown(low['score'])} to {shown(top['score'])} ({metric})",
            f"{shown(low['vmaf'])} to {shown(top['vmaf'])}",
            "was there" if entry.kept else str(entry.about["cost"]["encodes"]),
            STATUS[entry.status],
        ]
        rows.append([_link(entry), *escaped([cells])[0]])
    return table("cards", [*headings, "state"], rows)


def _link(entry: "Entry") -> str:
    """The title's name, leading to its report where there is one."""
    if not entry.about:
        return safe(entry.name)
    return f'<a href="{quote(f"{entry.folder.name}/report.html")}">{safe(entry.name)}</a>'


def sizes_words(rungs: Iterable[Mapping[str, Any]]) -> str:
    """The least and the largest size of some rungs."""
    sizes = sorted({(rung["width"] * rung["height"], rung["width"], rung["height"])
                    for rung in rungs})  # fmt: skip
    words = [f"{width}x{height}" for _, width, height in sizes]
    return words[0] if len(words) == 1 else f"{words[0]} to {words[-1]}"


def cost_line(catalogue: "Catalogue") -> str:
    """What all ladders took together, in one line; seconds are CPU seconds, but for the last."""
    cost = catalogue.cost()
    count = int(cost.get("encodes", 0))
    spent = [("encoding", "encode_cpu_s"), ("scoring", "score_s"), ("guard", "guard_s")]
    parts = [f"{count} encode{'' if count == 1 else 's'}"]
    parts += [f"{what} {cost[key]:.1f} s CPU" for what, key in spent if key in cost]
    return ", ".join([*parts, f"{cost['wall_s']:.1f} s in all"])
