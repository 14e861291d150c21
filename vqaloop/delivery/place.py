"""The folder of a delivery: written beside its place, and put there when it is whole."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from vqaloop.core.documents import read_document
from vqaloop.core.files import unfinished
from vqaloop.core.folders import check_writable
from vqaloop.core.text import quoted
from vqaloop.errors import InputError

SCHEMA = "vqaloop.delivery/1"
RECORD = "delivery.json"
"""The document that marks a folder as a delivery and lists its files."""
_REMEDY = "choose another folder with -o"


def checked_place(out: Path) -> Path:
    """Where to write, links resolved; InputError unless unused or an earlier delivery."""
    target = out.resolve()
    if not target.parent.is_dir():
        raise InputError(f"the folder {quoted(target.parent)} does not exist; create it first")
    check_writable(target.parent, _REMEDY)
    if not target.exists():
        return target
    if not target.is_dir():
        raise InputError(f"{quoted(out)} is a file; {_REMEDY}")
    try:
        there = sorted(p for p in target.rglob("*") if p.is_symlink() or not p.is_dir())
    except OSError as error:
        raise InputError(f"cannot read {quoted(out)}: {error.strerror or error}") from error
    listed = _listed(target)
    # the folder will be replaced: nothing but a delivery's own files may be lost
    strange = [path for path in there if os.fspath(path.relative_to(target)) not in listed]
    if strange:
        raise InputError(
            f"{quoted(out)} holds {quoted(strange[0].relative_to(target))}, which is not of an "
            f"earlier delivery; {_REMEDY}"
        )
    return target


class _Listed(Struct):
    path: str


class _Record(Struct):
    files: list[_Listed]


def _listed(folder: Path) -> set[str]:
    """The files of an earlier delivery in this folder; none if there is no delivery."""
    try:
        record = read_document(folder / RECORD, _Record, schema=SCHEMA, give="", remedy="")
    except InputError:
        return set()
    return {RECORD, *(file.path for file in record.files)}


@contextlib.contextmanager
def placed(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that replaces it on success, and is removed on failure."""
    part = unfinished(target.parent)
    try:
        _put_back(target)
        part.mkdir()
        yield part
        # checked again, as packaging took a while
        _replace(part, checked_place(target))
    except OSError as error:
        raise InputError(
            f"could not write {quoted(target)}: {error.strerror or error}; make room or {_REMEDY}"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _set_aside(target: Path) -> Path:
    """Where an earlier delivery is kept while another replaces it."""
    return target.with_name(f".{target.name}.before")


def _put_back(target: Path) -> None:
    """Undo or complete a replacement that was interrupted."""
    old = _set_aside(target)
    if old.is_dir() and not target.exists():
        old.rename(target)
    else:
        shutil.rmtree(old, ignore_errors=True)


def _replace(part: Path, target: Path) -> None:
    if not target.exists():
        part.rename(target)
        return
    # a folder that is not empty cannot be renamed over
    old = _set_aside(target)
    target.rename(old)
    try:
        part.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
