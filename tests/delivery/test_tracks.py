"""What a delivery makes of a source's tracks, and that all it leaves out is told."""

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest

from tests.support.commandline import Room
from tests.support.deliveries import make_ladder, variants, write
from tests.support.media import make_captioned, make_clip, run_ffmpeg
from vqaloop.bitstream.mp4_boxes import walk
from vqaloop.core.ffmpeg import file_url
from vqaloop.core.files import file_sha256
from vqaloop.delivery.package import Delivery, package_ladder
from vqaloop.media.probe import probe_source
from vqaloop.records import Source

RUNG = ((128, 72, 40.0),)
HERTZ = (440, 880, 1760)


def make_tracks(
    path: Path,
    audio: Sequence[tuple[str, str, str]],
    *more: str,
    inputs: Sequence[str] = (),
    folder: Path,
) -> Source:
    """A second of pictures with audio tracks of (language, layout, disposition), then `more`.

    Track n is a tone of HERTZ[n]; further `inputs` are numbered on from the tones.
    """
    clip, words = make_clip(folder / "clip.mp4", frames=25), list[str]()
    for hertz, _ in zip(HERTZ, audio, strict=False):
        words += ["-f", "lavfi", "-i", f"sine={hertz}:r=48000:d=1"]
    words = ["-i", str(clip), *words, *inputs, "-map", "0:v"]
    for place, (language, layout, flags) in enumerate(audio):
        words += ["-map", str(place + 1), f"-metadata:s:a:{place}", f"language={language}"]
        words += [f"-filter:a:{place}", f"aformat=channel_layouts={layout}"]
        words += [f"-disposition:a:{place}", flags]
    run_ffmpeg(
        *words, "-c:v", "copy", "-c:a", "aac", "-default_mode", "passthrough", *more, str(path)
    )
    return probe_source(path)


def delivered(source: Source, folder: Path, audio: bool = True) -> Delivery:
    ladder = make_ladder(folder / "ladder", source, "h264", RUNG)
    return package_ladder(ladder.folder, out=folder / "out", audio=audio)


def heard(made: Delivery, id: str = "") -> int:
    """The tone that is delivered, in Hz: of a rendition, or of the one players begin with."""
    url = file_url(made.folder / (id or made.about["audio"]["id"]) / "media.m3u8")
    raw = run_ffmpeg("-i", url, "-ac", "1", "-f", "f32le", "pipe:1")
    sound = np.frombuffer(raw, np.float32)[4800:43200]
    return int(np.argmax(np.abs(np.fft.rfft(sound))) * 48000 / len(sound))


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize(
    ("flags", "taken"),
    [(("0", "default"), 1), (("default", "0"), 0), (("default", "default"), 0)],
)
def test_players_begin_with_the_audio_that_is_flagged_default_and_all_is_there(
    suffix: str, flags: tuple[str, str], taken: int, tmp_path: Path
) -> None:
    tracks = [("fra", "stereo", flags[0]), ("eng", "mono", flags[1])]
    made = delivered(make_tracks(tmp_path / f"in{suffix}", tracks, folder=tmp_path), tmp_path)
    assert heard(made) == pytest.approx(HERTZ[taken], abs=3)
    assert made.about["audio"]["language"] == ("fr", "en")[taken]
    listed = made.about["audio_renditions"]
    assert [item["default"] for item in listed] == [taken == 0, taken == 1]
    assert [heard(made, item["id"]) for item in listed] == pytest.approx(HERTZ[:2], abs=3)
    assert made.about["warnings"] == []


def test_the_first_audio_is_the_default_where_none_is_flagged(tmp_path: Path) -> None:
    tracks = [("fra", "mono", "0"), ("eng", "mono", "0")]
    made = delivered(make_tracks(tmp_path / "in.mkv", tracks, folder=tmp_path), tmp_path)
    assert heard(made) == pytest.approx(HERTZ[0], abs=3)


def test_all_that_is_left_out_is_named(room: Room, tmp_path: Path) -> None:
    words, chapters, empty = tmp_path / "s.srt", tmp_path / "c.txt", tmp_path / "late.srt"
    words.write_text("1\n00:00:00,200 --> 00:00:00,600\nA word\n")
    empty.write_text("1\n00:01:00,200 --> 00:01:00,600\nToo late\n")
    chapters.write_text(";FFMETADATA1\n[CHAPTER]\nTIMEBASE=1/1\nSTART=0\nEND=1\ntitle=One\n")
    source = make_tracks(
        tmp_path / "in.mkv",
        [("fra", "5.1", "0"), ("eng", "7.1", "default")],
        *("-map", "3", "-map", "4", "-map", "3", "-c:s:0", "srt", "-c:s:1", "srt"),
        *("-c:s:2", "ass"),
        *("-c:a:1", "pcm_s16le", "-metadata:s:s:0", "language=spa", "-map_chapters", "5"),
        *("-attach", str(words), "-metadata:s:t:0", "mimetype=text/plain"),
        inputs=("-i", str(words), "-i", str(empty), "-i", str(chapters)),
        folder=tmp_path,
    )
    make_ladder(tmp_path / "ladder", source, "h264", RUNG)
    said = room.run("deliver", tmp_path / "ladder", "-o", "out")
    warnings = [line for line in said.out.splitlines() if line.startswith("warning: ")]
    assert warnings == [
        "warning: audio track 2 (eng, pcm_s16le, 8 channels) is reduced to 5.1, which players "
        "of AAC take",
        "warning: left out of the source too: 1 attachment, 1 chapter",
        "warning: subtitle track 2 (subrip) is left out: it holds no text while the pictures of "
        f"'{tmp_path / 'in.mkv'}' last",
    ]
    # who wants none misses none
    made = package_ladder(tmp_path / "ladder", out=tmp_path / "mute", audio=False, subtitles=False)
    assert made.about["warnings"] == ["left out of the source too: 1 attachment, 1 chapter"]
    assert made.about["audio_renditions"] == made.about["subtitles"] == []


def test_one_sound_in_stereo_is_all_there_is_and_nothing_is_told(tmp_path: Path) -> None:
    tracks = [("eng", "stereo", "0")]
    made = delivered(make_tracks(tmp_path / "in.mp4", tracks, folder=tmp_path), tmp_path)
    assert made.about["warnings"] == []


def put_cover_first(path: Path) -> None:
    """Move the metadata of an mp4 before its tracks, so that the cover becomes stream 0."""
    data = path.read_bytes()
    moov, end = next((start, end) for kind, start, end in walk(data) if kind == b"moov")
    assert end == len(data)
    parts = list(walk(data, moov + 8, end))
    ordered = sorted(parts, key=lambda part: part[0] != b"udta")
    path.write_bytes(data[: moov + 8] + b"".join(data[start:end] for _, start, end in ordered))
    with av.open(file_url(path)) as container:
        assert container.streams.video[0].codec_context.codec.canonical_name == "png"


def test_a_cover_before_the_pictures_does_not_shift_the_sound(tmp_path: Path) -> None:
    source = make_tracks(tmp_path / "plain.mp4", [("eng", "mono", "0")], folder=tmp_path)
    cover, title = tmp_path / "cover.png", tmp_path / "in.mp4"
    run_ffmpeg("-i", str(source.path), "-frames:v", "1", str(cover))
    # pictures from 0.4 s on: what is heard before them is cut off
    run_ffmpeg(
        *("-i", str(cover), "-itsoffset", "0.4", "-i", str(source.path)),
        *("-f", "lavfi", "-i", "aevalsrc='sin(2000*t)*gte(t,0.6)':s=48000:d=1"),
        *("-map", "0", "-map", "1:v", "-map", "2", "-c:v", "copy", "-c:a", "aac"),
        *("-disposition:v:0", "attached_pic", str(title)),
    )
    ladder = make_ladder(tmp_path / "ladder", probe_source(title), "h264", RUNG)
    put_cover_first(title)
    ladder.about["source"]["sha256"] = file_sha256(title)
    write(ladder)
    made = package_ladder(ladder.folder, out=tmp_path / "out")
    url = file_url(made.folder / made.about["audio"]["id"] / "media.m3u8")
    raw = run_ffmpeg("-i", url, "-ac", "1", "-f", "f32le", "pipe:1")
    first = int(np.argmax(np.abs(np.frombuffer(raw, np.float32)) > 0.1)) / 48000
    assert first == pytest.approx(0.2, abs=0.01)


def test_rungs_with_captions_are_not_said_to_have_none(tmp_path: Path) -> None:
    title = probe_source(make_captioned(tmp_path / "in.mp4"))
    for codec in ("h264", "hevc"):
        make_ladder(tmp_path / codec, title, codec, RUNG)
    told = {}
    for codec in ("h264", "hevc"):
        made = package_ladder(tmp_path / codec, out=tmp_path / f"out-{codec}")
        told[codec] = made.about["warnings"]
        entry, captions = variants(made.folder), codec == "h264"
        assert [v.get("CLOSED-CAPTIONS") for v in entry.values()] == [None if captions else "NONE"]
        assert [r["closed_captions"] for r in made.about["renditions"]] == [captions]
    assert told["h264"] == []
    assert told["hevc"] == ["no rung has the closed captions that are in the source's pictures"]
    # the attribute speaks for all variants of a master playlist
    both = package_ladder([tmp_path / "h264", tmp_path / "hevc"], out=tmp_path / "both")
    assert "CLOSED-CAPTIONS" not in (both.folder / "master.m3u8").read_text()
    assert both.about["warnings"] == [
        "closed captions are in the pictures of h264 and not in those of hevc; they go away where "
        "a player changes to these"
    ]


def test_a_track_that_cannot_be_taken_over_has_one_rendition(tmp_path: Path) -> None:
    """Mono in a codec of Dolby's that ends early: AAC is both what it is and what all decode."""
    clip = tmp_path / "in.mkv"
    run_ffmpeg(
        *("-f", "lavfi", "-i", "testsrc2=s=128x72:r=25:d=2"),
        *("-f", "lavfi", "-i", "sine=440:r=48000:d=1", "-c:v", "libx264", "-c:a", "ac3"),
        *("-preset", "ultrafast", "-metadata:s:a:0", 'title=a\nb"c <&> \u0001', file_url(clip)),
    )
    made = delivered(probe_source(clip), tmp_path)
    (item,) = made.about["audio_renditions"]
    assert (item["codecs"], item["channels"], item["copied"]) == ("mp4a.40.2", 1, False)
    assert item["name"] == "a b'c <&>"
    assert made.about["warnings"] == [
        "audio track 1 (ac3, mono) is coded again as AAC, since it has gaps or does not last as "
        "long as the pictures"
    ]
    assert 'NAME="a b\'c <&>"' in (made.folder / "master.m3u8").read_text("utf-8")
    assert "a b'c &lt;&amp;&gt;" in (made.folder / "manifest.mpd").read_text("utf-8")


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_audio_that_is_taken_over_stays_in_time(suffix: str, tmp_path: Path) -> None:
    clip = tmp_path / f"in{suffix}"
    run_ffmpeg(
        *("-f", "lavfi", "-i", "testsrc2=s=128x72:r=25:d=2", "-f", "lavfi", "-i"),
        "aevalsrc='0.5*sin(880*PI*t)*gte(t,1.2)':s=48000:d=2",
        *("-c:v", "libx264", "-preset", "ultrafast", "-c:a", "aac", file_url(clip)),
    )
    made = delivered(probe_source(clip), tmp_path)
    assert made.about["audio"]["copied"]
    url = file_url(made.folder / "audio" / "media.m3u8")
    sound = np.frombuffer(run_ffmpeg("-i", url, "-ac", "1", "-f", "f32le", "pipe:1"), np.float32)
    assert int(np.argmax(np.abs(sound) > 0.1)) / 48000 == pytest.approx(1.2, abs=0.004)
