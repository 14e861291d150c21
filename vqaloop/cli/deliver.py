"""`vqaloop deliver`: its options, and what it does with them."""

import argparse
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from vqaloop.core.option_fields import add_options, given_options, options_of
from vqaloop.delivery.options import DeliveryOptions

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
    add_options(parser, DeliveryOptions)
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="default: X.delivery of X.ladder"
    )


def delivery_words(options: argparse.Namespace) -> list[str]:
    """The words of a command line elsewhere that asks for the same."""
    words: list[str] = []
    given, known = given_options(DeliveryOptions, options), options_of(DeliveryOptions)
    for name, value in given.items():
        flag = known[name].flags[-1]
        if known[name].parse is Path:
            value = os.path.abspath(value)
        words.append(flag if known[name].parse is bool else f"{flag}={value}")
    return words


def run_deliver(options: argparse.Namespace) -> int:
    """Exit status 1 where something was made, but not all that was asked for by name."""
    from vqaloop.cli.output import emit, loading, progress_of, say

    with loading(options):
        from vqaloop.delivery.package import package_ladder
        from vqaloop.delivery.page import PAGE

    given = given_options(DeliveryOptions, options)
    hls, dash = bool(options.hls), bool(options.dash)
    every = not (hls or dash)
    with progress_of(options) as progress:
        made = package_ladder(
            options.folders,
            **{**given, "hls": hls or every, "dash": dash or every},
            out=options.output,
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
    for track in [*about["audio_renditions"], *about["subtitles"]]:
        language = f", {track['language']}" if track["language"] else ""
        say(
            options,
            f"{track['id']}  {track['name']}{language}  {track.get('codecs', 'WebVTT')}  "
            f"{track['average_bandwidth'] / 1000:.0f} kb/s",
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
    if given.get("page"):
        where = shlex.quote(str(made.folder))
        say(options, f"to play it: python3 -m http.server -d {where}")
        say(options, f"            and open http://localhost:8000/{PAGE}")
    emit(options, about)
    missing = (hls and not about["hls"]) or (dash and not about["dash"])
    return 1 if missing else 0
