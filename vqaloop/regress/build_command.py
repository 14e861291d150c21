"""Command line of one run of a build: input, output, and point of its rate-quality curve."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from vqaloop.core import ffmpeg as ffmpeg_graph
from vqaloop.core.ffmpeg import compiled
from vqaloop.encoding import encode
from vqaloop.encoding.options import check_rendition, gop_frames, output_options
from vqaloop.encoding.spec import EncoderSpec, Knob, Standalone
from vqaloop.errors import InputError
from vqaloop.records import Rendition, Source

_MAX_KBPS = 10_000_000.0


@dataclass(frozen=True)
class Build:
    """A build of an encoder under test."""

    path: str
    """Absolute."""
    kind: str
    """ffmpeg or standalone."""
    version: str
    """One line, as the program prints it."""
    sha256: str
    """Of the file at path."""
    args: tuple[str, ...] = ()
    """Further arguments, which override those of the encoder's file."""


@dataclass(frozen=True)
class BuildInput:
    """Input of every run: a 4:2:0 Y4M file of constant frame rate."""

    path: Path
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    fps: Fraction
    """fps."""
    frames: int
    bit_depth: int
    """8 or 10."""
    colour: tuple[tuple[str, str], ...] = ()
    """As in Source: options that tag an ffmpeg's output."""


class Point(NamedTuple):
    """Point of the rate-quality curve at which an encoder runs."""

    name: str
    """The quality knob's name, or bitrate."""
    value: float
    """The knob's value, or kb/s."""

    def __str__(self) -> str:
        return f"{self.value:g} kb/s" if self.name == "bitrate" else f"{self.name} {self.value:g}"


@dataclass(frozen=True)
class BuildRun:
    """One run of a build: input, point, preset and output."""

    view: BuildInput
    point: Point
    preset: str
    out: Path
    threads: int | None = None
    """None: as many as the encoder chooses."""


def file_suffix(build: Build, spec: EncoderSpec) -> str:
    """Suffix of the files that this build writes, with the dot."""
    alone = build.kind == "standalone" and spec.standalone
    return alone.suffix if alone else spec.suffix


def default_timeout_s(spec: EncoderSpec, view: BuildInput, preset: str | None = None) -> float:
    """Seconds after which a run is held to hang: far more than a slow machine needs."""
    middle = spec.knob.snap(sum(spec.knob.search) / 2)
    rendition = _rendition(spec, view, middle, preset or spec.default_preset)
    return encode.default_timeout_s(spec, rendition, _source(view))


def command(build: Build, spec: EncoderSpec, job: BuildRun) -> list[str]:
    """The whole argv; raises InputError for settings that the encoder does not have."""
    threads, point = job.threads, job.point
    if threads is not None and threads < 1:
        raise InputError(f"{threads} threads cannot encode; give 1 or more")
    if point[0] not in (spec.knob.name, "bitrate"):
        raise InputError(
            f"{spec.name} has no {point[0]!r}; give {spec.knob.name} or bitrate (kb/s)"
        )
    if not math.isfinite(point[1]):
        raise InputError(f"{point[0]} {point[1]} is no number to encode at")
    if build.kind == "standalone" and spec.standalone:
        return _standalone_command(build, spec, spec.standalone, job)
    return _ffmpeg_command(build, spec, job)


def _rendition(spec: EncoderSpec, view: BuildInput, knob: float, preset: str) -> Rendition:
    size = view.width, view.height
    return Rendition(*size, spec.name, knob, preset, view.bit_depth)


def _source(view: BuildInput) -> Source:
    # the encoders' options depend on no content hash
    fmt = "yuv420p10le" if view.bit_depth == 10 else "yuv420p"
    rate, colour = (view.fps, view.frames), view.colour
    return Source(
        view.path, "", view.width, view.height, *rate, fmt, view.bit_depth, colour=colour
    )


def _by_rate(spec: EncoderSpec, option: str | None) -> EncoderSpec:
    """The encoder with its mean rate in bit/s for a knob."""
    if not option:
        raise InputError(f"{spec.name} is not set up for a bitrate; give {spec.knob.name} values")
    most = _MAX_KBPS * 1000
    return replace(spec, knob=Knob("bitrate", option, 1000, most, 1, (1000, most), False))


def _ffmpeg_command(build: Build, spec: EncoderSpec, job: BuildRun) -> list[str]:
    (name, value), view = job.point, job.view
    if name == "bitrate":
        spec, value = _by_rate(spec, spec.bitrate_option), round(value * 1000)
    if job.threads is not None:
        given = tuple((key, v.format(threads=job.threads)) for key, v in spec.thread_options)
        spec = replace(spec, options=(*spec.options, *given))
    options = output_options(spec, _rendition(spec, view, value, job.preset), _source(view))
    # rate and frames are the Y4M's already, and an ffmpeg before 5.1 does not know the option
    del options["fps_mode"]
    args = list(build.args)
    for at, arg in enumerate(args[:-1]):
        # a second -x265-params would replace the first, so that the build's is appended to it
        if arg.endswith("-params") and (ours := options.get(arg.removeprefix("-"))):
            args[at + 1] = f"{ours}:{args[at + 1]}"
    # y4m has no matrix, and ffmpeg would convert from none to that of the output: the decoder tags
    graph = ffmpeg_graph.input("INPUT", **dict(view.colour)).output("OUTPUT", **options)
    argv = compiled(graph, build.path, {"INPUT": view.path, "OUTPUT": job.out})
    # plain absolute names, without file: - a script around the encoder may read or check them
    argv = [arg.removeprefix("file:") if arg.startswith("file:/") else arg for arg in argv]
    return [*argv[:-1], *args, argv[-1]]


def _standalone_command(
    build: Build, spec: EncoderSpec, program: Standalone, job: BuildRun
) -> list[str]:
    (name, value), view = job.point, job.view
    if name == "bitrate":
        limits = _by_rate(spec, "bitrate" if program.bitrate else None)
        check_rendition(limits, _rendition(limits, view, round(value * 1000), job.preset))
    else:
        check_rendition(spec, _rendition(spec, view, value, job.preset))
    template = [*program.arguments, *(program.bitrate if name == "bitrate" else program.knob)]
    template += program.threads if job.threads is not None else ()
    template += program.ten_bit if view.bit_depth == 10 else ()
    if dict(view.colour).get("color_range") == "pc":
        template += program.full_range or ()
    filled = {
        "input": view.path.absolute(),
        "output": job.out,
        "preset": job.preset,
        "knob": f"{value:.10g}",
        "kbps": f"{value:.10g}",
        "gop": gop_frames(spec, view.fps),
        "bits": view.bit_depth,
        "threads": job.threads,
    }
    argv = [word.format(**filled) for part in template for word in part.split()]
    return [build.path, *_without(argv, build.args), *build.args]


def _without(argv: Sequence[str], args: Sequence[str]) -> list[str]:
    """`argv` without the options that `args` give again, which some programs refuse."""
    given = {arg.partition("=")[0] for arg in args if arg.startswith("-")}
    kept: list[str] = []
    value_too = False
    for word in argv:
        option = word.startswith("-")
        again = option and word.partition("=")[0] in given
        if not again and (option or not value_too):
            kept.append(word)
        value_too = again and "=" not in word
    return kept
