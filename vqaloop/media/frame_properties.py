"""Normalises frame properties that change inside a file: size, pixel format, shape, range, tags.

Joined clips, inserted advertisements, conference and screen recordings change them. ffmpeg then
builds its filter graph anew, which loses the filters' state (frame numbers, neighbours) and can
lock a graph of several inputs. So such a file is read with one graph (records.REUSE), through a
scale filter that takes frames as they come.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, NoReturn

from vqaloop.bitstream.colour_tags import HDR_TRANSFERS, SCALER_MATRICES
from vqaloop.errors import InputError

_UNKNOWN = "unknown"
_WIDE = {"bt2020": "BT.2020", "smpte431": "P3", "smpte432": "P3"}
_SAME_SHAPE = 0.015
"""Relative difference of aspect ratios, as rounding sides leaves it, that is scaled away."""
# ffmpeg's options have these names, its frames the others
_OPTION_NAMES = {"bt470m": "gamma22", "bt470bg": "gamma28"}

DYNAMIC = {
    "HDR Dynamic Metadata SMPTE2094-40": "HDR10+",
    "HDR Dynamic Metadata CUVA": "HDR Vivid",
    "Dolby Vision": "Dolby Vision",
}
"""How showinfo's names of frames' dynamic HDR metadata begin, and what people call them."""


@dataclass(frozen=True)
class Properties:
    """Properties of a decoded frame, by ffmpeg's names; colour tags may be "unknown"."""

    pix_fmt: str
    width: int
    height: int
    sar: Fraction
    """Width of a pixel over its height."""
    color_range: str
    matrix: str
    primaries: str
    transfer: str

    @property
    def is_rgb(self) -> bool:
        return self.matrix == "gbr"

    @property
    def aspect(self) -> float:
        return float(self.width * self.sar / self.height)

    def colour(self) -> tuple[tuple[str, str], ...]:
        """ffmpeg's output options for the same colour tags."""
        tags = [
            ("color_primaries", self.primaries),
            ("color_trc", _OPTION_NAMES.get(self.transfer, self.transfer)),
        ]
        if not self.is_rgb:
            tags += [("colorspace", self.matrix), ("color_range", self.color_range)]
        return tuple((key, value) for key, value in tags if value != _UNKNOWN)


@dataclass
class FrameLog:
    """Parses ffmpeg's log, at LEVEL, of a run that has FILTER in it."""

    FILTER = "showinfo=checksum=0"
    LEVEL = "repeat+level+info"

    runs: list[tuple[int, float, Properties]] = field(default_factory=list)
    """Of each run of equal frames: number and second of the first one, and their properties."""
    frames: int = 0
    """Frames so far."""
    last_s: float = 0.0
    """Presentation time of the last frame so far, in seconds."""
    turned_at: int | None = None
    """The first frame at which the rotation changes."""
    mislabelled_at: int | None = None
    """The first frame of limited range in a pixel format of full range: ffmpeg's H.264 decoder
    keeps yuvj420p when the range alone changes, and swscale then takes samples for full range."""
    dynamic: list[str] = field(default_factory=list)
    """Kinds of metadata of dynamic range that frames have, by the names of DYNAMIC."""
    changed_to: str = ""
    """ffmpeg's last message of a change; if it fails on the change, no frame follows."""
    _rest: bytes = b""
    _shown: tuple[str, ...] = ()

    def read(self, chunk: bytes) -> bytes:
        """Parse the next piece of the log.

        Args:
            chunk: Bytes of the log, which may end inside a line.

        Returns:
            The errors in it, without their level.
        """
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return b"".join(kept for line in lines if (kept := self._line(line)))

    def begin(self) -> Callable[[bytes], bytes]:
        """The reader of a run's log; what was read of another run is forgotten."""
        vars(self).update(vars(FrameLog()))
        return self.read

    def counts(self) -> "Counter[Properties]":
        """Number of frames by properties."""
        found: Counter[Properties] = Counter()
        ends = [first for first, _, _ in self.runs[1:]] + [self.frames]
        for (first, _, properties), end in zip(self.runs, ends, strict=True):
            found[properties] += end - first
        return found

    def time_s(self, frame: int) -> float:
        """Start of the run that a frame is in, in seconds."""
        return max((start for first, start, _ in self.runs if first <= frame), default=0.0)

    def _line(self, line: bytes) -> bytes:
        if level := re.search(rb"\[(error|fatal|panic)\] ", line):
            return line[: level.start()] + line[level.end() :] + b"\n"
        if b"[Parsed_showinfo_" in line:
            self._showinfo(line.decode("ascii", "replace"))
        elif b"Reconfiguring filter graph" in line:
            if b"display matrix changed" in line and self.turned_at is None:
                self.turned_at = self.frames
            if found := re.search(rb"parameters changed to (.*?\))", line):
                self.changed_to = found[1].decode("ascii", "replace")
        return b""

    def _showinfo(self, text: str) -> None:
        """Two lines a frame: its properties, then its colour tags. A frame of which another
        message breaks a line counts as equal to the one before."""
        self.frames += " pts_time:" in text
        if found := re.search(r"side data - (.+)", text):
            kinds = [kind for name, kind in DYNAMIC.items() if found[1].startswith(name)]
            self.dynamic += [kind for kind in kinds if kind not in self.dynamic]
        if found := re.search(r" pts_time:(\S+) .*?fmt:(\S+) .*?sar:(\d+/\d+) s:(\d+x\d+) ", text):
            self._shown = found.groups()
        elif self._shown and (
            found := re.search(
                r"color_range:(\S+) color_space:(\S+) color_primaries:(\S+) color_trc:(\S+)", text
            )
        ):
            time_s, pix_fmt, sar, size = self._shown
            first, color_range = self.frames - 1, found[1]
            if pix_fmt.startswith("yuvj"):
                pix_fmt = pix_fmt.replace("yuvj", "yuv")
                if color_range == "tv" and self.mislabelled_at is None:
                    self.mislabelled_at = first
                color_range = "tv" if color_range == "tv" else "pc"
            if re.fullmatch(r"-?\d+(\.\d+)?(e[+-]\d+)?", time_s):
                self.last_s = float(time_s)
            across, down = map(int, sar.split("/"))
            shape = Fraction(across, down) if across and down else Fraction(1)
            width, height = map(int, size.split("x"))
            tags = found.groups()[1:]
            now = Properties(pix_fmt, width, height, shape, color_range, *tags)
            if not self.runs or self.runs[-1][2] != now:
                self.runs.append((first, self.last_s, now))
            self._shown = ()


@dataclass(frozen=True)
class Normalised:
    """The common properties of all frames of a file, and the filters for them."""

    properties: Properties
    """Properties of every frame behind the filters."""
    filters: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def normalise(name: str, log: FrameLog, *, rotated: bool, interlaced: bool) -> Normalised:
    """The filters that bring every frame to the properties that most frames have.

    Untagged frames are taken to have the tags of the others; where matrix or range differ, samples
    are converted. Other aspect ratios are fitted in, with black beside or above them.

    Args:
        name: The file's name for messages.
        log: The parsed log of a full decode.
        rotated: Whether pictures have to be turned upright.
        interlaced: Whether any frames are interlaced.

    Returns:
        Common properties, filters and notes; no filters where nothing changes.

    Raises:
        InputError: A change cannot be undone by scaling: of rotation, HDR, gamut, rare matrices,
            and from full to limited range in H.264.
    """
    counts = log.counts()
    target = _target(counts)
    if log.turned_at is not None:
        refuse_change(name, "is turned another way", log.turned_at, log.time_s(log.turned_at))
    if len(counts) == 1:
        return Normalised(target)
    if log.mislabelled_at is not None:
        what = "changes from full to limited range"
        refuse_change(name, what, log.mislabelled_at, log.time_s(log.mislabelled_at))
    _check(name, log, target, rotated)
    yuv = [each for each in counts if not each.is_rgb]
    matrices = {_kind(each.matrix) for each in yuv} - {_UNKNOWN}
    ranges = {each.color_range.replace(_UNKNOWN, "tv") for each in yuv}
    options, tags = ["flags=lanczos"], {}
    if len(yuv) == len(counts) and len(matrices) < 2:
        tags["colorspace"] = target.matrix
    elif not target.is_rgb and target.matrix != _UNKNOWN:
        options.append(f"out_color_matrix={target.matrix}")
    if len(yuv) == len(counts) and len(ranges) < 2:
        tags["range"] = target.color_range
    elif not target.is_rgb:
        options.append(f"out_range={'pc' if target.color_range == 'pc' else 'tv'}")
    # tagged before scaling, so that untagged frames are not converted
    filters = _tagged(tags)
    if interlaced:
        options.append("interl=-1")
    width, height, pad = str(target.width), str(target.height), list[str]()
    if any(abs(each.aspect / target.aspect - 1) > _SAME_SHAPE for each in counts):
        pad = [f"pad={width}:{height}:(ow-iw)/4*2:(oh-ih)/4*2:eval=frame"]
        width, height = _fitted_sides(target)
        options.append("eval=frame")
    filters.append(":".join([f"scale={width}:{height}", *options]))
    filters.append(f"format={target.pix_fmt}")
    filters += pad
    filters.append(f"setsar={target.sar.numerator}/{target.sar.denominator}")
    filters += _tagged({"color_primaries": target.primaries, "color_trc": target.transfer})
    return Normalised(target, tuple(filters), _notes(log, target, matrices, ranges))


def _fitted_sides(target: Properties) -> tuple[str, str]:
    """The scale filter's expressions for the largest sides of the frame's own aspect ratio."""
    # inside a filter's option, commas of an expression are escaped
    dar, sar = f"{target.aspect:.9g}", f"{float(target.sar):.9g}"
    narrow = rf"lt(dar/{dar}\,{1 - _SAME_SHAPE:g})"
    broad = rf"gt(dar/{dar}\,{1 + _SAME_SHAPE:g})"
    width = rf"if({narrow}\,2*max(1\,round({target.height}*dar/{sar}/2))\,{target.width})"
    height = rf"if({broad}\,2*max(1\,round({target.width}*{sar}/dar/2))\,{target.height})"
    return width, height


def _tagged(tags: dict[str, str]) -> list[str]:
    known = [f"{key}={value}" for key, value in tags.items() if value != _UNKNOWN]
    return ["setparams=" + ":".join(known)] if known else []


def _target(counts: "Counter[Properties]") -> Properties:
    """The properties of most frames; tags they lack are those of most tagged frames.

    Y'CbCr rather than RGB, since encodes are.
    """
    kept = {p: n for p, n in counts.items() if not p.is_rgb} or dict(counts)
    target = max(kept, key=lambda p: kept[p])
    filled: dict[str, Any] = {}
    for tag in ("color_range", "matrix", "primaries", "transfer"):
        votes: Counter[str] = Counter()
        for properties, frames in kept.items():
            votes[getattr(properties, tag)] += frames
        del votes[_UNKNOWN]
        if getattr(target, tag) == _UNKNOWN and votes:
            filled[tag] = votes.most_common(1)[0][0]
    return replace(target, **filled)


def _kind(matrix: str) -> str:
    """The matrix by one name: BT.601 has two."""
    return "smpte170m" if matrix == "bt470bg" else matrix


def _check(name: str, log: FrameLog, target: Properties, rotated: bool) -> None:
    """Raise InputError at the first frame that no filter here can make like the others."""
    matrices = {_kind(p.matrix) for _, _, p in log.runs} - {_UNKNOWN, "gbr"}
    for first, start_s, now in log.runs:
        stored = (now.pix_fmt, now.width, now.height)
        if rotated and stored != (target.pix_fmt, target.width, target.height):
            refuse_change(name, "is rotated and changes size or pixel format", first, start_s)
        if HDR_TRANSFERS.get(now.transfer) != HDR_TRANSFERS.get(target.transfer):
            refuse_change(name, "changes between SDR and HDR, or from PQ to HLG", first, start_s)
        known = _UNKNOWN not in (now.primaries, target.primaries)
        if known and _WIDE.get(now.primaries) != _WIDE.get(target.primaries):
            refuse_change(
                name, f"changes its gamut to {now.primaries}/{target.primaries}", first, start_s
            )
        if len(matrices) > 1 and now.matrix not in {*SCALER_MATRICES, _UNKNOWN, "gbr"}:
            refuse_change(name, f"changes its matrix to {now.matrix}", first, start_s)


def refuse_change(name: str, what: str, frame: int, time_s: float) -> NoReturn:
    """Raise InputError: what changes in a file, and at which frame and second."""
    raise InputError(
        f"{name} {what} inside the file, near frame {frame} ({time_s:.3f} s): no filter here "
        "makes the parts alike; split it there, or convert the parts to one form with ffmpeg first"
    )


def _notes(
    log: FrameLog, target: Properties, matrices: set[str], ranges: set[str]
) -> tuple[str, ...]:
    """A sentence for each property that changes: between what, where first, and what is done."""
    colour = "samples kept" if len(matrices) < 2 else "samples converted"
    if len(matrices) > 1 and any(p.matrix == _UNKNOWN for _, _, p in log.runs):
        colour += ", untagged ones as BT.601"
    changes: dict[str, tuple[Callable[[Properties], str], str]] = {
        "Size": (lambda p: f"{p.width}x{p.height}", "all fitted into {}"),
        "Pixel format": (lambda p: p.pix_fmt, "all brought to {}"),
        "Pixel shape": (lambda p: f"{p.sar.numerator}:{p.sar.denominator}", "all brought to {}"),
        "Range": (
            lambda p: p.color_range,
            "all tagged {}" if len(ranges) < 2 else "samples converted to {}",
        ),
        "Colour": (
            lambda p: "/".join(dict.fromkeys((p.matrix, p.primaries, p.transfer))),
            f"{colour}; all tagged {{}}",
        ),
    }
    notes = []
    for what, (word, done) in changes.items():
        words = [word(p) for _, _, p in log.runs]
        values = list(dict.fromkeys(words))
        if len(values) > 1:
            first, start_s, _ = log.runs[words.index(values[1])]
            notes.append(
                f"{what} changes inside the file ({', '.join(values[:4])}; first at frame "
                f"{first}, {start_s:.3f} s); {done.format(word(target))}."
            )
    return tuple(notes)
