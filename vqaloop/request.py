"""What is asked for, checked before any work starts: encoder, sizes, rules, output folder."""

import math
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vqaloop.encoder import (
    EncoderSpec,
    codec_hint,
    codecs,
    default_encoder,
    encoder_version,
    get_encoder,
)
from vqaloop.errors import InputError
from vqaloop.executor import Executor, executor_of
from vqaloop.hull import LEAST_RUNGS, Rules
from vqaloop.process import quoted
from vqaloop.records import Source
from vqaloop.score import Metric
from vqaloop.students import StudentMetric
from vqaloop.studies import is_study_file

FRACTIONS = (1, 2 / 3, 1 / 2, 1 / 3, 1 / 4, 1 / 6)
"""Sizes tried, as parts of the source's: 1080p gives 1080, 720, 540, 360, 270 and 180 lines."""
LEAST_SIDE = 140
"""Shorter side below which no rendition is made, unless it takes that to have two sizes."""
DEVICES = ("auto", "cpu", "cuda")
LONGEST_ENCODE_S = 1e7
"""Seconds, some months: more than a timer of the system takes is beyond it."""


def named_encoder(codec: str, encoder: str | None) -> EncoderSpec:
    """The encoder asked for, or the codec's default, whether it runs here or not.

    Raises InputError.
    """
    if codec not in codecs():
        raise InputError(
            f"unknown codec {codec!r}; choose one of {', '.join(codecs())}{codec_hint(codec)}"
        )
    spec = get_encoder(encoder) if encoder else default_encoder(codec)
    if spec.codec != codec:
        raise InputError(f"{spec.name} makes {spec.codec}, not {codec}; leave out one of the two")
    return spec


def choose_encoder(codec: str, encoder: str | None, ffmpeg: str) -> EncoderSpec:
    """`named_encoder`, if this ffmpeg runs it. Raises InputError or EncoderMissing."""
    spec = named_encoder(codec, encoder)
    encoder_version(spec, ffmpeg)  # raises EncoderMissing, saying why
    return spec


def choose_sizes(
    source: Source, spec: EncoderSpec, asked: Sequence[tuple[int, int]] | None = None
) -> tuple[tuple[int, int], ...]:
    """Sizes to try, largest first: those asked for, or parts of the source's canvas.

    Raises InputError for a size larger than the source (rungs are never upscaled), odd, or beyond
    what the encoder takes.
    """
    width, height = source.canvas
    least, most = spec.min_size, spec.max_size

    def fits(size: tuple[int, int]) -> bool:
        return least[0] <= size[0] <= most[0] and least[1] <= size[1] <= most[1]

    if asked:
        for w, h in asked:
            if w > width or h > height:
                raise InputError(
                    f"resolution {w}x{h} is larger than the source ({width}x{height}); "
                    "rungs are never upscaled"
                )
            if w % 2 or h % 2 or not fits((w, h)):
                raise InputError(
                    f"{spec.name} cannot make {w}x{h}: sizes are even, from "
                    f"{least[0]}x{least[1]} to {most[0]}x{most[1]}"
                )
        return tuple(sorted(set(asked), key=lambda s: -s[0] * s[1]))
    sizes = [(round(width * f / 2) * 2, round(height * f / 2) * 2) for f in FRACTIONS]
    good = [size for size in sizes if fits(size)]
    tall = [size for size in good if min(size) >= LEAST_SIDE]
    chosen = tall if len(tall) >= 2 else good[:3]
    if not chosen:
        raise InputError(
            f"{source.path.name!r} is {width}x{height} and {spec.name} takes "
            f"{least[0]}x{least[1]} to {most[0]}x{most[1]}; choose another encoder"
        )
    return tuple(chosen)


def parse_size(text: str) -> tuple[int, int]:
    """ "1920x1080" as width and height. Raises InputError."""
    match = re.fullmatch(r"\s*([0-9]{2,5})x([0-9]{2,5})\s*", text)
    if not match:
        raise InputError(f"{text[:50]!r} is not a resolution; write it as 1920x1080")
    return int(match[1]), int(match[2])


def parse_resolutions(text: str) -> list[tuple[int, int]] | None:
    """ "1920x1080,1280x720" as pairs, "auto" as None. Raises InputError."""
    return None if text == "auto" else [parse_size(word) for word in text.split(",")]


def make_rules(
    meter: Metric,
    rungs: int | None,
    min_step: float | None,
    min_ratio: float,
    min_bitrate: float,
    max_bitrate: float,
    min_score: float | None = None,
    max_score: float | None = None,
) -> Rules:
    """The rules asked for, the metric's own where nothing was said. Raises InputError."""
    if rungs is not None and rungs < LEAST_RUNGS:
        raise InputError(f"a ladder has at least {LEAST_RUNGS} rungs, not {rungs}")
    step = meter.step if min_step is None else min_step
    if not 0 < step < meter.top:
        raise InputError(f"the least step must lie between 0 and {meter.top:g}, not {step:g}")
    if not 1 < min_ratio <= 8:
        raise InputError(f"the least ratio must lie above 1 and up to 8, not {min_ratio:g}")
    if not 0 <= min_bitrate < max_bitrate:
        raise InputError(
            f"the bitrates are no range: {min_bitrate:g} to {max_bitrate:g} kb/s; "
            "--min-bitrate must be less than --max-bitrate"
        )
    floor = meter.floor if min_score is None else min_score
    ceiling = meter.ceiling if max_score is None else max_score
    if not 0 <= floor < ceiling <= meter.top:
        raise InputError(
            f"--min-score must lie within 0 and {meter.top:g} and below --max-score; they are "
            f"{floor:g} and {ceiling:g} (for {meter.name} by default {meter.floor:g} and "
            f"{meter.ceiling:g})"
        )
    return Rules(
        min_step=step,
        min_ratio=min_ratio,
        floor=floor,
        ceiling=ceiling,
        min_kbps=min_bitrate,
        max_kbps=max_bitrate,
        count=rungs,
    )


def required_sizes(
    asked: Sequence[tuple[int, int]], sizes: Sequence[tuple[int, int]]
) -> tuple[tuple[int, int], ...]:
    """Sizes that must have a rung. Raises InputError for one that is not tried."""
    for width, height in asked:
        if (width, height) not in sizes:
            tried = ", ".join(f"{w}x{h}" for w, h in sizes)
            raise InputError(
                f"--require {width}x{height} is none of the sizes tried ({tried}); "
                "name it in --resolutions too, if the source is as large"
            )
    return tuple(dict.fromkeys(asked))


def checked_budget(seconds: float | None) -> float:
    if seconds is None:
        return math.inf
    if not 0 < seconds < math.inf:
        raise InputError(f"the budget must be a time above 0, not {seconds:g} s")
    return seconds


def parse_duration(text: str) -> float:
    """ "90", "90s", "10min" or "1.5h" in seconds. Raises InputError."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(s|sec|m|min|h)?\s*", text)
    if not match:
        raise InputError(f"{text[:50]!r} is no duration; write it as 90s, 10min or 1.5h")
    unit = (match[2] or "s")[0]
    return float(match[1]) * {"s": 1.0, "m": 60.0, "h": 3600.0}[unit]


def checked_preset(spec: EncoderSpec, preset: str | None) -> str:
    if preset is None:
        return spec.default_preset
    if preset not in spec.presets:
        raise InputError(
            f"{spec.name} has no preset {preset!r}; from slow to fast: {', '.join(spec.presets)}"
        )
    return preset


def checked_depth(source: Source, spec: EncoderSpec, asked: int | None) -> int:
    depth = source.bit_depth if asked is None else asked
    if depth not in spec.bit_depths:
        takes = " and ".join(map(str, spec.bit_depths))
        raise InputError(
            f"{spec.name} encodes {takes} bit and this would be {depth} bit; "
            f"choose another encoder, or --bit-depth {max(spec.bit_depths)}"
        )
    return depth


def check_folder(folder: Path, source: Path, what: str = "ladder") -> None:
    """Raises InputError unless a ladder of `source`, or a tuning, can be written there.

    Without harm to anything: an earlier one is replaced, other files are not mixed with.
    """
    remedy = "choose another folder with -o"
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{quoted(folder)} is a file; give the output another name with -o")
        place = next(place for place in (folder, *folder.parents) if place.exists())
        if not place.is_dir():
            raise InputError(f"{quoted(place)} is a file, not a folder; {remedy}")
        check_writable(place, remedy)
        if not folder.is_dir():
            return
        # a study, or its mark, is of a run that was ended while it delivered
        ours = (folder / f"{what}.json").exists() or any(map(is_study_file, folder.iterdir()))
        if any(folder.iterdir()) and not ours:
            raise InputError(f"{quoted(folder)} holds other files and no {what}; {remedy}")
        if source.resolve().parent == folder.resolve():
            raise InputError(
                f"{quoted(source)} lies in the output folder, where it could be replaced; {remedy}"
            )
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"cannot use the folder {quoted(folder)}: {why}; {remedy}") from error


def check_writable(folder: Path, remedy: str) -> None:
    """Raises InputError unless a file can be made in `folder`; nothing is left there."""
    # only the attempt tells: access() knows nothing of /proc, quotas or what root may do
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(
            f"cannot write in {quoted(folder)}: {error.strerror or error}; {remedy}"
        ) from error


def check_run(
    workers: int | Executor, seed: int, device: str, timeout_s: float | None = None
) -> None:
    """Raises InputError unless these are words and numbers to work with."""
    if device not in DEVICES:
        raise InputError(f"unknown device {device!r}; choose one of {', '.join(DEVICES)}")
    executor_of(workers)
    if seed < 0:
        raise InputError(f"the seed must not be negative; it is {seed}")
    if timeout_s is not None and not 0 < timeout_s <= LONGEST_ENCODE_S:
        raise InputError(
            f"the time limit must lie above 0 and up to {LONGEST_ENCODE_S:.0f} s, "
            f"not {timeout_s:g}"
        )


def check_metric(
    metric: Metric, weights: str | os.PathLike[str] | None, anchored: bool = True
) -> None:
    """Raises InputError for a device that is not there, and for weights that do not load.

    `anchored`: or that cannot judge against a source.

    A student loads when it first scores; what a user named is better refused before any encode.
    """
    if not isinstance(metric, StudentMetric):
        if weights is not None:
            raise InputError(f"{metric.name} takes no weights; leave out --weights or --metric")
        return
    _ = metric.device
    if weights is not None:
        metric.check(anchored)


def parse_rungs(text: str) -> int | None:
    """ "auto" as None, or a number. Raises InputError."""
    if text == "auto":
        return None
    if not re.fullmatch(r"[0-9]{1,3}", text):
        raise InputError(f"--rungs {text!r} is neither a number nor auto")
    return int(text)
