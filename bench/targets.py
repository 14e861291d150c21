"""Accuracy and cost of `vqaloop encode` on real titles of several clips.

    python -m bench.targets CLIPS --out DIR [--titles N] [--codecs h264,...] [--metric vmaf]
                            [--allocation target] [--target 85] [--csv FILE]

A title is two to five clips, drawn from different films, one after another at 640x360 and 25 fps,
with a tone. Every title is encoded to the target, and by one knob for the whole at several values:
the saving by the scenes' own knobs is at equal mean score, by PCHIP through those. Existing
results in `--out` are kept.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.interpolate import PchipInterpolator

import vqaloop
from vqaloop.core import process
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.encoding.registry import default_encoder
from vqaloop.execution.cache import Cache
from vqaloop.execution.workshop import Workshop
from vqaloop.media.probe import probe_source
from vqaloop.quality.registry import open_metric
from vqaloop.ratecontrol.target import Encoded
from vqaloop.records import Rendition

AROUND = (-6, -3, 0, 3, 6)
"""Steps of one about the scenes' mean knob at which the whole is encoded by one knob."""


def make_title(clips: list[Path], out: Path) -> Path:
    """The clips joined, lossless, with a tone as long."""
    if out.exists():
        return out
    argv = [ffmpeg_path(), "-nostdin", "-v", "error", "-y"]
    for clip in clips:
        argv += ["-i", file_url(clip)]
    graph = ""
    for index in range(len(clips)):
        graph += f"[{index}:V]scale=640:360,setsar=1,fps=25,format=yuv420p[v{index}];"
    graph += "".join(f"[v{i}]" for i in range(len(clips))) + f"concat=n={len(clips)}[v]"
    argv += ["-filter_complex", f"{graph};sine=f=440[a]", "-map", "[v]", "-map", "[a]"]
    argv += ["-shortest", "-c:v", "ffv1", "-c:a", "aac", file_url(out)]
    done = process.run(argv, timeout_s=600)
    if done.returncode:
        raise SystemExit(done.reason())
    return out


def constant(
    title: Path, codec: str, knob: float, metric: str, scenes: list[tuple[int, int]]
) -> list[tuple[float, float]]:
    """(kb/s, score) of the whole title at several single knobs about one."""
    ffmpeg = ffmpeg_path()
    spec, source = default_encoder(codec), probe_source(title, ffmpeg=ffmpeg)
    found = {}
    # a student looks where it looked for the encode of scenes
    meter = open_metric(metric, ffmpeg=ffmpeg).scene_by_scene(scenes)
    with Workshop(spec, meter, Cache(), ffmpeg=ffmpeg) as shop:
        for step in AROUND:
            value = spec.knob.snap(knob + step)
            rendition = Rendition(*source.canvas, spec.name, value, spec.default_preset)
            trial = shop.try_one(source, rendition)
            if trial.bitrate_kbps is not None and trial.score is not None:
                found[value] = trial.bitrate_kbps, trial.score
    return sorted(found.values())


def saving(made: Encoded, points: list[tuple[float, float]]) -> float:
    """Percent more bitrate that one knob needs at the same score; NaN out of range."""
    rates, scores = zip(*points, strict=True)
    score = made.document["score"]
    if not (np.diff(scores) > 0).all() or not scores[0] <= score <= scores[-1]:
        return math.nan
    needed = math.exp(float(PchipInterpolator(scores, np.log(rates))(score)))
    return 100 * (1 - float(made.document["bitrate_kbps"]) / needed)


def row(title: Path, codec: str, options: argparse.Namespace) -> dict[str, Any]:
    suffix = ".avs2" if codec == "avs2" else ".mp4"
    stem = f"{title.stem}.{codec}.{options.metric}.{options.allocation}.{options.target:g}"
    kept = options.out / f"{stem}.json"
    if not kept.exists():
        made = vqaloop.encode_to_target(
            title,
            options.out / f"{stem}{suffix}",
            codec=codec,
            target_score=options.target,
            allocation=options.allocation,
            metric=options.metric,
            progress=lambda event: print(event.message, file=sys.stderr),
        )
        about = made.document
        knob = float(np.mean([scene["knob"] for scene in about["scenes"]]))
        source, result = probe_source(title), probe_source(made.path)
        spans = [(s["start_frame"], s["end_frame"] - s["start_frame"]) for s in about["scenes"]]
        figures = {
            "title": title.stem,
            "codec": codec,
            "scenes": len(about["scenes"]),
            "encodes": len(about["trials"]),
            "score": about["score"],
            "off": about["score"] - options.target,
            "worst_scene": max(abs(s["score"] - options.target) for s in about["scenes"]),
            "kbps": about["bitrate_kbps"],
            "saving": saving(made, constant(title, codec, knob, options.metric, spans)),
            "frames_kept": source.frames == result.frames,
            "reached": made.reached,
            "trusted": made.trusted,
            "remarks": "; ".join(about["warnings"]),
        }
        kept.write_text(json.dumps(figures))
    return dict(json.loads(kept.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.targets")
    parser.add_argument("folder", type=Path, help="of clips, with MANIFEST.csv")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--titles", type=int, default=5)
    parser.add_argument("--codecs", default="h264,hevc,av1,vp9")
    parser.add_argument("--metric", default="vmaf")
    parser.add_argument("--allocation", default="target")
    parser.add_argument("--target", type=float, default=85.0)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    clips = pd.read_csv(options.folder / "MANIFEST.csv")
    clips = clips[(clips["fps"] <= 30) & ~clips["file"].str.contains("hlg")]
    films = clips.drop_duplicates("group")["file"].tolist()
    rng = np.random.default_rng(0)
    rows = []
    for number in range(options.titles):
        drawn = rng.choice(films, 2 + number % 4, replace=False)
        title = make_title(
            [options.folder / name for name in drawn], options.out / f"title{number}.mkv"
        )
        rows += [row(title, codec, options) for codec in options.codecs.split(",")]
    table = pd.DataFrame(rows)
    print(table.drop(columns="remarks").to_string(index=False))
    groups = table.groupby("codec")
    sums = groups[["encodes", "scenes"]].sum()
    print((sums["encodes"] / sums["scenes"]).round(2).to_dict(), "encodes a scene")
    print(groups["off"].apply(lambda x: x.abs().max()).round(2).to_dict(), "worst miss of a title")
    print(groups["saving"].mean().round(2).to_dict(), "% saved on average")
    if options.csv:
        table.to_csv(options.csv, index=False, float_format="%.4f")


if __name__ == "__main__":
    main()
