"""Per-shot ladders against per-title ones: bits saved, worst scene, cost, speed of two workers.

    python -m bench.pershot CLIP... --out DIR [--titles 8] [--codecs h264,hevc,av1,vp9]
                            [--rungs 4] [--seconds 4] [--height 360] [--metric vmaf]
                            [--preset slowest|default|fastest] [--floor S] [--time]

Title n is 2 to 8 of the clips (of those in $VQALOOP_CLIPS where none is named), drawn with a fixed
seed, of each its first seconds, joined at the height and 25 fps. For each title and codec a ladder
of each kind is built, both steered by `--metric` at the harmonic mean, with as many rungs asked
for. BD-rate is over the harmonic mean of VMAF of all frames, and of the default student, per shot
against per title: below 0 bits are saved. The worst scene is that which lies furthest below its
rung, in points of VMAF; `starved` counts rungs whose warnings name a scene below the floor.
Figures are kept in DIR/pershot.csv as soon as they are known, ladders in DIR; the same command
goes on.

`--time` instead builds the last title's ladder from nothing by one worker and by two, a processor
for each, and compares wall times; run it on an idle machine.
"""

import argparse
import csv
import math
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import vqaloop
from bench.capped import PRESETS, make_title
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.encoding.registry import default_encoder
from vqaloop.errors import InputError, VqaloopError
from vqaloop.execution.cache import Cache
from vqaloop.execution.executor import Local
from vqaloop.execution.workshop import Workshop
from vqaloop.media.probe import probe_source
from vqaloop.quality.bdrate import NotComparable, bd_rate
from vqaloop.quality.registry import open_metric
from vqaloop.records import Ladder, Score

JUDGES = ("vmaf", "internvqa")
POOL = "harmonic"


@dataclass(frozen=True)
class Row:
    """One title and codec."""

    title: str
    codec: str
    metric: str
    scenes: int
    rungs_per_shot: int
    rungs_per_title: int
    bd_vmaf: float
    """Percent, per shot against per title; NaN where the curves cannot be compared."""
    bd_student: float
    worst_per_shot: float
    """Points of VMAF by which a scene lies below its rung."""
    worst_per_title: float
    """The same with one knob for all scenes."""
    floor: float
    starved: int
    """Rungs with a scene below the floor."""
    equivalents: float
    """Whole titles encoded for a rung."""
    wall_s: float
    note: str


def titles(options: argparse.Namespace) -> list[Path]:
    """The mixed titles, made unless they are there."""
    clips = sorted(options.clips or Path(os.environ["VQALOOP_CLIPS"]).glob("*.mp4"))
    rng = np.random.default_rng(0)
    made = []
    for number in range(options.titles):
        count = min(2 + number % 7, len(clips))
        drawn = [clips[at] for at in rng.choice(len(clips), count, replace=False)]
        joined = "+".join(map(str, drawn))
        made.append(make_title(joined, options.height, options.out, options.seconds))
    return made


def ladder(title: Path, codec: str, options: argparse.Namespace, **more: Any) -> Ladder:
    """The ladder of a title, read where it was built before."""
    kind = "shot" if more.get("per_shot") else "title"
    folder = options.out / f"{title.stem}.{codec}.{options.metric}.{kind}"
    if (folder / "ladder.json").exists():
        return vqaloop.read_ladder(folder)
    return build(title, codec, options, out=folder, **more)


def build(title: Path, codec: str, options: argparse.Namespace, **more: Any) -> Ladder:
    place = PRESETS.get(options.preset)
    preset = None if place is None else default_encoder(codec).presets[place]
    return vqaloop.build_ladder(
        title,
        codec=codec,
        metric=options.metric,
        pool=POOL,
        rungs=options.rungs,
        preset=preset,
        no_cap=True,
        **more,
    )


def judged(made: Ladder, scenes: Sequence[tuple[int, int]], judge: str) -> list[Score]:
    """The harmonic mean of each rung, by a metric that looks at every scene."""
    ffmpeg = ffmpeg_path()
    source = probe_source(Path(made.about["source"]["path"]), ffmpeg=ffmpeg)
    meter = open_metric(judge, ffmpeg=ffmpeg).scene_by_scene(scenes)
    spec = default_encoder(made.about["codec"])
    starts = [start for start, _ in scenes]
    with Workshop(spec, meter, Cache(), ffmpeg=ffmpeg, pool=POOL) as shop:
        return [shop.score(source, made.folder / r.file, starts=starts) for r in made.rungs]


def worst(scores: Sequence[Score], scenes: Sequence[tuple[int, int]]) -> float:
    """By how much a scene lies below its rung at most, by a metric of all frames."""
    return max(
        score.value - min(float(np.mean(score.clips[a : a + n])) for a, n in scenes)
        for score in scores
    )


def row(title: Path, codec: str, options: argparse.Namespace) -> Row:
    started = time.monotonic()
    shot = ladder(title, codec, options, per_shot=True, scene_floor=options.floor)
    wall_s = time.monotonic() - started
    about = shot.about.get("per_shot")
    if about is None:
        raise InputError("no cuts were found between its clips; draw others")
    whole = ladder(title, codec, options)
    spans = [(s.start_frame, s.end_frame - s.start_frame) for s in shot.rungs[0].scenes]
    bd, notes, far = {}, [], [0.0, 0.0]
    for judge in JUDGES:
        scores = [judged(made, spans, judge) for made in (whole, shot)]
        if judge == "vmaf":
            far = [worst(each, spans) for each in scores]
        curves = [
            [
                (rung.bitrate_kbps, score.value)
                for rung, score in zip(made.rungs, each, strict=True)
            ]
            for made, each in zip((whole, shot), scores, strict=True)
        ]
        try:
            bd[judge] = bd_rate(
                curves[0], curves[1], least_overlap=0.5, names=("per-title", "per-shot")
            )
        except NotComparable as error:
            bd[judge] = math.nan
            notes.append(f"{judge}: {error}")
    return Row(
        title=title.stem,
        codec=codec,
        metric=options.metric,
        scenes=about["scenes"],
        rungs_per_shot=len(shot.rungs),
        rungs_per_title=len(whole.rungs),
        bd_vmaf=bd["vmaf"],
        bd_student=bd["internvqa"],
        worst_per_shot=far[1],
        worst_per_title=far[0],
        floor=about["scene_floor"],
        starved=sum("below the floor" in line for line in shot.about["warnings"]),
        equivalents=about["equivalents_per_rung"],
        wall_s=wall_s,
        note="; ".join(notes),
    )


def timed(title: Path, codec: str, options: argparse.Namespace) -> None:
    """Wall time of one worker and of two, and whether their rungs are the same."""
    spent, rungs = [], []
    processors = os.sched_getaffinity(0)
    for workers in (1, 2):
        # decoding, encoding and VMAF overlap: a worker alone would take some of a second processor
        os.sched_setaffinity(0, sorted(processors)[:workers])
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            made = build(
                title,
                codec,
                options,
                out=Path(folder, "ladder"),
                workers=Local(workers, processors=1),
                cache=False,
                per_shot=True,
            )
            spent.append(time.monotonic() - started)
            rungs.append([rung.to_json() for rung in made.rungs])
    os.sched_setaffinity(0, processors)
    print(
        f"{title.stem} {codec}: {spent[0]:.1f} s by one worker, {spent[1]:.1f} s by two, "
        f"{spent[0] / spent[1]:.2f} times as fast; same rungs: {rungs[0] == rungs[1]}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.pershot")
    parser.add_argument("clips", type=Path, nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--titles", type=int, default=8)
    parser.add_argument("--codecs", default="h264,hevc,av1,vp9")
    parser.add_argument("--rungs", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--height", type=int, default=360)
    parser.add_argument("--metric", default="vmaf")
    parser.add_argument("--preset", choices=[*PRESETS, "default"], default="default")
    parser.add_argument("--floor", type=float)
    parser.add_argument("--time", action="store_true")
    options = parser.parse_args()
    if not options.clips and "VQALOOP_CLIPS" not in os.environ:
        parser.error("name clips, or a folder of them in $VQALOOP_CLIPS")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.time:
        timed(titles(options)[-1], options.codecs.split(",")[0], options)
        return
    kept = options.out / "pershot.csv"
    names = [each.name for each in fields(Row)]
    if not kept.exists():
        kept.write_text(",".join(names) + "\n")
    done = pd.read_csv(kept)
    known = set(zip(done["title"], done["codec"], done["metric"], strict=True))
    for title in titles(options):
        for codec in options.codecs.split(","):
            if (title.stem, codec, options.metric) in known:
                continue
            try:
                found = row(title, codec, options)
            except VqaloopError as error:
                print(f"{title.stem} {codec}: {error}")
                continue
            with open(kept, "a", newline="") as file:
                csv.DictWriter(file, names).writerow(asdict(found))
            print(found, flush=True)
    table = pd.read_csv(kept)
    if table.empty:
        return
    print(table.drop(columns="note").to_string(index=False, float_format=lambda v: f"{v:.2f}"))
    figures = [*("bd_vmaf", "bd_student", "worst_per_shot", "worst_per_title"), "equivalents"]
    print(table.groupby("codec")[figures].mean().round(2).to_string())
    print(table[figures].mean().round(2).to_string())
    print(f"{(table['bd_vmaf'] > 1).sum()} of {len(table)} more than 1 % worse by VMAF")


if __name__ == "__main__":
    main()
