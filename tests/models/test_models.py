"""Models by name: counts, names and shapes of all parameters, and what every model offers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.nets import MINI, MINI_SWIN, noise, published_shapes, shaken
from vqaloop.errors import InputError
from vqaloop.models import CONFIGS, MODELS, config_of, create_model, create_student
from vqaloop.models.fastvqa import FastVQA
from vqaloop.models.internvideo2 import InternVideo2


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("internvqa-small", 23_046_145),
        ("internvqa-base", 89_441_281),
        ("internvqa-1b", 1_020_710_913),
        ("fastvqa-tiny", 28_127_901),
        ("fastvqa-base", 88_495_569),
        ("rankdvqa", 4_594_938),
        ("rankdvqa-mini", 449_830),
        ("swinv2-c2f-tiny", 31_111_723),
        ("swinv2-c2f-mini", 808_509),
        ("qmamba-tiny", 27_508_513),
        ("qmamba-mini", 344_929),
        ("qmamba-mini-2way", 329_697),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, count: int) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == count


def test_unknown_model_is_refused_with_the_list() -> None:
    with pytest.raises(InputError, match="internvqa-small.*fastvqa-tiny"):
        create_model("internvqa-huge")
    with pytest.raises(InputError, match="the students are internvqa-"):
        config_of("fastvqa-tiny")
    with pytest.raises(InputError, match="fastvqa-tiny takes no token heads.*rankdvqa"):
        create_student("fastvqa-tiny")
    with pytest.raises(InputError, match="rankdvqa-mini compares clips with their source"):
        create_student("rankdvqa-mini", heads=False)


@pytest.mark.parametrize(
    ("name", "width", "hidden", "depth"),
    [
        ("internvqa-small", 384, 1536, 12),
        ("internvqa-base", 768, 3072, 12),
        ("internvqa-1b", 1408, 6144, 40),
    ],
)
def test_state_dict_has_the_keys_of_the_checkpoints(
    name: str, width: int, hidden: int, depth: int
) -> None:
    with torch.device("meta"):
        found = {key: tuple(v.shape) for key, v in create_model(name).state_dict().items()}
    assert found == published_shapes(width, hidden, depth, tokens=2049)


def test_head_can_have_the_classes_of_kinetics() -> None:
    with torch.device("meta"):
        model = InternVideo2(replace(CONFIGS["internvqa-small"], outputs=400))
    assert sum(p.numel() for p in model.parameters()) == 23_352_976


def judges() -> list[tuple[InternVideo2 | FastVQA, torch.Tensor]]:
    """One shaken net of each family with clips for it."""
    found: list[tuple[InternVideo2 | FastVQA, torch.Tensor]] = [
        (InternVideo2(MINI), noise(2, 3, 2, 28, 28)),
        (FastVQA(MINI_SWIN), noise(2, 3, 8, 32, 64)),
    ]
    for model, _ in found:
        shaken(model, scale=0.05)
    return found


def test_judge_gives_the_score_of_forward_and_a_feature() -> None:
    for model, clips in judges():
        score, feature = model.judge(clips)
        assert score.shape == (2,) and feature.shape == (2, model.feature_width)
        torch.testing.assert_close(score[:, None], model(clips))
        assert score[0] != score[1] and feature.std() > 0.01


def test_features_compare_across_families_where_their_widths_agree() -> None:
    with torch.device("meta"):
        widths = {name: create_model(name).feature_width for name in MODELS}
    assert widths.pop("fastvqa-base") == 1024
    released = {name for name in widths if name.startswith(("internvqa", "fastvqa"))}
    assert len(released) == 6 and {widths[name] for name in released} == {768}


def test_a_judge_has_one_output() -> None:
    with pytest.raises(ValueError, match="400"):
        InternVideo2(replace(MINI, outputs=400)).judge(noise(1, 3, 2, 28, 28))


def test_model_cast_to_bf16_takes_fp32_clips_and_answers_nearly_alike() -> None:
    for model, clips in judges():
        with torch.no_grad():
            score, feature = model.judge(clips)
        in_bf16, feature_in_bf16 = model.bfloat16().judge(clips)
        assert in_bf16.dtype == feature_in_bf16.dtype == torch.float32
        assert model(clips).dtype == torch.bfloat16
        assert score.std() > 0
        torch.testing.assert_close(in_bf16, score, atol=0.02, rtol=0.05)
        torch.testing.assert_close(
            feature_in_bf16, feature, atol=0.06 * feature.abs().max().item(), rtol=0
        )


def test_patches_of_a_model_cast_to_bf16_stay_fp32() -> None:
    for model, clips in judges():
        model.bfloat16()
        inner = model if isinstance(model, InternVideo2) else model.fragments_backbone
        embed = inner.patch_embed
        found = embed(clips)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, embed.float()(clips), rtol=0, atol=0)


def test_bf16_gradients_reach_every_parameter() -> None:
    for model, clips in judges():
        model.bfloat16()
        score, feature = model.judge(clips)
        torch.autograd.backward(score.square().sum() + feature.square().mean())
        without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert without == []


def test_autocast_gives_nearly_the_fp32_score() -> None:
    for model, clips in judges():
        score, _ = model.judge(clips)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(model.judge(clips)[0], score, atol=0.02, rtol=0.05)


def test_score_does_not_depend_on_the_batch() -> None:
    for model, clips in judges():
        together = model.judge(clips)[0]
        alone = torch.cat([model.judge(clip[None])[0] for clip in clips])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
        assert np.isfinite(together.detach().numpy()).all()
