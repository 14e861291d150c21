"""ffmpeg's output options of a rendition: filters, encoder settings, GOP and colour tags."""

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

from vqaloop.bitstream.colour_tags import matrix_tag
from vqaloop.core.text import quoted
from vqaloop.encoding.spec import EncoderSpec
from vqaloop.errors import InputError
from vqaloop.records import Cap, Rendition, Source

DOWNSCALER = "lanczos+accurate_rnd+full_chroma_int"
"""swscale flags of every rendition; scoring scales back by `media.frames.SCALER`."""

ZONES, CAP = "zones", "cap"
"""Parameters of some encoders: a knob per range of frames in one run, and a cap in kbit/s."""
BUFFER = "buffer"
"""The size in kbit of the buffer that the cap refills, for the encoder's buffer model."""
RAISED = "raised"
"""The knob in place of the rendition's own, for a bound of its peak that no buffer model keeps."""
MEAN = "mean"
"""The mean rate in kb/s of an encode in two passes, in place of the knob."""
GRAIN = "film-grain"
"""How strongly the encoder denoises, for a table from which decoders synthesise the grain."""
PASS_LOG = "vqaloop-pass"
"""How the passes' log files begin, in the working folder."""


def with_cap(rendition: Rendition, cap: Cap) -> Rendition:
    """The rendition under a cap by its encoder's buffer model, in place of another cap.

    Args:
        rendition: What to encode.
        cap: The cap.

    Returns:
        The rendition, of which `cap_of` gives the cap.
    """
    others = [pair for pair in rendition.params if pair[0] not in (CAP, BUFFER)]
    own = [(BUFFER, str(cap.buffer_kbit)), (CAP, str(cap.maxrate_kbps))]
    return replace(rendition, params=tuple(sorted([*others, *own])))


def with_raised(rendition: Rendition, knob: float) -> Rendition:
    """The rendition at another knob than its own, which stays its name.

    Args:
        rendition: What to encode.
        knob: The knob that the encoder gets.

    Returns:
        The rendition, of which `encoded_knob` gives that knob.
    """
    others = [pair for pair in rendition.params if pair[0] != RAISED]
    own = [(RAISED, f"{knob:.10g}")] if knob != rendition.knob else []
    return replace(rendition, params=tuple(sorted([*others, *own])))


def encoded_knob(rendition: Rendition) -> float:
    """The knob that the encoder gets: that of `with_raised`, else the rendition's own."""
    return float(dict(rendition.params).get(RAISED, rendition.knob))


def in_two_passes(rendition: Rendition, mean_kbps: int) -> Rendition:
    """The rendition at a mean rate in two passes; its knob stays in name only.

    Args:
        rendition: What to encode.
        mean_kbps: The rate in kb/s.

    Returns:
        The rendition, of which `mean_of` gives the rate.
    """
    others = [pair for pair in rendition.params if pair[0] != MEAN]
    return replace(rendition, params=tuple(sorted([*others, (MEAN, str(mean_kbps))])))


def mean_of(rendition: Rendition) -> int | None:
    """The mean rate that `in_two_passes` gave a rendition.

    Args:
        rendition: What was encoded.

    Returns:
        The rate in kb/s; None where the knob decided.
    """
    found = dict(rendition.params).get(MEAN)
    return None if found is None else int(found)


def cap_of(rendition: Rendition) -> Cap | None:
    """The cap that `with_cap` gave a rendition.

    Args:
        rendition: What was encoded.

    Returns:
        The cap; None where no buffer model was used.
    """
    found = dict(rendition.params)
    return Cap(int(found[CAP]), int(found[BUFFER])) if BUFFER in found else None


def check_rendition(spec: EncoderSpec, rendition: Rendition) -> None:
    """Check that an encoder can make a rendition.

    Args:
        spec: The encoder.
        rendition: What to encode.

    Raises:
        InputError: It cannot; the message has all reasons.
    """
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
    model = bool(spec.buffer_model)
    if MEAN in dict(params):
        model = bool(spec.two_pass.cap)
    own = {ZONES: bool(spec.zones), CAP: bool(spec.cap) or model, BUFFER: model}
    own |= {MEAN: bool(spec.two_pass), RAISED: not spec.buffer_model}
    problems = []
    for name, value in params:
        if own.get(name):
            continue
        if name == GRAIN:
            if why := spec.film_grain.cannot or spec.film_grain.refusal(value):
                problems.append(f"{name} {value!r}: {why}")
            continue
        if name not in tunables:
            problems.append(f"unknown parameter {name!r}, known are {', '.join(sorted(tunables))}")
        elif why := tunables[name].refusal(value):
            problems.append(f"{name} {value!r} {why}")
    if len({name for name, _ in params}) < len(params):
        problems.append("a parameter is given twice")
    return problems


def gop_frames(spec: EncoderSpec, fps: Fraction) -> int:
    """GOP length in frames: the encoder's GOP duration at `fps`, to the nearest frame."""
    return max(1, round(Fraction(spec.gop_s) * fps))


def output_options(spec: EncoderSpec, rendition: Rendition, source: Source) -> dict[str, str]:
    """All of ffmpeg's output options, so that the same options give the same file again.

    Args:
        spec: The encoder.
        rendition: What to encode.
        source: What it is made from.

    Returns:
        Options without leading dashes, and their values, as ffmpeg-python and a command line take
        them.

    Raises:
        InputError: The encoder cannot make this rendition, or the source is too short for it.
    """
    check_rendition(spec, rendition)
    if source.frames < spec.min_frames:
        raise InputError(
            f"{quoted(source.path)} has {source.frames} frame(s) and {spec.name} needs "
            f"{spec.min_frames}; choose another codec or a longer source"
        )
    tunables = {tunable.name: tunable for tunable in spec.tunables}
    gop = rendition.gop or gop_frames(spec, source.fps)
    settings = {key: value.format(gop=gop) for key, value in spec.options}
    settings[spec.preset_option] = rendition.preset
    settings[spec.knob.option] = f"{encoded_knob(rendition):.10g}"
    cap = cap_of(rendition)
    for name, value in sorted(rendition.params):
        if name in (CAP, BUFFER, MEAN, RAISED):
            if name == CAP and not cap:
                settings |= {key: text.format(kbps=value) for key, text in spec.cap}
        elif name == GRAIN:
            settings |= {key: t.format(strength=value) for key, t in spec.film_grain.options}
        elif name == ZONES and spec.zones:
            settings[spec.zones] = value
        else:
            settings[tunables[name].option] = value
    # after the parameters, of which these override what would break them
    if mean_of(rendition) is not None:
        _set_two_pass(settings, spec, rendition)
    elif cap:
        _set_cap(settings, spec, cap)
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
        # without it, the muxer's version would be part of the file
        "fflags": "+bitexact",
        "f": spec.muxer,
    }


def first_pass(options: Mapping[str, str]) -> dict[str, str] | None:
    """The options of the first pass of an encode in two, whose output is discarded.

    Args:
        options: Those of the second, as `output_options` gives them.

    Returns:
        The same for the first pass; None where one pass makes the encode.
    """
    return {**options, "pass": "1", "f": "null"} if "pass" in options else None


def _set_cap(settings: dict[str, str], spec: EncoderSpec, cap: Cap) -> None:
    """Set the options of the encoder's buffer model."""
    values = {"kbps": cap.maxrate_kbps, "kbit": cap.buffer_kbit}
    settings |= {key: text.format(**values) for key, text in spec.buffer_model.options}


def _set_two_pass(settings: dict[str, str], spec: EncoderSpec, rendition: Rendition) -> None:
    """Set the options of the second pass."""
    passes, cap = spec.two_pass, cap_of(rendition)
    settings |= {key: text.format(mean=mean_of(rendition)) for key, text in passes.options}
    if cap:
        values = {"kbps": cap.maxrate_kbps, "kbit": cap.buffer_kbit}
        settings |= {key: text.format(**values) for key, text in passes.cap}
    for option in passes.without:
        settings.pop(option, None)
    settings |= {"pass": "2", "passlogfile": PASS_LOG}


def _filters(spec: EncoderSpec, rendition: Rendition, source: Source) -> list[str]:
    filters = list(source.prep)
    if (rendition.width, rendition.height) != source.canvas:
        filters.append(f"scale={rendition.width}:{rendition.height}:flags={DOWNSCALER}")
        # without it, sides rounded to even ones would leave pixels tagged as not quite square
        filters.append("setsar=1")
    filters += [
        f"format={dict(spec.pixel_formats)[rendition.bit_depth]}",
        *matrix_tag(source.colour),
    ]
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
