"""`vqaloop serve`: its options, and what it does with them."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from vqaloop.cli.output import emit, loading, progress_of
from vqaloop.core.option_fields import number, whole
from vqaloop.errors import InputError

if TYPE_CHECKING:
    from vqaloop.cli.arguments import Command

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def add_serve(command: "Command") -> None:
    """The command with its options."""
    parser = command(
        "serve", run_serve, "a server with a queue of ladders, their pages and an API"
    )
    parser.add_argument(
        "folder", metavar="FOLDER", type=Path, help="where jobs, uploads and results are kept"
    )
    parser.add_argument(
        "--media",
        metavar="DIR",
        type=Path,
        action="append",
        default=[],
        help="a folder whose videos may be submitted; may be given several times",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="another than a loopback one takes a token (default: 127.0.0.1)",
    )
    parser.add_argument(
        "--port", type=whole, default=8470, metavar="N", help="0: any free one (default: 8470)"
    )
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        type=Path,
        help="whose first word clients must send (or $VQALOOP_TOKEN)",
    )
    parser.add_argument(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help="another name by which a server without a token may be called",
    )
    parser.add_argument(
        "--jobs", type=whole, default=1, metavar="N", help="made at a time (default: 1)"
    )
    bounds = parser.add_argument_group("bounds")
    bounds.add_argument(
        "--max-queue", type=whole, default=1000, metavar="N", help="waiting jobs (default: 1000)"
    )
    bounds.add_argument(
        "--max-upload",
        type=_size,
        default=20 << 30,
        metavar="SIZE",
        help="of one file: 500M (default: 20G)",
    )
    bounds.add_argument(
        "--max-rate",
        type=number,
        default=600.0,
        metavar="N",
        help="requests a minute of one client (default: 600)",
    )


def run_serve(options: argparse.Namespace) -> int:
    """Serves until it is interrupted."""
    with loading(options):
        from vqaloop.service.server import ServeOptions, serve

    for name, value, least, most in (
        ("--port", options.port, 0, 65535),
        ("--jobs", options.jobs, 1, 64),
        ("--max-queue", options.max_queue, 1, 10**6),
        ("--max-rate", options.max_rate, 1, 10**6),
    ):
        if not least <= value <= most:
            raise InputError(f"{name} lies within {least} and {most}, not {value:g}")
    with progress_of(options) as progress:
        asked = ServeOptions(
            folder=options.folder,
            media=tuple(options.media),
            host=options.host,
            port=options.port,
            token_file=options.token_file,
            allow_hosts=tuple(options.allow_host),
            jobs=options.jobs,
            most_queued=options.max_queue,
            largest_upload=options.max_upload,
            per_minute=options.max_rate,
            settings=options.preset_file and Path(options.preset_file),
        )
        serve(asked, progress.log)
    emit(options, {})
    return 0


def _size(text: str) -> int:
    """Reads a number of bytes. Raises InputError."""
    found = re.fullmatch(r"([0-9]{1,15})([KMGT]?)", text)
    if not found or not 0 < int(found[1]) * UNITS[found[2]] < 1 << 60:
        raise InputError(f"--max-upload {text[:50]!r} is no size; write it as 500M or 20G")
    return int(found[1]) * UNITS[found[2]]
