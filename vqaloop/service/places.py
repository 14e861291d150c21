"""What a server may read and write: names that come from outside, as places within its folders.

A name never leads out of its folder: neither by `..`, nor as an absolute one, nor through a link.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vqaloop.core.text import quoted
from vqaloop.errors import InputError
from vqaloop.service.titles import check_apart
from vqaloop.service.watch import SUFFIXES

UPLOADS = "uploads"
"""Name of the folder of uploads among those of media."""
LONGEST_PATH = 1024
LONGEST_NAME = 200
MOST_LISTED = 1000
REFUSED = frozenset('/\\:*?"<>|%\ufffd')
"""Letters of no upload: some file systems lack them, some programs read more into them, and U+FFFD
is what a name that is no UTF-8 becomes on its way here."""


class NotThere(InputError):
    """A name that leads to nothing that may be seen."""


@dataclass(frozen=True)
class Places:
    """The folders of a server."""

    folder: Path
    """What it writes lies in here, and nowhere else."""
    media: Mapping[str, Path]
    """Folders with videos that may be read, by their names."""

    @property
    def uploads(self) -> Path:
        return self.folder / UPLOADS

    def job(self, id: str) -> Path:
        """The folder of a job, whose id is ours."""
        return self.folder / "jobs" / id

    def video(self, name: str) -> Path:
        """The file that `NAME/path` stands for, resolved. Raises NotThere."""
        label, _, path = name.partition("/")
        top = self.uploads if label == UPLOADS else self.media.get(label)
        if top is None or Path(name).suffix.lower() not in SUFFIXES:
            known = ", ".join([UPLOADS, *self.media])
            raise NotThere(
                f"{quoted(name)} is no video of this server's; write FOLDER/PATH with one of the "
                f"folders {known}, and the suffix of a video"
            )
        return inside(top, path)

    def upload(self, name: str) -> Path:
        """Where an upload of this name is kept. Raises InputError for one that is refused."""
        short = 0 < len(name.encode("utf-8", "replace")) <= LONGEST_NAME
        if not short or not name.isprintable() or name[0] in ".-" or set(name) & REFUSED:
            raise InputError(
                f"{quoted(name)} is no name of an upload: printable, without slashes and any of "
                f'\\ : * ? " < > | %, no dot or dash in front, up to {LONGEST_NAME} bytes'
            )
        if Path(name).suffix.lower() not in SUFFIXES:
            raise InputError(f"{quoted(name)} is no video by its name; one ends in .mp4, .mkv ...")
        return self.uploads / name

    def videos(self) -> list[str]:
        """Names of videos that may be submitted, at most MOST_LISTED."""
        found: list[str] = []
        for label, top in {UPLOADS: self.uploads, **self.media}.items():
            for place, folders, files in os.walk(top):
                folders[:] = sorted(f for f in folders if not f.startswith("."))
                for file in sorted(files):
                    path = Path(place, file)
                    if file.startswith(".") or path.suffix.lower() not in SUFFIXES:
                        continue
                    if len(found) == MOST_LISTED:
                        return found
                    name = f"{label}/{path.relative_to(top)}"
                    if name.isprintable():
                        found.append(name)
        return found


def inside(top: Path, path: str) -> Path:
    """The regular file at a relative path within a folder, resolved. Raises NotThere."""
    refusal = NotThere(f"there is no {quoted(path[:LONGEST_PATH])} that may be seen")
    parts = path.split("/")
    if len(path) > LONGEST_PATH or not path.isprintable() or "\\" in path:
        raise refusal
    # hidden files are the study, locks and what is not finished
    if any(not part or part.startswith(".") for part in parts):
        raise refusal
    try:
        root = top.resolve(strict=True)
        found = root.joinpath(*parts).resolve(strict=True)
        regular = stat.S_ISREG(found.stat().st_mode)
    except (OSError, ValueError, RuntimeError):
        raise refusal from None
    if not regular or root not in found.parents:
        raise refusal
    return found


def make_places(folder: Path, media: list[Path]) -> Places:
    """The folders of a server, made where they are its own. Raises InputError."""
    named: dict[str, Path] = {}
    for path in media:
        label = path.resolve().name
        if not path.is_dir():
            raise InputError(f"--media {quoted(path)} is no folder")
        if not label or not label.isprintable() or label == UPLOADS or label in named:
            raise InputError(
                f"--media {quoted(path)}: clients call it by its name, {label!r}, which is taken "
                "or cannot be typed; name another folder"
            )
        # neither reads what the other writes
        check_apart(path, folder)
        check_apart(folder, path)
        named[label] = path.resolve()
    places = Places(folder.resolve(), named)
    try:
        for place in (places.uploads, places.folder / "jobs"):
            place.mkdir(parents=True, exist_ok=True, mode=0o750)
    except OSError as error:
        why = error.strerror or error
        raise InputError(
            f"cannot write in {quoted(folder)}: {why}; name another folder"
        ) from error
    return places
