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
from vqaloop.search.prior import FAR, TERMS, Prior, expit, logit
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
OF_ANOTHER_METRIC = (0.0, 0.3)
OF_HDR = (0.3, 0.3)
"""The same for another metric's prior, and for pictures in PQ or HLG."""


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
    metric: str
    content: Content | None
    """What its pictures hold; None: not known."""


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
    rate_off, score_off = (
        NORMAL * by * width for by, width in zip(stretch, widths, strict=True)
    )
    odds = logit(score)
    kbps = np.stack([2 ** (rate - rate_off), 2 ** (rate + rate_off)], axis=1) * space.pixel_rate
    ends = top * np.stack([expit(odds - score_off), expit(odds + score_off)], axis=1)
    return [
        Forecast(point, (low, high), (worst, best))
        for point, (low, high), (worst, best) in zip(
            points, kbps.tolist(), ends.tolist(), strict=True
        )
    ]


def shipped_stretch(metrics: Sequence[str]) -> tuple[float, float]:
    """How far intervals of rate and score are stretched, by the first metric that is known."""
    known = _document()["stretch"]
    rate, score = next((known[name] for name in metrics if name in known), (1.0, 1.0))
    return rate, score


def unlike_learnt(asked: Asked, metrics: Sequence[str]) -> Unlike:
    """In what a title and its encodes are unlike those that the shipped prior was learnt from.

    Args:
        asked: The title.
        metrics: Names of the metrics whose priors serve, of which the first known counts.
    """
    source = asked.source
    found = octaves_beyond(source.canvas, float(source.fps), source.frames)
    usual, presets = asked.spec.default_preset, asked.spec.presets
    if away := abs(presets.index(asked.preset) - presets.index(usual)):
        found = found.also(
            f"preset {asked.preset}; it was learnt from {usual}", PER_PRESET, away
        )
    if source.hdr:
        found = found.also("HDR; it was learnt from SDR", OF_HDR)
    known = [name for name in metrics if shipped_content_prior(asked.spec.name, name)]
    if known and known[0] != asked.metric:
        found = found.also(
            f"scores of {asked.metric}; it was learnt from {known[0]}", OF_ANOTHER_METRIC
        )
    return _unlike_content(found, asked, known)


def octaves_beyond(canvas: tuple[int, int], fps: float, frames: int) -> Unlike:
    """In what size, frame rate and length are unlike those learnt from."""
    found, learnt = Unlike(), _document()["learnt_on"]
    width, height = canvas
    # a doubling of both sides is one
    if beyond := _octaves(width * height, learnt["pixels"]) / 2:
        least, most = (round(pixels / 1e6, 2) for pixels in learnt["pixels"])
        found = found.also(
            f"pictures of {width}x{height}; it was learnt from {least:g} to {most:g} megapixels",
            PER_OCTAVE,
            beyond,
        )
    if beyond := _octaves(fps, learnt["fps"]):
        low, high = learnt["fps"]
        found = found.also(
            f"{fps:.4g} fps; it was learnt from {low:g} to {high:g}", PER_OCTAVE, beyond
        )
    if beyond := _octaves(frames, (learnt["frames"], math.inf)):
        found = found.also(
            f"only {frames} frames; it was learnt from {learnt['frames']} and more",
            PER_OCTAVE,
            beyond,
        )
    return found


def _unlike_content(found: Unlike, asked: Asked, known: Sequence[str]) -> Unlike:
    """The same of what the pictures hold, by which the prior itself is wider already."""
    if asked.content is None:
        return found.also("pictures that could not be looked at", (0.0, 0.0))
    prior = shipped_content_prior(asked.spec.name, known[0]) if known else None
    # at that distance the prior takes them for no further off
    if prior and (np.abs(prior.row(asked.content.values())[1:]) >= FAR).any():
        return found.also("pictures whose detail or motion is unlike all others'", PER_OCTAVE)
    return found


def _octaves(value: float, ends: Sequence[float]) -> float:
    """Doublings, or halvings, by which a value lies outside a range."""
    low, high = ends
    return max(0.0, math.log2(low / value), math.log2(value) - math.log2(high))


def _document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(SHIPPED.read_text("utf-8"))
    return found
