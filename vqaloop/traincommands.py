"""The commands about students: making labelled sets, training, judging."""

import argparse
import os
from pathlib import Path

from vqaloop import process
from vqaloop.commands import emit, say
from vqaloop.errors import InputError
from vqaloop.terminal import counted, printable


def corpus(options: argparse.Namespace) -> int:
    from vqaloop.corpus import CorpusPlan, build_corpus, find_scenes, synthetic_scenes
    from vqaloop.terminal import Progress

    if options.dataset:
        return _scored_set(options)
    scenes = find_scenes(options.sources, options.windows)
    if options.basis:
        scenes = [scene for scene in scenes if scene.basis == options.basis]
        if not scenes:
            raise InputError(f"no material with licence_basis {options.basis!r}")
    scenes += synthetic_scenes(options.synthetic)
    plan = CorpusPlan(encodes=options.encodes, crops=options.crops, seed=options.seed)
    with Progress(quiet=options.quiet) as progress:
        shards = build_corpus(
            scenes,
            options.out,
            plan,
            ffmpeg=process.ffmpeg_path(),
            workers=options.workers,
            report=progress.log,
        )
    say(options, f"{len(shards)} of {counted(len(scenes), 'scene')} in {options.out}")
    emit(options, {"scenes": len(scenes), "shards": [path.name for path in shards]})
    return 0


def _scored_set(options: argparse.Namespace) -> int:
    from vqaloop.datasets import read_dataset
    from vqaloop.prepare import prepare
    from vqaloop.terminal import Progress
    from vqaloop.views import View

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
    say(options, f"{counted(len(shards), 'content')} in {options.out}; see report.json there")
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
        left = counted(len(there) - len(paths), "scene")
        say(options, f"left out {left} of titles it was trained on")
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
