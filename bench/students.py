"""Students compared: correlation on held-out titles, cost of a rung, noise of the crop seed.

    python -m bench.students WEIGHTS... --held-out SHARDS [--clips CLIP...] [--csv FILE]

Cost is of one rung at the default number of crops, network alone, reference features not counted.
The noise is the standard deviation of a rung's score over ten crop seeds, the largest and the mean
over four encodes of each clip (and the same of differences between neighbouring encodes of a clip,
which a ladder depends on).
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.encoding.encode import encode
from vqaloop.media.planes import CLIP_FRAMES, CLIP_SIZE
from vqaloop.media.probe import probe_source
from vqaloop.models.student import CANVAS_HEIGHT
from vqaloop.models.weights import load_student
from vqaloop.quality.crop_sampling import CROPS_EACH, POSITIONS
from vqaloop.quality.inference import BATCH
from vqaloop.quality.registry import open_metric
from vqaloop.quality.student_metric import StudentMetric
from vqaloop.records import Rendition
from vqaloop.training.evaluate import evaluate, score_shards
from vqaloop.training.shards import load_shard, shard_paths

RUNS = 5
"""Of a rung's network, whose time is the mean."""
SEEDS = range(10)
ENCODES = ((1.0, 24), (1.0, 34), (0.5, 24), (0.5, 34))
"""Part of the source's height, and x264's CRF."""


def cost(weights: Path, threads: int) -> dict[str, Any]:
    """Seconds of one rung's network on this machine."""
    torch.set_num_threads(threads)
    student, about = load_student(weights)
    clips = torch.randn(POSITIONS * CROPS_EACH, 3, CLIP_FRAMES, CLIP_SIZE, CLIP_SIZE)
    with torch.inference_mode():
        # as a rung is scored: in batches, by the anchored head alone
        batches = torch.split(clips, BATCH["cpu"])
        parts = [(batch, student.anchor(batch, CANVAS_HEIGHT)) for batch in batches]
        with FlopCounterMode(display=False) as counter:
            student.compare(*parts[0])
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(RUNS):
            for part in parts:
                student.compare(*part)
        wall, cpu = (time.perf_counter() - wall) / RUNS, (time.process_time() - cpu) / RUNS
    return {
        "model": about["model"],
        "parameters": sum(p.numel() for p in student.parameters()),
        "mmacs_a_crop": counter.get_total_flops() / 2e6 / len(parts[0][0]),
        "megabytes": weights.stat().st_size / 1e6,
        "wall_s": wall,
        "cpu_s": cpu,
    }


def noise(weights: Path, clips: list[Path]) -> dict[str, float]:
    """Standard deviations over crop seeds, of scores and of differences within a clip."""
    ffmpeg = ffmpeg_path()
    single, differences = [], []
    for clip in clips:
        source = probe_source(clip, allow_hdr=True, ffmpeg=ffmpeg)
        scores = np.empty((len(SEEDS), len(ENCODES)))
        with tempfile.TemporaryDirectory() as folder:
            files = []
            for i, (scale, crf) in enumerate(ENCODES):
                width, height = (round(side * scale / 2) * 2 for side in source.canvas)
                files.append(Path(folder) / f"{i}")
                rendition = Rendition(width, height, "libx264", crf, "veryfast")
                encode(source, rendition, files[-1], ffmpeg=ffmpeg)
            for seed in SEEDS:
                metric = open_metric("internvqa", ffmpeg=ffmpeg, seed=seed, weights=weights)
                assert isinstance(metric, StudentMetric)
                for i, file in enumerate(files):
                    scores[seed, i] = metric.measure(source, file, "pyav").value
        single += list(scores.std(0, ddof=1))
        differences += list(np.diff(scores, axis=1).std(0, ddof=1))
    return {
        "seed_sd_mean": float(np.mean(single)),
        "seed_sd_max": float(np.max(single)),
        "step_sd_mean": float(np.mean(differences)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", nargs="+", type=Path)
    parser.add_argument("--held-out", nargs="+", required=True, type=Path)
    parser.add_argument("--clips", nargs="*", default=[], type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    rows = []
    for weights in options.weights:
        row = {"weights": str(weights), **cost(weights, options.threads)}
        student, _ = load_student(weights)
        shards = map(load_shard, shard_paths(options.held_out))
        judged = score_shards(student, shards, torch.device("cpu"))
        found = evaluate(judged.table, judged.regions)
        for head in ("anchored", "alone"):
            figures = found["judges"][head]["overall"]
            row |= {f"{head}_{k}": figures[k] for k in ("srcc", "plcc", "rmse", "within_srcc")}
        if options.clips:
            row |= noise(weights, options.clips)
        rows.append(row)
        print(row, flush=True)
    table = pd.DataFrame(rows)
    if options.csv:
        table.to_csv(options.csv, index=False, float_format="%.4f")
    print(table.T.to_string(float_format=lambda v: f"{v:.4f}"))


if __name__ == "__main__":
    main()
