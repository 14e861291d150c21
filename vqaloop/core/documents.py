"""Guarded reading of JSON and TOML into typed values by msgspec, and writing of JSON documents.

Whatever a file holds, reading it gives a value of the wanted type, or an InputError that names the
file, the place in it, what should be there, and what is.
"""

import json
import os
import re
import reprlib
import tomllib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, TypeVar, get_type_hints

import msgspec
from msgspec import Meta, Struct

from vqaloop.core.files import check_regular
from vqaloop.core.rounding import finite
from vqaloop.core.suggestions import did_you_mean
from vqaloop.core.text import printable, quoted
from vqaloop.errors import InputError

LARGEST_JSON = 1 << 23
"""Bytes beyond which a document is refused; real ones are some hundred kilobytes."""
LARGEST_TOML = 1 << 18
"""The same of TOML; real ones are some kilobytes."""
DEEPEST = 32
"""Levels of nesting; what recurses over a document stays far from Python's own limit."""

# bounds rather than isfinite, which fails on the largest integers; they refuse NaN too
Whole = Annotated[int, Meta(gt=-(10**15), lt=10**15)]
Finite = Annotated[float, Meta(gt=-1e15, lt=1e15)]
Number = Whole | Finite
"""A number that is written again as it was read: an integer remains one."""
Positive = Annotated[int, Meta(gt=0, lt=10**15)] | Annotated[float, Meta(gt=0, lt=1e15)]


def one_of(*names: str) -> Meta:
    """Constraint of text that is one of these names, which a refusal lists."""
    return Meta(pattern=rf"\A({'|'.join(names)})\Z")


class Size(Struct):
    """Width and height in pixels."""

    width: Whole
    height: Whole


T = TypeVar("T")
_TYPES: dict[str, tuple[type, str]] = {
    "str": (str, "text"),
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "bool": (bool, "true or false"),
    "array": (list, "a list"),
    "object": (dict, "an object"),
    "null": (type(None), "null"),
}
"""msgspec's names of types: what they are in Python, and in words."""


def read_document(
    path: Path,
    kind: type[T],
    *,
    schema: str,
    give: str,
    remedy: str,
    largest: int = LARGEST_JSON,
    others: Mapping[str, str] = MappingProxyType({}),
) -> T:
    """Read a JSON document as a value of type `kind`; keys that it does not have are let pass.

    Args:
        path: A regular file.
        kind: Struct or dataclass of what is needed of the document; or dict, for all of it.
        schema: What the document's `schema` must be.
        give: Says in an error which file is wanted.
        remedy: Says in an error what to do about a wrong one.
        largest: Bytes beyond which the file is refused.
        others: What to say of a document of another schema that may well be taken for it.

    Raises:
        InputError: The file cannot be read or is wrong; names the first place at fault.
    """
    document = _parsed(path, give, remedy, largest)
    found = document.get("schema") if isinstance(document, dict) else None
    if isinstance(found, str) and found in others:
        raise InputError(f"{quoted(path)} {others[found]}")
    if found != schema:
        shown = found[:80] if isinstance(found, str) else reprlib.repr(found)
        raise InputError(
            f"{quoted(path)} is of schema {printable(repr(shown))} and this reads "
            f"{schema}; {remedy}"
        )
    return as_type(document, kind, quoted(path), remedy)


def read_toml(path: Path, kind: type[T], name: str) -> T:
    """Read a TOML file as a value of type `kind`, which must know all keys in it.

    Args:
        path: A regular file.
        kind: Struct or dataclass of the whole file.
        name: What the file is called in errors.

    Raises:
        InputError: The file cannot be read or is wrong; names the first place at fault.
    """
    return of_toml(toml_values(path, name), kind, name)


def toml_values(path: Path, name: str) -> dict[str, Any]:
    """The table in a TOML file, of bounded size and depth. Raises InputError."""
    try:
        text = read_start(path, LARGEST_TOML + 1)
        if len(text) > LARGEST_TOML:
            raise InputError(f"{name} is larger than {LARGEST_TOML} bytes; that is no such file")
        values = tomllib.loads(text.decode("utf-8"))
        check_depth(values)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} cannot be read as TOML: {str(error)[:200]}") from error
    waiting: list[Any] = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise InputError(f"{name} holds a whole number of more than 64 bits; correct it")
        elif isinstance(value, str) and "\0" in value:
            raise InputError(f"{name} holds a zero byte in a text; take it out")
    return values


def of_toml(values: dict[str, Any], kind: type[T], name: str) -> T:
    """A table of `toml_values` as a value of type `kind`, which must know all its keys.

    Raises InputError naming the first place at fault.
    """
    found = as_type(values, kind, name, "correct it")
    for place, key, known in _unknown_keys(values, found, ""):
        raise InputError(
            f"{name}: {printable(f'{place}{key}')[:80]} is no key that vqaloop knows"
            f"{did_you_mean(key, known)}; known are {', '.join(sorted(known))}"
        )
    return found


def json_value(text: str, fault: str, remedy: str) -> Any:
    """The value of a JSON text; raises InputError, beginning with `fault`, where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{fault}: {error}; {remedy}") from error


def as_type(document: Any, kind: type[T], name: str, remedy: str) -> T:
    """`document` as a value of type `kind`; raises InputError naming the first place at fault."""
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{name}: {_fault(document, str(error))}; {remedy}") from error


def _fault(document: Any, message: str) -> str:
    """msgspec's message with the place first, and with what stands there, as far as it says."""
    what, path = message, ""
    if " - at " in message:
        what, _, path = message.rpartition(" - at ")
    place, found = _looked_up(document, path, what)
    if missing := re.fullmatch(r"Object missing required field `(\w+)`", what):
        return f"{place}.{missing[1]} is missing".lstrip(".")
    expected = re.fullmatch(r"Expected `([\w| ]+)`(.*?)(, got .*)?", what)
    if not expected:
        return printable(f"{place}: {what}")[:200]
    names = [name for name in expected[1].split(" | ") if name != "null"]
    if "float" in names and "int" in names:
        names.remove("int")
    words = " or ".join(_TYPES[name][1] for name in names) + expected[2]
    if choices := re.search(r"regex '\\+A\(([\w|]+)\)\\+Z'$", words):
        words = f"one of {choices[1].replace('|', ', ')}"
    return f"{place} should be {words}{found}"


def _looked_up(document: Any, path: str, what: str) -> tuple[str, str]:
    """The place at the end of msgspec's `path`, and in words what the document has there."""
    place, value = "", document
    got = re.search(r"got `(\w+)`$", what)
    for name, index in re.findall(r"\.(\w+)|\[(\d+|\.\.\.)\]", path):
        if index == "...":
            # the key of a mapping is left out: it is the first whose value has the refused type
            kind = _TYPES[got[1]][0] if got and path.endswith("[...]`") else ()
            keys = [key for key in value if type(value[key]) is kind]
            if not keys:
                return printable(f"{place}[...]".lstrip("."))[:80], ""
            name, index = keys[0], ""
        place += f"[{index}]" if index else f".{name}"
        value = value[int(index)] if index else value[name]
    if path.startswith("`key`"):
        return printable(f"a key of {place.lstrip('.')}")[:80], ""
    shown = "missing" if value is None else printable(reprlib.repr(value)[:60])
    return printable(place.lstrip("."))[:80], f" and is {shown}"


def _unknown_keys(
    given: Any, found: Any, place: str
) -> Iterator[tuple[str, str, Collection[str]]]:
    """Keys of a file that no field took: place, name, and the fields there."""
    if isinstance(given, dict):
        known = found
        if not isinstance(found, dict):
            known = {name: getattr(found, name) for name in get_type_hints(type(found))}
        for key, value in given.items():
            if key in known:
                yield from _unknown_keys(value, known[key], f"{place}{key}.")
            else:
                yield place, key, known
    elif isinstance(given, list):
        for index, pair in enumerate(zip(given, found, strict=True)):
            yield from _unknown_keys(*pair, f"{place.removesuffix('.')}[{index}].")


def read_start(path: Path, most: int) -> bytes:
    """Up to `most` bytes of a regular file.

    Raises OSError; also for a pipe or a device, where a reader might wait for ever.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)

    with open(path, "rb", opener=opener) as file:
        check_regular(file.fileno())
        return file.read(most)


def check_depth(value: Any) -> None:
    """Raise ValueError where lists and objects nest deeper than DEEPEST."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST + 1:
            raise ValueError(f"nested deeper than {DEEPEST} levels")
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
            if isinstance(inner, dict | list)
        ]


def _parsed(path: Path, give: str, remedy: str, largest: int) -> Any:
    try:
        text = read_start(path, largest + 1)
        if len(text) <= largest:
            document = json.loads(text)
            check_depth(document)
            return document
    except OSError as error:
        raise InputError(
            f"could not read {quoted(path)}: {error.strerror or error}; {give}"
        ) from error
    except (ValueError, RecursionError) as error:
        why = printable(str(error)[:100])
        raise InputError(f"{quoted(path)} is not JSON ({why}); {remedy}") from error
    raise InputError(f"{quoted(path)} is larger than any document of vqaloop; {give}")


def document_text(document: Any) -> str:
    """A document as the text of a JSON file, in ASCII; numbers that are not finite become null."""
    return json.dumps(finite(document), indent=1, allow_nan=False) + "\n"
