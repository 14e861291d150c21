"""Parts of the loss, by hand and by plain loops, in fp32 and bf16."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.lessons import (
    RECIPE,
    SHARDS,
    batch_of,
    made,
    opinions,
    pixels,
    shard,
    with_losses,
)
from tests.support.nets import MINI_SWIN, noise
from vqaloop.errors import InputError
from vqaloop.media.colour import to_clips
from vqaloop.models.fastvqa import FastVQA
from vqaloop.models.student import Student
from vqaloop.training.losses import RANK_MARGIN, rank_loss
from vqaloop.training.recipe import Losses, Teacher
from vqaloop.training.step import Batch, TrainingModel, draw, freeze


@pytest.fixture(autouse=True)
def whole_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks in fp32, also on processors that multiply bf16."""
    monkeypatch.setattr("vqaloop.training.step.autocast", lambda device: contextlib.nullcontext())


def test_rank_loss_by_hand() -> None:
    scores = noise(3, 4) / 10
    labels = torch.rand(3, 4, generator=torch.Generator().manual_seed(5))
    labels[0, 1] = labels[0, 0] + 0.005  # as good as equal
    total, count = 0.0, 0
    for g in range(3):
        for i in range(4):
            for j in range(4):
                gap = float(labels[g, i] - labels[g, j])
                if abs(gap) > 0.01:
                    right = float(scores[g, i] - scores[g, j]) * math.copysign(1, gap)
                    total += math.log1p(math.exp(-right / RANK_MARGIN))
                    count += 1
    assert rank_loss(scores, labels).item() == pytest.approx(total / count, rel=1e-5)
    assert rank_loss(scores, torch.full((3, 4), 0.5)).item() == 0


def test_rank_loss_prefers_the_right_order() -> None:
    labels = torch.tensor([[0.1, 0.5, 0.9]])
    assert rank_loss(labels, labels) < 0.1 < 3 < rank_loss(labels.flip(1), labels)


def test_losses_against_labels_by_a_plain_loop() -> None:
    student = made(0)
    parts = Losses(crop=1, pooled=1, ordered=1, features=1, alone=1, alone_pooled=1, rank=1)
    recipe = replace(RECIPE, loss=parts)
    batch = batch_of()
    found = TrainingModel(student, None, recipe)(batch, 0)
    assert set(found) == {name for name, weight in vars(parts).items() if weight}
    assert all(value.dtype == torch.float32 and value.ndim == 0 for value in found.values())

    assert batch.reference is not None
    squares: dict[str, list[float]] = {name: [] for name in found}
    features: dict[str, list[float]] = {"crop": [], "pooled": [], "alone": [], "alone_pooled": []}

    def square(name: str, answer: Tensor, label: Tensor) -> None:
        squares[name].append(float((answer[0] - label[0]) ** 2))
        features[name] += [float((a - b) ** 2) for a, b in zip(answer[1:], label[1:], strict=True)]

    with torch.no_grad():
        crops = torch.zeros(2, 4, 2)  # scores alone and anchored
        for scene in range(2):
            for e in range(2):
                looks = []
                for group in (2 * scene, 2 * scene + 1):
                    clip = to_clips(batch.distorted[2 * group + e][None])
                    anchor = student.anchor(to_clips(batch.reference[group][None]))
                    look = student.look(clip, anchor)
                    assert look.anchored is not None
                    looks.append(look)
                    alone = student.alone_answers(*look.alone)[0]
                    against = student.anchored_answers(*look.anchored)[0]
                    square("alone", alone, batch.scores[group, e])
                    square("crop", against, batch.scores[group, e])
                    crops[0, group, e], crops[1, group, e] = alone[0], against[0]
                sums = [torch.cat([x.alone[i] for x in looks]).sum(0) for i in (0, 1)]
                square("alone_pooled", student.alone_answers(*sums), batch.pooled[scene, e])
                sums = [torch.cat([x.anchored[i] for x in looks if x.anchored]) for i in (0, 1)]
                sums = [x.sum(0) for x in sums]
                square("pooled", student.anchored_answers(*sums), batch.pooled[scene, e])
        for group in range(4):
            label, score = batch.scores[group, :, 0], crops[1, group]
            for e in range(2):
                gap = (score[e] - score.mean()) - (label[e] - label.mean())
                squares["ordered"].append(float(gap**2))
        expected = {name: fmean(errors) for name, errors in squares.items() if errors}
        expected["features"] = sum(fmean(errors) for errors in features.values())
        expected["rank"] = sum(rank_loss(x, batch.scores[..., 0]).item() for x in crops)
    assert {k: v.item() for k, v in found.items()} == pytest.approx(expected, rel=2e-3)


def test_only_parts_with_a_weight_are_computed() -> None:
    found = TrainingModel(made(0), None, with_losses(alone=0.5, rank=2.0))(batch_of(), 0)
    assert set(found) == {"alone", "rank"}


def test_a_part_that_cannot_be_computed_is_named() -> None:
    batch = draw([opinions(s) for s in SHARDS], RECIPE, np.random.default_rng(0))
    for weights, says in (
        ({"crop": 1.0, "features": 1.0, "alone": 1.0}, "crop, features of the loss cannot be"),
        ({"alone": 1.0, "features": 0.5}, "^features of the loss"),
        ({"alone": 1.0, "ordered": 0.5, "pooled": 1.0}, "^pooled, ordered of the loss"),
    ):
        with pytest.raises(InputError, match=says):
            TrainingModel(made(0), None, with_losses(**weights))(batch, 0)
    taught = with_losses(alone=1.0, levels=1.0)
    for heads in ((True, False), (False, True)):
        with pytest.raises(InputError, match="^levels of the loss"):
            TrainingModel(made(0, heads[0]), made(1, heads[1]), taught)(batch, 0)


def test_clips_that_fit_no_patches_are_refused() -> None:
    batch = replace(batch_of(), distorted=pixels(np.random.default_rng(0), 8, size=30))
    with pytest.raises(InputError, match="the corpus does not fit internvqa-mini"):
        TrainingModel(made(0), None, with_losses(alone=1.0))(batch, 0)


@pytest.mark.parametrize("cast", [False, True])
def test_precision_is_the_models_own(cast: bool) -> None:
    """An engine may switch autocast on or off around it."""
    parts = Losses(crop=1, pooled=1, alone=1, levels=1, answers=1)
    recipe = replace(RECIPE, loss=parts, teacher=Teacher("internvqa-tiny"))
    model = TrainingModel(made(0), made(1), recipe)
    if cast:
        model.bfloat16()
    plain = model(batch_of(), 0)
    with torch.autocast("cpu", torch.bfloat16):
        inside = model(batch_of(), 0)
    assert {k: v.item() for k, v in inside.items()} == {k: v.item() for k, v in plain.items()}


def plain_norm(x: Tensor) -> Tensor:
    centred = x.double() - x.double().mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def test_the_papers_three_terms() -> None:
    student, teacher = made(0, heads=False), made(1, heads=False)
    recipe = with_losses(alone=1.0, teacher=1.0, feature=1.0)
    batch = draw([opinions(s) for s in SHARDS], recipe, np.random.default_rng(0))
    found = TrainingModel(student, teacher, recipe)(batch, 0)
    clips = to_clips(batch.distorted)
    label = batch.scores.flatten().double()
    with torch.no_grad():
        mine, feature = student.backbone.judge(clips)
        theirs, known = teacher.backbone.judge(clips)
        gap = (plain_norm(feature) - plain_norm(known)).abs()
        smooth = torch.where(gap < 2, gap**2 / 4, gap - 1).mean()
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {
            "alone": float((mine.double() - label).square().mean()),
            "teacher": float((theirs.double() - label).square().mean()),
            "feature": float(smooth),
        },
        rel=1e-4,
    )


def reached(student: Student) -> set[str]:
    return {
        name
        for name, p in student.backbone.named_parameters()
        if p.grad is not None and p.grad.any()
    }


def test_the_feature_loss_teaches_both_and_leaves_the_frozen_alone() -> None:
    recipe = with_losses(feature=1.0)
    student, teacher = made(0, heads=False), made(1, heads=False)
    freeze(teacher, "paper")
    TrainingModel(student, teacher, recipe)(batch_of(), 0)["feature"].backward()
    assert "patch_embed.proj.weight" in reached(student)
    assert reached(teacher) and all(n.startswith("blocks.1.") for n in reached(teacher))
    student, teacher = made(0, heads=False), made(1, heads=False)
    freeze(teacher, "all")
    TrainingModel(student, teacher, recipe)(batch_of(), 0)["feature"].backward()
    assert reached(student) and not reached(teacher)


def test_the_teacher_learns_from_labels_through_its_own_term() -> None:
    student, teacher = made(0, heads=False), made(1, heads=False)
    freeze(teacher, "paper")
    TrainingModel(student, teacher, with_losses(teacher=1.0))(batch_of(), 0)["teacher"].backward()
    assert not reached(student)
    assert {"head.weight", "head.bias"} <= reached(teacher)


def test_levels_and_answers_by_hand() -> None:
    student, teacher = made(0), made(1)
    batch = batch_of()
    recipe = with_losses(levels=1.0, answers=1.0)
    found = TrainingModel(student, teacher, recipe)(batch, 0)
    assert batch.reference is not None
    clips, source = to_clips(batch.distorted), to_clips(batch.reference)
    with torch.no_grad():
        looks = []
        for one in (student, teacher):
            every = [one.look(clips[i, None], one.anchor(source[i // 2, None])) for i in range(8)]
            looks.append(every)
        levels = [
            (a - b).square().mean().item()
            for x, y in zip(*looks, strict=True)
            for a, b in zip(x.projected, y.projected, strict=True)
        ]
        answers = 0.0
        for x, y in zip(*looks, strict=True):
            assert x.anchored is not None and y.anchored is not None
            gap = student.alone_answers(*x.alone) - teacher.alone_answers(*y.alone)
            answers += gap.square().mean().item() / 8
            gap = student.anchored_answers(*x.anchored) - teacher.anchored_answers(*y.anchored)
            answers += gap.square().mean().item() / 8
    assert found["levels"].item() == pytest.approx(np.mean(levels), rel=1e-3)
    assert found["answers"].item() == pytest.approx(answers, rel=1e-3)


@pytest.mark.parametrize("heads", [(True, False), (False, True)])
@pytest.mark.filterwarnings("error")
def test_answers_compare_what_both_can_say(heads: tuple[bool, bool]) -> None:
    student, teacher = made(0, heads[0]), made(1, heads[1])
    batch = batch_of()
    found = TrainingModel(student, teacher, with_losses(answers=1.0))(batch, 0)
    clips = to_clips(batch.distorted)
    with torch.no_grad():
        expected = (student(clips) - teacher(clips)).square().mean()
    torch.testing.assert_close(found["answers"], expected, rtol=1e-3, atol=1e-6)


def test_the_teacher_looks_at_its_own_view() -> None:
    student, teacher = made(0, heads=False), made(1, heads=False)
    recipe = with_losses(feature=1.0)
    wide = [shard(s.name, 9, len(s.encodes), s.distorted.shape[1], size=42) for s in SHARDS]
    batch = draw(SHARDS, recipe, np.random.default_rng(0), wide)
    assert batch.teacher_view is not None and batch.teacher_view.shape == (8, 2, 63, 42)
    found = TrainingModel(student, teacher, recipe)(batch, 0)["feature"]
    with torch.no_grad():
        mine = student.look(to_clips(batch.distorted)).feature
        gap = plain_norm(mine) - plain_norm(teacher.look(to_clips(batch.teacher_view)).feature)
    gap = gap.abs()
    expected = torch.where(gap < 2, gap**2 / 4, gap - 1).mean()
    assert found.item() == pytest.approx(float(expected), rel=1e-4)


def in_autocast(model: TrainingModel, batch: Batch) -> dict[str, Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        quick = torch.autocast("cpu", torch.bfloat16)
        patch.setattr("vqaloop.training.step.autocast", lambda device: quick)
        found: dict[str, Tensor] = model(batch, 1)
    return found


def all_cast(model: TrainingModel, batch: Batch) -> dict[str, Tensor]:
    found: dict[str, Tensor] = model.bfloat16()(batch, 1)
    return found


@pytest.mark.parametrize("half", [in_autocast, all_cast])
@pytest.mark.parametrize("heads", [True, False])
def test_labels_and_losses_stay_fp32_whatever_the_engine(
    half: Callable[[TrainingModel, Batch], dict[str, Tensor]], heads: bool
) -> None:
    if heads:
        loss = Losses(**{name: 1.0 for name in vars(Losses())})
    else:
        loss = Losses(alone=1, alone_pooled=1, rank=1, teacher=1, feature=1, answers=1)
    recipe = replace(RECIPE, loss=loss, teacher=Teacher("internvqa-tiny"))
    batch = batch_of()
    whole = TrainingModel(made(0, heads), made(1, heads), recipe)(batch, 1)
    found = half(TrainingModel(made(0, heads), made(1, heads), recipe), batch)
    assert set(found) == {name for name, weight in vars(loss).items() if weight}
    assert batch.scores.dtype == torch.float32
    for name, value in found.items():
        assert value.dtype == torch.float32, name
        assert value.item() == pytest.approx(whole[name].item(), rel=0.15, abs=0.02), name


def test_the_bridge_is_crossed_and_learns() -> None:
    torch.manual_seed(0)
    student, teacher = Student(FastVQA(MINI_SWIN), heads=False), made(1, heads=False)
    model = TrainingModel(student, teacher, with_losses(feature=1.0))
    rng = np.random.default_rng(0)
    clips = pixels(rng, 8, size=32)
    batch = Batch(clips, torch.rand(4, 2, 1), torch.rand(2, 2, 1), None, pixels(rng, 8))
    found = model(batch, 0)["feature"]
    with torch.no_grad():
        mine = model.bridge(student.look(to_clips(clips)).feature)
        assert batch.teacher_view is not None
        theirs = teacher.look(to_clips(batch.teacher_view)).feature
        gap = (plain_norm(mine) - plain_norm(theirs)).abs()
    expected = torch.where(gap < 2, gap**2 / 4, gap - 1).mean()
    assert found.item() == pytest.approx(float(expected), rel=1e-4)
    found.backward()
    grads = [p.grad for p in model.bridge.parameters()]
    assert len(grads) == 2 and all(g is not None and g.any() for g in grads)
