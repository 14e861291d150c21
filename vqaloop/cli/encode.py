"""`vqaloop encode`: its options, and what it does with them."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

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
from vqaloop.cli.output import emit, say
from vqaloop.core.text import counted
from vqaloop.encoding.registry import get_encoder

if TYPE_CHECKING:
    from vqaloop.cli.arguments import Command


def add_encode(command: "Command") -> None:
    """The command with its options."""
    parser = command("encode", run_encode, "encode a title to a score, scene by scene")
    parser.add_argument("input", metavar="INPUT", type=Path)
    parser.add_argument("output", metavar="OUTPUT", type=Path, help=".mp4, .mkv, .webm or .avs2")
    parser.add_argument("--codec", required=True, metavar="h264|hevc|vp9|av1|avs2")
    parser.add_argument("--encoder", metavar="NAME", help="another than the codec's default")
    parser.add_argument("--target-score", type=number, metavar="S", help="of the whole title")
    parser.add_argument(
        "--bitrate", type=kbps, metavar="K", help="instead: the best score at K kb/s"
    )
    parser.add_argument(
        "--allocation",
        metavar="target|equal-slope",
        help="every scene at the target, or bits where they buy most (default: target; of "
        "--bitrate equal-slope)",
    )
    parser.add_argument("--max-bitrate", type=kbps, metavar="K", help="cap of every scene, kb/s")
    parser.add_argument("--max-encodes", type=whole, metavar="N", help="in all")
    parser.add_argument(
        "--one-run",
        action="store_true",
        help="the knobs found as zones of one run over the whole (x264, x265)",
    )
    parser.add_argument("--preset", metavar="P", help="the encoder's preset")
    parser.add_argument("--bit-depth", type=whole, metavar="8|10", help="default: the source's")
    parser.add_argument("--time-limit", type=number, metavar="S", help="of one encode")
    prior_option(parser)
    metric_option(parser)
    raw_options(parser)
    executor_options(parser)


def run_encode(options: argparse.Namespace) -> int:
    """Exit status 1 where the target was not reached, 3 where the whole is not what its scenes
    were."""
    from vqaloop.ratecontrol.target import encode_to_target
    from vqaloop.report.progress import Progress

    with opened_executor(options) as workers, Progress(quiet=options.quiet) as progress:
        made = encode_to_target(
            options.input,
            options.output,
            codec=options.codec,
            target_score=options.target_score,
            bitrate=options.bitrate,
            allocation=options.allocation,
            max_bitrate=options.max_bitrate,
            max_encodes=options.max_encodes,
            one_run=options.one_run,
            prior=options.prior,
            progress=progress,
            **encoding_of(options, workers),
        )
    about = made.document
    scenes = about["scenes"]
    knob = get_encoder(about["encoder"]["name"]).knob.name
    say(options, f"{'#':>4}  {'frames':>14}  {knob:>6}  {'score':>6}  {'kb/s':>9}")
    for place, scene in enumerate(scenes, 1):
        say(
            options,
            f"{place:4}  {scene['start_frame']:6}..{scene['end_frame'] - 1:<6}  "
            f"{scene['knob']:6g}  {scene['score']:6.2f}  {scene['bitrate_kbps']:9.1f}",
        )
    again = sum(trial["cached"] for trial in about["trials"])
    name = about["metric"]["name"]
    scores = [f"{name} {made.score:.2f}"]
    scores += [f"{key} {value:.2f}" for key, value in about["guard"].items() if key != name]
    say(
        options,
        f"{made.path}: {', '.join(scores)}, {about['bitrate_kbps']:.1f} kb/s; "
        f"{counted(len(scenes), 'scene')}, {counted(about['cost']['encodes'], 'encode')}"
        f"{f' and {again} from the cache' if again else ''}",
    )
    for line in about["warnings"]:
        say(options, f"warning: {line}")
    emit(options, about)
    return made.exit_code
