"""Content-addressed cache of encodes and scores: files and small JSON values.

The key of an entry is a dict of all that decides its content; its name is the SHA-256 of the
key's canonical JSON. An entry is `<name>.json` (value and checksum) and, for a file, the data
beside it, named by key and content, so that two writers never mix halves. Everything is written
under another name and renamed. What fails its checksum is dropped and counts as a miss.

A folder that fails (full, read-only) is warned of once, and the work goes on without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vqaloop.core.files import locked, move_file, renamed_to
from vqaloop.core.folders import cache_folder
from vqaloop.execution.cache_keys import digest, sealed, unsealed

GIB = 1 << 30

STALE_PART_S = 86_400
"""Age in seconds at which an unfinished file counts as left by a crashed writer."""

log = logging.getLogger(__name__)

_held: Counter[Path] = Counter()
_held_lock = threading.Lock()


class Cache:
    """Entries in one folder, shared by any number of threads and processes.

    Files given out by `get_file` and `put_file` are held: no eviction of this process removes
    them until `release`, or until the Cache is closed or leaves its with-block. Beyond
    `max_bytes` the entries least recently used go first.
    """

    def __init__(
        self, folder: Path | None = None, *, max_bytes: int = 20 * GIB, enabled: bool = True
    ) -> None:
        self.folder = (folder or cache_folder()).absolute() / "v1"
        self.max_bytes = max_bytes
        self.enabled = enabled
        self._mine: Counter[str] = Counter()
        self._room = 0
        self._warned = False

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get_json(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """The value stored under `key`, or None."""
        entry = self._read(digest(key))
        return entry["value"] if entry else None

    def put_json(self, key: Mapping[str, Any], value: Mapping[str, Any]) -> None:
        """Store a value: JSON types and finite numbers only (else TypeError or ValueError)."""
        if self.enabled:
            name, text = digest(key), sealed({"key": key, "value": value})
            with self._tolerant("store a score"):
                self._write(name, text)
                self._grew(len(text))

    def get_file(self, key: Mapping[str, Any]) -> tuple[Path, dict[str, Any]] | None:
        """The file stored under `key`, checked against its SHA-256, and its metadata; or None."""
        name = digest(key)
        # before it is read: an eviction between the two would take the file away
        self._hold(name)
        entry = self._read(name)
        if entry and "file" in entry:
            path = self._entry(name).with_name(entry["file"]["name"])
            if _matches(path, entry["file"]):
                return path, entry["value"]
            self._drop(name, f"{path.name} is missing or not what was stored")
        self._release(name)
        return None

    def has_file(self, key: Mapping[str, Any]) -> bool:
        """Whether a file is stored under `key`; it is checked when it is read."""
        name = digest(key)
        entry = self._read(name)
        if not entry or "file" not in entry:
            return False
        return self._entry(name).with_name(entry["file"]["name"]).is_file()

    def put_file(self, key: Mapping[str, Any], path: Path, meta: Mapping[str, Any]) -> Path:
        """Move `path` into the cache and return where it is now; `path` itself on any trouble."""
        if not self.enabled:
            return path
        name, size, sha256 = digest(key), path.stat().st_size, _sha256(path)
        self._hold(name)
        now_at = path
        with self._tolerant("store an encode"):
            stored = self._entry(name).with_name(f"{name}-{sha256[:16]}{path.suffix}")
            file = {"name": stored.name, "sha256": sha256, "size": size}
            text = sealed({"key": key, "value": meta, "file": file})
            stored.parent.mkdir(parents=True, exist_ok=True)
            move_file(path, stored)
            now_at = stored
            # the entry after its file, so that whoever reads it finds the file
            self._write(name, text)
            self._grew(size + len(text))
        return now_at

    @contextlib.contextmanager
    def lock(self, key: Mapping[str, Any]) -> Iterator[None]:
        """While inside, no other thread or process is inside for the same key.

        The lock is the kernel's and ends with its holder. Look again with `get_` once inside:
        who was there before has probably done the work. Not to be nested for one key.
        """
        name = digest(key)
        path = self._entry(name).with_suffix(".lock")
        with contextlib.ExitStack() as stack:
            if self.enabled:
                with self._tolerant("lock an entry"):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(locked(path))
                self._hold(name)
                stack.callback(self._release, name)
            yield

    def release(self, keys: Iterable[Mapping[str, Any]] | None = None) -> None:
        """Let eviction have the files of these keys, or of all this Cache gave out."""
        names = list(+self._mine) if keys is None else [digest(key) for key in keys]
        for name in names:
            while self._mine[name] > 0:
                self._release(name)

    def close(self) -> None:
        """Release all, and bring the folder under its limit."""
        self.release()
        if self.enabled:
            self.trim()

    def trim(self) -> None:
        """Evict, least recently used first, if the folder holds more than `max_bytes`."""
        with self._tolerant("look through the cache"):
            entries = _entries(self.folder)
            total = sum(size for _, size, _ in entries.values())
            if total > self.max_bytes:
                # some way below, so that a full cache is not looked through at every put
                for name, (_, size, files) in sorted(entries.items(), key=lambda e: e[1][0]):
                    if total <= self.max_bytes * 0.95:
                        break
                    if self._evict(name, files):
                        total -= size
            left = self.max_bytes - total if total <= self.max_bytes else self.max_bytes // 100
            # other processes write too: look again after a twentieth, whatever is left
            self._room = min(left, self.max_bytes // 20)

    def used_bytes(self) -> int:
        """Bytes of all entries. Raises OSError."""
        return sum(size for _, size, _ in _entries(self.folder).values())

    def _evict(self, name: str, files: Sequence[Path]) -> bool:
        import filelock

        with _held_lock:
            if _held[self._entry(name)] > 0:
                return False
        try:
            with filelock.FileLock(self._entry(name).with_suffix(".lock"), blocking=False):
                # the entry before its file: never an entry without one
                for path in sorted(files, key=lambda path: path.suffix != ".json"):
                    path.unlink(missing_ok=True)
                self._entry(name).with_suffix(".lock").unlink(missing_ok=True)
        except filelock.Timeout:
            return False
        return True

    def _entry(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}.json"

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self._entry(name)
        if not self.enabled:
            return None
        try:
            entry = unsealed(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn("read an entry", error)
            return None
        except (ValueError, KeyError, TypeError) as error:
            self._drop(name, f"not readable ({error})")
            return None
        # eviction goes by the time of last use
        with contextlib.suppress(OSError):
            os.utime(path)
        return entry

    def _write(self, name: str, text: bytes) -> None:
        path = self._entry(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with renamed_to(path) as part:
            part.write_bytes(text)

    def _drop(self, name: str, reason: str) -> None:
        log.warning("cache entry %s dropped: %s", self._entry(name), reason)
        with contextlib.suppress(OSError):
            for path in self._entry(name).parent.glob(f"{name}[.-]*"):
                if path.suffix != ".lock":
                    path.unlink(missing_ok=True)

    def _grew(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            self.trim()

    def _hold(self, name: str) -> None:
        with _held_lock:
            _held[self._entry(name)] += 1
            self._mine[name] += 1

    def _release(self, name: str) -> None:
        with _held_lock:
            if self._mine[name] > 0:
                self._mine[name] -= 1
                # counted: several caches of this process may hold the same entry
                _held[self._entry(name)] -= 1

    @contextlib.contextmanager
    def _tolerant(self, doing: str) -> Iterator[None]:
        """While inside, trouble with the folder is a warning, not an error."""
        try:
            yield
        except OSError as error:
            self._warn(doing, error)

    def _warn(self, doing: str, error: OSError) -> None:
        # once, though several threads run into it
        with _held_lock:
            first, self._warned = not self._warned, True
        if first:
            log.warning(
                "going on without the cache in %s: could not %s: %s",
                self.folder.parent,
                doing,
                error.strerror or error,
            )


def _entries(folder: Path) -> dict[str, tuple[float, int, list[Path]]]:
    """By name: time of last use, bytes, files. Removes what crashed writers left."""
    entries: dict[str, tuple[float, int, list[Path]]] = {}
    for path in folder.glob("??/*"):
        try:
            status = path.stat()
            if path.suffix == ".part":
                if time.time() - status.st_mtime > STALE_PART_S:
                    path.unlink()
                continue
        except FileNotFoundError:
            continue
        name = path.name[: hashlib.sha256().digest_size * 2]
        used, size, files = entries.get(name, (0.0, 0, []))
        used = max(used, status.st_mtime)
        entries[name] = used, size + status.st_size, [*files, path]
    return entries


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _matches(path: Path, file: Mapping[str, Any]) -> bool:
    try:
        return bool(path.stat().st_size == file["size"] and _sha256(path) == file["sha256"])
    except OSError:
        return False
