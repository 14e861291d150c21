"""The encoders vqaloop knows: which there are, whether they run here, and how they are called.

Each is a file in encoders/ (see encoderspec for its form). `output_options` is the whole of what
ffmpeg is told, so the same options replayed give the same file.
"""

import functools
import re
import tempfile
from fractions import Fraction
from pathlib import Path

from vqaloop import process
from vqaloop.encoderspec import EncoderSpec, Knob, Tunable, read_spec
from vqaloop.errors import EncoderMissing, InputError, ToolError
from vqaloop.hints import did_you_mean, plain
from vqaloop.records import Rendition, Source

__all__ = [
    "CAP",
    "ZONES",
    "EncoderSpec",
    "Knob",
    "Tunable",
    "available",
    "check_rendition",
    "codec_hint",
    "codecs",
    "complaint",
    "default_encoder",
    "encoder_version",
    "get_encoder",
    "gop_frames",
    "load_encoders",
    "output_options",
]

DOWNSCALER = "lanczos+accurate_rnd+full_chroma_int"
"""Flags of ffmpeg's scaler for every rendition; they are watched through metrics.SCALER."""

ZONES, CAP = "zones", "cap"
"""Parameters of encoders that can: several knobs in one run, and a bound of kb/s on the rate."""

_CODECS_ALSO = {
    **dict.fromkeys(("avc", "avc1", "mpeg4avc"), "h264"),
    **dict.fromkeys(("h265", "hvc1", "hev1"), "hevc"),
    **dict.fromkeys(("vp09", "vpx"), "vp9"),
    **dict.fromkeys(("av01", "aom", "svt"), "av1"),
    "avs": "avs2",
}
"""Other names of codecs, which messages understand."""
_TRIAL_WIDTH, _TRIAL_HEIGHT = 256, 144
_TRIAL_TIMEOUT_S = 60.0


def _folder() -> Path:
    beside_module = Path(__file__).parent / "encoders"
    return beside_module if beside_module.is_dir() else Path(__file__).parents[1] / "encoders"


@functools.cache
def load_encoders() -> dict[str, EncoderSpec]:
    """All encoders by name, in order of name.

    Raises InputError when the folder is missing or a file in it is wrong.
    """
    files = sorted(_folder().glob("*.toml"))
    if not files:
        raise InputError(f"no encoder files in {_folder()}; reinstall vqaloop")
    return {file.stem: read_spec(file) for file in files}


def get_encoder(name: str) -> EncoderSpec:
    """The encoder of that name; raises InputError listing the known ones."""
    encoders = load_encoders()
    if name not in encoders:
        bare = {plain(known.removeprefix("lib")): known for known in encoders}
        hint = did_you_mean(name, encoders, bare)
        raise InputError(f"unknown encoder {name!r}; known are {', '.join(encoders)}{hint}")
    return encoders[name]


def default_encoder(codec: str) -> EncoderSpec:
    """The encoder that `codec` stands for; raises InputError listing the codecs."""
    for spec in load_encoders().values():
        if spec.codec == codec and spec.default:
            return spec
    raise InputError(
        f"unknown codec {codec!r}; known are {', '.join(codecs())}{codec_hint(codec)}"
    )


def codecs() -> tuple[str, ...]:
    """The codecs that have a default encoder, sorted."""
    return tuple(sorted(spec.codec for spec in load_encoders().values() if spec.default))


def codec_hint(word: str) -> str:
    """Which codec was probably meant, for the end of a message, or nothing."""
    others = dict(_CODECS_ALSO)
    for spec in load_encoders().values():
        meant = spec.codec if spec.default else f"{spec.codec} --encoder {spec.name}"
        others[plain(spec.name)] = others[plain(spec.name.removeprefix("lib"))] = meant
    return did_you_mean(word, codecs(), others, "--codec")


def encoder_version(spec: EncoderSpec, ffmpeg: str) -> str:
    """The encoder's name and library version, found by encoding one grey frame.

    Where the library does not tell its version, ffmpeg's stands in its place. Remembered for each
    ffmpeg binary. Raises EncoderMissing when this ffmpeg, or this machine, cannot run the encoder.
    """
    return _trial(spec, ffmpeg, process.file_sha256(ffmpeg))


def available(spec: EncoderSpec, ffmpeg: str) -> bool:
    """Whether this ffmpeg on this machine really encodes with it."""
    try:
        encoder_version(spec, ffmpeg)
    except EncoderMissing:
        return False
    return True


@functools.lru_cache(maxsize=256)
def _trial(spec: EncoderSpec, ffmpeg: str, sha256: str) -> str:
    done = _one_grey_frame(spec, ffmpeg, "verbose")
    if done.returncode or done.timed_out:
        raise EncoderMissing(_missing(spec, ffmpeg))
    if spec.version_pattern and (found := re.search(spec.version_pattern, done.stderr)):
        return f"{spec.name} {found[1]}"
    return f"{spec.name} (its library does not tell its version; {ffmpeg_version(ffmpeg)})"


def _one_grey_frame(spec: EncoderSpec, ffmpeg: str, log_level: str) -> process.Finished:
    size = f"{_TRIAL_WIDTH}x{_TRIAL_HEIGHT}"
    raw = ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-video_size", size, "-i", "pipe:0"]
    argv = [ffmpeg, "-hide_banner", "-v", log_level, *raw, "-frames:v", "1"]
    # with global headers x264 logs what it would else write into the stream, its version
    argv += ["-c:v", spec.ffmpeg, "-flags", "+global_header", "-f", "null", "-"]
    try:
        with tempfile.TemporaryFile() as frame:
            frame.truncate(_TRIAL_WIDTH * _TRIAL_HEIGHT * 3 // 2)
            return process.run(argv, timeout_s=_TRIAL_TIMEOUT_S, stdin=frame)
    except ToolError as error:
        raise EncoderMissing(f"{spec.name} cannot be tried: {error}") from error


def _missing(spec: EncoderSpec, ffmpeg: str) -> str:
    done = _one_grey_frame(spec, ffmpeg, "error")
    if "Unknown encoder" in done.stderr:
        why = f"{ffmpeg} was built without {spec.ffmpeg}"
    elif spec.hardware:
        why = f"{spec.name} finds no device here that it can use ({complaint(spec, done)})"
    else:
        why = f"{spec.name} of {ffmpeg} does not encode one frame ({complaint(spec, done)})"
    others = [s.name for s in load_encoders().values() if s.codec == spec.codec and s != spec]
    instead = f", or choose {' or '.join(others)}" if others else ""
    return f"{why}; name another ffmpeg with --ffmpeg or VQALOOP_FFMPEG{instead}"


def complaint(spec: EncoderSpec, done: process.Finished) -> str:
    """In one line, why a run at log level error failed: the encoder's own word where it has one.

    ffmpeg's last words after it only say that nothing was written.
    """
    if done.timed_out or done.returncode < 0:
        return done.reason()
    pattern = rf"^(?:\[{re.escape(spec.ffmpeg)} @ [^\]]*\]|\S+ ?\[error\]:) *(.+)$"
    own = re.search(pattern, done.stderr, re.MULTILINE)
    return f"exit status {done.returncode}: {own[1][:300]}" if own else done.reason()


def ffmpeg_version(ffmpeg: str) -> str:
    """What an ffmpeg program calls itself, such as "ffmpeg 7.0.2-static"."""
    done = process.run([ffmpeg, "-version"], timeout_s=_TRIAL_TIMEOUT_S)
    words = done.stdout.decode("utf-8", "replace").split()
    return f"ffmpeg {words[2]}" if words[:2] == ["ffmpeg", "version"] else "ffmpeg unknown"


def check_rendition(spec: EncoderSpec, rendition: Rendition) -> None:
    """Refuse, with InputError, a rendition that this encoder cannot make."""
    r, knob = rendition, spec.knob
    problems = []
    if r.encoder != spec.name:
        problems.append(f"it is meant for {r.encoder}")
    if r.bit_depth not in spec.bit_depths:
        depths = " and ".join(str(depth) for depth in spec.bit_depths)
        problems.append(f"{r.bit_depth} bit is not possible, only {depths} bit")
    if r.preset not in spec.presets:
        problems.append(f"unknown preset {r.preset!r}, known are {', '.join(spec.presets)}")
    if r.gop is not None and r.gop < 1:
        problems.append(f"a GOP of {r.gop} frames is none")
    if r.width % 2 or r.height % 2:
        problems.append("width and height must be even")
    for name, size, low, high in zip(
        ("width", "height"), (r.width, r.height), spec.min_size, spec.max_size, strict=True
    ):
        if not low <= size <= high:
            problems.append(f"{name} {size} is outside {low}..{high}")
    if not knob.min <= r.knob <= knob.max:
        problems.append(f"{knob.name} {r.knob:g} is outside {knob.min:g}..{knob.max:g}")
    elif abs(knob.snap(r.knob) - r.knob) > 1e-6:
        problems.append(f"{knob.name} {r.knob:g} is not in steps of {knob.step:g}")
    problems += _param_problems(spec, r.params)
    if problems:
        raise InputError(f"{spec.name} cannot make {r}: {'; '.join(problems)}")


def _param_problems(spec: EncoderSpec, params: tuple[tuple[str, str], ...]) -> list[str]:
    tunables = {tunable.name: tunable for tunable in spec.tunables}
    problems = []
    for name, value in params:
        if (name == ZONES and spec.zones) or (name == CAP and spec.cap):
            continue
        if name not in tunables:
            problems.append(f"unknown parameter {name!r}, known are {', '.join(sorted(tunables))}")
        elif why := tunables[name].refusal(value):
            problems.append(f"{name} {value!r} {why}")
    if len({name for name, _ in params}) < len(params):
        problems.append("a parameter is given twice")
    return problems


def gop_frames(spec: EncoderSpec, fps: Fraction) -> int:
    """Frames between IDR frames: the encoder's GOP seconds at `fps`, to the nearest frame."""
    return max(1, round(Fraction(spec.gop_s) * fps))


def output_options(spec: EncoderSpec, rendition: Rendition, source: Source) -> dict[str, str]:
    """Everything ffmpeg is told about the output, without leading dashes, each with a value.

    The values are what both ffmpeg-python and a command line take. Raises InputError when the
    encoder cannot make this rendition, or the source is too short for it.
    """
    check_rendition(spec, rendition)
    if source.frames < spec.min_frames:
        raise InputError(
            f"{process.quoted(source.path)} has {source.frames} frame(s) and {spec.name} needs "
            f"{spec.min_frames}; choose another codec or a longer source"
        )
    tunables = {tunable.name: tunable for tunable in spec.tunables}
    gop = rendition.gop or gop_frames(spec, source.fps)
    settings = {key: value.format(gop=gop) for key, value in spec.options}
    settings[spec.preset_option] = rendition.preset
    settings[spec.knob.option] = f"{rendition.knob:.10g}"
    for name, value in sorted(rendition.params):
        if name == CAP:
            settings |= {key: text.format(kbps=value) for key, text in spec.cap}
        elif name == ZONES and spec.zones:
            settings[spec.zones] = value
        else:
            settings[tunables[name].option] = value
    return {
        # one mapped stream leaves no audio, subtitles or data behind
        # V rather than v: cover art is no video, and may come first
        "map": "0:V:0",
        "map_metadata": "-1",
        "map_chapters": "-1",
        "vf": ",".join(_filters(spec, rendition, source)),
        "fps_mode": "cfr",
        "r": str(source.fps),
        "c:v": spec.ffmpeg,
        **_gathered(settings),
        **dict(source.colour),
        # or the muxer's version would be part of the file
        "fflags": "+bitexact",
        "f": spec.muxer,
    }


def _filters(spec: EncoderSpec, rendition: Rendition, source: Source) -> list[str]:
    filters = list(source.prep)
    if (rendition.width, rendition.height) != source.canvas:
        filters.append(f"scale={rendition.width}:{rendition.height}:flags={DOWNSCALER}")
        # sides rounded to even ones would else leave pixels marked as not quite square
        filters.append("setsar=1")
    filters.append(f"format={dict(spec.pixel_formats)[rendition.bit_depth]}")
    # Exact timestamps by index: a container's rounded ones would make ffmpeg drop or repeat frames
    return [*filters, f"settb=expr={1 / source.fps}", "setpts=expr=N"]


def _gathered(settings: dict[str, str]) -> dict[str, str]:
    """Options with the `option:key` ones of one option joined to key=value:key=value.

    A stream specifier (tag:v, b:v, bsf:v) is part of the option's name and not such a key.
    """
    plain: dict[str, str] = {}
    inside: dict[str, list[str]] = {}
    for name, value in settings.items():
        option, _, key = name.partition(":")
        if option.endswith("-params"):
            inside.setdefault(option, []).append(f"{key}={value}")
        else:
            plain[name] = value
    return plain | {option: ":".join(pairs) for option, pairs in inside.items()}
