"""What a ladder leaves in its folder, and how it is read back.

ladder.json holds everything but the report's pictures, which are in pictures.json; ladder.csv,
rd.png and report.html are made from the two.
"""

import contextlib
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from vqaloop.core.documents import every, finite, read_document
from vqaloop.core.files import unfinished
from vqaloop.core.text import quoted
from vqaloop.errors import InputError
from vqaloop.ladder.pictures import Pictures, find_pictures, pictures_json
from vqaloop.ladder.rd_plot import rd_png
from vqaloop.ladder.report_page import html_page
from vqaloop.records import LADDER_SCHEMA, Ladder, Rung

SCHEMA = LADDER_SCHEMA
REPORTS = ("pictures.json", "ladder.csv", "rd.png", "report.html", "ladder.json")
"""In the order they are put in place: where ladder.json is, the others are."""

_SIZE = every(int, "width height")
_OVER_TIME = {
    "step_s": (float, None),
    "kbps": ([float], None),
    "span_s": (float, None),
    "scores": ([[float]], None),
}
_PLACE = {
    "frame": int,
    **dict.fromkeys(("left", "top", "size"), (int, None)),
    "scores": [(float, None)],
}
_TUNING = {
    "trials": [{"number": int, "saving_percent": (float, None), "feasible": bool}],
    "importance": {str: float},
}
_SHAPE: dict[str, Any] = {
    **every(str, "vqaloop codec"),
    "source": {
        "path": str,
        "sha256": (str, None),
        "size_bytes": (int, None),
        **_SIZE,
        **every(float, "fps duration"),
        "input_options": ({str: str}, None),
    },
    "encoder": {
        **every(str, "name library_version preset"),
        **dict.fromkeys(("ffmpeg", "ffmpeg_path", "ffmpeg_version"), (str, None)),
    },
    "metric": {**every(str, "name mode"), "label": (str, None)},
    "rungs": [
        {
            **_SIZE,
            **every(float, "bitrate_kbps peak_kbps score score_predicted"),
            "guard": {str: (float, None)},
            "knob": {"name": str, "value": float},
            "params": {str: str},
            "ffmpeg_args": [str],
            "file": str,
            "over_time": (_OVER_TIME, None),
        }
    ],
    "hull": [every(float, "bitrate_kbps score")],
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
        **every(int, "encodes encoded_frames encoded_pixels"),
        **every(float, "encode_cpu_s score_s wall_s"),
        "guard_s": (float, None),
    },
    "worst": ([_PLACE], None),
    "tuning": (_TUNING, None),
    "asked": ({}, None),
    "warnings": ([str], None),
    "trusted": bool,
}
"""What of ladder.json the reports rely on: a pair with None may be missing, str as key is any."""


def write_reports(ladder: Ladder, pictures: Pictures | None = None) -> None:
    """Write REPORTS into the ladder's folder.

    Without `pictures` those of the pictures.json there are kept, or new ones are taken of the
    source. Rung files that an older ladder.json there lists and this ladder
    does not have are removed. Raises InputError when the folder cannot be written; the older
    reports then stay.
    """
    facts = finite(ladder.to_json())
    document = json.dumps(facts, indent=1, allow_nan=False) + "\n"
    # from the very figures that ladder.json holds, as whoever makes them again will have them
    ladder = replace(ladder, rungs=tuple(map(_rung, facts["rungs"])))
    pictures = pictures or find_pictures(ladder)
    content = {
        "pictures.json": json.dumps(pictures_json(ladder, pictures)).encode("ascii"),
        "ladder.json": document.encode("ascii"),
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
    """The ladder in a folder that `write_reports` filled.

    Raises InputError when ladder.json is missing, damaged, of another schema, or names a file
    outside the folder.
    """
    path = Path(folder) / "ladder.json"
    document = read_document(
        path,
        SCHEMA,
        _SHAPE,
        give="give the folder that `vqaloop ladder` wrote",
        remedy="make the ladder again",
    )
    rungs = document.pop("rungs")
    if not rungs:
        raise InputError(f"{quoted(path)} holds no rungs; make the ladder again")
    for index, rung in enumerate(rungs):
        if not stays_inside(rung["file"]):
            raise InputError(
                f"{quoted(path)}: rungs[{index}].file is {quoted(rung['file'])}, which is no "
                "plain file name; files must lie in the ladder's folder"
            )
        if rung["bitrate_kbps"] <= 0:
            raise InputError(f"{quoted(path)}: rungs[{index}].bitrate_kbps is not above 0")
    trusted = document.pop("trusted")
    return Ladder(Path(folder), tuple(_rung(rung) for rung in rungs), document, trusted)


def _rung(rung: dict[str, Any]) -> Rung:
    guard = {name: math.nan if v is None else v for name, v in rung["guard"].items()}
    known: dict[str, Any] = {key: rung.get(key) for key in _SHAPE["rungs"][0]}
    known["knob"] = (rung["knob"]["name"], rung["knob"]["value"])
    known["ffmpeg_args"] = tuple(rung["ffmpeg_args"])
    known["over_time"] = rung.get("over_time") or {}
    return Rung(**{**known, "guard": guard})


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
