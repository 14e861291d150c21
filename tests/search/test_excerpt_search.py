"""The search on an excerpt: fewer encodes, and as good a ladder of the whole title."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.support.titles import CRF, RULES, SIZES, Title, random_title, taught
from vqaloop.ladder.steps import NEAR_HULL, PROBED_A_RUNG
from vqaloop.records import RDPoint
from vqaloop.search.explore import Measurement, explore, rungs_of
from vqaloop.search.space import BESIDE, Space, TrialPoint
from vqaloop.search.surrogates import Apart, CurveFits, TitlePrior, given_probes

SPACE = Space(SIZES, CRF)
NEAR = BESIDE * (CRF.search[1] - CRF.search[0])


class Search:
    """What is made of an excerpt, then of its title, which takes a tenth more of bitrate."""

    def __init__(self, title: Title, belief: TitlePrior, apart: bool) -> None:
        self.batches: list[list[TrialPoint]] = []

        def evaluate(batch: Sequence[TrialPoint]) -> dict[TrialPoint, Measurement]:
            self.batches.append([*batch])
            return {point: title.outcome(point) for point in batch}

        def of_title(batch: Sequence[TrialPoint]) -> dict[TrialPoint, Measurement]:
            made = ((point, title.measure(point)) for point in batch)
            return {point: (1.1 * p.bitrate_kbps, p.score) for point, p in made}

        own = Apart(SPACE, belief) if apart else belief
        few: Any = {"most_a_rung": PROBED_A_RUNG}
        points, *_ = explore(SPACE, RULES, evaluate, surrogate=own, most=40, **few)
        informed = given_probes(belief, points, None)
        rules = replace(RULES, near=NEAR_HULL)
        whole, *_ = explore(SPACE, rules, of_title, surrogate=informed, most=20, **few)
        self.whole = len(whole)
        self.rungs = rungs_of(SPACE, rules, whole, informed)

    @property
    def asked(self) -> list[TrialPoint]:
        return [point for batch in self.batches for point in batch]


def test_no_encode_of_an_excerpt_is_made_near_an_earlier_one() -> None:
    plain, apart = (
        [Search(random_title(seed), TitlePrior(SPACE, taught()), kind) for seed in range(4)]
        for kind in (False, True)
    )
    for search in apart:
        for number, batch in enumerate(search.batches):
            before = [point for earlier in search.batches[:number] for point in earlier]
            for width, _, knob in batch:
                assert all(w != width or abs(k - knob) > NEAR for w, _, k in before)
    # nothing is lost by that
    whole = [sum(search.whole for search in kind) for kind in (plain, apart)]
    rungs = [sum(len(search.rungs) for search in kind) for kind in (plain, apart)]
    assert whole[1] <= 1.1 * whole[0] and rungs[1] >= rungs[0] - 1


@pytest.mark.parametrize("kind", ["fits", "learnt"])
def test_what_is_left_out_lies_near_a_measured_point_of_its_size(kind: str) -> None:
    belief = CurveFits(SPACE) if kind == "fits" else TitlePrior(SPACE, taught())
    title = random_title(1)
    points = [title.measure((*SIZES[0], SPACE.knob_at(part))) for part in (0.2, 0.7)]
    every, kept = belief.dense(points), Apart(SPACE, belief).dense(points)
    assert len(kept.points) == len(kept.deviation)
    left = {p.key: d for p, d in zip(kept.points, kept.deviation, strict=True)}

    def near(p: RDPoint) -> bool:
        return any(p.size == q.size and abs(p.knob - q.knob) <= NEAR for q in points)

    assert {p.key for p in every.points} - left.keys() == {p.key for p in every.points if near(p)}
    for point, deviation in zip(every.points, every.deviation, strict=True):
        assert left.get(point.key, deviation) == deviation
    assert Apart(SPACE, belief).anchors([]) == belief.anchors([])
