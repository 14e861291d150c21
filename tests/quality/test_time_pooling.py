"""Pools over time on known series: seconds, harmonic mean, percentiles, worst scene."""

import statistics
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.support.media import make_clip
from vqaloop import InputError, Scorer
from vqaloop.quality.time_pooling import POOLS, harmonic_mean, percentile, pooled, seconds
from vqaloop.records import Score

FPS = Fraction(10)


def of_frames(*values: float) -> Score:
    return Score(statistics.fmean(values), "vmaf", "full-reference", clips=values)


def of_places(*places: tuple[int, float, float]) -> Score:
    """(frame, score, share) each."""
    value = sum(score * share for _, score, share in places)
    moments = tuple((frame, score) for frame, score, _ in places)
    shares = tuple(share for _, _, share in places)
    return Score(value, "internvqa-mini", "anchored", moments=moments, shares=shares)


def value(score: Score, pool: str, starts: tuple[int, ...] = (0,), fps: Fraction = FPS) -> float:
    return pooled(score, pool, fps, starts).value


def test_the_mean_is_the_metric_s_own() -> None:
    score = of_frames(1, 2, 6)
    assert pooled(score, "mean", FPS, (0,)) is score


def test_another_pool_keeps_the_mean_beside() -> None:
    score = of_frames(*[90.0] * 10, *[30.0] * 10)
    found = pooled(score, "harmonic", FPS, (0,))
    assert (found.pool, found.mean) == ("harmonic", 60.0) and found.value < 60


@pytest.mark.parametrize(
    ("frames", "fps", "sizes"),
    [
        (25, FPS, [10, 10, 5]),
        (24, FPS, [10, 14]),
        (4, FPS, [4]),
        (10, Fraction(10000, 1001), [10]),
        (60, Fraction(30000, 1001), [30, 30]),
    ],
)
def test_seconds_hold_whole_frames(frames: int, fps: Fraction, sizes: list[int]) -> None:
    values, weights = seconds(np.arange(frames, dtype=float), fps)
    assert weights.tolist() == sizes
    assert float(values @ weights) == pytest.approx(sum(range(frames)))


def test_frame_kinds_do_not_make_a_percentile() -> None:
    """Every tenth frame is bad, as a kind of frames may be: no second is worse than another."""
    frames = [40.0 if n % 10 == 0 else 90.0 for n in range(200)]
    assert np.percentile(frames, 5) == 40
    assert value(of_frames(*frames), "p5") == pytest.approx(85)


def test_percentiles_are_those_of_seconds() -> None:
    own = np.random.default_rng(1).permutation(100).astype(float)
    frames = np.repeat(own, 10).tolist()
    for pool, percent in (("p5", 5), ("p1", 1)):
        expected = np.percentile(own, percent, method="hazen")
        assert value(of_frames(*frames), pool) == pytest.approx(expected)


def test_percentiles_weigh_places_by_their_share() -> None:
    # a low place that stands for 1 % of the title is no 5th percentile, for 10 % it is
    rare = of_places((0, 20.0, 0.01), (10, 80.0, 0.49), (30, 90.0, 0.50))
    often = of_places((0, 20.0, 0.10), (10, 80.0, 0.40), (30, 90.0, 0.50))
    assert value(rare, "p5") > 25 and value(often, "p5") == 20
    # a place of share 2 is two places of share 1
    twice = percentile(np.array([1.0, 3.0, 3.0]), np.ones(3), 20)
    assert twice == pytest.approx(np.percentile([1, 3, 3], 20, method="hazen"))


def test_the_harmonic_mean_is_libvmaf_s_over_seconds() -> None:
    own = [10.0, 60.0, 95.0]
    expected = statistics.harmonic_mean([x + 1 for x in own]) - 1
    assert harmonic_mean(np.array(own), np.ones(3)) == pytest.approx(expected)
    frames = np.repeat(own, 10).tolist()
    assert value(of_frames(*frames), "harmonic") == pytest.approx(expected)
    assert value(of_places((0, 10.0, 0.5), (9, 60.0, 0.5)), "harmonic") == pytest.approx(
        statistics.harmonic_mean([11.0, 61.0]) - 1
    )


def test_the_worst_scene_is_a_mean() -> None:
    frames = [90.0] * 12 + [70.0, 50.0] * 4 + [80.0] * 20
    assert value(of_frames(*frames), "min-scene", (0, 12, 20)) == 60
    assert value(of_frames(*frames), "min-scene") == pytest.approx(statistics.fmean(frames))
    places = of_places((0, 90.0, 0.2), (12, 70.0, 0.1), (15, 40.0, 0.2), (30, 80.0, 0.5))
    # the scene that begins at 20 was not looked at
    assert value(places, "min-scene", (0, 12, 20, 28)) == pytest.approx((7 + 8) / 0.3)


@pytest.mark.parametrize("pool", POOLS)
def test_a_steady_title_scores_the_same_by_every_pool(pool: str) -> None:
    assert value(of_frames(*[77.0] * 50), pool, (0, 20)) == pytest.approx(77)
    steady = of_places(*((n, 77.0, 0.25) for n in range(0, 40, 10)))
    assert value(steady, pool, (0, 20)) == pytest.approx(77)


def test_a_scorer_pools(tmp_path: Path) -> None:
    burst = "noise=alls=60:allf=t:enable='between(n,10,19)'"
    clip = make_clip(tmp_path / "a.y4m", size="64x64", frames=30, rate="10")
    worse = make_clip(tmp_path / "b.y4m", size="64x64", frames=30, rate="10", vf=burst)
    mean = Scorer("psnr").score(worse, clip)
    low = Scorer("psnr", pool="p1").score(worse, clip)
    assert low.mean == mean.value and low.clips == mean.clips
    assert low.value == pytest.approx(statistics.fmean(mean.clips[10:20]))
    with pytest.raises(InputError, match="unknown pool 'p2'; choose one of mean, harm"):
        Scorer(pool="p2")
