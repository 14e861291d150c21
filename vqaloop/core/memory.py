"""How much memory this machine has, and how much a frame takes."""

import contextlib
import os
from pathlib import Path

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where a container's limit stands, by the version of control groups."""


def memory_bytes() -> int:
    """Memory of this machine, or of the container that this process runs in."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in LIMITS:
        # not there, or "max"
        with contextlib.suppress(OSError, ValueError):
            found = min(found, int(Path(limit).read_text()))
    return found


def frame_bytes(width: int, height: int, bit_depth: int) -> int:
    """Bytes of a frame in 4:2:0."""
    return width * height * 3 // 2 * (1 if bit_depth == 8 else 2)
