"""What a student metric makes of its weights' header, and of the crops it looks at."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.errors import InputError
from vqaloop.models import create_student
from vqaloop.models.weights import save_student
from vqaloop.quality.pooling import pool
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
     '{"kind": ["native"]}', '{"size": "112"}'],
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
