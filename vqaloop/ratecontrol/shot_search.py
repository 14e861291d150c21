"""Search for the rungs of a per-shot ladder: sizes and scores from the curves of a title's scenes.

The scenes' surrogate model (scene_curves.py) predicts, for every size, the rate at which equal
slopes reach a score; the rules of a ladder choose rungs on the hull of that. Two rungs of the
first plan are encoded with a knob alike for all scenes, which shows what the scenes are like; then
all rungs are planned again, and a rate controller each (controller.py) encodes their scenes. All
share encodes and curves, so an encode that suits another rung of its size is made once. What is
asked for next depends on finished trials alone, in rounds, so workers change nothing.
"""

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from vqaloop.core.text import counted
from vqaloop.encoding.spec import Knob
from vqaloop.execution.workshop import Workshop
from vqaloop.media.scene_cuts import Scene, bounded_gop
from vqaloop.quality.time_pooling import harmonic_mean
from vqaloop.ratecontrol.controller import RateController
from vqaloop.ratecontrol.equal_slope import Values
from vqaloop.ratecontrol.scene_curves import SceneCurves, SceneState, SharedScenes, Size
from vqaloop.ratecontrol.scene_goals import Bounds, Goal, make_goals
from vqaloop.ratecontrol.scene_trials import SceneTrials, report_trial
from vqaloop.records import Event, RDPoint, Rendition, Source, Trial, Watcher
from vqaloop.search.explore import plan, rungs_of, worth_trying
from vqaloop.search.prior import Prior
from vqaloop.search.rungs import Rules, keep_rules
from vqaloop.search.space import Space
from vqaloop.search.surrogates import Predictions

NEAR = 0.5
"""Steps below the hull at which a rung that was made stays one."""
MARGIN = 1.1
"""Times the least step and ratio that planned rungs keep: they come out a bit off."""
RUNG_FAR, SCENE_FAR = 1 / 4, 1 / 2
"""Parts of a metric's step by which a rung may miss the score it was planned for, and a scene its
own: where a rung lies matters less than that its scenes' slopes are equal."""
FLOOR_STEPS = 3.0
"""Default of the floor of scenes, in steps: 12 points of VMAF, about two just noticeable
differences. One knob for a whole title leaves hard scenes 10 points below and more; a floor that
is nearer than that takes bits from where they buy more, so by default it is never nearer."""
MORE, LEAST_MORE = 1.5, 3
"""Encodes of scenes for one rung, over the number of scenes, at most; and how many beyond that
number in any case, as one first encode in the wrong place unbalances a title of two scenes."""
BATCH = 4
"""Rungs whose scenes are encoded at a time; they show where the next ones belong."""
SPARE = 1
"""Rungs that may be made beyond those of the first plan."""
RIVAL, UNSEEN = 1.2, 2.0
"""Times the rate of a planned rung up to which another size may yet be the better one, and steps
of score around it in which neither that size nor its own was measured: a scene is encoded then."""
LEVELS, BETWEEN = 24, 4
"""Scores at which the rate of a size is predicted, and points from one to the next."""

Mean = Literal["mean", "harmonic"]


@dataclass(frozen=True)
class ShotTitle:
    """A title to be encoded scene by scene."""

    shop: Workshop
    source: Source
    scenes: Sequence[Scene]
    sizes: Sequence[Size]
    """Widths and heights to encode at, largest first."""
    rendition: Callable[[tuple[int, int, float]], Rendition]
    """The rendition of a width, height and knob."""
    progress: Watcher
    floor: float | None = None
    """Points below its rung's score at which a scene may lie at most; None for the default, which
    is no nearer than one knob for all scenes would leave it."""

    @property
    def knob(self) -> Knob:
        return self.shop.spec.knob

    @property
    def frames(self) -> Values:
        """Of each scene."""
        return np.array([scene.frames for scene in self.scenes], float)

    @property
    def mean(self) -> Mean | None:
        """The mean of its scenes that is a rung's score; None for the score of the worst, where
        every scene is brought to the rung's."""
        pool = self.shop.pool
        return "mean" if pool == "mean" else "harmonic" if pool == "harmonic" else None

    def pooled(self, scores: Values) -> float:
        """A rung's score from those of its scenes."""
        if self.mean is None:
            return float(scores.min())
        if self.mean == "harmonic":
            return harmonic_mean(scores, self.frames)
        return float(np.average(scores, weights=self.frames))

    @property
    def least_below(self) -> float | None:
        """Points below its rung's score at which a scene may lie; None where each is at it."""
        if self.mean is None:
            return None
        return self.floor or FLOOR_STEPS * self.shop.metric.step

    def goal(self, score: float) -> Goal:
        """What the scenes of a rung of that score are to reach."""
        metric = self.shop.metric
        far = RUNG_FAR * metric.step, SCENE_FAR * metric.step
        if self.mean is None:
            return Goal(score, None, "target", metric.top, *far)
        strict = self.floor is not None
        return Goal(
            score, None, "equal-slope", metric.top, *far, self.least_below, strict, self.mean
        )


@dataclass(frozen=True)
class ShotRung:
    """A rung's scenes, encoded and chosen."""

    point: RDPoint
    """Rate and score of the scenes together; the knob is their mean."""
    planned: float
    """The score that was aimed at."""
    choices: Mapping[Scene, Trial]
    starved: frozenset[Scene] = frozenset()
    """Those below the floor."""


class ShotSearch:
    """Finds and encodes the rungs of a title; also the surrogate that predicts them."""

    def __init__(
        self, title: ShotTitle, rules: Rules, prior: Prior | None, work: SceneTrials | None = None
    ) -> None:
        self.title = title
        self.work = work or SceneTrials(title.shop, title.source, bounded_gop)
        self.trials: dict[tuple[Scene, Size, float], Trial] = {}
        """All that were made."""
        self._rules = replace(rules, near=NEAR, slack=MARGIN)
        curves = SceneCurves(title.knob, title.source.canvas, prior, title.shop.metric.top)
        self._shared = SharedScenes(curves)
        self._failed: set[Size] = set()
        self._predicted: tuple[int, list[RDPoint]] = -1, []
        self._counting = threading.Lock()
        self._ended = self._expected = 0

    def run(self) -> list[ShotRung]:
        """All rungs that were made, each of another size or score."""
        first = self._plan([])
        probes = list(dict.fromkeys([first[-1], first[len(first) // 3]])) if first else []
        self._expected = len(self.title.scenes) * (len(first) + len(probes))
        self._drive([(p.size, self._controller(p)) for p in probes], rounds=1)
        made: list[ShotRung] = []
        planned = self._plan([])
        # a rung more than planned pays only where those that came out are too few for a ladder
        while (
            len(made) < len(planned) + SPARE
            and (len(made) < len(planned) or len(self.chosen(made)) < len(planned))
            and (todo := self._todo(made))
        ):
            if not self._compare(todo):
                made += self._make(todo[: len(planned) + SPARE - len(made)])
        self.work.drop(self.title.scenes)
        return made

    def chosen(self, made: Sequence[ShotRung]) -> list[ShotRung]:
        """The rungs of the ladder, ascending, of those that were made."""
        points = [rung.point for rung in made]
        rules = replace(self._rules, slack=1.0)
        found = rungs_of(self._space(), rules, points, self) if points else []
        by_point = {rung.point: rung for rung in made}
        return [by_point[point] for point in keep_rules(found, rules)]

    def anchors(self, failed: Sequence[tuple[int, int, float]]) -> list[tuple[int, int, float]]:
        """None: a surrogate's points to measure before all others."""
        return []

    def dense(self, points: Sequence[RDPoint]) -> Predictions:
        """Rates at which each size reaches scores by equal slopes, as predicted now."""
        if self._predicted[0] != len(self.trials):
            sizes = [size for size in self.title.sizes if size not in self._failed]
            found = [point for size in sizes for point in self._of_size(size)]
            self._predicted = len(self.trials), found
        return Predictions(self._predicted[1], np.zeros(len(self._predicted[1])))

    def failures(self) -> list[str]:
        """Why trials failed."""
        return sorted({trial.error for trial in self.trials.values() if trial.error})

    def _space(self) -> Space:
        title = self.title
        sizes = tuple(title.sizes)
        return Space(sizes, title.knob, title.source.canvas, float(title.source.fps))

    def _plan(self, points: Sequence[RDPoint]) -> list[RDPoint]:
        dense = worth_trying(self._space(), self.dense(points), points, [])
        return plan(self._rules, points, dense)

    def _todo(self, made: Sequence[ShotRung]) -> list[RDPoint]:
        """Rungs to make next: one of each size without an encode, whose others follow from it;
        then all that are left, up to BATCH."""
        wanted = [p for p in self._plan([rung.point for rung in made]) if not p.measured]
        known = {size for _, size, _ in self.trials}
        new = [size for size in self.title.sizes if size not in known]
        of_size = [own for size in new if (own := [p for p in wanted if p.size == size])]
        return [own[len(own) // 2] for own in of_size] or wanted[-BATCH:]

    def _compare(self, planned: Sequence[RDPoint]) -> bool:
        """Encode the dearest scene of planned rungs at sizes that come near to each other there.

        Returns whether there was any that was not measured. Scenes of a title differ from other
        titles alike, so one shows how far off a size is.
        """
        wanted = {
            key: replace(point, width=size[0], height=size[1])
            for point in planned
            for size in self._rivals(point)
            if (key := self._dearest(size, point.score)) not in self.trials
        }
        if not wanted:
            return False
        self._attempt_all(sorted(wanted))
        for key, point in wanted.items():
            report_trial(self._controller(point), key[0], self.trials[key], self.work)
        self._learn()
        return True

    def _rivals(self, point: RDPoint) -> list[Size]:
        """The sizes between which a planned rung is not decided, its own among them; none where
        no other comes near."""
        by_size: dict[Size, list[RDPoint]] = {}
        for each in self.dense([]).points:
            by_size.setdefault(each.size, []).append(each)
        near = [
            size
            for size, own in by_size.items()
            if own[0].score <= point.score <= own[-1].score
            and np.interp(
                point.score, [p.score for p in own], [math.log(p.bitrate_kbps) for p in own]
            )
            <= math.log(RIVAL * point.bitrate_kbps)
        ]
        room = UNSEEN * self.title.shop.metric.step
        seen = {
            size
            for (_, size, _), trial in self.trials.items()
            if trial.score is not None and abs(trial.score - point.score) <= room
        }
        return [size for size in near if size not in seen] if len(near) > 1 else []

    def _dearest(self, size: Size, score: float) -> tuple[Scene, Size, float]:
        """The scene that takes most bits where a rung has that score, and its knob there."""
        states, curves = self._states(size), self._shared.curves
        goals = make_goals(self.title.goal(score), Bounds(None, None), states, curves)
        known = {s.scene: curves.of(s) for s in states}
        aims = goals.score
        scene = max(aims, key=lambda s: (np.interp(aims[s], *known[s]), s))
        place = int(np.argmin(np.abs(known[scene][0] - aims[scene])))
        return scene, size, curves.knobs[place]

    def _states(self, size: Size) -> list[SceneState]:
        title, total = self.title, self.title.source.frames
        return [
            SceneState(scene, scene.frames / total, size, self._shared.encodes_of(scene))
            for scene in title.scenes
        ]

    def _of_size(self, size: Size) -> list[RDPoint]:
        """Predicted points of a size, ascending."""
        title, curves, states = self.title, self._shared.curves, self._states(size)
        inside = np.flatnonzero((curves.q >= 0) & (curves.q <= 1))
        scores = np.array([curves.of(state)[0] for state in states])
        low, high = (title.pooled(scores[:, at]) for at in (inside[0], inside[-1]))
        if high - low < 1e-3:
            return []
        targets = np.linspace(low, high, LEVELS + 2)[1:-1]
        found = [self._at(states, target) for target in targets.tolist()]
        rates, knobs = (np.array(column) for column in zip(*found, strict=True))
        fine = np.linspace(targets[0], targets[-1], BETWEEN * LEVELS)
        rates = np.exp(np.interp(fine, targets, np.log(rates)))
        knobs = np.interp(fine, targets, knobs)
        return [
            RDPoint(*size, round(k, 4), r, s, measured=False)
            for k, r, s in zip(knobs.tolist(), rates.tolist(), fine.tolist(), strict=True)
        ]

    def _at(self, states: Sequence[SceneState], score: float) -> tuple[float, float]:
        """Rate in kb/s and mean knob of the scenes where a rung has that score."""
        title, curves = self.title, self._shared.curves
        goals = make_goals(title.goal(score), Bounds(None, None), states, curves)
        bits, knobs = 0.0, []
        for state in states:
            known, spent = curves.of(state)
            aim = goals.score[state.scene]
            bits += float(np.interp(aim, known, spent))
            knobs.append(float(np.interp(aim, known, curves.knobs)))
        kbps = bits / 1000 / title.source.duration_s
        return kbps, float(np.average(knobs, weights=title.frames))

    def _controller(self, point: RDPoint) -> RateController:
        title, goal = self.title, self.title.goal(min(point.score, self.title.shop.metric.top))
        count = len(title.scenes)
        most = max(count + LEAST_MORE, math.floor(MORE * count))
        return RateController(
            title.scenes,
            title.knob,
            width=point.width,
            height=point.height,
            fps=float(title.source.fps),
            target=goal.target,
            allocation=goal.allocation,
            top=goal.top,
            tolerance=goal.tolerance,
            scene_tolerance=goal.scene_tolerance,
            max_encodes=most,
            floor=goal.floor,
            strict_floor=goal.strict,
            pool=goal.pool,
            shared=self._shared,
        )

    def _make(self, points: Sequence[RDPoint]) -> list[ShotRung]:
        """The rungs of a plan, but for those of which a scene could not be encoded."""
        driven = [(point.size, self._controller(point)) for point in points]
        for _, controller in driven:
            controller.refresh()
        self._drive(driven)
        made = []
        for point, (size, controller) in zip(points, driven, strict=True):
            if len(controller.choices) < len(self.title.scenes):
                self._failed.add(size)
                self._predicted = -1, []
                continue
            made.append(self._rung(point, controller))
        return made

    def _rung(self, planned: RDPoint, controller: RateController) -> ShotRung:
        title, probes = self.title, controller.choices
        scores = np.array([probes[scene].score for scene in title.scenes])
        knobs = [probes[scene].knob for scene in title.scenes]
        point = RDPoint(
            *planned.size,
            knob=round(float(np.average(knobs, weights=title.frames)), 2),
            bitrate_kbps=sum(p.bits for p in probes.values()) / 1000 / title.source.duration_s,
            score=title.pooled(scores),
        )
        choices = {s: self.trials[s, planned.size, p.knob] for s, p in probes.items()}
        starved = set(controller.starved)
        if title.floor is not None:
            # the floor is below the rung's own score, wherever that came out
            starved |= {s for s, p in probes.items() if p.score < point.score - title.floor}
        return ShotRung(point, planned.score, choices, frozenset(starved))

    def _drive(
        self, driven: Sequence[tuple[Size, RateController]], rounds: int | None = None
    ) -> None:
        """Make what the controllers ask for, in rounds, until they have what they want."""
        everything = len(self.title.scenes)
        while rounds is None or rounds > 0:
            asked = [
                (controller, (scene, size, knob))
                for size, controller in driven
                for scene, knob in controller.next_trials(everything)
            ]
            if not asked:
                break
            self._attempt_all(sorted({key for _, key in asked if key not in self.trials}))
            for controller, key in asked:
                report_trial(controller, key[0], self.trials[key], self.work)
            self._learn()
            for _, controller in driven:
                controller.refresh()
            rounds = None if rounds is None else rounds - 1

    def _attempt_all(self, wanted: Sequence[tuple[Scene, Size, float]]) -> None:
        """In order: those of a scene one after another, as its excerpt is there once."""
        made = self.title.shop.map(self._attempt, wanted)
        self.trials |= dict(zip(wanted, made, strict=True))

    def _learn(self) -> None:
        states = self._states(self.title.source.canvas)
        self._shared.curves.learn(states, again=True)

    def _attempt(self, wanted: tuple[Scene, Size, float]) -> Trial:
        scene, size, knob = wanted
        trial = self.work.attempt(scene, self.title.rendition((*size, knob)))
        with self._counting:
            self._ended += 1
            self._expected = max(self._expected, self._ended)
        outcome = trial.error or f"{trial.score:.2f}"
        where = f"{counted(scene.frames, 'frame')} from {scene.start_frame} on"
        message = f"{where}, {size[0]}x{size[1]} at {knob:g}: {outcome}"
        self.title.progress(
            Event("search", message, self._ended, self._expected, trial, at_most=True)
        )
        return trial
