"""Format-preserving mutations of files, which get past the parser below a reader.

A mutation depends on the seed and the bytes alone.
"""

import contextlib
import json
import random
import re
import sqlite3
from collections.abc import Callable
from typing import Any

DEEP = 400
"""Levels of nesting: few enough for the parsers, many enough for later recursion."""
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63), 2**64, 10**20, 10**400, 0.5, -0.0, 1e15,
    1e308, 5e-324, float("nan"), float("inf"), float("-inf"), "", "0", "a", "../a", "/a", "a\0b",
    "\ud800", "\u202e", "\x1b[31m", "\U0001f600" * 60, "a" * 300, "1/0", "25/1", "nan", "-c",
    "internvqa-1b", "fastvqa-base", "F64", "I64", "BOOL", "U8", "2026-01-01T00:00:00",
    [], {}, [[]], [None], ["a"], [0], [1.5, "a"], {"a": None}, {"": ""},
    "deep list", "deep object",
)  # fmt: skip
_TOML = (
    "true", "0", "-1", "1", "1e400", "nan", "-inf", "0.5", '""', '"a"', '"\\u0000"', "[]", "{}",
    "[1]", '["a"]', "[[]]", '["a", 1]', "{a = 1}", "[nan, nan]", "[inf, inf]", "[1, 2]", "[2, 1]",
    "9" * 400, "9" * 5000, "0x" + "f" * 5000, f"[{'9' * 400}, 1]", "1979-05-27", "07:32:00",
    "[" * DEEP + "]" * DEEP, "[" * 5000, "{a=" * 200, '"("', '"(a"', '"(a{99999999999})"',
    '"(((((a)))))"', '"{"', '"{0}"', '"{a}"', '"{input}"', '"int"', '"float"', '"choice"',
    '"' + "(" * 3000 + '"', '"""\n"""', "'a'", "2000000000000",
)  # fmt: skip
_CELLS = (
    "", "0", "-1", "1e999", "nan", "inf", "100", "1" * 30, "a" * 201, "\U0001f600" * 199, "../a",
    "/a", "..", ".", "a\\b", '"', '"a', '"a\nb"', "\u2028", "\x85", "\u0663", "a,b", ";", "\t",
    "540p", "64x64", "99999x99999", "1_0", "+5", "5.", ".5", "1e-400", "path", "score", "mos",
)  # fmt: skip


def change(data: bytes, form: str, most: int, seed: int) -> bytes | None:
    """`data` with one to three changes that keep its form; None where it is not of that form.

    `most` is the longest result in bytes.
    """
    draw = random.Random(seed)
    made: bytes | None = data
    for _ in range(draw.choice((1, 1, 2, 3))):
        made = _FORMS[form](made, draw) if made is not None else None
    return made if made is not None and len(made) <= most else None


def _json(data: bytes, draw: random.Random) -> bytes | None:
    try:
        document = json.loads(data)
        places = list(_places(document))
        if not places:
            return None
        holder, key = draw.choice(places)
        how = draw.randrange(8)
        if how == 0:
            del holder[key]
        elif how == 1 and isinstance(holder, list):
            holder.extend([holder[key]] * draw.choice((1, 2, 50)))
        elif how == 1:
            holder[draw.choice(("a", "name", "", "view", "__metadata__"))] = holder[key]
        elif how == 2:
            other, there = draw.choice(places)
            holder[key], other[there] = other[there], holder[key]
        elif isinstance(holder[key], str) and holder[key][:1] in ('"', "[", "{"):
            # JSON within JSON, as in headers of safetensors
            inner = _json(holder[key].encode(), draw)
            holder[key] = inner.decode() if inner else _value(draw)
        else:
            holder[key] = _value(draw)
        return json.dumps(document).encode()
    except (ValueError, RecursionError, LookupError, TypeError):
        return None


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a document; not those of what was put in."""
    found: list[tuple[Any, Any]] = []
    waiting = [value] if isinstance(value, dict | list) else []
    while waiting and len(found) < 2000:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        found += [(holder, key) for key in keys]
        waiting += [holder[key] for key in keys if isinstance(holder[key], dict | list)]
    return found


def _value(draw: random.Random) -> Any:
    value = draw.choice(_VALUES)
    if value in ("deep list", "deep object"):
        deep: Any = 0
        for _ in range(draw.choice((5, 70, DEEP))):
            deep = [deep] if value == "deep list" else {"a": deep}
        return deep
    return json.loads(json.dumps(value))


def _toml(data: bytes, draw: random.Random) -> bytes | None:
    lines = data.decode("utf-8", "replace").split("\n")
    at = draw.randrange(len(lines))
    key, equals, _ = lines[at].partition("=")
    how = draw.randrange(6)
    if how == 0:
        del lines[at]
    elif how == 1:
        lines.insert(draw.randrange(len(lines)), lines[at])
    elif equals:
        lines[at] = f"{key}= {draw.choice(_TOML)}"
    else:
        lines[at] = draw.choice(
            ("", "[a]", "[[tunable]]", "a = 1", "[teacher]", "[gop]", "[" * 50)
        )
    return "\n".join(lines).encode()


def _csv(data: bytes, draw: random.Random) -> bytes | None:
    cells = re.split(r"([,;\t\n ])", data.decode("utf-8", "replace"))
    at = draw.randrange(len(cells))
    how = draw.randrange(5)
    if how == 0:
        cells[at : at + 2] = []
    elif how == 1:
        cells[at:at] = cells[at : at + 2] * draw.choice((1, 2, 20))
    else:
        cells[at] = draw.choice(_CELLS)
    return "".join(cells).encode("utf-8", "replace")


_SQL = (
    "CREATE VIEW a AS SELECT 1",
    "CREATE TRIGGER a AFTER INSERT ON clip BEGIN DELETE FROM comparison; END",
    "CREATE TRIGGER a AFTER INSERT ON comparison BEGIN INSERT INTO measurement SELECT c.id, a.id,"
    " 1, 1, 1, 1, 1, 1, 1, 'a' FROM comparison a, comparison b, comparison c; END",
    "PRAGMA user_version = 2",
    "PRAGMA application_id = 0",
    "DROP TABLE clip",
    "ALTER TABLE comparison RENAME TO old; CREATE VIEW comparison AS WITH RECURSIVE n(x) AS"
    " (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT o.* FROM old o, n",
    "ALTER TABLE measurement ADD COLUMN more AS (hex(zeroblob(100000000)))",
    "UPDATE comparison SET made = hex(zeroblob(1000))",
    "INSERT INTO comparison SELECT id + 100, digest || id, made, codec, encoder, preset, setting,"
    " metric, 1, 'a', 'a', '{', 'a', 'a', '[]', 'a', 'a', 1, 1, 1, 1 FROM comparison",
)


def _sqlite(data: bytes, draw: random.Random) -> bytes | None:
    db = sqlite3.connect(":memory:")
    try:
        db.deserialize(data)
        if draw.randrange(3) == 0:
            db.executescript(draw.choice(_SQL))
        else:
            table = draw.choice(("comparison", "measurement", "clip"))
            columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
            value = _value(draw)
            if isinstance(value, list | dict) or (
                isinstance(value, int) and not -(2**63) <= value < 2**63
            ):
                value = draw.choice((b"\xff\xfe", b"", "9999-12-31T23:59:59+00:00", "[[]]"))
            with contextlib.suppress(UnicodeEncodeError):
                db.execute(f"UPDATE {table} SET {draw.choice(columns)} = ?", (value,))
        db.commit()
        return db.serialize()
    # MemoryError is what `deserialize` makes of no bytes
    except (sqlite3.Error, IndexError, OverflowError, ValueError, MemoryError):
        return None
    finally:
        db.close()


_FORMS: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "json": _json,
    "toml": _toml,
    "csv": _csv,
    "sqlite": _sqlite,
}
