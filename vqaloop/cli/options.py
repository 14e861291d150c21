"""Where a command makes its encodes, and what it writes."""

import argparse
import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vqaloop.core.files import scratch
from vqaloop.core.option_fields import whole
from vqaloop.core.text import parse_duration, quoted
from vqaloop.errors import InputError

if TYPE_CHECKING:
    from vqaloop.execution.executor import Executor


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
        help="CPU cores of each encode (default: an equal share of this machine's; with --ray 1)",
    )


def part_options(parser: argparse.ArgumentParser) -> None:
    """Which part of an input is taken; see `part_of`."""
    group = parser.add_argument_group("a part of the input")
    group.add_argument(
        "--start",
        type=parse_duration,
        metavar="TIME",
        help="begin at the key frame next to this time: 90s, 1.5min, 1:30",
    )
    group.add_argument(
        "--duration",
        type=parse_duration,
        metavar="TIME",
        help="take so much of it; the part is copied into a file in this folder",
    )


@contextlib.contextmanager
def part_of(options: argparse.Namespace, inputs: Sequence[Path]) -> "Iterator[list[Path]]":
    """The inputs, or the part of the one that --start and --duration ask for, as a file that
    stays; that of a prediction goes. Raises InputError."""
    if options.start is None and options.duration is None:
        yield list(inputs)
        return
    if len(inputs) > 1 or inputs[0].suffix.lower() == ".csv":
        raise InputError("--start and --duration are of one title; name one video")
    from vqaloop.media.part import cut_part

    dry = getattr(options, "predict", False)
    with scratch() if dry else contextlib.nullcontext(".") as folder:
        yield [
            cut_part(
                inputs[0],
                start_s=options.start or 0.0,
                duration_s=math.inf if options.duration is None else options.duration,
                folder=folder,
            )
        ]


def workers_of(options: argparse.Namespace) -> int:
    """How many jobs are done at a time on this machine."""
    return 1 if options.workers is None else int(options.workers)


@contextlib.contextmanager
def opened_executor(options: argparse.Namespace, fills: bool = False) -> "Iterator[Executor]":
    """Whoever makes the encodes, as --ray, --workers and --processors say, while inside.

    `fills`: this machine's processors are kept busy where no --workers are given.

    Raises InputError.
    """
    if options.ray is None:
        from vqaloop.execution.executor import Local

        workers = options.workers if fills else workers_of(options)
        yield Local(workers, processors=options.processors)
        return
    from vqaloop.cluster.ray_cluster import RayCluster

    processors = 1 if options.processors is None else options.processors
    with RayCluster(options.ray, processors=processors, workers=options.workers) as cluster:
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
