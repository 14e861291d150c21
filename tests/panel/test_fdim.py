"""FDIM of frames in memory: batches, and that the network is loaded once."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.media import run_ffmpeg
from tests.support.nets import shaken
from vqaloop.errors import InputError
from vqaloop.models.fdim import FEATURES, Fdim
from vqaloop.panel import fdim

RNG = np.random.default_rng(3)
REFERENCE = RNG.integers(16, 236, (5, 48, 64), np.uint8)
DISTORTED = RNG.integers(16, 236, (5, 48, 64), np.uint8)


def random_network() -> Fdim:
    torch.manual_seed(0)
    network = Fdim()
    shaken(network, scale=0.02)
    return network


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What was loaded; any file is taken for FDIM's and makes the same random network."""
    found: list[Path] = []

    def load(path: Path) -> Fdim:
        found.append(path)
        return random_network()

    monkeypatch.setattr(fdim, "load_fdim", load)
    return found


def test_batches_give_what_the_network_gives_each_pair(
    tmp_path: Path, loads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "fdim.whl"
    weights.write_bytes(b"1")
    monkeypatch.setattr(fdim, "BATCH_PIXELS", 2 * 32 * 64)
    scores, features = fdim.measure(REFERENCE, DISTORTED, weights)
    assert scores.dtype == np.float32 and features.dtype == np.float16
    network = random_network()
    pair = [fdim.to_rgb(torch.from_numpy(a)) for a in (REFERENCE, DISTORTED)]
    with torch.inference_mode():
        wanted = network.features(*pair)
        assert np.allclose(scores, network.mos(wanted), atol=1e-5)
    assert features.shape == (5, FEATURES) and np.allclose(features, wanted, atol=1e-3)
    assert len(set(scores.tolist())) == 5


def test_network_is_loaded_once_and_again_where_the_file_changes(
    tmp_path: Path, loads: list[Path]
) -> None:
    weights = tmp_path / "fdim.whl"
    weights.write_bytes(b"1")
    for _ in range(2):
        fdim.measure(REFERENCE, DISTORTED, weights)
    assert loads == [weights]
    weights.write_bytes(b"22")
    fdim.measure(REFERENCE, DISTORTED, weights)
    assert loads == [weights] * 2


def test_pictures_are_those_of_ffmpeg(tmp_path: Path) -> None:
    raw = tmp_path / "frames.yuv"
    REFERENCE.tofile(raw)
    form = ["-f", "rawvideo", "-video_size", "64x32", "-pix_fmt", "yuv420p"]
    tags = ["-color_range", "tv", "-colorspace", "bt709"]
    rgb = run_ffmpeg(*form, *tags, "-i", str(raw), "-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1")
    wanted = np.frombuffer(rgb, np.uint8).reshape(5, 32, 64, 3).transpose(0, 3, 1, 2)
    found = fdim.to_rgb(torch.from_numpy(REFERENCE)).numpy() * 255
    # equal on x86; other processors have other code
    assert np.abs(found - wanted).max() < 2.5 and np.abs(found - wanted).mean() < 0.6


def test_other_arrays_and_absent_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two equal"):
        fdim.measure(REFERENCE, DISTORTED[:4], tmp_path / "absent.whl")
    with pytest.raises(InputError, match="must be uint8"):
        fdim.measure(REFERENCE, DISTORTED.astype(float), tmp_path)
    with pytest.raises(InputError, match="cannot be read.*pip download"):
        fdim.measure(REFERENCE, DISTORTED, tmp_path / "absent.whl")
