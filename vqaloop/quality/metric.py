"""What a quality metric is to the rest: the protocol that students and classical metrics share.

`open_metric` in `quality/registry.py` opens one by name.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from vqaloop.records import Score, Source


class Metric(Protocol):
    """What the loop asks of a metric."""

    @property
    def name(self) -> str:
        """As given to --metric."""

    @property
    def mode(self) -> str:
        """anchored or full-reference."""

    @property
    def top(self) -> float:
        """Largest value it can give."""

    @property
    def step(self) -> float:
        """Difference between two rungs worth having, by default."""

    @property
    def ceiling(self) -> float:
        """Score above which viewers see no difference, by default."""

    @property
    def floor(self) -> float:
        """Score under which a rung is not worth sending, by default."""

    def identity(self) -> dict[str, Any]:
        """All that decides a score, apart from the two files; JSON values only."""

    def measure(self, source: Source, path: Path, decoder: str) -> Score:
        """Score of a file of ours with as many frames as `source`. Raises DecodeFailed."""

    def finer(self) -> "Metric | None":
        """The same metric looking at more of the title; None when it sees all of it already."""

    def scene_by_scene(self, scenes: Sequence[tuple[int, int]]) -> "Metric":
        """The same metric looking into each scene (first frame, number of frames) of the title."""
