"""Deinterlacing: film in interlaced video (3:2 pulldown) and pictures of two fields told apart.

Telecine shows film pictures for two and three fields in turn. Hard telecine stores the fields: of
five frames one repeats its top field and another its bottom field. Soft telecine stores the
pictures, whose time stamps then are two and three fields apart.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vqaloop.core import ffmpeg as ffmpeg_graph
from vqaloop.core import process
from vqaloop.core.ffmpeg import compiled
from vqaloop.media.limits import MAX_PIXELS

CYCLE = 5
"""Frames in which hard telecine shows four film pictures."""
STRETCH = 50
"""Frames that are judged together: cuts may change the phase between stretches."""
MOST_FRAMES = 10_000
"""Of a title with more, stretches evenly over it are looked at."""
LEAST_HITS = 0.5
"""Part of the fields that should be repeated which must be seen to be, in a stretch."""
LEAST_SHARE = 0.9
"""Part of the stretches with motion that must have the pattern."""
FIELD_RATES = (Fraction(60000, 1001), Fraction(60))
_NTSC = (29.0, 30.5)
"""Rates, in fps, of video in which film is telecined."""
_ALTERNATE = 0.9
"""Part of the steps in soft telecine that differ from the step before."""
_FEWEST = 10
"""Frames below which nothing is said."""


@dataclass(frozen=True)
class Deinterlacing:
    """What makes the frames of a video progressive."""

    filters: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    ratio: Fraction = Fraction(1)
    """Of the frame rate behind the filters to that before."""


def inverse_telecine(order: str, *, recognised: bool) -> Deinterlacing:
    """What brings hard telecine back to film pictures.

    Args:
        order: "tff" or "bff" where the frames' own flags do not tell it; "auto" where they do.
        recognised: Whether it was, or only asked for.
    """
    why = "Hard telecine (film in interlaced video)" if recognised else "Telecine as asked"
    return Deinterlacing(
        (
            f"fieldmatch=order={order}:combmatch=full",
            # what has no match, as where video was laid over film
            "bwdif=mode=send_frame:deint=interlaced",
            f"decimate=cycle={CYCLE}",
        ),
        (f"{why}; fields matched and 1 of {CYCLE} frames dropped, which gives the film's own.",),
        Fraction(CYCLE - 1, CYCLE),
    )


def is_ntsc(rate: float) -> bool:
    """Whether film would be telecined into video of this rate in fps."""
    return _NTSC[0] <= rate <= _NTSC[1]


def soft_telecine(times_s: npt.ArrayLike, tick_s: float) -> Fraction | None:
    """The film rate of pictures whose times are two and three fields apart in turn.

    Args:
        times_s: Presentation times in seconds.
        tick_s: Resolution of the times.

    Returns:
        24000/1001 or 24, the former where both fit; None of other times.
    """
    times = np.asarray(times_s, dtype=np.float64)
    steps = np.diff(times)
    if len(times) < _FEWEST:
        return None
    best = None
    for rate in FIELD_RATES:
        fields = np.round(steps * float(rate))
        near = np.abs(steps * float(rate) - fields) <= max(0.1, 1.5 * tick_s * float(rate))
        if not (near.all() and np.isin(fields, (2, 3)).all()):
            continue
        if np.mean(fields[1:] != fields[:-1]) < _ALTERNATE:
            continue
        off = abs(float(times[-1] - times[0]) * float(rate) - float(fields.sum())) / float(rate)
        if best is None or off + tick_s < best[0]:
            best = off, rate
    return best[1] * Fraction(2, 5) if best else None


def telecined_share(path: Path, frames: int, ffmpeg: str) -> float | None:
    """The part of a title's moving stretches that repeat fields as hard telecine does.

    Args:
        path: The file.
        frames: Frames in it.
        ffmpeg: The ffmpeg program.

    Returns:
        0 to 1, None where nothing moves, or the file could not be looked at.
    """
    apart = STRETCH * max(1, frames // MOST_FRAMES)
    graph = ffmpeg_graph.input("INPUT", max_pixels=MAX_PIXELS).output(
        "-",
        map="0:V:0",
        vf=f"select='lt(mod(n,{apart}),{STRETCH})',idet,metadata=mode=print:file=pipe\\\\:1",
        fps_mode="passthrough",
        f="null",
    )
    argv = compiled(graph, ffmpeg, {"INPUT": path})
    done = process.run(argv, timeout_s=60 + frames * 2.0, max_stdout=1 << 28)
    text = done.stdout.decode("ascii", "replace")
    repeats = re.findall(r"idet\.repeated\.current_frame=(\w+)", text)
    kinds = re.findall(r"idet\.multiple\.current_frame=(\w+)", text)
    if done.returncode or len(repeats) != len(kinds):
        return None
    verdicts = [
        verdict
        for at in range(0, len(repeats), STRETCH)
        if (verdict := _judged(repeats[at : at + STRETCH], kinds[at : at + STRETCH])) is not None
    ]
    return sum(verdicts) / len(verdicts) if verdicts else None


def _judged(repeats: Sequence[str], kinds: Sequence[str]) -> bool | None:
    """Whether a stretch has the pattern; None where it has not moved enough to tell."""
    if len(repeats) < _FEWEST:
        return None
    tops, bottoms = (
        np.bincount(
            [n % CYCLE for n, found in enumerate(repeats) if found == which], minlength=CYCLE
        )
        for which in ("top", "bottom")
    )
    # how far apart the two are depends on the pattern: 2:3, 3:2, 2:3:3:2
    hits = max(
        int(tops[n] + bottoms[(n + after) % CYCLE])
        for n in range(CYCLE)
        for after in range(1, CYCLE)
    )
    expected = 2 * len(repeats) / CYCLE
    others = int(tops.sum() + bottoms.sum()) - hits
    if hits >= LEAST_HITS * expected:
        return others <= hits / 4
    combed = sum(kind in ("tff", "bff") for kind in kinds)
    return False if combed >= len(kinds) / 2 else None


def share_note(share: float) -> str:
    """What is said of a title of which a part alone is telecined."""
    return (
        f"About {share:.0%} of it is hard telecine, too little to drop frames everywhere; there 1 "
        f"of {CYCLE} frames repeats another. --deinterlace telecine inverts it all the same."
    )
