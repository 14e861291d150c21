"""Reading back JSON and TOML of ours, which others may have edited: checked before it is used.

A shape is a type, `[shape]` for a list, `(shape, None)` for what may be missing, a dict of what
must be there (more may be), or `{str: shape}` for any keys.
"""

import errno
import json
import math
import os
import reprlib
import stat
import tomllib
from pathlib import Path
from typing import Any

from vqaloop.core.text import printable, quoted
from vqaloop.errors import InputError

LARGEST_JSON = 1 << 23
"""Bytes beyond which a document is refused; real ones are some hundred kilobytes."""
LARGEST_TOML = 1 << 18
"""The same of TOML; real ones are some kilobytes."""
DEEPEST = 32
"""Levels of nesting; what recurses over a document stays far from Python's own limit."""
_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def every(kind: type, names: str) -> dict[str, Any]:
    """The shape of an object whose `names`, with spaces between, are all of one type."""
    return dict.fromkeys(names.split(), kind)


def read_document(
    path: Path, schema: str, shape: Any, *, give: str, remedy: str, largest: int = LARGEST_JSON
) -> Any:
    """The JSON object in a file of at most `largest` bytes, of that schema and shape.

    `give` says in an error which file is wanted, `remedy` what to do about a wrong one. Raises
    InputError naming the first place at fault.
    """
    document = _parsed(path, give, remedy, largest)
    found = document.get("schema") if isinstance(document, dict) else None
    if found != schema:
        told = found[:80] if isinstance(found, str) else reprlib.repr(found)
        raise InputError(
            f"{quoted(path)} is of schema {printable(repr(told))} and this reads "
            f"{schema}; {remedy}"
        )
    _check(document, shape, "", path, remedy)
    return document


def read_toml(path: Path, name: str) -> dict[str, Any]:
    """The TOML of a file, with no number beyond 64 bits and no zero byte in a string.

    `name` is for the message of the InputError.
    """
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


def read_start(path: Path, most: int) -> bytes:
    """Up to `most` bytes of a regular file.

    Raises OSError; also for a pipe or a device, where a reader might wait for ever.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)

    with open(path, "rb", opener=opener) as file:
        _check_regular(os.fstat(file.fileno()).st_mode)
        return file.read(most)


def check_regular(path: Path) -> None:
    """Raises OSError where there is no file, or a pipe or a device in its place."""
    _check_regular(os.stat(path).st_mode)


def _check_regular(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, "it is a folder, and a file is wanted")
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, and a file is wanted")


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


def _check(value: Any, shape: Any, where: str, path: Path, remedy: str) -> None:
    """Refuse what is not of the form `shape`, naming the first place at fault."""
    wanted = None
    if isinstance(shape, tuple):
        if value is not None:
            _check(value, shape[0], where, path, remedy)
    elif isinstance(shape, dict):
        if isinstance(value, dict):
            inner = {key: shape[str] for key in value} if str in shape else shape
            for key, part in inner.items():
                _check(value.get(key), part, f"{where}.{key}".lstrip("."), path, remedy)
        else:
            wanted = "an object"
    elif isinstance(shape, list):
        if isinstance(value, list):
            for index, item in enumerate(value):
                _check(item, shape[0], f"{where}[{index}]", path, remedy)
        else:
            wanted = "a list"
    elif not _is_a(value, shape):
        wanted = _WORDS[shape]
    if wanted:
        found = "missing" if value is None else printable(reprlib.repr(value)[:60])
        raise InputError(
            f"{quoted(path)}: {printable(where)[:80]} should be {wanted} and is {found}; {remedy}"
        )


def _is_a(value: Any, kind: type) -> bool:
    if kind not in (int, float):
        return type(value) is kind
    # bounds rather than isfinite, which fails on the largest integers
    return type(value) in (int, kind) and bool(-1e15 < value < 1e15)


def finite(value: Any) -> Any:
    """A document without the numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
