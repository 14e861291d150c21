"""Coded packets of an encode: sizes, keyframes and peak bitrate, read without decoding."""

import mmap
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from vqaloop.bitstream.formats import ENCODES
from vqaloop.core.ffmpeg import file_url
from vqaloop.core.text import quoted
from vqaloop.errors import ToolError

_AVS2_STARTS = re.compile(rb"\x00\x00\x01([\xb0\xb3\xb6])")
_AVS2_SEQUENCE, _AVS2_INTRA = b"\xb0", b"\xb3"


class Packet(NamedTuple):
    """One coded frame."""

    time_s: float
    """When it is shown; for AVS2, which has no timestamps, its place in coding order."""
    size_bytes: int
    keyframe: bool


def stream_packets(path: Path, codec: str, fps: Fraction) -> list[Packet]:
    """The coded frames of a file that an encoder of `codec` wrote, in the order of their times.

    Raises ToolError when it cannot be parsed or holds another codec.
    """
    if codec == "avs2":
        return _avs2_packets(path, fps)
    with opened_encode(path, codec) as (container, stream):
        packets = []
        for packet in container.demux(stream):
            if packet.size and packet.pts is not None and packet.time_base is not None:
                time_s = float(packet.pts * packet.time_base)
                packets.append(Packet(time_s, packet.size, packet.is_keyframe))
    return sorted(packets)


@contextmanager
def opened_encode(path: Path, codec: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A file that an encoder of `codec` should have written, and its video; not for AVS2.

    Raises ToolError where it holds something else, or fails while it is read.
    """
    try:
        # a playlist under an encode's name would else open what it lists
        only = {"format_whitelist": ENCODES}
        with av.open(file_url(path), options=only) as container:
            if not container.streams.video:
                raise ToolError(f"{quoted(path)} holds no video")
            stream = container.streams.video[0]
            # of a codec without a decoder there is none, whatever the types say
            if stream.codec_context is None:
                raise ToolError(f"{quoted(path)} holds a codec that is not known here")
            found = stream.codec_context.codec.canonical_name
            if found != codec:
                raise ToolError(f"{quoted(path)} holds {found}, not {codec}")
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
