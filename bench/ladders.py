"""Ladders of all codecs on several clips, verified by independent means.

    python -m bench.ladders CLIP... [--codecs h264,hevc,...] [--csv FILE] [--out DIR]

For every ladder: rungs, sizes, encodes, whether bitrate and score rise, decoded codec of each
file, declared against real bitrate, size of the file that `ffmpeg_args` gives when replayed,
Kendall's tau between score and VMAF, and CPU seconds of encoding and scoring. Each ladder has an
empty cache.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import av
import pandas as pd
from scipy.stats import kendalltau

import vqaloop
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.records import Ladder, Rung

CODECS = ("h264", "hevc", "vp9", "av1", "avs2")


def check(ladder: Ladder, clip: Path, replay: bool) -> dict[str, Any]:
    """One row of the table."""
    rungs = ladder.rungs
    cost = ladder.about["cost"]
    duration_s = ladder.about["source"]["duration"]
    scores = [rung.score for rung in rungs]
    rates = [rung.bitrate_kbps for rung in rungs]
    sizes = [(ladder.folder / rung.file).stat().st_size for rung in rungs]
    real = [size * 8 / 1000 / duration_s for size in sizes]
    return {
        "clip": clip.stem,
        "codec": ladder.about["codec"],
        "rungs": len(rungs),
        "resolutions": len({rung.height for rung in rungs}),
        "rising": _rises(rates) and _rises(scores),
        "kbps": f"{rates[0]:.0f}-{rates[-1]:.0f}",
        "score": f"{scores[0]:.1f}-{scores[-1]:.1f}",
        "codecs_in_files": " ".join(sorted({codec_of(ladder.folder / r.file) for r in rungs})),
        "rate_error_percent": max(abs(a / b - 1) * 100 for a, b in zip(rates, real, strict=True)),
        "replay_error_percent": max(
            replayed(rung, clip, size) for rung, size in zip(rungs, sizes, strict=True)
        )
        if replay
        else None,
        "tau_vmaf": kendalltau(scores, [rung.guard["vmaf"] for rung in rungs]).statistic,
        "prediction_error": max(abs(r.score - r.score_predicted) for r in rungs),
        "encodes": cost["encodes"],
        "cache_hits": cost["cache_hits"],
        "encode_cpu_s": cost["encode_cpu_s"],
        "score_cpu_s": cost["score_s"],
        "guard_cpu_s": cost["guard_s"],
        "wall_s": cost["wall_s"],
    }


def _rises(values: list[float]) -> bool:
    return all(a < b for a, b in zip(values, values[1:], strict=False))


def codec_of(path: Path) -> str:
    """Codec of a file, after decoding all of it."""
    if path.suffix == ".avs2":
        subprocess.run(
            [
                ffmpeg_path(),
                "-v",
                "error",
                "-xerror",
                "-i",
                file_url(path),
                "-f",
                "null",
                "-",
            ],
            check=True,
        )
        return "avs2"
    with av.open(file_url(path)) as container:
        stream = container.streams.video[0]
        frames = sum(1 for _ in container.decode(stream))
        assert frames == stream.frames, f"{path}: {frames} of {stream.frames} frames"
        return str(stream.codec_context.codec.canonical_name)


def replayed(rung: Rung, clip: Path, size: int) -> float:
    """Percent by which the file size differs when the rung's arguments are replayed."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "again"
        subprocess.run(
            [
                ffmpeg_path(),
                "-v",
                "error",
                "-nostdin",
                "-y",
                "-i",
                file_url(clip),
                *rung.ffmpeg_args,
                file_url(out),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return abs(out.stat().st_size / size - 1) * 100


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--codecs", default=",".join(CODECS))
    parser.add_argument("--metric", default="internvqa")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--out", type=Path, help="keep the ladders here")
    parser.add_argument("--no-replay", action="store_true")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for clip in options.clips:
            for codec in options.codecs.split(","):
                folder = (options.out or Path(scratch)) / f"{clip.stem}.{codec}"
                folder.parent.mkdir(parents=True, exist_ok=True)
                # what was encoded or learnt before must not help
                os.environ["VQALOOP_CACHE"] = tempfile.mkdtemp(dir=scratch)
                ladder = vqaloop.build_ladder(clip, codec=codec, metric=options.metric, out=folder)
                rows.append(check(ladder, clip, not options.no_replay))
                print(rows[-1], file=sys.stderr, flush=True)
    table = pd.DataFrame(rows)
    if options.csv:
        table.to_csv(options.csv, index=False, float_format="%.3f")
    print(table.to_string(index=False, float_format=lambda v: f"{v:.2f}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
