"""VMAF of a part of a title: libvmaf on the frames that a student looks at.

An estimate of VMAF over all frames by the same models (`--metric vmaf` and `vmaf-v1`). Two
successive frames are measured at each place, whole whatever their size: VMAF is made of ratios of
sums over the picture, so it is neither the mean of its parts' nor that of parts put together to
one picture, whose seams count. A frame alone would not do, as encoders alternate better and
worse ones.

libvmaf's motion feature is the smaller of a frame's differences to the frames before and after it,
both in the source. Where such a neighbour of a pair is nearer than its two frames are to each
other, the source's frame is put beside them in both videos. The two values are then those that the
frames have within the whole title.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import av
import numpy as np
import numpy.typing as npt

from vqaloop.core.cpu_time import METER
from vqaloop.core.files import file_sha256
from vqaloop.media.activity import activity_of
from vqaloop.media.frames import each_of_source, encode_reader
from vqaloop.media.planes import CLIP_FRAMES, SCALER, Frames
from vqaloop.quality.crop_sampling import CropSampling, Sampled
from vqaloop.quality.full_reference import vmaf_model
from vqaloop.quality.libvmaf import VMAF_MODELS, require_model, vmaf_of_pairs
from vqaloop.quality.metric import GUARD_GAP
from vqaloop.quality.sampling_precision import interval_of
from vqaloop.quality.source_cache import SourceCache, source_key
from vqaloop.records import Score, Source

REVISION = 2
"""Raised whenever the same files would get other values; part of cache keys."""
BATCH_BYTES = 256 << 20
"""Of samples that libvmaf is given at a time, which lie in memory and in a file meanwhile."""
SAMPLE_BYTES = 256 << 20
"""Memory for samples of sources; those used longest ago are dropped first."""
THREADS = 4
"""Most threads of libvmaf for one score; its values do not depend on them."""
LIMIT_S = 5.0
"""Seconds that libvmaf may take for a million samples of a plane, beside two minutes; it needs a
twentieth of one."""

SAMPLED = {"vmaf-sampled": "vmaf", "vmaf-v1-sampled": "vmaf-v1"}
"""Names of the metrics, and of those over all frames that they estimate."""


@dataclass(frozen=True, eq=False)
class _Samples:
    """What is measured of a title, in libvmaf's order."""

    reference: list[Frames]
    """(H·3/2, W) the source's samples."""
    frames: list[int]
    """Of each sample its frame in the title, ascending where they are measured."""
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
    lambda kept: sum(frame.nbytes for frame in kept.reference), lambda: SAMPLE_BYTES
)


@dataclass(frozen=True)
class SampledVmaf(Sampled):
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

    @property
    def guarded_by(self) -> str:
        """The same over all frames."""
        return SAMPLED[self.name]

    scale: ClassVar[None] = None

    def identity(self) -> dict[str, Any]:
        return {
            "metric": self.name,
            "weights_sha256": None,
            "preprocessing": f"sampled VMAF {REVISION} {SCALER}",
            "decoder": f"pyav {av.__version__}, ffmpeg {file_sha256(self.ffmpeg)}",
            "sampling": self.sampling.identity(),
        }

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
            parts = [
                vmaf_of_pairs(
                    reference,
                    distorted,
                    ffmpeg=self.ffmpeg,
                    threads=METER.share(THREADS),
                    timeout_s=120 + reference.size / 1e6 * LIMIT_S,
                    model=model,
                )["vmaf"].to_numpy()[own]
                for own, reference, distorted in _batches(samples, read)
            ]
        values = np.concatenate(parts)[samples.rows]
        each = values.mean(1)
        return Score(
            # shares add up to 1 but for rounding
            value=min(100.0, float(each @ samples.shares)),
            metric=self.name,
            mode=self.mode,
            clips=tuple(values.ravel().tolist()),
            interval=interval_of(each, samples.shares, samples.scenes, self.sampling.seed),
            moments=tuple(zip(samples.starts, each.tolist(), strict=True)),
            shares=tuple(samples.shares.tolist()),
            label=f"{VMAF_MODELS[model].label}, sampled",
            cpu_s=spent.cpu_s,
            wall_s=spent.wall_s,
        )

    def _samples(self, source: Source) -> _Samples:
        """The samples of a source, decoded once."""

        def compute() -> _Samples:
            activity = activity_of(source)
            parts = self.sampling.places(activity)
            places = list(parts)
            samples = _pick(
                places,
                source.frames,
                lambda indices: each_of_source(source, indices, ffmpeg=self.ffmpeg),
            )
            measured = [
                i for i, (start, at, _) in enumerate(samples) if 0 <= at - start < CLIP_FRAMES
            ]
            return _Samples(
                reference=[frame for _, _, frame in samples],
                frames=[at for _, at, _ in samples],
                rows=np.array(measured).reshape(len(places), -1),
                starts=places,
                shares=np.array(list(parts.values())),
                scenes=self.sampling.scenes_of(activity, places),
            )

        return _SAMPLES.get(f"{source_key(source)} {self.sampling}", compute)


def _pick(
    starts: Sequence[int], frames: int, read: Callable[[list[int]], Iterable[Frames]]
) -> list[tuple[int, int, Frames]]:
    """(place, frame, its samples) of a source of so many frames, in libvmaf's order."""
    near = [range(max(0, start - 1), min(start + CLIP_FRAMES + 1, frames)) for start in starts]
    wanted = sorted({at for group in near for at in group})
    found: list[tuple[int, int, Frames]] = []
    held: dict[int, Frames] = {}
    done = 0
    for at, frame in zip(wanted, read(wanted), strict=True):
        held[at] = frame
        while done < len(near) and near[done][-1] <= at:
            order = _in_order(starts[done], held, done == 0)
            found += [(starts[done], index, held[index]) for index in order]
            done += 1
        # no more than the place at hand has around it is kept besides
        held = {i: kept for i, kept in held.items() if done < len(near) and i >= near[done][0]}
    return found


def _in_order(start: int, held: Mapping[int, Frames], is_first: bool) -> list[int]:
    """The frames of a place that libvmaf is given: the pair, and neighbours that are nearer."""

    def apart(one: int, other: int) -> float:
        """Mean difference of luma."""
        rows = held[one].shape[0] * 2 // 3
        pair = (held[at][:rows].astype(np.int16) for at in (one, other))
        return float(np.abs(np.subtract(*pair)).mean())

    pair = [at for at in (start, start + 1) if at in held]
    step = apart(pair[0], pair[-1])
    before, after = start - 1, pair[-1] + 1
    # the first sample has none before it, as the title's first frame has none
    if before in held and (is_first or apart(before, start) < step):
        pair.insert(0, before)
    if after in held and apart(after - 1, after) < step:
        pair.append(after)
    return pair


def _batches(
    samples: _Samples, read: Callable[[list[int]], Iterable[Frames]]
) -> Iterator[tuple[slice, Frames, Frames]]:
    """Samples of source and video, and which of their values count, part by part.

    The video's are its own where they are measured, else those of the source. So are the last
    sample of the part before and the first of the part after, which lie around for their motion.
    """
    count, measured = len(samples.frames), set(samples.rows.ravel().tolist())
    size = max(1, BATCH_BYTES // samples.reference[0].nbytes)
    wanted = sorted({samples.frames[row] for row in measured})
    decoded = zip(wanted, read(wanted), strict=True)
    at, frame = next(decoded)
    for first in range(0, count, size):
        end = min(first + size, count)
        low = max(0, first - 1)
        reference = np.stack(samples.reference[low : end + 1])
        distorted = reference.copy()
        for row in range(first, end):
            if row in measured:
                while at < samples.frames[row]:
                    at, frame = next(decoded)
                distorted[row - low] = frame
        yield slice(first - low, end - low), reference, distorted
    # all that the decoder has to say about the file
    for _ in decoded:
        pass
