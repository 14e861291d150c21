"""FDIM's network: its deformable convolution against a plain one, its scores against FDIM."""

import hashlib
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.nets import noise, shaken
from vqaloop.errors import InputError
from vqaloop.models import fdim
from vqaloop.models.fdim import FEATURES, MEMBER, Fdim, deform_conv, load_fdim

ORIGINAL = {0: 4.66725, 16: 4.63572, 4: 4.51017, 2: 4.22485}
"""By levels of `pictures`: opinion scores by the code of FDIM 0.2.1 with torchvision."""


def pictures(levels: int) -> tuple[Tensor, Tensor]:
    """A textured picture, and the same with so many levels (0: all)."""
    y, x = np.mgrid[0:96, 0:128] / 16
    waves = [np.sin(x * (c + 1) + y * y / 3) * np.cos(y * (3 - c) - x) for c in range(3)]
    one = torch.tensor(np.array(waves) * 0.45 + 0.5, dtype=torch.float32)[None]
    return one, (one * levels).round() / levels if levels else one.clone()


def plain_deform_conv(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Pixel by pixel and tap by tap; what lies outside the picture is 0."""
    batch, _, height, width = x.shape
    out = bias.double()[None, :, None, None].repeat(batch, 1, height, width)
    for b, row, column, tap in np.ndindex(batch, height, width, 9):
        dy, dx = offset[b, 2 * tap : 2 * tap + 2, row, column].double()
        top, left = row + tap // 3 - 1 + dy, column + tap % 3 - 1 + dx
        for y in (top.floor(), top.floor() + 1):
            for z in (left.floor(), left.floor() + 1):
                if 0 <= y < height and 0 <= z < width:
                    share = (1 - (top - y).abs()) * (1 - (left - z).abs())
                    pixel = x[b, :, int(y), int(z)].double()
                    out[b, :, row, column] += (
                        share * weight[:, :, tap // 3, tap % 3].double() @ pixel
                    )
    return out


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (1, 4)])
@pytest.mark.parametrize("reach", [0.0, 0.7, 4.0])
def test_deformable_convolution_is_the_plain_one(size: tuple[int, int], reach: float) -> None:
    x, offset = noise(2, 6, *size), noise(2, 18, *size, seed=2) * reach
    weight, bias = noise(4, 6, 3, 3, seed=3), noise(4, seed=4)
    found = deform_conv(x, offset, weight, bias)
    assert (found - plain_deform_conv(x, offset, weight, bias)).abs().max() < 1e-4


def test_without_offsets_it_is_a_convolution() -> None:
    x, weight, bias = noise(1, 3, 8, 9), noise(5, 3, 3, 3, seed=2), noise(5, seed=3)
    found = deform_conv(x, torch.zeros(1, 18, 8, 9), weight, bias)
    wanted = torch.nn.functional.conv2d(x, weight, bias, padding=1)
    assert (found - wanted).abs().max() < 1e-5


@torch.inference_mode()
def test_features_and_scores_of_a_batch_are_those_of_each_pair() -> None:
    network = Fdim()
    shaken(network, scale=0.02)
    one, other = (noise(2, 3, 40, 64, seed=seed).sigmoid() for seed in (1, 2))
    features = network.features(one, other)
    assert features.shape == (2, FEATURES) and features.isfinite().all()
    for n in range(2):
        alone = network.features(one[n : n + 1], other[n : n + 1])
        assert torch.allclose(alone[0], features[n], atol=1e-5)
    scores = network.mos(features)
    assert scores.shape == (2,) and ((scores > -0.71) & (scores < 5.14)).all()
    # half way between its asymptotes where the answer is the logistic's centre
    last = network.get_submodule("fc.6")
    last.get_parameter("weight").zero_()
    last.get_parameter("bias").fill_(-1.4327)
    assert network.mos(features).tolist() == pytest.approx([(5.1354 - 0.7089) / 2] * 2)


def wheel(path: Path, data: bytes, member: str = MEMBER) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, data)
    return path


def test_checkpoint_is_read_from_a_wheel_and_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Fdim()
    shaken(network, scale=0.02)
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    data = file.getvalue()
    monkeypatch.setattr(fdim, "SIZE", len(data))
    monkeypatch.setattr(fdim, "SHA256", hashlib.sha256(data).hexdigest())
    alone = tmp_path / "dist.ckpt"
    alone.write_bytes(data)
    for path in (alone, wheel(tmp_path / "fdim.whl", data)):
        loaded = load_fdim(path).state_dict()
        assert loaded.keys() == network.state_dict().keys()
        assert all(torch.equal(loaded[key], v) for key, v in network.state_dict().items())
    # a member that goes on beyond the checkpoint is not read to its end
    with pytest.raises(InputError, match="not the checkpoint of version"):
        load_fdim(wheel(tmp_path / "long.whl", data + bytes(1 << 20)))


def test_other_files_are_refused_with_what_to_do(tmp_path: Path) -> None:
    text = tmp_path / "no.whl"
    text.write_text("no archive")
    cases = [
        (tmp_path / "absent.whl", "cannot be read"),
        (tmp_path, "cannot be read"),
        (text, "cannot be read"),
        (wheel(tmp_path / "other.whl", b"x", "other/file"), "has no fdim/dist"),
        (wheel(tmp_path / "wrong.whl", b"x"), "not the checkpoint"),
    ]
    for path, said in cases:
        with pytest.raises(InputError, match=f"{said}.*pip download --no-deps fdim.*--fdim"):
            load_fdim(path)


@pytest.mark.skipif("VQALOOP_FDIM" not in os.environ, reason="VQALOOP_FDIM names no wheel")
@torch.inference_mode()
def test_scores_are_those_of_the_original() -> None:
    network = load_fdim(Path(os.environ["VQALOOP_FDIM"]))
    found = {n: float(network.mos(network.features(*pictures(n)))[0]) for n in ORIGINAL}
    assert found == pytest.approx(ORIGINAL, abs=1e-4)
