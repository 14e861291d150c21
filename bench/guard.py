"""The guard sampled against the guard in full: CPU seconds, error, coverage of its intervals.

    python -m bench.guard CLIP... --out DIR [--height H] [--knobs 23,33] [--preset medium]
                          [--positions 16]

A clip may be several files with + between, joined to one title. Each title is encoded by x264 at
its own size and at half of it, and each encode measured in full, by all frames, and at sampled
places. The source's part of the sampled guard is what its first encode of a title takes beyond
the mean of the others. Rows are kept in DIR/guard.csv as they come; the same command goes on.
"""

import argparse
import csv
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import pandas as pd

from bench.overhead import make_title
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.encoding.encode import encode
from vqaloop.media.probe import probe_source
from vqaloop.quality.guard import FIGURES, SAMPLING, GuardPlan, guard_metrics
from vqaloop.records import Rendition, Score, Source


@dataclass(frozen=True)
class Row:
    """A figure of an encode."""

    title: str
    frames: int
    height: int
    knob: float
    figure: str
    exact: float
    """Of all frames."""
    full: float
    sampled: float
    low: float
    high: float
    places: int
    encode_cpu_s: float
    full_cpu_s: float
    """Of all figures together, as are the sampled ones'."""
    sampled_cpu_s: float


def rows_of(source: Source, rendition: Rendition, path: Path, positions: int) -> Iterator[Row]:
    """Rows of one encode, which is made."""
    binary = ffmpeg_path()
    made = encode(source, rendition, path, ffmpeg=binary)
    every = guard_metrics(source, binary)
    sampling = replace(SAMPLING, positions=positions)
    plans = GuardPlan(dict.fromkeys(every, 1)), GuardPlan(every), GuardPlan(every, sampling)
    exact, full, sampled = (p.measure(source, path, ffmpeg=binary, threads=1) for p in plans)
    for name in every:
        low, high = sampled[name].interval or (0.0, 0.0)
        yield Row(
            source.path.stem,
            source.frames,
            rendition.height,
            rendition.knob,
            FIGURES[name],
            exact[name].value,
            full[name].value,
            sampled[name].value,
            low,
            high,
            plans[2].places(source),
            made.cpu_s,
            _seconds(full),
            _seconds(sampled),
        )


def _seconds(scores: dict[str, Score]) -> float:
    return sum(score.cpu_s for score in scores.values())


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """By figure: errors of both guards to all frames, and the part of intervals that hold it."""
    rows = []
    for figure, part in table.groupby("figure"):
        error, full = part.sampled - part.exact, part.full - part.exact
        rows.append(
            {
                "figure": figure,
                "encodes": len(part),
                "full_rms": float((full**2).mean() ** 0.5),
                "sampled_mean": float(error.mean()),
                "sampled_rms": float((error**2).mean() ** 0.5),
                "worst": float(error.abs().max()),
                "half_width": float((part.high - part.low).mean() / 2),
                "inside": float(part.exact.between(part.low, part.high).mean()),
            }
        )
    return pd.DataFrame(rows)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.guard")
    parser.add_argument("clips", metavar="CLIP", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--height", type=int)
    parser.add_argument("--knobs", default="23,33")
    parser.add_argument("--preset", default="medium")
    parser.add_argument("--positions", type=int, default=SAMPLING.positions)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "guard.csv"
    if not kept.exists():
        kept.write_text(",".join(field.name for field in fields(Row)) + "\n")
    for clip in options.clips:
        title = make_title(clip, options.height, None, options.out)
        source = probe_source(title, ffmpeg=ffmpeg_path())
        width, height = source.canvas
        for size in ((width, height), (width // 4 * 2, height // 4 * 2)):
            for knob in map(float, options.knobs.split(",")):
                table = pd.read_csv(kept, dtype={"title": str})
                there = (table.title == title.stem) & (table.height == size[1])
                if (there & (table.knob == knob)).any():
                    continue
                rendition = Rendition(*size, "libx264", knob, options.preset)
                rows = list(rows_of(source, rendition, options.out / "a.mp4", options.positions))
                with kept.open("a", newline="") as file:
                    csv.writer(file).writerows(asdict(row).values() for row in rows)
                print(rows[0], file=sys.stderr, flush=True)
    table = pd.read_csv(kept, dtype={"title": str})
    print(summary(table).round(3).to_string(index=False))
    costs = ["places", "encode_cpu_s", "full_cpu_s", "sampled_cpu_s"]
    print(table.groupby(["title", "frames", "height"])[costs].mean().round(2).to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
