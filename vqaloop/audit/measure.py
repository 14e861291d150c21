"""Puts the rungs of an audited ladder together and measures them: frames, rates, codecs."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

from vqaloop.audit.listing import Listed, Piece
from vqaloop.bitstream.codec_strings import codec_string
from vqaloop.bitstream.demux import main_video, open_video
from vqaloop.bitstream.formats import ENCODES
from vqaloop.bitstream.mp4_boxes import VideoEntry, read_video_entry
from vqaloop.bitstream.packets import Packet, segment_peak_kbps
from vqaloop.core import ffmpeg as ffmpeg_graph
from vqaloop.core import process
from vqaloop.core.ffmpeg import compiled
from vqaloop.core.text import quoted
from vqaloop.delivery.rates import average_rate, peak_rate
from vqaloop.errors import InputError, ToolError
from vqaloop.media.framerate import snapped

_ENTRIES = {"h264": "avc1", "hevc": "hvc1", "av1": "av01"}


@dataclass(frozen=True)
class Measured:
    """A rung as measured, without its score."""

    listed: Listed
    codec: str
    width: int
    height: int
    fps: Fraction
    frames: int
    kbps: float
    """Of the coded pictures alone."""
    peak_kbps: float
    """Of the pictures: the largest rate of any segment, as listed or as could be cut."""
    codecs: str | None
    """The CODECS string of its pictures; None where the file does not hold what it is made of."""
    bandwidth: int | None
    """Peak of the segments as fetched, audio included, in bit/s; None for a plain file."""
    average_bandwidth: int | None

    @property
    def name(self) -> str:
        """Its name in tables and messages."""
        return self.listed.name


@contextmanager
def whole_file(listed: Listed, folder: Path, ffmpeg: str) -> Iterator[Path]:
    """A rung as one file that can be probed: itself, or its pieces put together in `folder`."""
    pieces = [*([listed.init] if listed.init else []), *listed.pieces]
    only = pieces[0]
    if len(pieces) == 1 and not only.offset and only.size_bytes is None:
        only.size()
        yield only.path
        return
    joined = folder / "joined"
    made = folder / "rung.mp4"
    try:
        _join(pieces, joined)
        if listed.init is None:
            _remux(joined, made, listed.name, ffmpeg)
            joined.unlink()
        else:
            joined.rename(made)
        yield made
    finally:
        joined.unlink(missing_ok=True)
        made.unlink(missing_ok=True)


def _join(pieces: Sequence[Piece], out: Path) -> None:
    with out.open("wb") as file:
        for piece in pieces:
            left = piece.size()
            with piece.path.open("rb") as part:
                part.seek(piece.offset)
                if piece.size_bytes is None:
                    shutil.copyfileobj(part, file)
                    continue
                while left > 0:
                    data = part.read(min(left, 1 << 20))
                    if not data:
                        raise InputError(f"{quoted(piece.path)} became shorter while it was read")
                    file.write(data)
                    left -= len(data)


def _remux(joined: Path, out: Path, name: str, ffmpeg: str) -> None:
    """Transport streams as MP4, which sources may be."""
    graph = ffmpeg_graph.input("INPUT", format_whitelist="mpegts,mov,mp4,matroska,webm").output(
        "OUTPUT", f="mp4", map="0:v:0", **{"c:v": "copy"}
    )
    argv = compiled(graph, ffmpeg, {"INPUT": joined, "OUTPUT": out})
    done = process.run(argv, timeout_s=120 + joined.stat().st_size / 1_000_000)
    if done.returncode or done.timed_out:
        raise InputError(f"the segments of {quoted(name)} are no video: {done.reason()}")


def measure(listed: Listed, path: Path) -> Measured:
    """The figures of a rung that lies in the file `path`; InputError where it is no video."""
    name = quoted(listed.name)
    try:
        with open_video(path, ENCODES, by_name=False) as container:
            stream = main_video(container)
            if stream is None or stream.codec_context is None:
                raise InputError(f"{name} holds no video that can be decoded here")
            context = stream.codec_context
            codec, size = context.codec.canonical_name, (context.width, context.height)
            config = bytes(context.extradata or b"")
            rate = stream.average_rate or stream.guessed_rate
            packets = sorted(
                Packet(float(p.pts * p.time_base), p.size, p.is_keyframe)
                for p in container.demux(stream)
                if p.size and p.pts is not None
            )
    except (OSError, av.FFmpegError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} is not a video that can be read: {error}") from error
    if not packets or not rate:
        raise InputError(f"{name} holds no frames with times")
    fps = snapped(Fraction(rate))
    seconds = float(len(packets) / fps)
    bytes_ = sum(packet.size_bytes for packet in packets)
    bandwidth, average = _as_fetched(listed)
    return Measured(
        listed,
        codec,
        *size,
        fps,
        len(packets),
        bytes_ * 8 / 1000 / seconds,
        segment_peak_kbps(packets, seconds),
        _codecs(listed, codec, size, config),
        bandwidth,
        average,
    )


def _as_fetched(listed: Listed) -> tuple[int | None, int | None]:
    """Peak and mean of the segments with the largest audio, in bit/s; None without durations."""
    tracks = [listed.pieces, *listed.audio]
    if any(piece.seconds is None or piece.seconds <= 0 for t in tracks for piece in t):
        return None, None
    found = []
    for track in tracks:
        parts = [(piece.size(), piece.seconds or Fraction(1)) for piece in track]
        found.append((peak_rate(parts), average_rate(parts)))
    peaks, means = zip(*found, strict=True)
    return (
        peaks[0] + max(peaks[1:], default=0),
        means[0] + max(means[1:], default=0),
    )


def _codecs(listed: Listed, codec: str, size: tuple[int, int], config: bytes) -> str | None:
    try:
        if listed.init is not None:
            with listed.init.path.open("rb") as file:
                file.seek(listed.init.offset)
                return codec_string(read_video_entry(file.read(listed.init.size())))
        if codec in _ENTRIES and config:
            return codec_string(VideoEntry(_ENTRIES[codec], *size, config))
    except (ToolError, OSError, IndexError):
        # an entry of a kind that is not ours, such as avc3: nothing to compare with
        return None
    return None
