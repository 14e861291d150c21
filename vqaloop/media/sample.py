"""Writes a few seconds of varied synthetic video, for trials where no clip is at hand."""

import os
import random
from pathlib import Path
from typing import Any

from vqaloop.core import ffmpeg as ffmpeg_graph
from vqaloop.core import process
from vqaloop.core.ffmpeg import compiled, ffmpeg_path
from vqaloop.core.files import unfinished
from vqaloop.core.text import quoted
from vqaloop.errors import InputError, ToolError
from vqaloop.media.limits import MAX_SIDE, MIN_SIDE

_OUTPUTS: dict[str, dict[str, str | int]] = {
    ".y4m": {"f": "yuv4mpegpipe"},
    ".mp4": {"f": "mp4", "c:v": "libx264", "preset": "fast", "qp": 0, "threads": 1},
    ".mkv": {"f": "matroska", "c:v": "ffv1", "level": 3, "g": 1},
}
"""Output options for each suffix; all are lossless."""

_MANDELBROT_VIEWS = ((-0.743643887, -0.131825904), (-0.7746806, -0.1374168), (0.2549870, 0.000567))
"""Centres (real, imaginary) that hold detail at every scale."""


def write_sample(
    path: str | os.PathLike[str],
    *,
    seconds: float = 4.0,
    size: tuple[int, int] = (640, 360),
    fps: int = 25,
    seed: int = 0,
    ffmpeg: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write synthetic video.

    Five scenes of equal length, each hard for another part of an encoder: moving gradients
    (banding), a zoom into a fractal (texture, scaling motion), grain over shapes (noise), a
    text-like pattern (sharp edges), and a fast pan (motion search).

    Args:
        path: The file; its suffix chooses the container, .y4m, .mp4 or .mkv, all lossless.
        seconds: Duration, 0.4..600.
        size: Width and height, even pixels.
        fps: Frame rate, 1..240.
        seed: The same seed gives the same frames.
        ffmpeg: The ffmpeg program, None for the one that is installed.
        overwrite: Replace an existing file.

    Returns:
        The path.

    Raises:
        InputError: A value is out of range, the file exists, or its folder cannot be written to.
        ToolError: ffmpeg fails.
    """
    out = Path(path)
    frames = _checked(out, seconds, size, fps, overwrite)
    scenes = _scenes(size, fps, random.Random(seed))
    edges = [frames * part // len(scenes) for part in range(len(scenes) + 1)]
    cut = [
        scene.filter("trim", end_frame=end - start).filter("format", "yuv420p").filter("setsar", 1)
        for scene, start, end in zip(scenes, edges, edges[1:], strict=False)
    ]
    # hidden and short, so that it is taken for no result and any name has room for it
    part = unfinished(out.parent)
    joined = ffmpeg_graph.concat(*cut)
    graph = joined.output("OUTPUT", **_OUTPUTS[out.suffix.lower()], pix_fmt="yuv420p")
    argv = compiled(graph, ffmpeg_path(ffmpeg), {"OUTPUT": part})
    try:
        done = process.run(argv, timeout_s=60 + 2.0 * frames)
        if done.returncode:
            raise ToolError(f"could not write {quoted(out)}: {done.reason()}")
        os.replace(part, out)
    except OSError as error:
        raise InputError(f"cannot write {quoted(out)}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
    return out


def _checked(out: Path, seconds: float, size: tuple[int, int], fps: int, overwrite: bool) -> int:
    """The number of frames; InputError for what cannot be made."""
    name = quoted(out)
    if out.suffix.lower() not in _OUTPUTS:
        raise InputError(f"{name}: the suffix must be one of {', '.join(_OUTPUTS)}")
    if any(side % 2 or not MIN_SIDE <= side <= MAX_SIDE for side in size):
        raise InputError(f"{size = } must be two even numbers from {MIN_SIDE} to {MAX_SIDE}")
    if not (1 <= fps <= 240 and 0.4 <= seconds <= 600):
        raise InputError(f"{fps = } must be 1 to 240, and {seconds = } 0.4 to 600")
    if out.is_dir():
        raise InputError(f"{name} already exists and is a folder; choose another name")
    if out.exists() and not overwrite:
        raise InputError(f"{name} already exists; choose another name, or give --overwrite")
    if not out.absolute().parent.is_dir():
        raise InputError(f"{name}: there is no such folder; make it first")
    if not os.access(out.absolute().parent, os.W_OK):
        raise InputError(f"{name}: no permission to write in that folder; choose another")
    return max(round(seconds * fps), 5)


def _scenes(size: tuple[int, int], fps: int, draw: random.Random) -> list[Any]:
    width, height = size
    place = f"s={width}x{height}:r={fps}"
    # sources are made from filter text, which ffmpeg-python has no call for
    # colours and line by hand: what the filter draws itself differs from run to run
    colours = ":".join(f"c{i}=0x{draw.randrange(1 << 24):06x}" for i in range(4))
    ends = f"x0=0:y0={draw.randrange(height)}:x1={width - 1}:y1={draw.randrange(height)}"
    gradients = _lavfi(f"gradients={place}:n=4:speed=0.03:{colours}:{ends}")
    real, imaginary = draw.choice(_MANDELBROT_VIEWS)
    zoom = _lavfi(
        f"mandelbrot={place}:start_x={real}:start_y={imaginary}:start_scale=0.8:end_scale=0.02"
        f":end_pts={fps * 4}:maxiter=400:inner=convergence"
    )
    grain = _lavfi(f"testsrc2={place}").filter(
        "noise", alls=draw.randrange(14, 22), allf="t", all_seed=draw.randrange(2**31)
    )
    cells = f"s={width // 4}x{height // 4}:r={fps}:rule=110:seed={draw.randrange(1 << 31)}"
    text = _lavfi(f"cellauto={cells}").filter("scale", width, height, flags="neighbor")
    pan = _lavfi(
        f"mandelbrot={place}:start_x={imaginary}:start_y={real}:start_scale=2.5:end_scale=2.4"
    ).filter("scroll", horizontal=draw.uniform(0.01, 0.03), vertical=draw.uniform(0.004, 0.012))
    return [gradients, zoom, grain, text, pan]


def _lavfi(text: str) -> Any:
    return ffmpeg_graph.input(text, f="lavfi")
