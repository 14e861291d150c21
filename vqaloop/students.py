"""A student in the loop: crops of a rung against the same crops of its source."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np

from vqaloop import process
from vqaloop.clips import CLIPS_EACH, POSITIONS, Where, read_clips, spots
from vqaloop.frames import Frames, read_encode, read_source
from vqaloop.metrics import SCALER
from vqaloop.records import Score, Source

if TYPE_CHECKING:
    import torch

    from vqaloop.models.student import Anchor, Student

REVISION = 1
"""Raised whenever the same file and weights would get another score; part of cache keys."""
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

    def identity(self) -> dict[str, Any]:
        return {
            "metric": self.name,
            "weights_sha256": process.file_sha256(self.weights),
            "preprocessing": f"student {REVISION} {SCALER}",
            "decoder": f"pyav {av.__version__}, ffmpeg {process.file_sha256(self.ffmpeg)}",
            "device": self.device.type,
            "sampling": {"positions": POSITIONS, "clips": CLIPS_EACH, "seed": self.seed},
        }

    def measure(self, source: Source, path: Path, decoder: str) -> Score:
        def read(indices: list[int]) -> Frames:
            return read_encode(
                path, indices, source.canvas, source.fps, decoder=decoder, ffmpeg=self.ffmpeg
            )

        return self.compare(source, read)

    def compare(self, source: Source, read: Callable[[list[int]], Frames]) -> Score:
        """Anchored score of anything that gives frames on the source's canvas by index."""
        import torch

        from vqaloop.colour import to_clips
        from vqaloop.device import autocast

        with self._lock, torch.inference_mode():
            cpu, wall = _cpu_s(), time.monotonic()
            where, anchor = self._anchor(source)
            clips = torch.from_numpy(read_clips(where, source.frames, read))
            student, about = self._loaded
            with autocast(self.device):
                sums, weights, _ = student.compare(anchor, to_clips(clips.to(self.device)))
            counts = [len(places) for places in where.values()]
            return Score(
                value=float(_pooled(student, sums, weights, counts)),
                metric=self.name,
                mode=self.mode,
                clips=tuple((100 * student.answers(sums, weights)[:, 0]).tolist()),
                interval=_interval(student, sums, weights, counts, self.seed),
                weights_sha256=about["sha256"],
                label=about.get("label"),
                cpu_s=_cpu_s() - cpu,
                wall_s=time.monotonic() - wall,
            )

    def _anchor(self, source: Source) -> "tuple[Where, Anchor]":
        import torch

        from vqaloop.colour import to_clips
        from vqaloop.device import autocast

        key = f"{source.sha256} {source.prep} {source.input_options}"
        if key not in self._anchors:
            where = spots(source.frames, source.canvas, self.seed)
            clips = read_clips(
                where, source.frames, lambda i: read_source(source, i, ffmpeg=self.ffmpeg)
            )
            with autocast(self.device):
                pixels = to_clips(torch.from_numpy(clips).to(self.device))
                self._anchors[key] = where, self._loaded[0].anchor(pixels)
            while len(self._anchors) > 2:  # an excerpt and its title
                self._anchors.popitem(last=False)
        return self._anchors[key]

    def alone(self, source: Source) -> Score:
        """No-reference score, of the video at its own size."""
        import torch

        from vqaloop.colour import to_clips
        from vqaloop.device import autocast

        with self._lock, torch.inference_mode():
            cpu, wall = _cpu_s(), time.monotonic()
            where = spots(source.frames, source.canvas, self.seed)
            clips = read_clips(
                where, source.frames, lambda i: read_source(source, i, ffmpeg=self.ffmpeg)
            )
            student, about = self._loaded
            with autocast(self.device):
                found = student(to_clips(torch.from_numpy(clips).to(self.device)))
            values = (100 * found.float()).clamp(0, 100).cpu().numpy().astype(float)
            margin = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5
            mean = float(values.mean())
            return Score(
                value=mean,
                metric=self.name,
                mode="no-reference",
                clips=tuple(values.tolist()),
                interval=(max(0.0, mean - margin), min(100.0, mean + margin)),
                weights_sha256=about["sha256"],
                label=about.get("label"),
                cpu_s=_cpu_s() - cpu,
                wall_s=time.monotonic() - wall,
            )


def _pooled(
    student: "Student", sums: "torch.Tensor", weights: "torch.Tensor", counts: list[int]
) -> "torch.Tensor":
    """Scores 0..100 (...) of (..., B, K) sums: crops of one time as one picture, times averaged.

    `counts` says how many crops each time has. Averaging over time, as VMAF does, keeps a scene of
    strong contrasts from speaking for all others.
    """
    import torch

    scores = [
        student.answers(s.sum(-2), w.sum(-2))[..., 0]
        for s, w in zip(
            torch.split(sums, counts, -2), torch.split(weights, counts, -2), strict=True
        )
    ]
    return 100 * torch.stack(scores).mean(0)


def _interval(
    student: "Student",
    sums: "torch.Tensor",
    weights: "torch.Tensor",
    counts: list[int],
    seed: int,
) -> tuple[float, float]:
    """95 % bootstrap interval of the score over the choice of crops at each time."""
    import torch

    rng = np.random.default_rng(seed)
    firsts = np.cumsum([0, *counts[:-1]])
    draw = np.concatenate(
        [
            first + rng.integers(0, n, (RESAMPLES, n))
            for first, n in zip(firsts, counts, strict=True)
        ],
        axis=1,
    )
    picked = torch.from_numpy(draw).to(sums.device)
    values = _pooled(student, sums[picked], weights[picked], counts)
    low, high = np.percentile(values.float().cpu().numpy(), [2.5, 97.5])
    return float(low), float(high)


def _cpu_s() -> float:
    """CPU seconds of this process and of the programs this thread ran to decode for it."""
    return time.process_time() + process.spent_cpu_s()
