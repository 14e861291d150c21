"""Decoding exactly the frames that are scored, and cutting clips out of them.

Frames are numpy arrays (N, H·3/2, W) of uint8: planar 4:2:0, the U and V planes (half size each)
stacked as rows below luma. Rungs are scaled to the source's size with one fixed scaler.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import ffmpeg as graph
import numpy as np
import numpy.typing as npt

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
    timeout_s: float = 3600.0,
) -> Frames:
    """Frames by index through the ffmpeg program; all of the file up to the last is decoded."""
    width, height = size
    wanted = "+".join(f"between(n,{first},{last})" for first, last in _runs(indices))
    chain = [
        *prep,
        f"select='{wanted}'",
        f"scale={width}:{height}:flags={SCALER}",
        "format=yuv420p",
    ]
    # ffmpeg-python takes "video_size" for a pair of numbers; "s" is the same option
    before = {"s" if key == "video_size" else key: value for key, value in input_options}
    node = graph.input(process.file_url(path), **before).output(
        "pipe:1",
        map="0:v:0",
        vf=",".join(chain),
        fps_mode="passthrough",
        f="rawvideo",
        **{"frames:v": len(indices)},
    )
    argv = [
        *node.compile(cmd=[ffmpeg, "-hide_banner", "-nostdin", "-nostats", "-loglevel", "error"])
    ]
    frame_bytes = width * height * 3 // 2
    done = process.run(argv, timeout_s=timeout_s, max_stdout=frame_bytes * (len(indices) + 1))
    count = len(done.stdout) // frame_bytes
    if done.returncode != 0 or count != len(indices):
        why = done.reason() if done.returncode else f"it ended after {count} of {len(indices)}"
        raise DecodeFailed(f"{path.name!r}: frames up to {indices[-1]} could not be read: {why}")
    return np.frombuffer(done.stdout, np.uint8).reshape(count, height * 3 // 2, width)


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
    import av
    from av.video.reformatter import VideoReformatter

    width, height = size
    out = np.empty((len(indices), height * 3 // 2, width), np.uint8)
    filled = 0
    try:
        with av.open(process.file_url(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            base = stream.time_base
            start = stream.start_time or 0
            scaler = VideoReformatter()
            position = 0
            while filled < len(indices):
                target = indices[filled]
                if target - position > SEEK_WORTH_S * fps:
                    container.seek(start + int(target / fps / base), stream=stream)
                for frame in container.decode(stream):
                    if frame.pts is None:
                        raise DecodeFailed(f"{path.name!r}: a frame without a timestamp")
                    position = round((frame.pts - start) * base * fps)
                    if position < indices[filled]:
                        continue
                    if position > indices[filled]:
                        raise DecodeFailed(f"{path.name!r}: frame {indices[filled]} is missing")
                    scaled = scaler.reformat(
                        frame, width, height, "yuv420p", interpolation=_scaler_flags()
                    )
                    out[filled] = scaled.to_ndarray().reshape(height * 3 // 2, width)
                    filled += 1
                    if filled == len(indices):
                        break
                    if indices[filled] - position > SEEK_WORTH_S * fps:
                        break
                else:
                    raise DecodeFailed(
                        f"{path.name!r} ended before frame {indices[filled]}; it is cut short"
                    )
    except (av.FFmpegError, OSError, IndexError) as error:
        raise DecodeFailed(f"{path.name!r} could not be decoded: {error}") from error
    return out


def _scaler_flags() -> int:
    """SCALER, as PyAV takes it."""
    from av.video.reformatter import Interpolation

    return int(Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT)


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
