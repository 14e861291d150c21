"""What a ladder costs over the encodes that it delivers, before and after.

    python -m bench.overhead CLIP... --out DIR [--codecs h264,hevc,vp9,av1,avs2] [--height H]
                             [--frames N] [--variant 'NAME: OPTIONS']... [--options OPTIONS]
                             [--grid DIR_OR_CSV]

Each ladder is a `vqaloop ladder` of its own with an empty cache, at default presets unless a
variant says otherwise; a variant is a name and options of that command, such as
`--variant 'before: --guard full' --variant 'after:'`, and --options are those of all. A clip may
be several files with + between, joined to one title; with --height it is scaled, with --frames
cut.

`overhead` is the ladder's own figure, all its CPU seconds over those of encoding its rungs, and
`overhead_whole` the same by all CPU seconds of the process and its programs, its start included;
`busy` is the part of the processors that were in use from the first encode to the last; `asked` is
the part that its programs asked for meanwhile, which other programs on the machine do not lower.
`guard_percent` and `score_percent` are CPU
seconds of the two in percent of those of encoding. `loss_percent` is the bitrate lost at equal
VMAF of all frames, against the exhaustive hull where the grid has the title, else against the
first variant's ladder. Rows are kept in DIR/overhead.csv as they come; the same command goes on.
"""

import argparse
import csv
import json
import math
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.demand import Demand
from bench.search import read_oracles
from vqaloop.core import process
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.media.probe import probe_source
from vqaloop.quality.bdrate import Curve, NotComparable, bd_rate
from vqaloop.quality.full_reference import measure

CODECS = "h264,hevc,vp9,av1,avs2"
MOST_S = 86_400.0
"""Seconds that one ladder may take."""


@dataclass(frozen=True)
class Row:
    """One ladder."""

    title: str
    codec: str
    variant: str
    rungs: int
    encodes: int
    overhead: float
    overhead_whole: float
    encode_cpu_s: float
    score_percent: float
    guard_percent: float
    cpu_s: float
    delivered_cpu_s: float
    wall_s: float
    busy: float
    asked: float
    loss_percent: float
    trusted: bool


def make_title(clip: str, height: int | None, frames: int | None, folder: Path) -> Path:
    """A clip, or several joined, as it is encoded: itself where nothing is asked of it."""
    parts = [Path(part) for part in clip.split("+")]
    if len(parts) == 1 and not height and not frames:
        return parts[0]
    sources = [probe_source(part, ffmpeg=ffmpeg_path()) for part in parts]
    tall = height or sources[0].height // 2 * 2
    wide = 2 * round(sources[0].width * tall / sources[0].height / 2)
    marks = [f".{tall}" * bool(height), f".{frames}f" * bool(frames)]
    out = folder / f"{'+'.join(part.stem for part in parts)}{''.join(marks)}.mkv"
    if out.exists():
        return out
    scale = f"scale={wide}:{tall}:flags=lanczos,setsar=1,fps={sources[0].fps},format=yuv420p"
    graph = ";".join(f"[{i}:V]{scale}[v{i}]" for i in range(len(parts)))
    graph += ";" + "".join(f"[v{i}]" for i in range(len(parts))) + f"concat=n={len(parts)}"
    argv = [ffmpeg_path(), "-nostdin", "-v", "error", "-y"]
    argv += [word for part in parts for word in ("-i", file_url(part))]
    argv += ["-filter_complex", graph, *(["-frames:v", str(frames)] if frames else [])]
    partial = out.with_suffix(".partial.mkv")
    # as a mezzanine: intra-only is not what titles are, and lossless decodes slowly
    argv += ["-c:v", "libx264", "-preset", "veryfast", "-crf", "8", file_url(partial)]
    done = process.run(argv, timeout_s=3600)
    if done.returncode:
        raise SystemExit(f"{clip}: {done.reason()}")
    return partial.rename(out)


def run_ladder(title: Path, codec: str, words: Sequence[str], folder: Path) -> process.Finished:
    """The ladder of a title in `folder`, by a process of its own with an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["VQALOOP_CACHE"] = cache
        argv = [sys.executable, "-m", "vqaloop", "ladder", str(title), "--codec", codec]
        done = process.run(
            [*argv, *words, "-o", str(folder), "--quiet"], timeout_s=MOST_S, again=False
        )
    if done.returncode not in (0, 3):
        raise SystemExit(f"{title.name}, {codec}: {done.reason()}")
    return done


def curve_of(folder: Path, title: Path) -> Curve:
    """Rates of a ladder's rungs and their VMAF of all frames."""
    source, binary = probe_source(title, ffmpeg=ffmpeg_path()), ffmpeg_path()
    return [
        (
            rung["bitrate_kbps"],
            measure(source, folder / rung["file"], ["vmaf"], ffmpeg=binary)["vmaf"].value,
        )
        for rung in json.loads((folder / "ladder.json").read_text())["rungs"]
    ]


def loss_of(curve: Curve, anchor: Curve | None, hull: Curve | None) -> float:
    """Percent of bitrate lost at equal VMAF: against a curve drawn alike through the hull, else
    against the first variant; NaN where the two share too few scores."""
    if hull:
        rates, scores = zip(*hull, strict=True)
        inside = [score for _, score in curve if scores[0] <= score <= scores[-1]]
        anchor = [(float(np.interp(score, scores, rates)), score) for score in inside]
    if not anchor:
        return math.nan
    try:
        return bd_rate(anchor, curve)
    except NotComparable:
        return math.nan


def row_of(
    title: Path, codec: str, variant: str, folder: Path, done: process.Finished
) -> dict[str, Any]:
    """The figures of a ladder, but for its loss."""
    document = json.loads((folder / "ladder.json").read_text())
    cost = document["cost"]
    encoding, rungs_s = cost["encode_cpu_s"], cost["delivered_cpu_s"]
    return {
        "title": title.stem,
        "codec": codec,
        "variant": variant,
        "rungs": len(document["rungs"]),
        "encodes": cost["encodes"],
        "overhead": cost["overhead"] or math.nan,
        "overhead_whole": done.cpu_s / rungs_s,
        "encode_cpu_s": encoding,
        "score_percent": 100 * cost["score_s"] / encoding,
        "guard_percent": 100 * cost["guard_s"] / encoding,
        "cpu_s": done.cpu_s,
        "delivered_cpu_s": rungs_s,
        "wall_s": done.wall_s,
        "busy": cost["busy"] or math.nan,
        "trusted": document["trusted"],
    }


def hulls(grid: Path | None, codecs: str) -> dict[tuple[str, str], Curve]:
    """The exhaustive hulls of a grid by VMAF, by clip and codec."""
    if grid is None:
        return {}
    return {
        (oracle.clip, oracle.codec): [(p.bitrate_kbps, p.score) for p in oracle.hull("vmaf")]
        for oracle in read_oracles(grid, None, codecs)
    }


def _variant(text: str) -> tuple[str, list[str]]:
    name, colon, words = text.partition(":")
    if not colon or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME: OPTIONS")
    return name.strip(), shlex.split(words)


def measured(
    title: Path,
    codec: str,
    variants: Sequence[tuple[str, list[str]]],
    out: Path,
    hull: Curve | None,
) -> None:
    """The ladders of a title by all variants, each a row as soon as it is known."""
    kept, anchor = out / "overhead.csv", None
    for name, words in variants:
        folder = out / f"{title.stem}.{codec}.{name}"
        table = pd.read_csv(kept, dtype={"title": str})
        there = (table.title == title.stem) & (table.codec == codec) & (table.variant == name)
        if there.any() and (folder / "ladder.json").exists():
            anchor = anchor or (None if hull else curve_of(folder, title))
            continue
        with Demand() as demand:
            done = run_ladder(title, codec, words, folder)
        figures = row_of(title, codec, name, folder, done) | {"asked": demand.share}
        curve = curve_of(folder, title)
        row = Row(**figures, loss_percent=loss_of(curve, anchor, hull))
        anchor = anchor or curve
        with kept.open("a", newline="") as file:
            csv.writer(file).writerow(asdict(row).values())
        print(row, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.overhead")
    parser.add_argument("clips", metavar="CLIP", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--codecs", default=CODECS)
    parser.add_argument("--height", type=int)
    parser.add_argument("--frames", type=int)
    parser.add_argument("--variant", dest="variants", type=_variant, action="append")
    parser.add_argument("--options", type=shlex.split, default=[])
    parser.add_argument("--grid", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "overhead.csv"
    if not kept.exists():
        kept.write_text(",".join(field.name for field in fields(Row)) + "\n")
    known = hulls(options.grid, options.codecs)
    for clip in options.clips:
        title = make_title(clip, options.height, options.frames, options.out)
        for codec in options.codecs.split(","):
            chosen = options.variants or [("default", [])]
            variants = [(name, [*words, *options.options]) for name, words in chosen]
            measured(title, codec, variants, options.out, known.get((title.stem, codec)))
    table = pd.read_csv(kept, dtype={"title": str})
    print(table.round(2).to_string(index=False))
    means = table.drop(columns=["title", "trusted"]).groupby(["codec", "variant"]).mean()
    print(means.round(2).to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
