"""What an encode takes of a machine: threads that it keeps busy, and memory."""

from vqaloop.core.memory import frame_bytes
from vqaloop.encoding.options import output_options
from vqaloop.encoding.registry import get_encoder
from vqaloop.encoding.spec import EncoderSpec
from vqaloop.records import Rendition, Source

PIXELS_A_THREAD = 60_000
"""Pixels of a picture, at least, to keep one more thread of an encoder busy."""
FRAMES_HELD = 400
"""Frames of its own size that an encode is taken to hold, lookahead, references and all threads'
own included; rather too many, since what does not fit ends all work."""


def footprint(source: Source, rendition: Rendition, processors: int) -> tuple[int, int]:
    """Threads that an encode keeps busy at most on so many processors, and bytes that it takes.

    Args:
        source: What it is made from.
        rendition: What to encode.
        processors: Of the machine.

    Returns:
        The number of threads, at least 1, and the bytes.

    Raises:
        InputError: The encoder cannot make the rendition.
    """
    spec, pixels = get_encoder(rendition.encoder), rendition.width * rendition.height
    fixed = _fixed_threads(spec, output_options(spec, rendition, source))
    most = min(processors, fixed or processors)
    own = frame_bytes(rendition.width, rendition.height, rendition.bit_depth)
    return min(most, 1 + pixels // PIXELS_A_THREAD), FRAMES_HELD * own


def _fixed_threads(spec: EncoderSpec, options: dict[str, str]) -> int | None:
    """The number of threads that an encode's options set; None where the machine decides."""
    # a file names a key of its own where `threads` is not what decides, else `threads`
    for name, _ in (*spec.thread_options, ("threads", "")):
        option, _, key = name.partition(":")
        value = options.get(option, "")
        if key:
            pairs = dict(pair.partition("=")[::2] for pair in value.split(":"))
            value = pairs.get(key, "")
        if value.isdecimal() and int(value):
            return int(value)
    return None
