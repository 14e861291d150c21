"""Builds of an encoder under test, an ffmpeg or the encoder's own program: opened and run.

A build is identified by the version it prints, not by its file name. Every run reads the same Y4M
file and is checked; each kind of failure is a BuildFailed of that kind.
"""

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from vqaloop.core import ffmpeg as ffmpeg_graph
from vqaloop.core import process
from vqaloop.core.ffmpeg import compiled, ffmpeg_path, input_arguments
from vqaloop.core.files import file_sha256, renamed_to, scratch
from vqaloop.core.peak_memory import run_measured
from vqaloop.core.text import quoted
from vqaloop.encoding.options import DOWNSCALER
from vqaloop.encoding.registry import load_encoders
from vqaloop.encoding.spec import EncoderSpec
from vqaloop.encoding.survey import complaint, library_version
from vqaloop.errors import DecodeFailed, EncoderMissing, InputError, ToolError
from vqaloop.media.rawvideo import count_y4m_frames
from vqaloop.records import Source
from vqaloop.regress.build_command import (
    Build,
    BuildInput,
    BuildRun,
    Point,
    command,
    file_suffix,
)
from vqaloop.regress.faults import BuildFailed, check_count, parse

_ANSWER_S = 30.0
"""Time limit for printing the version."""
_GREY, _GREY_FRAMES = (256, 144), 16
"""Size and number of frames of the clip on which arguments are tried."""


@dataclass(frozen=True)
class EncodedRun:
    """One finished run of a build, its file checked."""

    path: Path
    size_bytes: int
    """Of the coded frames alone, container and headers not counted."""
    frames: int
    cpu_s: float
    wall_s: float
    peak_bytes: int
    """Largest resident set."""
    stream_sha256: str
    """Of the coded frames, in order of coding."""
    command: tuple[str, ...]


def open_build(path: str | os.PathLike[str], spec: EncoderSpec, args: Sequence[str] = ()) -> Build:
    """Identify the program at `path` by the version it prints; a bare name is looked up in PATH.

    Raises InputError when it is not there, cannot be executed, does not answer, or is neither an
    ffmpeg with this encoder nor the encoder's own program.
    """
    file = _executable(path)
    banner = _answer(file, ["-version"])
    if found := re.search(r"^ffmpeg version (\S+)", banner, re.MULTILINE):
        version, kind = _ffmpeg_build(file, f"ffmpeg {found[1]}", spec), "ffmpeg"
    else:
        version, kind = _standalone_version(file, spec, banner), "standalone"
    return Build(file, kind, version, file_sha256(file), tuple(args))


def check_arguments(
    build: Build, spec: EncoderSpec, option: str, *, point: Point, preset: str, ffmpeg: str
) -> None:
    """Raises InputError where the build encodes, but not with its further arguments.

    A mistyped argument is not a regression of the build.
    """
    with scratch() as folder:
        grey = Path(folder) / "grey.y4m"
        frame = b"FRAME\n" + bytes([128]) * (_GREY[0] * _GREY[1] * 3 // 2)
        head = f"YUV4MPEG2 W{_GREY[0]} H{_GREY[1]} F25:1 Ip A1:1 C420jpeg\n"
        grey.write_bytes(head.encode() + frame * _GREY_FRAMES)
        view = BuildInput(grey, *_GREY, Fraction(25), _GREY_FRAMES, min(spec.bit_depths))

        def failure_of(tried: Build) -> BuildFailed | None:
            out = Path(folder) / f"grey{file_suffix(tried, spec)}"
            try:
                job = BuildRun(view, point, preset, out)
                make(tried, spec, job, timeout_s=_ANSWER_S, ffmpeg=ffmpeg)
            except BuildFailed as error:
                return error
            return None

        failed = failure_of(build)
        if failed and failed.status and not failure_of(replace(build, args=())):
            raise InputError(
                f"{quoted(build.path)} encodes without {option} and fails with them "
                f"({' '.join(build.args)}): {failed}; check the arguments"
            )


def _executable(path: str | os.PathLike[str]) -> str:
    text = os.fspath(path)
    if os.sep not in text and not os.path.exists(text):
        text = shutil.which(text) or text
    name = quoted(text)
    if os.path.isdir(text):
        raise InputError(f"{name} is a folder; name the encoder's program in it")
    if not os.path.isfile(text):
        raise InputError(f"there is no program {name}; check the path")
    if not os.access(text, os.X_OK):
        raise InputError(
            f"{name} may not be executed; `chmod +x` it, or name the encoder's program"
        )
    return os.path.abspath(text)


def _answer(file: str, args: Sequence[str]) -> str:
    """Output of a program called with these arguments, whatever its exit status."""
    try:
        done = process.run([file, *args], timeout_s=_ANSWER_S, max_stdout=1 << 24)
    except ToolError as error:
        raise InputError(
            f"{quoted(file)} is no program that runs here ({error}); name an executable for this "
            "machine, or begin a script with a line such as #!/bin/sh"
        ) from error
    if done.timed_out:
        raise InputError(
            f"{quoted(file)} does not answer: asked {' '.join(args)}, it was silent for "
            f"{_ANSWER_S:.0f} s; check that it runs by hand"
        )
    return f"{done.stdout.decode('utf-8', 'replace')}\n{done.stderr}"


def _ffmpeg_build(file: str, version: str, spec: EncoderSpec) -> str:
    known = f"Encoder {spec.ffmpeg} " in _answer(
        file, ["-hide_banner", "-h", f"encoder={spec.ffmpeg}"]
    )
    if not known:
        raise InputError(
            f"{quoted(file)} is an {version} built without {spec.ffmpeg}; name one that has it"
            + (f", or a {spec.standalone.program}" if spec.standalone else "")
        )
    try:
        library = library_version(spec, file)
    except EncoderMissing:
        # a build that fails at every encode is a result of the comparison, not a wrong command;
        # but without its device no encoder can work
        if spec.hardware:
            raise
        return version
    return f"{version}, {library}" if library else version


def _standalone_version(file: str, spec: EncoderSpec, banner: str) -> str:
    program = spec.standalone
    said = _answer(file, program.version) if program else banner
    if program and (found := re.search(program.version_pattern, said, re.MULTILINE)):
        return f"{program.program} {found[1]}"
    wanted = f"an ffmpeg with {spec.ffmpeg}" + (f" or {program.program}" if program else "")
    for other in load_encoders().values():
        theirs = other.standalone
        if theirs and re.search(theirs.version_pattern, f"{banner}\n{said}", re.MULTILINE):
            raise InputError(
                f"{quoted(file)} answers as {theirs.program}, which makes {other.codec} "
                f"({other.name}); for {spec.codec} by {spec.name} name {wanted}"
            )
    first = next((line.strip() for line in said.splitlines() if line.strip()), "nothing")
    raise InputError(
        f"{quoted(file)} is not {wanted}: asked for its version it said {first[:120]!r}; "
        "name the encoder's program"
    )


def write_view(
    source: Source,
    size: tuple[int, int] | None,
    out: Path,
    *,
    bit_depth: int,
    frames: int | None,
    ffmpeg: str,
) -> BuildInput:
    """Write what every run reads: prep applied, scaled to `size` (None: the source's own).

    `frames` are taken from the start, or all. By our own ffmpeg, so that scaling is no part of the
    comparison. Raises InputError for a bit depth other than 8 and 10 or a folder that cannot be
    written, DecodeFailed when the frames do not come out.
    """
    if bit_depth not in (8, 10):
        raise InputError(f"builds are compared at 8 or 10 bits a sample, not {bit_depth}")
    wanted = source.frames if frames is None else min(frames, source.frames)
    width, height = size or source.canvas
    filters = list(source.prep)
    if (width, height) != source.canvas:
        filters.append(f"scale={width}:{height}:flags={DOWNSCALER}")
    filters += ["setsar=1", f"format=yuv420p{'10le' if bit_depth == 10 else ''}"]
    filters += [f"settb=expr={1 / source.fps}", "setpts=expr=N"]
    options = {
        "map": "0:V:0",
        "vf": ",".join(filters),
        "fps_mode": "cfr",
        "r": str(source.fps),
        "frames:v": wanted,
        # more than 8 bits are an extension of the format, which every encoder here knows
        "strict": -1,
        "f": "yuv4mpegpipe",
    }
    graph = ffmpeg_graph.input("INPUT", **input_arguments(source.input_options))
    graph = graph.output("OUTPUT", **options)
    try:
        with renamed_to(out) as part:
            argv = compiled(graph, ffmpeg, {"INPUT": source.path, "OUTPUT": part})
            done = process.run(argv, timeout_s=300 + 2.0 * source.frames)
            if done.returncode:
                raise DecodeFailed(f"{quoted(source.path)} was not decoded: {done.reason()}")
            if (count := count_y4m_frames(part)) != wanted:
                raise DecodeFailed(f"{quoted(source.path)} gave {count} of {wanted} frames")
    except OSError as error:
        raise InputError(f"could not write {quoted(out)}: {error.strerror or error}") from error
    return BuildInput(out, width, height, source.fps, wanted, bit_depth, source.colour)


def make(
    build: Build,
    spec: EncoderSpec,
    job: BuildRun,
    *,
    timeout_s: float,
    ffmpeg: str | None = None,
) -> EncodedRun:
    """Encode `job.view` to `job.out` and check the file: its codec, size and number of frames.

    `ffmpeg` decodes in case of doubt; `decode_md5` checks that all of it decodes. Raises
    InputError for settings that the encoder does not have, ToolError when the disk is full,
    BuildFailed for the build's faults; then, and after an interruption, `job.out` is as it was.
    """
    view, out = job.view, job.out
    if not out.parent.is_dir():
        raise InputError(f"the folder {quoted(out.parent)} does not exist; create it first")
    # a folder of its own: some programs prompt before they overwrite, or write statistics beside
    with scratch(out.parent) as folder:
        part = Path(folder).absolute() / f"out{file_suffix(build, spec)}"
        argv = command(build, spec, replace(job, out=part))
        try:
            done = run_measured(argv, timeout_s=timeout_s, folder=Path(folder))
        except ToolError as error:
            raise BuildFailed("crash", str(error)) from error
        _check_finished(spec, done, part, out)
        stream = parse(part, spec)
        if stream.size != (view.width, view.height):
            size = f"{stream.size[0]}x{stream.size[1]}"
            raise BuildFailed(
                "undecodable", f"the file holds {size} pictures, not {view.width}x{view.height}"
            )
        trusted = ffmpeg_path(ffmpeg)
        check_count(part, stream, view.path, view.frames, ffmpeg=trusted)
        os.replace(part, out)
    shown = (arg.replace(os.fspath(part), os.fspath(out)) for arg in argv)
    return EncodedRun(
        path=out,
        size_bytes=stream.size_bytes,
        frames=view.frames,
        cpu_s=done.cpu_s,
        wall_s=done.wall_s,
        peak_bytes=done.peak_bytes,
        stream_sha256=stream.sha256,
        command=tuple(shown),
    )


def _check_finished(spec: EncoderSpec, done: process.Finished, part: Path, out: Path) -> None:
    if "No space left on device" in done.stderr or "Disk quota exceeded" in done.stderr:
        raise ToolError(f"the disk of the folder {quoted(out.parent)} is full; free some")
    if done.timed_out:
        raise BuildFailed("hang", done.reason())
    if done.returncode:
        raise BuildFailed("crash", complaint(spec, done), max(0, done.returncode))
    if not part.is_file() or part.is_symlink() or not part.stat().st_size:
        raise BuildFailed("no-output", "it ended well but wrote nothing")
