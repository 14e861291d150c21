"""State of a catalogue between calls: the priors it began with, and the ladders it has made."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from vqaloop.catalogue.plan import Task
from vqaloop.core.documents import read_document
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.core.files import file_sha256, write_whole
from vqaloop.core.version import __version__
from vqaloop.encoding.survey import encoder_version
from vqaloop.errors import InputError
from vqaloop.ladder.store import REPORTS, read_ladder
from vqaloop.records import Ladder
from vqaloop.search import prior_store
from vqaloop.search.prior_store import Kind

SCHEMA = "vqaloop.catalogue-state/1"
MADE = ".made.json"
"""In a ladder's folder: of what request it is, and what its files were."""
LARGEST_NOTE = 1 << 20
"""Bytes of it; real ones are some kilobytes."""


class _State(Struct):
    titles: dict[str, dict[str, Any]]


def begun_with(path: Path, kinds: Iterable[Kind]) -> Mapping[str, Any]:
    """Priors learnt on other titles by the start of the catalogue, stored in `path`.

    A catalogue that is resumed so starts from the same priors, and gives the same ladders.
    """
    known: dict[str, Any] = {}
    if path.exists():
        # one that is damaged is made again
        with contextlib.suppress(InputError):
            known = read_document(path, _State, schema=SCHEMA, give="", remedy="").titles
    missing = {kind for kind in kinds if "/".join(kind) not in known}
    if missing or not path.exists():
        known = {**known, **prior_store.snapshot(sorted(missing))}
        write_whole(path, json.dumps({"schema": SCHEMA, "titles": known}))
    return known


def digest(task: Task) -> str | None:
    """Of all that decides what the ladder is.

    None where it is to be made in any case: without the cache, and with a budget, since more time
    may find a better one.
    """
    if not task.options.cache or task.options.budget_s is not None:
        return None
    options = {k: v for k, v in task.arguments.items() if k not in ("cache", "ffmpeg", "storage")}
    binary = ffmpeg_path(task.options.ffmpeg)
    decided = [
        *(__version__, file_sha256(task.title.input), os.fspath(task.title.input)),
        *(task.codec, repr(task.spec), encoder_version(task.spec, binary)),
        *(file_sha256(binary), task.metric.identity()),
        sorted(options.items()),
    ]
    return hashlib.sha256(json.dumps(decided, default=str).encode()).hexdigest()


def note_made(ladder: Ladder, request: str | None) -> None:
    """Have `made_before` find it, unless another attempt could make it better."""
    if request is None or any(trial["error"] for trial in ladder.about["trials"]):
        return
    with contextlib.suppress(InputError, OSError):
        note = {"request": request, "files": _files(ladder)}
        write_whole(ladder.folder / MADE, json.dumps(note))


def made_before(folder: Path, request: str | None) -> Ladder | None:
    """The ladder in the folder, where this request made it and it is all there, unchanged."""
    with contextlib.suppress(InputError, OSError, ValueError, RecursionError):
        if not (folder / MADE).is_file():
            return None
        with open(folder / MADE, "rb") as file:
            note = json.loads(file.read(LARGEST_NOTE))
        if isinstance(note, dict) and request is not None and note.get("request") == request:
            ladder = read_ladder(folder)
            names = (*REPORTS, *(rung.file for rung in ladder.rungs))
            whole = all((folder / name).is_file() for name in names)
            if whole and _files(ladder) == note.get("files"):
                return ladder
    return None


def _files(ladder: Ladder) -> dict[str, str]:
    """SHA-256 of each file that holds the answer."""
    names = ["ladder.json", *(rung.file for rung in ladder.rungs)]
    return {name: file_sha256(ladder.folder / name) for name in names}
