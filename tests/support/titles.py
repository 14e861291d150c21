"""Synthetic titles: score and log rate as smooth functions of size and knob, as encoders give."""

import functools
import math
from dataclasses import dataclass

import numpy as np

from vqaloop.encoding.spec import Knob
from vqaloop.records import RDPoint
from vqaloop.search.explore import Measurement
from vqaloop.search.prior import Prior, TitlePoints, learn
from vqaloop.search.rungs import Rules
from vqaloop.search.space import Space, TrialPoint
from vqaloop.search.surrogates import as_title

CRF = Knob(
    name="crf", option="crf", min=1, max=51, step=0.25, search=(16, 44), lower_is_better=True
)
SIZES = ((1920, 1080), (1280, 720), (960, 540), (640, 360), (416, 234))
RULES = Rules(min_step=4.0, floor=30.0, ceiling=95.0)
"""What the loop asks for with VMAF or a student."""


@dataclass(frozen=True)
class Title:
    """Score is a sigmoid of the knob under a cap that falls with the size; rates follow 2^knob."""

    middle: float
    """CRF at which half of the cap is left."""
    width: float
    """CRFs over which the sigmoid falls."""
    detail: float
    """Points of score lost for each halving of the height."""
    halving: float
    """CRFs that halve the rate."""
    bend: float
    """Curvature of log rate over CRF."""
    kbps: float
    """Rate of the full size at CRF 23."""
    area: float
    """Exponent of the number of pixels in the rate."""
    noise: float = 0.0
    """Standard deviation of the score; that of the log2 rate is a tenth of it."""
    seed: int = 0

    def measure(self, point: TrialPoint) -> RDPoint:
        """What an encoder and a metric would say of this point, always the same."""
        width, height, crf = point
        smaller = math.log2(SIZES[0][1] / height)
        cap = 100 - self.detail * smaller**1.3
        score = cap / (1 + math.exp((crf - self.middle) / self.width))
        away = crf - 23
        log_rate = (
            math.log2(self.kbps)
            - 2 * self.area * smaller
            - away / self.halving
            + self.bend * away * away
        )
        rng = np.random.default_rng([self.seed, width, round(crf * 100)])
        shake = rng.normal(size=2) * self.noise
        score = min(100.0, max(0.0, score + shake[0]))
        return RDPoint(width, height, crf, float(2 ** (log_rate + shake[1] / 10)), float(score))

    def outcome(self, point: TrialPoint) -> Measurement:
        found = self.measure(point)
        return found.bitrate_kbps, found.score


def random_title(seed: int, noise: float = 0.0) -> Title:
    """Parameters over the span that real clips and encoders show."""
    rng = np.random.default_rng(seed)
    return Title(
        middle=rng.uniform(36, 48),
        width=rng.uniform(4, 7.5),
        detail=rng.uniform(3, 18),
        halving=rng.uniform(4.5, 7),
        bend=rng.uniform(0, 0.002),
        kbps=float(np.exp(rng.uniform(math.log(800), math.log(12000)))),
        area=rng.uniform(0.6, 0.95),
        noise=noise,
        seed=seed,
    )


def random_space(seed: int) -> Space:
    """Three to five sizes, largest first."""
    return Space(SIZES[: 3 + seed % 3], CRF)


def exhaustive(title: Title, space: Space) -> list[RDPoint]:
    """Every size at every knob, without noise."""
    clean = Title(**{**vars(title), "noise": 0.0})
    return [clean.measure((w, h, knob)) for w, h in space.sizes for knob in space.grid()]


def as_seen(seed: int) -> TitlePoints:
    """A title as a prior learns from it: five knobs of each size."""
    space, title = Space(SIZES, CRF), random_title(seed)
    parts = (0.05, 0.3, 0.55, 0.8, 0.95)
    points = [title.measure((w, h, space.knob_at(part))) for w, h in SIZES for part in parts]
    return as_title(space, points, 100.0)


@functools.cache
def taught() -> Prior:
    """What twelve titles teach that no test searches."""
    return learn([as_seen(seed) for seed in range(100, 112)], rounds=10)
