"""Checks of what is to be delivered: ladders, rungs, their alignment, and the tracks written.

A player may switch between rungs at any segment, so their key frames must be aligned.
"""

import bisect
import contextlib
import math
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from vqaloop.bitstream.codec_strings import video_range
from vqaloop.bitstream.hdr_metadata import alike, in_words, read_hdr
from vqaloop.core.text import quoted
from vqaloop.delivery.rates import track_rates
from vqaloop.delivery.segments import RungStream, Track, read_rung
from vqaloop.errors import DecodeFailed, InputError, ToolError
from vqaloop.execution.capping import PEAK_RATIO
from vqaloop.ladder.store import read_ladder
from vqaloop.records import Ladder, Rung, StaticHdr

KEY_FRAME_S = 2
"""Most seconds between key frames."""
OVERLONG_S = Fraction(1, 2)
"""Seconds by which a segment may last longer than was asked for."""
SHAPE_TOLERANCE = 0.02
"""Part by which a rung's aspect ratio may differ from that of the largest one."""
HLS_CODECS = ("h264", "hevc", "av1")
WHY_NOT = {
    ("hls", "vp9"): "Apple's HLS authoring specification takes H.264, HEVC and AV1 alone, and "
    "players of HLS expect no VP9; deliver it with --dash",
    ("hls", "avs2"): "AVS2 has no codec string (RFC 6381) and no mapping to HLS; it is delivered "
    "as files",
    ("dash", "avs2"): "AVS2 has no codec string (RFC 6381) and no MP4 mapping that players take; "
    "it is delivered as files",
}
"""Why a codec has no place in a kind of manifest."""


@dataclass(frozen=True)
class RungInput:
    """A rung to be packaged."""

    ladder: Ladder
    rung: Rung
    stream: RungStream
    range: str = "SDR"
    """SDR, PQ or HLG."""
    static_hdr: StaticHdr | None = None
    """Of HDR: its mastering display and light levels."""

    @property
    def path(self) -> Path:
        return self.ladder.folder / self.rung.file


def read_ladders(folders: Sequence[Path]) -> list[Ladder]:
    """The ladders in these folders or their subfolders, of one title, each of another codec."""
    places: list[Path] = []
    for folder in folders:
        inner = []
        if not (folder / "ladder.json").exists():
            with contextlib.suppress(OSError):
                inner = sorted(path.parent for path in folder.glob("*/ladder.json"))
        places += inner or [folder]
    ladders = [read_ladder(place) for place in places]
    codecs = [ladder.about["codec"] for ladder in ladders]
    for ladder, codec in zip(ladders, codecs, strict=True):
        if codec not in (*HLS_CODECS, "vp9", "avs2"):
            raise InputError(f"{quoted(ladder.folder)} is of the unknown codec {codec[:40]!r}")
        if codecs.count(codec) > 1:
            raise InputError(
                f"two of the ladders are of {codec}, {quoted(ladder.folder)} among them; name "
                "one folder of each codec"
            )
        first, other = (str(item.about["source"].get("sha256")) for item in (ladders[0], ladder))
        if first != other:
            raise InputError(
                f"{quoted(ladder.folder)} is of another source than {quoted(ladders[0].folder)}; "
                "deliver one title at a time"
            )
    return ladders


def common_metric(ladders: Sequence[Ladder]) -> bool:
    """Whether one metric, in one mode, scored all of these ladders."""
    found = []
    for ladder in ladders:
        metric = ladder.about.get("metric")
        found.append(
            tuple(str(metric.get(key)) for key in ("name", "mode", "label"))
            if isinstance(metric, dict)
            else None
        )
    return len(set(found)) == 1 and None not in found


def is_wanted(asked: Sequence[str], codec: str) -> bool:
    """Whether any of the kinds of manifest asked for takes this codec."""
    return any((kind, codec) not in WHY_NOT for kind in asked)


def find_refusals(asked: Sequence[str], codecs: Sequence[str]) -> list[dict[str, str]]:
    """Manifests asked for that a codec has no place in, with the reason; InputError when none is
    left."""
    if not asked:
        raise InputError("neither HLS nor DASH was asked for; nothing is to be delivered")
    refused = [
        {"kind": kind, "codec": codec, "reason": WHY_NOT[kind, codec]}
        for kind in asked
        for codec in codecs
        if (kind, codec) in WHY_NOT
    ]
    # with both asked for, whatever is possible is delivered: AVS2 as files at least
    if len(asked) == 1 and len(refused) == len(codecs):
        note = refused[0]
        raise InputError(f"no {asked[0].upper()} for {note['codec']}: {note['reason']}")
    return refused


def check_file(ladder: Ladder, rung: Rung) -> Path:
    """The rung's file; InputError unless it is a file in the ladder's own folder."""
    path = ladder.folder / rung.file
    try:
        # a link could point anywhere, a pipe would never end
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise InputError(f"{quoted(path)} is a link or no file; rungs must be plain files")
        if not os.lstat(path).st_size:
            raise InputError(f"{quoted(path)} is empty; make the ladder again")
    except OSError as error:
        raise InputError(
            f"the rung {quoted(path)} cannot be read: {error.strerror or error}; make the ladder "
            "again"
        ) from error
    return path


def open_rung(ladder: Ladder, rung: Rung) -> RungInput:
    """A rung to be packaged, read and checked; raises InputError where it cannot be."""
    path = check_file(ladder, rung)
    stream = read_rung(path)
    if stream.codec != ladder.about["codec"]:
        raise InputError(
            f"{quoted(path)} holds {stream.codec}, and its ladder is of {ladder.about['codec']}; "
            "make the ladder again"
        )
    try:
        found, static = read_hdr(path)
    except DecodeFailed as error:
        raise InputError(f"{error}; make the ladder again") from error
    wanted = (ladder.about["source"].get("hdr") or {}).get("range", found)
    if found != wanted:
        raise InputError(
            f"{quoted(path)} is tagged {found}, and its ladder is {wanted}: players would show "
            "wrong colours; make the ladder again"
        )
    return RungInput(ladder, rung, stream, found, static if found != "SDR" else None)


def check_ranges(items: Sequence[RungInput]) -> None:
    """Raises InputError unless all rungs have one dynamic range and the same static metadata.

    A player that changed to a rung of another would change the display's mode.
    """
    for item in items[1:]:
        first = items[0]
        if item.range != first.range:
            raise InputError(
                f"{quoted(item.path)} is {item.range} and {quoted(first.path)} is {first.range}; "
                "one delivery has one dynamic range: deliver them apart"
            )
        if not alike(item.static_hdr, first.static_hdr):
            raise InputError(
                f"{quoted(item.path)} has {in_words(item.static_hdr)}, and {quoted(first.path)} "
                f"has {in_words(first.static_hdr)}; make the ladders again from one source"
            )


def coarsest(items: Sequence[RungInput]) -> RungInput:
    """The rung with the fewest key frames, which all others have too."""
    return min(items, key=lambda item: len(item.stream.keys))


def check_alignment(items: Sequence[RungInput]) -> None:
    """Raises InputError unless a player may switch between any two rungs at any key frame of the
    coarsest. Of regular GOPs the others may have whole fractions; segments begin with those that
    all have."""
    if not items:
        return
    first, base = items[0], coarsest(items)
    regular = is_regular(base.stream)
    near = 1 / (2 * first.stream.fps)
    for item in items:
        stream, name = item.stream, quoted(item.path)
        if stream.fps != first.stream.fps:
            raise InputError(
                f"{name} has {float(stream.fps):.6g} fps and "
                f"{quoted(first.path)} {float(first.stream.fps):.6g}; make the ladders again"
            )
        if abs(stream.end - first.stream.end) > near:
            raise InputError(
                f"{name} lasts {float(stream.end):.3f} s and {quoted(first.path)} "
                f"{float(first.stream.end):.3f} s; make the ladders again"
            )
    for item in items:
        stream, name = item.stream, quoted(item.path)
        pairs = zip((*stream.keys, stream.end), (*base.stream.keys, stream.end), strict=False)
        apart = next(((a, b) for a, b in pairs if abs(a - b) > near), None)
        if apart and not (regular and _has_all(stream.keys, base.stream.keys, near)):
            raise InputError(
                f"the key frames do not align: {name} has one at {float(apart[0]):.3f} s where "
                f"{quoted(base.path)} has one at {float(apart[1]):.3f} s, so no player could "
                "switch there; make all rungs with the same GOP and no scene cuts"
            )
        gaps = zip(stream.keys, (*stream.keys[1:], stream.end), strict=True)
        widest = max(((after - before, before) for before, after in gaps), key=lambda gap: gap[0])
        # a GOP is a whole number of frames: 2 s may take a fraction more
        if widest[0] > KEY_FRAME_S + 2 * near:
            raise InputError(
                f"{name} has no key frame for {float(widest[0]):.3f} s from "
                f"{float(widest[1]):.3f} s on; one every {KEY_FRAME_S} s is needed"
            )


def _has_all(keys: Sequence[Fraction], wanted: Sequence[Fraction], near: Fraction) -> bool:
    """Whether each of the wanted times is one of the key frames'."""
    places = (bisect.bisect_left(keys, time - near) for time in wanted)
    pairs = zip(places, wanted, strict=True)
    return all(at < len(keys) and abs(keys[at] - time) <= near for at, time in pairs)


def is_regular(stream: RungStream) -> bool:
    """Whether all GOPs are as long as the first; the last is what is left."""
    keys = stream.keys
    gop = (*keys[1:], stream.end)[0] - keys[0]
    return all(abs(b - a - gop) * stream.fps < Fraction(1, 2) for a, b in pairwise(keys))


def segment_length(stream: RungStream, segment_s: float) -> Fraction:
    """Duration of a segment in seconds: the whole number of GOPs nearest to `segment_s`.

    Of GOPs that differ, as scenes have them: the duration that makes the longest segments on
    average of which none is longer than is allowed.
    """
    keys = (*stream.keys, stream.end)
    gop = keys[1] - keys[0]
    if is_regular(stream):
        # a half is rounded down: segments longer than asked for are worse than shorter ones
        count = max(1, -(-(Fraction(segment_s) / gop - Fraction(1, 2)) // 1))
        return gop * count
    most = max(Fraction(segment_s), *(b - a for a, b in pairwise(keys))) + OVERLONG_S
    frames = range(1, max(2, math.floor(segment_s * stream.fps) + 1))
    lengths = {count: _segments(keys, count / stream.fps, stream.fps) for count in frames}
    fit = [count for count, segments in lengths.items() if max(segments) <= most]
    # segments of a frame are GOPs, so there is one
    return min(fit, key=lambda count: (len(lengths[count]), -count)) / stream.fps


def _segments(keys: Sequence[Fraction], cut_s: Fraction, fps: Fraction) -> list[Fraction]:
    """Durations of segments that end at the first key frame not earlier than `cut_s`."""
    starts = [keys[0]]
    for key in keys[1:-1]:
        # half a frame of room, as the muxer is given
        if key - starts[-1] >= cut_s - 1 / (2 * fps):
            starts.append(key)
    return [b - a for a, b in pairwise([*starts, keys[-1]])]


def check_track(track: Track, first: Track, item: RungInput, segment_s: float) -> None:
    """Refuse a track of another size than its ladder's, or cut at other times than `first`."""
    entry, name = track.video, quoted(item.path)
    if (entry.width, entry.height) != (item.rung.width, item.rung.height):
        raise InputError(
            f"{name} is {entry.width}x{entry.height}, and ladder.json says {item.rung.width}x"
            f"{item.rung.height}; make the ladder again"
        )
    if video_range(entry) != item.range or (
        item.range != "SDR" and not alike(entry.static_hdr, item.static_hdr)
    ):
        raise ToolError(
            f"ffmpeg did not keep the range of {name} ({item.range}, {in_words(item.static_hdr)}) "
            f"in its segments: {video_range(entry)}, {in_words(entry.static_hdr)}"
        )
    if [s.start for s in track.segments] != [s.start for s in first.segments]:
        raise ToolError(f"ffmpeg cut {name} at other times than the other rungs")
    longest = max(s.duration for s in track.segments)
    limit = max(Fraction(segment_s), *(k.duration for k in track.keyframes)) + OVERLONG_S
    if longest > limit:
        raise ToolError(f"ffmpeg wrote a segment of {float(longest):.3f} s of {name}")


def find_warnings(tracks: Sequence[Track]) -> list[str]:
    """Warnings of what Apple's authoring specification advises against."""
    found = []
    largest = max((track.video for track in tracks), key=lambda e: e.width * e.height)
    captioned = dict.fromkeys(track.codec for track in tracks if track.captions)
    bare = dict.fromkeys(track.codec for track in tracks if not track.captions)
    if captioned and bare:
        found.append(
            f"closed captions are in the pictures of {', '.join(captioned)} and not in those of "
            f"{', '.join(bare)}; they go away where a player changes to these"
        )
    for track in tracks:
        entry, rates = track.video, track_rates(track)
        if rates.peak > PEAK_RATIO * rates.mean:
            found.append(
                f"{track.name}: its peak is {rates.peak / rates.mean:.1f} times its average rate; "
                f"at most {PEAK_RATIO:g} is advised, encode with a cap on the bitrate"
            )
        shape = (entry.width / entry.height) / (largest.width / largest.height)
        if abs(shape - 1) > SHAPE_TOLERANCE:
            found.append(
                f"{track.name}: its shape differs from that of {largest.width}x{largest.height}; "
                "all variants should have one"
            )
        if track.codec == "h264" and entry.config[1] > 100:
            # HDR has no 8 bits
            hdr = video_range(entry) != "SDR"
            remedy = "of HEVC or AV1, or with --tonemap" if hdr else "with --bit-depth 8"
            found.append(
                f"{track.name}: a profile above High ({track.codecs}), which most players cannot "
                f"decode; make the ladder {remedy}"
            )
    return found
