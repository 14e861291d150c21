"""Surveys the encoders that run on this machine, and their versions."""

import functools
import re
import tempfile
from typing import Any

from vqaloop.core import process
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.core.files import file_sha256
from vqaloop.encoding.registry import load_encoders
from vqaloop.encoding.spec import EncoderSpec
from vqaloop.errors import EncoderMissing, ToolError

_TRIAL_WIDTH, _TRIAL_HEIGHT = 256, 144
_TRIAL_TIMEOUT_S = 60.0


def encoder_version(spec: EncoderSpec, ffmpeg: str) -> str:
    """The version of an encoder, found by encoding one grey frame; once for each ffmpeg binary.

    Args:
        spec: The encoder.
        ffmpeg: The ffmpeg program.

    Returns:
        The encoder's name and library version, or ffmpeg's where the library does not print its
        own.

    Raises:
        EncoderMissing: This ffmpeg, or this machine, cannot run the encoder.
    """
    known = library_version(spec, ffmpeg)
    return (
        known or f"{spec.name} (its library does not tell its version; {ffmpeg_version(ffmpeg)})"
    )


def library_version(spec: EncoderSpec, ffmpeg: str) -> str | None:
    """As `encoder_version`, but None where the library does not print its own."""
    return _trial(spec, ffmpeg, file_sha256(ffmpeg))


def available(spec: EncoderSpec, ffmpeg: str) -> bool:
    """Whether this ffmpeg on this machine encodes with it: a trial, not the list of encoders."""
    try:
        encoder_version(spec, ffmpeg)
    except EncoderMissing:
        return False
    return True


@functools.lru_cache(maxsize=256)
def _trial(spec: EncoderSpec, ffmpeg: str, sha256: str) -> str | None:
    done = _one_grey_frame(spec, ffmpeg, "verbose")
    if done.returncode or done.timed_out:
        raise EncoderMissing(_missing(spec, ffmpeg))
    if spec.version_pattern and (found := re.search(spec.version_pattern, done.stderr)):
        return f"{spec.name} {found[1]}"
    return None


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
    """Why a run at log level error failed, in one line: the encoder's own message if there is one.

    ffmpeg's messages after it only say that nothing was written.

    Args:
        spec: The encoder.
        done: The run.

    Returns:
        The reason.
    """
    if done.timed_out or done.returncode < 0:
        return done.reason()
    pattern = rf"^(?:\[{re.escape(spec.ffmpeg)} @ [^\]]*\]|\S+ ?\[error\]:) *(.+)$"
    own = re.search(pattern, done.stderr, re.MULTILINE)
    return f"exit status {done.returncode}: {own[1][:300]}" if own else done.reason()


def survey_encoders(ffmpeg: str | None = None) -> list[dict[str, Any]]:
    """Every known encoder, with its version, or the reason why it does not run here.

    Args:
        ffmpeg: The program; None: the bundled one.

    Returns:
        The rows of `vqaloop encoders`, as JSON.
    """
    binary, found = ffmpeg_path(ffmpeg), []
    for spec in load_encoders().values():
        version, why = None, None
        try:
            version = encoder_version(spec, binary)
        except EncoderMissing as error:
            why = str(error)
        knob = {"name": spec.knob.name, "min": spec.knob.min, "max": spec.knob.max}
        found.append(
            {
                "name": spec.name,
                "codec": spec.codec,
                "default": spec.default,
                "available": why is None,
                "version": version,
                "why_not": why,
                "knob": {**knob, "step": spec.knob.step, "search": list(spec.knob.search)},
                "presets": list(spec.presets),
                "default_preset": spec.default_preset,
                "bit_depths": list(spec.bit_depths),
                "quirks": list(spec.quirks),
            }
        )
    return found


def ffmpeg_version(ffmpeg: str) -> str:
    """Name and version of an ffmpeg program, such as "ffmpeg 7.0.2-static"."""
    done = process.run([ffmpeg, "-version"], timeout_s=_TRIAL_TIMEOUT_S)
    words = done.stdout.decode("utf-8", "replace").split()
    return f"ffmpeg {words[2]}" if words[:2] == ["ffmpeg", "version"] else "ffmpeg unknown"
