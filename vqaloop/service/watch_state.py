"""What a watcher knows of the titles of a folder: in files beside what it made of them.

A title's record is written whole when it is begun and when it ends, so that no kill loses more
than the title at hand, which goes on. A failed one has a dead letter with the reason in its place.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import Struct

from vqaloop.core.documents import Whole, document_text, read_document
from vqaloop.core.files import write_whole
from vqaloop.core.text import utf8
from vqaloop.errors import InputError

SCHEMA = "vqaloop.watched/1"
RECORD = "title.json"
LETTERS = "dead-letters"
LOCKS = ".locks"
LARGEST = 1 << 20
"""Bytes of a record; real ones have some hundred."""
LONGEST_NAME = 200
"""Bytes of a file's name of ours; file systems take 255."""


@dataclass(frozen=True)
class Version:
    """A content of a file, as far as a look at the folder tells."""

    size: int
    mtime_ns: int


class Record(Struct):
    """What was written down of a title."""

    size: Whole
    mtime_ns: int
    outcome: str
    """begun, done, untrusted or failed."""
    attempts: Whole = 0
    """Times that it was begun and did not end."""

    def is_of(self, version: Version) -> bool:
        return (self.size, self.mtime_ns) == (version.size, version.mtime_ns)


@dataclass(frozen=True)
class State:
    """The records of one output folder."""

    out: Path

    def folder(self, name: str) -> Path:
        """Where what is made of a title lies."""
        return self.out / name

    def letter(self, name: str) -> Path:
        """Where its dead letter lies, if it failed."""
        return self.out / LETTERS / f"{_short(name)}.json"

    def read(self, name: str) -> Record | None:
        """The title's record; None where there is none, or it is damaged."""
        for path in (self.letter(name), self.folder(name) / RECORD):
            with contextlib.suppress(InputError):
                return read_document(
                    path, Record, schema=SCHEMA, give="", remedy="", largest=LARGEST
                )
        return None

    def write(self, name: str, version: Version, outcome: str, **more: Any) -> dict[str, Any]:
        """Write a record down; returns it. Raises InputError where that cannot be."""
        record = {
            "schema": SCHEMA,
            "title": utf8(name),
            "outcome": outcome,
            "size": version.size,
            "mtime_ns": version.mtime_ns,
            **more,
        }
        letter, own = self.letter(name), self.folder(name) / RECORD
        path, other = (letter, own) if outcome == "failed" else (own, letter)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, document_text(record))
            other.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}") from error
        return record

    @contextlib.contextmanager
    def taken(self, name: str) -> Iterator[bool]:
        """While inside, no other watcher has this title; False where another has it already.

        The lock is the kernel's and ends with its holder, however that dies.
        """
        import filelock

        folder = self.out / LOCKS
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / f"{_digest(name)}.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()


def _digest(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:32]


def _short(name: str) -> str:
    """A name in one folder for a title that may lie in several, and have a long one."""
    flat = name.replace("/", "_")
    if flat == name and len(os.fsencode(name)) <= LONGEST_NAME:
        return name
    kept = os.fsencode(flat)[:LONGEST_NAME].decode("utf-8", "ignore")
    return f"{kept}-{_digest(name)}"
