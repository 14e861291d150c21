"""Coded packets of a video: times, sizes, keyframes and peak bitrate, read without decoding."""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.video.stream import VideoStream

from vqaloop.bitstream.avs2 import read_picture_size, read_pictures, starts_as_avs2
from vqaloop.bitstream.demux import main_video, open_video
from vqaloop.bitstream.formats import ENCODES
from vqaloop.core.files import as_of
from vqaloop.core.text import quoted
from vqaloop.errors import ToolError


class Packet(NamedTuple):
    """One coded frame."""

    time_s: float
    """Presentation time; for AVS2, which has no timestamps, by its place in coding order."""
    size_bytes: int
    keyframe: bool


def stream_packets(path: Path, codec: str, fps: Fraction) -> list[Packet]:
    """The coded frames of an encode, in the order of their presentation times.

    Args:
        path: The file.
        codec: ffmpeg's name of the codec that it should hold.
        fps: Frame rate, which gives AVS2 its times; of other codecs the container has them.

    Returns:
        One packet a frame.

    Raises:
        ToolError: The file cannot be parsed or holds another codec.
    """
    if codec == "avs2":
        return [
            Packet(float(index / fps), picture.size_bytes, picture.is_intra)
            for index, picture in enumerate(read_pictures(path))
        ]
    with opened_encode(path, codec) as (container, stream):
        packets = []
        for packet in container.demux(stream):
            if packet.size and packet.pts is not None and packet.time_base is not None:
                time_s = float(packet.pts * packet.time_base)
                packets.append(Packet(time_s, packet.size, packet.is_keyframe))
    return sorted(packets)


@dataclass(frozen=True, eq=False)
class PacketSizes:
    """The coded frames of a video by their sizes, whatever its codec."""

    sizes: npt.NDArray[np.float64]
    """Bytes of each frame, in the order of presentation where there are time stamps."""
    keys: npt.NDArray[np.bool_]
    """Which of them are keyframes."""
    size: tuple[int, int]
    """(width, height) of coded frames; (0, 0) where the header does not say."""
    lossy: bool
    """Whether the codec takes anything away; not so of raw video."""


def packet_sizes(path: Path) -> PacketSizes:
    """The sizes of a video's coded frames, remembered while the file is untouched.

    Args:
        path: The file, in any format of sources and rungs.

    Raises:
        OSError, ValueError, av.FFmpegError: The file cannot be read, or holds no video.
        ToolError: It is a damaged AVS2 stream.
    """
    return _packet_sizes(path, as_of(path))


@functools.lru_cache(maxsize=16)
def _packet_sizes(path: Path, as_of: tuple[int, ...]) -> PacketSizes:
    """`as_of` only tells one state of the file from another."""
    with path.open("rb") as file:
        is_avs2 = starts_as_avs2(file.read(16))
    if is_avs2:
        pictures = read_pictures(path)
        sizes, keys = zip(*pictures, strict=True)
        return PacketSizes(
            np.array(sizes, float), np.array(keys, bool), read_picture_size(path), lossy=True
        )
    with open_video(path, ENCODES) as container:
        stream = main_video(container)
        if stream is None:
            raise ValueError("it holds no video")
        # of a codec without a decoder there is no context
        codec, size, lossy = stream.codec_context, (0, 0), True
        if codec is not None:
            size, lossy = (codec.width, codec.height), codec.codec.lossy
        found = [(p.pts, p.size, p.is_keyframe) for p in container.demux(stream) if p.size]
    if not found:
        raise ValueError("it holds no packet")
    # without time stamps the order of coding is near enough
    if all(pts is not None for pts, _, _ in found):
        found.sort()
    _, sizes, keys = zip(*found, strict=True)
    return PacketSizes(np.array(sizes, float), np.array(keys, bool), size, lossy)


@contextmanager
def opened_encode(path: Path, codec: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open an encode with PyAV, which cannot read AVS2.

    Args:
        path: The file.
        codec: ffmpeg's name of the codec that it should hold.

    Yields:
        The container and its first video stream.

    Raises:
        ToolError: The file holds something else, or fails while it is read.
    """
    try:
        with open_video(path, ENCODES) as container:
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


def peak_kbps(packets: Sequence[Packet], duration_s: float) -> float:
    """Peak bitrate: the highest over any second that begins with a frame.

    Args:
        packets: In ascending order of time.
        duration_s: Duration of all of them; below one second, the mean is the peak.

    Returns:
        kbit/s, container not counted.
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


def segment_peak_kbps(packets: Sequence[Packet], duration_s: float) -> float:
    """The highest rate of any segment that a packager could cut: whole GOPs, a second at least.

    Args:
        packets: In ascending order of time, the first a keyframe.
        duration_s: Duration of all of them; below one second, the mean is the peak.

    Returns:
        kbit/s, container not counted.
    """
    start_s = packets[0].time_s
    total_s, bits = max(duration_s, 1e-9), [0.0]
    for packet in packets:
        bits.append(bits[-1] + packet.size_bytes * 8)
    cuts = [index for index, packet in enumerate(packets) if packet.keyframe]
    times = [*(packets[index].time_s - start_s for index in cuts), total_s]
    held = [*(bits[index] for index in cuts), bits[-1]]
    most = bits[-1] / total_s
    for first in range(len(cuts)):
        shortest = None
        for last in range(first + 1, len(times)):
            long_s = times[last] - times[first]
            if long_s < 1 - 1e-6:
                continue
            shortest = shortest or long_s
            # what is longer by a second consists of shorter ones
            if long_s - shortest >= 1:
                break
            most = max(most, (held[last] - held[first]) / long_s)
    return most / 1000
