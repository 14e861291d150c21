"""Static HDR metadata (SMPTE ST 2086 and CTA-861.3) of decoded frames and of MP4 boxes."""

import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import av

from vqaloop.bitstream.colour_tags import HDR_TRANSFERS, TRANSFERS
from vqaloop.bitstream.demux import main_video, open_video
from vqaloop.bitstream.formats import ENCODES
from vqaloop.core.text import quoted
from vqaloop.errors import DecodeFailed
from vqaloop.records import StaticHdr

_CHROMATICITY = 50_000
"""Steps of a chromaticity in HEVC's message and in MP4; AV1 has 65,536."""
_LUMINANCE = 10_000
"""Steps of a cd/m² there; AV1 has 256 for the largest luminance, 16,384 for the least."""
_APART = 5e-5
"""Rounding of a chromaticity from one of those to another."""
_APART_NITS = (1.1e-4, 5e-3)
"""Rounding of the least and the largest luminance in cd/m²."""


def static_of(frame: Any) -> StaticHdr | None:
    """The static HDR metadata of a decoded frame.

    Args:
        frame: PyAV's frame.

    Returns:
        What its bitstream or container says; None where that is nothing.
    """
    found = {data.type.name: bytes(data) for data in frame.side_data}
    primaries: tuple[tuple[float, float], ...] = ()
    luminance = light = None
    # libavutil's AVMasteringDisplayMetadata: ten fractions, then whether each half is set
    display = found.get("MASTERING_DISPLAY_METADATA", b"")
    if len(display) >= 88:
        *parts, has_primaries, has_luminance = struct.unpack_from("=22i", display)
        # a fraction without a denominator is no number
        fractions = zip(parts[::2], parts[1::2], strict=True)
        values = [num / den if den else 0.0 for num, den in fractions]
        if has_primaries:
            primaries = tuple(pairwise(values[:8]))[::2]
        if has_luminance:
            luminance = (values[8], values[9])
    if len(found.get("CONTENT_LIGHT_LEVEL", b"")) >= 8:
        light = struct.unpack_from("=II", found["CONTENT_LIGHT_LEVEL"])
    return _known(primaries, luminance, light)


def read_hdr(path: Path) -> tuple[str, StaticHdr | None]:
    """The dynamic range of an encode and its static metadata, as players find them.

    Args:
        path: The file.

    Returns:
        SDR, PQ or HLG by its tags, and the metadata at its first frame; None where it has none.

    Raises:
        DecodeFailed: Its first frame does not decode.
    """
    try:
        with open_video(path, ENCODES) as container:
            stream = main_video(container)
            frame = next(container.decode(stream))
            transfer = TRANSFERS.get(int(stream.codec_context.color_trc), "")
    except (av.FFmpegError, StopIteration, AttributeError, TypeError) as error:
        raise DecodeFailed(f"{quoted(path)}: its first frame does not decode: {error}") from error
    return HDR_TRANSFERS.get(transfer, "SDR"), static_of(frame)


def static_of_boxes(display: bytes, light: bytes) -> StaticHdr | None:
    """The static HDR metadata of a sample entry.

    Args:
        display: Payload of its box mdcv; empty where it has none.
        light: Payload of its box clli.

    Returns:
        The metadata, None where there are none.
    """
    primaries: tuple[tuple[float, float], ...] = ()
    luminance = None
    if len(display) >= 24:
        *xy, most, least = struct.unpack_from(">8H2I", display)
        # green, blue, red, white in the box
        green, blue, red, white = tuple(pairwise([v / _CHROMATICITY for v in xy]))[::2]
        primaries, luminance = (red, green, blue, white), (least / _LUMINANCE, most / _LUMINANCE)
    levels = struct.unpack_from(">HH", light) if len(light) >= 4 else None
    return _known(primaries, luminance, levels)


def _known(
    primaries: tuple[tuple[float, float], ...],
    luminance: tuple[float, float] | None,
    light: tuple[int, ...] | None,
) -> StaticHdr | None:
    # encoders write zeros for what they were not given
    if luminance and not luminance[1]:
        luminance = None
    if not any(v for pair in primaries for v in pair):
        primaries = ()
    levels = (light[0], light[1]) if light and any(light) else None
    return StaticHdr(primaries, luminance, levels) if primaries or luminance or levels else None


def alike(one: StaticHdr | None, other: StaticHdr | None) -> bool:
    """Whether two say the same, but for the rounding of codecs and containers."""
    if one is None or other is None:
        return one is other
    if len(one.primaries) != len(other.primaries) or one.light != other.light:
        return False
    apart = [
        abs(a - b)
        for ours, theirs in zip(one.primaries, other.primaries, strict=True)
        for a, b in zip(ours, theirs, strict=True)
    ]
    if (one.luminance is None) != (other.luminance is None):
        return False
    nits = zip(one.luminance or (), other.luminance or (), _APART_NITS, strict=False)
    near = all(abs(a - b) <= most for a, b, most in nits)
    return near and max(apart, default=0.0) <= _APART


def in_words(static: StaticHdr | None) -> str:
    """The metadata in one line for people."""
    if static is None:
        return "no mastering display or light levels"
    parts = []
    if static.primaries:
        names = zip(("R", "G", "B", "WP"), static.primaries, strict=False)
        parts.append(" ".join(f"{name}({x:.4f},{y:.4f})" for name, (x, y) in names))
    if static.luminance:
        parts.append(f"{static.luminance[0]:g} to {static.luminance[1]:g} cd/m²")
    if static.light:
        parts.append(f"MaxCLL {static.light[0]}, MaxFALL {static.light[1]}")
    return ", ".join(parts)
