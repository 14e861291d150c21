"""Tables of scores as they are published (CSV and like text), and the files they name.

Nothing of a table is trusted: every refusal names file, line and remedy, and names of files are
looked up among those that are there.
"""

import csv
import io
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from vqaloop.core.documents import read_start
from vqaloop.core.text import quoted
from vqaloop.errors import InputError

SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avs2", ".avs", ".y4m", ".yuv")
"""Of video files; of two that differ in nothing else, the first of these is taken."""
MAX_TABLE_BYTES = 1 << 24
"""Largest table read: 16 MiB, hundreds of times the largest known."""
MAX_ROWS = 100_000
"""Rows of a table; the largest known set has some thousand videos."""
MAX_FILES = 200_000
"""Files looked at below a data set's folder."""
MAX_DEPTH = 6
"""Folders within folders that are looked into, so that links in a circle end."""

_NUMBER = re.compile(r"[+-]?([0-9]+([.][0-9]*)?|[.][0-9]+)([eE][+-]?[0-9]{1,3})?")
_SOURCE_FOLDERS = {"source", "sources", "orig", "original", "originals", "reference", "references"}


def rows(path: Path, *, spaces: bool = True) -> Iterator[tuple[str, list[str]]]:
    """("'file' line N", fields) of each line that is not blank; fields are stripped.

    Commas, semicolons, tabs or (with `spaces`) spaces separate the fields: the first of them in
    this order that is in the first line. Raises InputError for a file that is no such
    text, or too large.
    """
    for count, row in enumerate(_rows(path, spaces)):
        if count > MAX_ROWS:
            raise InputError(f"table {quoted(path)} has more than {MAX_ROWS} rows; part it")
        yield row


def _rows(path: Path, spaces: bool) -> Iterator[tuple[str, list[str]]]:
    name = quoted(path)
    try:
        data = read_start(path, MAX_TABLE_BYTES + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"table {name} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"table {name} cannot be read as UTF-8 text: {error}") from error
    if len(data) > MAX_TABLE_BYTES:
        raise InputError(f"table {name} is larger than {MAX_TABLE_BYTES} bytes; that is no table")
    if strange := re.search(r"[\x00-\x08\x0e-\x1f\x7f]", text):
        count = text.count("\n", 0, strange.start()) + 1
        raise InputError(f"{name} line {count} holds a control character; save it as plain text")
    first = text.lstrip().partition("\n")[0]
    comma = next((sign for sign in ",;\t" if sign in first), None if spaces else ",")
    if comma is None:
        for count, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield f"{name} line {count}", line.split()
        return
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=comma, skipinitialspace=True, strict=True
    )
    try:
        for fields in reader:
            stripped = [field.strip() for field in fields]
            if any(stripped):
                yield f"{name} line {reader.line_num}", stripped
    except csv.Error as error:
        raise InputError(
            f"{name} line {reader.line_num} is not a row of a table: {error}; check its quotes"
        ) from error


def records(
    path: Path,
    needed: Mapping[str, Sequence[str]],
    bare: Sequence[str] = (),
    *,
    spaces: bool = True,
) -> Iterator[tuple[str, dict[str, str]]]:
    """("'file' line N", {column: field}) below a header; columns in lower case.

    `needed` are the columns that must be there, each with other names it may have. `bare` are the
    columns of a table without a header, which is one whose first line ends in a number: its first
    field is the first of them, its last field the second. `spaces` as for `rows`. Raises
    InputError.
    """
    columns: list[str] = []
    for at, fields in rows(path, spaces=spaces):
        if not columns and not (bare and is_number(fields[-1])):
            columns = _columns(fields, needed, at)
        elif not columns or columns == list(bare):
            columns = list(bare)
            if len(fields) < 2:
                raise InputError(f"{at} has one field; write {' and '.join(bare)}")
            yield at, dict(zip(bare, (fields[0], fields[-1]), strict=True))
        else:
            if len(fields) != len(columns):
                raise InputError(
                    f"{at} has {len(fields)} fields and its header {len(columns)}; make them equal"
                )
            row = dict(zip(columns, fields, strict=True))
            if empty := [key for key in needed if not row[key]]:
                raise InputError(f"{at}: {', '.join(empty)} is empty; fill it in or drop the row")
            yield at, row


def _columns(fields: Sequence[str], needed: Mapping[str, Sequence[str]], at: str) -> list[str]:
    columns = [field.lower() for field in fields]
    for name, others in needed.items():
        if name not in columns and (known := next((o for o in others if o in columns), None)):
            columns[columns.index(known)] = name
    if absent := [name for name in needed if name not in columns]:
        raise InputError(
            f"{at} should be a header with {', '.join(needed)}, and has no {', '.join(absent)}"
        )
    if len(set(columns)) < len(columns):
        raise InputError(f"{at} names a column twice; rename or drop one")
    return columns


def is_number(text: str) -> bool:
    """True for a finite decimal number."""
    return bool(_NUMBER.fullmatch(text)) and math.isfinite(float(text))


def number(text: str, at: str, what: str, span: tuple[float, float]) -> float:
    """A decimal number inside `span`; `at` and `what` are for the message of the InputError."""
    low, high = span
    if not is_number(text) or not low <= float(text) <= high:
        raise InputError(
            f"{at}: {what} {quoted(text)} is not a number from {low:g} to {high:g}; correct it"
        )
    return float(text)


def whole(text: str, at: str, what: str) -> int:
    """A whole number of up to six digits. Raises InputError."""
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise InputError(f"{at}: {what} {quoted(text)} is not a whole number; correct it")
    return int(text)


def word(text: str, at: str, what: str) -> str:
    """A field of 1 to 200 characters. Raises InputError."""
    if not 0 < len(text) <= 200:
        raise InputError(f"{at}: {what} {quoted(text)} has {len(text)} characters; 1 to 200 do")
    return text


def inside(text: str, at: str) -> str:
    """A file's name below the data set's folder, with forward slashes. Raises InputError."""
    name = PurePosixPath(word(text, at, "file name").replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts or not name.parts:
        raise InputError(f"{at}: {quoted(text)} is not a name below the data set's folder")
    return str(name)


class Files:
    """Files below a folder, found whatever the case of their names or their video suffix."""

    def __init__(self, root: Path) -> None:
        """Raises InputError when there is no such folder, or it holds far too much."""
        self.root = root
        if not root.is_dir():
            raise InputError(f"{quoted(root)} is not a folder; name the data set's folder")
        self.paths: list[Path] = []
        for folder, folders, names in os.walk(root, followlinks=True):
            here = Path(folder)
            folders.sort()
            if len(here.relative_to(root).parts) >= MAX_DEPTH:
                folders.clear()
            self.paths += [here / name for name in sorted(names)]
            if len(self.paths) > MAX_FILES:
                raise InputError(
                    f"{quoted(root)} holds more than {MAX_FILES} files; name the data set's "
                    "own folder"
                )
        self._known: dict[str, Path] = {}
        for path in self.paths:
            self._known.setdefault(self._key(path), path)
        for suffix in SUFFIXES:
            for path in self.paths:
                if path.suffix.lower() == suffix:
                    self._known.setdefault(self._key(path.with_suffix("")), path)

    def _key(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix().casefold()

    def get(self, name: str) -> Path | None:
        """The file of this path below the folder, with or without its suffix."""
        return self._known.get(name.casefold())

    def table(self, name: str) -> Path:
        """The file `name` in the folder itself, or else the only .csv there. Raises InputError."""
        if found := self.get(name):
            return found
        tables = [p for p in self.paths if p.suffix.lower() == ".csv" and p.parent == self.root]
        if len(tables) != 1:
            raise InputError(
                f"{quoted(self.root)} holds no {name} and {len(tables)} .csv files; put the table "
                f"of scores there as {name}, or keep one .csv"
            )
        return tables[0]

    def sources(self) -> Iterator[Path]:
        """Videos in a folder that is called sources, original or alike."""
        for path in self.paths:
            if path.suffix.lower() in SUFFIXES and path.parent.name.lower() in _SOURCE_FOLDERS:
                yield path
