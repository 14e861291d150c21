"""Metrics by name: the students whose weights come with the package, and those of ffmpeg."""

import os
from pathlib import Path

from vqaloop.core.resources import WEIGHTS
from vqaloop.errors import InputError
from vqaloop.quality.classical_metric import CLASSICAL, ClassicalMetric
from vqaloop.quality.crop_sampling import CropSampling
from vqaloop.quality.cvvdp_metric import DEFAULT_DISPLAY, CvvdpUse
from vqaloop.quality.cvvdp_metric import NAME as CVVDP
from vqaloop.quality.metric import Metric
from vqaloop.quality.sampled_vmaf import SAMPLED, SampledVmaf
from vqaloop.quality.sampling_precision import check_precision
from vqaloop.quality.ssimulacra2_metric import NAME as SSIMULACRA2
from vqaloop.quality.ssimulacra2_metric import Ssimulacra2
from vqaloop.quality.student_engine import StudentEngine
from vqaloop.quality.student_metric import StudentMetric

DEFAULT_METRIC = "internvqa"
DEFAULT_STUDENT = "internvqa-mini"
"""The student behind `DEFAULT_METRIC`, on every device; docs/model-card.md says why."""
STUDENT_PREFIX = "internvqa-"
CVVDP_AS_FOUND = CvvdpUse()


def metric_names() -> list[str]:
    """All that --metric takes: `internvqa` for the default student, the students, the others."""
    return [
        DEFAULT_METRIC,
        *(path.stem for path in shipped_weights()),
        *SAMPLED,
        *CLASSICAL,
        SSIMULACRA2,
        CVVDP,
    ]


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
    prompt: str | os.PathLike[str] | None = None,
    precision: float | None = None,
    cvvdp: CvvdpUse = CVVDP_AS_FOUND,
) -> Metric:
    """The metric of that name. Nothing heavy is loaded before its first score.

    Args:
        name: One of `metric_names`, or `internvqa-NAME` with `weights` of its own.
        ffmpeg: Path of the ffmpeg binary.
        device: auto, cpu or cuda; where a student's network runs.
        seed: Of the positions of a student's crops.
        weights: A student's weights in the place of the shipped ones.
        prompt: Of the student, shipped or by `weights`: what adapts its scores.
        precision: Half-width of a score's interval at which a student scores no further
            positions (see `quality/sampling_precision.py`); None: all positions.
        cvvdp: The display and the program of ColorVideoVDP.

    Raises:
        InputError: The name is unknown, the metric takes no precision, prompt or display, or its
            package or program is not installed.
    """
    if name != CVVDP and cvvdp.display != DEFAULT_DISPLAY:
        raise InputError(f"{name} is of no display; leave out --display, or take --metric cvvdp")
    check_precision(precision)
    if prompt is not None and name in (*CLASSICAL, *SAMPLED, SSIMULACRA2, CVVDP):
        raise InputError(f"{name} takes no prompt; leave out --prompt or --metric")
    if name in CLASSICAL:
        if precision is not None:
            raise InputError(f"{name} looks at all frames; leave out --score-precision")
        return ClassicalMetric(name, ffmpeg, *CLASSICAL[name])
    if name in (*SAMPLED, SSIMULACRA2, CVVDP) and precision is not None:
        raise InputError(f"{name} measures all its places; leave out --score-precision")
    if name in SAMPLED:
        return SampledVmaf(name, ffmpeg, CropSampling(seed=seed))
    if name == SSIMULACRA2:
        return Ssimulacra2(ffmpeg, CropSampling(seed=seed))
    if name == CVVDP:
        return cvvdp.opened(ffmpeg, seed, device)
    full = DEFAULT_STUDENT if name == DEFAULT_METRIC else name
    is_student = full.startswith(STUDENT_PREFIX)
    shipped = {path.stem: path for path in shipped_weights()}
    file = Path(weights) if weights is not None and is_student else shipped.get(full)
    if file is None:
        hint = "; another student needs --weights FILE" if is_student else ""
        raise InputError(f"unknown metric {name!r}; choose from {', '.join(metric_names())}{hint}")
    sampling = CropSampling(seed=seed, precision=precision)
    engine = StudentEngine(file, device, prompt=None if prompt is None else Path(prompt))
    return StudentMetric(full, engine, ffmpeg, sampling)


def kindred(metric: Metric) -> list[str]:
    """Names of the metrics whose priors serve this one too, the best first.

    The score of any student is in VMAF points, as the default one's: other weights predict VMAF
    too, or are mapped to it. Sampled VMAF estimates VMAF.
    """
    if metric.name in SAMPLED:
        return [metric.name, "vmaf"]
    return [metric.name] + [DEFAULT_STUDENT] * metric.name.startswith(STUDENT_PREFIX)
