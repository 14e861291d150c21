"""`vqaloop sample`."""

import argparse
from pathlib import Path

from vqaloop.cli.arguments import Command
from vqaloop.cli.output import emit, say
from vqaloop.core.option_fields import given_options, number, whole
from vqaloop.core.text import parse_size, printable, size_within
from vqaloop.execution.options import Running


def run_sample(options: argparse.Namespace) -> int:
    from vqaloop.media.sample import write_sample

    running = Running(**given_options(Running, options))
    path = write_sample(
        options.output,
        seconds=options.seconds,
        size=size_within(parse_size(options.size)),
        fps=options.fps,
        seed=running.seed,
        ffmpeg=options.ffmpeg,
        overwrite=options.overwrite,
    )
    say(options, f"wrote {path}")
    emit(options, {"path": printable(str(path)), "bytes": path.stat().st_size})
    return 0


def add_sample(command: Command) -> None:
    sample = command("sample", run_sample, "write a few seconds of generated video for trials")
    sample.add_argument("output", metavar="OUTPUT", type=Path, help="ends in .y4m, .mp4 or .mkv")
    sample.add_argument("--seconds", type=number, default=4.0, metavar="S")
    sample.add_argument("--size", default="640x360", metavar="WxH")
    sample.add_argument("--fps", type=whole, default=25, metavar="N")
    sample.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
