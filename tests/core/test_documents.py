"""Reading back what others may have edited, or put something else in the place of."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import Struct

from vqaloop.core.csv_tables import rows
from vqaloop.core.documents import read_document, read_toml
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
