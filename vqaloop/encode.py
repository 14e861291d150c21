"""One rendition of one source becomes one file: encoded, checked, and only then given its name.

ffmpeg-python builds the command; the file is written under a temporary name beside the one asked
for, and takes that name once its codec, size and number of frames are what they should be.
"""

import math
import mmap
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import ffmpeg as ffmpeg_graph
from av.container import InputContainer
from av.video.stream import VideoStream

from vqaloop import process
from vqaloop.encoder import EncoderSpec, complaint, encoder_version, get_encoder, output_options
from vqaloop.errors import EncodeFailed, InputError, ToolError
from vqaloop.files import unfinished
from vqaloop.frames import ENCODES
from vqaloop.process import quoted
from vqaloop.records import Encode, Rendition, Source

_AVS2_STARTS = re.compile(rb"\x00\x00\x01([\xb0\xb3\xb6])")
_AVS2_SEQUENCE, _AVS2_INTRA = b"\xb0", b"\xb3"

IDLE_S = 60.0
"""Seconds without any work after which an encoder is held to hang."""
_SLOWER_MACHINE = 50.0
"""How many times the encoder's rough cost a run may take before it is held to hang."""
_SOURCE_COST = 0.02
"""CPU seconds to decode and scale a megapixel of the source, roughly."""


class Packet(NamedTuple):
    """One coded frame."""

    time_s: float
    """When it is shown; for AVS2, which has no timestamps, its place in coding order."""
    size_bytes: int
    keyframe: bool


def encode(
    source: Source,
    rendition: Rendition,
    out: Path,
    *,
    ffmpeg: str,
    timeout_s: float | None = None,
) -> Encode:
    """Encode all frames of `source` to the file `out`, replacing one that is there.

    `timeout_s` is wall time; by default it grows with the pixels and the preset. Raises InputError
    for a rendition the encoder cannot make or a folder that cannot be written, EncoderMissing when
    this ffmpeg lacks the encoder, ToolError when the disk is full, and EncodeFailed otherwise.
    After any of these, or an interruption, nothing is left behind and `out` is as it was.
    """
    spec = get_encoder(rendition.encoder)
    options = output_options(spec, rendition, source)
    version = encoder_version(spec, ffmpeg)
    _check_place(source, out)
    with _temporary_beside(out, spec.suffix) as partial:
        argv, ffmpeg_args = _command(source, options, partial, ffmpeg)
        limit_s = timeout_s or default_timeout_s(spec, rendition, source)
        done = process.run(argv, timeout_s=limit_s, idle_s=IDLE_S, again=False)
        if done.timed_out or done.returncode:
            raise _failure(spec, rendition, done, out, chance=timeout_s is None)
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
        cpu_s=done.cpu_s,
        wall_s=done.wall_s,
        ffmpeg_args=ffmpeg_args,
        encoder_version=version,
    )


def default_timeout_s(spec: EncoderSpec, rendition: Rendition, source: Source) -> float:
    """Seconds after which an encode is held to hang: far more than a slow machine needs."""
    slowest, fastest = spec.cost
    place = spec.presets.index(rendition.preset) / max(1, len(spec.presets) - 1)
    cost = float(slowest * (fastest / slowest) ** place)
    coded = rendition.width * rendition.height * source.frames / 1e6
    read = source.width * source.height * source.frames / 1e6
    return 120 + _SLOWER_MACHINE * (cost * coded + _SOURCE_COST * read)


def stream_packets(path: Path, spec: EncoderSpec, fps: Fraction) -> list[Packet]:
    """The coded frames of a file that this encoder wrote, in the order of their times.

    Raises ToolError when it cannot be parsed or holds another codec.
    """
    if spec.codec == "avs2":
        return _avs2_packets(path, fps)
    with opened_encode(path, spec) as (container, stream):
        packets = []
        for packet in container.demux(stream):
            if packet.size and packet.pts is not None and packet.time_base is not None:
                time_s = float(packet.pts * packet.time_base)
                packets.append(Packet(time_s, packet.size, packet.is_keyframe))
    return sorted(packets)


@contextmanager
def opened_encode(path: Path, spec: EncoderSpec) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A file that this encoder should have written, and its video; not for AVS2.

    Raises ToolError where it holds something else, or fails while it is read.
    """
    try:
        # a playlist under an encode's name would else open what it lists
        only = {"format_whitelist": ENCODES}
        with av.open(process.file_url(path), options=only) as container:
            if not container.streams.video:
                raise ToolError(f"{quoted(path)} holds no video")
            stream = container.streams.video[0]
            # of a codec without a decoder there is none, whatever the types say
            if stream.codec_context is None:
                raise ToolError(f"{quoted(path)} holds a codec that is not known here")
            codec = stream.codec_context.codec.canonical_name
            if codec != spec.codec:
                raise ToolError(f"{quoted(path)} holds {codec}, not {spec.codec}")
            yield container, stream
    except (OSError, av.FFmpegError, ValueError, MemoryError, OverflowError) as error:
        raise ToolError(f"{quoted(path)} cannot be parsed: {error}") from error


def _avs2_packets(path: Path, fps: Fraction) -> list[Packet]:
    """Pictures by their start codes; headers count for the picture that follows them."""
    size = path.stat().st_size
    if not size:
        raise ToolError(f"{quoted(path)} is empty")
    begins: list[int] = []
    keys: list[bool] = []
    headers_at: int | None = None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for match in _AVS2_STARTS.finditer(data):
            if match[1] == _AVS2_SEQUENCE:
                headers_at = match.start()
                continue
            begins.append(match.start() if headers_at is None else headers_at)
            keys.append(match[1] == _AVS2_INTRA)
            headers_at = None
        first = data[:4]
    if first != b"\x00\x00\x01" + _AVS2_SEQUENCE or not begins:
        raise ToolError(f"{quoted(path)} is not an AVS2 stream")
    sizes = [end - begin for begin, end in zip(begins, [*begins[1:], size], strict=True)]
    return [Packet(float(index / fps), sizes[index], key) for index, key in enumerate(keys)]


def peak_kbps(packets: Sequence[Packet], duration_s: float) -> float:
    """Highest rate over any second that begins with a frame; the mean below one second.

    `packets` in ascending order of time; kb/s, container not counted.
    """
    if duration_s < 1:
        return sum(packet.size_bytes for packet in packets) * 8 / 1000 / duration_s
    most = inside = first = 0
    for packet in packets:
        inside += packet.size_bytes
        # a frame that starts a whole second later is outside, whatever the float rounding
        while packet.time_s - packets[first].time_s > 1 - 1e-6:
            inside -= packets[first].size_bytes
            first += 1
        most = max(most, inside)
    return most * 8 / 1000


def _command(
    source: Source, options: dict[str, str], out: Path, ffmpeg: str
) -> tuple[list[str], tuple[str, ...]]:
    """The whole command line, and the output options alone as a user replays them."""
    before = process.input_arguments(source.input_options)
    graph = ffmpeg_graph.input("INPUT", **before).output("OUTPUT", **options)
    argv = process.compiled(graph, ffmpeg, {"INPUT": source.path, "OUTPUT": out})
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
    """Why it failed. `chance`: running into the time limit need not happen again."""
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
        packets = stream_packets(path, spec, source.fps)
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
