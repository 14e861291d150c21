import dataclasses
import math
import os
import stat
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.support.media import make_changing, run_ffmpeg
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.core.process import run
from vqaloop.errors import DecodeFailed, InputError
from vqaloop.media.planes import SCALER
from vqaloop.media.probe import probe_source
from vqaloop.quality import full_reference
from vqaloop.quality.full_reference import CAMBI, METRICS, measure
from vqaloop.quality.libvmaf import FEATURES, VMAF_MODELS, vmaf_of_pairs
from vqaloop.records import Source

FRAMES = 12
WIDTH, HEIGHT = 320, 180
NTSC = Fraction(30000, 1001)
FFMPEG = ffmpeg_path()
FITTING = tuple(name for name in METRICS if name != "vmaf-v1-phone")
"""For which such frames are not too small."""

Planes = npt.NDArray[np.uint8]


def convert(inputs: Sequence[str], options: Sequence[str], output: Path) -> Path:
    argv = [FFMPEG, "-v", "error", "-y", *inputs, *options, file_url(output)]
    done = run(argv, timeout_s=60)
    assert done.returncode == 0, done.reason()
    return output


def encode(source: Path, output: Path, *options: str) -> Path:
    return convert(["-i", file_url(source)], options, output)


def luma(path: Path, pix_fmt: str = "gray") -> npt.NDArray[np.float64]:
    argv = [FFMPEG, "-v", "error", "-i", file_url(path), "-vf", "extractplanes=y"]
    done = run([*argv, "-f", "rawvideo", "-pix_fmt", pix_fmt, "-"], timeout_s=60)
    kind = np.uint8 if pix_fmt == "gray" else np.dtype("<u2")
    return np.frombuffer(done.stdout, kind).reshape(-1, HEIGHT, WIDTH).astype(np.float64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("metrics")


@pytest.fixture(scope="module")
def source(folder: Path) -> Source:
    lavfi = f"testsrc2=s={WIDTH}x{HEIGHT}:r=30000/1001,noise=alls=8:allf=t:all_seed=1"
    only = ["-frames:v", str(FRAMES), "-pix_fmt", "yuv420p"]
    path = convert(["-f", "lavfi", "-i", lavfi], only, folder / "it's 100%, [a]:b.y4m")
    return Source(path, "0" * 64, WIDTH, HEIGHT, NTSC, FRAMES, "yuv420p")


@pytest.fixture(scope="module")
def rungs(folder: Path, source: Source) -> list[Path]:
    """The same title at rising CRF."""
    return [
        encode(source.path, folder / f"{crf}.mp4", "-c:v", "libx264", "-crf", str(crf))
        for crf in (20, 32, 44)
    ]


def test_psnr_is_the_plain_formula(source: Source, rungs: list[Path]) -> None:
    score = measure(source, rungs[1], ["psnr"], ffmpeg=FFMPEG)["psnr"]
    mse = ((luma(source.path) - luma(rungs[1])) ** 2).mean(axis=(1, 2))
    expected = 10 * np.log10(255**2 / mse)
    assert score.clips == pytest.approx(expected, abs=1e-4)
    assert score.value == pytest.approx(expected.mean(), abs=1e-4)
    assert (score.mode, score.label) == ("full-reference", "PSNR-Y in dB")


def test_psnr_in_ten_bits(source: Source, folder: Path) -> None:
    options = ["-pix_fmt", "yuv420p10le", "-crf", "30", "-x265-params", "log-level=error"]
    path = encode(source.path, folder / "ten.mkv", "-c:v", "libx265", *options)
    score = measure(source, path, ["psnr", "vmaf", "xpsnr"], ffmpeg=FFMPEG)["psnr"]
    mse = ((luma(source.path) * 4 - luma(path, "gray10le")) ** 2).mean(axis=(1, 2))
    assert score.clips == pytest.approx(10 * np.log10(1023**2 / mse), abs=1e-4)


def test_ten_bits_after_eight_are_compared_in_ten(tmp_path: Path) -> None:
    """The header tells the depth of the first frames alone."""
    path = make_changing(tmp_path / "changing.mkv", "depth", (14, 20))
    probed = probe_source(path, ffmpeg=FFMPEG)
    assert probed.changes and probed.bit_depth == 10
    eight = convert(["-i", file_url(path)], ["-pix_fmt", "yuv420p"], tmp_path / "eight.y4m")
    title = probe_source(eight, ffmpeg=FFMPEG)
    score = measure(title, path, ["psnr"], ffmpeg=FFMPEG, probed=probed)["psnr"]

    def deep(source: Source) -> npt.NDArray[np.float64]:
        vf = ",".join([*source.prep, "format=yuv420p10le", "extractplanes=y"])
        options = ["-reinit_filter", "0", "-i", file_url(source.path), "-vf", vf]
        raw = run_ffmpeg(*options, "-f", "rawvideo", "-pix_fmt", "gray10le", "-")
        return np.frombuffer(raw, "<u2").reshape(-1, 160 * 96).astype(np.float64)

    mse = ((deep(title) - deep(probed)) ** 2).mean(axis=1)
    # the first part is the title itself, and so at the ceiling
    assert score.clips[:14] == (72.0,) * 14
    assert score.clips[14:] == pytest.approx(10 * np.log10(1023**2 / mse[14:]), abs=1e-4)


def test_all_at_once_equals_one_by_one(source: Source, rungs: list[Path]) -> None:
    together = measure(source, rungs[1], FITTING, ffmpeg=FFMPEG, threads=1)
    assert tuple(together) == FITTING
    for name in FITTING:
        alone = measure(source, rungs[1], [name], ffmpeg=FFMPEG)[name]
        assert together[name].clips == alone.clips
        assert len(alone.clips) == FRAMES
        assert together[name].value == pytest.approx(np.mean(alone.clips))
        assert together[name].cpu_s > 0 and together[name].wall_s > 0


def test_vmaf_v1_has_models_of_other_viewers(folder: Path, source: Source) -> None:
    """Seen from farther away damage is less; of one run all have the values of their own."""
    large = ["-vf", "scale=480:272", "-frames:v", "6"]
    one = probe_source(encode(source.path, folder / "large.y4m", *large))
    rung = encode(one.path, folder / "large.mp4", "-c:v", "libx264", "-crf", "40")
    names = ["vmaf-v1", "vmaf-v1-phone", "vmaf-v1-hfr", CAMBI]
    together = measure(one, rung, names, ffmpeg=FFMPEG, threads=1)
    for name in names:
        assert together[name].clips == measure(one, rung, [name], ffmpeg=FFMPEG)[name].clips
    assert 0 < together["vmaf-v1"].value < together["vmaf-v1-phone"].value - 3 < 97
    assert together["vmaf-v1-hfr"].value != together["vmaf-v1"].value
    assert together["vmaf-v1-phone"].label == "VMAF v1 for phones"
    with pytest.raises(InputError, match="320x180 is too small for VMAF v1 for phones"):
        measure(source, source.path, ["vmaf-v1-phone"], ffmpeg=FFMPEG)


def test_values_fall_with_compression(source: Source, rungs: list[Path]) -> None:
    scores = [measure(source, rung, FITTING, ffmpeg=FFMPEG) for rung in rungs]
    # of banding less is better, and compression may blur it away
    for name in set(FITTING) - {CAMBI}:
        values = [score[name].value for score in scores]
        assert values == sorted(values, reverse=True) and len(set(values)) == 3
    assert all(0 < score["ssim"].value < 100 for score in scores)


def test_identical_is_finite(source: Source) -> None:
    scores = measure(source, source.path, FITTING, ffmpeg=FFMPEG)
    assert scores["vmaf"].value >= 97
    assert scores["ssim"].value == pytest.approx(100)
    assert scores["psnr"].clips == scores["xpsnr"].clips == (60.0,) * FRAMES


def test_xpsnr_weighs_errors_by_samples() -> None:
    value = full_reference._xpsnr((30.0, 40.0, math.inf), 60)
    assert value == pytest.approx(-10 * math.log10((4e-3 + 1e-4) / 6))
    assert full_reference._xpsnr((math.inf,) * 3, 60) == 60


def test_smaller_rung_is_judged_at_the_size_of_the_source(source: Source, folder: Path) -> None:
    options = ["-s", "160x90", "-c:v", "libx264", "-crf", "12"]
    small = encode(source.path, folder / "small.mp4", *options)
    back = ["-vf", f"scale={WIDTH}:{HEIGHT}:flags={SCALER}"]
    large = encode(small, folder / "large.y4m", *back)
    score = measure(source, small, ["psnr"], ffmpeg=FFMPEG)["psnr"]
    mse = ((luma(source.path) - luma(large)) ** 2).mean(axis=(1, 2))
    assert score.clips == pytest.approx(10 * np.log10(255**2 / mse), abs=1e-4)


def test_raw_avs2_is_matched_by_index(source: Source, folder: Path) -> None:
    path = encode(source.path, folder / "raw.avs2", "-c:v", "libxavs2", "-qp", "30")
    score = measure(source, path, ["psnr", "vmaf"], ffmpeg=FFMPEG)
    assert min(score["psnr"].clips) > 30 and len(score["vmaf"].clips) == FRAMES


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le"])
def test_full_range_stays_so_where_the_rung_cannot_tell(folder: Path, pix_fmt: str) -> None:
    lavfi = f"testsrc2=s={WIDTH}x{HEIGHT},scale=out_range=pc,format={pix_fmt}"
    tag = ["-color_range", "pc"]
    only = ["-frames:v", "3", "-c:v", "ffv1", *tag]
    full = convert(["-f", "lavfi", "-i", lavfi], only, folder / f"full-{pix_fmt}.mkv")
    title = probe_source(full, ffmpeg=FFMPEG)
    x264 = encode(full, folder / "full.mp4", "-c:v", "libx264", "-qp", "20", "-pix_fmt", "yuv420p")
    avs2 = encode(full, folder / "full.avs2", "-c:v", "libxavs2", "-qp", "20", *tag)
    tagged, untagged = (
        measure(title, path, ["psnr"], ffmpeg=FFMPEG)["psnr"].value for path in (x264, avs2)
    )
    assert tagged > 36 and untagged > 36


def test_names_that_are_not_utf8(source: Source, rungs: list[Path], tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"\xff\xfe.mp4")
    odd.write_bytes(rungs[0].read_bytes())
    expected = measure(source, rungs[0], ["psnr"], ffmpeg=FFMPEG)["psnr"].clips
    assert measure(source, odd, ["psnr"], ffmpeg=FFMPEG)["psnr"].clips == expected
    with pytest.raises(DecodeFailed, match="13 were probed|where its source") as failed:
        measure(dataclasses.replace(source, frames=13), odd, ["psnr"], ffmpeg=FFMPEG)
    assert str(failed.value).isprintable()


def test_timestamps_do_not_matter(source: Source, rungs: list[Path], folder: Path) -> None:
    shift = ["-c", "copy", "-bsf:v", "setts=ts=TS*3+7*N"]
    odd = convert(["-itsoffset", "5", "-i", file_url(rungs[1])], shift, folder / "odd.mkv")
    expected = measure(source, rungs[1], ["psnr"], ffmpeg=FFMPEG)["psnr"].clips
    assert measure(source, odd, ["psnr"], ffmpeg=FFMPEG)["psnr"].clips == expected


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize("names", [("vmaf",), ("psnr", "vmaf")])
def test_other_number_of_frames_is_refused(
    source: Source, folder: Path, change: int, names: tuple[str, ...]
) -> None:
    count = FRAMES + change
    lavfi = "testsrc2=s=160x90:r=30000/1001"
    options = ["-frames:v", str(count), "-c:v", "libx264"]
    path = convert(["-f", "lavfi", "-i", lavfi], options, folder / f"{count}.mp4")
    with pytest.raises(
        DecodeFailed, match=rf"{count}\.mp4. decodes to {count} frames .* {FRAMES}"
    ):
        measure(source, path, names, ffmpeg=FFMPEG)


@pytest.mark.parametrize("name", ["vmaf", "ssim"])
def test_shorter_source_than_probed_is_refused(
    source: Source, rungs: list[Path], folder: Path, name: str
) -> None:
    short = encode(source.path, folder / "short.y4m", "-frames:v", str(FRAMES - 2))
    with pytest.raises(DecodeFailed, match="10 frames where 12 were probed"):
        measure(dataclasses.replace(source, path=short), rungs[0], [name], ffmpeg=FFMPEG)


def test_prep_and_input_options_are_applied(
    source: Source, rungs: list[Path], folder: Path
) -> None:
    raw = encode(source.path, folder / "source.yuv", "-f", "rawvideo")
    size = f"{WIDTH}x{HEIGHT}"
    options = {"f": "rawvideo", "video_size": size, "pix_fmt": "yuv420p", "framerate": "10"}
    prepared = dataclasses.replace(
        source,
        path=raw,
        input_options=tuple(options.items()),
        prep=(r"crop=min(iw\,160):h=90:x=32,setsar=1", "fps=fps=20:round=near"),
        width=160,
        height=90,
        frames=2 * FRAMES,
        fps=Fraction(20),
    )
    given = [word for key, value in options.items() for word in (f"-{key}", value)]
    filters = ["-vf", "crop=160:90:32,fps=20:round=near"]
    same = convert([*given, "-i", file_url(raw)], filters, folder / "same.y4m")
    score = measure(prepared, same, ["psnr", "ssim"], ffmpeg=FFMPEG)
    assert score["psnr"].clips == (60.0,) * 2 * FRAMES
    whole = dataclasses.replace(source, path=raw, input_options=tuple(options.items()))
    reverse = measure(source, raw, ["psnr"], ffmpeg=FFMPEG, distorted_options=whole.input_options)
    assert reverse["psnr"].clips == (60.0,) * FRAMES
    assert measure(whole, rungs[0], ["ssim"], ffmpeg=FFMPEG) is not None


def test_model_follows_the_canvas(
    source: Source, rungs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {(1920, 1080): False, (2560, 1440): False, (1440, 2560): False, (3840, 2160): True}
    for (width, height), is_4k in sizes.items():
        assert (
            full_reference.is_4k(dataclasses.replace(source, width=width, height=height)) is is_4k
        )
    usual = measure(source, rungs[2], ["vmaf"], ffmpeg=FFMPEG)["vmaf"]
    monkeypatch.setattr(full_reference, "is_4k", lambda _: True)
    large = measure(source, rungs[2], ["vmaf"], ffmpeg=FFMPEG)["vmaf"]
    assert (usual.label, large.label) == ("VMAF v0.6.1", "VMAF 4K v0.6.1")
    assert usual.value != large.value


def test_temporary_files_anywhere_and_gone(
    source: Source, rungs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / "it's: [a], 100%;b=c\\d"
    odd.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    assert set(measure(source, rungs[0], FITTING, ffmpeg=FFMPEG)) == set(FITTING)
    assert list(odd.iterdir()) == []


def test_ffmpeg_without_libvmaf(source: Source, rungs: list[Path], tmp_path: Path) -> None:
    lesser = tmp_path / "ffmpeg"
    lesser.write_text(f'#!/bin/sh\n"{FFMPEG}" "$@" | sed /libvmaf/d\n')
    lesser.chmod(lesser.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(InputError, match="without the libvmaf filter"):
        measure(source, rungs[0], ["vmaf"], ffmpeg=str(lesser))
    with pytest.raises(InputError, match="without the libvmaf filter"):
        vmaf_of_pairs(frames(1), frames(1), ffmpeg=str(lesser))
    assert measure(source, rungs[0], ["psnr"], ffmpeg=str(lesser))["psnr"].value > 30


def test_too_small_for_vmaf(source: Source, rungs: list[Path]) -> None:
    with pytest.raises(InputError, match="16x180 is too small for VMAF"):
        measure(dataclasses.replace(source, width=17), rungs[0], ["vmaf"], ffmpeg=FFMPEG)


@pytest.mark.parametrize("model", VMAF_MODELS)
def test_smallest_frames_of_each_model(model: str) -> None:
    short, long = VMAF_MODELS[model].short_side, VMAF_MODELS[model].long_side
    for width, height in ((long, short), (short, long)):
        smallest = frames(2, size=max(short, long))[:, : height * 3 // 2, :width]
        table = vmaf_of_pairs(smallest, smallest, ffmpeg=FFMPEG, model=model)
        assert len(table) == 2 and table["vmaf"].between(80, 100).all()
    for width, height in ((long - 2, short), (long, short - 2)):
        less = frames(2, size=long)[:, : height * 3 // 2, :width]
        with pytest.raises(InputError, match=f"{width}x{height} is too small for VMAF"):
            vmaf_of_pairs(less, less, ffmpeg=FFMPEG, model=model)


@pytest.mark.parametrize("model", ["v1", "v1-4k"])
def test_longest_frames_of_vmaf_v1(model: str) -> None:
    """Of 12 to 1 libvmaf's heap is damaged."""
    for width, height in ((1600, 160), (160, 1600)):
        longest = frames(2, size=1600)[:, : height * 3 // 2, :width]
        table = vmaf_of_pairs(longest, longest, ffmpeg=FFMPEG, model=model)
        assert table["vmaf"].between(80, 100).all()
    longer = frames(2, size=1920)[:, : 160 * 3 // 2]
    with pytest.raises(InputError, match="1920x160 is too long and narrow for VMAF .*; choose"):
        vmaf_of_pairs(longer, longer, ffmpeg=FFMPEG, model=model)


def test_models_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"v2 is no model of VMAF: choose among v0\.6\.1"):
        vmaf_of_pairs(frames(1), frames(1), ffmpeg=FFMPEG, model="v2")
    older = tmp_path / "ffmpeg"
    older.write_text(f'#!/bin/sh\ncase "$*" in *vmaf_v1*) exit 1;; esac\nexec "{FFMPEG}" "$@"\n')
    older.chmod(older.stat().st_mode | stat.S_IXUSR)
    large = frames(2, size=216)
    with pytest.raises(InputError, match=r"lacks VMAF v1 \(vmaf_v1\.0\.16_3d0h\)"):
        vmaf_of_pairs(large, large, ffmpeg=str(older), model="v1")
    assert len(vmaf_of_pairs(large, large, ffmpeg=str(older))) == 2


def test_refusals(source: Source, rungs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown metric.*nonsense.*vmaf"):
        measure(source, rungs[0], ["nonsense"], ffmpeg=FFMPEG)
    with pytest.raises(InputError, match="not a file"):
        measure(source, tmp_path / "none.mp4", ["psnr"], ffmpeg=FFMPEG)
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(DecodeFailed, match=r"text\.mp4"):
        measure(source, tmp_path / "text.mp4", ["psnr"], ffmpeg=FFMPEG)
    half = rungs[0].read_bytes()
    (tmp_path / "half.mp4").write_bytes(half[: len(half) // 2])
    with pytest.raises(DecodeFailed, match=r"half\.mp4"):
        measure(source, tmp_path / "half.mp4", ["psnr"], ffmpeg=FFMPEG)
    with pytest.raises(DecodeFailed, match="time limit"):
        measure(source, rungs[0], FITTING, ffmpeg=FFMPEG, timeout_s=0.001)


def frames(count: int, noise: int = 0, size: int = 112) -> Planes:
    rng = np.random.default_rng(0)
    smooth = np.add.outer(np.arange(size * 3 // 2), np.arange(size)) % 200
    moving = np.stack([np.roll(smooth, 3 * index, axis=1) for index in range(count)])
    textured = moving + rng.integers(0, 30, moving.shape)
    return np.clip(textured + noise * rng.normal(size=moving.shape), 0, 255).astype(np.uint8)


def test_pairs_in_memory() -> None:
    clean = vmaf_of_pairs(frames(5), frames(5), ffmpeg=FFMPEG)
    noisy = vmaf_of_pairs(frames(5), frames(5, noise=12), ffmpeg=FFMPEG, threads=2)
    assert tuple(clean.columns) == FEATURES and len(clean) == len(noisy) == 5
    assert clean["vmaf"].min() >= 95 and clean["adm2"].min() > 0.99
    assert (noisy["vmaf"] < clean["vmaf"]).all()
    assert (noisy["vif_scale0"] < clean["vif_scale0"]).all()
    assert clean["motion2"].iloc[0] == 0 and clean["motion2"].iloc[1:].min() > 0


def test_pairs_agree_with_files(source: Source, rungs: list[Path]) -> None:
    def planes(path: Path) -> Planes:
        argv = [FFMPEG, "-v", "error", "-i", file_url(path), "-f", "rawvideo", "-"]
        done = run(argv, timeout_s=60)
        return np.frombuffer(done.stdout, np.uint8).reshape(-1, HEIGHT * 3 // 2, WIDTH)

    table = vmaf_of_pairs(planes(source.path), planes(rungs[2]), ffmpeg=FFMPEG)
    expected = measure(source, rungs[2], ["vmaf"], ffmpeg=FFMPEG)["vmaf"].clips
    assert tuple(table["vmaf"]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("reference", "distorted"),
    [
        (frames(2), frames(3)),
        (frames(2)[0], frames(2)[0]),
        (frames(2)[:0], frames(2)[:0]),
        (frames(2)[:, :, :-1], frames(2)[:, :, :-1]),
        (frames(2)[:, :-1], frames(2)[:, :-1]),
        (frames(2).astype(np.float32), frames(2)),
    ],
)
def test_other_arrays_are_refused(reference: Any, distorted: Any) -> None:
    with pytest.raises(InputError, match="frames must be"):
        vmaf_of_pairs(reference, distorted, ffmpeg=FFMPEG)
