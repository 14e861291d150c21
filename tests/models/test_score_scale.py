"""The map from a student's answers to VMAF points."""

import json

import numpy as np
import pytest

from vqaloop.errors import InputError
from vqaloop.models.score_scale import MOST_KNOTS, ScoreScale


def fitted(count: int = 400, noise: float = 3.0) -> tuple[ScoreScale, np.ndarray]:
    """A map of 20 titles whose VMAF is a curve of the answers with noise; and the answers."""
    rng = np.random.default_rng(1)
    x = rng.uniform(20, 90, count)
    vmaf = np.clip(curve(x) + rng.normal(0, noise, count), 0, 100)
    titles = [f"title-{i % 20}" for i in range(count)]
    return ScoreScale.fit(x, vmaf, titles, "MOS", "anchored", "VMAF"), x


def curve(x: np.ndarray) -> np.ndarray:
    return 100 / (1 + np.exp(-(x - 50) / 12))


def test_map_follows_the_curve_it_was_learnt_from() -> None:
    scale, x = fitted()
    found = np.array([scale.points(v) for v in sorted(x)])
    assert np.abs(found - curve(np.sort(x))).mean() < 1.5
    assert 2.5 < scale.rmse < 4
    assert scale.encodes == 400 and scale.titles == 20 and len(scale.to_vmaf) <= MOST_KNOTS
    assert (np.diff(np.array(scale.to_vmaf), axis=0) > 0).all()
    assert (np.diff(found) > 0).all()


def test_points_beyond_the_knots_go_on_and_stay_within_0_and_100() -> None:
    scale = ScoreScale(
        "MOS", "difference", ((20.0, 10.0), (60.0, 50.0), (80.0, 90.0)), 1, 9, 3, ""
    )
    assert [scale.points(x) for x in (15, 20, 40, 70, 82)] == [5, 10, 30, 70, 94]
    assert [scale.points(x) for x in (-50, 1000)] == [0, 100]


def test_plateaus_and_ties_become_strictly_rising() -> None:
    x = [1.0, 1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    vmaf = [20.0, 30, 40, 39, 40, 40, 40, 39, 40, 40, 90, 100]
    scale = ScoreScale.fit(x, vmaf, ["a", "b"] * 6, "MOS", "anchored", "VMAF")
    assert scale.points(3) < scale.points(8) < scale.points(10) <= 100


def test_error_is_that_on_titles_left_out() -> None:
    # each title has an offset of its own, which a title left out does not tell
    rng = np.random.default_rng(2)
    offsets = rng.normal(0, 8, 10)
    titles = np.repeat(np.arange(10), 20)
    x = rng.uniform(0, 60, 200)
    scale = ScoreScale.fit(x, 20 + x + offsets[titles], list(map(str, titles)), "", "anchored", "")
    assert 7 < scale.rmse < 12


@pytest.mark.parametrize(
    ("vmaf", "titles", "said"),
    [
        ([50.0, 40.0, 30.0, 20.0], ["a", "a", "b", "b"], "do not rise with VMAF"),
        ([10.0, 20.0, 30.0, 40.0], ["a"] * 4, "at least 2 titles"),
    ],
)
def test_what_cannot_be_learnt_is_refused(vmaf: list[float], titles: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ScoreScale.fit([1.0, 2.0, 3.0, 4.0], vmaf, titles, "MOS", "anchored", "VMAF")


def test_header_round_trip_and_damage() -> None:
    scale, _ = fitted(100)
    text = scale.to_json()
    assert ScoreScale.from_json(text, "weights 'a'") == scale
    for key, value in (
        ("mode", "alone"),
        ("to_vmaf", [[1, 2]]),
        ("to_vmaf", [[1, 2], [3, 2]]),
        ("to_vmaf", [[1, 2], [3, 101]]),
        ("to_vmaf", [[i, i] for i in range(21)]),
        ("rmse", -1),
        ("rmse", None),
        ("titles", 1),
        ("label", 3),
    ):
        with pytest.raises(InputError, match="the scale of weights 'a'"):
            ScoreScale.from_json(json.dumps({**json.loads(text), key: value}), "weights 'a'")
    for broken in ("", "[]", "{}", "null", '{"rmse": NaN}'):
        with pytest.raises(InputError, match="the scale of weights 'a'"):
            ScoreScale.from_json(broken, "weights 'a'")
