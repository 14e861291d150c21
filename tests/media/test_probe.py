"""Probing, windows and excerpts, on tiny clips that are what they are for one reason each."""

import os
import random
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.commandline import fake_ffmpeg
from tests.support.media import (
    REPOSITORY,
    frame_hashes,
    make_clip,
    remux,
    run_ffmpeg,
    shared_clip,
    write_y4m,
)
from vqaloop.core import process
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.core.files import file_sha256
from vqaloop.core.scopes import Scope
from vqaloop.errors import CalledOff, InputError
from vqaloop.media import container
from vqaloop.media.excerpt import excerpt
from vqaloop.media.frame_properties import FrameLog
from vqaloop.media.framerate import parse_rate, regular_rate
from vqaloop.media.limits import MAX_SIDE, MIN_SIDE
from vqaloop.media.picture_data import find_captions
from vqaloop.media.probe import probe_source
from vqaloop.media.rawvideo import MAX_HEADER_BYTES, parse_y4m_header

NTSC_FILM = Fraction(24000, 1001)
HDR_TAGS = "setparams=color_trc={}:color_primaries=bt2020:colorspace=bt2020nc:range=tv"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one H.264 clip of 30 frames: in mp4, in mkv, and with its index in front."""
    folder = tmp_path_factory.mktemp("clips")
    make_clip(folder / "plain.mp4", frames=30, rate="24000/1001")
    remux(folder / "plain.mp4", folder / "plain.mkv")
    remux(folder / "plain.mp4", folder / "front.mp4", after=("-movflags", "+faststart"))
    return folder


def cut(data: Path, path: Path, share: float = 0.7) -> Path:
    whole = data.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    return path


def with_bytes(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def scratched(data: Path, path: Path) -> Path:
    """Flip bytes of the first picture, leaving the container sound."""
    whole = bytearray(data.read_bytes())
    start = whole.index(b"mdat") + 1500
    for position in range(start, start + 60):
        whole[position] ^= 0x5A
    return with_bytes(path, bytes(whole))


def symlink_loop(folder: Path) -> Path:
    (folder / "loop.mp4").symlink_to("loop.mp4")
    return folder / "loop.mp4"


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.y4m")
    return folder / "pipe.y4m"


def with_cover(path: Path, *codec: str) -> Path:
    run_ffmpeg(
        *("-f", "lavfi", "-i", "sine=d=0.5", "-f", "lavfi", "-i", "testsrc2=s=64x64:d=0.04"),
        *("-map", "0", "-map", "1", *codec, "-c:v", "png", "-disposition:v", "attached_pic"),
        file_url(path),
    )
    return path


def sound_only(path: Path) -> Path:
    run_ffmpeg("-f", "lavfi", "-i", "sine=d=0.5", file_url(path))
    return path


def two_streams(path: Path) -> Path:
    source = "testsrc2=s=64x64:d=0.2"
    run_ffmpeg(
        *("-f", "lavfi", "-i", source, "-f", "lavfi", "-i", source, "-map", "0", "-map", "1"),
        *("-c:v", "ffv1", file_url(path)),
    )
    return path


def huge_mkv(path: Path) -> Path:
    """A Matroska header that asks for 1000000 x 1000000 pixels, over FFV1 at 64 x 64."""
    # or random numbers in the header are taken for the elements sought below
    make_clip(path, size="64x64", frames=3, codec="ffv1", fflags="+bitexact")
    data = path.read_bytes()
    at = data.index(b"\xb0\x81\x40\xba\x81\x40")  # PixelWidth 64, PixelHeight 64, a byte each
    # the elements grow by 2 bytes each, taken from the Void element that ends the header
    video = data.rindex(b"\xe0", 0, at)
    wide = b"\xb0\x83\x0f\x42\x40\xba\x83\x0f\x42\x40"
    return with_bytes(path, patched_ebml(data, at, 6, wide, video))


def patched_ebml(data: bytes, at: int, old: int, new: bytes, video: int) -> bytes:
    """Replace bytes inside Segment/Tracks/TrackEntry/Video, mending the sizes around them."""
    grown = len(new) - old
    result = bytearray(data[:at] + new + data[at + old :])
    for element in (
        data.rindex(b"\x16\x54\xae\x6b", 0, at),
        data.rindex(b"\xae", 0, video),
        video,
    ):
        size_at = element + (4 if data[element] == 0x16 else 1)
        width = 9 - data[size_at].bit_length()
        value = int.from_bytes(data[size_at : size_at + width], "big") + grown
        result[size_at : size_at + width] = value.to_bytes(width, "big")
    return bytes(result)


BadInput = Callable[[Path, Path], Path]
"""Makes the file in the first folder, from the clips in the second."""

HEAD = b"YUV4MPEG2 W64 H64 F25:1"

BAD_INPUTS: dict[str, tuple[BadInput, str]] = {
    "missing": (lambda d, c: d / "none.mp4", "does not exist"),
    "folder": (lambda d, c: d, "is a folder"),
    "empty": (lambda d, c: with_bytes(d / "a.mp4", b""), "is empty"),
    "text": (lambda d, c: with_bytes(d / "a.mp4", b"hello\n" * 50), "not a video"),
    "noise": (lambda d, c: with_bytes(d / "a.mkv", random.Random(1).randbytes(9999)), "not a vid"),
    "playlist": (
        lambda d, c: with_bytes(d / "a.mp4", b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n"),
        "not a video",
    ),
    "concat list": (
        lambda d, c: with_bytes(d / "a.mp4", b"ffconcat version 1.0\nfile /etc/passwd\n"),
        "not a video",
    ),
    "mpeg-ts": (lambda d, c: remux(c / "plain.mp4", d / "a.ts"), "taken are y4m, mp4"),
    "picture": (lambda d, c: make_clip(d / "a.png", frames=1, codec="png", pix_fmt=None), "not a"),
    "mp4 without moov": (lambda d, c: cut(c / "plain.mp4", d / "a.mp4"), "cut short"),
    "mp4 cut in mdat": (lambda d, c: cut(c / "front.mp4", d / "a.mp4"), "cut short"),
    "mkv cut": (lambda d, c: cut(c / "plain.mkv", d / "a.mkv"), "cut short"),
    "damaged picture": (lambda d, c: scratched(c / "plain.mp4", d / "a.mp4"), "damaged"),
    "sound only": (lambda d, c: sound_only(d / "a.mp4"), "no video stream"),
    "wav": (lambda d, c: sound_only(d / "a.wav"), "no video stream"),
    "cover in mp3": (lambda d, c: with_cover(d / "a.mp3", "-c:a", "libmp3lame"), "cover picture"),
    "cover in m4a": (lambda d, c: with_cover(d / "a.m4a", "-c:a", "aac"), "cover picture"),
    "two videos": (lambda d, c: two_streams(d / "a.mkv"), "2 video streams"),
    "one frame mp4": (lambda d, c: make_clip(d / "a.mp4", frames=1), "at least 2 frames"),
    "one frame y4m": (lambda d, c: write_y4m(d / "a.y4m", frames=1), "at least 2 frames"),
    "no frame y4m": (lambda d, c: write_y4m(d / "a.y4m", frames=0), "0 frames; at least 2 frames"),
    "y4m cut": (
        lambda d, c: write_y4m(d / "a.y4m", tail=b"FRAME\n" + b"0" * 999),
        "inside frame 3 .counted from 0.: 5145 bytes are missing",
    ),
    "y4m garbage": (lambda d, c: write_y4m(d / "a.y4m", tail=b"junk"), "no FRAME line"),
    "y4m no end": (lambda d, c: with_bytes(d / "a.y4m", HEAD + b" X" * 5000), "no complete y4m"),
    "y4m no size": (lambda d, c: write_y4m(d / "a.y4m", header=b"YUV4MPEG2 F25:1"), "no width"),
    "y4m negative": (
        lambda d, c: write_y4m(d / "a.y4m", header=b"YUV4MPEG2 W-64 H64 F25:1"),
        "no width",
    ),
    "y4m zero": (
        lambda d, c: write_y4m(d / "a.y4m", header=b"YUV4MPEG2 W0 H64 F25:1"),
        "width is 0",
    ),
    "y4m 10^12": (
        lambda d, c: write_y4m(d / "a.y4m", header=b"YUV4MPEG2 W1000000 H1000000 F25:1"),
        "width is 1000000 .1000000x1000000.; 64 to 8192",
    ),
    "y4m rate 0": (
        lambda d, c: write_y4m(d / "a.y4m", header=b"YUV4MPEG2 W64 H64 F0:0"),
        "no frame rate",
    ),
    "y4m absurd rate": (
        lambda d, c: write_y4m(d / "a.y4m", header=b"YUV4MPEG2 W64 H64 F90000:1"),
        "90000 fps",
    ),
    "y4m colour space": (lambda d, c: write_y4m(d / "a.y4m", header=HEAD + b" C999"), "'999'"),
    "mkv 10^12": (lambda d, c: huge_mkv(d / "a.mkv"), "no usable picture size"),
    "too small": (lambda d, c: make_clip(d / "a.mp4", size="32x32", frames=3), "width is 32"),
    "raw without options": (lambda d, c: make_clip(d / "a.yuv", frames=2), "give --video-size"),
    "avs2": (lambda d, c: with_bytes(d / "a.avs2", b"\0\0\1\xb0\x20" + b"0" * 99), "raw AVS2"),
    "symlink loop": (lambda d, c: symlink_loop(d), "symbolic links"),
    "fifo": (lambda d, c: fifo(d), "pipe or device"),
    "device": (lambda d, c: Path("/dev/zero"), "pipe or device"),
    "name too long": (lambda d, c: d / ("n" * 5000), "File name too long"),
    "null in name": (lambda d, c: d / "a\0b", "cannot be a file name"),
    "file as folder": (lambda d, c: c / "plain.mp4" / "a.mp4", "Not a directory"),
    "PQ": (
        lambda d, c: make_clip(d / "a.mp4", vf=HDR_TAGS.format("smpte2084")),
        "HDR .PQ transfer.*SDR.*--allow-hdr",
    ),
    "HLG": (
        lambda d, c: make_clip(d / "a.mkv", vf=HDR_TAGS.format("arib-std-b67")),
        "HDR .HLG transfer.*SDR.*--allow-hdr",
    ),
}


@pytest.mark.parametrize("kind", BAD_INPUTS)
def test_bad_input_is_refused_with_one_message(
    tmp_path: Path, clips: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    make, message = BAD_INPUTS[kind]
    path = make(tmp_path, clips)
    with pytest.raises(InputError, match=message) as refused:
        probe_source(path)
    said = str(refused.value)
    assert repr(str(path))[:98] in said
    assert "\n" not in said and len(said) < 1000
    assert capfd.readouterr() == ("", ""), "PyAV and ffmpeg must not speak for themselves"


def test_no_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_y4m(tmp_path / "a.y4m")
    path.chmod(0)

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    # root reads everything, so the refusal of the system is played where tests run as root
    if os.geteuid() == 0:
        monkeypatch.setattr("vqaloop.media.probe.open", denied, raising=False)
    with pytest.raises(InputError, match="no permission to read"):
        probe_source(path)


@pytest.mark.parametrize(
    "header", [b"YUV4MPEG2 W1000000 H1000000 F25:1", b"YUV4MPEG2 W99999999999 H8 F25:1"]
)
def test_a_lying_header_allocates_nothing(tmp_path: Path, header: bytes) -> None:
    path = write_y4m(tmp_path / "a.y4m", header=header)
    huge = huge_mkv(tmp_path / "b.mkv")
    script = """
import resource, sys
from vqaloop.errors import InputError
from vqaloop.media.probe import probe_source
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        probe_source(path)
    except InputError:
        pass
    else:
        sys.exit("let through")
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
sys.exit(f"{grown} and {children} KiB" if grown > 30_000 or children > 100_000 else 0)
"""
    argv = [sys.executable, "-c", script, str(path), str(huge)]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["plain.mp4", "plain.mkv", "front.mp4"])
def test_a_plain_file_needs_nothing_done(clips: Path, name: str) -> None:
    source = probe_source(clips / name)
    assert (source.width, source.height, source.fps) == (160, 90, NTSC_FILM)
    assert (source.frames, source.bit_depth, source.pix_fmt) == (30, 8, "yuv420p")
    assert (source.prep, source.notes, source.input_options) == ((), (), ())
    assert source.sha256 == file_sha256(clips / name)


@pytest.mark.parametrize("frames", [2, 7, 30])
@pytest.mark.parametrize("suffix", [".y4m", ".mp4", ".mkv", ".mov", ".webm"])
def test_frame_counts_are_exact(tmp_path: Path, suffix: str, frames: int) -> None:
    rate = "60000/1001" if suffix in (".webm", ".mkv") else "30"
    source = probe_source(make_clip(tmp_path / f"a{suffix}", frames=frames, rate=rate))
    assert (source.frames, source.fps, source.prep) == (frames, Fraction(rate), ())
    assert len(frame_hashes(source)) == frames


def test_hidden_vp8_frames_are_not_counted(tmp_path: Path) -> None:
    options: dict[str, Any] = {"auto-alt-ref": 1, "lag-in-frames": 16, "b:v": "100k"}
    path = make_clip(
        tmp_path / "a.webm",
        frames=30,
        codec="libvpx",
        **options,
    )
    assert (probe_source(path).frames, probe_source(path).prep) == (30, ())


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(
    "vary", ["select='not(eq(mod(n,5),2))'", "select='lt(n,15)+not(mod(n,2))'"]
)
def test_variable_rate_is_made_constant(tmp_path: Path, suffix: str, vary: str) -> None:
    source = probe_source(make_clip(tmp_path / f"a{suffix}", frames=45, vf=vary))
    assert source.prep == (f"fps={source.fps.numerator}/{source.fps.denominator}",)
    assert source.fps == Fraction(25)
    assert any("Variable frame rate" in note for note in source.notes)
    assert len(frame_hashes(source)) == source.frames
    assert abs(source.duration_s - 45 / 25) < 0.11


@given(
    rate=st.sampled_from([NTSC_FILM, Fraction(25), Fraction(30000, 1001), Fraction(60)]),
    start_ms=st.integers(0, 5000),
    count=st.integers(3, 400),
    up=st.booleans(),
)
def test_rounding_to_milliseconds_is_not_variation(
    rate: Fraction, start_ms: int, count: int, up: bool
) -> None:
    exact = [Fraction(start_ms, 1000) + n / rate for n in range(count)]
    times = [(-int(-t * 1000 // 1) if up else int(t * 1000)) / 1000 for t in exact]
    assert regular_rate(times, 0.001, (rate,)) == rate
    found = regular_rate(times, 0.001)
    assert found and abs(found / rate - 1) < 0.2


def test_one_frame_lost_is_variation() -> None:
    times = [n / 25 for n in range(500) if n != 250]
    assert regular_rate(times, 0.001, (Fraction(25),)) is None


def test_a_late_start_is_moved_to_the_front(tmp_path: Path, clips: Path) -> None:
    path = tmp_path / "late.mkv"
    run_ffmpeg(
        *("-f", "lavfi", "-i", "sine=d=2", "-itsoffset", "0.3"),
        *("-i", file_url(clips / "plain.mp4"), "-map", "0", "-map", "1"),
        *("-c:v", "copy", "-c:a", "flac", file_url(path)),
    )
    source = probe_source(path)
    assert source.prep == ("setpts=PTS-STARTPTS", "fps=24000/1001")
    assert (source.frames, source.fps) == (30, NTSC_FILM)


@pytest.mark.parametrize(("degrees", "size"), [(90, (90, 160)), (180, (160, 90))])
def test_rotation_is_undone(tmp_path: Path, clips: Path, degrees: int, size: object) -> None:
    path = remux(clips / "plain.mp4", tmp_path / "r.mp4", "-display_rotation", str(degrees))
    source = probe_source(path)
    assert ((source.width, source.height), source.prep) == (size, ())
    assert "Rotated" in source.notes[0]


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "ffv1"), ("a.y4m", None)]
)
def test_interlaced_is_deinterlaced(tmp_path: Path, name: str, codec: str | None) -> None:
    flags = {"flags": "+ildct+ilme"} if codec == "libx264" else {}
    path = make_clip(
        tmp_path / name, size="160x96", frames=20, rate="50", vf="interlace", codec=codec, **flags
    )
    source = probe_source(path)
    assert source.prep == ("bwdif=mode=send_frame",)
    assert (source.frames, source.fps) == (10, Fraction(25))
    assert "Interlaced" in source.notes[0]


@pytest.mark.parametrize("suffix", [".y4m", ".mkv"])
def test_odd_sides_are_cropped(tmp_path: Path, suffix: str) -> None:
    path = make_clip(
        tmp_path / f"a{suffix}",
        vf="scale=161:91,setsar=1",
        frames=4,
        codec={".mkv": "ffv1"}.get(suffix),
    )
    source = probe_source(path)
    assert (source.width, source.height, source.canvas) == (161, 91, (160, 90))
    assert source.prep == ("crop=160:90:0:0",)
    assert "Cropped" in source.notes[0]


@pytest.mark.parametrize(("sar", "size"), [("16/15", (172, 90)), ("9/10", (160, 100))])
def test_pixels_are_made_square(tmp_path: Path, sar: str, size: tuple[int, int]) -> None:
    source = probe_source(make_clip(tmp_path / "a.mp4", vf=f"setsar={sar}"))
    assert (source.width, source.height) == size
    assert source.prep == (f"scale={size[0]}:{size[1]}:flags=lanczos", "setsar=1")
    assert "square" in source.notes[0]


ALL_INTRA: dict[str, dict[str, Any]] = {
    "libx264": {"f": "h264", "x264-params": "repeat-headers=1"},
    "libx265": {"f": "hevc", "preset": "ultrafast", "x265-params": "repeat-headers=1"},
    "mpeg2video": {"f": "mpeg2video"},
    "mpeg4": {"f": "m4v"},
}


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("codec", ALL_INTRA)
def test_of_key_frames_with_equal_headers_one_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, suffix: str
) -> None:
    whole, part = tmp_path / "whole.bits", tmp_path / "part"
    with whole.open("wb") as file:
        for shape in ("1", "4/3", "1"):
            vf, options = f"setsar={shape}", ALL_INTRA[codec]
            make_clip(part, size="64x64", frames=10, vf=vf, codec=codec, g=1, **options)
            file.write(part.read_bytes())
    clip = remux(whole, tmp_path / f"clip{suffix}", "-fflags", "+genpts")
    decode, decoded = container._decoded_shape, []

    def counted(codec: Any, packet: Any) -> Fraction | None:
        decoded.append(packet.pts)
        return decode(codec, packet)

    monkeypatch.setattr(container, "_decoded_shape", counted)
    times_s, shapes = zip(*container.pixel_shapes(clip), strict=True)
    assert shapes == (Fraction(1), Fraction(4, 3), Fraction(1))
    assert times_s == pytest.approx([0, 0.4, 0.8], abs=0.01)
    assert len(decoded) == 3


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_where_pictures_choose_among_headers_all_are_looked_at(
    tmp_path: Path, suffix: str
) -> None:
    sets, pictures, part = b"", [], tmp_path / "part"
    for number, shape in enumerate(("1", "4/3")):
        named = {"x264-params": f"sps-id={number}"}
        make_clip(
            part,
            size="64x64",
            frames=5,
            vf=f"setsar={shape}",
            codec="libx264",
            g=1,
            f="h264",
            **named,
        )
        units = part.read_bytes().split(b"\0\0\1")[1:]
        sets += b"".join(b"\0\0\1" + unit for unit in units if unit[0] & 31 in (7, 8))
        pictures.append(b"".join(b"\0\0\1" + unit for unit in units if unit[0] & 31 == 5))
    whole = tmp_path / "whole.bits"
    whole.write_bytes(sets + pictures[0] + pictures[1] + pictures[0])
    clip = remux(whole, tmp_path / f"clip{suffix}", "-framerate", "25")
    shapes = [shape for _, shape in container.pixel_shapes(clip)]
    assert shapes == [Fraction(1), Fraction(4, 3), Fraction(1)]


def test_a_key_frame_that_does_not_decode_is_passed_over(tmp_path: Path) -> None:
    slices = {"x264-params": "slices=2"}
    clip = make_clip(tmp_path / "a.mp4", frames=4, g=1, vf="setsar=4/3", **slices)
    with container.opened(clip) as opened:
        first = bytes(next(opened.demux(video=0)))
    data, at = clip.read_bytes(), 0
    # behind a message and the first slice, by which it is a key frame
    for _ in range(2):
        at += 4 + int.from_bytes(first[at : at + 4], "big")
    assert at < len(first) and data.count(first) == 1
    clip.write_bytes(data.replace(first, first[:at] + b"\x7f" + first[at + 1 :]))
    ((at_s, shape),) = container.pixel_shapes(clip)
    assert at_s == pytest.approx(0.04) and shape == Fraction(4, 3)


@pytest.mark.parametrize("look", [container.pixel_shapes, find_captions])
def test_reading_packets_ends_where_the_work_is_cancelled(
    tmp_path: Path, look: Callable[[Path], object]
) -> None:
    clip, scope = make_clip(tmp_path / "a.mp4", frames=3), Scope()
    with scope.entered():
        look(clip)
        scope.cancel()
        with pytest.raises(CalledOff):
            look(clip)


def test_a_probing_that_hung_is_run_again_from_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, mark = make_clip(tmp_path / "a.mp4", frames=12), tmp_path / "mark"
    real = f'{shlex.quote(ffmpeg_path())} "$@"'
    hang = f"[ -e {mark} ] || {{ touch {mark}; {real} > /dev/null; exec sleep 600; }}"
    fake = fake_ffmpeg(tmp_path / "ffmpeg", {"*showinfo*": hang})
    monkeypatch.setattr(process, "STALL_S", 2.0)
    log = FrameLog()
    video = container.decode_all(clip, (), str(fake), log)
    assert mark.exists()
    assert len(video.times_s) == log.frames == 12
    assert [first for first, _, _ in log.runs] == [0]


def test_pixels_that_rounding_left_unsquare_are_not_scaled(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", size="320x180", frames=3, vf="scale=322:180")
    source = probe_source(path)
    assert (source.width, source.height, source.prep) == (322, 180, ("setsar=1",))
    assert source.notes == ("Pixels are 160:161; taken as square.",)


@pytest.mark.parametrize(
    ("pix_fmt", "bit_depth", "note"),
    [
        ("yuv420p10le", 10, None),
        ("yuv420p12le", 10, "12 bits"),
        ("yuv422p", 8, "4:2:0"),
        ("yuv444p10le", 10, "4:2:0"),
        ("gray", 8, "Grey"),
        ("yuva420p", 8, "Transparency"),
        ("bgr0", 8, "RGB"),
    ],
)
def test_sample_formats(tmp_path: Path, pix_fmt: str, bit_depth: int, note: str | None) -> None:
    path = make_clip(tmp_path / "a.mkv", frames=3, codec="ffv1", pix_fmt=pix_fmt)
    source = probe_source(path)
    assert (source.pix_fmt, source.bit_depth) == (pix_fmt, bit_depth)
    assert [note in said for said in source.notes] == [True] if note else source.notes == ()


@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "yuv422p", "yuv444p", "gray"])
def test_y4m_frame_sizes(tmp_path: Path, pix_fmt: str) -> None:
    path = make_clip(
        tmp_path / "a.y4m",
        vf="scale=161:91,setsar=1",
        frames=5,
        pix_fmt=pix_fmt,
        strict="unofficial",
    )
    source = probe_source(path)
    assert (source.frames, source.pix_fmt, source.fps) == (5, pix_fmt, Fraction(25))


def test_hdr_passes_when_allowed(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", frames=4, vf=HDR_TAGS.format("smpte2084"))
    source = probe_source(path, allow_hdr=True)
    assert source.hdr and "HDR (PQ transfer)" in source.notes[0]
    assert dict(source.colour) == {
        "color_primaries": "bt2020",
        "color_trc": "smpte2084",
        "colorspace": "bt2020nc",
        "color_range": "tv",
    }


NAMES = [
    "-i",
    "-y.mp4",
    "a b'c\"d.mp4",
    "l\nf.mp4",
    "http:x.mp4",
    "%03d.mp4",
    "é\udcff.mp4",
    "a|b",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_data(
    tmp_path: Path, clips: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes((clips / "plain.mp4").read_bytes())
    assert probe_source(name).frames == 30
    with pytest.raises(InputError) as refused:
        probe_source(name + "none")
    assert str(refused.value).isprintable()


def test_raw_video(tmp_path: Path) -> None:
    path = make_clip(
        tmp_path / "a.yuv", vf="scale=161:91,setsar=1", frames=6, pix_fmt="yuv420p10le"
    )
    options = {"video_size": "161x91", "pix_fmt": "yuv420p10le", "framerate": "29.97"}
    source = probe_source(path, **options)  # type: ignore[arg-type]
    assert (source.frames, source.fps, source.bit_depth) == (6, Fraction(30000, 1001), 10)
    assert len(frame_hashes(source)) == 6


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"video_size": "162x90"}, "not a whole number of 162x90 yuv420p frames of 21870 bytes"),
        ({"video_size": "1000000x1000000"}, "width is 1000000"),
        ({"video_size": "0x90"}, "width is 0"),
        ({"video_size": "160*90"}, "not a size"),
        ({"video_size": None}, "needs all of --video-size"),
        ({"framerate": None}, "needs all of --video-size"),
        ({"framerate": "0"}, "out of range"),
        ({"framerate": "25/0"}, "not a rate"),
        ({"framerate": "nan"}, "not a rate"),
        ({"pix_fmt": "yuv999"}, "not a pixel format"),
        ({"pix_fmt": "pal8"}, "not taken as raw video"),
        ({"pix_fmt": "vaapi"}, "not taken as raw video"),
        ({"video_size": "160x270"}, "1 frame; at least 2"),
    ],
)
def test_raw_video_is_refused(
    tmp_path: Path, changed: dict[str, str | None], message: str
) -> None:
    path = make_clip(tmp_path / "a.yuv", frames=3)
    options = {"video_size": "160x90", "pix_fmt": "yuv420p", "framerate": "25"} | changed
    with pytest.raises(InputError, match=message):
        probe_source(path, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("25", Fraction(25)),
        ("23.98", NTSC_FILM),
        ("24.0", Fraction(24)),
        ("12.5", Fraction(25, 2)),
    ],
)
def test_rates_are_read(text: str, rate: Fraction) -> None:
    assert parse_rate(text) == rate


TAGS = st.lists(
    st.one_of(
        st.binary(max_size=12),
        st.builds(lambda n: b"W%d" % n, st.integers(-5, 10**13)),
        st.builds(lambda n: b"H%d" % n, st.integers(-5, 10**13)),
        st.builds(lambda n, d: b"F%d:%d" % (n, d), st.integers(0, 10**9), st.integers(0, 2000)),
        st.sampled_from([b"W640", b"H360", b"F25:1", b"C420p10", b"C422", b"Cmono", b"XYSCSS=1"]),
    ),
    max_size=8,
)


@settings(max_examples=300, deadline=200, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.binary(max_size=3000), TAGS.map(lambda t: b" ".join([HEAD[:9], *t]) + b"\n")))
def test_any_y4m_header_is_read_or_refused(data: bytes) -> None:
    try:
        header = parse_y4m_header(data, "'x'")
    except InputError as error:
        assert str(error).isprintable() and len(str(error)) < 300
        return
    assert min(header.width, header.height) >= MIN_SIDE
    assert max(header.width, header.height) <= MAX_SIDE
    assert header.width * header.height <= header.frame_bytes <= 8 * MAX_SIDE**2
    assert 0 < header.header_bytes <= MAX_HEADER_BYTES and 1 <= header.fps <= 1000


WINDOWS = ((3, 7), (10, 1), (31, 20), (95, 25))

EXCERPTED: dict[str, dict[str, Any]] = {
    "b.mp4": {"bf": 3, "g": 24, "x264-params": "open-gop=1:scenecut=0:b-pyramid=normal"},
    "c.mkv": {"rate": "24000/1001", "bf": 2, "g": 30},
    "d.y4m": {"vf": "scale=161:91,setsar=1"},
    "e.mkv": {
        "codec": "libx265",
        "pix_fmt": "yuv420p10le",
        "x265-params": "log-level=error:keyint=25",
    },
    "f.webm": {"rate": "30000/1001", "g": 20},
    "g.mp4": {"vf": "select='not(eq(mod(n,20),9))'", "g": 24},
    "h.mp4": {"vf": "setsar=16/15", "bf": 2, "g": 24},
    "i.mkv": {"codec": "ffv1", "pix_fmt": "bgr0"},
    "j.mov": {"codec": "prores_ks", "pix_fmt": "yuv422p10le"},
}


@pytest.mark.parametrize("name", EXCERPTED)
def test_an_excerpt_holds_the_very_frames(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = probe_source(make_clip(tmp_path / name, frames=130, **EXCERPTED[name]))
    if name != "g.mp4":
        # only a variable rate needs everything decoded; the others must not fall back on it
        monkeypatch.delattr("vqaloop.media.excerpt._selected")
    made = excerpt(source, WINDOWS, tmp_path / "x.mkv", ffmpeg=ffmpeg_path())
    every = frame_hashes(source)
    assert frame_hashes(made) == [every[s + n] for s, count in WINDOWS for n in range(count)]
    assert (made.frames, made.fps, made.prep) == (53, source.fps, ())
    assert (made.bit_depth, made.width, made.height) == (source.bit_depth, *source.canvas)
    again = probe_source(made.path)
    assert (again.frames, again.fps, again.prep) == (53, source.fps, ())
    assert (again.width, again.height, again.pix_fmt) == (made.width, made.height, made.pix_fmt)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [name, "x.mkv"]


def test_an_excerpt_of_raw_video(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.yuv", frames=60, pix_fmt="nv12")
    source = probe_source(path, video_size="160x90", pix_fmt="nv12", framerate="50")
    made = excerpt(source, ((30, 5), (50, 10)), tmp_path / "x.mkv", ffmpeg=ffmpeg_path())
    assert made.pix_fmt == "yuv420p"
    planar = tmp_path / "planar.y4m"
    options = [part for key, value in source.input_options for part in (f"-{key}", value)]
    run_ffmpeg(*options, "-i", file_url(path), "-pix_fmt", "yuv420p", str(planar))
    every = frame_hashes(probe_source(planar))
    assert frame_hashes(made) == every[30:35] + every[50:60]


def test_an_excerpt_of_a_real_clip(tmp_path: Path) -> None:
    clip = shared_clip("bmx.mp4")
    if clip is None:
        pytest.skip("the shared clips are not here")
    source = probe_source(clip)
    made = excerpt(source, ((5, 9), (40, 33)), tmp_path / "x.mkv", ffmpeg=ffmpeg_path())
    every = frame_hashes(source)
    assert frame_hashes(made) == every[5:14] + every[40:73]


def test_the_hash_of_an_excerpt_names_what_it_is_made_from(tmp_path: Path, clips: Path) -> None:
    source, ffmpeg = probe_source(clips / "plain.mp4"), ffmpeg_path()
    one = excerpt(source, ((0, 5),), tmp_path / "1.mkv", ffmpeg=ffmpeg)
    same = excerpt(source, ((0, 5),), tmp_path / "2.mkv", ffmpeg=ffmpeg)
    other = excerpt(source, ((1, 5),), tmp_path / "3.mkv", ffmpeg=ffmpeg)
    cropped = replace(source, prep=("crop=80:80:0:0",))
    third = excerpt(cropped, ((0, 5),), tmp_path / "4.mkv", ffmpeg=ffmpeg)
    assert one.sha256 == same.sha256
    assert len({source.sha256, one.sha256, other.sha256, third.sha256}) == 4


@pytest.mark.parametrize("windows", [(), ((0, 0),), ((5, 5), (4, 3)), ((20, 11),), ((-1, 4),)])
def test_windows_outside_the_source_are_refused(
    tmp_path: Path, clips: Path, windows: tuple[tuple[int, int], ...]
) -> None:
    with pytest.raises(InputError, match="window"):
        excerpt(
            probe_source(clips / "plain.mp4"), windows, tmp_path / "x.mkv", ffmpeg="/bin/false"
        )
    assert not list(tmp_path.iterdir())
