"""One step of training: what is drawn, how it is changed, what of a teacher trains."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.lessons import RECIPE, SHARDS, found_at, made, opinions, origin
from tests.support.nets import MINI_SWIN, noise
from vqaloop.models import create_student
from vqaloop.models.fastvqa import FastVQA
from vqaloop.models.student import OUTPUTS, Student
from vqaloop.training.step import FEATURE_SCALES, TrainingModel, augmented, draw, freeze

# --- drawing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_drawn_clips_belong_together(seed: int) -> None:
    batch = draw(SHARDS, RECIPE, np.random.default_rng(seed))
    assert batch.reference is not None and batch.teacher_view is None
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
            assert whole.region_labels is not None
            crops.append(crop)
            encodes.append([])
            for i in range(2):
                clip = batch.distorted[2 * group + i]
                encodes[-1].append(found_at(clip, whole.distorted[:, crop]))
                label = whole.region_labels[encodes[-1][-1], crop]
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
    assert batch.teacher_view is not None
    assert torch.equal(batch.teacher_view, batch.distorted + 1)


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
        model = TrainingModel(student, teacher, RECIPE)
        same = TrainingModel(create_student("fastvqa-tiny", heads=False), teacher, RECIPE)
    assert isinstance(model.bridge, torch.nn.Linear)
    assert model.bridge.weight.shape == (768, 1024)
    assert not list(same.bridge.parameters())
