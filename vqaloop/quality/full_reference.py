"""Full-reference metrics through ffmpeg: VMAF, XPSNR, PSNR, SSIM, CAMBI of a rung as displayed.

One ffmpeg run computes all the metrics asked for. Both legs are numbered by frame index, so that
streams without timestamps (raw AVS2) and streams with odd ones are matched alike; the distorted
leg is scaled to the source's canvas by one fixed scaler, then both have one pixel format. Samples
are compared as stored: the tags of matrix, primaries and transfer, which one side may lack, are
removed from both, and the distorted leg is converted to the source's range. Film grain that AV1
decoders synthesise is left out of the distorted leg.

Definitions (`Score.clips` has one value a frame, `Score.value` is their arithmetic mean):

- vmaf: VMAF v0.6.1, or its 4K model on a canvas larger than 2560x1440; 0..100.
- vmaf-v1: VMAF v1, or its 4K model likewise; 0..100. Unlike v0.6.1 it sees chroma and banding, and
  gains nothing by sharpening.
- vmaf-v1-phone: VMAF v1 for phones, on any canvas; 0..100.
- vmaf-v1-hfr: VMAF v1 for 50 and 60 fps, or its 4K model likewise; 0..100.
- vmaf-neg: the v0.6.1 that gains less by enhancement (NEG), or its 4K model likewise; 0..100.
- vmaf-hd: VMAF v0.6.1 on any canvas, which students imitate; 0..100.
- cambi: CAMBI with VMAF v1's parameters, whose feature it is: visible banding of the encode alone,
  from 0 (none) to 17; from about 5 on it annoys. Lower is better.
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

from vqaloop.bitstream.colour_tags import RANGES, UNTAGGED, colour_range, to_ycbcr
from vqaloop.bitstream.demux import main_video, open_video
from vqaloop.bitstream.film_grain import without_synthesis
from vqaloop.core import ffmpeg as ffmpeg_graph
from vqaloop.core import process
from vqaloop.core.ffmpeg import append_filters, compiled, input_arguments
from vqaloop.core.files import scratch
from vqaloop.core.text import quoted
from vqaloop.errors import DecodeFailed, InputError, ToolError
from vqaloop.media.planes import SCALER
from vqaloop.quality.libvmaf import (
    VMAF_MODELS,
    has_filter,
    has_model,
    raw_pair,
    read_vmaf,
    require_filter,
    require_model,
    vmaf_options,
)
from vqaloop.records import REUSE, Score, Source

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


REVISION = 3
"""Raised whenever the same files would get other values; belongs in cache keys."""

CAMBI = "cambi"
"""The metric of which less is better."""
_BARE = ("h264", "hevc", "avs2", "rawvideo")
"""ffmpeg's names of formats that are a stream without a container."""

CEILING_DB = {8: 60.0, 10: 72.0}
"""Most of PSNR and XPSNR, by bits a sample."""


@dataclass(frozen=True)
class _Definition:
    """One metric: its filter, and the formula from the filter's output to a frame's value."""

    filter: str
    label: str
    needs: tuple[str, ...]
    """Metadata keys of the filter's output."""
    frame_value: Callable[[Sequence[float], float], float]
    """From those numbers and the ceiling in dB."""


_VMAF = {
    "vmaf": ("v0.6.1", "4k"),
    "vmaf-v1": ("v1", "v1-4k"),
    "vmaf-v1-phone": ("v1-phone", "v1-phone"),
    "vmaf-v1-hfr": ("v1-hfr", "v1-hfr-4k"),
    "vmaf-neg": ("neg", "neg-4k"),
    "vmaf-hd": ("v0.6.1", "v0.6.1"),
    # a feature of VMAF v1: beside that one it costs nothing
    CAMBI: ("v1", "v1-4k"),
}
"""Metrics of libvmaf: their models up to 2560x1440, and above."""


def _xpsnr(planes: Sequence[float], ceiling_db: float) -> float:
    y, u, v = (10 ** (-db / 10) for db in planes)
    error = (4 * y + u + v) / 6
    return min(-10 * math.log10(error), ceiling_db) if error > 0 else ceiling_db


_DEFINITIONS = {
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

METRICS = (*_VMAF, *_DEFINITIONS)
"""Names of the metrics `measure` knows."""


def measure(
    source: Source,
    distorted: Path,
    metrics: Sequence[str] | Mapping[str, int],
    *,
    ffmpeg: str,
    distorted_options: tuple[tuple[str, str], ...] = (),
    probed: Source | None = None,
    timeout_s: float | None = None,
    threads: int | None = None,
) -> dict[str, Score]:
    """Scores of `distorted` against `source`, by metric name, over all frames.

    Args:
        source: The original.
        distorted: A file with as many frames.
        metrics: Names among METRICS, or by name of which frames: 1 for all; a VMAF may take every
            so many-th, from the first on, and the values between are interpolated. One run
            computes all; its time is split evenly among them.
        ffmpeg: Path of the ffmpeg binary.
        distorted_options: ffmpeg's options before the -i of `distorted`, as raw video needs.
        probed: `distorted` as probed, where it is no encode of ours: its filters are applied.
        timeout_s: By default a minute and a second for every megapixel to decode.
        threads: By default all processors.

    Raises:
        InputError: A metric is unknown or not for frames of this size, a file is not there, or
            ffmpeg lacks the filter or the model.
        DecodeFailed: Either file does not decode to exactly `source.frames` frames.
    """
    wanted = dict(metrics) if isinstance(metrics, Mapping) else dict.fromkeys(metrics, 1)
    _check(wanted, source, distorted, ffmpeg)
    stored = stored_samples(distorted, dict(distorted_options), source, probed)
    bits = 10 if max(source.bit_depth, stored.bits) > 8 else 8
    threads = threads or len(os.sched_getaffinity(0))
    width, height = source.canvas
    limit_s = timeout_s or 60 + source.frames * width * height / 1e6
    with scratch() as name:
        folder = Path(name)
        pix_fmt = "yuv420p" if bits == 8 else "yuv420p10le"
        decoding = (*without_synthesis(distorted), *distorted_options)
        leg = _distorted_leg(source, stored, decoding, threads, pix_fmt)
        pair = leg, _reference_leg(source, threads, pix_fmt)
        graph = graph_of(pair, filters_of(wanted, source, folder, threads))
        files = {"DISTORTED": distorted, "REFERENCE": source.path}
        done = process.run(compiled(graph, ffmpeg, files), timeout_s=limit_s)
        if done.returncode != 0 or done.timed_out:
            raise DecodeFailed(
                f"{quoted(distorted)} could not be measured against {quoted(source.path)}: "
                f"{done.reason()}"
            )
        decoded = read_frames(done.stdout.decode("utf-8", "replace"))
        values = {
            name: frame_values(name, decoded, CEILING_DB[bits])
            if name in _DEFINITIONS
            else _vmaf_values(name, source, folder, step)
            for name, step in wanted.items()
        }
    _check_frames(source, distorted, len(decoded), min(map(len, values.values())))
    cpu_s, wall_s = done.cpu_s / len(wanted), done.wall_s / len(wanted)
    return {
        name: Score(
            value=statistics.fmean(frames),
            metric=name,
            mode="full-reference",
            clips=frames,
            label=label_of(name, source, wanted[name]),
            cpu_s=cpu_s,
            wall_s=wall_s,
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
    `measure`. XPSNR weighs a block by its change since the previous frame, so each clip's first
    frame is repeated and the first value dropped: no clip is taken for a continuation of another.

    Raises InputError for other arrays, an unknown metric, VMAF (see `vmaf_of_pairs`) or an ffmpeg
    without the filter, ToolError when it fails.
    """
    import numpy as np

    shape = reference.shape
    if distorted.shape != shape or len(shape) != 4 or 0 in shape or shape[2] % 3 or shape[3] % 2:
        raise InputError(f"clips must be two equal (C, T, H * 3/2, W): {shape}, {distorted.shape}")
    if reference.dtype != "uint8" or distorted.dtype != "uint8":
        raise InputError(f"clips must be uint8: {reference.dtype}, {distorted.dtype}")
    if not metrics or not set(metrics) <= set(_DEFINITIONS):
        known = list(_DEFINITIONS)
        raise InputError(f"clips cannot be measured with {metrics}: choose among {known}")
    for name in metrics:
        require_filter(ffmpeg, _DEFINITIONS[name].filter)
    size = shape[3], shape[2] // 3 * 2
    ours, theirs = (np.concatenate([x[:, :1], x], 1) for x in (reference, distorted))
    with scratch() as folder:
        (node, source), files = raw_pair(ours, theirs, size, Path(folder))
        source = source.filter_multi_output("split", len(metrics))
        for index, name in enumerate(metrics):
            node = ffmpeg_graph.filter([node, source[index]], _DEFINITIONS[name].filter)
        node = node.filter("metadata", mode="print", file="pipe:1").output("-", format="null")
        done = process.run(compiled(node, ffmpeg, files), timeout_s=timeout_s)
        frames = read_frames(done.stdout.decode("utf-8", "replace"))
        values = {name: frame_values(name, frames, CEILING_DB[8]) for name in metrics}
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


def _check(wanted: Iterable[str], source: Source, distorted: Path, ffmpeg: str) -> None:
    unknown = [name for name in wanted if name not in METRICS]
    if unknown or not wanted:
        raise InputError(f"unknown metric {unknown}: choose among {', '.join(METRICS)}")
    for path in (source.path, distorted):
        if not path.is_file():
            raise InputError(f"{quoted(path)} is not a file; nothing to measure")
    for name in wanted:
        if name in _VMAF:
            require_model(ffmpeg, vmaf_model(name, source), *source.canvas)
        else:
            require_filter(ffmpeg, _DEFINITIONS[name].filter)


def can_measure(name: str, source: Source, ffmpeg: str) -> bool:
    """Whether this ffmpeg can measure renditions of this source by a metric."""
    if name in _DEFINITIONS:
        return has_filter(ffmpeg, _DEFINITIONS[name].filter)
    model = vmaf_model(name, source)
    fits = VMAF_MODELS[model].fits(*source.canvas)
    return fits and has_filter(ffmpeg, "libvmaf") and has_model(ffmpeg, model)


@dataclass(frozen=True)
class _Stored:
    """Samples of a file as they are stored."""

    bits: int
    """Bits a sample."""
    range: str
    """tv (limited) or pc (full)."""
    prep: tuple[str, ...]
    """Filters that bring RGB and grey to Y'CbCr."""


def stored_samples(
    path: Path, options: Mapping[str, str], source: Source, probed: Source | None
) -> _Stored:
    """Depth, range and needed filters of the distorted file; those of `probed`, where it was.

    A file without a range tag is taken for limited, as players do; but bare streams and raw video,
    whose format often has no place for the tag, are taken for the source's range. Where PyAV has
    no decoder (AVS2) samples are taken for 8-bit 4:2:0.
    """
    pix_fmt = options.get("pixel_format") or options.get("pix_fmt")
    own = colour_range(source)
    if not pix_fmt:
        try:
            others = {key: options[key] for key in options if key not in ("f", "format")}
            demuxer = options.get("f") or options.get("format")
            with open_video(path, None, options=others, demuxer=demuxer) as container:
                # a stream whose decoder is missing has no codec context, whatever the types say
                codec: Any = main_video(container).codec_context
                if codec is not None:
                    pix_fmt = codec.pix_fmt
                    untagged = own if container.format.name in _BARE else "tv"
                    own = RANGES.get(int(codec.color_range), untagged)
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
    prep, tags, _ = to_ycbcr(layout, source.canvas, bits, (*matrix, ("color_range", own)))
    own = dict(tags)["color_range"]
    if probed is None:
        return _Stored(bits, own, prep)
    # where depth or range change within the file, its header tells that of the first frames alone
    bits = max(bits, probed.bit_depth)
    return _Stored(bits, colour_range(probed) if probed.changes else own, probed.prep)


def _distorted_leg(
    source: Source,
    stored: _Stored,
    options: Iterable[tuple[str, str]],
    threads: int,
    pix_fmt: str,
) -> Any:
    """The distorted file at the source's size and range, its frames numbered and marked."""
    width, height = source.canvas
    return _leg(
        "DISTORTED",
        threads,
        (REUSE, *options),
        *stored.prep,
        # untagged but for the range: scale converts that one, and no matrix
        f"{UNTAGGED}:range={stored.range}",
        _numbered(source),
        # the file's own metadata goes, so that it cannot bring numbers that pass for ours; the
        # mark makes the last filter print every frame, measured or not
        "metadata=mode=delete,metadata=mode=add:key=vqaloop:value=1",
        f"scale={width}:{height}:in_range={stored.range}:out_range={colour_range(source)}"
        f":flags={SCALER}",
        f"format={pix_fmt}",
    )


def _reference_leg(source: Source, threads: int, pix_fmt: str) -> Any:
    """The source, its frames numbered, its range as it is."""
    own = colour_range(source)
    return _leg(
        "REFERENCE",
        threads,
        source.input_options,
        *source.prep,
        f"{UNTAGGED}:range={own}",
        _numbered(source),
        f"scale=out_range={own}:flags={SCALER}",
        f"format={pix_fmt}",
    )


def _numbered(source: Source) -> str:
    """Frame indices for timestamps, in the source's time base."""
    return f"settb={source.fps.denominator}/{source.fps.numerator},setpts=N"


def filters_of(
    wanted: Mapping[str, int], source: Source, folder: Path, threads: int
) -> list[tuple[str, dict[str, Any]]]:
    """The filters that measure, with their options: one libvmaf for all of one step."""
    models: dict[int, list[str]] = {}
    for name, step in wanted.items():
        if name in _VMAF and vmaf_model(name, source) not in models.setdefault(step, []):
            models[step].append(vmaf_model(name, source))
    return [
        *(("libvmaf", vmaf_options(folder, threads, models[step], step)) for step in models),
        *((_DEFINITIONS[name].filter, {}) for name in wanted if name in _DEFINITIONS),
    ]


def graph_of(pair: tuple[Any, Any], filters: Sequence[tuple[str, Mapping[str, Any]]]) -> Any:
    """The run of all filters over both legs, to a report on stdout."""
    node, reference = pair
    references = reference.filter_multi_output("split", len(filters))
    for index, (name, options) in enumerate(filters):
        # pass, not repeat: a reference frame that is missing must leave a gap in the numbers
        arguments = {"eof_action": "pass", **options}
        node = ffmpeg_graph.filter([node, references[index]], name, **arguments)
    node = node.filter("metadata", mode="print", file="pipe:1")
    return node.output("-", format="null", fps_mode="passthrough")


def _leg(key: str, threads: int, options: Iterable[tuple[str, str]], *filters: str) -> Any:
    # V rather than v: cover art is no video
    node = ffmpeg_graph.input(key, threads=threads, **input_arguments(options))["V"]
    for text in filters:
        node = append_filters(node, text)
    return node


def is_4k(source: Source) -> bool:
    """Whether VMAF has another model for a canvas as large as the source's."""
    return max(source.canvas) > 2560 or min(source.canvas) > 1440


def vmaf_model(name: str, source: Source) -> str:
    """The model of a VMAF."""
    return _VMAF[name][is_4k(source)]


def is_of_libvmaf(name: str) -> bool:
    """Whether libvmaf measures a metric."""
    return name in _VMAF


def label_of(name: str, source: Source, every: int) -> str:
    """What the values are, in words."""
    if name in _DEFINITIONS:
        return _DEFINITIONS[name].label
    label = "CAMBI of " * (name == CAMBI) + VMAF_MODELS[vmaf_model(name, source)].label
    return label + (f", 1 of {every} frames" if every > 1 else "")


def read_frames(text: str) -> list[dict[str, float]]:
    """The filters' output on each frame of the distorted leg, in order."""
    frames: list[dict[str, float]] = []
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if line.startswith("frame:"):
            frames.append({})
        elif key.startswith(("lavfi.psnr.", "lavfi.ssim.", "lavfi.xpsnr.")):
            frames[-1][key] = float(value)
    return frames


def frame_values(
    name: str, frames: list[dict[str, float]], ceiling_db: float
) -> tuple[float, ...]:
    """The metric of every frame that had a counterpart in the reference."""
    definition = _DEFINITIONS[name]
    return tuple(
        definition.frame_value([frame[key] for key in definition.needs], ceiling_db)
        for frame in frames
        if all(key in frame for key in definition.needs)
    )


def logged_values(name: str, source: Source, folder: Path, every: int) -> list[float]:
    """A metric of libvmaf on every so many-th frame, as its log in `folder` has it."""
    model = vmaf_model(name, source)
    rows = [row for row in read_vmaf(folder, every) if model in row]
    if name != CAMBI:
        return [row[model] for row in rows]
    # the feature's name lists its parameters
    return [next(row[key] for key in row if key.startswith(CAMBI)) for row in rows]


def _vmaf_values(name: str, source: Source, folder: Path, every: int) -> tuple[float, ...]:
    """A metric of libvmaf on all frames; on fewer where the reference had fewer.

    What lies between measured frames is interpolated. The first frame stands for itself alone: it
    has no motion yet, so that VMAF rates its flaws higher than those of all others.
    """
    import numpy as np

    values, frames = logged_values(name, source, folder, every), source.frames
    at = range(0, frames, every)
    if every == 1 or len(values) != len(at):
        return tuple(values)
    rest = slice(1 if len(at) > 1 else 0, None)
    between = np.interp(np.arange(1, frames), at[rest], values[rest])
    return (values[0], *between.tolist())
