"""Subtitles as WebVTT: cues of a text track, as segments for HLS and as one file for DASH."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from vqaloop.bitstream.demux import main_video
from vqaloop.core import ffmpeg as ffmpeg_graph
from vqaloop.core import process
from vqaloop.core.ffmpeg import compiled
from vqaloop.core.text import quoted
from vqaloop.delivery.content import TextRendition
from vqaloop.delivery.segments import READ_FORMATS, Segment
from vqaloop.delivery.tracks import TextPlan
from vqaloop.errors import InputError, ToolError
from vqaloop.media.container import opened

WHOLE = "all.vtt"
"""File name of the subtitles in one piece."""
_CLOCK = r"(?:(\d+):)?(\d{2}):(\d{2})\.(\d{3})"
_TIMING = re.compile(rf"{_CLOCK}[ \t]+-->[ \t]+{_CLOCK}[ \t]*(.*)")
_MAP = "X-TIMESTAMP-MAP=MPEGTS:0,LOCAL:00:00:00.000"
"""Cue times count from the first picture, as the segments of the pictures do."""


@dataclass(frozen=True)
class Cue:
    """One text and when it is shown."""

    start_ms: int
    end_ms: int
    settings: str
    text: str


def make_texts(
    source: Path,
    plan: TextPlan,
    folder: Path,
    cuts: Sequence[Fraction],
    kinds: Collection[str],
    ffmpeg: str,
) -> TextRendition:
    """Write a text track as WebVTT into a new folder: for hls in segments, for dash as a whole.

    `cuts` are the boundaries of the segments in seconds, from the first picture to the end of the
    last. Raises InputError for a track without a text in that time, ToolError when ffmpeg fails.
    """
    graph = ffmpeg_graph.input("INPUT", format_whitelist=READ_FORMATS).output(
        "pipe:1", f="webvtt", map=f"0:s:{plan.place}", **{"c:s": "webvtt"}
    )
    argv = compiled(graph, ffmpeg, {"INPUT": source})
    done = process.run(argv, timeout_s=120 + source.stat().st_size / 1_000_000)
    if done.returncode or done.timed_out:
        raise ToolError(f"the track could not be made WebVTT: {done.reason()}")
    end_ms = _ms(cuts[-1])
    cues = _in_time(parse_cues(done.stdout.decode("utf-8", "replace")), _late_ms(source), end_ms)
    if not cues:
        raise InputError(f"it holds no text while the pictures of {quoted(source)} last")
    folder.mkdir()
    parts = []
    for number, (start, end) in enumerate(zip(cuts[:-1], cuts[1:], strict=True), 1):
        # a cue that lasts beyond its segment is in each that it is shown in
        inside = [c for c in cues if c.start_ms < _ms(end) and c.end_ms > _ms(start)]
        file = f"{number:05d}.vtt"
        data = _vtt(inside, _MAP)
        parts.append(Segment(file, len(data), start, end - start))
        if "hls" in kinds:
            (folder / file).write_bytes(data)
    data = _vtt(cues)
    whole = Segment(WHOLE, len(data), cuts[0], cuts[-1] - cuts[0])
    if "dash" in kinds:
        (folder / WHOLE).write_bytes(data)
    return TextRendition(folder.name, plan.label, tuple(parts), whole, plan.place + 1, len(cues))


def parse_cues(text: str) -> list[Cue]:
    """The cues of a WebVTT file, in their order."""
    cues: list[Cue] = []
    for block in re.split(r"\n{2,}", text.replace("\r\n", "\n").replace("\r", "\n")):
        lines = block.strip("\n").split("\n")
        place = next((n for n, line in enumerate(lines[:2]) if _TIMING.match(line)), None)
        if place is None:
            # an empty line inside a text ends its cue for every reader: put together again
            if (
                cues
                and block.strip()
                and not block.startswith(("WEBVTT", "STYLE", "NOTE", "REGION"))
            ):
                last = cues.pop()
                cues.append(
                    Cue(last.start_ms, last.end_ms, last.settings, f"{last.text}\n{block}")
                )
            continue
        found = _TIMING.match(lines[place])
        assert found is not None
        clock = [int(value or 0) for value in found.groups()[:8]]
        start, end = (
            ((h * 60 + m) * 60 + s) * 1000 + ms for h, m, s, ms in (clock[:4], clock[4:])
        )
        body = "\n".join(line for line in lines[place + 1 :] if line.strip())
        if body and end > start:
            cues.append(Cue(start, end, found[9].strip(), body))
    return cues


def _late_ms(source: Path) -> int:
    """Milliseconds from the beginning of a file to its first picture."""
    with opened(source) as container:
        video = main_video(container) or container.streams.video[0]
        begin_s = (container.start_time or 0) / 1_000_000
        return max(0, round((float((video.start_time or 0) * video.time_base) - begin_s) * 1000))


def _in_time(cues: Sequence[Cue], late_ms: int, end_ms: int) -> list[Cue]:
    """The cues that are shown between the first picture and the end, their times from there."""
    moved = (
        Cue(max(0, c.start_ms - late_ms), min(end_ms, c.end_ms - late_ms), c.settings, c.text)
        for c in cues
    )
    return sorted((c for c in moved if c.end_ms > c.start_ms), key=lambda c: c.start_ms)


def _vtt(cues: Sequence[Cue], *head: str) -> bytes:
    lines = ["WEBVTT", *head, ""]
    for cue in cues:
        timing = f"{_clock(cue.start_ms)} --> {_clock(cue.end_ms)} {cue.settings}".rstrip()
        text = "\n".join(line for line in cue.text.split("\n") if line.strip())
        # an arrow would begin another cue
        lines += [timing, text.replace("-->", "--&gt;").replace("\0", ""), ""]
    return ("\n".join(lines) + "\n").encode("utf-8", "replace")


def _clock(ms: int) -> str:
    seconds, ms = divmod(ms, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{ms:03d}"


def _ms(time: Fraction) -> int:
    return round(time * 1000)
