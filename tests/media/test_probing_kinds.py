"""Properties that a file tells late, beside its frames or in its container alone."""

import struct
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.media import frame_hashes, make_clip, remux, run_ffmpeg
from vqaloop.bitstream.demux import main_video
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.encoding.encode import encode
from vqaloop.encoding.registry import get_encoder
from vqaloop.errors import InputError
from vqaloop.media.container import dolby_vision, opened
from vqaloop.media.hdr import HdrUse
from vqaloop.media.probe import probe_source
from vqaloop.quality.full_reference import measure
from vqaloop.quality.scorer import Scorer
from vqaloop.records import Rendition, Source

FFMPEG = ffmpeg_path()
METRICS = ("vmaf", "psnr", "ssim", "xpsnr")

# --- interlacing that begins late ----------------------------------------------------------------


def joined(folder: Path, suffix: str, *parts: tuple[int, str, dict[str, str]]) -> Path:
    """H.264 streams (frames, filters, options) one behind the other in one file."""
    stream = b""
    for index, (frames, vf, options) in enumerate(parts):
        path = folder / f"{index}.h264"
        make_clip(path, size="64x64", frames=frames, vf=vf, codec="libx264", bf=0, **options)
        stream += path.read_bytes()
    (folder / "whole.h264").write_bytes(stream)
    return remux(folder / "whole.h264", folder / f"a{suffix}", "-framerate", "25")


FIELDS = {"rate": "50", "flags": "+ildct+ilme", "x264-params": "repeat-headers=1:tff=1"}
FRAMES = {"x264-params": "repeat-headers=1"}


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("opening", [9, 20])
def test_interlacing_that_begins_late_is_undone(tmp_path: Path, opening: int, suffix: str) -> None:
    fields = (24, "interlace", FIELDS)
    source = probe_source(joined(tmp_path, suffix, (opening, "null", FRAMES), fields))
    assert source.prep == ("bwdif=mode=send_frame:deint=interlaced",)
    assert (source.frames, source.fps) == (opening + 12, Fraction(25))
    assert source.notes == (
        f"12 of {opening + 12} frames are interlaced; those are deinterlaced with bwdif, one "
        "frame for each pair of fields.",
    )
    stored, shown = frame_hashes(replace(source, prep=())), frame_hashes(source)
    assert shown[:opening] == stored[:opening]
    assert not set(shown[opening:]) & set(stored[opening:])


def test_progressive_frames_are_left_alone(tmp_path: Path) -> None:
    assert probe_source(joined(tmp_path, ".mp4", (20, "null", FRAMES))).prep == ()


# --- Dolby Vision --------------------------------------------------------------------------------


def with_dolby_vision(path: Path, profile: int, compatibility: int, vf: str | None = None) -> Path:
    """An mp4 of HEVC into whose sample entry a Dolby Vision configuration box is put."""
    options = {"preset": "ultrafast", "x265-params": "log-level=error", "tag:v": "hvc1"}
    deep = "yuv420p10le"
    make_clip(path, size="64x64", frames=5, codec="libx265", pix_fmt=deep, vf=vf, **options)
    data, at, ends = bytearray(path.read_bytes()), 0, []
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd"):
        while bytes(data[at + 4 : at + 8]) != kind:
            at += int.from_bytes(data[at : at + 4], "big")
        ends.append(at)
        at += 8
    at += 8
    ends.append(at)
    flags = profile << 9 | 1 << 3 | 1 << 2 | 1
    record = struct.pack(">BBHB", 1, 0, flags, compatibility << 4) + bytes(19)
    box = struct.pack(">I4s", 8 + len(record), b"dvcC") + record
    end = at + int.from_bytes(data[at : at + 4], "big")
    data[end:end] = box
    for head in ends:
        size = int.from_bytes(data[head : head + 4], "big") + len(box)
        data[head : head + 4] = size.to_bytes(4, "big")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_dolby_vision_without_a_base_layer_of_its_own_is_hdr(tmp_path: Path, suffix: str) -> None:
    path = with_dolby_vision(tmp_path / "a.mp4", 5, 0)
    if suffix != ".mp4":
        path = remux(path, tmp_path / f"b{suffix}", after=("-strict", "unofficial"))
    with pytest.raises(InputError, match="HDR .Dolby Vision profile 5.: .*--allow-hdr"):
        probe_source(path)
    source = probe_source(path, allow_hdr=True)
    assert source.hdr
    assert "HDR (Dolby Vision profile 5); scores" in source.notes[0]
    assert "wrong colours" in source.notes[1]


def test_dolby_vision_is_seen_before_many_words(tmp_path: Path) -> None:
    path, long = with_dolby_vision(tmp_path / "a.mp4", 5, 0), tmp_path / "b.mkv"
    sound = ("-f", "lavfi", "-t", "0.2", "-i", "sine", "-c:v", "copy", "-c:a", "flac")
    words = ("-metadata:s:a:0", "comment=" + "word\n" * 2000, "-strict", "unofficial")
    run_ffmpeg("-i", str(path), *sound, *words, str(long))
    assert dolby_vision(long, "hevc", ffmpeg_path()) == (5, 0)


@pytest.mark.parametrize(("profile", "compatibility"), [(8, 2), (9, 2)])
def test_dolby_vision_over_sdr_is_taken_as_that(
    tmp_path: Path, profile: int, compatibility: int
) -> None:
    path = with_dolby_vision(tmp_path / "a.mp4", profile, compatibility)
    source = probe_source(path)
    assert not source.hdr
    assert f"Dolby Vision profile {profile}: dynamic metadata are dropped" in source.notes[0]
    with pytest.raises(InputError, match=f"Dolby Vision profile {profile}.*--dynamic-hdr"):
        probe_source(path, hdr=HdrUse(refuse_dynamic=True))


# --- transparency, mirrors -----------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".webm", ".mkv"])
@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_transparency_beside_the_frames_is_told(tmp_path: Path, codec: str, suffix: str) -> None:
    vf = "format=yuva420p,geq=lum='lum(X,Y)':cb=128:cr=128:a='X*4'"
    path = tmp_path / f"a{suffix}"
    clear: dict[str, Any] = {"pix_fmt": "yuva420p", "auto-alt-ref": 0}
    make_clip(path, size="64x64", frames=4, codec=codec, vf=vf, **clear)
    assert probe_source(path).notes == ("Transparency is dropped.",)
    make_clip(path, size="64x64", frames=4, codec=codec)
    assert probe_source(path).notes == ()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-display_hflip",), "Mirrored left to right"),
        (("-display_vflip",), "Mirrored top to bottom"),
        (("-display_rotation", "90", "-display_hflip"), "Mirrored along a diagonal"),
        (("-display_rotation", "90"), "Rotated by 90 degrees"),
        (("-display_rotation", "180"), "Rotated by 180 degrees"),
        (("-display_rotation", "0"), None),
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_mirrors_are_called_mirrors(
    tmp_path: Path, options: tuple[str, ...], words: str | None, suffix: str
) -> None:
    plain = make_clip(tmp_path / "plain.mp4", frames=3)
    notes = probe_source(remux(plain, tmp_path / f"a{suffix}", *options)).notes
    assert notes == ((f"{words}; turned upright.",) if words else ())


# --- cover art in front --------------------------------------------------------------------------


def with_cover_in_front(path: Path) -> Path:
    """An mp4 whose user data, with the cover, stand before the track, so that it is stream 0."""
    plain = make_clip(path.with_name("plain.mp4"), size="64x64", frames=20)
    picture = make_clip(path.with_name("c.png"), frames=1, size="80x80", codec="png", pix_fmt=None)
    behind = path.with_name("behind.mp4")
    run_ffmpeg(
        *("-i", str(plain), "-i", str(picture), "-map", "0", "-map", "1", "-c", "copy"),
        *("-disposition:v:1", "attached_pic", str(behind)),
    )
    data, at = behind.read_bytes(), 0
    while data[at + 4 : at + 8] != b"moov":
        at += int.from_bytes(data[at : at + 4], "big")
    end, children, child = at + int.from_bytes(data[at : at + 4], "big"), [], at + 8
    while child < end:
        size = int.from_bytes(data[child : child + 4], "big")
        children.append(data[child : child + size])
        child += size
    children.sort(key=lambda box: {b"mvhd": 0, b"udta": 1}.get(box[4:8], 2))
    path.write_bytes(data[: at + 8] + b"".join(children) + data[end:])
    return path


@pytest.fixture(scope="module")
def covered(tmp_path_factory: pytest.TempPathFactory) -> Source:
    source = probe_source(with_cover_in_front(tmp_path_factory.mktemp("cover") / "a.mp4"))
    with opened(source.path) as container:
        assert container.streams.video[0] != main_video(container)
    return source


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9", "libsvtav1"])
def test_a_cover_in_front_is_not_encoded(covered: Source, tmp_path: Path, codec: str) -> None:
    encoder = get_encoder(codec)
    rendition = Rendition(64, 64, codec, encoder.knob.search[0], encoder.presets[-1])
    made = encode(covered, rendition, tmp_path / f"a{encoder.suffix}", ffmpeg=FFMPEG)
    assert made.frames == covered.frames == 20
    plain = replace(covered, path=covered.path.with_name("plain.mp4"))
    found = [measure(one, made.path, ["psnr"], ffmpeg=FFMPEG)["psnr"] for one in (covered, plain)]
    assert found[0].value == found[1].value > 30


def test_a_distorted_file_may_have_a_cover_in_front(covered: Source) -> None:
    plain = probe_source(covered.path.with_name("plain.mp4"))
    assert measure(plain, covered.path, ["psnr"], ffmpeg=FFMPEG)["psnr"].value == 60


# --- score: what a probe would change, on both sides alike ---------------------------------------


def late(path: Path) -> Path:
    plain = make_clip(path.with_name(f"plain{path.suffix}"), frames=20)
    run_ffmpeg(
        *("-f", "lavfi", "-i", "sine=d=1", "-itsoffset", "0.3", "-i", str(plain)),
        *("-map", "0", "-map", "1", "-c:v", "copy", "-c:a", "aac", str(path)),
    )
    return path


CHANGED = {
    "late": (late, "late"),
    "wide pixels": (lambda p: make_clip(p, vf="setsar=4/3"), "square"),
    "odd": (lambda p: make_clip(p, vf="scale=161:91,setsar=1", pix_fmt="yuv444p"), "Cropped"),
    "variable": (lambda p: make_clip(p, frames=30, vf="select='mod(n,5)-2'"), "Variable"),
    "interlaced": (
        lambda p: make_clip(p, size="160x96", rate="50", vf="interlace", flags="+ildct+ilme"),
        "Interlaced",
    ),
}


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("kind", CHANGED)
def test_a_file_scores_best_against_itself(tmp_path: Path, kind: str, suffix: str) -> None:
    make, word = CHANGED[kind]
    path = make(tmp_path / f"a{suffix}")
    assert any(word in note for note in probe_source(path).notes)
    found = {name: Scorer(name).score(path, path).value for name in METRICS}
    assert found["vmaf"] > 97
    top = {"psnr": 60, "ssim": 100, "xpsnr": 60}
    assert {name: found[name] for name in top} == pytest.approx(top, abs=1e-3)


@pytest.mark.parametrize("kind", ["late", "wide pixels", "variable"])
def test_an_encode_scores_against_its_input(tmp_path: Path, kind: str) -> None:
    path = CHANGED[kind][0](tmp_path / "a.mp4")
    source = probe_source(path)
    rendition = Rendition(*source.canvas, "libx264", 20, "veryfast")
    made = encode(source, rendition, tmp_path / "b.mp4", ffmpeg=FFMPEG)
    for name in METRICS:
        expected = measure(source, made.path, [name], ffmpeg=FFMPEG)[name]
        assert Scorer(name).score(made.path, path).value == pytest.approx(expected.value)
        assert np.isfinite(expected.value)
