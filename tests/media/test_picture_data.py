"""Closed captions and 3D modes in pictures: found, and kept or told to be lost."""

from pathlib import Path
from typing import Any

import av
import pytest

from tests.support.media import make_captioned, make_clip, remux, run_ffmpeg
from vqaloop import encode_to_target
from vqaloop.core.ffmpeg import file_url
from vqaloop.media.picture_data import find_captions, holds_captions
from vqaloop.media.probe import probe_source

QUICK: dict[str, Any] = {"preset": "ultrafast", "metric": "psnr", "max_encodes": 2}


def tells(frame: Any, kind: str) -> bool:
    """Whether libavcodec gives side data of this kind with a frame."""
    return any(data.type.name == kind for data in frame.side_data)


def captioned_frames(path: Path) -> int:
    """Frames of which libavcodec gives captions."""
    with av.open(file_url(path)) as container:
        return sum(tells(frame, "A53_CC") for frame in container.decode(video=0))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("first", [0, 40])
def test_captions_are_found_wherever_they_begin_and_told(
    suffix: str, first: int, tmp_path: Path
) -> None:
    title = make_captioned(tmp_path / f"in{suffix}", first=first)
    assert captioned_frames(title) == 50 - first
    assert find_captions(title)
    assert any("Closed captions" in note for note in probe_source(title).notes)


@pytest.mark.parametrize("codec", ["libx265", "mpeg2video"])
def test_captions_are_found_in_other_codecs(codec: str, tmp_path: Path) -> None:
    title = make_captioned(tmp_path / "in.mp4")
    other = tmp_path / "other.mkv"
    keep = ("-a53cc", "1") if codec == "libx265" else ()
    run_ffmpeg("-i", str(title), "-c:v", codec, *keep, str(other))
    assert captioned_frames(other) == 50
    assert find_captions(other)


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg2video", "ffv1"])
def test_none_are_found_where_there_are_none(codec: str, tmp_path: Path) -> None:
    title = make_clip(tmp_path / "in.mkv", codec=codec)
    assert not find_captions(title)
    assert not probe_source(title).notes


def test_nulls_that_fill_up_are_no_captions(tmp_path: Path) -> None:
    title = make_captioned(tmp_path / "in.mp4", pair=b"\0\0")
    assert captioned_frames(title) == 50
    assert not find_captions(title)


def test_what_is_cut_short_holds_no_captions() -> None:
    whole = b"\x06\x04\x0f\xb5\x00\x31GA94\x03\xc1\xff\xfc\xc8\x49\xff\x80"
    assert holds_captions(whole)
    assert not any(holds_captions(whole[:end]) for end in range(len(whole) - 2))
    assert not holds_captions(whole.replace(b"\xb5\x00\x31", b"abc"))


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_encode_loses_captions_and_says_so(codec: str, tmp_path: Path) -> None:
    title, out = make_captioned(tmp_path / "in.mp4"), tmp_path / "out.mp4"
    made = encode_to_target(title, out, codec=codec, bitrate=200, **QUICK)
    assert captioned_frames(out) == 0
    assert any("Closed captions" in line for line in made.document["warnings"])


def test_one_run_of_h264_keeps_captions(tmp_path: Path) -> None:
    title, out = make_captioned(tmp_path / "in.mp4"), tmp_path / "out.mp4"
    encode_to_target(title, out, codec="h264", bitrate=200, one_run=True, **QUICK)
    assert captioned_frames(out) == 50


def stereo_title(path: Path) -> Path:
    """Half a second of two views side by side, told by Matroska's header or by a SEI message."""
    told: dict[str, Any] = {"metadata:s:v": "stereo_mode=left_right"}
    mkv = make_clip(path.with_suffix(".mkv"), **told)
    if path.suffix == ".mkv":
        return mkv
    run_ffmpeg("-i", str(mkv), "-c:v", "libx264", "-preset", "ultrafast", str(path))
    return path


def is_packed(path: Path) -> tuple[bool, bool]:
    """Whether the container tells a 3D mode, and whether the first frame does as it decodes."""
    with av.open(file_url(path)) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        return "stereo_mode" in map(str.lower, stream.metadata), tells(frame, "STEREO3D")


@pytest.mark.parametrize(
    ("original", "codec", "suffix", "kept", "said"),
    [
        ("in.mkv", "h264", ".mkv", (False, True), "not in the container"),
        ("in.mkv", "h264", ".mp4", (False, True), "not in the container"),
        ("in.mp4", "h264", ".mkv", (False, True), "not in the container"),
        ("in.mkv", "hevc", ".mkv", (True, True), ""),
        ("in.mkv", "hevc", ".mp4", (False, False), "3D mode is lost"),
        ("in.mp4", "hevc", ".mkv", (False, False), "3D mode is lost"),
        ("in.mkv", "vp9", ".webm", (True, True), ""),
    ],
)
def test_a_3d_mode_is_kept_in_one_place_or_told_to_be_lost(
    original: str,
    codec: str,
    suffix: str,
    kept: tuple[bool, bool],
    said: str,
    tmp_path: Path,
) -> None:
    title, out = stereo_title(tmp_path / original), tmp_path / f"out{suffix}"
    preset = {"preset": "5"} if codec == "vp9" else {}
    made = encode_to_target(title, out, codec=codec, bitrate=200, **QUICK | preset)
    told = [line for line in made.document["warnings"] if "3D mode" in line]
    assert len(told) == bool(said) and all(said in line for line in told)
    assert is_packed(out) == kept
    run_ffmpeg("-i", str(out), "-f", "null", "-")
    assert any("stereo 3D" in note for note in probe_source(title).notes)


def test_a_flat_title_is_not_taken_for_3d(tmp_path: Path) -> None:
    title = remux(
        make_clip(tmp_path / "flat.mkv"),
        tmp_path / "in.mkv",
        after=("-metadata:s:v", "stereo_mode=mono"),
    )
    assert not probe_source(title).notes
