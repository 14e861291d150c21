"""Bringing a title to a requested bitrate: choosing among the scenes' encodes, and the next one.

The scenes' goals (scene_goals.py) are scores, which may hardly depend on bits: at a scene's
ceiling half the bits cost no point. So the last steps to a bitrate are taken in bits.
"""

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import numpy.typing as npt

from vqaloop.ratecontrol.scene_curves import Probe, SceneCurves, SceneState
from vqaloop.ratecontrol.scene_goals import SceneGoals

RATE_NEAR = 0.05
"""Part of the bitrate asked for within which no further encode is made."""
TRUSTED = 4
"""Encodes of a scene after which its curve, having missed so often, gives way to bisection."""
GAIN = 0.95
"""Part of a miss that an encode may leave at most, by prediction."""


def bits_over(goals: SceneGoals, probes: Iterable[Probe]) -> float:
    """Bits of these encodes beyond those asked for; below zero where they are fewer."""
    return math.fsum(probe.bits for probe in probes) - (goals.title.bits or 0.0)


def is_spent(goals: SceneGoals, over: float) -> bool:
    """Whether a title `over` bits off its bitrate is near enough."""
    return abs(over) <= RATE_NEAR * (goals.title.bits or 0.0)


def match_bitrate(goals: SceneGoals, chosen: dict[SceneState, Probe]) -> None:
    """Replace the encodes of some scenes by others of them that bring the title nearer to its
    bitrate: first by those near the scene's best point, then by any."""
    for anywhere in (False, True):
        swaps = [
            (state, probe)
            for state in chosen
            for probe in state.probes.values()
            if (anywhere or goals.stretched(state, probe.score, probe.bits))
            and not goals.over(state, probe)
        ]
        while swaps and not is_spent(goals, over := bits_over(goals, chosen.values())):
            left = [abs(over + probe.bits - chosen[state].bits) for state, probe in swaps]
            best = int(np.argmin(left))
            if left[best] > GAIN * abs(over):
                break
            chosen[swaps[best][0]] = swaps[best][1]


def next_for_bitrate(
    goals: SceneGoals,
    curves: SceneCurves,
    chosen: Mapping[SceneState, Probe],
    may_try: Callable[[SceneState], bool],
) -> tuple[SceneState, float] | None:
    """The scene and the knob predicted to bring the title nearest to its bitrate; None where it
    is near enough, or where no knob is left that would."""
    over = bits_over(goals, chosen.values())
    if is_spent(goals, over):
        return None
    reach = 2 * goals.title.scene_tolerance
    best: tuple[float, SceneState, float] | None = None
    # bits at the scenes' own goals first; elsewhere only where those do not make up the bitrate
    for within in (reach, math.inf):
        for state, probe in chosen.items():
            if not may_try(state):
                continue
            scores, bits = curves.of(state)
            wanted = max(probe.bits - over, 1.0)
            able = _between(curves, state, wanted) & (bits <= goals.cap(state))
            able &= np.abs(scores - goals.score[state.scene]) <= within
            if not able.any():
                continue
            at = int(np.argmin(np.where(able, np.abs(np.log(bits / wanted)), math.inf)))
            left = abs(over + float(bits[at]) - probe.bits)
            # no encode lies on the other side of the wanted bits
            beyond = not any((p.bits > wanted) != (over > 0) for p in state.probes.values())
            if not beyond and state.tries >= TRUSTED:
                at = int(np.flatnonzero(able)[able.sum() // 2])
            if beyond or state.tries >= TRUSTED:
                # beyond all its encodes a curve is a guess, which may be flat
                left = min(left, GAIN * abs(over))
            if left <= GAIN * abs(over) and (best is None or left < best[0]):
                best = left, state, curves.knobs[at]
        if best is not None:
            return best[1], best[2]
    return None


def _between(curves: SceneCurves, state: SceneState, wanted: float) -> npt.NDArray[np.bool_]:
    """Which knobs may be tried that lie between the encodes of too few and of too many bits."""
    able = curves.untried(state)
    for probe in state.probes.values():
        place = curves.quality(probe.knob)
        able &= curves.q < place if probe.bits > wanted else curves.q > place
    return able
