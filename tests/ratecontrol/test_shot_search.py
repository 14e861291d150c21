"""The search for per-shot ladders, on synthetic scenes: bits saved, floors kept, cost."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from tests.support.titles import CRF, RULES, SIZES, random_title, taught
from vqaloop.media.scene_cuts import Scene
from vqaloop.ratecontrol.scene_trials import SceneTrials
from vqaloop.ratecontrol.shot_search import ShotRung, ShotSearch, ShotTitle
from vqaloop.records import Encode, Rendition, Source, Trial

LENGTHS = (60, 110, 40, 90)
SCENES = [Scene(sum(LENGTHS[:at]), sum(LENGTHS[: at + 1])) for at in range(len(LENGTHS))]
FPS = 25


class Synthetic:
    """Scenes that are titles of their own, in place of encodes."""

    def __init__(self, seed: int, fails: Callable[[Rendition], bool] = lambda r: False) -> None:
        self.seed, self.fails, self.frames = seed, fails, 0
        self.asked: list[tuple[Scene, int, float]] = []

    def measure(self, scene: Scene, width: int, height: int, knob: float) -> tuple[float, float]:
        found = random_title(self.seed + scene.start_frame).measure((width, height, knob))
        return found.bitrate_kbps, found.score

    def attempt(self, scene: Scene, rendition: Rendition) -> Trial:
        r = rendition
        self.frames += scene.frames
        self.asked.append((scene, r.width, r.knob))
        if self.fails(r):
            return Trial(r, error="it failed")
        kbps, score = self.measure(scene, r.width, r.height, r.knob)
        return Trial(r, kbps, score, encode=cast(Encode, scene))

    def bits(self, trial: Trial) -> float:
        scene = cast(Scene, trial.encode)
        return (trial.bitrate_kbps or 0.0) * 1000 * scene.frames / FPS

    def drop(self, scenes: Sequence[Scene]) -> None:
        pass


def search_of(
    work: Synthetic, pool: str = "mean", floor: float | None = None, backwards: bool = False
) -> ShotSearch:
    def made(each: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        if backwards:
            return [each(item) for item in items[::-1]][::-1]
        return [each(item) for item in items]

    shop = SimpleNamespace(
        metric=SimpleNamespace(step=4.0, top=100.0),
        pool=pool,
        spec=SimpleNamespace(knob=CRF),
        map=made,
    )
    source = Source(Path("x"), "", *SIZES[0], Fraction(FPS), sum(LENGTHS), "yuv420p")
    title = ShotTitle(
        cast(Any, shop),
        source,
        SCENES,
        SIZES[:3],
        lambda key: Rendition(key[0], key[1], "libx264", key[2], "medium"),
        lambda event: None,
        floor,
    )
    return ShotSearch(title, RULES, taught(), cast(SceneTrials, work))


def saved(work: Synthetic, rung: ShotRung, search: ShotSearch) -> float:
    """Percent less than one knob for all scenes takes at the same size and score."""
    curve = []
    for knob in np.arange(10, 48, 0.5):
        found = [work.measure(s, *rung.point.size, float(knob)) for s in SCENES]
        rates, scores = np.array(found).T
        curve.append((search.title.pooled(scores), float(np.average(rates, weights=LENGTHS))))
    scores, rates = np.array(sorted(curve)).T
    rate = float(np.exp(np.interp(rung.point.score, scores, np.log(rates))))
    return 100 * (1 - rung.point.bitrate_kbps / rate)


@pytest.mark.parametrize(("pool", "seeds"), [("mean", (0, 2000)), ("harmonic", (0,))])
def test_rungs_take_less_than_one_knob_for_all_scenes_at_little_cost(
    pool: str, seeds: Sequence[int]
) -> None:
    gains: list[float] = []
    for seed in seeds:
        work = Synthetic(seed)
        search = search_of(work, pool, floor=50.0)
        chosen = search.chosen(search.run())
        assert len(chosen) >= 3
        gains += [saved(work, rung, search) for rung in chosen]
        # whole titles a rung, and nothing encoded twice
        assert work.frames / sum(LENGTHS) / len(chosen) <= 2.5
        assert len(set(work.asked)) == len(work.asked) == len(search.trials)
        for rung in chosen:
            assert abs(rung.point.score - rung.planned) <= RULES.min_step
            scores = np.array([rung.choices[s].score for s in SCENES], float)
            assert rung.point.score == pytest.approx(search.title.pooled(scores))
        for low, high in zip(chosen, chosen[1:], strict=False):
            assert high.point.bitrate_kbps >= 1.4 * low.point.bitrate_kbps
            assert high.point.score >= low.point.score + RULES.min_step
    assert np.mean(gains) > 5 and min(gains) > -2


def test_no_scene_is_left_below_the_floor() -> None:
    floor = 8.0
    made = search_of(Synthetic(0), floor=floor).run()
    gaps = {
        (rung.point, s): rung.point.score - (rung.choices[s].score or 0.0)
        for rung in made
        for s in SCENES
    }
    starved = {(rung.point, s) for rung in made for s in rung.starved}
    # what a size cannot show better is named; all else keeps it
    assert starved == {key for key, gap in gaps.items() if gap > floor}
    assert len(starved) < 0.2 * len(gaps)


def test_with_a_percentile_every_scene_is_brought_to_the_score() -> None:
    search = search_of(Synthetic(1000), "p5")
    for rung in search.chosen(search.run()):
        scores = [rung.choices[s].score or 0.0 for s in SCENES]
        assert max(scores) - min(scores) <= 2 * RULES.min_step
        assert rung.point.score == min(scores)


def test_a_size_that_fails_has_no_rung() -> None:
    search = search_of(Synthetic(0, lambda r: r.width == SIZES[1][0]))
    chosen = search.chosen(search.run())
    assert len(chosen) >= 2 and {r.point.width for r in chosen} <= {SIZES[0][0], SIZES[2][0]}
    assert search.failures() == ["it failed"]


def test_the_order_in_which_encodes_end_changes_nothing() -> None:
    one, other = (
        search_of(Synthetic(3000), backwards=backwards).run() for backwards in (False, True)
    )
    assert [r.point for r in one] == [r.point for r in other]
