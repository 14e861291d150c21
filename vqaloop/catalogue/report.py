"""A catalogue's reports: catalogue.json, and of it catalogue.csv and a page that opens offline."""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from vqaloop.core.documents import Number, Size, document_text, read_document
from vqaloop.core.files import write_whole
from vqaloop.core.text import counted, cut, quoted, shown, shown_rate
from vqaloop.core.version import __version__
from vqaloop.errors import InputError
from vqaloop.ladder.store import stays_inside
from vqaloop.report.cost import spent_words
from vqaloop.report.html import link, render

if TYPE_CHECKING:
    from vqaloop.catalogue.entries import Catalogue, Entry


LARGEST = 1 << 26
"""Bytes of catalogue.json: tens of thousands of ladders."""
_OF_ENTRY = ("name", "input", "codec", "status", "reason")
_OF_LADDER = ("encoder", "preset", "metric")
_OF_COST = ("encodes", "encode_cpu_s", "wall_s")
COLUMNS = (
    *(*_OF_ENTRY, "folder", "width", "height", "fps", "duration", *_OF_LADDER),
    *("rungs", "lowest_kbps", "lowest_score"),
    *("top_width", "top_height", "top_kbps", "top_score", "top_vmaf", *_OF_COST),
)
"""Columns of catalogue.csv, filled by `catalogue_csv`; what is new in them comes from `Entry`."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters that make a spreadsheet evaluate a cell; an apostrophe before stops that."""
STATUS = {"done": "done", "untrusted": "not to be trusted", "failed": "failed"}
REMEDY = "make the catalogue again"
Reason = Annotated[str, Meta(min_length=1)]


class _Source(Size):
    fps: Number
    duration: Number


class _Rung(Size):
    bitrate_kbps: Number
    score: Number
    vmaf: Number | None = None
    score_mean: Number | UnsetType = UNSET


class _Title(Struct, kw_only=True, tag_field="status"):
    name: str
    input: str
    codec: str
    folder: str
    kept: bool


class _Failed(_Title, kw_only=True, tag="failed"):
    reason: Reason


class _Done(_Title, kw_only=True, tag="done"):
    reason: str | None = None
    source: _Source
    encoder: str
    preset: str
    metric: str
    rungs: Annotated[list[_Rung], Meta(min_length=1)]
    warnings: list[str]
    cost: dict[str, Number | None]


class _Untrusted(_Done, kw_only=True, tag="untrusted"):
    reason: Reason


class _Cost(Struct):
    wall_s: Number


class _Document(Struct):
    titles: list[_Failed | _Done | _Untrusted]
    cost: _Cost


def write_catalogue(catalogue: "Catalogue") -> None:
    """Write the three into the catalogue's folder, each whole or not at all. Raises InputError."""
    # the document last: where it is, the others are
    _write_views(catalogue)
    write_whole(catalogue.folder / "catalogue.json", document_text(catalogue.to_json()))


def _write_views(catalogue: "Catalogue") -> None:
    rows, page = catalogue_csv(catalogue), catalogue_page(catalogue)
    write_whole(catalogue.folder / "catalogue.csv", rows)
    write_whole(catalogue.folder / "catalogue.html", page)


def is_catalogue(folder: Path) -> bool:
    """Whether a folder holds a catalogue rather than a ladder."""
    return (folder / "catalogue.json").is_file() and not (folder / "ladder.json").is_file()


def remake_catalogue(folder: Path) -> "Catalogue":
    """The catalogue in a folder, its table and its page made again from catalogue.json.

    Raises InputError where that is damaged, of another schema, or names a folder elsewhere.
    """
    from vqaloop.catalogue.entries import SCHEMA, Catalogue, Entry

    path = folder / "catalogue.json"
    document = read_document(
        path,
        _Document,
        schema=SCHEMA,
        give="give the folder of a catalogue",
        remedy=REMEDY,
        largest=LARGEST,
    )
    entries = []
    for index, title in enumerate(document.titles):
        inside = stays_inside(title.folder) and title.folder.isprintable()
        if not inside or isinstance(title, _Done) and title.cost.get("encodes") is None:
            raise InputError(f"{quoted(path)}: titles[{index}] is damaged; {REMEDY}")
        about = msgspec.to_builtins(title)
        known = {key: about.pop(key) for key in ("name", "input", "codec", "status", "reason")}
        place, kept = folder / about.pop("folder"), about.pop("kept")
        entries.append(Entry(**known, folder=place, kept=kept, about=about))
    catalogue = Catalogue(folder, tuple(entries), document.cost.wall_s)
    _write_views(catalogue)
    return catalogue


def catalogue_csv(catalogue: "Catalogue") -> str:
    """One row a ladder; bitrates in kb/s, times in seconds, empty where nothing is known."""
    text = io.StringIO()
    means = ("lowest_score_mean", "top_score_mean") if has_means(catalogue.entries) else ()
    writer = csv.DictWriter(text, (*COLUMNS, *means), lineterminator="\n", restval="")
    writer.writeheader()
    for entry in catalogue.entries:
        row: dict[str, Any] = {key: getattr(entry, key) for key in _OF_ENTRY}
        row["folder"] = entry.folder.name
        if about := entry.about:
            low, top = about["rungs"][0], about["rungs"][-1]
            row |= about["source"]
            row |= {key: about[key] for key in _OF_LADDER}
            row |= {f"top_{key}": top[key] for key in ("width", "height", "score", "vmaf")}
            row |= {"rungs": len(about["rungs"]), "top_kbps": top["bitrate_kbps"]}
            row |= {"lowest_kbps": low["bitrate_kbps"], "lowest_score": low["score"]}
            row |= {key: about["cost"].get(key) for key in _OF_COST}
            row |= dict(zip(means, (low.get("score_mean"), top.get("score_mean")), strict=False))
        writer.writerow({key: _plain(value) for key, value in row.items()})
    return text.getvalue()


def has_means(entries: Iterable["Entry"]) -> bool:
    """Whether some scores are pooled otherwise than by their mean, which is shown beside."""
    return any(
        entry.about["rungs"][0].get("score_mean") is not None for entry in entries if entry.about
    )


def _plain(value: Any) -> Any:
    """A field that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def catalogue_page(catalogue: "Catalogue") -> str:
    """Failures first, then the ladders in their order."""
    failed, doubtful = map(catalogue.of_status, ("failed", "untrusted"))
    made = [entry for entry in catalogue.entries if entry.about]
    metrics = {entry.about["metric"] for entry in made}
    alike = len(metrics) == 1
    return render(
        "catalogue.html",
        title=f"{catalogue.folder.name}: ladders of many titles",
        kind="alarm" if catalogue.exit_code else "calm",
        summary=f"{catalogue.summary}.",
        reasons={"No ladder": _reasons(failed), "Not to be trusted": _reasons(doubtful)},
        ladders=_ladder_rows(made, alike),
        metric=metrics.pop() if alike else None,
        cost=cost_line(catalogue),
        version=__version__,
    )


def _reasons(entries: Iterable["Entry"]) -> list[tuple[str, str, str]]:
    return [
        (_name(entry), f"{quoted(entry.input)}, {entry.codec}", cut(entry.reason or ""))
        for entry in entries
    ]


def _ladder_rows(entries: Iterable["Entry"], alike: bool) -> list[list[str | list[str]]]:
    """Of each ladder the cells: its name, then parts between which alone a cell may be broken.

    With `alike` all have one metric, which the page names beside the table, not in each row.
    """
    rows: list[list[str | list[str]]] = []
    for entry in sorted(entries, key=lambda entry: entry.status == "done"):
        low, top = entry.about["rungs"][0], entry.about["rungs"][-1]
        source, metric = entry.about["source"], entry.about["metric"]
        scores = f"{shown(low['score'])} to {shown(top['score'])}"
        means: list[str] = []
        if low.get("score_mean") is not None:
            means = [f"(mean {shown(low['score_mean'])} to {shown(top['score_mean'])})"]
        rows.append(
            [
                _name(entry),
                [entry.codec],
                [f"{source['width']}x{source['height']},", f"{source['duration']:.0f} s"],
                [str(len(entry.about["rungs"]))],
                [sizes_words(entry.about["rungs"])],
                [f"{shown_rate(low['bitrate_kbps'])} to {shown_rate(top['bitrate_kbps'])}"],
                [scores, *means] if alike else [scores, *means, f"({metric})"],
                [f"{shown(low['vmaf'])} to {shown(top['vmaf'])}"],
                ["was there" if entry.kept else str(entry.about["cost"]["encodes"])],
                STATUS[entry.status].split(),
            ]
        )
    return rows


def _name(entry: "Entry") -> str:
    """The title's name, a link to its report where there is one."""
    return link(f"{entry.folder.name}/report.html", entry.name) if entry.about else entry.name


def sizes_words(rungs: Iterable[Mapping[str, Any]]) -> str:
    """The least and the largest size of some rungs."""
    sizes = sorted({(rung["width"] * rung["height"], rung["width"], rung["height"])
                    for rung in rungs})  # fmt: skip
    words = [f"{width}x{height}" for _, width, height in sizes]
    return words[0] if len(words) == 1 else f"{words[0]} to {words[-1]}"


def cost_line(catalogue: "Catalogue") -> str:
    """Cost of all ladders together, in one line."""
    cost = catalogue.cost()
    return f"{counted(int(cost.get('encodes', 0)), 'encode')}, {spent_words(cost)}"
