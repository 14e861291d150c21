"""HLS playlists on disk as rungs to be measured (RFC 8216)."""

import re
from fractions import Fraction
from pathlib import Path

from vqaloop.audit.listing import MOST_PIECES, Declared, Listed, Piece, inside, read_text
from vqaloop.core.text import quoted
from vqaloop.errors import InputError

_ATTRIBUTE = re.compile(r'([A-Z0-9-]+)=("[^"]*"|[^,]*)')


def is_master(text: str) -> bool:
    """Whether a playlist lists variants."""
    return "#EXT-X-STREAM-INF" in text


def read_master(path: Path) -> list[Listed]:
    """The rungs of a master playlist: of variants with the same pictures the first."""
    text = read_text(path)
    if not text.startswith("#EXTM3U"):
        raise InputError(f"{quoted(path)} is no HLS playlist: it does not begin with #EXTM3U")
    if not is_master(text):
        raise InputError(
            f"{quoted(path)} lists no variants (EXT-X-STREAM-INF); name the master playlist"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    audio: dict[str, list[tuple[Piece, ...]]] = {}
    for line in lines:
        found = _attributes(line) if line.startswith("#EXT-X-MEDIA:") else {}
        if found.get("TYPE") == "AUDIO" and "URI" in found:
            _, pieces = _media(inside(path.parent, found["URI"], path), path, picture=False)
            audio.setdefault(found.get("GROUP-ID", ""), []).append(pieces)
    rungs: dict[str, Listed] = {}
    for line, after in zip(lines, lines[1:], strict=False):
        if not line.startswith("#EXT-X-STREAM-INF:") or after in rungs or after.startswith("#"):
            continue
        found = _attributes(line)
        place = inside(path.parent, after, path)
        init, pieces = _media(place, path, picture=True)
        name = place.relative_to(path.parent).as_posix()
        sound = tuple(audio.get(found.get("AUDIO", ""), ()))
        rungs[after] = Listed(name, pieces, init, _declared(found, path), sound)
    return list(rungs.values())


def _attributes(line: str) -> dict[str, str]:
    return {name: value.strip('"') for name, value in _ATTRIBUTE.findall(line.partition(":")[2])}


def _declared(found: dict[str, str], path: Path) -> Declared:
    size = re.fullmatch(r"(\d{1,5})x(\d{1,5})", found.get("RESOLUTION", ""))
    try:
        rate = Fraction(found["FRAME-RATE"]) if "FRAME-RATE" in found else None
        peak, mean = (
            int(found[key]) if key in found else None for key in ("BANDWIDTH", "AVERAGE-BANDWIDTH")
        )
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(f"{quoted(path)}: an attribute of a variant is no number") from error
    return Declared(
        "hls",
        peak,
        mean,
        found.get("CODECS"),
        (int(size[1]), int(size[2])) if size else None,
        rate,
    )


def _media(path: Path, master: Path, picture: bool) -> tuple[Piece | None, tuple[Piece, ...]]:
    """The initialisation segment and the segments of a media playlist."""
    text = read_text(path)
    init: Piece | None = None
    pieces: list[Piece] = []
    seconds: Fraction | None = None
    span: tuple[int, int | None] | None = None
    ends: dict[Path, int] = {}
    for line in (line.strip() for line in text.splitlines()):
        if line.startswith("#EXTINF:"):
            seconds = _seconds(line, path)
        elif line.startswith("#EXT-X-BYTERANGE:"):
            span = _span(line.partition(":")[2], path)
        elif line.startswith("#EXT-X-KEY:") and _attributes(line).get("METHOD") != "NONE":
            if picture:
                raise InputError(
                    f"{quoted(path)} is encrypted, so it cannot be measured; audit the title as "
                    "it was before encryption"
                )
        elif line.startswith("#EXT-X-MAP:"):
            found = _attributes(line)
            where = inside(path.parent, found.get("URI", ""), master)
            size, at = _span(found["BYTERANGE"], path) if "BYTERANGE" in found else (None, 0)
            init = Piece(where, at or 0, size)
        elif line and not line.startswith("#"):
            where = inside(path.parent, line, master)
            size, offset = span or (None, 0)
            # without an offset a range begins where the last one of the file ended
            start = ends.get(where, 0) if offset is None else offset
            if size is not None:
                ends[where] = start + size
            pieces.append(Piece(where, start, size, seconds))
            seconds = span = None
    if not pieces:
        raise InputError(f"{quoted(path)} lists no segments; name the master playlist of a title")
    if len(pieces) > MOST_PIECES:
        raise InputError(f"{quoted(path)} lists more than {MOST_PIECES} segments")
    return init, tuple(pieces)


def _seconds(line: str, path: Path) -> Fraction:
    try:
        return Fraction(line[8:].split(",")[0].strip())
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(f"{quoted(path)}: {line[:60]!r} gives no duration") from error


def _span(text: str, path: Path) -> tuple[int, int | None]:
    found = re.fullmatch(r"(\d{1,15})(?:@(\d{1,15}))?", text)
    if not found:
        raise InputError(f"{quoted(path)}: {text[:60]!r} is no byte range")
    return int(found[1]), int(found[2]) if found[2] else None
