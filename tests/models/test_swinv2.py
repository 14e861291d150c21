"""Swin V2 and its fusion against plain formulas, token by token."""

import itertools
import math

import numpy as np
import pytest
import torch

from tests.support.nets import Values, attention, layer_norm, noise, shaken, softmax, values
from vqaloop.models.fastvqa import lay_out
from vqaloop.models.swinv2 import (
    MINI,
    TINY,
    Block,
    Config,
    CosineAttention,
    Fusion,
    Layer,
    PatchMerging,
    SwinV2,
    log_steps,
)

CPU = torch.device("cpu")
SMALL = Config(8, (2, 1, 1), (2, 2, 4), 12, patch=8, window=3, layers=1, frames=4)


def fusion_count(widths: tuple[int, ...], fused: int, layers: int, frames: int) -> int:
    """Parameters after the stages: their tokens, two transformers, the head."""
    layer = 2 * 2 * fused + (3 + 1 + 4 + 4) * fused**2 + (3 + 1 + 4 + 1) * fused
    tables = (1 + len(widths)) * fused + (1 + frames) * fused
    tokens = sum(width * fused + fused for width in widths)
    return tokens + 2 * layers * layer + tables + 2 * 2 * fused + fused + 1


def stages_count(config: Config) -> int:
    """Parameters of the stages."""
    count = 3 * config.patch**2 * config.width + 3 * config.width
    for number, (depth, heads) in enumerate(zip(config.depths, config.heads, strict=True)):
        width = config.width << number
        if number:
            count += 2 * width * width + 2 * width
        # queries, keys, values, two biases, projection, scales, and the network of positions
        attn = 4 * width**2 + 3 * width + heads + 2 * 512 + 512 + 512 * heads
        count += depth * (attn + 8 * width**2 + 5 * width + 4 * width)
    return count + 2 * width


def test_parameters_sum_up() -> None:
    """What the models have is in test_models.py."""
    # Swin V2 Tiny has 28,347,154 with a classifier of 1000
    assert stages_count(TINY) == 28_347_154 - (768 * 1000 + 1000) == 27_578_154
    assert stages_count(TINY) + fusion_count((96, 192, 384, 768), 256, 2, 8) == 31_111_723
    assert stages_count(MINI) + fusion_count((32, 64, 128), 64, 2, 8) == 808_509
    model = SwinV2(SMALL)
    expected = stages_count(SMALL) + fusion_count((8, 16, 32), 12, 1, 4)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_steps_are_log_spaced() -> None:
    steps = log_steps(3).numpy()
    assert steps.shape == (25, 2)
    for row, (down, across) in enumerate(itertools.product(range(-2, 3), repeat=2)):
        for found, step in zip(steps[row], (down, across), strict=True):
            expected = math.copysign(math.log2(1 + abs(8 * step / 2)) / math.log2(8), step)
            assert found == pytest.approx(expected if step else 0.0, abs=1e-6)


def plain_attention(
    x: Values, p: dict[str, Values], window: int, shift: int, heads: int
) -> Values:
    """(H, W, C), whole windows: token by token, without moving any of them."""
    rows, columns, width = x.shape
    size = width // heads
    bias = np.concatenate([p["q_bias"], np.zeros(width), p["v_bias"]])
    qkv = x @ p["qkv.weight"].T + bias
    scale = np.exp(np.minimum(p["logit_scale"].ravel(), math.log(100)))
    tokens = list(itertools.product(range(rows), range(columns)))

    def group(token: tuple[int, int]) -> tuple[object, ...]:
        moved = [(c - shift) % n for c, n in zip(token, (rows, columns), strict=True)]
        return *(m // window for m in moved), *(c < shift for c in token)

    def position_bias(one: tuple[int, int], two: tuple[int, int], head: int) -> float:
        steps = [8 * (a - b) / (window - 1) for a, b in zip(one, two, strict=True)]
        logs = np.array([math.copysign(math.log2(1 + abs(s)) / 3, s) for s in steps])
        hidden = np.maximum(logs @ p["cpb_mlp.0.weight"].T + p["cpb_mlp.0.bias"], 0)
        return float(16 / (1 + np.exp(-(hidden @ p["cpb_mlp.2.weight"].T)[head])))

    def wrapped(token: tuple[int, int]) -> tuple[int, int]:
        # where a token lies as its window sees it
        return (token[0] - shift) % rows, (token[1] - shift) % columns

    out = np.zeros_like(x)
    for token, head in itertools.product(tokens, range(heads)):
        peers = [t for t in tokens if group(t) == group(token)]
        own = slice(head * size, (head + 1) * size)
        q, k = qkv[..., :width][..., own], qkv[..., width : 2 * width][..., own]
        v = qkv[..., 2 * width :][..., own]
        logits = [
            scale[head] * (q[token] @ k[t]) / (np.linalg.norm(q[token]) * np.linalg.norm(k[t]))
            + position_bias(wrapped(token), wrapped(t), head)
            for t in peers
        ]
        weights = softmax(np.array(logits))
        out[token][own] = sum(w * v[t] for w, t in zip(weights, peers, strict=True))
    return np.asarray(out @ p["proj.weight"].T + p["proj.bias"])


@pytest.mark.parametrize("shifted", [False, True])
def test_block_token_by_token(shifted: bool) -> None:
    block = Block(8, 2, 3)
    shaken(block, scale=0.3)
    # cosines are scaled by 100 at most
    block.attn.logit_scale.data[1] = 9.0
    x = noise(2, 2, 6, 6, 8)
    p = values(block)
    attn = {k.removeprefix("attn."): v for k, v in p.items() if k.startswith("attn.")}
    found = block(x, lay_out((2, 6, 6), (1, 3, 3), shifted, CPU)).detach().numpy()
    for clip, frame in itertools.product(range(2), range(2)):
        one = x[clip, frame].double().numpy()
        branch = plain_attention(one, attn, 3, 1 if shifted else 0, 2)
        one = one + layer_norm(branch, p["norm1.weight"], p["norm1.bias"])
        hidden = one @ p["mlp.fc1.weight"].T + p["mlp.fc1.bias"]
        hidden = hidden / 2 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
        branch = hidden @ p["mlp.fc2.weight"].T + p["mlp.fc2.bias"]
        expected = one + layer_norm(branch, p["norm2.weight"], p["norm2.bias"])
        np.testing.assert_allclose(found[clip, frame], expected, atol=2e-5)


def test_a_window_larger_than_the_grid_is_the_grid() -> None:
    attn = CosineAttention(8, 2, 3)
    shaken(attn, scale=0.3)
    x = noise(1, 1, 2, 2, 8)
    layout = lay_out((1, 2, 2), (1, 3, 3), True, CPU)
    found = attn(x.flatten(2, 3), layout)[0, 0].detach().numpy()
    # positions as in the full window, so pad it and keep what lies in the corner
    p, one = values(attn), x[0, 0].double().numpy()
    qkv = one.reshape(4, 8) @ p["qkv.weight"].T
    qkv += np.concatenate([p["q_bias"], np.zeros(8), p["v_bias"]])
    table = attn.bias(lay_out((1, 3, 3), (1, 3, 3), False, CPU))[0].detach().double().numpy()
    corner = [0, 1, 3, 4]
    scale = np.exp(np.minimum(p["logit_scale"].ravel(), math.log(100)))
    parts = []
    for head in range(2):
        q, k, v = (qkv[:, i * 8 + head * 4 : i * 8 + head * 4 + 4] for i in range(3))
        q, k = (t / np.linalg.norm(t, axis=1, keepdims=True) for t in (q, k))
        parts.append(softmax(scale[head] * q @ k.T + table[head][np.ix_(corner, corner)]) @ v)
    expected = np.concatenate(parts, 1) @ p["proj.weight"].T + p["proj.bias"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_merging_norms_what_it_projected() -> None:
    merging = PatchMerging(4)
    shaken(merging)
    x, p = noise(1, 1, 2, 4, 4), values(merging)
    found = merging(x)[0, 0].detach().numpy()
    one = x[0, 0].double().numpy()
    for column in range(2):
        four = [one[r, 2 * column + c] for c in (0, 1) for r in (0, 1)]
        joined = np.concatenate(four) @ p["reduction.weight"].T
        expected = layer_norm(joined, p["norm.weight"], p["norm.bias"])
        np.testing.assert_allclose(found[0, column], expected, atol=1e-5)


def test_fusion_is_the_class_token_of_a_transformer() -> None:
    fusion = Fusion(SMALL, 3)
    shaken(fusion)
    x, p = noise(2, 3, 12), values(fusion)
    assert isinstance(fusion.layers[0], Layer)
    for one, found in zip(x.double().numpy(), fusion(x).detach().numpy(), strict=True):
        y = np.concatenate([p["cls_token"][0], one + p["pos_embed"][0]])
        of = {k.removeprefix("layers.0."): v for k, v in p.items() if k.startswith("layers.0.")}
        normed = layer_norm(y, of["norm1.weight"], of["norm1.bias"])
        q, k, v = np.split(normed @ of["qkv.weight"].T + of["qkv.bias"], 3, axis=1)
        y = y + attention(q, k, v, 4) @ of["proj.weight"].T + of["proj.bias"]
        normed = layer_norm(y, of["norm2.weight"], of["norm2.bias"])
        hidden = normed @ of["mlp.fc1.weight"].T + of["mlp.fc1.bias"]
        hidden = hidden / 2 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
        y = y + hidden @ of["mlp.fc2.weight"].T + of["mlp.fc2.bias"]
        expected = layer_norm(y[0], p["norm.weight"], p["norm.bias"])
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_stages_and_then_frames_are_fused() -> None:
    model = SwinV2(SMALL)
    shaken(model, scale=0.1)
    clips = noise(2, 3, 4, 32, 32)
    with torch.no_grad():
        means, (eight, sixteen) = model.tokens(clips, model.taps)
        assert means.shape == (2, 4, 3, 12)
        assert eight.shape == (2, 4 * 2 * 2, 8) and sixteen.shape == (2, 4 * 2 * 2, 16)
        # tokens 8 pixels apart are averaged to places of 16
        whole = model.stages[0](model.patch_embed(clips))
        torch.testing.assert_close(eight[0, 0], whole[0, 0, :2, :2].mean((0, 1)))
        torch.testing.assert_close(eight[1, 7], whole[1, 1, 2:, 2:].mean((0, 1)))
        frames = [model.spatial(means[:, t]) for t in range(4)]
        feature = model.temporal(torch.stack(frames, 1))
        torch.testing.assert_close(model.features(means), feature)
        torch.testing.assert_close(model(clips), model.head(feature))
        # what the feature is of is not computed for the anchored head
        assert len(model.tokens(clips, model.taps, pooled=False)[0][0, 0]) == 2


def test_blocks_begin_as_the_identity_and_sizes_are_checked() -> None:
    model = SwinV2(SMALL)
    x = noise(1, 1, 6, 6, 8)
    block = model.stages[0].blocks[0]  # type: ignore[index]
    torch.testing.assert_close(block(x, lay_out((1, 6, 6), (1, 3, 3), False, CPU)), x)  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"multiples of 16, not \(1, 3, 2, 40, 32\)"):
        model(noise(1, 3, 2, 40, 32))
