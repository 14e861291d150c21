"""Where in time a title is sampled."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vqaloop.media.activity import SourceActivity
from vqaloop.media.planes import CLIP_FRAMES
from vqaloop.quality.crop_sampling import (
    ENDS,
    MOST,
    MOST_POSITIONS,
    POSITIONS,
    CropSampling,
    choose_places,
)


@st.composite
def activities(draw: st.DrawFn) -> SourceActivity:
    lengths = draw(st.lists(st.integers(8, 200), min_size=1, max_size=40))
    edges = np.cumsum([0, *lengths])
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return SourceActivity(tuple(edges[:-1].tolist()), rng.uniform(0.5, 2.0, int(edges[-1])))


@settings(max_examples=60)
@given(activities(), st.integers(0, 9), st.sampled_from([1, 4, POSITIONS, 4 * POSITIONS]))
def test_places_cover_scenes_and_ends_and_weigh_the_whole_title(
    activity: SourceActivity, seed: int, positions: int
) -> None:
    found = choose_places(activity, seed, positions)
    assert found == choose_places(activity, seed, positions)
    starts, frames = list(found), activity.frames
    assert starts == sorted(starts) and starts[0] >= 0 and starts[-1] + CLIP_FRAMES <= frames
    assert abs(sum(found.values()) - 1) < 1e-9 and min(found.values()) > 0
    most = round(MOST * positions)
    assert len(found) <= most
    if len(activity.starts) + 2 > most:
        return
    edges = np.array([*activity.starts, frames])
    scenes = np.searchsorted(edges, starts, side="right") - 1
    assert set(scenes) == set(range(len(activity.starts)))
    # both frames of a place are of one scene
    assert (np.array(starts) + CLIP_FRAMES <= edges[scenes + 1]).all()
    # each scene counts by its length
    shares = np.bincount(scenes, list(found.values())) * frames
    assert np.allclose(shares, np.diff(edges))
    if positions >= POSITIONS and frames >= 80:
        assert starts[0] < 2 * ENDS * frames + 2 and starts[-1] >= (1 - 2 * ENDS) * frames - 3


def test_a_late_drop_always_has_a_place() -> None:
    for frames in (90, 250, 3000):
        flat = SourceActivity.flat(frames)
        for seed in range(50):
            places = choose_places(flat, seed)
            assert any(start >= 0.9 * frames for start in places)


def test_the_mean_over_places_is_that_of_the_title() -> None:
    frames = 400
    values = np.linspace(90, 30, frames) + 20 * (np.arange(frames) >= 300)
    rng = np.random.default_rng(3)
    activity = SourceActivity((0, 90, 300), rng.uniform(0.5, 2.0, frames))
    means = [
        sum(share * values[start : start + 2].mean() for start, share in places.items())
        for places in (choose_places(activity, seed) for seed in range(400))
    ]
    assert abs(np.mean(means) - values.mean()) < 0.1
    assert np.std(means) < 1.5


def test_more_scenes_more_places_and_finer_four_times_as_many() -> None:
    def count(scenes: int, sampling: CropSampling) -> int:
        starts = range(0, 40 * scenes, 40)
        return len(sampling.places(SourceActivity.flat(40 * scenes, list(starts))))

    usual = CropSampling()
    assert [count(n, usual) for n in (1, 5, 7, 12, 100)] == [10, 10, 14, 24, 24]
    assert [count(n, usual.finer()) for n in (5, 7, 100)] == [40, 56, 96]


def test_scenes_that_are_given_are_each_sampled_as_a_title() -> None:
    scenes = [(0, 30), (30, 120)]
    sampling = CropSampling(seed=5).scene_by_scene(scenes)
    found = sampling.places(SourceActivity.flat(150))
    alone = CropSampling(seed=5).places(SourceActivity.flat(120))
    assert [start - 30 for start in found if start >= 30] == list(alone)
    assert abs(sum(found.values()) - 1) < 1e-9
    assert abs(sum(share for start, share in found.items() if start < 30) - 0.2) < 1e-9
    crops = sampling.crops(SourceActivity.flat(150), (320, 180))
    assert list(crops) == list(found)


def test_a_title_of_very_many_scenes_has_no_more_places_than_one_of_many() -> None:
    for count in (5, 96, 97, 200, 1000):
        scenes = [(25 * i, 25) for i in range(count)]
        cut = SourceActivity.flat(25 * count, [first for first, _ in scenes])
        # read by its packets, it may have as many scenes as it has, or none
        for activity in (cut, SourceActivity.flat(25 * count)):
            places = CropSampling().scene_by_scene(scenes).places(activity)
            assert 40 <= len(places) <= MOST_POSITIONS
            assert abs(sum(places.values()) - 1) < 1e-9
