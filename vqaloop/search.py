"""Which renditions to try: an Optuna study driven by a sampler that knows the problem's shape.

For one resolution, score and log rate are monotone in the knob. So a few anchors at each
resolution fix all curves; the hull of the fits tells the rungs; each chosen rung is then encoded,
which measures it, and the fits are drawn again, until every chosen rung has been measured. Every
proposal is a function of the finished trials alone, so the same trials lead to the same ladder in
whatever order they end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from vqaloop.encoderspec import Knob
from vqaloop.hull import Rules, choose_rungs, densify, fit_curve, rising_front, with_smaller_bottom
from vqaloop.records import RDPoint

Point = tuple[int, int, float]
"""Width, height, knob."""

FIRST_ANCHORS = (0.15, 0.7)
"""Knobs of the largest resolution, as parts of the search range from worst to best quality."""
LOWER_ANCHORS = (0.2, 0.6)
"""Knobs of the others, whose best end lies beyond the front."""
LAST_ANCHORS = (0.1, 0.5)
"""Knobs of the smallest, where the lowest rung may need more compression."""
SUBSTITUTES = 2
"""Further anchors for a resolution whose anchors failed."""
SHUN = 1 / 16
"""Part of the search range around a failed knob in which no rung is planned."""


@dataclass(frozen=True)
class Space:
    """What may be tried."""

    sizes: tuple[tuple[int, int], ...]
    """Widths and heights, largest first."""
    knob: Knob

    def distributions(self) -> dict[str, BaseDistribution]:
        knob = self.knob
        return {
            "size": CategoricalDistribution([f"{w}x{h}" for w, h in self.sizes]),
            "knob": FloatDistribution(knob.min, _last_step(knob), step=knob.step),
        }

    def knob_at(self, quality: float) -> float:
        """The knob at a part of the search range: 0 for its worst end, 1 for its best."""
        low, high = self.knob.search
        part = 1 - quality if self.knob.lower_is_better else quality
        return self.knob.snap(low + (high - low) * part)

    def grid(self) -> list[float]:
        """All knobs of the search range, ascending."""
        low, high = self.knob.search
        count = round((high - low) / self.knob.step)
        knobs = [self.knob.snap(low + i * self.knob.step) for i in range(count + 1)]
        return sorted(set(knobs))


def _last_step(knob: Knob) -> float:
    """The largest value on the knob's grid; Optuna warns when the range is no multiple."""
    return float(knob.min + np.floor((knob.max - knob.min) / knob.step + 1e-9) * knob.step)


@dataclass(frozen=True)
class Outcome:
    """A finished trial, as the search sees it."""

    bitrate_kbps: float | None
    """None when it failed."""
    score: float | None = None


def propose(
    space: Space,
    rules: Rules,
    points: Sequence[RDPoint],
    failed: Sequence[Point],
    most: int,
    top_score: float,
) -> list[Point]:
    """What to try next, given all that is known; empty when there is nothing left to learn."""
    tried = {(p.width, p.height, p.knob) for p in points} | set(failed)
    anchors = [point for point in _anchors(space, failed) if point not in tried]
    if anchors:
        return anchors
    if len(points) + len(failed) >= most or not points:
        return []
    chosen = plan(space, rules, points, top_score, failed)
    wanted = [(p.width, p.height, p.knob) for p in chosen if not p.measured]
    return [point for point in wanted if point not in tried][: most - len(tried)]


def plan(
    space: Space,
    rules: Rules,
    points: Sequence[RDPoint],
    top_score: float,
    failed: Sequence[Point] = (),
) -> list[RDPoint]:
    """The ladder as far as it is known: the best fitted rung at each rate, measured where near.

    Rungs come from the front on which resolution rises with the rate, rather than from the convex
    hull: a player cannot mix two renditions, so what lies a little inside the hull between two
    resolutions is still the best there is at its rate.
    """
    low, high = space.knob.search
    shunned = (high - low) * SHUN
    dense = [
        point
        for point in densify(points, space.grid(), top_score)
        if point.measured
        or all(
            (width, height) != (point.width, point.height) or abs(knob - point.knob) > shunned
            for width, height, knob in failed
        )
    ]
    chosen = choose_rungs(rising_front(dense), rules, points)
    return with_smaller_bottom(chosen, dense, rules)


def _anchors(space: Space, failed: Sequence[Point]) -> list[Point]:
    anchors = []
    for i, (width, height) in enumerate(space.sizes):
        last = i == len(space.sizes) - 1
        parts: tuple[float, ...] = (
            FIRST_ANCHORS if i == 0 else LAST_ANCHORS if last else LOWER_ANCHORS
        )
        spare = [(a + b) / 2 for a, b in zip(parts, parts[1:], strict=False)] + [0.05]
        own = [(width, height, space.knob_at(part)) for part in (*parts, *spare[:SUBSTITUTES])]
        lost = sum(point in failed for point in dict.fromkeys(own))
        anchors += own[: len(parts) + lost]
    return list(dict.fromkeys(anchors))


class LadderSampler(optuna.samplers.BaseSampler):
    """Optuna's door to `propose`: each trial asked for is the next proposal nobody has taken."""

    def __init__(self, space: Space, rules: Rules, most: int, top_score: float) -> None:
        self.space, self.rules, self.most, self.top_score = space, rules, most, top_score

    def waiting(self, study: optuna.Study) -> list[Point]:
        """Proposals that no trial has taken yet."""
        trials = study.get_trials(deepcopy=False)
        # Optuna fills in a parameter of one value first, so a trial may have half of its point
        running = {
            _point(t)
            for t in trials
            if t.state == TrialState.RUNNING and t.params.keys() >= {"size", "knob"}
        }
        failed = [_point(t) for t in trials if t.state == TrialState.FAIL]
        proposals = propose(
            self.space, self.rules, measured(study), failed, self.most, self.top_score
        )
        return [point for point in proposals if point not in running]

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self.space.distributions()

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        waiting = self.waiting(study)
        if not waiting:
            return {}
        width, height, knob = waiting[0]
        return {"size": f"{width}x{height}", "knob": knob}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        # only reached by a trial asked for when nothing was left to learn: any point does
        if isinstance(param_distribution, CategoricalDistribution):
            return param_distribution.choices[0]
        return self.space.knob_at(0.5)


def _point(trial: FrozenTrial | optuna.Trial) -> Point:
    width, height = map(int, trial.params["size"].split("x"))
    return width, height, float(trial.params["knob"])


def measured(study: optuna.Study) -> list[RDPoint]:
    """All points a study has measured."""
    return [
        RDPoint(*_point(trial), bitrate_kbps=trial.values[0], score=trial.values[1])
        for trial in study.get_trials(deepcopy=False)
        if trial.state == TrialState.COMPLETE and trial.values
    ]


def run_study(
    space: Space,
    rules: Rules,
    evaluate: Callable[[Sequence[Point]], Sequence[Outcome]],
    *,
    most: int,
    top_score: float = 100.0,
) -> tuple[list[RDPoint], dict[Point, float]]:
    """Ask, evaluate and tell until nothing is left to learn.

    `evaluate` takes a batch of points that may run at the same time. Returns the measured points,
    and for those that a fit had predicted before they were encoded, the score it predicted.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = LadderSampler(space, rules, most, top_score)
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
    predicted: dict[Point, float] = {}
    while sampler.waiting(study):
        batch = []
        known = measured(study)
        while sampler.waiting(study):
            batch.append(study.ask(space.distributions()))
        for trial in batch:
            point = _point(trial)
            same = [p for p in known if (p.width, p.height) == point[:2]]
            if len(same) >= 2:
                predicted[point] = fit_curve(same, top_score)(point[2]).score
                trial.set_user_attr("score_predicted", predicted[point])
        for trial, outcome in zip(batch, evaluate([_point(t) for t in batch]), strict=True):
            if outcome.bitrate_kbps is None or outcome.score is None:
                study.tell(trial, state=TrialState.FAIL)
            else:
                study.tell(trial, [outcome.bitrate_kbps, outcome.score])
    return measured(study), predicted
