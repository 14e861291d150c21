"""Options as dataclass fields: flag, help and reader stand with the default, in one place.

From the fields of a class follow the arguments of a command (`add_options`), the keywords that a
command passes on (`given_options`), what of them a document records (`changed`), and the command
line that asks for the same again (`to_argv`).
"""

import argparse
import contextlib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from vqaloop.core.text import parse_size, size_text, utf8
from vqaloop.errors import InputError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Option:
    """How a field is given on a command line."""

    flags: tuple[str, ...]
    """The last one is its name in messages and commands: --min-ratio."""
    help: str
    parse: Callable[[str], Any]
    """Reads the text given; raises ArgumentTypeError or InputError. `bool`: a switch."""
    group: str
    """Heading in the help; empty for the command's own options."""
    column: bool
    """Whether a table of titles may have a column of that name."""
    recorded: bool
    """Whether it decides what the answer is, so that documents record it."""
    also: Mapping[str, str]
    """Further flags, each of which stands for one value."""
    keywords: Mapping[str, Any]
    """Further arguments of add_argument: metavar, nargs, const, choices."""

    @property
    def name(self) -> str:
        """The flag without dashes."""
        return self.flags[-1].lstrip("-")


def option(
    default: Any = MISSING,
    help: str = "",
    *,
    flags: tuple[str, ...] = (),
    parse: Callable[[str], Any] = str,
    group: str = "",
    column: bool = False,
    recorded: bool = True,
    also: Mapping[str, str] | None = None,
    **keywords: Any,
) -> Any:
    """A field of a dataclass that is also an option, with the field's name where no flag is given.

    `keywords` go to argparse's add_argument; the other arguments are those of `Option`.
    """
    parse = bool if isinstance(default, bool) else parse
    made = Option(flags, help, parse, group, column, recorded, also or {}, keywords)
    return field(default=default, metadata={"option": made})


def options_of(cls: type) -> dict[str, Option]:
    """The options among a dataclass's fields, in their order."""
    found: dict[str, Option] = {}
    for each in fields(cls):
        if made := each.metadata.get("option"):
            flags = made.flags or (f"--{each.name.replace('_', '-')}",)
            found[each.name] = replace(made, flags=flags)
    return found


def add_options(parser: Any, cls: type, but: type | None = None) -> None:
    """The options of `cls`, but for those that `but` has too, as arguments of a command.

    `parser` may be an argument group. What is not given is None in the namespace: `given_options`
    leaves it out, and the field's default stands.
    """
    left_out = options_of(but) if but else {}
    groups: dict[str, Any] = {"": parser}
    defaults = {each.name: each for each in fields(cls)}
    for name, made in options_of(cls).items():
        if name in left_out:
            continue
        if made.group not in groups:
            groups[made.group] = parser.add_argument_group(made.group)
        place = groups[made.group]
        if made.also:
            place = place.add_mutually_exclusive_group()
        place.add_argument(*made.flags, dest=name, **_arguments(defaults[name], made))
        for flag, value in made.also.items():
            text = f"{made.flags[-1]} {value}"
            place.add_argument(flag, dest=name, action="store_const", const=value, help=text)


def _arguments(each: "Field[Any]", made: Option) -> dict[str, Any]:
    if made.parse is bool:
        action = "store_false" if each.default else "store_true"
        return {"action": action, "default": None, "help": made.help}
    needed = {"required": True} if each.default is MISSING else {}
    help = made.help
    number = isinstance(each.default, int | float) and math.isfinite(each.default)
    shown = f"{each.default:g}" if number else each.default
    if isinstance(shown, str) and shown and not re.search(r"\bdefault\b", help):
        help = f"{help} (default: {shown})" if help else f"default: {shown}"
    return {**needed, "type": made.parse, "help": help, **made.keywords}


def given_options(cls: type, namespace: argparse.Namespace) -> dict[str, Any]:
    """The options of `cls` that a command line gives, by the names of their fields."""
    found = {name: getattr(namespace, name, None) for name in options_of(cls)}
    return {name: value for name, value in found.items() if value is not None}


def taken(cls: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Of a function's arguments, its `locals()`, those that are fields of `cls`."""
    return {each.name: arguments[each.name] for each in fields(cls)}


def read_texts(options: Any) -> None:
    """Has text in the fields of a frozen dataclass read as on the command line: rungs="auto".

    Lists may mix text and values. Raises InputError, which names the field.
    """
    for name, made in options_of(type(options)).items():
        value = getattr(options, name)
        if made.parse in (bool, str, Path):
            continue
        if isinstance(value, list | tuple) and any(isinstance(one, str) for one in value):
            value = ",".join(
                size_text(v) if isinstance(v, list | tuple) else str(v) for v in value
            )
        if isinstance(value, str):
            try:
                object.__setattr__(options, name, made.parse(value))
            except (InputError, argparse.ArgumentTypeError) as error:
                refused = InputError(f"{name}: {error}")
                refused.options = (name,)
                raise refused from error


def changed(options: Any) -> dict[str, Any]:
    """The recorded options that are not at their defaults, as JSON has them.

    Empty lists and infinite numbers ask for nothing and are left out.
    """
    known, found = options_of(type(options)), dict[str, Any]()
    for each in fields(options):
        if each.name not in known or not known[each.name].recorded:
            continue
        value = getattr(options, each.name)
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if isinstance(value, bytes):
            value = os.fsdecode(value)
        if isinstance(value, str):
            value = utf8(value)
        if isinstance(value, list | tuple):
            value = [list(v) if isinstance(v, list | tuple) else v for v in value]
        if value not in (each.default, []) and value != math.inf:
            found[each.name] = value
    return found


def to_argv(cls: type, values: Mapping[str, Any]) -> list[str]:
    """The words of a command line that give these values; what `cls` does not record is left out.

    `values` may come from a document that is not ours: what no option takes is left out too.
    """
    words: list[str] = []
    for name, value in values.items():
        made = options_of(cls).get(name)
        if made and made.parse is parse_size and _is_size(value):
            value = [value]
        sizes = isinstance(value, list) and all(isinstance(size, list) for size in value)
        if not made or not made.recorded or not (sizes or isinstance(value, str | int | float)):
            continue
        flag = made.flags[-1]
        if value is True:
            words.append(flag)
        elif sizes:
            words += [flag, ",".join(map(size_text, value))]
        else:
            text = _digits(value) if isinstance(value, float) else str(value)
            # a value that begins with a dash would be taken for an option
            words += [f"{flag}={text}"] if text.startswith("-") else [flag, text]
    return words


def _is_size(value: Any) -> bool:
    """Whether a value of a document is one size."""
    return isinstance(value, list) and len(value) == 2 and all(type(n) is int for n in value)


def _digits(value: float) -> str:
    """A number as every option takes it: without an exponent, and with all its digits."""
    from decimal import Decimal

    text = format(Decimal(repr(value)), "f")
    return text.removesuffix(".0")


@contextlib.contextmanager
def fault_of(*names: str) -> Iterator[None]:
    """An InputError raised inside names these options, unless it names others already."""
    try:
        yield
    except InputError as error:
        error.options = error.options or names
        raise


def number(text: str) -> float:
    """Reads an option that is a number. Raises ArgumentTypeError."""
    return _read(float, text, "a number; write it as 12 or 0.5")


def whole(text: str) -> int:
    """Reads an option that is a whole number. Raises ArgumentTypeError."""
    return _read(int, text, "a whole number; write it as 12")


def kbps(text: str) -> float:
    """Reads an option that is a bitrate in kb/s, or has a unit: 5M. Raises ArgumentTypeError."""
    units = {"k": 1.0, "m": 1e3, "g": 1e6}
    wanted = "a number of kb/s (1000 bits a second); write 5 Mb/s as 5000 or 5M"
    # a capital B would be bytes
    rate = re.fullmatch(r"\s*([0-9.]+)\s*([kKmMgG])(?:b|bit|bits)?(?:/s|ps)?\s*", text)
    if not rate:
        return _read(float, text, wanted)
    # to whole bits: 0.0011 * 1e6 is none
    return round(_read(float, rate[1], wanted) * units[rate[2].lower()], 3)


def rates(text: str) -> list[float]:
    """Reads bitrates with commas between. Raises ArgumentTypeError."""
    return [kbps(word) for word in text.split(",") if word]


def numbers(text: str) -> list[float]:
    """Reads numbers with commas between. Raises ArgumentTypeError."""
    try:
        return [float(word) for word in text.split(",") if word]
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} are not numbers with commas between"
        ) from error


def words(text: str) -> list[str]:
    """Reads names with commas between."""
    return [word for part in text.split(",") if (word := part.strip())]


def _read(kind: Callable[[str], Value], text: str, wanted: str) -> Value:
    try:
        return kind(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text[:50]!r} is not {wanted}") from error
