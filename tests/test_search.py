"""The search on synthetic titles: what it costs, how near it comes, and that it always ends."""

import itertools
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import optuna
import pytest

from tests.titles import CRF, RULES, SIZES, Title, exhaustive, random_space, random_title
from vqaloop.hull import Rules, choose_rungs, front
from vqaloop.records import RDPoint
from vqaloop.search import (
    SUBSTITUTES,
    LadderSampler,
    Outcome,
    Point,
    Space,
    measured,
    plan,
    propose,
    run_study,
)

MOST = 40
FAILED = Outcome(None)


class Run:
    """A finished search, and all that it asked for."""

    def __init__(
        self,
        title: Title,
        space: Space,
        rules: Rules = RULES,
        fails: Callable[[Point], bool] = lambda point: False,
        most: int = MOST,
    ) -> None:
        self.batches: list[list[Point]] = []

        def evaluate(batch: Sequence[Point]) -> list[Outcome]:
            self.batches.append(list(batch))
            return [FAILED if fails(point) else title.outcome(point) for point in batch]

        self.points, self.predicted = run_study(space, rules, evaluate, most=most)
        failed = [point for batch in self.batches for point in batch if fails(point)]
        self.planned = plan(space, rules, self.points, 100.0, failed)

    @property
    def asked(self) -> list[Point]:
        return [point for batch in self.batches for point in batch]

    @property
    def ladder(self) -> list[RDPoint]:
        return [point for point in self.planned if point.measured]


def loss(title: Title, space: Space, ladder: Sequence[RDPoint]) -> float:
    """Mean score lost, at the ladder's rates, to the best of all encodes there are."""
    best = front(exhaustive(title, space))
    rates, scores = np.log2([p.bitrate_kbps for p in best]), [p.score for p in best]
    clean = replace(title, noise=0.0)
    rungs = [clean.measure((p.width, p.height, p.knob)) for p in ladder]
    there = np.interp(np.log2([p.bitrate_kbps for p in rungs]), rates, scores)
    return float(np.mean(there - [p.score for p in rungs]))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("noise", [0.0, 0.25])
def test_ladders_are_near_the_best_there_is(seed: int, noise: float) -> None:
    title, space = random_title(seed, noise), random_space(seed)
    run = Run(title, space)
    assert run.planned == run.ladder, "a planned rung was never measured"
    assert len(run.asked) == len(set(run.asked)) <= MOST
    assert loss(title, space, run.ladder) < 0.7
    ideal = choose_rungs(front(exhaustive(title, space)), RULES)
    assert len(run.ladder) >= len(ideal) - 3
    assert run.ladder[-1].score >= ideal[-1].score - 3
    for low, high in itertools.pairwise(run.ladder):
        assert high.bitrate_kbps >= RULES.min_ratio * low.bitrate_kbps
        assert high.score >= low.score + RULES.min_step


@pytest.mark.parametrize(("noise", "most"), [(0.0, 2.6), (0.25, 3.0)])
def test_encodes_a_rung(noise: float, most: float) -> None:
    runs = [Run(random_title(seed, noise), random_space(seed)) for seed in range(20)]
    assert sum(len(r.asked) for r in runs) / sum(len(r.ladder) for r in runs) <= most


@pytest.mark.parametrize("count", [2, 4, 6])
def test_count_of_rungs(count: int) -> None:
    for seed in range(4):
        title, space = random_title(seed), random_space(seed)
        rules = replace(RULES, count=count)
        run = Run(title, space, rules)
        assert (
            len(run.ladder) == len(choose_rungs(front(exhaustive(title, space)), rules)) == count
        )
        assert loss(title, space, run.ladder) < 1.0


def test_predictions_are_of_points_that_were_encoded() -> None:
    run = Run(random_title(1), random_space(1))
    assert set(run.predicted) <= set(run.asked)
    # every rung beyond the anchors was predicted before it was measured
    assert set(run.predicted) >= set(run.asked) - set(run.batches[0])
    assert all(0 <= score <= 100 for score in run.predicted.values())


def test_all_points_lie_on_the_grid_and_inside_the_search_range() -> None:
    space = random_space(2)
    for width, height, knob in Run(random_title(2), space).asked:
        assert (width, height) in space.sizes
        assert knob in space.grid()


def test_same_seed_same_everything() -> None:
    one, other = (Run(random_title(5, 0.3), random_space(5)) for _ in range(2))
    assert one.batches == other.batches and one.planned == other.planned


@pytest.mark.parametrize("workers", [2, 4])
def test_same_ladder_when_trials_end_out_of_order(workers: int) -> None:
    title, space = random_title(7, 0.25), random_space(7)
    rng, lock = random.Random(workers), threading.Lock()
    ended: list[Point] = []

    def one(point: Point) -> Outcome:
        with lock:
            pause = rng.random() / 200
        time.sleep(pause)
        with lock:
            ended.append(point)
        return title.outcome(point)

    def evaluate(batch: Sequence[Point]) -> list[Outcome]:
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(one, batch))

    points, predicted = run_study(space, RULES, evaluate, most=MOST)
    alone = Run(title, space)
    assert ended != alone.asked and sorted(ended) == sorted(alone.asked)
    assert plan(space, RULES, points, 100.0) == alone.planned
    assert predicted == alone.predicted


def test_proposals_do_not_depend_on_the_order_of_what_is_known() -> None:
    space, title = random_space(3), random_title(3)
    points = Run(title, space).points[:9]
    mixed = points[:]
    random.Random(0).shuffle(mixed)
    assert propose(space, RULES, points, [], MOST, 100.0) == propose(
        space, RULES, mixed, [], MOST, 100.0
    )


def told_out_of_order(title: Title, space: Space, seed: int, workers: int) -> list[RDPoint]:
    """Drive the sampler as parallel workers would: ask whenever one is free, tell in any order."""
    sampler = LadderSampler(space, RULES, MOST, 100.0)
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
    rng = random.Random(seed)
    running: list[optuna.Trial] = []
    while running or sampler.waiting(study):
        while len(running) < workers and sampler.waiting(study):
            running.append(study.ask(space.distributions()))
        trial = running.pop(rng.randrange(len(running)))
        width, height = map(int, trial.params["size"].split("x"))
        found = title.measure((width, height, trial.params["knob"]))
        study.tell(trial, [found.bitrate_kbps, found.score])
    trials = [(t.params["size"], t.params["knob"]) for t in study.trials]
    assert len(trials) == len(set(trials)), "a point was given to two workers"
    return plan(space, RULES, measured(study), 100.0)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_may_ask_and_tell_as_they_please(workers: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    title, space = random_title(11), random_space(11)
    for seed in range(3):
        ladder = told_out_of_order(title, space, seed, workers)
        assert all(point.measured for point in ladder)
        assert loss(title, space, ladder) < 0.7


# --- failures -----------------------------------------------------------------------------------


def test_failed_anchors_get_substitutes() -> None:
    title, space = random_title(4), Space(SIZES[:3], CRF)
    first = Run(title, space).batches[0]
    lost = [point for point in first if point[:2] == SIZES[1]][0]
    run = Run(title, space, fails=lambda point: point == lost)
    assert run.asked.count(lost) == 1
    substitutes = [point for point in run.batches[1] if point[:2] == SIZES[1]]
    assert len(substitutes) == 1
    assert sum(p[:2] == SIZES[1] for p in [(q.width, q.height) for q in run.points]) >= 2
    assert run.planned == run.ladder
    assert loss(title, space, run.ladder) < 0.7


def test_a_size_that_always_fails_is_given_up() -> None:
    title, space = random_title(6), Space(SIZES[:4], CRF)
    run = Run(title, space, fails=lambda point: point[:2] == SIZES[2])
    tried = [point for point in run.asked if point[:2] == SIZES[2]]
    assert len(tried) == 2 + SUBSTITUTES
    assert len(run.ladder) >= 3 and run.planned == run.ladder
    assert all((p.width, p.height) != SIZES[2] for p in run.ladder)


def test_everything_failing_ends() -> None:
    space = Space(SIZES[:3], CRF)
    run = Run(random_title(0), space, fails=lambda point: True)
    assert run.points == [] == run.planned
    assert len(run.asked) <= 3 * (3 + SUBSTITUTES)


def test_a_failed_rung_is_planned_elsewhere() -> None:
    title, space = random_title(9), random_space(9)
    well = Run(title, space)
    anchors = set(well.batches[0])
    rung = next(
        point
        for point in ((p.width, p.height, p.knob) for p in well.ladder)
        if point not in anchors
    )
    # the encoder crashes there and near
    run = Run(
        title,
        space,
        fails=lambda p: p[:2] == rung[:2] and abs(p[2] - rung[2]) < 1 and p not in anchors,
    )
    assert run.planned == run.ladder
    assert len(run.ladder) >= len(well.ladder) - 1
    assert len(run.asked) <= len(well.asked) + 6


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_random_failures_end_and_are_not_tried_again(share: float) -> None:
    for seed in range(6):
        title, space = random_title(seed), random_space(seed)
        run = Run(
            title,
            space,
            fails=lambda p, seed=seed: (
                np.random.default_rng(  # type: ignore[misc]
                    [seed, p[0], round(4 * p[2])]
                ).random()
                < share
            ),
        )
        assert len(run.asked) == len(set(run.asked)) <= MOST
        assert not {(p.width, p.height, p.knob) for p in run.ladder} - set(run.asked)


def test_bound_on_trials_is_kept() -> None:
    run = Run(random_title(8), random_space(8), most=13)
    assert len(run.asked) <= 13


# --- odd titles ---------------------------------------------------------------------------------


def study_of(measure: Callable[[Point], tuple[float, float]], sizes: int = 3) -> list[RDPoint]:
    space = Space(SIZES[:sizes], CRF)
    asked: list[Point] = []

    def evaluate(batch: Sequence[Point]) -> list[Outcome]:
        asked.extend(batch)
        return [Outcome(*measure(point)) for point in batch]

    points, _ = run_study(space, RULES, evaluate, most=MOST)
    assert len(asked) == len(set(asked)) <= MOST
    return plan(space, RULES, points, 100.0)


def test_a_still_black_title_has_one_rung() -> None:
    assert len(study_of(lambda point: (12.0, 100.0))) == 1


def test_a_hopeless_title_has_no_rung() -> None:
    assert study_of(lambda point: (5000.0, 3.0)) == []


def test_pure_noise_ends() -> None:
    rng = np.random.default_rng(0)
    study_of(lambda point: (float(rng.uniform(50, 5000)), float(rng.uniform(0, 100))))


def test_score_that_falls_with_the_rate_ends() -> None:
    study_of(lambda point: (100 * 2 ** ((44 - point[2]) / 6), 30 + point[2]))


def test_one_size_alone() -> None:
    title, space = random_title(2), Space(SIZES[:1], CRF)
    run = Run(title, space)
    assert len(run.ladder) >= 3 and run.planned == run.ladder


def test_a_knob_that_rises_with_quality() -> None:
    rising = replace(CRF, lower_is_better=False)
    title = random_title(3)
    space = Space(SIZES[:3], rising)

    def evaluate(batch: Sequence[Point]) -> list[Outcome]:
        return [title.outcome((w, h, 60 - knob)) for w, h, knob in batch]

    points, _ = run_study(space, RULES, evaluate, most=MOST)
    mirrored = Run(title, Space(SIZES[:3], CRF))
    ladder = plan(space, RULES, points, 100.0)
    assert [(p.width, 60 - p.knob) for p in ladder] == [
        (p.width, p.knob) for p in mirrored.planned
    ]
