"""One step of training: what is drawn, how it is changed, what of a teacher trains."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.lessons import CROPS, RECIPE, SHARDS, found_at, made, opinions, origin
from tests.support.nets import MINI_SWIN, noise
from vqaloop.models import create_student
from vqaloop.models.fastvqa import FastVQA
from vqaloop.models.student import Student
from vqaloop.training.batch import UNKNOWN_STREAMS, draw
from vqaloop.training.shards import FDIM_FEATURES
from vqaloop.training.step import TrainingModel, augmented, freeze

# --- drawing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_drawn_clips_belong_together(seed: int) -> None:
    batch = draw(SHARDS, RECIPE, np.random.default_rng(seed))
    assert batch.reference is not None and batch.teacher_view is None
    assert batch.heights is not None and batch.fdim is not None
    # 2 scenes of 2 regions of 2 crops, of 2 encodes
    assert batch.reference.shape == (8, 2, 42, 28) and batch.distorted.shape == (16, 2, 42, 28)
    assert batch.labels.shape == (4, 2, 3) and batch.pooled.shape == (2, 2, 3)
    assert batch.fdim.shape == (4, 2, FDIM_FEATURES)
    assert batch.labels.dtype == batch.pooled.dtype == torch.float32
    names = []
    for scene in range(2):
        regions: list[int] = []
        encodes: list[list[int]] = []
        for group in (2 * scene, 2 * scene + 1):
            whole, first = origin(batch.reference[CROPS * group])
            assert whole.region_labels is not None and whole.fdim_features is not None
            regions.append(first // CROPS)
            for crop in range(CROPS):
                at = CROPS * group + crop
                assert origin(batch.reference[at]) == (whole, first + crop)
                clips = batch.distorted[2 * at : 2 * at + 2]
                encodes.append([found_at(c, whole.distorted[:, first + crop]) for c in clips])
            for i, encode in enumerate(encodes[-1]):
                same: dict[str, Any] = {"rtol": 0, "atol": 0, "equal_nan": True}
                label = whole.region_labels[encode, regions[-1]]
                torch.testing.assert_close(batch.labels[group, i], label, **same)
                feature = whole.fdim_features[encode, regions[-1]].float()
                torch.testing.assert_close(batch.fdim[group, i], feature, **same)
        # the same encodes at each crop, so that crops can be pooled; none twice
        assert all(chosen == encodes[0] for chosen in encodes)
        assert len(set(encodes[0])) == len(set(regions)) == 2
        places = {whole.places[region] for region in regions}
        assert len(places) == min(2, len(set(whole.places))), "of different places"
        assert whole.frame_labels is not None and whole.canvas is not None
        for i, encode in enumerate(encodes[0]):
            mean = whole.frame_labels[encode, regions].mean(0)
            torch.testing.assert_close(batch.pooled[scene, i], mean, equal_nan=True)
        assert batch.heights[scene] == whole.canvas[1]
        names.append(whole.name)
    assert len(set(names)) == 2


def test_facts_of_the_encodes_drawn_but_of_a_fifth_none() -> None:
    left_out, rng = [], np.random.default_rng(0)
    for _ in range(100):
        batch = draw(SHARDS, RECIPE, rng)
        assert batch.reference is not None and batch.stream is not None
        assert batch.stream.shape == (2, 2, 3) and batch.stream.dtype == torch.float32
        for scene in range(2):
            whole, first = origin(batch.reference[2 * CROPS * scene])
            for e, clip in enumerate(batch.distorted[4 * CROPS * scene :][:2]):
                encode = found_at(clip, whole.distorted[:, first])
                found = batch.stream[scene, e]
                left_out.append(not found.any())
                assert left_out[-1] or torch.equal(found, whole.stream[encode])
    assert np.mean(left_out) == pytest.approx(UNKNOWN_STREAMS, abs=0.06)


def test_the_same_draw_for_the_same_step() -> None:
    one, same, other = (draw(SHARDS, RECIPE, np.random.default_rng([0, s])) for s in (5, 5, 6))
    assert torch.equal(one.distorted, same.distorted)
    assert torch.equal(one.labels[..., 0], same.labels[..., 0])
    assert not torch.equal(one.distorted, other.distorted)


def test_what_is_scarce_comes_twice() -> None:
    many = replace(RECIPE, regions=7, encodes=6)
    batch = draw(SHARDS, many, np.random.default_rng(0))
    assert batch.distorted.shape[0] == 2 * 7 * CROPS * 6
    assert batch.labels.shape == (14, 6, 3)


def test_scenes_with_more_come_up_more_often() -> None:
    one = replace(RECIPE, scenes=1, regions=1, encodes=1)
    rng = np.random.default_rng(0)
    names = []
    for _ in range(400):
        reference = draw(SHARDS, one, rng).reference
        assert reference is not None
        names.append(origin(reference[0])[0].name)
    # 3 x 8, 5 x 8 and 3 x 4 clips
    for name, part in (("a", 12 / 38), ("b", 20 / 38), ("c", 6 / 38)):
        assert names.count(name) / 400 == pytest.approx(part, abs=0.08)


@pytest.mark.parametrize(
    ("attacks", "there", "share"),
    [
        (0.0, (3, 4), 0.0),
        (0.25, (3, 4), 0.25),
        (1.0, (3, 4), 1.0),
        (0.5, (), 0.0),
        (0.0, range(5), 1.0),
    ],
)
def test_a_share_of_the_encodes_is_damaged(
    attacks: float, there: Sequence[int], share: float
) -> None:
    whole = SHARDS[1]
    damage = {"name": "flicker", "strength": 0.5}
    rows = [
        {**row, "attack": damage if e in there else None} for e, row in enumerate(whole.encodes)
    ]
    recipe = replace(RECIPE, scenes=1, regions=1, encodes=4, attacks=attacks)
    rng, found = np.random.default_rng(0), []
    for _ in range(60):
        batch = draw([replace(whole, encodes=rows)], recipe, rng)
        assert batch.reference is not None
        crop = origin(batch.reference[0])[1]
        found += [
            found_at(clip, whole.distorted[:, crop]) in there for clip in batch.distorted[:4]
        ]
    assert np.mean(found) == pytest.approx(share, abs=0.08 if 0 < share < 1 else 0)


def test_scenes_without_features_have_none_in_the_batch() -> None:
    some = [replace(SHARDS[0], fdim_features=None), *SHARDS[1:]]
    for seed in range(4):
        batch = draw(some, RECIPE, np.random.default_rng(seed))
        assert batch.reference is not None and batch.fdim is not None
        for group in range(4):
            name = origin(batch.reference[CROPS * group])[0].name
            if name == "a":
                assert batch.fdim[group].isnan().all()
    none = [replace(shard, fdim_features=None) for shard in SHARDS]
    assert draw(none, RECIPE, np.random.default_rng(0)).fdim is None


def test_opinion_scores_are_labels_of_every_crop() -> None:
    scored = [opinions(s) for s in SHARDS]
    batch = draw(
        [replace(s, reference=w.reference) for s, w in zip(scored, SHARDS, strict=True)],
        RECIPE,
        np.random.default_rng(0),
    )
    assert draw(scored, RECIPE, np.random.default_rng(0)).reference is None
    assert batch.reference is not None and batch.distorted.shape[0] == 8
    assert batch.labels.shape == (4, 2, 1) and batch.pooled.shape == (2, 2, 1)
    for group in range(4):
        source, crop = origin(batch.reference[group])
        for i in range(2):
            encode = found_at(batch.distorted[2 * group + i], source.distorted[:, crop])
            expected = source.encodes[encode]["score"] / 100
            assert batch.labels[group, i].item() == pytest.approx(expected)
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
