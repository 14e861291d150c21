"""Scores of renditions: the students, and the classical metrics behind the same door.

A metric is one class with a `name`, the facts a cache key needs (`identity`) and `measure`. The
loop calls `measure` once a rung; whatever belongs to the source is computed once and kept.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

from vqaloop.bitstream.avs2 import read_picture_size, read_pictures
from vqaloop.core.files import file_sha256
from vqaloop.core.resources import WEIGHTS
from vqaloop.core.text import quoted
from vqaloop.errors import InputError, ToolError
from vqaloop.quality import full_reference
from vqaloop.quality.sampling_precision import check_precision
from vqaloop.quality.student_metric import StudentMetric
from vqaloop.records import Score, Source

DEFAULT_METRIC = "internvqa"
DEFAULT_STUDENT = "internvqa-mini"
"""The student behind `DEFAULT_METRIC`, on every device; docs/model-card.md says why."""
STUDENT_PREFIX = "internvqa-"


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

    def finer(self) -> "Metric | None":
        """The same metric looking at more of the title; None when it sees all of it already."""

    def scene_by_scene(self, scenes: Sequence[tuple[int, int]]) -> "Metric":
        """The same metric looking into each scene (first frame, number of frames) of the title."""


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
            "preprocessing": f"classical {full_reference.REVISION}",
            "decoder": file_sha256(self.ffmpeg),
            "sampling": {},
        }

    def measure(self, source: Source, path: Path, decoder: str) -> Score:
        return full_reference.measure(source, path, [self.name], ffmpeg=self.ffmpeg)[self.name]

    def finer(self) -> None:
        return None

    def scene_by_scene(self, scenes: Sequence[tuple[int, int]]) -> "ClassicalMetric":
        return self


CLASSICAL = {
    # top, step, ceiling, floor. VMAF: 6 is about one just noticeable difference and 95 the level
    # above which viewers see none (Kah et al. 2021); dB values are the usual span of streaming
    "vmaf": (100.0, 4.0, 95.0, 30.0),
    "ssim": (100.0, 0.6, 99.2, 80.0),
    "psnr": (100.0, 1.2, 45.0, 26.0),
    "xpsnr": (100.0, 1.2, 45.0, 26.0),
}


def metric_names() -> list[str]:
    """All that --metric takes: `internvqa` for the default student, the students, the classics."""
    return [DEFAULT_METRIC, *(path.stem for path in shipped_weights()), *CLASSICAL]


def shipped_weights() -> list[Path]:
    """Weights that come with the package."""
    return sorted(WEIGHTS.glob("*.safetensors"))


def open_metric(
    name: str,
    *,
    ffmpeg: str,
    device: str = "auto",
    seed: int = 0,
    weights: str | os.PathLike[str] | None = None,
    precision: float | None = None,
) -> Metric:
    """The metric of that name; `weights` puts another file in the place of the shipped ones.

    With `precision` a student stops looking at further places of a video once its score is
    estimated to ± that (see precision.py for what that is worth). Raises InputError listing the
    names there are, and for a precision of a metric that looks at all frames. Nothing heavy is
    loaded before the first score.
    """
    check_precision(precision)
    if name in CLASSICAL and precision is not None:
        raise InputError(f"{name} looks at all frames; leave out --score-precision")
    if name in CLASSICAL:
        return ClassicalMetric(name, ffmpeg, *CLASSICAL[name])
    told: dict[str, Any] = dict(ffmpeg=ffmpeg, device=device, seed=seed, precision=precision)
    known = {path.stem: path for path in shipped_weights()}
    full = DEFAULT_STUDENT if name == DEFAULT_METRIC else name
    if weights is not None and full.startswith(STUDENT_PREFIX):
        return StudentMetric(full, Path(weights), **told)
    if full not in known:
        hint = "; another student needs --weights FILE" if full.startswith(STUDENT_PREFIX) else ""
        raise InputError(f"unknown metric {name!r}; choose from {', '.join(metric_names())}{hint}")
    return StudentMetric(full, known[full], **told)


def kindred(metric: Metric) -> list[str]:
    """Names of the metrics whose experience serves this one, the best first: any student speaks
    VMAF's scale, as the default one does."""
    return [metric.name] + [DEFAULT_STUDENT] * metric.name.startswith(STUDENT_PREFIX)


def check_canvas(size: tuple[int, int]) -> None:
    """Raise InputError for a size at which no video can be judged."""
    if any(side % 2 or not 16 <= side <= 16384 for side in size):
        raise InputError(
            f"the canvas {size[0]}x{size[1]} must have even sides of 16 to 16384 pixels; give the "
            "size of the original, such as --canvas 1920x1080"
        )


def _avs2_alone(path: Path) -> Source:
    """A raw AVS2 stream as a title: it carries no frame rate, and a score needs none."""
    width, height = read_picture_size(path)
    if not (width and height):
        raise InputError(
            f"{quoted(path)} is no AVS2 stream: it begins with no sequence header; name "
            "another file"
        )
    return Source(
        path=path,
        sha256=file_sha256(path),
        width=width,
        height=height,
        fps=Fraction(25),
        frames=_avs2_pictures(path),
        pix_fmt="yuv420p",
        bit_depth=8,
        input_options=(("f", "avs2"),),
    )


def _avs2_pictures(path: Path) -> int:
    try:
        return len(read_pictures(path))
    except ToolError as error:
        raise InputError(str(error)) from error
