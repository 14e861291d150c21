"""An oracle of rate and score of any encode of a clip, looked up in an exhaustive grid."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.interpolate import PchipInterpolator

from bench.grid import FRACTIONS
from vqaloop.encoding.spec import EncoderSpec, Knob
from vqaloop.records import RDPoint
from vqaloop.search.hull import convex_hull
from vqaloop.search.space import TrialPoint

METRICS = ("vmaf", "student")
"""Judges of ladders, by which searches are steered too."""
SAMPLED = "vmaf_sampled"
"""Steers as well, where the grid has it; it is an estimate of a judge, and none itself."""
DENSE = 0.25
"""Knob steps at which curves of the exhaustive hull are sampled, whatever the encoder's step."""
LEAST_KNOBS = 4
"""Fewer to a size do not make a grid."""


@dataclass(frozen=True)
class Encoded:
    """An encode with all its columns of the grid."""

    width: int
    height: int
    knob: float
    kbps: float
    vmaf: float
    psnr_y: float
    student: float
    encode_s: float
    """CPU seconds."""
    vmaf_s: float
    student_s: float
    vmaf_sampled: float = math.nan
    vmaf_sampled_s: float = math.nan

    @property
    def point(self) -> TrialPoint:
        return self.width, self.height, self.knob

    def score(self, metric: str) -> float:
        return float(getattr(self, metric))

    def score_s(self, metric: str) -> float:
        """CPU seconds of scoring by that metric."""
        return float(getattr(self, f"{metric}_s"))

    def judged(self, metric: str, measured: bool = True) -> RDPoint:
        return RDPoint(*self.point, self.kbps, self.score(metric), measured)


FIGURES = tuple(field.name for field in fields(Encoded))[3:]
SECONDS = [name.endswith("_s") for name in FIGURES]
"""Whether each is CPU seconds."""


class Oracle:
    """Every encode of one clip by one encoder: measured at the grid's points, else interpolated.

    Between the grid's knobs log rate and scores follow PCHIP, which is monotone wherever the
    measurements are, and seconds straight lines; beyond the ends nothing is known and the knob is
    that of the end.
    """

    def __init__(
        self,
        clip: str,
        codec: str,
        points: Iterable[Encoded],
        knob: Knob,
        fps: float = 25.0,
        frames: int = 40,
    ) -> None:
        self.clip, self.codec, self.knob, self.fps, self.frames = clip, codec, knob, fps, frames
        self.known = {p.point: p for p in sorted(points, key=lambda p: p.point)}
        sizes = {(w, h) for w, h, _ in self.known}
        self.sizes = tuple(sorted(sizes, key=lambda s: -s[0] * s[1]))
        """Widths and heights, largest first."""
        self._curves = {
            size: _Curve([p for p in self.known.values() if p.point[:2] == size])
            for size in self.sizes
        }
        self._hulls: dict[tuple[str, float], list[RDPoint]] = {}

    @property
    def steers(self) -> tuple[str, ...]:
        """What may steer a search: METRICS, and SAMPLED where all of the grid has it."""
        known = all(math.isfinite(p.vmaf_sampled) for p in self.known.values())
        return (*METRICS, SAMPLED) if known else METRICS

    def at(self, width: int, height: int, knob: float) -> Encoded:
        """The encode of that size at that knob. Raises KeyError for a size the grid lacks."""
        return self.curve(width, height, [knob])[0]

    def curve(self, width: int, height: int, knobs: Sequence[float]) -> list[Encoded]:
        """The encodes of a size at several knobs."""
        between = self._curves[width, height].at(knobs)
        return [
            self.known.get((width, height, knob)) or Encoded(width, height, knob, *row)
            for knob, row in zip(knobs, between.tolist(), strict=True)
        ]

    def dense(self, step: float = DENSE) -> list[Encoded]:
        """Every size at every `step` of the knob between its measured ends."""
        found = []
        for size in self.sizes:
            own = [knob for w, h, knob in self.known if (w, h) == size]
            inner = np.arange(math.ceil(own[0] / step), own[-1] / step + 1e-9) * step
            found += self.curve(*size, sorted({*own, *inner.tolist()}))
        return found

    def hull(self, metric: str, step: float = DENSE) -> list[RDPoint]:
        """Convex hull of all sizes, ascending; `measured` tells which points the grid has."""
        if (metric, step) not in self._hulls:
            points = [p.judged(metric, p.point in self.known) for p in self.dense(step)]
            self._hulls[metric, step] = convex_hull(points)
        return self._hulls[metric, step]

    def hull_kbps(self, metric: str, score: float) -> float:
        """Rate of the exhaustive hull at a score; that of its nearer end beyond its scores."""
        hull = self.hull(metric)
        return float(np.interp(score, [p.score for p in hull], [p.bitrate_kbps for p in hull]))


class _Curve:
    """The figures of one size over the knob."""

    def __init__(self, points: Sequence[Encoded]) -> None:
        self.knobs = np.array([p.knob for p in points])
        table = np.array([astuple(p)[3:] for p in points])
        table[:, 0] = np.log2(table[:, 0])
        self.unknown = ~np.isfinite(table).all(0)
        table[:, self.unknown] = 0
        self.table, self.smooth = table, PchipInterpolator(self.knobs, table)

    def at(self, knobs: Sequence[float]) -> npt.NDArray[np.float64]:
        inside = np.clip(knobs, self.knobs[0], self.knobs[-1])
        found: npt.NDArray[np.float64] = self.smooth(inside)
        for column in np.flatnonzero(SECONDS):
            found[:, column] = np.interp(inside, self.knobs, self.table[:, column])
        found[:, 0] = 2 ** found[:, 0]
        found[:, self.unknown] = np.nan
        return found


class Tally:
    """An oracle in the place of an encoder, which counts each encode once."""

    def __init__(self, oracle: Oracle, metric: str) -> None:
        self.oracle, self.metric = oracle, metric
        self.searched: dict[TrialPoint, Encoded] = {}

    def measure(self, point: TrialPoint) -> RDPoint:
        """Encode and score; again for nothing where it was done before, as caches do."""
        if point not in self.searched:
            self.searched[point] = self.oracle.at(*point)
        return self.searched[point].judged(self.metric)


def read_oracle(table: pd.DataFrame, spec: EncoderSpec) -> Oracle:
    """The oracle of a grid's rows of one clip and codec.

    Raises ValueError where the grid is not whole: each size the encoder takes needs both ends of
    the knob's search range, and LEAST_KNOBS knobs.
    """
    table = table.drop_duplicates(["width", "height", "knob"], keep="last")
    clip, codec = str(table["clip"].iloc[0]), str(table["codec"].iloc[0])
    columns = ["width", "height", "knob", *FIGURES]
    # grids of before sampled VMAF lack it
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, *columns])))
    points = [
        Encoded(int(w), int(h), *map(float, rest))
        for w, h, *rest in table[columns].itertuples(index=False)
    ]
    width, height = max((p.point[:2] for p in points), key=lambda s: s[0] * s[1])
    ends = {spec.knob.snap(knob) for knob in spec.knob.search}
    for part in FRACTIONS:
        size = round(width * part / 2) * 2, round(height * part / 2) * 2
        knobs = {p.knob for p in points if p.point[:2] == size}
        fits = size[0] >= spec.min_size[0] and size[1] >= spec.min_size[1]
        if fits and (len(knobs) < LEAST_KNOBS or not ends <= knobs):
            raise ValueError(f"{size[0]}x{size[1]} has {len(knobs)} knobs so far")
    first = table.iloc[0]
    return Oracle(clip, codec, points, spec.knob, float(first["fps"]), int(first["frames"]))
