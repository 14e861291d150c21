"""Banding of a ladder's rungs: where it is too visible, and what encodes of 10 bit would cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vqaloop.errors import DecodeFailed, EncodeFailed, ToolError
from vqaloop.ladder.warnings import banded
from vqaloop.media.frames import read_encode
from vqaloop.quality.full_reference import CAMBI
from vqaloop.records import Event, Rung, rounded

if TYPE_CHECKING:
    from vqaloop.execution.session import Session
    from vqaloop.ladder.options import LadderOptions
    from vqaloop.ladder.steps import Checked, Loop

TEN = 10
"""Bits a sample of the cure."""
CROP = 128
"""Pixels a side of the part of a picture that is shown."""
_STEP = 4
"""Most levels by which a picture changes in _REACH pixels where a band may show."""
_REACH = 17


@dataclass(frozen=True)
class Cure:
    """A flagged rung made again with 10 bits a sample."""

    file: str
    cambi: float
    bitrate: float
    """Of the 8-bit rung's, as a ratio."""
    cpu: float
    """Likewise."""
    score: float
    """Points that it gains."""
    decodable: bool
    """Whether the players of its codec decode 10 bit."""

    def words(self) -> str:
        """What it costs."""
        few = "" if self.decodable else ", which few players of H.264 decode"
        cost = f"{self.bitrate - 1:+.1%} of bitrate, {self.score:+.1f} points of score"
        return (
            f"; with --bit-depth 10{few}, it has CAMBI {self.cambi:.1f} at {cost} and "
            f"{self.cpu:.2g} times the encoding time"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "bit_depth": TEN,
            "cambi": rounded(self.cambi),
            "bitrate_ratio": rounded(self.bitrate),
            "cpu_ratio": rounded(self.cpu),
            "score_gain": rounded(self.score),
        }


@dataclass(frozen=True)
class Banding:
    """The rung with the most banding above the limit."""

    rung: int
    """Its number, from 1 up."""
    file: str
    cambi: float
    frame: int
    corner: tuple[int, int]
    """Left and top of the part of that frame with the most bands, in pixels of the source."""
    size: int
    cure: Cure | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "rung": self.rung,
            "file": self.file,
            "cambi": rounded(self.cambi),
            "frame": self.frame,
            "left": self.corner[0],
            "top": self.corner[1],
            "size": self.size,
            "cure": self.cure.to_json() if self.cure else None,
        }


def find_banding(
    session: Session[LadderOptions],
    loop: Loop,
    folder: Path,
    rungs: Sequence[Rung],
    checked: Sequence[Checked],
) -> Banding | None:
    """Where the worst of the flagged rungs shows its bands, and what 10 bit would cost it.

    Args:
        session: The job.
        loop: Its loop.
        folder: Where the rungs' files lie.
        rungs: The rungs.
        checked: The same as they were made.

    Returns:
        None where no rung is flagged, or the worst cannot be decoded.
    """
    found = banded(rungs, session.options.max_banding)
    if not found:
        return None
    worst = max(found, key=lambda rung: rung.guard[CAMBI])
    at, source = rungs.index(worst), session.source
    frame = min(round((worst.banding_at_s or 0.0) * float(source.fps)), source.frames - 1)
    try:
        [picture] = read_encode(
            *(folder / worst.file, [frame], source.canvas, source.fps),
            decoder=session.spec.decoder,
            ffmpeg=session.ffmpeg,
        )
    except (DecodeFailed, ToolError):
        return None
    size = min(CROP, *source.canvas)
    corner = most_banded(picture[: source.canvas[1]], size)
    banding = Banding(at + 1, worst.file, worst.guard[CAMBI], frame, corner, size)
    return replace(banding, cure=_cure(session, loop, worst, checked[at]))


def most_banded(luma: npt.NDArray[np.uint8], size: int) -> tuple[int, int]:
    """Left and top of the square with the most bands: level plateaus amid slight slopes."""
    # seldom needed, and slow to import
    from scipy.ndimage import maximum_filter, minimum_filter

    slope = maximum_filter(luma, _REACH).astype(int) - minimum_filter(luma, _REACH)
    level = maximum_filter(luma, 3) == minimum_filter(luma, 3)
    bands = level & (slope > 0) & (slope <= _STEP)
    sums = np.zeros((luma.shape[0] + 1, luma.shape[1] + 1), np.int64)
    sums[1:, 1:] = bands.cumsum(0, dtype=np.int64).cumsum(1)
    inside = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    top, left = np.unravel_index(int(inside.argmax()), inside.shape)
    return int(left), int(top)


def _cure(session: Session[LadderOptions], loop: Loop, rung: Rung, plain: Checked) -> Cure | None:
    """The rung with 10 bits a sample; None where it has them, or cannot have them."""
    shop, plan, source = session.shop, loop.guard, session.source
    possible = session.depth < TEN and TEN in session.spec.bit_depths
    # of scenes there is no one encode, and time that is over is not spent
    if not possible or plan is None or plain.scenes or loop.budget.left_s() <= 0:
        return None
    rendition = replace(plain.encode.rendition, bit_depth=TEN)
    session.options.progress(Event("guard", f"banding of {rung.file}: the same with 10 bit"))
    try:
        made = shop.encode(source, rendition)
        score = shop.score(source, made.path)
        cambi = shop.measured(source, made.path, plan.only([CAMBI]))[CAMBI]
    except (EncodeFailed, DecodeFailed):
        return None
    return Cure(
        rung.file,
        cambi.value,
        made.bitrate_kbps / plain.encode.bitrate_kbps,
        made.cpu_s / max(plain.encode.cpu_s, 1e-3),
        score.value - plain.score.value,
        session.spec.codec != "h264",
    )
