"""Where in time a title is sampled."""

from bisect import bisect

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
    found = CropSampling(positions, seed=seed).places(activity)
    assert found == CropSampling(positions, seed=seed).places(activity)
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
            places = CropSampling(seed=seed).places(flat)
            assert any(start >= 0.9 * frames for start in places)


def test_the_mean_over_places_is_that_of_the_title() -> None:
    frames = 400
    values = np.linspace(90, 30, frames) + 20 * (np.arange(frames) >= 300)
    rng = np.random.default_rng(3)
    activity = SourceActivity((0, 90, 300), rng.uniform(0.5, 2.0, frames))
    means = [
        sum(share * values[start : start + 2].mean() for start, share in places.items())
        for places in (CropSampling(seed=seed).places(activity) for seed in range(400))
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


DISTANCES = (1, 5)


@settings(max_examples=60)
@given(activities(), st.integers(0, 9), st.sampled_from([1, 4, POSITIONS, 4 * POSITIONS]))
def test_distances_alternate_and_clips_stay_within_their_scene(
    activity: SourceActivity, seed: int, positions: int
) -> None:
    sampling = CropSampling(positions, seed=seed, distances=DISTANCES)
    places, distances = sampling.places(activity), sampling.distances_at(activity)
    usual = CropSampling(positions, seed=seed).places(activity)
    assert list(places) == list(distances) == sorted(places)
    assert list(sampling.crops(activity, (320, 180))) == list(places)
    assert abs(sum(places.values()) - 1) < 1e-9
    edges = [*activity.starts, activity.frames]
    for i, (start, distance) in enumerate(distances.items()):
        end = edges[bisect(activity.starts, start)]
        if i % 2 == 0:
            assert distance == 1
        elif distance == 5:
            assert start + 5 < end
        else:
            # where the scene had no room: it begins in this stratum, or is short
            assert distance == 1 and start + 5 >= end
    if len(places) == len(usual):
        # a clip is moved back by four frames at most, and only those of the larger distance
        moves = [one - other for one, other in zip(usual, places, strict=True)]
        assert all(0 <= move <= 4 for move in moves) and not any(moves[::2])
    else:
        assert len(places) < len(usual)


def test_turns_of_distances_go_on_from_scene_to_scene() -> None:
    scenes = [(30 * i, 30) for i in range(8)]
    sampling = CropSampling(positions=1, scenes=tuple(scenes), distances=DISTANCES)
    assert list(sampling.distances_at(SourceActivity.flat(240)).values()) == [1, 5] * 4


def test_a_title_shorter_than_the_distance_has_successive_frames() -> None:
    for frames in (1, 2, 5):
        found = CropSampling(distances=DISTANCES).distances_at(SourceActivity.flat(frames))
        assert set(found.values()) == {1}


def test_the_identity_names_distances_other_than_successive_frames() -> None:
    usual, other = CropSampling(), CropSampling(distances=DISTANCES)
    assert other.identity() == {**usual.identity(), "distances": [1, 5]}
    assert other.finer().distances == other.confirming().distances == DISTANCES
    assert other.scene_by_scene([(0, 9)]).distances == DISTANCES
