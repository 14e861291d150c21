"""ColorVideoVDP as a metric: short runs of whole frames at sampled places, SDR and HDR.

It models what eyes see of a display's light: colour, contrast, time and viewing distance; so it
holds for PQ and HLG, and its score depends on the display. It costs CPU seconds a megapixel,
hence places alone.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import av
import numpy as np

from vqaloop.bitstream.colour_tags import bits_of, colour_range, video_range_of
from vqaloop.core.cpu_time import METER
from vqaloop.core.files import file_sha256
from vqaloop.errors import InputError
from vqaloop.media.activity import activity_of
from vqaloop.media.frames import each_of_source, encode_reader
from vqaloop.media.planes import SCALER, Frames, limited
from vqaloop.quality.crop_sampling import CropSampling, Sampled
from vqaloop.quality.cvvdp import CALL_PIXELS, DISPLAYS, Look, find_program, measure
from vqaloop.quality.metric import GUARD_GAP
from vqaloop.quality.sampling_precision import interval_of
from vqaloop.records import Score, Source

NAME = "cvvdp"
REVISION = 1
"""Raised whenever the same files would get other values; part of cache keys."""
DEFAULT_DISPLAY = "monitor"
POSITIONS = 6
"""Least positions in time at which a title is looked at."""
RUN = 3
"""Frames of a run: fewer show no motion."""
START_S, MEGAPIXEL_S = 5.0, 2.5
"""CPU seconds to start the program, and for a million pixels of a run."""


@dataclass(frozen=True)
class Cvvdp(Sampled):
    """ColorVideoVDP of runs at sampled places; safe to call from several threads.

    Raises InputError for an unknown display, and where the program is not installed.
    """

    ffmpeg: str
    program: str
    display: str = DEFAULT_DISPLAY
    device: str = "cpu"
    sampling: CropSampling = CropSampling(positions=POSITIONS)

    name: ClassVar[str] = NAME
    mode: ClassVar[str] = "full-reference"
    # just-objectionable differences below 10, the quality of the source: of two videos that are 1
    # apart three of four viewers take the better one
    top: ClassVar[float] = 10.0
    step: ClassVar[float] = 0.4
    ceiling: ClassVar[float] = 9.7
    floor: ClassVar[float] = 4.0
    guard_gap: ClassVar[float] = GUARD_GAP
    guarded_by: ClassVar[None] = None
    scale: ClassVar[None] = None

    def identity(self) -> dict[str, Any]:
        return {
            "metric": self.name,
            "weights_sha256": None,
            "preprocessing": f"cvvdp {_version(self.program)} {REVISION} {SCALER} {self._shown()}",
            "device": self.device,
            "decoder": f"pyav {av.__version__}, ffmpeg {file_sha256(self.ffmpeg)}",
            "sampling": {**self.sampling.identity(), "run": RUN},
        }

    def _shown(self) -> str:
        return repr(DISPLAYS[self.display])

    def measure(self, source: Source, path: Path, decoder: str) -> Score:
        bits = bits_of(source)
        read = encode_reader(source, path, decoder, ffmpeg=self.ffmpeg, bits=bits)
        return self.compare(source, read)

    def compare(self, source: Source, read: Callable[[list[int]], Iterable[Frames]]) -> Score:
        """The score of a video.

        Args:
            source: The original.
            read: Gives the video's (H·3/2, W) frames on the source's canvas, of `bits_of` bits a
                sample and in the source's range.

        Raises:
            ToolError: The program fails.
        """
        with METER.measured() as spent:
            activity = activity_of(source)
            places = self.sampling.places(activity)
            jods: list[float] = []
            look = self._look(source)
            for runs in _shares([_run(start, source.frames) for start in places], source):
                ours, theirs = (
                    _runs_of(runs, frames, colour_range(source) == "pc")
                    for frames in (self._source_frames(source), read)
                )
                jods += measure(ours, theirs, float(source.fps), self.program, look).tolist()
        each, shares = np.array(jods), np.array(list(places.values()))
        scenes = self.sampling.scenes_of(activity, places)
        return Score(
            value=min(self.top, max(0.0, float(each @ shares))),
            metric=self.name,
            mode=self.mode,
            clips=tuple(jods),
            interval=interval_of(each, shares, scenes, self.sampling.seed),
            moments=tuple(zip(places, jods, strict=True)),
            shares=tuple(shares.tolist()),
            label=f"ColorVideoVDP in JOD, sampled; {self.display}",
            cpu_s=spent.cpu_s,
            wall_s=spent.wall_s,
        )

    def cost_s(self, source: Source) -> float:
        """CPU seconds of a score, roughly."""
        width, height = source.canvas
        pixels = POSITIONS * RUN * width * height
        return START_S * -(-pixels // CALL_PIXELS) + MEGAPIXEL_S * pixels / 1e6

    def _source_frames(self, source: Source) -> Callable[[list[int]], Iterable[Frames]]:
        return lambda at: each_of_source(source, at, ffmpeg=self.ffmpeg, bits=bits_of(source))

    def _look(self, source: Source) -> Look:
        kind = video_range_of(source.colour)
        model = DISPLAYS[self.display].model(source.canvas, kind)
        return Look(kind, self.display, {self.display: model}, self.device)


@dataclass(frozen=True)
class CvvdpUse:
    """The display that scores are for, and the program that gives them."""

    display: str = DEFAULT_DISPLAY
    """A name of DISPLAYS."""
    program: str | os.PathLike[str] | None = None
    """Its path; None: by the environment or the PATH."""

    def opened(self, ffmpeg: str, seed: int, device: str) -> Cvvdp:
        """The metric. Raises InputError for an unknown display or a missing program."""
        if self.display not in DISPLAYS:
            known = ", ".join(DISPLAYS)
            raise InputError(f"unknown display {self.display!r}; choose one of {known}")
        sampling = CropSampling(POSITIONS, seed=seed)
        # its own choice would be whatever its PyTorch finds
        own = "cuda" if device == "cuda" else "cpu"
        return Cvvdp(ffmpeg, find_program(self.program), self.display, own, sampling)


def _version(program: str) -> str:
    """The version of the package around the program, else the program's digest."""
    found = sorted(Path(program).resolve().parent.parent.glob("lib/python*/*/cvvdp-*.dist-info"))
    versions = [path.name.removesuffix(".dist-info") for path in found]
    # the program itself names the place of its environment, which may be another elsewhere
    return " ".join(versions) or file_sha256(program)


def _run(start: int, frames: int) -> range:
    """The frames of a run, moved back at the end of a title."""
    first = max(0, min(start, frames - RUN))
    return range(first, min(first + RUN, frames))


def _shares(runs: Sequence[range], source: Source) -> Iterator[list[range]]:
    """The runs in shares that are in memory at a time, as many as a call of the program takes."""
    width, height = source.canvas
    most = max(1, CALL_PIXELS // (width * height * RUN))
    for first in range(0, len(runs), most):
        yield list(runs[first : first + most])


def _runs_of(
    runs: Sequence[range], read: Callable[[list[int]], Iterable[Frames]], full: bool
) -> list[Frames]:
    """The frames of each run, (L, H·3/2, W) in limited range."""
    wanted = sorted({index for run in runs for index in run})
    frames = dict(zip(wanted, read(wanted), strict=True))
    stacked = [np.stack([frames[index] for index in run]) for run in runs]
    return [limited(run) if full else run for run in stacked]
