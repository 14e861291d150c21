"""`vqaloop encoders`."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from vqaloop.cli.arguments import Command
from vqaloop.cli.output import emit, say
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.report.console import console_for, print_line


def run_encoders(options: argparse.Namespace) -> int:
    from vqaloop.encoding.survey import survey_encoders

    found = survey_encoders(options.ffmpeg)
    if options.json != "-":
        say(options, f"of {ffmpeg_path(options.ffmpeg)}:")
        print_encoders(found, verbose=options.verbose)
    emit(options, found)
    return 0


def add_encoders(command: Command) -> None:
    encoders = command("encoders", run_encoders, "list the encoders this machine can run")
    encoders.add_argument("--verbose", action="store_true", help="with presets, knobs and quirks")


def print_encoders(found: Sequence[dict[str, Any]], verbose: bool = False) -> None:
    """What `survey_encoders` found, by codec, on stdout; a star marks a codec's default."""
    console = console_for(sys.stdout)
    for item in sorted(found, key=lambda item: (item["codec"], not item["default"])):
        head = f"{item['codec']:5} {item['name'] + '*' * item['default']:13} "
        state = item["version"] if item["available"] else "not here"
        print_line(console, head + state, None if item["available"] else "dim")
        if verbose:
            knob, depths = item["knob"], " and ".join(map(str, item["bit_depths"]))
            details = [
                f"{knob['name']} {knob['min']:g} to {knob['max']:g} by {knob['step']:g}; "
                f"{depths} bit",
                f"presets, slow to fast: {' '.join(item['presets'])} "
                f"(default {item['default_preset']})",
                *item["quirks"],
                *([item["why_not"]] if item["why_not"] else []),
            ]
            for line in details:
                print_line(console, f"      {line}")
