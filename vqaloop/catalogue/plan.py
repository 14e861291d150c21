"""What a catalogue is to make, checked before any work as far as that is cheap."""

import contextlib
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqaloop.catalogue.titles import COLUMNS, Title, folder_names
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.core.folders import check_writable
from vqaloop.core.text import quoted
from vqaloop.encoding import checks
from vqaloop.encoding.spec import EncoderSpec
from vqaloop.errors import InputError
from vqaloop.execution.checks import check_folder, check_metric, check_run
from vqaloop.ladder.build import build_ladder
from vqaloop.ladder.rules import checked_budget, make_rules
from vqaloop.media.probe import read_head
from vqaloop.quality.metric import Metric
from vqaloop.quality.registry import kindred, open_metric
from vqaloop.search.prior_store import Kind, prior_use
from vqaloop.tuning.tune import check_trials

STATE = ".catalogue.json"
"""In the catalogue's folder: what its titles began with."""
REPORTS = ("catalogue.csv", "catalogue.html", "catalogue.json")
_OWN = ("input", "codec", "out", "workers", "progress")
"""Arguments of `build_ladder` that a catalogue gives itself."""


@dataclass(frozen=True)
class Task:
    """One ladder to make."""

    title: Title
    name: str
    """The title's, unique in the catalogue."""
    codec: str
    folder: Path
    options: Mapping[str, Any]
    """All others of `build_ladder`'s, defaults included."""
    spec: EncoderSpec
    meter: Metric
    kinds: tuple[Kind, ...]
    """Whose history tells of it."""


def plan(
    titles: Sequence[Title], codecs: Sequence[str], out: Path, options: Mapping[str, Any]
) -> list[Task]:
    """The ladders that titles and codecs ask for, each with a folder of its own in `out`.

    Raises InputError for what would be refused anyway, or would write where it must not, and
    TypeError for an option that `build_ladder` does not know.
    """
    _check_out(out)
    checked = _Checks(out, options)
    tasks = []
    for title, name in zip(titles, folder_names(titles), strict=True):
        asked = title.options.get("codec", codecs)
        with _told(title, "codec"):
            if len(set(asked)) < len(asked):
                raise InputError(f"{','.join(asked)} names a codec twice")
        tasks += [checked.task(title, name, codec, len(asked) == 1) for codec in asked]
    return tasks


class _Checks:
    def __init__(self, out: Path, options: Mapping[str, Any]) -> None:
        known = inspect.signature(build_ladder).parameters
        self.defaults = {key: p.default for key, p in known.items() if key not in _OWN}
        if unknown := sorted(options.keys() - self.defaults):
            raise TypeError(f"build_catalogue() has no option {unknown[0]!r}")
        self.out, self.options = out, options
        self.meters: dict[tuple[Any, ...], Metric] = {}

    def task(self, title: Title, name: str, codec: str, alone: bool) -> Task:
        own = {key: value for key, value in title.options.items() if key != "codec"}
        if unknown := sorted(own.keys() - self.defaults):
            raise TypeError(f"a title has no option {unknown[0]!r}")
        asked = {**self.defaults, **self.options, **own}
        binary = ffmpeg_path(asked["ffmpeg"])
        source, folder = Path(title.input), self.out / f"{name}.{codec}.ladder"
        with _told(title, "input"):
            read_head(source)
            if self.out.resolve() in source.resolve().parents:
                raise InputError(
                    f"{quoted(source)} lies in the output folder, where it could be replaced; "
                    "choose another folder with -o"
                )
        with _told(title, "codec", "encoder"):
            if asked["encoder"] and not alone:
                raise InputError("an encoder goes with one codec; leave it out, or name one codec")
            spec = checks.choose_encoder(codec, asked["encoder"], binary)
        with _told(title, "preset"):
            preset = checks.checked_preset(spec, asked["preset"])
        with _told(title, "bit_depth"):
            if asked["bit_depth"] not in (None, *spec.bit_depths):
                raise InputError(f"{spec.name} has no {asked['bit_depth']} bit")
        with _told(title, "timeout_s"):
            check_run(1, asked["seed"], asked["device"], asked["timeout_s"])
        with _told(title, "metric", "weights", "score_precision"):
            meter = self._meter(asked, binary)
        limits = (
            *("rungs", "min_step", "min_ratio", "min_bitrate", "max_bitrate"),
            *("min_score", "max_score"),
        )
        with _told(title, *limits):
            make_rules(meter, *(asked[key] for key in limits))
        with _told(title, "budget_s", "tune_trials"):
            checked_budget(asked["budget_s"])
            if asked["tune_trials"] is not None:
                check_trials(asked["tune_trials"])
                if asked["budget_s"] is not None:
                    raise InputError("a budget does not go with tuning the encoder's parameters")
        with _told(title):
            check_folder(folder, source)
            if folder.is_symlink():
                raise InputError(f"{quoted(folder)} is a link to elsewhere; remove it")
        known = kindred(meter) if prior_use(asked["prior"]) == "own" else []
        kinds = tuple((spec.name, preset, metric) for metric in known)
        return Task(title, name, codec, folder, asked, spec, meter, kinds)

    def _meter(self, asked: Mapping[str, Any], binary: str) -> Metric:
        told = {key: asked[key] for key in ("device", "seed", "weights")}
        told["precision"] = asked["score_precision"]
        key = (asked["metric"], binary, *told.values())
        if key not in self.meters:
            meter = open_metric(asked["metric"], ffmpeg=binary, **told)
            check_metric(meter, asked["weights"])
            self.meters[key] = meter
        return self.meters[key]


@contextlib.contextmanager
def _told(title: Title, *options: str) -> Iterator[None]:
    """What is refused while inside is said of the title's line, and of the columns at fault."""
    try:
        yield
    except InputError as error:
        if not title.at:
            raise
        given = {option for option in options if option in title.options or option == "input"}
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
