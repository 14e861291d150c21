"""Trends of a history of builds: how the bitrate at equal score went, and where it changed.

Rows are comparisons of two builds. Those of one codec, encoder, preset, metric, set of clips,
sizes and points are comparable; they make a trend. Each row compares its candidate
with its own baseline, and baselines may differ along the way. A candidate's *level* is its BD-
rate against the first baseline: that of its own baseline, if that was a candidate before or is
the first one, and its own on top, (1 + a)(1 + b) - 1. So rows that share a baseline and rows in a
chain, each against the one before, come out alike, and so does a mixture. A row whose baseline
nobody has measured begins a trend of its own: where nothing links two builds, nothing is claimed.

Changes are looked for (see changepoint) among the rows that share a baseline, whose errors are
independent; the errors of a chain's levels add up, and a random walk looks like a change to any
such test. In a chain each row tells by its own verdict whether the build changed there, and that
is taken; as it is where the rows of a baseline are too few for more.
"""

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from vqaloop.core.text import counted, printable
from vqaloop.trend.store import BuildName, Row, read_rows

CLEAR = ("regression", "improvement")
"""Verdicts that mean a change."""


@dataclass(frozen=True)
class Change:
    """Where a trend changed."""

    row: int
    """The first after it."""
    step: float
    """Percent; + is worse."""
    p_value: float | None
    """Of the series of rows with the same baseline; None where the row's own verdict says it."""


@dataclass(frozen=True)
class Trend:
    """Comparable comparisons of builds, oldest first."""

    codec: str
    encoder: str
    preset: str
    metric: str
    rows: tuple[Row, ...]
    levels: tuple[float | None, ...]
    """Percent against `rows[0].baseline`, one a row."""
    changes: tuple[Change, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON values, times in ISO 8601."""
        found = asdict(self)
        for row in found["rows"]:
            row["when"] = row["when"].isoformat()
            for build in ("baseline", "candidate"):
                row[build]["args"] = json.loads(row[build]["args"])
        return found


def read_trend(
    store: Path,
    codec: str | None = None,
    *,
    encoder: str | None = None,
    preset: str | None = None,
    metric: str | None = None,
    seed: int = 0,
) -> list[Trend]:
    """The trends of a store, the one with the newest row last; of any codec or of one, and so on.

    `metric` is by default what each comparison was judged by. Raises InputError for a file that
    is missing, not ours or damaged.
    """
    wanted = {"codec": codec, "encoder": encoder, "preset": preset, "metric": metric}
    trends = [
        Trend(*series[:4], tuple(rows), levels, _changes(rows, seed))
        for series, found in read_rows(store, wanted).items()
        for rows, levels in _linked(found)
    ]
    return sorted(trends, key=lambda trend: trend.rows[-1].when)


def _linked(rows: Sequence[Row]) -> Iterator[tuple[list[Row], tuple[float | None, ...]]]:
    """Rows in the order of time, parted where nothing links them; and their levels in percent."""
    # of each part: its rows, their levels, and what is known of each build, as log ratios
    parts: list[tuple[list[Row], list[float | None], dict[BuildName, list[float]]]] = []
    for row in rows:
        part = next((p for p in reversed(parts) if row.baseline in p[2]), None)
        if part is None:
            part = ([], [], {row.baseline: [0.0]})
            parts.append(part)
        members, levels, known = part
        members.append(row)
        level = None
        if row.bd_rate is not None:
            level = fmean(known[row.baseline]) + math.log1p(row.bd_rate / 100)
            if row.candidate != members[0].baseline:
                # of a build that was tried several times the mean
                known.setdefault(row.candidate, []).append(level)
        levels.append(level)
    for members, levels, _ in parts:
        yield members, tuple(None if v is None else 100 * math.expm1(v) for v in levels)


def _changes(rows: Sequence[Row], seed: int) -> tuple[Change, ...]:
    from vqaloop.trend.changepoint import change_points

    groups: dict[BuildName, list[tuple[int, Row, float]]] = {}
    for index, row in enumerate(rows):
        if row.bd_rate is not None:
            groups.setdefault(row.baseline, []).append((index, row, row.bd_rate))
    found = []
    for group in groups.values():
        floors = [row.noise_floor for _, row, _ in group if row.noise_floor is not None]
        values = [value for _, _, value in group]
        steps = change_points(values, median(floors) if floors else 0.0, seed=seed)
        found += [Change(group[step.index][0], step.step, step.p_value) for step in steps]
        # what is off from the first row on is no step among them
        alone = group[:1] if steps else group
        clear = (Change(at, value, None) for at, row, value in alone if row.verdict in CLEAR)
        found += list(itertools.islice(clear, 1))
    return tuple(sorted(found, key=lambda change: change.row))


def trend_title(trend: Trend) -> str:
    words = [trend.codec, trend.encoder, trend.preset]
    count = len(trend.rows)
    return printable(
        f"{', '.join(word for word in words if word)}: {counted(count, 'comparison')} "
        f"by {trend.metric}"
    )
