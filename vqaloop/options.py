"""Options that several commands share."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vqaloop.errors import InputError
from vqaloop.process import quoted


def metric_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metric",
        default="internvqa",
        metavar="NAME",
        help="internvqa (default), internvqa-NAME, vmaf, xpsnr, psnr or ssim",
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="other student weights")


def raw_options(parser: argparse.ArgumentParser) -> None:
    raw = parser.add_argument_group("raw and HDR input")
    raw.add_argument("--video-size", metavar="WxH")
    raw.add_argument("--pix-fmt", metavar="NAME", help="such as yuv420p")
    raw.add_argument("--framerate", metavar="N[/D]")
    raw.add_argument(
        "--allow-hdr",
        action="store_true",
        help="take PQ and HLG, though SDR metrics do not hold for them",
    )


def check_outputs(paths: Mapping[str, Path | None]) -> None:
    """Raises InputError, before any work, for a file to be written that has no place.

    `paths` by the option that names them, without dashes.
    """
    from vqaloop.request import check_writable

    for option, path in paths.items():
        if path is not None:
            if path.is_dir():
                raise InputError(f"--{option}: {quoted(path)} is a folder; name a file")
            check_writable(path.absolute().parent, f"name another file with --{option}")


def encoding_of(options: argparse.Namespace) -> dict[str, Any]:
    """What every command that encodes a title is told alike, as the functions take it."""
    alike = ["encoder", "metric", "weights", "preset", "bit_depth", "device", "workers", "seed"]
    raw = ["video_size", "pix_fmt", "framerate", "allow_hdr"]
    return {
        **{name: getattr(options, name) for name in (*alike, *raw)},
        "cache": not options.no_cache,
        "timeout_s": options.time_limit,
    }
