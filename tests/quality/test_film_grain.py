"""Scores of AV1 files with film-grain synthesis: without it, everywhere."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.media import make_clip, run_ffmpeg
from vqaloop.bitstream.film_grain import NO_SYNTHESIS, has_synthesis
from vqaloop.cli.main import main
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.media.frames import each_of_source, encode_reader, picks_from, read_encode
from vqaloop.media.probe import probe_source
from vqaloop.quality import full_reference
from vqaloop.quality.scorer import Scorer

NOISE = "noise=c0s=12:c0f=t:all_seed=1"
SIZE = (192, 108)
FRAMES = 12
AT = [0, 5, 11]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grainy clip, its AV1 encodes by SVT-AV1 and libaom with tables, and what dav1d makes of
    them without synthesis, stored as they are."""
    folder = tmp_path_factory.mktemp("grain")
    clip = make_clip(folder / "clip.mkv", size="192x108", frames=FRAMES, vf=NOISE, codec="ffv1")
    svt = ("-c:v", "libsvtav1", "-preset", "12", "-svtav1-params")
    made = {
        "svt.mp4": (*svt, "crf=50:film-grain=30:film-grain-denoise=1"),
        "plain.mp4": (*svt, "crf=50"),
        "aom.mkv": ("-c:v", "libaom-av1", "-cpu-used", "6", "-crf", "50", "-b:v", "0")
        + ("-denoise-noise-level", "30"),
    }
    for name, options in made.items():
        run_ffmpeg("-i", str(clip), *options, str(folder / name))
        bare = (word for key, value in NO_SYNTHESIS for word in (f"-{key}", value))
        run_ffmpeg(*bare, "-i", str(folder / name), "-c:v", "ffv1", str(folder / f"{name}.mkv"))
    return folder


def luma(frames: np.ndarray) -> np.ndarray:
    return frames[..., : SIZE[1], :]


@pytest.mark.parametrize(
    ("name", "has"), [("svt.mp4", True), ("aom.mkv", True), ("plain.mp4", False)]
)
def test_synthesis_is_found_and_left_out_by_every_reader(
    folder: Path, name: str, has: bool
) -> None:
    path, source = folder / name, probe_source(folder / "clip.mkv")
    assert has_synthesis(path) is has
    assert not has_synthesis(folder / "clip.mkv") and not has_synthesis(folder / "none.mp4")
    fps, ffmpeg = source.fps, ffmpeg_path()
    bare = probe_source(folder / f"{name}.mkv")
    wanted = np.stack(list(each_of_source(bare, AT, ffmpeg=ffmpeg)))
    for decoder in ("pyav", "ffmpeg"):
        read = read_encode(path, AT, SIZE, fps, decoder=decoder, ffmpeg=ffmpeg)
        np.testing.assert_array_equal(read, wanted)
        shown = read_encode(path, AT, SIZE, fps, decoder=decoder, ffmpeg=ffmpeg, grain=True)
        assert np.array_equal(shown, wanted) is not has
        with_reader = encode_reader(source, path, decoder, ffmpeg=ffmpeg)
        np.testing.assert_array_equal(np.stack(list(with_reader(AT))), wanted)
    # a source is what viewers see
    seen = np.stack(list(each_of_source(probe_source(path), AT, ffmpeg=ffmpeg)))
    assert np.array_equal(seen, wanted) is not has


def test_scores_are_those_without_synthesis(folder: Path) -> None:
    ffmpeg = ffmpeg_path()
    source = probe_source(folder / "clip.mkv")
    metrics = ["vmaf", "psnr"]
    of_file = full_reference.measure(source, folder / "svt.mp4", metrics, ffmpeg=ffmpeg)
    of_bare = full_reference.measure(source, folder / "svt.mp4.mkv", metrics, ffmpeg=ffmpeg)
    assert {m: s.clips for m, s in of_file.items()} == {m: s.clips for m, s in of_bare.items()}
    for metric in ("psnr", "vmaf-sampled"):
        of_both = [
            Scorer(metric).score(folder / name, folder / "clip.mkv").value
            for name in ("svt.mp4", "svt.mp4.mkv")
        ]
        assert of_both[0] == pytest.approx(of_both[1], abs=1e-9)


def test_a_video_without_grain_is_still_read_selectively(folder: Path) -> None:
    video = probe_source(folder / "svt.mp4")
    bare = replace(video, input_options=NO_SYNTHESIS)
    assert picks_from(bare)
    ffmpeg = ffmpeg_path()
    by_pyav = np.stack(list(each_of_source(bare, AT, ffmpeg=ffmpeg)))
    # a filter that changes nothing has the ffmpeg program read it
    by_ffmpeg = np.stack(list(each_of_source(replace(bare, prep=("null",)), AT, ffmpeg=ffmpeg)))
    np.testing.assert_array_equal(by_pyav, by_ffmpeg)


def test_score_says_that_synthesis_is_left_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = ["--reference", str(folder / "clip.mkv"), "--metric", "psnr"]
    assert main(["score", str(folder / "svt.mp4"), *reference]) == 0
    assert "without the film grain" in capsys.readouterr().out
    assert main(["score", str(folder / "svt.mp4"), *reference, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["film_grain"] == "left out"
    assert main(["score", str(folder / "plain.mp4"), *reference]) == 0
    assert "grain" not in capsys.readouterr().out
