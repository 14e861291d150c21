"""Store of a ladder: its reports written into its folder, and ladder.json read back, checked.

ladder.json holds everything but the report's pictures, which are in pictures.json; ladder.csv,
rd.png and report.html are made from the two.
"""

import contextlib
import json
import math
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from vqaloop.core.documents import (
    Number,
    Positive,
    Size,
    Whole,
    as_type,
    document_text,
    read_document,
)
from vqaloop.core.files import renamed_to, unfinished
from vqaloop.core.rounding import finite
from vqaloop.core.text import quoted
from vqaloop.errors import InputError
from vqaloop.ladder.pictures import Pictures, find_pictures, pictures_json
from vqaloop.ladder.rd_plot import rd_png
from vqaloop.ladder.report_page import html_page
from vqaloop.records import LADDER_SCHEMA, Cap, Ladder, Rung, RungScene, TwoPasses

SCHEMA = LADDER_SCHEMA
PLAN_SCHEMA, PLANS_SCHEMA = "vqaloop.plan/1", "vqaloop.plans/1"
"""Of a predicted ladder, and of several."""
PREDICTIONS = dict.fromkeys(
    (PLAN_SCHEMA, PLANS_SCHEMA),
    "is a prediction, of which nothing was encoded; make the ladder by the same command without "
    "--predict, and give its folder",
)
"""What is said of a prediction that is taken for a ladder."""
REPORTS = ("pictures.json", "ladder.csv", "rd.png", "report.html", "ladder.json")
"""In the order they are put in place: where ladder.json is, the others are."""


class _Source(Size):
    path: str
    fps: Number
    duration: Number
    sha256: str | None = None
    size_bytes: Whole | None = None
    input_options: dict[str, str] | None = None


class _Encoder(Struct):
    name: str
    library_version: str
    preset: str
    ffmpeg: str | None = None
    ffmpeg_path: str | None = None
    ffmpeg_version: str | None = None


class _Scale(Struct):
    target: str
    rmse: Number


class _Metric(Struct):
    name: str
    mode: str
    label: str | None = None
    scale: _Scale | None = None
    pool: str = "mean"


class _Knob(Struct):
    name: str
    value: Number


class _OverTime(Struct):
    step_s: Number | None = None
    kbps: list[Number] | None = None
    span_s: Number | None = None
    scores: list[list[Number]] | None = None


class _Cap(Struct):
    maxrate_kbps: Positive
    buffer_kbit: Positive


class _TwoPass(Struct):
    goal_kbps: Positive
    mean_kbps: Positive
    first_pass_args: list[str]


class _Scene(Struct):
    start_frame: Whole
    end_frame: Whole
    knob: Number
    bitrate_kbps: Number
    ffmpeg_args: list[str]
    score: Number | None = None
    cap: _Cap | None = None


class _Rung(Size):
    bitrate_kbps: Positive
    peak_kbps: Number
    score: Number
    score_predicted: Number
    guard: dict[str, Number | None]
    knob: _Knob
    params: dict[str, str]
    ffmpeg_args: list[str]
    file: str
    over_time: _OverTime | None = None
    opinion: Number | None = None
    score_mean: Number | None = None
    guard_interval: dict[str, tuple[Number, Number]] | None = None
    banding_at_s: Number | None = None
    cap: _Cap | None = None
    two_pass: _TwoPass | None = None
    scenes: list[_Scene] | None = None


class _Point(Struct):
    bitrate_kbps: Number
    score: Number


class _Trial(Size):
    knob: Number
    bitrate_kbps: Number | None = None
    score: Number | None = None
    error: str | None = None
    score_mean: Number | None = None


class _Cost(Struct):
    encodes: Whole
    encoded_frames: Whole
    encoded_pixels: Whole
    encode_cpu_s: Number
    score_s: Number
    wall_s: Number
    guard_s: Number | None = None
    cpu_s: Number | None = None
    delivered_cpu_s: Number | None = None
    overhead: Number | None = None
    processors: Whole | None = None
    busy: Number | None = None
    earlier: dict[str, Number] | None = None


class _Place(Struct):
    frame: Whole
    scores: list[Number | None]
    left: Whole | None = None
    top: Whole | None = None
    size: Whole | None = None


class _Banding(Struct):
    rung: Whole
    file: str
    cambi: Number
    frame: Whole
    left: Whole
    top: Whole
    size: Whole


class _TuningTrial(Struct):
    number: Whole
    feasible: bool
    saving_percent: Number | None = None


class _Tuning(Struct):
    trials: list[_TuningTrial]
    importance: dict[str, Number]


class _Audience(Struct):
    name: str
    bandwidth_share: Positive
    sessions: Annotated[list[tuple[Positive, Number, Whole | None]], Meta(min_length=1)]
    score: Number
    bitrate_kbps: Number
    unserved: Number


class _Guard(Struct):
    mode: str
    places: Whole | None = None
    frames: Whole | None = None


class _FilmGrain(Struct):
    deviation: Number | None = None
    strength: Whole | None = None
    saving_percent: Number | None = None
    why: str | None = None
    asked: str | None = None


class _PerShot(Struct):
    scenes: Whole
    equivalents_per_rung: Number


class _Document(Struct):
    """What of ladder.json the reports rely on."""

    vqaloop: str
    codec: str
    source: _Source
    encoder: _Encoder
    metric: _Metric
    rungs: Annotated[list[_Rung], Meta(min_length=1)]
    hull: list[_Point]
    trials: list[_Trial]
    cost: _Cost
    trusted: bool
    guard: _Guard | None = None
    worst: list[_Place] | None = None
    banding: _Banding | None = None
    tuning: _Tuning | None = None
    asked: dict[str, Any] | None = None
    audience: _Audience | None = None
    per_shot: _PerShot | None = None
    film_grain: _FilmGrain | None = None
    warnings: list[str] | None = None


def write_document(ladder: Ladder) -> None:
    """Write ladder.json alone. Raises InputError when it cannot be written."""
    path = ladder.folder / "ladder.json"
    try:
        with renamed_to(path) as part:
            part.write_bytes(document_text(finite(ladder.to_json())).encode("ascii"))
    except OSError as error:
        raise InputError(
            f"could not write {quoted(path)}: {error.strerror or error}; make room or choose "
            "another folder"
        ) from error


def write_reports(ladder: Ladder, pictures: Pictures | None = None) -> None:
    """Write REPORTS into the ladder's folder.

    Without `pictures` those of the pictures.json there are kept, or new ones are taken of the
    source. Rung files that an older ladder.json there lists and this ladder
    does not have are removed. Raises InputError when the folder cannot be written; the older
    reports then stay.
    """
    document = finite(ladder.to_json())
    # from the rounded figures of ladder.json, so that reports made again from it are the same
    ladder = replace(ladder, rungs=tuple(map(_rung, document["rungs"])))
    pictures = pictures or find_pictures(ladder)
    content = {
        "pictures.json": json.dumps(pictures_json(ladder, pictures)).encode("ascii"),
        "ladder.json": document_text(document).encode("ascii"),
        "ladder.csv": _utf8(ladder.to_frame().to_csv(index=False)),
        "rd.png": rd_png(ladder),
        "report.html": _utf8(html_page(ladder, pictures)),
    }
    folder = ladder.folder
    stale = _listed(folder) - {rung.file for rung in ladder.rungs} - set(REPORTS)
    parts = {name: unfinished(folder) for name in REPORTS}
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
    """Read a ladder from its folder.

    Args:
        folder: The folder that `vqaloop ladder` or `build_ladder` wrote, or its ladder.json.

    Returns:
        The ladder of its ladder.json; the rungs' files are not opened.

    Raises:
        InputError: ladder.json is missing, damaged, of another schema, or names a file outside
            the folder.
    """
    path = Path(folder)
    if not path.is_file():
        path /= "ladder.json"
    remedy = "name a ladder's folder or its ladder.json, or make the ladder again"
    give = "give the folder that `vqaloop ladder` wrote"
    # all of it: what is not checked here goes into `about` as it is
    document = read_document(
        path, dict[str, Any], schema=SCHEMA, give=give, remedy=remedy, others=PREDICTIONS
    )
    for index, rung in enumerate(as_type(document, _Document, quoted(path), remedy).rungs):
        if not stays_inside(rung.file):
            raise InputError(
                f"{quoted(path)}: rungs[{index}].file is {quoted(rung.file)}, which is no "
                "plain file name; files must lie in the ladder's folder"
            )
    rungs, trusted = document.pop("rungs"), document.pop("trusted")
    return Ladder(path.parent, tuple(map(_rung, rungs)), document, trusted)


def _rung(rung: dict[str, Any]) -> Rung:
    known = {field.name: rung.get(field.name) for field in fields(Rung)} | {
        "guard": {name: math.nan if v is None else v for name, v in rung["guard"].items()},
        "knob": (rung["knob"]["name"], rung["knob"]["value"]),
        "ffmpeg_args": tuple(rung["ffmpeg_args"]),
        "over_time": rung.get("over_time") or {},
        "guard_interval": {k: tuple(v) for k, v in (rung.get("guard_interval") or {}).items()},
        # of other keys than these a later version may have more
        "two_pass": _passes(rung.get("two_pass")),
        "cap": _cap(rung),
        "scenes": tuple(map(_scene, rung.get("scenes") or ())),
    }
    return Rung(**known)


def _passes(found: dict[str, Any] | None) -> TwoPasses | None:
    if not found:
        return None
    return TwoPasses(found["goal_kbps"], found["mean_kbps"], tuple(found["first_pass_args"]))


def _scene(scene: dict[str, Any]) -> RungScene:
    names = ("start_frame", "end_frame", "knob", "bitrate_kbps")
    return RungScene(
        **{name: scene[name] for name in names},
        score=scene.get("score"),
        ffmpeg_args=tuple(scene["ffmpeg_args"]),
        cap=_cap(scene),
    )


def _cap(of: dict[str, Any]) -> Cap | None:
    cap = of.get("cap")
    return Cap(cap["maxrate_kbps"], cap["buffer_kbit"]) if cap else None


def stays_inside(name: str) -> bool:
    """Whether a name leads to nowhere but into its folder."""
    return bool(name) and name != "." and ".." not in name and not set(name) & set("/\\\0")


def _listed(folder: Path) -> set[str]:
    """Names of the rung files that a ladder.json lying there lists; none if it is not one."""
    try:
        return {rung.file for rung in read_ladder(folder).rungs}
    except InputError:
        return set()


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
