"""RankDVQA against plain formulas, and its first convolution for clips of fewer frames."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.nets import noise, shaken, values
from vqaloop.models import create_student
from vqaloop.models.head_config import HeadConfig
from vqaloop.models.rankdvqa import FULL, MINI, Config, Difference, RankDVQA

SMALL = Config((4, 4, 6, 6, 8, 8), width=6, heads=2, frames=4)


def counted(config: Config) -> int:
    """Parameters, layer by layer."""
    count, before = 0, 3
    for channels in config.channels:
        count += 9 * before * channels + channels + 9 * channels**2 + channels
        before = channels
    width = config.width
    for channels in config.channels[:-1]:
        count += 9 * 3 * config.frames * channels * width + width
        count += 4 * width**2 + 4 * width + 49 * config.heads
        count += 4 * width**2 + 3 * width + 9 * width**2 + width + width
    return count


def test_counts_are_those_of_the_papers() -> None:
    found = [sum(p.numel() for p in RankDVQA(config).parameters()) for config in (FULL, MINI)]
    assert found == [counted(FULL), counted(MINI)] == [4_594_938, 449_830]
    assert found[1] < found[0] / 10
    level = 9 * 128 * 192 + 192 + 9 * 192**2 + 192
    assert found[0] - level == 4_041_594, "without the level that is not compared"


def by_hand(block: Difference, x: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """(T·3C, 4, 4), one window: the Swin block without any of its code but the convolutions."""
    p = values(block)
    y = F.conv2d(x[None], block.conv_first.weight, block.conv_first.bias, padding=1)[0]
    tokens = y.detach().double().numpy().reshape(len(y), 16).T
    q, k, v = np.split(tokens @ p["attn.qkv.weight"].T + p["attn.qkv.bias"], 3, axis=1)
    size = q.shape[1] // 2
    parts = []
    for head in range(2):
        bias = np.zeros((16, 16))
        for i, j in np.ndindex(16, 16):
            row = (i // 4 - j // 4 + 3) * 7 + i % 4 - j % 4 + 3
            bias[i, j] = p["attn.relative_position_bias_table"][row, head]
        at = slice(head * size, (head + 1) * size)
        logits = q[:, at] @ k[:, at].T / math.sqrt(size) + bias
        e = np.exp(logits - logits.max(1, keepdims=True))
        parts.append(e / e.sum(1, keepdims=True) @ v[:, at])
    tokens = tokens + np.concatenate(parts, 1) @ p["attn.proj.weight"].T + p["attn.proj.bias"]
    hidden = tokens @ p["fc1.weight"].T + p["fc1.bias"]
    hidden = hidden / 2 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    tokens = tokens + hidden @ p["fc2.weight"].T + p["fc2.bias"]
    y = torch.from_numpy(tokens.T.reshape(1, -1, 4, 4)).float()
    body = block.conv_after_body
    return F.conv2d(y, body.weight, body.bias, padding=1)[0].detach().double().numpy()


def test_swin_block_by_hand() -> None:
    block = Difference(SMALL, 4)
    shaken(block)
    x = noise(2, 4, 12, 4, 4)
    found = block(x).detach().double().numpy()
    for one, answer in zip(x, found, strict=True):
        np.testing.assert_allclose(answer, by_hand(block, one.flatten(0, 1)), atol=2e-5)


def test_sides_are_reflected_to_whole_windows() -> None:
    block = Difference(SMALL, 4)
    shaken(block)
    x = noise(1, 4, 12, 3, 7)
    wide = torch.unflatten(F.pad(x.flatten(1, 2), (0, 1, 0, 1), "reflect"), 1, (4, 12))
    assert block(x).shape == (1, 6, 3, 7)
    torch.testing.assert_close(block(x), block(wide)[..., :3, :7])


@pytest.mark.parametrize("frames", [1, 2])
def test_frames_of_shorter_clips_stand_for_several(frames: int) -> None:
    block = Difference(SMALL, 4).double()
    shaken(block)
    x = noise(2, frames, 12, 8, 8).double()
    repeated = x.repeat_interleave(4 // frames, 1)
    torch.testing.assert_close(block(x), block(repeated))


def test_distance_is_the_sum_of_the_levels_means() -> None:
    model = RankDVQA(SMALL).eval()
    shaken(model, scale=0.1)
    clips, source = noise(2, 2, 3, 2, 80, 96)
    with torch.no_grad():
        total = torch.zeros(2, 1)
        ours, theirs = clips.transpose(1, 2).flatten(0, 1), source.transpose(1, 2).flatten(0, 1)
        for number in range(5):
            ours, theirs = model.levels[number](ours), model.levels[number](theirs)
            normed = [x / (x.square().sum(1, keepdim=True) + 1e-6).sqrt() for x in (theirs, ours)]
            joined = torch.cat([*normed, (normed[0] - normed[1]).abs()], 1)
            out = model.compared[number](torch.unflatten(joined, 0, (2, 2)))
            kernel = model.heads[number][1].weight[0, :, 0, 0]  # type: ignore[index]
            total += (out * kernel[:, None, None]).sum(1).mean((1, 2))[:, None]
        torch.testing.assert_close(model(clips, source), total, atol=1e-5, rtol=1e-4)


def test_differences_are_on_the_grid_of_the_fourth_level() -> None:
    model = RankDVQA(SMALL).eval()
    shaken(model, scale=0.1)
    clips, source = noise(2, 1, 3, 2, 80, 96)
    with torch.no_grad():
        ours, theirs = model.see(clips), model.see(source)
        assert ours.whole.shape == (1, model.feature_width)
        assert [x.shape for x in ours.deep] == [(1, 2 * 5 * 6, 6)] * 2
        found = torch.unflatten(model.differences(theirs.maps, ours.maps), 1, (2, 5, 6))
        assert torch.equal(found[:, 0], found[:, 1])
        levels = model.levels_compared(theirs.maps, ours.maps)
        fourth = torch.cat(levels[3], 1).permute(0, 2, 3, 1)
        torch.testing.assert_close(found[:, 0, ..., 21:28], fourth)
        first = torch.cat(levels[0], 1)[0, :, 8:16, 40:48].mean((1, 2))
        torch.testing.assert_close(found[0, 0, 1, 5, :7], first)


def test_a_student_of_it_sees_its_source() -> None:
    torch.manual_seed(0)
    student = create_student("rankdvqa-mini", config=HeadConfig(("v1",), change=True)).eval()
    clips, source = noise(2, 2, 3, 2, 80, 80)
    score = student(clips, source)
    score.sum().backward()
    without = [
        name
        for name, p in student.named_parameters()
        if (p.grad is None or not p.grad.any()) and not name.startswith(("alone.", "backbone.le"))
    ]
    assert without == []
    with pytest.raises(ValueError, match="T a divisor of 12"):
        student(noise(1, 3, 5, 80, 80), noise(1, 3, 5, 80, 80))
    with pytest.raises(ValueError, match="from 80 on"):
        student(noise(1, 3, 2, 64, 80), noise(1, 3, 2, 64, 80))
