"""Limits on the sizes, frame rates and lengths of inputs, and their checks."""

from fractions import Fraction

from vqaloop.core.text import counted
from vqaloop.errors import InputError

MIN_SIDE = 64
"""Pixels: SVT-AV1 takes no less, and a ladder under that has no second rung."""
MAX_SIDE = 8192
"""Pixels: the widest picture of the highest HEVC and VP9 levels is 8192 x 4320, either way up."""
MAX_PIXELS = MAX_SIDE * MAX_SIDE
"""Pixels a frame given to decoders as their own limit: 100 MB a frame at 8 bit 4:2:0."""
MIN_FRAMES = 2
"""One picture has no duration, and so no bitrate, nor a frame to predict from."""
MIN_FPS, MAX_FPS = Fraction(1), Fraction(1000)
"""In fps: below, a 2 s GOP is one picture; above, it is a time base taken for a rate."""
MAX_VARIABLE_FPS = Fraction(240)
"""Highest constant rate, in fps, for a variable one, the fastest slow motion of most phones: time
stamps a millisecond apart would ask for 1000."""
MAX_REPEATS = 10
"""Most frames for each of a variable rate that is made constant: 30 fps with a burst of 240 asks
for 8, a slide show with a burst of 60 would ask for 60."""


def check_size(name: str, width: int, height: int) -> None:
    """Raise InputError, naming the input, for a side in pixels outside MIN_SIDE..MAX_SIDE."""
    for side, pixels in (("width", width), ("height", height)):
        if not MIN_SIDE <= pixels <= MAX_SIDE:
            raise InputError(
                f"{name} says its {side} is {pixels} ({width}x{height}); {MIN_SIDE} to "
                f"{MAX_SIDE} pixels are taken; check the file or scale it"
            )


def check_rate(name: str, fps: Fraction) -> None:
    """Raise InputError, naming the input, for a frame rate outside MIN_FPS..MAX_FPS."""
    if not MIN_FPS <= fps <= MAX_FPS:
        raise InputError(
            f"{name} says {float(fps):g} fps; {MIN_FPS} to {MAX_FPS} are taken; "
            "set the rate when writing the file"
        )


def check_count(name: str, frames: int) -> None:
    """Raise InputError, naming the input, for fewer than MIN_FRAMES frames."""
    if frames < MIN_FRAMES:
        raise InputError(
            f"{name} holds {counted(frames, 'frame')}; at least {MIN_FRAMES} frames are "
            "needed, since a bitrate is bits over time; give a clip of a second or more"
        )
