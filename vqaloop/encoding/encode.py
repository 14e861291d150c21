"""Encodes one rendition of a source to one file, and checks the file before it gets its name.

The file is written under a temporary name in the folder of the output, and renamed once its codec
and number of frames are right.
"""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vqaloop.bitstream.packets import Packet, peak_kbps, stream_packets
from vqaloop.core import ffmpeg as ffmpeg_graph
from vqaloop.core import process
from vqaloop.core.ffmpeg import compiled, input_arguments
from vqaloop.core.files import scratch, unfinished
from vqaloop.core.text import quoted
from vqaloop.encoding.options import first_pass, output_options
from vqaloop.encoding.registry import get_encoder
from vqaloop.encoding.spec import EncoderSpec
from vqaloop.encoding.survey import complaint, encoder_version
from vqaloop.errors import EncodeFailed, InputError, ToolError
from vqaloop.records import Encode, Rendition, Source

IDLE_S = 60.0
"""Seconds without CPU time after which an encoder counts as stalled."""
_SLOWER_MACHINE = 50.0
"""Factor on the encoder's rough cost for the time limit of a run."""
_SOURCE_COST = 0.02
"""CPU seconds to decode and scale a megapixel of the source, roughly."""


def encode(
    source: Source,
    rendition: Rendition,
    out: Path,
    *,
    ffmpeg: str,
    timeout_s: float | None = None,
) -> Encode:
    """Encode all frames of a source to a file.

    After an error or an interruption nothing is left behind, and `out` is as it was.

    Args:
        source: The title.
        rendition: What to encode.
        out: The file, which replaces one that is there.
        ffmpeg: The ffmpeg program.
        timeout_s: Wall time allowed, for each pass; None for `default_timeout_s`.

    Returns:
        The encode, with its size, peak bitrate and cost.

    Raises:
        InputError: The encoder cannot make the rendition, or the folder cannot be written to.
        EncoderMissing: This ffmpeg lacks the encoder.
        ToolError: The disk is full.
        EncodeFailed: The encoder failed, or its file is not whole.
    """
    spec = get_encoder(rendition.encoder)
    options = output_options(spec, rendition, source)
    version = encoder_version(spec, ffmpeg)
    _check_place(source, out)
    runs: list[process.Finished] = []
    first_pass_args: tuple[str, ...] = ()
    limit_s = timeout_s or default_timeout_s(spec, rendition, source)
    with _temporary_beside(out, spec.suffix) as partial, _pass_logs(options):
        argv, ffmpeg_args = _command(source, options, partial, ffmpeg)
        commands = [argv]
        if first := first_pass(options):
            before, first_pass_args = _command(source, first, Path(os.devnull), ffmpeg)
            commands = [before, argv]
        for command in commands:
            done = process.run(command, timeout_s=limit_s, idle_s=IDLE_S, again=False)
            if done.timed_out or done.returncode:
                raise _failure(spec, rendition, done, out, chance=timeout_s is None)
            runs.append(done)
        packets = _checked_packets(partial, spec, rendition, source)
        size_bytes = partial.stat().st_size
        os.replace(partial, out)
    mean_kbps = size_bytes * 8 / 1000 / source.duration_s
    return Encode(
        rendition=rendition,
        path=out,
        size_bytes=size_bytes,
        frames=len(packets),
        duration_s=source.duration_s,
        peak_kbps=max(mean_kbps, peak_kbps(packets, source.duration_s)),
        cpu_s=sum(done.cpu_s for done in runs),
        wall_s=sum(done.wall_s for done in runs),
        ffmpeg_args=ffmpeg_args,
        encoder_version=version,
        first_pass_args=first_pass_args,
    )


def cost_per_megapixel(spec: EncoderSpec, preset: str) -> float:
    """CPU seconds of a million coded pixels, roughly.

    Args:
        spec: The encoder, whose cost is interpolated between its slowest and fastest preset.
        preset: One of its presets.

    Returns:
        CPU seconds.
    """
    slowest, fastest = spec.cost
    place = spec.presets.index(preset) / max(1, len(spec.presets) - 1)
    return float(slowest * (fastest / slowest) ** place)


def default_timeout_s(spec: EncoderSpec, rendition: Rendition, source: Source) -> float:
    """The time limit of an encode in seconds, far more than a slow machine needs.

    Args:
        spec: The encoder, whose cost is interpolated between its slowest and fastest preset.
        rendition: What to encode.
        source: What it is made from.

    Returns:
        Wall time in seconds.
    """
    cost = cost_per_megapixel(spec, rendition.preset)
    coded = rendition.width * rendition.height * source.frames / 1e6
    read = source.width * source.height * source.frames / 1e6
    return 120 + _SLOWER_MACHINE * (cost * coded + _SOURCE_COST * read)


def _command(
    source: Source, options: dict[str, str], out: Path, ffmpeg: str
) -> tuple[list[str], tuple[str, ...]]:
    """The command line, and its output options alone, by which a user repeats the encode."""
    before = input_arguments(source.input_options)
    graph = ffmpeg_graph.input("INPUT", **before).output("OUTPUT", **options)
    argv = compiled(graph, ffmpeg, {"INPUT": source.path, "OUTPUT": out})
    return argv, tuple(argv[argv.index("-i") + 2 : -1])


def _check_place(source: Source, out: Path) -> None:
    if not source.path.is_file():
        raise InputError(f"the source {quoted(source.path)} is no longer there")
    if out.is_dir():
        raise InputError(f"{quoted(out)} is a folder; name a file")
    if not out.parent.is_dir():
        raise InputError(f"the folder {quoted(out.parent)} does not exist; create it first")
    if out.exists() and source.path.exists() and out.samefile(source.path):
        raise InputError(f"{quoted(out)} is the source itself; choose another name for the output")


@contextmanager
def _pass_logs(options: Mapping[str, str]) -> Iterator[None]:
    """A working folder for the logs of two passes, gone at the end; none for one pass."""
    if "pass" not in options:
        yield
        return
    with scratch() as folder, process.working_in(Path(folder)):
        yield


@contextmanager
def _temporary_beside(out: Path, suffix: str) -> Iterator[Path]:
    """A new empty file in the folder of `out`, gone at the end unless it was renamed."""
    partial = unfinished(out.parent, suffix)
    try:
        try:
            partial.open("xb").close()
        except OSError as error:
            raise InputError(
                f"cannot write in the folder {quoted(out.parent)}: {error.strerror}; "
                "choose another folder or free it"
            ) from error
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _failure(
    spec: EncoderSpec, rendition: Rendition, done: process.Finished, out: Path, chance: bool
) -> ToolError:
    """The error of a failed run. `chance`: another try may stay within the time limit."""
    if "No space left on device" in done.stderr or "Disk quota exceeded" in done.stderr:
        return ToolError(
            f"{rendition}: the disk of the folder {quoted(out.parent)} is full; free some"
        )
    again = done.returncode < 0 if not done.timed_out else chance or done.idle
    return EncodeFailed(f"{rendition} failed: {complaint(spec, done)}", again=again)


def _checked_packets(
    path: Path, spec: EncoderSpec, rendition: Rendition, source: Source
) -> list[Packet]:
    if not path.stat().st_size:
        raise EncodeFailed(
            f"{rendition} failed: the encoder ended well but wrote nothing", again=True
        )
    try:
        packets = stream_packets(path, spec.codec, source.fps)
    except ToolError as error:
        why = str(error).removeprefix(f"{quoted(path)} ")
        raise EncodeFailed(f"{rendition} failed: the file it wrote {why}", again=True) from error
    if len(packets) != source.frames:
        raise EncodeFailed(
            f"{rendition} failed: {len(packets)} frames in the file, {source.frames} expected",
            again=True,
        )
    if not packets[0].keyframe or not all(math.isfinite(p.time_s) for p in packets):
        raise EncodeFailed(f"{rendition} failed: its first frame is not a keyframe")
    return packets
