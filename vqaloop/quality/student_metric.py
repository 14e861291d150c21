"""A student in the loop: crops of a rung against the same crops of its source."""

import copy
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np

from vqaloop.bitstream.colour_tags import colour_range
from vqaloop.core.cpu_time import METER, Spent
from vqaloop.core.files import file_sha256
from vqaloop.core.text import quoted
from vqaloop.errors import InputError
from vqaloop.media.frames import (
    SCALER,
    Frames,
    each_of_encode,
    each_of_source,
    picks_from,
    read_source,
)
from vqaloop.quality.clip_views import View, clips_of
from vqaloop.quality.crop_sampling import CLIPS_EACH, POSITIONS, Where, read_clips, spots
from vqaloop.quality.pooling import PooledScore, judged
from vqaloop.quality.sampling_precision import FIRST, around, is_enough, reach, rounds
from vqaloop.records import Score, Source

if TYPE_CHECKING:
    import torch

    from vqaloop.models.student import Anchor, Student
    from vqaloop.quality.inference import Network


REVISION = 3
"""Raised whenever the same file and weights would get another score; part of cache keys."""
MOST_POSITIONS = 96
"""Places in time that a title of many scenes is looked at."""
FINER = 4
"""Times as many places in time that are looked at where scores are in doubt."""
DECODING_THREADS = 4
"""Most threads that decode one rung: more cost memory and bring little."""
ANCHOR_BYTES = 256 << 20
"""Memory for what is computed of titles once, of those asked for last."""
LEAST_ANCHORS = 2
"""Titles kept however large: an excerpt and its title."""


class StudentMetric:
    """A student that compares crops of a rung with those of the source.

    Safe to call from several threads: each decodes for itself, the network runs what they ask for
    in common batches. With `precision` it stops looking at further places in time once the score
    is estimated to ± that.
    """

    mode = "anchored"
    top = 100.0
    step, ceiling, floor = 4.0, 95.0, 30.0  # the weights speak VMAF's scale

    def __init__(
        self,
        name: str,
        weights: Path,
        *,
        ffmpeg: str,
        device: str = "auto",
        seed: int = 0,
        precision: float | None = None,
    ) -> None:
        self.name, self.weights, self.ffmpeg, self.seed = name, weights, ffmpeg, seed
        self.precision = precision
        self._device_name = device
        self._positions = POSITIONS
        self.scenes: tuple[tuple[int, int], ...] = ()
        self._anchors: OrderedDict[str, tuple[Where, Anchor]] = OrderedDict()
        self._anchoring = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._networks: list[Network] = []  # one, once it was needed; shared with copies

    @cached_property
    def device(self) -> "torch.device":
        from vqaloop.models.device import pick_device

        return pick_device(self._device_name)

    @property
    def _network(self) -> "Network":
        from vqaloop.quality.inference import network_of

        with self._anchoring:
            if not self._networks:
                self._networks.append(network_of(self.weights, self.device))
            return self._networks[0]

    @property
    def _loaded(self) -> "tuple[Student, dict[str, str]]":
        return self._network.loaded

    @cached_property
    def _view(self) -> View | None:
        """How the weights look at a video; None: at crops of it, at their own size."""
        return _read_view(self._loaded[1].get("view", "null"))

    def check(self, anchored: bool) -> None:
        """Raises InputError for weights that do not load or, if `anchored`, know no source.

        Or know it in another view than crops at their own size, which is what a ladder compares.
        """
        student, _ = self._loaded
        view = self._view
        remedy = "for a ladder or with --reference take others"
        if anchored and student.anchored is None:
            raise InputError(
                f"weights {quoted(self.weights)} were trained to judge videos alone; {remedy}"
            )
        if anchored and view is not None:
            raise InputError(
                f"weights {quoted(self.weights)} were trained on {view.kind} clips of "
                f"{view.frames} frames, and crops are compared at their own size; {remedy}"
            )

    def identity(self) -> dict[str, Any]:
        sampling: dict[str, Any] = {
            "positions": self._positions,
            "clips": CLIPS_EACH,
            "seed": self.seed,
        }
        if self.precision is not None:
            sampling |= {"precision": self.precision, "first": FIRST}
        if self.scenes:
            sampling["scenes"] = [list(scene) for scene in self.scenes]
        halved = " bf16" if self._network.halved else ""
        return {
            "metric": self.name,
            "weights_sha256": self._network.sha256,
            "preprocessing": f"student {REVISION} {SCALER}{halved}",
            "decoder": f"pyav {av.__version__}, ffmpeg {file_sha256(self.ffmpeg)}",
            "device": self.device.type,
            "sampling": sampling,
        }

    def finer(self) -> "StudentMetric":
        """The same student looking at FINER times as many places in time."""
        return self.looking_at(self._positions * FINER)

    @property
    def positions(self) -> int:
        """How many places in time it looks at."""
        return self._positions

    def looking_at(
        self, positions: int, scenes: Sequence[tuple[int, int]] = ()
    ) -> "StudentMetric":
        """The same student looking at that many places in time, of a title or of each scene."""
        other = copy.copy(self)
        other._positions, other.scenes = positions, tuple(scenes)
        other._anchors, other._locks = OrderedDict(), {}
        return other

    def scene_by_scene(self, scenes: Sequence[tuple[int, int]]) -> "StudentMetric":
        """The same student looking into each scene (first frame, number of frames) of a title.

        Where it would look were the scene a title of its own, in fewer places if scenes are many;
        each counts by its length.
        """
        places = min(self._positions, MOST_POSITIONS // len(scenes))
        if not places:
            return self.looking_at(MOST_POSITIONS)
        return self.looking_at(places, scenes)

    def _spots(self, source: Source) -> Where:
        where: dict[int, list[tuple[int, int]]] = {}
        for first, count in self.scenes or [(0, source.frames)]:
            own = spots(count, source.canvas, self.seed, self._positions)
            where |= {first + start: places for start, places in own.items()}
        return where

    def _shares(self, times: Sequence[int]) -> list[float] | None:
        """Which part of the title each time stands for; None for equal ones."""
        if not self.scenes:
            return None
        scene_of = [
            next(scene for scene in reversed(self.scenes) if scene[0] <= time) for time in times
        ]
        return [scene[1] / scene_of.count(scene) for scene in scene_of]

    @property
    def may_choose(self) -> bool:
        """Whether it was left to it where the network runs."""
        return self._device_name == "auto"

    def on(self, device: str) -> "StudentMetric":
        """The same student for another machine, where it is to run on that device."""
        import torch

        other = self.looking_at(self._positions, self.scenes)
        other._networks = []
        other.__dict__["device"] = torch.device(device)
        return other

    def measure(self, source: Source, path: Path, decoder: str) -> Score:
        def read(indices: list[int]) -> Iterator[Frames]:
            return each_of_encode(
                path,
                indices,
                source.canvas,
                source.fps,
                decoder=decoder,
                ffmpeg=self.ffmpeg,
                threads=max(1, min(DECODING_THREADS, _processors() // METER.active)),
                wanted_range=colour_range(source),
            )

        # a decoder that starts from the beginning each time had better do so once
        return self.compare(source, read, in_rounds=decoder != "ffmpeg")

    def compare(
        self,
        source: Source,
        read: Callable[[list[int]], Iterable[Frames]],
        *,
        in_rounds: bool = True,
    ) -> Score:
        """Anchored score of anything that gives frames on the source's canvas by index.

        Raises InputError for weights that cannot judge against a source.
        """
        with METER.measured() as spent:
            self.check(anchored=True)
            where, anchor = self._anchor(source)
            found = self._looked(
                where,
                source.frames,
                read,
                lambda clips, rows: self._network.compare(clips, _part_of(anchor, rows)),
                True,
                in_rounds,
            )
        return self._score(self.mode, found, spent)

    def _looked(
        self,
        where: Where,
        count: int,
        read: Callable[[list[int]], Iterable[Frames]],
        judge: "Callable[[Frames, list[int]], tuple[torch.Tensor, torch.Tensor]]",
        anchored: bool,
        in_rounds: bool = True,
    ) -> PooledScore:
        """Look at crops until the score is as precise as was asked, or at all of them.

        Scenes count by their length, for which `reach` has no formula: of them all is looked at.
        `judge` gives sums and weights of clips, which are those of `where` in rows.
        """
        import torch

        firsts = dict(zip(where, np.cumsum([0, *map(len, where.values())]), strict=False))
        seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        precision = None if self.scenes or not in_rounds else self.precision
        for starts in rounds(list(where), precision):
            some = {start: where[start] for start in starts}
            counts = [len(places) for places in some.values()]
            rows = [
                int(firsts[t]) + i for t, n in zip(some, counts, strict=True) for i in range(n)
            ]
            sums, weights = judge(read_clips(some, count, read), rows)
            parts = zip(torch.split(sums, counts), torch.split(weights, counts), strict=True)
            seen |= zip(starts, parts, strict=True)
            seen = dict(sorted(seen.items()))
            pair = tuple(torch.cat(x) for x in zip(*seen.values(), strict=True))
            counts = [len(where[start]) for start in seen]
            with self._network.settled() as student:
                answers = student.anchored_answers if anchored else student.alone_answers
                shares = self._shares(list(seen))
                found = judged(answers, (pair[0], pair[1]), counts, self.seed, shares)
            apart = reach(found.apart, found.times, len(where))
            if is_enough(apart, precision):
                break
        whole = len(seen) == len(where)
        times = [min(100.0, max(0.0, time)) for time in found.times]
        return replace(
            found,
            interval=found.interval if whole else around(found.value, apart),
            places=tuple((t, *place) for t in seen for place in where[t]),
            moments=tuple(zip(seen, times, strict=True)),
        )

    def _score(self, mode: str, found: PooledScore, spent: Spent) -> Score:
        about = self._loaded[1]
        return Score(
            value=found.value,
            metric=self.name,
            mode=mode,
            clips=found.clips,
            interval=found.interval,
            places=found.places,
            moments=found.moments,
            weights_sha256=about["sha256"],
            label=about.get("label"),
            cpu_s=spent.cpu_s,
            wall_s=spent.wall_s,
        )

    def _anchor(self, source: Source) -> "tuple[Where, Anchor]":
        """What is computed of a title once, whoever asks first."""
        key = f"{source.sha256} {source.prep} {source.input_options}"
        with self._anchoring:
            one_at_a_time = self._locks.setdefault(key, threading.Lock())
        with one_at_a_time:
            with self._anchoring:
                if key in self._anchors:
                    self._anchors.move_to_end(key)
                    return self._anchors[key]
            where = self._spots(source)
            clips = read_clips(
                where, source.frames, lambda i: each_of_source(source, i, ffmpeg=self.ffmpeg)
            )
            made = where, self._network.anchor(clips)
            with self._anchoring:
                self._anchors[key] = made
                self._drop_anchors()
            return made

    def _drop_anchors(self) -> None:
        """Those asked for longest ago, until the others fit into ANCHOR_BYTES."""
        from vqaloop.quality.inference import bytes_of

        held = sum(bytes_of(anchor) for _, anchor in self._anchors.values())
        while held > ANCHOR_BYTES and len(self._anchors) > LEAST_ANCHORS:
            key, (_, anchor) = self._anchors.popitem(last=False)
            held -= bytes_of(anchor)
            self._locks.pop(key, None)

    @property
    def sees_crops(self) -> bool:
        """Whether the weights look at crops of a video, and so at its size. Loads them."""
        return self._view is None

    def alone(self, source: Source, canvas: tuple[int, int] | None = None) -> Score:
        """No-reference score, of the video at its own size or scaled to `canvas`."""
        size = canvas or source.canvas

        def read(indices: list[int]) -> Iterator[Frames]:
            return each_of_source(source, indices, ffmpeg=self.ffmpeg, size=size)

        with METER.measured() as spent:
            network, view = self._network, self._view
            if view is None:
                where = spots(source.frames, size, self.seed)
                in_rounds = self.precision is not None and picks_from(source)
                found = self._looked(
                    where,
                    source.frames,
                    read,
                    lambda clips, _: network.alone(clips),
                    False,
                    in_rounds,
                )
            else:
                clips = clips_of(
                    view,
                    size,
                    source.frames,
                    lambda i: read_source(source, i, ffmpeg=self.ffmpeg, size=size),
                    self.seed,
                )
                seen = network.alone(clips)
                with network.settled() as student:
                    found = judged(student.alone_answers, seen, [1] * len(clips), self.seed)
        return self._score("no-reference", found, spent)


def _read_view(text: str) -> View | None:
    """A view as the header of weights has it; None for crops at their own size.

    Raises InputError when it says none.
    """
    try:
        found = json.loads(text)
        if found is None:
            return None
        given = {key: value for key, value in found.items() if key != "seed"}
        if all(type(value) is (str if key == "kind" else int) for key, value in given.items()):
            return View(**given)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"the weights' header has no view that is known: {error}") from error
    raise InputError("the weights' header has no view that is known")


def _part_of(anchor: "Anchor", rows: list[int]) -> "Anchor":
    """The anchor of some crops; itself where it is all of them."""
    from vqaloop.quality.inference import part_of

    if len(rows) == len(anchor.weights):
        return anchor
    import torch

    return part_of(anchor, torch.tensor(rows, device=anchor.weights.device))


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
