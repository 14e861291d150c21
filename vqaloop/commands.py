"""What each command does with its options; the exit status it returns.

What is heavy is imported by the command that needs it, so that the others are quick.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from vqaloop import process
from vqaloop.errors import InputError
from vqaloop.files import renamed_to
from vqaloop.terminal import printable

UNTRUSTED = 3


def emit(options: argparse.Namespace, document: Any) -> None:
    """Write the JSON document where it was asked for, whole or not at all."""
    if not options.json:
        return
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    if options.json == "-":
        sys.stdout.write(text)
        return
    path = Path(options.json)
    try:
        if path.exists() and not path.is_file():
            # a pipe or a device is written to, never replaced
            path.write_text(text, encoding="utf-8")
            return
        with renamed_to(path) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"could not write {process.quoted(path)}: {error.strerror or error}"
        ) from error


def say(options: argparse.Namespace, text: str) -> None:
    """A message for people; stdout is left alone when the JSON goes there."""
    if options.json != "-":
        encoding = sys.stdout.encoding or "utf-8"
        print(printable(text).encode(encoding, "backslashreplace").decode(encoding))


def sample(options: argparse.Namespace) -> int:
    from vqaloop.request import parse_size
    from vqaloop.sample import write_sample

    path = write_sample(
        options.output,
        seconds=options.seconds,
        size=parse_size(options.size),
        fps=options.fps,
        seed=options.seed,
        overwrite=options.overwrite,
    )
    say(options, f"wrote {path}")
    emit(options, {"path": printable(str(path)), "bytes": path.stat().st_size})
    return 0


def ladder(options: argparse.Namespace) -> int:
    from vqaloop.ladder import build_ladder, build_ladders
    from vqaloop.request import parse_duration, parse_resolutions, parse_rungs, parse_size
    from vqaloop.terminal import Progress, print_ladder

    codecs = options.codec.split(",")
    with Progress(quiet=options.quiet) as progress:
        asked: dict[str, Any] = dict(
            resolutions=parse_resolutions(options.resolutions),
            rungs=parse_rungs(options.rungs),
            min_step=options.min_step,
            min_ratio=options.min_ratio,
            min_bitrate=options.min_bitrate,
            max_bitrate=options.max_bitrate,
            min_score=options.min_score,
            max_score=options.max_score,
            require=[parse_size(word) for word in (options.require or "").split(",") if word],
            budget_s=None if options.budget is None else parse_duration(options.budget),
            prior=not options.no_prior,
            tune_trials=options.tune_params,
            progress=progress,
            **_encoding(options),
        )
        if len(codecs) == 1:
            made = {codecs[0]: build_ladder(options.input, codec=codecs[0], **asked)}
        else:
            made = build_ladders(options.input, codecs=codecs, **asked)
    for codec, ladder in made.items() if options.json != "-" else ():
        if len(made) > 1:
            say(options, "")
            say(options, codec)
        print_ladder(ladder)
    documents = {codec: ladder.to_json() for codec, ladder in made.items()}
    several = {"schema": "vqaloop.ladders/1", "ladders": documents}
    emit(options, several if len(codecs) > 1 else documents[codecs[0]])
    return 0 if all(ladder.trusted for ladder in made.values()) else UNTRUSTED


def tune(options: argparse.Namespace) -> int:
    from vqaloop.request import parse_size
    from vqaloop.terminal import Progress
    from vqaloop.tune import tune_encoder
    from vqaloop.tuning import told

    with Progress(quiet=options.quiet) as progress:
        tuning = tune_encoder(
            options.input,
            codec=options.codec,
            target_score=options.target_score,
            bitrate=options.bitrate,
            trials=options.trials,
            sampler=options.sampler,
            slowdown=options.slowdown,
            resolution=parse_size(options.resolution) if options.resolution else None,
            progress=progress,
            **_encoding(options),
        )
    for line in told(tuning):
        say(options, line)
    emit(options, tuning.to_json())
    return 0 if tuning.trusted else UNTRUSTED


def _encoding(options: argparse.Namespace) -> dict[str, Any]:
    """What every command that encodes a title is told alike."""
    alike = (
        "encoder",
        "metric",
        "weights",
        "storage",
        "preset",
        "bit_depth",
        "device",
        "workers",
        "seed",
    )
    raw = ("video_size", "pix_fmt", "framerate", "allow_hdr")
    return {
        **{name: getattr(options, name) for name in (*alike, *raw)},
        "out": options.output,
        "cache": not options.no_cache,
        "timeout_s": options.time_limit,
    }


def score(options: argparse.Namespace) -> int:
    from vqaloop.records import rounded
    from vqaloop.request import check_metric
    from vqaloop.score import Scorer

    scorer = Scorer(
        options.metric,
        device=options.device,
        seed=options.seed,
        weights=options.weights,
        allow_hdr=options.allow_hdr,
    )
    check_metric(scorer.metric, options.weights, options.reference is not None)
    found = scorer.score(options.video, options.reference)
    low, high = found.interval or (found.value, found.value)
    spread = f" (95 % interval {low:.1f} to {high:.1f})" if found.interval else ""
    say(options, f"{found.value:.2f}  {found.metric}, {found.mode}{spread}")
    if found.mode == "no-reference":
        say(
            options,
            "Without its original a video is judged coarsely; give --reference if you have it.",
        )
    emit(
        options,
        {
            "value": rounded(found.value),
            "mode": found.mode,
            "metric": found.metric,
            "label": found.label,
            "weights_sha256": found.weights_sha256,
            "interval": [rounded(v) for v in found.interval] if found.interval else None,
            "clips": [rounded(v) for v in found.clips],
        },
    )
    return 0


def report(options: argparse.Namespace) -> int:
    from vqaloop.report import read_ladder, write_reports
    from vqaloop.terminal import print_ladder

    ladder = read_ladder(options.folder)
    write_reports(ladder)
    if options.json != "-":
        print_ladder(ladder)
    emit(options, ladder.to_json())
    return 0


def corpus(options: argparse.Namespace) -> int:
    from vqaloop.corpus import Plan, build_corpus, find_scenes, synthetic_scenes
    from vqaloop.terminal import Progress

    if options.dataset:
        return _scored_set(options)
    scenes = find_scenes(options.sources, options.windows)
    if options.basis:
        scenes = [scene for scene in scenes if scene.basis == options.basis]
        if not scenes:
            raise InputError(f"no material with licence_basis {options.basis!r}")
    scenes += synthetic_scenes(options.synthetic)
    plan = Plan(encodes=options.encodes, crops=options.crops, seed=options.seed)
    with Progress(quiet=options.quiet) as progress:
        shards = build_corpus(
            scenes,
            options.out,
            plan,
            ffmpeg=process.ffmpeg_path(),
            workers=options.workers,
            report=progress.log,
        )
    say(options, f"{len(shards)} of {len(scenes)} scenes in {options.out}")
    emit(options, {"scenes": len(scenes), "shards": [path.name for path in shards]})
    return 0


def _scored_set(options: argparse.Namespace) -> int:
    from vqaloop.datasets import read_dataset
    from vqaloop.terminal import Progress
    from vqaloop.views import View, prepare

    if len(options.sources) != 1:
        raise InputError(f"--dataset takes one folder or table, not {len(options.sources)}")
    view = View(options.view, options.frames, options.stride, options.size, options.clips)
    dataset = read_dataset(options.dataset, options.sources[0], options.scale)
    with Progress(quiet=options.quiet) as progress:
        shards = prepare(
            dataset,
            options.out,
            view,
            ffmpeg=process.ffmpeg_path(),
            workers=options.workers,
            seed=options.seed,
            report=progress.log,
        )
    say(options, f"{len(shards)} contents in {options.out}; see report.json there")
    emit(options, {"label": dataset.label, "shards": [path.name for path in shards]})
    return 0


def distill(options: argparse.Namespace) -> int:
    from vqaloop.device import pick_device
    from vqaloop.distill import train
    from vqaloop.recipe import read_recipe
    from vqaloop.terminal import Progress

    with Progress(quiet=options.quiet) as progress:
        weights = train(
            read_recipe(options.recipe),
            device=pick_device(options.device),
            resume=not options.restart,
            report=progress.log,
        )
    # of several processes the first speaks
    if os.environ.get("RANK", "0") == "0":
        say(options, f"weights in {weights}")
        emit(options, {"weights": str(weights)})
    return 0


def evaluate(options: argparse.Namespace) -> int:
    from vqaloop.device import pick_device
    from vqaloop.evaluate import METRICS, evaluate, judge
    from vqaloop.scatter import figures_text, write_evaluation
    from vqaloop.score import shipped_weights
    from vqaloop.shards import load_shard, shard_paths, title_of, trained_titles
    from vqaloop.terminal import Progress
    from vqaloop.weights import load_student

    metrics = options.metrics.split(",") if options.metrics else []
    if not set(metrics) <= set(METRICS):
        raise InputError(f"--metrics {options.metrics!r}: choose among {', '.join(METRICS)}")
    if options.crops is not None and options.crops < 1:
        raise InputError(f"--crops {options.crops} is too few; give 1 or more")
    shipped = {path.stem: path for path in shipped_weights()}
    path = shipped.get(options.weights, Path(options.weights))
    if not path.exists():
        raise InputError(
            f"no weights {process.quoted(path)}; give a file, or one of {', '.join(shipped)}"
        )
    student, about = load_student(path)
    known = frozenset[str]() if options.all else trained_titles(about)
    there = shard_paths(options.datasets)
    paths = [path for path in there if title_of(path) not in known] if known else there
    if not paths:
        raise InputError(
            f"{options.weights} was trained on all titles there; give others, or judge these all "
            "the same with --all"
        )
    if options.output:
        _check_place(options.output)
    device = pick_device(options.device)
    with Progress(quiet=options.quiet) as progress:
        found = judge(
            student.to(device),
            map(load_shard, paths),
            device,
            crops=options.crops,
            metrics=metrics,
            ffmpeg=process.ffmpeg_path(),
            seed=options.seed,
            report=progress.log,
        )
    figures = {
        "weights": printable(options.weights),
        "weights_sha256": about["sha256"],
        **evaluate(found.table, found.crops, seed=options.seed),
    }
    if len(paths) < len(there):
        say(options, f"left out {len(there) - len(paths)} scenes of titles it was trained on")
    for line in figures_text(figures).splitlines():
        say(options, line)
    if options.output:
        _make_folder(options.output)
        write_evaluation(options.output, found, figures)
        say(options, f"wrote {options.output}")
    emit(options, figures)
    return 0


def _check_place(folder: Path) -> None:
    """Raises InputError where no such folder could be made and written to; none is made yet."""
    from vqaloop.request import check_writable

    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    check_writable(there, "name another folder with -o")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        name = process.quoted(folder)
        raise InputError(f"could not make {name}: {error.strerror or error}") from error


def encoders(options: argparse.Namespace) -> int:
    from vqaloop.terminal import print_encoders, survey_encoders

    found = survey_encoders()
    if options.json != "-":
        print_encoders(found, verbose=options.verbose)
    emit(options, found)
    return 0
