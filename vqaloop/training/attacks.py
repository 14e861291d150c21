"""Damage to decoded frames that is not compression, to test metrics and to train students.

An attack is a pure function of 8-bit planar 4:2:0 frames, of a strength from 0 (no change) to 1
and of a seed. No encoder or ffmpeg is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.fft import dctn, idctn
from scipy.ndimage import gaussian_filter

from vqaloop.errors import InputError
from vqaloop.media.planes import Frames

BLACK, NEUTRAL = 16, 128
"""Luma of black in limited range; chroma of grey."""
PERIOD = 24
"""Frames of one cycle of pumping: about a second."""

Planes = npt.NDArray[np.uint8]
"""(N, H, W) luma, or (N, 2, H/2, W/2) chroma."""


@dataclass(frozen=True)
class Attack:
    """One kind of damage."""

    apply: Callable[[Frames, float, np.random.Generator], None]
    """Changes (N, H * 3/2, W) frames in place, by the parameter."""
    full: float
    """The parameter at strength 1."""
    text: str
    """What it does, with a place for the parameter."""

    def describe(self, strength: float) -> str:
        """What it does at a strength, in words."""
        return self.text.format(self.full * strength)


def attack(frames: Frames, name: str, strength: float, seed: int = 0) -> Frames:
    """Frames damaged by one attack.

    Args:
        frames: (N, H * 3/2, W), uint8: the rows of Y, then U and V as in a raw file; H and W are
            even. Successive frames, since some attacks repeat or swing over them.
        name: One of ATTACKS.
        strength: 0 (the frames as they are) to 1.
        seed: Of what is drawn: noise, and the places of local damage.

    Returns:
        New frames of the same shape and type.

    Raises:
        InputError: The name is unknown, the strength outside 0..1, or the array another.
    """
    if name not in ATTACKS:
        raise InputError(f"unknown attack {name!r}; choose from {', '.join(ATTACKS)}")
    if not 0 <= strength <= 1:
        raise InputError(f"strength {strength} of {name} is outside 0..1; choose one inside")
    shape = frames.shape
    if frames.dtype != "uint8" or len(shape) != 3 or 0 in shape or shape[1] % 3 or shape[2] % 2:
        raise InputError(f"frames must be (N, H * 3/2, W) of uint8: {shape}, {frames.dtype}")
    damaged = frames.copy()
    chosen = ATTACKS[name]
    if strength > 0:
        chosen.apply(damaged, chosen.full * strength, np.random.default_rng(seed))
    return damaged


def luma_of(frames: Frames) -> Planes:
    """(N, H, W): a view of the frames' luma."""
    return frames[:, : frames.shape[1] // 3 * 2]


def chroma_of(frames: Frames) -> Planes:
    """(N, 2, H/2, W/2): a view of the frames' U and V."""
    count, rows, width = frames.shape
    height = rows // 3 * 2
    return frames[:, height:].reshape(count, 2, height // 2, width // 2)


def _bytes(samples: npt.NDArray[np.floating]) -> Planes:
    return np.asarray(np.rint(samples).clip(0, 255), np.uint8)


def _blurred(planes: Planes, sigma: float) -> Planes:
    """Gaussian blur of the last two axes; `sigma` in samples."""
    sigmas = [0.0] * (planes.ndim - 2) + [sigma, sigma]
    return _bytes(gaussian_filter(planes.astype(np.float32), sigmas, mode="nearest"))


# over time


def _flicker(frames: Frames, level: float, rng: np.random.Generator) -> None:
    signs = 1 - 2 * (np.arange(len(frames)) % 2)
    luma = luma_of(frames)
    luma[:] = _bytes(luma + level * signs[:, None, None])


def _pump_brightness(frames: Frames, level: float, rng: np.random.Generator) -> None:
    swing = np.sin(2 * np.pi * np.arange(len(frames)) / PERIOD)
    luma = luma_of(frames)
    luma[:] = _bytes(luma + level * swing[:, None, None])


def _pump_blur(frames: Frames, sigma: float, rng: np.random.Generator) -> None:
    for index, luma in enumerate(luma_of(frames)):
        part = (1 - np.cos(2 * np.pi * index / PERIOD)) / 2
        luma[:] = _blurred(luma, sigma * part)


def _drop_late(frames: Frames, sigma: float, rng: np.random.Generator) -> None:
    last = frames[-max(1, round(len(frames) / 10)) :]
    for planes, reach in ((luma_of(last), sigma), (chroma_of(last), sigma / 2)):
        planes[:] = _blurred(planes, reach)


def _freeze(frames: Frames, run: float, rng: np.random.Generator) -> None:
    indices = np.arange(len(frames))
    frames[:] = frames[indices - indices % max(1, round(run))]


def _delay(frames: Frames, count: float, rng: np.random.Generator) -> None:
    frames[:] = frames[np.maximum(np.arange(len(frames)) - round(count), 0)]


def _green(frames: Frames, share: float, rng: np.random.Generator) -> None:
    # samples of 0, as of a frame that was never decoded, are dark green
    every = round(1 / share)
    frames[int(rng.integers(every)) :: every] = 0


# in a part of the picture


def _region(frames: Frames, rng: np.random.Generator) -> tuple[slice, slice]:
    """Rows and columns of 1/25 of the picture, on even samples, around its middle."""
    height, width = frames.shape[1] // 3 * 2, frames.shape[2]
    slices = []
    for side in (height, width):
        size = max(2, side // 10 * 2)
        first = int((side - size) * rng.uniform(0.25, 0.75)) // 2 * 2
        slices.append(slice(first, first + size))
    return slices[0], slices[1]


def _half(part: slice) -> slice:
    return slice(part.start // 2, part.stop // 2)


def _blur_locally(frames: Frames, sigma: float, rng: np.random.Generator) -> None:
    rows, columns = _region(frames, rng)
    luma = luma_of(frames)[:, rows, columns]
    luma[:] = _blurred(luma, sigma)
    chroma = chroma_of(frames)[..., _half(rows), _half(columns)]
    chroma[:] = _blurred(chroma, sigma / 2)


def _flatten_blocks(frames: Frames, share: float, rng: np.random.Generator) -> None:
    rows, columns = _region(frames, rng)
    luma = luma_of(frames)[:, rows, columns]
    chroma = chroma_of(frames)[..., _half(rows), _half(columns)]
    tall, wide = (-(-side // 16) for side in luma.shape[1:])
    # other blocks in each frame, as after lost packets
    hit = rng.random((len(frames), tall, wide)) < share
    for n, i, j in zip(*np.nonzero(hit), strict=True):
        for planes, size in ((luma, 16), (chroma, 8)):
            block = planes[n, ..., i * size : (i + 1) * size, j * size : (j + 1) * size]
            block[:] = np.rint(block.mean((-2, -1), keepdims=True))


# luma


def _posterise(frames: Frames, step: float, rng: np.random.Generator) -> None:
    luma, width = luma_of(frames), max(1, round(step))
    luma[:] = _bytes(luma // width * float(width) + width // 2)


def _crush_blacks(frames: Frames, knee: float, rng: np.random.Generator) -> None:
    # twice as steep below the knee, down to black; what is blacker than black stays
    luma = luma_of(frames)
    steep = np.maximum(2.0 * luma - knee, BLACK)
    luma[:] = _bytes(np.where((luma < knee) & (luma > BLACK), steep, luma))


def _grain(frames: Frames, deviation: float, rng: np.random.Generator) -> None:
    for luma in luma_of(frames):
        noise = rng.standard_normal(luma.shape, np.float32)
        luma[:] = _bytes(luma + np.float32(deviation) * noise)


def _contrast(frames: Frames, gain: float, rng: np.random.Generator) -> None:
    luma = luma_of(frames)
    luma[:] = _bytes((luma - 128.0) * (1 + gain) + 128)


def _sharpen(frames: Frames, amount: float, rng: np.random.Generator) -> None:
    for luma in luma_of(frames):
        own = luma.astype(np.float32)
        luma[:] = _bytes(own + np.float32(amount) * (own - gaussian_filter(own, 1.0)))


# chroma


def _desaturate(frames: Frames, part: float, rng: np.random.Generator) -> None:
    chroma = chroma_of(frames)
    chroma[:] = _bytes((chroma - float(NEUTRAL)) * (1 - part) + NEUTRAL)


def _swap_chroma(frames: Frames, part: float, rng: np.random.Generator) -> None:
    chroma = chroma_of(frames)
    chroma[:] = _bytes(chroma * (1 - part) + chroma[:, ::-1] * part)


def _blur_chroma(frames: Frames, sigma: float, rng: np.random.Generator) -> None:
    chroma = chroma_of(frames)
    chroma[:] = _blurred(chroma, sigma)


def _quantise_chroma(frames: Frames, step: float, rng: np.random.Generator) -> None:
    # as a coarse chroma quantiser of an encoder does: a DCT of 8 x 8, one step for all of it
    chroma = chroma_of(frames)
    tall, wide = (-side % 8 for side in chroma.shape[2:])
    padded = np.pad(chroma, ((0, 0), (0, 0), (0, tall), (0, wide)), "edge")
    blocks = padded.reshape(*padded.shape[:2], padded.shape[2] // 8, 8, -1, 8)
    # relative to grey, so that the rounding of the mean leaves grey as it is
    levels = np.rint(dctn(blocks.astype(np.float32) - NEUTRAL, axes=(3, 5), norm="ortho") / step)
    coarse = idctn(levels * step, axes=(3, 5), norm="ortho").reshape(padded.shape) + NEUTRAL
    chroma[:] = _bytes(coarse[..., : chroma.shape[2], : chroma.shape[3]])


ATTACKS = {
    "luma flicker": Attack(_flicker, 16, "luma ±{:g}, the sign changes every frame"),
    "brightness pumping": Attack(_pump_brightness, 16, "luma swings by ±{:g} in 24 frames"),
    "blur pumping": Attack(_pump_blur, 3, "luma blur swings from 0 to sigma {:g} in 24 frames"),
    "local blur": Attack(_blur_locally, 12, "1/25 of the picture blurred, sigma {:g}"),
    "local damage": Attack(_flatten_blocks, 1, "in 1/25 of the picture {:.0%} of blocks flat"),
    "late drop": Attack(_drop_late, 12, "last tenth of the frames blurred, sigma {:g}"),
    "posterised": Attack(_posterise, 16, "luma in steps of {:g}"),
    "crushed blacks": Attack(_crush_blacks, 120, "luma below {:g} twice as steep, down to black"),
    "grain": Attack(_grain, 16, "Gaussian noise on luma, standard deviation {:g}"),
    "contrast": Attack(_contrast, 0.4, "contrast of luma +{:.0%}"),
    "sharpened": Attack(_sharpen, 2, "unsharp mask on luma, amount {:g}"),
    "grey": Attack(_desaturate, 2, "saturation -{:.0%} (above 100 %: complementary colours)"),
    "swapped chroma": Attack(_swap_chroma, 1, "U and V mixed with each other, {:.0%}"),
    "blurred chroma": Attack(_blur_chroma, 8, "chroma blurred, sigma {:g} of its samples"),
    "quantised chroma": Attack(_quantise_chroma, 160, "8x8 DCT of chroma in steps of {:g}"),
    "freezes": Attack(_freeze, 20, "one frame of {:g} shown"),
    "green frames": Attack(_green, 0.2, "{:.0%} of the frames green"),
    "late": Attack(_delay, 4, "{:g} frames late"),
}
"""By name; the parameter is proportional to the strength."""
