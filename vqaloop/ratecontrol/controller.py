"""The rate controller: suggests knobs for scenes until the title meets its score or bitrate.

    while trials := controller.next_trials(workers):
        for scene, knob in trials:
            controller.report(scene, knob, bits=..., score=...)

Score and rate over the knob are predicted by a surrogate model (scene_curves.py). Every scene has
a goal, a score: with the allocation "target" the title's target; with "equal-slope" the score at
which all scenes' curves have the same slope of score over bits, so that no bit would buy more
score in another scene: the Lagrangian of Everett (1963), as Ortega & Ramchandran (1998) use it for
coding. As the title's score is the mean over frames, the scenes still open compensate for what
those that are done miss, within their own tolerance. Scores are 0..`top`, higher better; a scene's
weight is its share of the frames. Knobs beyond the search range are used where its end, once
tried, is not enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from vqaloop.encoding.spec import EncoderSpec, Knob
from vqaloop.errors import InputError
from vqaloop.media.scene_cuts import Scene
from vqaloop.ratecontrol.bit_spending import bits_over, is_spent, match_bitrate, next_for_bitrate
from vqaloop.ratecontrol.remarks import Remark, remarks_on
from vqaloop.ratecontrol.scene_curves import Probe, SceneCurves, SceneState, SharedScenes
from vqaloop.ratecontrol.scene_goals import (
    CAP_USED,
    Allocation,
    Bounds,
    Goal,
    SceneGoals,
    check_positive,
    make_goals,
    match_target,
    next_for_target,
    pick_knob,
)
from vqaloop.records import Source
from vqaloop.search.prior import Prior
from vqaloop.search.prior_store import PriorUse, chosen_prior

MOST_A_SCENE = 6
"""Encodes of one scene; where so many do not land on the target, more will not."""
SPARE = 3
"""Where a bitrate is asked for: as many fewer look for a scene's best point, and as many more may
bring the title to its bitrate."""
GIVE_UP = 3
"""Failures after which a scene that never succeeded is left alone."""
SAFE = 0.9
"""Part of the tolerances that is used: metrics round, and joining changes a score a little."""
CORRECTION = 0.4
"""Part of its tolerance that each scene is trusted to compensate of what the others miss."""
DETOUR = 0.5
"""Part of a scene's tolerance by which its aim may leave its goal for the others' sake."""


class RateController:
    """Finds a knob for each scene such that the title meets a mean score or a mean bitrate.

    Deterministic: the same reports lead to the same suggestions. Not thread-safe: call it from one
    thread.
    """

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
        floor: float | None = None,
        strict_floor: bool = True,
        pool: Literal["mean", "harmonic"] = "mean",
        shared: SharedScenes | None = None,
    ) -> None:
        """Take the scenes and the goal of a title; give either `target` or `bitrate_kbps`.

        Args:
            scenes: The scenes of the title, each of a frame or more.
            knob: The encoder's quality knob.
            width: Of the encodes, in pixels.
            height: Likewise.
            fps: Frames per second.
            target: Mean score of the title, above 0 and up to `top`.
            bitrate_kbps: Mean bitrate of the title in kb/s, spent where it buys the most score;
                needs the allocation "equal-slope".
            allocation: "target" brings every scene to the same score, "equal-slope" lets scores
                differ for the best mean score at the bits spent.
            prior: Rate and score over the knob as learnt on other titles; None for a vague one.
            top: Highest score of the metric.
            tolerance: Points by which the title's mean score may miss the target.
            scene_tolerance: Points by which a scene's score may (for equal slopes: how far it may
                lie from its best point for the title's sake).
            max_encodes: Most encodes of all scenes together; one for each scene at least.
            max_kbps: Most bits of any scene, as its mean bitrate in kb/s.
            floor: With equal slopes, points by which a scene may lie below the target at most;
                None: as equal slopes have it.
            strict_floor: False: or as far below as one knob for all scenes would leave it, where
                that is further.
            pool: The mean of the scenes' scores that is the title's; "harmonic" goes with a
                target.
            shared: Curves and encodes of the scenes that controllers of one title at several
                sizes and targets share; `prior` and `top` are then theirs.

        Raises:
            InputError: No scenes, or numbers that make no sense.
        """
        order = sorted(set(scenes))
        if not order or any(scene.frames < 1 for scene in order):
            raise InputError("rate control needs at least one scene, and a frame in each")
        check_positive(width, height, fps)
        total = sum(scene.frames for scene in order)
        bits = None if bitrate_kbps is None else bitrate_kbps * 1000 * total / fps
        given = (tolerance, scene_tolerance, floor, strict_floor, pool)
        self._goal = Goal(target, bits, allocation, top, *given)
        self._bounds = Bounds(max_encodes, None if max_kbps is None else max_kbps * 1000 / fps)
        if max_encodes is not None and max_encodes < len(order):
            raise InputError(f"{len(order)} scenes need as many encodes, not {max_encodes}")
        self.encodes = 0
        """Encodes suggested or reported so far, failed ones too."""
        size = width, height
        shared = shared or SharedScenes(SceneCurves(knob, size, prior, top))
        self._states = {
            s: SceneState(s, s.frames / total, size, shared.encodes_of(s)) for s in order
        }
        self._curves = shared.curves
        # worked out when asked for; `report` drops them
        self._made_goals: SceneGoals | None = None
        self._made_choices: dict[SceneState, Probe] | None = None
        self._made_balance: tuple[float, float] | None = None

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
        """The controller of a probed title, with the prior of its encoder.

        Args:
            source: The title, as `probe_source` describes it.
            scenes: Its scenes.
            spec: The encoder.
            metrics: Names of metrics, of which the first that has a prior gives it.
            preset: The encoder's preset; None for its default.
            prior: "shipped", that updated by this machine's "own" titles, or "none".
            options: The other keywords of the class.

        Raises:
            InputError: As of the class.
        """
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
        """The knob to encode this scene with next, the same until it is reported.

        Reports on other scenes may open a scene again, so ask again after a pass over all scenes,
        until `done`.

        Args:
            scene: One of the controller's scenes.

        Returns:
            The knob; None when the scene is done for now.

        Raises:
            InputError: The scene is none of the controller's.
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
        """Scenes with the knobs to try next, those not yet begun first.

        Args:
            count: Most scenes to return.

        Returns:
            Pairs of scene and knob, all to be reported; empty when nothing is left that could be
            tried now.
        """
        self._close(*self._states.values())
        trials: list[tuple[Scene, float]] = []
        for state in sorted(self._states.values(), key=lambda s: (s.tries, s.scene)):
            if len(trials) >= count:
                break
            if state.pending is None and (knob := self.suggest(state.scene)) is not None:
                trials.append((state.scene, knob))
        return trials

    def report(
        self,
        scene: Scene,
        knob: float,
        bits: float | None = None,
        score: float | None = None,
        *,
        failed: bool = False,
    ) -> None:
        """Report an encode, or its failure; also one of an earlier run that was not suggested.

        Args:
            scene: One of the controller's scenes.
            knob: The knob it was encoded with.
            bits: Coded bits of the scene, container not counted.
            score: Its mean score; clipped to 0..`top`.
            failed: The encode failed; `bits` and `score` are ignored.

        Raises:
            InputError: The scene is none of the controller's, or the numbers make no sense.
        """
        state = self._state(scene)
        probe = None
        if not failed:
            if bits is None or score is None or not (0 < bits < math.inf and math.isfinite(score)):
                raise InputError(f"{scene}: {bits} bits and a score of {score} are no encode")
            probe = Probe(float(knob), float(bits), min(max(float(score), 0.0), self._goal.top))
        if not math.isfinite(knob):
            raise InputError(f"{scene}: {knob} is no knob")
        if state.pending == knob:
            state.pending = None
        elif knob not in state.probes and knob not in state.failed:
            # of an earlier run: it counts as if it had been suggested
            state.tries += 1
            self.encodes += 1
        if probe is None:
            state.failed.add(knob)
            state.done = not state.probes and len(state.failed) >= GIVE_UP
            self._forget()
            return
        state.failed.discard(knob)
        state.probes[knob] = probe
        self._curves.forget(scene)
        self._curves.learn(list(self._states.values()))
        self._made_goals = None
        self._settle(state)

    def refresh(self) -> None:
        """Take note of encodes of `shared` scenes that were reported to another controller."""
        self._made_goals = None
        self._forget()
        for state in self._states.values():
            if state.probes and state.pending is None:
                self._settle(state)

    @property
    def done(self) -> bool:
        """Whether no encode is under way and none is left to suggest."""
        self._close(*self._states.values())
        return all(
            state.pending is None and (not self._may_try(state) or self._next(state) is None)
            for state in self._states.values()
        )

    def is_done(self, scene: Scene) -> bool:
        """Whether no encode of this scene is under way and none is left to suggest for now."""
        state = self._state(scene)
        self._close(state)
        return state.done and state.pending is None

    @property
    def choices(self) -> dict[Scene, Probe]:
        """The encode chosen for each scene so far, in order; scenes without an encode are left
        out."""
        return {state.scene: probe for state, probe in self._choices().items()}

    @property
    def starved(self) -> list[Scene]:
        """Scenes whose chosen encode is below the floor, in order."""
        goals = self._goals()
        return [s.scene for s, p in self._choices().items() if goals.starved(s, p.score)]

    @property
    def mean_score(self) -> float:
        """Mean score of the chosen encodes, weighted by frames; NaN where there is none."""
        chosen = self._choices().items()
        weight = math.fsum(s.weight for s, _ in chosen)
        return math.fsum(s.weight * p.score for s, p in chosen) / weight if chosen else math.nan

    @property
    def target_score(self) -> float:
        """The mean score of the title that is aimed at."""
        return self._goals().target

    @property
    def expected_score(self) -> float:
        """Mean score of the title: measured where a scene is done, else predicted at its goal."""
        return math.fsum(s.weight * self._expected(s)[0] for s in self._states.values())

    @property
    def expected_bits(self) -> float:
        """Bits of the whole title, likewise."""
        return math.fsum(self._expected(s)[1] for s in self._states.values())

    def remarks(self) -> tuple[Remark, ...]:
        """Sentences on the scenes and the title that missed their goals, once `done`.

        Returns:
            Remarks, each with its `kind` and its `scene`; empty when all goals were met.
        """
        goals, chosen, whole = self._goals(), self._choices(), None
        if len(chosen) == len(self._states):
            missed = self._balance()[0]
            whole = missed if abs(missed) > self._goal.tolerance else None
            if self._goal.bits is not None:
                over = bits_over(goals, chosen.values())
                whole = None if is_spent(goals, over) else over
        return remarks_on(list(self._states.values()), chosen, goals, self._curves.knobs, whole)

    def _state(self, scene: Scene) -> SceneState:
        try:
            return self._states[scene]
        except KeyError:
            raise InputError(f"{scene} is none of the controller's scenes") from None

    def _goals(self) -> SceneGoals:
        if self._made_goals is None:
            states = list(self._states.values())
            self._made_goals = make_goals(self._goal, self._bounds, states, self._curves)
        return self._made_goals

    def _may_try(self, state: SceneState) -> bool:
        """Whether the bounds allow another encode: scenes that have none come first."""
        if state.tries >= MOST_A_SCENE + (0 if self._goal.bits is None else SPARE):
            return False
        if self._bounds.max_encodes is None:
            return True
        bare = sum(
            not (s.probes or s.done) and s.pending is None and s is not state
            for s in self._states.values()
        )
        return self._bounds.max_encodes - self.encodes > (bare if state.tries else 0)

    @property
    def _slack(self) -> float:
        return SAFE * self._goal.tolerance

    def _balance(self) -> tuple[float, float]:
        """By how much the scenes that are done miss their goals, in points of mean score, and the
        weight of the others."""
        if self._made_balance is None:
            goals, chosen = self._goals(), self._choices()
            done = [(s, p) for s, p in chosen.items() if s.done]
            missed = math.fsum(goals.excess(s, p.score, p.bits) for s, p in done)
            rest = math.fsum(s.weight for s in self._states.values() if not s.done)
            self._made_balance = missed, rest
        return self._made_balance

    def _forget(self) -> None:
        """Drop choices and balance, after a change of a scene."""
        self._made_choices = self._made_balance = None

    def _settle(self, state: SceneState) -> None:
        """A scene is done when it is near its goal, and what it and the others miss is no more
        than those still open can compensate."""
        goals = self._goals()
        # with equal slopes a report moves all goals: scenes now far from theirs are open again
        for other, its in self._choices().items() if goals.price else ():
            if not other.stuck and not goals.stretched(other, its.score, its.bits):
                other.done = False
        state.done = False
        self._forget()
        probe = goals.nearest(state)
        if probe is None or goals.over(state, probe):
            return
        missed, rest = self._balance()
        # this scene still counts among the rest, being open
        room = self._slack + CORRECTION * self._goal.scene_tolerance * (rest - state.weight)
        missed += goals.excess(state, probe.score, probe.bits)
        near = goals.strain(state, probe.score, probe.bits) <= 1 and abs(missed) <= room
        low = probe.score < goals.score[state.scene]
        # held by the bitrate cap, it has what it can get
        state.done = near or (low and probe.bits >= CAP_USED * goals.cap(state))
        self._forget()

    def _close(self, *states: SceneState) -> None:
        """Mark those of these scenes as done for which nothing is left to try."""
        for state in states:
            waiting = state.pending is not None or state.done
            if not waiting and (not self._may_try(state) or self._next(state) is None):
                state.done = state.stuck = True
                self._forget()

    def _next(self, state: SceneState) -> float | None:
        if state.done:
            return self._correction(state)
        if self._goal.bits is not None and state.tries >= MOST_A_SCENE - SPARE:
            return None
        detour = DETOUR * self._goal.scene_tolerance
        missed, rest = self._balance()
        # the open scenes share what those that are done miss
        aim = self._goals().score[state.scene] - min(max(missed / rest, -detour), detour)
        found = pick_knob(self._goals(), self._curves, state, aim)
        return None if found is None else self._curves.knobs[found]

    def _correction(self, asked: SceneState) -> float | None:
        """Once all scenes are done and the title is still off: the knob, if `asked` is the one
        scene that can correct it best."""
        if any(not s.done or s.pending is not None for s in self._states.values()):
            return None
        goals, chosen = self._goals(), self._choices()
        if self._goal.bits is not None:
            found = next_for_bitrate(goals, self._curves, chosen, self._may_try)
        else:
            missed, _ = self._balance()
            if abs(missed) <= self._slack:
                return None
            found = next_for_target(goals, self._curves, chosen, self._may_try, missed)
        return found[1] if found is not None and found[0] is asked else None

    def _choices(self) -> dict[SceneState, Probe]:
        if self._made_choices is None:
            goals = self._goals()
            near = ((s, goals.nearest(s)) for s in self._states.values())
            chosen = {s: p for s, p in near if p is not None}
            if all(s.done for s in chosen):
                match_target(goals, chosen, self._slack)
                if self._goal.bits is not None:
                    match_bitrate(goals, chosen)
            self._made_choices = chosen
        return self._made_choices

    def _expected(self, state: SceneState) -> tuple[float, float]:
        """Score and bits of a scene."""
        probe = self._choices().get(state)
        if probe is not None and state.done:
            return probe.score, probe.bits
        scores, bits = self._curves.of(state)
        at = int(np.argmin(np.abs(scores - self._goals().score[state.scene])))
        return float(scores[at]), float(bits[at])
