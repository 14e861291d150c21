"""Reading back what others may have edited, or put something else in the place of."""

import json
import math
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
from msgspec import Meta, Struct

from vqaloop.core.csv_tables import rows
from vqaloop.core.documents import (
    Finite,
    Number,
    Whole,
    document_text,
    one_of,
    read_document,
    read_toml,
)
from vqaloop.core.rounding import finite
from vqaloop.errors import InputError
from vqaloop.models.weights import load_student
from vqaloop.training.shards import read_about


class Empty(Struct):
    """Nothing is needed of a file."""


READERS: list[Callable[[Path], object]] = [
    lambda path: read_toml(path, Empty, "a recipe"),
    lambda path: read_document(path, Empty, schema="a/1", give="another", remedy=""),
    lambda path: list(rows(path)),
    read_about,
    load_student,
]


@pytest.mark.parametrize("read", READERS, ids=["TOML", "JSON", "table", "shard", "weights"])
def test_a_pipe_or_a_device_is_refused_and_not_waited_for(
    read: Callable[[Path], object], tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(InputError, match="it is a pipe or a device, and a file is wanted"):
            read(path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        with pytest.raises(InputError, match="No such device|it is a pipe or a device"):
            read(tmp_path / "s")
    with pytest.raises(InputError, match="Is a directory|it is a folder"):
        read(tmp_path)
    with pytest.raises(InputError, match="No such file"):
        read(tmp_path / "none")


class Part(Struct):
    count: Whole
    kind: Annotated[str, one_of("new", "old")] = "new"
    rates: dict[str, Number | None] = {}


class Document(Struct):
    parts: Annotated[list[Part], Meta(min_length=1)]
    scale: Finite | None = None


GOOD: dict[str, Any] = {"count": 1}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "parts is missing"),
    ({"parts": None}, "parts should be a list and is missing"),
    ({"parts": []}, "parts should be a list of length >= 1 and is []"),
    ({"parts": [3]}, "parts[0] should be an object and is 3"),
    ({"parts": [GOOD, {}]}, "parts[1].count is missing"),
    ({"parts": [{"count": True}]}, "parts[0].count should be a whole number and is True"),
    ({"parts": [{"count": 1.0}]}, "parts[0].count should be a whole number and is 1.0"),
    ({"parts": [{"count": 10**400}]}, "parts[0].count should be a whole number <= 9"),
    ({"parts": [GOOD], "scale": math.nan}, "scale should be a number > -1"),
    ({"parts": [GOOD], "scale": math.inf}, "scale should be a number < 1"),
    ({"parts": [GOOD], "scale": "1"}, "scale should be a number and is '1'"),
    ({"parts": [GOOD | {"kind": "\x1b[2J"}]}, "kind should be one of new, old and is '\\x1b[2J'"),
    (
        {"parts": [GOOD | {"rates": {"a": 1, "\x1b": "b"}}]},
        "rates.\\x1b should be a number",
    ),
    ({"parts": [GOOD | {"rates": {"a": math.inf}}]}, "parts[0].rates[...] should be a number < 1"),
]


@pytest.mark.parametrize(("document", "words"), REFUSED)
def test_a_wrong_document_is_refused_with_the_place(
    tmp_path: Path, document: dict[str, Any], words: str
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"schema": "a/1", **document}))
    with pytest.raises(InputError) as caught:
        read_document(path, Document, schema="a/1", give="", remedy="make it anew")
    refusal = str(caught.value)
    assert (
        f"{str(path)!r}: " in refusal and words in refusal and refusal.endswith("; make it anew")
    )
    assert refusal.isprintable()


def test_integers_of_a_document_remain_integers_and_other_keys_are_let_pass(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.json"
    rates = {"a": 1, "b": 1.5, "c": None}
    path.write_text(json.dumps({"schema": "a/1", "parts": [GOOD | {"rates": rates}], "more": 1}))
    found = read_document(path, Document, schema="a/1", give="", remedy="")
    assert document_text(found.parts[0].rates) == document_text(rates)


def test_keys_of_a_toml_that_nothing_reads_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('scale = 1\n[[parts]]\ncount = 1\n[[parts]]\ncount = 2\nkimd = "old"')
    with pytest.raises(InputError) as caught:
        read_toml(path, Document, "a.toml")
    assert str(caught.value) == (
        "a.toml: parts[1].kimd is no key that vqaloop knows (did you mean kind?); known are "
        "count, kind, rates"
    )
    path.write_text(path.read_text().replace("kimd", '"\\u001b"'))
    with pytest.raises(InputError, match=r"parts\[1\]\.\\x1b is no key"):
        read_toml(path, Document, "a.toml")


def test_a_document_has_no_number_that_json_lacks() -> None:
    document = {"a": (math.nan, 1.23456, 2), "b": {"c": -math.inf}}
    assert json.loads(document_text(document)) == {"a": [None, 1.23456, 2], "b": {"c": None}}
    assert finite(document, 2) == {"a": [None, 1.23, 2], "b": {"c": None}}
