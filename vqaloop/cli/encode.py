"""`vqaloop encode`: its options, and what it does with them."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vqaloop.cli.options import executor_options, opened_executor, part_of, part_options
from vqaloop.cli.output import emit, loading, progress_of, say
from vqaloop.core.option_fields import add_options, given_options
from vqaloop.core.text import counted
from vqaloop.encoding.registry import get_encoder
from vqaloop.execution.options import Running
from vqaloop.ratecontrol.options import EncodeOptions

if TYPE_CHECKING:
    from vqaloop.cli.arguments import Command


def add_encode(command: "Command") -> None:
    """The command with its options."""
    parser = command("encode", run_encode, "encode a title to a score, scene by scene")
    parser.add_argument("input", metavar="INPUT", type=Path)
    parser.add_argument(
        "output", metavar="OUTPUT", type=Path, help="ends in .mp4, .mkv, .webm or .avs2"
    )
    part_options(parser)
    add_options(parser, EncodeOptions, but=Running)
    executor_options(parser)


def run_encode(options: argparse.Namespace) -> int:
    """Exit status 1 where the target was not reached, 3 where the whole is not what its scenes
    were."""
    with loading(options):
        from vqaloop.ratecontrol.target import encode_to_target

    with (
        part_of(options, [options.input]) as (title,),
        opened_executor(options) as workers,
        progress_of(options) as progress,
    ):
        made = encode_to_target(
            title,
            options.output,
            **{**given_options(EncodeOptions, options), "workers": workers},
            progress=progress,
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
    pool = about["metric"].get("pool")
    beside = f" by {pool} (mean {about['score_mean']:.2f})" if pool else ""
    scores = [f"{name} {made.score:.2f}{beside}"]
    intervals = about.get("guard_interval", {})
    spreads = {key: f" ±{(high - low) / 2:.2f}" for key, (low, high) in intervals.items()}
    scores += [
        f"{key} {value:.2f}{spreads.get(key, '')}"
        for key, value in about["guard"].items()
        if key != name
    ]
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
