"""Specification of an encoder, and how it is read from its TOML file in encoders/.

The files are data: everything that differs between encoders stands there, so that a codec engineer
adds one without Python. A wrong file is refused with its name and the key at fault.
"""

import dataclasses
import math
import re
import string
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct, field
from msgspec.structs import asdict

from vqaloop.core.documents import Finite, one_of, read_toml
from vqaloop.errors import InputError


@dataclass(frozen=True)
class Knob:
    """The quality parameter of the encoder (CRF, QP, CQ), over which the search runs."""

    name: str
    """crf, qp or cq."""
    option: str
    """ffmpeg option, or `option:key` for a key inside an option such as svtav1-params."""
    min: Finite
    """Least value the encoder takes without changing its mode."""
    max: Finite
    """Largest value the encoder takes."""
    step: Finite
    """Least step that changes the encode."""
    search: tuple[Finite, Finite]
    """The part of the range worth searching."""
    lower_is_better: bool
    """True when a smaller value gives a larger and better encode."""

    def snap(self, value: float) -> float:
        """The nearest value that the encoder takes: on its grid and inside its range."""
        steps = round((min(max(value, self.min), self.max) - self.min) / self.step)
        snapped = self.min + steps * self.step
        return snapped if snapped <= self.max + 1e-9 else snapped - self.step


@dataclass(frozen=True)
class Tunable:
    """One encoder parameter worth tuning."""

    name: str
    option: str
    """As in Knob."""
    type: str
    """int, float or choice."""
    range: tuple[float, float] | None
    """Least and largest value of an int or a float."""
    choices: tuple[str, ...]
    """Values of a choice."""
    default: str
    """The encoder's own default, at the default preset."""

    def refusal(self, value: str) -> str | None:
        """Why `value` cannot be used, or None when it can."""
        if self.type == "choice":
            return None if value in self.choices else f"must be one of {', '.join(self.choices)}"
        low, high = self.range or (-math.inf, math.inf)
        try:
            number = float(int(value)) if self.type == "int" else float(value)
        except (ValueError, OverflowError):
            return f"must be {'an integer' if self.type == 'int' else 'a number'}"
        return None if low <= number <= high else f"must lie between {low:g} and {high:g}"


@dataclass(frozen=True)
class Standalone:
    """The encoder's own program, which reads a Y4M file; its arguments, split at spaces.

    Before they are given, {input}, {output}, {preset}, {knob}, {kbps}, {gop} (frames), {bits} (a
    sample) and {threads} are replaced.
    """

    program: str
    """Name of the executable."""
    version: tuple[str, ...]
    """Arguments that make it print its version."""
    version_pattern: str
    """Regular expression, multi-line, with the version as its group; no other program fits it."""
    suffix: str
    """Of the file it writes, with its dot."""
    arguments: tuple[str, ...]
    """Those that are always given."""
    knob: tuple[str, ...]
    """Those of the quality knob."""
    bitrate: tuple[str, ...]
    """Those of a mean rate in place of the knob; none where it has no such mode."""
    threads: tuple[str, ...]
    """Those of a number of threads."""
    ten_bit: tuple[str, ...]
    """Those needed beside {bits} at 10 bits a sample."""
    # not in the repr, which names catalogues: they do not run this program
    full_range: tuple[str, ...] | None = dataclasses.field(default=None, repr=False)
    """Those needed for samples of full range, which the Y4M tells; None where the program cannot
    write that into its stream."""


@dataclass(frozen=True)
class BufferModel:
    """How the encoder bounds its bitrate over a buffer (VBV) while it aims at the knob's quality.

    What it promises is checked on the file's packets, so a loose model costs another encode.
    """

    options: tuple[tuple[str, str], ...]
    """Options beside the knob; {kbps} stands for the greatest rate that refills the buffer,
    {kbit} for the buffer's size. None where there is no model that keeps a peak."""
    cannot: str
    """Why there is none, for people; empty where there is one."""

    def __bool__(self) -> bool:
        return bool(self.options)


@dataclass(frozen=True)
class TwoPass:
    """How the encoder aims at a mean rate in two passes over the title."""

    options: tuple[tuple[str, str], ...]
    """Options of both passes; {mean} stands for the rate in kb/s. None where it cannot."""
    cap: tuple[tuple[str, str], ...]
    """Options of both under a cap, with {kbps} and {kbit} as in BufferModel; none where two passes
    take no cap."""
    without: tuple[str, ...]
    """Options that are left out in turn."""
    cannot: str
    """Why it has none, for people; empty where it has."""

    def __bool__(self) -> bool:
        return bool(self.options)


@dataclass(frozen=True)
class Hdr:
    """What the encoder does with HDR."""

    metadata: str
    """Where its files have mastering display and light levels: "stream", as well as in the
    container, or "container", as in there alone; empty where it makes no HDR."""
    cannot: str
    """Why it makes none, for people; empty where it does."""


@dataclass(frozen=True)
class FilmGrain:
    """How the encoder removes a source's grain and has decoders synthesise it (AV1)."""

    options: tuple[tuple[str, str], ...]
    """Options that denoise and write the grain's table; {strength} stands for how strongly it is
    denoised. None where it cannot."""
    range: tuple[int, int]
    """Least and greatest strength."""
    cannot: str
    """Why it makes none, for people; empty where it does."""

    def __bool__(self) -> bool:
        return bool(self.options)

    def refusal(self, value: str) -> str | None:
        """Why `value` is no strength, or None where it is."""
        low, high = self.range
        good = value.isascii() and value.isdigit() and len(value) < 9 and low <= int(value) <= high
        return None if good else f"must be a whole number from {low} to {high}"


@dataclass(frozen=True)
class EncoderSpec:
    """One encoder, as its file in encoders/ describes it."""

    name: str
    """Name of the file, without suffix."""
    codec: str
    """h264, hevc, vp9, av1 or avs2."""
    ffmpeg: str
    """ffmpeg's name of the encoder."""
    standalone: Standalone | None
    """The encoder's own program, if it has one."""
    default: bool
    """True for the one encoder that its codec stands for."""
    hardware: bool
    """True when it needs a device."""
    knob: Knob
    preset_option: str
    presets: tuple[str, ...]
    """From slow to fast."""
    default_preset: str
    probe_preset: str | None
    """Preset of encodes that only show where the rungs lie; None: none is much cheaper."""
    cost: tuple[float, float]
    """CPU seconds per megapixel at the slowest and the fastest preset, roughly."""
    options: tuple[tuple[str, str], ...]
    """Options that are always given; {gop} stands for the GOP's length in frames."""
    gop_s: float
    """Seconds between IDR frames."""
    bitrate_option: str | None
    """ffmpeg option of a mean rate in bit/s, in place of the knob; None: no such mode."""
    thread_options: tuple[tuple[str, str], ...]
    """Options that set the number of threads; {threads} stands for it."""
    pixel_formats: tuple[tuple[int, str], ...]
    """Bits per sample, and the pixel format that the encoder takes for it."""
    min_size: tuple[int, int]
    """Least width and height in pixels."""
    max_size: tuple[int, int]
    """Largest width and height in pixels."""
    min_frames: int
    """Least number of frames that comes back from encoder and decoder."""
    muxer: str
    suffix: str
    """Of the file name, with its dot."""
    decoder: str
    """pyav, or ffmpeg where PyAV has no decoder."""
    version_pattern: str
    """Regular expression with the library's version as its group, for ffmpeg's log; or empty."""
    tunables: tuple[Tunable, ...]
    quirks: tuple[str, ...]
    zones: str | None
    """Option (as in Knob) that takes START,END,b=FACTOR of the bits, with slashes between."""
    cap: tuple[tuple[str, str], ...]
    """Options that bound the bitrate besides the knob; {kbps} stands for kb/s."""
    # not in the repr, which names catalogues: what is made without a buffer model is the same
    buffer_model: BufferModel = dataclasses.field(repr=False)
    two_pass: TwoPass = dataclasses.field(repr=False)
    hdr: Hdr = dataclasses.field(repr=False)
    film_grain: FilmGrain = dataclasses.field(repr=False)

    @property
    def bit_depths(self) -> tuple[int, ...]:
        return tuple(depth for depth, _ in self.pixel_formats)


Positive = Annotated[float, Meta(gt=0, lt=1e15)]
Side = Annotated[int, Meta(ge=0, lt=1 << 31)]
Options = dict[str, Annotated[str, Meta(min_length=1)]]


class _Presets(Struct):
    option: str
    names: tuple[str, ...]
    default: str
    cost: tuple[Finite, Finite]
    probe: str | None = None


class _Gop(Struct):
    seconds: Positive
    options: Options = {}


class _Limits(Struct):
    min_size: tuple[Side, Side]
    max_size: tuple[Side, Side]
    min_frames: Side


class _Container(Struct):
    muxer: str
    suffix: str
    decoder: Annotated[str, one_of("pyav", "ffmpeg")]
    options: Options = {}


class _Version(Struct):
    pattern: str


class _Bitrate(Struct):
    option: str | None = None
    arguments: tuple[str, ...] = ()


class _Threads(Struct):
    options: Options = {}


class _Standalone(Struct):
    program: str
    version: tuple[str, ...]
    version_pattern: str
    suffix: str
    arguments: Annotated[tuple[str, ...], Meta(min_length=1)]
    knob: Annotated[tuple[str, ...], Meta(min_length=1)]
    threads: tuple[str, ...] = ()
    ten_bit: tuple[str, ...] = ()
    full_range: tuple[str, ...] | None = None


class _BufferModel(Struct):
    options: Options = {}
    cannot: str = ""


class _TwoPass(Struct):
    options: Options = {}
    cap: Options = {}
    without: tuple[str, ...] = ()
    cannot: str = ""


class _Hdr(Struct):
    metadata: Annotated[str, one_of("stream", "container", "")] = ""
    cannot: str = ""


class _FilmGrain(Struct):
    options: Options = {}
    range: tuple[Annotated[int, Meta(ge=1)], int] = (1, 1)
    cannot: str = ""


class _Tunable(Struct):
    name: str
    option: str
    type: Annotated[str, one_of("int", "float", "choice")]
    default: str
    range: tuple[Finite, Finite] | None = None
    choices: tuple[str, ...] = ()


class _File(Struct):
    """An encoder's file as it stands there; `_faults` checks what no single type can."""

    codec: str
    ffmpeg: str
    knob: Knob
    presets: _Presets
    gop: _Gop
    pixel_formats: Annotated[
        dict[Annotated[str, one_of("8", "10", "12")], str], Meta(min_length=1)
    ]
    limits: _Limits
    container: _Container
    version: _Version
    default: bool = False
    hardware: bool = False
    zones: str | None = None
    quirks: tuple[str, ...] = ()
    options: Options = {}
    cap: Options = {}
    buffer_model: _BufferModel = field(
        default_factory=lambda: _BufferModel(cannot="its file in encoders/ describes none")
    )
    two_pass: _TwoPass = field(
        default_factory=lambda: _TwoPass(cannot="its file in encoders/ describes none")
    )
    hdr: _Hdr = field(
        default_factory=lambda: _Hdr(cannot="its file in encoders/ does not describe it")
    )
    film_grain: _FilmGrain = field(
        default_factory=lambda: _FilmGrain(cannot="film-grain synthesis is a part of AV1 alone")
    )
    bitrate: _Bitrate = field(default_factory=_Bitrate)
    threads: _Threads = field(default_factory=_Threads)
    standalone: _Standalone | None = None
    tunable: tuple[_Tunable, ...] = ()


def read_spec(file: Path) -> EncoderSpec:
    """Read one encoder's file; raises InputError naming the file and the key at fault."""
    found = read_toml(file, _File, str(file))
    for key, why in _faults(found):
        raise InputError(f"{file}: {key}: {why}")
    presets, limits = found.presets, found.limits
    container, alone = found.container, found.standalone
    options = (found.options, found.gop.options, container.options)
    return EncoderSpec(
        name=file.stem,
        codec=found.codec,
        ffmpeg=found.ffmpeg,
        standalone=Standalone(**asdict(alone), bitrate=found.bitrate.arguments) if alone else None,
        default=found.default,
        hardware=found.hardware,
        knob=found.knob,
        preset_option=presets.option,
        presets=presets.names,
        default_preset=presets.default,
        probe_preset=presets.probe,
        cost=presets.cost,
        options=tuple(option for table in options for option in table.items()),
        gop_s=found.gop.seconds,
        bitrate_option=found.bitrate.option,
        thread_options=tuple(found.threads.options.items()) or (("threads", "{threads}"),),
        pixel_formats=tuple((int(bits), name) for bits, name in found.pixel_formats.items()),
        min_size=limits.min_size,
        max_size=limits.max_size,
        min_frames=limits.min_frames,
        muxer=container.muxer,
        suffix=container.suffix,
        decoder=container.decoder,
        version_pattern=found.version.pattern,
        tunables=tuple(Tunable(**asdict(tunable)) for tunable in found.tunable),
        quirks=found.quirks,
        zones=found.zones,
        cap=tuple(found.cap.items()),
        buffer_model=BufferModel(
            tuple(found.buffer_model.options.items()), found.buffer_model.cannot
        ),
        two_pass=TwoPass(
            tuple(found.two_pass.options.items()),
            tuple(found.two_pass.cap.items()),
            found.two_pass.without,
            found.two_pass.cannot,
        ),
        hdr=Hdr(found.hdr.metadata, found.hdr.cannot),
        film_grain=FilmGrain(
            tuple(found.film_grain.options.items()),
            found.film_grain.range,
            found.film_grain.cannot,
        ),
    )


def _faults(found: _File) -> Iterator[tuple[str, str]]:
    """What no single value shows: the key at fault, and why it is."""
    knob, presets, program = found.knob, found.presets, found.standalone
    if knob.step <= 0 or (knob.max - knob.min) / knob.step > 1e6:
        yield "knob.step", "must be above 0, and a millionth of the range or more"
    if not knob.min <= knob.search[0] < knob.search[1] <= knob.max:
        yield "knob.search", f"must ascend, inside {knob.min:g}..{knob.max:g}"
    if presets.default not in presets.names:
        yield "presets.default", f"{presets.default!r} is not among the names"
    if presets.probe is not None and presets.probe not in presets.names:
        yield "presets.probe", f"{presets.probe!r} is not among the names"
    # an empty pattern: ffmpeg's log has no version of the library
    if found.version.pattern:
        yield from _pattern_faults("version.pattern", found.version.pattern)
    yield from _rate_faults(found)
    yield from _argument_faults("bitrate.arguments", found.bitrate.arguments, {"kbps"})
    if program:
        if not re.fullmatch(r"\.\w+", program.suffix):
            yield "standalone.suffix", f"{program.suffix!r} must be a dot and letters"
        yield from _pattern_faults("standalone.version_pattern", program.version_pattern)
        places, others = {"input", "output", "gop"}, {"preset", "bits"}
        yield from _argument_faults("standalone.arguments", program.arguments, places, others)
        yield from _argument_faults("standalone.knob", program.knob, {"knob"})
        yield from _argument_faults("standalone.threads", program.threads, {"threads"})
    for index, tunable in enumerate(found.tunable):
        key = f"tunable[{index}]"
        if (tunable.type == "choice") != bool(tunable.choices):
            yield f"{key}.choices", "must be there for a choice, and for nothing else"
        elif (tunable.type == "choice") != (tunable.range is None):
            yield f"{key}.range", "must be there for numbers, and for nothing else"
        elif tunable.range and tunable.range[0] > tunable.range[1]:
            yield f"{key}.range", "must not descend"
        elif why := Tunable(**asdict(tunable)).refusal(tunable.default):
            yield f"{key}.default", why


def _rate_faults(found: _File) -> Iterator[tuple[str, str]]:
    """What is wrong with buffer models, two passes, HDR and film grain."""
    for name, table in (("buffer_model", found.buffer_model), ("two_pass", found.two_pass)):
        if bool(table.options) == bool(table.cannot):
            yield name, "must have either options, or the reason why it cannot"
    if bool(found.hdr.metadata) == bool(found.hdr.cannot):
        yield "hdr", "must have either metadata, or the reason why it cannot"
    grain = found.film_grain
    if bool(grain.options) == bool(grain.cannot):
        yield "film_grain", "must have either options, or the reason why it cannot"
    if grain.range[0] > grain.range[1]:
        yield "film_grain.range", "must not descend"
    # one of the options has the strength, others may be switches
    joined = " ".join(grain.options.values())
    yield from _argument_faults("film_grain.options", (joined,) if joined else (), {"strength"})
    values = tuple(found.buffer_model.options.values())
    yield from _argument_faults("buffer_model.options", values, {"kbps"}, {"kbit"})
    passes = found.two_pass
    yield from _argument_faults("two_pass.options", tuple(passes.options.values()), {"mean"})
    yield from _argument_faults("two_pass.cap", tuple(passes.cap.values()), {"kbps"}, {"kbit"})


def _pattern_faults(key: str, pattern: str) -> Iterator[tuple[str, str]]:
    try:
        if re.compile(pattern).groups != 1:
            yield key, "must have one group, the version"
    except (re.error, OverflowError, RecursionError) as error:
        yield key, f"is no regular expression: {error}"


def _argument_faults(
    key: str, arguments: tuple[str, ...], places: set[str], others: Set[str] = frozenset()
) -> Iterator[tuple[str, str]]:
    """Arguments in which not all names of `places` stand between braces, or any but `others`."""
    try:
        found = {name for v in arguments for _, name, _, _ in string.Formatter().parse(v) if name}
    except ValueError as error:
        yield key, f"has braces that do not match: {error}"
        return
    if unknown := found - places - others:
        yield key, f"{{{min(unknown)}}} stands for nothing here"
    if arguments and (missing := places - found):
        yield key, f"{{{min(missing)}}} is missing"
