"""Saved runs of a build (`vqaloop.build/1`): a baseline that need not be built or run again.

The same document is the journal of an interrupted comparison: the clips that it had finished.
"""

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct, structs

from vqaloop.core.documents import document_text, read_document
from vqaloop.core.files import write_whole
from vqaloop.core.folders import cache_folder
from vqaloop.core.text import counted, quoted
from vqaloop.errors import InputError
from vqaloop.records import Source
from vqaloop.regress.statistics import BASELINE, CANDIDATE, ClipRuns

SCHEMA = "vqaloop.build/1"
JOURNAL_S = 86_400
"""Age at which what an interrupted comparison had finished is no longer taken up."""


class _Build(Struct):
    name: str
    kind: str
    version: str
    sha256: str
    args: list[str]


class _Document(Struct):
    build: _Build
    settings: dict[str, str]
    machine: str
    clips: Annotated[tuple[ClipRuns, ...], Meta(min_length=1)]


@dataclass(frozen=True)
class Saved:
    """A build's runs, and the settings under which they ran."""

    build: Mapping[str, Any]
    """name, kind, version, sha256, args."""
    settings: Mapping[str, str]
    """All that must be equal for two results to be comparable."""
    machine: str
    """Times compare on the same one only."""
    clips: tuple[ClipRuns, ...]


def write_saved(saved: Saved, path: Path) -> None:
    """Raises InputError when it cannot be written; what was there then stays."""
    document = {
        "schema": SCHEMA,
        "build": dict(saved.build),
        "settings": dict(saved.settings),
        "machine": saved.machine,
        "clips": [asdict(clip) for clip in saved.clips],
    }
    write_whole(path, document_text(document))


def without_candidate(clip: ClipRuns) -> ClipRuns:
    """The clip without the candidate's runs and failures, as it is saved."""
    return replace(
        clip,
        runs=tuple(run for run in clip.runs if run.build != CANDIDATE),
        failures=tuple(f for f in clip.failures if f.build != CANDIDATE),
    )


def check_any_run(clips: Sequence[ClipRuns]) -> None:
    """Raises InputError where every run of the baseline failed."""
    if not any(clip.of(BASELINE) for clip in clips):
        why = next(f"{f.kind}: {f.message}" for clip in clips for f in clip.failures)
        raise InputError(
            f"every run of the baseline failed, so there is nothing to save; the first: {why}"
        )


def save_summary(clips: Sequence[ClipRuns], path: str | os.PathLike[str]) -> str:
    """For people: how many clips were saved where, and which runs failed."""
    count = counted(len(clips), "clip")
    text = f"The baseline's runs on {count} are kept in {quoted(path)}."
    failures = [(clip.clip, f) for clip in clips for f in clip.failures if f.build == BASELINE]
    if failures:
        clip, first = failures[0]
        runs = counted(len(failures), "run")
        text += f" {runs} failed, the first on {clip}, {first.point}: {first.message}."
    return text


def is_saved(place: Path) -> bool:
    """Whether the path is that of saved runs, rather than of a program."""
    if place.suffix.lower() == ".json" and not os.access(place, os.X_OK):
        return True
    try:
        if place.is_file():
            with place.open("rb") as file:
                return file.read(1) == b"{"
    except OSError:
        pass
    return False


def read_saved(path: Path) -> Saved:
    """Raises InputError for a file that is not such a result, or damaged."""
    found = read_document(
        path,
        _Document,
        schema=SCHEMA,
        give="give an encoder or what `vqaloop regress --save` wrote",
        remedy="save the baseline again",
    )
    return Saved(structs.asdict(found.build), found.settings, found.machine, found.clips)


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> Sequence[str]:
    """Settings that differ, as "preset medium here and fast there"."""
    # only another pool than the mean is named
    one, other = {"pool": "mean", **one}, {"pool": "mean", **other}
    if one.get("vqaloop") != other.get("vqaloop") or set(one) != set(other):
        return [f"by vqaloop {one.get('vqaloop', 'of another kind')}; save it again with this one"]
    return [
        f"{key} {other.get(key)} here and {one.get(key)} there"
        for key in {**one, **other}
        if one.get(key) != other.get(key)
    ]


class Journal:
    """The clips that a comparison has finished, kept in the cache folder until it ends.

    Its file is named by the hashes of builds, settings and clips. A build may be a script that
    runs another program, which no hash covers: so it serves the interrupted comparison alone.
    """

    def __init__(
        self,
        builds: Sequence[Mapping[str, Any]],
        settings: Mapping[str, str],
        machine: str,
        clips: Sequence[Source],
        *,
        enabled: bool,
    ) -> None:
        named = [builds, settings, machine, sorted(clip.sha256 for clip in clips)]
        key = hashlib.sha256(json.dumps(named).encode()).hexdigest()
        self.path = cache_folder() / "regress" / f"{key[:32]}.json"
        self.enabled = enabled
        self._empty = Saved(builds[0] if builds else {}, settings, machine, ())
        self._clips: tuple[ClipRuns, ...] = ()
        self._lock = threading.Lock()
        with contextlib.suppress(OSError, InputError):
            if enabled and time.time() - self.path.stat().st_mtime < JOURNAL_S:
                self._clips = read_saved(self.path).clips

    def finished(self, source: Source) -> ClipRuns | None:
        """The runs on that clip, if the interrupted comparison had finished it."""
        return next((clip for clip in self._clips if clip.sha256 == source.sha256), None)

    def keep(self, clip: ClipRuns) -> None:
        """Write the journal with that clip added; from any thread."""
        with self._lock:
            self._clips += (clip,)
            if not self.enabled:
                return
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_saved(replace(self._empty, clips=self._clips), self.path)
            except (OSError, InputError):
                # without a journal the comparison still runs; it only cannot be resumed
                self.enabled = False

    def close(self) -> None:
        """Remove the journal after a comparison that ran to its end."""
        if self.enabled:
            self.path.unlink(missing_ok=True)
