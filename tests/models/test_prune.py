"""A smaller student is cut out of a larger one."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.support.nets import MINI, noise, shaken
from vqaloop.errors import InputError
from vqaloop.models import create_student, rankdvqa
from vqaloop.models.head_config import HeadConfig
from vqaloop.models.internvideo2 import Config, InternVideo2
from vqaloop.models.prune import prune
from vqaloop.models.rankdvqa import RankDVQA
from vqaloop.models.student import Student

THIN = replace(MINI, width=32, depth=1, heads=1, mlp_width=40)


SECOND = HeadConfig(("panel", "dark"), change=True, worst=3, canvas=True)


def student(
    config: Config = MINI, seed: int = 0, heads: bool = True, of_heads: HeadConfig | None = None
) -> Student:
    torch.manual_seed(seed)
    made = Student(InternVideo2(config), heads, of_heads)
    shaken(made, seed)
    return made.eval()


def places(smaller: torch.Tensor, larger: torch.Tensor) -> list[int]:
    """Index in `larger` of each entry of `smaller`, both 1-D, of values all different."""
    assert len(set(larger.tolist())) == len(larger)
    found = [(larger == value).nonzero().flatten().tolist() for value in smaller]
    assert all(len(at) == 1 for at in found), "a value is not one of the larger student's"
    return [at[0] for at in found]


def test_mini_is_cut_out_of_tiny() -> None:
    torch.manual_seed(0)
    tiny, mini = create_student("internvqa-tiny"), create_student("internvqa-mini")
    shaken(tiny)
    shapes = {name: value.shape for name, value in mini.state_dict().items()}
    cut = prune(tiny, mini)
    assert cut is mini
    assert {name: value.shape for name, value in cut.state_dict().items()} == shapes
    clips = noise(1, 3, 2, 112, 112)
    with torch.inference_mode():
        assert cut(clips, clips).isfinite().all() and cut(clips).isfinite().all()


def test_every_value_is_one_of_the_larger_students() -> None:
    larger = student()
    kept = set(torch.cat([v.flatten() for v in larger.state_dict().values()]).tolist())
    for value in prune(larger, student(THIN, 1)).state_dict().values():
        assert set(value.flatten().tolist()) <= kept


def test_the_heaviest_channels_units_and_heads_are_kept() -> None:
    larger, smaller = student(), student(THIN, 1)
    blocks: Any = larger.backbone.blocks
    block = blocks[0]  # the one of two that a net of one block begins with
    with torch.no_grad():
        # the numbers of channels, units and heads that shall be seen to carry the most
        channels = torch.arange(1, 64, 2)
        units = torch.arange(96 - 40, 96)
        for each in blocks:
            each.attn.qkv.weight[:, channels] *= 5
            each.mlp.fc1.weight[:, channels] *= 5
        block.mlp.fc1.weight[units] *= 20
        block.attn.proj.weight[:, 32:] *= 20
    prune(larger, smaller)
    kept: Any = smaller.backbone.blocks
    cut = kept[0]
    one, other = larger.state_dict(), smaller.state_dict()
    for name in ("patch_embed.proj.bias", "blocks.0.norm1.weight", "clip_projector.norm1_k.bias"):
        found = places(other[f"backbone.{name}"], one[f"backbone.{name}"])
        assert found == channels.tolist(), name
    assert torch.equal(cut.mlp.fc1.weight, block.mlp.fc1.weight[units][:, channels])
    assert torch.equal(cut.mlp.fc2.weight, block.mlp.fc2.weight[channels][:, units])
    assert torch.equal(cut.mlp.fc1.bias, block.mlp.fc1.bias[units])
    # the second head of two: its 32 rows of the queries, of the keys and of the values
    rows = torch.cat([torch.arange(32, 64) + 64 * i for i in range(3)])
    assert torch.equal(cut.attn.qkv.weight, block.attn.qkv.weight[rows][:, channels])
    assert torch.equal(cut.attn.proj.weight, block.attn.proj.weight[channels][:, 32:])
    assert torch.equal(cut.attn.q_norm.weight, block.attn.q_norm.weight[32:])
    positions = "backbone.pos_embed"
    assert torch.equal(other[positions], one[positions][..., channels])
    # stacked inputs of the heads: signal, source and error, each of all channels
    stacked = torch.cat([channels + 64 * i for i in range(3)])
    compare = "anchored.compare_energy.weight"
    assert torch.equal(other[compare], one[compare][:, stacked])
    for whole in ("backbone.head.weight", "alone.value.weight", "anchored.fuse.0.bias"):
        assert torch.equal(other[whole], one[whole])


def test_pooling_keeps_the_heaviest_inside_each_of_its_heads() -> None:
    larger, smaller = student(), student(THIN, 1)
    pool: Any = larger.backbone.get_submodule("clip_projector.cross_attn")
    with torch.no_grad():
        # four heads of 16: the last 8 of each
        wanted = torch.cat([torch.arange(8, 16) + 16 * i for i in range(4)])
        pool.v.weight[wanted] *= 10
    prune(larger, smaller)
    cut: Any = smaller.backbone.get_submodule("clip_projector.cross_attn")
    assert places(cut.v_bias, pool.v_bias) == wanted.tolist()
    assert places(cut.q_bias, pool.q_bias) == wanted.tolist()
    assert torch.equal(cut.proj.weight, pool.proj.weight[:, wanted])
    assert torch.equal(cut.proj.bias, pool.proj.bias)


def test_first_and_last_block_stay() -> None:
    deep = replace(MINI, depth=5)
    larger, smaller = student(deep), student(replace(deep, depth=3), 1)
    prune(larger, smaller)
    for mine, theirs in ((0, 0), (1, 2), (2, 4)):
        kept = larger.backbone.get_submodule(f"blocks.{theirs}")
        for name, value in smaller.backbone.get_submodule(f"blocks.{mine}").named_parameters():
            assert torch.equal(value, kept.get_parameter(name)), name


@pytest.mark.parametrize("heads", [True, False])
def test_a_student_of_the_same_shape_answers_the_same(heads: bool) -> None:
    larger = student(heads=heads)
    cut = prune(larger, student(seed=9, heads=heads))
    clips, reference = noise(2, 3, 2, 28, 28), noise(2, 3, 2, 28, 28, seed=2)
    with torch.inference_mode():
        assert torch.equal(cut(clips), larger(clips))
        if heads:
            assert torch.equal(cut(clips, reference), larger(clips, reference))


def test_heads_of_another_generation_are_cut_alike() -> None:
    larger, smaller = student(of_heads=SECOND), student(THIN, 1, of_heads=SECOND)
    channels = torch.arange(0, 64, 2)
    assert larger.anchored is not None and smaller.anchored is not None
    with torch.no_grad():
        for one, other in itertools.product(range(5), channels.tolist()):
            larger.anchored.compare_energy.weight[:, 64 * one + other] *= 50
    cut = prune(larger, smaller)
    stacked = torch.cat([channels + 64 * i for i in range(5)])
    expected = larger.anchored.compare_energy.weight[:, stacked]
    assert torch.equal(smaller.anchored.compare_energy.weight, expected)
    assert cut.config == SECOND
    same = prune(larger, student(seed=9, of_heads=SECOND))
    clips, reference = noise(2, 3, 2, 28, 28), noise(2, 3, 2, 28, 28, seed=2)
    with torch.inference_mode():
        assert torch.equal(same(clips, reference, 720.0), larger(clips, reference, 720.0))


@pytest.mark.parametrize(
    "other",
    [
        None,
        replace(SECOND, outputs=("panel", "flicker")),
        replace(SECOND, worst=2),
        replace(SECOND, bits=True),
    ],
)
def test_other_heads_are_refused(other: HeadConfig | None) -> None:
    with pytest.raises(InputError, match="other token heads cannot be cut"):
        prune(student(of_heads=SECOND), student(THIN, of_heads=other))
    sampled = replace(SECOND, two_distances=True, time_power=2.0)
    assert prune(student(of_heads=SECOND), student(THIN, of_heads=sampled)).config == sampled


def test_the_cut_one_shares_no_memory_with_the_larger() -> None:
    larger, smaller = student(), student(seed=1)
    before = {name: value.clone() for name, value in larger.state_dict().items()}
    shaken(prune(larger, smaller), 5)
    assert all(torch.equal(value, before[name]) for name, value in larger.state_dict().items())


def test_heads_can_be_left_behind_but_not_made_up() -> None:
    prune(student(), student(THIN, heads=False))
    with pytest.raises(InputError, match="token heads cannot be cut"):
        prune(student(heads=False), student(THIN))


@pytest.mark.parametrize(
    "change",
    [
        {"width": 128, "heads": 4},
        {"depth": 3},
        {"mlp_width": 97},
        {"heads": 4},
        {"frames": 4},
        {"size": 42},
        {"pooled_width": 32},
    ],
)
def test_what_is_no_smaller_size_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(InputError, match="cannot be cut out"):
        prune(student(), student(replace(MINI, **change)))


def test_other_families_are_refused() -> None:
    with torch.device("meta"):
        other = create_student("fastvqa-tiny", heads=False)
    for pair in ((other, student()), (student(), other)):
        with pytest.raises(InputError, match="only students of one family"):
            prune(*pair)


WIDE = rankdvqa.Config((4, 6, 6, 8, 8, 8), width=8, frames=2)
NARROW = rankdvqa.Config((3, 4, 4, 6, 6, 5), width=4, frames=2)


def pyramid(config: rankdvqa.Config, seed: int) -> Student:
    torch.manual_seed(seed)
    made = Student(RankDVQA(config))
    shaken(made, seed)
    return made.eval()


def test_channels_of_a_pyramid_without_weight_are_left_out() -> None:
    larger = pyramid(WIDE, 0)
    net = larger.backbone
    assert isinstance(net, RankDVQA)
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for level, count in zip(net.levels, NARROW.channels, strict=True):
            first, second = level[0], level[2]  # type: ignore[index]
            for conv in (first, second):
                idle = torch.randperm(len(conv.weight), generator=rng)[count:]
                conv.weight[idle], conv.bias[idle] = 0, 0
        for block in net.compared:
            assert isinstance(block, rankdvqa.Difference)
            # logits of queries would be scaled by the width of a head
            block.attn.qkv.weight[: WIDE.width], block.attn.qkv.bias[: WIDE.width] = 0, 0
            idle = torch.randperm(WIDE.width, generator=rng)[NARROW.width :]
            for layer in (block.conv_first, block.attn.proj, block.fc2, block.conv_after_body):
                assert layer.bias is not None
                layer.weight[idle], layer.bias[idle] = 0, 0
            within = torch.tensor([0, 2, 5, 7])
            block.attn.proj.weight[:, within] = 0
            block.fc2.weight[:, torch.randperm(16, generator=rng)[8:]] = 0
    smaller = prune(larger, pyramid(NARROW, 1))
    clips, source = noise(2, 2, 3, 2, 80, 80)
    with torch.no_grad():
        cut = smaller.backbone
        torch.testing.assert_close(cut(clips, source), net(clips, source), atol=1e-4, rtol=1e-4)
        assert smaller(clips, source).isfinite().all() and smaller(clips).isfinite().all()
    kept = set(torch.cat([v.flatten() for v in larger.state_dict().values()]).tolist())
    for value in smaller.state_dict().values():
        assert set(value.flatten().tolist()) <= kept
    # the anchored head reads what it read, of the channels that are left
    assert larger.anchored is not None and smaller.anchored is not None
    columns, other = (s.anchored.compare.weight[0] for s in (smaller, larger))  # type: ignore[union-attr]
    at = places(columns.detach(), other.detach())
    own = len(other) - 5 * 9
    assert at[:own] == list(range(own))
    assert at[own + 4 :: 5] == list(range(own + 8, len(other), 9)), "the distances"


def test_a_pyramid_is_cut_out_of_a_larger_one_alone() -> None:
    with pytest.raises(InputError, match="cannot be cut out"):
        prune(pyramid(NARROW, 0), pyramid(WIDE, 0))
    with pytest.raises(InputError, match="only students of one family"):
        prune(student(), pyramid(NARROW, 0))
