"""Cost of caps on the peaks of encodes, and whether their promise is kept, by every encoder.

    python -m bench.capped CLIP... --out DIR [--encoders libx264,...] [--codecs h264,...]
                           [--titles N] [--seconds S] [--ratios 2,1.5] [--two-pass]
                           [--height 360] [--knobs 4] [--preset slowest|default|fastest]

A clip may be several files with + between, which are joined to one title with its bursts. Each is
scaled to the height and encoded at knobs across the encoder's search range: without a cap, and
under one for each ratio of peak and average; with --two-pass also in two passes at the mean rate
of the encode without a cap, free and under the same caps. --titles takes the first clips alone,
and --seconds the first seconds of each part. The cost is BD-rate over VMAF of all frames against
no cap. Every figure is kept in DIR/capped.csv as soon as it is known; the same command goes on.
"""

import argparse
import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd

from vqaloop.core import process
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.encoding.options import cap_of, in_two_passes
from vqaloop.encoding.registry import get_encoder, load_encoders
from vqaloop.encoding.spec import EncoderSpec
from vqaloop.encoding.survey import available
from vqaloop.errors import VqaloopError
from vqaloop.execution.cache import Cache
from vqaloop.execution.capping import PEAK_RATIO, PeakLimit, bounded_gop_frames, measure_peaks
from vqaloop.execution.workshop import Workshop
from vqaloop.media.probe import probe_source
from vqaloop.media.scene_cuts import SceneExcerpts
from vqaloop.quality.bdrate import NotComparable, bd_rate
from vqaloop.quality.registry import open_metric
from vqaloop.ratecontrol.capped_parts import keep_title_peak
from vqaloop.records import Rendition, Source

PRESETS = {"slowest": 0, "fastest": -1}
LEAST_POINTS = 3
"""Of a curve of which a BD-rate is taken."""


@dataclass(frozen=True)
class Row:
    """One encode, plain or under a cap."""

    title: str
    encoder: str
    ratio: float
    """Bound of peak over average; 0 for no cap."""
    knob: float
    kbps: float
    vmaf: float
    over: float
    """The peak as a part of the bound, of a plain encode of PEAK_RATIO."""
    maxrate_kbps: float
    """NaN where there is no cap, since none was needed or the parts have knobs of their own."""
    tries: float
    """Encodes for the bound, in whole titles."""
    passes: int = 1
    goal_kbps: float = math.nan
    """Mean rate that two passes were to reach, container not counted."""
    mean_kbps: float = math.nan
    """What they took."""


def make_title(clip: str, height: int, folder: Path, seconds: float | None = None) -> Path:
    """A clip, or several joined, lossless at the height and 25 fps; of each its first seconds."""
    parts = [Path(part) for part in clip.split("+")]
    length = f".{seconds:g}s" if seconds else ""
    out = folder / f"{'+'.join(part.stem for part in parts)}.{height}{length}.mkv"
    if out.exists():
        return out
    sources = [probe_source(part, ffmpeg=ffmpeg_path()) for part in parts]
    width = 2 * round(sources[0].width * height / sources[0].height / 2)
    scale = f"scale={width}:{height}:flags=lanczos,setsar=1,fps=25,format=yuv420p"
    graph = ";".join(f"[{i}:V]{scale}[v{i}]" for i in range(len(parts)))
    graph += ";" + "".join(f"[v{i}]" for i in range(len(parts))) + f"concat=n={len(parts)}"
    argv = [ffmpeg_path(), "-nostdin", "-v", "error", "-y"]
    trim = ["-t", f"{seconds:g}"] if seconds else []
    argv += [word for part in parts for word in (*trim, "-i", file_url(part))]
    partial = out.with_suffix(".partial.mkv")
    done = process.run(
        [*argv, "-filter_complex", graph, "-c:v", "ffv1", file_url(partial)], timeout_s=600
    )
    if done.returncode:
        raise SystemExit(done.reason())
    return partial.rename(out)


def rows_of(
    title: Path,
    spec: EncoderSpec,
    options: argparse.Namespace,
    done: set[tuple[float, float, int]],
) -> Iterator[Row]:
    """The encodes of a title that are not `done`, as ratio, knob and passes."""
    ffmpeg = ffmpeg_path()
    source = probe_source(title, ffmpeg=ffmpeg)
    place = PRESETS.get(options.preset)
    preset = spec.default_preset if place is None else spec.presets[place]
    low, high = spec.knob.search
    knobs = [spec.knob.snap(value) for value in np.linspace(low, high, options.knobs + 2)[1:-1]]
    with Workshop(spec, open_metric("vmaf", ffmpeg=ffmpeg), Cache(), ffmpeg=ffmpeg) as shop:
        for knob in knobs:
            rendition = Rendition(*source.canvas, spec.name, knob, preset)
            for passes in (1, 2) if options.two_pass and spec.two_pass else (1,):
                for ratio in (0.0, *options.ratios):
                    if (ratio, knob, passes) not in done:
                        yield _row(shop, source, rendition, ratio, passes)


def _row(shop: Workshop, source: Source, rendition: Rendition, ratio: float, passes: int) -> Row:
    limit = PeakLimit(ratio or math.inf)
    if passes == 1:
        # as a ladder has it
        rendition = replace(rendition, gop=bounded_gop_frames(limit, shop.spec, source.fps))
    plain = shop.encode(source, rendition)
    goal = math.nan
    if passes == 2:
        goal = max(1, round(measure_peaks(plain.path, shop.spec, source).mean_kbps))
        plain = shop.encode(source, in_two_passes(rendition, goal))
    excerpts = SceneExcerpts(source, shop.scratch, shop.ffmpeg)
    found = keep_title_peak(shop, source, plain, limit, excerpts)
    # of a plain encode, whether the default would bind
    bound = PeakLimit(ratio or PEAK_RATIO)
    peaks = measure_peaks(found.encode.path, shop.spec, source)
    cap = cap_of(found.encode.rendition)
    return Row(
        source.path.stem,
        shop.spec.name,
        ratio,
        rendition.knob,
        found.encode.bitrate_kbps,
        shop.score(source, found.encode.path).value,
        peaks.over(bound),
        cap.maxrate_kbps if cap else math.nan,
        found.frames / source.frames,
        passes,
        goal,
        peaks.mean_kbps,
    )


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """For each title, encoder, passes and ratio: encodes that keep the bound, that changed, that
    have a mean within 2 % of its goal, BD-rate."""
    found = []
    plain = table[(table["ratio"] == 0) & (table["passes"] == 1)]
    others = table[(table["ratio"] > 0) | (table["passes"] > 1)]
    for (title, encoder, passes, ratio), rows in others.groupby(
        ["title", "encoder", "passes", "ratio"]
    ):
        missed = (rows["mean_kbps"] / rows["goal_kbps"] - 1).abs()
        anchor = plain[(plain["title"] == title) & (plain["encoder"] == encoder)]
        found.append(
            {
                "title": title,
                "encoder": encoder,
                "passes": passes,
                "ratio": ratio,
                "encodes": len(rows),
                "missed_percent": 100 * float(missed.mean()),
                "kept_percent": 100 * float((rows["over"] <= 1.02).mean()),
                "changed_percent": 100 * float((rows["tries"] > 0).mean()),
                "tries": float(rows["tries"].mean()),
                "bd_rate_percent": _bd(anchor, rows),
            }
        )
    return pd.DataFrame(found)


def _bd(anchor: pd.DataFrame, rows: pd.DataFrame) -> float:
    """NaN where the curves cannot be compared."""
    if min(len(anchor), len(rows)) < LEAST_POINTS:
        return math.nan
    curves = [sorted(zip(table["kbps"], table["vmaf"], strict=True)) for table in (anchor, rows)]
    try:
        return bd_rate(*curves, least_overlap=0.5)
    except NotComparable as error:
        print(f"no BD-rate: {error}")
        return math.nan


def _numbers(text: str) -> Sequence[float]:
    return [float(word) for word in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.capped")
    parser.add_argument("clips", metavar="CLIP", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--encoders")
    parser.add_argument("--codecs")
    parser.add_argument("--titles", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--two-pass", action="store_true")
    parser.add_argument("--ratios", type=_numbers, default=[2.0, 1.5])
    parser.add_argument("--height", type=int, default=360)
    parser.add_argument("--knobs", type=int, default=4)
    parser.add_argument("--preset", default="default", choices=["default", *PRESETS])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = options.encoders.split(",") if options.encoders else list(load_encoders())
    specs = [get_encoder(name) for name in wanted]
    specs = [s for s in specs if available(s, ffmpeg_path())]
    specs = [s for s in specs if not options.codecs or s.codec in options.codecs.split(",")]
    kept = options.out / "capped.csv"
    if not kept.exists():
        kept.write_text(",".join(field.name for field in fields(Row)) + "\n")
    for clip in options.clips[: options.titles]:
        title = make_title(clip, options.height, options.out, options.seconds)
        for spec in specs:
            table = pd.read_csv(kept)
            own = table[(table["title"] == title.stem) & (table["encoder"] == spec.name)]
            done = set(zip(own["ratio"], own["knob"], own["passes"], strict=True))
            try:
                for row in rows_of(title, spec, options, done):
                    with kept.open("a", newline="") as file:
                        csv.writer(file).writerow(asdict(row).values())
            except VqaloopError as error:
                print(f"{title.stem}, {spec.name}: {error}")
    found = summary(pd.read_csv(kept))
    print(found.round(2).to_string(index=False))
    figures = ["kept_percent", "changed_percent", "missed_percent", "tries", "bd_rate_percent"]
    print(found.groupby(["encoder", "passes", "ratio"])[figures].mean().round(2).to_string())


if __name__ == "__main__":
    main()
