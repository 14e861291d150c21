"""A history of comparisons of builds: one SQLite file that many runs append to.

A row is written whole or not at all, several processes may append at once, and a file that is not
ours is refused untouched. The tables are plain, for whoever wants to read them with sqlite3.
"""

import contextlib
import hashlib
import json
import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from vqaloop.core.text import quoted
from vqaloop.errors import InputError
from vqaloop.report.console import encodable

DOCUMENT = "vqaloop.regress/1"
APPLICATION = 0x76716C74
"""SQLite's application_id of our files: "vqlt"."""
VERSION = 1
"""SQLite's user_version: that of the tables."""
MAX_ROWS = 100_000
"""Comparisons read; a build every hour for ten years."""
MAX_STEPS = 1 << 24
"""Instructions of SQLite's machine: several times what reading MAX_ROWS takes. A damaged file may
lead it round in circles."""
LONGEST = 1 << 20
"""Bytes of a cell."""
WAIT_S = 60.0
"""How long another process that writes is waited for."""

_TABLES = (
    """CREATE TABLE comparison (
        id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, made TEXT NOT NULL,
        codec TEXT NOT NULL, encoder TEXT NOT NULL, preset TEXT NOT NULL, setting TEXT NOT NULL,
        metric TEXT NOT NULL, threshold_percent REAL,
        baseline_version TEXT NOT NULL, baseline_sha256 TEXT NOT NULL, baseline_args TEXT NOT NULL,
        candidate_version TEXT NOT NULL, candidate_sha256 TEXT NOT NULL,
        candidate_args TEXT NOT NULL, verdict TEXT NOT NULL, summary TEXT NOT NULL,
        cpu_ratio REAL, wall_ratio REAL, peak_ratio REAL, rate_percent REAL)""",
    """CREATE TABLE measurement (
        comparison INTEGER NOT NULL REFERENCES comparison, metric TEXT NOT NULL,
        bd_rate_percent REAL, akima_percent REAL, low REAL, high REAL, noise_floor_percent REAL,
        clips INTEGER, refused INTEGER, verdict TEXT NOT NULL,
        PRIMARY KEY (comparison, metric))""",
    """CREATE TABLE clip (
        comparison INTEGER NOT NULL REFERENCES comparison, position INTEGER NOT NULL,
        clip TEXT NOT NULL, sha256 TEXT NOT NULL, metric TEXT NOT NULL,
        bd_rate_percent REAL, noise_percent REAL, PRIMARY KEY (comparison, position, metric))""",
)


@dataclass(frozen=True)
class BuildName:
    """A build in a history; equal for the same file with the same arguments."""

    version: str
    sha256: str
    args: str = "[]"
    """JSON."""


@dataclass(frozen=True)
class Row:
    """One comparison, by one metric. Percent of bitrate at equal score; + is worse."""

    when: datetime
    """UTC."""
    baseline: BuildName
    candidate: BuildName
    bd_rate: float | None
    """None where the comparison gave none."""
    interval: tuple[float, float] | None
    noise_floor: float | None
    verdict: str
    """By this metric: regression, improvement, no change or cannot tell."""
    overall: str
    """Of the whole comparison, time and failures included."""
    cpu_ratio: float | None
    wall_ratio: float | None
    peak_ratio: float | None


class Series(NamedTuple):
    """What comparable rows have in common."""

    codec: str
    encoder: str
    preset: str
    metric: str
    setting: str
    """A hash of points, sizes, clips and the metric's weights."""


def append(document: Mapping[str, Any], store: Path) -> None:
    """Add a comparison to a store, which is made where there is none; whole or not at all.

    Several processes may do so at once. A document that is there already is not added again.
    Raises InputError for a document or a file that is not ours, or where nothing can be written.
    """
    comparison, measurements, clips = _flat(document)
    with _opened(store, "rwc") as db, db:
        db.execute("BEGIN IMMEDIATE")
        if _is_empty(db):
            for table in _TABLES:
                db.execute(table)
            db.execute(f"PRAGMA application_id = {APPLICATION}")
            db.execute(f"PRAGMA user_version = {VERSION}")
        seen = db.execute("SELECT 1 FROM comparison WHERE digest = ?", (comparison["digest"],))
        if seen.fetchone():
            return
        number = _insert(db, "comparison", comparison)
        for table, rows in (("measurement", measurements), ("clip", clips)):
            for row in rows:
                _insert(db, table, {"comparison": number, **row})


def check_store(store: Path) -> None:
    """Raises InputError where `append` would: before hours of work, rather than after."""
    from vqaloop.core.folders import check_writable

    if not store.exists():
        check_writable(store.parent, "name another file for the history")
        return
    with _opened(store, "rw") as db:
        db.execute("BEGIN IMMEDIATE")
        db.execute("ROLLBACK")


def read_rows(store: Path, wanted: Mapping[str, str | None]) -> dict[Series, list[Row]]:
    """Rows by series, oldest first; those of one series are comparable.

    `wanted` has codec, encoder, preset and metric; None is any, of the metric the one that each
    comparison was judged by. Raises InputError for a file that is missing, not ours or damaged.
    """
    if not store.exists():
        raise InputError(f"there is no history {quoted(store)} yet")
    found: dict[Series, list[Row]] = {}
    with _opened(store, "rw") as db:
        if _is_empty(db):
            return {}
        cursor = db.execute(
            """SELECT c.codec, c.encoder, c.preset, m.metric, c.setting, c.made,
            baseline_version, baseline_sha256, baseline_args, candidate_version, candidate_sha256,
            candidate_args, m.bd_rate_percent, m.low, m.high, m.noise_floor_percent, m.verdict,
            c.verdict, c.cpu_ratio, c.wall_ratio, c.peak_ratio
            FROM comparison c JOIN measurement m ON m.comparison = c.id
            AND m.metric = coalesce(:metric, c.metric)
            WHERE c.codec = coalesce(:codec, c.codec)
            AND c.encoder = coalesce(:encoder, c.encoder)
            AND c.preset = coalesce(:preset, c.preset) ORDER BY c.made, c.id""",
            wanted,
        )
        for count, row in enumerate(cursor):
            if count >= MAX_ROWS:
                raise InputError(
                    f"the history {quoted(store)} holds more than {MAX_ROWS} comparisons; name "
                    "another file"
                )
            found.setdefault(Series(*map(str, row[:5])), []).append(_row(row[5:]))
    return found


def _row(cells: Sequence[Any]) -> Row:
    made, low, high = datetime.fromisoformat(cells[0]), _number(cells[8]), _number(cells[9])
    for args in (cells[3], cells[6]):
        if not isinstance(json.loads(args), list):
            raise ValueError(f"arguments {str(args)[:40]!r}")
    return Row(
        made.replace(tzinfo=made.tzinfo or UTC),
        BuildName(*map(str, cells[1:4])),
        BuildName(*map(str, cells[4:7])),
        _percent(cells[7]),
        None if low is None or high is None else (low, high),
        _number(cells[10]),
        str(cells[11]),
        str(cells[12]),
        *map(_number, cells[13:16]),
    )


@contextlib.contextmanager
def _opened(store: Path, mode: str) -> Iterator[sqlite3.Connection]:
    """A connection to a store of ours, or to an empty one. Raises InputError for anything else."""
    name = quoted(store)
    if store.exists() and not store.is_file():
        raise InputError(f"{name} is not a file; name an SQLite file for the history")
    db = None
    try:
        # no transaction but those we begin
        db = sqlite3.connect(
            f"{store.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=WAIT_S,
            isolation_level=None,
        )
        db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST)
        db.set_progress_handler(lambda: 1, MAX_STEPS)
        db.execute("PRAGMA trusted_schema = OFF")
        if not _is_empty(db):
            _check_ours(db, name)
        if mode == "rwc":
            with contextlib.suppress(sqlite3.OperationalError):
                # readers need not wait; where it cannot be had, all is as safe without
                db.execute("PRAGMA journal_mode = WAL")
        yield db
    except sqlite3.Error as error:
        raise InputError(
            f"the history {name} cannot be used: {error}; try again, or name another file"
        ) from error
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the history {name} is damaged: {error}; name another file") from error
    finally:
        if db is not None:
            db.close()


def _is_empty(db: sqlite3.Connection) -> bool:
    marks = [
        db.execute(f"PRAGMA {key}").fetchone()[0] for key in ("application_id", "user_version")
    ]
    return not any(marks) and db.execute("SELECT 1 FROM sqlite_master").fetchone() is None


def _check_ours(db: sqlite3.Connection, name: str) -> None:
    if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION:
        raise InputError(f"{name} is a database of something else; name another file")
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version != VERSION:
        raise InputError(
            f"the history {name} has tables of version {version}, and this vqaloop knows "
            f"{VERSION}; update vqaloop or name another file"
        )
    # a view under a table's name, a trigger or a computed column would run whatever they say
    kept = {_plain(sql) for kind, sql in _schema(db) if kind == "table"}
    if not kept.issuperset(map(_plain, _TABLES)) or any(k == "trigger" for k, _ in _schema(db)):
        raise InputError(f"the tables of the history {name} were altered; name another file")


def _schema(db: sqlite3.Connection) -> list[tuple[str, str]]:
    return list(db.execute("SELECT type, sql FROM sqlite_master WHERE sql IS NOT NULL"))


def _plain(sql: str) -> str:
    return " ".join(sql.split())


def _insert(db: sqlite3.Connection, table: str, row: Mapping[str, Any]) -> int:
    marks = ", ".join(f":{key}" for key in row)
    # names of files and words of programs may hold what is no Unicode
    cells = {
        key: encodable(value) if isinstance(value, str) else value for key, value in row.items()
    }
    cursor = db.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", cells)
    return int(cursor.lastrowid or 0)


Cells = dict[str, Any]


def _flat(document: Mapping[str, Any]) -> tuple[Cells, list[Cells], list[Cells]]:
    """A document as rows of the three tables. Raises InputError where something is missing."""
    if document.get("schema") != DOCUMENT:
        raise InputError(f"not a comparison of builds: its schema is not {DOCUMENT}")
    try:
        return _comparison(document), _measurements(document), _clips(document)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"the comparison of builds is not whole: {error}") from error


def _comparison(document: Mapping[str, Any]) -> Cells:
    setting = {
        "points": document["points"],
        "sizes": document["sizes"],
        "clips": sorted([clip["sha256"], clip["frames"]] for clip in document["clips"]),
        "weights": document["metric"]["weights_sha256"],
    }
    made = datetime.fromisoformat(document["when"])
    made = made.replace(tzinfo=made.tzinfo or UTC).astimezone(UTC)
    builds = {}
    for build in ("baseline", "candidate"):
        about = document[build]
        builds[f"{build}_version"] = str(about["version"])
        builds[f"{build}_sha256"] = str(about["sha256"])
        builds[f"{build}_args"] = json.dumps([str(word) for word in about["args"]])
    time, memory, rate = (document.get(key) or {} for key in ("time", "memory", "rate"))
    return {
        "digest": _digest(document),
        "made": made.isoformat(),
        **{key: str(document[key]) for key in ("codec", "encoder", "preset")},
        "setting": _digest(setting),
        "metric": str(document["metric"]["name"]),
        "threshold_percent": _number(document["threshold_percent"]),
        **builds,
        **{key: str(document[key]) for key in ("verdict", "summary")},
        "cpu_ratio": _number(time.get("cpu_ratio")),
        "wall_ratio": _number(time.get("wall_ratio")),
        "peak_ratio": _number(memory.get("peak_ratio")),
        "rate_percent": _number(rate.get("mean_percent")),
    }


def _measurements(document: Mapping[str, Any]) -> list[Cells]:
    rows = []
    for metric, found in document["metrics"].items():
        low, high = found["interval_percent"] or (None, None)
        rows.append(
            {
                "metric": str(metric),
                "bd_rate_percent": _percent(found["bd_rate_percent"]),
                "akima_percent": _number(found.get("akima_percent")),
                "low": _number(low),
                "high": _number(high),
                "noise_floor_percent": _number(found["noise_floor_percent"]),
                "clips": int(found["clips"]),
                "refused": int(found["refused"]),
                "verdict": str(found["verdict"]),
            }
        )
    return rows


def _clips(document: Mapping[str, Any]) -> list[Cells]:
    return [
        {
            "position": position,
            "clip": str(clip["clip"]),
            "sha256": str(clip["sha256"]),
            "metric": str(metric),
            "bd_rate_percent": _percent(found["pchip"]),
            "noise_percent": _number(found.get("noise")),
        }
        for position, clip in enumerate(document["clips"])
        for metric, found in clip["bd_rate"].items()
    ]


def _number(value: Any) -> float | None:
    """Finite, or None."""
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _percent(value: Any) -> float | None:
    """Of more or less bitrate; ValueError where no bitrate is left."""
    number = _number(value)
    if number is not None and number <= -100:
        raise ValueError(f"a BD-rate of {number} %")
    return number


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
