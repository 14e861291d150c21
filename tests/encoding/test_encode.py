"""Real encodes of tiny clips by every software encoder, and every way an encode can fail."""

import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import pytest

from vqaloop.bitstream.packets import Packet, peak_kbps, stream_packets
from vqaloop.core import process
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.encoding import encode as encode_module
from vqaloop.encoding.encode import encode
from vqaloop.encoding.registry import load_encoders
from vqaloop.encoding.spec import EncoderSpec
from vqaloop.errors import EncodeFailed, InputError, ToolError
from vqaloop.records import Rendition, Source

FFMPEG = ffmpeg_path()
SOFTWARE = {name: spec for name, spec in load_encoders().items() if not spec.hardware}
FRAMES, FPS, GOP = 30, Fraction(12), 24

every_encoder = pytest.mark.parametrize("spec", SOFTWARE.values(), ids=SOFTWARE)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """2.5 s with a hard cut at frame 14 and one at 21, where no keyframe may be set."""
    path = tmp_path_factory.mktemp("clip") / "in put:1.y4m"
    video = "testsrc2=s=192x108:r=12:d=2.5,negate=enable='between(n,14,20)',format=yuv420p"
    command = [FFMPEG, "-v", "error", "-f", "lavfi", "-i", video, file_url(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return Source(path, "0" * 64, 192, 108, FPS, FRAMES, "yuv420p")


def test_a_playlist_under_an_encode_s_name_opens_nothing(source: Source, tmp_path: Path) -> None:
    spec = SOFTWARE["libx264"]
    encode(source, fastest(spec), tmp_path / "real.mp4", ffmpeg=FFMPEG)
    listing = tmp_path / "listing.mp4"
    listing.write_text("ffconcat version 1.0\nfile real.mp4\n", encoding="ascii")
    # else it would be read as if it were the file it names
    with av.open(str(listing)) as container:
        assert sum(packet.size > 0 for packet in container.demux(video=0)) == FRAMES
    with pytest.raises(ToolError, match="cannot be parsed"):
        stream_packets(listing, spec.codec, FPS)


def fastest(spec: EncoderSpec, knob: float | None = None) -> Rendition:
    middle = sum(spec.knob.search) / 2 if knob is None else knob
    return Rendition(128, 72, spec.name, spec.knob.snap(middle), spec.presets[-1])


def decoded(path: Path) -> list[str]:
    """Hash of each decoded frame, by ffmpeg, which has a decoder for all five codecs."""
    argv = [FFMPEG, "-v", "error", "-i", file_url(path), "-f", "framemd5", "-"]
    lines = process.run(argv, timeout_s=60).stdout.decode().splitlines()
    return [line.split()[-1] for line in lines if line.startswith("0,")]


@every_encoder
def test_a_real_encode(spec: EncoderSpec, source: Source, tmp_path: Path) -> None:
    out = tmp_path / f"-o ut%d{spec.suffix}"
    made = encode(source, fastest(spec), out, ffmpeg=FFMPEG)
    assert list(tmp_path.iterdir()) == [out]
    assert made.frames == FRAMES == len(decoded(out))
    assert made.size_bytes == out.stat().st_size
    assert made.peak_kbps >= made.bitrate_kbps > 0
    assert made.cpu_s > 0
    assert made.encoder_version.startswith(spec.name)
    packets = stream_packets(out, spec.codec, FPS)
    assert [i for i, p in enumerate(packets) if p.keyframe] == [0, GOP]
    assert [p.time_s for p in packets] == pytest.approx([i / 12 for i in range(FRAMES)])
    if spec.decoder == "pyav":
        with av.open(file_url(out)) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.codec.canonical_name == spec.codec
            assert (stream.width, stream.height) == (128, 72)


@every_encoder
def test_gops_are_closed(spec: EncoderSpec, source: Source, tmp_path: Path) -> None:
    out = tmp_path / f"a{spec.suffix}"
    encode(source, fastest(spec), out, ffmpeg=FFMPEG)
    if spec.decoder == "ffmpeg":
        data = out.read_bytes()
        second = [match.start() for match in re.finditer(b"\x00\x00\x01\xb0", data)][1]
        tail = tmp_path / f"tail{spec.suffix}"
        tail.write_bytes(data[second:])
        assert decoded(tail) == decoded(out)[GOP:]
        return
    with av.open(file_url(out)) as container:
        whole = [frame.to_ndarray().tobytes() for frame in container.decode(video=0)]
    with av.open(file_url(out)) as container:
        keys, late = 0, []
        for packet in container.demux(video=0):
            keys += bool(packet.size and packet.is_keyframe)
            if keys >= 2:
                late += [frame.to_ndarray().tobytes() for frame in packet.decode()]
    assert late == whole[GOP:]


@every_encoder
def test_replay_gives_the_file_again(spec: EncoderSpec, source: Source, tmp_path: Path) -> None:
    made = encode(source, fastest(spec), tmp_path / f"a{spec.suffix}", ffmpeg=FFMPEG)
    again = tmp_path / f"again{spec.suffix}"
    argv = [FFMPEG, "-v", "error", "-i", file_url(source.path)]
    argv += [*made.ffmpeg_args, file_url(again)]
    assert process.run(argv, timeout_s=60).returncode == 0
    assert again.read_bytes() == made.path.read_bytes()


@every_encoder
def test_the_knob_turns_the_right_way(spec: EncoderSpec, source: Source, tmp_path: Path) -> None:
    sizes = [
        encode(source, fastest(spec, knob), tmp_path / "a", ffmpeg=FFMPEG).size_bytes
        for knob in spec.knob.search
    ]
    assert (sizes[0] > sizes[1]) == spec.knob.lower_is_better


@pytest.mark.parametrize("name", [name for name, s in SOFTWARE.items() if 10 in s.bit_depths])
def test_ten_bit(name: str, source: Source, tmp_path: Path) -> None:
    out = tmp_path / "a.mp4"
    short = replace(fastest(SOFTWARE[name]), bit_depth=10)
    encode(source, short, out, ffmpeg=FFMPEG)
    with av.open(file_url(out)) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p10le"


@pytest.mark.parametrize("name", ["libx264", "libx265", "libsvtav1"])
def test_quarter_steps_are_honoured(name: str, source: Source, tmp_path: Path) -> None:
    spec = SOFTWARE[name]
    sizes = {
        encode(source, fastest(spec, knob), tmp_path / "a", ffmpeg=FFMPEG).size_bytes
        for knob in (30, 30.25, 30.5, 30.75, 31)
    }
    assert len(sizes) >= 4


@every_encoder
def test_every_parameter_is_taken(spec: EncoderSpec, source: Source, tmp_path: Path) -> None:
    params = tuple(sorted((t.name, t.default) for t in spec.tunables))
    rendition = replace(fastest(spec), params=params)
    assert encode(source, rendition, tmp_path / "a", ffmpeg=FFMPEG).frames == FRAMES


@pytest.mark.slow
@every_encoder
def test_every_value_of_every_parameter(spec: EncoderSpec, source: Source, tmp_path: Path) -> None:
    for tunable in spec.tunables:
        ends = [f"{value:g}" for value in tunable.range or ()]
        for value in (*tunable.choices, *ends):
            rendition = replace(
                fastest(spec), preset=spec.default_preset, params=((tunable.name, value),)
            )
            assert encode(source, rendition, tmp_path / "a", ffmpeg=FFMPEG).frames == FRAMES


@pytest.mark.slow
@every_encoder
def test_least_size(spec: EncoderSpec, source: Source, tmp_path: Path) -> None:
    width, height = spec.min_size
    for preset in {spec.presets[-1], spec.default_preset}:
        rendition = replace(fastest(spec), width=width, height=height, preset=preset)
        assert encode(source, rendition, tmp_path / "a", ffmpeg=FFMPEG).frames == FRAMES


def test_the_encoders_own_word_is_told(source: Source, tmp_path: Path) -> None:
    x265 = SOFTWARE["libx265"]
    too_many = replace(fastest(x265), params=(("bframes", "8"),))
    with pytest.raises(EncodeFailed, match="Lookahead depth must be greater"):
        encode(source, too_many, tmp_path / "a.mp4", ffmpeg=FFMPEG)


def test_raw_video_is_read_with_its_options(tmp_path: Path) -> None:
    raw = tmp_path / "in.yuv"
    raw.write_bytes(bytes(128 * 72 * 3 // 2) * 4)
    options = (
        ("f", "rawvideo"),
        ("framerate", "12"),
        ("pixel_format", "yuv420p"),
        ("video_size", "128x72"),
    )
    source = Source(raw, "0" * 64, 128, 72, FPS, 4, "yuv420p", input_options=options)
    made = encode(source, fastest(SOFTWARE["libx264"]), tmp_path / "a.mp4", ffmpeg=FFMPEG)
    assert made.frames == 4
    assert "-video_size" not in made.ffmpeg_args


def test_pixels_are_square_at_any_size(source: Source, tmp_path: Path) -> None:
    odd = replace(fastest(SOFTWARE["libx264"]), width=100, height=58)
    made = encode(source, odd, tmp_path / "a.mp4", ffmpeg=FFMPEG)
    with av.open(file_url(made.path)) as container:
        assert container.streams.video[0].sample_aspect_ratio in (None, 0, 1)


def test_names_that_are_not_utf8(source: Source, tmp_path: Path) -> None:
    odd = replace(source, path=tmp_path / os.fsdecode(b"\xff.y4m"))
    odd.path.write_bytes(source.path.read_bytes())
    out = tmp_path / os.fsdecode(b"\xfe.mp4")
    made = encode(odd, fastest(SOFTWARE["libx264"]), out, ffmpeg=FFMPEG)
    same = encode(source, fastest(SOFTWARE["libx264"]), tmp_path / "a.mp4", ffmpeg=FFMPEG)
    assert out.read_bytes() == same.path.read_bytes() and made.ffmpeg_args == same.ffmpeg_args
    odd.path.unlink()
    with pytest.raises(InputError, match="no longer there") as refused:
        encode(odd, fastest(SOFTWARE["libx264"]), out, ffmpeg=FFMPEG)
    assert str(refused.value).isprintable()


def test_rounded_timestamps_lose_no_frame(tmp_path: Path) -> None:
    mkv = tmp_path / "in.mkv"
    video = "testsrc2=s=128x72:r=60000/1001:d=0.5"
    argv = [FFMPEG, "-v", "error", "-f", "lavfi", "-i", video, "-c:v", "libx264"]
    subprocess.run([*argv, file_url(mkv)], check=True, stdin=subprocess.DEVNULL)
    fps = Fraction(60000, 1001)
    source = Source(mkv, "0" * 64, 128, 72, fps, 30, "yuv420p")
    made = encode(source, fastest(SOFTWARE["libx264"]), tmp_path / "a.mp4", ffmpeg=FFMPEG)
    times = [p.time_s for p in stream_packets(made.path, "h264", fps)]
    assert times == pytest.approx([float(i / fps) for i in range(30)], abs=1e-9)
    assert made.peak_kbps == made.bitrate_kbps, "below one second the peak is the mean"


def test_peak_is_the_fullest_second() -> None:
    packets = [Packet(i / 10, 1000 if 12 <= i < 22 else 100, i == 0) for i in range(40)]
    assert peak_kbps(packets, 4.0) == 80
    assert peak_kbps(packets[:5], 0.5) == pytest.approx(500 * 8 / 1000 / 0.5)


FakeFfmpeg = Callable[[str], str]


@pytest.fixture
def fake_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeFfmpeg:
    """An ffmpeg that does as the shell lines say; $OUT is the path it was told to write."""
    monkeypatch.setattr(encode_module, "encoder_version", lambda spec, ffmpeg: "fake 1")

    def make(body: str) -> str:
        path = tmp_path / "ffmpeg"
        path.write_text(f"#!/bin/sh\nfor a; do OUT=${{a#file:}}; done\n{body}\n")
        path.chmod(0o755)
        return str(path)

    return make


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        ("echo boom >&2; exit 3", EncodeFailed, "128x72 libx264 .*exit status 3: boom"),
        ("echo half > $OUT; kill -SEGV $$", EncodeFailed, "killed by SIGSEGV"),
        ("sleep 60 & wait", EncodeFailed, "stopped at its time limit"),
        ("exit 0", EncodeFailed, "wrote nothing"),
        ("echo not a video > $OUT", EncodeFailed, "cannot be parsed"),
        ("echo No space left on device >&2; exit 228", ToolError, "disk of the folder .* full"),
    ],
)
def test_failures_are_told_and_leave_nothing(
    source: Source,
    tmp_path: Path,
    fake_ffmpeg: FakeFfmpeg,
    body: str,
    kind: type[Exception],
    said: str,
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    kept = folder / "a.mp4"
    kept.write_text("an earlier result")
    with pytest.raises(kind, match=said):
        rendition = fastest(SOFTWARE["libx264"])
        encode(source, rendition, kept, ffmpeg=fake_ffmpeg(body), timeout_s=0.5)
    assert list(folder.iterdir()) == [kept]
    assert kept.read_text() == "an earlier result"


@pytest.mark.parametrize("name", ["libx264", "libxavs2"])
def test_a_truncated_file_is_not_taken(
    name: str, source: Source, tmp_path: Path, fake_ffmpeg: FakeFfmpeg
) -> None:
    spec = SOFTWARE[name]
    fewer = replace(source, frames=FRAMES)
    good = encode(fewer, fastest(spec), tmp_path / "good", ffmpeg=FFMPEG).path
    cut = tmp_path / "cut"
    cut.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    out = tmp_path / "out"
    with pytest.raises(EncodeFailed, match=r"frames in the file, 30 expected|cannot be parsed"):
        encode(source, fastest(spec), out, ffmpeg=fake_ffmpeg(f'cp "{cut}" "$OUT"'))
    assert not out.exists()


def test_another_codec_and_a_frame_too_few_are_not_taken(
    source: Source, tmp_path: Path, fake_ffmpeg: FakeFfmpeg
) -> None:
    x264 = fastest(SOFTWARE["libx264"])
    good = encode(source, x264, tmp_path / "good", ffmpeg=FFMPEG).path
    copies = fake_ffmpeg(f'cp "{good}" "$OUT"')
    with pytest.raises(EncodeFailed, match="holds h264, not hevc"):
        encode(source, fastest(SOFTWARE["libx265"]), tmp_path / "out", ffmpeg=copies)
    with pytest.raises(EncodeFailed, match="30 frames in the file, 31 expected"):
        encode(replace(source, frames=31), x264, tmp_path / "out", ffmpeg=copies)


def test_interruption_leaves_nothing(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(argv: list[str], **_: object) -> None:
        Path(argv[-1].removeprefix("file:")).write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(encode_module, "encoder_version", lambda spec, ffmpeg: "fake 1")
    monkeypatch.setattr(process, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode(source, fastest(SOFTWARE["libx264"]), tmp_path / "a.mp4", ffmpeg=FFMPEG)
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(source: Source, tmp_path: Path) -> None:
    x264 = fastest(SOFTWARE["libx264"])
    with pytest.raises(InputError, match="is a folder"):
        encode(source, x264, tmp_path, ffmpeg=FFMPEG)
    with pytest.raises(InputError, match="does not exist"):
        encode(source, x264, tmp_path / "no" / "a.mp4", ffmpeg=FFMPEG)
    with pytest.raises(InputError, match="is the source itself"):
        encode(source, x264, source.path, ffmpeg=FFMPEG)
    with pytest.raises(InputError, match="cannot write in the folder '/proc'"):
        encode(source, x264, Path("/proc/a.mp4"), ffmpeg=FFMPEG)
