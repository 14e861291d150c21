"""Cost of a score: the default student beside the other metrics on the same encodes.

    python -m bench.scoring CLIP... --out DIR [--csv FILE] [--threads N] [--judges vmaf,...]
                            [--ladders LADDER.json...]

The clips are scaled to each height and joined to a title of 10 s, which is encoded by x264 and
SVT-AV1 at its own height and, at 1080 and above, at a half of it. Each metric runs in a process of
its own, on as many cores as asked for. Seconds are of one rung, decoding and scaling included;
"once" is a student's cost per title (weights, features of the source). Share of a ladder: from the
cost in ladder.json. Classical metrics run once, the student several times, of which the least
counts. With a GPU `wall_s` of a student is the time from a bitstream to its score; `bench.gpu` has
the rest of what a GPU does.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd

from vqaloop.core import process
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.encoding.encode import encode
from vqaloop.encoding.registry import get_encoder
from vqaloop.media.probe import probe_source
from vqaloop.quality import full_reference
from vqaloop.quality.registry import open_metric
from vqaloop.records import Rendition, Source

SECONDS, FPS = 10, 25
ENCODES = (("libx264", "veryfast", 26.0), ("libsvtav1", "10", 35.0))
"""Encoder, preset, knob."""
JUDGES = ("internvqa", "vmaf", "vmaf-v1", "vmaf-neg", "cambi", "xpsnr", "psnr")
"""Those measured unless others are named; of ssimulacra2 and cvvdp a score takes minutes."""


def make_title(
    clips: list[Path], height: int, folder: Path, ffmpeg: str, seconds: int = SECONDS
) -> Source:
    """A title of that height, 16:9, from equal parts of the clips."""
    path = folder / f"title-{height}-{seconds}s.mp4"
    if not path.exists():
        width, frames = height * 16 // 9, seconds * FPS // len(clips)
        parts = [
            f"[{i}:v]fps={FPS},scale={width}:{height}:force_original_aspect_ratio=increase:"
            f"flags=lanczos,crop={width}:{height},setsar=1,tpad=stop=-1:stop_mode=clone,"
            f"trim=end_frame={frames},setpts=PTS-STARTPTS,format=yuv420p[v{i}]"
            for i in range(len(clips))
        ]
        joined = "".join(f"[v{i}]" for i in range(len(clips)))
        graph = ";".join([*parts, f"{joined}concat=n={len(clips)}:v=1[out]"])
        inputs = [word for clip in clips for word in ("-i", file_url(clip))]
        part = path.with_name(f"part-{path.name}")
        done = process.run(
            [ffmpeg, "-nostdin", "-v", "error", "-y", *inputs, "-filter_complex", graph]
            + ["-map", "[out]", "-c:v", "libx264", "-preset", "ultrafast", "-crf", "6"]
            + ["-g", str(FPS), file_url(part)],
            timeout_s=3600,
        )
        if done.returncode:
            raise SystemExit(f"the title could not be made: {done.reason()}")
        part.rename(path)
    return probe_source(path, ffmpeg=ffmpeg)


def make_rungs(source: Source, folder: Path, ffmpeg: str) -> list[Path]:
    """Encodes of the title at its height and, if that is large, at a half of it."""
    height = source.height
    rungs = []
    for size in (height, height // 2)[: 1 + (height >= 1080)]:
        for name, preset, knob in ENCODES:
            path = folder / f"{height}-at-{size}-{name}{get_encoder(name).suffix}"
            if not path.exists():
                rendition = Rendition(size * 16 // 9, size, name, knob, preset)
                encode(source, rendition, path, ffmpeg=ffmpeg)
            rungs.append(path)
    return rungs


def judged(title: Path, rung: Path, judge: str, threads: int, repeats: int) -> dict[str, Any]:
    """One metric on one rung, in this process; the least of the repeats."""
    ffmpeg = ffmpeg_path()
    source = probe_source(title, ffmpeg=ffmpeg)
    found: dict[str, Any] = {}
    if judge in full_reference.METRICS:
        runs = [
            full_reference.measure(source, rung, [judge], ffmpeg=ffmpeg, threads=threads)[judge]
        ]
        found["peak_mb"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    else:
        import torch

        torch.set_num_threads(threads)
        metric = open_metric(judge, ffmpeg=ffmpeg, device="auto")
        cpu, wall = time.process_time(), time.monotonic()
        first = metric.measure(source, rung, "pyav")
        once = time.process_time() - cpu, time.monotonic() - wall
        runs = [metric.measure(source, rung, "pyav") for _ in range(repeats)]
        least = min(runs, key=lambda run: run.cpu_s)
        found["once_cpu_s"], found["once_wall_s"] = (
            max(0.0, once[0] - least.cpu_s),
            max(0.0, once[1] - least.wall_s),
        )
        # ColorVideoVDP is a program
        whose = resource.RUSAGE_CHILDREN if judge == "cvvdp" else resource.RUSAGE_SELF
        found["peak_mb"] = resource.getrusage(whose).ru_maxrss / 1024
        assert first.value == runs[0].value
    best = min(runs, key=lambda run: run.cpu_s)
    return {**found, "score": best.value, "cpu_s": best.cpu_s, "wall_s": best.wall_s}


def in_its_own_process(*words: str, threads: int) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    cores = sorted(os.sched_getaffinity(0))[:threads]
    command = [sys.executable, "-m", "bench.scoring", "--one", *words]

    def keep_to_cores() -> None:
        os.sched_setaffinity(0, cores)

    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, preexec_fn=keep_to_cores
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout))


def ladder_shares(paths: list[Path]) -> pd.DataFrame:
    """Shares of a ladder's CPU seconds spent on scoring, the guard and encoding."""
    rows = []
    for path in paths:
        made = json.loads(path.read_text())
        cost = made["cost"]
        encoding, scoring, guard = (
            cost.get(k, 0.0) for k in ("encode_cpu_s", "score_s", "guard_s")
        )
        rows.append(
            {
                "ladder": f"{made['codec']} {made['source']['width']}x{made['source']['height']}",
                "encodes": cost["encodes"],
                "rungs": len(made["rungs"]),
                "encoding_s": encoding,
                "scoring_s": scoring,
                "guard_s": guard,
                "scoring_share": scoring / (encoding + scoring + guard),
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", nargs="*", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--heights", default="540,1080,2160")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--judges", type=lambda text: text.split(","), default=JUDGES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ladders", nargs="*", default=[], type=Path)
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        title, rung, judge, threads, repeats = options.one
        print(json.dumps(judged(Path(title), Path(rung), judge, int(threads), int(repeats))))
        return
    rows = []
    if options.clips:
        options.out.mkdir(parents=True, exist_ok=True)
        ffmpeg = ffmpeg_path()
        for height in map(int, options.heights.split(",")):
            source = make_title(options.clips, height, options.out, ffmpeg)
            for rung in make_rungs(source, options.out, ffmpeg):
                for judge in options.judges:
                    known = judge in full_reference.METRICS
                    if known and not full_reference.can_measure(judge, source, ffmpeg):
                        continue
                    words = (str(source.path), str(rung), judge)
                    numbers = (str(options.threads), str(options.repeats))
                    found = in_its_own_process(*words, *numbers, threads=options.threads)
                    load = os.getloadavg()[0]
                    row = {"title": height, "rung": rung.stem, "judge": judge, **found}
                    rows.append({**row, "threads": options.threads, "load": load})
                    print(rows[-1], flush=True)
                    if options.csv:
                        table = pd.DataFrame(rows)
                        table.to_csv(options.csv, index=False, float_format="%.3f")
        table = pd.DataFrame(rows)
        vmaf = table[table.judge == "vmaf"].set_index("rung").cpu_s
        table["of_vmaf"] = table.cpu_s / table.rung.map(vmaf)
        print(table.to_string(index=False, float_format=lambda v: f"{v:.2f}"))
    if options.ladders:
        shares = ladder_shares(options.ladders)
        print(shares.to_string(index=False, float_format=lambda v: f"{v:.2f}"))


if __name__ == "__main__":
    main()
