"""The commands that make a ladder, its rungs or its report again, from what ladder.json tells."""

import inspect
import math
import os
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from vqaloop.records import Ladder

KEPT = (
    *("encoder", "resolutions", "metric", "weights", "score_precision"),
    *("rungs", "min_step", "min_ratio"),
    *("min_bitrate", "max_bitrate", "min_score", "max_score", "require", "budget_s", "preset"),
    *("bit_depth", "device", "seed", "prior", "tune_trials", "timeout_s"),
    *("video_size", "pix_fmt", "framerate", "allow_hdr"),
)
"""Arguments of `build_ladder` that decide what the ladder is; a storage may hold a password."""
_OPTIONS = {"budget_s": "budget", "tune_trials": "tune-params", "timeout_s": "time-limit"}
"""Where an option has not the argument's name."""


def asked_json(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments in KEPT that are not at their defaults, as ladder.json has them."""
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
    }
    asked: dict[str, Any] = {}
    for name in KEPT:
        value = given[name]
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if isinstance(value, bytes):
            value = os.fsdecode(value)
        if isinstance(value, str):
            value = os.fsencode(value).decode("utf-8", "replace")
        if isinstance(value, list | tuple):
            value = [list(size) for size in value]
        if value not in (defaults[name], []) and value != math.inf:
            asked[name] = value
    return asked


def ladder_command(ladder: Ladder) -> list[str]:
    """The command that makes the ladder again, as far as ladder.json tells what was asked."""
    about = ladder.about
    asked = about.get("asked")
    if asked is None:
        encoder, metric = about["encoder"], about["metric"]
        asked = {"encoder": encoder["name"], "preset": encoder["preset"], "metric": metric["name"]}
    words = ["vqaloop", "ladder", _as_path(about["source"]["path"]), "--codec", about["codec"]]
    for name, value in asked.items():
        words += _option(name, value)
    return [*words, "-o", _as_path(folder_name(ladder))]


def report_command(ladder: Ladder) -> list[str]:
    """The command that makes the page and the plot again."""
    return ["vqaloop", "report", _as_path(folder_name(ladder))]


def folder_name(ladder: Ladder) -> str:
    """The last part of the folder's path: pages may go where its other parts are nobody's."""
    return Path(os.path.abspath(ladder.folder)).name or "."


def _option(name: str, value: Any) -> list[str]:
    lists = isinstance(value, list) and all(isinstance(size, list) for size in value)
    if name not in KEPT or not (lists or isinstance(value, str | int | float)):
        return []
    option = f"--{_OPTIONS.get(name, name).replace('_', '-')}"
    if name == "prior" and isinstance(value, bool):
        return ["--prior", "own" if value else "none"]
    if value is True:
        return [option]
    if lists:
        return [option, ",".join("x".join(map(str, size)) for size in value)]
    # a value that begins with a dash would be taken for an option
    text = _written(value) if isinstance(value, float) else str(value)
    return [f"{option}={text}"] if text.startswith("-") else [option, text]


def _written(value: float) -> str:
    """A number as every option takes it: without an exponent, and with all its digits."""
    text = format(Decimal(repr(value)), "f")
    return text.removesuffix(".0")


def _as_path(name: str) -> str:
    return f"./{name}" if name.startswith("-") else name
