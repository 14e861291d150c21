"""Audio renditions: a source's track taken over as it is coded, or coded as AAC, as segments.

Both begin with the first picture. A track is taken over only where it lasts as long as the
pictures, without gaps; else it is coded again, with silence where it has none.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from vqaloop.bitstream.demux import main_video
from vqaloop.core import ffmpeg as ffmpeg_graph
from vqaloop.core import process
from vqaloop.core.ffmpeg import compiled
from vqaloop.core.text import quoted
from vqaloop.delivery.content import AudioRendition
from vqaloop.delivery.segments import (
    INIT,
    READ_FORMATS,
    Track,
    listed_segments,
    media_files,
    mux,
    read_segment,
    segmenting,
)
from vqaloop.delivery.tracks import AudioPlan
from vqaloop.errors import ToolError
from vqaloop.media.container import opened

AAC_RATE = 48_000
"""Samples per second of what is coded here."""
_AAC_DELAY = 1024
"""Priming samples of ffmpeg's AAC encoder, as many as a frame has."""
_KBPS = {1: 64, 2: 128, 3: 192, 4: 256, 5: 320, 6: 384}
"""Bitrate by the number of channels."""
_AAC_TYPES = {"LC": 2, "HE-AAC": 5, "HE-AACv2": 29}
"""Audio object types of MPEG-4 by ffmpeg's names of profiles."""
_ATMOS = "Dolby Digital Plus + Dolby Atmos"
_GAP_S = 0.005
"""Seconds by which a coded frame may begin beside where the last one ended; Matroska rounds
times to milliseconds."""
_SHORT_S = 0.1
"""Seconds by which a track that is taken over may end before the pictures."""
_SILENT_LUFS = -69.0
"""Where ITU-R BS.1770 measures nothing above its gate."""
_PEAK_DBTP = -1.0
"""The most that a true peak may be after a gain."""


@dataclass(frozen=True)
class CodedAudio:
    """A coded audio track of a source."""

    codec: str
    profile: str
    channels: int
    rate: int
    late_s: float
    """Seconds from the beginning of the file to its first picture."""
    gapless: bool
    """Whether it lasts from the first picture to the last, without gaps."""


def make_audio(
    source: Path,
    plan: AudioPlan,
    found: CodedAudio,
    folder: Path,
    cut_s: Fraction,
    end: Fraction,
    ffmpeg: str,
    finish: Callable[[Path], None],
) -> AudioRendition:
    """Write one rendition as segments of `cut_s` seconds into a new folder.

    `end` is when the last picture ends, in seconds; `finish` is called with the folder before it
    is measured. Raises InputError for a source that cannot be read, ToolError when ffmpeg fails.
    """
    copied, gain = plan.copied, 0.0
    if copied:
        _copy(source, plan, folder, cut_s, found, ffmpeg)
    else:
        if plan.mixed:
            gain = _gain_db(source, plan, ffmpeg)
        _code(source, plan, folder, cut_s, end, found.late_s, gain, ffmpeg)
    finish(folder)
    rate = found.rate if copied else AAC_RATE
    codecs = _codecs(found) if copied else "mp4a.40.2"
    return AudioRendition(
        _measured(folder, codecs, rate),
        plan.label,
        plan.programme,
        plan.tiers,
        plan.kinds,
        plan.place + 1,
        found.channels if copied else plan.channels,
        rate,
        copied,
        copied and found.profile == _ATMOS,
        gain,
    )


def inspect_audio(source: Path, end: Fraction) -> dict[int, CodedAudio]:
    """What is known of the audio tracks by their places, by one reading of the source.

    `end` is when the last picture ends, in seconds from the first. Raises InputError for a source
    that cannot be read.
    """
    with opened(source) as container:
        every = enumerate(container.streams.audio)
        tracks = {place: track for place, track in every if track.codec_context is not None}
        video = main_video(container) or container.streams.video[0]
        begin_s = (container.start_time or 0) / 1_000_000
        late_s = max(0.0, float((video.start_time or 0) * video.time_base) - begin_s)
        first = begin_s + late_s
        reached, gapless = dict.fromkeys(tracks, math.nan), dict.fromkeys(tracks, True)
        by_index = {track.index: place for place, track in tracks.items()}
        for packet in container.demux(*tracks.values()) if tracks else ():
            if not packet.size or packet.pts is None:
                continue
            place = by_index[packet.stream.index]
            time = float(packet.pts * packet.time_base)
            length = float((packet.duration or 0) * packet.time_base)
            if math.isnan(reached[place]):
                gapless[place] = time <= first + length
            elif abs(time - reached[place]) > _GAP_S + length / 2:
                gapless[place] = False
            reached[place] = time + length
        return {
            place: CodedAudio(
                track.codec_context.codec.canonical_name,
                str(track.codec_context.profile or ""),
                track.codec_context.layout.nb_channels,
                track.codec_context.sample_rate,
                late_s,
                gapless[place] and reached[place] >= first + float(end) - _SHORT_S,
            )
            for place, track in tracks.items()
        }


def _codecs(found: CodedAudio) -> str:
    """The CODECS string (RFC 6381) of a track that is taken over."""
    if found.codec == "aac":
        return f"mp4a.40.{_AAC_TYPES.get(found.profile, 2)}"
    return {"ac3": "ac-3", "eac3": "ec-3"}.get(found.codec, found.codec)


def _copy(
    source: Path, plan: AudioPlan, folder: Path, cut_s: Fraction, found: CodedAudio, ffmpeg: str
) -> None:
    seek = {"ss": f"{found.late_s:.6f}"} if found.late_s else {}
    graph = ffmpeg_graph.input("INPUT", format_whitelist=READ_FORMATS, **seek).output(
        "OUTPUT",
        **segmenting(cut_s, "cmaf+skip_sidx", ":use_editlist=0"),
        use_timeline=0,
        map=f"0:a:{plan.place}",
        **{"c:a": "copy"},
        # else frames before the first picture would move all others to later times
        copypriorss=0,
        map_metadata="-1",
        map_chapters="-1",
    )
    mux(graph, source, folder, ffmpeg)


def _code(
    source: Path,
    plan: AudioPlan,
    folder: Path,
    cut_s: Fraction,
    end: Fraction,
    late_s: float,
    gain_db: float,
    ffmpeg: str,
) -> None:
    """AAC, padded with silence where it starts late or ends early."""
    # async fills gaps with silence, first_pts a late start; trimming starts at the first picture
    samples = (
        ffmpeg_graph.input("INPUT", format_whitelist=READ_FORMATS)[f"a:{plan.place}"]
        .filter("aresample", AAC_RATE, **{"async": 1, "first_pts": 0})
        .filter("aformat", channel_layouts=plan.layout)
        .filter("atrim", start=f"{late_s:.6f}")
        .filter("asetpts", "PTS-STARTPTS")
        .filter("apad", whole_dur=f"{float(end):.6f}")
        # the encoder's priming samples replace as many of the first, so that without an edit list
        # all others are played at the right time, by any player
        .filter("atrim", start_sample=_AAC_DELAY, end=f"{float(end):.6f}")
    )
    if gain_db:
        samples = samples.filter("volume", f"{gain_db:.2f}dB")
    graph = samples.output(
        "OUTPUT",
        **segmenting(cut_s, "cmaf+skip_sidx", ":use_editlist=0"),
        use_timeline=0,
        **{"c:a": "aac", "b:a": f"{_KBPS[plan.channels]}k"},
        map_metadata="-1",
        map_chapters="-1",
    )
    mux(graph, source, folder, ffmpeg)


def _gain_db(source: Path, plan: AudioPlan, ffmpeg: str) -> float:
    """What makes a mix as loud as its source (ITU-R BS.1770), as far as its true peak allows.

    In a mix, channels from behind and the centre count for less than where they are.
    """
    before, _ = _loudness(source, plan.place, "", ffmpeg)
    after, peak = _loudness(source, plan.place, plan.layout, ffmpeg)
    if min(before, after) <= _SILENT_LUFS:
        return 0.0
    room = (_PEAK_DBTP if before > after else 0.0) - peak
    return round(min(before - after, room), 2)


def _loudness(source: Path, place: int, layout: str, ffmpeg: str) -> tuple[float, float]:
    """Integrated loudness in LUFS and true peak in dBTP of a track, mixed to `layout` if named."""
    samples = ffmpeg_graph.input("INPUT", format_whitelist=READ_FORMATS)[f"a:{place}"]
    if layout:
        samples = samples.filter("aformat", channel_layouts=layout)
    samples = samples.filter("ebur128", peak="true", framelog="quiet")
    graph = samples.output("pipe:1", f="null")
    argv = compiled(graph, ffmpeg, {"INPUT": source}, "-v", "info", "-nostats")
    done = process.run(argv, timeout_s=120 + source.stat().st_size / 1_000_000)
    found = {
        key: re.findall(rf"^\s+{key}:\s+(-?[\d.]+|-?inf|nan) ", done.stderr, re.MULTILINE)
        for key in ("I", "Peak")
    }
    if done.returncode or done.timed_out or not all(found.values()):
        raise ToolError(f"the loudness of {quoted(source)} was not measured: {done.reason()}")
    values = [float(found[key][-1]) for key in ("I", "Peak")]
    return (values[0] if math.isfinite(values[0]) else -math.inf), values[1]


def _measured(folder: Path, codecs: str, rate: int) -> Track:
    init, files = (folder / INIT).read_bytes(), media_files(folder)
    frame = Fraction(_AAC_DELAY, rate)
    parts: list[Any] = []
    for file in files:
        found, _, time_base = read_segment(init, (folder / file).read_bytes(), frame)
        parts.append([coded.time for coded, *_ in found])
    times = [time for part in parts for time in part]
    last = times[-1] - times[-2] if len(times) > 1 else frame
    return Track(
        folder.name,
        codecs,
        listed_segments(folder, files, [*(part[0] for part in parts), times[-1] + last]),
        time_base,
        codec="audio",
    )
