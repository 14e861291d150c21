"""Decoding a file no further than a few of its frames need: these, and those they refer to.

GOPs without a wanted frame never reach the decoder, nor does what comes after the last wanted one
of a GOP, nor frames that no other refers to. What comes out is what a full decode gives, to the
bit. Files whose GOPs lean on each other, or that are otherwise unlike what is expected, are
decoded from the start to the last wanted frame.
"""

import functools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame

from vqaloop.bitstream.av1_leaf_frames import Leaves
from vqaloop.bitstream.formats import SOURCES
from vqaloop.core.ffmpeg import file_url
from vqaloop.core.files import as_of
from vqaloop.media.container import main_video

SEEK_WORTH_S = 4.0
"""Over gaps longer than this the file is not even read."""
TROUBLE = (av.FFmpegError, OSError, IndexError, ValueError)
"""What PyAV raises of files that it cannot open or decode."""


class _Unlike(Exception):
    """Parts of the file cannot be left out."""


def frames_at(
    path: Path,
    indices: Sequence[int],
    fps: Fraction,
    *,
    threads: int = 1,
    formats: str | None = None,
) -> Iterator[VideoFrame]:
    """Frames by ascending index, found by their times; ends at the first that is not there.

    `threads` is how many the decoder may use, `formats` what the file may be. Raises one of
    TROUBLE.
    """
    found = 0
    try:
        with _opened(path, threads, formats) as (container, stream):
            for frame in _sparingly(container, stream, indices, fps):
                yield frame
                found += 1
    except (_Unlike, *TROUBLE):
        pass
    if found < len(indices):
        with _opened(path, threads, formats) as (container, stream):
            yield from _in_full(container, stream, indices[found:], fps)


def is_plain(path: Path, frames: int, size: tuple[int, int], fps: Fraction) -> bool:
    """Whether a file's times alone tell its frames 0..`frames` - 1, and are 8-bit 4:2:0 of `size`.

    Reads all of the file once, decodes none of it. What is so is read by `frames_at` as by
    ffmpeg.
    """
    try:
        return _is_plain(path, frames, size, fps, as_of(path))
    except OSError:
        return False


@functools.lru_cache(maxsize=256)
def _is_plain(
    path: Path, frames: int, size: tuple[int, int], fps: Fraction, as_of: tuple[int, ...]
) -> bool:
    try:
        with _opened(path, 1, SOURCES) as (container, stream):
            codec = stream.codec_context
            if codec.format is None or codec.format.name not in ("yuv420p", "yuvj420p"):
                return False
            if (codec.width, codec.height) != size:
                return False
            index = _Clock(stream, fps)
            seen = np.zeros(frames, bool)
            for packet in container.demux(stream):
                if packet.size:
                    at = index(packet)
                    if packet.is_discard or packet.is_corrupt or not 0 <= at < frames or seen[at]:
                        return False
                    seen[at] = True
            return bool(seen.all())
    except (_Unlike, *TROUBLE):
        return False


class _Clock:
    """Which frame a packet or a decoded frame is."""

    def __init__(self, stream: Any, fps: Fraction) -> None:
        self.base, self.start, self.fps = stream.time_base, stream.start_time or 0, fps

    def __call__(self, item: Any) -> int:
        if item.pts is None:
            raise _Unlike
        return int(round((item.pts - self.start) * self.base * self.fps))

    def place(self, index: int) -> int:
        """Where to seek for a frame, in the stream's time base."""
        return int(self.start + index / self.fps / self.base)


@contextmanager
def _opened(path: Path, threads: int, formats: str | None) -> Iterator[tuple[Any, Any]]:
    options = {"format_whitelist": formats} if formats else {}
    with av.open(file_url(path), options=options) as container:
        stream = main_video(container)
        # of a codec without a decoder there is none, whatever the types say
        if stream is None or stream.codec_context is None:
            raise ValueError("its codec is not known here")
        stream.thread_type = "AUTO" if threads > 1 else "NONE"
        stream.codec_context.thread_count = threads
        yield container, stream


def _sparingly(
    container: Any, stream: Any, indices: Sequence[int], fps: Fraction
) -> Iterator[VideoFrame]:
    """`frames_at`, leaving out what it can; raises _Unlike where that is not safe."""
    decoder, index = _Decoder(stream.codec_context), _Clock(stream, fps)
    left, wanted = deque(indices), set(indices)

    def shown(frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
        for frame in frames:
            at = index(frame)
            if left and at > left[0]:
                raise _Unlike
            if left and at == left[0]:
                yield frame
                left.popleft()

    position, sought = 0, -1
    while left:
        if left[0] - position > SEEK_WORTH_S * fps and sought != left[0]:
            container.seek(index.place(left[0]), stream=stream)
            sought = left[0]
        key: int | None = None
        held: list[Any] = []  # may turn out not to be needed
        for packet in container.demux(stream):
            if not packet.size:
                continue
            at = index(packet)
            if packet.is_keyframe:
                yield from shown(decoder.ended())
                if not left:
                    return
                # none that is wanted may have been shown before this one
                if at > left[0]:
                    raise _Unlike
                held.clear()
                key = position = at
                if left[0] - position > SEEK_WORTH_S * fps and sought != left[0]:
                    break
            elif key is None or at < key:
                raise _Unlike
            held.append(packet)
            if at in wanted:
                for each in held:
                    yield from shown(decoder.fed(each, index(each) in wanted))
                held.clear()
        else:
            yield from shown(decoder.ended())
            return


class _Decoder:
    """Decodes packets in order, those that are not wanted only as far as others need them."""

    def __init__(self, context: Any) -> None:
        self.context = context
        name = context.codec.canonical_name
        self.leaves = Leaves() if name == "av1" else None
        self.skips = name == "h264" or (name == "hevc" and _one_layer(context.extradata))
        self.running = False

    def fed(self, packet: Any, wanted: bool) -> list[VideoFrame]:
        self.running = True
        if self.skips:
            self.context.skip_frame = "DEFAULT" if wanted else "NONREF"
        elif self.leaves is not None:
            whole = bytes(packet)
            data = self.leaves.pruned(whole, wanted)
            if data is None:
                return []
            if len(data) < len(whole):
                slim = Packet(data)
                slim.pts, slim.dts, slim.time_base = packet.pts, packet.dts, packet.time_base
                packet = slim
        return list(self.context.decode(packet))

    def ended(self) -> list[VideoFrame]:
        """What the decoder still holds; it may then go on with a key frame."""
        if not self.running:
            return []
        self.running = False
        frames = list(self.context.decode(None))
        self.context.flush_buffers()
        return frames


def _one_layer(extradata: bytes | None) -> bool:
    """Whether HEVC has no temporal layers (ISO/IEC 14496-15, 8.3.3.1): in those, frames marked as
    not referred to by their own layer may be referred to by others."""
    return (
        extradata is not None
        and len(extradata) > 22
        and extradata[0] == 1
        and extradata[21] >> 3 & 7 == 1
    )


def _in_full(
    container: Any, stream: Any, indices: Sequence[int], fps: Fraction
) -> Iterator[VideoFrame]:
    """`frames_at`, decoding everything up to the last of them."""
    left, index = deque(indices), _Clock(stream, fps)
    for frame in container.decode(stream):
        if frame.pts is None or index(frame) > left[0]:
            return
        if index(frame) == left[0]:
            yield frame
            left.popleft()
            if not left:
                return
