"""What every scene of a title is to come to, and how well an encode of it serves the whole."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from vqaloop.media.scene_cuts import Scene
from vqaloop.ratecontrol.equal_slope import equal_slope, mean_at_bits
from vqaloop.ratecontrol.scene_curves import Probe, SceneCurves, SceneState
from vqaloop.search.prior import LEAST_SHARE

Allocation = Literal["target", "equal-slope"]

NEAR = 0.9
"""Part of a scene's tolerance within which it may be left."""
LOSS = 0.01
"""With equal slopes: part of its share of the bits that a scene may lose by not being at its best
point. Near that point score and bits trade evenly, so what is lost is small."""
STRETCH = 3.0
"""Times LOSS for the sake of the whole title's score."""
LEAST_GAIN = 0.1
"""Points of score that an encode must promise to come nearer."""
CAP_USED = 0.95
"""Part of the bitrate cap at which a scene held by it is done."""
SHUN = 1 / 16
"""Part of the search range around a failed knob that is left alone."""


@dataclass(frozen=True)
class Wish:
    """What was asked for."""

    target: float | None
    """Mean score of the title, or None."""
    bits: float | None
    """Bits of the title, or None."""
    allocation: Allocation
    scene_tolerance: float
    """Points of score."""
    cap: float
    """Most bits a frame of any scene."""


@dataclass(frozen=True)
class Goals:
    """The scenes' own goals, of which the wish is the sum."""

    wish: Wish
    target: float
    """Mean score of the title."""
    score: dict[Scene, float]
    bits: dict[Scene, float] = field(default_factory=dict)
    """Believed, at that score; empty for the allocation "target"."""
    total: float = 0.0
    """Of those bits."""
    price: float = 0.0
    """Bits that a point of the title's mean score is worth, with equal slopes."""

    def excess(self, state: SceneState, score: float, bits: float) -> float:
        """By how much a scene moves the title off what was wished, in points of mean score."""
        if self.wish.bits is not None:
            return (bits - self.bits[state.scene]) / self.price
        return state.weight * (score - self.score[state.scene])

    def strain(self, state: SceneState, score: float, bits: float) -> float:
        """How far a scene is from its own goal; up to 1 it may be left there."""
        over = score - self.score[state.scene]
        if not self.price:
            return abs(over) / (NEAR * self.wish.scene_tolerance)
        lost = bits - self.bits[state.scene] - self.price * state.weight * over
        return max(0.0, lost) / (LOSS * state.weight * self.total)

    def stretched(self, state: SceneState, score: float, bits: float) -> bool:
        """Whether a scene may be left there where the whole title gains by it."""
        return self.strain(state, score, bits) <= (STRETCH if self.price else 1.0)

    def cap(self, state: SceneState) -> float:
        """Most bits of a scene."""
        return self.wish.cap * state.scene.frames

    def over(self, state: SceneState, probe: Probe) -> bool:
        return probe.bits > self.cap(state)

    def nearest(self, state: SceneState) -> Probe | None:
        """A scene's encode nearest to its goal; one above the bitrate cap only for want of
        another."""
        under = [p for p in state.probes.values() if not self.over(state, p)]
        if not under:
            return min(state.probes.values(), key=lambda p: p.bits, default=None)
        goal = self.score[state.scene]
        if self.price:
            worth = self.price * state.weight
            return min(under, key=lambda p: (p.bits - worth * p.score, abs(p.score - goal)))
        return min(under, key=lambda p: (abs(p.score - goal), p.bits))


def make_goals(wish: Wish, states: Sequence[SceneState], curves: SceneCurves) -> Goals:
    """The goals of all scenes, given what is believed of them now."""
    if wish.allocation == "target" and wish.target is not None:
        return Goals(wish, wish.target, {s.scene: wish.target for s in states})
    scores, bits = (np.array(c) for c in zip(*map(curves.of, states), strict=True))
    weights = np.array([s.weight for s in states])
    caps = np.array([wish.cap * s.scene.frames for s in states])
    most = np.maximum((bits <= caps[:, None]).sum(axis=1) - 1, 0)
    inside = np.minimum(np.arange(bits.shape[1]), most[:, None])
    scores = np.take_along_axis(scores, inside, axis=1)
    bits = np.take_along_axis(bits, inside, axis=1)
    target = wish.target
    if target is None:
        target = mean_at_bits(scores, bits, weights, wish.bits or 0.0)
    aims, price = equal_slope(scores, bits, weights, target)
    goals = {s.scene: float(aim) for s, aim in zip(states, aims, strict=True)}
    spent = {
        s.scene: float(np.interp(aim, score, bit))
        for s, aim, score, bit in zip(states, aims, scores, bits, strict=True)
    }
    return Goals(wish, target, goals, spent, math.fsum(spent.values()), price)


def pick_knob(goals: Goals, curves: SceneCurves, state: SceneState, aim: float) -> int | None:
    """The place among the curves' knobs of the one that promises to come nearest to a score; None
    where none is worth an encode.

    Between the encodes on either side of it, where they are in order.
    """
    q = curves.q
    scores, bits = curves.of(state)
    able = curves.in_reach(state) & np.array([k not in state.probes for k in curves.knobs])
    for knob in state.failed:
        able &= np.abs(q - curves.quality(knob)) > SHUN
    low, high = -1.0, 2.0
    for probe in state.probes.values():
        place = curves.quality(probe.knob)
        if probe.score >= aim or goals.over(state, probe):
            high = min(high, place)
        else:
            low = max(low, place)
    able &= (q > min(low, high)) & (q < max(low, high))
    if not able.any():
        return None
    perfect = [p.score >= (1 - LEAST_SHARE) * curves.top for p in state.probes.values()]
    if len(perfect) > 1 and all(perfect):
        # nothing tells where it ends: see whether anything is worse
        return int(np.argmax(able))
    cheap = able & (bits <= goals.cap(state) * (1 + CAP_USED) / 2)
    if not cheap.any():
        return int(np.argmax(able))
    away = np.where(cheap, np.abs(scores - aim), math.inf)
    best = int(np.argmin(away))
    nearest = goals.nearest(state)
    if nearest is not None and not goals.over(state, nearest):
        gain = abs(nearest.score - aim) - away[best]
        if gain < LEAST_GAIN and goals.strain(state, nearest.score, nearest.bits) <= 1:
            return None
    return best


def mend_choices(goals: Goals, chosen: dict[SceneState, Probe], slack: float) -> None:
    """Take other encodes of some scenes, where that brings the whole nearer to its target.

    Until it is within half of `slack`, in points of mean score.
    """
    swaps = [
        (s, p)
        for s in chosen
        for p in s.probes.values()
        if goals.stretched(s, p.score, p.bits) and not goals.over(s, p)
    ]
    while swaps:
        parts = {s: goals.excess(s, p.score, p.bits) for s, p in chosen.items()}
        missed = math.fsum(parts.values())
        left = [abs(missed + goals.excess(s, p.score, p.bits) - parts[s]) for s, p in swaps]
        best = int(np.argmin(left))
        if abs(missed) <= slack / 2 or left[best] > abs(missed) - LEAST_GAIN:
            return
        chosen[swaps[best][0]] = swaps[best][1]
