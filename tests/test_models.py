"""The networks against counts, key tables and plain formulas that do not use the modules."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqaloop.distill import repeat_anchor
from vqaloop.errors import InputError
from vqaloop.models import CONFIGS, create_model, create_student
from vqaloop.models.internvideo2 import (
    TINY,
    Attention,
    AttentionPool,
    Block,
    Config,
    InternVideo2,
    LayerScale,
    Mlp,
    PatchEmbed,
    RMSNorm,
    interpolate_positions,
    sine_positions,
    with_outputs,
)
from vqaloop.models.student import (
    ENERGY_FLOOR,
    OUTPUTS,
    STATISTICS,
    Student,
    change,
    log_energy,
    start_from_cosines,
)

Values = npt.NDArray[np.float64]

MINI = Config(
    width=64, depth=2, heads=2, mlp_width=96, frames=2, size=28, pool_heads=4, pooled_width=48
)


def shaken(module: torch.nn.Module, seed: int = 0) -> None:
    """Give every parameter a value of its own, so that no weight of 1 or bias of 0 hides."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("internvqa-small", 23_046_145),
        ("internvqa-base", 89_441_281),
        ("internvqa-1b", 1_020_710_913),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, count: int) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == count


def test_unknown_model_is_refused_with_the_list() -> None:
    with pytest.raises(InputError, match="internvqa-small"):
        create_model("internvqa-huge")


def published_shapes(
    width: int, hidden: int, depth: int, tokens: int
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a released InternVideo2 classifier with one output."""
    d, h = width, hidden
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, d),
        "pos_embed": (1, tokens, d),
        "patch_embed.proj.weight": (d, 3, 1, 14, 14),
        "patch_embed.proj.bias": (d,),
        "fc_norm.weight": (768,),
        "fc_norm.bias": (768,),
        "head.weight": (1, 768),
        "head.bias": (1,),
        "clip_projector.cross_attn.proj.weight": (768, d),
        "clip_projector.cross_attn.proj.bias": (768,),
    }
    for part in "qkv":
        shapes |= {
            f"clip_projector.norm1_{part}.weight": (d,),
            f"clip_projector.norm1_{part}.bias": (d,),
            f"clip_projector.cross_attn.{part}_bias": (d,),
            f"clip_projector.cross_attn.{part}.weight": (d, d),
        }
    for n in range(depth):
        block = {
            "norm1.weight": (d,),
            "attn.qkv.weight": (3 * d, d),
            "attn.proj.weight": (d, d),
            "attn.proj.bias": (d,),
            "attn.q_norm.weight": (d,),
            "attn.k_norm.weight": (d,),
            "ls1.gamma": (d,),
            "norm2.weight": (d,),
            "mlp.fc1.weight": (h, d),
            "mlp.fc1.bias": (h,),
            "mlp.fc2.weight": (d, h),
            "mlp.fc2.bias": (d,),
            "ls2.gamma": (d,),
        }
        assert len(block) == 13
        shapes |= {f"blocks.{n}.{name}": shape for name, shape in block.items()}
    assert len(shapes) == 22 + 13 * depth
    return shapes


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
        model = InternVideo2(with_outputs(CONFIGS["internvqa-small"], 400))
    assert sum(p.numel() for p in model.parameters()) == 23_352_976


def rms_norm(x: Values, weight: Values) -> Values:
    return np.asarray(x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight)


def layer_norm(x: Values, weight: Values, bias: Values) -> Values:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return np.asarray((x - mean) / np.sqrt(variance + 1e-5) * weight + bias)


def softmax(x: Values) -> Values:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def values(module: torch.nn.Module) -> dict[str, Values]:
    return {name: p.detach().double().numpy() for name, p in module.named_parameters()}


def attention(q: Values, k: Values, v: Values, heads: int) -> Values:
    """(N, D) queries and (M, D) keys and values, head by head."""
    size = q.shape[-1] // heads
    parts = []
    for h in range(heads):
        at = slice(h * size, (h + 1) * size)
        parts.append(softmax(q[:, at] @ k[:, at].T / math.sqrt(size)) @ v[:, at])
    return np.concatenate(parts, -1)


def test_rms_norm() -> None:
    module = RMSNorm(6)
    shaken(module)
    x = noise(2, 3, 6) * 3
    expected = rms_norm(x.double().numpy(), values(module)["weight"])
    np.testing.assert_allclose(module(x).detach().numpy(), expected, atol=1e-5)


def test_rms_norm_takes_its_statistics_in_fp32() -> None:
    # the squares of these overflow fp16
    x = torch.full((1, 4), 3e4, dtype=torch.float16)
    assert torch.isfinite(RMSNorm(4).half()(x)).all()


def test_layer_scale() -> None:
    module = LayerScale(5, 0.25)
    x = noise(2, 5)
    torch.testing.assert_close(module(x), x * 0.25)
    assert module(x.bfloat16()).dtype == torch.bfloat16


def test_attention_normalises_queries_and_keys_over_the_full_width() -> None:
    module = Attention(12, 3)
    shaken(module)
    x = noise(2, 5, 12)
    p = values(module)
    for one, found in zip(x.double().numpy(), module(x).detach().numpy(), strict=True):
        q, k, v = np.split(one @ p["qkv.weight"].T, 3, -1)
        q, k = rms_norm(q, p["q_norm.weight"]), rms_norm(k, p["k_norm.weight"])
        expected = attention(q, k, v, 3) @ p["proj.weight"].T + p["proj.bias"]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_mlp_uses_the_tanh_form_of_gelu() -> None:
    module = Mlp(4, 9)
    shaken(module)
    x = noise(3, 4) * 4
    p = values(module)
    h = x.double().numpy() @ p["fc1.weight"].T + p["fc1.bias"]
    h = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    expected = h @ p["fc2.weight"].T + p["fc2.bias"]
    np.testing.assert_allclose(module(x).detach().numpy(), expected, atol=1e-5)


def test_block_adds_both_branches_before_norm() -> None:
    block = Block(MINI)
    shaken(block)
    x = noise(1, 7, MINI.width)
    one = x + block.attn(block.norm1(x)) * block.ls1.gamma
    expected = one + block.mlp(block.norm2(one)) * block.ls2.gamma
    torch.testing.assert_close(block(x), expected)


def test_attention_pooling() -> None:
    module = AttentionPool(12, 3, 7)
    shaken(module)
    x = noise(2, 5, 12)
    p = values(module)
    for one, found in zip(x.double().numpy(), module(x).detach().numpy(), strict=True):
        inputs = {"q": one.mean(0, keepdims=True), "k": one, "v": one}
        q, k, v = (
            layer_norm(y, p[f"norm1_{n}.weight"], p[f"norm1_{n}.bias"])
            @ p[f"cross_attn.{n}.weight"].T
            + p[f"cross_attn.{n}_bias"]
            for n, y in inputs.items()
        )
        expected = (
            attention(q, k, v, 3) @ p["cross_attn.proj.weight"].T + p["cross_attn.proj.bias"]
        )
        np.testing.assert_allclose(found, expected[0], atol=1e-5)


def test_patches_come_frame_by_frame_rows_first() -> None:
    module = PatchEmbed(3, 14)
    with torch.no_grad():
        module.proj.bias.zero_()  # type: ignore[union-attr]
        module.proj.weight.zero_()
        module.proj.weight[0, 0].fill_(1 / 196)
    clips = torch.zeros(1, 3, 2, 28, 42)
    for t in range(2):
        for row in range(2):
            for column in range(3):
                at = (slice(row * 14, row * 14 + 14), slice(column * 14, column * 14 + 14))
                clips[0, 0, t][at] = 100 * t + 10 * row + column
    found = module(clips)[0, :, 0]
    expected = [100 * t + 10 * r + c for t in range(2) for r in range(2) for c in range(3)]
    torch.testing.assert_close(found.tolist(), [float(v) for v in expected], rtol=1e-4, atol=1e-3)


def test_whole_forward_is_the_chain_of_its_parts() -> None:
    model = InternVideo2(MINI)
    shaken(model)
    clips = noise(2, 3, 2, 28, 28)
    x = F.conv3d(clips, model.patch_embed.proj.weight, model.patch_embed.proj.bias, (1, 14, 14))
    x = torch.cat([model.cls_token.expand(2, 1, -1), x.flatten(2).transpose(1, 2)], 1)
    x = x + model.pos_embed
    for block in model.blocks:
        x = block(x)
    pooled = F.layer_norm(
        model.clip_projector(x), (48,), model.fc_norm.weight, model.fc_norm.bias, 1e-5
    )
    expected = pooled @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(clips), expected)
    tokens, (first, last) = model.tokens(clips, (0, 2))
    torch.testing.assert_close(last, tokens[:, 1:])
    torch.testing.assert_close(first, model.patch_embed(clips))


@pytest.mark.parametrize("shape", [(1, 3, 2, 27, 28), (1, 3, 2, 28, 30), (1, 1, 2, 28, 28)])
def test_shapes_that_are_no_whole_patches_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 14"):
        InternVideo2(MINI)(torch.zeros(shape))


def test_sine_positions_have_time_first_then_columns_then_rows() -> None:
    width, frames, grid = 32, 3, 2
    table = sine_positions(width, frames, grid).numpy()
    assert table.shape == (frames * grid * grid, width)

    def sines(position: int, channels: int) -> list[float]:
        angles = [position / 10000 ** (i / (channels / 2)) for i in range(channels // 2)]
        return [*map(math.sin, angles), *map(math.cos, angles)]

    for t in range(frames):
        for row in range(grid):
            for column in range(grid):
                expected = sines(t, 8) + sines(column, 12) + sines(row, 12)
                found = table[t * grid * grid + row * grid + column]
                np.testing.assert_allclose(found, expected, atol=1e-6)


def test_positions_of_the_own_size_are_the_table() -> None:
    model = InternVideo2(MINI)
    assert model.positions(2, 2, 2) is model.pos_embed
    same = interpolate_positions(model.pos_embed, MINI, 2, 2, 2)
    torch.testing.assert_close(same, model.pos_embed)


@pytest.mark.parametrize("size", [(1, 2, 2), (5, 2, 2), (2, 3, 5), (4, 1, 7)])
def test_constant_positions_stay_constant(size: tuple[int, int, int]) -> None:
    constant = torch.arange(MINI.width, dtype=torch.float32).expand(1, 9, -1)
    found = interpolate_positions(constant, MINI, *size)
    torch.testing.assert_close(found, constant[:, :1].expand(1, 1 + math.prod(size), -1))


def test_positions_keep_time_and_space_apart() -> None:
    """A table that only depends on time still does after a change of size, and the other way."""
    time = torch.tensor([0.0, 1.0]).repeat_interleave(4)[None, :, None].expand(1, 8, MINI.width)
    cls = torch.full((1, 1, MINI.width), 9.0)
    found = interpolate_positions(torch.cat([cls, time], 1), MINI, 4, 3, 3)
    frames = found[0, 1:, 0].reshape(4, 9)
    torch.testing.assert_close(frames, torch.tensor([0, 0.25, 0.75, 1])[:, None].expand(4, 9))
    assert (found[:, 0] == 9).all()


def test_model_takes_other_sizes_than_its_own() -> None:
    out = InternVideo2(MINI)(noise(2, 3, 3, 14, 42))
    assert out.shape == (2, 1)


@pytest.fixture(scope="module")
def tiny() -> InternVideo2:
    torch.manual_seed(0)
    backbone = InternVideo2(TINY)
    start_from_cosines(backbone)
    return backbone


LUMA = torch.tensor([0.2126, 0.7152, 0.0722])
STD = torch.tensor([0.229, 0.224, 0.225])


def test_cosine_start_is_orthogonal_in_luma(tiny: InternVideo2) -> None:
    weight = tiny.patch_embed.proj.weight.detach()[:, :, 0]  # (D, 3, 14, 14)
    luma = weight[: TINY.width - 2 * (TINY.width // 16)]
    # what each channel answers to luma detail: the same plane in R, G and B before normalisation
    planes = (luma / STD[:, None, None]).sum(1).flatten(1) * STD.mean()
    torch.testing.assert_close(planes @ planes.T, torch.eye(len(planes)), atol=1e-5, rtol=0)


def test_flat_grey_gives_the_dc_coefficient_alone(tiny: InternVideo2) -> None:
    # the same step in R, G and B, as seen after the input's scaling
    grey = (0.1 / STD)[None, :, None, None, None].expand(1, 3, 1, 14, 14)
    found = tiny.patch_embed(grey)[0, 0]
    assert found[0].abs() > 0.1
    assert found[1:].abs().max() < 1e-5


def test_colour_channels_answer_to_colour_alone(tiny: InternVideo2) -> None:
    colour = TINY.width // 16
    blue = (torch.tensor([0.0, 0.0, 0.1]) / STD)[None, :, None, None, None].expand(1, 3, 1, 14, 14)
    first_blue, first_red = TINY.width - 2 * colour, TINY.width - colour
    found = tiny.patch_embed(blue)[0, 0]
    assert found[first_blue] > 0 > found[first_red]


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    made = Student(InternVideo2(MINI))
    shaken(made)
    return made


def test_log_energy_by_hand() -> None:
    root = math.sqrt(ENERGY_FLOOR)
    found = log_energy(torch.tensor([0.0, root, -root, 1.0]))
    expected = [0.0, math.log(2) / 4, math.log(2) / 4, math.log(1 / ENERGY_FLOOR + 1) / 4]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_change_by_hand() -> None:
    # three frames of two tokens
    x = torch.tensor([1.0, 10.0, 4.0, 40.0, 9.0, 0.0])[None, :, None]
    found = change(x, 3)[0, :, 0].tolist()
    assert found == [3.0, 30.0, 3.0, 30.0, 5.0, -40.0]
    assert not change(x, 1).any()


def test_identical_clips_score_alike_alone_and_pooled(student: Student) -> None:
    clip = noise(1, 3, 2, 28, 28)
    clips = clip.expand(4, -1, -1, -1, -1)
    single = student(clip, clip)
    torch.testing.assert_close(student(clips, clips), single.expand(4))
    sums, weights, _ = student.compare(student.anchor(clips), clips)
    assert sums.shape == weights.shape == (4, STATISTICS)
    pooled = student.answers(sums.sum(0), weights.sum(0))
    assert pooled.shape == (len(OUTPUTS),)
    torch.testing.assert_close(pooled[:1], single)


def test_sums_of_two_halves_are_those_of_the_whole(student: Student) -> None:
    reference, clips = noise(3, 3, 2, 28, 28), noise(3, 3, 2, 28, 28, seed=2)
    anchor = student.anchor(reference)
    whole_sums, whole_weights, _ = student.compare(anchor, clips)
    one = student.compare(student.anchor(reference[:1]), clips[:1])
    rest = student.compare(student.anchor(reference[1:]), clips[1:])
    for part, whole in ((0, whole_sums), (1, whole_weights)):
        halves = one[part].sum(0) + rest[part].sum(0)
        torch.testing.assert_close(halves, whole.sum(0), rtol=1e-4, atol=1e-3)


def test_weights_come_from_the_source_alone_and_are_positive(student: Student) -> None:
    anchor = student.anchor(noise(1, 3, 2, 28, 28))
    assert (anchor.weights > 0).all()
    one = student.compare(anchor, noise(1, 3, 2, 28, 28, seed=3))
    other = student.compare(anchor, noise(1, 3, 2, 28, 28, seed=4))
    torch.testing.assert_close(one[1], other[1])
    assert not torch.allclose(one[0], other[0])


def test_repeated_anchor_serves_several_encodes(student: Student) -> None:
    reference, clips = noise(2, 3, 2, 28, 28), noise(4, 3, 2, 28, 28, seed=5)
    together = student.compare(repeat_anchor(student.anchor(reference), 2), clips)
    for i in range(4):
        alone = student.compare(student.anchor(reference[i // 2, None]), clips[i, None])
        torch.testing.assert_close(together[0][i, None], alone[0], rtol=1e-4, atol=1e-3)


def test_score_lies_between_0_and_1(student: Student) -> None:
    found = student(noise(5, 3, 2, 28, 28) * 20, noise(5, 3, 2, 28, 28, seed=2))
    assert ((found >= 0) & (found <= 1)).all()


def test_no_reference_score_is_the_backbone_alone(student: Student) -> None:
    clips = noise(2, 3, 2, 28, 28)
    _, _, alone = student.compare(student.anchor(clips), clips)
    torch.testing.assert_close(alone, student.backbone(clips)[:, 0])
    torch.testing.assert_close(student(clips), alone)


def test_gradient_reaches_every_parameter() -> None:
    torch.manual_seed(0)
    student = Student(InternVideo2(MINI))
    shaken(student)
    anchor = student.anchor(noise(2, 3, 2, 28, 28))
    sums, weights, alone = student.compare(anchor, noise(2, 3, 2, 28, 28, seed=2))
    torch.autograd.backward(student.answers(sums, weights).sum() + alone.sum())
    without = [
        name for name, p in student.named_parameters() if p.grad is None or not p.grad.any()
    ]
    assert without == []


def test_student_adds_only_the_anchored_head_to_the_backbone() -> None:
    with torch.device("meta"):
        names = create_student("internvqa-small").state_dict().keys()
    assert {n.split(".", 1)[1] for n in names if n.startswith("backbone.")} == published_shapes(
        384, 1536, 12, 2049
    ).keys()
    assert all(n.startswith(("backbone.", "anchored.")) for n in names)
