"""VMAF of a part of a title: libvmaf on the frames that a student looks at.

An estimate of VMAF over all frames by the same models (`--metric vmaf` and `vmaf-v1`). Two
successive frames are measured at each place: whole up to WHOLE pixels, above that a part of their
own proportions; smaller ones differ more from the whole, and on very wide ones VMAF v1 crashes.

libvmaf's motion feature is the smaller of a frame's differences to the frames before and after it,
both in the source. Where such a neighbour of a pair is nearer than its two frames are to each
other, the source's frame is put beside them in both videos. The two values are then those that the
frames have within the whole title.
"""

import math
from bisect import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import av
import numpy as np
import numpy.typing as npt

from vqaloop.core.cpu_time import METER
from vqaloop.core.files import file_sha256
from vqaloop.media.activity import activity_of
from vqaloop.media.frames import each_of_source, encode_reader
from vqaloop.media.planes import CLIP_FRAMES, SCALER, Frames, cut
from vqaloop.quality.crop_sampling import CropSampling
from vqaloop.quality.full_reference import vmaf_model
from vqaloop.quality.libvmaf import VMAF_MODELS, require_model, vmaf_of_pairs
from vqaloop.quality.metric import GUARD_GAP
from vqaloop.quality.pooling import RESAMPLES
from vqaloop.quality.source_cache import SourceCache, source_key
from vqaloop.records import Score, Source

REVISION = 1
"""Raised whenever the same files would get other values; part of cache keys."""
WHOLE = {"vmaf": 1280 * 720, "vmaf-v1": 1920 * 1080}
"""By metric over all frames the pixels up to which a frame is measured whole, and the most of a
part. V1 reads parts of 960x540 lower by 2.5 points than all of a picture of 1080 lines."""
SAMPLE_BYTES = 256 << 20
"""Memory for samples of sources; those used longest ago are dropped first."""
LIMIT_S = 5.0
"""Seconds that libvmaf may take for a million samples of a plane, beside two minutes; it needs a
twentieth of one."""

SAMPLED = {"vmaf-sampled": "vmaf", "vmaf-v1-sampled": "vmaf-v1"}
"""Names of the metrics, and of those over all frames that they estimate."""

Area = tuple[int, int, int, int]
"""Top, left, height and width in luma pixels, all even."""


@dataclass(frozen=True, eq=False)
class _Samples:
    """What is measured of a title, in libvmaf's order."""

    reference: Frames
    """(N, H·3/2, W) the source's samples."""
    frames: list[int]
    """Of each sample its frame in the title."""
    areas: list[Area]
    """Of each sample what is cut out of that frame."""
    rows: npt.NDArray[np.int64]
    """(places, frames) the samples that are measured; the others are for their motion."""
    starts: list[int]
    """First frame of each place."""
    shares: npt.NDArray[np.float64]
    """The part of the title that each place stands for."""
    scenes: list[int]
    """The scene of each place."""


# of the process, since what is kept depends on the source and the places alone
_SAMPLES: SourceCache[_Samples] = SourceCache(
    lambda kept: kept.reference.nbytes, lambda: SAMPLE_BYTES
)


@dataclass(frozen=True)
class SampledVmaf:
    """VMAF on the frames that a student looks at; safe to call from several threads."""

    name: str
    """A name of SAMPLED."""
    ffmpeg: str
    sampling: CropSampling = CropSampling()

    mode: ClassVar[str] = "full-reference"
    top: ClassVar[float] = 100.0
    # those of VMAF over all frames
    step: ClassVar[float] = 4.0
    ceiling: ClassVar[float] = 95.0
    floor: ClassVar[float] = 30.0
    guard_gap: ClassVar[float] = GUARD_GAP

    def identity(self) -> dict[str, Any]:
        return {
            "metric": self.name,
            "weights_sha256": None,
            "preprocessing": f"sampled VMAF {REVISION} {SCALER} {self._whole}",
            "decoder": f"pyav {av.__version__}, ffmpeg {file_sha256(self.ffmpeg)}",
            "sampling": self.sampling.identity(),
        }

    def finer(self) -> "SampledVmaf":
        """The same with more places."""
        return replace(self, sampling=self.sampling.finer())

    def confirming(self) -> "SampledVmaf":
        """The same with more places, and others."""
        return replace(self, sampling=self.sampling.confirming())

    def scene_by_scene(self, scenes: Sequence[tuple[int, int]]) -> "SampledVmaf":
        """The same sampling each scene (first frame, number of frames) of a title."""
        return replace(self, sampling=self.sampling.scene_by_scene(scenes))

    def measure(self, source: Source, path: Path, decoder: str) -> Score:
        return self.compare(source, encode_reader(source, path, decoder, ffmpeg=self.ffmpeg))

    def compare(self, source: Source, read: Callable[[list[int]], Iterable[Frames]]) -> Score:
        """The score of a video; `read` gives its (H·3/2, W) frames on the source's canvas.

        Raises:
            InputError: The canvas is too small for the model, or ffmpeg lacks it.
            ToolError: libvmaf fails.
        """
        model = vmaf_model(SAMPLED[self.name], source)
        with METER.measured() as spent:
            # before anything is decoded in vain
            require_model(self.ffmpeg, model, *source.canvas)
            samples = self._samples(source)
            found = vmaf_of_pairs(
                samples.reference,
                _cut_out(samples, read),
                ffmpeg=self.ffmpeg,
                timeout_s=120 + samples.reference.size / 1e6 * LIMIT_S,
                model=model,
            )
        values = found["vmaf"].to_numpy()[samples.rows]
        each = values.mean(1)
        return Score(
            # shares add up to 1 but for rounding
            value=min(100.0, float(each @ samples.shares)),
            metric=self.name,
            mode=self.mode,
            clips=tuple(values.ravel().tolist()),
            interval=_interval(each, samples, self.sampling.seed),
            moments=tuple(zip(samples.starts, each.tolist(), strict=True)),
            label=f"{VMAF_MODELS[model].label}, sampled",
            cpu_s=spent.cpu_s,
            wall_s=spent.wall_s,
        )

    @property
    def _whole(self) -> int:
        return WHOLE[SAMPLED[self.name]]

    def _samples(self, source: Source) -> _Samples:
        """The samples of a source, decoded once."""

        def compute() -> _Samples:
            activity = activity_of(source)
            parts = self.sampling.places(activity)
            places = list(parts)
            scenes = [first for first, _ in self.sampling.scenes] or list(activity.starts)
            areas = choose_areas(len(places), source.canvas, self._whole, self.sampling.seed)
            area = dict(zip(places, areas, strict=True))
            cuts = _cut_source(
                area,
                source.frames,
                lambda indices: each_of_source(source, indices, ffmpeg=self.ffmpeg),
            )
            samples = [
                (start, frame)
                for start in places
                for frame in _in_order(start, cuts[start], start == places[0])
            ]
            measured = [
                i for i, (start, at) in enumerate(samples) if 0 <= at - start < CLIP_FRAMES
            ]
            return _Samples(
                reference=np.stack([cuts[start][at] for start, at in samples]),
                frames=[at for _, at in samples],
                areas=[area[start] for start, _ in samples],
                rows=np.array(measured).reshape(len(places), -1),
                starts=places,
                shares=np.array(list(parts.values())),
                scenes=[bisect(scenes, start) for start in places],
            )

        key = f"{source_key(source)} {self.sampling} {self._whole}"
        return _SAMPLES.get(key, compute)


def choose_areas(count: int, canvas: tuple[int, int], whole: int, seed: int) -> list[Area]:
    """What is measured of each of `count` frames of a canvas, (width, height).

    All of it, or above `whole` pixels one part of a regular grid: each part in turn, in an order
    drawn anew each time.
    """
    width, height = canvas
    side = math.ceil(math.sqrt(width * height / whole))
    tall, wide = height // side // 2 * 2, width // side // 2 * 2
    rng = np.random.default_rng([seed, count, width, height])
    order = np.concatenate([rng.permutation(side**2) for _ in range(-(-count // side**2))])
    return [
        (int(row) * tall, int(column) * wide, tall, wide)
        for row, column in (divmod(part, side) for part in order[:count])
    ]


def _cut_source(
    areas: Mapping[int, Area], frames: int, read: Callable[[list[int]], Iterable[Frames]]
) -> dict[int, dict[int, Frames]]:
    """By place and frame, what is cut out of a title's frames: the pair and those beside it."""
    near = {
        start: range(max(0, start - 1), min(start + CLIP_FRAMES + 1, frames)) for start in areas
    }
    cuts: dict[int, dict[int, Frames]] = {start: {} for start in areas}
    wanted = sorted({at for group in near.values() for at in group})
    for at, frame in zip(wanted, read(wanted), strict=True):
        for start, group in near.items():
            if at in group:
                cuts[start][at] = cut(frame[None], *areas[start])[0]
    return cuts


def _in_order(start: int, cuts: Mapping[int, Frames], is_first: bool) -> list[int]:
    """The frames of a place that libvmaf is given: the pair, and neighbours that are nearer."""

    def apart(one: int, other: int) -> float:
        """Mean difference of luma."""
        rows = cuts[one].shape[0] * 2 // 3
        pair = (cuts[at][:rows].astype(np.int16) for at in (one, other))
        return float(np.abs(np.subtract(*pair)).mean())

    pair = [at for at in (start, start + 1) if at in cuts]
    step = apart(pair[0], pair[-1])
    before, after = start - 1, pair[-1] + 1
    # the first sample has none before it, as the title's first frame has none
    if before in cuts and (is_first or apart(before, start) < step):
        pair.insert(0, before)
    if after in cuts and apart(after - 1, after) < step:
        pair.append(after)
    return pair


def _cut_out(samples: _Samples, read: Callable[[list[int]], Iterable[Frames]]) -> Frames:
    """The samples of a video: its own where they are measured, else those of the source."""
    rows: dict[int, list[int]] = {}
    for row in samples.rows.ravel().tolist():
        rows.setdefault(samples.frames[row], []).append(row)
    found, wanted = samples.reference.copy(), sorted(rows)
    for at, frame in zip(wanted, read(wanted), strict=True):
        for row in rows[at]:
            found[row] = cut(frame[None], *samples.areas[row])[0]
    return found


def _interval(each: npt.NDArray[np.float64], samples: _Samples, seed: int) -> tuple[float, float]:
    """95 % bootstrap interval of the score: each place drawn anew among those of its scene.

    So differences of scenes, all of which are sampled, do not count.
    """
    rng = np.random.default_rng(seed)
    drawn = np.full(RESAMPLES, float(each @ samples.shares))
    for group in _groups(samples.scenes):
        own, count = each[group], len(group)
        if count > 1:
            # few are drawn from few: their variance is too small by this factor
            wide = math.sqrt(count / (count - 1))
            picked = own[rng.integers(0, count, (RESAMPLES, count))] - own.mean()
            drawn += wide * picked @ samples.shares[group]
    low, high = np.percentile(np.clip(drawn, 0, 100), [2.5, 97.5])
    return float(low), float(high)


def _groups(scenes: Sequence[int]) -> list[list[int]]:
    """Places by scene, of two at least: a scene with one place goes with its neighbour."""
    found: list[list[int]] = []
    for _, places in groupby(range(len(scenes)), key=lambda place: scenes[place]):
        if found and len(found[-1]) < 2:
            found[-1] += places
        else:
            found.append(list(places))
    if len(found) > 1 and len(found[-1]) < 2:
        found[-2:] = [found[-2] + found[-1]]
    return found
