"""Rungs for an audience: the ladder with the highest mean score that its sessions are delivered.

A session takes the highest rung whose bitrate is at most a share of its bandwidth and which is no
taller than its screen; the lowest rung may be taller. One for which even that has too high a rate
would stall, and scores 0. This is the problem of Toni et al. (ACM TOMM 11(2s), 2015) and of Reznik
et al. (Packet Video Workshop 2018) for one title, solved exactly on the points of its hull.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vqaloop.core.csv_tables import number, records, whole
from vqaloop.core.option_fields import fault_of
from vqaloop.core.text import quoted
from vqaloop.errors import InputError
from vqaloop.records import RDPoint

DEFAULT = "default"
"""Name of the audience that comes with the package."""
DEFAULT_MEDIAN_KBPS, DEFAULT_SIGMA = 8960.0, 0.873
"""Of the log-normal bandwidth of the default audience: fitted to the world's shares of addresses
that connected at 10, 15 and 25 Mb/s or more, 45, 28 and 12 % (Akamai, State of the Internet,
first quarter of 2017), which it has as 45.0, 27.8 and 12.0 %."""
DEFAULT_CLASSES = 50
"""Sessions of the default audience, of equal shares."""
MOST_CLASSES = 2000
"""Rows of a table of sessions."""
PREDICTED = 1.02
"""Factor on bitrates not yet measured, which come out a bit off: a rung that is just above what a
session's player takes is lost to it."""

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Session:
    """A class of sessions alike."""

    bandwidth_kbps: float
    share: float
    """Part of all sessions."""
    height: int | None = None
    """Lines of the screen, its shorter side; None: it takes any."""


@dataclass(frozen=True)
class Audience:
    """Sessions, and how much of their bandwidth a player spends on video."""

    name: str
    sessions: tuple[Session, ...]
    """Their shares add up to 1."""
    bandwidth_share: float
    """Above 0, up to 1."""

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "bandwidth_share": self.bandwidth_share,
            "sessions": [[s.bandwidth_kbps, s.share, s.height] for s in self.sessions],
        }


class Rendered(Protocol):
    """What of a rung, or of a point that may become one, decides who takes it."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def bitrate_kbps(self) -> float: ...
    @property
    def score(self) -> float: ...


@dataclass(frozen=True)
class Delivered:
    """What an audience gets of a ladder, in the mean over its sessions."""

    score: float
    kbps: float
    unserved: float
    """Part of the sessions that have too little bandwidth for the lowest rung."""


def read_audience(name: str | os.PathLike[str], bandwidth_share: float) -> Audience:
    """The default audience, or that of a table with bandwidth_kbps, share and height (optional).

    Raises InputError.
    """
    check_share(bandwidth_share)
    if os.fspath(name) == DEFAULT:
        return Audience(DEFAULT, _default_sessions(), bandwidth_share)
    with fault_of("audience"):
        found = _read_sessions(Path(name))
    total = math.fsum(session.share for session in found)
    scaled = (Session(s.bandwidth_kbps, s.share / total, s.height) for s in found)
    return Audience(Path(name).name, tuple(scaled), bandwidth_share)


def check_share(bandwidth_share: float) -> None:
    """Raises InputError for a part of bandwidths that none is."""
    if not 0 < bandwidth_share <= 1:
        with fault_of("bandwidth_share"):
            raise InputError(
                f"--bandwidth-share must lie above 0 and up to 1, not {bandwidth_share:g}"
            )


def _default_sessions() -> tuple[Session, ...]:
    from scipy.special import ndtri

    parts = (np.arange(DEFAULT_CLASSES) + 0.5) / DEFAULT_CLASSES
    rates = DEFAULT_MEDIAN_KBPS * np.exp(DEFAULT_SIGMA * ndtri(parts))
    return tuple(Session(round(rate, 1), 1 / DEFAULT_CLASSES) for rate in rates.tolist())


def _read_sessions(path: Path) -> list[Session]:
    found = []
    needed = {"bandwidth_kbps": ("bandwidth", "kbps"), "share": ("sessions",)}
    for at, row in records(path, needed, spaces=False):
        rate = number(row["bandwidth_kbps"], at, "bandwidth in kb/s", (1, 1e8))
        share = number(row["share"], at, "share", (0, 1e12))
        height = whole(row["height"], at, "height") if row.get("height") else None
        found.append(Session(rate, share, height))
    if len(found) > MOST_CLASSES:
        raise InputError(
            f"{quoted(path)} has {len(found)} rows; put sessions of like bandwidth together, "
            f"{MOST_CLASSES} rows at most"
        )
    if not any(session.share for session in found):
        raise InputError(f"{quoted(path)} has no sessions; give at least one a share above 0")
    return found


def audience_of(document: dict[str, Any]) -> Audience:
    """The audience of a ladder.json, as `Audience.to_json` wrote it."""
    sessions = tuple(Session(*session) for session in document["sessions"])
    return Audience(document["name"], sessions, document["bandwidth_share"])


def delivered(audience: Audience, rungs: Sequence[Rendered]) -> Delivered:
    """What the audience gets of these rungs."""
    score = kbps = unserved = 0.0
    for session in audience.sessions:
        rung = rung_taken(session, rungs, audience.bandwidth_share)
        if rung is None:
            unserved += session.share
        else:
            score += session.share * rung.score
            kbps += session.share * rung.bitrate_kbps
    return Delivered(score, kbps, unserved)


def rung_taken(
    session: Session, rungs: Sequence[Rendered], bandwidth_share: float
) -> Rendered | None:
    """The rung that a session plays; None where it has too little bandwidth for any."""
    budget = bandwidth_share * session.bandwidth_kbps
    able = sorted((r for r in rungs if r.bitrate_kbps <= budget), key=lambda r: r.bitrate_kbps)
    fit = [r for r in able if _fits_screen(r, session)]
    return fit[-1] if fit else able[0] if able else None


def _fits_screen(rung: Rendered, session: Session) -> bool:
    return session.height is None or min(rung.width, rung.height) <= session.height


def best_rungs(
    points: Sequence[RDPoint],
    audience: Audience,
    count: int,
    may_follow: Callable[[RDPoint, RDPoint], bool],
) -> list[RDPoint]:
    """Of a front on which resolution rises with the rate, the rungs that deliver most score.

    Dynamic programming over the points: of k rungs ending at one, the best k - 1 below it. Who
    takes a rung depends on the next one alone, as what a session may take is a prefix of a front.

    Args:
        points: The front, ascending.
        audience: Whose mean score counts.
        count: Rungs; fewer where no so many keep the rules.
        may_follow: Whether the second point may be the rung above the first.
    """
    if not points:
        return []
    able = np.array(
        [[i < j and may_follow(a, b) for j, b in enumerate(points)] for i, a in enumerate(points)]
    )
    scores = np.array([point.score for point in points])
    first, passed = _weights(points, audience)
    # by being taken by those who may take it, and not yet the next
    pairs = scores[:, None] * (passed[None, :-1] - passed[:-1, None])
    pairs = np.where(able, pairs, -math.inf)
    last = scores * (passed[-1] - passed[:-1])
    value, came = scores * first, []
    for _ in range(count - 1):
        every = value[:, None] + pairs
        if not np.isfinite(every).any():
            break
        came.append(every.argmax(0))
        value = every.max(0)
    # of equals the one that costs least
    at = int(np.argmax(value + last))
    chosen = [at]
    for below in reversed(came):
        at = int(below[at])
        chosen.append(at)
    return [points[index] for index in reversed(chosen)]


def _weights(points: Sequence[RDPoint], audience: Audience) -> tuple[Values, Values]:
    """(N,) the part of the sessions that take each point as the lowest rung only, since it is
    taller than their screens; (N + 1,) the part whose highest point is below each."""
    rates = np.array([p.bitrate_kbps * (1 if p.measured else PREDICTED) for p in points])
    # still ascending, and those of measured points as they are
    rates = np.minimum.accumulate(rates[::-1])[::-1]
    sides = np.array([min(point.size) for point in points])
    first, passed = np.zeros(len(points)), np.zeros(len(points) + 1)
    for session in audience.sessions:
        fits = rates <= audience.bandwidth_share * session.bandwidth_kbps
        may = fits
        if session.height is not None:
            may = fits & (sides <= session.height)
        reach = len(points) if may.all() else int(np.argmin(may))
        passed[reach:] += session.share
        first[reach:] += session.share * fits[reach:]
    return first, passed
