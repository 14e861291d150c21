"""The command line. Tables and messages on stdout, progress and errors on stderr.

Exit status: 0 done; 1 done and the answer is no; 2 refused; 3 an answer not to be trusted;
130 interrupted, and the same command goes on from there.
"""

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from vqaloop import __version__, process
from vqaloop.errors import InputError, VqaloopError
from vqaloop.files import renamed_to
from vqaloop.terminal import printable

UNTRUSTED, INTERRUPTED = 3, 130


class Parser(argparse.ArgumentParser):
    """Refuses as everything else does: with one message."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see `{self.prog} --help`")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    # whoever closed them wants to hear nothing, which is no reason to fail
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    logging.basicConfig(format="vqaloop: %(message)s", level=logging.WARNING)
    with _ended_by_signals():
        try:
            options = make_parser().parse_args(argv)
            _check_common(options)
            with _chosen_ffmpeg(options.ffmpeg):
                status = int(options.run(options))
            sys.stdout.flush()
            return status
        except VqaloopError as error:
            return _refuse(str(error), error.exit_code)
        except KeyboardInterrupt:
            return _interrupted()
        except BrokenPipeError:
            # whoever read our stdout has left; nothing more can be said there
            _drop_stdout()
            return 0
        except OSError as error:
            _drop_stdout()
            place = f"{process.quoted(error.filename)}: " if error.filename else ""
            return _refuse(f"{place}{error.strerror or error}", InputError.exit_code)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end a command as Ctrl-C does, with no program left behind."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    # whoever ignores them (nohup) or handles them, or calls from a thread, is left alone
    ours = threading.current_thread() is threading.main_thread()
    ends = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if ours and signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in ends:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in ends:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def _chosen_ffmpeg(path: str | None) -> Iterator[None]:
    """--ffmpeg stands for $VQALOOP_FFMPEG while a command runs."""
    before = os.environ.get("VQALOOP_FFMPEG")
    if path is not None:
        os.environ["VQALOOP_FFMPEG"] = path
    try:
        yield
    finally:
        if path is not None:
            os.environ.pop("VQALOOP_FFMPEG")
            if before is not None:
                os.environ["VQALOOP_FFMPEG"] = before


def _refuse(message: str, status: int) -> int:
    print(f"vqaloop: {printable(message)}", file=sys.stderr)
    return status


def _interrupted() -> int:
    process.kill_all()
    kept = "what was finished is kept, and the same command goes on from there"
    return _refuse(f"interrupted; {kept}", INTERRUPTED)


def _drop_stdout() -> None:
    """Let go of a stdout that takes nothing more, or Python complains of it when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def make_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = Parser(
        prog="vqaloop",
        description="Per-title bitrate ladders with a learned quality model in the encoding loop.",
        epilog="Exit status: 0 done, 1 the answer is no, 2 refused, 3 not to be trusted, "
        "130 interrupted (run it again to go on).",
    )
    parser.add_argument("--version", action="version", version=f"vqaloop {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    common = Parser(add_help=False)
    group = common.add_argument_group("common options")
    group.add_argument("--json", metavar="FILE", help="write one JSON document; - for stdout")
    group.add_argument(
        "--device", default="auto", metavar="auto|cpu|cuda", help="where the network runs"
    )
    group.add_argument("--workers", type=int, default=1, metavar="N", help="trials at a time")
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="the same seed gives the same answer"
    )
    group.add_argument("--no-cache", action="store_true", help="neither read nor fill the cache")
    group.add_argument("--ffmpeg", metavar="PATH", help="another ffmpeg (or $VQALOOP_FFMPEG)")
    group.add_argument("--quiet", action="store_true", help="no progress")

    def command(name: str, run: Any, summary: str) -> Parser:
        made = commands.add_parser(
            name, help=summary, description=summary, parents=[common], allow_abbrev=False
        )
        made.set_defaults(run=run)
        return made

    sample = command("sample", _sample, "write a few seconds of varied synthetic video")
    sample.add_argument("output", metavar="OUTPUT", type=Path, help=".y4m, .mp4 or .mkv")
    sample.add_argument("--seconds", type=float, default=4.0, metavar="S")
    sample.add_argument("--size", default="640x360", metavar="WxH")
    sample.add_argument("--fps", type=int, default=25, metavar="N")
    sample.add_argument("--overwrite", action="store_true", help="replace the file if it exists")

    ladder = command("ladder", _ladder, "find and make the best bitrate ladder for a title")
    ladder.add_argument("input", metavar="INPUT", type=Path)
    ladder.add_argument("--codec", required=True, metavar="h264|hevc|vp9|av1|avs2")
    ladder.add_argument(
        "--encoder",
        metavar="NAME",
        help="another than the codec's default; see `vqaloop encoders`",
    )
    ladder.add_argument(
        "--resolutions",
        default="auto",
        metavar="WxH,...|auto",
        help="default: parts of the source's size",
    )
    _metric_option(ladder)
    ladder.add_argument("--rungs", default="auto", metavar="N|auto", help="default: auto")
    ladder.add_argument(
        "--min-step",
        type=float,
        metavar="S",
        help="least difference in score between rungs (default: the metric's)",
    )
    ladder.add_argument(
        "--min-ratio",
        type=float,
        default=1.4,
        metavar="R",
        help="least ratio of bitrates between rungs (default: %(default)s)",
    )
    ladder.add_argument("--min-bitrate", type=float, default=0.0, metavar="K", help="kb/s")
    ladder.add_argument(
        "--max-bitrate", type=float, default=float("inf"), metavar="K", help="kb/s"
    )
    ladder.add_argument("--preset", metavar="P", help="the encoder's preset")
    ladder.add_argument("--bit-depth", type=int, metavar="8|10", help="default: the source's")
    ladder.add_argument(
        "--time-limit",
        type=float,
        metavar="S",
        help="stop an encode after S seconds and go on without it",
    )
    _raw_options(ladder)
    ladder.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="default: NAME.CODEC.ladder"
    )

    score = command("score", _score, "score one video, alone or against its original")
    score.add_argument("video", metavar="VIDEO", type=Path)
    score.add_argument("--reference", metavar="REF", type=Path, help="the original")
    score.add_argument("--allow-hdr", action="store_true", help="score PQ and HLG all the same")
    _metric_option(score)

    report = command("report", _report, "make a ladder's reports again from its ladder.json")
    report.add_argument("folder", metavar="DIR", type=Path)

    corpus = command("corpus", _corpus, "make a labelled training set from pristine material")
    corpus.add_argument(
        "sources",
        metavar="SOURCE",
        type=Path,
        nargs="+",
        help="videos, pictures, and folders of them",
    )
    corpus.add_argument("out", metavar="OUT", type=Path, help="folder for the shards")
    corpus.add_argument("--encodes", type=int, default=30, metavar="N", help="encodes a scene")
    corpus.add_argument("--crops", type=int, default=24, metavar="N", help="crops an encode")
    corpus.add_argument(
        "--windows", type=int, default=1, metavar="N", help="scenes of each video (default: 1)"
    )
    corpus.add_argument(
        "--synthetic", type=int, default=0, metavar="N", help="scenes to generate besides"
    )
    corpus.add_argument(
        "--basis", metavar="B", help="only material whose MANIFEST.csv row has this licence_basis"
    )

    distill = command("distill", _distill, "train a student by a recipe")
    distill.add_argument("recipe", metavar="RECIPE", type=Path, help="a recipe.toml")
    distill.add_argument("--restart", action="store_true", help="ignore an earlier checkpoint")

    evaluate = command("evaluate", _evaluate, "figures of a student on a labelled data set")
    evaluate.add_argument("weights", metavar="WEIGHTS", help="a file, or a shipped name")
    evaluate.add_argument("dataset", metavar="DATASET", type=Path, help="a folder of shards")

    encoders = command("encoders", _encoders, "list the encoders this machine can run")
    encoders.add_argument("--verbose", action="store_true", help="with presets, knobs and quirks")
    return parser


def _metric_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metric",
        default="internvqa",
        metavar="NAME",
        help="internvqa (default), internvqa-NAME, vmaf, xpsnr, psnr or ssim",
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="other student weights")


def _raw_options(parser: argparse.ArgumentParser) -> None:
    raw = parser.add_argument_group("raw and HDR input")
    raw.add_argument("--video-size", metavar="WxH")
    raw.add_argument("--pix-fmt", metavar="NAME", help="such as yuv420p")
    raw.add_argument("--framerate", metavar="N[/D]")
    raw.add_argument(
        "--allow-hdr",
        action="store_true",
        help="take PQ and HLG, though SDR metrics do not hold for them",
    )


def _check_common(options: argparse.Namespace) -> None:
    """Refuse what no command can do, before any work: also a JSON document with no place."""
    from vqaloop.request import check_run, check_writable

    check_run(options.workers, options.seed, options.device)
    if not options.json or options.json == "-":
        return
    path = Path(options.json)
    if path.is_dir():
        raise InputError(f"--json {process.quoted(path)} is a folder; name a file")
    check_writable(path.parent, "name another file with --json")


def _emit(options: argparse.Namespace, document: Any) -> None:
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


def _say(options: argparse.Namespace, text: str) -> None:
    """A message for people; stdout is left alone when the JSON goes there."""
    if options.json != "-":
        encoding = sys.stdout.encoding or "utf-8"
        print(printable(text).encode(encoding, "backslashreplace").decode(encoding))


def _sample(options: argparse.Namespace) -> int:
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
    _say(options, f"wrote {path}")
    _emit(options, {"path": printable(str(path)), "bytes": path.stat().st_size})
    return 0


def _ladder(options: argparse.Namespace) -> int:
    from vqaloop.ladder import build_ladder
    from vqaloop.request import parse_resolutions, parse_rungs
    from vqaloop.terminal import Progress, print_ladder

    with Progress(quiet=options.quiet) as progress:
        ladder = build_ladder(
            options.input,
            codec=options.codec,
            encoder=options.encoder,
            resolutions=parse_resolutions(options.resolutions),
            metric=options.metric,
            rungs=parse_rungs(options.rungs),
            min_step=options.min_step,
            min_ratio=options.min_ratio,
            min_bitrate=options.min_bitrate,
            max_bitrate=options.max_bitrate,
            preset=options.preset,
            bit_depth=options.bit_depth,
            out=options.output,
            device=options.device,
            workers=options.workers,
            seed=options.seed,
            cache=not options.no_cache,
            timeout_s=options.time_limit,
            weights=options.weights,
            video_size=options.video_size,
            pix_fmt=options.pix_fmt,
            framerate=options.framerate,
            allow_hdr=options.allow_hdr,
            progress=progress,
        )
    if options.json != "-":
        print_ladder(ladder)
    _emit(options, ladder.to_json())
    return 0 if ladder.trusted else UNTRUSTED


def _score(options: argparse.Namespace) -> int:
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
    check_metric(scorer.metric, options.weights)
    found = scorer.score(options.video, options.reference)
    low, high = found.interval or (found.value, found.value)
    spread = f" (95 % interval {low:.1f} to {high:.1f})" if found.interval else ""
    _say(options, f"{found.value:.2f}  {found.metric}, {found.mode}{spread}")
    if found.mode == "no-reference":
        _say(
            options,
            "Without its original a video is judged coarsely; give --reference if you have it.",
        )
    _emit(
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


def _report(options: argparse.Namespace) -> int:
    from vqaloop.report import read_ladder, write_reports
    from vqaloop.terminal import print_ladder

    ladder = read_ladder(options.folder)
    write_reports(ladder)
    if options.json != "-":
        print_ladder(ladder)
    _emit(options, ladder.to_json())
    return 0


def _corpus(options: argparse.Namespace) -> int:
    from vqaloop.corpus import Plan, build_corpus, find_scenes, synthetic_scenes
    from vqaloop.terminal import Progress

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
    _say(options, f"{len(shards)} of {len(scenes)} scenes in {options.out}")
    _emit(options, {"scenes": len(scenes), "shards": [path.name for path in shards]})
    return 0


def _distill(options: argparse.Namespace) -> int:
    from vqaloop.device import pick_device
    from vqaloop.distill import read_recipe, train
    from vqaloop.terminal import Progress

    with Progress(quiet=options.quiet) as progress:
        weights = train(
            read_recipe(options.recipe),
            device=pick_device(options.device),
            resume=not options.restart,
            report=progress.log,
        )
    _say(options, f"weights in {weights}")
    _emit(options, {"weights": str(weights)})
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from vqaloop.device import pick_device
    from vqaloop.distill import evaluate
    from vqaloop.score import shipped_weights
    from vqaloop.shards import load_corpus
    from vqaloop.weights import load_student

    shipped = {path.stem: path for path in shipped_weights()}
    student, about = load_student(shipped.get(options.weights, Path(options.weights)))
    device = pick_device(options.device)
    figures = evaluate(student.to(device), load_corpus([options.dataset]), device, None)
    _say(options, f"{options.weights}, labels {about.get('label')}, {options.dataset}")
    for head in ("", "alone_"):
        names = ("srcc", "krcc", "plcc", "rmse", "within_srcc")
        row = "  ".join(f"{name} {figures[head + name]:.4f}" for name in names)
        _say(options, f"{'no reference' if head else 'anchored':>12}: {row}")
    _emit(options, figures)
    return 0


def _encoders(options: argparse.Namespace) -> int:
    from vqaloop.terminal import print_encoders, survey_encoders

    found = survey_encoders()
    if options.json != "-":
        print_encoders(found, verbose=options.verbose)
    _emit(options, found)
    return 0
