"""Streams chosen frames of any video, with never more than one of them in memory.

The ffmpeg program decodes, so that a file that crashes a decoder cannot harm this process.
"""

import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from vqaloop.bitstream.avs2 import picture_size, read_pictures, starts_as_avs2
from vqaloop.core import ffmpeg as ffmpeg_graph
from vqaloop.core import process
from vqaloop.core.ffmpeg import compiled, input_arguments
from vqaloop.core.text import quoted
from vqaloop.errors import DecodeFailed, InputError
from vqaloop.media.container import opened
from vqaloop.media.frames import any_of
from vqaloop.media.limits import MAX_PIXELS, check_size
from vqaloop.media.planes import SCALER, Frames
from vqaloop.media.rawvideo import (
    MAX_HEADER_BYTES,
    Y4M_MAGIC,
    count_raw_frames,
    count_y4m_frames,
    parse_y4m_header,
)

MISSED = 0.1
"""Part of a video's frames that may be missing at its end: the last one there is repeated."""
RAW_RATE = Fraction(25)
"""The rate, in fps, of raw video whose name gives none; frames are found by index all the same."""

DECODING_THREADS = 2
"""Threads of the decoder of one file."""


@dataclass(frozen=True)
class VideoFacts:
    """A video's size, length and rate by its header and packets."""

    size: tuple[int, int]
    """Width and height in pixels, even."""
    frames: int
    fps: Fraction
    options: tuple[tuple[str, str], ...] = ()
    """ffmpeg options before -i."""

    @property
    def seconds(self) -> float:
        return float(self.frames / self.fps)


def measure(path: Path, size: tuple[int, int] = (0, 0)) -> VideoFacts:
    """Size, frames and rate by the file's header and packets; of raw video, by its name.

    Args:
        path: The file.
        size: Width and height by the data set, for streams whose headers have none.

    Returns:
        The facts, sides rounded down to even ones.

    Raises:
        InputError: The file cannot be read, or is outside the limits.
        ToolError: A raw AVS2 stream is damaged.
    """
    name = quoted(path)
    try:
        with open(path, "rb") as file:
            head = file.read(MAX_HEADER_BYTES)
    except (OSError, ValueError) as error:
        raise InputError(f"{name} cannot be read: {error}; check its mode and owner") from error
    if path.suffix.lower() == ".yuv":
        return _raw(path)
    if head.startswith(Y4M_MAGIC):
        header = parse_y4m_header(head, name)
        return _even(name, header.width, header.height, count_y4m_frames(path), header.fps)
    if starts_as_avs2(head):
        return _avs2(path, head)
    with opened(path) as container:
        streams = container.streams.video
        if not streams:
            raise InputError(f"{name} holds no video stream; give a file with video")
        codec = streams[0].codec_context
        width, height = (codec.width, codec.height) if codec else size
        check_size(name, width, height)
        frames = sum(1 for packet in container.demux(streams[0]) if packet.size)
        fps = streams[0].average_rate if codec else None
    return _even(name, width, height, frames, Fraction(fps or RAW_RATE))


def _even(
    name: str,
    width: int,
    height: int,
    frames: int,
    fps: Fraction,
    options: tuple[tuple[str, str], ...] = (),
) -> VideoFacts:
    check_size(name, width, height)
    if frames < 1 or fps <= 0:
        raise InputError(f"{name} holds no frame; copy it again")
    return VideoFacts((width // 2 * 2, height // 2 * 2), frames, fps, options)


def _raw(path: Path) -> VideoFacts:
    """Planar 4:2:0 by its name, such as Bookcase_1920x1080_60fps.yuv."""
    name = quoted(path)
    size = re.search(r"(?<![0-9])([0-9]{2,5})x([0-9]{2,5})(?![0-9])", path.name)
    if not size:
        raise InputError(f"{name} is raw video; its name must hold its size, such as 1920x1080")
    width, height = int(size[1]), int(size[2])
    check_size(name, width, height)
    deep = re.search(r"(?<![0-9])10 ?b(it)?(?![a-z0-9])|420p10|10le", path.name.lower())
    pix_fmt = "yuv420p10le" if deep else "yuv420p"
    frames = count_raw_frames(path, pix_fmt, width, height)
    rate = re.search(r"(?<![0-9.])([0-9]{1,3}(?:[.][0-9]{1,3})?) ?(?:fps|hz)", path.name.lower())
    fps = (rate and Fraction(rate[1])) or RAW_RATE
    options = (("f", "rawvideo"), ("video_size", f"{width}x{height}"), ("pixel_format", pix_fmt))
    return _even(name, width, height, frames, fps, (*options, ("framerate", str(fps))))


def _avs2(path: Path, head: bytes) -> VideoFacts:
    name = quoted(path)
    width, height = picture_size(head)
    check_size(name, width, height)
    return _even(name, width, height, len(read_pictures(path)), RAW_RATE)


def stream_frames(
    path: Path,
    facts: VideoFacts,
    indices: Sequence[int],
    size: tuple[int, int],
    take: Callable[[int, Frames], None],
    *,
    ffmpeg: str,
) -> None:
    """Call `take(index, frame)` for chosen frames, in order.

    Args:
        path: The file.
        facts: As `measure` gives them.
        indices: Ascending indices in order of display.
        size: Width and height to which frames are scaled.
        take: Gets each frame as (1, H·3/2, W): 8 bits, 4:2:0, planar. The last frame there is
            stands for those that are missing after it, up to MISSED of all.
        ffmpeg: The ffmpeg program.

    Raises:
        DecodeFailed: The file is damaged, or ends early.
    """
    width, height = size
    frame_bytes = width * height * 3 // 2
    argv = _command(path, facts, indices, size, ffmpeg)
    reader, writer = os.pipe()
    got: list[int] = []

    # read while ffmpeg writes: the pipe holds less than a frame
    def drain() -> None:
        last = None
        with open(reader, "rb") as pipe:
            while len(data := pipe.read(frame_bytes)) == frame_bytes and len(got) < len(indices):
                last = np.frombuffer(data, np.uint8).reshape(1, height * 3 // 2, width)
                take(indices[len(got)], last)
                got.append(indices[len(got)])
        short = indices[len(got) :]
        if last is not None and short and short[0] >= facts.frames * (1 - MISSED):
            for index in short:
                take(index, last)
            got.extend(short)

    with ThreadPoolExecutor(1) as pool:
        drained = pool.submit(drain)
        with open(writer, "wb") as pipe:
            done = process.run(argv, timeout_s=300 + (indices[-1] + 1) * 2.0, stdout=pipe)
        drained.result()
    if done.returncode or len(got) < len(indices):
        why = done.reason() if done.returncode else f"it ended after {len(got)} of {len(indices)}"
        raise DecodeFailed(
            f"{quoted(path.name)}: frames up to {indices[-1]} could not be read: {why}"
        )


def _command(
    path: Path, facts: VideoFacts, indices: Sequence[int], size: tuple[int, int], ffmpeg: str
) -> list[str]:
    """ffmpeg's command line, which writes the chosen frames to stdout."""
    wanted = any_of([f"eq(n,{index})" for index in indices])
    scale = f"scale={size[0]}:{size[1]}:flags={SCALER}"
    # several files are decoded at a time: all threads for each would only take memory
    options = {**input_arguments(facts.options), "threads": DECODING_THREADS}
    graph = ffmpeg_graph.input("INPUT", max_pixels=MAX_PIXELS, **options).output(
        "pipe:1",
        # V rather than v: cover art is no video
        map="0:V:0",
        vf=f"select='{wanted}',{scale},format=yuv420p",
        fps_mode="passthrough",
        f="rawvideo",
        **{"frames:v": len(indices)},
    )
    return compiled(graph, ffmpeg, {"INPUT": path}, "-xerror")
