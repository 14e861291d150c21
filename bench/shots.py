"""Per-shot ladders against per-title ones, simulated on exhaustive grids instead of encoding.

    python -m bench.shots [--grid bench/grid.csv] [--titles 16] [--codecs h264,hevc,av1,vp9]
                          [--pool mean|harmonic] [--floor S] [--csv OUT.csv]

Titles are concatenations of two to eight clips, each a scene of one to six seconds; rate and score
(VMAF of all frames) of a scene are looked up in the grid. The search for the scenes' knobs is the
product's own, with the prior that it ships, which was learnt from other clips. Its rungs are
compared at their own scores with the hull of the title at one knob for all scenes and whatever
size, every knob tried: a per-title ladder that no search could better. `possible` is what equal
slopes save over that hull at the same scores where all curves are known: what the material has to
give. What is saved may come out above it where a curve is not concave.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.grid import read_grid
from bench.oracle import Oracle, read_oracle
from bench.scenes import CODECS, FPS, HEIGHT, WIDTH, draw_titles
from bench.search import RULES, TOP
from vqaloop.core.files import write_whole
from vqaloop.encoding.registry import default_encoder, get_encoder
from vqaloop.media.scene_cuts import Scene
from vqaloop.quality.time_pooling import harmonic_mean
from vqaloop.ratecontrol.equal_slope import equal_slope
from vqaloop.ratecontrol.scene_goals import Goal
from vqaloop.ratecontrol.scene_trials import SceneTrials
from vqaloop.ratecontrol.shot_search import Mean, ShotRung, ShotSearch, ShotTitle
from vqaloop.records import Encode, Event, RDPoint, Rendition, Source, Trial
from vqaloop.search.hull import front
from vqaloop.search.prior_store import shipped_prior

SCENES = (2, 8)
KNOBS = 97
"""At which curves of scenes are sampled, over the search range."""
LEVELS = 60
"""Scores at which equal slopes are solved."""

Values = npt.NDArray[np.float64]
Hull = list[RDPoint]
"""Ascending; of equal slopes without a knob."""


@dataclass(frozen=True)
class Title:
    """Concatenated clips, each an oracle of rate and score, all at one canvas."""

    oracles: tuple[Oracle, ...]
    scenes: tuple[Scene, ...]
    pool: Mean

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """As the clips' own, in order, of which each has at least so many."""
        count = min(len(oracle.sizes) for oracle in self.oracles)
        whole = self.oracles[0].sizes[0]
        return [
            (2 * round(WIDTH * w / whole[0] / 2), 2 * round(HEIGHT * w / whole[0] / 2))
            for w, _ in self.oracles[0].sizes[:count]
        ]

    @property
    def frames(self) -> Values:
        return np.array([scene.frames for scene in self.scenes], float)

    def encode(self, index: int, size: int, knobs: Sequence[float]) -> tuple[Values, Values]:
        """Bits and scores of a scene, at a rate a pixel of the canvas as the clip has it."""
        oracle = self.oracles[index]
        found = oracle.curve(*oracle.sizes[size], knobs)
        pixels = oracle.fps * math.prod(oracle.sizes[0])
        scale = self.scenes[index].frames * WIDTH * HEIGHT * 1000 / pixels
        return np.array([e.kbps for e in found]) * scale, np.array([e.vmaf for e in found])

    def pooled(self, scores: Values) -> float:
        if self.pool == "harmonic":
            return harmonic_mean(scores, self.frames)
        return float(np.average(scores, weights=self.frames))

    def kbps(self, bits: float) -> float:
        return bits * FPS / float(self.frames.sum()) / 1000


class Lookup:
    """A title's oracles in the place of encodes of its scenes."""

    def __init__(self, title: Title) -> None:
        self.title, self.frames = title, 0

    def attempt(self, scene: Scene, rendition: Rendition) -> Trial:
        self.frames += scene.frames
        index = self.title.scenes.index(scene)
        size = self.title.sizes.index((rendition.width, rendition.height))
        bits, score = (float(x[0]) for x in self.title.encode(index, size, [rendition.knob]))
        kbps = bits * FPS / scene.frames / 1000
        return Trial(rendition, kbps, score, encode=cast(Encode, scene))

    def bits(self, trial: Trial) -> float:
        return (trial.bitrate_kbps or 0.0) * 1000 * cast(Scene, trial.encode).frames / FPS

    def drop(self, scenes: Sequence[Scene]) -> None:
        pass


def search(title: Title, codec: str, floor: float | None) -> tuple[list[ShotRung], float]:
    """The rungs of a title as the product finds them, and whole titles encoded for a rung."""
    spec = default_encoder(codec)
    low, high = spec.knob.search
    # the grid ends where the search range does
    knob = replace(spec.knob, min=low, max=high)

    def each(work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return [work(item) for item in items]

    shop = SimpleNamespace(
        metric=SimpleNamespace(step=RULES.min_step, top=TOP),
        pool=title.pool,
        spec=SimpleNamespace(knob=knob),
        map=each,
    )

    def silent(event: Event) -> None:
        pass

    def rendition(key: tuple[int, int, float]) -> Rendition:
        return Rendition(key[0], key[1], spec.name, key[2], spec.default_preset)

    work = Lookup(title)
    frames = int(title.frames.sum())
    source = Source(Path("x"), "", *title.sizes[0], Fraction(FPS), frames, "yuv420p")
    asked = ShotTitle(cast(Any, shop), source, title.scenes, title.sizes, rendition, silent, floor)
    found = ShotSearch(asked, RULES, shipped_prior(spec.name, "vmaf"), cast(SceneTrials, work))
    chosen = found.chosen(found.run())
    return chosen, work.frames / frames / max(1, len(chosen))


def hulls(title: Title) -> tuple[Hull, Hull]:
    """The cheapest encodes at every score: with one knob for all scenes, and by equal slopes."""
    low, high = title.oracles[0].knob.search
    knobs = np.linspace(low, high, KNOBS).tolist()
    weights = title.frames / title.frames.sum()
    alike: Hull = []
    sloped: Hull = []
    for size in range(len(title.sizes)):
        table = np.array([title.encode(i, size, knobs) for i in range(len(title.scenes))])
        table = np.sort(table, axis=2)
        bits, scores = table[:, 0], table[:, 1]
        own = [
            RDPoint(*title.sizes[size], knob, title.kbps(spent), title.pooled(score))
            for knob, spent, score in zip(knobs, bits.sum(axis=0), scores.T, strict=True)
        ]
        alike += own
        for target in np.linspace(own[0].score, own[-1].score, LEVELS + 2)[1:-1].tolist():
            goal = Goal(target, None, "equal-slope", TOP, 1.0, 1.0, pool=title.pool)
            value = goal.utility(scores, target)
            aims, _ = equal_slope(value, bits, weights, target)
            spent = [np.interp(a, v, b) for a, v, b in zip(aims, value, bits, strict=True)]
            kbps = title.kbps(float(np.sum(spent)))
            sloped.append(RDPoint(*title.sizes[size], math.nan, kbps, target))
    # where curves are not concave, one knob may be the better allocation
    return front(alike), front([*alike, *sloped])


def excess(rate: float, score: float, hull: Hull) -> float:
    """Percent of rate over a hull at a score; NaN beyond its ends."""
    rates, scores = np.array([(p.bitrate_kbps, p.score) for p in hull]).T
    if not scores[0] <= score <= scores[-1]:
        return math.nan
    return 100 * (rate / math.exp(float(np.interp(score, scores, np.log(rates)))) - 1)


def below(title: Title, scores: Values) -> float:
    """By how much the worst scene lies below the whole."""
    return title.pooled(scores) - float(scores.min())


def row(title: Title, codec: str, floor: float | None) -> dict[str, Any]:
    """What per-shot rungs of a title save, could save, cost, and leave below."""
    rungs, equivalents = search(title, codec, floor)
    one, best = hulls(title)
    points = [(rung.point.bitrate_kbps, rung.point.score) for rung in rungs]
    saved = [-excess(rate, score, one) for rate, score in points]
    scores = [np.array([r.choices[s].score for s in title.scenes], float) for r in rungs]
    possible = [excess(rate, score, one) - excess(rate, score, best) for rate, score in points]
    return {
        "codec": codec,
        "clips": "+".join(oracle.clip for oracle in title.oracles),
        "scenes": len(title.scenes),
        "rungs": len(rungs),
        "equivalents": equivalents,
        "saved": float(np.nanmean(saved)),
        "least_saved": float(np.nanmin(saved)),
        "possible": -float(np.nanmean(possible)),
        "worst_scene": max(below(title, each) for each in scores),
        "starved": sum(bool(rung.starved) for rung in rungs),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.shots")
    parser.add_argument("--grid", type=Path, default=Path(__file__).with_name("grid.csv"))
    parser.add_argument("--titles", type=int, default=16)
    parser.add_argument("--codecs", default=",".join(CODECS))
    parser.add_argument("--pool", choices=["mean", "harmonic"], default="harmonic")
    parser.add_argument("--floor", type=float)
    parser.add_argument("--csv", type=Path, help="all rows")
    options = parser.parse_args(argv)
    grid = read_grid(options.grid).astype({"clip": str})
    rows = []
    for codec in options.codecs.split(","):
        oracles = [
            read_oracle(group, get_encoder(str(group.encoder.iloc[0])))
            for _, group in grid[grid.codec == codec].groupby("clip")
        ]
        for drawn in draw_titles(oracles, options.titles, scenes=SCENES):
            rows.append(
                row(Title(drawn.oracles, drawn.scenes, options.pool), codec, options.floor)
            )
    table = pd.DataFrame(rows)
    if options.csv:
        write_whole(options.csv, table.to_csv(index=False, float_format="%.3f"))
    print(table.drop(columns="clips").round(2).to_string(index=False))
    means = ["saved", "possible", "equivalents", "worst_scene"]
    print(table.groupby("codec", sort=False)[means].mean().round(2).to_string())
    print(table[means].mean().round(2).to_string())
    print(f"{(table.saved < -1).sum()} of {len(table)} titles more than 1 % worse")
    print(f"{table.starved.sum()} rungs with a scene below the floor")
    return 0


if __name__ == "__main__":
    sys.exit(main())
