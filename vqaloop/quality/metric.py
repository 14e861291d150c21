"""What a quality metric is to the rest: the protocol that students and classical metrics share.

`open_metric` in `quality/registry.py` opens one by name.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from vqaloop.bitstream.colour_tags import video_range_of
from vqaloop.media import pu21
from vqaloop.models.score_scale import ScoreScale
from vqaloop.records import Score, Source

LEARNED = ("anchored", "difference")
"""Modes of students, whose scores are VMAF points."""
FOR_HDR = ("cvvdp",)
"""Metrics that are made for PQ and HLG too."""
GUARD_GAP = 10.0
"""Points between a student's score and the VMAF of a delivered file beyond which the student is
not to be trusted: more than two times its held-out error."""


class Metric(Protocol):
    """A quality metric of encodes against their source; safe to call from several threads."""

    @property
    def name(self) -> str:
        """As given to --metric."""

    @property
    def mode(self) -> str:
        """anchored, difference or full-reference; see `records.Score`."""

    @property
    def top(self) -> float:
        """Largest score it can give."""

    @property
    def step(self) -> float:
        """Default difference in score between two rungs."""

    @property
    def ceiling(self) -> float:
        """Default score above which viewers see no difference."""

    @property
    def floor(self) -> float:
        """Default score below which a rung is not worth delivering."""

    @property
    def scale(self) -> ScoreScale | None:
        """The map of its answers to VMAF points; None where they need none."""

    @property
    def guarded_by(self) -> str | None:
        """The metric of the guard that is on the scale of its scores; None where it is none."""

    @property
    def guard_gap(self) -> float:
        """Points by which its score may differ from that metric of a delivered file."""

    def identity(self) -> dict[str, Any]:
        """All that decides a score apart from the two files, for cache keys; JSON values only."""

    def measure(self, source: Source, path: Path, decoder: str) -> Score:
        """Score an encode.

        Args:
            source: The original; what depends on it alone is computed once and kept.
            path: An encode of ours, with as many frames as `source`.
            decoder: pyav or ffmpeg; what decodes the encode.

        Raises:
            DecodeFailed: The encode does not decode to the frames of `source`.
        """

    def finer(self) -> "Metric | None":
        """The same metric sampling more of the title; None where it takes all frames already."""

    def confirming(self) -> "Metric | None":
        """As `finer`, and at other places: what was chosen by this metric is confirmed by it."""

    def scene_by_scene(self, scenes: Sequence[tuple[int, int]]) -> "Metric":
        """The same metric sampling each scene (first frame, number of frames) of the title."""


def identity_on(metric: Metric, source: Source) -> dict[str, Any]:
    """`metric.identity()` and, of students, how they see a source of HDR."""
    own = metric.identity()
    if video_range_of(source.colour) != "SDR" and own.get("weights_sha256"):
        own["preprocessing"] += f" pu21 {pu21.REVISION}"
    return own
