"""Rungs for an audience: against brute force, at its modes, and its tables."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.titles import RULES, SIZES, random_title
from vqaloop.errors import InputError
from vqaloop.records import RDPoint
from vqaloop.search.audience import (
    Audience,
    Session,
    audience_of,
    best_rungs,
    delivered,
    read_audience,
)
from vqaloop.search.hull import convex_hull, rising_front
from vqaloop.search.rungs import Rules, choose_rungs


def audience(*sessions: tuple[float, float] | tuple[float, float, int]) -> Audience:
    return Audience("test", tuple(Session(*session) for session in sessions), 0.7)


def front_of(seed: int, step: int = 3) -> list[RDPoint]:
    title = random_title(seed)
    points = [title.measure((*size, float(k))) for size in SIZES for k in range(16, 45, step)]
    return rising_front(points)


def may_follow(low: RDPoint, high: RDPoint) -> bool:
    return low.bitrate_kbps * 1.4 <= high.bitrate_kbps and low.score + 4 <= high.score


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("screens", [False, True])
def test_no_other_rungs_deliver_more(seed: int, screens: bool) -> None:
    points = front_of(seed, 5)[:14]
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(9))
    heights = [int(rng.choice([240, 480, 720, 1080])) if screens else None for _ in shares]
    rates = np.exp(rng.uniform(3, 10, 9))
    crowd = Audience("test", tuple(map(Session, rates, shares, heights)), 0.7)
    for count in (1, 2, 3, 4):
        chosen = best_rungs(points, crowd, count, may_follow)
        every = [
            delivered(crowd, some).score
            for some in itertools.combinations(points, count)
            if all(map(may_follow, some, some[1:]))
        ]
        if every:
            assert len(chosen) == count and all(map(may_follow, chosen, chosen[1:]))
            assert delivered(crowd, chosen).score == pytest.approx(max(every))


def test_two_modes_have_a_rung_each() -> None:
    best = [p for p in convex_hull(front_of(3, 1)) if 35 <= p.score <= 94]
    modes = best[len(best) // 3], best[-2]
    crowd = audience(*((mode.bitrate_kbps / 0.7 * 1.01, 0.5) for mode in modes))
    rules = replace(RULES, count=2)
    even = choose_rungs(best, rules)
    found = choose_rungs(best, replace(rules, audience=crowd))
    assert tuple(found) == modes
    assert delivered(crowd, found).score > delivered(crowd, even).score + 1
    # of points that are predicted, and of which one is measured, that one stands in
    guesses = [replace(point, measured=point == modes[0]) for point in best]
    near = choose_rungs(guesses, replace(rules, audience=crowd), [modes[0]])
    assert near[0] == modes[0] and near[1].bitrate_kbps <= modes[1].bitrate_kbps
    # another audience, other rungs
    slow = audience(*((mode.bitrate_kbps / 0.7 / 1.5, 0.5) for mode in modes))
    moved = choose_rungs(best, replace(rules, audience=slow))
    for rung, mode in zip(moved, modes, strict=True):
        assert rung.bitrate_kbps <= mode.bitrate_kbps / 1.5


def test_an_audience_keeps_the_other_rules() -> None:
    best = convex_hull(front_of(5, 1))
    rules = Rules(min_step=5, min_ratio=1.7, floor=40, ceiling=90, min_kbps=100, count=4)
    crowd = read_audience("default", 0.7)
    rungs = choose_rungs(best, replace(rules, audience=crowd))
    assert len(rungs) == 4
    for a, b in itertools.pairwise(rungs):
        assert a.bitrate_kbps * 1.7 <= b.bitrate_kbps and a.score + 5 <= b.score
        assert a.width <= b.width
    assert rungs[0].score >= 40 and rungs[0].bitrate_kbps >= 100
    # as many as without it where none is asked for
    auto = replace(rules, count=None)
    assert len(choose_rungs(best, replace(auto, audience=crowd))) == len(choose_rungs(best, auto))


def test_what_a_session_takes() -> None:
    rungs = [RDPoint(320, 180, 30, 100, 40), RDPoint(640, 360, 30, 400, 80)]
    assert delivered(audience((1000, 1.0)), rungs).score == 80
    # 70 % of 500 is less than the upper one takes
    assert delivered(audience((500, 1.0)), rungs).score == 40
    # its share of 140 is too little for the lowest
    assert delivered(audience((140, 1.0)), rungs).score == 0
    none = delivered(audience((140, 0.25), (1000, 0.75)), rungs)
    assert (none.score, none.kbps, none.unserved) == (60, 300, 0.25)
    # a screen takes nothing taller, but the lowest
    assert delivered(audience((1000, 1.0, 240)), rungs).score == 40
    assert delivered(audience((1000, 1.0, 120)), rungs).score == 40


def test_the_default_has_the_shares_that_were_published() -> None:
    crowd = read_audience("default", 0.7)
    assert sum(s.share for s in crowd.sessions) == pytest.approx(1)
    for rate, part in ((10_000, 0.45), (15_000, 0.28), (25_000, 0.12)):
        found = sum(s.share for s in crowd.sessions if s.bandwidth_kbps >= rate)
        assert found == pytest.approx(part, abs=0.02)


def test_tables(tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    table.write_text("Bandwidth_kbps,sessions,height\n1000,30,480\n9000,10,\n")
    crowd = read_audience(table, 0.8)
    assert crowd.sessions == (Session(1000, 0.75, 480), Session(9000, 0.25, None))
    assert audience_of(crowd.to_json()) == crowd and crowd.name == "mine.csv"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kbps\n1\n", "has no share"),
        ("kbps,share\nfast,1\n", "line 2: bandwidth in kb/s 'fast' is not a number from 1"),
        ("kbps,share\n100,-1\n", "line 2: share '-1' is not a number from 0"),
        ("kbps,share,height\n100,1,tall\n", "line 2: height 'tall' is not a whole number"),
        ("kbps,share\n100,0\n", "has no sessions"),
        ("kbps,share\n" + "100,1\n" * 2001, "has 2001 rows; put sessions of like bandwidth"),
    ],
)
def test_other_tables_are_refused(tmp_path: Path, text: str, says: str) -> None:
    table = tmp_path / "mine.csv"
    table.write_text(text)
    with pytest.raises(InputError, match=says):
        read_audience(table, 0.7)
    with pytest.raises(InputError, match="above 0 and up to 1, not 2"):
        read_audience("default", 2)
