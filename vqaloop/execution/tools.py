"""What a job works with, chosen and checked before its input is looked at: the program, the
encoder with its preset, and the metric."""

from dataclasses import dataclass

from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.core.option_fields import fault_of
from vqaloop.encoding import checks
from vqaloop.encoding.spec import EncoderSpec
from vqaloop.errors import InputError
from vqaloop.execution.options import JobOptions, MetricOptions
from vqaloop.quality.cvvdp_metric import CvvdpUse
from vqaloop.quality.full_reference import CAMBI
from vqaloop.quality.metric import Metric
from vqaloop.quality.registry import open_metric
from vqaloop.quality.time_pooling import check_pool


@dataclass(frozen=True)
class Tools:
    """Program, encoder, preset and metric of a job."""

    ffmpeg: str
    """Path of the program."""
    spec: EncoderSpec
    preset: str
    metric: Metric


def chosen_tools(options: JobOptions) -> Tools:
    """The tools that options ask for. Raises InputError, and EncoderMissing."""
    spec, preset = chosen_encoder(options)
    return Tools(ffmpeg_path(options.ffmpeg), spec, preset, chosen_metric(options))


def chosen_encoder(options: JobOptions) -> tuple[EncoderSpec, str]:
    """The encoder and its preset. Raises InputError, which names the options at fault."""
    with fault_of("codec", "encoder"):
        spec = checks.choose_encoder(options.codec, options.encoder, ffmpeg_path(options.ffmpeg))
    with fault_of("preset"):
        preset = checks.checked_preset(spec, options.preset)
    if options.bit_depth is not None:
        with fault_of("bit_depth"):
            checks.check_depth(spec, options.bit_depth)
    return spec, preset


def chosen_metric(options: MetricOptions) -> Metric:
    """The metric. Raises InputError, which names the options at fault."""
    check_pool(options.pool)
    with fault_of("metric", "weights", "prompt", "score_precision", "display"):
        if options.metric == CAMBI:
            raise InputError(
                "cambi measures banding alone, and less is better: it steers nothing; choose "
                "another metric, and bound the banding of a ladder with --max-banding"
            )
        return open_metric(
            options.metric,
            ffmpeg=ffmpeg_path(options.ffmpeg),
            device=options.device,
            seed=options.seed,
            weights=options.weights,
            prompt=options.prompt,
            precision=options.score_precision,
            cvvdp=CvvdpUse(options.display, options.cvvdp),
        )
