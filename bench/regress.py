"""Sensitivity and false alarms of `vqaloop regress`.

    python -m bench.regress CLIPS --out DIR [--clips N] [--draws N] [--csv FILE] [--share I/N]

Every clip is encoded at the default points by a baseline (x264 medium), by builds with a planted
fault (a setting a little worse than the default, or a tool left out), and several times by a
non-deterministic build (x264 with `non-deterministic` on more threads than cores). Then
comparisons are drawn: six clips each, with the verdict of the command. They give the detection
rate of each planted fault, and, of the non-deterministic runs with any three of them as baseline,
repeat and candidate, the rate of false alarms.

Runs are stored in `--out`, a file a clip, so that the bench resumes; several processes may share
the clips (`--share 0/2`, `--share 1/2`).
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.encoding.registry import get_encoder
from vqaloop.execution.cache import Cache
from vqaloop.execution.workshop import Workshop
from vqaloop.media.probe import probe_source
from vqaloop.quality.registry import open_metric
from vqaloop.regress.build_command import Build, Point
from vqaloop.regress.builds import open_build
from vqaloop.regress.compare import POINTS
from vqaloop.regress.document import outcome_json
from vqaloop.regress.interleaved_runs import RunPlan, run_clip
from vqaloop.regress.saved_runs import Saved, read_saved, write_saved
from vqaloop.regress.statistics import BASELINE, CANDIDATE, REPEAT, ClipRuns, Limits, ScoredRun
from vqaloop.regress.verdict import judge

FRAMES, DRAWN = 40, 6
PLANTED = {
    "qp offset +1 %": None,
    "ipratio 1.4 to 1.35": "ipratio=1.35",
    "ipratio 1.4 to 1.3": "ipratio=1.3",
    "ipratio 1.4 to 1.2": "ipratio=1.2",
    "qcomp 0.6 to 0.62": "qcomp=0.62",
    "qcomp 0.6 to 0.65": "qcomp=0.65",
    "ref 3 to 2": "ref=2",
    "subme 7 to 6": "subme=6",
    "trellis off": "trellis=0",
    "weightp off": "weightp=0",
    "two slices": "slices=2",
}
"""Name, and its x264-params; None: a CRF of 1.01 times the nominal one."""
UNSTEADY = 6
"""Runs of the non-deterministic build."""
OFFSET = """#!{python}
import os, sys
args = sys.argv[1:]
if "-crf" in args:
    at = args.index("-crf") + 1
    args[at] = str(float(args[at]) * 1.01)
os.execv({ffmpeg!r}, [{ffmpeg!r}, *args])
"""


def builds(folder: Path, ffmpeg: str) -> dict[str, Build]:
    """The baseline, the builds with planted faults, and the non-deterministic ones, by name."""
    spec = get_encoder("libx264")
    offset = folder / "offset"
    offset.write_text(OFFSET.format(python=sys.executable, ffmpeg=ffmpeg))
    offset.chmod(0o755)
    found = {BASELINE: open_build(ffmpeg, spec)}
    for name, params in PLANTED.items():
        args = ["-x264-params", params] if params else []
        found[name] = open_build(ffmpeg if params else offset, spec, args)
    unsteady = ["-threads", "8", "-x264-params", "non-deterministic=1"]
    for index in range(UNSTEADY):
        found[f"unsteady {index}"] = open_build(ffmpeg, spec, unsteady)
    return found


def measured(clip: Path, out: Path, tried: dict[str, Build], ffmpeg: str) -> ClipRuns:
    """All runs on one clip, unless stored. Roles are stored in the runs' points."""
    kept = out / f"{clip.stem}.json"
    if not kept.exists():
        spec = get_encoder("libx264")
        student = open_metric("internvqa", ffmpeg=ffmpeg)
        low, high = spec.knob.search
        points = tuple(
            Point(spec.knob.name, spec.knob.snap(low + (high - low) * part)) for part in POINTS
        )
        plan = RunPlan(spec, spec.default_preset, points, (), None, FRAMES, None, (student,))
        with Workshop(spec, student, Cache(out / "cache"), ffmpeg=ffmpeg) as shop:
            made = run_clip(probe_source(clip, ffmpeg=ffmpeg), clip.name, tried, plan, shop, _tell)
        if made.failures:
            raise SystemExit(f"{clip.name}: {made.failures[0].message}")
        # the file knows three roles only; which build it was stands before the point
        named = tuple(replace(r, build=BASELINE, point=f"{r.build}|{r.point}") for r in made.runs)
        about = {"name": "", "kind": "", "version": "", "sha256": "", "args": []}
        write_saved(Saved(about, {}, "", (replace(made, runs=named),)), kept)
    return read_saved(kept).clips[0]


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def cast(clip: ClipRuns, roles: dict[str, str]) -> ClipRuns:
    """The runs of three builds in the roles of a comparison."""
    runs: list[ScoredRun] = []
    for role, name in roles.items():
        for run in clip.runs:
            build, _, point = run.point.partition("|")
            if build == name:
                runs.append(replace(run, build=role, point=point))
    return replace(clip, runs=tuple(runs))


def verdict_of(clips: list[ClipRuns], seed: int, **limits: Any) -> dict[str, Any]:
    metrics = list(clips[0].runs[0].scores)
    student = next(name for name in metrics if name.startswith("internvqa"))
    kinds: dict[str, Any] = {"lead": student, "gate": metrics, "targets": False, "timed": True}
    return outcome_json(judge(clips, Limits(**limits), metrics=metrics, seed=seed, **kinds))


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.regress")
    parser.add_argument("folder", type=Path, help="of clips, with MANIFEST.csv")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--share", default="0/1")
    options = parser.parse_args()
    share, shares = map(int, options.share.split("/"))
    options.out.mkdir(parents=True, exist_ok=True)
    manifest = pd.read_csv(options.folder / "MANIFEST.csv")
    small = manifest[(manifest["frames"] >= FRAMES) & (manifest["width"] <= 640)]
    # one of each group, so that clips of one film are not taken for several
    names = small.drop_duplicates("group")["file"].head(options.clips)
    ffmpeg = ffmpeg_path()
    tried = builds(options.out, ffmpeg)
    clips = [
        measured(options.folder / name, options.out, tried, ffmpeg)
        for index, name in enumerate(names)
        if index % shares == share
    ]
    if shares > 1:
        return
    rows = []
    rng = np.random.default_rng(0)
    same = {BASELINE: BASELINE, REPEAT: BASELINE}
    for name in PLANTED:
        whole = verdict_of([cast(clip, {**same, CANDIDATE: name}) for clip in clips], 0)
        drawn = []
        for draw in range(options.draws):
            chosen = rng.choice(len(clips), DRAWN, replace=False)
            six = [cast(clips[i], {**same, CANDIDATE: name}) for i in chosen]
            drawn.append(verdict_of(six, draw, rate=1.0))
        rows.append(_row(name, whole, drawn))
    drawn = []
    for draw in range(2 * options.draws):
        chosen = rng.choice(len(clips), DRAWN, replace=False)
        roles = [f"unsteady {i}" for i in rng.choice(UNSTEADY, 3, replace=False)]
        trio = dict(zip((BASELINE, REPEAT, CANDIDATE), roles, strict=True))
        drawn.append(verdict_of([cast(clips[i], trio) for i in chosen], draw))
    trio = {role: f"unsteady {i}" for i, role in enumerate((BASELINE, REPEAT, CANDIDATE))}
    whole = verdict_of([cast(clip, trio) for clip in clips], 0)
    rows.append(_row("same build, not repeating itself", whole, drawn))
    table = pd.DataFrame(rows)
    print(f"{len(clips)} clips, {DRAWN} a comparison")
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    if options.csv:
        table.to_csv(options.csv, index=False, float_format="%.4f")


def _row(name: str, whole: dict[str, Any], drawn: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over all clips, and the number of draws with the verdict regression."""

    def found(metric: str | None) -> int:
        if metric is None:
            reasons = [[c for c in d["checks"] if c["status"] == "failed"] for d in drawn]
            return sum(any(c["check"] != "rate" for c in failed) for failed in reasons)
        return sum(d["metrics"][metric]["verdict"] == "regression" for d in drawn)

    metrics = whole["metrics"]
    return {
        "planted": name,
        **{f"bd {metric}": figures["bd_rate_percent"] for metric, figures in metrics.items()},
        "noise floor": max(d["noise_floor_percent"] or 0.0 for d in drawn),
        "rate": whole["rate"]["mean_percent"],
        "draws": len(drawn),
        "found": found(None),
        **{f"found {metric}": found(metric) for metric in metrics},
        "found rate": sum(
            any(c["check"] == "rate" and c["status"] == "failed" for c in d["checks"])
            for d in drawn
        ),
    }


if __name__ == "__main__":
    main()
