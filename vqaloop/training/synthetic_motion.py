"""Synthetic scenes: camera motion over still pictures and montages, and dead leaves."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from vqaloop.media.colour import to_planes
from vqaloop.media.planes import Frames

PICTURE_PIXELS = 2e6
"""Pixels of a picture that is set in motion; a scene takes 12 bytes of each and frame."""


def picture_in_motion(picture: torch.Tensor, frames: int, rng: np.random.Generator) -> Frames:
    """A camera panning, zooming and turning over a (3, H, W) picture, with or without grain.

    About one in four scenes carries a second, differently moving layer; one in three carries film
    grain; one in five is out of focus, for softness that no encoder caused; one in ten fades in.

    Args:
        picture: RGB in 0..1; scaled down first, which removes artefacts of its own compression,
            and to at most PICTURE_PIXELS.
        frames: T, frames of the scene.
        rng: Of all that is drawn.

    Returns:
        (T, H'·3/2, W') planar 4:2:0, uint8.
    """
    pixels = picture.shape[1] * picture.shape[2]
    reduce = max(rng.uniform(1.2, 1.7), (pixels / PICTURE_PIXELS) ** 0.5)
    small = F.interpolate(picture[None], scale_factor=1 / reduce, mode="bicubic", antialias=True)
    height, width = (max(128, int(side * 0.85) // 2 * 2) for side in small.shape[2:])
    scene = _camera(small[0], frames, (height, width), rng)
    if rng.random() < 0.25:
        other = _camera(small[0].flip(2), frames, (height, width), rng)
        # a soft-edged disc of the mirrored picture moves over it: occlusion
        y, x = torch.meshgrid(
            torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
        )
        centre, radius = rng.uniform(-0.5, 0.5, 2), rng.uniform(0.2, 0.6)
        distance = ((x - centre[0]) ** 2 + (y - centre[1]) ** 2).sqrt()
        inside = ((radius - distance) * height / 4).clamp(0, 1)
        scene = scene * (1 - inside) + other * inside
    if rng.random() < 0.2:
        scene = _defocus(scene, float(rng.uniform(0.5, 2.5)))
    if rng.random() < 1 / 3:
        noise = rng.normal(0, rng.uniform(0.005, 0.025), (frames, 1, height, width))
        scene = scene + torch.from_numpy(noise).float()
    if rng.random() < 0.1:
        fade = torch.linspace(float(rng.uniform(0.5, 1)), 1, frames)
        scene = scene * fade[:, None, None, None]
    return to_planes(scene).numpy()


def montage_in_motion(
    pictures: Sequence[torch.Tensor], size: tuple[int, int], frames: int, rng: np.random.Generator
) -> Frames:
    """A camera moving over pictures laid edge to edge, for scenes larger than any picture.

    Pictures keep their own pixels: scaled up they would be softer than what a camera of that
    size records.

    Args:
        pictures: (3, H, W) RGB in 0..1, repeated in another order where they do not fill `size`.
        size: Width and height of the scene, even.
        frames: T, frames of the scene.
        rng: Of all that is drawn.

    Returns:
        (T, height·3/2, width) planar 4:2:0, uint8.
    """
    width, height = size
    laid = _laid_out(pictures, size, rng)
    # frame by frame: a scene of 2160 lines takes 100 MB of each
    views = _views(laid, _paths(laid, frames, (height, width), rng), (height, width))
    return np.concatenate([to_planes(view).numpy() for view in views])


def _laid_out(
    pictures: Sequence[torch.Tensor], size: tuple[int, int], rng: np.random.Generator
) -> torch.Tensor:
    """(3, H, W): rows of pictures cut to equal height, each row filled from the left."""
    width, height = size
    tall = min(picture.shape[1] for picture in pictures)
    order: list[int] = []
    rows = []
    for _ in range(-(-height // tall)):
        parts: list[torch.Tensor] = []
        while sum(part.shape[2] for part in parts) < width:
            order = order or rng.permutation(len(pictures)).tolist()
            picture = pictures[order.pop()]
            top = int(rng.integers(picture.shape[1] - tall + 1))
            parts.append(picture[:, top : top + tall])
        rows.append(torch.cat(parts, 2)[:, :, :width])
    return torch.cat(rows, 1)[:, :height]


def _camera(
    picture: torch.Tensor, frames: int, size: tuple[int, int], rng: np.random.Generator
) -> torch.Tensor:
    """(T, 3, H, W) views of the picture along a smooth path, sampled to sub-pixels."""
    return torch.cat(list(_views(picture, _paths(picture, frames, size, rng), size)))


def _paths(
    picture: torch.Tensor, frames: int, size: tuple[int, int], rng: np.random.Generator
) -> torch.Tensor:
    """(T, 2, 3) affine maps of a camera that pans, zooms and turns over the picture."""
    height, width = size
    scale = torch.tensor([width / picture.shape[2], height / picture.shape[1]])
    speed = rng.choice([0.0, 0.5, 2.0, 6.0], p=[0.15, 0.35, 0.35, 0.15]) * rng.uniform(0.5, 1.5)
    heading = rng.uniform(0, 2 * np.pi)
    step = torch.tensor([np.cos(heading), np.sin(heading)]) * speed * 2
    step = step / torch.tensor([picture.shape[2], picture.shape[1]])
    zoom, turn = rng.normal(0, 0.0015), rng.normal(0, 0.001)
    angles = np.arange(frames) * turn + rng.normal(0, 0.01)
    zooms = np.exp(np.arange(frames) * zoom)
    theta = torch.zeros(frames, 2, 3)
    cos, sin = (torch.from_numpy(f(angles) * zooms).float() for f in (np.cos, np.sin))
    theta[:, 0, 0], theta[:, 0, 1] = cos * scale[0], -sin * scale[1]
    theta[:, 1, 0], theta[:, 1, 1] = sin * scale[0], cos * scale[1]
    theta[:, :, 2] = (torch.arange(frames)[:, None] - frames / 2) * step
    return theta


def _views(
    picture: torch.Tensor, paths: torch.Tensor, size: tuple[int, int]
) -> Iterator[torch.Tensor]:
    """(1, 3, H, W) of each frame; beyond its edges the picture is mirrored."""
    for path in paths:
        grid = F.affine_grid(path[None], [1, 3, *size], align_corners=False)
        yield F.grid_sample(picture[None], grid, "bicubic", "reflection", align_corners=False)


def _defocus(scene: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of (T, 3, H, W), `sigma` in pixels."""
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = F.pad(scene, (reach,) * 4, "reflect")
    return F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)


def dead_leaves(rng: np.random.Generator, size: tuple[int, int] = (900, 675)) -> torch.Tensor:
    """(3, H, W) RGB in 0..1 by the dead leaves model, for a `size` of (W, H).

    Discs and boxes that occlude each other, of sizes by an inverse cube law, have the edges and
    the spectrum of natural pictures (Lee, Mumford & Huang 2001); each leaf carries noise of a
    spectrum of its own.
    """
    width, height = size
    smallest = rng.uniform(2, 8)
    textures = [_noise(rng, size, slope) for slope in rng.uniform(0.3, 1.6, 4)]
    base = rng.random(3)
    colourful = rng.uniform(0.05, 0.5)
    picture = np.empty((height, width, 3), np.float32)
    picture[:] = base
    for _ in range(int(rng.integers(300, 3000))):
        # an inverse cube law between `smallest` and 300 pixels
        radius = (rng.random() * (300.0**-2 - smallest**-2) + smallest**-2) ** -0.5
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        rows = slice(max(0, int(y - radius)), int(y + radius) + 1)
        columns = slice(max(0, int(x - radius)), int(x + radius) + 1)
        texture = textures[rng.integers(4)][rows, columns, None] * rng.choice([0, 0.02, 0.08, 0.2])
        leaf = base + rng.normal(0, colourful, 3) + rng.normal(0, 0.3) + texture
        if rng.random() < 0.7:
            j, i = np.ogrid[rows, columns]
            distance = np.hypot(i[:, : leaf.shape[1]] - x, j[: leaf.shape[0]] - y)
            inside = np.clip(radius - distance, 0, 1)[..., None]
        else:
            inside = np.ones((1, 1, 1))
        picture[rows, columns] += (leaf - picture[rows, columns]) * inside
    return torch.from_numpy(picture.clip(0, 1)).permute(2, 0, 1)


def _noise(
    rng: np.random.Generator, size: tuple[int, int], slope: float
) -> npt.NDArray[np.float32]:
    """(H, W) noise of unit variance whose amplitude falls as frequency to the -`slope`."""
    width, height = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1.0
    spectrum = np.fft.rfft2(rng.normal(size=(height, width))) * frequency**-slope
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, (height, width))
    return np.asarray(noise / noise.std(), np.float32)
