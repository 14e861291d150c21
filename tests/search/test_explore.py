"""The search on synthetic titles: what it costs, how near it comes, and that it always ends."""

import functools
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from tests.support.titles import (
    CRF,
    RULES,
    SIZES,
    Title,
    exhaustive,
    random_space,
    random_title,
    taught,
)
from vqaloop.records import RDPoint
from vqaloop.search.explore import GIVE_UP, Measurement, explore, plan, propose, rungs_of
from vqaloop.search.hull import convex_hull, front
from vqaloop.search.rungs import Rules, choose_rungs
from vqaloop.search.space import Space, TrialPoint, params_of, point_of
from vqaloop.search.surrogates import SUBSTITUTES, CurveFits, Surrogate, TitlePrior

MOST = 40
BELIEFS = ("fits", "learnt")
SEEDS = range(6)


def belief_of(kind: str, space: Space) -> Surrogate:
    return CurveFits(space) if kind == "fits" else TitlePrior(space, taught())


def key(point: RDPoint) -> TrialPoint:
    return point.width, point.height, point.knob


class Run:
    """A finished search, and all that it asked for."""

    def __init__(
        self,
        title: Title,
        space: Space,
        kind: str = "fits",
        rules: Rules = RULES,
        fails: Callable[[TrialPoint], bool] = lambda point: False,
        most: int = MOST,
        measure: Callable[[TrialPoint], Measurement] | None = None,
        done: Callable[[int], int] = lambda asked: asked,
    ) -> None:
        self.space, self.title = space, title
        self.batches: list[list[TrialPoint]] = []
        outcome = measure or title.outcome

        def evaluate(batch: Sequence[TrialPoint]) -> dict[TrialPoint, Measurement]:
            batch = batch[: done(len(batch))]
            self.batches.append(list(batch))
            return {point: None if fails(point) else outcome(point) for point in batch}

        belief = belief_of(kind, space)
        self.points, self.failed, self.predicted = explore(
            space, rules, evaluate, surrogate=belief, most=most
        )
        assert sorted(self.asked) == sorted([*map(key, self.points), *self.failed])
        assert len(self.asked) == len(set(self.asked)), "a point was asked for twice"
        # anchors, without which fits say nothing, are made in any case
        assert len(self.asked) <= max(most, len(self.batches[0]) if kind == "fits" else 0)
        self.ladder = rungs_of(space, rules, self.points, belief, self.failed)
        assert {key(p) for p in self.ladder} <= {key(p) for p in self.points}
        for low, high in itertools.pairwise(self.ladder):
            assert high.bitrate_kbps >= rules.min_ratio * low.bitrate_kbps
            assert high.score >= low.score + rules.min_step
            assert high.width >= low.width

    @property
    def asked(self) -> list[TrialPoint]:
        return [point for batch in self.batches for point in batch]

    @property
    def loss(self) -> float:
        """Mean score lost, at the ladder's rates, to the best of all encodes there are."""
        best = front(exhaustive(self.title, self.space))
        rates, scores = np.log2([p.bitrate_kbps for p in best]), [p.score for p in best]
        clean = replace(self.title, noise=0.0)
        rungs = [clean.measure(key(p)) for p in self.ladder]
        there = np.interp(np.log2([p.bitrate_kbps for p in rungs]), rates, scores)
        return float(np.mean(there - [p.score for p in rungs]))


@functools.cache
def searched(seed: int, noise: float, kind: str) -> Run:
    return Run(random_title(seed, noise), random_space(seed), kind)


@functools.cache
def ideal(seed: int) -> list[RDPoint]:
    """The ladder of one who has made every encode."""
    hull = convex_hull(exhaustive(random_title(seed), random_space(seed)))
    return choose_rungs(hull, RULES)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("noise", [0.0, 0.25])
@pytest.mark.parametrize("kind", BELIEFS)
def test_ladders_are_near_the_best_there_is(seed: int, noise: float, kind: str) -> None:
    run = searched(seed, noise, kind)
    assert run.loss < 0.4
    assert len(run.ladder) >= len(ideal(seed)) - 3
    assert run.ladder[-1].score >= ideal(seed)[-1].score - 3


@pytest.mark.parametrize(
    ("kind", "noise", "most"),
    [("fits", 0.0, 2.6), ("fits", 0.25, 2.8), ("learnt", 0.0, 2.0), ("learnt", 0.25, 2.5)],
)
def test_encodes_a_rung(kind: str, noise: float, most: float) -> None:
    runs = [searched(seed, noise, kind) for seed in SEEDS]
    assert sum(len(r.asked) for r in runs) / sum(len(r.ladder) for r in runs) <= most


@pytest.mark.parametrize("noise", [0.0, 0.25])
def test_other_titles_spare_encodes_and_cost_nothing(noise: float) -> None:
    alone, told = ([searched(seed, noise, kind) for seed in SEEDS] for kind in ("fits", "learnt"))
    assert sum(len(r.asked) for r in told) < sum(len(r.asked) for r in alone)
    assert np.mean([r.loss for r in told]) <= np.mean([r.loss for r in alone]) + 0.02


@pytest.mark.parametrize("kind", BELIEFS)
@pytest.mark.parametrize("count", [2, 5])
def test_count_of_rungs(count: int, kind: str) -> None:
    for seed in range(2):
        run = Run(random_title(seed), random_space(seed), kind, replace(RULES, count=count))
        assert len(run.ladder) == count
        assert run.loss < 1.0


@pytest.mark.parametrize("kind", BELIEFS)
def test_every_rung_was_predicted_and_only_what_was_encoded_is(kind: str) -> None:
    run = searched(1, 0.0, kind)
    assert set(run.predicted) <= set(run.asked)
    # all but the anchors of one who knew nothing
    anchors = run.batches[0] if kind == "fits" else []
    assert set(run.predicted) >= set(run.asked) - set(anchors)
    assert all(0 <= score <= 100 for score in run.predicted.values())


@pytest.mark.parametrize("kind", BELIEFS)
def test_all_points_lie_on_the_grid_and_inside_the_search_range(kind: str) -> None:
    run = searched(2, 0.0, kind)
    for width, height, knob in run.asked:
        assert (width, height) in run.space.sizes
        assert knob in run.space.grid()
        assert point_of(params_of((width, height, knob))) == (width, height, knob)


@pytest.mark.parametrize("kind", BELIEFS)
def test_same_trials_same_everything(kind: str) -> None:
    one, other = searched(5, 0.25, kind), Run(random_title(5, 0.25), random_space(5), kind)
    assert one.batches == other.batches and one.ladder == other.ladder


@pytest.mark.parametrize("kind", BELIEFS)
def test_proposals_do_not_depend_on_the_order_of_what_is_known(kind: str) -> None:
    run = searched(3, 0.25, kind)
    belief = belief_of(kind, run.space)
    for count in (4, 8, len(run.points)):
        points = run.points[:count]
        mixed = points[:]
        random.Random(count).shuffle(mixed)
        asked, again = (
            propose(run.space, RULES, known, [], belief, MOST) for known in (points, mixed)
        )
        assert asked == again


def test_proposals_follow_what_was_measured_and_not_who_is_asked() -> None:
    """All that a search has asked for, step by step, from the finished trials alone."""
    run = searched(4, 0.0, "learnt")
    belief, known = belief_of("learnt", run.space), 0
    for batch in run.batches:
        assert propose(run.space, RULES, run.points[:known], [], belief, MOST) == batch
        known += len(batch)
    assert propose(run.space, RULES, run.points, [], belief, MOST) == []


# --- rules --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BELIEFS)
def test_scores_stay_between_the_bounds_asked_for(kind: str) -> None:
    rules = replace(RULES, floor=50.0, ceiling=80.0)
    run = Run(random_title(3), random_space(3), kind, rules)
    scores = [p.score for p in run.ladder]
    assert len(scores) >= 3
    assert min(scores) >= 50
    # the top is the first to reach the ceiling, and what is a ratio above it would be wasted
    assert 80 - RULES.min_step / 2 <= max(scores) <= 86


@pytest.mark.parametrize("kind", BELIEFS)
def test_bitrates_stay_between_the_bounds_asked_for(kind: str) -> None:
    free = searched(3, 0.0, kind).ladder
    rules = replace(
        RULES, min_kbps=free[0].bitrate_kbps * 1.5, max_kbps=free[-1].bitrate_kbps / 1.5
    )
    run = Run(random_title(3), random_space(3), kind, rules)
    assert len(run.ladder) >= 2
    assert all(rules.min_kbps <= p.bitrate_kbps <= rules.max_kbps for p in run.ladder)


@pytest.mark.parametrize("kind", BELIEFS)
def test_required_sizes_have_a_rung(kind: str) -> None:
    for seed in (0, 6):
        free, space = searched(seed, 0.0, kind), random_space(seed)
        absent = {*space.sizes} - {(p.width, p.height) for p in free.ladder}
        wanted = max(absent) if absent else space.sizes[1]
        run = Run(random_title(seed), space, kind, replace(RULES, required=(wanted,)))
        assert wanted in {(p.width, p.height) for p in run.ladder}
        assert len(run.ladder) >= len(free.ladder) - 1


@pytest.mark.parametrize("kind", BELIEFS)
def test_bound_on_trials_is_kept(kind: str) -> None:
    for most in (3, 7):
        Run(random_title(8), random_space(8), kind, most=most)


# --- less than was asked for --------------------------------------------------------------------


@pytest.mark.parametrize("kind", BELIEFS)
def test_only_the_first_of_a_batch_is_done(kind: str) -> None:
    """As with a budget that is running out: one at a time ends as well, and as near."""
    run = Run(random_title(2), random_space(2), kind, done=lambda asked: 1)
    assert {len(batch) for batch in run.batches} == {1}
    assert run.loss < 0.4 and len(run.ladder) >= len(ideal(2)) - 3


@pytest.mark.parametrize("kind", BELIEFS)
def test_a_search_that_is_cut_off_has_the_best_of_what_there_is(kind: str) -> None:
    left = 5

    def done(asked: int) -> int:
        nonlocal left
        asked = min(asked, left)
        left -= asked
        return asked

    title, space = random_title(2), random_space(2)
    run = Run(title, space, kind, done=done)
    assert len(run.points) == 5 and run.batches[-1] == []
    # far from all rungs, but what is there is worth having and keeps the rules
    assert len(run.ladder) >= 2
    assert {p.score for p in run.ladder} <= {p.score for p in front(run.points)}
    nothing = Run(title, space, kind, done=lambda asked: 0)
    assert (nothing.points, nothing.failed, nothing.ladder) == ([], [], [])


# --- failures -----------------------------------------------------------------------------------


def test_failed_anchors_get_substitutes() -> None:
    title, space = random_title(4), Space(SIZES[:3], CRF)
    first = searched(4, 0.0, "fits").batches[0]
    lost = next(point for point in first if point[:2] == SIZES[1])
    run = Run(title, space, fails=lambda point: point == lost)
    assert run.failed == [lost]
    substitutes = [point for point in run.batches[1] if point[:2] == SIZES[1]]
    assert len(substitutes) == 1
    assert sum((p.width, p.height) == SIZES[1] for p in run.points) >= 2
    assert run.loss < 0.7


@pytest.mark.parametrize("kind", BELIEFS)
def test_a_size_that_always_fails_is_given_up(kind: str) -> None:
    title, space = random_title(6), Space(SIZES[:4], CRF)
    hopeless = SIZES[2]
    run = Run(title, space, kind, fails=lambda point: point[:2] == hopeless)
    tried = [point for point in run.asked if point[:2] == hopeless]
    # those that were proposed together may fail together
    most = 2 + SUBSTITUTES if kind == "fits" else GIVE_UP + 2
    assert 1 <= len(tried) <= most
    assert len(run.ladder) >= 3
    assert all((p.width, p.height) != hopeless for p in run.ladder)


@pytest.mark.parametrize("kind", BELIEFS)
def test_everything_failing_ends(kind: str) -> None:
    space = Space(SIZES[:3], CRF)
    run = Run(random_title(0), space, kind, fails=lambda point: True)
    assert run.points == run.ladder == []
    assert len(run.asked) <= len(space.sizes) * (GIVE_UP + 2)


@pytest.mark.parametrize("kind", BELIEFS)
def test_a_failed_rung_is_planned_elsewhere(kind: str) -> None:
    title, space = random_title(1), random_space(1)
    well = searched(1, 0.0, kind)
    anchors = set(well.batches[0]) if kind == "fits" else set()
    rung = next(point for point in map(key, well.ladder[1:]) if point not in anchors)
    # the encoder crashes there and near
    run = Run(
        title,
        space,
        kind,
        fails=lambda p: p[:2] == rung[:2] and abs(p[2] - rung[2]) < 1 and p not in anchors,
    )
    assert len(run.ladder) >= len(well.ladder) - 1
    assert len(run.asked) <= len(well.asked) + 6
    assert run.loss < 1.0


@pytest.mark.parametrize("kind", BELIEFS)
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_random_failures_end(share: float, kind: str) -> None:
    for seed in range(3):

        def fails(point: TrialPoint, seed: int = seed) -> bool:
            rng = np.random.default_rng([seed, point[0], round(4 * point[2])])
            return bool(rng.random() < share)

        run = Run(random_title(seed), random_space(seed), kind, fails=fails)
        assert run.failed or len(run.asked) < 4


# --- odd titles ---------------------------------------------------------------------------------


def odd(kind: str, measure: Callable[[TrialPoint], Measurement], sizes: int = 3) -> Run:
    return Run(random_title(0), Space(SIZES[:sizes], CRF), kind, measure=measure)


@pytest.mark.parametrize("kind", BELIEFS)
def test_a_still_black_title_has_one_rung(kind: str) -> None:
    run = odd(kind, lambda point: (12.0, 100.0))
    assert len(run.ladder) == 1
    assert len(run.points) >= 2, "one encode is not enough to say that there is no ladder"
    assert len(run.asked) <= 20


@pytest.mark.parametrize("kind", BELIEFS)
def test_a_hopeless_title_has_no_rung(kind: str) -> None:
    run = odd(kind, lambda point: (5000.0, 3.0))
    assert run.ladder == []


@pytest.mark.parametrize("kind", BELIEFS)
def test_pure_noise_ends(kind: str) -> None:
    rng = np.random.default_rng(0)
    odd(kind, lambda point: (float(rng.uniform(50, 5000)), float(rng.uniform(0, 100))))


@pytest.mark.parametrize("kind", BELIEFS)
def test_score_that_falls_with_the_rate_ends(kind: str) -> None:
    odd(kind, lambda point: (100 * 2 ** ((44 - point[2]) / 6), 30 + point[2]))


@pytest.mark.parametrize("kind", BELIEFS)
def test_one_size_alone(kind: str) -> None:
    run = Run(random_title(2), Space(SIZES[:1], CRF), kind)
    assert len(run.ladder) >= 3
    assert run.loss < 0.4


@pytest.mark.parametrize("kind", BELIEFS)
def test_a_knob_that_rises_with_quality(kind: str) -> None:
    title = random_title(3)
    rising = Space(SIZES[:3], replace(CRF, lower_is_better=False))
    run = Run(title, rising, kind, measure=lambda p: title.outcome((p[0], p[1], 60 - p[2])))
    mirrored = Run(title, Space(SIZES[:3], CRF), kind)
    assert [(w, h, 60 - knob) for w, h, knob in run.asked] == mirrored.asked
    assert [(p.width, 60 - p.knob) for p in run.ladder] == [
        (p.width, p.knob) for p in mirrored.ladder
    ]


@pytest.mark.parametrize("kind", BELIEFS)
def test_an_answer_of_no_rests_on_encodes(kind: str) -> None:
    """Bounds that no rung keeps, as is believed before any encode: the ends of what there is."""
    rules = replace(RULES, max_kbps=0.1)
    run = Run(random_title(1), Space(SIZES[:3], CRF), kind, rules)
    assert run.ladder == []
    worst, best = (*SIZES[2], CRF.search[1]), (*SIZES[0], CRF.search[0])
    assert {worst, best} <= set(run.asked)
    assert len(run.asked) <= 8


@pytest.mark.parametrize("kind", BELIEFS)
def test_a_bend_at_low_rates_leaves_a_ladder(kind: str) -> None:
    """Scores that shoot up late: the hull leads past all points, and rungs lie below it."""

    def measure(point: TrialPoint) -> Measurement:
        width, height, knob = point
        kbps = width * height / 400 * 2 ** ((30 - knob) / 10)
        return kbps, min(99.0, 32 + (kbps / 2700) ** 2)

    run = Run(random_title(0), Space(SIZES[:1], CRF), kind, measure=measure)
    assert len(run.ladder) >= 2


def test_a_plan_of_nothing_is_empty() -> None:
    space = Space(SIZES[:2], CRF)
    fits = CurveFits(space)
    assert plan(RULES, [], fits.dense([])) == []
    assert rungs_of(space, RULES, [], fits) == []
