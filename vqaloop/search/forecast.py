"""What is predicted of a title before its first encode, with intervals that hold.

Intervals are those of the prior, stretched so that as much of the titles that were left out of it
lay in them as should. Where a title, or how it is encoded, is unlike all that the prior was learnt
from, they are widened further, by rule and not by measurement, and it is said why.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np

from vqaloop.encoding.spec import EncoderSpec
from vqaloop.media.content import Content
from vqaloop.records import RDPoint, Source
from vqaloop.search.prior import TERMS, Prior, expit, logit
from vqaloop.search.prior_store import SHIPPED, shipped_content_prior
from vqaloop.search.space import Space
from vqaloop.search.surrogates import as_title

COVERED = 0.9
"""Part of all titles that an interval should hold."""
NORMAL = NormalDist().inv_cdf((1 + COVERED) / 2)
"""Standard deviations from the mean to the end of such an interval."""
PER_OCTAVE = (0.3, 0.3)
"""Standard deviations, of log2 rate and of the logit of the score, that each doubling beyond the
sizes, frame rates and lengths learnt from adds."""
PER_PRESET = (0.15, 0.12)
"""The same for each preset away from the one learnt from."""
BEYOND = 0.25
"""Part of the range learnt from by which a number of the content may lie outside it."""
OTHERWISE = (0.15, 0.2)
"""The same for anything else that is unlike what was learnt from."""


@dataclass(frozen=True)
class Forecast:
    """A rendition as predicted, with intervals of COVERED."""

    point: RDPoint
    kbps: tuple[float, float]
    """Ends of the interval of its bitrate, in kb/s."""
    score: tuple[float, float]
    """Ends of the interval of its score."""


@dataclass(frozen=True)
class Unlike:
    """In what a title is unlike those that the prior was learnt from."""

    reasons: tuple[str, ...] = ()
    rate: float = 0.0
    """Standard deviation of log2 rate that this adds."""
    score: float = 0.0
    """The same of the logit of the score."""

    def also(self, reason: str, widths: Sequence[float], times: float = 1.0) -> "Unlike":
        """With another reason."""
        rate, score = (times * width for width in widths)
        return Unlike(
            (*self.reasons, reason), math.hypot(self.rate, rate), math.hypot(self.score, score)
        )


@dataclass(frozen=True)
class Asked:
    """What is predicted: a title by an encoder."""

    source: Source
    spec: EncoderSpec
    preset: str
    metrics: Sequence[str]
    """Names: its own, then those whose priors serve too."""
    content: Content | None
    """What its pictures hold; None: not known."""
    others: Sequence[str] = ()
    """What else is unlike all that was learnt from, in words."""


def forecast(
    space: Space,
    prior: Prior,
    points: Sequence[RDPoint],
    top: float,
    stretch: tuple[float, float],
    unlike: Unlike,
) -> list[Forecast]:
    """Points as the prior has them, with their intervals."""
    wide = prior.spread.copy()
    wide[0, 0] += unlike.rate**2
    wide[TERMS, TERMS] += unlike.score**2
    asked = as_title(space, points, top)
    nothing = as_title(space, [], top)
    rate, score, *widths = replace(prior, spread=wide).given(nothing).at(asked.u, asked.q)
    rate_off, score_off = (NORMAL * by * width for by, width in zip(stretch, widths, strict=True))
    odds = logit(score)
    kbps = np.stack([2 ** (rate - rate_off), 2 ** (rate + rate_off)], axis=1) * space.pixel_rate
    ends = top * np.stack([expit(odds - score_off), expit(odds + score_off)], axis=1)
    return [
        Forecast(point, (low, high), (worst, best))
        for point, (low, high), (worst, best) in zip(
            points, kbps.tolist(), ends.tolist(), strict=True
        )
    ]


def shipped_stretch(metrics: Sequence[str], content: Content | None) -> tuple[float, float]:
    """How far intervals of rate and score are stretched, by the first metric that is known.

    The prior that does not know a title's content has its own.
    """
    known = _document()["stretch"]
    kind = "all" if content is None else "content"
    rate, score = next((known[name][kind] for name in metrics if name in known), (1.0, 1.0))
    return rate, score


def unlike_learnt(asked: Asked) -> Unlike:
    """In what a title and its encodes are unlike those that the shipped prior was learnt from."""
    source, metrics = asked.source, asked.metrics
    known = [name for name in metrics if shipped_content_prior(asked.spec.name, name)]
    if not known:
        return Unlike()
    found = unlike_title(source.canvas, float(source.fps), source.frames, asked.content)
    usual, presets = asked.spec.default_preset, asked.spec.presets
    if away := abs(presets.index(asked.preset) - presets.index(usual)):
        found = found.also(f"preset {asked.preset}; it was learnt from {usual}", PER_PRESET, away)
    others = list(asked.others)
    if source.hdr:
        others.append("HDR; it was learnt from SDR")
    if known[0] != metrics[0]:
        others.append(f"scores of {metrics[0]}; it was learnt from {known[0]}")
    for reason in others:
        found = found.also(reason, OTHERWISE)
    return found


def unlike_title(
    canvas: tuple[int, int], fps: float, frames: int, content: Content | None
) -> Unlike:
    """The same of a title alone: its size, frame rate, length and pictures."""
    found, learnt = Unlike(), _document()["learnt_on"]
    width, height = canvas
    # a doubling of both sides is one
    if beyond := _octaves(width * height, learnt["pixels"]) / 2:
        least, most = (round(pixels / 1e6, 2) for pixels in learnt["pixels"])
        reason = f"{width}x{height}; it was learnt from {least:g} to {most:g} megapixels"
        found = found.also(reason, PER_OCTAVE, beyond)
    if beyond := _octaves(fps, learnt["fps"]):
        low, high = learnt["fps"]
        reason = f"{fps:.4g} fps; it was learnt from {low:g} to {high:g}"
        found = found.also(reason, PER_OCTAVE, beyond)
    if beyond := _octaves(frames, (learnt["frames"], math.inf)):
        reason = f"only {frames} frames; it was learnt from {learnt['frames']} and more"
        found = found.also(reason, PER_OCTAVE, beyond)
    if content is None:
        # the prior is that of all titles, and as wide
        return found.also("pictures that could not be looked at", (0.0, 0.0))
    for name, value in vars(content).items():
        low, high = learnt["content"][name]
        if not low - (high - low) * BEYOND <= value <= high + (high - low) * BEYOND:
            reason = f"{name} of {value:.2f}; it was learnt from {low:.2f} to {high:.2f}"
            found = found.also(reason, PER_OCTAVE)
    return found


def _octaves(value: float, ends: Sequence[float]) -> float:
    """Doublings, or halvings, by which a value lies outside a range."""
    low, high = ends
    return max(0.0, math.log2(low / value), math.log2(value) - math.log2(high))


def _document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(SHIPPED.read_text("utf-8"))
    return found
