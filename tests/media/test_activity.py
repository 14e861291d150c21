"""Scenes and activity of sources, read without decoding."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.media import make_clip, run_ffmpeg
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.media.activity import DENSITY, LEAST_SCENE, activity_of, packet_cuts
from vqaloop.media.excerpt import excerpt
from vqaloop.media.probe import probe_source
from vqaloop.records import Source

SCENES = {"testsrc2": 30, "mandelbrot": 50, "rgbtestsrc": 20}
STARTS = (0, 30, 80)


def make_scenes(path: Path, *options: str) -> Path:
    """Three scenes of 30, 50 and 20 frames."""
    inputs = [
        word
        for name, frames in SCENES.items()
        for word in ("-f", "lavfi", "-t", str(frames / 25), "-i", f"{name}=s=160x96:r=25")
    ]
    cut = "".join(f"[{i}:v]format=yuv420p,setsar=1[p{i}];" for i in range(3))
    run_ffmpeg(
        *inputs, "-filter_complex", f"{cut}[p0][p1][p2]concat=n=3", *options, file_url(path)
    )
    return path


def probed(path: Path, **raw: Any) -> Source:
    return probe_source(path, ffmpeg=ffmpeg_path(), **raw)


@pytest.mark.parametrize(
    ("name", "options", "raw"),
    [
        ("a.y4m", (), {}),
        (
            "a.yuv",
            ("-f", "rawvideo"),
            {"video_size": "160x96", "pix_fmt": "yuv420p", "framerate": "25"},
        ),
        ("a10.y4m", ("-pix_fmt", "yuv420p10le", "-strict", "-1"), {}),
        ("a.mkv", ("-c:v", "ffv1", "-g", "1"), {}),
        ("a.mp4", ("-c:v", "libx264", "-crf", "18"), {}),
    ],
)
def test_scenes_are_found_without_decoding(
    name: str, options: tuple[str, ...], raw: dict[str, str], tmp_path: Path
) -> None:
    source = probed(make_scenes(tmp_path / name, *options), **raw)
    found = activity_of(source)
    assert found.starts == STARTS
    assert found.frames == source.frames == 100
    assert DENSITY[0] <= found.density.min() <= found.density.max() <= DENSITY[1]
    # the zoom into a fractal moves, the last scene is still
    assert found.density[40:70].mean() > found.density[88:].mean()


def test_a_cut_between_scheduled_key_frames_is_found_by_its_size(tmp_path: Path) -> None:
    options = ["-c:v", "libx264", "-crf", "18", "-g", "25", "-sc_threshold", "0", "-bf", "0"]
    found = activity_of(probed(make_scenes(tmp_path / "a.mp4", *options))).starts
    for cut in STARTS:
        assert any(abs(cut - start) < LEAST_SCENE for start in found)


def test_one_scene_is_one_scene(tmp_path: Path) -> None:
    for name in ("a.y4m", "a.mp4"):
        assert activity_of(probed(make_clip(tmp_path / name, frames=60))).starts == (0,)


def test_windows_of_an_excerpt_are_its_scenes(tmp_path: Path) -> None:
    source = probed(make_clip(tmp_path / "a.mp4", frames=60))
    made = excerpt(source, [(5, 20), (40, 10)], tmp_path / "x.mkv", ffmpeg=ffmpeg_path())
    assert made.windows == (0, 20) == activity_of(made).starts
    assert (activity_of(made).density == 1).all()
    one = excerpt(source, [(5, 20)], tmp_path / "y.mkv", ffmpeg=ffmpeg_path())
    assert one.windows == ()


def test_what_cannot_be_read_is_flat(tmp_path: Path) -> None:
    source = probed(make_clip(tmp_path / "a.mp4", frames=20))
    (tmp_path / "b.mp4").write_bytes(b"no video")
    for path in (tmp_path / "b.mp4", tmp_path / "gone.mp4"):
        found = activity_of(replace(source, path=path))
        assert found.starts == (0,) and (found.density == 1).all() and found.frames == 20


def test_steady_packets_have_no_cut() -> None:
    rng = np.random.default_rng(0)
    sizes = 1000 * rng.uniform(0.9, 1.1, 200)
    keys = np.arange(200) % 50 == 0
    sizes[keys] *= 20
    assert packet_cuts(sizes, keys) == {}
    assert packet_cuts(1000 * rng.uniform(0.98, 1.02, 200), np.ones(200, bool)) == {}
