"""Which knob for which scene: a controller that an encode loop drives, ours or another.

    while trials := controller.next_trials(workers):
        for scene, knob in trials:
            controller.report(scene, knob, bits=..., score=...)

It begins with what other titles teach of score and rate over the knob (prior.py), moves that by
the scenes already measured, and conditions it on each scene's own encodes. Every scene has a score
to aim at, its goal. With allocation "target" that is the target itself; with "equal-slope" it is
where all scenes' curves have the same slope of score over bits, so that no bit would buy more
score in another scene: the Lagrangian of Everett (1963), as Ortega & Ramchandran (1998) use it for
coding. As the mean over frames is linear, what the scenes done miss of their goals is made good by
those still open, within the scenes' own tolerance. Scores are 0..`top`, higher better; a scene's
weight is its share of the frames. Knobs beyond the search range are used where its end, once
tried, is not enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vqaloop.encoding.spec import EncoderSpec, Knob
from vqaloop.errors import InputError
from vqaloop.media.scene_cuts import Scene
from vqaloop.ratecontrol.bit_spending import bits_over, is_spent, next_spent, spend
from vqaloop.ratecontrol.remarks import Remark, remarks_on
from vqaloop.ratecontrol.scene_curves import Probe, SceneCurves, SceneState
from vqaloop.ratecontrol.scene_goals import (
    CAP_USED,
    NEAR,
    Allocation,
    Goals,
    Wish,
    make_goals,
    mend_choices,
    pick_knob,
)
from vqaloop.records import Source
from vqaloop.search.prior import Prior
from vqaloop.search.prior_store import PriorUse, chosen_prior

MOST_A_SCENE = 6
"""Encodes of one scene; where so many do not land on the target, more will not."""
SPARE = 3
"""As many fewer look for a scene's best point where a bitrate is asked for, and as many more may
bring the title to it."""
GIVE_UP = 3
"""Failures after which a scene that never succeeded is left alone."""
SAFE = 0.9
"""Part of the tolerances that is used: metrics round, and joining changes a score a little."""
CORRECTION = 0.4
"""Part of its tolerance that each scene is trusted to make good of what the others miss."""
DETOUR = 0.5
"""Part of a scene's tolerance by which its aim may leave its goal for the others' sake."""


class RateController:
    """Finds a knob for each scene such that the title's mean score is the target, or its mean
    bitrate the one asked for. Deterministic; not thread-safe: call it from one thread."""

    def __init__(
        self,
        scenes: Iterable[Scene],
        knob: Knob,
        *,
        width: int,
        height: int,
        fps: float,
        target: float | None = None,
        bitrate_kbps: float | None = None,
        allocation: Allocation = "target",
        prior: Prior | None = None,
        top: float = 100.0,
        tolerance: float = 0.5,
        scene_tolerance: float = 2.0,
        max_encodes: int | None = None,
        max_kbps: float | None = None,
    ) -> None:
        """`target` is the mean score; or `bitrate_kbps`, the mean rate to spend best, which needs
        the allocation "equal-slope". `tolerance` is that of the title, `scene_tolerance` that of
        each scene (for equal slopes: how far from its best point). `max_encodes` bounds all
        encodes, `max_kbps` the mean rate of every scene. Raises InputError."""
        order = sorted(set(scenes))
        if not order or any(scene.frames < 1 for scene in order):
            raise InputError("rate control needs at least one scene, and a frame in each")
        if (target is None) == (bitrate_kbps is None):
            raise InputError("give either a target score or a bitrate")
        if allocation not in ("target", "equal-slope"):
            raise InputError(f"allocation {allocation!r} is neither target nor equal-slope")
        if bitrate_kbps is not None and allocation != "equal-slope":
            raise InputError("a bitrate is shared out over scenes by the allocation equal-slope")
        if target is not None and not 0 < target <= top:
            raise InputError(f"the target score must lie between 0 and {top:g}, not {target:g}")
        if max_encodes is not None and max_encodes < len(order):
            raise InputError(f"{len(order)} scenes need as many encodes, not {max_encodes}")
        numbers = [width, height, fps, top, tolerance, scene_tolerance]
        numbers += [n for n in (bitrate_kbps, max_kbps) if n is not None]
        if not all(0 < n < math.inf for n in numbers):
            raise InputError("sizes, rates and tolerances must be above 0")
        self.top, self.tolerance, self.max_encodes = top, tolerance, max_encodes
        self.encodes = 0
        """Encodes suggested or reported so far, failed ones too."""
        total = sum(scene.frames for scene in order)
        self._states = {s: SceneState(s, s.frames / total) for s in order}
        bits = None if bitrate_kbps is None else bitrate_kbps * 1000 * total / fps
        cap = math.inf if max_kbps is None else max_kbps * 1000 / fps
        self._wish = Wish(target, bits, allocation, scene_tolerance, cap)
        self._curves = SceneCurves(knob, width, height, prior, top)
        self._made: Goals | None = None
        self._chosen: dict[SceneState, Probe] | None = None
        self._summed: tuple[float, float] | None = None

    @classmethod
    def for_title(
        cls,
        source: Source,
        scenes: Iterable[Scene],
        spec: EncoderSpec,
        *,
        metrics: Sequence[str] = ("vmaf",),
        preset: str | None = None,
        prior: PriorUse = "shipped",
        **options: Any,
    ) -> RateController:
        """The controller of a probed title, with the prior of an encoder and the first of
        `metrics` that there is one for: the shipped one, that moved by this machine's "own"
        titles, or "none"; `options` are those of the class."""
        width, height = source.canvas
        return cls(
            scenes,
            spec.knob,
            width=width,
            height=height,
            fps=float(source.fps),
            prior=chosen_prior(
                prior, spec.name, preset or spec.default_preset, metrics, source.sha256
            ),
            **options,
        )

    def suggest(self, scene: Scene) -> float | None:
        """The knob to encode this scene with next; None when it is done, as far as is known.

        The same again until it is reported. Other scenes' reports may open a scene again, so ask
        again after a pass over all, until `done`. Raises InputError for a scene that is not ours.
        """
        state = self._state(scene)
        if state.pending is None:
            self._close(state)
            state.pending = self._next(state) if self._may_try(state) else None
            if state.pending is not None:
                state.tries += 1
                self.encodes += 1
        return state.pending

    def next_trials(self, count: int = 1) -> list[tuple[Scene, float]]:
        """Up to `count` scenes with the knobs to try next, those not yet begun first; all that
        are to be reported. Empty when nothing is left that could be tried now."""
        self._close(*self._states.values())
        found: list[tuple[Scene, float]] = []
        for state in sorted(self._states.values(), key=lambda s: (s.tries, s.scene)):
            if len(found) >= count:
                break
            if state.pending is None and (knob := self.suggest(state.scene)) is not None:
                found.append((state.scene, knob))
        return found

    def report(
        self,
        scene: Scene,
        knob: float,
        bits: float | None = None,
        score: float | None = None,
        *,
        failed: bool = False,
    ) -> None:
        """What came of an encode; also of one that an earlier run made and was not suggested.

        Raises InputError for a scene that is not ours and for numbers that make no sense.
        """
        state = self._state(scene)
        probe = None
        if not failed:
            if bits is None or score is None or not (0 < bits < math.inf and math.isfinite(score)):
                raise InputError(f"{scene}: {bits} bits and a score of {score} are no encode")
            probe = Probe(float(knob), float(bits), min(max(float(score), 0.0), self.top))
        if not math.isfinite(knob):
            raise InputError(f"{scene}: {knob} is no knob")
        if state.pending == knob:
            state.pending = None
        elif knob not in state.probes and knob not in state.failed:
            state.tries += 1
            self.encodes += 1
        if probe is None:
            state.failed.add(knob)
            state.done = not state.probes and len(state.failed) >= GIVE_UP
            self._changed()
            return
        state.failed.discard(knob)
        state.probes[knob] = probe
        self._curves.forget(scene)
        self._curves.learn(list(self._states.values()))
        self._made = None
        self._settle(state)

    @property
    def done(self) -> bool:
        """True when no encode is under way and none is left to suggest."""
        self._close(*self._states.values())
        return all(
            state.pending is None and (not self._may_try(state) or self._next(state) is None)
            for state in self._states.values()
        )

    def is_done(self, scene: Scene) -> bool:
        """True when nothing is under way or left to try for this scene, as far as is known."""
        state = self._state(scene)
        self._close(state)
        return state.done and state.pending is None

    @property
    def choices(self) -> dict[Scene, Probe]:
        """The encode of each scene that is to be delivered, so far; scenes without one are not in
        it. Ascending."""
        return {state.scene: probe for state, probe in self._choices().items()}

    @property
    def mean_score(self) -> float:
        """Of the scenes that have a choice, weighted by frames; NaN where none has."""
        chosen = self._choices().items()
        weight = math.fsum(s.weight for s, _ in chosen)
        return math.fsum(s.weight * p.score for s, p in chosen) / weight if chosen else math.nan

    @property
    def target_score(self) -> float:
        """The mean score of the whole that is aimed at."""
        return self._goals().target

    @property
    def expected_score(self) -> float:
        """Of the whole title: what was measured where a scene is done, else what is aimed at."""
        return math.fsum(s.weight * self._expected(s)[0] for s in self._states.values())

    @property
    def expected_bits(self) -> float:
        """Of the whole title, likewise."""
        return math.fsum(self._expected(s)[1] for s in self._states.values())

    def remarks(self) -> tuple[Remark, ...]:
        """What did not come out as wished, a sentence each; empty when all did. For the end."""
        goals, chosen, whole = self._goals(), self._choices(), None
        if len(chosen) == len(self._states):
            missed = self._sums()[0]
            whole = missed if abs(missed) > self.tolerance else None
            if self._wish.bits is not None:
                over = bits_over(goals, chosen.values())
                whole = None if is_spent(goals, over) else over
        return remarks_on(list(self._states.values()), chosen, goals, self._curves.knobs, whole)

    def _state(self, scene: Scene) -> SceneState:
        try:
            return self._states[scene]
        except KeyError:
            raise InputError(f"{scene} is none of the controller's scenes") from None

    def _goals(self) -> Goals:
        if self._made is None:
            self._made = make_goals(self._wish, list(self._states.values()), self._curves)
        return self._made

    def _may_try(self, state: SceneState) -> bool:
        """Whether the bounds allow another encode: scenes that have none come first."""
        if state.tries >= MOST_A_SCENE + (0 if self._wish.bits is None else SPARE):
            return False
        if self.max_encodes is None:
            return True
        bare = sum(
            not (s.probes or s.done) and s.pending is None and s is not state
            for s in self._states.values()
        )
        return self.max_encodes - self.encodes > (bare if state.tries else 0)

    @property
    def _slack(self) -> float:
        return SAFE * self.tolerance

    def _sums(self) -> tuple[float, float]:
        """What the scenes that are done miss of their goals, in points of mean score, and the
        weight of the others."""
        if self._summed is None:
            goals, chosen = self._goals(), self._choices()
            done = [(s, p) for s, p in chosen.items() if s.done]
            missed = math.fsum(goals.excess(s, p.score, p.bits) for s, p in done)
            rest = math.fsum(s.weight for s in self._states.values() if not s.done)
            self._summed = missed, rest
        return self._summed

    def _changed(self) -> None:
        """Choices and sums are to be found again."""
        self._chosen = self._summed = None

    def _settle(self, state: SceneState) -> None:
        """A scene is done when it is near its goal, and what it and the others miss is no more
        than those still open can make good."""
        goals = self._goals()
        for other, its in self._choices().items() if goals.price else ():
            if not other.stuck and not goals.stretched(other, its.score, its.bits):
                other.done = False
        state.done = False
        self._changed()
        probe = goals.nearest(state)
        if probe is None or goals.over(state, probe):
            return
        missed, rest = self._sums()
        room = self._slack + CORRECTION * self._wish.scene_tolerance * (rest - state.weight)
        missed += goals.excess(state, probe.score, probe.bits)
        near = goals.strain(state, probe.score, probe.bits) <= 1 and abs(missed) <= room
        low = probe.score < goals.score[state.scene]
        state.done = near or (low and probe.bits >= CAP_USED * goals.cap(state))
        self._changed()

    def _close(self, *states: SceneState) -> None:
        """Be done with those of these scenes for which nothing is left to try."""
        for state in states:
            waiting = state.pending is not None or state.done
            if not waiting and (not self._may_try(state) or self._next(state) is None):
                state.done = state.stuck = True
                self._changed()

    def _next(self, state: SceneState) -> float | None:
        if state.done:
            return self._again(state)
        if self._wish.bits is not None and state.tries >= MOST_A_SCENE - SPARE:
            return None
        detour = DETOUR * self._wish.scene_tolerance
        missed, rest = self._sums()
        aim = self._goals().score[state.scene] - min(max(missed / rest, -detour), detour)
        found = pick_knob(self._goals(), self._curves, state, aim)
        return None if found is None else self._curves.knobs[found]

    def _again(self, asked: SceneState) -> float | None:
        """Once all are done and the title is still off: the one scene that can mend it best."""
        states, goals = self._states.values(), self._goals()
        if any(not s.done or s.pending is not None for s in states):
            return None
        if self._wish.bits is not None:
            found = next_spent(goals, self._curves, self._choices(), self._may_try)
            return found[1] if found is not None and found[0] is asked else None
        missed, _ = self._sums()
        if abs(missed) <= self._slack:
            return None
        reach = (
            2 * self._wish.scene_tolerance if goals.price else NEAR * self._wish.scene_tolerance
        )
        best: tuple[float, SceneState | None, float] = (0.7 * abs(missed), None, 0.0)
        for state, probe in self._choices().items():
            if not self._may_try(state):
                continue
            goal, aim = goals.score[state.scene], probe.score - missed / state.weight
            aim = min(max(aim, goal - reach), goal + reach)
            place = pick_knob(goals, self._curves, state, aim)
            if place is None:
                continue
            score, bits = (float(curve[place]) for curve in self._curves.of(state))
            change = goals.excess(state, score, bits)
            change -= goals.excess(state, probe.score, probe.bits)
            if abs(missed + change) < best[0]:
                best = abs(missed + change), state, self._curves.knobs[place]
        return best[2] if best[1] is asked else None

    def _choices(self) -> dict[SceneState, Probe]:
        if self._chosen is None:
            goals = self._goals()
            near = ((s, goals.nearest(s)) for s in self._states.values())
            self._chosen = {s: p for s, p in near if p is not None}
            if all(s.done for s in self._chosen):
                mend_choices(goals, self._chosen, self._slack)
                if self._wish.bits is not None:
                    spend(goals, self._chosen)
        return self._chosen

    def _expected(self, state: SceneState) -> tuple[float, float]:
        probe = self._choices().get(state)
        if probe is not None and state.done:
            return probe.score, probe.bits
        scores, bits = self._curves.of(state)
        at = int(np.argmin(np.abs(scores - self._goals().score[state.scene])))
        return float(scores[at]), float(bits[at])
