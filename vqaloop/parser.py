"""What the command line takes: every command with its options."""

import argparse
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from vqaloop import __version__, commands, traincommands
from vqaloop.delivercommand import add_deliver
from vqaloop.encodecommand import add_encode
from vqaloop.errors import InputError
from vqaloop.hints import did_you_mean
from vqaloop.options import (
    Named,
    executor_options,
    kbps,
    metric_option,
    number,
    prior_option,
    raw_options,
    whole,
)
from vqaloop.regresscommand import add_regress
from vqaloop.reportcommand import add_report

Command = Callable[[str, Callable[..., int], str], "Parser"]
"""Adds a command: its name, what runs it, what it does in a line."""


class Parser(argparse.ArgumentParser):
    """Refuses as everything else does: with one message. Inputs may have options between them."""

    _anew = False

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        words = None if args is None else list(args)
        found, left = super().parse_known_args(words, namespace)
        # only then: of what is missing the plain way tells better
        if not left or self._anew or self._subparsers is not None:
            return found, left
        self._anew = True
        try:
            found, left = self.parse_known_intermixed_args(words)
        finally:
            self._anew = False
        if left:
            # here, where the options are known that may have been meant
            hint = did_you_mean(left[0].split("=")[0], list(self._option_string_actions))
            self.error(f"unrecognized arguments: {' '.join(left)}{hint}")
        return found, left

    def error(self, message: str) -> NoReturn:
        wanting = re.fullmatch(r"argument (?:-\w/)?(--[\w-]+): expected one argument", message)
        if wanting:
            message += f"; one that begins with a dash is given as {wanting[1]}='-...'"
        raise InputError(f"{message}; see `{self.prog} --help`")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += did_you_mean(str(value), list(action.choices or ()))
            raise


def make_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = Parser(
        prog="vqaloop",
        description="Per-title bitrate ladders with a learned quality model in the encoding loop.",
        epilog="Exit status: 0 done, 1 the answer is no, 2 refused, 3 not to be trusted, "
        "130 interrupted (run it again to go on).",
    )
    parser.add_argument("--version", action="version", version=f"vqaloop {__version__}")
    choices = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    common = Parser(add_help=False)
    group = common.add_argument_group("common options")
    group.add_argument("--json", metavar="FILE", help="write one JSON document; - for stdout")
    group.add_argument(
        "--device", default="auto", metavar="auto|cpu|cuda", help="where the network runs"
    )
    group.add_argument(
        "--workers", type=whole, default=1, action=Named, metavar="N", help="trials at a time"
    )
    group.add_argument(
        "--seed",
        type=whole,
        default=0,
        metavar="N",
        help="the same command, seed and program give the same answer, but for --prior own, "
        "--budget and time limits",
    )
    group.add_argument("--no-cache", action="store_true", help="neither read nor fill the cache")
    group.add_argument("--ffmpeg", metavar="PATH", help="another ffmpeg (or $VQALOOP_FFMPEG)")
    group.add_argument("--quiet", action="store_true", help="no progress")

    def command(name: str, run: Callable[..., int], summary: str) -> Parser:
        made = choices.add_parser(
            name, help=summary, description=summary, parents=[common], allow_abbrev=False
        )
        made.set_defaults(run=run)
        return made

    added = (_sample, _ladder, _score, _tune, add_encode, add_deliver, add_regress, add_report)
    for add in (*added, _corpus, _distill, _evaluate, _encoders):
        add(command)
    return parser


def _sample(command: Command) -> None:
    sample = command("sample", commands.sample, "write a few seconds of varied synthetic video")
    sample.add_argument("output", metavar="OUTPUT", type=Path, help=".y4m, .mp4 or .mkv")
    sample.add_argument("--seconds", type=number, default=4.0, metavar="S")
    sample.add_argument("--size", default="640x360", metavar="WxH")
    sample.add_argument("--fps", type=whole, default=25, metavar="N")
    sample.add_argument("--overwrite", action="store_true", help="replace the file if it exists")


def _ladder(command: Command) -> None:
    ladder = command(
        "ladder", commands.ladder, "find and make the best bitrate ladder for a title"
    )
    ladder.add_argument(
        "input",
        metavar="INPUT",
        type=Path,
        nargs="+",
        help="a video; several, or a .csv that lists them, make a catalogue",
    )
    ladder.add_argument(
        "--codec",
        required=True,
        metavar="h264|hevc|vp9|av1|avs2",
        help="or several with commas, for a ladder each",
    )
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
    metric_option(ladder)
    ladder.add_argument("--rungs", default="auto", metavar="N|auto", help="default: auto")
    ladder.add_argument(
        "--min-step",
        type=number,
        metavar="S",
        help="least difference in score between rungs (default: the metric's)",
    )
    ladder.add_argument(
        "--min-ratio",
        type=number,
        default=1.4,
        metavar="R",
        help="least ratio of bitrates between rungs (default: %(default)s)",
    )
    ladder.add_argument("--min-bitrate", type=kbps, default=0.0, metavar="K", help="kb/s")
    ladder.add_argument("--max-bitrate", type=kbps, default=float("inf"), metavar="K", help="kb/s")
    ladder.add_argument(
        "--min-score", type=number, metavar="S", help="no rung below it (default: the metric's)"
    )
    ladder.add_argument(
        "--max-score",
        type=number,
        metavar="S",
        help="the top rung is the first to reach it (default: the metric's)",
    )
    ladder.add_argument(
        "--require", metavar="WxH,...", help="sizes that must have a rung each, if any can"
    )
    ladder.add_argument(
        "--budget", metavar="TIME", help="the best ladder it can find in 90s (or 90), 10min, 1.5h"
    )
    ladder.add_argument("--preset", metavar="P", help="the encoder's preset")
    ladder.add_argument(
        "--tune-params",
        nargs="?",
        type=whole,
        const=20,
        metavar="N",
        help="first tune the encoder's parameters on the title, with N trials (20)",
    )
    ladder.add_argument("--bit-depth", type=whole, metavar="8|10", help="default: the source's")
    ladder.add_argument(
        "--time-limit",
        type=number,
        metavar="S",
        help="stop an encode after S seconds and go on without it",
    )
    ladder.add_argument(
        "--storage",
        metavar="URL",
        help="an Optuna storage that several processes share: sqlite:///FILE, another database, "
        "or journal:FILE (default: study.db in the output folder)",
    )
    prior_option(ladder)
    raw_options(ladder)
    executor_options(ladder)
    ladder.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="default: NAME.CODEC.ladder; of a catalogue: catalogue.ladders",
    )


def _score(command: Command) -> None:
    score = command("score", commands.score, "score one video, alone or against its original")
    score.add_argument("video", metavar="VIDEO", type=Path)
    score.add_argument("--reference", metavar="REF", type=Path, help="the original")
    score.add_argument(
        "--canvas",
        metavar="WxH",
        help="without --reference: judge at this size, that of the original (default: of a rung "
        "beside its ladder.json the size of its source, else the video's own)",
    )
    score.add_argument("--allow-hdr", action="store_true", help="score PQ and HLG all the same")
    metric_option(score)


def _tune(command: Command) -> None:
    tune = command("tune", commands.tune, "find encoder parameters that save bitrate on a title")
    tune.add_argument("input", metavar="INPUT", type=Path)
    tune.add_argument("--codec", required=True, metavar="h264|hevc|vp9|av1|avs2")
    tune.add_argument("--encoder", metavar="NAME", help="another than the codec's default")
    goal = tune.add_mutually_exclusive_group()
    goal.add_argument(
        "--target-score", type=number, metavar="S", help="tune where the title scores S"
    )
    goal.add_argument(
        "--bitrate",
        type=kbps,
        metavar="K",
        help="tune at K kb/s (with neither: a front of bitrate and score)",
    )
    tune.add_argument("--trials", type=whole, default=30, metavar="N", help="in all (default: 30)")
    tune.add_argument(
        "--storage", metavar="URL", help="an Optuna storage to share (default: study.db there)"
    )
    tune.add_argument("--sampler", default="gp", metavar="gp|tpe|cmaes|nsga2")
    tune.add_argument(
        "--slowdown",
        type=number,
        default=1.1,
        metavar="F",
        help="most CPU time, times the defaults' (default: 1.1)",
    )
    tune.add_argument("--resolution", metavar="WxH", help="default: the source's")
    tune.add_argument("--preset", metavar="P", help="the encoder's preset")
    tune.add_argument("--bit-depth", type=whole, metavar="8|10")
    tune.add_argument("--time-limit", type=number, metavar="S")
    metric_option(tune)
    raw_options(tune)
    executor_options(tune)
    tune.add_argument("-o", "--output", type=Path, metavar="DIR", help="default: NAME.CODEC.tune")


def _corpus(command: Command) -> None:
    corpus = command(
        "corpus",
        traincommands.corpus,
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
        "--encodes", type=whole, default=30, metavar="N", help="encodes a scene (default: 30)"
    )
    corpus.add_argument(
        "--crops", type=whole, default=24, metavar="N", help="crops an encode (default: 24)"
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


def _distill(command: Command) -> None:
    distill = command("distill", traincommands.distill, "train a student by a recipe")
    distill.add_argument(
        "recipe", metavar="RECIPE", type=Path, help="a recipe.toml, its folder, or one by name"
    )
    distill.add_argument("--restart", action="store_true", help="ignore an earlier checkpoint")


def _evaluate(command: Command) -> None:
    evaluate = command(
        "evaluate", traincommands.evaluate, "figures of a student on a labelled data set"
    )
    evaluate.add_argument("weights", metavar="WEIGHTS", help="a file, or a shipped name")
    evaluate.add_argument(
        "datasets", metavar="DATASET", type=Path, nargs="+", help="a folder of shards"
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


def _encoders(command: Command) -> None:
    encoders = command("encoders", commands.encoders, "list the encoders this machine can run")
    encoders.add_argument("--verbose", action="store_true", help="with presets, knobs and quirks")
