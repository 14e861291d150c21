"""Figures of the guard: VMAF of a part of the frames, the worst second, what there is of each."""

import dataclasses
from fractions import Fraction
from pathlib import Path

import pytest

from tests.support.media import run_ffmpeg
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.media.probe import probe_source
from vqaloop.quality.full_reference import measure
from vqaloop.quality.guard import guard_metrics, worst_second
from vqaloop.records import Source

FFMPEG = ffmpeg_path()
FRAMES = 32


@pytest.fixture(scope="module")
def title(tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, Path]:
    """Frames that move, stand still and move again, and an encode of them."""
    folder = tmp_path_factory.mktemp("guard")
    lavfi = "testsrc2=s=256x192:r=25,noise=alls=10:allf=t:all_seed=1,fps=15,fps=25"
    only = ["-frames:v", str(FRAMES), "-pix_fmt", "yuv420p", "-c:v", "ffv1"]
    run_ffmpeg("-f", "lavfi", "-i", lavfi, *only, file_url(folder / "title.mkv"))
    encoded = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "34"]
    run_ffmpeg("-i", file_url(folder / "title.mkv"), *encoded, file_url(folder / "rung.mp4"))
    return probe_source(folder / "title.mkv"), folder / "rung.mp4"


def test_a_part_of_the_frames_has_the_values_of_all(title: tuple[Source, Path]) -> None:
    full = measure(*title, ["vmaf", "vmaf-v1", "vmaf-neg", "xpsnr"], ffmpeg=FFMPEG)
    every = {"vmaf": 3, "vmaf-v1": 7, "vmaf-neg": 1, "xpsnr": 1}
    some = measure(*title, every, ffmpeg=FFMPEG, threads=1)
    assert len({score.value for score in full.values()}) == 4
    for name, step in every.items():
        # motion too is that of the title: in a video of these frames alone it would be larger
        assert some[name].clips[::step] == pytest.approx(full[name].clips[::step], abs=1e-6)
        assert len(some[name].clips) == FRAMES
        assert some[name].value == pytest.approx(full[name].value, abs=1.5)
    between = sum(some["vmaf"].clips[i] * w for i, w in ((3, 2 / 3), (6, 1 / 3)))
    assert some["vmaf"].clips[4] == pytest.approx(between)
    # the first frame, which has no motion yet, stands for itself alone
    assert some["vmaf"].clips[1] == some["vmaf"].clips[3] != some["vmaf"].clips[0]
    assert (some["vmaf"].label, full["vmaf"].label) == (
        "VMAF v0.6.1, 1 of 3 frames",
        "VMAF v0.6.1",
    )


def test_which_figures_there_are(title: tuple[Source, Path], tmp_path: Path) -> None:
    source = title[0]
    usual = {"vmaf": 3, "psnr": 1, "vmaf-v1": 7, "xpsnr": 1}
    assert guard_metrics(source, FFMPEG) == usual
    large = dataclasses.replace(source, width=3840, height=2160)
    assert guard_metrics(large, FFMPEG) == {**usual, "vmaf-hd": 3}
    small = dataclasses.replace(source, width=214, height=160)
    wide = dataclasses.replace(source, width=3840, height=216)
    assert guard_metrics(small, FFMPEG) == {"vmaf": 3, "psnr": 1, "xpsnr": 1}
    assert "vmaf-v1" not in guard_metrics(wide, FFMPEG)
    # two frames would not do
    assert guard_metrics(dataclasses.replace(source, frames=14), FFMPEG)["vmaf-v1"] == 1
    assert guard_metrics(dataclasses.replace(source, frames=6), FFMPEG)["vmaf"] == 1
    older = tmp_path / "ffmpeg"
    older.write_text(
        f'#!/bin/sh\ncase "$*" in *vmaf_v1*) exit 1;; esac\n"{FFMPEG}" "$@" | sed /xpsnr/d\n'
    )
    older.chmod(0o755)
    assert guard_metrics(source, str(older)) == {"vmaf": 3, "psnr": 1}


def test_worst_second_may_begin_anywhere() -> None:
    values = [90.0] * 40 + [50.0] * 10 + [90.0] * 30
    assert worst_second(values, Fraction(20)) == pytest.approx(70)
    assert worst_second(values, Fraction(10)) == pytest.approx(50)
    # shorter than a second: all there is
    assert worst_second(values, Fraction(120)) == pytest.approx(85)
    assert worst_second(values, Fraction(1, 2)) == 50
