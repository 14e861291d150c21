"""The panel's score: v1 on plain encodes, lower where a member sees other damage."""

import json
from collections.abc import Sequence

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given

from vqaloop.errors import InputError
from vqaloop.panel.soft_minimum import BOTTOM, UNITS, Panel, fit

NAMES = ("v1", *UNITS)
Values = npt.NDArray[np.float64]


def plain_labels(count: int = 1500, seed: int = 1) -> Values:
    """Labels of plain encodes: members follow v1, each in its own way and with its own noise."""
    rng = np.random.default_rng(seed)
    quality = 100 * rng.beta(3, 1.2, count)
    noise = rng.normal(0, 1, (8, count))
    ssimulacra2 = quality * 1.3 - 40 + 7 * noise[4]
    columns = {
        "v1": np.clip(quality + noise[0], 0, 100),
        "neg": np.clip(quality + 3 * noise[1], 0, 100),
        "v0.6.1": np.clip(quality + 3 * noise[2], 0, 100),
        # almost always none, whatever the quality
        "cambi": np.maximum(0, noise[3] - 1.5),
        # saturates towards the top
        "xpsnr": 24 + 20 * (quality / 100) ** 3 + 1.5 * noise[5],
        "ssimulacra2": ssimulacra2,
        "fdim": 1.5 + 3 * quality / 100 + 0.25 * noise[6],
        "cvvdp": np.minimum(10, 5 + 5 * (quality / 100) ** 0.5 + 0.2 * noise[7]),
    }
    table = np.column_stack([columns[name] for name in NAMES])
    # a third are whole frames, which three members were not measured on
    table[::3, -3:] = np.nan
    return table


PLAIN = plain_labels()
PANEL = fit(PLAIN, NAMES, np.ones(len(PLAIN)))


def sample(v1: float, **members: float) -> Values:
    """Labels of one frame that is usual for its v1 but for `members`."""
    near = np.argsort(np.abs(PLAIN[:, 0] - np.nan_to_num(v1, nan=50.0)))[:60]
    row = np.nanmedian(PLAIN[near], axis=0)
    row[0] = v1
    for name, value in members.items():
        row[NAMES.index(name)] = value
    return np.asarray(row)


def test_on_plain_encodes_the_score_is_v1() -> None:
    assert [member.name for member in PANEL.members] == list(UNITS)
    other = plain_labels(seed=2)
    loss = np.clip(other[:, 0], 0, 100) - PANEL.fuse(other, NAMES)
    assert (loss >= 0).all()
    assert (loss <= 1).mean() > 0.75 and (loss <= 5).mean() > 0.93
    # at every level, not on average
    for low in range(20, 100, 20):
        inside = (other[:, 0] >= low) & (other[:, 0] < low + 20)
        assert (loss[inside] <= 3).mean() > 0.75


@pytest.mark.parametrize(
    ("damage", "least"),
    [
        ({"cvvdp": 7.0}, 20),
        ({"fdim": 2.2}, 20),
        ({"ssimulacra2": 10.0}, 20),
        ({"xpsnr": 26.0}, 15),
        ({"cambi": 12.0}, 30),
        ({"neg": 55.0}, 20),
        ({"v0.6.1": 55.0}, 20),
    ],
)
def test_a_member_far_below_what_is_usual_lowers_the_score(
    damage: dict[str, float], least: float
) -> None:
    usual = PANEL.fuse(sample(95), NAMES)
    assert usual > 93
    damaged = PANEL.fuse(sample(95, **damage), NAMES)
    assert BOTTOM <= damaged <= usual - least


def test_a_slight_change_of_a_member_that_hardly_follows_v1_costs_little() -> None:
    levels = [float(PANEL.fuse(sample(95, cambi=value), NAMES)) for value in (0, 1, 3, 6)]
    assert levels[0] == pytest.approx(95, abs=1.5)
    assert levels[1] > 90 and levels[2] > 78
    assert levels[0] >= levels[1] > levels[2] > levels[3]


def test_the_best_values_of_a_member_cost_nothing() -> None:
    best = sample(99.5, cambi=0, neg=100, ssimulacra2=100, fdim=4.9, cvvdp=10, xpsnr=60)
    best[NAMES.index("v0.6.1")] = 100
    assert PANEL.fuse(best, NAMES) == 99.5


def test_where_v1_is_low_it_stands_alone() -> None:
    rows = np.array([sample(v, cvvdp=0.0, fdim=1, xpsnr=5.0) for v in (5.0, 19.0, 21.0, 60.0)])
    assert PANEL.fuse(rows, NAMES).tolist() == [5, 19, BOTTOM, BOTTOM]


raw = st.floats(-150, 150)


@given(st.lists(raw, min_size=8, max_size=8), st.integers(0, 7), st.floats(0, 100))
def test_it_rises_with_every_member(row: list[float], index: int, more: float) -> None:
    better = list(row)
    better[index] += more * np.sign(UNITS.get(NAMES[index], 1))
    low, high = PANEL.fuse([row, better], NAMES)
    assert 0 <= low <= high <= 100 and low <= max(0.0, row[0])


def test_members_not_measured_are_left_out() -> None:
    row = sample(95, cvvdp=6.0, fdim=np.nan)
    seen = PANEL.fuse(row, NAMES)
    without = PANEL.fuse(sample(95, cvvdp=np.nan, fdim=np.nan), NAMES)
    assert seen < 80 < without
    assert PANEL.fuse(row[:7], NAMES[:7]) == PANEL.fuse([*row[:7], np.nan], NAMES)
    assert np.isnan(PANEL.fuse(sample(np.nan), NAMES))
    shaped = np.stack([row, sample(50)]).reshape(1, 2, 8)
    assert PANEL.fuse(shaped, NAMES).shape == (1, 2)


def test_members_are_chosen_and_absent_ones_skipped() -> None:
    damaged = sample(95, cvvdp=6.0, cambi=15.0)
    assert Panel().fuse(damaged, NAMES) == 95
    alone = fit(PLAIN, NAMES, np.ones(len(PLAIN)), ["cambi"])
    assert [member.name for member in alone.members] == ["cambi"]
    assert alone.fuse(damaged, NAMES) == alone.fuse(sample(95, cambi=15.0), NAMES) < 80
    table = PLAIN.copy()
    table[50:, NAMES.index("fdim")] = np.nan
    found = fit(table[:, :-1], NAMES[:-1], np.ones(len(table)))
    assert {m.name for m in found.members} == set(UNITS) - {"fdim", "cvvdp"}


def test_only_plain_encodes_are_learnt_from() -> None:
    attacked = PLAIN.copy()
    attacked[:, NAMES.index("cvvdp")] -= 4
    plain = np.arange(2 * len(PLAIN)) < len(PLAIN)
    assert fit(np.concatenate([PLAIN, attacked]), NAMES, plain) == PANEL


@pytest.mark.parametrize(
    ("names", "members", "count", "said"),
    [
        (NAMES, ("vmaf",), 200, "no members of a panel: .'vmaf'"),
        (("v2", *UNITS), ("fdim",), 200, "v1 among them"),
        (NAMES[:-1], ("fdim",), 200, "a name for each column"),
        (NAMES, ("fdim",), 99, "at least 100 plain encodes.*there are 99"),
    ],
)
def test_what_cannot_be_learnt_is_refused(
    names: Sequence[str], members: Sequence[str], count: int, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        fit(PLAIN, names, np.arange(len(PLAIN)) < count, members)


def test_encodes_of_one_level_have_no_curve() -> None:
    table = PLAIN.copy()
    table[:, 0] = 90
    assert fit(table, NAMES, np.ones(len(table))) == Panel()


def test_header_round_trip_and_damage() -> None:
    assert Panel.from_json(PANEL.to_json(), "weights 'a'") == PANEL
    assert Panel.from_json(Panel().to_json(), "weights 'a'") == Panel()
    for members in (
        [{"name": "psnr", "usual": [[1, 2], [3, 4]]}],
        [{"name": "fdim", "usual": [[1, 2], [3, 4]]}] * 2,
        [{"name": "fdim", "usual": [[1, 2], [3, 2]]}],
        [{"name": "cambi", "usual": [[1, 2], [3, 4]]}],
        [{"name": "fdim", "usual": [[3, 2], [1, 4]]}],
        [{"name": "fdim", "usual": [[1, 2]]}],
        [{"name": "fdim", "usual": [[1, 2], [101, 4]]}],
        [{"name": "fdim", "usual": [[n, n] for n in range(21)]}],
        [{"name": "fdim", "usual": [[1, 2], [3, 1e300]]}],
        [{"name": "fdim"}],
        [3],
    ):
        with pytest.raises(InputError, match="the panel of weights 'a'.*train the weights again"):
            Panel.from_json(json.dumps({"members": members}), "weights 'a'")
    for broken in (
        "",
        "[]",
        "null",
        "{" * 9999,
        '{"members": [{"name": "fdim", "usual": [NaN]}]}',
    ):
        with pytest.raises(InputError, match="the panel of weights 'a'"):
            Panel.from_json(broken, "weights 'a'")
