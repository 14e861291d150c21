"""Full-reference metrics through ffmpeg: VMAF, XPSNR, PSNR and SSIM of a rung as it is watched.

One ffmpeg run computes all the metrics asked for. Both legs are numbered by frame index, so that
streams without timestamps (raw AVS2) and streams with odd ones are matched alike; the distorted
leg is scaled to the source's canvas by one fixed scaler, then both have one pixel format.

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

from __future__ import annotations

import functools
import json
import math
import os
import shlex
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqaloop.errors import DecodeFailed, InputError, ToolError
from vqaloop.process import file_url, run
from vqaloop.records import Score, Source

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

SCALER = "bicubic+accurate_rnd+full_chroma_int"
"""swscale flags with which every rung is brought to the source's canvas."""

REVISION = 1
"""Raised whenever the same files would get other values; belongs in cache keys."""

FEATURES = ("vmaf", "adm2", "motion2", "vif_scale0", "vif_scale1", "vif_scale2", "vif_scale3")
"""Columns of `vmaf_of_pairs`: VMAF and the six features it is made of."""

VMAF_MIN_SIDE = 18
"""Smallest width and height for VMAF, in pixels; on smaller frames libvmaf crashes."""

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
    timeout_s: float | None = None,
    threads: int | None = None,
) -> dict[str, Score]:
    """Scores of `distorted` against `source`, by metric name, over all frames.

    `distorted_options` go before its -i, as raw video needs; `timeout_s` is by default a minute
    and a second for every megapixel to decode; `threads` is by default all processors. The time
    of the one run is split evenly between the scores.

    Raises InputError for an unknown metric, a file that is not there or an ffmpeg without the
    filter, DecodeFailed when either file does not decode to exactly `source.frames` frames.
    """
    wanted = list(dict.fromkeys(metrics))
    _check(wanted, source, distorted, ffmpeg)
    bits = 10 if max(source.bit_depth, _bit_depth(distorted, dict(distorted_options))) > 8 else 8
    threads = threads or _processors()
    width, height = source.canvas
    limit_s = timeout_s or 60 + source.frames * width * height / 1e6
    with tempfile.TemporaryDirectory(prefix="vqaloop-") as folder:
        argv = _argv(
            source, distorted, wanted, ffmpeg, distorted_options, bits, threads, Path(folder)
        )
        done = run(argv, timeout_s=limit_s)
        if done.returncode != 0 or done.timed_out:
            raise DecodeFailed(
                f"{distorted} could not be measured against {source.path}: {done.reason()}"
            )
        decoded = _read_frames(Path(folder))
        values = {
            name: _frame_values(name, Path(folder), decoded, _CEILING_DB[bits]) for name in wanted
        }
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


def _check_frames(source: Source, distorted: Path, decoded: int, matched: int) -> None:
    if decoded != source.frames:
        raise DecodeFailed(
            f"{distorted} decodes to {decoded} frames where its source {source.path} has "
            f"{source.frames}; frames are matched by index, so the two must agree"
        )
    if matched != source.frames:
        raise DecodeFailed(
            f"{source.path} decodes to {matched} frames where {source.frames} were probed, and "
            f"{distorted} has {decoded}; probe the source again"
        )


def _check(wanted: Sequence[str], source: Source, distorted: Path, ffmpeg: str) -> None:
    unknown = [name for name in wanted if name not in _DEFINITIONS]
    if unknown or not wanted:
        raise InputError(f"unknown metric {unknown}: choose among {', '.join(METRICS)}")
    for path in (source.path, distorted):
        if not path.is_file():
            raise InputError(f"{path} is not a file; nothing to measure")
    if "vmaf" in wanted:
        _require_size(*source.canvas)
    for name in wanted:
        _require_filter(ffmpeg, _DEFINITIONS[name].filter)


def _require_size(width: int, height: int) -> None:
    if min(width, height) < VMAF_MIN_SIDE:
        raise InputError(
            f"{width}x{height} is too small for VMAF, which needs {VMAF_MIN_SIDE} pixels each "
            "way; choose another metric"
        )


def _require_filter(ffmpeg: str, name: str) -> None:
    if name not in _filters(ffmpeg):
        raise InputError(
            f"{ffmpeg} was built without the {name} filter; choose another metric, or with "
            "--ffmpeg an ffmpeg that has it"
        )


@functools.lru_cache(maxsize=8)
def _filters(ffmpeg: str) -> frozenset[str]:
    done = run([ffmpeg, "-hide_banner", "-filters"], timeout_s=60)
    if done.returncode != 0:
        raise InputError(f"{ffmpeg} -filters failed: {done.reason()}; check --ffmpeg")
    rows = [line.split() for line in done.stdout.decode("utf-8", "replace").splitlines()]
    return frozenset(row[1] for row in rows if len(row) > 2 and "->" in row[2])


def _bit_depth(path: Path, options: Mapping[str, str]) -> int:
    """Bits a sample of a file's video; 8 for the formats that PyAV has no decoder for (AVS2)."""
    import av

    pix_fmt = options.get("pixel_format") or options.get("pix_fmt")
    if not pix_fmt:
        try:
            others = {key: options[key] for key in options if key not in ("f", "format")}
            demuxer = options.get("f") or options.get("format")
            with av.open(file_url(path), format=demuxer, options=others) as container:
                # a stream whose decoder is missing has no codec context, whatever the types say
                codec: Any = container.streams.video[0].codec_context
                pix_fmt = codec.pix_fmt if codec is not None else None
        except (av.FFmpegError, IndexError) as error:
            raise DecodeFailed(f"{path} could not be opened as video: {error}") from error
    if not pix_fmt:
        return 8
    try:
        return max(component.bits for component in av.VideoFormat(pix_fmt).components)
    except ValueError as error:
        raise InputError(f"{pix_fmt} is not a pixel format that is known") from error


def _argv(
    source: Source,
    distorted: Path,
    wanted: Sequence[str],
    ffmpeg: str,
    distorted_options: tuple[tuple[str, str], ...],
    bits: int,
    threads: int,
    folder: Path,
) -> list[str]:
    import ffmpeg as graph

    width, height = source.canvas
    number = f"settb={source.fps.denominator}/{source.fps.numerator},setpts=N"
    pix_fmt = f"format={'yuv420p' if bits == 8 else 'yuv420p10le'}"

    def leg(path: Path, options: Iterable[tuple[str, str]], *filters: str, **more: None) -> Any:
        # V rather than v: cover art is no video
        node = graph.input(file_url(path), threads=threads, **more, **_input_options(options))["V"]
        for text in filters:
            node = _append(node, text)
        return node

    # the file's own metadata goes, so that it cannot bring numbers that pass for ours; the mark
    # makes the last filter print every frame, measured or not
    mark = "metadata=mode=delete,metadata=mode=add:key=vqaloop:value=1"
    size = f"{mark},scale={width}:{height}:flags={SCALER}"
    # -an on one leg alone: ffmpeg-python takes equal inputs, a file and itself, for one
    node = leg(distorted, distorted_options, number, size, pix_fmt, an=None)
    prep = (*source.prep, number, f"scale=flags={SCALER}", pix_fmt)
    references = leg(source.path, source.input_options, *prep)
    references = references.filter_multi_output("split", len(wanted))
    for index, name in enumerate(wanted):
        # pass, not repeat: a reference frame that is missing must leave a gap in the numbers
        options: dict[str, Any] = {"eof_action": "pass"}
        if name == "vmaf":
            options |= _vmaf_options(folder, threads, _is_4k(source))
        pair = [node, references[index]]
        node = graph.filter(pair, _DEFINITIONS[name].filter, **options)
    node = node.filter("metadata", mode="print", file=file_url(folder / "frames.txt"))
    return _compiled(node, ffmpeg)


def _input_options(options: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Options before -i for ffmpeg-python, which takes the first two letters of a video_size."""
    return {"s" if key == "video_size" else key: value for key, value in options}


def _append(node: Any, text: str) -> Any:
    """Filters written as in -vf, put after `node` (ffmpeg-python does its own escaping)."""

    def tokens(part: str, separator: str) -> list[str]:
        lexer = shlex.shlex(part, posix=True)
        lexer.whitespace, lexer.quotes, lexer.commenters = separator, "'", ""
        lexer.whitespace_split = True
        return list(lexer)

    for item in tokens(text, ","):
        name, _, arguments = item.partition("=")
        pairs = [argument.partition("=") for argument in tokens(arguments, ":")]
        named = {key: value for key, equals, value in pairs if equals}
        node = node.filter(name, *(key for key, equals, _ in pairs if not equals), **named)
    return node


def _compiled(node: Any, ffmpeg: str) -> list[str]:
    sink = node.output("-", format="null", fps_mode="passthrough")
    sink = sink.global_args("-nostdin", "-hide_banner", "-loglevel", "error")
    return [str(part) for part in sink.compile(cmd=ffmpeg)]


def _is_4k(source: Source) -> bool:
    return max(source.canvas) > 2560 or min(source.canvas) > 1440


def _vmaf_options(folder: Path, threads: int, is_4k: bool = False) -> dict[str, Any]:
    return {
        "model": "version=vmaf_4k_v0.6.1" if is_4k else "version=vmaf_v0.6.1",
        "n_threads": threads,
        "log_fmt": "json",
        "log_path": os.fspath(folder / "vmaf.json"),
    }


def _read_vmaf(folder: Path) -> list[dict[str, float]]:
    log = json.loads((folder / "vmaf.json").read_text(encoding="utf-8"))
    frames = sorted(log["frames"], key=lambda frame: int(frame["frameNum"]))
    return [frame["metrics"] for frame in frames]


def _read_frames(folder: Path) -> list[dict[str, float]]:
    """What the filters wrote on each frame that the distorted leg gave, in order."""
    frames: list[dict[str, float]] = []
    for line in (folder / "frames.txt").read_text(encoding="utf-8", errors="replace").splitlines():
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
    rows = _read_vmaf(folder) if name == "vmaf" else frames
    return tuple(
        definition.frame_value([row[key] for key in definition.needs], ceiling_db)
        for row in rows
        if all(key in row for key in definition.needs)
    )


def _processors() -> int:
    return (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )


def vmaf_of_pairs(
    reference: npt.NDArray[np.uint8],
    distorted: npt.NDArray[np.uint8],
    *,
    ffmpeg: str,
    threads: int = 1,
    timeout_s: float = 120,
) -> pd.DataFrame:
    """VMAF v0.6.1 and its features, one row a frame, of 8-bit planar 4:2:0 frames in memory.

    Both arrays are (N, H * 3/2, W): the rows of Y, then U and V as they lie in a raw file; H and
    W are even. VMAF is in 0..100, motion2 in grey levels (0 on the first frame), the other
    `FEATURES` about 0..1. The N frames are taken as following one another in time, because
    motion2 of a frame looks at its neighbours: call once for each clip.

    Raises InputError for other arrays or an ffmpeg without libvmaf, ToolError when libvmaf fails.
    """
    import ffmpeg as graph
    import pandas as pd

    shape = reference.shape
    if distorted.shape != shape or len(shape) != 3 or 0 in shape or shape[1] % 3 or shape[2] % 2:
        raise InputError(f"frames must be two equal (N, H * 3/2, W): {shape}, {distorted.shape}")
    if reference.dtype != "uint8" or distorted.dtype != "uint8":
        raise InputError(f"frames must be uint8: {reference.dtype}, {distorted.dtype}")
    _require_size(shape[2], shape[1] // 3 * 2)
    _require_filter(ffmpeg, "libvmaf")
    raw = {"format": "rawvideo", "pixel_format": "yuv420p", "framerate": "25"}
    raw |= {"s": f"{shape[2]}x{shape[1] // 3 * 2}"}
    with tempfile.TemporaryDirectory(prefix="vqaloop-") as name:
        folder = Path(name)
        legs = []
        for file, frames in (("distorted", distorted), ("reference", reference)):
            frames.tofile(folder / file)
            legs.append(graph.input(file_url(folder / file), **raw))
        node = graph.filter(legs, "libvmaf", **_vmaf_options(folder, threads))
        done = run(_compiled(node, ffmpeg), timeout_s=timeout_s)
        if done.returncode != 0:
            raise ToolError(f"libvmaf failed on {shape[0]} frames in memory: {done.reason()}")
        rows = _read_vmaf(folder)
    # libvmaf names its fixed-point features integer_*, older ones and its float models do not
    rows = [{key.removeprefix("integer_"): row[key] for key in row} for row in rows]
    table = pd.DataFrame(rows)
    missing = [name for name in FEATURES if name not in table]
    if missing or len(table) != shape[0]:
        raise ToolError(f"libvmaf gave {len(table)} of {shape[0]} frames, without {missing}")
    return table[list(FEATURES)]
