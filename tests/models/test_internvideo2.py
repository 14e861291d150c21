"""The blocks of InternVideo2 against plain formulas that do not use the modules."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.support.nets import MINI, attention, layer_norm, noise, rms_norm, shaken, values
from vqaloop.models.internvideo2 import (
    Attention,
    AttentionPool,
    Block,
    InternVideo2,
    LayerScale,
    Mlp,
    PatchEmbed,
    RMSNorm,
    interpolate_positions,
    sine_positions,
)


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
    shaken(module)
    expected = x.double().numpy() * values(module)["gamma"]
    np.testing.assert_allclose(module(x).detach().numpy(), expected, rtol=1e-6)
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


def test_attention_is_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    def spied(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        shapes.append((tuple(q.shape), tuple(k.shape)))
        return plain(q, k, v)

    plain = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", spied)
    model = InternVideo2(MINI)
    model(noise(2, 3, 2, 28, 28))
    assert shapes == [((2, 2, 9, 32), (2, 2, 9, 32))] * 2 + [((2, 4, 1, 16), (2, 4, 9, 16))]


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
