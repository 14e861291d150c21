"""PQ and HLG samples as light of a display, and that in the perceptually uniform units of PU21.

What was made for SDR then sees steps of equal visibility, as SDR's are: R. Mantiuk and M. Azimi,
"PU21: A novel perceptually uniform encoding for adapting existing quality metrics for HDR", PCS
2021. Light is that of SMPTE ST 2084 and ITU-R BT.2100.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from vqaloop.bitstream.colour_tags import Tags, video_range_of
from vqaloop.media.planes import Frames

REVISION = 1
"""Raised whenever the same samples would get other values; part of cache keys."""
PEAK = 1000.0
"""Of the display in cd/m²: light above is cut off, as there."""
HLG_PEAK = 1000.0
"""Of the display for which HLG's gamma is 1.2 (ITU-R BT.2100)."""
PU21 = (0.353487901, 0.3734658629, 8.277049286e-05, 0.9062562627, 0.09150303166, 0.9099517204)
"""Parameters of the encoding for banding with glare, which its authors recommend."""
UNITS = 596.3148142
"""Its scale: 256 for the 100 cd/m² of SDR's white."""
DARKEST = 0.005
"""Least light that it is defined for, in cd/m²."""
AT_ONCE = 16
"""Clips converted together: more would take hundreds of MB."""

_LUMA = {"bt709": (0.2126, 0.7152, 0.0722), "bt2020nc": (0.2627, 0.678, 0.0593)}
_TO_BT709 = (
    (1.660491, -0.587641, -0.07285),
    (-0.12455, 1.1329, -0.008349),
    (-0.018151, -0.100579, 1.11873),
)
"""From primaries of BT.2020, in linear light (ITU-R BT.2407)."""

Values = npt.NDArray[Any]
"""Of fp32."""


def pu21(nits: Values) -> Values:
    """Light of a display in cd/m² in PU21's units: 0 is black, 256 SDR's white."""
    a, b, c, power, root, offset = PU21
    bent = np.maximum(nits, DARKEST) ** np.float32(power)
    made: Values = UNITS * (((a + b * bent) / (1 + c * bent)) ** np.float32(root) - offset)
    return made


def pq_nits(signal: Values) -> Values:
    """Light in cd/m² of PQ's R'G'B', 0..1, each for itself."""
    bent = np.clip(signal, 0, 1) ** np.float32(32 / 2523)
    light = np.maximum(bent - 0.8359375, 0) / (18.8515625 - 18.6875 * bent)
    made: Values = 10_000 * light ** np.float32(8192 / 1305)
    return made


def hlg_nits(signal: Values) -> Values:
    """The same of (N, 3, H, W) HLG's R'G'B', on a display of HLG_PEAK."""
    a = 0.17883277
    signal = np.clip(signal, 0, 1)
    high = (np.exp((signal - 0.55991073) / a) + 0.28466892) / 12
    scene = np.where(signal <= 0.5, signal**2 / 3, high)
    luma = _weighted(_LUMA["bt2020nc"], scene)[:, None]
    return HLG_PEAK * scene * np.maximum(luma, 1e-6) ** np.float32(0.2)


def as_sdr(clips: Frames, colour: Tags) -> Frames:
    """Clips of HDR on the scale of SDR's; those of SDR as they are.

    Args:
        clips: (N, T, H·3/2, W) or (N, H·3/2, W), planar 4:2:0, of HDR with 10 bits a sample.
        colour: Tags of the source. Of matrices and primaries BT.709 and BT.2020 are known, and
            all others taken for the latter.

    Returns:
        Of HDR fp32 samples in limited range and BT.709, of which R'G'B' are the light of a
        display of PEAK by PU21, 255 for its white.
    """
    kind = video_range_of(colour)
    if kind == "SDR":
        return clips
    shape: Any = clips.shape
    flat = clips.reshape(-1, *shape[-2:])
    parts = [_converted(flat[i : i + AT_ONCE], kind, colour) for i in range(0, len(flat), AT_ONCE)]
    made: Values = np.concatenate(parts).reshape(shape)
    return made


def _converted(frames: Frames, kind: str, colour: Tags) -> Values:
    tags = dict(colour)
    matrix = _LUMA.get(tags.get("colorspace", ""), _LUMA["bt2020nc"])
    signal = _rgb(frames, matrix, tags.get("color_range") == "pc")
    light = pq_nits(signal) if kind == "PQ" else hlg_nits(signal)
    if tags.get("color_primaries") != "bt709":
        light = np.stack([_weighted(row, light) for row in _TO_BT709], 1)
    return _planes(pu21(np.clip(light, 0, PEAK)) / pu21(np.full(1, PEAK, np.float32)))


def _weighted(weights: tuple[float, float, float], rgb: Values) -> Values:
    """(N, 3, H, W) to (N, H, W)."""
    r, g, b = weights
    return r * rgb[:, 0] + g * rgb[:, 1] + b * rgb[:, 2]


def _rgb(frames: Frames, matrix: tuple[float, float, float], full: bool) -> Values:
    """(N, H·3/2, W) of 10 bits to (N, 3, H, W) R'G'B', 0..1 but unclipped."""
    count, rows, width = frames.shape
    height = rows * 2 // 3
    black, luma_span, chroma_span = (0, 1023, 1023) if full else (64, 876, 896)
    samples = frames.astype(np.float32)
    luma = (samples[:, :height] - black) / luma_span
    small = (samples[:, height:].reshape(count, 2, height // 2, width // 2) - 512) / chroma_span
    blue, red = np.moveaxis(small.repeat(2, 2).repeat(2, 3), 1, 0)
    r, g, b = matrix
    made = luma + 2 * (1 - r) * red, luma, luma + 2 * (1 - b) * blue
    green = (luma - r * made[0] - b * made[2]) / g
    return np.stack([made[0], green, made[2]], 1)


def _planes(rgb: Values) -> Values:
    """(N, 3, H, W) R'G'B' to (N, H·3/2, W) by BT.709, on the scale of 8 bits."""
    count, _, height, width = rgb.shape
    r, _, b = _LUMA["bt709"]
    luma = _weighted(_LUMA["bt709"], rgb)
    gaps = np.stack([(rgb[:, 2] - luma) / (2 * (1 - b)), (rgb[:, 0] - luma) / (2 * (1 - r))], 1)
    small = gaps.reshape(count, 2, height // 2, 2, width // 2, 2).mean((3, 5))
    chroma = small.reshape(count, height // 2, width)
    return np.concatenate([16 + 219 * luma, 128 + 224 * chroma], 1)
