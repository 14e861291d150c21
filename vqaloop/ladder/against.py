"""A ladder against a fixed one or another: what an audience gets of each, and what that costs.

Mean score, egress and storage. The rungs of a fixed ladder are not encoded: their scores are
interpolated on what was measured of this very title, so that both have its encoder and metric.
"""

import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vqaloop.core.text import counted, quoted
from vqaloop.core.version import __version__
from vqaloop.errors import InputError
from vqaloop.ladder.compare import check_same_title, has_same_metric, settings
from vqaloop.ladder.options import BANDWIDTH_SHARE
from vqaloop.ladder.store import read_ladder
from vqaloop.records import Ladder, RDPoint, rounded
from vqaloop.search.audience import (
    DEFAULT,
    Audience,
    Delivered,
    audience_of,
    check_share,
    delivered,
    read_audience,
)
from vqaloop.search.hull import front

SCHEMA = "vqaloop.ladder-against/1"
ALIKE = 1.25
"""Ratio of pixels up to which a measured size stands for a rung's."""
GB_HOUR = 3600 / 8 / 1e6
"""GB an hour at 1 kb/s."""

Table = tuple[tuple[int, int, float], ...]
"""Width, height and kb/s of each rung."""


@dataclass(frozen=True)
class FixedLadder:
    """A published ladder, the same for all titles."""

    title: str
    source: str
    """Where it was published."""
    rungs: dict[str, Table]
    """By codec; the last one serves codecs that it does not name."""

    def rungs_for(self, codec: str) -> tuple[str, Table]:
        """The codec that the table was made for, and the table."""
        name = codec if codec in self.rungs else list(self.rungs)[-1]
        return name, self.rungs[name]


FIXED = {
    "apple": FixedLadder(
        "Apple's HLS authoring table",
        # its two tables row by row: H.264/AVC, and HEVC/H.265 30 fps (SDR)
        "HLS Authoring Specification for Apple Devices, 1.25: average bit rates, 16:9, SDR, "
        "30 fps (developer.apple.com/documentation/http-live-streaming)",
        {
            "h264": (
                *((416, 234, 145), (640, 360, 365), (768, 432, 730), (768, 432, 1100)),
                *((960, 540, 2000), (1280, 720, 3000), (1280, 720, 4500)),
                *((1920, 1080, 6000), (1920, 1080, 7800)),
            ),
            "hevc": (
                *((640, 360, 145), (768, 432, 300), (960, 540, 600), (960, 540, 900)),
                *((960, 540, 1600), (1280, 720, 2400), (1280, 720, 3400)),
                *((1920, 1080, 4500), (1920, 1080, 5800), (2560, 1440, 8100)),
                *((3840, 2160, 11600), (3840, 2160, 16800)),
            ),
        },
    ),
    "netflix2015": FixedLadder(
        "Netflix's fixed ladder of 2015",
        "Per-Title Encode Optimization, Netflix Technology Blog, 14 December 2015",
        {
            "h264": (
                *((320, 240, 235), (384, 288, 375), (512, 384, 560), (512, 384, 750)),
                *((640, 480, 1050), (720, 480, 1750), (1280, 720, 2350), (1280, 720, 3000)),
                *((1920, 1080, 4300), (1920, 1080, 5800)),
            ),
        },
    ),
}


@dataclass(frozen=True)
class Offered:
    """A rung that an audience is offered."""

    width: int
    height: int
    bitrate_kbps: float
    score: float
    basis: str
    """Where the score is from: measured; size, interpolated between measurements of its size;
    hull, between those of any; beyond, outside of all that was measured."""


@dataclass(frozen=True)
class Offer:
    """A ladder as an audience sees it."""

    name: str
    rungs: tuple[Offered, ...]
    delivered: Delivered

    @property
    def storage_kbps(self) -> float:
        """Bitrates of all rungs together."""
        return math.fsum(rung.bitrate_kbps for rung in self.rungs)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "score": rounded(self.delivered.score),
            "egress_kbps": rounded(self.delivered.kbps),
            "storage_kbps": rounded(self.storage_kbps),
            "unserved": rounded(self.delivered.unserved),
            "rungs": [
                {
                    "width": rung.width,
                    "height": rung.height,
                    "bitrate_kbps": rounded(rung.bitrate_kbps),
                    "score": rounded(rung.score),
                    "basis": rung.basis,
                }
                for rung in self.rungs
            ],
        }


@dataclass(frozen=True)
class Against:
    """A ladder, what it is set against, and for whom."""

    ladder: Ladder
    audience: Audience
    a: Offer
    b: Offer
    notes: tuple[str, ...]

    @property
    def gain(self) -> float:
        """Mean score that A delivers above B."""
        return self.a.delivered.score - self.b.delivered.score

    def to_json(self) -> dict[str, Any]:
        audience = self.audience.to_json()
        return {
            "schema": SCHEMA,
            "vqaloop": __version__,
            "metric": self.ladder.about["metric"],
            "audience": audience,
            "score_gain": rounded(self.gain),
            "egress_percent": rounded(percent(self.a.delivered.kbps, self.b.delivered.kbps)),
            "storage_percent": rounded(percent(self.a.storage_kbps, self.b.storage_kbps)),
            "a": self.a.to_json(),
            "b": self.b.to_json(),
            "notes": list(self.notes),
        }


def percent(ours: float, theirs: float) -> float:
    """By how much `ours` is more, in percent; NaN where they have nothing."""
    return 100 * (ours / theirs - 1) if theirs else math.nan


def ladder_against(
    ladder: Ladder | str | os.PathLike[str],
    other: str | os.PathLike[str],
    *,
    audience: str | os.PathLike[str] | None = None,
    bandwidth_share: float | None = None,
) -> Against:
    """A ladder against a fixed one or another of its title, for an audience.

    Mean score, egress and storage, as `vqaloop report --against` prints them. Rungs of a fixed
    ladder are not encoded: their scores are interpolated on what was measured of this title.

    Args:
        ladder: The ladder, its folder or its ladder.json.
        other: "apple", "netflix2015", or a ladder's folder or ladder.json.
        audience: Path of a table of sessions (bandwidth_kbps, share, height), or "default"; None:
            the ladder's own, else the default one.
        bandwidth_share: Part of its bandwidth that a player spends on video, above 0, up to 1;
            None: that of the ladder's own audience, else 0.7.

    Returns:
        Both as the audience gets them; `gain` is the mean score that the first delivers above the
        other, `to_json()` the document `vqaloop.ladder-against/1`.

    Raises:
        InputError: A ladder or table cannot be read, or the other is not of the same title and
            metric.
    """
    made = ladder if isinstance(ladder, Ladder) else read_ladder(ladder)
    own = made.about.get("audience")
    if audience is None and own:
        crowd = audience_of(own)
        crowd = (
            crowd if bandwidth_share is None else replace(crowd, bandwidth_share=bandwidth_share)
        )
    else:
        share = BANDWIDTH_SHARE if bandwidth_share is None else bandwidth_share
        crowd = read_audience(audience or DEFAULT, share)
    check_share(crowd.bandwidth_share)
    return set_against(made, os.fspath(other), crowd)


def set_against(ladder: Ladder, other: str, audience: Audience) -> Against:
    """A ladder against a fixed one by its name in FIXED, or against the ladder of a path.

    Raises InputError where the other is not of the same title and metric.
    """
    ours = _offer(str(ladder.folder), _measured(ladder), audience)
    if other in FIXED:
        fixed = FIXED[other]
        rungs, notes = _fixed_rungs(ladder, fixed)
        theirs = _offer(fixed.title, rungs, audience)
        notes = [*notes, f"the table: {fixed.source}"]
    else:
        against = _other_ladder(ladder, other)
        theirs, notes = _offer(str(against.folder), _measured(against), audience), []
    return Against(ladder, audience, ours, theirs, tuple(notes))


def _other_ladder(ladder: Ladder, other: str) -> Ladder:
    if not Path(other).exists():
        raise InputError(
            f"--against {quoted(other)} is neither {' nor '.join(FIXED)} nor a ladder's folder or "
            "ladder.json"
        )
    against = read_ladder(other)
    check_same_title(ladder, against)
    if not has_same_metric(ladder, against):
        one, two = (settings(each) for each in (ladder, against))
        key = "weights" if one["metric"] == two["metric"] else "metric"
        raise InputError(
            f"the scores of the two ladders do not compare: the {key} of one is {one[key]} and of "
            f"the other {two[key]}; make one of them again with the other's"
        )
    return against


def _offer(name: str, rungs: Sequence[Offered], audience: Audience) -> Offer:
    return Offer(name, tuple(rungs), delivered(audience, rungs))


def _measured(ladder: Ladder) -> list[Offered]:
    return [Offered(r.width, r.height, r.bitrate_kbps, r.score, "measured") for r in ladder.rungs]


def _fixed_rungs(ladder: Ladder, fixed: FixedLadder) -> tuple[list[Offered], list[str]]:
    """Its rungs that the title's source has the pixels for, and what is to be said of them."""
    about = ladder.about
    codec, table = fixed.rungs_for(about["codec"])
    side = min(about["source"]["width"], about["source"]["height"])
    kept = [rung for rung in table if min(rung[:2]) <= side]
    notes = []
    if len(kept) < len(table):
        lost = counted(len(table) - len(kept), "rung")
        notes.append(f"left out: {lost} larger than the source")
    if not kept:
        source = about["source"]["width"], about["source"]["height"]
        kept = [(*source, table[0][2])]
        notes = ["the source is smaller than every rung: the lowest is taken at its size"]
    points = _points(ladder)
    rungs = [Offered(w, h, kbps, *_score_at(points, (w, h), kbps)) for w, h, kbps in kept]
    basis = Counter(rung.basis for rung in rungs)
    notes.insert(
        0,
        f"scores of {fixed.title} are interpolated on this title's measurements: "
        f"{basis['size']} of {counted(len(rungs), 'rung')} at their own size, {basis['hull']} on "
        f"the hull of all sizes, {basis['beyond']} beyond all that was measured",
    )
    if codec != about["codec"]:
        notes.append(f"its rates are for {codec}, and the ladder is {about['codec']}")
    return rungs, notes


def _points(ladder: Ladder) -> list[RDPoint]:
    """What was measured over the whole title."""
    found = {
        (trial["width"], trial["height"], trial["knob"]): (trial["bitrate_kbps"], trial["score"])
        for trial in ladder.about["trials"]
        if trial.get("whole_title", True) and trial["score"] is not None
    }
    found |= {(r.width, r.height, r.knob[1]): (r.bitrate_kbps, r.score) for r in ladder.rungs}
    return [RDPoint(*key, *value) for key, value in found.items()]


def _score_at(points: Sequence[RDPoint], size: tuple[int, int], kbps: float) -> tuple[float, str]:
    """The score at that size and rate, linear over log rate, and where it is from."""
    pixels = math.prod(size)
    nearest = min({p.size for p in points}, key=lambda s: abs(math.log(math.prod(s) / pixels)))
    own = front(p for p in points if p.size == nearest)
    ratio = math.prod(nearest) / pixels
    alike = max(ratio, 1 / ratio) <= ALIKE and len(own) > 1
    if alike and own[0].bitrate_kbps <= kbps <= own[-1].bitrate_kbps:
        return _interpolated(own, kbps), "size"
    every = front(points)
    inside = every[0].bitrate_kbps <= kbps <= every[-1].bitrate_kbps
    return _interpolated(every, kbps), "hull" if inside else "beyond"


def _interpolated(rising: Sequence[RDPoint], kbps: float) -> float:
    """Beyond the last point its score; below the first as between the first two, from 0."""
    rates, scores = [math.log(p.bitrate_kbps) for p in rising], [p.score for p in rising]
    if math.log(kbps) < rates[0] and len(rising) > 1:
        slope = (scores[1] - scores[0]) / (rates[1] - rates[0])
        return max(0.0, scores[0] + slope * (math.log(kbps) - rates[0]))
    return float(np.interp(math.log(kbps), rates, scores))


def rung_words(rungs: Iterable[Offered]) -> list[list[str]]:
    """Rows of a table: size, kb/s, score, basis."""
    return [
        [f"{r.width}x{r.height}", f"{r.bitrate_kbps:.0f}", f"{r.score:.1f}", r.basis]
        for r in rungs
    ]
