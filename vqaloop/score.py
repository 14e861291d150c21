"""Scores of renditions: the students, and the classical metrics behind the same door.

A metric is one class with a `name`, the facts a cache key needs (`identity`) and `measure`. The
loop calls `measure` once a rung; whatever belongs to the source is computed once and kept.
"""

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vqaloop import metrics, process
from vqaloop.errors import DecodeFailed, InputError
from vqaloop.frames import CLIP_FRAMES, CLIP_SIZE, Frames, cut, read_encode, read_source
from vqaloop.records import Score, Source
from vqaloop.source import probe_source

if TYPE_CHECKING:
    import torch

    from vqaloop.models.student import Anchor, Student

DEFAULT_METRIC = "internvqa"
STUDENT_PREFIX = "internvqa-"
REVISION = 1
"""Raised whenever the same file and weights would get another score; part of cache keys."""
POSITIONS = 8
"""Places in time at which a title is looked at."""
CLIPS_EACH = 8
"""Crops looked at in each place."""
RESAMPLES = 200
"""Bootstrap draws behind an interval."""


class Metric(Protocol):
    """What the loop asks of a metric."""

    @property
    def name(self) -> str:
        """As given to --metric."""

    @property
    def mode(self) -> str:
        """anchored or full-reference."""

    @property
    def top(self) -> float:
        """Largest value it can give."""

    @property
    def step(self) -> float:
        """Difference between two rungs worth having, by default."""

    @property
    def ceiling(self) -> float:
        """Score above which viewers see no difference, by default."""

    @property
    def floor(self) -> float:
        """Score under which a rung is not worth sending, by default."""

    def identity(self) -> dict[str, Any]:
        """All that decides a score, apart from the two files; JSON values only."""

    def measure(self, source: Source, path: Path, decoder: str) -> Score:
        """Score of a file of ours with as many frames as `source`. Raises DecodeFailed."""


@dataclass(frozen=True)
class ClassicalMetric:
    """VMAF, XPSNR, PSNR or SSIM over all frames; see metrics.py for their definitions."""

    name: str
    ffmpeg: str
    top: float
    step: float
    ceiling: float
    floor: float
    mode: str = "full-reference"

    def identity(self) -> dict[str, Any]:
        return {
            "metric": self.name,
            "weights_sha256": None,
            "preprocessing": f"classical {metrics.REVISION}",
            "decoder": process.file_sha256(self.ffmpeg),
            "sampling": {},
        }

    def measure(self, source: Source, path: Path, decoder: str) -> Score:
        return metrics.measure(source, path, [self.name], ffmpeg=self.ffmpeg)[self.name]


CLASSICAL = {
    # top, step, ceiling, floor. VMAF: 6 is about one just noticeable difference and 95 the level
    # above which viewers see none (Kah et al. 2021); dB values are the usual span of streaming
    "vmaf": (100.0, 4.0, 95.0, 30.0),
    "ssim": (100.0, 0.6, 99.2, 80.0),
    "psnr": (100.0, 1.2, 45.0, 26.0),
    "xpsnr": (100.0, 1.2, 45.0, 26.0),
}


def spots(frames: int, size: tuple[int, int], seed: int = 0) -> dict[int, list[tuple[int, int]]]:
    """Which crops of a title are looked at: {first frame: [(top, left), ...]}, all even.

    Stratified over time and over the picture, with seeded jitter; the same title, seed and size
    always give the same crops, so that every rung is judged on the same ones.
    """
    width, height = (max(side, CLIP_SIZE) for side in size)
    rng = np.random.default_rng([seed, frames, width, height])
    last = max(0, frames - CLIP_FRAMES)
    count = min(POSITIONS, last // CLIP_FRAMES + 1)
    edges = np.linspace(0, last + 1, count + 1)
    starts = np.unique(np.minimum((edges[:-1] + rng.random(count) * np.diff(edges)), last))
    # a Latin square over the picture, so that no part of it is looked at twice while another waits
    total = len(starts) * CLIPS_EACH
    y, x = ((rng.permutation(total) + rng.random(total)) / total for _ in range(2))
    tops = (y * ((height - CLIP_SIZE) // 2 + 1)).astype(int) * 2
    lefts = (x * ((width - CLIP_SIZE) // 2 + 1)).astype(int) * 2
    places = [(int(t), int(left)) for t, left in zip(tops, lefts, strict=True)]
    chosen: dict[int, list[tuple[int, int]]] = {}
    for i, start in enumerate(starts.astype(int)):
        chosen.setdefault(int(start), []).extend(places[i * CLIPS_EACH : (i + 1) * CLIPS_EACH])
    return chosen


Where = Mapping[int, list[tuple[int, int]]]


def read_clips(where: Where, count: int, read: Callable[[list[int]], Frames]) -> Frames:
    """(B, T, rows, S) crops at `where`; `read` gives frames by ascending index."""
    indices = sorted({min(t + i, count - 1) for t in where for i in range(CLIP_FRAMES)})
    frames = _padded(read(indices))
    row = {index: i for i, index in enumerate(indices)}
    return np.stack(
        [
            cut(
                frames[[row[min(t + i, count - 1)] for i in range(CLIP_FRAMES)]],
                top,
                left,
                CLIP_SIZE,
            )
            for t, places in where.items()
            for top, left in places
        ]
    )


def _padded(frames: Frames) -> Frames:
    """Frames smaller than a crop, their last row and column repeated up to its size."""
    count, rows, width = frames.shape
    height = rows * 2 // 3
    if height >= CLIP_SIZE and width >= CLIP_SIZE:
        return frames
    tall, wide = max(height, CLIP_SIZE), max(width, CLIP_SIZE)
    luma = np.pad(frames[:, :height], ((0, 0), (0, tall - height), (0, wide - width)), mode="edge")
    chroma = np.pad(
        frames[:, height:].reshape(count, 2, height // 2, width // 2),
        ((0, 0), (0, 0), (0, (tall - height) // 2), (0, (wide - width) // 2)),
        mode="edge",
    )
    return np.concatenate([luma, chroma.reshape(count, tall // 2, wide)], 1)


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
            "preprocessing": f"student {REVISION} {metrics.SCALER}",
            "decoder": "pyav",
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
            return Score(
                value=100 * float(student.answers(sums.sum(0), weights.sum(0))[0]),
                metric=self.name,
                mode=self.mode,
                clips=tuple((100 * student.answers(sums, weights)[:, 0]).tolist()),
                interval=_interval(student, sums, weights, self.seed),
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


def _interval(
    student: "Student", sums: "torch.Tensor", weights: "torch.Tensor", seed: int
) -> tuple[float, float]:
    """95 % bootstrap interval of the pooled score over the choice of crops."""
    import torch

    count = len(sums)
    draw = np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))
    picked = torch.from_numpy(draw).to(sums.device)
    values = student.answers(sums[picked].sum(1), weights[picked].sum(1))[:, 0]
    low, high = np.percentile(100 * values.float().cpu().numpy(), [2.5, 97.5])
    return float(low), float(high)


def _cpu_s() -> float:
    """CPU seconds of this process and of the programs this thread ran to decode for it."""
    return time.process_time() + process.spent_cpu_s()


def metric_names() -> list[str]:
    """All that --metric takes: `internvqa` for the default student, the students, the classics."""
    return [DEFAULT_METRIC, *(path.stem for path in shipped_weights()), *CLASSICAL]


def shipped_weights() -> list[Path]:
    """Weights that come with the package."""
    return sorted((Path(__file__).parent / "weights").glob("*.safetensors"))


def open_metric(
    name: str,
    *,
    ffmpeg: str,
    device: str = "auto",
    seed: int = 0,
    weights: str | os.PathLike[str] | None = None,
) -> Metric:
    """The metric of that name; `weights` puts another file in the place of the shipped ones.

    Raises InputError listing the names there are. Nothing heavy is loaded before the first score.
    """
    if name in CLASSICAL:
        return ClassicalMetric(name, ffmpeg, *CLASSICAL[name])
    known = {path.stem: path for path in shipped_weights()}
    full = "internvqa-tiny" if name == DEFAULT_METRIC else name
    if weights is not None and (full in known or full.startswith(STUDENT_PREFIX)):
        return StudentMetric(full, Path(weights), ffmpeg=ffmpeg, device=device, seed=seed)
    if full not in known:
        raise InputError(f"unknown metric {name!r}; choose from {', '.join(metric_names())}")
    return StudentMetric(full, known[full], ffmpeg=ffmpeg, device=device, seed=seed)


class Scorer:
    """Scores of finished videos: `Scorer().score(video, reference=...)`.

    `metric` is internvqa (the default student), internvqa-NAME, vmaf, xpsnr, psnr or ssim.
    """

    def __init__(
        self,
        metric: str = DEFAULT_METRIC,
        *,
        device: str = "auto",
        seed: int = 0,
        weights: str | os.PathLike[str] | None = None,
        ffmpeg: str | os.PathLike[str] | None = None,
        allow_hdr: bool = False,
    ) -> None:
        self.ffmpeg = process.ffmpeg_path(ffmpeg)
        self.metric = open_metric(
            metric, ffmpeg=self.ffmpeg, device=device, seed=seed, weights=weights
        )
        self.allow_hdr = allow_hdr

    def score(
        self,
        video: str | os.PathLike[str],
        reference: str | os.PathLike[str] | None = None,
    ) -> Score:
        """0..100, or dB for psnr and xpsnr; anchored to `reference` where there is one.

        The video is scaled to the reference's size and matched with it by frame index. Raises
        InputError for a file that is no video, for two of different length, and for a classical
        metric without a reference.
        """
        path = Path(video)
        if reference is None:
            if not isinstance(self.metric, StudentMetric):
                raise InputError(
                    f"{self.metric.name} needs the original: give it with --reference"
                )
            return self.metric.alone(self._probe(path))
        source = self._probe(Path(reference))
        if path.suffix.lower() in (".avs2", ".avs"):
            if not path.is_file():
                raise InputError(f"{path} does not exist")
            return self.metric.measure(source, path, "ffmpeg")
        other = self._probe(path)
        if other.frames != source.frames:
            raise InputError(
                f"{path.name!r} has {other.frames} frames and its reference {source.frames}; "
                "frames are matched one to one, so cut both to the same ones"
            )
        if isinstance(self.metric, StudentMetric):
            view = replace(other, width=source.canvas[0], height=source.canvas[1])
            return self.metric.compare(
                source, lambda indices: read_source(view, indices, ffmpeg=self.ffmpeg)
            )
        if other.prep or other.input_options:
            raise InputError(
                f"{path.name!r} would have to be changed before it can be compared by "
                f"{self.metric.name} ({'; '.join(other.notes) or 'raw video'}); convert it first"
            )
        return self.metric.measure(source, path, "ffmpeg")

    def _probe(self, path: Path) -> Source:
        return probe_source(path, allow_hdr=self.allow_hdr, ffmpeg=self.ffmpeg)


__all__ = ["DecodeFailed", "Metric", "Scorer", "StudentMetric", "metric_names", "open_metric"]
