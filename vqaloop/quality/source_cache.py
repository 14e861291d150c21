"""What a metric keeps of the sources used last, each computed once."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from vqaloop.records import Source

LEAST_KEPT = 2
"""Entries kept however large: of an excerpt and its title."""

Kept = TypeVar("Kept")


def source_key(source: Source) -> str:
    """All of a source that decides its frames, what they stand for, and where it is sampled."""
    read = source.sha256, source.prep, source.input_options
    return repr((*read, source.windows, source.colour))


class SourceCache(Generic[Kept]):
    """What is kept of sources; those used longest ago go first. Safe to call from threads."""

    def __init__(self, size: Callable[[Kept], int], most: Callable[[], int]) -> None:
        """`size` gives the bytes of an entry, `most` those of all that are kept."""
        self.kept: OrderedDict[str, Kept] = OrderedDict()
        self.locks: dict[str, threading.Lock] = {}
        self._size, self._most = size, most
        self._lock = threading.Lock()

    def get(self, key: str, compute: Callable[[], Kept]) -> Kept:
        """The entry of a source; others that ask for it wait while it is computed."""
        with self._lock:
            one_at_a_time = self.locks.setdefault(key, threading.Lock())
        with one_at_a_time:
            with self._lock:
                if key in self.kept:
                    self.kept.move_to_end(key)
                    return self.kept[key]
            # without the common lock: other sources are computed meanwhile
            made = compute()
            with self._lock:
                self.kept[key] = made
                self._evict()
            return made

    def _evict(self) -> None:
        held = sum(map(self._size, self.kept.values()))
        while held > self._most() and len(self.kept) > LEAST_KEPT:
            key, gone = self.kept.popitem(last=False)
            held -= self._size(gone)
            self.locks.pop(key, None)
