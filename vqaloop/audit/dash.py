"""A DASH manifest on disk as rungs to be measured (ISO/IEC 23009-1, static, of one period)."""

import math
import re
import xml.etree.ElementTree as ET
from fractions import Fraction
from pathlib import Path
from urllib.parse import urljoin

from vqaloop.audit.listing import MOST_PIECES, Declared, Listed, Piece, inside, read_text
from vqaloop.core.text import quoted
from vqaloop.errors import InputError

_N = "{urn:mpeg:dash:schema:mpd:2011}"
_FIELD = re.compile(r"\$(RepresentationID|Number|Time|Bandwidth)?(?:%0(\d{1,2})d)?\$")
_DURATION = re.compile(r"P(?:(\d+)D)?T?(?:(\d+)H)?(?:(\d+)M)?(?:([\d.]+)S)?")


def read_mpd(path: Path) -> list[Listed]:
    """The rungs of a manifest: its representations of pictures."""
    text = read_text(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError(f"{quoted(path)} declares entities, which no manifest needs")
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        raise InputError(f"{quoted(path)} is no XML: {error}") from error
    periods = root.findall(f"{_N}Period")
    if root.tag != f"{_N}MPD" or len(periods) != 1:
        raise InputError(
            f"{quoted(path)} is no DASH manifest of one period ({len(periods)} are in it); audit "
            "each period as a title of its own"
        )
    rungs = []
    total = _duration(root.get("mediaPresentationDuration", ""))
    bases = [_base(root), _base(periods[0])]
    for group in periods[0].findall(f"{_N}AdaptationSet"):
        for item in group.findall(f"{_N}Representation"):
            kind = item.get("mimeType") or group.get("mimeType") or group.get("contentType") or ""
            if not kind.startswith("video"):
                continue
            if group.findall(f"{_N}ContentProtection") or item.findall(f"{_N}ContentProtection"):
                raise InputError(
                    f"{quoted(path)} is encrypted, so it cannot be measured; audit the title as "
                    "it was before encryption"
                )
            where = ""
            for base in (*bases, _base(group), _base(item)):
                where = urljoin(where, base)
            rungs.append(_rung(path, group, item, where, total))
    if not rungs:
        raise InputError(f"{quoted(path)} lists no pictures (mimeType video/...)")
    return rungs


def _base(element: ET.Element) -> str:
    """The path in a BaseURL, for what is below it; "./" and its like add nothing."""
    text = (element.findtext(f"{_N}BaseURL") or "").strip()
    return "" if text in (".", "./") else text


def _rung(
    path: Path, group: ET.Element, item: ET.Element, base: str, total: Fraction | None
) -> Listed:
    def declared(name: str) -> str | None:
        return item.get(name) or group.get(name)

    try:
        width, height = int(declared("width") or 0), int(declared("height") or 0)
        rate = declared("frameRate")
        about = Declared(
            "dash",
            int(item.get("bandwidth") or 0) or None,
            None,
            declared("codecs"),
            (width, height) if width and height else None,
            Fraction(rate) if rate else None,
        )
        init, pieces = _pieces(path, group, item, base, total)
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise InputError(f"{quoted(path)}: an attribute is no number: {error}") from error
    name = item.get("id") or pieces[0].path.relative_to(path.parent).as_posix()
    return Listed(name, pieces, init, about)


def _pieces(
    path: Path, group: ET.Element, item: ET.Element, base: str, total: Fraction | None
) -> tuple[Piece | None, tuple[Piece, ...]]:
    """The initialisation segment and the segments; without a template or list, the one file."""
    template = _inherited(group, item, "SegmentTemplate")
    if template is not None:
        return _from_template(path, template, item, base, total)
    listed = _inherited(group, item, "SegmentList")
    if listed is None:
        return None, (Piece(inside(path.parent, base, path)),)
    clock = int(listed.get("timescale", "1"))
    length = listed.get("duration")
    seconds = Fraction(int(length), clock) if length else None
    first = listed.find(f"{_N}Initialization")
    init = (
        None if first is None else _ranged(path, base, first.get("sourceURL"), first.get("range"))
    )
    urls = listed.findall(f"{_N}SegmentURL")
    pieces = [_ranged(path, base, u.get("media"), u.get("mediaRange"), seconds) for u in urls]
    if not pieces or len(pieces) > MOST_PIECES:
        raise InputError(f"{quoted(path)} lists {len(pieces)} segments of a representation")
    return init, tuple(pieces)


def _inherited(group: ET.Element, item: ET.Element, name: str) -> ET.Element | None:
    found = item.find(f"{_N}{name}")
    return group.find(f"{_N}{name}") if found is None else found


def _ranged(
    path: Path, base: str, url: str | None, span: str | None, seconds: Fraction | None = None
) -> Piece:
    where = inside(path.parent, urljoin(base, url or ""), path)
    if not span:
        return Piece(where, 0, None, seconds)
    first, last = (int(number) for number in span.split("-"))
    return Piece(where, first, last - first + 1, seconds)


def _from_template(
    path: Path, template: ET.Element, item: ET.Element, base: str, total: Fraction | None
) -> tuple[Piece | None, tuple[Piece, ...]]:
    clock = int(template.get("timescale", "1"))
    number = int(template.get("startNumber", "1"))
    timeline = template.find(f"{_N}SegmentTimeline")
    ticks: list[int] = []
    at = 0
    if timeline is None:
        each = int(template.get("duration") or 0)
        if not each or total is None:
            raise InputError(f"{quoted(path)}: a SegmentTemplate has no duration")
        count = math.ceil(total * clock / each)
        if count > MOST_PIECES:
            raise InputError(f"{quoted(path)} lists more than {MOST_PIECES} segments")
        ticks = [each] * (count - 1) + [round(total * clock) - each * (count - 1)]
    for entry in timeline if timeline is not None else ():
        at = at if ticks else int(entry.get("t", "0"))
        again = int(entry.get("r", "0"))
        if again < 0 or again + len(ticks) > MOST_PIECES:
            raise InputError(
                f"{quoted(path)}: a segment is repeated {again} times; package the title again"
            )
        ticks += [int(entry.get("d", "0"))] * (1 + again)
    pieces = []
    for place, length in enumerate(ticks):
        url = _filled(template.get("media", ""), item, number + place, at)
        where = inside(path.parent, urljoin(base, url), path)
        pieces.append(Piece(where, 0, None, Fraction(length, clock)))
        at += length
    if not pieces:
        raise InputError(f"{quoted(path)} lists no segments of a representation")
    start = template.get("initialization")
    init = inside(path.parent, urljoin(base, _filled(start, item, 0, 0)), path) if start else None
    return (Piece(init) if init else None), tuple(pieces)


def _filled(template: str, item: ET.Element, number: int, time: int) -> str:
    values: dict[str, str | int] = {
        "RepresentationID": item.get("id", ""),
        "Bandwidth": int(item.get("bandwidth") or 0),
        "Number": number,
        "Time": time,
    }

    def fill(found: re.Match[str]) -> str:
        if not found[1]:
            return "$"
        value = values[found[1]]
        return f"{value:0{int(found[2])}d}" if found[2] and isinstance(value, int) else str(value)

    return _FIELD.sub(fill, template)


def _duration(text: str) -> Fraction | None:
    found = _DURATION.fullmatch(text)
    if not text or not found:
        return None
    days, hours, minutes = (int(found[n] or 0) for n in (1, 2, 3))
    try:
        return Fraction(found[4] or 0) + 60 * (minutes + 60 * (hours + 24 * days))
    except ValueError:
        return None
