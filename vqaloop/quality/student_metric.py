"""The student as a metric: crops of a rung compared with the same crops of its source."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import av

from vqaloop.bitstream.colour_tags import colour_range
from vqaloop.core.cpu_time import METER, Spent
from vqaloop.core.files import file_sha256
from vqaloop.media.frames import each_of_encode, each_of_source, picks_from, read_source
from vqaloop.media.planes import SCALER, Frames
from vqaloop.quality.clip_views import View, clips_of
from vqaloop.quality.crop_sampling import Crops, CropSampling, read_crops
from vqaloop.quality.pooling import PooledScore, pool
from vqaloop.quality.sampling_precision import around, is_enough, reach, rounds
from vqaloop.quality.student_engine import AnchorCache, StudentEngine
from vqaloop.records import Score, Source

if TYPE_CHECKING:
    import torch

    from vqaloop.models.student import Anchor

REVISION = 3
"""Raised whenever the same file and weights would get another score; part of cache keys."""
DECODING_THREADS = 4
"""Most threads that decode one rung: more cost memory and bring little."""


@dataclass(frozen=True, eq=False)
class StudentMetric:
    """A student that compares crops of a rung with those of the source.

    Safe to call from several threads: each decodes for itself, the network runs their crops in
    common batches.
    """

    name: str
    engine: StudentEngine
    ffmpeg: str
    sampling: CropSampling = CropSampling()
    anchors: AnchorCache = field(default_factory=AnchorCache, init=False, repr=False)
    """Depends on `sampling`, so a metric with another one has another cache."""

    mode: ClassVar[str] = "anchored"
    top: ClassVar[float] = 100.0
    # the weights predict VMAF, so these are those of VMAF
    step: ClassVar[float] = 4.0
    ceiling: ClassVar[float] = 95.0
    floor: ClassVar[float] = 30.0

    @property
    def weights(self) -> Path:
        """File of the weights."""
        return self.engine.weights

    @property
    def device(self) -> "torch.device":
        """Where the network runs. Raises InputError where that device is missing."""
        return self.engine.device

    @property
    def may_choose(self) -> bool:
        """Whether the device was left open (auto)."""
        return self.engine.device_name == "auto"

    @property
    def precision(self) -> float | None:
        """Half-width of a score's interval that was asked for."""
        return self.sampling.precision

    @property
    def sees_crops(self) -> bool:
        """Whether the weights take crops of a video, and so depend on its size. Loads them."""
        return self.engine.view is None

    def check(self, anchored: bool) -> None:
        """Raises InputError for weights that do not load or, if `anchored`, cannot be anchored."""
        self.engine.check(anchored)

    def identity(self) -> dict[str, Any]:
        network = self.engine.network
        bf16 = " bf16" if network.uses_bf16 else ""
        return {
            "metric": self.name,
            "weights_sha256": network.sha256,
            "preprocessing": f"student {REVISION} {SCALER}{bf16}",
            "decoder": f"pyav {av.__version__}, ffmpeg {file_sha256(self.ffmpeg)}",
            "device": self.device.type,
            "sampling": self.sampling.identity(),
        }

    def finer(self) -> "StudentMetric":
        """The same student with FINER times as many positions in time."""
        return replace(self, sampling=self.sampling.finer())

    def confirming(self) -> "StudentMetric":
        """The same student with FINER times as many positions in time, and other crops at each."""
        finer = self.sampling.finer()
        return replace(self, sampling=replace(finer, seed=finer.seed + 1))

    def scene_by_scene(self, scenes: Sequence[tuple[int, int]]) -> "StudentMetric":
        """The same student sampling each scene (first frame, number of frames) of a title.

        Where it would were the scene a title of its own; each counts by its length.
        """
        return replace(self, sampling=self.sampling.scene_by_scene(scenes))

    def on(self, device: str) -> "StudentMetric":
        """The same student for another machine, where it is to run on that device."""
        engine = StudentEngine(self.weights, self.engine.device_name, remote=device)
        return replace(self, engine=engine)

    def measure(self, source: Source, path: Path, decoder: str) -> Score:
        def read(indices: list[int]) -> Iterator[Frames]:
            # an equal share of the processors for each score that is under way
            share = len(os.sched_getaffinity(0)) // METER.active
            return each_of_encode(
                path,
                indices,
                source.canvas,
                source.fps,
                decoder=decoder,
                ffmpeg=self.ffmpeg,
                threads=max(1, min(DECODING_THREADS, share)),
                wanted_range=colour_range(source),
            )

        # ffmpeg decodes from the first frame each time, so all crops are read in one pass
        return self.compare(source, read, in_rounds=decoder != "ffmpeg")

    def compare(
        self,
        source: Source,
        read: Callable[[list[int]], Iterable[Frames]],
        *,
        in_rounds: bool = True,
    ) -> Score:
        """Anchored score of a video.

        Args:
            source: The original.
            read: Gives (H·3/2, W) frames of the video on the source's canvas by ascending index.
            in_rounds: Whether `read` may be called several times, for a score of the precision
                that was asked for.

        Raises:
            InputError: The weights cannot be anchored.
        """
        with METER.measured() as spent:
            self.check(anchored=True)
            crops, anchor = self._anchor(source)

            def compare(some: Crops, rows: list[int]) -> "tuple[torch.Tensor, torch.Tensor]":
                clips = read_crops(some, source.frames, read)
                return self.engine.network.compare(clips, _part_of(anchor, rows))

            sampling = self.sampling if in_rounds else replace(self.sampling, precision=None)
            found = self._pooled(sampling, crops, compare, anchored=True)
        return self._score(self.mode, found, spent)

    def alone(self, source: Source, canvas: tuple[int, int] | None = None) -> Score:
        """No-reference score, of the video at its own size or scaled to `canvas`."""
        size = canvas or source.canvas
        with METER.measured() as spent:
            view = self.engine.view
            if view is None:
                found = self._alone_by_crops(source, size)
            else:
                found = self._alone_by_view(view, source, size)
        return self._score("no-reference", found, spent)

    def _alone_by_crops(self, source: Source, size: tuple[int, int]) -> PooledScore:
        def look(some: Crops, _: list[int]) -> "tuple[torch.Tensor, torch.Tensor]":
            clips = read_crops(
                some,
                source.frames,
                lambda i: each_of_source(source, i, ffmpeg=self.ffmpeg, size=size),
            )
            return self.engine.network.alone(clips)

        precision = self.precision
        if precision is not None and not picks_from(source):
            precision = None  # each round would decode the video from its beginning
        sampling = CropSampling(seed=self.sampling.seed, precision=precision)
        return self._pooled(sampling, sampling.crops(source.frames, size), look, anchored=False)

    def _alone_by_view(self, view: View, source: Source, size: tuple[int, int]) -> PooledScore:
        clips = clips_of(
            view,
            size,
            source.frames,
            lambda i: read_source(source, i, ffmpeg=self.ffmpeg, size=size),
            self.sampling.seed,
        )
        network = self.engine.network
        seen = network.alone(clips)
        with network.exclusive() as student:
            return pool(student.alone_answers, seen, [1] * len(clips), self.sampling.seed)

    def _anchor(self, source: Source) -> "tuple[Crops, Anchor]":
        """The crops of a source and their features, computed once."""

        def compute() -> "tuple[Crops, Anchor]":
            crops = self.sampling.crops(source.frames, source.canvas)
            clips = read_crops(
                crops, source.frames, lambda i: each_of_source(source, i, ffmpeg=self.ffmpeg)
            )
            return crops, self.engine.network.anchor(clips)

        return self.anchors.get(f"{source.sha256} {source.prep} {source.input_options}", compute)

    def _pooled(
        self,
        sampling: CropSampling,
        crops: Crops,
        look: "Callable[[Crops, list[int]], tuple[torch.Tensor, torch.Tensor]]",
        *,
        anchored: bool,
    ) -> PooledScore:
        """Score crops in rounds until the score is as precise as was asked, or all of them.

        `look` gives (B, K) sums and weights of some of the crops, and of their rows among all.
        """
        import torch

        # scenes count by their length, for which `reach` has no formula: all of them are scored
        precision = None if sampling.scenes else sampling.precision
        firsts = dict(zip(crops, accumulate(map(len, crops.values()), initial=0), strict=False))
        seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for times in rounds(list(crops), precision):
            some = {time: crops[time] for time in times}
            counts = [len(places) for places in some.values()]
            rows = [
                int(firsts[t]) + i for t, n in zip(some, counts, strict=True) for i in range(n)
            ]
            sums, weights = look(some, rows)
            parts = zip(torch.split(sums, counts), torch.split(weights, counts), strict=True)
            # in order of time, so that a score does not depend on the order of rounds
            seen = dict(sorted({**seen, **dict(zip(times, parts, strict=True))}.items()))
            sums, weights = (torch.cat(x) for x in zip(*seen.values(), strict=True))
            counts = [len(crops[time]) for time in seen]
            with self.engine.network.exclusive() as student:
                answers = student.anchored_answers if anchored else student.alone_answers
                shares = sampling.shares(list(seen))
                found = pool(answers, (sums, weights), counts, sampling.seed, shares)
            apart = reach(found.apart, found.times, len(crops))
            if is_enough(apart, precision):
                break
        scores = [min(100.0, max(0.0, score)) for score in found.times]
        return replace(
            found,
            interval=found.interval if len(seen) == len(crops) else around(found.value, apart),
            places=tuple((time, *place) for time in seen for place in crops[time]),
            moments=tuple(zip(seen, scores, strict=True)),
        )

    def _score(self, mode: str, found: PooledScore, spent: Spent) -> Score:
        header = self.engine.header
        return Score(
            value=found.value,
            metric=self.name,
            mode=mode,
            clips=found.clips,
            interval=found.interval,
            places=found.places,
            moments=found.moments,
            weights_sha256=header["sha256"],
            label=header.get("label"),
            cpu_s=spent.cpu_s,
            wall_s=spent.wall_s,
        )


def _part_of(anchor: "Anchor", rows: list[int]) -> "Anchor":
    """The anchor of some crops; itself where it is all of them."""
    from vqaloop.quality.inference import part_of

    if len(rows) == len(anchor.weights):
        return anchor
    import torch

    return part_of(anchor, torch.tensor(rows, device=anchor.weights.device))
