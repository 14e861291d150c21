"""Joined scenes decode to the very frames of the scenes, and the rest of the original is kept."""

import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.media import frame_hashes, make_clip, remux, run_ffmpeg
from vqaloop.core import process
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.encoding.encode import encode
from vqaloop.encoding.registry import get_encoder
from vqaloop.encoding.spec import EncoderSpec
from vqaloop.errors import DecodeFailed, InputError, ToolError
from vqaloop.media.excerpt import excerpt
from vqaloop.media.probe import probe_source
from vqaloop.ratecontrol import concat as join_module
from vqaloop.ratecontrol.concat import Joined, join, output_muxer
from vqaloop.records import Rendition, Source

FFMPEG = ffmpeg_path()
X264 = get_encoder("libx264")
CHAPTERS = """;FFMETADATA1
[CHAPTER]
TIMEBASE=1/1000
START=0
END=500
title=One = first
[CHAPTER]
TIMEBASE=1/1000
START=500
END=1000
title=Two
"""


def encoded(
    source: Source,
    lengths: Sequence[int],
    folder: Path,
    spec: EncoderSpec = X264,
    knobs: Sequence[float] = (),
    bit_depth: int = 8,
) -> list[Path]:
    """The scenes of these lengths in frames, encoded with very different knobs."""
    knobs = knobs or (spec.knob.search[0], spec.knob.search[1])
    made, start = [], 0
    for index, length in enumerate(lengths):
        scene = excerpt(source, [(start, length)], folder / "scene.mkv", ffmpeg=FFMPEG)
        knob = spec.knob.snap(knobs[index % len(knobs)])
        preset = spec.presets[-1]
        rendition = Rendition(*source.canvas, spec.name, knob, preset, bit_depth)
        out = folder / f"{index}{spec.suffix}"
        made.append(encode(scene, rendition, out, ffmpeg=FFMPEG).path)
        start += length
    return made


def joined(
    title: Path, out: Path, spec: EncoderSpec = X264, parts: int = 2, **probe: Any
) -> tuple[Source, Joined]:
    source = probe_source(title, **probe)
    lengths = [source.frames // parts] * (parts - 1)
    lengths.append(source.frames - sum(lengths))
    segments = encoded(source, lengths, out.parent, spec)
    return source, join(segments, source, out, spec=spec, ffmpeg=FFMPEG)


def hashes(path: Path) -> list[str]:
    return frame_hashes(Source(path, "", 0, 0, Fraction(1), 0, ""))


def tag_of(path: Path) -> str:
    with av.open(file_url(path)) as container:
        return str(container.streams.video[0].codec_context.codec_tag)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(
    ("name", "bit_depth"),
    [
        ("libx264", 8),
        ("libx264", 10),
        ("libx265", 8),
        ("libx265", 10),
        ("libvpx-vp9", 8),
        ("libvpx-vp9", 10),
        ("libsvtav1", 8),
        ("libsvtav1", 10),
    ],
)
def test_a_joined_file_decodes_to_the_frames_of_its_scenes(
    name: str, bit_depth: int, suffix: str, tmp_path: Path
) -> None:
    title = make_clip(tmp_path / "in.mp4", frames=20, rate="24000/1001")
    source, spec = probe_source(title), get_encoder(name)
    segments = encoded(source, (9, 3, 8), tmp_path, spec, bit_depth=bit_depth)
    out = tmp_path / f"out{suffix}"
    made = join(segments, source, out, spec=spec, ffmpeg=FFMPEG)
    assert hashes(out) == [h for path in segments for h in hashes(path)]
    assert made.frames == 20 and made.size_bytes == out.stat().st_size
    assert made.video_bytes < made.size_bytes and made.video_kbps > 0
    with av.open(file_url(out)) as container:
        video = container.streams.video[0]
        assert video.average_rate == pytest.approx(Fraction(24000, 1001), rel=1e-3)
        packets = [p for p in container.demux(video) if p.size]
        times = sorted(float((p.pts or 0) * (p.time_base or 0)) for p in packets)
    tick_s = 1e-9 if suffix == ".mp4" else 0.5e-3 + 1e-9
    assert times == pytest.approx([i * 1001 / 24000 for i in range(20)], abs=tick_s)


def test_av1_and_vp9_go_into_webm(tmp_path: Path) -> None:
    _, made = joined(
        make_clip(tmp_path / "in.mp4"), tmp_path / "out.webm", get_encoder("libvpx-vp9")
    )
    assert len(hashes(made.path)) == made.frames == 12 and not made.notes


@pytest.mark.parametrize("suffix", [".webm", ".mkv", ".mp4"])
def test_no_output_says_it_is_transparent(suffix: str, tmp_path: Path) -> None:
    vf = "format=yuva420p,colorchannelmixer=aa=0.5"
    options: dict[str, Any] = {"pix_fmt": "yuva420p", "auto-alt-ref": 0}
    title = make_clip(tmp_path / "in.webm", vf=vf, **options)
    with av.open(file_url(title)) as container:
        assert container.streams.video[0].metadata["alpha_mode"] == "1"
    _, made = joined(title, tmp_path / f"out{suffix}", get_encoder("libvpx-vp9"))
    with av.open(file_url(made.path)) as container:
        assert "alpha_mode" not in map(str.lower, container.streams.video[0].metadata)


def test_avs2_is_joined_raw_and_says_what_is_left_out(tmp_path: Path) -> None:
    spec = get_encoder("libxavs2")
    source = probe_source(make_clip(tmp_path / "in.mp4", size="128x72"))
    segments = encoded(source, (5, 7), tmp_path, spec)
    made = join(segments, source, tmp_path / "out.avs2", spec=spec, ffmpeg=FFMPEG)
    assert hashes(made.path) == [h for path in segments for h in hashes(path)]
    assert "audio" in made.notes[0]


def two_halves(title: Path, *options: str) -> list[Path]:
    """Two scenes of six frames as x264 makes them at CRF 18 and 45 with these options."""
    made = []
    for crf in ("18", "45"):
        made.append(title.with_name(f"{crf}.mp4"))
        how = ["-c:v", "libx264", "-preset", "ultrafast", "-crf", crf, "-frames:v", "6"]
        run_ffmpeg("-i", str(title), *how, *options, str(made[-1]))
    return made


def test_x264_scenes_made_stitchable_share_one_header(tmp_path: Path) -> None:
    source = probe_source(make_clip(tmp_path / "in.mp4"))
    segments = two_halves(source.path, "-x264-params", "stitchable=1")
    made = join(segments, source, tmp_path / "out.mp4", spec=X264, ffmpeg=FFMPEG)
    assert tag_of(made.path) == "avc1" and not made.notes


def test_x264_scenes_with_other_headers_bring_them_in_the_stream(tmp_path: Path) -> None:
    source = probe_source(make_clip(tmp_path / "in.mp4"))
    made = join(two_halves(source.path), source, tmp_path / "out.mp4", spec=X264, ffmpeg=FFMPEG)
    assert tag_of(made.path) == "avc3"
    assert any("avc3" in note for note in made.notes)


def test_a_file_that_decodes_otherwise_is_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = probe_source(make_clip(tmp_path / "in.mp4"))
    segments = two_halves(source.path)
    # as if one header served both, which for these it does not
    monkeypatch.setattr(join_module, "_headers", lambda path, codec: b"")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DecodeFailed, match="not right and was thrown away"):
        join(segments, source, tmp_path / "out.mp4", spec=X264, ffmpeg=FFMPEG)
    assert sorted(tmp_path.iterdir()) == before


def test_titles_without_sound_are_joined(tmp_path: Path) -> None:
    y4m = make_clip(tmp_path / "in.y4m")
    assert joined(y4m, tmp_path / "out.mkv")[1].frames == 12
    raw: dict[str, Any] = {"video_size": "160x90", "pix_fmt": "yuv420p", "framerate": "25"}
    assert joined(make_clip(tmp_path / "in.yuv"), tmp_path / "o.mp4", **raw)[1].frames == 12


def rich_title(folder: Path, **video: Any) -> Path:
    """A second with two audio tracks, subtitles, chapters, names, an attachment and a cover."""
    clip = make_clip(folder / "clip.mp4", frames=25, **video)
    (folder / "s.srt").write_text("1\n00:00:00,200 --> 00:00:00,600\nA 'word'\n")
    (folder / "c.txt").write_text(CHAPTERS)
    run_ffmpeg("-i", str(clip), "-frames:v", "1", str(folder / "cover.png"))
    sines = [
        part for hertz in (440, 880) for part in ("-f", "lavfi", "-i", f"sine={hertz}:r=48000:d=1")
    ]
    title = folder / "title.mkv"
    run_ffmpeg(
        *("-i", str(clip), *sines, "-i", str(folder / "s.srt"), "-i", str(folder / "c.txt")),
        *("-map", "0", "-map", "1", "-map", "2", "-map", "3", "-map_chapters", "4"),
        *("-c:v", "copy", "-c:a:0", "aac", "-c:a:1", "pcm_s16le", "-c:s", "srt"),
        *("-metadata", "title=A = title", "-metadata:s:v:0", "title=Picture"),
        *("-metadata:s:v:0", "language=fre", "-metadata:s:a:0", "language=deu"),
        *("-metadata:s:a:1", "title=Comment", "-disposition:a:1", "comment"),
        *("-disposition:a:0", "default"),
        *("-metadata:s:s:0", "language=spa", "-disposition:s:0", "forced"),
        *("-attach", str(folder / "cover.png"), "-metadata:s:t:0", "mimetype=image/png"),
        *("-attach", str(folder / "s.srt"), "-metadata:s:t:1", "mimetype=text/plain"),
        str(title),
    )
    return title


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_all_else_goes_along(suffix: str, tmp_path: Path) -> None:
    spec = get_encoder("libvpx-vp9") if suffix == ".webm" else X264
    _, made = joined(rich_title(tmp_path), tmp_path / f"out{suffix}", spec)
    with av.open(file_url(made.path)) as container:
        streams = container.streams
        assert container.metadata["title"] == "A = title"
        assert [c["metadata"]["title"] for c in container.chapters()] == ["One = first", "Two"]
        audio = [s.codec_context.codec.canonical_name for s in streams.audio]
        assert (
            audio
            == {
                ".mp4": ["aac", "aac"],
                ".mkv": ["aac", "pcm_s16le"],
                ".webm": ["opus", "opus"],
            }[suffix]
        )
        assert streams.video[0].metadata["language"] == "fre"
        assert streams.audio[0].metadata["language"] == "deu"
        name = "name" if suffix == ".mp4" else "title"
        assert streams.video[0].metadata[name] == "Picture"
        assert streams.audio[1].metadata[name] == "Comment"
        flags = av.stream.Disposition
        assert streams.audio[0].disposition & flags.default
        assert not streams.audio[1].disposition & flags.default
        text = {".mp4": "mov_text", ".mkv": "subrip", ".webm": "webvtt"}[suffix]
        assert [s.codec_context.codec.canonical_name for s in streams.subtitles] == [text]
        assert streams.subtitles[0].metadata["language"] == "spa"
        covers = [s for s in streams.video if s.disposition & flags.attached_pic]
        assert len(covers) == (suffix != ".webm")
        assert len(streams.attachments) == (suffix == ".mkv")
    said = " ".join(made.notes)
    assert ("Audio track 2 is pcm_s16le" in said) == (suffix != ".mkv")
    assert ("Attachment" in said) == (suffix != ".mkv")
    assert ("Subtitles" in said) == (suffix != ".mkv")
    srt = run_ffmpeg("-i", str(made.path), "-f", "srt", "pipe:1").decode()
    assert "A 'word'" in srt and re.search(r"00:00:00,(200|199|201) -->", srt)


def flash_and_beep(path: Path, flash_s: float, beep_s: float, *codecs: str) -> Path:
    """Two seconds at 25 a second: a white frame at one time, a beep from another on."""
    video = f"color=black:s=160x90:r=25:d=2,format=gray,negate=enable='eq(n,{flash_s * 25:.0f})'"
    sound = f"aevalsrc='sin(2000*t)*gt(t,{beep_s})*lt(t,{beep_s}+0.2)':s=48000:d=2"
    run_ffmpeg(
        *("-f", "lavfi", "-i", f"{video},format=yuv420p", "-f", "lavfi", "-i", sound),
        *("-c:v", "libx264", "-preset", "ultrafast", *codecs, str(path)),
    )
    return path


def beep_after_flash_s(path: Path) -> float:
    """Seconds from the white frame to the beep, as a player's clock has it."""
    said = run_ffmpeg(
        *("-i", file_url(path), "-map", "0:v:0", "-fps_mode", "passthrough", "-vf"),
        *("scale=1:1,format=gray", "-enc_time_base", "1/90000", "-f", "framecrc", "pipe:1"),
    ).decode()
    rows = [line.split(",") for line in said.splitlines() if line.startswith("0,")]
    white = max(rows, key=lambda row: int(row[5].strip(), 16))
    flash_s = int(white[2]) / 90000
    # the filter fills what is missing before the first sample
    samples = run_ffmpeg(
        *("-i", file_url(path), "-map", "0:a:0", "-af", "aresample=async=1:first_pts=0"),
        *("-ac", "1", "-ar", "48000", "-f", "s16le", "pipe:1"),
    )
    loud = np.flatnonzero(np.abs(np.frombuffer(samples, np.int16)) > 3000)
    return float(loud[0]) / 48000 - flash_s


@pytest.mark.parametrize("late_s", [0.0, 0.5])
@pytest.mark.parametrize(
    ("original", "audio", "suffix"),
    [
        ("in.mkv", "aac", ".mp4"),
        ("in.mp4", "aac", ".mkv"),
        ("in.mkv", "libopus", ".mkv"),
        ("in.mkv", "pcm_s16le", ".mp4"),
        ("in.mp4", "aac", ".mp4"),
    ],
)
def test_sound_stays_with_the_picture(
    original: str, audio: str, suffix: str, late_s: float, tmp_path: Path
) -> None:
    plain = flash_and_beep(tmp_path / f"plain{Path(original).suffix}", 1, 1.2, "-c:a", audio)
    title = tmp_path / original
    url = file_url(plain)
    run_ffmpeg(
        *("-itsoffset", str(late_s), "-i", url, "-i", url, "-map", "0:v", "-map", "1:a"),
        *("-c", "copy", str(title)),
    )
    assert beep_after_flash_s(title) == pytest.approx(0.2 - late_s, abs=0.03)
    source, made = joined(title, tmp_path / f"out{suffix}")
    assert any("late" in note for note in source.notes) == bool(late_s)
    assert beep_after_flash_s(made.path) == pytest.approx(beep_after_flash_s(title), abs=0.01)
    assert made.duration_s == 2


def test_variable_rate_keeps_its_sound(tmp_path: Path) -> None:
    plain = flash_and_beep(tmp_path / "plain.mkv", 1, 1.2, "-c:a", "aac")
    title = tmp_path / "in.mkv"
    run_ffmpeg(
        *("-i", str(plain), "-vf", "select='not(eq(mod(n,7),3))'", "-fps_mode", "vfr"),
        *("-c:v", "libx264", "-preset", "ultrafast", "-c:a", "copy", str(title)),
    )
    source, made = joined(title, tmp_path / "out.mp4")
    assert any("Variable" in note for note in source.notes)
    apart = abs(beep_after_flash_s(made.path) - beep_after_flash_s(title))
    assert apart <= float(1 / source.fps)


def test_a_rotated_title_comes_out_upright_and_untagged(tmp_path: Path) -> None:
    flat = make_clip(tmp_path / "flat.mp4")
    title = remux(flat, tmp_path / "in.mp4", "-display_rotation:v:0", "90")
    source, made = joined(title, tmp_path / "out.mp4")
    assert (source.width, source.height) == (90, 160)
    with av.open(file_url(made.path)) as container:
        frame = next(container.decode(video=0))
        assert (frame.width, frame.height, frame.rotation) == (90, 160, 0)
        shown = frame.to_ndarray(format="gray").astype(float)
    raw = run_ffmpeg(
        *("-i", str(title), "-frames:v", "1", "-pix_fmt", "gray", "-f", "rawvideo", "pipe:1")
    )
    upright = np.frombuffer(raw, np.uint8).reshape(160, 90).astype(float)
    assert np.abs(shown - upright).mean() < 8


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_colour_and_hdr_metadata_are_kept(suffix: str, tmp_path: Path) -> None:
    display = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1)"
    title = tmp_path / "in.mp4"
    colour = "color_primaries=bt2020:color_trc=smpte2084:colorspace=bt2020nc:range=tv"
    run_ffmpeg(
        *("-f", "lavfi", "-i", f"testsrc2=s=128x128:r=25:d=0.4,setparams={colour}"),
        *("-pix_fmt", "yuv420p10le", "-c:v", "libx265", "-preset", "ultrafast", "-x265-params"),
        *(f"log-level=error:master-display={display}:max-cll=1000,400", str(title)),
    )
    source = probe_source(title, allow_hdr=True)
    spec = get_encoder("libx265")
    segments = encoded(source, (4, 6), tmp_path, spec, bit_depth=10)
    made = join(segments, source, tmp_path / f"out{suffix}", spec=spec, ffmpeg=FFMPEG)
    assert probe_source(made.path, allow_hdr=True).colour == source.colour
    argv = [FFMPEG, "-hide_banner", "-i", file_url(made.path)]
    told = process.run(argv, timeout_s=30).stderr
    assert "MaxCLL=1000, MaxFALL=400" in told and "max_luminance=1000.0" in told


def test_names_are_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "it's a\n'file x'"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    source = probe_source(make_clip(folder / "-i in%d:1.mp4"))
    segments = [
        path.rename(path.with_name(f"-y '{index}\nduration 9 .mp4"))
        for index, path in enumerate(encoded(source, (5, 7), folder))
    ]
    out = folder / "-o ut'%d\n.mp4"
    join(segments, source, out, spec=X264, ffmpeg=FFMPEG)
    assert hashes(out) == [h for path in segments for h in hashes(path)]


@pytest.mark.parametrize(
    ("name", "codec", "advice"),
    [
        ("a.avi", "h264", "OUTPUT.mp4"),
        ("a", "av1", "OUTPUT.webm"),
        ("a.webm", "hevc", "OUTPUT.mkv"),
        ("a.mp4", "avs2", "OUTPUT.avs2"),
        ("a.avs2", "h264", "OUTPUT.mkv"),
    ],
)
def test_a_name_that_cannot_hold_the_codec_is_refused(name: str, codec: str, advice: str) -> None:
    with pytest.raises(InputError, match=re.escape(advice)):
        output_muxer(Path(name), codec)


def test_missing_scenes_and_places_are_refused(tmp_path: Path) -> None:
    source = probe_source(make_clip(tmp_path / "in.mp4"))
    segments = encoded(source, (5, 7), tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ToolError, match="5 frames, 12 are expected"):
        join(segments[:1], source, tmp_path / "out.mp4", spec=X264, ffmpeg=FFMPEG)
    with pytest.raises(InputError, match="does not exist"):
        join(segments, source, tmp_path / "no" / "out.mp4", spec=X264, ffmpeg=FFMPEG)
    with pytest.raises(InputError, match="source itself"):
        join(segments, source, source.path, spec=X264, ffmpeg=FFMPEG)
    with pytest.raises(InputError, match="nothing to join"):
        join([], source, tmp_path / "out.mp4", spec=X264, ffmpeg=FFMPEG)
    assert sorted(tmp_path.iterdir()) == before


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=60),
    st.sampled_from([Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), Fraction(3, 7)]),
)
def test_no_scene_starts_more_than_a_microsecond_off(counts: list[int], fps: Fraction) -> None:
    lengths = join_module.durations_us(counts, fps)
    for index in range(len(counts) + 1):
        exact = sum(counts[:index]) / fps * 1_000_000
        assert abs(sum(lengths[:index]) - exact) <= Fraction(1, 2)
