"""The search space of a title: sizes and knobs of the quality setting, as trials have them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from vqaloop.encoding.spec import Knob
from vqaloop.records import RDPoint

BESIDE = 1 / 16
"""Part of the search range around a measured knob in which none is tried for the hull's sake, and
none of an excerpt."""

TrialPoint = tuple[int, int, float]
"""Width, height and knob of a trial: a point of the search space."""


@dataclass(frozen=True)
class Space:
    """Sizes and knobs that may be tried on one title."""

    sizes: tuple[tuple[int, int], ...]
    """Widths and heights, largest first."""
    knob: Knob
    canvas: tuple[int, int] | None = None
    """Width and height of the source; None: the largest of the sizes."""
    fps: float = 25.0
    """Frame rate of the source, in fps."""

    @property
    def source_width(self) -> int:
        return (self.canvas or self.sizes[0])[0]

    @property
    def pixel_rate(self) -> float:
        """Pixels a second of the source, in thousands: kb/s over it are bits a pixel."""
        width, height = self.canvas or self.sizes[0]
        return width * height * self.fps / 1000

    def distributions(self) -> dict[str, BaseDistribution]:
        """The space as Optuna's distributions."""
        knob = self.knob
        return {
            "size": CategoricalDistribution([f"{w}x{h}" for w, h in self.sizes]),
            "knob": FloatDistribution(knob.min, _last_step(knob), step=knob.step),
        }

    def knob_at(self, quality: float) -> float:
        """The knob at a part of the search range: 0 for its worst end, 1 for its best."""
        low, high = self.knob.search
        part = 1 - quality if self.knob.lower_is_better else quality
        return self.knob.snap(low + (high - low) * part)

    def quality(self, knob: float) -> float:
        """The part of the search range at a knob."""
        low, high = self.knob.search
        part = (knob - low) / (high - low)
        return 1 - part if self.knob.lower_is_better else part

    def is_beside(self, point: TrialPoint, points: Iterable[RDPoint]) -> bool:
        """Whether one of the points has the same size and a knob within BESIDE of this one's."""
        low, high = self.knob.search
        near = (high - low) * BESIDE
        return any(p.size == point[:2] and abs(p.knob - point[2]) <= near for p in points)

    def grid(self) -> list[float]:
        """All knobs of the search range, ascending."""
        low, high = self.knob.search
        count = round((high - low) / self.knob.step)
        knobs = [self.knob.snap(low + i * self.knob.step) for i in range(count + 1)]
        return sorted(set(knobs))


def _last_step(knob: Knob) -> float:
    """The largest value on the knob's grid; Optuna warns when the range is no multiple."""
    return float(knob.min + np.floor((knob.max - knob.min) / knob.step + 1e-9) * knob.step)


def params_of(point: TrialPoint) -> dict[str, str | float]:
    """A point as the parameters of a trial."""
    width, height, knob = point
    return {"size": f"{width}x{height}", "knob": knob}


def point_of(params: Mapping[str, object]) -> TrialPoint:
    """The point of a trial's parameters."""
    width, height = map(int, str(params["size"]).split("x"))
    return width, height, float(str(params["knob"]))
