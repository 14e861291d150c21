"""Bitrate saved by tuned encoder parameters, and Optuna's samplers compared.

    python -m bench.tune CLIP... --codecs h264,hevc --trials 30 --samplers tpe,gp --csv OUT.csv

Each clip is cut to its first frames and tuned for a score of delivery; the saving is the BD-rate
by the metric that steers on all of it at knobs that the search has not seen, beside it those of
the guards, time the least CPU seconds of alternating runs. A row is written when a tuning ends;
interrupted, the same command resumes from the studies beside the CSV.
"""

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from bench.grid import cut
from vqaloop.errors import TargetUnreachable
from vqaloop.tuning.default_curves import GUARDS
from vqaloop.tuning.param_trials import TuneLimits
from vqaloop.tuning.result import Tuning
from vqaloop.tuning.tune import tune_encoder

COLUMNS = ["clip", "codec", "encoder", "metric", "sampler", "seed", "trials", "failed", "pruned"]
COLUMNS += ["feasible", "predicted", "saving", *GUARDS, "psnr_y_gain", "time_ratio", "trusted"]
COLUMNS += ["encodes", "encode_cpu_s", "score_cpu_s", "wall_s", "best_at", "params"]
KEY = ["clip", "codec", "metric", "sampler", "seed", "trials"]


def row(clip: Path, codec: str, sampler: str, tuning: Tuning) -> dict[str, Any]:
    """One line of the table."""
    about = tuning.about
    trials = pd.DataFrame(about["trials"])
    allowed = trials[trials.feasible]
    savings = allowed.saving_percent.astype(float).to_numpy()
    best_at = int(allowed.number.iloc[savings.argmax()]) if len(allowed) else None
    cost = about["cost"]
    return {
        "clip": clip.stem,
        "codec": codec,
        "encoder": about["encoder"]["library_version"],
        "metric": about["metric"]["name"],
        "sampler": sampler,
        "seed": about["study"]["seed"],
        "trials": about["study"]["trials"],
        "failed": int((trials.state == "failed").sum()),
        "pruned": int((trials.state == "pruned").sum()),
        "feasible": len(allowed),
        "predicted": round(float(allowed.saving_percent.max()), 3) if len(allowed) else 0.0,
        "saving": round(tuning.saving, 3),
        **about["guard_savings"],
        "psnr_y_gain": round(tuning.psnr_gain, 3),
        "time_ratio": round(tuning.time_ratio, 3),
        "trusted": tuning.trusted,
        "encodes": cost["encodes"],
        "encode_cpu_s": cost["encode_cpu_s"],
        "score_cpu_s": round(cost["score_s"] + cost["guard_s"], 3),
        "wall_s": cost["wall_s"],
        "best_at": best_at,
        "params": json.dumps(tuning.params),
    }


def summary(table: pd.DataFrame) -> str:
    """Means over clips for each codec, metric and sampler, as Markdown."""
    names = ["codec", "metric", "sampler", "clips", "saving %", *GUARDS.values()]
    names += ["PSNR-Y dB", "time", "encodes", "CPU s"]
    lines = [f"| {' | '.join(names)} |", "| --- " * len(names) + "|"]
    for (codec, metric, sampler), part in table.groupby(["codec", "metric", "sampler"]):
        spent = (part.encode_cpu_s + part.score_cpu_s).mean()
        figures = f"{part.saving.mean():.1f} ({part.saving.min():.1f} to {part.saving.max():.1f})"
        guards = " | ".join(f"{part[name].mean():.1f}" for name in GUARDS)
        lines.append(
            f"| {codec} | {metric} | {sampler} | {len(part)} | {figures} | {guards} | "
            f"{part.psnr_y_gain.mean():+.2f} | {part.time_ratio.mean():.2f} | "
            f"{part.encodes.mean():.0f} | {spent:.0f} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--codecs", default="h264,hevc")
    parser.add_argument("--metric", default="vmaf")
    parser.add_argument("--samplers", default="gp")
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--target-score", type=float, default=85.0)
    parser.add_argument("--slowdown", type=float, default=TuneLimits().slowdown)
    options = parser.parse_args()
    work = options.csv.with_suffix("")
    work.mkdir(parents=True, exist_ok=True)
    if not options.csv.exists():
        options.csv.write_text(",".join(COLUMNS) + "\n")
    for codec in options.codecs.split(","):
        for sampler in options.samplers.split(","):
            for clip in options.clips:
                known = pd.read_csv(options.csv)[KEY].astype(str).to_numpy().tolist()
                key = [
                    clip.stem,
                    codec,
                    options.metric,
                    sampler,
                    str(options.seed),
                    str(options.trials),
                ]
                if key in known:
                    continue
                name = ".".join(key)
                try:
                    tuning = tune_encoder(
                        cut(clip, work, options.frames),
                        codec=codec,
                        target_score=options.target_score,
                        trials=options.trials,
                        sampler=sampler,
                        slowdown=options.slowdown,
                        metric=options.metric,
                        seed=options.seed,
                        out=work / name,
                        progress=lambda event: print(
                            f"{event.stage} {event.done}/{event.total} {event.message}",
                            file=sys.stderr,
                            flush=True,
                        ),
                    )
                except TargetUnreachable as error:
                    print(f"{name}: {error}", file=sys.stderr)
                    continue
                with open(options.csv, "a", newline="") as file:
                    csv.DictWriter(file, COLUMNS).writerow(row(clip, codec, sampler, tuning))
    print(summary(pd.read_csv(options.csv)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
