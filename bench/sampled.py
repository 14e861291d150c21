"""Metrics of the loop held against VMAF of all frames: error, noise inside a title, CPU seconds.

    python -m bench.sampled CLIP... [--join 7] [--height 1080] [--seeds 2] [--csv FILE]

Clips are scaled to the height, and with --join so many at a time are joined to titles of several
scenes. Each is encoded at two sizes and two qualities by x264 and SVT-AV1, once more with its last
tenth starved, and each encode is scored as `vqaloop score` does. "inside" is the standard
deviation of the error within a title, which is what a ladder depends on; tau is Kendall's, within
a title.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import kendalltau

from vqaloop.core import process
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.media.probe import probe_source
from vqaloop.quality import full_reference
from vqaloop.quality.registry import open_metric
from vqaloop.records import Source

METRICS = {"internvqa": "vmaf", "vmaf-sampled": "vmaf", "vmaf-v1-sampled": "vmaf-v1"}
"""Metrics, and the one over all frames that each is held against."""
KINDS = ("x264 24", "x264 34", "x264 half 28", "av1 45", "late drop")
GOP = ["-g", "50"]


def run(*words: str | Path) -> None:
    argv = [ffmpeg_path(), "-nostdin", "-v", "error", "-y", *map(str, words)]
    done = process.run(argv, timeout_s=1800)
    if done.returncode:
        raise SystemExit(f"ffmpeg: {done.reason()}")


def join(clips: tuple[Path, ...], height: int, frames: int, out: Path) -> None:
    """The clips one after another at 25 fps, filling a 16:9 picture, as raw video."""
    size = f"{round(height * 16 / 9 / 2) * 2}:{height}"
    parts = [
        f"[{i}:v:0]trim=end_frame={frames},settb=1/25,setpts=N,format=yuv420p,"
        f"scale={size}:force_original_aspect_ratio=increase:flags=bicubic,crop={size},setsar=1[p{i}]"
        for i in range(len(clips))
    ]
    names = "".join(f"[p{i}]" for i in range(len(clips)))
    graph = ";".join([*parts, f"{names}concat=n={len(clips)},settb=1/25,setpts=N"])
    inputs = [word for clip in clips for word in ("-i", file_url(clip))]
    run(*inputs, "-filter_complex", graph, "-fps_mode", "passthrough", file_url(out))


def encodes(source: Source, folder: Path) -> Iterator[tuple[str, Path]]:
    """(name, file) of each encode of a title."""
    small = ["-vf", "scale=trunc(iw/4)*2:trunc(ih/4)*2:flags=bicubic"]
    x264 = ["-c:v", "libx264", "-preset", "veryfast", "-sc_threshold", "0", *GOP]
    av1 = ["-c:v", "libsvtav1", "-preset", "10", *GOP]
    late = f"zones={int(source.frames * 0.9)},{source.frames - 1},q=46"
    options = (
        [*x264, "-crf", "24"],
        [*x264, "-crf", "34"],
        [*small, *x264, "-crf", "28"],
        [*av1, "-crf", "45"],
        [*x264, "-crf", "27", "-x264-params", late],
    )
    for name, words in zip(KINDS, options, strict=True):
        out = folder / "encode.mp4"
        run("-i", file_url(source.path), *words, file_url(out))
        yield name, out


def study(source: Source, title: str, seeds: int) -> Iterator[dict[str, Any]]:
    """A row for each encode, metric and seed."""
    ffmpeg = ffmpeg_path()
    judges = sorted({judge for judge in METRICS.values() if judge in full_reference.METRICS})
    metrics = {
        (name, seed): open_metric(name, ffmpeg=ffmpeg, device="cpu", seed=seed)
        for name, judge in METRICS.items()
        if judge in judges
        for seed in range(seeds)
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, path in encodes(source, Path(folder)):
            truth = full_reference.measure(source, path, judges, ffmpeg=ffmpeg)
            for (metric, seed), meter in metrics.items():
                found = meter.measure(source, path, "pyav")
                # the first score of a title pays for the source's part
                found = meter.measure(source, path, "pyav") if name == KINDS[0] else found
                whole = truth[METRICS[metric]]
                yield {
                    **{"title": title, "encode": name, "metric": metric, "seed": seed},
                    **{"score": found.value, "truth": whole.value, "places": len(found.moments)},
                    **{"cpu_s": found.cpu_s, "truth_cpu_s": whole.cpu_s * len(judges)},
                }


def figures(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each metric."""
    table = table.assign(error=table.score - table.truth)
    rows = []
    for metric, own in table.groupby("metric", sort=False):
        inside = own.groupby(["title", "seed"])
        taus = [kendalltau(part.score, part.truth).statistic for _, part in inside]
        rows.append(
            {
                **{"metric": metric, "scores": len(own), "bias": own.error.mean()},
                **{"rmse": (own.error**2).mean() ** 0.5, "worst": own.error.abs().max()},
                "inside": (inside.error.var(ddof=0).mean()) ** 0.5,
                "tau": sum(taus) / len(taus),
                "late drop": (own[own.encode == KINDS[-1]].error ** 2).mean() ** 0.5,
                **{"places": own.places.mean(), "cpu_s": own.cpu_s.mean()},
                "truth_cpu_s": own.truth_cpu_s.mean(),
            }
        )
    return pd.DataFrame(rows)


def batches(clips: list[Path], size: int) -> Iterator[tuple[Path, ...]]:
    """The clips, so many at a time."""
    for first in range(0, len(clips), size):
        yield tuple(clips[first : first + size])


def judge(
    words: str | None,
    seeds: int,
    study: Callable[[Source, str, int], Iterable[dict[str, Any]]],
    figures: Callable[[pd.DataFrame], pd.DataFrame],
) -> None:
    """A bench of joined titles: its arguments read, each title studied, the figures printed."""
    parser = argparse.ArgumentParser(description=(words or "").split("\n")[0])
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--join", type=int, default=1, help="clips of a title")
    parser.add_argument("--height", type=int, default=360)
    parser.add_argument("--frames", type=int, default=60, help="of each clip, at most")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for clips in batches(options.clips, options.join):
            path = Path(folder, "title.y4m")
            join(clips, options.height, options.frames, path)
            source = probe_source(path, ffmpeg=ffmpeg_path())
            title = "+".join(clip.stem for clip in clips)
            rows += study(source, title, options.seeds)
            print(title, flush=True)
    table = pd.DataFrame(rows)
    if options.csv:
        table.to_csv(options.csv, index=False, float_format="%.4f")
    print(figures(table).to_string(index=False, float_format=lambda v: f"{v:.2f}"))


def main() -> None:
    judge(__doc__, 2, study, figures)


if __name__ == "__main__":
    main()
