"""`vqaloop corpus`, `distill` and `evaluate`."""

import argparse
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from vqaloop.cli.arguments import Command
from vqaloop.cli.options import workers_of
from vqaloop.cli.output import emit, progress_of, say
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.core.option_fields import given_options, whole
from vqaloop.core.text import counted, printable, quoted
from vqaloop.errors import InputError
from vqaloop.execution.options import Running
from vqaloop.media.limits import MAX_PIXELS

if TYPE_CHECKING:
    from vqaloop.models.student import Student
    from vqaloop.training.evaluate import ShardScores
    from vqaloop.training.shards import Shard


def run_corpus(options: argparse.Namespace) -> int:
    from vqaloop.panel.measure import PanelTools
    from vqaloop.training import corpus_scenes
    from vqaloop.training.corpus import CorpusPlan, build_corpus

    if options.dataset:
        return _scored_set(options)
    scenes = corpus_scenes.list_scenes(options.sources, options.windows)
    if options.basis:
        scenes = [scene for scene in scenes if scene.basis == options.basis]
        if not scenes:
            raise InputError(f"no material with licence_basis {options.basis!r}")
    if options.part:
        scenes = corpus_scenes.part_of_titles(scenes, *options.part)
    running = Running(**given_options(Running, options))
    if options.montages:
        scenes = corpus_scenes.with_montages(scenes, dict(options.montages), running.seed)
    scenes += corpus_scenes.synthetic_scenes(options.synthetic)
    plan = CorpusPlan(
        encodes=options.encodes,
        attacks=options.attacks,
        places=options.places,
        regions=options.regions,
        frames=options.length,
        seed=running.seed,
    )
    tools = PanelTools(
        ffmpeg_path(running.ffmpeg), options.fdim, options.cvvdp, options.ssimulacra2
    )
    with progress_of(options) as progress:
        shards = build_corpus(
            scenes, options.out, plan, tools, workers=workers_of(options), report=progress.log
        )
    say(options, f"{len(shards)} of {counted(len(scenes), 'scene')} in {options.out}")
    emit(options, {"scenes": len(scenes), "shards": [path.name for path in shards]})
    return 0


def _part(text: str) -> tuple[int, int]:
    """Of --part: "1/2"."""
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no part such as 1/2")
    return int(part), int(parts)


def _montage(text: str) -> tuple[tuple[int, int], int]:
    """Of --montages: "1920x1080:12"."""
    size, colon, count = text.partition(":")
    width, cross, height = size.partition("x")
    if not (colon and cross and width.isdecimal() and height.isdecimal() and count.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not WxH:N, such as 1920x1080:12")
    if int(width) % 2 or int(height) % 2 or not 224 <= int(width) * int(height) <= MAX_PIXELS:
        raise argparse.ArgumentTypeError(
            f"{size} is no size of a montage: even, and not too large"
        )
    return (int(width), int(height)), int(count)


def _scored_set(options: argparse.Namespace) -> int:
    from vqaloop.quality.clip_views import View
    from vqaloop.training.datasets import read_dataset
    from vqaloop.training.prepare import prepare

    if len(options.sources) != 1:
        raise InputError(f"--dataset takes one folder or table, not {len(options.sources)}")
    running = Running(**given_options(Running, options))
    view = View(options.view, options.frames, options.stride, options.size, options.clips)
    dataset = read_dataset(options.dataset, options.sources[0], options.scale)
    with progress_of(options) as progress:
        shards = prepare(
            dataset,
            options.out,
            view,
            ffmpeg=ffmpeg_path(running.ffmpeg),
            workers=workers_of(options),
            seed=running.seed,
            report=progress.log,
        )
    say(options, f"{counted(len(shards), 'content')} in {options.out}; see report.json there")
    emit(options, {"label": dataset.label, "shards": [path.name for path in shards]})
    return 0


def _wait_passively() -> None:
    """Let PyTorch's threads sleep while they wait for each other, where it is not loaded yet.

    Those of small networks wait often: spinning, as is the default, they took five times the CPU
    time of one thread on a machine that other programs shared, and five times as long.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def run_distill(options: argparse.Namespace) -> int:
    _wait_passively()
    from vqaloop.models.device import pick_device
    from vqaloop.training.recipe import read_recipe
    from vqaloop.training.train import train

    running = Running(**given_options(Running, options))
    with progress_of(options) as progress:
        weights = train(
            read_recipe(options.recipe),
            device=pick_device(running.device),
            resume=not options.restart,
            report=progress.log,
        )
    # of several processes the first speaks
    if os.environ.get("RANK", "0") == "0":
        say(options, f"weights in {weights}")
        emit(options, {"weights": str(weights)})
    return 0


def run_evaluate(options: argparse.Namespace) -> int:
    _wait_passively()
    from vqaloop.training.evaluate import METRICS, differences, evaluate
    from vqaloop.training.evaluation_report import figures_text, write_evaluation
    from vqaloop.training.paper import published_row
    from vqaloop.training.shards import shard_paths, title_of

    metrics = options.metrics.split(",") if options.metrics else []
    if not set(metrics) <= set(METRICS):
        raise InputError(f"--metrics {options.metrics!r}: choose among {', '.join(METRICS)}")
    if options.crops is not None and options.crops < 1:
        raise InputError(f"--crops {options.crops} is too few; give 1 or more")
    names = [options.weights, *([options.against] if options.against else [])]
    loaded = [
        _weights(name, options.all, None if i else options.prompt) for i, name in enumerate(names)
    ]
    known = frozenset[str]().union(*(titles for _, _, titles in loaded))
    there = shard_paths(options.datasets)
    paths = [path for path in there if title_of(path) not in known] if known else there
    if not paths:
        raise InputError(
            f"{' or '.join(names)} was trained on all titles there; give others, or judge these "
            "all the same with --all"
        )
    if options.output:
        _check_place(options.output)
    running = Running(**given_options(Running, options))
    warnings: list[str] = []
    scored = [
        _scored(options, (name, *weights[:2]), paths, [] if i else metrics, running, warnings)
        for i, (name, weights) in enumerate(zip(names, loaded, strict=True))
    ]
    found, about = scored[0], loaded[0][1]
    figures = {
        "weights": printable(options.weights),
        "weights_sha256": about["sha256"],
        **({"prompt": printable(str(options.prompt))} if options.prompt else {}),
        **evaluate(found.table, found.regions, seed=running.seed),
        **({"warnings": warnings} if warnings else {}),
    }
    paper = published_row(about, figures["label"])
    if paper is not None:
        figures["paper"] = asdict(paper)
    if options.against:
        gaps = differences(found.table, scored[1].table, seed=running.seed)
        figures["against"] = {
            "weights": printable(options.against),
            "weights_sha256": loaded[1][1]["sha256"],
            "judges": {
                head: {k: asdict(gap) for k, gap in by.items()} for head, by in gaps.items()
            },
        }
    if len(paths) < len(there):
        left = counted(len(there) - len(paths), "scene")
        say(options, f"left out {left} of titles it was trained on")
    for line in [*(f"warning: {text}" for text in warnings), *figures_text(figures).splitlines()]:
        say(options, line)
    if options.output:
        _make_folder(options.output)
        write_evaluation(options.output, found, figures)
        say(options, f"wrote {options.output}")
    emit(options, figures)
    return 0


def _scored(
    options: argparse.Namespace,
    weights: "tuple[str, Student, dict[str, str]]",
    paths: list[Path],
    metrics: list[str],
    running: Running,
    warnings: list[str],
) -> "ShardScores":
    """Scores of a student, and other metrics, on the windows of shards that its weights take.

    `weights` are their name, student and header; shards with clips of another kind add a warning.
    """
    from vqaloop.models.device import pick_device
    from vqaloop.quality.clip_views import View
    from vqaloop.training.evaluate import score_shards
    from vqaloop.training.shards import load_shard
    from vqaloop.training.targets import label_of_weights
    from vqaloop.training.windows import (
        differing_view,
        middle_windows,
        window_between,
    )

    name, student, about = weights
    own, device = View.of_weights(about, f"weights {quoted(name)}"), pick_device(running.device)
    view = asdict(own) if own else None

    def shards() -> "Iterator[Shard]":
        warned = False
        for path in paths:
            whole = load_shard(path)
            shard = middle_windows(whole, window_between(view, whole))
            gap = differing_view(view, shard)
            if gap and not warned:
                warnings.append(
                    f"{quoted(name)} are weights of {gap}: the figures are not of what they score "
                    "in a ladder; make shards of their view with `vqaloop corpus`"
                )
            warned = warned or bool(gap)
            yield shard

    with progress_of(options) as progress:
        return score_shards(
            student.to(device),
            shards(),
            device,
            crops=options.crops,
            label=label_of_weights(about, f"weights {quoted(name)}"),
            metrics=metrics,
            ffmpeg=ffmpeg_path(running.ffmpeg),
            report=progress.log,
        )


def _weights(
    name: str, every: bool, prompt: Path | None
) -> "tuple[Student, dict[str, str], frozenset[str]]":
    """A student by its file or shipped name, its header, and the titles to leave out."""
    from vqaloop.models.style_prompt import load_prompt
    from vqaloop.models.weights import load_student
    from vqaloop.quality.registry import shipped_weights
    from vqaloop.training.shards import trained_titles

    shipped = {path.stem: path for path in shipped_weights()}
    path = shipped.get(name, Path(name))
    if not path.exists():
        raise InputError(f"no weights {quoted(path)}; give a file, or one of {', '.join(shipped)}")
    student, about = load_student(path)
    if prompt is not None:
        about = load_prompt(prompt, student, about)
    return student, about, frozenset() if every else trained_titles(about)


def _check_place(folder: Path) -> None:
    """Raises InputError where no such folder could be made and written to; none is made yet."""
    from vqaloop.core.folders import check_writable

    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    check_writable(there, "name another folder with -o")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        name = quoted(folder)
        raise InputError(f"could not make {name}: {error.strerror or error}") from error


def add_corpus(command: Command) -> None:
    corpus = command(
        "corpus",
        run_corpus,
        "make a labelled set, from pristine material or of opinion scores",
    )
    corpus.add_argument(
        "sources",
        metavar="SOURCE",
        type=Path,
        nargs="+",
        help="videos, pictures, and folders of them; with --dataset, its one folder or table",
    )
    corpus.add_argument("out", metavar="OUT", type=Path, help="folder for the shards")
    corpus.add_argument(
        "--encodes", type=whole, default=20, metavar="N", help="encodes a scene (default: 20)"
    )
    corpus.add_argument(
        "--attacks",
        type=whole,
        default=5,
        metavar="N",
        help="damaged videos a scene besides: flicker, blur, posterising ... (default: 5)",
    )
    corpus.add_argument(
        "--places",
        type=whole,
        default=4,
        metavar="N",
        help="places in time that are labelled (default: 4)",
    )
    corpus.add_argument(
        "--regions",
        type=whole,
        default=2,
        metavar="N",
        help="regions of 224 x 224 pixels at each place (default: 2)",
    )
    corpus.add_argument(
        "--length", type=whole, default=60, metavar="N", help="frames of a scene (default: 60)"
    )
    corpus.add_argument(
        "--windows", type=whole, default=1, metavar="N", help="scenes of each video (default: 1)"
    )
    corpus.add_argument(
        "--synthetic", type=whole, default=0, metavar="N", help="scenes to generate besides"
    )
    corpus.add_argument(
        "--basis", metavar="B", help="only material whose MANIFEST.csv row has this licence_basis"
    )
    corpus.add_argument(
        "--part",
        type=_part,
        metavar="I/N",
        help="only every Nth title, from the Ith on: parts that share no title",
    )
    corpus.add_argument(
        "--montages",
        type=_montage,
        action="append",
        default=[],
        metavar="WxH:N",
        help="instead of the pictures N scenes of that size, of pictures laid edge to edge; "
        "may be repeated",
    )
    _add_judges(corpus)
    _add_opinions(corpus)


def _add_judges(corpus: argparse.ArgumentParser) -> None:
    judges = corpus.add_argument_group(
        "judges of the panel besides VMAF v1, NEG, v0.6.1, CAMBI and XPSNR (docs/training.md)"
    )
    judges.add_argument(
        "--ssimulacra2", action="store_true", help="SSIMULACRA 2 of PyPI's ssimulacra2"
    )
    judges.add_argument(
        "--fdim", type=Path, metavar="FILE", help="FDIM: the wheel of PyPI's fdim 0.2.1"
    )
    judges.add_argument(
        "--cvvdp",
        metavar="PROGRAM",
        help="ColorVideoVDP, for a tenth: the program cvvdp, in an environment of its own",
    )


def _add_opinions(corpus: argparse.ArgumentParser) -> None:
    scored = corpus.add_argument_group("a published set of opinion scores (docs/datasets.md)")
    scored.add_argument(
        "--dataset", metavar="NAME", help="waterloo, bvi-hd, avt-vqdb, or csv for any table"
    )
    scored.add_argument(
        "--scale", metavar="WORST:BEST", help="of csv: 1:5, or 100:0 for DMOS (default: 0:100)"
    )
    scored.add_argument(
        "--view", default="native", metavar="V", help="native (default), squeezed or fragments"
    )
    scored.add_argument(
        "--frames", type=whole, default=8, metavar="N", help="frames of a clip (default: 8)"
    )
    scored.add_argument(
        "--stride", type=whole, default=8, metavar="N", help="every Nth frame (default: 8)"
    )
    scored.add_argument(
        "--size", type=whole, default=224, metavar="N", help="pixels a side (default: 224)"
    )
    scored.add_argument(
        "--clips", type=whole, default=4, metavar="N", help="clips of a video (default: 4)"
    )


def add_distill(command: Command) -> None:
    distill = command("distill", run_distill, "train a student by a recipe")
    distill.add_argument(
        "recipe", metavar="RECIPE", type=Path, help="a recipe.toml, its folder, or one by name"
    )
    distill.add_argument("--restart", action="store_true", help="ignore an earlier checkpoint")


def add_evaluate(command: Command) -> None:
    evaluate = command("evaluate", run_evaluate, "figures of a student on a labelled data set")
    evaluate.add_argument("weights", metavar="WEIGHTS", help="a file, or a shipped name")
    evaluate.add_argument(
        "datasets", metavar="DATASET", type=Path, nargs="+", help="a folder of shards"
    )
    evaluate.add_argument(
        "--against",
        metavar="WEIGHTS",
        help="another student, for the differences on the same encodes",
    )
    evaluate.add_argument(
        "--prompt", type=Path, metavar="FILE", help="of WEIGHTS: a prompt that was trained on them"
    )
    evaluate.add_argument(
        "--metrics",
        metavar="NAME,...",
        help="other metrics to judge on the same crops: psnr, ssim, xpsnr",
    )
    evaluate.add_argument(
        "--crops", type=whole, metavar="N", help="crops of each encode (default: all)"
    )
    evaluate.add_argument(
        "--all", action="store_true", help="judge titles it was trained on as well"
    )
    evaluate.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="tables, plots and the worst encodes"
    )
