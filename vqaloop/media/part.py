"""Copies a part of a video, without coding it again: to try something on a few seconds of it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.core.files import renamed_to
from vqaloop.core.text import quoted
from vqaloop.errors import InputError
from vqaloop.media.container import decode_all, opened
from vqaloop.media.rawvideo import (
    MAX_FRAME_HEADER_BYTES,
    MAX_HEADER_BYTES,
    parse_y4m_header,
)

_FORMATS = {".mp4": "mp4", ".mov": "mov", ".m4v": "mp4"}
"""Containers that a part keeps; all others become Matroska, which takes every codec."""


def cut_part(
    path: str | os.PathLike[str],
    *,
    start_s: float = 0.0,
    duration_s: float = math.inf,
    folder: str | os.PathLike[str] = ".",
) -> Path:
    """Copy a part of a video as it is coded, sound and subtitles included.

    A coded video can begin at a key frame alone: the part begins at the one next to `start_s`,
    and lasts `duration_s` and at most a few frames more. The same part of the same file is the
    same file again.

    Args:
        path: A video in a container, or y4m.
        start_s: Seconds from its beginning.
        duration_s: Seconds.
        folder: Where the copy is written, under the name of the video with both.

    Returns:
        The copy.

    Raises:
        InputError: The video cannot be read, has no time stamps, or ends before `start_s`.
    """
    source = Path(path)
    if not (0 <= start_s < math.inf and duration_s > 0):
        raise InputError(
            f"a part begins at 0 s or later and lasts longer than 0 s, not {start_s:g} and "
            f"{duration_s:g} s"
        )
    with opened(source) as container:
        if not container.streams.video:
            raise InputError(f"{quoted(path)} has no video; name another file")
        video = container.streams.best("video")
        y4m = container.format.name == "yuv4mpegpipe"
        suffix = ".y4m" if y4m else source.suffix.lower()
        suffix = suffix if y4m or suffix in _FORMATS else ".mkv"
        length = "" if duration_s == math.inf else f"+{duration_s:g}s"
        out = Path(folder) / f"{source.stem}.{start_s:g}s{length}{suffix}"
        begin = _key_frame(container, video, start_s, quoted(path))
        try:
            with renamed_to(out) as part:
                if y4m:
                    _copy_y4m(source, video, begin, duration_s, part)
                else:
                    _copy(container, video, begin, duration_s, part, _FORMATS.get(suffix))
                    _check_decodes(part, path)
        except OSError as error:
            why = error.strerror or error
            raise InputError(f"cannot write {quoted(out)}: {why}; go elsewhere") from error
    return out


def _key_frame(container: Any, video: Any, start_s: float, name: str) -> int:
    """The time stamp of the key frame next to a time. Raises InputError where there is none."""
    first, tick = video.start_time or 0, video.time_base
    wanted = first + round(start_s / tick)
    if video.duration and start_s > 0 and wanted >= first + video.duration:
        length = float(video.duration * tick)
        raise InputError(
            f"{name} lasts {length:.1f} s; begin before its end, not at {start_s:g} s"
        )
    container.seek(wanted, stream=video)
    before = None
    for packet in container.demux(video):
        if packet.pts is None:
            continue
        if packet.is_keyframe:
            if before is None or packet.pts <= wanted:
                before = packet.pts
            else:
                return int(min(before, packet.pts, key=lambda pts: abs(pts - wanted)))
        if before is not None and packet.dts is not None and packet.dts > 2 * wanted - before:
            # the next one is farther than that before
            break
    if before is None:
        raise InputError(
            f"{name} has no key frame with a time stamp from {start_s:g} s on; begin earlier, or "
            "put it into a container first: `ffmpeg -i INPUT -c copy OUTPUT.mkv`"
        )
    return int(before)


def _copy(
    container: Any, video: Any, begin: int, duration_s: float, part: Path, format: str | None
) -> None:
    """The packets from a key frame on, each stream's times moved to begin there."""
    begin_s = begin * video.time_base
    end_s = begin_s + Fraction(duration_s) if duration_s < math.inf else None
    container.seek(begin, stream=video)
    kept = [video, *container.streams.audio, *container.streams.subtitles]
    with av.open(
        os.fspath(part), "w", format=format or "matroska", options={"fflags": "+bitexact"}
    ) as made:
        into = {stream.index: made.add_stream_from_template(stream) for stream in kept}
        over: set[int] = set()
        last_s = None
        for packet in _with_decoding_times(container.demux(kept), video):
            stream = packet.stream
            if stream.index in over:
                continue
            at = packet.pts * stream.time_base
            if end_s is not None and at >= end_s:
                # the first such picture is kept, for those shown before it that refer to it
                if stream is video and last_s is None:
                    last_s = at
                elif stream is not video or at > last_s:
                    over.add(stream.index)
                if video.index in over and (len(over) == len(kept) or at > end_s + 1):
                    break
                if stream.index in over:
                    continue
            # pictures before the key frame that refer to what is left out
            if at < begin_s:
                continue
            moved = round(begin_s / stream.time_base)
            packet.pts, packet.dts = packet.pts - moved, packet.dts - moved
            packet.stream = into[stream.index]
            made.mux(packet)


def _with_decoding_times(packets: Iterable[Any], video: Any) -> Iterator[Any]:
    """Packets with time stamps; where Matroska leaves the first decoding times out, after a seek
    too, they are those before the first that it has."""
    waiting: list[Any] = []
    step = max(1, round(1 / (video.average_rate or 25) / video.time_base))
    for packet in packets:
        # the last ones of each stream are empty
        if packet.pts is None or not packet.size:
            continue
        if packet.stream is not video:
            packet.dts = packet.pts if packet.dts is None else packet.dts
        elif packet.dts is None:
            waiting.append(packet)
            continue
        elif waiting:
            for place, early in enumerate(waiting):
                early.dts = packet.dts - step * (len(waiting) - place)
                yield early
            waiting.clear()
        yield packet
    # all of it: nothing is reordered
    for packet in waiting:
        packet.dts = packet.pts
        yield packet


def _check_decodes(part: Path, path: str | os.PathLike[str]) -> None:
    """Raises InputError for a part whose pictures refer to others before it."""
    try:
        decode_all(part, (), ffmpeg_path())
    except InputError as error:
        raise InputError(
            f"no part of {quoted(path)} can be copied from there: its pictures refer to earlier "
            "ones, past its key frames; begin at 0, or code it again without loss first: "
            "`ffmpeg -ss START -i INPUT -t DURATION -c:v ffv1 OUTPUT.mkv`"
        ) from error


def _copy_y4m(source: Path, video: Any, begin: int, duration_s: float, part: Path) -> None:
    """The frames of uncompressed video, each of which is a key frame."""
    first = round((begin - (video.start_time or 0)) * video.time_base * video.average_rate)
    count = round(duration_s * video.average_rate) if duration_s < math.inf else math.inf
    with open(source, "rb") as reader, open(part, "wb") as writer:
        header = parse_y4m_header(reader.read(MAX_HEADER_BYTES), quoted(source))
        reader.seek(0)
        writer.write(reader.read(header.header_bytes))
        frame = 0
        while frame < first + count and (line := reader.readline(MAX_FRAME_HEADER_BYTES)):
            picture = reader.read(header.frame_bytes)
            if frame >= first:
                writer.write(line + picture)
            frame += 1
