"""`vqaloop tune`."""

import argparse
from pathlib import Path

from vqaloop.cli.arguments import Command
from vqaloop.cli.options import (
    encoding_of,
    executor_options,
    kbps,
    metric_option,
    number,
    opened_executor,
    raw_options,
    whole,
)
from vqaloop.cli.output import UNTRUSTED, emit, say


def run_tune(options: argparse.Namespace) -> int:
    from vqaloop.core.text import parse_size
    from vqaloop.report.progress import Progress
    from vqaloop.tuning.result import tuning_lines
    from vqaloop.tuning.tune import tune_encoder

    with opened_executor(options) as workers, Progress(quiet=options.quiet) as progress:
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
            storage=options.storage,
            out=options.output,
            **encoding_of(options, workers),
        )
    for line in tuning_lines(tuning):
        say(options, line)
    emit(options, tuning.to_json())
    return 0 if tuning.trusted else UNTRUSTED


def add_tune(command: Command) -> None:
    tune = command("tune", run_tune, "find encoder parameters that save bitrate on a title")
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
