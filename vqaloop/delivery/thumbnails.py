"""Preview images for seeking: pictures at equal distances in time, in sheets of JPEG."""

import math
from fractions import Fraction
from pathlib import Path

from vqaloop.core import ffmpeg as ffmpeg_graph
from vqaloop.core import process
from vqaloop.core.ffmpeg import compiled
from vqaloop.core.text import quoted
from vqaloop.delivery.content import Sheets
from vqaloop.delivery.segments import READ_FORMATS, RungStream, Segment, Track
from vqaloop.errors import ToolError

THUMBNAIL_HEIGHT = 90
"""Pixels of one picture, or the rung's own where it has fewer."""
_ACROSS = _DOWN = 5
"""The most pictures in a row and in a column of a sheet."""
_END = b"\xff\xd9"
"""The marker at the end of a JPEG; coded data never holds it."""


def make_sheets(
    rung: Path, stream: RungStream, track: Track, folder: Path, every_s: float, ffmpeg: str
) -> Sheets:
    """Write sheets of a rung's pictures, one every `every_s` seconds, into a new folder.

    The distance is rounded to whole frames. Raises ToolError when ffmpeg fails.
    """
    step = max(1, round(every_s * stream.fps))
    count = math.ceil(len(stream.frames) / step)
    across = min(_ACROSS, count)
    down = min(_DOWN, math.ceil(count / across))
    entry = track.video
    height = min(THUMBNAIL_HEIGHT, entry.height)
    shape = Fraction(entry.width * entry.sar[0], entry.height * entry.sar[1])
    width = max(2, 2 * round(height * shape / 2))
    graph = (
        ffmpeg_graph.input("INPUT", format_whitelist=READ_FORMATS)["v:0"]
        .filter("select", f"not(mod(n,{step}))")
        .filter("scale", width, height, out_range="full")
        .filter("setsar", 1)
        .filter("tile", f"{across}x{down}")
        .output(
            "pipe:1",
            f="image2pipe",
            fps_mode="passthrough",
            **{"c:v": "mjpeg", "q:v": 4, "pix_fmt": "yuvj420p", "flags:v": "+bitexact"},
        )
    )
    argv = compiled(graph, ffmpeg, {"INPUT": rung})
    done = process.run(argv, timeout_s=120 + rung.stat().st_size / 100_000)
    sheets = [part + _END for part in done.stdout.split(_END)[:-1]]
    if done.returncode or done.timed_out or len(sheets) != math.ceil(count / (across * down)):
        raise ToolError(f"no preview images of {quoted(rung)}: {done.reason()}")
    folder.mkdir()
    every, end, segments = step / stream.fps, stream.end, []
    for place, sheet in enumerate(sheets):
        start = place * across * down * every
        file = f"{place + 1:05d}.jpg"
        size = (folder / file).write_bytes(sheet)
        length = min(end - start, across * down * every)
        segments.append(Segment(file, size, start, length))
    return Sheets(folder.name, tuple(segments), width, height, across, down, every)
