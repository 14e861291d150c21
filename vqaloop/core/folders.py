"""Where the cache and study files lie, and whether a folder can be written to."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from vqaloop.core.text import quoted
from vqaloop.errors import InputError

STUDY_FILE = "study.db"
"""SQLite file in the output folder, where the studies of a command are kept by default."""


def cache_folder() -> Path:
    """`$VQALOOP_CACHE`, else `vqaloop` in the platform's folder for caches."""
    import platformdirs

    return Path(os.environ.get("VQALOOP_CACHE") or platformdirs.user_cache_dir("vqaloop"))


def check_writable(folder: Path, remedy: str) -> None:
    """Raises InputError unless a file can be made in `folder`; nothing is left there."""
    # only an attempt shows it: access() ignores /proc, quotas and what root may do
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(
            f"cannot write in {quoted(folder)}: {error.strerror or error}; {remedy}"
        ) from error


def is_study_file(path: Path) -> bool:
    """Whether this is the default storage in an output folder, or a file that goes with it."""
    return path.name.removeprefix(".").startswith(STUDY_FILE)
