"""FAST-VQA: fragments, and its blocks against plain loops that do not use the modules."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tests.support.nets import MINI_SWIN, Values, layer_norm, noise, shaken, softmax, values
from vqaloop.models import create_model
from vqaloop.models.fastvqa import (
    Block,
    Config,
    FastVQA,
    Head,
    Mlp,
    PatchEmbed,
    PatchMerging,
    Stage,
    Swin3D,
    Triple,
    WindowAttention,
    from_windows,
    lay_out,
    position_index,
    to_windows,
)

CPU = torch.device("cpu")


def released_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a FAST-VQA file with windows of 8 x 7 x 7."""
    table, index = 15 * 13 * 13, 8 * 7 * 7
    c = config.width
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (c, 3, 2, 4, 4),
        "patch_embed.proj.bias": (c,),
        "patch_embed.norm.weight": (c,),
        "patch_embed.norm.bias": (c,),
    }
    for stage, (depth, heads) in enumerate(zip(config.depths, config.heads, strict=True)):
        c = config.width * 2**stage
        for n in range(depth):
            block: dict[str, tuple[int, ...]] = {
                "norm1.weight": (c,),
                "norm1.bias": (c,),
                "norm2.weight": (c,),
                "norm2.bias": (c,),
                "attn.relative_position_bias_table": (table, heads),
                "attn.relative_position_index": (index, index),
                "attn.qkv.weight": (3 * c, c),
                "attn.qkv.bias": (3 * c,),
                "attn.proj.weight": (c, c),
                "attn.proj.bias": (c,),
                "mlp.fc1.weight": (4 * c, c),
                "mlp.fc1.bias": (4 * c,),
                "mlp.fc2.weight": (c, 4 * c),
                "mlp.fc2.bias": (c,),
            }
            if stage < 3:
                block["attn.fragment_position_bias_table"] = (table, heads)
            shapes |= {f"layers.{stage}.blocks.{n}.{k}": v for k, v in block.items()}
        if stage < 3:
            shapes |= {
                f"layers.{stage}.downsample.reduction.weight": (2 * c, 4 * c),
                f"layers.{stage}.downsample.norm.weight": (4 * c,),
                f"layers.{stage}.downsample.norm.bias": (4 * c,),
            }
    shapes |= {"norm.weight": (c,), "norm.bias": (c,)}
    return {f"fragments_backbone.{k}": v for k, v in shapes.items()} | {
        "vqa_head.fc_hid.weight": (64, c, 1, 1, 1),
        "vqa_head.fc_hid.bias": (64,),
        "vqa_head.fc_last.weight": (1, 64, 1, 1, 1),
        "vqa_head.fc_last.bias": (1,),
    }


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("fastvqa-tiny", Config(96, (2, 2, 6, 2), (3, 6, 12, 24))),
        ("fastvqa-base", Config(128, (2, 2, 18, 2), (4, 8, 16, 32))),
    ],
)
def test_state_dict_has_the_keys_of_the_checkpoints(name: str, config: Config) -> None:
    with torch.device("meta"):
        state = create_model(name).state_dict()
    assert {key: tuple(v.shape) for key, v in state.items()} == released_shapes(config)
    kinds = {key: value.dtype for key, value in state.items() if key.endswith("index")}
    assert len(kinds) == sum(config.depths) and set(kinds.values()) == {torch.int64}


def gelu(x: Values) -> Values:
    return np.asarray(0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))))


def test_mlp_uses_the_exact_gelu() -> None:
    module = Mlp(4)
    shaken(module)
    x = noise(3, 4) * 4
    p = values(module)
    h = gelu(x.double().numpy() @ p["fc1.weight"].T + p["fc1.bias"])
    expected = h @ p["fc2.weight"].T + p["fc2.bias"]
    np.testing.assert_allclose(module(x).detach().numpy(), expected, atol=1e-5)


def test_position_index_counts_frames_then_rows_then_columns() -> None:
    t, h, w = window = (2, 3, 2)
    index = position_index(window)
    tokens = [(a, b, c) for a in range(t) for b in range(h) for c in range(w)]
    for i, one in enumerate(tokens):
        for j, other in enumerate(tokens):
            dt, dh, dw = (p - q for p, q in zip(one, other, strict=True))
            expected = ((dt + t - 1) * (2 * h - 1) + dh + h - 1) * (2 * w - 1) + dw + w - 1
            assert index[i, j] == expected


def plain_attention(
    x: Values, p: dict[str, Values], window: Triple, shift: Triple, heads: int, made_for: Triple
) -> Values:
    """(T, H, W, C), T, H and W whole windows: token by token, without moving any of them."""
    grid, size = x.shape[:3], x.shape[3] // heads
    qkv = x @ p["qkv.weight"].T + p["qkv.bias"]
    tokens = list(np.ndindex(*grid))
    seen = {}  # window, place in it, and along which axes the token came round the edge
    for token in tokens:
        moved = [(c - s) % n for c, s, n in zip(token, shift, grid, strict=True)]
        seen[token] = (
            tuple(m // w for m, w in zip(moved, window, strict=True)),
            tuple(m % w for m, w in zip(moved, window, strict=True)),
            tuple(c < s for c, s in zip(token, shift, strict=True)),
        )
    out = np.zeros_like(x)
    for token, head in itertools.product(tokens, range(heads)):
        own_window, place, wrapped = seen[token]
        peers = [t for t in tokens if seen[t][0] == own_window and seen[t][2] == wrapped]
        parts = (i * x.shape[3] + head * size for i in range(3))
        q, k, v = (slice(first, first + size) for first in parts)
        logits = []
        for peer in peers:
            row = 0
            for mine, theirs, side in zip(place, seen[peer][1], made_for, strict=True):
                row = row * (2 * side - 1) + mine - theirs + side - 1
            gate = sum(
                abs(7 * token[axis] // grid[axis] - 7 * peer[axis] // grid[axis])
                for axis in (1, 2)
            )
            bias = p["relative_position_bias_table"][row, head]
            if "fragment_position_bias_table" in p:
                fragment = p["fragment_position_bias_table"][row, head]
                bias = gate * bias + (1 - gate) * fragment
            logits.append(qkv[token][q] @ qkv[peer][k] / math.sqrt(size) + bias)
        weights = softmax(np.array(logits))
        answer = sum(w * qkv[peer][v] for w, peer in zip(weights, peers, strict=True))
        out[token][head * size : (head + 1) * size] = answer
    return np.asarray(out @ p["proj.weight"].T + p["proj.bias"])


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
    ("grid", "window", "inside", "shift"),
    [
        ((4, 6, 9), (2, 3, 3), (2, 3, 3), (1, 1, 1)),
        ((2, 8, 4), (4, 4, 4), (2, 4, 4), (0, 2, 0)),  # too short to shift, or to fill a window
        ((6, 2, 6), (3, 3, 3), (3, 2, 3), (1, 0, 1)),
    ],
)
def test_gated_window_attention_token_by_token(
    grid: Triple, window: Triple, inside: Triple, shift: Triple, shifted: bool, gated: bool
) -> None:
    block = Block(6, 2, window, gated)
    shaken(block, scale=0.4)
    x = noise(2, *grid, 6)
    layout = lay_out(grid, window, shifted, CPU)
    assert layout.window == inside
    found = block.attend(x, layout).detach().numpy()
    for one, answer in zip(x.double().numpy(), found, strict=True):
        expected = plain_attention(
            one, values(block.attn), inside, shift if shifted else (0, 0, 0), 2, window
        )
        np.testing.assert_allclose(answer, expected, atol=1e-5)


def test_grid_is_padded_with_zeros_to_whole_windows() -> None:
    block = Block(6, 2, (2, 3, 3), True)
    shaken(block)
    x = noise(1, 3, 4, 5, 6)
    full = torch.zeros(1, 4, 6, 6, 6)
    full[:, :3, :4, :5] = x
    layout = lay_out((3, 4, 5), (2, 3, 3), True, CPU)
    expected = plain_attention(
        full[0].double().numpy(), values(block.attn), (2, 3, 3), (1, 1, 1), 2, (2, 3, 3)
    )
    found = block.attend(x, layout)[0].detach().numpy()
    np.testing.assert_allclose(found, expected[:3, :4, :5], atol=1e-5)


def test_gate_is_zero_inside_a_fragment_and_counts_fragments_between() -> None:
    layout = lay_out((1, 14, 14), (1, 14, 14), False, CPU)
    gate = layout.gate[0].view(14, 14, 14, 14)
    assert gate[0, 0, 1, 1] == 0 and gate[0, 0, 2, 0] == gate[0, 0, 1, 3] == 1
    assert gate[0, 0, 13, 13] == 12 and layout.mask is None
    assert torch.equal(layout.gate, layout.gate.mT)


def test_equal_tables_make_the_gate_idle() -> None:
    attention = WindowAttention(6, 2, (2, 3, 3), True)
    shaken(attention)
    with torch.no_grad():
        attention.fragment_position_bias_table.copy_(attention.relative_position_bias_table)
    layout = lay_out((4, 9, 9), (2, 3, 3), False, CPU)
    bias = attention.bias(layout)
    torch.testing.assert_close(bias, bias[:1].expand_as(bias))


@given(st.tuples(*[st.integers(1, 3)] * 3), st.tuples(*[st.integers(1, 3)] * 3))
def test_windows_come_apart_and_together(window: Triple, counts: Triple) -> None:
    t, h, w = grid = tuple(n * side for n, side in zip(counts, window, strict=True))
    x = torch.arange(2 * t * h * w * 2).reshape(2, t, h, w, 2)
    apart = to_windows(x, window)
    assert apart.shape == (2, math.prod(counts), math.prod(window), 2)
    first = x[:, : window[0], : window[1], : window[2]].flatten(1, 3)
    assert torch.equal(apart[:, 0], first)
    assert torch.equal(from_windows(apart, (grid[0], grid[1], grid[2]), window), x)


def test_block_adds_both_branches_before_norm() -> None:
    block = Block(6, 2, (2, 3, 3), True)
    shaken(block)
    x = noise(1, 2, 6, 6, 6)
    layout = lay_out((2, 6, 6), (2, 3, 3), True, CPU)
    p = values(block)

    def normed(y: torch.Tensor, name: str) -> torch.Tensor:
        found = layer_norm(y.detach().double().numpy(), p[f"{name}.weight"], p[f"{name}.bias"])
        return torch.from_numpy(found).float()

    one = x + block.attend(normed(x, "norm1"), layout)
    expected = one + block.mlp(normed(one, "norm2"))
    torch.testing.assert_close(block(x, layout), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("rows", "columns"), [(4, 6), (3, 5)])
def test_merging_takes_neighbours_columns_last(rows: int, columns: int) -> None:
    module = PatchMerging(3)
    shaken(module)
    x = noise(2, 2, rows, columns, 3)
    p = values(module)
    found = module(x).detach().numpy()
    assert found.shape == (2, 2, -(-rows // 2), -(-columns // 2), 6)
    even = np.zeros((2, 2, rows + rows % 2, columns + columns % 2, 3))
    even[:, :, :rows, :columns] = x.double().numpy()
    for at in np.ndindex(*found.shape[:4]):
        b, t, row, column = at
        four = [
            even[b, t, 2 * row + dy, 2 * column + dx]
            for dy, dx in ((0, 0), (1, 0), (0, 1), (1, 1))
        ]
        normed = layer_norm(np.concatenate(four), p["norm.weight"], p["norm.bias"])
        np.testing.assert_allclose(found[at], normed @ p["reduction.weight"].T, atol=1e-5)


def test_patches_span_two_frames_and_are_normed() -> None:
    module = PatchEmbed(5)
    shaken(module)
    x = noise(1, 3, 4, 8, 12)
    p = values(module)
    found = module(x).detach().numpy()
    assert found.shape == (1, 2, 2, 3, 5)
    for t, row, column in np.ndindex(2, 2, 3):
        patch = x[0, :, 2 * t : 2 * t + 2, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        flat = p["proj.weight"].reshape(5, -1) @ patch.double().numpy().ravel() + p["proj.bias"]
        expected = layer_norm(flat, p["norm.weight"], p["norm.bias"])
        np.testing.assert_allclose(found[0, t, row, column], expected, atol=1e-5)


def test_head_scores_each_place_like_two_convolutions() -> None:
    head = Head(6, 4)
    shaken(head)
    x = noise(2, 3, 2, 5, 6)
    found = head(x)
    expected = head.fc_last(F.gelu(head.fc_hid(x.permute(0, 4, 1, 2, 3))))[:, 0]
    torch.testing.assert_close(found, expected)


def test_stages_alternate_plain_and_shifted_windows() -> None:
    torch.manual_seed(0)
    net = Swin3D(MINI_SWIN)
    shaken(net, scale=0.05)
    clips = noise(1, 3, 8, 64, 64)
    x = net.patch_embed(clips)
    for stage in net.layers:
        assert isinstance(stage, Stage)
        grid = (x.shape[1], x.shape[2], x.shape[3])
        for i, block in enumerate(stage.blocks):
            x = block(x, lay_out(grid, (2, 3, 3), i == 1, CPU))
        x = x if stage.downsample is None else stage.downsample(x)
    expected = F.layer_norm(x, (96,), net.norm.weight, net.norm.bias)
    assert expected.shape == (1, 4, 2, 2, 96)
    torch.testing.assert_close(net(clips), expected)


def test_score_and_feature_are_means_over_the_map() -> None:
    torch.manual_seed(0)
    model = FastVQA(MINI_SWIN)
    shaken(model, scale=0.05)
    clips = noise(2, 3, 4, 32, 64)
    features = model.feature_map(clips)
    assert features.shape == (2, 2, 1, 2, 96)
    score, feature = model.judge(clips)
    torch.testing.assert_close(feature, features.mean((1, 2, 3)))
    torch.testing.assert_close(score, model.vqa_head(features).mean((1, 2, 3)))


def test_released_shape_takes_the_clips_it_was_made_for() -> None:
    torch.manual_seed(0)
    model = create_model("fastvqa-tiny").eval()
    with torch.inference_mode():
        score, feature = model.judge(noise(1, 3, 4, 224, 224))
    assert score.shape == (1,) and feature.shape == (1, 768)
    assert 0 < score.abs() < 1


@pytest.mark.parametrize("shape", [(1, 3, 3, 32, 32), (1, 3, 2, 40, 32), (1, 1, 2, 32, 32)])
def test_shapes_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        FastVQA(MINI_SWIN)(torch.zeros(shape))


def test_gate_begins_without_effect() -> None:
    state = FastVQA(MINI_SWIN).state_dict()
    gated = [name for name in state if name.endswith("fragment_position_bias_table")]
    assert len(gated) == sum(MINI_SWIN.depths[:3])
    for name in gated:
        assert state[name].std() > 0.01
        assert torch.equal(state[name], state[name.replace("fragment_pos", "relative_pos")])


def test_attention_is_torchs_own_with_one_bias_for_the_whole_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    block = Block(6, 2, (2, 3, 3), True)
    masks = []

    def spied(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_mask: torch.Tensor
    ) -> torch.Tensor:
        masks.append(tuple(attn_mask.shape))
        return plain(q, k, v, attn_mask)

    plain = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", spied)
    block(noise(5, 2, 6, 6, 6), lay_out((2, 6, 6), (2, 3, 3), True, CPU))
    assert masks == [(1, 4 * 2, 18, 18)]  # windows x heads
