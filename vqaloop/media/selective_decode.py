"""Selective decoding: only the requested frames of a file and their references are decoded.

GOPs without a wanted frame never reach the decoder, nor does what follows the last wanted one of a
GOP, nor do non-reference frames. Frames are those of a full decode, to the bit. Files with open
GOPs, or with time stamps that do not tell their frames, are decoded from the start to the last
wanted frame.
"""

import functools
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame

from vqaloop.bitstream.av1_nonreference import NonReferenceFilter
from vqaloop.bitstream.demux import main_video, open_video
from vqaloop.bitstream.film_grain import PYAV_NO_SYNTHESIS
from vqaloop.bitstream.formats import SOURCES
from vqaloop.bitstream.nal import has_one_temporal_layer
from vqaloop.core.files import as_of

SEEK_WORTH_S = 4.0
"""Seconds between wanted frames from which on the file is not even read between them."""
TROUBLE = (av.FFmpegError, OSError, IndexError, ValueError)
"""PyAV's exceptions for files that it cannot open or decode."""


class _Unselectable(Exception):
    """No packet of the file can be left out with safety."""


def frames_at(
    path: Path,
    indices: Sequence[int],
    fps: Fraction,
    *,
    threads: int = 1,
    formats: str | None = None,
    grain: bool = True,
) -> Iterator[VideoFrame]:
    """Frames by index, found by their time stamps.

    Args:
        path: The file.
        indices: Ascending indices in order of display.
        fps: The constant frame rate.
        threads: Threads of the decoder.
        formats: ffmpeg's names of the formats that the file may have, None for any.
        grain: Whether film grain is synthesised where the file asks for it.

    Yields:
        The frames, up to the first that is not there.

    Raises:
        One of TROUBLE: The file cannot be opened or decoded.
    """
    found = 0
    try:
        with _opened(path, threads, formats, grain) as (container, stream):
            for frame in SelectiveReader(container, stream, indices, fps).frames():
                yield frame
                found += 1
    except (_Unselectable, *TROUBLE):
        pass
    if found < len(indices):
        with _opened(path, threads, formats, grain) as (container, stream):
            yield from _in_full(container, stream, indices[found:], fps)


def is_plain(path: Path, frames: int, size: tuple[int, int], fps: Fraction, bits: int = 8) -> bool:
    """Whether `frames_at` gives the frames of a file as the ffmpeg program does.

    Reads all packets of the file once, and decodes none.

    Args:
        path: The file.
        frames: Number of frames, of which each must have a time stamp of its own.
        size: Width and height that it must have, as 4:2:0.
        fps: The constant frame rate.
        bits: Bits a sample that it may have at most, 8 or 10.

    Returns:
        False also for a file that cannot be read.
    """
    try:
        return _is_plain(path, frames, (size, bits), fps, as_of(path))
    except OSError:
        return False


@functools.lru_cache(maxsize=256)
def _is_plain(
    path: Path,
    frames: int,
    form: tuple[tuple[int, int], int],
    fps: Fraction,
    as_of: tuple[int, ...],
) -> bool:
    size, bits = form
    formats = ("yuv420p", "yuvj420p", *(["yuv420p10le"] if bits > 8 else []))
    try:
        with _opened(path, 1, SOURCES) as (container, stream):
            codec = stream.codec_context
            if codec.format is None or codec.format.name not in formats:
                return False
            if (codec.width, codec.height) != size:
                return False
            index = _FrameIndex(stream, fps)
            seen = np.zeros(frames, bool)
            for packet in container.demux(stream):
                if packet.size:
                    at = index(packet)
                    if packet.is_discard or packet.is_corrupt or not 0 <= at < frames or seen[at]:
                        return False
                    seen[at] = True
            return bool(seen.all())
    except (_Unselectable, *TROUBLE):
        return False


class _FrameIndex:
    """Index, in order of display, of a packet or a decoded frame by its time stamp."""

    def __init__(self, stream: Any, fps: Fraction) -> None:
        self._base, self._start, self._fps = stream.time_base, stream.start_time or 0, fps

    def __call__(self, item: Any) -> int:
        if item.pts is None:
            raise _Unselectable
        return int(round((item.pts - self._start) * self._base * self._fps))

    def timestamp(self, index: int) -> int:
        """Time stamp of a frame, in the stream's time base."""
        return int(self._start + index / self._fps / self._base)


@contextmanager
def _opened(
    path: Path, threads: int, formats: str | None, grain: bool = True
) -> Iterator[tuple[Any, Any]]:
    with open_video(path, formats) as container:
        stream = main_video(container)
        # of a codec without a decoder there is none, whatever the types say
        if stream is None or stream.codec_context is None:
            raise ValueError("its codec is not known here")
        stream.thread_type = "AUTO" if threads > 1 else "NONE"
        stream.codec_context.thread_count = threads
        if not grain and stream.codec_context.codec.canonical_name == "av1":
            stream.codec_context.options = PYAV_NO_SYNTHESIS
        yield container, stream


class SelectiveReader:
    """Reads the wanted frames of one file, moving between three states.

    seek: the next wanted frame is far ahead, and the demuxer jumps to the key frame before it.
    hold: packets of a GOP are kept aside, since no wanted frame may come that needs them.
    feed: a wanted frame's packet came, and the decoder gets it with all that were held.
    """

    def __init__(self, container: Any, stream: Any, indices: Sequence[int], fps: Fraction) -> None:
        self._container, self._stream = container, stream
        self._decoder, self._index = _Decoder(stream.codec_context), _FrameIndex(stream, fps)
        self._wanted, self._left = frozenset(indices), deque(indices)
        self._seek_worth = SEEK_WORTH_S * fps
        self._position = 0
        """The key frame last read, up to which the file has been passed."""
        self._sought = -1
        """The frame last sought."""
        self._gop: int | None = None
        """The key frame of the GOP that is read, None before one."""
        self._held: list[Any] = []

    def frames(self) -> Iterator[VideoFrame]:
        """The wanted frames, up to the first that is not there.

        Raises _Unselectable where packets cannot be left out, and one of TROUBLE.
        """
        may_go_on = True
        while self._left and may_go_on:
            if self._seek_pays():
                self._seek()
            may_go_on = yield from self._read()

    def _read(self) -> Generator[VideoFrame, None, bool]:
        """Read on in the file; returns whether to go on by seeking, as opposed to being done."""
        self._gop = None
        self._held.clear()
        for packet in self._container.demux(self._stream):
            if not packet.size:
                continue
            at = self._index(packet)
            if packet.is_keyframe:
                # the GOP before is done: nothing in this one refers to it, and what the decoder
                # still holds back of it must come out before another frame goes in
                yield from self._wanted_of(self._decoder.flush())
                if not self._left:
                    return False
                self._begin_gop(at)
                if self._seek_pays():
                    return True
            # open GOPs: leading pictures, shown before their key frame, refer to the GOP before
            elif self._gop is None or at < self._gop:
                raise _Unselectable
            self._held.append(packet)
            if at in self._wanted:
                yield from self._feed()
        yield from self._wanted_of(self._decoder.flush())
        return False

    def _seek_pays(self) -> bool:
        """Whether the next wanted frame is so far ahead that what is between is not even read."""
        next_wanted = self._left[0]
        # once for each frame: key frames may be so far apart that seeking leads back here
        return next_wanted - self._position > self._seek_worth and self._sought != next_wanted

    def _seek(self) -> None:
        self._sought = self._left[0]
        self._container.seek(self._index.timestamp(self._sought), stream=self._stream)

    def _begin_gop(self, key: int) -> None:
        """From here packets are held; those that were are of a GOP without more wanted frames."""
        # of frames shown before this key frame none can come any more
        if key > self._left[0]:
            raise _Unselectable
        self._held.clear()
        self._gop = self._position = key

    def _feed(self) -> Iterator[VideoFrame]:
        """Decode what is held: in coding order, as the wanted frame may refer to all before it."""
        for packet in self._held:
            is_wanted = self._index(packet) in self._wanted
            yield from self._wanted_of(self._decoder.decode(packet, is_wanted))
        self._held.clear()

    def _wanted_of(self, decoded: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
        """Those of frames in order of display that are wanted next."""
        for frame in decoded:
            at = self._index(frame)
            # one was passed over: its time or its place in the file is not as expected
            if self._left and at > self._left[0]:
                raise _Unselectable
            if self._left and at == self._left[0]:
                yield frame
                self._left.popleft()


class _Decoder:
    """Decodes packets in coding order, and of those not wanted only references.

    What may be skipped depends on the codec: H.264 and HEVC decoders do it by skip_frame, of AV1
    the packets are filtered, of others all is decoded.
    """

    def __init__(self, context: Any) -> None:
        self._context = context
        name = context.codec.canonical_name
        self._filter = NonReferenceFilter() if name == "av1" else None
        # in temporal sub-layers, frames that their own layer does not refer to may be references
        # of others
        one_layer = name == "hevc" and has_one_temporal_layer(context.extradata)
        self._can_skip = name == "h264" or one_layer
        self._has_packets = False

    def decode(self, packet: Any, wanted: bool) -> list[VideoFrame]:
        """Frames that come out once this packet is in; `wanted` tells whether its own is."""
        self._has_packets = True
        if self._can_skip:
            self._context.skip_frame = "DEFAULT" if wanted else "NONREF"
        elif self._filter is not None:
            whole = bytes(packet)
            data = self._filter.filtered(whole, wanted)
            if data is None:
                return []
            if len(data) < len(whole):
                filtered = Packet(data)
                filtered.pts, filtered.dts = packet.pts, packet.dts
                filtered.time_base = packet.time_base
                packet = filtered
        return list(self._context.decode(packet))

    def flush(self) -> list[VideoFrame]:
        """The delayed frames; decoding may then go on with a key frame."""
        if not self._has_packets:
            return []
        self._has_packets = False
        frames = list(self._context.decode(None))
        self._context.flush_buffers()
        return frames


def _in_full(
    container: Any, stream: Any, indices: Sequence[int], fps: Fraction
) -> Iterator[VideoFrame]:
    """`frames_at`, with everything up to the last of them decoded."""
    left, index = deque(indices), _FrameIndex(stream, fps)
    for frame in container.decode(stream):
        if frame.pts is None or index(frame) > left[0]:
            return
        if index(frame) == left[0]:
            yield frame
            left.popleft()
            if not left:
                return
