"""Decodes exactly the frames that are scored, scales them, and crops them.

Frames are numpy arrays (N, H·3/2, W) of uint8: planar 4:2:0, the U and V planes (half size each)
stacked as rows below luma; uint16 where 10 bits a sample are asked for. Rungs are scaled to the
source's size with one fixed scaler.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from vqaloop.bitstream.avs2 import read_picture_size
from vqaloop.bitstream.colour_tags import RANGES, UNTAGGED, colour_range, in_range
from vqaloop.bitstream.demux import main_video, open_video
from vqaloop.bitstream.film_grain import NO_SYNTHESIS, without_synthesis
from vqaloop.bitstream.formats import ENCODES, SOURCES
from vqaloop.core import ffmpeg as ffmpeg_graph
from vqaloop.core import process
from vqaloop.core.cpu_time import METER
from vqaloop.core.ffmpeg import compiled, input_arguments
from vqaloop.core.text import quoted
from vqaloop.errors import DecodeFailed
from vqaloop.media.planes import SCALER, Frames
from vqaloop.media.selective_decode import TROUBLE, frames_at, is_plain
from vqaloop.records import Source

DECODING_THREADS = 4
"""Most threads that decode one rung: more cost memory and bring little."""
_FLAGS = int(Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT)
"""SCALER, as PyAV takes it."""
_RANGES = {name: number for number, name in RANGES.items()}
PIXELS = {8: "yuv420p", 10: "yuv420p10le"}
"""ffmpeg's pixel format of frames, by their bits a sample."""


class _Wanted(NamedTuple):
    """How frames are wanted."""

    size: tuple[int, int]
    """Width and height."""
    range: str | None = None
    """None for their own."""
    bits: int = 8
    grain: bool = False
    """Whether film grain is synthesised where the file asks for it."""


def read_source(
    source: Source,
    indices: Sequence[int],
    *,
    ffmpeg: str,
    size: tuple[int, int] | None = None,
) -> Frames:
    """Decode frames of a source, as they are behind `prep`.

    Args:
        source: The title.
        indices: Ascending indices in order of display.
        ffmpeg: The ffmpeg program.
        size: Width and height to scale to, None for `Source.canvas`.

    Returns:
        (N, H·3/2, W), 8-bit 4:2:0.

    Raises:
        DecodeFailed: The source is damaged or ends before the last frame.
    """
    return _stacked(each_of_source(source, indices, ffmpeg=ffmpeg, size=size))


def each_of_source(
    source: Source,
    indices: Sequence[int],
    *,
    ffmpeg: str,
    size: tuple[int, int] | None = None,
    wanted_range: str | None = None,
    bits: int = 8,
) -> Iterator[Frames]:
    """`read_source`, frame by frame: each (H·3/2, W), in its own range or `wanted_range`."""
    size, found = size or source.canvas, 0
    own = colour_range(source)
    if picks_from(source, bits):
        grain = NO_SYNTHESIS[-1] not in source.input_options
        wanted = _Wanted(size, wanted_range or own, bits, grain)
        # where that fails, ffmpeg decodes it after all, or says best why not
        with contextlib.suppress(DecodeFailed):
            for frame in _with_pyav(source.path, indices, source.fps, wanted, own, upright=True):
                yield frame
                found += 1
    if found < len(indices):
        yield from read_with_ffmpeg(
            source.path,
            indices[found:],
            size,
            ffmpeg=ffmpeg,
            input_options=source.input_options,
            prep=source.prep,
            ranges=in_range(own, wanted_range),
            bits=bits,
        )


def picks_from(source: Source, bits: int = 8) -> bool:
    """Whether selective decoding suits a source; else all of it up to the last is decoded."""
    # these change tags and side data alone, and no sample
    changed = any(not text.startswith(("setparams=", "sidedata=")) for text in source.prep)
    return not (changed or set(source.input_options) - set(NO_SYNTHESIS)) and is_plain(
        source.path, source.frames, source.canvas, source.fps, bits
    )


def read_encode(
    path: Path,
    indices: Sequence[int],
    size: tuple[int, int],
    fps: Fraction,
    *,
    decoder: str,
    ffmpeg: str,
    grain: bool = False,
) -> Frames:
    """Decode frames of an encode.

    Args:
        path: The file.
        indices: Ascending indices in order of display.
        size: Width and height to scale to.
        fps: The constant frame rate.
        decoder: "pyav", or "ffmpeg" for streams that PyAV cannot decode.
        ffmpeg: The ffmpeg program.
        grain: Whether film grain is synthesised where the file asks for it, as players show it.

    Returns:
        (N, H·3/2, W), 8-bit 4:2:0.

    Raises:
        DecodeFailed: The file is damaged or lacks a frame.
    """
    wanted = _Wanted(size, grain=grain)
    if decoder == "ffmpeg":
        return _encode_with_ffmpeg(path, indices, wanted, ffmpeg)
    return _stacked(_with_pyav(path, indices, fps, wanted, None))


def read_with_ffmpeg(
    path: Path,
    indices: Sequence[int],
    size: tuple[int, int],
    *,
    ffmpeg: str,
    input_options: Sequence[tuple[str, str]] = (),
    prep: Sequence[str] = (),
    ranges: str = "",
    bits: int = 8,
) -> Frames:
    """Decode frames with the ffmpeg program, which decodes all of the file up to the last.

    Args:
        path: The file.
        indices: Ascending indices in order of display, counted behind `prep`.
        size: Width and height to scale to.
        ffmpeg: The ffmpeg program.
        input_options: ffmpeg options before -i.
        prep: Filters before all others.
        ranges: `in_range`'s options of the scale filter.
        bits: 8, or 10 for samples in 16 bits.

    Returns:
        (N, H·3/2, W), 4:2:0.

    Raises:
        DecodeFailed: The file is damaged or ends before the last frame.
    """
    width, height = size
    wanted = any_of([f"between(n,{first},{last})" for first, last in _runs(indices)])
    scale = f"scale={width}:{height}:flags={SCALER}{ranges}"
    graph = ffmpeg_graph.input("INPUT", **input_arguments(input_options)).output(
        "pipe:1",
        # V rather than v: cover art is no video
        map="0:V:0",
        vf=",".join([*prep, f"select='{wanted}'", UNTAGGED, scale, f"format={PIXELS[bits]}"]),
        fps_mode="passthrough",
        f="rawvideo",
        **{"frames:v": len(indices)},
    )
    argv = compiled(graph, ffmpeg, {"INPUT": path})
    sample: np.dtype[Any] = np.dtype(np.uint8 if bits == 8 else "<u2")
    frame_bytes = width * height * 3 // 2 * sample.itemsize
    # far slower than any machine decodes 4K; a hang must end all the same
    limit_s = 300 + (indices[-1] + 1) * 2.0
    done = process.run(argv, timeout_s=limit_s, max_stdout=frame_bytes * (len(indices) + 1))
    count = len(done.stdout) // frame_bytes
    if done.returncode != 0 or count != len(indices):
        why = done.reason() if done.returncode else f"it ended after {count} of {len(indices)}"
        raise DecodeFailed(f"{_name(path)}: frames up to {indices[-1]} could not be read: {why}")
    return np.frombuffer(done.stdout, sample).reshape(count, height * 3 // 2, width)


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


def each_of_encode(
    path: Path,
    indices: Sequence[int],
    size: tuple[int, int],
    fps: Fraction,
    *,
    decoder: str,
    ffmpeg: str,
    threads: int = 1,
    wanted_range: str | None = None,
) -> Iterator[Frames]:
    """`read_encode`, frame by frame: each (H·3/2, W), decoded by `threads` threads.

    In `wanted_range`, which untagged frames are taken to have already.
    """
    wanted = _Wanted(size, wanted_range)
    if decoder == "ffmpeg":
        yield from _encode_with_ffmpeg(path, indices, wanted, ffmpeg)
    else:
        yield from _with_pyav(path, indices, fps, wanted, wanted_range, threads)


def _encode_with_ffmpeg(
    path: Path, indices: Sequence[int], wanted: _Wanted, ffmpeg: str
) -> Frames:
    ranges = in_range(_tagged_range(path), wanted.range) if wanted.range else ""
    return read_with_ffmpeg(
        path,
        indices,
        wanted.size,
        ffmpeg=ffmpeg,
        input_options=[
            ("format_whitelist", ENCODES),
            *(() if wanted.grain else without_synthesis(path)),
        ],
        ranges=ranges,
        bits=wanted.bits,
    )


def encode_size(path: Path, decoder: str) -> tuple[int, int]:
    """Width and height of an encode in pixels, even. Raises DecodeFailed."""
    try:
        if decoder == "ffmpeg":
            width, height = read_picture_size(path)
        else:
            with open_video(path, ENCODES) as container:
                codec = main_video(container).codec_context
                width, height = codec.width, codec.height
    except (*TROUBLE, AttributeError) as error:
        raise DecodeFailed(f"{_name(path)} could not be opened: {error}") from error
    if min(width, height) < 2:
        raise DecodeFailed(f"{_name(path)} has no size in its header; it is damaged")
    return width // 2 * 2, height // 2 * 2


def encode_reader(
    source: Source,
    path: Path,
    decoder: str,
    *,
    ffmpeg: str,
    size: tuple[int, int] | None = None,
    bits: int = 8,
) -> Callable[[list[int]], Iterator[Frames]]:
    """`each_of_encode` for an encode of `source`, on its canvas or at `size`, by indices alone."""
    own = colour_range(source)
    wanted = _Wanted(size or source.canvas, own, bits)

    def read(indices: list[int]) -> Iterator[Frames]:
        if decoder == "ffmpeg":
            return iter(_encode_with_ffmpeg(path, indices, wanted, ffmpeg))
        threads = METER.share(DECODING_THREADS)
        return _with_pyav(path, indices, source.fps, wanted, own, threads)

    return read


def _tagged_range(path: Path) -> str | None:
    """The range that an encode is tagged with, None where it has no tag or cannot be opened."""
    # of what cannot be opened the ffmpeg program says best why not
    with contextlib.suppress(*TROUBLE), open_video(path, ENCODES) as container:
        # without a decoder (AVS2) there is no codec context, nor a tag
        codec = getattr(main_video(container), "codec_context", None)
        return RANGES.get(int(codec.color_range)) if codec else None
    return None


def _with_pyav(
    path: Path,
    indices: Sequence[int],
    fps: Fraction,
    wanted: _Wanted,
    untagged: str | None,
    threads: int = 1,
    upright: bool = False,
) -> Iterator[Frames]:
    """`untagged` is the range of untagged frames; None: unknown.

    `upright` is for a source, which unlike an encode may be tagged as rotated: refused.
    """
    formats = SOURCES if upright else ENCODES
    scaler, found = VideoReformatter(), 0
    try:
        how: dict[str, Any] = {"threads": threads, "formats": formats, "grain": wanted.grain}
        for frame in frames_at(path, indices, fps, **how):
            if upright and frame.side_data.get("DISPLAYMATRIX"):
                raise ValueError("it is tagged as rotated")
            yield _scaled(scaler, frame, wanted, untagged)
            found += 1
    except TROUBLE as error:
        raise DecodeFailed(f"{_name(path)} could not be decoded: {error}") from error
    if found < len(indices):
        raise DecodeFailed(
            f"{_name(path)} has no frame {indices[found]}; it is cut short or lost a frame"
        )


def _stacked(frames: Iterable[Frames]) -> Frames:
    return np.stack(list(frames))


def _scaled(
    scaler: VideoReformatter, frame: VideoFrame, wanted: _Wanted, untagged: str | None
) -> Frames:
    """One frame's samples as wanted, as ffmpeg's scale filter gives them.

    Of its tags only the range is kept: by the chroma location that H.264 and HEVC decoders tag,
    swscale called from here would shift chroma by a quarter sample, which the filter does not.
    """
    name, pixels = frame.format.name.replace("yuvj", "yuv"), PIXELS[wanted.bits]
    sample = np.uint8 if wanted.bits == 8 else np.uint16
    own, other = (_RANGES.get(tag or "") for tag in (untagged, wanted.range))
    own = frame.color_range or own
    if own == other:
        other = None
    if name == pixels and (frame.width, frame.height) == wanted.size and not other:
        return frame.to_ndarray().astype(sample, copy=False)
    bare = VideoFrame.from_ndarray(frame.to_ndarray(), format=name)
    bare.color_range = own if other and own else frame.color_range
    scaled = scaler.reformat(
        bare, *wanted.size, pixels, interpolation=_FLAGS, dst_color_range=other
    )
    return scaled.to_ndarray().astype(sample, copy=False)


def _name(path: Path) -> str:
    return quoted(path.name)
