"""What is known of one encoder: the frozen form of a file in encoders/, and how it is read.

The files are data: everything that differs between encoders stands there, so that a codec engineer
adds one without Python. A wrong file is refused with its name and the key at fault.
"""

import math
import re
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqaloop.core.documents import read_toml
from vqaloop.errors import InputError


@dataclass(frozen=True)
class Knob:
    """The quality knob: what the search turns."""

    name: str
    """crf, qp or cq."""
    option: str
    """ffmpeg option, or `option:key` for a key inside an option such as svtav1-params."""
    min: float
    """Least value the encoder takes without changing its mode."""
    max: float
    """Largest value the encoder takes."""
    step: float
    """Least step that the encoder honours."""
    search: tuple[float, float]
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
    """What the encoder does when the parameter is not given, at the default preset."""

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
    """What it is called."""
    version: tuple[str, ...]
    """Arguments that make it tell its version."""
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
    cost: tuple[float, float]
    """CPU seconds a megapixel at the slowest and the fastest preset, roughly."""
    options: tuple[tuple[str, str], ...]
    """Options that are always given; {gop} stands for the GOP's length in frames."""
    gop_s: float
    """Seconds between IDR frames."""
    bitrate_option: str | None
    """ffmpeg option of a mean rate in bits a second, in place of the knob; None: no such mode."""
    thread_options: tuple[tuple[str, str], ...]
    """Options that set the number of threads; {threads} stands for it."""
    pixel_formats: tuple[tuple[int, str], ...]
    """Bits a sample, and the pixel format the encoder takes for it."""
    min_size: tuple[int, int]
    """Least width and height."""
    max_size: tuple[int, int]
    """Largest width and height."""
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

    @property
    def bit_depths(self) -> tuple[int, ...]:
        return tuple(depth for depth, _ in self.pixel_formats)


class _Table:
    """A TOML table whose keys are taken one by one; wrong and left-over ones are refused."""

    def __init__(self, file: Path, values: dict[str, Any], at: str = "") -> None:
        self.file, self.values, self.at = file, dict(values), at

    def refuse(self, key: str, why: str) -> InputError:
        return InputError(f"{self.file}: {self.at}{key}: {why}")

    def take(self, key: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
        if key not in self.values:
            if default is ...:
                raise self.refuse(key, "is missing")
            return default
        value = self.values.pop(key)
        wrong_bool = isinstance(value, bool) and kind is not bool
        if wrong_bool or not isinstance(value, kind):
            raise self.refuse(key, f"{value!r} is of the wrong type")
        return value

    def table(self, key: str, default: Any = ...) -> "_Table":
        return _Table(self.file, self.take(key, dict, default), f"{self.at}{key}.")

    def number(self, key: str) -> float:
        value = self.take(key, (int, float))
        if not math.isfinite(value):
            raise self.refuse(key, "must be finite")
        return float(value)

    def pair(self, key: str) -> tuple[float, float]:
        value = self.take(key, list)
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
        if len(value) != 2 or not numbers:
            raise self.refuse(key, f"{value!r} must be two numbers")
        if not all(map(math.isfinite, value)):
            raise self.refuse(key, "must be finite")
        return float(value[0]), float(value[1])

    def ascending(self, key: str) -> tuple[float, float]:
        low, high = self.pair(key)
        if low > high:
            raise self.refuse(key, f"{low:g} is above {high:g}")
        return low, high

    def strings(self, key: str, default: Any = ...) -> tuple[str, ...]:
        value = self.take(key, list, default)
        if not all(isinstance(v, str) for v in value):
            raise self.refuse(key, "must be a list of strings")
        return tuple(value)

    def options(self, key: str) -> tuple[tuple[str, str], ...]:
        value: dict[str, Any] = self.take(key, dict, {})
        for name, setting in value.items():
            if not isinstance(setting, str) or not setting:
                raise self.refuse(f"{key}.{name}", f"{setting!r} must be a string")
        return tuple(value.items())

    def end(self) -> None:
        for key in self.values:
            raise self.refuse(key, "is not a key that vqaloop knows")


def read_spec(file: Path) -> EncoderSpec:
    """Read one encoder's file; raises InputError naming the file and the key at fault."""
    root = _Table(file, read_toml(file, f"{file}:"))
    gop, container = root.table("gop"), root.table("container")
    bitrate, threads = root.table("bitrate", {}), root.table("threads", {})
    presets, limits = root.table("presets"), root.table("limits")
    formats, version = root.table("pixel_formats"), root.table("version")
    names = presets.strings("names")
    default_preset = presets.take("default", str)
    if default_preset not in names:
        raise presets.refuse("default", f"{default_preset!r} is not among the names")
    least, largest = limits.pair("min_size"), limits.pair("max_size")
    spec = EncoderSpec(
        name=file.stem,
        codec=root.take("codec", str),
        ffmpeg=root.take("ffmpeg", str),
        standalone=_standalone(root, bitrate),
        default=root.take("default", bool, False),
        hardware=root.take("hardware", bool, False),
        knob=_knob(root.table("knob")),
        preset_option=presets.take("option", str),
        presets=names,
        default_preset=default_preset,
        cost=presets.pair("cost"),
        options=root.options("options") + gop.options("options") + container.options("options"),
        gop_s=gop.number("seconds"),
        bitrate_option=bitrate.take("option", str, None),
        thread_options=threads.options("options") or (("threads", "{threads}"),),
        pixel_formats=_pixel_formats(formats),
        min_size=(int(least[0]), int(least[1])),
        max_size=(int(largest[0]), int(largest[1])),
        min_frames=limits.take("min_frames", int),
        muxer=container.take("muxer", str),
        suffix=container.take("suffix", str),
        decoder=container.take("decoder", str),
        version_pattern=_version_pattern(version),
        tunables=_tunables(root),
        quirks=root.strings("quirks", []),
        zones=root.take("zones", str, None),
        cap=root.options("cap"),
    )
    for table in (root, gop, bitrate, threads, container, presets, limits, version):
        table.end()
    if spec.decoder not in ("pyav", "ffmpeg"):
        raise container.refuse("decoder", f"{spec.decoder!r} is neither pyav nor ffmpeg")
    if spec.gop_s <= 0:
        raise gop.refuse("seconds", "must be above 0")
    return spec


def _knob(table: _Table) -> Knob:
    knob = Knob(
        name=table.take("name", str),
        option=table.take("option", str),
        min=table.number("min"),
        max=table.number("max"),
        step=table.number("step"),
        search=table.ascending("search"),
        lower_is_better=table.take("lower_is_better", bool),
    )
    table.end()
    if knob.step <= 0 or (knob.max - knob.min) / knob.step > 1e6:
        raise table.refuse("step", "must be above 0, and a millionth of the range or more")
    if not knob.min <= knob.search[0] < knob.search[1] <= knob.max:
        raise table.refuse("search", f"must lie inside {knob.min:g}..{knob.max:g}")
    return knob


_PLACES = {
    "arguments": {"input", "output", "preset", "gop", "bits"},
    "knob": {"knob"},
    "bitrate": {"kbps"},
    "threads": {"threads"},
}
"""What may stand between braces in the program's arguments."""
_OPTIONAL_PLACES = {"bits", "preset"}
"""All others must be there."""


def _standalone(root: _Table, bitrate: _Table) -> Standalone | None:
    if "standalone" not in root.values:
        return None
    table = root.table("standalone")
    program = Standalone(
        program=table.take("program", str),
        version=table.strings("version"),
        version_pattern=_pattern(table, "version_pattern"),
        suffix=table.take("suffix", str),
        arguments=_arguments(table, "arguments"),
        knob=_arguments(table, "knob"),
        bitrate=_arguments(bitrate, "arguments", "bitrate"),
        threads=_arguments(table, "threads"),
        ten_bit=table.strings("ten_bit", []),
    )
    table.end()
    if not re.fullmatch(r"\.\w+", program.suffix):
        raise table.refuse("suffix", f"{program.suffix!r} must be a dot and letters")
    return program


def _version_pattern(table: _Table) -> str:
    """The pattern for ffmpeg's log, which may be empty."""
    return (
        _pattern(table, "pattern") if table.values.get("pattern") else table.take("pattern", str)
    )


def _pattern(table: _Table, key: str) -> str:
    pattern = str(table.take(key, str))
    try:
        groups = re.compile(pattern).groups
    except (re.error, OverflowError, RecursionError) as error:
        raise table.refuse(key, f"is no regular expression: {error}") from error
    if groups != 1:
        raise table.refuse(key, "must have one group, the version")
    return pattern


def _arguments(table: _Table, key: str, kind: str = "") -> tuple[str, ...]:
    """Arguments with places in braces, as _PLACES of `kind` (by default `key`) has them."""
    values, wanted = table.strings(key, []), _PLACES[kind or key]
    try:
        found = {name for v in values for _, name, _, _ in string.Formatter().parse(v) if name}
    except ValueError as error:
        raise table.refuse(key, f"has braces that do not match: {error}") from error
    if found - wanted:
        raise table.refuse(key, f"{{{min(found - wanted)}}} stands for nothing here")
    if values and (missing := wanted - found - _OPTIONAL_PLACES):
        raise table.refuse(key, f"{{{min(missing)}}} is missing")
    if not values and kind == "" and key != "threads":
        raise table.refuse(key, "is missing")
    return values


def _pixel_formats(table: _Table) -> tuple[tuple[int, str], ...]:
    formats = []
    for key in tuple(table.values):
        if key not in ("8", "10", "12"):
            raise table.refuse(key, "must be 8, 10 or 12")
        formats.append((int(key), str(table.take(key, str))))
    if not formats:
        raise table.refuse("8", "is missing")
    return tuple(formats)


def _tunables(root: _Table) -> tuple[Tunable, ...]:
    entries = root.take("tunable", list, [])
    if not all(isinstance(entry, dict) for entry in entries):
        raise root.refuse("tunable", "must be tables")
    return tuple(
        _tunable(_Table(root.file, entry, f"tunable[{i}].")) for i, entry in enumerate(entries)
    )


def _tunable(table: _Table) -> Tunable:
    kind = table.take("type", str)
    if kind not in ("int", "float", "choice"):
        raise table.refuse("type", f"{kind!r} is none of int, float, choice")
    tunable = Tunable(
        name=table.take("name", str),
        option=table.take("option", str),
        type=kind,
        range=None if kind == "choice" else table.ascending("range"),
        choices=table.strings("choices") if kind == "choice" else (),
        default=table.take("default", str),
    )
    table.end()
    if why := tunable.refusal(tunable.default):
        raise table.refuse("default", why)
    return tunable
