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
    CROPS,
    RECIPE,
    SHARDS,
    batch_of,
    made,
    opinions,
    pixels,
    shard,
    with_losses,
)
from tests.support.nets import MINI_SWIN, Values, noise
from vqaloop.errors import InputError
from vqaloop.media.colour import to_clips
from vqaloop.models.fastvqa import FastVQA
from vqaloop.models.student import STATISTICS, Student, StudentOutput
from vqaloop.training.batch import Batch, draw
from vqaloop.training.losses import (
    FIDELITY_SCALE,
    PAIR_TIE,
    PREFERENCE_SCALE,
    TEMPERATURE,
    class_rank_loss,
    fidelity_loss,
    group_contrast,
    masked_mse,
    ordered_loss,
    pair_loss,
    preference_losses,
)
from vqaloop.training.recipe import Losses, Teacher
from vqaloop.training.step import TrainingModel, freeze


@pytest.fixture(autouse=True)
def whole_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks in fp32, also on processors that multiply bf16."""
    monkeypatch.setattr("vqaloop.training.step.autocast", lambda device: contextlib.nullcontext())


def labels_and_scores() -> tuple[Tensor, Tensor]:
    labels = torch.rand(3, 4, generator=torch.Generator().manual_seed(5))
    labels[0, 1] = labels[0, 0] + 0.05  # as good as equal
    labels[2, 3] = torch.nan
    return labels, noise(3, 4).abs() / 4


def test_pairs_of_one_scene_and_of_two_by_hand() -> None:
    labels, scores = labels_and_scores()
    total, count = 0.0, 0
    for i, y in enumerate(labels.flatten().tolist()):
        for j, z in enumerate(labels.flatten().tolist()):
            if abs(y - z) > PAIR_TIE:
                right = float(scores.flatten()[i] - scores.flatten()[j]) * math.copysign(1, y - z)
                total += math.log1p(math.exp(-right / PREFERENCE_SCALE))
                count += 1
    assert count < 12 * 11 - 22
    assert pair_loss(scores, labels).item() == pytest.approx(total / count, rel=1e-5)
    assert pair_loss(scores, torch.full((3, 4), 0.5)).item() == 0
    clear = torch.tensor([[0.1, 0.5, 0.9]])
    assert pair_loss(clear, clear) < 0.1 < 3 < pair_loss(clear.flip(1), clear)


def test_fidelity_of_preferences_by_hand() -> None:
    labels, scores = labels_and_scores()

    def preference(x: float, y: float) -> float:
        return 1 / (1 + math.exp(-FIDELITY_SCALE * (x - y)))

    known = [i for i in range(12) if i != 11]
    flat = [x.flatten().tolist() for x in (scores, labels)]
    alike = []
    for i in known:
        for j in known:
            if i < j:
                p, q = (preference(x[i], x[j]) for x in flat)
                alike.append(math.sqrt(p * q) + math.sqrt((1 - p) * (1 - q)))
    expected = 1 - fmean(alike)
    assert fidelity_loss(scores, labels).item() == pytest.approx(expected, rel=1e-4)
    known_labels = labels.nan_to_num(0.3)
    assert fidelity_loss(known_labels, known_labels).item() == pytest.approx(0, abs=1e-6)
    far = torch.tensor([[0.0, 1.0]], requires_grad=True)
    fidelity_loss(far, torch.tensor([[1.0, 0.0]])).backward()  # type: ignore[no-untyped-call]
    assert far.grad is not None and far.grad.isfinite().all()


CLASSES = torch.tensor([[0.0, 1.0, math.nan], [0.0, 2.0, 1.0], [1.0, 0.0, 0.0]])
"""Of three groups of three encodes."""


def test_group_contrast_by_hand() -> None:
    features = noise(3, 3, 5)
    unit = (features / features.norm(dim=-1, keepdim=True)).double().numpy()
    # groups 0 and 2 are one half, group 1 the other; class 2 is in one half alone
    first = {
        0: [unit[0, 0], unit[2, 1], unit[2, 2]],
        1: [unit[0, 1], unit[2, 0]],
    }
    second = {0: [unit[1, 0]], 1: [unit[1, 2]]}
    c, d = ([np.mean(half[k], axis=0) for k in (0, 1)] for half in (first, second))
    parts = []
    for i in range(2):
        alike = [math.exp(c[i] @ d[j] / TEMPERATURE) for j in range(2)]
        parts.append(-math.log(alike[i] / sum(alike)))
    assert group_contrast(features, CLASSES).item() == pytest.approx(fmean(parts), rel=1e-5)
    apart = torch.eye(3)[CLASSES.nan_to_num().int()]
    assert group_contrast(apart, CLASSES) < 0.2 < group_contrast(torch.ones(3, 3, 5), CLASSES)
    alone = features.requires_grad_()
    lonely = group_contrast(alone, torch.zeros(3, 3))
    assert lonely.item() == 0 and lonely.requires_grad


def test_ranks_inside_a_class_by_hand() -> None:
    labels, scores = (x[:, :3] for x in labels_and_scores())
    labels[1, 2] = torch.nan
    flat = [x.flatten().tolist() for x in (scores, labels, CLASSES)]
    short = []
    for i in range(9):
        for j in range(9):
            if i != j and flat[2][i] == flat[2][j] and 5 not in (i, j):
                gap, wanted = (x[i] - x[j] for x in flat[:2])
                short.append(max(0.0, abs(wanted) - math.copysign(1, wanted) * gap))
    found = class_rank_loss(scores, labels, CLASSES)
    assert found.item() == pytest.approx(fmean(short), rel=1e-5)
    assert class_rank_loss(labels, labels, CLASSES).item() == pytest.approx(0, abs=1e-6)
    assert class_rank_loss(scores, labels, CLASSES * torch.nan).item() == 0


def test_classes_of_bitrate_are_those_of_the_shards() -> None:
    one = SHARDS[1]
    assert one.canvas is not None and one.fps is not None
    expected = [
        math.log2(1000 * row["kbps"] / one.fps / math.prod(one.canvas)) for row in one.encodes
    ]
    assert one.rates.tolist() == pytest.approx(expected, abs=1e-4)
    assert replace(one, fps=None).rates.isnan().all()
    batch = draw([one], replace(RECIPE, scenes=1), np.random.default_rng(0))
    assert batch.rates is not None and batch.rates.shape == (1, 2)
    assert all(rate in one.rates for rate in batch.rates[0])
    weights = with_losses(region=1, coarse=1, fine=1)
    found = TrainingModel(made(0), None, weights)(batch_of(), 0)
    assert set(found) == {"region", "coarse", "fine"} and found["fine"] > 0
    bare = replace(batch_of(), rates=None)
    with pytest.raises(InputError, match="coarse and fine a set of scenes with their bitrates"):
        TrainingModel(made(0), None, weights)(bare, 0)


def test_preferences_of_student_and_teacher_by_hand() -> None:
    _, scores = labels_and_scores()
    known = scores.flip(0) * 0.7

    def preferences(x: Tensor) -> Values:
        flat = x.flatten().double().numpy()
        return np.asarray(1 / (1 + np.exp(-(flat - np.roll(flat, -1)) / PREFERENCE_SCALE)))

    p, q = preferences(scores), preferences(known)
    instance = -np.mean(q * np.log(p) + (1 - q) * np.log(1 - p))
    batch = np.square(np.outer(q, q) - np.outer(p, p)).sum() / 12
    expected = instance + batch + (q @ q - p @ p) ** 2
    assert preference_losses(scores, known).item() == pytest.approx(expected, rel=1e-4)
    entropy = -np.mean(p * np.log(p) + (1 - p) * np.log(1 - p))
    assert preference_losses(scores, scores).item() == pytest.approx(entropy, rel=1e-4)


def test_labels_that_were_not_measured_have_no_part() -> None:
    labels, scores = labels_and_scores()
    without = [x.flatten()[:11] for x in (scores, labels)]
    assert masked_mse(scores, labels).item() == pytest.approx(
        float((without[0] - without[1]).square().mean())
    )
    assert masked_mse(scores, labels * torch.nan).item() == 0
    expected = []
    for group, count in ((0, 4), (1, 4), (2, 3)):
        gap = (scores - labels)[group, :count]
        expected += (gap - gap.mean()).square().tolist()
    assert ordered_loss(scores, labels).item() == pytest.approx(fmean(expected), rel=1e-5)


def test_losses_against_labels_by_a_plain_loop() -> None:
    student = made(0)
    parts = Losses(
        region=1, pooled=1, ordered=1, auxiliary=1, alone=1, alone_pooled=1, pairs=1, fidelity=1
    )
    recipe = replace(RECIPE, loss=parts)
    batch = batch_of()
    found = TrainingModel(student, None, recipe)(batch, 0)
    assert set(found) == {name for name, weight in vars(parts).items() if weight}
    assert all(value.dtype == torch.float32 and value.ndim == 0 for value in found.values())

    assert batch.reference is not None and batch.heights is not None
    assert batch.stream is not None and batch.stream.any()
    squares: dict[str, list[float]] = {name: [] for name in found}
    others: dict[str, list[float]] = {"region": [], "pooled": [], "alone": [], "alone_pooled": []}

    def square(name: str, answer: Tensor, label: Tensor) -> None:
        squares[name].append(float((answer[0] - label[0]) ** 2))
        pairs = zip(answer[1:], label[1:], strict=True)
        others[name] += [float((a - b) ** 2) for a, b in pairs if not b.isnan()]

    with torch.no_grad():
        scores = torch.zeros(2, 4, 2)  # alone and anchored
        for scene in range(2):
            height = float(batch.heights[scene])
            for e in range(2):
                means: dict[str, list[Tensor]] = {"alone_pooled": [], "pooled": []}
                for group in (2 * scene, 2 * scene + 1):
                    pairs: dict[str, list[Tensor]] = {"alone": [], "anchored": []}
                    for crop in range(CROPS * group, CROPS * group + CROPS):
                        clip = to_clips(batch.distorted[2 * crop + e][None])
                        anchor = student.anchor(to_clips(batch.reference[crop][None]), height)
                        look = student.look(clip, anchor, height)
                        assert look.anchored is not None
                        pairs["alone"].append(torch.stack(look.alone))
                        pairs["anchored"].append(torch.stack(look.anchored))
                    of = {head: torch.stack(some).sum(0)[:, 0] for head, some in pairs.items()}
                    stream = batch.stream[scene, e]
                    alone = student.alone_answers(of["alone"][0], of["alone"][1], height, stream)
                    against = student.anchored_answers(
                        of["anchored"][0], of["anchored"][1], height
                    )
                    square("alone", alone, batch.labels[group, e])
                    square("region", against, batch.labels[group, e])
                    scores[0, group, e], scores[1, group, e] = alone[0], against[0]
                    means["alone_pooled"].append(alone)
                    means["pooled"].append(against)
                for name, answers in means.items():
                    square(name, torch.stack(answers).mean(0), batch.pooled[scene, e])
        for group in range(4):
            label, score = batch.labels[group, :, 0], scores[1, group]
            for e in range(2):
                gap = (score[e] - score.mean()) - (label[e] - label.mean())
                squares["ordered"].append(float(gap**2))
        expected = {name: fmean(errors) for name, errors in squares.items() if errors}
        expected["auxiliary"] = sum(fmean(errors) for errors in others.values())
        expected["pairs"] = sum(pair_loss(x, batch.labels[..., 0]).item() for x in scores)
        expected["fidelity"] = sum(fidelity_loss(x, batch.labels[..., 0]).item() for x in scores)
    assert {k: v.item() for k, v in found.items()} == pytest.approx(expected, rel=2e-3)


def test_the_anchored_head_teaches_the_other_token_by_token() -> None:
    model, batch = TrainingModel(made(0), None, with_losses(dense=1.0)), batch_of()
    found = model(batch, 0)["dense"]
    student = model.student
    assert batch.heights is not None and batch.reference is not None
    squares = weights = 0.0
    with torch.no_grad():
        for clip in range(16):
            height = float(batch.heights[clip // 8])
            source = to_clips(batch.reference[clip // 2, None])
            anchor = student.anchor(source, height)
            look = student.look(to_clips(batch.distorted[clip, None]), anchor, height)
            assert look.values is not None
            alone, anchored, weight = (x.double() for x in look.values)
            assert alone.shape == anchored.shape == (1, 8, STATISTICS + 2)
            assert torch.equal(weight, anchor.weights.double())
            squares += float((weight * (alone - anchored) ** 2).sum())
            weights += float(weight.sum())
    assert found.item() == pytest.approx(squares / weights, rel=1e-3)
    found.backward()
    assert student.alone is not None and student.anchored is not None
    assert student.alone.value.weight.grad is not None
    parts = [p.grad for n, p in student.anchored.named_parameters() if not n.startswith("project")]
    assert not any(g is not None and g.any() for g in parts)


def test_a_projection_learns_what_fdim_sees_of_a_region() -> None:
    torch.manual_seed(0)
    model, batch = TrainingModel(made(0), None, with_losses(fdim=1.0)), batch_of()
    found = model(batch, 0)["fdim"]
    assert batch.reference is not None and batch.fdim is not None
    errors = []
    with torch.no_grad():
        height = float(batch.heights[0]) if batch.heights is not None else None
        for group in (0, 1):
            for e in range(2):
                crops = range(CROPS * group, CROPS * group + CROPS)
                clips = to_clips(torch.stack([batch.distorted[2 * c + e] for c in crops]))
                source = to_clips(batch.reference[crops.start : crops.stop])
                look = model.student.look(clips, model.student.anchor(source, height), height)
                assert look.anchored is not None
                sums, weights = (x.sum(0)[:STATISTICS] for x in look.anchored)
                seen = model.fdim(torch.cat([look.feature.mean(0), sums / weights]))
                gap = (plain_norm(seen) - plain_norm(batch.fdim[group, e])).abs()
                if not gap.isnan().any():
                    errors.append(torch.where(gap < 1, gap**2 / 2, gap - 0.5).mean().item())
    assert 0 < len(errors) < 4 or not batch.fdim[:2].isnan().any()
    one = replace(batch, fdim=torch.cat([batch.fdim[:2], batch.fdim[2:] * torch.nan]))
    assert model(one, 0)["fdim"].item() == pytest.approx(fmean(errors), rel=2e-3)
    found.backward()
    assert {"patch_embed.proj.weight"} <= reached(model.student)
    anchored = model.student.anchored
    assert anchored is not None and anchored.value.weight.grad is not None
    assert all(p.grad is not None and p.grad.any() for p in model.fdim.parameters())
    assert not any("fdim" in name for name in model.student.state_dict())


def test_only_parts_with_a_weight_are_computed() -> None:
    found = TrainingModel(made(0), None, with_losses(alone=0.5, pairs=2.0))(batch_of(), 0)
    assert set(found) == {"alone", "pairs"}


def test_a_part_that_cannot_be_computed_is_named() -> None:
    batch = draw([opinions(s) for s in SHARDS], RECIPE, np.random.default_rng(0))
    for weights, says in (
        (
            {"region": 1.0, "auxiliary": 1.0, "alone": 1.0},
            "region, auxiliary of the loss cannot be",
        ),
        ({"alone": 1.0, "auxiliary": 0.5}, "^auxiliary of the loss"),
        ({"alone": 1.0, "fdim": 0.5}, "^fdim of the loss"),
        ({"alone": 1.0, "ordered": 0.5, "pooled": 1.0}, "^pooled, ordered of the loss"),
        ({"alone": 1.0, "dense": 0.5}, "^dense of the loss"),
    ):
        with pytest.raises(InputError, match=says):
            TrainingModel(made(0), None, with_losses(**weights))(batch, 0)
    taught = with_losses(alone=1.0, levels=1.0)
    for heads in ((True, False), (False, True)):
        with pytest.raises(InputError, match="^levels of the loss"):
            TrainingModel(made(0, heads[0]), made(1, heads[1]), taught)(batch, 0)


def test_clips_that_fit_no_patches_are_refused() -> None:
    batch = replace(batch_of(), distorted=pixels(np.random.default_rng(0), 16, size=30))
    with pytest.raises(InputError, match="the corpus does not fit internvqa-mini"):
        TrainingModel(made(0), None, with_losses(alone=1.0))(batch, 0)


@pytest.mark.parametrize("cast", [False, True])
def test_precision_is_the_models_own(cast: bool) -> None:
    """An engine may switch autocast on or off around it."""
    parts = Losses(region=1, pooled=1, alone=1, levels=1, answers=1)
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
    label = batch.labels.flatten().double()
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


def of_regions(student: Student, batch: Batch) -> tuple[list[StudentOutput], list[Tensor]]:
    """What a student computes of each clip; its answers to each region, alone then anchored."""
    assert batch.reference is not None and batch.heights is not None
    clips, source = to_clips(batch.distorted), to_clips(batch.reference)
    looks: list[StudentOutput] = []
    answers: list[Tensor] = []
    for group in range(4):
        height = float(batch.heights[group // 2])
        for e in range(2):
            pooled: dict[str, list[Tensor]] = {"alone": [], "anchored": []}
            for crop in range(CROPS * group, CROPS * group + CROPS):
                anchor = student.anchor(source[crop, None], height) if student.anchored else None
                looks.append(student.look(clips[2 * crop + e, None], anchor, height))
                pooled["alone"].append(torch.stack(looks[-1].alone))
                if looks[-1].anchored is not None:
                    pooled["anchored"].append(torch.stack(looks[-1].anchored))
            of = torch.stack(pooled["alone"]).sum(0)
            stream = None if batch.stream is None else batch.stream[group // 2, e]
            answers.append(student.alone_answers(of[0], of[1], height, stream)[0])
            if pooled["anchored"]:
                of = torch.stack(pooled["anchored"]).sum(0)
                answers.append(student.anchored_answers(of[0], of[1], height)[0])
    return looks, answers


def test_what_a_teacher_answers_by_hand() -> None:
    student, teacher = made(0), made(1)
    batch = batch_of()
    recipe = with_losses(levels=1.0, answers=1.0, preferences=1.0)
    found = TrainingModel(student, teacher, recipe)(batch, 0)
    with torch.no_grad():
        (looks, mine), (others, theirs) = (of_regions(one, batch) for one in (student, teacher))
        levels = [
            (a - b).square().mean().item()
            for x, y in zip(looks, others, strict=True)
            for a, b in zip(x.projected, y.projected, strict=True)
        ]
        gaps = (torch.stack(mine) - torch.stack(theirs)).square()
        scores = [torch.stack(x)[:, 0].reshape(8, 2).T for x in (mine, theirs)]
        preferences = sum(preference_losses(x, y) for x, y in zip(*scores, strict=True))
    assert found["levels"].item() == pytest.approx(np.mean(levels), rel=1e-3)
    answers = gaps[::2].mean() + gaps[1::2].mean()
    assert found["answers"].item() == pytest.approx(answers.item(), rel=1e-3)
    assert found["preferences"].item() == pytest.approx(float(preferences), rel=1e-3)


@pytest.mark.parametrize("heads", [(True, False), (False, True)])
@pytest.mark.filterwarnings("error")
def test_answers_compare_what_both_can_say(heads: tuple[bool, bool]) -> None:
    student, teacher = made(0, heads[0]), made(1, heads[1])
    batch = batch_of()
    found = TrainingModel(student, teacher, with_losses(answers=1.0))(batch, 0)
    with torch.no_grad():
        of = [of_regions(one, batch)[1] for one in (student, teacher)]
        mine, theirs = (torch.stack(x[:: len(x) // 8])[:, 0] for x in of)
    expected = (mine - theirs).square().mean()
    torch.testing.assert_close(found["answers"], expected, rtol=1e-3, atol=1e-6)


def test_the_teacher_looks_at_its_own_view() -> None:
    student, teacher = made(0, heads=False), made(1, heads=False)
    recipe = with_losses(feature=1.0)
    wide = [shard(s.name, 9, len(s.encodes), len(s.places), size=42) for s in SHARDS]
    batch = draw(SHARDS, recipe, np.random.default_rng(0), wide)
    assert batch.teacher_view is not None and batch.teacher_view.shape == (16, 2, 63, 42)
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
        loss = Losses(
            alone=1, alone_pooled=1, pairs=1, fidelity=1, fdim=1, teacher=1, feature=1, answers=1,
            preferences=1,
        )  # fmt: skip
    recipe = replace(RECIPE, loss=loss, teacher=Teacher("internvqa-tiny"))
    batch = batch_of()
    whole = TrainingModel(made(0, heads), made(1, heads), recipe)(batch, 1)
    found = half(TrainingModel(made(0, heads), made(1, heads), recipe), batch)
    assert set(found) == {name for name, weight in vars(loss).items() if weight}
    assert batch.labels.dtype == torch.float32
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
