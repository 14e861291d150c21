"""The types of a catalogue: its entries, one a title and codec, and their documents."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vqaloop.core.version import __version__
from vqaloop.ladder.store import read_ladder
from vqaloop.records import Ladder

SCHEMA = "vqaloop.catalogue/1"


@dataclass(frozen=True)
class Entry:
    """A ladder of the catalogue, or why there is none."""

    name: str
    """The title's, unique in the catalogue."""
    input: str
    codec: str
    folder: Path
    status: str
    """done, failed or untrusted."""
    reason: str | None = None
    """Why it failed, or is not to be trusted."""
    kept: bool = False
    """True when it was there already, made by the very same request."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Of one that was made: source, encoder, metric, rungs, warnings and cost, in short."""

    def read(self) -> Ladder:
        """The ladder itself. Raises InputError where there is none."""
        return read_ladder(self.folder)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "input": self.input,
            "codec": self.codec,
            "folder": self.folder.name,
            "status": self.status,
            "reason": self.reason,
            "kept": self.kept,
            **self.about,
        }


@dataclass(frozen=True)
class Catalogue:
    """What became of all titles, in the order in which they were given."""

    folder: Path
    entries: tuple[Entry, ...]
    wall_s: float

    def of_status(self, status: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.status == status]

    @property
    def exit_code(self) -> int:
        """0, 1 where a title has no ladder, else 3 where a ladder is not to be trusted."""
        return 1 if self.of_status("failed") else 3 if self.of_status("untrusted") else 0

    @property
    def summary(self) -> str:
        """In one line, how many ladders there are."""
        count = len(self.entries)
        parts = [f"{count} ladder{'' if count == 1 else 's'}"]
        parts += [
            f"{len(found)} {words}"
            for status, words in (("failed", "failed"), ("untrusted", "not to be trusted"))
            if (found := self.of_status(status))
        ]
        return ", ".join(parts)

    def cost(self) -> dict[str, float]:
        """What this call spent on all titles together."""
        spent: dict[str, float] = {}
        for entry in self.entries:
            for key, value in entry.about.get("cost", {}).items():
                spent[key] = spent.get(key, 0) + (value or 0)
        return {**{k: round(v, 3) for k, v in spent.items()}, "wall_s": round(self.wall_s, 3)}

    def to_json(self) -> dict[str, Any]:
        """The document `vqaloop.catalogue/1`."""
        return {
            "schema": SCHEMA,
            "vqaloop": __version__,
            "titles": [entry.to_json() for entry in self.entries],
            "cost": self.cost(),
        }
