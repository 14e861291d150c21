"""One file for each rendition: its segments behind an index (sidx), fetched by byte ranges."""

import shutil
import struct
from dataclasses import replace
from pathlib import Path

from vqaloop.delivery.segments import INIT, Track

MEDIA_FILE = "media.mp4"
_STARTS_WITH_SAP, _SAP_TYPE_1 = 1 << 31, 1 << 28
_PIECE_BYTES = 1 << 20


def joined(folder: Path, track: Track) -> Track:
    """Put initialisation segment, index and segments into one file; the track as it is then."""
    init = (folder / INIT).read_bytes()
    index = _sidx(track)
    base = len(init) + len(index)
    offsets, segments = dict[str, int](), []
    with open(folder / MEDIA_FILE, "wb") as out:
        out.write(init + index)
        for segment in track.segments:
            offsets[segment.file] = base
            segments.append(replace(segment, file=MEDIA_FILE, offset=base))
            with open(folder / segment.file, "rb") as part:
                shutil.copyfileobj(part, out, _PIECE_BYTES)
            base += segment.size_bytes
            # one rendition more on the disk, not all of them twice
            (folder / segment.file).unlink()
    (folder / INIT).unlink()
    keys = tuple(
        replace(key, file=MEDIA_FILE, offset=offsets[key.file] + key.offset)
        for key in track.keyframes
    )
    return replace(
        track,
        segments=tuple(segments),
        keyframes=keys,
        index=range(len(init), len(init) + len(index)),
    )


def _sidx(track: Track) -> bytes:
    """The segment index box (ISO/IEC 14496-12) of all segments; each begins with a SAP."""
    clock = track.time_base.denominator
    times = [round((s.start - track.segments[0].start) * clock) for s in track.segments]
    times.append(round((track.duration) * clock))
    first = round(track.segments[0].start * clock)
    entries = b"".join(
        struct.pack(">III", s.size_bytes, after - time, _STARTS_WITH_SAP | _SAP_TYPE_1)
        for s, time, after in zip(track.segments, times[:-1], times[1:], strict=True)
    )
    head = struct.pack(">IIIQQHH", 1 << 24, 1, clock, first, 0, 0, len(track.segments))
    body = b"sidx" + head + entries
    return struct.pack(">I", len(body) + 4) + body
