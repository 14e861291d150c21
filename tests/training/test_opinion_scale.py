"""The map to VMAF points that training stores: which answers it is learnt from."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.lessons import opinions, pixels
from vqaloop.errors import InputError
from vqaloop.media.colour import to_clips
from vqaloop.models import create_student
from vqaloop.models.score_scale import ScoreScale
from vqaloop.models.student import Student
from vqaloop.training.opinion_scale import scale_of
from vqaloop.training.shards import Shard

CPU = torch.device("cpu")


def shard(name: str, seed: int) -> Shard:
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = [{"score": 50.0, "vmaf": 20.0 + 15 * e} for e in range(5)]
    rows[4]["vmaf"] = float("nan")  # a damaged header
    clips = pixels(rng, 5, 2, size=112)
    return Shard(name, name, "MOS", rows, clips, reference=pixels(rng, 2, size=112))


@pytest.fixture
def student() -> Student:
    torch.manual_seed(0)
    return create_student("internvqa-mini").eval()


@pytest.mark.parametrize("anchors", [True, False])
def test_answers_are_those_of_the_loop(
    student: Student, anchors: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def fit(x: Any, vmaf: Any, titles: Any, label: str, mode: str, target: str) -> ScoreScale:
        seen.update(x=x, vmaf=vmaf, titles=titles)
        knots = ((0.0, 1.0), (100.0, 99.0))
        return ScoreScale(label, mode, knots, 1.0, len(x), 2, target)  # type: ignore[arg-type]

    monkeypatch.setattr(ScoreScale, "fit", fit)
    shards = [shard("a", 1), shard("b", 2)]
    found = scale_of(student, [*shards, opinions(shard("c", 3))], anchors, CPU)
    assert (found.label, found.mode) == ("MOS", "anchored" if anchors else "difference")
    assert seen["titles"] == ["a"] * 4 + ["b"] * 4, "without a source there is no point"
    assert seen["vmaf"] == [20.0, 35.0, 50.0, 65.0] * 2
    expected = []
    with torch.inference_mode():
        for whole in shards:
            assert whole.reference is not None
            source = to_clips(whole.reference)
            for clips in map(to_clips, whole.distorted[:4]):
                if anchors:
                    pair = student.look(clips, student.anchor(source)).anchored
                    assert pair is not None
                    answer = student.anchored_answers(*(part.sum(0) for part in pair))[0]
                    expected.append(100 * answer.item())
                else:
                    gap = student(source) - student(clips)
                    expected.append(100 - 100 * gap.mean().item())
    assert seen["x"] == pytest.approx(expected, abs=1e-3)


def test_one_title_is_too_few(student: Student) -> None:
    with pytest.raises(InputError, match="at least 2 titles"):
        scale_of(student, [shard("a", 1), replace(shard("b", 2), content="a")], True, CPU)
