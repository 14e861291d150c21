"""Both ways of decoding against a plain full decode, and against each other."""

import os
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.media import make_clip, remux, run_ffmpeg
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.encoding.encode import encode
from vqaloop.encoding.registry import get_encoder
from vqaloop.errors import DecodeFailed
from vqaloop.media.frames import each_of_encode, read_encode, read_source
from vqaloop.media.planes import Frames, cut
from vqaloop.media.probe import probe_source
from vqaloop.records import Rendition, Source

FFMPEG = ffmpeg_path()
WIDTH, HEIGHT = 160, 96
SECONDS, FPS = 12, Fraction(10)
PC = {"color_range": "pc"}

GAPS = {
    "dense": range(9),
    "scattered": (3, 4, 17, 18, 39),
    "over seeks": (0, 1, 47, 48, 95, 96, 119),
    "on keyframes": (20, 80, 100),
    "last": (119,),
}


def all_frames(path: Path, pix_fmt: str = "yuv420p") -> Frames:
    raw = run_ffmpeg(
        "-i", file_url(path), "-f", "rawvideo", "-pix_fmt", pix_fmt, "-fps_mode",
        "passthrough", "pipe:1",
    )  # fmt: skip
    return np.frombuffer(raw, np.uint8).reshape(-1, HEIGHT * 3 // 2, WIDTH)


def read(path: Path, indices: Sequence[int], decoder: str, fps: Fraction = FPS) -> Frames:
    return read_encode(path, indices, (WIDTH, HEIGHT), fps, decoder=decoder, ffmpeg=FFMPEG)


def coded(source: Source, name: str, out: Path, *, divide: int = 1, bits: int = 8) -> Path:
    """An encode of ours, about as good as the encoder can."""
    spec = get_encoder(name)
    size = source.canvas[0] // divide, source.canvas[1] // divide
    rendition = Rendition(*size, name, max(4, spec.knob.min), spec.presets[-1], bits)
    return encode(source, rendition, out, ffmpeg=FFMPEG).path


@pytest.fixture(scope="module")
def title(tmp_path_factory: pytest.TempPathFactory) -> Source:
    path = tmp_path_factory.mktemp("title") / "title.mkv"
    clip = make_clip(path, size=f"{WIDTH}x{HEIGHT}", frames=120, rate="10", codec="ffv1")
    return probe_source(clip, ffmpeg=FFMPEG)


@pytest.fixture(scope="module")
def rungs(title: Source) -> dict[str, Path]:
    """12 s, a keyframe every 2 s, of each kind of stream."""
    folder = title.path.parent
    return {
        name: coded(title, name, folder / f"{name}{get_encoder(name).suffix}")
        for name in ("libx264", "libx265", "libvpx-vp9", "libsvtav1", "libxavs2")
    }


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("name", ["libx264", "libx265", "libvpx-vp9", "libsvtav1", "libxavs2"])
def test_frames_are_those_of_a_full_decode(rungs: dict[str, Path], name: str, gap: str) -> None:
    whole, indices = all_frames(rungs[name]), list(GAPS[gap])
    assert len(whole) == 120 and len(np.unique(whole, axis=0)) == 120
    assert (read(rungs[name], indices, "ffmpeg") == whole[indices]).all()
    if get_encoder(name).decoder == "pyav":
        assert (read(rungs[name], indices, "pyav") == whole[indices]).all()


@pytest.mark.parametrize("gap", GAPS)
def test_source_frames_are_those_of_a_full_decode(title: Source, gap: str) -> None:
    indices = list(GAPS[gap])
    assert (read_source(title, indices, ffmpeg=FFMPEG) == all_frames(title.path)[indices]).all()


def test_indices_count_after_prep(title: Source) -> None:
    halved = replace(title, prep=("fps=5", "negate", "crop=80:48:20:10"), width=81, height=49)
    found = read_source(halved, [3, 50], ffmpeg=FFMPEG)
    every = all_frames(title.path)
    assert found.shape == (2, 72, 80)
    luma = 255 - every[:, 10:58, 20:100].astype(int)
    for frame, index in zip(found, (3, 50), strict=True):
        near = luma[2 * index : 2 * index + 2]
        assert abs(near - frame[:48]).max(axis=(1, 2)).min() <= 1


def test_ten_bits_are_read_as_eight(title: Source, tmp_path: Path) -> None:
    ten = make_clip(
        tmp_path / "ten.mkv", size=f"{WIDTH}x{HEIGHT}", frames=12, rate="10", codec="ffv1",
        vf="format=yuv420p10le,noise=alls=4:all_seed=1", pix_fmt="yuv420p10le",
    )  # fmt: skip
    source = probe_source(ten, ffmpeg=FFMPEG)
    assert source.bit_depth == 10
    found = read_source(source, [0, 5, 11], ffmpeg=FFMPEG)
    assert (found == read(ten, [0, 5, 11], "pyav")).all()
    deep = np.frombuffer(
        run_ffmpeg("-i", file_url(ten), "-f", "rawvideo", "pipe:1"), "<u2"
    ).reshape(-1, HEIGHT * 3 // 2, WIDTH)[[0, 5, 11]]
    assert abs(deep / 4 - found).max() <= 1
    rung = coded(source, "libx265", tmp_path / "ten.mp4", bits=10)
    assert (read(rung, [0, 5, 11], "pyav") == read(rung, [0, 5, 11], "ffmpeg")).all()


@pytest.mark.parametrize("divide", [1, 2])
@pytest.mark.parametrize("name", ["libx264", "libx265", "libvpx-vp9", "libsvtav1"])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le"])
@pytest.mark.parametrize("colour_range", ["tv", "pc"])
def test_both_decoders_give_the_same_pixels(
    tmp_path: Path, name: str, divide: int, pix_fmt: str, colour_range: str
) -> None:
    clip = make_clip(
        tmp_path / "in.mkv", size="256x144", frames=4, rate="10", codec="ffv1", pix_fmt=pix_fmt,
        vf=f"scale=out_range={colour_range}", color_range=colour_range,
    )  # fmt: skip
    source = probe_source(clip, ffmpeg=FFMPEG)
    bits = source.bit_depth if source.bit_depth in get_encoder(name).bit_depths else 8
    rung = coded(source, name, tmp_path / "a.mp4", divide=divide, bits=bits)
    legs = [
        read_encode(rung, [0, 3], source.canvas, source.fps, decoder=decoder, ffmpeg=FFMPEG)
        for decoder in ("pyav", "ffmpeg")
    ]
    assert (legs[0] == legs[1]).all()


@pytest.mark.parametrize("divide", [1, 2])
@pytest.mark.parametrize("suffix", ["mp4", "h264"])
@pytest.mark.parametrize(("own", "wanted"), [("tv", "pc"), ("pc", "tv"), ("pc", "pc"), ("", "pc")])
def test_both_decoders_give_the_wanted_range(
    tmp_path: Path, divide: int, suffix: str, own: str, wanted: str
) -> None:
    # x264 tags limited range only beside another tag
    tags = f"range={own}:color_primaries=bt709" if own else "range=unknown"
    vf = f"scale=256/{divide}:144/{divide}:out_range={own or wanted},setparams={tags}"
    made = make_clip(tmp_path / "a.mp4", size="256x144", frames=4, rate="10", vf=vf, crf=12)
    bare = remux(made, tmp_path / f"bare.{suffix}")

    def read(path: Path, decoder: str, wanted: str | None) -> Frames:
        options: dict[str, Any] = {"decoder": decoder, "ffmpeg": FFMPEG, "wanted_range": wanted}
        return np.stack(list(each_of_encode(path, [0, 3], (256, 144), FPS, **options)))

    found = read(bare, "ffmpeg", wanted)
    assert (found == read(made, "pyav", wanted)).all()
    # untagged pictures are taken to have it already
    assert (found == read(bare, "ffmpeg", None)).all() == (own in ("", wanted))


@pytest.mark.parametrize("vf", ["scale=out_range=tv", "scale=out_range=pc"])
@pytest.mark.parametrize("name", ["libx264", "libvpx-vp9", "libxavs2"])
def test_a_good_rung_has_the_pixels_of_its_source(tmp_path: Path, name: str, vf: str) -> None:
    """Whatever its range, the source is read as the rung is."""
    smooth = f"gblur=3,{vf}"
    options = {"frames": 4, "rate": "10", "codec": "ffv1", "color_range": vf[-2:]}
    clip = make_clip(tmp_path / "in.mkv", size=f"{WIDTH}x{HEIGHT}", vf=smooth, **options)  # type: ignore[arg-type]
    source = probe_source(clip, ffmpeg=FFMPEG)
    spec = get_encoder(name)
    rung = coded(source, name, tmp_path / f"a{spec.suffix}")
    reference = read_source(source, [0, 3], ffmpeg=FFMPEG).astype(int)
    found = read(rung, [0, 3], spec.decoder)
    assert (reference == all_frames(clip)[[0, 3]]).all()
    if name == "libx264":  # the others smooth a few samples more than that
        assert abs(reference - found).max() <= 2
    assert abs((reference - found).mean(axis=(1, 2))).max() < 0.2


@pytest.mark.parametrize("name", ["libx264", "libx265", "libvpx-vp9"])
def test_chroma_stays_in_its_place(tmp_path: Path, name: str) -> None:
    """Rungs of half the size, brought back, are not shifted, whatever the decoder says."""
    y, x = np.mgrid[0 : HEIGHT // 2, 0 : WIDTH // 2]
    wave = (128 + 60 * np.sin(x / 9) * np.cos(y / 13)).round().astype(np.uint8)
    luma = np.full((HEIGHT, WIDTH), 128, np.uint8)
    frame = np.concatenate([luma.ravel(), wave.ravel(), wave.ravel()])
    raw = tmp_path / "in.yuv"
    raw.write_bytes(frame.tobytes() * 4)
    size = f"{WIDTH}x{HEIGHT}"
    source = probe_source(raw, video_size=size, pix_fmt="yuv420p", framerate="10", ffmpeg=FFMPEG)
    spec = get_encoder(name)
    rendition = Rendition(80, 64, name, spec.knob.min, spec.presets[-1])
    rung = encode(source, rendition, tmp_path / "a.mp4", ffmpeg=FFMPEG).path
    for decoder in ("pyav", "ffmpeg"):
        found = read(rung, [0], decoder)[0, HEIGHT:].reshape(2, HEIGHT // 2, WIDTH // 2)
        error = found[0].astype(float) - wave
        along = np.gradient(wave.astype(float), axis=1)
        inside = np.s_[8:-8, 8:-8]
        shift = (error * along)[inside].sum() / (along**2)[inside].sum()
        assert abs(shift) < 0.05, f"{decoder} moves chroma by {shift:.2f} samples"


def test_names_that_are_not_utf8(rungs: dict[str, Path], title: Source, tmp_path: Path) -> None:
    for name, decoder in (("libx264", "pyav"), ("libxavs2", "ffmpeg")):
        odd = tmp_path / os.fsdecode(b"-\xff: %d'" + rungs[name].suffix.encode())
        odd.write_bytes(rungs[name].read_bytes())
        assert (read(odd, [2], decoder) == read(rungs[name], [2], decoder)).all()
        with pytest.raises(DecodeFailed) as failed:
            read(odd, [500], decoder)
        assert str(failed.value).isprintable()


def test_a_cut_file_is_refused(rungs: dict[str, Path], title: Source, tmp_path: Path) -> None:
    mkv = tmp_path / "a.mkv"
    run_ffmpeg("-i", str(rungs["libx264"]), "-c", "copy", file_url(mkv))
    for path, decoder in (
        (rungs["libx264"], "pyav"),
        (rungs["libx264"], "ffmpeg"),
        (mkv, "pyav"),
        (mkv, "ffmpeg"),
        (rungs["libxavs2"], "ffmpeg"),
    ):
        half = tmp_path / f"half{path.suffix}"
        half.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        for indices in ([0, 1, 119], [118], range(120)):
            with pytest.raises(DecodeFailed, match="half"):
                read(half, indices, decoder)
    whole = title.path.read_bytes()
    short = replace(title, path=tmp_path / "short.mkv")
    short.path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DecodeFailed, match=r"short\.mkv'.*frames up to 119"):
        read_source(short, [0, 119], ffmpeg=FFMPEG)


@pytest.mark.parametrize("decoder", ["pyav", "ffmpeg"])
def test_other_refusals(rungs: dict[str, Path], tmp_path: Path, decoder: str) -> None:
    with pytest.raises(DecodeFailed, match="libx264"):
        read(rungs["libx264"], [3, 120], decoder)
    with pytest.raises(DecodeFailed, match="none"):
        read(tmp_path / "none.mp4", [0], decoder)
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    with pytest.raises(DecodeFailed, match="text"):
        read(text, [0], decoder)
    sound = tmp_path / "sound.mp4"
    run_ffmpeg("-f", "lavfi", "-i", "sine=d=0.2", file_url(sound))
    with pytest.raises(DecodeFailed, match="sound"):
        read(sound, [0], decoder)


def test_a_frame_that_was_dropped_is_missed(rungs: dict[str, Path], tmp_path: Path) -> None:
    gap = tmp_path / "gap.mkv"
    keep = "select='not(eq(n,5))'"
    options = ["-vf", keep, "-fps_mode", "passthrough", "-c:v", "libx264", "-bf", "0"]
    run_ffmpeg("-i", file_url(rungs["libx264"]), *options, file_url(gap))
    assert len(read(gap, [4, 6], "pyav")) == 2
    with pytest.raises(DecodeFailed, match="has no frame 5"):
        read(gap, [4, 5, 6], "pyav")


def test_cut_takes_the_same_place_from_all_planes() -> None:
    luma = np.arange(8 * 12).reshape(8, 12)
    u, v = 100 + np.arange(24), 200 + np.arange(24)
    frame = np.concatenate([luma.ravel(), u, v]).astype(np.uint8).reshape(1, 12, 12)
    found = cut(np.concatenate([frame, frame // 2]), top=2, left=6, height=4, width=4)
    assert found.shape == (2, 6, 4) and found.dtype == np.uint8
    assert (found[0, :4] == luma[2:6, 6:10]).all()
    assert found[0, 4:].ravel().tolist() == [
        *(109, 110, 115, 116),
        *(209, 210, 215, 216),
    ]
    assert (found[1] == found[0] // 2).all()
    narrow = cut(frame, top=2, left=6, height=4, width=2)[0]
    assert narrow[4:].ravel().tolist() == [109, 115, 209, 215]
    assert (cut(frame, 0, 0, 8, 8)[0, :8] == luma[:, :8]).all()
