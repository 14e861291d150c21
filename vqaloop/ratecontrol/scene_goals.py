"""Per-scene score goals, and how far an encode moves the title from its target or bitrate.

With the allocation "target" every scene's goal is the title's target; with "equal-slope" it is the
point of the scene's curve at which one more bit buys as much score as in every other scene.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np

from vqaloop.errors import InputError
from vqaloop.media.scene_cuts import Scene
from vqaloop.ratecontrol.equal_slope import Picks, Values, equal_slope, mean_at_bits
from vqaloop.ratecontrol.scene_curves import Probe, SceneCurves, SceneState
from vqaloop.search.prior import LEAST_SHARE

Allocation = Literal["target", "equal-slope"]
Scores = TypeVar("Scores", float, Values)

NEAR = 0.9
"""Part of a scene's tolerance within which it may be left."""
LOSS = 0.01
"""With equal slopes: part of its share of the bits that a scene may lose by not being at its best
point. Near that point score and bits trade evenly, so what is lost is small."""
STRETCH = 3.0
"""Times LOSS for the sake of the whole title's score."""
LEAST_GAIN = 0.1
"""Points of score by which an encode must be predicted to come nearer."""
CORRECTED = 0.7
"""Part of the title's miss that an encode after all scenes are done may leave at most."""
CAP_USED = 0.95
"""Part of the bitrate cap at which a scene held by it is done."""
FLOOR_ROOM = 2.0
"""Tolerances of the title above the floor at which a scene that it holds up aims: room for the
miss of its encode, and for that of the title."""
FLOOR_BITS = 4.0
"""Times its bits by equal slopes that a scene gets at most for the floor's sake: a scene that a
size cannot show well would take all bits and still lie below."""
FLOOR_TRIES = 3
"""Encodes of a scene after which it is left below its floor: where curves are that wrong, the next
one comes hardly nearer."""


@dataclass(frozen=True)
class Goal:
    """What is asked for of the title: a mean score or a number of bits, and how near to it."""

    target: float | None
    """Mean score, above 0 and up to `top`; None where bits are asked for."""
    bits: float | None
    """Bits of the whole title; None where a score is asked for."""
    allocation: Allocation
    top: float
    """Highest score of the metric."""
    tolerance: float
    """Points of score by which the title may miss."""
    scene_tolerance: float
    """Points of score by which a scene may."""
    floor: float | None = None
    """Points below the title's score at which a scene may lie at most; None for no such bound."""
    strict: bool = True
    """False: or as far below as one knob for all scenes would leave it, where that is further."""
    pool: Literal["mean", "harmonic"] = "mean"
    """The mean of the scenes' scores that is the title's."""

    def __post_init__(self) -> None:
        if (self.target is None) == (self.bits is None):
            raise InputError("give either a target score or a bitrate")
        if self.allocation not in ("target", "equal-slope"):
            raise InputError(f"allocation {self.allocation!r} is neither target nor equal-slope")
        if self.bits is not None and self.allocation != "equal-slope":
            raise InputError("a bitrate is shared out over scenes by the allocation equal-slope")
        if self.target is not None and not 0 < self.target <= self.top:
            raise InputError(
                f"the target score must lie between 0 and {self.top:g}, not {self.target:g}"
            )
        if self.allocation != "equal-slope" and self.floor is not None:
            raise InputError("a floor of scenes goes with the allocation equal-slope")
        if self.pool != "mean" and self.target is None:
            raise InputError(f"the pool {self.pool} goes with a target score")
        check_positive(self.top, self.tolerance, self.scene_tolerance, self.bits, self.floor)

    def utility(self, score: Scores, target: float) -> Scores:
        """Scores on a scale on which the pool is their weighted mean; near `target` the scores
        themselves, with a slope of 1 there."""
        if self.pool == "mean":
            return score
        # the reciprocals of scores, shifted by 1 as in time_pooling.harmonic_mean, have a mean
        return 2 * target + 1 - (target + 1) ** 2 / (score + 1)

    def score_of(self, utility: Scores, target: float) -> Scores:
        """The inverse of `utility`."""
        if self.pool == "mean":
            return utility
        return (target + 1) ** 2 / (2 * target + 1 - utility) - 1


@dataclass(frozen=True)
class Bounds:
    """What no result may exceed."""

    max_encodes: int | None
    """Encodes of all scenes together; None for no bound."""
    frame_bits: float | None
    """Mean bits a frame of any scene; None for no bound."""

    def __post_init__(self) -> None:
        check_positive(self.frame_bits)

    def scene_bits(self, state: SceneState) -> float:
        """Most bits of a scene; infinite without a bound."""
        return math.inf if self.frame_bits is None else self.frame_bits * state.scene.frames


def check_positive(*numbers: float | None) -> None:
    """Raises InputError unless all that are given are finite and above 0."""
    if not all(0 < number < math.inf for number in numbers if number is not None):
        raise InputError("sizes, rates and tolerances must be above 0")


@dataclass(frozen=True)
class SceneGoals:
    """The scenes' own goals, which together make up the title's."""

    title: Goal
    bounds: Bounds
    target: float
    """Mean score of the title."""
    score: dict[Scene, float]
    bits: dict[Scene, float] = field(default_factory=dict)
    """Predicted at that score; empty for the allocation "target"."""
    total: float = 0.0
    """Of those bits."""
    price: float = 0.0
    """Bits that a point of the title's mean score is worth, with equal slopes."""
    least: dict[Scene, float] = field(default_factory=dict)
    """Lowest score at which a scene may be left; empty without a floor."""

    def gain(self, state: SceneState, score: float) -> float:
        """By how much a score is above the scene's goal, on the scale of the title's pool."""
        own = self.score[state.scene]
        return self.title.utility(score, self.target) - self.title.utility(own, self.target)

    def excess(self, state: SceneState, score: float, bits: float) -> float:
        """By how much a scene moves the title off its goal, in points of mean score."""
        if self.title.bits is not None:
            return (bits - self.bits[state.scene]) / self.price
        return state.weight * self.gain(state, score)

    def starved(self, state: SceneState, score: float) -> bool:
        """Whether a score is below the scene's floor."""
        return score < self.least.get(state.scene, -math.inf)

    def strain(self, state: SceneState, score: float, bits: float) -> float:
        """How far a scene is from its own goal; up to 1 it may be left there."""
        over = self.gain(state, score)
        if not self.price:
            return abs(over) / (NEAR * self.title.scene_tolerance)
        if self.starved(state, score) and state.tries < FLOOR_TRIES:
            return math.inf
        # the Lagrangian cost, bits less the price of the score, above its least: the goal's own
        lost = bits - self.bits[state.scene] - self.price * state.weight * over
        return max(0.0, lost) / (LOSS * state.weight * self.total)

    def stretched(self, state: SceneState, score: float, bits: float) -> bool:
        """Whether a scene may be left there where the whole title gains by it."""
        return self.strain(state, score, bits) <= (STRETCH if self.price else 1.0)

    def cap(self, state: SceneState) -> float:
        """Most bits of a scene."""
        return self.bounds.scene_bits(state)

    def over(self, state: SceneState, probe: Probe) -> bool:
        """Whether an encode is above the bitrate cap."""
        return probe.bits > self.cap(state)

    def nearest(self, state: SceneState) -> Probe | None:
        """A scene's encode nearest to its goal; one above the bitrate cap only for want of
        another."""
        under = [p for p in state.probes.values() if not self.over(state, p)]
        if not under:
            return min(state.probes.values(), key=lambda p: p.bits, default=None)
        goal = self.score[state.scene]
        if self.price:
            fed = [p for p in under if not self.starved(state, p.score)]
            if not fed:
                return max(under, key=lambda p: (p.score, -p.bits))
            worth = self.price * state.weight
            return min(
                fed,
                key=lambda p: (p.bits - worth * self.gain(state, p.score), abs(p.score - goal)),
            )
        return min(under, key=lambda p: (abs(p.score - goal), p.bits))


def make_goals(
    title: Goal, bounds: Bounds, states: Sequence[SceneState], curves: SceneCurves
) -> SceneGoals:
    """The goals of all scenes, from their curves as predicted now."""
    if title.allocation == "target" and title.target is not None:
        return SceneGoals(title, bounds, title.target, {s.scene: title.target for s in states})
    scores, bits = (np.array(c) for c in zip(*map(curves.of, states), strict=True))
    weights = np.array([s.weight for s in states])
    caps = np.array([bounds.scene_bits(s) for s in states])
    # beyond a scene's cap its curve stays at the last point below it: more bits buy nothing
    most = np.maximum((bits <= caps[:, None]).sum(axis=1) - 1, 0)
    scores, bits = _within(scores, bits, np.zeros_like(most), most)
    target = title.target
    if target is None:
        target = mean_at_bits(scores, bits, weights, title.bits or 0.0)
    aims, price = _aims(title, scores, bits, weights, target)
    lowest: dict[Scene, float] = {}
    if title.floor is not None:
        floors = _floors(title, scores, weights, target)
        held_up = floors + (FLOOR_ROOM - 1) * title.tolerance
        if (aims < held_up).any():
            raised = _raised(scores, bits, aims, held_up)
            scores, bits = _within(scores, bits, raised, most)
            if title.bits is not None:
                target = mean_at_bits(scores, bits, weights, title.bits)
            aims, price = _aims(title, scores, bits, weights, target)
        least_of = np.minimum(floors, aims - title.tolerance).tolist()
        lowest = {s.scene: bound for s, bound in zip(states, least_of, strict=True)}
    goals = {s.scene: float(aim) for s, aim in zip(states, aims, strict=True)}
    spent = {
        s.scene: float(np.interp(aim, score, bit))
        for s, aim, score, bit in zip(states, aims, scores, bits, strict=True)
    }
    total = math.fsum(spent.values())
    return SceneGoals(title, bounds, target, goals, spent, total, price, lowest)


def _within(scores: Values, bits: Values, least: Picks, most: Picks) -> tuple[Values, Values]:
    """Curves that stay at their points `least` and `most` before and beyond these."""
    inside = np.clip(np.arange(bits.shape[1]), least[:, None], most[:, None])
    return np.take_along_axis(scores, inside, axis=1), np.take_along_axis(bits, inside, axis=1)


def _aims(
    title: Goal, scores: Values, bits: Values, weights: Values, target: float
) -> tuple[Values, float]:
    """The scores of equal slopes, and the price of a point; see `equal_slope`."""
    aims, price = equal_slope(title.utility(scores, target), bits, weights, target)
    return title.score_of(aims, target), price


def _floors(title: Goal, scores: Values, weights: Values, target: float) -> Values:
    """The score of each scene below which it may not be left."""
    floors = np.full(len(scores), target - (title.floor or 0.0) + title.tolerance)
    if title.strict:
        return floors
    # the knob at which all scenes together have the target, between two of the curves' points
    means = weights @ title.utility(scores, target)
    place = np.interp(target, means, np.arange(len(means)))
    alike = [np.interp(place, np.arange(len(means)), row) for row in scores]
    least: Values = np.minimum(floors, np.array(alike) - title.tolerance)
    return least


def _raised(scores: Values, bits: Values, aims: Values, floors: Values) -> Picks:
    """The lowest point of each curve that the floors leave, for no more than FLOOR_BITS times the
    bits at `aims`."""
    high = scores >= floors[:, None]
    reaching = np.where(high.any(axis=1), high.argmax(axis=1), scores.shape[1] - 1)
    spent = np.array([np.interp(a, s, b) for a, s, b in zip(aims, scores, bits, strict=True)])
    affordable = np.maximum((bits <= FLOOR_BITS * spent[:, None]).sum(axis=1) - 1, 0)
    least: Picks = np.minimum(reaching, affordable)
    return least


def pick_knob(goals: SceneGoals, curves: SceneCurves, state: SceneState, aim: float) -> int | None:
    """The index among the curves' knobs of the one predicted to come nearest to a score; None
    where none is worth an encode.

    Between the encodes on either side of it, where they are in order.
    """
    scores, bits = curves.of(state)
    able = curves.untried(state)
    low, high = -1.0, 2.0
    for probe in state.probes.values():
        place = curves.quality(probe.knob)
        if probe.score >= aim or goals.over(state, probe):
            high = min(high, place)
        else:
            low = max(low, place)
    able &= (curves.q > min(low, high)) & (curves.q < max(low, high))
    if not able.any():
        return None
    perfect = [p.score >= (1 - LEAST_SHARE) * curves.top for p in state.probes.values()]
    if len(perfect) > 1 and all(perfect):
        # perfect scores do not show where they end: see whether anything is worse
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


def match_target(goals: SceneGoals, chosen: dict[SceneState, Probe], slack: float) -> None:
    """Replace the encodes of some scenes by others that bring the title nearer to its goal.

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


def next_for_target(
    goals: SceneGoals,
    curves: SceneCurves,
    chosen: Mapping[SceneState, Probe],
    may_try: Callable[[SceneState], bool],
    missed: float,
) -> tuple[SceneState, float] | None:
    """The scene and the knob predicted to bring the title nearest to its goal; None where none
    would correct enough of `missed`, in points of mean score."""
    reach = goals.title.scene_tolerance * (2 if goals.price else NEAR)
    least, best = CORRECTED * abs(missed), None
    for state, probe in chosen.items():
        if not may_try(state):
            continue
        # the score at which this scene alone would make up for the whole miss, kept near its goal
        goal, aim = goals.score[state.scene], probe.score - missed / state.weight
        place = pick_knob(goals, curves, state, min(max(aim, goal - reach), goal + reach))
        if place is None:
            continue
        score, bits = (float(curve[place]) for curve in curves.of(state))
        change = goals.excess(state, score, bits) - goals.excess(state, probe.score, probe.bits)
        if abs(missed + change) < least:
            least, best = abs(missed + change), (state, curves.knobs[place])
    return best
