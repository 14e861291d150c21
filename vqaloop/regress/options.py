"""Options of `vqaloop regress`, of which the pytest plugin takes some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vqaloop.core.option_fields import (
    number,
    numbers,
    option,
    rates,
    read_texts,
    whole,
    words,
)
from vqaloop.core.text import parse_duration, parse_resolutions
from vqaloop.encoding.registry import codec_names
from vqaloop.errors import InputError
from vqaloop.execution.options import CODECS, Encoding, MetricOptions, PathName

if TYPE_CHECKING:
    from vqaloop.records import Watcher

RUN = "what is run"
WORSE = "what is worse, in percent"
BISECTION = "which commit made a build worse"
BUILD_LIMIT_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class BisectOptions:
    """Where a bisection takes its builds from; the command that makes one stands behind `--`."""

    bisect: Sequence[str] = option(
        (),
        "find the first commit after GOOD, up to BAD, whose build is worse than GOOD's; behind -- "
        "stands the command that builds it, run in a worktree of its own",
        group=BISECTION,
        nargs=2,
        metavar=("GOOD", "BAD"),
    )
    repository: PathName = option(
        ".", "a checkout of the encoder, which is left as it is", group=BISECTION, metavar="DIR"
    )
    program: PathName | None = option(
        None,
        "the encoder that the command makes, from the top of the tree",
        group=BISECTION,
        metavar="PATH",
    )
    state: PathName | None = option(
        None,
        "where verdicts are kept, so that the same command goes on after an interruption "
        "(default: REPOSITORY.bisect in the current folder)",
        group=BISECTION,
        metavar="DIR",
        parse=Path,
    )
    build_limit_s: float = option(
        BUILD_LIMIT_S,
        "a build that takes longer is skipped (default: 1h)",
        flags=("--build-limit",),
        group=BISECTION,
        parse=parse_duration,
        metavar="S",
    )


@dataclass(frozen=True, kw_only=True)
class RegressOptions(MetricOptions, Encoding):
    """What `compare_builds` takes."""

    # the trend of a history needs neither
    codec: str = option(metavar=CODECS, parse=codec_names, required=False)
    baseline: PathName = option(
        help="an ffmpeg ('bundled' for vqaloop's own), a standalone encoder (x264, x265, "
        "SvtAv1EncApp, aomenc, vpxenc, rav1e), or a result that --save wrote",
        metavar="BUILD",
        parse=Path,
        required=False,
    )
    candidate: PathName | None = option(None, "the build in question", metavar="BUILD", parse=Path)
    clips: Sequence[PathName]
    preset: str | None = option(None, "the encoder's preset", group=RUN, metavar="P")
    knobs: Sequence[float] = option(
        (),
        "four or more of the quality knob (default: of its range)",
        group=RUN,
        metavar="V,...",
        parse=numbers,
    )
    bitrates: Sequence[float] = option(
        (), "target bitrates in kb/s instead", group=RUN, metavar="K,...", parse=rates
    )
    resolutions: Sequence[tuple[int, int]] = option(
        (),
        "sizes, compared by hulls (default: the clip's)",
        group=RUN,
        metavar="WxH,...",
        parse=lambda text: parse_resolutions(text) or (),
    )
    frames: int | None = option(
        None, "of each clip the first N", group=RUN, metavar="N", parse=whole
    )
    bit_depth: int | None = option(
        None, "default: the clip's", group=RUN, metavar="8|10", parse=whole
    )
    baseline_args: str | Sequence[str] = option((), group=RUN, metavar="TEXT")
    candidate_args: str | Sequence[str] = option((), group=RUN, metavar="TEXT")
    timeout_s: float | None = option(
        None,
        "a run that takes longer hangs",
        flags=("--time-limit",),
        group=RUN,
        metavar="S",
        parse=parse_duration,
    )
    save: PathName | None = option(
        None, "keep the baseline's runs", group=RUN, metavar="FILE", parse=Path
    )
    threshold: float = option(
        0.5,
        "mean BD-rate (default: 0.5; never below the noise floor)",
        group=WORSE,
        metavar="P",
        parse=number,
    )
    clip_threshold: float = option(
        5.0, "BD-rate of a single clip", group=WORSE, metavar="P", parse=number
    )
    time_threshold: float | None = option(None, "CPU time", group=WORSE, metavar="P", parse=number)
    memory_threshold: float | None = option(
        None, "peak memory", group=WORSE, metavar="P", parse=number
    )
    rate_threshold: float | None = option(
        None, "bitrate at equal knob, or off target", group=WORSE, metavar="P", parse=number
    )
    gate: Sequence[str] = option(
        (),
        "metrics that may call a regression (default: the --metric, vmaf and psnr_y)",
        group=WORSE,
        metavar="NAME,...",
        parse=words,
    )
    allow_hdr: bool = option(False, "take PQ and HLG all the same")
    progress: Watcher = lambda event: None

    def __post_init__(self) -> None:
        from vqaloop.execution.checks import check_run

        read_texts(self)
        if self.progress is None:
            object.__setattr__(self, "progress", lambda event: None)
        check_run(self.workers, self.seed, self.device, self.timeout_s)
        for name in ("threshold", "clip", "time", "memory", "rate"):
            name = name if name == "threshold" else f"{name}_threshold"
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise InputError(
                    f"--{name.replace('_', '-')} is in percent and not below 0; it is {value:g}"
                )
        if self.frames is not None and self.frames < 2:
            raise InputError(f"--frames must be at least 2; it is {self.frames}")
