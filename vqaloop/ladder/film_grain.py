"""Film grain of a ladder: whether its source has any, and whether synthesising it pays.

With a table the encoder codes a denoised picture, and decoders add grain of the same strength.
Both kinds of encode are scored without synthesis against the source as it is: the table is kept
where the denoised picture then scores higher at equal rate (docs/grain.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vqaloop.encoding.options import GRAIN
from vqaloop.encoding.spec import EncoderSpec
from vqaloop.media.grain_estimate import grain_of
from vqaloop.quality.bdrate import NotComparable, bd_rate, bd_score
from vqaloop.records import Rendition, Source, Trial, rounded

if TYPE_CHECKING:
    from vqaloop.execution.session import Session
    from vqaloop.ladder.options import LadderOptions
    from vqaloop.ladder.steps import Loop

STRENGTH = 4.0
"""Strength for each level of the grain's standard deviation. The denoiser takes all of it away at
about 11, and detail with it, which scores worse even against the picture without grain."""
PLAIN_AT, GRAIN_AT = (0.1, 0.35, 0.6), (0.0, 0.25, 0.5)
"""Where in the searched range, from its better end, the knobs of the trial's encodes are: the
denoised picture takes fewer bits, so at equal rate its knob is better."""
LEAST_OVERLAP = 0.2
"""Part of the shorter curve of a trial that the other must cover."""


@dataclass(frozen=True)
class GrainUse:
    """What is done about a title's grain."""

    asked: str
    """auto, off or a strength."""
    deviation: float | None
    """Of the source's grain in levels of 8 bits, None where it has none."""
    strength: int | None = None
    """Of the table that the rungs have, None where they have none."""
    tried: int | None = None
    """The strength that a trial decided about."""
    saving_percent: float | None = None
    """Bitrate that the table saves at equal score without synthesis."""
    gain: float | None = None
    """Points that it gains at equal rate."""
    why: str = ""
    """Why there is no table though one was to be tried, in words."""

    def params(self) -> tuple[tuple[str, str], ...]:
        """Parameters of the rungs' renditions."""
        return ((GRAIN, str(self.strength)),) if self.strength else ()

    def to_json(self) -> dict[str, Any]:
        """As ladder.json has it; empty where there is nothing to say."""
        if self.deviation is None and self.asked == "off":
            return {}
        return {
            "asked": self.asked,
            "deviation": rounded(self.deviation, 2),
            "strength": self.strength,
            "tried": self.tried,
            "saving_percent": rounded(self.saving_percent, 2),
            "gain": rounded(self.gain, 2),
            "why": self.why,
        }


def use_film_grain(session: Session[LadderOptions], loop: Loop, title: Source) -> GrainUse:
    """See whether the source has grain, and do about it what was asked; the loop then makes all
    renditions with the table that is chosen.

    Args:
        session: The job.
        loop: Its loop, whose parameters get the table's.
        title: What a trial encodes: the source or its excerpt.
    """
    asked, spec = session.options.film_grain, session.spec
    use = GrainUse(str(asked), grain_of(session.source, ffmpeg=session.ffmpeg))
    if isinstance(asked, int):
        use = replace(use, strength=asked)
    elif asked == "auto" and use.deviation is not None:
        if spec.film_grain:
            use = _tried(use, loop, title)
        else:
            use = replace(use, why=f"{spec.name}: {spec.film_grain.cannot}")
    loop.params = tuple(sorted((*loop.params, *use.params())))
    return use


def table_strength(spec: EncoderSpec, deviation: float) -> int:
    """The strength for grain of a standard deviation, as far as the encoder's range goes."""
    low, high = spec.film_grain.range
    return min(max(round(STRENGTH * deviation), low), high)


def _tried(use: GrainUse, loop: Loop, title: Source) -> GrainUse:
    """Whether a table pays, by encodes of the largest size with and without."""
    strength = table_strength(loop.shop.spec, use.deviation or 0.0)
    use = replace(use, tried=strength)
    with_table = (*loop.params, *replace(use, strength=strength).params())
    wanted = [_rendition(loop, part, loop.params) for part in PLAIN_AT]
    wanted += [_rendition(loop, part, with_table) for part in GRAIN_AT]
    message = f"film grain: trials with a table of strength {strength} and without"
    with loop.counted("search", message, len(wanted)) as one:
        made = loop.shop.map(lambda r: one(lambda: loop.shop.try_one(title, r)), wanted)
    plain, denoised = made[: len(PLAIN_AT)], made[len(PLAIN_AT) :]
    if failed := [trial.error for trial in made if trial.error]:
        return replace(use, why=f"a trial failed: {failed[0]}")
    return _judged(use, _curve(plain), _curve(denoised))


def _judged(
    use: GrainUse, plain: list[tuple[float, float]], denoised: list[tuple[float, float]]
) -> GrainUse:
    """The use with what (kb/s, score) points of both kinds say."""
    try:
        gain = bd_score(plain, denoised, least_overlap=LEAST_OVERLAP)
        use = replace(use, gain=gain)
        if gain <= 0:
            return replace(use, why="at equal rate the score without synthesis is no better")
        names = ("plain", "denoised")
        saving = -bd_rate(plain, denoised, least_overlap=LEAST_OVERLAP, names=names)
    except NotComparable as error:
        return replace(use, why=f"the trial is not conclusive: {error}")
    return replace(use, strength=use.tried, saving_percent=saving)


def _rendition(loop: Loop, part: float, params: tuple[tuple[str, str], ...]) -> Rendition:
    """The largest size at a knob `part` of the searched range from its better end."""
    width, height = loop.space.sizes[0]
    point = width, height, loop.space.knob_at(1 - part)
    return replace(loop.rendition(point), params=tuple(sorted(params)))


def _curve(trials: list[Trial]) -> list[tuple[float, float]]:
    return [(t.bitrate_kbps or 0.0, t.score or 0.0) for t in trials]
