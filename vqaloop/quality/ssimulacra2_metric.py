"""SSIMULACRA 2 as a metric: single frames at the places where a student looks, as pictures.

It judges a picture's colours by eye-like weights of many scales, in the terms of still images, and
nothing of motion. At 1080p a frame takes seconds of CPU time, hence places alone.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import av
import numpy as np

from vqaloop.bitstream.colour_tags import colour_range
from vqaloop.core.cpu_time import METER
from vqaloop.core.files import file_sha256
from vqaloop.media.activity import activity_of
from vqaloop.media.frames import each_of_source, encode_reader
from vqaloop.media.planes import SCALER, Frames, limited
from vqaloop.quality.crop_sampling import CropSampling, Sampled
from vqaloop.quality.metric import GUARD_GAP
from vqaloop.quality.sampling_precision import interval_of
from vqaloop.quality.source_cache import SourceCache, source_key
from vqaloop.quality.ssimulacra2 import measure, require_package
from vqaloop.records import Score, Source

NAME = "ssimulacra2"
REVISION = 1
"""Raised whenever the same files would get other values; part of cache keys."""
SOURCE_BYTES = 256 << 20
"""Memory for frames of sources; those used longest ago are dropped first."""

_FRAMES: SourceCache[Frames] = SourceCache(lambda kept: kept.nbytes, lambda: SOURCE_BYTES)


@dataclass(frozen=True)
class Ssimulacra2(Sampled):
    """SSIMULACRA 2 of sampled frames; safe to call from several threads.

    Raises InputError where its package is not installed.
    """

    ffmpeg: str
    sampling: CropSampling = CropSampling()

    name: ClassVar[str] = NAME
    mode: ClassVar[str] = "full-reference"
    top: ClassVar[float] = 100.0
    # its authors' levels: 30 is low, 50 medium, 70 high quality, 80 hardly told from the original
    # side by side; a step is a quarter of a level, as VMAF's is of its own
    step: ClassVar[float] = 5.0
    ceiling: ClassVar[float] = 80.0
    floor: ClassVar[float] = 20.0
    guard_gap: ClassVar[float] = GUARD_GAP
    guarded_by: ClassVar[None] = None
    scale: ClassVar[None] = None

    def __post_init__(self) -> None:
        require_package()

    def identity(self) -> dict[str, Any]:
        return {
            "metric": self.name,
            "weights_sha256": None,
            "preprocessing": f"ssimulacra2 {version('ssimulacra2')} {REVISION} {SCALER}",
            "decoder": f"pyav {av.__version__}, ffmpeg {file_sha256(self.ffmpeg)}",
            "sampling": self.sampling.identity(),
        }

    def measure(self, source: Source, path: Path, decoder: str) -> Score:
        return self.compare(source, encode_reader(source, path, decoder, ffmpeg=self.ffmpeg))

    def compare(self, source: Source, read: Callable[[list[int]], Iterable[Frames]]) -> Score:
        """The score of a video; `read` gives its (H·3/2, W) frames on the source's canvas.

        Raises:
            InputError: The canvas has fewer than 8 pixels a side.
        """
        with METER.measured() as spent:
            activity = activity_of(source)
            places = self.sampling.places(activity)
            firsts = list(places)
            reference = _FRAMES.get(
                f"{source_key(source)} {firsts}",
                lambda: np.stack(list(each_of_source(source, firsts, ffmpeg=self.ffmpeg))),
            )
            full = colour_range(source) == "pc"
            values = [
                measure(*(limited(each[None]) if full else each[None] for each in pair))[0]
                for pair in zip(reference, read(firsts), strict=True)
            ]
        each, shares = np.array(values, float), np.array(list(places.values()))
        scenes = self.sampling.scenes_of(activity, firsts)
        return Score(
            # what is worse than anything watchable is below 0
            value=min(100.0, max(0.0, float(each @ shares))),
            metric=self.name,
            mode=self.mode,
            clips=tuple(each.tolist()),
            interval=interval_of(each, shares, scenes, self.sampling.seed),
            moments=tuple(zip(firsts, each.tolist(), strict=True)),
            shares=tuple(shares.tolist()),
            label="SSIMULACRA 2, sampled",
            cpu_s=spent.cpu_s,
            wall_s=spent.wall_s,
        )
