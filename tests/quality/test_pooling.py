"""What a student metric makes of its weights' header, and of the crops it looks at."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.errors import InputError
from vqaloop.models import create_student
from vqaloop.models.weights import save_student
from vqaloop.quality.pooling import linearised, pool, pool_difference
from vqaloop.quality.student_engine import StudentEngine
from vqaloop.quality.student_metric import StudentMetric


def metric_with(tmp_path: Path, view: str) -> StudentMetric:
    torch.manual_seed(0)
    path = tmp_path / "w.safetensors"
    save_student(create_student("internvqa-mini"), path, "internvqa-mini", "VMAF", {"view": view})
    return StudentMetric("internvqa-mine", StudentEngine(path, "cpu"), ffmpeg_path())


@pytest.mark.parametrize(
    "view",
    ["{", "3", "[]", '{"kind": "whole"}', '{"frames": 2.5}', '{"clips": true}', '{"bird": 1}',
     '{"kind": ["native"]}', '{"size": "112"}', "{}", '{"kind": "native", "size": 112}'],
)  # fmt: skip
def test_a_damaged_view_is_refused(tmp_path: Path, view: str) -> None:
    for anchored in (True, False):
        with pytest.raises(InputError):
            metric_with(tmp_path, view).check(anchored)


def test_one_crop_a_time_is_averaged_over_time() -> None:
    """Scores of crops average; as one picture their sums and weights would add up first."""

    def answers(sums: Tensor, weights: Tensor) -> Tensor:
        return (sums / weights).square()

    sums, weights = torch.tensor([[0.1], [0.8], [0.3]]), torch.tensor([[1.0], [1.0], [2.0]])
    found = pool(answers, (sums, weights), [1, 1, 1], 0)
    each = np.array([0.1**2, 0.8**2, 0.15**2])
    assert found.value == pytest.approx(100 * each.mean(), rel=1e-5)
    assert found.clips == pytest.approx(100 * each, rel=1e-5)
    low, high = found.interval
    assert low < found.value < high
    together = pool(answers, (sums, weights), [3], 0)
    assert together.value == pytest.approx(100 * (1.2 / 4) ** 2, rel=1e-5)


def ratio(sums: Tensor, weights: Tensor) -> Tensor:
    return sums / weights


SCORES = torch.tensor([[0.9], [0.9], [0.8], [0.3]])
SHARES = [0.4, 0.3, 0.2, 0.1]


def test_power_mean_over_time_by_hand() -> None:
    pair = (SCORES, torch.ones_like(SCORES))
    usual = pool(ratio, pair, [1] * 4, 0, SHARES)
    assert usual == pool(ratio, pair, [1] * 4, 0, SHARES, 1.0)
    assert usual.value == pytest.approx(82, rel=1e-5)
    found = pool(ratio, pair, [1] * 4, 0, SHARES, 3.0)
    mean = 0.7 * 10**3 + 0.2 * 20**3 + 0.1 * 70**3
    assert found.value == pytest.approx(100 - mean ** (1 / 3), rel=1e-5)
    assert found.value < usual.value
    # the moments are as they are, and the interval is about the power mean
    assert found.times == usual.times and found.clips == usual.clips
    assert found.interval[0] < found.value < found.interval[1]
    assert found.interval != usual.interval


def test_power_mean_of_equal_scores_is_each() -> None:
    for score in (0.0, 0.5, 1.0):
        sums = torch.full((3, 1), score)
        found = pool(ratio, (sums, torch.ones_like(sums)), [1] * 3, 0, time_power=4.0)
        assert found.value == pytest.approx(100 * score, abs=1e-4)
        assert all(map(math.isfinite, (*found.interval, *found.apart)))


def test_power_mean_of_differences_above_100() -> None:
    """An encode that seems better than its source at times makes up for what others lack."""
    ours, source = torch.tensor([[0.9], [0.5]]), torch.tensor([[0.7], [0.6]])
    ones = torch.ones_like(ours)
    found, opinion = pool_difference(
        ratio, ratio, (ours, ones), (source, ones), [1, 1], 0, None, 2.0
    )
    # lacks of -20 and 10 of the differences, of 10 and 50 of the answers
    assert found.apart[0] >= 0 and found.value == 100
    assert opinion == pytest.approx(100 - ((10**2 + 50**2) / 2) ** 0.5, rel=1e-5)


def test_linearised_scores_have_the_power_mean_and_its_slopes() -> None:
    times, power = [95.0, 80.0, 60.0, 99.0], 3.0

    def mean(values: list[float]) -> float:
        lacks = sum(s * (100 - v) ** power for s, v in zip(SHARES, values, strict=True))
        return float(100 - lacks ** (1 / power))

    found = linearised(times, SHARES, power)
    assert np.dot(SHARES, found) == pytest.approx(mean(times))
    # a moment as bad as the power mean counts by its share, worse ones by more
    for i, share in enumerate(SHARES):
        more = [s + 1e-4 * (k == i) for k, s in enumerate(SHARES)]
        lacks = sum(s * (100 - v) ** power for s, v in zip(more, times, strict=True)) / sum(more)
        slope = (100 - lacks ** (1 / power) - mean(times)) / 1e-4
        assert slope == pytest.approx(found[i] - mean(times), rel=1e-3, abs=1e-2), share
    assert linearised(times, SHARES, 1.0) == times
    assert linearised([100.0, 100.0], [0.5, 0.5], 2.0) == [100.0, 100.0]
