"""Content-addressed file transfer to Ray workers, through Ray's object store.

A parcel names a file by its content. A worker looks at the sender's path first, then in its own
machine's folder of parcels; only a file in neither place is sent, once a machine. Memory: the
sender and each receiver hold one chunk (CHUNK_BYTES) at a time; the object store holds what was
sent, at most KEPT_BYTES besides the file that is needed now, and moves to disk what is too much
for it.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vqaloop.core import scopes
from vqaloop.core.files import PART, file_sha256, locked, renamed_to
from vqaloop.core.folders import cache_folder
from vqaloop.core.text import quoted
from vqaloop.errors import InputError, ToolError
from vqaloop.execution.cache import GIB, STALE_PART_S

CHUNK_BYTES = 32 << 20
"""Bytes of a file that travel at once."""
KEPT_BYTES = 4 * GIB
"""Bytes of files that stay in the object store for the next worker."""
FOLDER_BYTES = 20 * GIB
"""Bytes in a machine's folder of parcels, beyond which the least recently used go."""
LOCK = ".lock"


@dataclass(frozen=True)
class Parcel:
    """A file by its content."""

    path: str
    """Where its sender has it."""
    size: int
    sha256: str
    chunks: tuple[Any, ...] | None = None
    """Ray's references to its parts, in order; None: it was not sent."""

    @property
    def name(self) -> str:
        """What it is called in a folder of parcels: content and suffix, nothing of the path."""
        suffix = Path(self.path).suffix
        return self.sha256 + (suffix if re.fullmatch(r"\.[A-Za-z0-9]{1,16}", suffix) else "")


class Missing(Exception):
    """This machine lacks a file, and it was not sent along."""

    def __init__(self, sha256: str) -> None:
        super().__init__(sha256)
        self.sha256 = sha256


class Sender:
    """Puts files into the object store by `put`, each once, as long as they stay in use."""

    def __init__(self, put: Callable[[bytes], Any]) -> None:
        self._put = put
        self._sent: OrderedDict[str, Parcel] = OrderedDict()
        self._lock = threading.Lock()
        self._turn: dict[str, threading.Lock] = {}

    def parcel(self, path: Path) -> Parcel:
        """The file, with its chunks if it was sent before. Raises InputError."""
        try:
            sha256, size = file_sha256(path), path.stat().st_size
        except OSError as error:
            raise InputError(f"cannot read {quoted(path)}: {error.strerror or error}") from error
        with self._lock:
            if sha256 in self._sent:
                self._sent.move_to_end(sha256)
                return replace(self._sent[sha256], path=os.fspath(path.absolute()))
        return Parcel(os.fspath(path.absolute()), size, sha256)

    def sent(self, parcel: Parcel) -> Parcel:
        """With its chunks, which are put now unless they were.

        Raises InputError, and ToolError for a file that is no longer what the parcel says.
        """
        with self._lock:
            turn = self._turn.setdefault(parcel.sha256, threading.Lock())
        # one thread sends a file, the others wait for it; different files go at the same time
        with turn:
            with self._lock:
                if parcel.sha256 in self._sent:
                    return replace(self._sent[parcel.sha256], path=parcel.path)
            try:
                hashed, chunks = hashlib.sha256(), list[Any]()
                for chunk in _read(parcel.path):
                    hashed.update(chunk)
                    chunks.append(self._put(chunk))
            except OSError as error:
                why = error.strerror or error
                raise InputError(f"cannot read {quoted(parcel.path)}: {why}") from error
            if hashed.hexdigest() != parcel.sha256:
                # not kept, or it would be refused wherever it is sent from now on
                raise _changed(parcel)
            made = replace(parcel, chunks=tuple(chunks))
            with self._lock:
                self._sent[parcel.sha256] = made
                while len(self._sent) > 1 and _total(self._sent.values()) > KEPT_BYTES:
                    self._turn.pop(self._sent.popitem(last=False)[0], None)
        return made


def _changed(parcel: Parcel) -> ToolError:
    return ToolError(
        f"{quoted(parcel.path)} changed while it was sent; leave it alone, and try again"
    )


def _total(parcels: Iterable[Parcel]) -> int:
    return sum(parcel.size for parcel in parcels)


def _read(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            scopes.check_cancelled()
            yield chunk


@contextlib.contextmanager
def received(
    parcel: Parcel, get: Callable[[Any], bytes], folder: Path | None = None, *, look: bool = True
) -> Iterator[Path]:
    """The file on this machine, which no one removes while inside.

    `get` gives a chunk by its reference; `look` at the sender's path first. Several processes may
    ask at once: one fetches, the others wait. Raises Missing, and ToolError where it did not come
    whole or cannot be kept.
    """
    there = Path(parcel.path)
    if look and _is(there, parcel):
        yield there
        return
    folder = folder or cache_folder() / "sources"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = _held(folder, parcel, get)
    except OSError as error:
        raise ToolError(
            f"no place for {quoted(parcel.path)} in {quoted(folder)}: {error.strerror or error}; "
            "free some, or set VQALOOP_CACHE to another folder on that machine"
        ) from error
    try:
        yield folder / parcel.name
    finally:
        os.close(held)


def _held(folder: Path, parcel: Parcel, get: Callable[[Any], bytes]) -> int:
    """A descriptor with a shared lock of the file: the kernel lets go of it however we end."""
    target = folder / parcel.name
    with locked(folder / (parcel.name + LOCK)):
        if not _is(target, parcel):
            if parcel.chunks is None:
                raise Missing(parcel.sha256)
            _fetch(parcel, target, get)
            _trim(folder, target)
        held = os.open(target, os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_SH)
        # when it was last used; its own time stays, by which its hash is remembered
        os.utime(target, ns=(time.time_ns(), os.fstat(held).st_mtime_ns))
    return held


def _is(path: Path, parcel: Parcel) -> bool:
    try:
        return path.stat().st_size == parcel.size and file_sha256(path) == parcel.sha256
    except OSError:
        return False


def _fetch(parcel: Parcel, target: Path, get: Callable[[Any], bytes]) -> None:
    hashed = hashlib.sha256()
    with renamed_to(target) as part, open(part, "xb") as file:
        for chunk in parcel.chunks or ():
            scopes.check_cancelled()
            data = get(chunk)
            hashed.update(data)
            file.write(data)
        file.flush()
        if hashed.hexdigest() != parcel.sha256:
            raise _changed(parcel)


def _trim(folder: Path, but: Path) -> None:
    """Remove the least recently used beyond FOLDER_BYTES, and what a crash has left."""
    import filelock

    found = []
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):
            status = entry.stat(follow_symlinks=False)
            if entry.name.endswith(PART):
                if time.time() - status.st_mtime > STALE_PART_S:
                    os.unlink(entry)
            elif not entry.name.endswith(LOCK):
                found.append((status.st_atime, status.st_size, Path(entry)))
    left = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if left <= FOLDER_BYTES:
            return
        if path == but:
            continue
        lock = path.with_name(path.name + LOCK)
        with (
            contextlib.suppress(filelock.Timeout, OSError),
            filelock.FileLock(lock, blocking=False),
            open(path, "rb") as file,
        ):
            # refused where a worker holds the file by a shared lock
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            lock.unlink()
            left -= size
