"""Full-reference metrics through ffmpeg: VMAF, XPSNR, PSNR and SSIM of a rung as it is watched.

One ffmpeg run computes all the metrics asked for. Both legs are numbered by frame index, so that
streams without timestamps (raw AVS2) and streams with odd ones are matched alike; the distorted
leg is scaled to the source's canvas by one fixed scaler, then both have one pixel format. Compared
are samples as they are stored: matrix, primaries and transfer, which one side may lack, are taken
from both, and the distorted leg is brought to the source's range.

Definitions (`Score.clips` has one value a frame, `Score.value` is their arithmetic mean):

- vmaf: VMAF v0.6.1, or the 4K model on a canvas larger than 2560x1440; 0..100.
- psnr: PSNR of luma in dB. The mean is over per-frame dB, as libvmaf and the AOM test conditions
  have it, so that one bad frame does not hide all others. A frame of (almost) no error counts
  as 60 dB (8 bit) or 72 dB (10 bit), libvmaf's own ceiling; nothing is infinite.
- ssim: 100 x SSIM of luma, as ffmpeg defines it; 0..100.
- xpsnr: XPSNR in dB, the three planes weighted 4:1:1 in the error domain. Those are their shares
  of the samples in 4:2:0, so it is the XPSNR of all samples, and chroma damage is seen. Same
  ceiling as psnr.
"""

import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import ffmpeg as ffmpeg_graph

from vqaloop.bitstream.colour_tags import RANGES, UNTAGGED, as_stored, colour_range
from vqaloop.core import process
from vqaloop.core.ffmpeg import append_filters, compiled, file_url
from vqaloop.core.files import scratch
from vqaloop.core.text import quoted
from vqaloop.errors import DecodeFailed, InputError, ToolError
from vqaloop.media.container import main_video
from vqaloop.media.frames import SCALER
from vqaloop.quality.libvmaf import (
    read_vmaf,
    require_filter,
    require_size,
    vmaf_options,
)
from vqaloop.records import REUSE, Score, Source

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


REVISION = 3
"""Raised whenever the same files would get other values; belongs in cache keys."""

_BARE = ("h264", "hevc", "avs2", "rawvideo")
"""ffmpeg's names of formats that are a stream without a container."""

_CEILING_DB = {8: 60.0, 10: 72.0}


@dataclass(frozen=True)
class _Definition:
    """One metric: its filter, and how a frame's value is made of what the filter wrote."""

    filter: str
    label: str
    needs: tuple[str, ...]
    """Names under which the filter leaves its numbers."""
    frame_value: Callable[[Sequence[float], float], float]
    """Those numbers and the ceiling in dB to the frame's value."""


def _xpsnr(planes: Sequence[float], ceiling_db: float) -> float:
    y, u, v = (10 ** (-db / 10) for db in planes)
    error = (4 * y + u + v) / 6
    return min(-10 * math.log10(error), ceiling_db) if error > 0 else ceiling_db


_DEFINITIONS = {
    "vmaf": _Definition("libvmaf", "VMAF v0.6.1", ("vmaf",), lambda v, _: v[0]),
    "psnr": _Definition(
        "psnr", "PSNR-Y in dB", ("lavfi.psnr.psnr.y",), lambda v, top: min(*v, top)
    ),
    "ssim": _Definition("ssim", "100 x SSIM-Y", ("lavfi.ssim.Y",), lambda v, _: 100 * v[0]),
    "xpsnr": _Definition(
        "xpsnr",
        "XPSNR in dB, Y:U:V 4:1:1",
        tuple(f"lavfi.xpsnr.xpsnr.{plane}" for plane in "yuv"),
        _xpsnr,
    ),
}

METRICS = tuple(_DEFINITIONS)
"""Names of the metrics `measure` knows."""


def measure(
    source: Source,
    distorted: Path,
    metrics: Sequence[str],
    *,
    ffmpeg: str,
    distorted_options: tuple[tuple[str, str], ...] = (),
    distorted_prep: Sequence[str] | None = None,
    distorted_range: str | None = None,
    timeout_s: float | None = None,
    threads: int | None = None,
) -> dict[str, Score]:
    """Scores of `distorted` against `source`, by metric name, over all frames.

    `distorted_options` go before its -i, as raw video needs; `distorted_prep` are filters as in
    `Source.prep`, by default those that grey and RGB need; `distorted_range`, tv or pc, is what
    they leave, by default what the file tells; `timeout_s` is by default a minute and a second for
    every megapixel to decode; `threads` is by default all processors. The time of the one run is
    split evenly between the scores.

    Raises InputError for an unknown metric, a file that is not there or an ffmpeg without the
    filter, DecodeFailed when either file does not decode to exactly `source.frames` frames.
    """
    wanted = list(dict.fromkeys(metrics))
    _check(wanted, source, distorted, ffmpeg)
    depth, own, stored = _samples(distorted, dict(distorted_options), source)
    bits = 10 if max(source.bit_depth, depth) > 8 else 8
    prep = stored if distorted_prep is None else distorted_prep
    own = distorted_range or own
    threads = threads or len(os.sched_getaffinity(0))
    width, height = source.canvas
    limit_s = timeout_s or 60 + source.frames * width * height / 1e6
    with scratch() as name:
        folder = Path(name)
        options = (REUSE, *distorted_options)
        distorted_leg = _leg("DISTORTED", threads, options, *prep)
        graph = _graph(source, distorted_leg, own, wanted, bits, threads, folder)
        files = {"DISTORTED": distorted, "REFERENCE": source.path}
        done = process.run(compiled(graph, ffmpeg, files), timeout_s=limit_s)
        if done.returncode != 0 or done.timed_out:
            raise DecodeFailed(
                f"{quoted(distorted)} could not be measured against {quoted(source.path)}: "
                f"{done.reason()}"
            )
        decoded = _read_frames(done.stdout.decode("utf-8", "replace"))
        values = {name: _frame_values(name, folder, decoded, _CEILING_DB[bits]) for name in wanted}
    _check_frames(source, distorted, len(decoded), min(map(len, values.values())))
    return {
        name: Score(
            value=statistics.fmean(frames),
            metric=name,
            mode="full-reference",
            clips=frames,
            label="VMAF 4K v0.6.1"
            if name == "vmaf" and _is_4k(source)
            else _DEFINITIONS[name].label,
            cpu_s=done.cpu_s / len(wanted),
            wall_s=done.wall_s / len(wanted),
        )
        for name, frames in values.items()
    }


def measure_clips(
    reference: "npt.NDArray[np.uint8]",
    distorted: "npt.NDArray[np.uint8]",
    metrics: Sequence[str],
    *,
    ffmpeg: str,
    timeout_s: float = 120,
) -> "dict[str, npt.NDArray[np.float64]]":
    """(C, T) values by metric, of C clips of T frames of 8-bit planar 4:2:0 in memory.

    Both arrays are (C, T, H * 3/2, W), as `vmaf_of_pairs` has its frames; the values are those of
    `measure`. XPSNR weighs a block by what changed since the frame before, so each clip's first
    frame is given twice and the first answer dropped: no clip is taken as going on from another.

    Raises InputError for other arrays, an unknown metric, vmaf (see `vmaf_of_pairs`) or an ffmpeg
    without the filter, ToolError when it fails.
    """
    import numpy as np

    shape = reference.shape
    if distorted.shape != shape or len(shape) != 4 or 0 in shape or shape[2] % 3 or shape[3] % 2:
        raise InputError(f"clips must be two equal (C, T, H * 3/2, W): {shape}, {distorted.shape}")
    if reference.dtype != "uint8" or distorted.dtype != "uint8":
        raise InputError(f"clips must be uint8: {reference.dtype}, {distorted.dtype}")
    known = [name for name in METRICS if name != "vmaf"]
    if not metrics or not set(metrics) <= set(known):
        raise InputError(f"clips cannot be measured with {metrics}: choose among {known}")
    for name in metrics:
        require_filter(ffmpeg, _DEFINITIONS[name].filter)
    size = ("video_size", f"{shape[3]}x{shape[2] // 3 * 2}")
    raw = process.input_arguments([("f", "rawvideo"), ("pix_fmt", "yuv420p"), size])
    with scratch() as folder:
        files = {"DISTORTED": Path(folder, "distorted"), "REFERENCE": Path(folder, "reference")}
        for path, clips in zip(files.values(), (distorted, reference), strict=True):
            np.concatenate([clips[:, :1], clips], 1).tofile(path)
        node, source = (ffmpeg_graph.input(key, **raw) for key in files)
        source = source.filter_multi_output("split", len(metrics))
        for index, name in enumerate(metrics):
            node = ffmpeg_graph.filter([node, source[index]], _DEFINITIONS[name].filter)
        node = node.filter("metadata", mode="print", file="pipe:1").output("-", format="null")
        done = process.run(compiled(node, ffmpeg, files), timeout_s=timeout_s)
        frames = _read_frames(done.stdout.decode("utf-8", "replace"))
        values = {
            name: _frame_values(name, Path(folder), frames, _CEILING_DB[8]) for name in metrics
        }
    count = shape[0] * (shape[1] + 1)
    if done.returncode != 0 or any(len(v) != count for v in values.values()):
        raise ToolError(f"ffmpeg could not measure {count} frames in memory: {done.reason()}")
    return {name: np.reshape(v, (shape[0], -1))[:, 1:] for name, v in values.items()}


def _check_frames(source: Source, distorted: Path, decoded: int, matched: int) -> None:
    one, other = quoted(source.path), quoted(distorted)
    if decoded != source.frames:
        raise DecodeFailed(
            f"{other} decodes to {decoded} frames where its source {one} has {source.frames}; "
            "frames are matched by index, so the two must agree"
        )
    if matched != source.frames:
        raise DecodeFailed(
            f"{one} decodes to {matched} frames where {source.frames} were probed, and {other} "
            f"has {decoded}; probe the source again"
        )


def _check(wanted: Sequence[str], source: Source, distorted: Path, ffmpeg: str) -> None:
    unknown = [name for name in wanted if name not in _DEFINITIONS]
    if unknown or not wanted:
        raise InputError(f"unknown metric {unknown}: choose among {', '.join(METRICS)}")
    for path in (source.path, distorted):
        if not path.is_file():
            raise InputError(f"{quoted(path)} is not a file; nothing to measure")
    if "vmaf" in wanted:
        require_size(*source.canvas)
    for name in wanted:
        require_filter(ffmpeg, _DEFINITIONS[name].filter)


def _samples(
    path: Path, options: Mapping[str, str], source: Source
) -> tuple[int, str, tuple[str, ...]]:
    """Bits a sample of a file's video, its range, and the filters that its pixel format needs.

    Where no range is told, it is limited, as in a player; but bare streams and raw video, whose
    makers often have no place for it or leave it out, have the source's. Where PyAV has no decoder
    (AVS2) it is 8 bits of 4:2:0.
    """
    pix_fmt = options.get("pixel_format") or options.get("pix_fmt")
    own = colour_range(source)
    if not pix_fmt:
        try:
            others = {key: options[key] for key in options if key not in ("f", "format")}
            demuxer = options.get("f") or options.get("format")
            with av.open(file_url(path), format=demuxer, options=others) as container:
                # a stream whose decoder is missing has no codec context, whatever the types say
                codec: Any = main_video(container).codec_context
                if codec is not None:
                    pix_fmt = codec.pix_fmt
                    untold = own if container.format.name in _BARE else "tv"
                    own = RANGES.get(int(codec.color_range), untold)
        except (av.FFmpegError, AttributeError) as error:
            raise DecodeFailed(f"{quoted(path)} could not be opened as video: {error}") from error
    pix_fmt = pix_fmt or "yuv420p"
    try:
        layout = av.VideoFormat(pix_fmt, 64, 64)
    except ValueError as error:
        raise InputError(f"{pix_fmt} is not a pixel format that is known") from error
    bits = max((component.bits for component in layout.components), default=8)
    own = "pc" if pix_fmt.startswith("yuvj") else own
    # RGB is compared by the matrix of the source
    matrix = [pair for pair in source.colour if pair[0] == "colorspace"]
    prep, tags, _ = as_stored(layout, source.canvas, bits, (*matrix, ("color_range", own)))
    return bits, dict(tags)["color_range"], prep


def _graph(
    source: Source,
    distorted: Any,
    own_range: str,
    wanted: Sequence[str],
    bits: int,
    threads: int,
    folder: Path,
) -> Any:
    """The whole run, from the distorted leg and the file REFERENCE to a report on stdout."""
    width, height = source.canvas
    to_range = colour_range(source)
    number = f"settb={source.fps.denominator}/{source.fps.numerator},setpts=N"
    pix_fmt = f"format={'yuv420p' if bits == 8 else 'yuv420p10le'}"
    # the file's own metadata goes, so that it cannot bring numbers that pass for ours; the mark
    # makes the last filter print every frame, measured or not
    mark = "metadata=mode=delete,metadata=mode=add:key=vqaloop:value=1"
    scale = f"scale={width}:{height}:in_range={own_range}:out_range={to_range}:flags={SCALER}"
    node = distorted
    for text in (f"{UNTAGGED}:range={own_range}", number, mark, scale, pix_fmt):
        node = append_filters(node, text)
    tags = f"{UNTAGGED}:range={to_range}"
    prep = (*source.prep, tags, number, f"scale=out_range={to_range}:flags={SCALER}", pix_fmt)
    references = _leg("REFERENCE", threads, source.input_options, *prep)
    references = references.filter_multi_output("split", len(wanted))
    for index, name in enumerate(wanted):
        # pass, not repeat: a reference frame that is missing must leave a gap in the numbers
        arguments: dict[str, Any] = {"eof_action": "pass"}
        if name == "vmaf":
            arguments |= vmaf_options(folder, threads, _is_4k(source))
        pair = [node, references[index]]
        node = ffmpeg_graph.filter(pair, _DEFINITIONS[name].filter, **arguments)
    node = node.filter("metadata", mode="print", file="pipe:1")
    return node.output("-", format="null", fps_mode="passthrough")


def _leg(key: str, threads: int, options: Iterable[tuple[str, str]], *filters: str) -> Any:
    # V rather than v: cover art is no video
    node = ffmpeg_graph.input(key, threads=threads, **process.input_arguments(options))["V"]
    for text in filters:
        node = append_filters(node, text)
    return node


def _is_4k(source: Source) -> bool:
    return max(source.canvas) > 2560 or min(source.canvas) > 1440


def _read_frames(text: str) -> list[dict[str, float]]:
    """What the filters wrote on each frame that the distorted leg gave, in order."""
    frames: list[dict[str, float]] = []
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if line.startswith("frame:"):
            frames.append({})
        elif key.startswith(("lavfi.psnr.", "lavfi.ssim.", "lavfi.xpsnr.")):
            frames[-1][key] = float(value)
    return frames


def _frame_values(
    name: str, folder: Path, frames: list[dict[str, float]], ceiling_db: float
) -> tuple[float, ...]:
    """The metric of every frame that had a counterpart in the reference."""
    definition = _DEFINITIONS[name]
    rows = read_vmaf(folder) if name == "vmaf" else frames
    return tuple(
        definition.frame_value([row[key] for key in definition.needs], ceiling_db)
        for row in rows
        if all(key in row for key in definition.needs)
    )
