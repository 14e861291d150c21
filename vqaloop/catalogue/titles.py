"""The titles of a catalogue: named one by one or in a table, with what is asked of each alone."""

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vqaloop.core import csv_tables
from vqaloop.core.option_fields import Option, kbps, number, options_of, whole
from vqaloop.core.text import parse_resolutions, quoted
from vqaloop.errors import InputError
from vqaloop.ladder.options import LadderOptions, parse_sizes

MOST_TITLES = 10_000
"""Titles of one catalogue."""
LONGEST_NAME = 100
"""Bytes of a title's name, so that every file system takes it, with a number behind it too."""


@dataclass(frozen=True)
class Title:
    """A video of a catalogue, and what is asked of it alone."""

    input: str | os.PathLike[str]
    name: str | None = None
    """Of its folder; by default the file's, without its suffix."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of `build_ladder` that differ from the catalogue's; `codec` may name several."""
    at: str = ""
    """Where it is listed, for messages."""

    @property
    def where(self) -> str:
        return self.at or quoted(self.input)


def is_table(path: str | os.PathLike[str]) -> bool:
    """Whether this names a table of titles rather than a video."""
    return Path(path).suffix.lower() == ".csv"


def listed(titles: "Titles") -> list[Title]:
    """The titles that are meant by a table, or by videos, tables and titles one after another.

    Raises InputError for a table that cannot be read, for none, and for more than MOST_TITLES.
    """
    given = [titles] if isinstance(titles, str | os.PathLike) else titles
    found: list[Title] = []
    for one in given:
        if isinstance(one, Title):
            found.append(one)
        elif is_table(one):
            found += read_titles(Path(one))
        else:
            found.append(Title(one))
        if len(found) > MOST_TITLES:
            raise InputError(f"a catalogue has at most {MOST_TITLES} titles; part it")
    if not found:
        raise InputError("there are no titles; name videos, or a .csv with a column input")
    return found


Titles = str | os.PathLike[str] | Iterable[str | os.PathLike[str] | Title]


def read_titles(path: Path) -> list[Title]:
    """The rows of a table with a column `input` and any of COLUMNS; an empty field says nothing.

    Files are named relative to the table's own folder. Raises InputError with file, line and
    column for whatever is not understood.
    """
    found: list[Title] = []
    for at, row in csv_tables.records(path, {"input": ()}, spaces=False):
        if unknown := [column for column in row if column not in ("input", "name", *COLUMNS)]:
            raise InputError(
                f"table {quoted(path)} has a column {unknown[0][:50]!r} that means nothing here; "
                f"it may have: input, name, {', '.join(COLUMNS)}"
            )
        if len(found) == MOST_TITLES:
            raise InputError(f"table {quoted(path)} has more than {MOST_TITLES} titles; part it")
        options = {}
        for column, (option, parse) in COLUMNS.items():
            if text := row.get(column):
                here = f"{at}, column {column}"
                try:
                    options[option] = parse(text, here)
                except InputError as error:
                    why = str(error)
                    raise InputError(why if why.startswith(at) else f"{here}: {why}") from error
        for name in options.keys() & {"weights", "prompt"}:
            options[name] = path.parent / options[name]
        found.append(Title(path.parent / row["input"], row.get("name") or None, options, at))
    if not found:
        raise InputError(f"table {quoted(path)} lists no titles; give it a row for each")
    return found


def _number(text: str, at: str) -> float:
    return csv_tables.number(text, at, "value", (0, 1e12))


def _whole(text: str, at: str) -> int:
    return csv_tables.whole(text, at, "value")


def _word(text: str, at: str) -> str:
    return csv_tables.word(text, at, "value")


def _words(text: str, at: str) -> list[str]:
    return re.split(r"[,;\s]+", _word(text, at))


def _yes(text: str, at: str) -> bool:
    if text.lower() not in ("yes", "no"):
        raise InputError(f"{at}: {text[:50]!r} is neither yes nor no")
    return text.lower() == "yes"


_READERS: Mapping[Callable[[str], Any], Callable[[str, str], Any]] = {
    bool: _yes,
    str: _word,
    Path: _word,
    number: _number,
    kbps: _number,
    whole: _whole,
    parse_resolutions: lambda text, at: parse_resolutions(",".join(_words(text, at))),
    parse_sizes: lambda text, at: parse_sizes(",".join(_words(text, at))),
}
"""Stricter readers of a field than those of the command line's options, where there are such."""


def _reader(made: Option) -> Callable[[str, str], Any]:
    return _READERS.get(made.parse, lambda text, _: made.parse(text))


COLUMNS: Mapping[str, tuple[str, Callable[[str, str], Any]]] = {
    "codec": ("codec", _words),
    **{
        made.name.replace("-", "_"): (name, _reader(made))
        for name, made in options_of(LadderOptions).items()
        if made.column
    },
}
"""Columns that say what the command line's options of the same name say: the option of
`build_ladder`, and how a field is read."""


def folder_names(titles: Sequence[Title]) -> list[str]:
    """A name for each title's folder: plain, no two alike even where case does not count.

    Names that were given are kept as they are; InputError for one that is no plain name, or is
    given twice.
    """
    used: set[str] = set()
    for title in titles:
        if title.name is None:
            continue
        if title.name != _plain(title.name):
            raise InputError(
                f"{title.where}: the name {quoted(title.name)} cannot be a folder's here: use up "
                f"to {LONGEST_NAME} bytes of letters, digits and signs, no slash, and neither dot "
                "nor dash first"
            )
        if _folded(title.name) in used:
            raise InputError(f"{title.where}: the name {quoted(title.name)} is taken; change it")
        used.add(_folded(title.name))
    names = []
    for title in titles:
        name = title.name
        if name is None:
            stem, count = _plain(Path(title.input).stem), 1
            name = stem
            while _folded(name) in used:
                count += 1
                name = f"{stem}-{count}"
            used.add(_folded(name))
        names.append(name)
    return names


def _plain(text: str) -> str:
    """`text` as a name that can neither leave a folder, hide in it, nor pass for an option."""
    kept = "".join(c if c.isprintable() and c not in "/\\" else "_" for c in text).strip()
    if kept[:1] in ("", ".", "-"):
        kept = "_" + kept[1:]
    return kept.encode()[:LONGEST_NAME].decode("utf-8", "ignore").strip()


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
