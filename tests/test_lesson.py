"""One step of training: what is drawn, how it is changed, what is lost."""

import math
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.nets import MINI, MINI_SWIN, noise, shaken
from vqaloop.colour import to_clips
from vqaloop.errors import InputError
from vqaloop.lesson import (
    FEATURE_SCALES,
    RANK_MARGIN,
    Batch,
    Lesson,
    augmented,
    draw,
    freeze,
    rank_loss,
)
from vqaloop.models import create_student
from vqaloop.models.fastvqa import FastVQA
from vqaloop.models.internvideo2 import InternVideo2
from vqaloop.models.student import OUTPUTS, Student
from vqaloop.recipe import Losses, Recipe, Teacher
from vqaloop.shards import Shard

RECIPE = Recipe(
    "internvqa-mini", ("a",), "out", 1, 1e-3, Losses(crop=1.0), ("b",),
    scenes=2, crops=2, encodes=2, augment="none",
)  # fmt: skip


def with_losses(**weights: float) -> Recipe:
    loss = Losses(**weights)
    taught = loss.teacher or loss.feature or loss.levels or loss.answers
    return replace(RECIPE, loss=loss, teacher=Teacher("internvqa-tiny") if taught else None)


def pixels(rng: np.random.Generator, *shape: int, size: int = 28) -> Tensor:
    return torch.from_numpy(rng.integers(16, 236, (*shape, 2, size * 3 // 2, size), np.uint8))


def shard(name: str, seed: int, encodes: int = 3, crops: int = 4, size: int = 28) -> Shard:
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.random((2, encodes, crops, 7), np.float32))
    labels *= torch.tensor(FEATURE_SCALES)
    return Shard(
        name,
        name,
        "VMAF",
        [{"score": float(10 * e + 5)} for e in range(encodes)],
        pixels(rng, encodes, crops, size=size),
        reference=pixels(rng, crops, size=size),
        crop_labels=labels[0],
        frame_labels=labels[1],
    )


def opinions(whole: Shard) -> Shard:
    return replace(whole, reference=None, crop_labels=None, frame_labels=None)


SHARDS = [shard("a", 1), shard("b", 2, encodes=5), shard("c", 3, crops=2)]


def found_at(clip: Tensor, among: Tensor) -> int:
    return next(i for i, other in enumerate(among) if torch.equal(other, clip))


def origin(reference: Tensor) -> tuple[Shard, int]:
    """The shard a reference clip is from, and which crop it is."""
    for whole in SHARDS:
        assert whole.reference is not None
        for crop, clip in enumerate(whole.reference):
            if torch.equal(clip, reference):
                return whole, crop
    raise AssertionError("no reference of any shard")


# --- drawing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_drawn_clips_belong_together(seed: int) -> None:
    batch = draw(SHARDS, RECIPE, np.random.default_rng(seed))
    assert batch.reference is not None and batch.shown is None
    assert batch.reference.shape == (4, 2, 42, 28)
    assert batch.distorted.shape == (8, 2, 42, 28)
    assert batch.scores.shape == (4, 2, len(OUTPUTS)) and batch.pooled.shape == (2, 2, 7)
    assert batch.scores.dtype == batch.pooled.dtype == torch.float32
    scales = torch.tensor(FEATURE_SCALES)
    names = []
    for scene in range(2):
        crops: list[int] = []
        encodes: list[list[int]] = []
        for group in (2 * scene, 2 * scene + 1):
            whole, crop = origin(batch.reference[group])
            assert whole.crop_labels is not None
            crops.append(crop)
            encodes.append([])
            for i in range(2):
                clip = batch.distorted[2 * group + i]
                encodes[-1].append(found_at(clip, whole.distorted[:, crop]))
                label = whole.crop_labels[encodes[-1][-1], crop]
                torch.testing.assert_close(batch.scores[group, i] * scales, label)
        # the same encodes at each crop, so that crops can be pooled; none twice
        assert encodes[0] == encodes[1] and len(set(encodes[0])) == len(set(crops)) == 2
        assert whole.frame_labels is not None
        for i, encode in enumerate(encodes[0]):
            mean = (
                whole.frame_labels[encode, crops[0]] + whole.frame_labels[encode, crops[1]]
            ) / 2
            torch.testing.assert_close(batch.pooled[scene, i] * scales, mean)
        names.append(whole.name)
    assert len(set(names)) == 2


def test_the_same_draw_for_the_same_step() -> None:
    one, same, other = (draw(SHARDS, RECIPE, np.random.default_rng([0, s])) for s in (5, 5, 6))
    assert torch.equal(one.distorted, same.distorted) and torch.equal(one.scores, same.scores)
    assert not torch.equal(one.distorted, other.distorted)


def test_what_is_scarce_comes_twice() -> None:
    many = replace(RECIPE, crops=7, encodes=6)
    batch = draw(SHARDS, many, np.random.default_rng(0))
    assert batch.distorted.shape[0] == 2 * 7 * 6
    assert batch.scores.shape == (14, 6, 7)


def test_scenes_with_more_come_up_more_often() -> None:
    one = replace(RECIPE, scenes=1, crops=1, encodes=1)
    rng = np.random.default_rng(0)
    names = []
    for _ in range(400):
        reference = draw(SHARDS, one, rng).reference
        assert reference is not None
        names.append(origin(reference[0])[0].name)
    # 3 x 4, 5 x 4 and 3 x 2 clips
    for name, part in (("a", 12 / 38), ("b", 20 / 38), ("c", 6 / 38)):
        assert names.count(name) / 400 == pytest.approx(part, abs=0.08)


def test_opinion_scores_are_labels_of_every_crop() -> None:
    batch = draw([opinions(s) for s in SHARDS], RECIPE, np.random.default_rng(0))
    whole = draw(SHARDS, RECIPE, np.random.default_rng(0))
    assert batch.reference is None
    assert torch.equal(batch.distorted, whole.distorted)
    assert batch.scores.shape == (4, 2, 1) and batch.pooled.shape == (2, 2, 1)
    assert whole.reference is not None
    for group in range(4):
        source, crop = origin(whole.reference[group])
        for i in range(2):
            encode = found_at(batch.distorted[2 * group + i], source.distorted[:, crop])
            expected = source.encodes[encode]["score"] / 100
            assert batch.scores[group, i].item() == pytest.approx(expected)
            assert batch.pooled[group // 2, i].item() == pytest.approx(expected)


def test_the_teacher_sees_the_same_clips_in_its_view() -> None:
    wide = [replace(s, distorted=s.distorted + 1) for s in SHARDS]
    batch = draw(SHARDS, RECIPE, np.random.default_rng(3), wide)
    assert batch.shown is not None
    assert torch.equal(batch.shown, batch.distorted + 1)


# --- augmentation --------------------------------------------------------------------------------


def test_eight_different_turns() -> None:
    clips = torch.arange(16.0).reshape(1, 1, 1, 4, 4)
    found = {tuple(augmented(clips, "turns", n).flatten().tolist()) for n in range(8)}
    assert len(found) == 8
    assert torch.equal(augmented(clips, "turns", 8), clips)
    for square in found:  # neighbours stay neighbours
        x = torch.tensor(square).reshape(4, 4)
        assert {float(abs(a)) for a in (x[0, 1] - x[0, 0], x[1, 0] - x[0, 0])} == {1.0, 4.0}


def test_mirror_is_left_to_right_or_nothing() -> None:
    clips = noise(1, 3, 2, 4, 6)
    assert torch.equal(augmented(clips, "mirror", 2), clips)
    assert torch.equal(augmented(clips, "mirror", 3), clips.flip(-1))
    assert torch.equal(augmented(clips, "none", 3), clips)


@pytest.mark.parametrize("seed", range(12))
def test_colour_changes_pixels_and_keeps_the_shape(seed: int) -> None:
    clips = noise(3, 3, 2, 28, 42)
    before = clips.clone()
    found = augmented(clips, "colour", seed)
    assert found.shape == clips.shape and found.dtype == clips.dtype and found.isfinite().all()
    assert torch.equal(clips, before), "what was given is left alone"
    assert (found - clips).abs().mean() > 0.05
    assert torch.equal(augmented(clips, "colour", seed), found)


@pytest.mark.parametrize("kind", ["none", "turns", "mirror", "colour"])
@pytest.mark.parametrize("seed", range(8))
def test_source_and_encode_are_changed_alike(kind: str, seed: int) -> None:
    clips, source = noise(2, 3, 2, 28, 28), noise(1, 3, 2, 28, 28, seed=3)
    together = augmented(torch.cat([clips, source]), kind, seed)
    apart = torch.cat([augmented(clips, kind, seed), augmented(source, kind, seed)])
    torch.testing.assert_close(together, apart)


def test_colour_mirrors_and_erases_now_and_then() -> None:
    clips = torch.linspace(1, 2, 28).expand(1, 3, 2, 28, 28)
    erased = mirrored = 0
    for seed in range(60):
        found = augmented(clips, "colour", seed)
        erased += bool((found == 0).all(1).flatten(1).sum() == 2 * 7 * 7)
        mirrored += bool(found[0, 0, 0, -1, 0] > found[0, 0, 0, -1, -1])
    assert 5 <= erased <= 27 and 18 <= mirrored <= 42


# --- parts of the loss ---------------------------------------------------------------------------


def made(seed: int, heads: bool = True) -> Student:
    torch.manual_seed(seed)
    student = Student(InternVideo2(MINI), heads)
    shaken(student, seed, scale=0.05)
    return student


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


def batch_of(recipe: Recipe = RECIPE, seed: int = 0) -> Batch:
    return draw(SHARDS, recipe, np.random.default_rng(seed))


def test_losses_against_labels_by_a_plain_loop() -> None:
    student = made(0)
    parts = Losses(crop=1, pooled=1, ordered=1, features=1, alone=1, alone_pooled=1, rank=1)
    recipe = replace(RECIPE, loss=parts)
    batch = batch_of()
    found = Lesson(student, None, recipe)(batch, 0)
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
    found = Lesson(made(0), None, with_losses(alone=0.5, rank=2.0))(batch_of(), 0)
    assert set(found) == {"alone", "rank"}


def test_a_batch_that_can_teach_nothing_is_refused() -> None:
    batch = draw([opinions(s) for s in SHARDS], RECIPE, np.random.default_rng(0))
    with pytest.raises(InputError, match="no part of the loss can be computed"):
        Lesson(made(0), None, with_losses(crop=1.0, features=1.0))(batch, 0)


def plain_norm(x: Tensor) -> Tensor:
    centred = x.double() - x.double().mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def test_the_papers_three_terms() -> None:
    student, teacher = made(0, heads=False), made(1, heads=False)
    recipe = with_losses(alone=1.0, teacher=1.0, feature=1.0)
    batch = draw([opinions(s) for s in SHARDS], recipe, np.random.default_rng(0))
    found = Lesson(student, teacher, recipe)(batch, 0)
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
    Lesson(student, teacher, recipe)(batch_of(), 0)["feature"].backward()
    assert "patch_embed.proj.weight" in reached(student)
    assert reached(teacher) and all(n.startswith("blocks.1.") for n in reached(teacher))
    student, teacher = made(0, heads=False), made(1, heads=False)
    freeze(teacher, "all")
    Lesson(student, teacher, recipe)(batch_of(), 0)["feature"].backward()
    assert reached(student) and not reached(teacher)


def test_the_teacher_learns_from_labels_through_its_own_term() -> None:
    student, teacher = made(0, heads=False), made(1, heads=False)
    freeze(teacher, "paper")
    Lesson(student, teacher, with_losses(teacher=1.0))(batch_of(), 0)["teacher"].backward()
    assert not reached(student)
    assert {"head.weight", "head.bias"} <= reached(teacher)


def test_levels_and_answers_by_hand() -> None:
    student, teacher = made(0), made(1)
    batch = batch_of()
    recipe = with_losses(levels=1.0, answers=1.0)
    found = Lesson(student, teacher, recipe)(batch, 0)
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
    found = Lesson(student, teacher, with_losses(answers=1.0))(batch, 0)
    clips = to_clips(batch.distorted)
    with torch.no_grad():
        expected = (student(clips) - teacher(clips)).square().mean()
    torch.testing.assert_close(found["answers"], expected, rtol=1e-3, atol=1e-6)


def test_the_teacher_looks_at_its_own_view() -> None:
    student, teacher = made(0, heads=False), made(1, heads=False)
    recipe = with_losses(feature=1.0)
    wide = [shard(s.name, 9, len(s.encodes), s.distorted.shape[1], size=42) for s in SHARDS]
    batch = draw(SHARDS, recipe, np.random.default_rng(0), wide)
    assert batch.shown is not None and batch.shown.shape == (8, 2, 63, 42)
    found = Lesson(student, teacher, recipe)(batch, 0)["feature"]
    with torch.no_grad():
        mine = student.look(to_clips(batch.distorted)).feature
        gap = plain_norm(mine) - plain_norm(teacher.look(to_clips(batch.shown)).feature)
    gap = gap.abs()
    expected = torch.where(gap < 2, gap**2 / 4, gap - 1).mean()
    assert found.item() == pytest.approx(float(expected), rel=1e-4)


def in_autocast(lesson: Lesson, batch: Batch) -> dict[str, Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        found: dict[str, Tensor] = lesson(batch, 1)
    return found


def all_cast(lesson: Lesson, batch: Batch) -> dict[str, Tensor]:
    found: dict[str, Tensor] = lesson.bfloat16()(batch, 1)
    return found


@pytest.mark.parametrize("half", [in_autocast, all_cast])
@pytest.mark.parametrize("heads", [True, False])
def test_labels_and_losses_stay_fp32_whatever_the_engine(
    half: Callable[[Lesson, Batch], dict[str, Tensor]], heads: bool
) -> None:
    if heads:
        loss = Losses(**{name: 1.0 for name in vars(Losses())})
    else:
        loss = Losses(alone=1, alone_pooled=1, rank=1, teacher=1, feature=1, answers=1)
    recipe = replace(RECIPE, loss=loss, teacher=Teacher("internvqa-tiny"))
    batch = batch_of()
    whole = Lesson(made(0, heads), made(1, heads), recipe)(batch, 1)
    found = half(Lesson(made(0, heads), made(1, heads), recipe), batch)
    assert set(found) == {name for name, weight in vars(loss).items() if weight}
    assert batch.scores.dtype == torch.float32
    for name, value in found.items():
        assert value.dtype == torch.float32, name
        assert value.item() == pytest.approx(whole[name].item(), rel=0.15, abs=0.02), name


# --- the teacher ---------------------------------------------------------------------------------


def training(student: Student) -> set[str]:
    return {name for name, p in student.named_parameters() if p.requires_grad}


def test_what_of_a_teacher_trains() -> None:
    teacher = made(0)
    backbone = {n for n in teacher.state_dict() if n.startswith("backbone.")}
    last = {n for n in backbone if n.startswith("backbone.blocks.1.")}
    head = {"backbone.head.weight", "backbone.head.bias"}
    outside = {n for n in backbone if "blocks." not in n}
    assert len(last) == 13 and "backbone.pos_embed" in outside
    freeze(teacher, "paper")
    assert training(teacher) == last | head
    freeze(teacher, "as_released")
    assert training(teacher) == last | outside
    freeze(teacher, "all")
    assert training(teacher) == set()


def test_what_of_another_family_trains() -> None:
    torch.manual_seed(0)
    teacher = Student(FastVQA(MINI_SWIN), heads=False)
    names = {name for name, _ in teacher.named_parameters()}
    last = {n for n in names if ".layers.3.blocks.0." in n}
    freeze(teacher, "paper")
    assert training(teacher) == last | {n for n in names if n.startswith("backbone.vqa_head.")}
    assert len(last) > 5
    freeze(teacher, "as_released")
    assert training(teacher) == last | {n for n in names if "blocks." not in n}


@pytest.mark.parametrize(("kind", "count"), [("paper", 25_249_537), ("as_released", 36_008_961)])
def test_parameters_of_the_papers_teacher_that_train(kind: str, count: int) -> None:
    with torch.device("meta"):
        teacher = create_student("internvqa-1b", heads=False)
    freeze(teacher, kind)
    assert sum(p.numel() for p in teacher.parameters() if p.requires_grad) == count


def test_a_feature_of_another_width_is_brought_to_the_teachers() -> None:
    with torch.device("meta"):
        student = create_student("fastvqa-base", heads=False)
        teacher = create_student("internvqa-1b", heads=False)
        lesson = Lesson(student, teacher, RECIPE)
        same = Lesson(create_student("fastvqa-tiny", heads=False), teacher, RECIPE)
    assert isinstance(lesson.bridge, torch.nn.Linear)
    assert lesson.bridge.weight.shape == (768, 1024)
    assert not list(same.bridge.parameters())


def test_the_bridge_is_crossed_and_learns() -> None:
    torch.manual_seed(0)
    student, teacher = Student(FastVQA(MINI_SWIN), heads=False), made(1, heads=False)
    lesson = Lesson(student, teacher, with_losses(feature=1.0))
    rng = np.random.default_rng(0)
    clips = pixels(rng, 8, size=32)
    batch = Batch(clips, torch.rand(4, 2, 1), torch.rand(2, 2, 1), None, pixels(rng, 8))
    found = lesson(batch, 0)["feature"]
    with torch.no_grad():
        mine = lesson.bridge(student.look(to_clips(clips)).feature)
        assert batch.shown is not None
        theirs = teacher.look(to_clips(batch.shown)).feature
        gap = (plain_norm(mine) - plain_norm(theirs)).abs()
    expected = torch.where(gap < 2, gap**2 / 4, gap - 1).mean()
    assert found.item() == pytest.approx(float(expected), rel=1e-4)
    found.backward()
    grads = [p.grad for p in lesson.bridge.parameters()]
    assert len(grads) == 2 and all(g is not None and g.any() for g in grads)
