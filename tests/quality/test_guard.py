"""Figures of the guard: VMAF of a part of the frames, the worst second, what there is of each."""

import dataclasses
from fractions import Fraction
from pathlib import Path

import pytest

from tests.support.media import run_ffmpeg
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.ladder.warnings import BANDING
from vqaloop.media.probe import probe_source
from vqaloop.quality.crop_sampling import CropSampling
from vqaloop.quality.full_reference import CAMBI, filters_of, measure
from vqaloop.quality.guard import (
    SAMPLED_ABOVE,
    SAMPLING,
    Guarded,
    GuardPlan,
    guard_metrics,
    guard_plan,
    worst_second,
)
from vqaloop.quality.registry import open_metric
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
    usual = {"vmaf": 3, "psnr": 1, "vmaf-v1": 3, "xpsnr": 1, "cambi": 3}
    assert guard_metrics(source, FFMPEG) == usual
    large = dataclasses.replace(source, width=3840, height=2160)
    assert guard_metrics(large, FFMPEG) == {**usual, "vmaf-hd": 3}
    small = dataclasses.replace(source, width=214, height=160)
    wide = dataclasses.replace(source, width=3840, height=216)
    assert guard_metrics(small, FFMPEG) == {"vmaf": 3, "psnr": 1, "xpsnr": 1}
    assert "vmaf-v1" not in guard_metrics(wide, FFMPEG)
    # two frames would not do
    assert guard_metrics(dataclasses.replace(source, frames=7), FFMPEG)["vmaf-v1"] == 3
    assert guard_metrics(dataclasses.replace(source, frames=6), FFMPEG)["vmaf"] == 1
    older = tmp_path / "ffmpeg"
    older.write_text(
        f'#!/bin/sh\ncase "$*" in *vmaf_v1*) exit 1;; esac\n"{FFMPEG}" "$@" | sed /xpsnr/d\n'
    )
    older.chmod(0o755)
    assert guard_metrics(source, str(older)) == {"vmaf": 3, "psnr": 1}


def test_one_libvmaf_measures_all_its_figures(title: tuple[Source, Path], tmp_path: Path) -> None:
    filters = filters_of(guard_metrics(title[0], FFMPEG), title[0], tmp_path, 1)
    assert [name for name, _ in filters] == ["libvmaf", "psnr", "xpsnr"]


def test_a_long_title_is_sampled(title: tuple[Source, Path]) -> None:
    source = title[0]
    long = dataclasses.replace(source, frames=SAMPLED_ABOVE + 1)

    def sampling(of: Source, mode: str | None) -> CropSampling | None:
        return guard_plan(of, FFMPEG, mode, "pyav").sampling

    assert sampling(source, None) is None and sampling(long, None) == SAMPLING
    assert sampling(source, "sampled") == SAMPLING and sampling(long, "full") is None
    plan = guard_plan(long, FFMPEG, None, "pyav")
    # what they look at is part of cache keys
    plans = [plan, plan.finer(), guard_plan(long, FFMPEG, "full", "pyav")]
    assert len({repr(each.identity("psnr")) for each in plans}) == 3


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv420p10le"])
def test_frames_at_places_have_the_values_of_the_whole_title(
    title: tuple[Source, Path], tmp_path: Path, pixels: str
) -> None:
    source, rung = title[0], tmp_path / "rung.mp4"
    encoded = ["-vf", "scale=224:160", "-c:v", "libx264", "-preset", "veryfast", "-crf", "34"]
    run_ffmpeg("-i", file_url(source.path), *encoded, "-pix_fmt", pixels, file_url(rung))
    metrics = dict.fromkeys(guard_metrics(source, FFMPEG), 1)
    whole = measure(source, rung, metrics, ffmpeg=FFMPEG)
    plan = GuardPlan(metrics, CropSampling(positions=6))
    some = plan.measure(source, rung, ffmpeg=FFMPEG, threads=1)
    assert set(some) == set(whole) and plan.places(source) < plan.finer().places(source)
    for name, score in some.items():
        # of XPSNR a place's last frame, whose two forerunners are there
        values = [whole[name].clips[at + (name == "xpsnr")] for at, _ in score.moments]
        assert list(score.clips) == pytest.approx(values, abs=1e-6), name
        assert score.interval and score.interval[0] <= score.value <= score.interval[1]
        assert "of 32 frames" in (score.label or "")
    found = Guarded.of(some, source)
    assert set(found.intervals) == {"vmaf", "psnr_y", "vmaf_v1", "xpsnr", "cambi"}
    # there is no worst second of places alone
    assert set(found.figures) == set(found.intervals)
    at = max(some[CAMBI].moments, key=lambda moment: moment[1])[0]
    assert found.banding_at_s == pytest.approx(at / 25)


def test_worst_second_may_begin_anywhere() -> None:
    values = [90.0] * 40 + [50.0] * 10 + [90.0] * 30
    assert worst_second(values, Fraction(20)) == pytest.approx(70)
    assert worst_second(values, Fraction(10)) == pytest.approx(50)
    # shorter than a second: all there is
    assert worst_second(values, Fraction(120)) == pytest.approx(85)
    assert worst_second(values, Fraction(1, 2)) == 50


def test_a_sky_in_8_bits_shows_banding_and_in_10_it_does_not(tmp_path: Path) -> None:
    sky = "color=black:s=256x192:r=25,format=yuv420p10le,geq=lum='300+60*X/W+20*Y/H':cb=512:cr=512"
    only = ["-frames:v", "3", "-c:v", "ffv1"]
    run_ffmpeg("-f", "lavfi", "-i", sky, *only, file_url(tmp_path / "sky.mkv"))
    source, found = probe_source(tmp_path / "sky.mkv"), {}
    for pixels in ("yuv420p", "yuv420p10le"):
        rung = tmp_path / f"{pixels}.mp4"
        encoded = ["-pix_fmt", pixels, "-c:v", "libx264", "-preset", "veryfast", "-crf", "20"]
        dither = ["-sws_dither", "none"]
        run_ffmpeg("-i", file_url(source.path), *dither, *encoded, file_url(rung))
        scores = measure(source, rung, ["vmaf-v1", CAMBI], ffmpeg=FFMPEG)
        assert scores[CAMBI].value == pytest.approx(
            open_metric(CAMBI, ffmpeg=FFMPEG).measure(source, rung, "pyav").value
        )
        found[pixels] = scores[CAMBI].value
    assert found["yuv420p"] > 8 and found["yuv420p10le"] < BANDING
