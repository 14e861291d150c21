"""Options of `vqaloop tune`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vqaloop.core.option_fields import kbps, number, option, whole
from vqaloop.core.text import parse_size, size_within
from vqaloop.errors import InputError
from vqaloop.execution.options import JobOptions, PathName, StorageOptions

if TYPE_CHECKING:
    from vqaloop.records import Source

XPSNR_LOSS = 2.0
"""Percent of bitrate at equal XPSNR: less than half of AQ costs, more than a slower search does
(docs/tuning.md)."""
LONGEST = 10_000
"""Most trials of a study."""


@dataclass(frozen=True, kw_only=True)
class TuneOptions(StorageOptions, JobOptions):
    """What `tune_encoder` takes."""

    target_score: float | None = option(
        None, "tune where the title scores S", metavar="S", parse=number
    )
    bitrate: float | None = option(
        None,
        "tune at K kb/s (with neither: a front of bitrate and score)",
        metavar="K",
        parse=kbps,
    )
    trials: int = option(30, "in all", metavar="N", parse=whole)
    sampler: str = option("gp", metavar="gp|tpe|cmaes|nsga2")
    slowdown: float = option(1.1, "most CPU time, times the defaults'", metavar="F", parse=number)
    xpsnr_loss: float = option(
        XPSNR_LOSS, "most percent of bitrate lost at equal XPSNR", metavar="P", parse=number
    )
    resolution: tuple[int, int] | None = option(
        None, "default: the source's", metavar="WxH", parse=parse_size
    )
    out: PathName | None = option(
        None, "default: NAME.CODEC.tune", flags=("-o", "--output"), metavar="DIR", parse=Path
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_score is not None and self.bitrate is not None:
            raise InputError("give a target score or a bitrate, not both")
        if self.bitrate is not None and not 0 < self.bitrate < math.inf:
            raise InputError(f"the bitrate must lie above 0 kb/s, not {self.bitrate:g}")
        check_trials(self.trials)
        if not 0.1 <= self.slowdown <= 100:
            raise InputError(f"the slowdown must lie between 0.1 and 100, not {self.slowdown:g}")
        if not 0 <= self.xpsnr_loss <= 100:
            raise InputError(
                f"the XPSNR loss must lie between 0 and 100 percent, not {self.xpsnr_loss:g}"
            )

    def sizes(self, source: Source) -> Sequence[tuple[int, int]]:
        return [size_within(self.resolution, source.canvas) if self.resolution else source.canvas]


def check_trials(trials: int) -> None:
    """Raises InputError for a number of trials that no study should have."""
    if not 1 <= trials <= LONGEST:
        raise InputError(f"there must be 1 to {LONGEST} trials, not {trials}")
