"""`vqaloop deliver`: its options, and what it does with them."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqaloop.core.option_fields import number

if TYPE_CHECKING:
    from vqaloop.cli.arguments import Command


def add_deliver(command: "Command") -> None:
    """The command with its options."""
    parser = command("deliver", run_deliver, "package a title's ladders as HLS and DASH")
    parser.add_argument(
        "folders",
        metavar="LADDER_DIR",
        type=Path,
        nargs="+",
        help="what `vqaloop ladder` wrote; of one title, a codec each",
    )
    delivery_options(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="default: NAME.delivery")


def delivery_options(parser: Any) -> None:
    """What is made of the ladders; `parser` may be an argument group."""
    parser.add_argument("--hls", action="store_true", help="HLS; with neither: all that can be")
    parser.add_argument("--dash", action="store_true", help="DASH")
    parser.add_argument(
        "--segment",
        type=number,
        default=6.0,
        metavar="S",
        help="seconds of a segment, rounded to whole GOPs (default: 6)",
    )
    parser.add_argument("--no-audio", action="store_true", help="leave the source's sound out")


def delivery_words(options: argparse.Namespace) -> list[str]:
    """The command line that asks for the same."""
    flags = [f"--{name}" for name in ("hls", "dash") if getattr(options, name)]
    flags += ["--no-audio"] if options.no_audio else []
    return [*flags, f"--segment={options.segment}"]


def run_deliver(options: argparse.Namespace) -> int:
    """Exit status 1 where something was made, but not all that was asked for by name."""
    from vqaloop.cli.output import emit, loading, progress_of, say

    with loading(options):
        from vqaloop.delivery.package import package_ladder

    every = not (options.hls or options.dash)
    with progress_of(options) as progress:
        made = package_ladder(
            options.folders,
            hls=options.hls or every,
            dash=options.dash or every,
            out=options.output,
            segment_s=options.segment,
            audio=not options.no_audio,
            ffmpeg=options.ffmpeg,
            progress=progress,
        )
    about = made.to_json()
    for track in about["renditions"]:
        say(
            options,
            f"{track['id']}  {track['codecs']}  {track['average_bandwidth'] / 1000:.0f} kb/s, "
            f"peak {track['bandwidth'] / 1000:.0f}, segments: {track['segments']}",
        )
    for part in about["plain"]:
        say(options, f"{part['codec']}: {len(part['rungs'])} files, listed in {part['manifest']}")
    for warning in about["warnings"]:
        say(options, f"warning: {warning}")
    manifests = [
        about["hls"] and about["hls"]["playlist"],
        about["dash"] and about["dash"]["manifest"],
    ]
    say(options, " and ".join([*filter(None, manifests)] or ["files"]) + f" in {made.folder}")
    emit(options, about)
    missing = (options.hls and not about["hls"]) or (options.dash and not about["dash"])
    return 1 if missing else 0
