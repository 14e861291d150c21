"""`vqaloop ladder`."""

import argparse
from pathlib import Path
from typing import Any

from vqaloop.cli.arguments import Command
from vqaloop.cli.options import (
    encoding_of,
    executor_options,
    kbps,
    metric_option,
    number,
    opened_executor,
    prior_option,
    raw_options,
    whole,
)
from vqaloop.cli.output import UNTRUSTED, emit, say


def run_ladder(options: argparse.Namespace) -> int:
    from vqaloop.cli.catalogue import are_many, build_from, show
    from vqaloop.core.text import parse_duration, parse_resolutions, parse_rungs, parse_size
    from vqaloop.ladder.build import build_ladder, build_ladders
    from vqaloop.ladder.summary import print_ladder
    from vqaloop.records import Ladder
    from vqaloop.report.progress import Progress

    codecs = options.codec.split(",")
    with opened_executor(options) as workers, Progress(quiet=options.quiet) as progress:
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
            prior=options.prior,
            tune_trials=options.tune_params,
            progress=progress,
            storage=options.storage,
            out=options.output,
            **encoding_of(options, workers),
        )
        made: dict[str, Ladder] = {}
        if many := are_many(options.input):
            catalogue = build_from(options, progress, asked)
        elif len(codecs) == 1:
            made[codecs[0]] = build_ladder(options.input[0], codec=codecs[0], **asked)
        else:
            made = build_ladders(options.input[0], codecs=codecs, **asked)
    if many:
        return show(options, catalogue)
    for codec, ladder in made.items() if options.json != "-" else ():
        if len(made) > 1:
            say(options, "")
            say(options, codec)
        print_ladder(ladder)
    documents = {codec: ladder.to_json() for codec, ladder in made.items()}
    several = {"schema": "vqaloop.ladders/1", "ladders": documents}
    emit(options, several if len(codecs) > 1 else documents[codecs[0]])
    return 0 if all(ladder.trusted for ladder in made.values()) else UNTRUSTED


def add_ladder(command: Command) -> None:
    ladder = command("ladder", run_ladder, "find and make the best bitrate ladder for a title")
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
