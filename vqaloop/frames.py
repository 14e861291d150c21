"""Decoding exactly the frames that are scored, and cutting clips out of them.

Frames are numpy arrays (N, H·3/2, W) of uint8: planar 4:2:0, the U and V planes (half size each)
stacked as rows below luma. Rungs are scaled to the source's size with one fixed scaler.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import ffmpeg as ffmpeg_graph
import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from vqaloop import process
from vqaloop.errors import DecodeFailed
from vqaloop.metrics import SCALER
from vqaloop.records import Source

Frames = npt.NDArray[np.uint8]
"""(N, H·3/2, W) planar 4:2:0."""

CLIP_FRAMES = 2
"""Consecutive frames of a clip."""
CLIP_SIZE = 112
"""Height and width of a clip in luma pixels."""

SEEK_WORTH_S = 4.0
"""Skip ahead by seeking only over gaps longer than this; keyframes come every 2 s."""

_FLAGS = int(Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT)
"""SCALER, as PyAV takes it."""


def read_source(source: Source, indices: Sequence[int], *, ffmpeg: str) -> Frames:
    """Frames of the source on its canvas (see `Source.canvas`), by index after `prep`.

    `indices` ascend. Raises DecodeFailed when the source ends before the last of them.
    """
    return read_with_ffmpeg(
        source.path,
        indices,
        source.canvas,
        ffmpeg=ffmpeg,
        input_options=source.input_options,
        prep=source.prep,
    )


def read_encode(
    path: Path,
    indices: Sequence[int],
    size: tuple[int, int],
    fps: Fraction,
    *,
    decoder: str,
    ffmpeg: str,
) -> Frames:
    """Frames of an encode of ours, scaled to `size` (width, height), by index.

    `decoder` is "pyav", or "ffmpeg" for streams that PyAV cannot decode. Raises DecodeFailed.
    """
    if decoder == "ffmpeg":
        return read_with_ffmpeg(path, indices, size, ffmpeg=ffmpeg)
    return _read_with_pyav(path, indices, size, fps)


def read_with_ffmpeg(
    path: Path,
    indices: Sequence[int],
    size: tuple[int, int],
    *,
    ffmpeg: str,
    input_options: Sequence[tuple[str, str]] = (),
    prep: Sequence[str] = (),
    timeout_s: float | None = None,
) -> Frames:
    """Frames by index through the ffmpeg program; all of the file up to the last is decoded.

    Raises DecodeFailed when the file ends before the last of them.
    """
    width, height = size
    wanted = any_of([f"between(n,{first},{last})" for first, last in _runs(indices)])
    scale = f"scale={width}:{height}:flags={SCALER}"
    graph = ffmpeg_graph.input("INPUT", **process.input_options(input_options)).output(
        "pipe:1",
        # V rather than v: cover art is no video
        map="0:V:0",
        vf=",".join([*prep, f"select='{wanted}'", scale, "format=yuv420p"]),
        fps_mode="passthrough",
        f="rawvideo",
        **{"frames:v": len(indices)},
    )
    argv = process.compiled(graph, ffmpeg, {"INPUT": path})
    frame_bytes = width * height * 3 // 2
    # far slower than any machine decodes 4K; a hang must end all the same
    limit_s = timeout_s or 300 + (indices[-1] + 1) * 2.0
    done = process.run(argv, timeout_s=limit_s, max_stdout=frame_bytes * (len(indices) + 1))
    count = len(done.stdout) // frame_bytes
    if done.returncode != 0 or count != len(indices):
        why = done.reason() if done.returncode else f"it ended after {count} of {len(indices)}"
        raise DecodeFailed(f"{_name(path)}: frames up to {indices[-1]} could not be read: {why}")
    return np.frombuffer(done.stdout, np.uint8).reshape(count, height * 3 // 2, width)


def any_of(terms: Sequence[str]) -> str:
    """ffmpeg's expression for "one of these holds", as a tree: it takes no long sums."""
    if len(terms) == 1:
        return terms[0]
    half = len(terms) // 2
    return f"({any_of(terms[:half])}+{any_of(terms[half:])})"


def _runs(indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending indices as ranges, so that the filter expression stays short."""
    first = last = indices[0]
    for index in indices[1:]:
        if index != last + 1:
            yield first, last
            first = index
        last = index
    yield first, last


def _read_with_pyav(
    path: Path, indices: Sequence[int], size: tuple[int, int], fps: Fraction
) -> Frames:
    out = np.empty((len(indices), size[1] * 3 // 2, size[0]), np.uint8)
    scaler = VideoReformatter()
    filled = 0
    try:
        with av.open(process.file_url(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for frame in _decoded(container, stream, indices, fps):
                out[filled] = _scaled(scaler, frame, size)
                filled += 1
    except (av.FFmpegError, OSError, IndexError, ValueError) as error:
        raise DecodeFailed(f"{_name(path)} could not be decoded: {error}") from error
    if filled < len(indices):
        raise DecodeFailed(
            f"{_name(path)} has no frame {indices[filled]}; it is cut short or lost a frame"
        )
    return out


def _decoded(
    container: Any, stream: Any, indices: Sequence[int], fps: Fraction
) -> Iterator[VideoFrame]:
    """Frames by ascending index, found by their times; ends at the first that is not there."""
    base, start = stream.time_base, stream.start_time or 0
    left = deque(indices)
    position = 0
    while left:
        if left[0] - position > SEEK_WORTH_S * fps:
            container.seek(start + int(left[0] / fps / base), stream=stream)
        for frame in container.decode(stream):
            if frame.pts is None:
                return
            position = round((frame.pts - start) * base * fps)
            if position < left[0]:
                continue
            if position > left[0]:
                return
            yield frame
            left.popleft()
            if not left or left[0] - position > SEEK_WORTH_S * fps:
                break
        else:
            return


def _scaled(scaler: VideoReformatter, frame: VideoFrame, size: tuple[int, int]) -> Frames:
    """One frame's samples at `size`, as ffmpeg's scale filter gives them.

    Of its tags only the range goes along: where a decoder tells the place of chroma (H.264, HEVC),
    swscale called from here would move it by a quarter sample, which the filter does not.
    """
    name = frame.format.name.replace("yuvj", "yuv")
    bare = VideoFrame.from_ndarray(frame.to_ndarray(), format=name)
    bare.color_range = frame.color_range
    made = scaler.reformat(bare, *size, "yuv420p", interpolation=_FLAGS)
    return made.to_ndarray().astype(np.uint8, copy=False)


def _name(path: Path) -> str:
    return process.quoted(path.name)


def cut(frames: Frames, top: int, left: int, size: int) -> Frames:
    """A square of `size` luma pixels out of (N, H·3/2, W) frames; `top` and `left` are even."""
    height = frames.shape[1] * 2 // 3
    width = frames.shape[2]
    half = size // 2
    out = np.empty((len(frames), size * 3 // 2, size), np.uint8)
    out[:, :size] = frames[:, top : top + size, left : left + size]
    chroma = frames[:, height:].reshape(len(frames), 2, height // 2, width // 2)
    small = chroma[:, :, top // 2 : top // 2 + half, left // 2 : left // 2 + half]
    out[:, size:] = small.reshape(len(frames), size // 2, size)
    return out
