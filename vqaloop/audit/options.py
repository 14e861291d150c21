"""Options of `vqaloop audit`."""

import os
from dataclasses import dataclass
from pathlib import Path

from vqaloop.core.option_fields import number, option
from vqaloop.encoding.registry import codec_names
from vqaloop.execution.options import CODECS, Scoring


@dataclass(frozen=True, kw_only=True)
class AuditOptions(Scoring):
    """What an audit is held against, and what it is set against."""

    source: str | os.PathLike[str] = option(
        help="what the ladder was made of: its rungs have the same frames",
        metavar="FILE",
        parse=Path,
    )
    step: float | None = option(
        None,
        "points that a viewer could notice (default: the metric's own)",
        parse=number,
        metavar="S",
    )
    ceiling: float | None = option(
        None,
        "score above which more bits are not seen (default: the metric's own)",
        parse=number,
        metavar="S",
    )
    against_ladder: str | os.PathLike[str] | None = option(
        None,
        "a ladder of vqaloop's of the same source and metric: say what it saves",
        metavar="LADDER",
        parse=Path,
    )
    build: str | None = option(
        None, "build that ladder first, with this codec", metavar=CODECS, parse=codec_names
    )
    allow_hdr: bool = option(False, "take PQ and HLG, though SDR metrics do not hold for them")
