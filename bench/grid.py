"""Exhaustive grids: every size x every knob of a clip encoded and scored, as one small table.

    python -m bench.grid CLIP... --out DIR [--codecs h264,hevc,...] [--knobs 12] [--frames 40]
                         [--reuse CSV_OR_DIR] [--probes]

Each clip is cut to its first frames (`DIR/NAME.y4m`), and for every codec its grid is written to
`DIR/points/NAME.CODEC.csv`, point by point: it resumes after an interruption, and several may run
at a time. Scores are VMAF and PSNR-Y (by ffmpeg, over all frames), the default student's and
sampled VMAF; seconds are CPU seconds. With --reuse, VMAF and PSNR-Y of encodes that have the
bitrate they had in an earlier grid are taken from there. With --probes encodes have the preset of
probes, and codecs without one are passed over.
"""

import argparse
import csv
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pandas as pd

from vqaloop.core import process
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.core.files import renamed_to
from vqaloop.encoding.checks import choose_sizes
from vqaloop.encoding.encode import encode
from vqaloop.encoding.registry import codecs, default_encoder
from vqaloop.encoding.spec import EncoderSpec, Knob
from vqaloop.errors import VqaloopError
from vqaloop.media.probe import probe_source
from vqaloop.quality import full_reference
from vqaloop.quality.registry import DEFAULT_METRIC, open_metric
from vqaloop.records import Rendition, Source

FRACTIONS = (1, 2 / 3, 1 / 2, 1 / 3)
"""Sizes of the grid, as parts of the source's."""
COLUMNS = ["clip", "fps", "frames", "codec", "encoder", "width", "height", "knob", "kbps"]
COLUMNS += ["vmaf", "psnr_y", "student", "vmaf_sampled"]
COLUMNS += ["encode_s", "vmaf_s", "student_s", "vmaf_sampled_s"]
FULL = ["vmaf", "psnr_y", "vmaf_s"]
"""Columns that are measured over all frames."""
SAME_BYTES = 64
"""By which files of the same stream may differ: containers name the versions that wrote them."""


def grid_sizes(source: Source, spec: EncoderSpec) -> tuple[tuple[int, int], ...]:
    """The grid's sizes that the encoder takes, largest first."""
    width, height = source.canvas
    wanted = [(round(width * f / 2) * 2, round(height * f / 2) * 2) for f in FRACTIONS]
    (least_w, least_h) = spec.min_size
    return choose_sizes(source, spec, [s for s in wanted if s[0] >= least_w and s[1] >= least_h])


def grid_knobs(knob: Knob, count: int) -> list[float]:
    """`count` knobs evenly over the search range, its ends included."""
    return sorted({knob.snap(value) for value in np.linspace(*knob.search, count)})


def cut(clip: Path, folder: Path, frames: int) -> Path:
    """The clip's first frames as raw video, so that reading them costs little."""
    out = folder / f"{clip.stem}.y4m"
    if not out.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with renamed_to(out) as part:
            argv = [ffmpeg_path(), "-nostdin", "-v", "error", "-y"]
            argv += ["-i", file_url(clip), "-map", "0:V:0", "-frames:v", str(frames)]
            done = process.run([*argv, "-f", "yuv4mpegpipe", file_url(part)], timeout_s=600)
            if done.returncode:
                raise SystemExit(f"{clip}: {done.reason()}")
    return out


def missing(
    source: Source, spec: EncoderSpec, knobs: Sequence[float], known: pd.DataFrame
) -> Iterator[tuple[int, int, float]]:
    """Points of the grid that the table lacks."""
    there = set(zip(known.width, known.height, known.knob, strict=True))
    for width, height in grid_sizes(source, spec):
        for knob in knobs:
            if (width, height, knob) not in there:
                yield width, height, knob


def reusable(
    earlier: pd.DataFrame | None, clip: str, codec: str
) -> Callable[[tuple[int, int, float], float], list[float] | None]:
    """FULL of a point of that bitrate, in kb/s, where an earlier grid has it; else None."""
    if earlier is None:
        return lambda point, kbps: None
    own = earlier[(earlier["clip"].astype(str) == clip) & (earlier.codec == codec)]
    own = own.drop_duplicates(["width", "height", "knob"], keep="last")
    rows: dict[Any, Any] = {
        (row.width, row.height, row.knob): row for row in own.itertuples(index=False)
    }

    def find(point: tuple[int, int, float], kbps: float) -> list[float] | None:
        row = rows.get(point)
        if row is None:
            return None
        apart = abs(row.kbps - kbps) * 1000 / 8 * row.frames / row.fps
        return [float(getattr(row, name)) for name in FULL] if apart <= SAME_BYTES else None

    return find


def fill(
    clip: Path,
    codec: str,
    out: Path,
    count: int,
    earlier: pd.DataFrame | None = None,
    *,
    preset: str,
) -> None:
    """Measure the missing points of a clip's grid for one codec; failures are logged, left out."""
    ffmpeg = ffmpeg_path()
    spec, source = default_encoder(codec), probe_source(clip, ffmpeg=ffmpeg)
    student = open_metric(DEFAULT_METRIC, ffmpeg=ffmpeg, device="cpu")
    sampled = open_metric("vmaf-sampled", ffmpeg=ffmpeg)
    table = out / "points" / f"{clip.stem}.{codec}.csv"
    known = pd.read_csv(table) if table.exists() else pd.DataFrame(columns=list(COLUMNS))
    if list(known.columns) != COLUMNS:
        raise SystemExit(f"{table} has other columns; choose another --out, and --reuse {out}")
    full = reusable(earlier, clip.stem, codec)
    with tempfile.TemporaryDirectory() as scratch, open(table, "a", newline="") as file:
        rows = csv.writer(file)
        if known.empty and not table.stat().st_size:
            rows.writerow(COLUMNS)
            file.flush()
        for point in missing(source, spec, grid_knobs(spec.knob, count), known):
            rendition = Rendition(*point[:2], spec.name, point[2], preset)
            try:
                made = encode(source, rendition, Path(scratch, f"x{spec.suffix}"), ffmpeg=ffmpeg)
                kbps = round(made.bitrate_kbps, 4)
                vmaf, psnr_y, vmaf_s = full(point, kbps) or measure_all(source, made.path)
                learned, estimate = (
                    metric.measure(source, made.path, spec.decoder)
                    for metric in (student, sampled)
                )
            except VqaloopError as error:
                print(f"{clip.stem}: {rendition}: {error}", file=sys.stderr)
                continue
            head = [clip.stem, float(source.fps), source.frames, codec, spec.name, *point]
            figures = [kbps, vmaf, psnr_y, learned.value, estimate.value]
            seconds = [made.cpu_s, vmaf_s, learned.cpu_s, estimate.cpu_s]
            rows.writerow(head + [round(v, 4) for v in figures] + [round(v, 3) for v in seconds])
            file.flush()


def measure_all(source: Source, path: Path) -> list[float]:
    """FULL of an encode."""
    found = full_reference.measure(source, path, ["vmaf", "psnr"], ffmpeg=ffmpeg_path(), threads=1)
    # both metrics came of one run, whose time is split between them
    return [found["vmaf"].value, found["psnr"].value, 2 * found["vmaf"].cpu_s]


def read_grid(folder: Path) -> pd.DataFrame:
    """All points of a grid's folder, or of one CSV that holds them."""
    files = [folder] if folder.is_file() else sorted(folder.glob("points/*.csv"))
    files = [file for file in files if file.stat().st_size]
    tables = [table for table in map(pd.read_csv, files) if len(table)]
    if not tables:
        raise SystemExit(f"no grid in {folder}; make it with `python -m bench.grid`")
    return pd.concat(tables, ignore_index=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--codecs", default=",".join(codecs()))
    parser.add_argument("--knobs", type=int, default=12)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--reuse", type=Path, help="an earlier grid: its CSV, or its folder")
    parser.add_argument("--probes", action="store_true", help="at the preset of probes")
    options = parser.parse_args()
    earlier = read_grid(options.reuse) if options.reuse else None
    (options.out / "points").mkdir(parents=True, exist_ok=True)
    for clip in options.clips:
        for codec in options.codecs.split(","):
            spec = default_encoder(codec)
            preset = spec.probe_preset if options.probes else spec.default_preset
            if preset is None:
                continue
            lock = filelock.FileLock(options.out / "points" / f".{clip.stem}.{codec}.lock")
            try:
                # another process is at it: go on with the next
                with lock.acquire(blocking=False):
                    cut_clip = cut(clip, options.out, options.frames)
                    fill(cut_clip, codec, options.out, options.knobs, earlier, preset=preset)
            except filelock.Timeout:
                continue
            print(f"{clip.stem} {codec}", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
