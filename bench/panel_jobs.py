"""What the bench of the panel measures: encodes, attacked clips, and x264 with tricks.

A job makes one file from a title's first frames; the bench scores it against them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from bench import attacks, gaming
from bench.judges import write_y4m
from vqaloop.encoding.encode import encode
from vqaloop.encoding.registry import get_encoder
from vqaloop.media.frames import read_encode, read_source
from vqaloop.media.planes import Frames
from vqaloop.media.probe import probe_source
from vqaloop.quality.full_reference import is_4k
from vqaloop.records import Rendition, Source
from vqaloop.training.attacks import ATTACKS, attack

AGREEMENT, ATTACKED, GAMED, COST = PARTS = ("agreement", "attacks", "gaming", "cost")
ENCODERS = (("libx264", "veryfast"), ("libx265", "superfast"), ("libsvtav1", "10"))
"""Encoders, and presets that cost little."""
FRACTIONS = (1, 2 / 3, 4 / 9)
"""Sizes, as parts of the source's."""
INNER = (0.2, 0.85)
"""The part of a knob's search range from which encodes are taken."""
LARGE_PIXELS = 1 << 20
"""A picture above is large: it has a third of the encodes, and no attacks nor tricks."""


@dataclass(frozen=True)
class Clip:
    """A title's first frames."""

    path: Path
    title: str
    set: str
    source: Source
    """Of the clip as it was probed."""
    frames: int

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def pixels(self) -> int:
        width, height = self.source.canvas
        return width * height

    @property
    def large(self) -> bool:
        return self.pixels > LARGE_PIXELS

    @property
    def uhd(self) -> bool:
        """Whether VMAF has a 4K model for it."""
        return is_4k(self.source)


class Original:
    """The frames of a clip as an uncompressed file and in memory, once they are needed."""

    def __init__(self, clip: Clip, folder: Path, ffmpeg: str) -> None:
        self.clip, self.folder, self.ffmpeg = clip, folder, ffmpeg
        self.path = folder / f"{clip.name}.y4m"

    @cached_property
    def frames(self) -> Frames:
        """(N, H·3/2, W)."""
        return read_source(self.clip.source, range(self.clip.frames), ffmpeg=self.ffmpeg)

    @cached_property
    def source(self) -> Source:
        """Of the uncompressed file."""
        write_y4m(self.path, self.frames, self.clip.source)
        return probe_source(self.path, ffmpeg=self.ffmpeg)

    def close(self) -> None:
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Made:
    """The file of a job."""

    path: Path
    frames: Frames
    """On the title's canvas."""
    kbps: float


@dataclass(frozen=True)
class Job:
    """One file to make and measure."""

    part: str
    name: str
    size: tuple[int, int]
    make: Callable[[Original], Made]


def open_clip(path: Path, title: str, group: str, frames: int, ffmpeg: str) -> Clip:
    """A clip as the bench takes it."""
    source = probe_source(path, allow_hdr=True, ffmpeg=ffmpeg)
    return Clip(path, title, group, source, min(frames, source.frames))


def jobs_of(clip: Clip, parts: list[str], knobs: int) -> Iterator[Job]:
    """The jobs of a clip: `knobs` qualities of each encoder and size, of a large picture one."""
    if AGREEMENT in parts:
        yield from _encodes(clip, knobs)
    if ATTACKED in parts and not clip.large:
        for name in ATTACKS:
            for strength in attacks.STRENGTHS:
                yield _attacked(clip, name, strength)
    if GAMED in parts and not clip.large:
        for trick in gaming.TRICKS:
            for crf in gaming.CRFS:
                yield _gamed(clip, trick, crf)


def _encodes(clip: Clip, knobs: int) -> Iterator[Job]:
    width, height = clip.source.canvas
    for row, (encoder, preset) in enumerate(ENCODERS):
        spec = get_encoder(encoder)
        low, high = spec.knob.search
        parts = np.linspace(*INNER, knobs)
        values = [spec.knob.snap(float(low + part * (high - low))) for part in parts]
        for column, part in enumerate(FRACTIONS):
            size = round(width * part / 2) * 2, round(height * part / 2) * 2
            if size[0] < spec.min_size[0] or size[1] < spec.min_size[1]:
                continue
            # a Latin square: every quality with every encoder and with every size
            chosen = [values[(row + column) % knobs]] if clip.large else values
            for value in chosen:
                yield _encode(Rendition(*size, encoder, value, preset))


def _encode(rendition: Rendition) -> Job:
    size = rendition.width, rendition.height
    spec = get_encoder(rendition.encoder)

    def make(original: Original) -> Made:
        path = original.folder / f"encode{spec.suffix}"
        made = encode(original.source, rendition, path, ffmpeg=original.ffmpeg)
        return Made(path, _decoded(original, path, spec.decoder), made.bitrate_kbps)

    name = f"{rendition.encoder} {size[0]}x{size[1]} {rendition.knob:g}"
    return Job(AGREEMENT, name, size, make)


def _attacked(clip: Clip, name: str, strength: float) -> Job:
    def make(original: Original) -> Made:
        path = original.folder / "attacked.y4m"
        damaged = attack(original.frames, name, strength)
        write_y4m(path, damaged, original.source)
        return Made(path, damaged, float("nan"))

    return Job(ATTACKED, f"{name} {strength:g}", clip.source.canvas, make)


def _gamed(clip: Clip, trick: str, crf: int) -> Job:
    def make(original: Original) -> Made:
        path = original.folder / "trick.mp4"
        kbps = gaming.encode(original.source, trick, crf, path, original.ffmpeg)
        return Made(path, _decoded(original, path, "pyav"), kbps)

    return Job(GAMED, f"{trick} {crf}", clip.source.canvas, make)


def _decoded(original: Original, path: Path, decoder: str) -> Frames:
    source = original.source
    return read_encode(
        path,
        range(source.frames),
        source.canvas,
        source.fps,
        decoder=decoder,
        ffmpeg=original.ffmpeg,
    )
