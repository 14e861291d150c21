"""What a catalogue is to make, checked before any work as far as that is cheap."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vqaloop.catalogue.titles import COLUMNS, Title, folder_names
from vqaloop.core.folders import check_writable
from vqaloop.core.option_fields import fault_of, options_of
from vqaloop.core.text import quoted
from vqaloop.encoding.registry import codec_names
from vqaloop.encoding.spec import EncoderSpec
from vqaloop.errors import InputError
from vqaloop.execution.checks import check_folder, check_metric
from vqaloop.execution.options import MetricOptions
from vqaloop.execution.tools import chosen_encoder, chosen_metric
from vqaloop.ladder.options import LadderOptions
from vqaloop.ladder.request import check_codecs, make_rules
from vqaloop.media.probe import read_head
from vqaloop.quality.metric import Metric
from vqaloop.quality.registry import kindred
from vqaloop.search.prior_store import Kind, prior_use

STATE = ".catalogue.json"
"""In the catalogue's folder: what its titles began with."""
REPORTS = ("catalogue.csv", "catalogue.html", "catalogue.json")
_OWN = frozenset(("codec", "out", "workers", "progress"))
"""Arguments of `build_ladder` that a catalogue gives itself."""


@dataclass(frozen=True)
class Task:
    """One ladder to make."""

    title: Title
    name: str
    """The title's, unique in the catalogue."""
    folder: Path
    options: LadderOptions
    spec: EncoderSpec
    metric: Metric
    kinds: tuple[Kind, ...]
    """Of the own titles that it learns from."""

    @property
    def codec(self) -> str:
        return self.options.codec

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of `build_ladder` that the catalogue does not give itself, defaults included."""
        names = (each.name for each in fields(self.options))
        return {name: getattr(self.options, name) for name in names if name not in _OWN}


def plan(
    titles: Sequence[Title], codecs: Sequence[str], out: Path, options: Mapping[str, Any]
) -> list[Task]:
    """The ladders that titles and codecs ask for, each with a folder of its own in `out`.

    Raises InputError for what would be refused anyway, or would write where it must not, and
    TypeError for an option that `build_ladder` does not know.
    """
    _check_out(out)
    _check_known(options, "build_catalogue()")
    metrics: dict[tuple[Any, ...], Metric] = {}
    tasks = []
    for title, name in zip(titles, folder_names(titles), strict=True):
        own = dict(title.options)
        asked = [codec_names(codec) for codec in own.pop("codec", codecs)]
        _check_known(own, "a title")
        with _located(title):
            check_codecs(asked, own.get("encoder", options.get("encoder")))
            _check_input(title, out)
            for codec in asked:
                folder = out / f"{name}.{codec}.ladder"
                ladder = LadderOptions(codec=codec, **{**options, **own})
                tasks.append(task_of(title, name, folder, ladder, metrics))
    return tasks


def task_of(
    title: Title,
    name: str,
    folder: Path,
    options: LadderOptions,
    metrics: dict[tuple[Any, ...], Metric],
) -> Task:
    """A ladder to make; `metrics` holds those that other titles share. Raises InputError."""
    spec, preset = chosen_encoder(options)
    key = tuple(getattr(options, name) for name in options_of(MetricOptions))
    if key not in metrics:
        metrics[key] = chosen_metric(options)
        with fault_of("metric", "weights", "prompt", "score_precision"):
            check_metric(metrics[key], options.weights or options.prompt)
    metric = metrics[key]
    make_rules(metric, options)
    check_folder(folder, Path(title.input))
    if folder.is_symlink():
        raise InputError(f"{quoted(folder)} is a link to elsewhere; remove it")
    known = kindred(metric) if prior_use(options.prior) == "own" else []
    kinds = tuple((spec.name, preset, of) for of in known)
    return Task(title, name, folder, options, spec, metric, kinds)


def _check_known(options: Mapping[str, Any], what: str) -> None:
    known = {each.name for each in fields(LadderOptions)}
    if unknown := sorted(options.keys() - (known - _OWN)):
        raise TypeError(f"{what} has no option {unknown[0]!r}")


def _check_input(title: Title, out: Path) -> None:
    source = Path(title.input)
    with fault_of("input"):
        read_head(source)
        if out.resolve() in source.resolve().parents:
            raise InputError(
                f"{quoted(source)} lies in the output folder, where it could be replaced; "
                "choose another folder with -o"
            )


@contextlib.contextmanager
def _located(title: Title) -> Iterator[None]:
    """A refusal inside names the title's line, and the columns at fault."""
    try:
        yield
    except InputError as error:
        if not title.at:
            raise
        given = {name for name in error.options if name in title.options or name == "input"}
        columns = [name for name, (option, _) in COLUMNS.items() if option in given]
        columns += ["input"] * ("input" in given)
        place = f", column{'s' * (len(columns) > 1)} {', '.join(columns)}" if columns else ""
        raise InputError(f"{title.at}{place}: {error}") from error


def _check_out(out: Path) -> None:
    remedy = "choose another folder with -o"
    try:
        if out.exists() and not out.is_dir():
            raise InputError(f"{quoted(out)} is a file; give the output another name with -o")
        place = next(place for place in (out, *out.absolute().parents) if place.exists())
        check_writable(place, remedy)
        names = set(os.listdir(out)) if out.is_dir() else set()
        if names and not names & {STATE, *REPORTS}:
            raise InputError(f"{quoted(out)} holds other files and no catalogue; {remedy}")
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"cannot use the folder {quoted(out)}: {why}; {remedy}") from error
