"""Text for people: counts, numbers, rates and file names as messages and tables show them;
sizes and durations as options give them."""

import math
import os
import re
from collections.abc import Sequence

from vqaloop.errors import InputError

LONGEST_MESSAGE = 300


def quoted(path: str | os.PathLike[str]) -> str:
    """A file name as a message may hold it: quoted, on one line, at most 200 characters."""
    name = repr(os.fspath(path))
    return name if len(name) <= 200 else f"{name[:98]}...{name[-98:]}"


def utf8(path: str | os.PathLike[str]) -> str:
    """A file name as JSON can hold it: what is no UTF-8 in it is replaced."""
    return os.fsencode(path).decode("utf-8", "replace")


def parse_size(text: str) -> tuple[int, int]:
    """ "1920x1080" as a pair; "720p" as 0 and 720, for `size_within`. Raises InputError."""
    match = re.fullmatch(r"\s*(?:([0-9]{2,5})[xX]([0-9]{2,5})|([0-9]{2,4})[pP])\s*", text)
    if not match:
        raise InputError(f"{text[:50]!r} is not a resolution; write it as 1920x1080 or 1080p")
    return (0, int(match[3])) if match[3] else (int(match[1]), int(match[2]))


def size_text(size: Sequence[int]) -> str:
    """A size as `parse_size` reads it."""
    return f"{size[1]}p" if size[0] == 0 else f"{size[0]}x{size[1]}"


def size_within(size: tuple[int, int], canvas: tuple[int, int] = (16, 9)) -> tuple[int, int]:
    """Width and height of a size; one that has lines alone is as wide as a picture's shape asks.

    As players and stores name sizes, 720p is what fits into 1280x720, or upright into 720x1280.
    """
    if size[0]:
        return size
    wide, box = canvas[0] >= canvas[1], (size[1] * 16 / 9, float(size[1]))
    scale = min(a / b for a, b in zip(box if wide else box[::-1], canvas, strict=True))
    return round(canvas[0] * scale / 2) * 2, round(canvas[1] * scale / 2) * 2


def parse_resolutions(text: str) -> list[tuple[int, int]] | None:
    """ "1920x1080,1280x720" as pairs, "auto" as None. Raises InputError."""
    return None if text == "auto" else [parse_size(word) for word in text.split(",")]


def parse_duration(text: str) -> float:
    """ "90", "90s", "10min", "1.5h" or "1:30" in seconds. Raises InputError."""
    digits = r"[0-9]+(?:\.[0-9]+)?"
    if clock := re.fullmatch(rf"\s*(?:([0-9]+):)?([0-9]+):({digits})\s*", text):
        return 3600.0 * int(clock[1] or 0) + 60.0 * int(clock[2]) + float(clock[3])
    match = re.fullmatch(rf"\s*({digits})\s*(s|sec|m|min|h)?\s*", text)
    if not match:
        raise InputError(f"{text[:50]!r} is no duration; write it as 90s, 10min, 1.5h or 1:30")
    unit = (match[2] or "s")[0]
    return float(match[1]) * {"s": 1.0, "m": 60.0, "h": 3600.0}[unit]


def parse_rungs(text: str) -> int | None:
    """ "auto" as None, or a number. Raises InputError."""
    if text == "auto":
        return None
    if not re.fullmatch(r"[0-9]{1,3}", text):
        raise InputError(f"--rungs {text[:50]!r} is neither a number nor auto")
    return int(text)


def printable(text: str) -> str:
    """`text` on one line; control, bidirectional and undecodable characters as escapes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def counted(count: int, thing: str) -> str:
    """ "1 encode", "2 encodes"."""
    return f"{count} {thing}{'s' * (count != 1)}"


def metric_name(name: str) -> str:
    """A metric as people know it; a pool of its scores may follow its name."""
    own, space, pool = name.partition(" ")
    if space:
        return f"{metric_name(own)} {printable(pool)}"
    return {
        "vmaf": "VMAF",
        "vmaf_hd": "VMAF",
        "psnr_y": "PSNR-Y",
        "vmaf_v1": "VMAF v1",
        "xpsnr": "XPSNR",
        "cambi": "CAMBI",
    }.get(name, printable(name))


def shown(value: float | None, digits: int = 1) -> str:
    """A number for a table; "-" where there is none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def shown_rate(kbps: float | None) -> str:
    """A rate in kb/s for a table, with a decimal where it is below 100."""
    return shown(kbps, 1 if kbps is not None and kbps < 99.95 else 0)


def change(percent: float | None, unit: str = "") -> str:
    """A difference in percent with its sign; "-" where there is none."""
    if percent is None or not math.isfinite(percent):
        return "-"
    return f"{percent:+.{2 if abs(percent) < 99.995 else 0}f}{unit}"


def cut(text: str, longest: int = LONGEST_MESSAGE) -> str:
    """A long text without its middle: the end of what a program says is often what matters."""
    # 2 off each half, for the dots
    half = longest // 2 - 2
    return text if len(text) <= longest else f"{text[:half]}...{text[-half:]}"
