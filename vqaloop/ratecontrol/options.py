"""Options of `vqaloop encode`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vqaloop.core.option_fields import kbps, number, option, whole
from vqaloop.errors import InputError
from vqaloop.execution.options import (
    GuardOptions,
    JobOptions,
    PeakOptions,
    PriorOptions,
    parse_film_grain,
)
from vqaloop.quality.time_pooling import check_pool


@dataclass(frozen=True, kw_only=True)
class EncodeOptions(PriorOptions, PeakOptions, GuardOptions, JobOptions):
    """What `encode_to_target` takes."""

    target_score: float | None = option(None, "of the whole title", metavar="S", parse=number)
    bitrate: float | None = option(
        None, "instead: the best score at K kb/s", metavar="K", parse=kbps
    )
    allocation: str | None = option(
        None,
        "every scene at the target, or bits where they buy most (default: target; of --bitrate "
        "equal-slope)",
        metavar="target|equal-slope",
    )
    max_bitrate: float | None = option(None, "cap of every scene, kb/s", metavar="K", parse=kbps)
    max_encodes: int | None = option(
        None, "in all, with those that caps take", metavar="N", parse=whole
    )
    film_grain: int | str = option(
        "off",
        "of AV1: code a denoised picture, with a table of strength N, from which decoders "
        "synthesise grain (default: off)",
        metavar="off|N",
        parse=parse_film_grain,
    )
    one_run: bool = option(
        False, "the knobs found as zones of one run over the whole (x264, x265)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.target_score is None) == (self.bitrate is None):
            raise InputError("give --target-score S, or --bitrate K to spend best; one of the two")
        if self.allocation not in (None, "target", "equal-slope"):
            raise InputError(f"--allocation {self.allocation!r} is neither target nor equal-slope")
        if self.film_grain == "auto":
            raise InputError(
                "--film-grain auto is of `vqaloop ladder`, which tries whether a table pays, and "
                "says of what strength; give that strength, or off"
            )
        check_pool(self.pool)
        if self.pool != "mean" and self.how == "equal-slope":
            raise InputError(
                f"--pool {self.pool} goes with a target score that every scene is brought to; "
                "equal slopes (--bitrate, --allocation equal-slope) raise the mean, so leave out "
                "--pool"
            )

    @property
    def how(self) -> Literal["target", "equal-slope"]:
        """The allocation asked for, or the one that goes with the target."""
        if self.allocation is None:
            return "target" if self.bitrate is None else "equal-slope"
        return "target" if self.allocation == "target" else "equal-slope"
