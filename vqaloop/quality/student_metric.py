"""The student as a metric: clips of a rung compared with the same clips of its source.

Anchored, in one run of the network; or, with weights that cannot be anchored, by the difference
between their answers on the two.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import av

from vqaloop.bitstream.colour_tags import bits_of, video_range_of
from vqaloop.bitstream.packets import packet_sizes
from vqaloop.core.cpu_time import METER, Spent
from vqaloop.core.files import file_sha256
from vqaloop.core.text import quoted
from vqaloop.errors import InputError, ToolError
from vqaloop.media.activity import SourceActivity, activity_of
from vqaloop.media.frames import each_of_source, encode_reader, encode_size, picks_from
from vqaloop.media.planes import SCALER, Frames
from vqaloop.media.pu21 import as_sdr
from vqaloop.media.selective_decode import TROUBLE
from vqaloop.models.head_config import HeadConfig
from vqaloop.models.score_scale import ScoreScale
from vqaloop.models.stream_facts import StreamFacts, stream_facts
from vqaloop.quality.clip_views import PlacedView, View
from vqaloop.quality.crop_sampling import (
    Crops,
    CropSampling,
    Distances,
    Sampled,
    middle_of,
    read_crops,
)
from vqaloop.quality.metric import GUARD_GAP
from vqaloop.quality.pooling import PooledScore, linearised, pool, pool_difference
from vqaloop.quality.sampling_precision import around, is_enough, reach, rounds
from vqaloop.quality.source_cache import source_key
from vqaloop.quality.student_engine import V1, AnchorCache, StudentEngine
from vqaloop.quality.title_clips import Read, TitleClips, clips_by_crops, clips_by_view
from vqaloop.records import Score, Source

if TYPE_CHECKING:
    import torch

    from vqaloop.models.student import Anchor
    from vqaloop.quality.inference import Pair

REVISION = 4
"""Raised whenever the same file and weights would get another score; part of cache keys."""
CEILING, FLOOR = 95.0, 30.0
"""Those of VMAF, whose points the scores are."""
GAP_RMSE = 2.5
"""Errors of a map to VMAF points by which a score may differ from the guard's VMAF."""


@dataclass(frozen=True, eq=False)
class StudentMetric(Sampled):
    """A student that compares clips of a rung with those of the source.

    Scores against a source are VMAF points: as the weights predict them, or mapped from the scale
    of their label by the map in their header. Safe to call from several threads: each decodes for
    itself, the network runs their crops in common batches.
    """

    name: str
    engine: StudentEngine
    ffmpeg: str
    sampling: CropSampling = CropSampling()
    anchors: "AnchorCache[tuple[Crops, Anchor]]" = field(
        default_factory=AnchorCache, init=False, repr=False
    )
    """Depends on `sampling`, so a metric with another one has another cache."""
    answers: "AnchorCache[tuple[TitleClips, Pair]]" = field(
        default_factory=AnchorCache, init=False, repr=False
    )
    """The same of weights that judge the source as they judge the rung."""

    top: ClassVar[float] = 100.0
    step: ClassVar[float] = 4.0

    @property
    def mode(self) -> str:
        """anchored or difference, by the header of the weights. Raises InputError."""
        return self.engine.facts.mode

    @property
    def scale(self) -> ScoreScale | None:
        """The map to VMAF points; None where the weights predict them."""
        return self.engine.facts.scale

    @property
    def ceiling(self) -> float:
        """VMAF's, or what the best answer is mapped to where that is less."""
        return CEILING if self.scale is None else min(CEILING, self.scale.points(100.0))

    @property
    def floor(self) -> float:
        """VMAF's, or less where the ceiling is low."""
        return min(FLOOR, self.ceiling / 2)

    @property
    def guarded_by(self) -> str:
        """The VMAF that the weights were fitted to: v1, or v0.6.1 whatever the size."""
        return "vmaf-v1" if self.engine.facts.label.startswith(V1) else "vmaf-hd"

    @property
    def guard_gap(self) -> float:
        """More than usual where the map to VMAF points is coarse."""
        return GUARD_GAP if self.scale is None else max(GUARD_GAP, GAP_RMSE * self.scale.rmse)

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
    def view(self) -> View | None:
        """How the weights sample a video; None: by crops at the display size."""
        return self.engine.facts.view

    @property
    def heads(self) -> HeadConfig:
        """What the heads of the weights take in, and how scores are pooled over time."""
        return self.engine.facts.heads

    @property
    def cropping(self) -> CropSampling:
        """`sampling` with the distances in time that the weights take."""
        return replace(self.sampling, distances=self.heads.distances)

    @property
    def squeezes(self) -> bool:
        """Whether the weights take whole pictures, brought to their size from the file's own."""
        return self.view is not None and self.view.kind == "squeezed"

    def check(self, anchored: bool, canvas: tuple[int, int] | None = None) -> None:
        """Raises InputError for weights that do not load or, if `anchored`, cannot be compared.

        Or that take larger pictures than `canvas`, at which they judge.
        """
        self.engine.check(anchored)
        if self.view and canvas:
            try:
                PlacedView(self.view, canvas, [self.sampling.seed])
            except InputError as error:
                raise InputError(
                    f"weights {quoted(self.weights)} judge {self.view.kind} clips of "
                    f"{self.view.size} pixels, and the picture is {canvas[0]}x{canvas[1]}; take "
                    "others, or a larger video"
                ) from error

    def identity(self) -> dict[str, Any]:
        network = self.engine.network
        bf16 = " bf16" if network.uses_bf16 else ""
        return {
            "metric": self.name,
            "weights_sha256": network.sha256,
            "preprocessing": f"student {REVISION} {SCALER}{bf16}",
            "decoder": f"pyav {av.__version__}, ffmpeg {file_sha256(self.ffmpeg)}",
            "device": self.device.type,
            "sampling": {**self.cropping.identity(), **self._manner()},
        }

    def _manner(self) -> dict[str, Any]:
        """How clips are cut and compared, where that is not as the shipped students do."""
        manner: dict[str, Any] = {}
        if self.mode != "anchored":
            manner |= {"mode": self.mode}
            if self.view:
                manner |= {"view": asdict(self.view)}
        return manner

    def on(self, device: str) -> "StudentMetric":
        """The same student for another machine, where it is to run on that device."""
        known = self.engine
        engine = StudentEngine(self.weights, known.device_name, device, known.prompt)
        return replace(self, engine=engine)

    def measure(self, source: Source, path: Path, decoder: str) -> Score:
        size = encode_size(path, decoder) if self.squeezes else source.canvas
        bits = bits_of(source)
        read = encode_reader(source, path, decoder, ffmpeg=self.ffmpeg, size=size, bits=bits)
        # ffmpeg decodes from the first frame each time, so all crops are read in one pass
        return self.compare(source, read, path, in_rounds=decoder != "ffmpeg")

    def compare(
        self,
        source: Source,
        read: Callable[[list[int]], Iterable[Frames]],
        path: Path | None,
        *,
        in_rounds: bool = True,
    ) -> Score:
        """Score of a video against its source.

        Args:
            source: The original.
            read: Gives (H·3/2, W) frames of the video by ascending index: on the source's canvas,
                or at its own size if the weights squeeze whole pictures; of `bits_of` bits a
                sample and, of HDR, in the source's range.
            path: The file of the video, for what its bitstream says; None: nothing is known.
            in_rounds: Whether `read` may be called several times, for a score of the precision
                that was asked for.

        Raises:
            InputError: The weights cannot be compared with a source.
        """
        with METER.measured() as spent:
            self.check(anchored=True, canvas=source.canvas)
            if self.mode == "anchored":
                found = self._anchored(source, read, in_rounds)
                opinion = found.value
            else:
                facts = self._facts(path, source.canvas)
                found, opinion = self._difference(source, read, facts)
        return self._score(source, found, spent, self.mode, opinion)

    def _anchored(self, source: Source, read: Read, in_rounds: bool) -> PooledScore:
        crops, anchor = self._anchor(source)
        sampling, activity = self.cropping, activity_of(source)
        distances = sampling.distances_at(activity)

        def compare(some: Crops, rows: list[int]) -> "Pair":
            clips = _clips(source, some, distances, read)
            return self.engine.network.compare(clips, _part_of(anchor, rows))

        if self.scale or not in_rounds:  # a precision in VMAF points says nothing of answers
            sampling = replace(sampling, precision=None)
        height = source.canvas[1]
        return self._pooled(sampling, activity, crops, compare, height)

    def _difference(
        self, source: Source, read: Read, facts: StreamFacts
    ) -> tuple[PooledScore, float]:
        """The difference to the answer on the source, and the answer on the video."""
        clips, of_source = self._source_answers(source)
        ours = self._look(source, clips, read, source.canvas[1])
        with self.engine.network.exclusive() as student:
            head = partial(student.alone_answers, canvas_height=source.canvas[1])
            found, opinion = pool_difference(
                # like with like: heads know the facts of encodes alone, a source has none or
                # others, and an excerpt, which is raw video, others than its title
                partial(head, stream=StreamFacts().inputs()),
                partial(head, stream=facts.inputs()),
                ours,
                of_source,
                clips.counts,
                self.sampling.seed,
                clips.shares,
                self.heads.time_power,
            )
        return found.placed(clips.times, clips.places), opinion

    def _source_answers(self, source: Source) -> "tuple[TitleClips, Pair]":
        """The clips of a source and what the network says of them, computed once."""

        def compute() -> "tuple[TitleClips, Pair]":
            if self.view is None:
                activity = activity_of(source)
                places = self.cropping.places(activity)
                distances = self.cropping.distances_at(activity)
                clips = clips_by_crops(self._crops(source), places, distances, source.frames)
            else:
                clips = clips_by_view(self.view, self.sampling, source.frames, source.canvas)
            return clips, self._look(source, clips, self._reader(source), source.canvas[1])

        return self.answers.get(source_key(source), compute)

    def _reader(self, source: Source, size: tuple[int, int] | None = None) -> Read:
        """What gives the frames of a source, on its canvas or at `size`."""
        how: dict[str, Any] = {"ffmpeg": self.ffmpeg, "size": size, "bits": bits_of(source)}
        return lambda indices: each_of_source(source, indices, **how)

    def _look(self, source: Source, clips: TitleClips, read: Read, canvas_height: int) -> "Pair":
        """(B, S + 1) sums and weights of the clips of a video, without a reference.

        Its samples are those of `source`: itself, or what it is an encode of.
        """
        import torch

        network = self.engine.network
        parts = (as_sdr(part, source.colour) for part in clips.each(read))
        seen = [network.alone(part, canvas_height) for part in parts]
        sums, weights = (torch.cat(parts) for parts in zip(*seen, strict=True))
        return sums, weights

    def _facts(self, path: Path | None, canvas: tuple[int, int]) -> StreamFacts:
        """What a video's bitstream says, where the heads take it; nothing of one without loss."""
        if path is None or not self.heads.bits:
            return StreamFacts()
        try:
            packets = packet_sizes(path)
        except (*TROUBLE, ToolError):
            return StreamFacts()
        bits = 8 * float(packets.sizes.mean()) if packets.lossy else 0.0
        return stream_facts(bits, packets.size, canvas)

    def alone(self, source: Source, canvas: tuple[int, int] | None = None) -> Score:
        """No-reference score, of the video at its own size or scaled to `canvas`.

        On the scale of the weights' label.

        Raises:
            InputError: The video is too small for clips of the weights, or they squeeze whole
                pictures of any size and a canvas is given.
        """
        size = canvas or source.canvas
        with METER.measured() as spent:
            if canvas and self.squeezes:
                raise InputError(
                    f"weights {quoted(self.weights)} judge whole pictures squeezed to one size, "
                    "whatever theirs is; leave out --canvas"
                )
            self.check(anchored=False, canvas=size)
            facts = self._facts(None if source.is_raw else source.path, size)
            if self.view is None:
                found = self._alone_by_crops(source, size, facts)
            else:
                found = self._alone_by_view(self.view, source, size, facts)
        return self._score(source, found, spent, "no-reference")

    def _alone_by_crops(
        self, source: Source, size: tuple[int, int], facts: StreamFacts
    ) -> PooledScore:
        precision = self.precision
        if precision is not None and not picks_from(source, bits_of(source)):
            precision = None  # each round would decode the video from its beginning
        sampling = CropSampling(
            seed=self.sampling.seed, precision=precision, distances=self.heads.distances
        )
        # not those of the video's activity, which differs from rung to rung
        flat = SourceActivity.flat(source.frames)
        distances, crops = sampling.distances_at(flat), sampling.crops(flat, size)

        def look(some: Crops, _: list[int]) -> "Pair":
            clips = _clips(source, some, distances, self._reader(source, size))
            return self.engine.network.alone(clips, size[1])

        return self._pooled(sampling, flat, crops, look, size[1], facts)

    def _alone_by_view(
        self, view: View, source: Source, size: tuple[int, int], facts: StreamFacts
    ) -> PooledScore:
        seed = self.sampling.seed
        clips = clips_by_view(view, CropSampling(seed=seed), source.frames, size)
        seen = self._look(source, clips, self._reader(source, size), size[1])
        with self.engine.network.exclusive() as student:
            answers = partial(student.alone_answers, canvas_height=size[1], stream=facts.inputs())
            power = self.heads.time_power
            found = pool(answers, seen, clips.counts, seed, time_power=power)
        return found.placed(clips.times, clips.places)

    def _anchor(self, source: Source) -> "tuple[Crops, Anchor]":
        """The crops of a source and their features, computed once."""

        def compute() -> "tuple[Crops, Anchor]":
            crops = self._crops(source)
            distances = self.cropping.distances_at(activity_of(source))
            clips = _clips(source, crops, distances, self._reader(source))
            return crops, self.engine.network.anchor(clips, source.canvas[1])

        return self.anchors.get(source_key(source), compute)

    def _crops(self, source: Source) -> Crops:
        """The crops of a source, and so of all its encodes."""
        return self.cropping.crops(activity_of(source), source.canvas)

    def _pooled(
        self,
        sampling: CropSampling,
        activity: SourceActivity,
        crops: Crops,
        look: "Callable[[Crops, list[int]], Pair]",
        canvas_height: int,
        facts: StreamFacts | None = None,
    ) -> PooledScore:
        """Score crops in rounds until the score is as precise as was asked, or all of them.

        `look` gives (B, S) sums and weights of some of the crops, and of their rows among all:
        anchored ones, or those without reference, which go with `facts` of the video.
        """
        import torch

        # a title is sampled scene by scene for the score of each: none is left out
        precision = None if sampling.scenes else sampling.precision
        share, distances = sampling.places(activity), sampling.distances_at(activity)
        power = self.heads.time_power
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
                answers = partial(student.anchored_answers, canvas_height=canvas_height)
                if facts is not None:
                    answers = partial(
                        student.alone_answers, canvas_height=canvas_height, stream=facts.inputs()
                    )
                shares = [share[time] for time in seen]
                found = pool(answers, (sums, weights), counts, sampling.seed, shares, power)
            apart = reach(found.apart, linearised(found.times, shares, power), shares)
            if is_enough(apart, precision):
                break
        if len(seen) < len(crops):
            found = replace(found, interval=around(found.value, apart))
        places = [(time, *place) for time in seen for place in crops[time]]
        return found.placed([middle_of(time, distances[time]) for time in seen], places)

    def _score(
        self,
        source: Source,
        found: PooledScore,
        spent: Spent,
        mode: str,
        opinion: float | None = None,
    ) -> Score:
        """`opinion`: of the video, on the label's scale; not for a score that is on it itself."""
        header, kind = self.engine.header, video_range_of(source.colour)
        label = header.get("label")
        scale = self.scale if opinion is not None else None
        if scale:
            found = found.mapped(scale.points)
        return Score(
            value=found.value,
            metric=self.name,
            mode=mode,
            clips=found.clips,
            interval=found.interval,
            places=found.places,
            moments=found.moments,
            shares=found.shares,
            weights_sha256=header["sha256"],
            label=label if kind == "SDR" else f"{label}; {kind} through PU21",
            opinion=opinion if scale else None,
            cpu_s=spent.cpu_s,
            wall_s=spent.wall_s,
        )


def _clips(source: Source, crops: Crops, distances: Distances, read: Read) -> Frames:
    """The crops of a source or an encode of it, as the network takes them."""
    return as_sdr(read_crops(crops, distances, source.frames, read), source.colour)


def _part_of(anchor: "Anchor", rows: list[int]) -> "Anchor":
    """The anchor of some crops; itself where it is all of them."""
    from vqaloop.quality.inference import part_of

    if len(rows) == len(anchor.weights):
        return anchor
    import torch

    return part_of(anchor, torch.tensor(rows, device=anchor.weights.device))
