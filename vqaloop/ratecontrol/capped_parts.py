"""Peaks kept by encoders without a buffer model: with a knob of its own for each part of a title.

The plain encode shows at which GOPs a title is above its bound. These are encoded with less
quality, the rest at the rung's own knob, and the file is joined of both. Key frames stay where
they are in every other rung, as the parts are whole GOPs.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from vqaloop.bitstream.packets import Packet, stream_packets
from vqaloop.encoding.options import encoded_knob, gop_frames, mean_of, with_raised
from vqaloop.encoding.spec import Knob
from vqaloop.execution.capping import (
    AIM,
    HELD,
    MOST_TRIES,
    CappedEncode,
    PeakLimit,
    expected,
    keep_peak,
    measure_peaks,
    next_knob,
    peaks_of,
    second_gop,
)
from vqaloop.execution.workshop import Workshop
from vqaloop.media.scene_cuts import MOST_S, Scene, SceneExcerpts
from vqaloop.ratecontrol.concat import join
from vqaloop.ratecontrol.joined_encode import joined_encode
from vqaloop.records import Encode, Rendition, RungScene, Source

Values = npt.NDArray[np.float64]

LEAST_SHARE, PLANS = 0.02, 50
"""Part of the highest second's rate down to which others are considered, and how many of them."""
MUCH = 0.7
"""Part of its bits with which a title is made in parts; where less would be left, a key frame a
second is tried first, which costs a tenth or so and keeps the quality."""
WORTH = 1.08
"""Times the bits of a file that keeps the bound which another is to promise, to be made."""
_LEAST_KBIT = 1e-6
_numbers = itertools.count()


def keep_title_peak(
    shop: Workshop,
    source: Source,
    plain: Encode,
    limit: PeakLimit,
    excerpts: SceneExcerpts,
    share: float | None = None,
) -> CappedEncode:
    """An encode of a title that keeps the bound: by the encoder's buffer model, or in parts.

    Args:
        shop: Makes the encodes.
        source: The title.
        plain: Its encode without a bound.
        limit: The bound.
        excerpts: Of the title, for its parts.
        share: As of `keep_peak`.

    Returns:
        As of `keep_peak`; of a file joined of parts these are its `scenes`.

    Raises:
        EncodeFailed: An encode failed.
        ToolError: The parts could not be joined.
    """
    if shop.spec.buffer_model or mean_of(plain.rendition) is not None:
        return keep_peak(shop, source, plain, limit, share)
    over = measure_peaks(plain.path, shop.spec, source).over(limit)
    if over <= HELD:
        return CappedEncode(plain, over)
    parts = _Parts(shop, source, plain, limit, excerpts)
    usual = plain.rendition.gop or gop_frames(shop.spec, source.fps)
    gop = second_gop(usual, source.fps)
    found = None
    if gop == usual or parts.planned().kbps >= MUCH * parts.kbps:
        found = parts.kept()
        if found.kept or gop == usual:
            return found
    # where key frames are nearly all of a GOP, a second has its bits twice
    other = _shorter(shop, source, replace(plain.rendition, gop=gop), limit, excerpts)
    if not other.kept:
        found = found or parts.kept()
    both = [item for item in (found, other) if item]
    return replace(
        min([*both, CappedEncode(plain, over)], key=lambda item: (not item.kept, item.over)),
        tries=sum(item.tries for item in both),
        frames=sum(item.frames for item in both),
    )


def _shorter(
    shop: Workshop,
    source: Source,
    rendition: Rendition,
    limit: PeakLimit,
    excerpts: SceneExcerpts,
) -> CappedEncode:
    """An encode with other GOPs than the plain one, in parts where it is above the bound."""
    made = shop.encode(source, rendition)
    found = CappedEncode(made, measure_peaks(made.path, shop.spec, source).over(limit))
    if found.over > HELD:
        found = _Parts(shop, source, made, limit, excerpts).kept()
    return replace(found, tries=found.tries + 1, frames=found.frames + source.frames)


class _Gop:
    """A GOP of the title, and what was seen of it at the knobs that it was encoded with."""

    def __init__(self, frames: slice, knob: Knob, fps: float) -> None:
        self.frames, self.knob, self.fps = frames, knob, fps
        self._kbits: dict[float, Values] = {}
        """Of each frame."""
        self._peaks: dict[float, float] = {}
        """The highest rate of a second."""

    def add(self, knob: float, kbits: Values) -> None:
        self._kbits[knob] = np.maximum(kbits, _LEAST_KBIT)
        self._peaks[knob] = highest_rate(self._kbits[knob], self.fps)

    def knob_for(self, own: float, rate: float) -> float:
        """The rung's knob where no second is above the rate in kb/s, else another one."""
        return own if self._peaks[own] <= rate else next_knob(self.knob, self._peaks, rate)

    def kbits_at(self, knob: float) -> Values:
        """Of each frame, as expected: between two knobs on a logarithmic scale."""
        if knob in self._kbits:
            return self._kbits[knob]
        below, above = (
            max((k for k in self._kbits if k < knob), default=None),
            min((k for k in self._kbits if k > knob), default=None),
        )
        if below is not None and above is not None:
            part = (knob - below) / (above - below)
            between: Values = self._kbits[below] ** (1 - part) * self._kbits[above] ** part
            return between
        nearest = below if above is None else above
        assert nearest is not None
        ratio = expected(self.knob, self._peaks, knob) / self._peaks[nearest]
        return self._kbits[nearest] * ratio


@dataclass(frozen=True)
class _Plan:
    """Knobs of a title's GOPs, and what is expected of them, or was measured."""

    knobs: list[float]
    kbps: float
    over: float
    """The peak as a part of the bound."""


class _Parts:
    """The parts of one encode."""

    def __init__(
        self,
        shop: Workshop,
        source: Source,
        plain: Encode,
        limit: PeakLimit,
        excerpts: SceneExcerpts,
    ) -> None:
        self.shop, self.source, self.plain = shop, source, plain
        self.limit, self.excerpts = limit, excerpts
        self.length = plain.rendition.gop or gop_frames(shop.spec, source.fps)
        self.own = encoded_knob(plain.rendition)
        self.fps = float(source.fps)
        # one of less than a second counts in segments with the one before
        least = max(shop.spec.min_frames, math.ceil(self.fps - 1e-6))
        whole = _whole_gops(source.frames, self.length, least)
        self.gops = [_Gop(frames, shop.spec.knob, self.fps) for frames in whole]
        packets = stream_packets(plain.path, shop.spec.codec, source.fps)
        kbits = _kbits(packets)
        for gop in self.gops:
            gop.add(self.own, kbits[gop.frames])
        self.highest = peak_rate(kbits, self.fps)
        peaks = peaks_of(packets, source.duration_s)
        self.kbps, self.over = peaks.mean_kbps, peaks.over(limit)
        self._plan: _Plan | None = None
        self.made: dict[tuple[Scene, float], Encode] = {}

    def kept(self) -> CappedEncode:
        """The file of parts that keeps the bound with most bits; where none does, the nearest to
        it, which may be the plain one."""
        tried: list[_Plan] = []
        best: _Plan | None = None
        while len(tried) < MOST_TRIES:
            plan = self.planned()
            worth = best is None or plan.kbps >= WORTH * best.kbps
            if not worth or any(plan.knobs == item.knobs for item in tried):
                break
            peaks = peaks_of(self._made(plan.knobs), self.source.duration_s)
            tried.append(_Plan(plan.knobs, peaks.mean_kbps, peaks.over(self.limit)))
            held = [item for item in tried if item.over <= HELD]
            best = max(held, key=lambda item: item.kbps, default=None)
        nearest = best or min(tried, key=lambda item: item.over)
        if nearest.over < self.over:
            return self._joined(nearest)
        return CappedEncode(self.plain, self.over, len(self.made), self._frames())

    def planned(self) -> _Plan:
        """The knobs with which the bound is expected to be kept by most bits.

        No GOP is to have a second above some rate, which lowers the average too, and with it a
        bound relative to that: of a range of such rates the best is taken.
        """
        if self._plan is None:
            rates = self.highest * np.geomspace(1.0, LEAST_SHARE, PLANS)
            plans = [self._under(float(rate)) for rate in rates]
            # those that keep it by their bits, the others by how near they come
            self._plan = max(plans, key=lambda p: (p.over <= AIM, min(AIM - p.over, 0), p.kbps))
        return self._plan

    def _under(self, rate: float) -> _Plan:
        """The plan in which no GOP has a second above a rate in kb/s."""
        knobs = [gop.knob_for(self.own, rate) for gop in self.gops]
        each = [gop.kbits_at(knob) for gop, knob in zip(self.gops, knobs, strict=True)]
        kbits = np.concatenate(each)
        mean = float(kbits.sum()) / self.source.duration_s
        segments = max(highest_rate(part, self.fps) for part in each)
        highest = max(mean, segments, peak_rate(kbits, self.fps))
        return _Plan(knobs, mean, highest / self.limit.of(mean))

    def _made(self, knobs: Sequence[float]) -> list[Packet]:
        """The coded frames of the file with these knobs, whose parts are encoded for that."""
        packets: list[Packet] = []
        for scene, knob in self._parts(knobs):
            made = self._encode(scene, knob)
            start_s = float(scene.start_frame / self.source.fps)
            own = stream_packets(made.path, self.shop.spec.codec, self.source.fps)
            first = own[0].time_s
            packets += [p._replace(time_s=p.time_s - first + start_s) for p in own]
        kbits = _kbits(packets)
        for gop, knob in zip(self.gops, knobs, strict=True):
            gop.add(knob, kbits[gop.frames])
        self._plan = None
        return packets

    def _parts(self, knobs: Sequence[float]) -> list[tuple[Scene, float]]:
        """GOPs of one knob in a row as parts, of MOST_S at most."""
        most = max(1, math.floor(MOST_S * self.source.fps) // self.length)
        parts: list[tuple[Scene, float]] = []
        for knob, row in itertools.groupby(range(len(knobs)), key=knobs.__getitem__):
            gops = list(row)
            for at in range(0, len(gops), most):
                own = gops[at : at + most]
                scene = Scene(self.gops[own[0]].frames.start, self.gops[own[-1]].frames.stop)
                parts.append((scene, knob))
        return parts

    def _encode(self, scene: Scene, knob: float) -> Encode:
        if (scene, knob) not in self.made:
            shop, rendition = self.shop, with_raised(self.plain.rendition, knob)
            known = self.excerpts.known(scene)
            if shop.keeps(known, rendition):
                self.made[scene, knob] = shop.encode(known, rendition)
            else:
                with self.excerpts.held(scene) as part:
                    self.made[scene, knob] = shop.encode(part, rendition)
        return self.made[scene, knob]

    def _frames(self) -> int:
        return sum(scene.frames for scene, _ in self.made)

    def _joined(self, chosen: _Plan) -> CappedEncode:
        shop, source = self.shop, self.source
        parts = {scene: self._encode(scene, knob) for scene, knob in self._parts(chosen.knobs)}
        path = shop.scratch / f"parts{next(_numbers)}{shop.spec.suffix}"
        files = [made.path for made in parts.values()]
        join(files, source, path, spec=shop.spec, ffmpeg=shop.ffmpeg, others=False)
        packets = stream_packets(path, shop.spec.codec, source.fps)
        whole, args = joined_encode(source, self.plain.rendition, parts, path, packets)
        shop.note_joined(whole, parts.values())
        kbits = _kbits(packets)
        scenes = tuple(
            RungScene(
                scene.start_frame,
                scene.end_frame,
                encoded_knob(made.rendition),
                None,
                _mean_kbps(kbits, scene, source),
                own,
            )
            for (scene, made), own in zip(parts.items(), args, strict=True)
        )
        return CappedEncode(whole, chosen.over, len(self.made), self._frames(), scenes)


def _whole_gops(frames: int, gop: int, least: int) -> list[slice]:
    """The GOPs of a title; a last one of fewer frames than `least` is a part of that before."""
    starts = list(range(0, frames, gop))
    if len(starts) > 1 and frames - starts[-1] < least:
        starts.pop()
    return [slice(at, end) for at, end in itertools.pairwise([*starts, frames])]


def peak_rate(kbits: Values, fps: float) -> float:
    """The highest rate in kb/s of any second within frames of so many kbits, as `peak_kbps` has
    it: of all frames that begin within a second."""
    count = min(len(kbits), max(1, math.ceil(fps - 1e-6)))
    sums = np.concatenate([[0.0], np.cumsum(kbits)])
    return float((sums[count:] - sums[:-count]).max())


def highest_rate(kbits: Values, fps: float) -> float:
    """The highest rate in kb/s of any second of a segment, and of the whole of it."""
    return max(peak_rate(kbits, fps), float(kbits.sum()) * fps / max(len(kbits), fps))


def _kbits(packets: Sequence[Packet]) -> Values:
    sizes: Values = np.array([packet.size_bytes for packet in packets], float)
    return sizes * (8 / 1000)


def _mean_kbps(kbits: Values, scene: Scene, source: Source) -> float:
    own = kbits[scene.start_frame : scene.end_frame]
    return float(own.sum()) / float(scene.frames / source.fps)
