"""SSIMULACRA 2 of frames in memory."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.media import make_clip, run_ffmpeg
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.errors import InputError
from vqaloop.media.colour import to_pictures
from vqaloop.media.planes import Frames, limited
from vqaloop.media.probe import probe_source
from vqaloop.quality.registry import open_metric
from vqaloop.quality.ssimulacra2 import measure


def frames(path: Path, *options: str) -> Frames:
    raw = run_ffmpeg("-i", file_url(path), *options, "-f", "rawvideo", "pipe:1")
    return np.frombuffer(raw, np.uint8).reshape(-1, 96 * 3 // 2, 128)


def test_scores_fall_with_quality_and_are_those_of_picture_files(tmp_path: Path) -> None:
    from ssimulacra2 import compute_ssimulacra2

    source = frames(make_clip(tmp_path / "source.y4m", size="128x96", frames=2))
    good, bad = (
        frames(make_clip(tmp_path / f"{crf}.mp4", size="128x96", frames=2, crf=crf))
        for crf in (20, 45)
    )
    equal, high, low = (measure(source, side) for side in (source, good, bad))
    assert equal.tolist() == [100, 100]
    assert (high < 95).all() and (low < high - 20).all()
    paths = [tmp_path / "one.png", tmp_path / "other.png"]
    for path, side in zip(paths, (source, bad), strict=True):
        rgb = to_pictures(torch.from_numpy(side[:1].copy()))[0].permute(1, 2, 0)
        Image.fromarray(rgb.contiguous().numpy()).save(path)
    assert low[0] == pytest.approx(compute_ssimulacra2(*map(str, paths)), abs=1e-4)


def test_what_cannot_be_measured_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = np.full((1, 24, 16), 128, np.uint8)
    with pytest.raises(InputError, match="two equal"):
        measure(flat, flat[:, :12])
    with pytest.raises(InputError, match="at least 8 pixels"):
        measure(flat[:, :9], flat[:, :9])
    monkeypatch.setitem(sys.modules, "ssimulacra2", None)
    with pytest.raises(InputError, match=r"pip install 'vqaloop\[panel\]'"):
        measure(flat, flat)


def test_it_is_a_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = probe_source(make_clip(tmp_path / "source.y4m", size="128x96", frames=12))
    good, bad = (
        make_clip(tmp_path / f"{crf}.mp4", size="128x96", frames=12, crf=crf) for crf in (20, 45)
    )
    metric = open_metric("ssimulacra2", ffmpeg=ffmpeg_path())
    high, low = (metric.measure(source, path, "pyav") for path in (good, bad))
    assert metric.floor < metric.ceiling < metric.top and 0 <= low.value < high.value - 20
    # each place is one frame, whose value it has alone
    at = [start for start, _ in high.moments]
    pair = frames(source.path)[at], frames(good)[at]
    assert list(high.clips) == pytest.approx(measure(*pair).tolist(), abs=0.01)
    assert high.interval and high.interval[0] <= high.value <= high.interval[1]
    assert metric.finer().identity() != metric.identity()  # type: ignore[union-attr]
    monkeypatch.setitem(sys.modules, "ssimulacra2", None)
    with pytest.raises(InputError, match=r"pip install 'vqaloop\[panel\]'"):
        open_metric("ssimulacra2", ffmpeg=ffmpeg_path())


def test_full_range_is_brought_to_that_of_pictures() -> None:
    frame = np.full((1, 12, 8), 128, np.uint8)
    frame[:, :4], frame[:, 4:8] = 0, 255
    found = limited(frame)
    assert (found[:, :4] == 16).all() and (found[:, 4:8] == 235).all()
    assert (found[:, 8:] == 128).all()
