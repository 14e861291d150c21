"""Q-Mamba against plain formulas."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.support.nets import layer_norm, noise, shaken, values
from vqaloop.models.qmamba import MINI, MINI_2WAY, TINY, Block, Config, LocalScan, QMamba
from vqaloop.models.selective_scan import cross_scan

SMALL = Config(8, (1, 1, 1), 2, patch=8, window=3, states=2)


def counted(config: Config) -> int:
    """Parameters, layer by layer."""
    count = 3 * config.patch**2 * config.width + 3 * config.width
    for number, depth in enumerate(config.depths):
        width = config.width << number
        if number:
            count += 4 * width + 2 * width * width
        rank = -(-width // 16)
        scan = (rank + 2 * config.states) * width + width * rank + width
        scan = config.directions * (scan + config.states * width + width)
        scan += 2 * width**2 + 9 * width + 2 * width
        mlp = 2 * config.mlp_ratio * width**2 + config.mlp_ratio * width + width
        count += depth * (scan + mlp + 4 * width)
    return count + 2 * width + width + 1


def test_parameters_sum_up() -> None:
    """What the models have is in test_models.py."""
    assert counted(TINY) == 27_508_513
    for config, count in ((MINI, 344_929), (MINI_2WAY, 329_697), (SMALL, counted(SMALL))):
        found = sum(p.numel() for p in QMamba(config).parameters())
        assert found == counted(config) == count


@pytest.mark.parametrize("directions", [2, 4])
def test_block_step_by_step(directions: int) -> None:
    config = Config(8, (1,), 2, window=3, states=2, directions=directions)
    block = Block(8, config)
    shaken(block, scale=0.3)
    x, p = noise(1, 1, 4, 6, 8), values(block)
    one = x[0, 0].double().numpy()
    normed = layer_norm(one, p["norm1.weight"], p["norm1.bias"])
    fed = torch.from_numpy(normed @ p["scan.in_proj.weight"].T).permute(2, 0, 1)
    fed = F.conv2d(fed[None], block.scan.conv.weight.double(), padding=1, groups=8)[0]
    fed = (fed / (1 + (-fed).exp())).permute(1, 2, 0)
    where = cross_scan(torch.arange(1.0, 25).view(1, 4, 6, 1), 3, directions)[0, ..., 0].int() - 1
    tokens, out = fed.detach().reshape(24, 8).numpy(), np.zeros((24, 8))
    for k in range(directions):
        h = np.zeros((8, 2))
        for token in where[k].tolist():
            # what pads the grid is a zero, at which the state decays
            u = tokens[token] if token >= 0 else np.zeros(8)
            parts = p["scan.x_proj"][k] @ u
            raw = p["scan.dt_weight"][k] @ parts[:1] + p["scan.dt_bias"][k]
            delta = np.log1p(np.exp(raw))
            a = -np.exp(p["scan.a_logs"][k])
            h = np.exp(delta[:, None] * a) * h + delta[:, None] * parts[1:3] * u[:, None]
            if token >= 0:
                out[token] += h @ parts[3:] + p["scan.skips"][k] * u
    merged = layer_norm(out.reshape(4, 6, 8), p["scan.norm.weight"], p["scan.norm.bias"])
    one = one + merged @ p["scan.out_proj.weight"].T
    normed = layer_norm(one, p["norm2.weight"], p["norm2.bias"])
    hidden = normed @ p["fc1.weight"].T + p["fc1.bias"]
    hidden = hidden / 2 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    expected = one + hidden @ p["fc2.weight"].T + p["fc2.bias"]
    np.testing.assert_allclose(block(x)[0, 0].detach().numpy(), expected, atol=3e-5)


def test_steps_begin_between_a_thousandth_and_a_tenth() -> None:
    torch.manual_seed(0)
    scan = LocalScan(64, SMALL)
    steps = F.softplus(scan.dt_bias)
    assert 1e-3 * 0.999 < steps.min() < 2e-3 and 0.05 < steps.max() < 0.1 * 1.001
    assert torch.equal(scan.a_logs.exp().round(), torch.tensor([1.0, 2.0]).expand(4, 64, 2))


def test_turned_pictures_and_directions_commute() -> None:
    """Upside down and mirrored, the first direction sees what its reverse saw."""
    config = Config(8, (1,), 2, window=3, directions=2)
    scan = LocalScan(8, config)
    shaken(scan, scale=0.3)
    x = noise(1, 6, 6, 8)
    found = scan(x.flip(1, 2)).flip(1, 2)
    with torch.no_grad():
        for parameter in (scan.x_proj, scan.dt_weight, scan.dt_bias, scan.a_logs, scan.skips):
            parameter.copy_(parameter.flip(0))
        scan.conv.weight.copy_(scan.conv.weight.flip(2, 3))
    torch.testing.assert_close(found, scan(x), atol=1e-5, rtol=1e-4)


def test_features_are_means_and_taps_lie_on_one_grid() -> None:
    model = QMamba(SMALL)
    shaken(model, scale=0.1)
    clips = noise(2, 3, 2, 32, 48)
    with torch.no_grad():
        tokens, (eight, sixteen) = model.tokens(clips, model.taps)
        assert tokens.shape == (2, 2 * 1 * 2, 32)
        assert eight.shape == (2, 2 * 2 * 3, 8) and sixteen.shape == (2, 2 * 2 * 3, 16)
        score, feature = model.judge(clips)
        torch.testing.assert_close(feature, tokens.mean(1))
        torch.testing.assert_close(score[:, None], model(clips))
        other = model.judge(clips.flip(2))[1]
        torch.testing.assert_close(other, feature)
