"""Rate control over scenes, simulated on exhaustive grids instead of encoding.

    python -m bench.scenes [--grid bench/grid.csv] [--titles 40] [--csv OUT.csv]

Titles are concatenations of two to five clips, each a scene of one to six seconds; rate and score
of a scene are looked up at the grid's largest size, with a little noise, since real encodes of
neighbouring knobs are not as smooth. The controller starts from the shipped prior, which was
learnt from other clips, and is driven as any loop would: scene by scene, in order.
"""

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from bench.grid import read_grid
from bench.oracle import Oracle, read_oracle
from vqaloop.core.files import write_whole
from vqaloop.encoding.registry import default_encoder, get_encoder
from vqaloop.media.scene_cuts import Scene
from vqaloop.ratecontrol.controller import RateController
from vqaloop.ratecontrol.scene_curves import Probe
from vqaloop.ratecontrol.scene_goals import Allocation
from vqaloop.search.prior import Prior
from vqaloop.search.prior_store import shipped_prior

CODECS = ("h264", "hevc", "av1", "vp9")
TARGETS = (70.0, 80.0, 90.0)
WIDTH, HEIGHT, FPS = 640, 360, 25
SECONDS = (1, 6)
SCORE_NOISE, BITS_NOISE = 0.15, 0.005
"""Standard deviations of a score, in points, and of the log of bits."""


@dataclass(frozen=True)
class Title:
    """Concatenated clips, with rate and score of an encode of each."""

    oracles: tuple[Oracle, ...]
    scenes: tuple[Scene, ...]
    seed: int

    @property
    def weights(self) -> list[float]:
        return [scene.frames / self.scenes[-1].end_frame for scene in self.scenes]

    def encode(self, index: int, knob: float, noisy: bool = True) -> tuple[float, float]:
        """Bits and score of a scene: rates a pixel as the clip has them."""
        oracle = self.oracles[index]
        width, height = oracle.sizes[0]
        found = oracle.at(width, height, knob)
        rng = np.random.default_rng([self.seed, index, round(knob * 100)])
        score, bits = rng.normal(size=2) * noisy * (SCORE_NOISE, BITS_NOISE)
        pixels = self.scenes[index].frames * WIDTH * HEIGHT
        per_pixel = found.kbps * 1000 / oracle.fps / (width * height)
        return per_pixel * pixels * math.exp(bits), min(100.0, found.vmaf + score)

    def reaches(self, score: float) -> tuple[bool, bool]:
        """Whether every scene has a knob for that score, and whether the title's mean has one."""
        ends = self.oracles[0].knob.search
        spans = np.sort(
            [
                [self.encode(i, knob, noisy=False)[1] for knob in ends]
                for i in range(len(self.scenes))
            ]
        )
        low, high = (float(end) for end in self.weights @ spans)
        return all(a <= score <= b for a, b in spans.tolist()), low <= score <= high

    def constant(self, score: float) -> float:
        """Bits of the one knob for all scenes that has this mean score, between knobs."""
        knob = self.oracles[0].knob
        knobs = np.arange(knob.search[0], knob.search[1] + 1e-9, 1.0)
        table = np.array(
            [
                [self.encode(i, float(k), noisy=False) for i in range(len(self.scenes))]
                for k in knobs
            ]
        )
        bits, means = table[:, :, 0].sum(axis=1), table[:, :, 1] @ self.weights
        order = np.argsort(means)
        return float(np.exp(np.interp(score, means[order], np.log(bits[order]))))


def draw_titles(
    oracles: Sequence[Oracle], count: int, seed: int = 0, scenes: tuple[int, int] = (2, 5)
) -> list[Title]:
    """Random concatenations of different clips; the same seed gives the same."""
    rng = np.random.default_rng(seed)
    titles = []
    for number in range(count):
        clips = rng.choice(
            len(oracles), size=rng.integers(scenes[0], scenes[1] + 1), replace=False
        )
        lengths = [round(s * FPS) for s in rng.uniform(*SECONDS, len(clips))]
        edges = np.cumsum([0, *lengths]).tolist()
        spans = tuple(Scene(a, b) for a, b in zip(edges, edges[1:], strict=False))
        titles.append(Title(tuple(oracles[i] for i in clips), spans, number))
    return titles


def drive(
    title: Title, target: float, allocation: Allocation, prior: Prior | None
) -> RateController:
    """The controller after plain loops over the scenes, until none is open."""
    knob_range = title.oracles[0].knob
    low, high = knob_range.search
    control = RateController(
        title.scenes,
        # the grid ends where the search range does
        replace(knob_range, min=low, max=high),
        width=WIDTH,
        height=HEIGHT,
        fps=FPS,
        target=target,
        allocation=allocation,
        prior=prior,
    )
    while not control.done:
        for index, scene in enumerate(title.scenes):
            while (knob := control.suggest(scene)) is not None:
                bits, score = title.encode(index, knob)
                control.report(scene, knob, bits, score)
    return control


def row_of(title: Title, target: float, control: RateController) -> dict[str, float]:
    """Cost, score and bits of one title, from its chosen encodes."""
    chosen: list[Probe] = list(control.choices.values())
    mean = math.fsum(w * p.score for w, p in zip(title.weights, chosen, strict=True))
    spent = math.fsum(p.bits for p in chosen)
    clean = [title.encode(i, p.knob, noisy=False)[1] for i, p in enumerate(chosen)]
    fair = title.constant(float(np.dot(title.weights, clean)))
    return {
        "scenes": len(chosen),
        "encodes": control.encodes,
        "miss": mean - target,
        "worst": max(abs(p.score - target) for p in chosen),
        "saved": 100 * (1 - spent / fair),
        "scenes_reach": title.reaches(target)[0],
        "mean_reaches": title.reaches(target)[1],
    }


def compare(oracles: Iterable[Oracle], count: int) -> pd.DataFrame:
    """One row for each codec, allocation, target and title."""
    rows = []
    every = list(oracles)
    for codec in CODECS:
        own = [oracle for oracle in every if oracle.codec == codec]
        titles = draw_titles(own, count)
        prior = shipped_prior(default_encoder(codec).name, "vmaf")
        allocations: tuple[Allocation, ...] = ("target", "equal-slope")
        for allocation in allocations:
            for target in TARGETS:
                head = {"codec": codec, "allocation": allocation, "target": target}
                rows += [
                    head | row_of(t, target, drive(t, target, allocation, prior)) for t in titles
                ]
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """Means over the titles whose scenes can all reach the target; with equal slopes over those
    whose mean can."""
    lines = [
        ["allocation", "codec", "target", "titles", "encodes a scene", "within 0.5"],
        ["---"] * 9,
    ]
    lines[0] += ["worst scene", "saved %", "least saved %"]
    for (allocation, codec, target), rows in table.groupby(
        ["allocation", "codec", "target"], sort=False
    ):
        fair = rows[rows.scenes_reach if allocation == "target" else rows.mean_reaches]
        if fair.empty:
            continue
        worst = f"{fair.worst.max():.2f}" if allocation == "target" else ""
        lines.append(
            [
                str(allocation),
                str(codec),
                f"{target:g}",
                str(len(fair)),
                f"{fair.encodes.sum() / fair.scenes.sum():.2f}",
                f"{100 * (fair.miss.abs() <= 0.5).mean():.0f} %",
                worst,
                f"{fair.saved.mean():.1f}",
                f"{fair.saved.min():.1f}",
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--grid", type=Path, default=Path(__file__).with_name("grid.csv"))
    parser.add_argument("--titles", type=int, default=40)
    parser.add_argument("--csv", type=Path, help="all rows")
    options = parser.parse_args(argv)
    grid = read_grid(options.grid).astype({"clip": str})
    oracles = [
        read_oracle(group, get_encoder(str(group.encoder.iloc[0])))
        for (_, codec), group in grid.groupby(["clip", "codec"])
        if codec in CODECS
    ]
    table = compare(oracles, options.titles)
    if options.csv:
        write_whole(options.csv, table.to_csv(index=False, float_format="%.4f"))
    print(markdown(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
