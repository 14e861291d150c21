"""What an audited ladder consists of: rungs with their pieces on disk, and what is declared."""

import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from urllib.parse import unquote, urlsplit

from vqaloop.core.text import quoted
from vqaloop.errors import InputError

MOST_BYTES = 16 << 20
"""A manifest larger than this is refused."""
MOST_PIECES = 200_000
"""Segments of a rendition."""


@dataclass(frozen=True)
class Piece:
    """A segment, or a whole file."""

    path: Path
    offset: int = 0
    size_bytes: int | None = None
    """None: to the end of the file."""
    seconds: Fraction | None = None
    """As the manifest gives it."""

    def size(self) -> int:
        """Bytes; raises InputError where the file is not there or is shorter."""
        try:
            there = self.path.stat().st_size
        except OSError as error:
            raise InputError(
                f"the segment {quoted(self.path)} cannot be read: {error.strerror or error}"
            ) from error
        if self.offset + (self.size_bytes or 0) > there:
            raise InputError(
                f"the manifest lists bytes behind the end of {quoted(self.path)}, which has "
                f"{there}; package the title again"
            )
        return there - self.offset if self.size_bytes is None else self.size_bytes


@dataclass(frozen=True)
class Declared:
    """What a manifest says of a rung; None where it does not."""

    kind: str
    """hls or dash."""
    bandwidth: int | None = None
    average_bandwidth: int | None = None
    codecs: str | None = None
    size: tuple[int, int] | None = None
    frame_rate: Fraction | None = None


@dataclass(frozen=True)
class Listed:
    """A rung as it lies on disk."""

    name: str
    pieces: tuple[Piece, ...]
    init: Piece | None = None
    declared: Declared | None = None
    audio: tuple[tuple[Piece, ...], ...] = ()
    """Segments of the audio renditions of which one is played with it, counted in BANDWIDTH."""


def inside(folder: Path, url: str, manifest: Path) -> Path:
    """The file that a manifest means; InputError for what is not a path below its folder."""
    parts = urlsplit(url)
    if parts.scheme or parts.netloc:
        raise InputError(
            f"{quoted(manifest)} lists {quoted(url[:200])}, which is not on this disk; download "
            "the title and audit the copy"
        )
    path = Path(os.path.normpath(folder / unquote(parts.path)))
    if "\0" in url or not path.is_relative_to(os.path.normpath(manifest.parent)):
        raise InputError(
            f"{quoted(manifest)} lists {quoted(url[:200])}, which is outside of its folder; copy "
            "the title into one folder with its manifest"
        )
    return path


def read_text(path: Path) -> str:
    """A manifest's text; raises InputError where it cannot be read or is too large."""
    try:
        if not path.is_file():
            raise InputError(f"{quoted(path)} is not there, or no file; the manifest lists it")
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{quoted(path)} cannot be read: {error.strerror or error}") from error
    if len(data) > MOST_BYTES:
        raise InputError(f"{quoted(path)} is larger than {MOST_BYTES} bytes; that is no manifest")
    return data.decode("utf-8-sig", "replace")
