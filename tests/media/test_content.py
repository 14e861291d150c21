"""What a title's pictures hold: what each number answers to, and that it is read in every way."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.support.media import make_clip, run_ffmpeg
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.media import content
from vqaloop.media.content import Content, content_of
from vqaloop.media.probe import probe_source

FFMPEG = ffmpeg_path()
WIDTH, HEIGHT, FRAMES = 128, 96, 12


def write(path: Path, frames: Sequence[npt.NDArray[Any]]) -> Content:
    """What pictures of luma hold, as y4m."""
    grey = bytes([128]) * (WIDTH * HEIGHT // 2)
    with open(path, "wb") as file:
        file.write(b"YUV4MPEG2 W%d H%d F25:1 Ip A1:1 C420jpeg\n" % (WIDTH, HEIGHT))
        for frame in frames:
            file.write(b"FRAME\n" + frame.astype(np.uint8).tobytes() + grey)
    found = content_of(probe_source(path, ffmpeg=FFMPEG), ffmpeg=FFMPEG)
    assert found is not None
    return found


def test_each_number_answers_to_what_it_names(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wide = rng.integers(16, 235, (HEIGHT, WIDTH + 6 * FRAMES))
    faint = 128 + (wide - 128) // 16
    still = write(tmp_path / "still.y4m", [wide[:, :WIDTH]] * FRAMES)
    moved = write(tmp_path / "moved.y4m", [wide[:, 6 * i : 6 * i + WIDTH] for i in range(FRAMES)])
    calm = write(tmp_path / "calm.y4m", [faint[:, :WIDTH]] * FRAMES)
    shapes = [rng.integers(16, 235, (HEIGHT, WIDTH)) for _ in range(FRAMES)]
    noise = write(tmp_path / "noise.y4m", shapes)
    assert still.still == 1 and noise.still == 0
    assert 2**moved.motion == pytest.approx(6 / WIDTH + 2e-3, rel=0.25)
    assert 2**still.motion == pytest.approx(2e-3)
    # what moves as a whole costs little more than what stands still, and noise far more
    assert still.bits <= moved.bits < noise.bits - 1
    assert still.detail == pytest.approx(noise.detail, abs=0.2) and calm.detail < still.detail - 2


def test_a_black_title_has_finite_numbers(tmp_path: Path) -> None:
    black = write(tmp_path / "black.y4m", [np.zeros((HEIGHT, WIDTH))] * 3)
    assert black.still == 1 and all(map(math.isfinite, black.values()))


@pytest.mark.parametrize("name", ["a.y4m", "a.mkv", "a.yuv", "ä b.mp4"])
def test_a_long_title_is_sought_and_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Where every frame is a key frame, seeking meets the very frames."""
    path = tmp_path / name
    options: dict[str, Any] = {"g": 1} if path.suffix == ".mp4" else {}
    make_clip(path, frames=30, vf="noise=alls=20:allf=t", **options)
    if path.suffix == ".mkv":
        path.unlink()
        run_ffmpeg("-f", "lavfi", "-i", "testsrc2=s=160x90:r=25:d=1.2", "-c:v", "ffv1", "-g", "1",
                   file_url(path))  # fmt: skip
    raw: dict[str, Any] = {"video_size": "160x90", "pix_fmt": "yuv420p", "framerate": "25"}
    source = probe_source(path, ffmpeg=FFMPEG, **(raw if path.suffix == ".yuv" else {}))
    whole = content_of(source, ffmpeg=FFMPEG)
    content_of.cache_clear()
    monkeypatch.setattr(content, "MOST_DECODED", 1.0)
    assert whole is not None
    assert content_of(source, ffmpeg=FFMPEG) == whole
    content_of.cache_clear()


def test_of_what_cannot_be_looked_at_nothing_is_said(tmp_path: Path) -> None:
    gone = probe_source(make_clip(tmp_path / "gone.mp4"), ffmpeg=FFMPEG)
    (tmp_path / "gone.mp4").unlink()
    assert content_of(gone, ffmpeg=FFMPEG) is None
    assert content_of(replace(gone, frames=1), ffmpeg=FFMPEG) is None
    assert content_of(replace(gone, height=16), ffmpeg=FFMPEG) is None
    (tmp_path / "gone.mp4").write_bytes(b"no video" * 100)
    content_of.cache_clear()
    assert content_of(gone, ffmpeg=FFMPEG) is None
