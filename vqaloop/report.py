"""What a ladder leaves in its folder, and how it is read back.

ladder.json holds everything; ladder.csv, rd.png and report.html are made from it.
"""

import contextlib
import html
import io
import json
import math
import os
import shlex
import uuid
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from vqaloop.errors import InputError
from vqaloop.process import quoted
from vqaloop.records import Ladder, Rung
from vqaloop.terminal import cost_line, printable, shown, shown_rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCHEMA = "vqaloop.ladder/1"
REPORTS = ("ladder.csv", "rd.png", "report.html", "ladder.json")
"""In the order they are put in place: where ladder.json is, the others are."""
LARGEST_JSON = 1 << 26
"""Bytes beyond which a ladder.json is refused; real ones are some hundred kilobytes."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's, told apart by colour-blind people on white and on black."""
MARKERS = "osv^DPX"
"""As many as share no factor with the colours, so that 42 sizes look different."""
INK = "#010203"
"""Stands for the text colour in the page's plot, until CSS decides what that is."""


def _all(kind: type, names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), kind)


_SIZE = _all(int, "width height")
_SHAPE: dict[str, Any] = {
    **_all(str, "vqaloop codec"),
    "source": {"path": str, **_SIZE, **_all(float, "fps duration")},
    "encoder": _all(str, "name library_version preset"),
    "metric": {**_all(str, "name mode"), "label": (str, None)},
    "rungs": [
        {
            **_SIZE,
            **_all(float, "bitrate_kbps peak_kbps score score_predicted"),
            "guard": {str: (float, None)},
            "knob": {"name": str, "value": float},
            "params": {str: str},
            "ffmpeg_args": [str],
            "file": str,
        }
    ],
    "hull": [_all(float, "bitrate_kbps score")],
    "trials": [
        {
            **_SIZE,
            "knob": float,
            "bitrate_kbps": (float, None),
            "score": (float, None),
            "error": (str, None),
        }
    ],
    "cost": {
        **_all(int, "encodes encoded_frames encoded_pixels"),
        **_all(float, "encode_cpu_s score_s wall_s"),
        "guard_s": (float, None),
    },
    "warnings": ([str], None),
    "trusted": bool,
}
"""What of ladder.json the reports rely on: a pair with None may be missing, str as key is any."""
_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def write_reports(ladder: Ladder) -> None:
    """Write ladder.json, ladder.csv, rd.png and report.html into the ladder's folder.

    Rung files that an older ladder.json there lists and this ladder does not have are removed.
    Raises InputError when the folder cannot be written; the older reports then stay.
    """
    document = json.dumps(_finite(ladder.to_json()), indent=1, allow_nan=False) + "\n"
    content = {
        "ladder.json": document.encode("ascii"),
        "ladder.csv": _utf8(ladder.to_frame().to_csv(index=False)),
        "rd.png": _png(ladder),
        "report.html": _utf8(_page(ladder)),
    }
    folder = ladder.folder
    stale = _listed(folder) - {rung.file for rung in ladder.rungs} - set(REPORTS)
    parts = {name: folder / f".{uuid.uuid4().hex}.part" for name in REPORTS}
    try:
        for name, part in parts.items():
            part.write_bytes(content[name])
        for name, part in parts.items():
            part.replace(folder / name)
    except OSError as error:
        raise InputError(
            f"could not write {quoted(folder)}: {error.strerror or error}; make room or choose "
            "another folder"
        ) from error
    finally:
        for part in parts.values():
            with contextlib.suppress(OSError):
                part.unlink()
    for name in stale:
        with contextlib.suppress(OSError, ValueError):
            (folder / name).unlink()


def read_ladder(folder: str | os.PathLike[str]) -> Ladder:
    """The ladder in a folder that `write_reports` filled.

    Raises InputError when ladder.json is missing, damaged, of another schema, or names a file
    outside the folder.
    """
    path = Path(folder) / "ladder.json"
    document = _parsed(path)
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise InputError(
            f"{quoted(path)} is of schema {str(schema)[:80]!r} and this reads {SCHEMA}; make the "
            "ladder again with this version"
        )
    _check(document, _SHAPE, "", path)
    rungs = document.pop("rungs")
    if not rungs:
        raise InputError(f"{quoted(path)} holds no rungs; make the ladder again")
    for index, rung in enumerate(rungs):
        if not _is_plain(rung["file"]):
            raise InputError(
                f"{quoted(path)}: rungs[{index}].file is {quoted(rung['file'])}, which is no plain "
                "file name; files must lie in the ladder's folder"
            )
        if rung["bitrate_kbps"] <= 0:
            raise InputError(f"{quoted(path)}: rungs[{index}].bitrate_kbps is not above 0")
    trusted = document.pop("trusted")
    return Ladder(Path(folder), tuple(_rung(rung) for rung in rungs), document, trusted)


def _parsed(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            text = file.read(LARGEST_JSON + 1)
        if len(text) > LARGEST_JSON:
            raise InputError(f"{quoted(path)} is larger than any ladder.json; is it one?")
        return json.loads(text)
    except OSError as error:
        raise InputError(
            f"could not read {quoted(path)}: {error.strerror or error}; give the folder that "
            "`vqaloop ladder` wrote"
        ) from error
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{quoted(path)} is not JSON ({printable(str(error)[:100])}); make the ladder again"
        ) from error


def _check(value: Any, shape: Any, where: str, path: Path) -> None:
    if isinstance(shape, tuple):
        if value is not None:
            _check(value, shape[0], where, path)
        return
    wanted = dict if isinstance(shape, dict) else list if isinstance(shape, list) else None
    if wanted is None:
        # bool is an int; bounds rather than isfinite, which fails on the largest integers
        kinds = (int, float) if shape is float else shape
        good = isinstance(value, kinds) and isinstance(value, bool) == (shape is bool)
        if good and not (shape in (int, float) and not -1e15 < value < 1e15):
            return
    elif isinstance(value, wanted):
        if isinstance(shape, list):
            inner = [(f"{where}[{i}]", item, shape[0]) for i, item in enumerate(value)]
        elif str in shape:
            inner = [(f"{where}.{key}", item, shape[str]) for key, item in value.items()]
        else:
            inner = [(f"{where}.{key}", value.get(key), shape[key]) for key in shape]
        for place, item, inner_shape in inner:
            _check(item, inner_shape, place.lstrip("."), path)
        return
    word = {dict: "an object", list: "a list"}[wanted] if wanted else _WORDS[shape]
    found = "missing" if value is None else printable(repr(value)[:60])
    raise InputError(
        f"{quoted(path)}: {printable(where)[:80]} should be {word} and is {found}; make the "
        "ladder again"
    )


def _rung(rung: dict[str, Any]) -> Rung:
    guard = {name: math.nan if v is None else v for name, v in rung["guard"].items()}
    known = {key: rung[key] for key in _SHAPE["rungs"][0]}
    known["knob"] = (rung["knob"]["name"], rung["knob"]["value"])
    known["ffmpeg_args"] = tuple(rung["ffmpeg_args"])
    return Rung(**{**known, "guard": guard})


def _is_plain(name: str) -> bool:
    return bool(name) and name != "." and ".." not in name and not set(name) & set("/\\\0")


def _listed(folder: Path) -> set[str]:
    """Names of the rung files that a ladder.json lying there lists; none if it is not one."""
    try:
        return {rung.file for rung in read_ladder(folder).rungs}
    except InputError:
        return set()


def _finite(value: Any) -> Any:
    """A document without the numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _title(ladder: Ladder) -> str:
    return (
        f"{printable(os.path.basename(ladder.about['source']['path']))}, {ladder.about['codec']}"
    )


# The plot


def _png(ladder: Ladder) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    with _style(14, "black"):
        figure = _figure(ladder, (12, 8), _title(ladder))
        FigureCanvasAgg(figure).print_png(buffer)  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def _svg(ladder: Ladder) -> str:
    """The plot for the page, in the page's own text colour."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    nameless = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with _style(10, INK):
        figure = _figure(ladder, (7.6, 5.4))
        figure.set_facecolor("none")
        FigureCanvasSVG(figure).print_svg(buffer, metadata=nameless)
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") + 4 :].replace(INK, "currentColor")
    return f'<svg role="img" aria-label="Score over bitrate"{drawing}'


@contextlib.contextmanager
def _style(points: float, ink: str) -> Iterator[None]:
    import matplotlib

    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    style = {
        "font.size": points,
        "text.parse_math": False,
        "text.usetex": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "vqaloop",
        "axes.facecolor": "none",
        "legend.facecolor": "none",
        **dict.fromkeys(inked, ink),
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # a file name may hold letters that the font lacks; a box for them is good enough
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        yield


def _figure(ladder: Ladder, inches: tuple[float, float], title: str = "") -> "Figure":
    import matplotlib
    from matplotlib.figure import Figure

    ink = matplotlib.rcParams["text.color"]
    figure = Figure(figsize=inches, dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title if len(title) <= 80 else f"{title[:50]}...{title[-27:]}")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("bitrate, kb/s (each line doubles it)")
    axes.set_ylabel(_metric(ladder))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#888888", alpha=0.3)
    _draw_trials(axes, ladder.about["trials"])
    hull = [(p["bitrate_kbps"], p["score"]) for p in ladder.about["hull"]]
    axes.plot(*_columns(hull), color=ink, linestyle="--", linewidth=1, label="hull")
    rungs = [(rung.bitrate_kbps, rung.score) for rung in ladder.rungs]
    axes.plot(
        *_columns(rungs),
        "o",
        color="#222222",
        markeredgecolor="white",
        zorder=5,
        markersize=1.6 * matplotlib.rcParams["font.size"],
        label="rungs, numbered",
    )
    for number, place in enumerate(rungs, 1):
        axes.annotate(
            str(number),
            place,
            color="white",
            weight="bold",
            zorder=6,
            ha="center",
            va="center_baseline",
        )
    guard = [(rung.bitrate_kbps, rung.guard.get("vmaf", math.nan)) for rung in ladder.rungs]
    if ladder.about["metric"]["name"] != "vmaf":
        # decibels have a scale of their own
        other = axes.twinx() if _in_db(ladder) else axes
        other.set_ylabel("VMAF" if other is not axes else axes.get_ylabel())
        marks = {"color": ink, "markersize": 6, "fillstyle": "none", "linestyle": "none"}
        other.plot(*_columns(guard), marker="D", **marks)
        axes.plot([], [], marker="D", label="VMAF of the rungs", **marks)
    _label_octaves(axes)
    axes.legend(loc="lower right", framealpha=0, ncols=1 + (len(axes.get_lines()) > 10))
    return figure


def _draw_trials(axes: "Axes", trials: Sequence[dict[str, Any]]) -> None:
    sizes = sorted({(t["width"], t["height"]) for t in trials}, key=lambda s: -s[0] * s[1])
    for index, (width, height) in enumerate(sizes):
        for whole in (True, False):
            points = [
                (trial["bitrate_kbps"], trial["score"])
                for trial in trials
                if (trial["width"], trial["height"]) == (width, height)
                and trial.get("whole_title", True) == whole
                and trial["score"] is not None
            ]
            if points:
                axes.plot(
                    *_columns(points),
                    color=COLOURS[index % len(COLOURS)],
                    marker=MARKERS[index % len(MARKERS)],
                    linestyle="-" if whole else ":",
                    fillstyle="full" if whole else "none",
                    label=f"{width}x{height}" + ("" if whole else ", excerpt"),
                )


def _columns(points: Sequence[tuple[Any, float]]) -> tuple[list[float], list[float]]:
    kept = sorted((rate, score) for rate, score in points if rate and rate > 0)
    return [rate for rate, _ in kept], [score for _, score in kept]


def _label_octaves(axes: "Axes") -> None:
    """Ticks at 125, 250, 500, 1000 kb/s and so on: powers of two apart, and round."""
    low, high = (math.log2(rate / 125) for rate in axes.get_xlim())
    step = math.ceil((high - low) / 12)
    ticks = [125 * 2.0**n for n in range(math.floor(low), math.ceil(high) + 1, step)]
    axes.set_xlim(min(ticks), max(ticks))
    axes.set_xticks(ticks, [f"{tick:.3g}" if tick < 125 else f"{tick:.0f}" for tick in ticks])
    axes.minorticks_off()


def _in_db(ladder: Ladder) -> bool:
    return ladder.about["metric"]["name"] in ("psnr", "xpsnr")


def _metric(ladder: Ladder) -> str:
    metric = ladder.about["metric"]
    label = metric["label"] and printable(metric["label"])
    said = ["dB"] * _in_db(ladder) + [f"fitted to {label}"] * bool(label)
    return printable(metric["name"]) + (f" ({', '.join(said)})" if said else "")


# The page


def _page(ladder: Ladder) -> str:
    template = Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=_safe(_title(ladder)),
        summary=_safe(_summary(ladder)),
        doubts=_doubts(ladder),
        rungs=_rung_table(ladder),
        metric=_safe(_metric(ladder)),
        plot=_svg(ladder),
        commands=_commands(ladder),
        trials=_trial_table(ladder),
        cost=_safe(cost_line(ladder)),
        version=_safe(ladder.about["vqaloop"]),
    )


def _safe(text: str) -> str:
    return html.escape(printable(text))


def _summary(ladder: Ladder) -> str:
    about, low, high = ladder.about, ladder.rungs[0], ladder.rungs[-1]
    source, encoder = about["source"], about["encoder"]
    return (
        f"{len(ladder.rungs)} rungs from {shown_rate(low.bitrate_kbps)} to "
        f"{shown_rate(high.bitrate_kbps)} kb/s, scores {shown(low.score)} to "
        f"{shown(high.score)} by {_metric(ladder)}, {about['metric']['mode']}. Source "
        f"{source['width']}x{source['height']}, {source['fps']:.6g} frames a second, "
        f"{source['duration']:.1f} s. Encoded by {encoder['library_version']}, preset "
        f"{encoder['preset']}."
    )


def _doubts(ladder: Ladder) -> str:
    lines = [f"<li>{_safe(line)}</li>" for line in ladder.about.get("warnings") or ()]
    found = "<h2>Warnings</h2>\n<ul>" + "\n".join(lines) + "</ul>" if lines else ""
    if ladder.trusted:
        return found
    return '<p class="alarm">Not to be trusted: a score missed its prediction.</p>\n' + found


def _table(kind: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
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
    knob = _safe(ladder.rungs[0].knob[0])
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
            f'<a href="{quote(rung.file, errors="replace")}">{_safe(rung.file)}</a>',
        ]
        for number, rung in enumerate(ladder.rungs, 1)
    ]
    return _table("rungs", [*headings, "bytes", "file"], rows)


def _file_size(folder: Path, name: str) -> str:
    with contextlib.suppress(OSError, ValueError):
        return f"{(folder / name).stat().st_size:,}"
    return "missing"


def _commands(ladder: Ladder) -> str:
    source = _as_ffmpeg_file(ladder.about["source"]["path"])
    lines = [
        shlex.join(["ffmpeg", "-i", source, *rung.ffmpeg_args, _as_ffmpeg_file(rung.file)])
        for rung in ladder.rungs
    ]
    return "\n".join(f"<pre>{html.escape(line)}</pre>" for line in lines)


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
                _safe(outcome),
            ]
        )
    knob = _safe(ladder.rungs[0].knob[0])
    return _table("trials", ["size", knob, "kb/s", "score", "outcome"], rows)
