"""Cuts windows out of a title into a lossless excerpt."""

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any

from vqaloop.bitstream.colour_tags import matrix_tag
from vqaloop.core import ffmpeg as ffmpeg_graph
from vqaloop.core import process
from vqaloop.core.ffmpeg import append_filters, compiled, input_arguments
from vqaloop.core.files import unfinished
from vqaloop.core.text import quoted
from vqaloop.errors import DecodeFailed, InputError, ToolError
from vqaloop.media.container import opened
from vqaloop.records import REUSE, Source

GOP_S = 2
"""Seconds of a GOP, of which windows are whole multiples."""

STALLED_S = 60.0
"""Seconds without any work after which ffmpeg is held to hang."""

_SEEK_MARGIN_FRAMES = 20
"""Above the 16 frames that any codec here may reorder, so that the seek lands early enough."""

_TEMPORAL = ("fps=", "bwdif=", "setpts=", "fieldmatch=", "decimate=")
"""How the filters in prep begin that need the frames before, so that seeking changes frames."""

_TO_RANGE = "out_range="
"""In filters of prep that convert ranges: where these change inside H.264, its decoder's output
depends on which comes first."""


def excerpt(
    source: Source, windows: Sequence[tuple[int, int]], out: Path, *, ffmpeg: str
) -> Source:
    """Write windows of a source one after another, lossless, with `prep` applied.

    Args:
        source: The title.
        windows: Start frame and number of frames of each, ascending without overlap.
        out: The file, which becomes FFV1 in Matroska and replaces one that is there.
        ffmpeg: The ffmpeg program.

    Returns:
        The excerpt as a source. Its sha256 is that of its origin (source, windows and filters),
        so that it is the same wherever the excerpt is made.

    Raises:
        InputError: Windows overlap or lie outside the source.
        DecodeFailed: The frames cannot be decoded.
    """
    windows = tuple((int(start), int(count)) for start, count in windows)
    _check_windows(source, windows)
    wanted = sum(count for _, count in windows)
    part = unfinished(out.parent)
    pix_fmt = None
    try:
        needs_all = any(f.startswith(_TEMPORAL) for f in source.prep) or (
            source.changes and any(_TO_RANGE in f for f in source.prep)
        )
        # raw video cannot be sought in: ffmpeg would read its way to each window
        if wanted < source.frames and not needs_all and not source.is_raw:
            # fails where a stream's key frames are not where seeking needs them, or it stalls
            with contextlib.suppress(ToolError):
                pix_fmt = _write_ffv1(_sought(source, windows), source, wanted, part, ffmpeg)
        if pix_fmt is None:
            pix_fmt = _write_ffv1(_selected(source, windows), source, wanted, part, ffmpeg)
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
    return replace(as_excerpt(source, windows, out), pix_fmt=pix_fmt)


def as_excerpt(source: Source, windows: Sequence[tuple[int, int]], out: Path) -> Source:
    """An excerpt as `excerpt` describes it, but for its pixel format, without writing it.

    It serves to look up what was made of the same excerpt before.
    """
    width, height = source.canvas
    # the options too: the same raw bytes read at another size are another picture
    made_of = json.dumps([source.sha256, windows, source.prep, source.input_options])
    return replace(
        source,
        path=out,
        sha256=hashlib.sha256(made_of.encode()).hexdigest(),
        width=width,
        height=height,
        frames=sum(count for _, count in windows),
        input_options=(),
        prep=(),
        windows=_first_frames(windows),
    )


def _first_frames(windows: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Where in the excerpt each of several windows begins; a single one may hold any scenes."""
    starts = accumulate((count for _, count in windows[:-1]), initial=0)
    return tuple(starts) if len(windows) > 1 else ()


def _check_windows(source: Source, windows: Sequence[tuple[int, int]]) -> None:
    if not windows:
        raise InputError("an excerpt needs at least one window")
    reached = 0
    for start, count in windows:
        if start < reached or count < 1 or start + count > source.frames:
            raise InputError(
                f"windows {windows} must ascend without overlap within {source.frames} frames"
            )
        reached = start + count


def _sought(source: Source, windows: Sequence[tuple[int, int]]) -> Any:
    """A graph that seeks to each window; times fall on frame numbers, since the rate is constant.

    Seeking aims early and trimming cuts half-way between frames, so rounding cannot move either.
    """
    parts = []
    for start, count in windows:
        from_s = float(max(0, start - _SEEK_MARGIN_FRAMES) / source.fps)
        first_s = float((start - Fraction(1, 2)) / source.fps) - from_s
        last_s = float((start + count - Fraction(1, 2)) / source.fps) - from_s
        # one graph for all frames: made anew on the way, several inputs lock each other up
        node = _input(source, **dict([REUSE]), ss=f"{from_s:.6f}", t=f"{last_s + 1:.6f}")
        cut = node.filter("trim", start=f"{first_s:.6f}", end=f"{last_s:.6f}")
        # prep before they are joined, since windows may begin with other properties
        parts.append(_filtered(cut.filter("setpts", "PTS-STARTPTS"), source.prep))
    return ffmpeg_graph.concat(*parts) if len(parts) > 1 else parts[0]


def _selected(source: Source, windows: Sequence[tuple[int, int]]) -> Any:
    """A graph that decodes everything and keeps the windows by frame number."""
    ranges = "+".join(f"between(n,{start},{start + count - 1})" for start, count in windows)
    return _filtered(_input(source), source.prep).filter("select", ranges)


def _input(source: Source, **more: str) -> Any:
    options = input_arguments(source.input_options) | more
    return ffmpeg_graph.input("INPUT", **options)["V:0"]


def _filtered(node: Any, filters: Sequence[str]) -> Any:
    for text in filters:
        node = append_filters(node, text)
    return node


def _write_ffv1(graph: Any, source: Source, wanted: int, part: Path, ffmpeg: str) -> str:
    """Encode a graph's frames to `part`; its pixel format. DecodeFailed for another count."""
    tick = f"{source.fps.denominator}/{source.fps.numerator}"
    tags = dict(source.colour)
    if matrix_tag(source.colour):
        # who reads the excerpt could not scale it; renditions are tagged from the source
        del tags["colorspace"]
    # intra only, Golomb-Rice, small context: decoding speed counts, not size
    sink = (
        graph.filter("settb", tick)
        .filter("setpts", "N")
        .output(
            "OUTPUT",
            f="matroska",
            fps_mode="passthrough",
            enc_time_base="filter",
            **{"c:v": "ffv1", "frames:v": wanted},
            level=3,
            g=1,
            coder="rice",
            context=0,
            slices=4,
            slicecrc=0,
            **tags,
        )
    )
    argv = compiled(sink, ffmpeg, {"INPUT": source.path, "OUTPUT": part})
    done = process.run(argv, timeout_s=60 + 2.0 * source.frames, idle_s=STALLED_S)
    if done.returncode:
        raise DecodeFailed(f"no excerpt of {quoted(source.path)}: {done.reason()}")
    with opened(part) as container:
        made = sum(1 for packet in container.demux(video=0) if packet.size)
        if made != wanted:
            raise DecodeFailed(
                f"{quoted(source.path)} gave {made} of {wanted} frames for an excerpt; check that "
                "the file has not changed and that the disk is not full"
            )
        return str(container.streams.video[0].codec_context.pix_fmt)
