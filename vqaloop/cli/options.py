"""Options that several commands share."""

import argparse
import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vqaloop.core.text import quoted
from vqaloop.errors import InputError

if TYPE_CHECKING:
    from vqaloop.execution.executor import Executor


Value = TypeVar("Value")


def number(text: str) -> float:
    """The type of an option that is a number."""
    return _read(float, text, "a number; write it as 12 or 0.5")


def whole(text: str) -> int:
    """The type of an option that is a whole number."""
    return _read(int, text, "a whole number; write it as 12")


def kbps(text: str) -> float:
    """The type of an option that is a bitrate."""
    return _read(float, text, "a number of kb/s (1000 bits a second); write 5 Mb/s as 5000")


def _read(kind: Callable[[str], Value], text: str, wanted: str) -> Value:
    try:
        return kind(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text[:50]!r} is not {wanted}") from error


def metric_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metric",
        default="internvqa",
        metavar="NAME",
        help="internvqa (default), internvqa-NAME, vmaf, xpsnr, psnr or ssim",
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="other student weights")
    parser.add_argument(
        "--score-precision",
        type=number,
        metavar="P",
        help="stop looking at a video once a student's score is estimated to ±P, which is no "
        "guarantee; rungs are then not judged on the same crops",
    )


def prior_option(command: argparse.ArgumentParser) -> None:
    """What a search begins with; the older name of none stays."""
    group = command.add_mutually_exclusive_group()
    group.add_argument(
        "--prior",
        choices=("shipped", "own", "none"),
        default="shipped",
        metavar="shipped|own|none",
        help="begin with what the package knows of other titles (default), add what this "
        "machine's own taught, or begin with nothing and keep nothing",
    )
    group.add_argument(
        "--no-prior", dest="prior", action="store_const", const="none", help="--prior none"
    )


def raw_options(parser: argparse.ArgumentParser) -> None:
    raw = parser.add_argument_group("frame rate, raw and HDR input")
    raw.add_argument("--video-size", metavar="WxH")
    raw.add_argument("--pix-fmt", metavar="NAME", help="such as yuv420p")
    raw.add_argument(
        "--framerate",
        metavar="N[/D]",
        help="of raw video; of any other input the constant rate it is brought to, in place of "
        "the one its time stamps suggest",
    )
    raw.add_argument(
        "--allow-hdr",
        action="store_true",
        help="take PQ, HLG and Dolby Vision, though SDR metrics do not hold for them",
    )


class Named(argparse.Action):
    """Stores a value, and that it was given: NAME_named."""

    def __call__(self, parser: Any, namespace: Any, values: Any, _: Any = None) -> None:
        setattr(namespace, self.dest, values)
        setattr(namespace, f"{self.dest}_named", True)


def executor_options(parser: argparse.ArgumentParser) -> None:
    """Where encodes are made; see `opened_executor`."""
    group = parser.add_argument_group("where encodes are made")
    group.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="on a Ray cluster: auto, local, HOST:PORT or ray://HOST:PORT; --workers is then by "
        "default what it has room for",
    )
    group.add_argument(
        "--processors",
        type=whole,
        metavar="N",
        help="of each encode (default: an equal share of this machine's; with --ray 1)",
    )


@contextlib.contextmanager
def opened_executor(options: argparse.Namespace) -> "Iterator[Executor]":
    """Whoever makes the encodes, as --ray, --workers and --processors say, while inside.

    Raises InputError.
    """
    if options.ray is None:
        from vqaloop.execution.executor import Local

        yield Local(options.workers, processors=options.processors)
        return
    from vqaloop.cluster.ray_cluster import RayCluster

    workers = options.workers if getattr(options, "workers_named", False) else None
    processors = 1 if options.processors is None else options.processors
    with RayCluster(options.ray, processors=processors, workers=workers) as cluster:
        yield cluster


def check_outputs(paths: Mapping[str, Path | None]) -> None:
    """Raises InputError, before any work, for a file to be written that has no place.

    `paths` by the option that names them, without dashes.
    """
    from vqaloop.core.folders import check_writable

    for option, path in paths.items():
        if path is not None:
            if path.is_dir():
                raise InputError(f"--{option}: {quoted(path)} is a folder; name a file")
            check_writable(path.absolute().parent, f"name another file with --{option}")


def encoding_of(options: argparse.Namespace, workers: "Executor") -> dict[str, Any]:
    """What every command that encodes a title is told alike, as the functions take it."""
    alike = ["encoder", "metric", "weights", "score_precision"]
    alike += ["preset", "bit_depth", "device", "seed"]
    raw = ["video_size", "pix_fmt", "framerate", "allow_hdr"]
    return {
        **{name: getattr(options, name) for name in (*alike, *raw)},
        "workers": workers,
        "cache": not options.no_cache,
        "timeout_s": options.time_limit,
    }
