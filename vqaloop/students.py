"""A student in the loop: crops of a rung against the same crops of its source."""

import copy
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np

from vqaloop import process
from vqaloop.clips import CLIPS_EACH, POSITIONS, Where, read_clips, spots
from vqaloop.errors import InputError
from vqaloop.frames import Frames, read_encode, read_source
from vqaloop.metrics import SCALER
from vqaloop.records import Score, Source
from vqaloop.views import View, clips_of

if TYPE_CHECKING:
    import torch

    from vqaloop.models.student import Anchor, Student

REVISION = 3
"""Raised whenever the same file and weights would get another score; part of cache keys."""
FINER = 4
"""Times as many places in time that are looked at where scores are in doubt."""
RESAMPLES = 200
"""Bootstrap draws behind an interval."""


class StudentMetric:
    """A student that compares crops of a rung with those of the source.

    Safe to call from several threads: the network runs one rung at a time.
    """

    mode = "anchored"
    top = 100.0
    step, ceiling, floor = 4.0, 95.0, 30.0  # the weights speak VMAF's scale

    def __init__(
        self, name: str, weights: Path, *, ffmpeg: str, device: str = "auto", seed: int = 0
    ) -> None:
        self.name, self.weights, self.ffmpeg, self.seed = name, weights, ffmpeg, seed
        self._device_name = device
        self._positions = POSITIONS
        self._anchors: OrderedDict[str, tuple[Where, Anchor]] = OrderedDict()
        self._lock = threading.Lock()

    @cached_property
    def device(self) -> "torch.device":
        from vqaloop.device import pick_device

        return pick_device(self._device_name)

    @cached_property
    def _loaded(self) -> "tuple[Student, dict[str, str]]":
        from vqaloop.weights import load_student

        student, about = load_student(self.weights)
        return student.to(self.device), about

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
                f"weights {process.quoted(self.weights)} were trained to judge videos alone; "
                f"{remedy}"
            )
        if anchored and view is not None:
            raise InputError(
                f"weights {process.quoted(self.weights)} were trained on {view.kind} clips of "
                f"{view.frames} frames, and crops are compared at their own size; {remedy}"
            )

    def identity(self) -> dict[str, Any]:
        return {
            "metric": self.name,
            "weights_sha256": process.file_sha256(self.weights),
            "preprocessing": f"student {REVISION} {SCALER}",
            "decoder": f"pyav {av.__version__}, ffmpeg {process.file_sha256(self.ffmpeg)}",
            "device": self.device.type,
            "sampling": {"positions": self._positions, "clips": CLIPS_EACH, "seed": self.seed},
        }

    def finer(self) -> "StudentMetric":
        """The same student looking at FINER times as many places in time."""
        other = copy.copy(self)
        other._positions = self._positions * FINER
        other._anchors = OrderedDict()
        return other

    def measure(self, source: Source, path: Path, decoder: str) -> Score:
        def read(indices: list[int]) -> Frames:
            return read_encode(
                path, indices, source.canvas, source.fps, decoder=decoder, ffmpeg=self.ffmpeg
            )

        return self.compare(source, read)

    def compare(self, source: Source, read: Callable[[list[int]], Frames]) -> Score:
        """Anchored score of anything that gives frames on the source's canvas by index.

        Raises InputError for weights that cannot judge against a source.
        """
        import torch

        from vqaloop.colour import to_clips
        from vqaloop.device import exact

        with self._lock, torch.inference_mode(), exact():
            cpu, wall = _cpu_s(), time.monotonic()
            self.check(anchored=True)
            where, anchor = self._anchor(source)
            clips = torch.from_numpy(read_clips(where, source.frames, read))
            student, about = self._loaded
            seen = student.look(to_clips(clips.to(self.device)), anchor).anchored
            assert seen is not None
            counts = [len(places) for places in where.values()]
            found = _judged(student.anchored_answers, seen, counts, self.seed)
            return self._score(self.mode, found, about, _cpu_s() - cpu, time.monotonic() - wall)

    def _score(
        self, mode: str, found: "_Judged", about: dict[str, str], cpu_s: float, wall_s: float
    ) -> Score:
        return Score(
            value=found.value,
            metric=self.name,
            mode=mode,
            clips=found.clips,
            interval=found.interval,
            weights_sha256=about["sha256"],
            label=about.get("label"),
            cpu_s=cpu_s,
            wall_s=wall_s,
        )

    def _anchor(self, source: Source) -> "tuple[Where, Anchor]":
        import torch

        from vqaloop.colour import to_clips

        key = f"{source.sha256} {source.prep} {source.input_options}"
        if key not in self._anchors:
            where = spots(source.frames, source.canvas, self.seed, self._positions)
            clips = read_clips(
                where, source.frames, lambda i: read_source(source, i, ffmpeg=self.ffmpeg)
            )
            pixels = to_clips(torch.from_numpy(clips).to(self.device))
            self._anchors[key] = where, self._loaded[0].anchor(pixels)
            while len(self._anchors) > 2:  # an excerpt and its title
                self._anchors.popitem(last=False)
        return self._anchors[key]

    def alone(self, source: Source) -> Score:
        """No-reference score, of the video at its own size."""
        import torch

        from vqaloop.colour import to_clips
        from vqaloop.device import exact

        def read(indices: list[int]) -> Frames:
            return read_source(source, indices, ffmpeg=self.ffmpeg)

        with self._lock, torch.inference_mode(), exact():
            cpu, wall = _cpu_s(), time.monotonic()
            student, about = self._loaded
            view = self._view
            if view is None:
                where = spots(source.frames, source.canvas, self.seed)
                clips = read_clips(where, source.frames, read)
                counts = [len(places) for places in where.values()]
            else:
                clips = clips_of(view, source.canvas, source.frames, read, self.seed)
                counts = [1] * len(clips)
            seen = student.look(to_clips(torch.from_numpy(clips).to(self.device))).alone
            found = _judged(student.alone_answers, seen, counts, self.seed)
            return self._score(
                "no-reference", found, about, _cpu_s() - cpu, time.monotonic() - wall
            )


@dataclass(frozen=True)
class _Judged:
    value: float
    clips: tuple[float, ...]
    interval: tuple[float, float]


def _judged(
    answers: "Callable[..., torch.Tensor]",
    seen: "tuple[torch.Tensor, torch.Tensor]",
    counts: list[int],
    seed: int,
) -> _Judged:
    """Score of a title from (B, K) sums and weights of its crops, and of each crop.

    `counts` says how many crops each time has. With a 95 % bootstrap interval over the choice of
    crops at each time, or over times where each has but one.
    """
    import torch

    sums, weights = seen
    rng = np.random.default_rng(seed)
    among = [len(counts)] if set(counts) == {1} else counts
    firsts = np.cumsum([0, *among[:-1]])
    draw = np.concatenate(
        [
            first + rng.integers(0, n, (RESAMPLES, n))
            for first, n in zip(firsts, among, strict=True)
        ],
        axis=1,
    )
    picked = torch.from_numpy(draw).to(sums.device)
    drawn = _pooled(answers, sums[picked], weights[picked], counts)
    low, high = np.percentile(drawn.float().cpu().numpy(), [2.5, 97.5])
    return _Judged(
        float(_pooled(answers, sums, weights, counts)),
        tuple((100 * answers(sums, weights)[:, 0]).clamp(0, 100).tolist()),
        (float(low), float(high)),
    )


def _pooled(
    answers: "Callable[..., torch.Tensor]",
    sums: "torch.Tensor",
    weights: "torch.Tensor",
    counts: list[int],
) -> "torch.Tensor":
    """Scores 0..100 (...) of (..., B, K) sums: crops of one time as one picture, times averaged.

    `counts` says how many crops each time has. Averaging over time, as VMAF does, keeps a scene of
    strong contrasts from speaking for all others.
    """
    import torch

    parts = zip(torch.split(sums, counts, -2), torch.split(weights, counts, -2), strict=True)
    scores = [answers(s.sum(-2), w.sum(-2))[..., 0] for s, w in parts]
    return (100 * torch.stack(scores).mean(0)).clamp(0, 100)


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


def _cpu_s() -> float:
    """CPU seconds of this process and of the programs this thread ran to decode for it."""
    return time.process_time() + process.spent_cpu_s()
