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

from vqaloop import metrics, process
from vqaloop.bitstream import avs2_size
from vqaloop.encode import stream_packets
from vqaloop.encoder import default_encoder
from vqaloop.errors import InputError, ToolError
from vqaloop.frames import each_of_source, picks_from
from vqaloop.precision import check_precision
from vqaloop.records import Score, Source
from vqaloop.source import probe_source, read_head
from vqaloop.students import StudentMetric

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
            "preprocessing": f"classical {metrics.REVISION}",
            "decoder": process.file_sha256(self.ffmpeg),
            "sampling": {},
        }

    def measure(self, source: Source, path: Path, decoder: str) -> Score:
        return metrics.measure(source, path, [self.name], ffmpeg=self.ffmpeg)[self.name]

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
    return sorted((Path(__file__).parent / "weights").glob("*.safetensors"))


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


class Scorer:
    """Scores of finished videos: `Scorer().score(video, reference=...)`.

    `metric` is internvqa (the default student), internvqa-NAME, vmaf, xpsnr, psnr or ssim;
    `score_precision` is the `precision` of `open_metric`.
    """

    def __init__(
        self,
        metric: str = DEFAULT_METRIC,
        *,
        device: str = "auto",
        seed: int = 0,
        weights: str | os.PathLike[str] | None = None,
        score_precision: float | None = None,
        ffmpeg: str | os.PathLike[str] | None = None,
        allow_hdr: bool = False,
    ) -> None:
        self.ffmpeg = process.ffmpeg_path(ffmpeg)
        self.metric = open_metric(
            metric,
            ffmpeg=self.ffmpeg,
            device=device,
            seed=seed,
            weights=weights,
            precision=score_precision,
        )
        self.allow_hdr = allow_hdr

    def score(
        self,
        video: str | os.PathLike[str],
        reference: str | os.PathLike[str] | None = None,
        canvas: tuple[int, int] | None = None,
    ) -> Score:
        """0..100, or dB for psnr and xpsnr; anchored to `reference` where there is one.

        Args:
            video: The file. With a reference it is scaled to that one's size and matched with it
                by frame index.
            reference: The original.
            canvas: Without one, the width and height at which the video is judged: that of its
                original, by default as `canvas_of` finds it, else the video's own.

        Raises:
            InputError: for a file that is no video, two of different length, a classical metric
                without a reference, and a canvas beside a reference.
        """
        path = Path(video)
        if reference is not None and canvas is not None:
            raise InputError("a video is judged at its reference's size; leave out --canvas")
        if reference is None:
            if not isinstance(self.metric, StudentMetric):
                raise InputError(
                    f"{self.metric.name} needs the original: give it with --reference"
                )
            if canvas is not None:
                check_canvas(canvas)
            return self.metric.alone(self._probe_alone(path), canvas or self.canvas_of(path))
        source = self._probe(Path(reference))
        if path.suffix.lower() in (".avs2", ".avs"):
            _check_avs2(path, source)
            return self.metric.measure(source, path, "ffmpeg")
        other = self._probe(path)
        if other.frames != source.frames:
            raise InputError(
                f"{path.name!r} has {other.frames} frames and its reference {source.frames}; "
                "frames are matched one to one, so cut both to the same ones"
            )
        if isinstance(self.metric, StudentMetric):
            return self.metric.compare(
                source,
                lambda indices: each_of_source(
                    other, indices, ffmpeg=self.ffmpeg, size=source.canvas
                ),
                # what is decoded from its beginning each time had better be read once
                in_rounds=self.metric.precision is not None and picks_from(other),
            )
        name, prep = self.metric.name, other.prep
        scores = metrics.measure(source, path, [name], ffmpeg=self.ffmpeg, distorted_prep=prep)
        return scores[name]

    def canvas_of(self, video: str | os.PathLike[str]) -> tuple[int, int] | None:
        """The size of the original of a ladder's rung, as the ladder.json beside it has it.

        None for what is no rung, and for metrics that do not look at crops.
        """
        from vqaloop.report import read_ladder

        path = Path(video)
        if not isinstance(self.metric, StudentMetric) or not self.metric.sees_crops:
            return None
        try:
            ladder = read_ladder(path.parent)
        except InputError:
            return None
        if path.name not in [rung.file for rung in ladder.rungs]:
            return None
        about = ladder.about["source"]
        size = about["width"] // 2 * 2, about["height"] // 2 * 2
        check_canvas(size)
        return size

    def _probe_alone(self, path: Path) -> Source:
        head = read_head(path)
        is_avs2 = path.suffix.lower() in (".avs2", ".avs") or head.startswith(AVS2_START)
        return _avs2_alone(path) if is_avs2 else self._probe(path)

    def _probe(self, path: Path) -> Source:
        return probe_source(path, allow_hdr=self.allow_hdr, ffmpeg=self.ffmpeg)


AVS2_START = b"\0\0\1\xb0"
"""What a raw AVS2 stream begins with: the start code of its sequence header."""


def check_canvas(size: tuple[int, int]) -> None:
    """Raise InputError for a size at which no video can be judged."""
    if any(side % 2 or not 16 <= side <= 16384 for side in size):
        raise InputError(
            f"the canvas {size[0]}x{size[1]} must have even sides of 16 to 16384 pixels; give the "
            "size of the original, such as --canvas 1920x1080"
        )


def _avs2_alone(path: Path) -> Source:
    """A raw AVS2 stream as a title: it carries no frame rate, and a score needs none."""
    width, height = avs2_size(path)
    if not (width and height):
        raise InputError(
            f"{process.quoted(path)} is no AVS2 stream: it begins with no sequence header; name "
            "another file"
        )
    rate = Fraction(25)
    return Source(
        path=path,
        sha256=process.file_sha256(path),
        width=width,
        height=height,
        fps=rate,
        frames=_avs2_pictures(path, rate),
        pix_fmt="yuv420p",
        bit_depth=8,
        input_options=(("f", "avs2"),),
    )


def _avs2_pictures(path: Path, rate: Fraction) -> int:
    try:
        return len(stream_packets(path, default_encoder("avs2"), rate))
    except ToolError as error:
        raise InputError(str(error)) from error


def _check_avs2(path: Path, source: Source) -> None:
    """Raise InputError unless it is a raw AVS2 stream of as many pictures as the source."""
    if not path.is_file():
        raise InputError(f"{process.quoted(path)} does not exist")
    pictures = _avs2_pictures(path, source.fps)
    if pictures != source.frames:
        raise InputError(
            f"{process.quoted(path)} has {pictures} frames and its reference {source.frames}; "
            "frames are matched one to one, so cut both to the same ones"
        )
