"""Atomic writes, copies and locks of files: a file is there whole or not at all."""

import contextlib
import errno
import functools
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vqaloop.core import guardian
from vqaloop.core.scopes import check_cancelled
from vqaloop.core.text import quoted
from vqaloop.errors import InputError

PART = ".part"
"""End of the name of a file that is still being written."""
LOOK_S = 0.2
"""Seconds between checks, while another has a lock, whether the work was cancelled."""


def place_file(source: Path, destination: Path) -> Path:
    """Copy a cached file to where the user wants it, all or nothing; returns `destination`.

    A copy, never a hard link, so that editing the delivered file cannot damage the cache; file
    systems that share blocks (btrfs, XFS) do so. Raises InputError when it cannot be written.
    """
    try:
        with renamed_to(destination) as part:
            _copy(source, part)
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"could not write {quoted(destination)}: {why}") from error
    return destination


def _copy(source: Path, target: Path) -> None:
    with open(source, "rb") as reader, open(target, "wb") as writer:
        left = os.fstat(reader.fileno()).st_size
        try:
            # in the kernel; file systems with shared extents copy no data at all
            while left > 0:
                done = os.copy_file_range(reader.fileno(), writer.fileno(), left)
                left = left - done if done else 0
        except (AttributeError, OSError):
            # not on this system or not between these two
            reader.seek(0)
            writer.seek(0)
        # whatever is left, also of a file that has grown meanwhile
        shutil.copyfileobj(reader, writer, 1 << 20)


def move_file(path: Path, target: Path) -> None:
    """Rename, also to another file system. Raises OSError, and `path` is then still there."""
    try:
        os.replace(path, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # another file system: a copy that takes its place whole
        with renamed_to(target) as part:
            _copy(path, part)
        path.unlink()


def write_whole(path: Path, data: bytes | str) -> None:
    """Write a file of ours, all or nothing; letters that UTF-8 lacks as escapes.

    Raises InputError when it cannot be written; what was there then stays.
    """
    content = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
    try:
        with renamed_to(path) as part:
            part.write_bytes(content)
    except OSError as error:
        raise InputError(f"could not write {quoted(path)}: {error.strerror or error}") from error


def check_regular(file: Path | int) -> None:
    """Raises OSError where a path, or an open file, is none, or is a pipe or a device."""
    mode = os.stat(file).st_mode
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, "it is a folder, and a file is wanted")
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, and a file is wanted")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """While inside, no other thread or process is inside for the same path.

    The lock is the kernel's and ends with its holder. Raises CalledOff where this thread's work is
    cancelled meanwhile, and OSError where there can be no lock.
    """
    import filelock

    lock = filelock.FileLock(path)
    while True:
        check_cancelled()
        with contextlib.suppress(filelock.Timeout):
            lock.acquire(timeout=LOOK_S)
            break
    try:
        yield
    finally:
        lock.release()


def unfinished(folder: Path, suffix: str = PART) -> Path:
    """A new name in `folder` for what is not finished; it goes even if this process is killed."""
    guardian.watch(folder)
    return folder / f".{guardian.mark()}-{secrets.token_hex(8)}{suffix}"


def scratch(folder: Path | None = None) -> "tempfile.TemporaryDirectory[str]":
    """A new folder for what is needed a while, in `folder` or where temporary files lie."""
    place = Path(tempfile.gettempdir()) if folder is None else folder
    guardian.watch(place)
    hidden = "." if folder else ""
    return tempfile.TemporaryDirectory(dir=folder, prefix=f"{hidden}vqaloop-{guardian.mark()}-")


@contextlib.contextmanager
def renamed_to(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; takes its place if all went well, else goes away."""
    part = unfinished(path.parent)
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


@functools.lru_cache(maxsize=4096)
def _file_sha256(path: str, as_of: tuple[int, ...]) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(1 << 22):
            check_cancelled()
            digest.update(chunk)
    return digest.hexdigest()


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, in hex; remembered while it is untouched."""
    return _file_sha256(os.fspath(path), as_of(path))


def as_of(path: str | os.PathLike[str]) -> tuple[int, ...]:
    """Device, inode, size and times of a file, which change with its content even where a copy
    keeps size and times.

    Raises OSError.
    """
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
