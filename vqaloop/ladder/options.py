"""Options of `vqaloop ladder`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqaloop.core.option_fields import changed, fault_of, kbps, number, option, whole
from vqaloop.core.text import (
    parse_duration,
    parse_resolutions,
    parse_rungs,
    parse_size,
    size_within,
)
from vqaloop.encoding.registry import codec_names
from vqaloop.errors import InputError
from vqaloop.execution.options import (
    CODECS,
    WORKERS_HELP,
    GuardOptions,
    JobOptions,
    PathName,
    PeakOptions,
    PriorOptions,
    StorageOptions,
    parse_film_grain,
)
from vqaloop.tuning.options import check_trials

if TYPE_CHECKING:
    from vqaloop.execution.executor import Executor
    from vqaloop.records import Source

_FIRST = (
    *("encoder", "resolutions", "metric", "weights", "score_precision", "rungs", "min_step"),
    *("min_ratio", "min_bitrate", "max_bitrate", "min_score", "max_score", "require", "budget_s"),
    *("preset", "bit_depth", "device", "seed", "prior", "tune_trials"),
)
"""The order of `asked` in ladder.json, which files of one request share; the others follow."""


BANDWIDTH_SHARE = 0.7
"""Part of its bandwidth that a player spends on video: what ExoPlayer takes of its estimate
(DEFAULT_BANDWIDTH_FRACTION), and hls.js to switch up (abrBandWidthUpFactor)."""
SHARE_HELP = "part of its bandwidth that a player of the audience spends on video"


def parse_sizes(text: str) -> list[tuple[int, int]]:
    """Sizes with commas between. Raises InputError."""
    return [parse_size(word) for word in text.split(",") if word]


@dataclass(frozen=True, kw_only=True)
class LadderOptions(StorageOptions, PriorOptions, PeakOptions, GuardOptions, JobOptions):
    """What `build_ladder` takes."""

    codec: str = option(
        help="or several with commas, for a ladder each",
        metavar=CODECS,
        parse=codec_names,
        recorded=False,
    )
    workers: int | Executor | None = option(
        None, WORKERS_HELP, metavar="N", parse=whole, recorded=False
    )
    resolutions: Sequence[tuple[int, int]] | None = option(
        None,
        "default: parts of the source's size",
        metavar="WxH,...|NNNp,...|auto",
        parse=parse_resolutions,
        column=True,
    )
    rungs: int | None = option(
        None, "default: auto", metavar="N|auto", parse=parse_rungs, column=True
    )
    min_step: float | None = option(
        None,
        "least difference in score between rungs (default: the metric's)",
        metavar="S",
        parse=number,
        column=True,
    )
    min_ratio: float = option(
        1.4, "least ratio of bitrates between rungs", metavar="R", parse=number, column=True
    )
    min_bitrate: float = option(0.0, "kb/s", metavar="K", parse=kbps, column=True)
    max_bitrate: float = option(math.inf, "kb/s", metavar="K", parse=kbps, column=True)
    min_score: float | None = option(
        None,
        "no rung below it (default: the metric's)",
        metavar="S",
        parse=number,
        column=True,
    )
    max_score: float | None = option(
        None,
        "the top rung is the first to reach it (default: the metric's)",
        metavar="S",
        parse=number,
        column=True,
    )
    require: Sequence[tuple[int, int]] = option(
        (),
        "sizes that must have a rung each, if any can",
        metavar="WxH,...",
        parse=parse_sizes,
        column=True,
    )
    min_top_size: tuple[int, int] | None = option(
        None,
        "the highest rung is no smaller than this, if one can",
        metavar="WxH",
        parse=parse_size,
        column=True,
    )
    min_bottom_size: tuple[int, int] | None = option(
        None, "no rung is smaller than this", metavar="WxH", parse=parse_size, column=True
    )
    audience: PathName | None = option(
        None,
        "place the rungs where they raise the mean score of these sessions most: a CSV with "
        "bandwidth_kbps, share and, if known, height of the screen; or the one that comes along",
        metavar="FILE|default",
        parse=Path,
        column=True,
    )
    bandwidth_share: float = option(
        BANDWIDTH_SHARE, SHARE_HELP, metavar="S", parse=number, column=True
    )
    budget_s: float | None = option(
        None,
        "the best ladder it can find in 90s (or 90), 10min, 1.5h",
        flags=("--budget",),
        metavar="TIME",
        parse=parse_duration,
        column=True,
    )
    no_probe: bool = option(
        False,
        "make the trial encodes of an excerpt at the preset of the rungs, and not at a faster one",
        column=True,
    )
    no_cap: bool = option(
        False,
        "let peaks be: by default no rung has one above 2 times its average",
        column=True,
    )
    two_pass: bool = option(
        False,
        "make each rung in two passes at the average bitrate found for it, for a packager that "
        "wants averages met",
        column=True,
    )
    max_banding: float | None = option(
        None,
        "no rung with more visible banding than this CAMBI, 0 to 17; banding annoys from about 5 "
        "on",
        metavar="C",
        parse=number,
        column=True,
    )
    film_grain: str | int = option(
        "off",
        "of AV1: code a denoised picture, with a table from which decoders synthesise grain: N is "
        "the strength; auto tries it where the source has grain, and keeps it where it scores "
        "better at equal rate (default: off)",
        metavar="auto|off|N",
        parse=parse_film_grain,
        column=True,
    )
    per_shot: bool = option(
        False,
        "a knob of its own for every scene of a rung, by equal slopes, instead of one for all",
        column=True,
    )
    scene_floor: float | None = option(
        None,
        "with --per-shot: points below its rung's score at which a scene may lie at most "
        "(default: 3 of the metric's steps, of VMAF 12, or as far as one knob for the whole title "
        "leaves it)",
        metavar="S",
        parse=number,
        column=True,
    )
    tune_trials: int | None = option(
        None,
        "first tune the encoder's parameters on the title, with N trials (20)",
        flags=("--tune-params",),
        metavar="N",
        parse=whole,
        column=True,
        nargs="?",
        const=20,
    )
    out: PathName | None = option(
        None,
        "default: NAME.CODEC.ladder; of a catalogue: catalogue.ladders",
        flags=("-o", "--output"),
        metavar="DIR",
        parse=Path,
        recorded=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        with fault_of("budget_s", "tune_trials"):
            if self.tune_trials is not None:
                check_trials(self.tune_trials)
                if self.budget_s is not None:
                    raise InputError(
                        "--budget bounds the search alone and does not go with --tune-params; "
                        "tune first with `vqaloop tune`, or leave out one of the two"
                    )
        with fault_of("no_cap", "peak_ratio", "max_peak"):
            if self.no_cap and (self.peak_ratio is not None or self.max_peak is not None):
                raise InputError(
                    "--no-cap leaves peaks as they are and does not go with --peak-ratio and "
                    "--max-peak; leave out one"
                )
        with fault_of("max_banding", "guard"):
            if self.max_banding is not None:
                if not 0 <= self.max_banding < math.inf:
                    raise InputError(
                        f"--max-banding is a CAMBI of 0 or more, not {self.max_banding:g}"
                    )
                if self.guard == "off":
                    raise InputError(
                        "--max-banding is measured by the guard and does not go with --guard off; "
                        "leave out one"
                    )
        self._check_per_shot()
        with fault_of("budget_s"):
            if self.budget_s is not None and not 0 < self.budget_s < math.inf:
                raise InputError(f"the budget must be a time above 0, not {self.budget_s:g} s")

    def _check_per_shot(self) -> None:
        """Raises InputError for what does not go with a ladder of scenes, or with one without."""
        if self.scene_floor is not None:
            with fault_of("scene_floor"):
                if not self.per_shot:
                    raise InputError("--scene-floor is of scenes; give --per-shot too")
                if not 0 < self.scene_floor < math.inf:
                    raise InputError(
                        f"--scene-floor {self.scene_floor:g} is no distance in points: give a "
                        "number above 0"
                    )
        if not self.per_shot:
            return
        with fault_of("per_shot", "budget_s"):
            if self.budget_s is not None:
                raise InputError(
                    "--budget bounds a search over whole encodes and does not go with --per-shot, "
                    "which has none; leave out one of the two"
                )
        with fault_of("per_shot", "two_pass"):
            if self.two_pass:
                raise InputError(
                    "--two-pass makes a rung at one average and does not go with --per-shot, "
                    "whose scenes have knobs of their own; leave out one of the two"
                )
        with fault_of("per_shot", "storage"):
            if self.storage is not None:
                raise InputError(
                    "--per-shot keeps its scenes in the cache, which several processes share, and "
                    "has no study; leave out --storage"
                )

    def sizes(self, source: Source) -> Sequence[tuple[int, int]] | None:
        return self.within(source.canvas).resolutions

    def within(self, canvas: tuple[int, int]) -> LadderOptions:
        """With sizes that have lines alone as wide as a source of this size asks.

        Of several those larger than the source are left out, unless all are: a profile names
        the sizes of all titles.
        """

        def wide(sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
            return [size_within(size, canvas) for size in sizes]

        pixels, sizes = math.prod(canvas), self.resolutions
        fitting = [s for s in sizes or () if s[0] or math.prod(size_within(s, canvas)) <= pixels]
        top, bottom = self.min_top_size, self.min_bottom_size
        return replace(
            self,
            resolutions=sizes and wide(fitting or sizes),
            require=tuple(wide(self.require)),
            min_top_size=top and size_within(top, canvas),
            min_bottom_size=bottom and size_within(bottom, canvas),
        )

    def asked(self) -> dict[str, Any]:
        """What was asked for, as ladder.json has it: all that is not at its default."""
        found = changed(self)
        first = {name: found[name] for name in _FIRST if name in found}
        return {**first, **found}
