"""Writes a few seconds of generated video, for trials where no clip is at hand.

Pictures are made by the dead-leaves model (Lee, Mumford and Huang 2001): opaque shapes that hide
each other, of sizes whose density falls with the third power, each with a texture of a spectrum
that falls as 1/f. Their statistics are those of natural pictures, so that metrics rank encodes of
them as they rank encodes of what a camera recorded. Nobody has rights in them.
"""

import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

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

_GRAIN = 1.6
"""Standard deviation of the noise of the camera, in levels of 255."""
_LEAVES = 4500
"""Leaves of a picture of many lines; more would hide each other."""

Values = npt.NDArray[np.float32]
Point = tuple[float, float]


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
    """Write generated video that looks like video of plants.

    Three shots of equal length: a camera that pans over leaves, some of them near and out of
    focus; clouds above leaves, which move slowly; and a camera that approaches and turns.

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
    # hidden and short, so that it is taken for no result and any name has room for it
    part = unfinished(out.parent)
    raw = {"f": "rawvideo", "pix_fmt": "rgb24", "s": f"{size[0]}x{size[1]}", "r": fps}
    graph = ffmpeg_graph.input("pipe:0", **raw).output(
        "OUTPUT", **_OUTPUTS[out.suffix.lower()], pix_fmt="yuv420p"
    )
    argv = compiled(graph, ffmpeg_path(ffmpeg), {"OUTPUT": part})
    # ffmpeg reads no stdin elsewhere
    argv.remove("-nostdin")
    try:
        with tempfile.TemporaryFile(dir=out.parent) as pictures:
            for picture in _pictures(size, frames, np.random.default_rng(seed)):
                pictures.write(picture.tobytes())
            pictures.seek(0)
            done = process.run(argv, timeout_s=60 + 2.0 * frames, stdin=pictures)
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


@dataclass(frozen=True)
class _Layer:
    """A picture larger than what the camera sees of it, and how it moves below the camera."""

    picture: Image.Image
    """RGB, or RGBA where others show through."""
    begin: Point
    """Of the camera, as parts of the room beside its view: 0..1."""
    end: Point
    zoom: Point = (1.0, 1.0)
    """Pixels of the picture for one of the video's, at the beginning and at the end."""
    turn: float = 0.0
    """Degrees in all."""


def _pictures(
    size: tuple[int, int], frames: int, rng: np.random.Generator
) -> Iterator[npt.NDArray[np.uint8]]:
    """The frames: (height, width, 3) RGB."""
    shots = (_pan, _clouds, _approach)
    edges = [frames * part // len(shots) for part in range(len(shots) + 1)]
    for make, start, end in zip(shots, edges, edges[1:], strict=False):
        layers = make(size, rng)
        for number in range(end - start):
            # sped up and slowed down, as by hand
            way = (1 - math.cos(math.pi * number / max(1, end - start - 1))) / 2
            seen = [
                _seen(layer, size, 0.7 * number / (end - start) + 0.3 * way) for layer in layers
            ]
            picture = seen[0]
            for nearer in seen[1:]:
                picture.paste(nearer, (0, 0), nearer)
            noise = rng.standard_normal((size[1], size[0], 1), dtype=np.float32) * _GRAIN
            grainy = np.asarray(picture, np.float32) + noise
            yield np.clip(np.rint(grainy), 0, 255).astype(np.uint8)


def _pan(size: tuple[int, int], rng: np.random.Generator) -> list[_Layer]:
    far = _leaves(_larger(size, 1.5), rng)
    near = _leaves(_larger(size, 2.2), rng, least=0.12, count=14, blur=0.012)
    return [_Layer(far, (0.0, 0.3), (1.0, 0.6)), _Layer(near, (0.0, 0.5), (1.0, 0.3))]


def _clouds(size: tuple[int, int], rng: np.random.Generator) -> list[_Layer]:
    width, height = _larger(size, 1.3)
    cover = np.clip(_texture((width, height), rng, 1.7) * 0.55 + 0.4, 0, 1)[..., None]
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    sky = np.array([70, 120, 200], np.float32) * (1 - down) + np.array([185, 205, 225]) * down
    picture = sky * (1 - cover) + np.array([238, 236, 232], np.float32) * cover
    above = Image.fromarray(np.rint(picture).astype(np.uint8))
    below = _leaves(_larger(size, 1.4), rng, count=1500, below=0.62)
    return [_Layer(above, (0.0, 0.2), (0.35, 0.25)), _Layer(below, (0.2, 0.9), (0.6, 0.75))]


def _approach(size: tuple[int, int], rng: np.random.Generator) -> list[_Layer]:
    leaves = _leaves(_larger(size, 1.7), rng)
    return [_Layer(leaves, (0.45, 0.5), (0.6, 0.4), zoom=(1.45, 0.95), turn=6.0)]


def _larger(size: tuple[int, int], times: float) -> tuple[int, int]:
    return round(size[0] * times), round(size[1] * times)


def _seen(layer: _Layer, size: tuple[int, int], way: float) -> Image.Image:
    """What the camera sees of a layer when it has gone a part of its way."""
    zoom = layer.zoom[0] * (layer.zoom[1] / layer.zoom[0]) ** way
    angle = math.radians(layer.turn * (way - 0.5))
    room = [whole - zoom * side for whole, side in zip(layer.picture.size, size, strict=True)]
    middle = [
        space * (a + (b - a) * way) + zoom * side / 2
        for space, a, b, side in zip(room, layer.begin, layer.end, size, strict=True)
    ]
    cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
    x = middle[0] - cos * size[0] / 2 - sin * size[1] / 2
    y = middle[1] + sin * size[0] / 2 - cos * size[1] / 2
    return layer.picture.transform(
        size, Image.Transform.AFFINE, (cos, sin, x, -sin, cos, y), Image.Resampling.BICUBIC
    )


def _leaves(
    size: tuple[int, int],
    rng: np.random.Generator,
    *,
    least: float = 0.012,
    count: int = 0,
    below: float = 0.0,
    blur: float = 0.0,
) -> Image.Image:
    """A picture of leaves; with a `count` of them, RGBA with nothing between them.

    `least` and `blur` are parts of its height: half a leaf's length at least, and how far it is
    out of focus. Leaves are `below` that part of the height alone.
    """
    # drawn at twice the size, for edges without steps
    width, height = 2 * size[0], 2 * size[1]
    back = (0, 0, 0, 0) if count else (38, 48, 26, 255)
    picture = Image.new("RGBA", (width, height), back)
    draw = ImageDraw.Draw(picture)
    most, drawn = 16 * least, max(least, 1.5 / size[1])
    # those smaller than a pixel are left out, and the others stay as many
    for _ in range(count or round(_LEAVES * (least / drawn) ** 2)):
        # a density of radius**-3 between the least and the largest
        part = rng.random()
        radius = height * (drawn**-2 - part * (drawn**-2 - most**-2)) ** -0.5
        place = rng.random() * width, height * (below + (1 - below) * rng.random())
        shape = _leaf(place, radius, rng)
        light = rng.uniform(0.45, 1.25)
        green = np.array([rng.uniform(60, 150), rng.uniform(95, 165), rng.uniform(30, 80)])
        if rng.random() < 0.12:
            green = np.array([rng.uniform(170, 215), rng.uniform(80, 150), rng.uniform(45, 110)])
        colour = tuple(int(min(255.0, v * light)) for v in green)
        drop = 0.06 * radius
        draw.polygon([(x + drop, y + drop) for x, y in shape], fill=(20, 26, 14, 255))
        draw.polygon(shape, fill=(*colour, 255))
        tip, stalk = shape[len(shape) // 2], shape[0]
        vein = tuple(min(255, int(v * 1.25)) for v in colour)
        draw.line([stalk, tip], fill=(*vein, 255), width=max(1, int(radius * 0.035)))
    picture = picture.resize(size, Image.Resampling.BOX)
    colours = np.asarray(picture, np.float32).copy()
    shade = 1 + 0.16 * _texture(size, rng, 1.0) + 0.14 * _texture(size, rng, 2.0)
    colours[..., :3] = np.clip(colours[..., :3] * shade[..., None], 0, 255)
    made = Image.fromarray(np.rint(colours).astype(np.uint8))
    if blur:
        made = made.filter(ImageFilter.GaussianBlur(blur * size[1]))
    return made if count else made.convert("RGB")


def _leaf(place: Point, radius: float, rng: np.random.Generator) -> list[Point]:
    """Outline of a leaf: from its stalk along one side to its tip, and back along the other."""
    wide, angle = rng.uniform(0.25, 0.6), rng.uniform(0, 2 * math.pi)
    bend, cos, sin = rng.uniform(-0.25, 0.25), math.cos(angle), math.sin(angle)
    outline = []
    for step in range(24):
        along = math.cos(2 * math.pi * step / 24)
        across = wide * math.sin(2 * math.pi * step / 24) * (1 - 0.35 * along) + bend * along**2
        x, y = -along * radius, across * radius
        outline.append((place[0] + x * cos - y * sin, place[1] + x * sin + y * cos))
    return outline


def _texture(size: tuple[int, int], rng: np.random.Generator, slope: float) -> Values:
    """Noise of mean 0 and deviation 1 whose amplitude falls as 1/f**slope: (height, width)."""
    width, height = size
    spectrum = np.fft.rfft2(rng.standard_normal((height, width)))
    # cycles for each height, so that the picture looks the same at every size
    down, across = np.fft.fftfreq(height) * height, np.fft.rfftfreq(width) * height
    far = np.hypot(down[:, None], across[None])
    far[0, 0] = np.inf
    field = np.fft.irfft2(spectrum / far**slope, s=(height, width))
    found: Values = (field / field.std()).astype(np.float32)
    return found
