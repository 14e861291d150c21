"""Concatenation of coded scenes without re-encoding, with the other tracks of the original file.

ffmpeg's concat demuxer reads the scenes one after another, the setts bitstream filter derives the
timestamps of every frame from its index, and audio, subtitles, chapters and metadata come from
the original (other_tracks.py). The result takes its name only once it decodes, without warnings,
to exactly the frames of the scenes.
"""

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from vqaloop.bitstream import avs2
from vqaloop.bitstream.nal import without_sei
from vqaloop.bitstream.packets import opened_encode, stream_packets
from vqaloop.core import process
from vqaloop.core.ffmpeg import file_url
from vqaloop.core.files import renamed_to, scratch
from vqaloop.core.text import quoted
from vqaloop.encoding.spec import EncoderSpec
from vqaloop.errors import DecodeFailed, InputError, ToolError
from vqaloop.media.container import opened
from vqaloop.media.picture_data import is_stereo
from vqaloop.ratecontrol.other_tracks import OtherTracks, tracks_of
from vqaloop.records import Source

_MUXERS = {".mp4": "mp4", ".mkv": "matroska", ".webm": "webm"}
_WEBM_CODECS = ("vp9", "av1")
_IN_BAND = {"h264": "avc3", "hevc": "hev1"}
"""MP4 sample entries for streams with in-band parameter sets (ISO/IEC 14496-15)."""
_HARMLESS = re.compile(
    r"^ *(\[(in|aist|sist|dist)#(?!.*(corrupt|prematurely|truncat|rror))"
    r"|Consider increasing the value|Last message repeated)"
)
"""Warnings of demuxers about track names, covers and attachments of intact files."""
_CODEC_DELAY_S = 0.06
"""Silence that an audio codec may add before or after its input."""


@dataclass(frozen=True)
class Joined:
    """A title as one file."""

    path: Path
    frames: int
    """Coded frames of the video."""
    duration_s: float
    """Of the video."""
    size_bytes: int
    """Of the whole file."""
    video_bytes: int
    """Of the coded video alone."""
    notes: tuple[str, ...] = ()
    """Tracks that were converted or left out, one sentence each."""

    @property
    def video_kbps(self) -> float:
        """Mean bitrate of the video, container not counted, in kb/s."""
        return self.video_bytes * 8 / 1000 / self.duration_s


def output_muxer(out: Path, codec: str) -> str:
    """ffmpeg's muxer for a joined file of that name; InputError where it cannot hold the codec."""
    suffix = out.suffix.lower()
    if codec == "avs2":
        if suffix != ".avs2":
            raise InputError(f"{quoted(out)}: AVS2 goes into raw files only; name it OUTPUT.avs2")
        return "avs2"
    if suffix not in _MUXERS:
        raise InputError(
            f"{quoted(out)}: the name's ending selects the container; name it "
            "OUTPUT.mp4 or OUTPUT.mkv" + (", or OUTPUT.webm" if codec in _WEBM_CODECS else "")
        )
    if suffix == ".webm" and codec not in _WEBM_CODECS:
        raise InputError(
            f"{quoted(out)}: WebM holds VP9 and AV1 only, not {codec}; name it OUTPUT.mkv or "
            "OUTPUT.mp4, or choose --codec vp9 or --codec av1"
        )
    return _MUXERS[suffix]


def join(
    segments: Sequence[Path],
    source: Source,
    out: Path,
    *,
    spec: EncoderSpec,
    ffmpeg: str,
    others: bool = True,
) -> Joined:
    """Join coded scenes to one file, with the other tracks of the original.

    Args:
        segments: A file for each scene, in order, alike in all settings but the quality knob.
        source: The title that was encoded.
        out: The file to write; replaced once the result is verified.
        spec: The encoder of the segments.
        ffmpeg: Path of the binary.
        others: Whether the original's other tracks come along; without them time starts at 0.

    Raises:
        InputError: The container cannot hold the codec, or the folder cannot be written.
        DecodeFailed: The joined file does not decode to the frames of its segments.
        ToolError: ffmpeg failed, or the segments hold another number of frames than the title.
    """
    muxer = output_muxer(out, spec.codec)
    if not segments:
        raise InputError("there is nothing to join: no segments")
    if not out.parent.is_dir():
        raise InputError(f"the folder {quoted(out.parent)} does not exist; create it first")
    if out.exists() and out.samefile(source.path):
        raise InputError(f"{quoted(out)} is the source itself; choose another name for the output")
    counts, delay = _measure(segments, spec, source)
    if sum(counts) != source.frames:
        raise ToolError(f"the segments hold {sum(counts)} frames, {source.frames} are expected")
    try:
        with renamed_to(out) as part:
            if muxer == "avs2":
                notes = _join_raw(segments, part)
            else:
                target = _Target(part, muxer, others)
                notes = _mux(segments, counts, delay, source, target, spec, ffmpeg)
            video_bytes = _check_video(part, segments, counts, source, spec, ffmpeg)
            size_bytes = part.stat().st_size
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"could not write {quoted(out)}: {why}") from error
    duration_s = source.duration_s
    return Joined(out, sum(counts), duration_s, size_bytes, video_bytes, notes)


def _measure(segments: Sequence[Path], spec: EncoderSpec, source: Source) -> tuple[list[int], int]:
    """Frames of each segment, and by how many frames decoding order leads presentation order."""
    counts, delay = [], 0
    for path in segments:
        counts.append(len(stream_packets(path, spec.codec, source.fps)))
        if spec.codec == "avs2":
            continue
        with opened_encode(path, spec.codec) as (container, stream):
            packets = [p for p in container.demux(stream) if p.size and p.pts is not None]
        for coded, packet in enumerate(packets):
            shown = round(Fraction(packet.pts or 0) * (packet.time_base or 0) * source.fps)
            delay = max(delay, coded - shown)
    return counts, delay


def _join_raw(segments: Sequence[Path], part: Path) -> tuple[str, ...]:
    with open(part, "wb") as writer:
        for index, path in enumerate(segments):
            if index:
                writer.write(avs2.SEQUENCE_END)
            with open(path, "rb") as reader:
                shutil.copyfileobj(reader, writer, 1 << 20)
    return ("Raw AVS2 holds video alone: audio, subtitles, chapters and metadata are left out.",)


@dataclass(frozen=True)
class _Target:
    """What is written: an unfinished file, by which muxer, and with which tracks."""

    part: Path
    muxer: str
    others: bool


def _mux(
    segments: Sequence[Path],
    counts: Sequence[int],
    delay: int,
    source: Source,
    target: _Target,
    spec: EncoderSpec,
    ffmpeg: str,
) -> tuple[str, ...]:
    """Write the joined file and check its audio; the notes."""
    part, muxer = target.part, target.muxer
    alike = len({_headers(path, spec.codec) for path in segments}) == 1
    late_s = _late_s(source, ffmpeg) if target.others else 0.0
    with scratch() as name:
        folder = Path(name)
        # where the stream signals stereo 3D the container must not repeat it
        with opened(segments[0]) as container:
            packed = is_stereo(container, container.streams.video[0])
        tracks = OtherTracks()
        if target.others:
            tracks = tracks_of(source, muxer, folder, packed=packed)
        listing = _listing(segments, counts, source.fps, folder)
        # auto_convert would repeat the parameter sets in the stream, where avc1 and hvc1 forbid it
        argv = [ffmpeg, "-nostdin", "-v", "error", "-y", "-f", "concat"]
        argv += ["-auto_convert", "0" if alike else "1", "-i", file_url(listing)]
        if tracks.options:
            argv += ["-i", file_url(source.path)]
        argv += ["-map", "0:v:0", "-c:0", "copy", "-bsf:0", _regular(source.fps, delay, late_s)]
        argv += [*tracks.options, "-fflags", "+bitexact", "-f", muxer]
        if muxer == "mp4":
            argv += ["-movflags", "+faststart"]
            if not alike and spec.codec in _IN_BAND:
                argv += ["-tag:v:0", _IN_BAND[spec.codec]]
        else:
            # flags as the original has them, no default of ffmpeg's choice
            argv += ["-default_mode", "passthrough"]
        argv.append(file_url(part))
        size_bytes = sum(os.stat(path).st_size for path in (*segments, source.path))
        done = process.run(argv, timeout_s=120 + size_bytes / 1e6 + source.duration_s)
    if done.timed_out or done.returncode:
        raise ToolError(f"joining the scenes of {quoted(source.path)} failed: {done.reason()}")
    if tracks.audio:
        _check_audio(part, source, late_s, tracks.audio, ffmpeg)
    if alike:
        return tracks.notes
    note = "The scenes differ in their headers, which are therefore in the stream"
    if muxer == "mp4" and spec.codec in _IN_BAND:
        note += f" (tagged {_IN_BAND[spec.codec]}, which some players refuse)"
    return (*tracks.notes, note + ".")


def _headers(path: Path, codec: str) -> bytes:
    """The decoder configuration of a file: equal in files that one header serves."""
    with opened(path) as container:
        context = container.streams.video[0].codec_context
        extradata = bytes(context.extradata or b"")
        size = f"{context.width}x{context.height} {context.pix_fmt} {context.profile}".encode()
    return size + (without_sei(extradata) if codec == "hevc" else extradata)


def _listing(segments: Sequence[Path], counts: Sequence[int], fps: Fraction, folder: Path) -> Path:
    """A list for the concat demuxer; links with plain names, so that no name needs escaping."""
    lines = ["ffconcat version 1.0"]
    for index, (path, us) in enumerate(zip(segments, durations_us(counts, fps), strict=True)):
        link = folder / f"{index:06}.part"
        link.symlink_to(path.absolute())
        lines += [f"file {link.name}", f"duration {us}us"]
    listing = folder / "segments.ffconcat"
    listing.write_text("\n".join(lines) + "\n", encoding="ascii")
    return listing


def durations_us(counts: Sequence[int], fps: Fraction) -> list[int]:
    """Durations in whole microseconds of scenes of so many frames, whose sums do not drift."""
    lengths, frames, placed_us = [], 0, 0
    for count in counts:
        frames += count
        end_us = round(frames / fps * 1_000_000)
        lengths.append(end_us - placed_us)
        placed_us = end_us
    return lengths


def _regular(fps: Fraction, delay: int, late_s: float) -> str:
    """The bitstream filter that derives timestamps from the frame's index, `late_s` after the
    start.

    Decoding times are regular too, and lead by the largest delay of any scene: scenes of one or
    two frames have less delay than long ones, and would otherwise overlap with those before.
    """

    def ticks(index: str) -> str:
        seconds = f"{index}*{fps.denominator}/{fps.numerator}+{late_s:.9f}"
        return f"round(({seconds})/TB)"

    shown = f"round(PTS*TB*{fps.numerator}/{fps.denominator})"
    return f"setts=pts={ticks(shown)}:dts={ticks(f'(N-{delay})')}"


def _late_s(source: Source, ffmpeg: str) -> float:
    """Seconds from the original's start to its first picture."""
    repeated = any(f.startswith("fps=") for f in source.prep)
    moved = any(f.startswith("setpts=") for f in source.prep)
    # the fps filter alone puts the first picture on the nearest frame, which is the start
    if source.is_raw or (repeated and not moved):
        return 0.0
    options = ["-frames:v", "1", "-c:v", "wrapped_avframe", "-enc_time_base", "demux"]
    first = _decoded(source.path, ["0:V:0"], ffmpeg, 600, *options)
    if not first.streams:
        raise DecodeFailed(f"{quoted(source.path)} no longer decodes; has it changed?")
    return float(first.streams[0].start_s)


@dataclass(frozen=True)
class _Stream:
    """The decoded frames of one stream."""

    start_s: Fraction
    end_s: Fraction
    times_s: tuple[Fraction, ...]
    sums: tuple[str, ...]
    """A checksum of each frame."""


@dataclass(frozen=True)
class _Decoded:
    streams: tuple[_Stream, ...]
    log: str
    """Warnings and errors."""


def _decoded(
    path: Path, what: Sequence[str], ffmpeg: str, timeout_s: float, *options: str
) -> _Decoded:
    """Decode the streams that the maps `what` select; times count from the file's start."""
    argv = [ffmpeg, "-nostdin", "-v", "warning", "-i", file_url(path)]
    argv += [part for each in what for part in ("-map", each)]
    argv += ["-fps_mode", "passthrough", *options, "-f", "framecrc", "pipe:1"]
    done = process.run(argv, timeout_s=timeout_s)
    if done.timed_out or done.returncode:
        raise DecodeFailed(f"decoding {quoted(path)} failed: {done.reason()}")
    text = done.stdout.decode("ascii", "replace")
    ticks = {int(n): Fraction(tb) for n, tb in re.findall(r"^#tb (\d+): (\S+)$", text, re.M)}
    found = re.findall(
        r"^(\d+), *-?\d+, *(-?\d+), *(-?\d+), *\d+, *(0x[0-9a-f]+)", text, re.MULTILINE
    )
    streams = []
    for number, tick in sorted(ticks.items()):
        rows = [row for row in found if int(row[0]) == number]
        times = tuple(int(pts) * tick for _, pts, _, _ in rows)
        if rows:
            end_s = times[-1] + int(rows[-1][2]) * tick
            streams.append(_Stream(times[0], end_s, times, tuple(row[3] for row in rows)))
    return _Decoded(tuple(streams), done.stderr.strip())


def _check_video(
    part: Path,
    segments: Sequence[Path],
    counts: Sequence[int],
    source: Source,
    spec: EncoderSpec,
    ffmpeg: str,
) -> int:
    """Bytes of the coded video; DecodeFailed unless it is complete, its timestamps are regular,
    and it decodes to the frames of its segments."""
    wrong = "the joined file is not right and was thrown away: "
    packets = stream_packets(part, spec.codec, source.fps)
    if len(packets) != sum(counts):
        raise DecodeFailed(f"{wrong}{len(packets)} frames where {sum(counts)} were joined")
    at = 0
    for count in counts:
        if not packets[at].keyframe:
            raise DecodeFailed(f"{wrong}frame {at} starts a scene and is no key frame")
        at += count
    for index, packet in enumerate(packets):
        # Matroska rounds to milliseconds
        if abs(packet.time_s - packets[0].time_s - float(index / source.fps)) > 1.1e-3:
            raise DecodeFailed(f"{wrong}frame {index} is shown at {packet.time_s:.4f} s")
    whole = _decoded(part, ["0:V:0"], ffmpeg, _decode_limit_s(source))
    # the AVS2 decoder prints its name and every new sequence, whatever the log level
    warnings = [line for line in whole.log.splitlines() if not _HARMLESS.search(line)]
    if warnings and spec.codec != "avs2":
        raise DecodeFailed(f"{wrong}decoding it gave a warning: {warnings[0][:300]}")
    sums = [s for stream in whole.streams for s in stream.sums]
    at = 0
    for number, (path, count) in enumerate(zip(segments, counts, strict=True)):
        alone = _decoded(path, ["0:V:0"], ffmpeg, _decode_limit_s(source))
        expected = [s for stream in alone.streams for s in stream.sums]
        if len(expected) != count or sums[at : at + count] != expected:
            raise DecodeFailed(f"{wrong}scene {number} does not decode as it does alone")
        at += count
    if len(sums) != at:
        raise DecodeFailed(f"{wrong}{len(sums)} frames decode where {at} were joined")
    return sum(packet.size_bytes for packet in packets)


def _decode_limit_s(source: Source) -> float:
    return 120 + 2e-6 * source.width * source.height * source.frames


def _check_audio(
    part: Path, source: Source, late_s: float, tracks: Sequence[int], ffmpeg: str
) -> None:
    """DecodeFailed unless each track starts and ends against the video as in the original."""
    limit_s = 120 + 2 * source.duration_s * len(tracks)
    before = _decoded(source.path, [f"0:{track}" for track in tracks], ffmpeg, limit_s).streams
    after = _decoded(part, ["0:a"], ffmpeg, limit_s).streams
    first = _decoded(part, ["0:V:0"], ffmpeg, limit_s, "-frames:v", "1").streams[0].start_s
    wrong = "the joined file is not right and was thrown away: "
    if len(before) != len(after):
        raise DecodeFailed(f"{wrong}{len(after)} of {len(before)} audio tracks decode")
    allowed_s = float(1 / source.fps) + _CODEC_DELAY_S
    for number, (old, new) in enumerate(zip(before, after, strict=True), 1):
        start_s = float(new.start_s - first) - (float(old.start_s) - late_s)
        end_s = float(new.end_s - first) - (float(old.end_s) - late_s)
        if max(abs(start_s), abs(end_s)) > allowed_s:
            raise DecodeFailed(
                f"{wrong}audio track {number} starts {start_s:+.3f} s and ends {end_s:+.3f} s "
                "from where it did"
            )
