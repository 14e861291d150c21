"""HLS and DASH as written: a test for each rule they have to keep, on real encodes of four codecs.

What is asserted is measured here again, on the files and with ffmpeg, not read from the document.
"""

import hashlib
import io
import json
import math
import os
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.commandline import Room
from tests.deliveries import BEEP_S, FRAMES, RUNGS, make_ladder, make_title, write
from tests.media import run_ffmpeg
from vqaloop import process, segments
from vqaloop.boxes import VideoEntry, read_video_entry, walk
from vqaloop.codecstrings import codec_string, starts_anew
from vqaloop.deliver import Delivery, package_ladder
from vqaloop.errors import InputError, ToolError
from vqaloop.records import Ladder, Source
from vqaloop.report import read_ladder
from vqaloop.segments import Track, mean_rate, peak_rate
from vqaloop.source import probe_source

FRAME = Fraction(1001, 30000)
TITLE_S = FRAMES * FRAME
HLS = ("h264", "hevc", "av1")
DASH = (*HLS, "vp9")
NS = {"d": "urn:mpeg:dash:schema:mpd:2011"}


@pytest.fixture(scope="session")
def title(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return make_title(tmp_path_factory.mktemp("title") / "title.mkv")


@pytest.fixture(scope="session")
def ladders(title: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `vqaloop ladder --codec h264,hevc,vp9,av1` leaves it."""
    folder = tmp_path_factory.mktemp("ladders")
    for codec in DASH:
        make_ladder(folder / codec, title, codec)
    return folder


@pytest.fixture(scope="session")
def made(ladders: Path, tmp_path_factory: pytest.TempPathFactory) -> Delivery:
    """All of it, as HLS and DASH. Nobody may change it."""
    return package_ladder(ladders, out=tmp_path_factory.mktemp("made") / "out")


@pytest.fixture
def own(ladders: Path, tmp_path: Path) -> Ladder:
    """A copy of the H.264 ladder that a test may spoil."""
    return read_ladder(shutil.copytree(ladders / "h264", tmp_path / "own"))


@dataclass(frozen=True)
class Part:
    """One entry of a playlist."""

    seconds: float
    file: str
    size: int
    offset: int


def attributes(line: str) -> dict[str, str]:
    found = re.findall(r'([A-Z0-9-]+)=("[^"]*"|[^,]*)', line.split(":", 1)[1])
    return {name: value.strip('"') for name, value in found}


def variants(folder: Path) -> dict[str, dict[str, str]]:
    """Attributes of EXT-X-STREAM-INF by the name of the rung, in the order of the playlist."""
    lines = (folder / "master.m3u8").read_text().splitlines()
    return {
        after.split("/")[0]: attributes(line)
        for line, after in zip(lines, lines[1:], strict=False)
        if line.startswith("#EXT-X-STREAM-INF")
    }


def parts(playlist: Path) -> list[Part]:
    """What a media or I-frame playlist lists."""
    found, seconds, span = [], 0.0, (-1, 0)
    for line in playlist.read_text().splitlines():
        if line.startswith("#EXTINF:"):
            seconds = float(line[8:].rstrip(","))
        elif line.startswith("#EXT-X-BYTERANGE:"):
            size, offset = line.split(":")[1].split("@")
            span = int(size), int(offset)
        elif line and not line.startswith("#"):
            path = playlist.parent / line
            whole = path.stat().st_size
            found.append(Part(seconds, line, *(span if span[0] >= 0 else (whole, 0))))
    return found


def tag(playlist: Path, name: str) -> str:
    found: str = re.findall(rf"^#{name}:(.*)$", playlist.read_text(), re.MULTILINE)[0]
    return found


def rungs(made: Delivery, codecs: tuple[str, ...]) -> list[Path]:
    return [made.folder / r["id"] for r in made.about["renditions"] if r["codec"] in codecs]


def decoded(*arguments: str) -> list[str]:
    """MD5 of each frame; fails if ffmpeg has anything to say."""
    argv = [process.ffmpeg_path(), "-nostdin", "-v", "warning", *arguments]
    done = process.run([*argv, "-f", "framemd5", "pipe:1"], timeout_s=60)
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.decode().splitlines()
    return [line.split(",")[-1].strip() for line in lines if line and line[0] != "#"]


# HLS


def test_hls_holds_the_codecs_that_apple_names_and_dash_all(made: Delivery) -> None:
    codecs = {entry["CODECS"].split(".")[0] for entry in variants(made.folder).values()}
    assert codecs == {"avc1", "hvc1", "av01"}
    assert {note["codec"] for note in made.about["refused"]} == {"vp9"}
    assert len(made.about["dash"]["representations"]) == sum(len(RUNGS[c]) for c in DASH)


def test_segments_are_fragmented_mp4_with_avc1_and_hvc1_entries(made: Delivery) -> None:
    kinds = {"h264": "avc1", "hevc": "hvc1", "av1": "av01", "vp9": "vp09"}
    for codec in DASH:
        for folder in rungs(made, (codec,)):
            assert read_video_entry((folder / "init.mp4").read_bytes()).kind == kinds[codec]
            for segment in folder.glob("*.m4s"):
                boxes = {kind for kind, *_ in walk(segment.read_bytes())}
                assert boxes == {b"styp", b"moof", b"mdat"}
        if codec in HLS:
            assert tag(folder / "media.m3u8", "EXT-X-MAP") == 'URI="init.mp4"'
            assert int(tag(folder / "media.m3u8", "EXT-X-VERSION")) >= 6


def test_key_frames_come_every_two_seconds(made: Delivery) -> None:
    for folder in rungs(made, HLS):
        keys = [part.seconds for part in parts(folder / "iframes.m3u8")]
        assert keys[:-1] == pytest.approx([2.002] * 7)
        assert sum(keys) == pytest.approx(float(TITLE_S), abs=1e-5)


@pytest.mark.parametrize("codec", DASH)
def test_every_segment_can_be_decoded_alone_from_its_first_frame(
    codec: str, made: Delivery
) -> None:
    for folder in rungs(made, (codec,)):
        whole = b"".join(path.read_bytes() for path in sorted(folder.glob("*.m4s")))
        init, counts = (folder / "init.mp4").read_bytes(), []
        with av.open(io.BytesIO(init + whole)) as container:
            first = [frame.to_ndarray().tobytes() for frame in container.decode(video=0)]
        assert len(first) == FRAMES
        for path in sorted(folder.glob("*.m4s")):
            with av.open(io.BytesIO(init + path.read_bytes())) as container:
                frames = [frame.to_ndarray().tobytes() for frame in container.decode(video=0)]
            assert frames == first[sum(counts) : sum(counts) + len(frames)]
            counts.append(len(frames))
        assert sum(counts) == FRAMES


def test_segments_last_six_seconds_and_never_half_a_second_more(made: Delivery) -> None:
    for folder in [*rungs(made, HLS), made.folder / "audio"]:
        lengths = [part.seconds for part in parts(folder / "media.m3u8")]
        assert lengths[:-1] == pytest.approx([6.006] * 2, abs=0.022)
        target = int(tag(folder / "media.m3u8", "EXT-X-TARGETDURATION"))
        assert target == 6 and max(lengths) <= target + 0.5
        assert all(round(length) <= target for length in lengths)


def test_all_variants_have_the_same_segment_boundaries(made: Delivery) -> None:
    lengths = {
        tuple(part.seconds for part in parts(folder / "media.m3u8")) for folder in rungs(made, HLS)
    }
    assert len(lengths) == 1


def test_playlists_say_that_segments_are_independent_and_end(made: Delivery) -> None:
    assert "#EXT-X-INDEPENDENT-SEGMENTS\n" in (made.folder / "master.m3u8").read_text()
    for folder in [*rungs(made, HLS), made.folder / "audio"]:
        text = (folder / "media.m3u8").read_text()
        assert text.startswith("#EXTM3U\n") and text.endswith("#EXT-X-ENDLIST\n")
        assert "#EXT-X-INDEPENDENT-SEGMENTS\n" in text
        assert "#EXT-X-PLAYLIST-TYPE:VOD\n" in text


def test_declared_rates_are_those_of_the_segments_as_written(made: Delivery) -> None:
    sound = parts(made.folder / "audio" / "media.m3u8")
    for name, entry in variants(made.folder).items():
        listed = parts(made.folder / name / "media.m3u8")
        mean = sum(
            sum(p.size for p in track) * 8 / sum(p.seconds for p in track)
            for track in (listed, sound)
        )
        # of the long segments, since a rest of a third does not count alone
        peak = sum(max(p.size * 8 / p.seconds for p in track[:2]) for track in (listed, sound))
        rest = [t[-2:] for t in (listed, sound)]
        joined = sum(sum(p.size for p in t) * 8 / sum(p.seconds for p in t) for t in rest)
        assert int(entry["AVERAGE-BANDWIDTH"]) == pytest.approx(mean, rel=0.001)
        assert int(entry["BANDWIDTH"]) == pytest.approx(max(peak, joined), rel=0.02)
        assert int(entry["BANDWIDTH"]) >= int(entry["AVERAGE-BANDWIDTH"]) * 0.98


def test_a_peak_above_twice_the_average_is_warned_of(tmp_path: Path) -> None:
    # grey for six seconds, then noise
    clip = tmp_path / "clip.mp4"
    run_ffmpeg(
        *("-f", "lavfi", "-i", "color=gray:s=160x90:r=25:d=18"),
        *("-vf", "noise=alls=90:allf=t:enable=gte(t\\,12)", "-c:v", "libx264", "-qp", "5"),
        *("-preset", "ultrafast", process.file_url(clip)),
    )
    ladder = make_ladder(tmp_path / "ladder", probe_source(clip), "h264", [(160, 90, 30)])
    found = package_ladder(ladder.folder, out=tmp_path / "out").about["warnings"]
    assert len(found) == 1 and "times its average rate" in found[0]


def test_variants_tell_all_that_the_rules_demand(made: Delivery) -> None:
    for name, entry in variants(made.folder).items():
        rendition = next(r for r in made.about["renditions"] if r["id"] == name)
        with av.open(os.fspath(made.folder / name / "media.m3u8")) as container:
            context = container.streams.video[0].codec_context
            size, name_of = f"{context.width}x{context.height}", context.codec.canonical_name
        assert entry["RESOLUTION"] == size and rendition["codec"] == name_of
        assert entry["FRAME-RATE"] == "29.970"
        assert entry["VIDEO-RANGE"] == "SDR"
        assert entry["CLOSED-CAPTIONS"] == "NONE"
        assert entry["CODECS"].endswith(",mp4a.40.2") and entry["AUDIO"] == "audio"
        assert {"BANDWIDTH", "AVERAGE-BANDWIDTH"} <= entry.keys()


def test_every_rung_has_an_iframe_playlist_of_which_each_range_is_one_picture(
    made: Delivery,
) -> None:
    lines = (made.folder / "master.m3u8").read_text().splitlines()
    listed = [attributes(line) for line in lines if line.startswith("#EXT-X-I-FRAME-STREAM-INF")]
    assert [entry["URI"] for entry in listed] == [
        f"{folder.name}/iframes.m3u8" for folder in rungs(made, HLS)
    ]
    for entry in listed:
        playlist = made.folder / entry["URI"]
        assert "#EXT-X-I-FRAMES-ONLY\n" in playlist.read_text()
        init = (playlist.parent / "init.mp4").read_bytes()
        found, at = parts(playlist), 0.0
        for part in found:
            data = (playlist.parent / part.file).read_bytes()
            data = data[part.offset : part.offset + part.size]
            assert data[4:8] == b"moof"
            with av.open(io.BytesIO(init + data)) as container:
                packet = next(container.demux(video=0))
                # it is whole, it ends the range, it is shown when it should be, and it decodes
                assert packet.is_keyframe and packet.pos is not None
                assert packet.pos + packet.size == len(init + data)
                assert float(packet.pts * packet.time_base) == pytest.approx(at, abs=1e-4)
                frames = [*packet.decode(), *packet.stream.decode(None)]
                assert len(frames) == 1
            at += part.seconds
        # the last lasts a sixth of a second, so it counts with the one before
        rates = [part.size * 8 / part.seconds for part in found[:-1]]
        last = found[-2:]
        joined = sum(part.size for part in last) * 8 / sum(part.seconds for part in last)
        peak = max(joined, *rates)
        assert peak * 0.9 <= int(entry["BANDWIDTH"]) <= peak * 1.1
        assert {"CODECS", "RESOLUTION", "AVERAGE-BANDWIDTH", "VIDEO-RANGE"} <= entry.keys()


@pytest.mark.parametrize(("transfer", "name"), [("smpte2084", "PQ"), ("arib-std-b67", "HLG")])
def test_hdr_is_told_in_both_manifests(transfer: str, name: str, tmp_path: Path) -> None:
    tags = f"color_primaries=bt2020:color_trc={transfer}:colorspace=bt2020nc"
    source = make_title(tmp_path / "hdr.mkv", "-vf", f"setparams={tags}", frames=130)
    assert source.hdr
    rungs = [(128, 72, 45.0)]
    for codec in ("hevc", "av1"):
        make_ladder(tmp_path / "two" / codec, source, codec, rungs, bit_depth=10)
    made = package_ladder(tmp_path / "two", out=tmp_path / "out", audio=False)
    found = {v["CODECS"].split(".")[0]: v for v in variants(made.folder).values()}
    assert {entry["VIDEO-RANGE"] for entry in found.values()} == {name}
    # Main 10, and the long form with BT.2020 primaries and matrix
    assert found["hvc1"]["CODECS"].startswith("hvc1.2.4.L")
    code = {"PQ": 16, "HLG": 18}[name]
    long = rf"av01\.0\.\d\dM\.10\.0\.11\d\.09\.{code}\.09\.0"
    assert re.fullmatch(long, found["av01"]["CODECS"])
    values = {
        p.get("schemeIdUri", "").rsplit(":", 1)[1]: p.get("value")
        for p in ET.parse(made.folder / "manifest.mpd").iterfind(".//d:SupplementalProperty", NS)
    }
    assert values["TransferCharacteristics"] == str(code)


def test_a_player_starts_near_two_megabits(made: Delivery) -> None:
    names = list(variants(made.folder))
    # the largest of these small ones is the nearest
    assert names[0] == "h264_03_320x180"
    assert names[1:] == [r.name for r in rungs(made, HLS) if r.name != names[0]]


def test_rungs_of_another_shape_are_warned_of(title: Source, tmp_path: Path) -> None:
    ladder = make_ladder(tmp_path / "l", title, "h264", [(128, 96, 40), (320, 180, 35)])
    said = package_ladder(ladder.folder, out=tmp_path / "out", audio=False).about["warnings"]
    assert len(said) == 1 and said[0].startswith("h264_01_128x96: its shape differs")


# CODECS


def entry(kind: str, config: str, **colour: int) -> VideoEntry:
    return VideoEntry(kind, 1920, 1080, bytes.fromhex(config), **colour)


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        # the examples of RFC 6381, ISO/IEC 14496-15 E.3 and the bindings of VP9 and AV1
        (entry("avc1", "01 42 E0 1E FF E1"), "avc1.42E01E"),
        (entry("avc1", "01 64 00 0A FF E1"), "avc1.64000A"),
        (entry("hvc1", "01 01 60000000 B00000000000 5D"), "hvc1.1.6.L93.B0"),
        (entry("hvc1", "01 22 20000000 9000000000 01 99"), "hvc1.2.4.H153.90.0.0.0.0.1"),
        (entry("hvc1", "01 41 80000000 000000000000 1E"), "hvc1.A1.1.L30"),
        (entry("vp09", "01000000 02 0A A3 09 10 09 0000"), "vp09.02.10.10.01.09.16.09.01"),
        (entry("vp09", "01000000 00 0B 82 02 02 02 0000"), "vp09.00.11.08"),
        (entry("vp09", "01000000 01 1F 86 01 01 01 0000"), "vp09.01.31.08.03.01.01.01.00"),
        (entry("av01", "81 04 4E"), "av01.0.04M.10"),
        (entry("av01", "81 08 0C", primaries=1, transfer=1, matrix=1), "av01.0.08M.08"),
        (
            entry("av01", "81 04 4E", primaries=9, transfer=16, matrix=9),
            "av01.0.04M.10.0.112.09.16.09.0",
        ),
        (entry("av01", "81 2D F0"), "av01.1.13H.12.1.000.02.02.02.0"),
    ],
)
def test_codec_strings_are_those_of_the_standards(entry: VideoEntry, name: str) -> None:
    assert codec_string(entry) == name


def test_codec_strings_of_real_files_agree_with_what_ffmpeg_reads(made: Delivery) -> None:
    for folder in rungs(made, DASH):
        init = (folder / "init.mp4").read_bytes()
        found = read_video_entry(init)
        name = codec_string(found)
        with av.open(io.BytesIO(init + (folder / "00001.m4s").read_bytes())) as container:
            stream = container.streams.video[0]
            next(container.decode(stream))
            profile, size = stream.codec_context.profile, (stream.width, stream.height)
        assert (found.width, found.height) == size
        if name.startswith("avc1"):
            kinds = {"High": "64", "Main": "4D", "Constrained Baseline": "42"}
            assert name[5:7] == kinds[str(profile)]
        if name.startswith("hvc1"):
            assert profile == "Main" and re.fullmatch(r"hvc1\.1\.6\.L\d+(\.[0-9A-F]+)*", name)
        if name.startswith("av01"):
            assert re.fullmatch(r"av01\.0\.\d\dM\.08", name)
        if name.startswith("vp09"):
            assert re.fullmatch(r"vp09\.00\.(10|11)\.08", name)


def test_another_sample_entry_or_a_short_configuration_is_refused() -> None:
    with pytest.raises(ToolError, match="mp4v"):
        codec_string(entry("mp4v", "00"))
    with pytest.raises(ToolError, match="cut short"):
        codec_string(entry("hvc1", "01 01"))


@given(st.binary(max_size=60))
def test_no_bytes_upset_the_readers(data: bytes) -> None:
    for codec in DASH:
        assert starts_anew(codec, data, data) in (True, False)
    with pytest.raises(ToolError):
        read_video_entry(data)


# rates


@given(
    st.lists(
        st.tuples(st.integers(1, 10**8), st.fractions(Fraction(1, 10), 10, max_denominator=1001)),
        min_size=1,
        max_size=6,
    )
)
def test_a_peak_lies_between_the_rates_of_the_parts(found: list[tuple[int, Fraction]]) -> None:
    rates = [size * 8 / seconds for size, seconds in found]
    assert min(rates) <= peak_rate(found) <= math.ceil(max(rates))
    assert min(rates) <= mean_rate(found) <= math.ceil(max(rates))
    # a part that lasts half the target alone always counts
    target = max(1, math.floor(max(seconds for _, seconds in found) + Fraction(1, 2)))
    alone = [r for r, (_, s) in zip(rates, found, strict=True) if s * 2 >= target]
    assert not alone or peak_rate(found) >= max(alone)


# DASH


def test_dash_has_one_aligned_adaptation_set_a_codec(made: Delivery) -> None:
    root = ET.parse(made.folder / "manifest.mpd").getroot()
    assert root.get("type") == "static"
    groups = root.findall(".//d:AdaptationSet", NS)
    kinds = [
        {r.get("codecs", "").split(".")[0] for r in g.findall("d:Representation", NS)}
        for g in groups
    ]
    assert sorted(map(sorted, kinds)) == [["av01"], ["avc1"], ["hvc1"], ["mp4a"], ["vp09"]]
    for group in groups:
        assert group.get("segmentAlignment") == "true"
        assert group.get("startWithSAP") == "1"
        if group.get("contentType") == "video":
            assert group.get("frameRate") == "30000/1001"
            assert group.get("par") == "16:9"


def test_dash_representations_are_what_their_segments_are(made: Delivery) -> None:
    root = ET.parse(made.folder / "manifest.mpd").getroot()
    for group in root.findall(".//d:AdaptationSet[@contentType='video']", NS):
        template = group.find("d:SegmentTemplate", NS)
        assert template is not None
        clock = int(template.get("timescale", "0"))
        lengths = [
            Fraction(int(s.get("d", "0")), clock)
            for s in template.iterfind(".//d:S", NS)
            for _ in range(1 + int(s.get("r", "0")))
        ]
        assert sum(lengths) == TITLE_S
        for track in group.findall("d:Representation", NS):
            folder = made.folder / track.get("id", "")
            found = read_video_entry((folder / "init.mp4").read_bytes())
            assert track.get("codecs") == codec_string(found)
            assert (track.get("width"), track.get("height")) == (
                str(found.width),
                str(found.height),
            )
            assert track.get("sar") == "1:1" and track.get("frameRate") == "30000/1001"
            sizes = [path.stat().st_size for path in sorted(folder.glob("*.m4s"))]
            assert len(sizes) == len(lengths)
            rates = [size * 8 / length for size, length in zip(sizes, lengths, strict=True)]
            assert int(track.get("bandwidth", "0")) >= max(rates[:2]) * 0.999
            # whoever has buffered minBufferTime does not run dry at @bandwidth
            assert max(sizes) * 8 <= int(track.get("bandwidth", "0")) * 6.006 + 8


# what players get


@pytest.mark.parametrize("codec", DASH)
def test_ffmpeg_plays_each_variant_without_warnings_and_bit_for_bit(
    codec: str, made: Delivery, ladders: Path
) -> None:
    ladder = read_ladder(ladders / codec)
    manifest = process.file_url(made.folder / "manifest.mpd")
    names = made.about["dash"]["representations"]
    for rung, folder in zip(ladder.rungs, rungs(made, (codec,)), strict=True):
        wanted = decoded("-i", process.file_url(ladder.folder / rung.file))
        assert len(wanted) == FRAMES
        stream = f"0:v:{names.index(folder.name)}"
        assert decoded("-i", manifest, "-map", stream) == wanted
        if codec in HLS:
            assert decoded("-i", process.file_url(folder / "media.m3u8")) == wanted


def test_ffmpeg_reads_the_master_playlist_without_warnings(made: Delivery) -> None:
    url = process.file_url(made.folder / "master.m3u8")
    found = decoded("-i", url, "-map", "0", "-c", "copy")
    assert len(found) >= FRAMES * sum(len(RUNGS[codec]) for codec in HLS)


def test_the_sound_is_in_time_with_the_pictures_and_as_long(made: Delivery) -> None:
    url = process.file_url(made.folder / "audio" / "media.m3u8")
    raw = run_ffmpeg("-i", url, "-ac", "1", "-f", "f32le", "pipe:1")
    sound = np.frombuffer(raw, np.float32)
    assert len(sound) / 48000 == pytest.approx(float(TITLE_S), abs=0.025)
    heard = int(np.argmax(np.abs(sound) > 0.1)) / 48000
    assert heard == pytest.approx(BEEP_S, abs=0.004)
    assert made.about["audio"]["language"] == "deu"


def test_a_late_picture_has_its_sound_moved_along(tmp_path: Path) -> None:
    # pictures from 1.2 s on: the ladder starts with them
    early = make_title(tmp_path / "early.mkv")
    late = tmp_path / "late.mkv"
    run_ffmpeg(
        *("-itsoffset", "1.2", "-i", process.file_url(early.path)),
        *("-i", process.file_url(early.path), "-map", "0:v", "-map", "1:a", "-c", "copy"),
        process.file_url(late),
    )
    ladder = make_ladder(tmp_path / "ladder", probe_source(late), "h264", [(128, 72, 40)])
    made = package_ladder(ladder.folder, out=tmp_path / "out")
    url = process.file_url(made.folder / "audio" / "media.m3u8")
    sound = np.frombuffer(run_ffmpeg("-i", url, "-ac", "1", "-f", "f32le", "pipe:1"), np.float32)
    assert int(np.argmax(np.abs(sound) > 0.1)) / 48000 == pytest.approx(BEEP_S - 1.2, abs=0.004)


def test_without_its_source_a_title_goes_silent_and_says_so(own: Ladder, tmp_path: Path) -> None:
    source = own.about["source"]
    for change in ({"path": str(tmp_path / "gone.mkv")}, {"sha256": "0" * 64}):
        own.about["source"] = {**source, **change}
        write(own)
        about = package_ladder(own.folder, out=tmp_path / "out").about
        assert about["audio"] is None
        assert len(about["warnings"]) == 1 and "the sound is left out" in about["warnings"][0]
        assert "AUDIO" not in (tmp_path / "out" / "master.m3u8").read_text()


def test_the_same_ladder_gives_the_same_bytes(own: Ladder, tmp_path: Path) -> None:
    def content(name: str) -> dict[str, str]:
        folder = package_ladder(own.folder, out=tmp_path / name).folder
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    assert content("one") == content("two")


def test_segments_of_another_length_are_whole_gops(own: Ladder, tmp_path: Path) -> None:
    made = package_ladder(own.folder, out=tmp_path / "out", segment_s=5, audio=False)
    lengths = [p.seconds for p in parts(made.folder / "h264_01_128x72" / "media.m3u8")]
    assert lengths == pytest.approx([4.004, 4.004, 4.004, 2.168833])


# what is refused


def spoil(own: Ladder, index: int, *arguments: str) -> None:
    """Encode one rung again, otherwise."""
    path = own.folder / own.rungs[index].file
    other = path.with_name("other.mp4")
    run_ffmpeg(
        "-i", process.file_url(path), "-c:v", "libx264", *arguments, process.file_url(other)
    )
    other.replace(path)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("-g", "50", "-keyint_min", "50"), "the key frames do not align"),
        (("-g", "60", "-keyint_min", "60", "-r", "25"), "frames a second"),
        (("-frames:v", "300", "-g", "60"), "lasts 10.010 s"),
    ],
)
def test_rungs_that_cannot_be_switched_between_are_refused(
    arguments: tuple[str, ...], why: str, own: Ladder, tmp_path: Path
) -> None:
    spoil(own, 1, "-preset", "ultrafast", "-sc_threshold", "0", *arguments)
    with pytest.raises(InputError, match=why) as refusal:
        package_ladder(own.folder, out=tmp_path / "out")
    assert own.rungs[1].file in str(refusal.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own"]


def test_too_few_key_frames_are_refused(title: Source, own: Ladder, tmp_path: Path) -> None:
    for index in range(len(own.rungs)):
        spoil(own, index, "-preset", "ultrafast", "-g", "120", "-keyint_min", "120")
    with pytest.raises(InputError, match="no key frame for 4.004 s from 0.000 s on"):
        package_ladder(own.folder, out=tmp_path / "out")


def test_open_gops_are_refused(own: Ladder, tmp_path: Path) -> None:
    # x264's recovery points are marked as key frames, but no decoder can start with them
    spoil(own, 0, "-x264-params", "open-gop=1:keyint=60:min-keyint=60:scenecut=0:bframes=3")
    with pytest.raises(InputError, match="no IDR picture|the GOP is open|do not align"):
        package_ladder(own.folder, out=tmp_path / "out")


def outside(own: Ladder) -> None:
    document = own.to_json()
    document["rungs"][0]["file"] = "../../secret.mp4"
    (own.folder / "ladder.json").write_text(json.dumps(document))


def linked(own: Ladder) -> None:
    path = own.folder / own.rungs[0].file
    path.rename(own.folder.parent / "elsewhere.mp4")
    path.symlink_to(own.folder.parent / "elsewhere.mp4")


def piped(own: Ladder) -> None:
    path = own.folder / own.rungs[0].file
    path.unlink()
    os.mkfifo(path)


def playlist(own: Ladder) -> None:
    path = own.folder / own.rungs[0].file
    path.write_text("#EXTM3U\n#EXTINF:6,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n")


def gone(own: Ladder) -> None:
    (own.folder / own.rungs[0].file).unlink()


def cut(own: Ladder) -> None:
    os.truncate(own.folder / own.rungs[0].file, 3000)


def resized(own: Ladder) -> None:
    write(replace(own, rungs=(replace(own.rungs[0], width=640), *own.rungs[1:])))


def renamed(own: Ladder) -> None:
    own.about["codec"] = "hevc"
    write(own)


def unknown(own: Ladder) -> None:
    own.about["codec"] = "../../x"
    write(own)


@pytest.mark.parametrize(
    "harm", [outside, linked, piped, playlist, gone, cut, resized, renamed, unknown]
)
def test_a_hostile_or_damaged_ladder_is_refused_in_one_message(
    harm: Callable[[Ladder], None], own: Ladder, tmp_path: Path
) -> None:
    harm(own)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as refusal:
        package_ladder(own.folder, out=tmp_path / "out")
    assert "\n" not in str(refusal.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_names_of_a_ladder_do_not_reach_the_manifests(own: Ladder, tmp_path: Path) -> None:
    nasty = '-i "><script>\n#EXT-X-KEY.mp4'
    first = own.rungs[0]
    (own.folder / first.file).rename(own.folder / nasty)
    write(replace(own, rungs=(replace(first, file=nasty), *own.rungs[1:])))
    made = package_ladder(own.folder, out=tmp_path / "out", audio=False)
    for path in [*made.folder.glob("*.m*"), *made.folder.glob("*/*.m3u8")]:
        assert "script" not in path.read_text() and "EXT-X-KEY" not in path.read_text()
    assert made.about["renditions"][0]["rung"] == nasty


def test_two_titles_or_two_ladders_of_a_codec_are_not_mixed(own: Ladder, ladders: Path) -> None:
    with pytest.raises(InputError, match="two of the ladders are of h264"):
        package_ladder([own.folder, ladders])
    own.about["source"]["sha256"] = "1" * 64
    write(own)
    with pytest.raises(InputError, match="of another source"):
        package_ladder([ladders / "vp9", own.folder])


# where it is written


def test_an_interruption_leaves_nothing(
    own: Ladder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    package_ladder(own.folder, out=out, audio=False)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    calls = 0

    def stop(*arguments: object, **named: object) -> Track:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return measure(*arguments, **named)  # type: ignore[arg-type]

    measure = segments.measure_video
    monkeypatch.setattr(segments, "measure_video", stop)
    for place in (out, tmp_path / "new"):
        calls = 0
        with pytest.raises(KeyboardInterrupt):
            package_ladder(own.folder, out=place, audio=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "own"]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_an_ffmpeg_that_fails_is_told_and_leaves_nothing(own: Ladder, tmp_path: Path) -> None:
    failing = tmp_path / "ffmpeg"
    failing.write_text("#!/bin/sh\necho it broke >&2\nexit 1\n")
    failing.chmod(0o755)
    with pytest.raises(ToolError, match="could not be packaged: exit status 1: it broke"):
        package_ladder(own.folder, out=tmp_path / "out", ffmpeg=failing)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ffmpeg", "own"]


def test_an_earlier_delivery_is_replaced_and_nothing_else(own: Ladder, tmp_path: Path) -> None:
    out = tmp_path / "out"
    package_ladder(own.folder, out=out, audio=True)
    package_ladder(own.folder, out=out, audio=False, dash=False)
    assert not (out / "audio").exists() and not (out / "manifest.mpd").exists()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt"):
        package_ladder(own.folder, out=out)
    assert (out / "notes.txt").read_text() == "mine"
    # the ladder itself, a folder that holds it, a file
    taken = tmp_path / "taken"
    taken.write_text("x")
    for place in (own.folder, tmp_path, taken):
        with pytest.raises(InputError):
            package_ladder(own.folder, out=place)
    assert read_ladder(own.folder).rungs


# the command


def test_the_command_writes_what_its_document_lists(room: Room, ladders: Path) -> None:
    said = room.run("deliver", ladders, "-o", "out", "--json", "out.json")
    assert said.status == 0, said.err
    document = json.loads((room.folder / "out.json").read_text())
    assert document == json.loads((room.folder / "out" / "delivery.json").read_text())
    listed = {entry["path"]: entry["bytes"] for entry in document["files"]}
    there = {
        path.relative_to(room.folder / "out").as_posix(): path.stat().st_size
        for path in (room.folder / "out").rglob("*")
        if path.is_file() and path.name != "delivery.json"
    }
    assert listed == there
    found = variants(room.folder / "out")
    assert len(found) == len(document["hls"]["variants"]) == sum(len(RUNGS[c]) for c in HLS)
    for variant in document["hls"]["variants"]:
        assert str(variant["bandwidth"]) == found[variant["id"]]["BANDWIDTH"]
        assert (room.folder / "out" / variant["playlist"]).is_file()
    assert "warning: no HLS for vp9" in said.out


def test_what_was_asked_for_by_name_and_refused_is_told_in_the_exit_status(
    room: Room, ladders: Path
) -> None:
    alone = room.run("deliver", ladders / "vp9", "--hls", "-o", "out")
    assert alone.status == 2 and alone.err.count("\n") == 1 and "VP9" in alone.err
    assert not list(room.folder.iterdir())
    both = room.run("deliver", ladders / "vp9", "--hls", "--dash", "-o", "out")
    assert both.status == 1 and "warning: no HLS for vp9" in both.out
    assert not (room.folder / "out" / "master.m3u8").exists()
    assert (room.folder / "out" / "manifest.mpd").is_file()
    assert room.run("deliver", ladders / "vp9", "-o", "out").status == 0


def test_avs2_is_delivered_as_files(room: Room, tmp_path: Path) -> None:
    # xavs2 has been seen to hang on a longer title at this frame rate
    title = make_title(tmp_path / "title.mkv", frames=100)
    ladder = make_ladder(tmp_path / "avs2", title, "avs2")
    beside = make_ladder(tmp_path / "h264", title, "h264", [(128, 72, 40)])
    for asked in ("--hls", "--dash"):
        refused = room.run("deliver", ladder.folder, asked, "-o", "out")
        assert refused.status == 2 and "AVS2" in refused.err and "files" in refused.err
    said = room.run("deliver", ladder.folder, "-o", "out")
    assert said.status == 0, said.err
    manifest = json.loads((room.folder / "out" / "avs2" / "manifest.json").read_text())
    assert manifest["schema"] == "vqaloop.files/1" and manifest["frame_rate"] == "30000/1001"
    for entry, rung in zip(manifest["rungs"], ladder.rungs, strict=True):
        copy = (room.folder / "out" / "avs2" / entry["file"]).read_bytes()
        assert copy == (ladder.folder / rung.file).read_bytes()
        assert hashlib.sha256(copy).hexdigest() == entry["sha256"]
    # beside another codec it goes along
    both = room.run("deliver", ladder.folder, beside.folder, "--hls", "-o", "two")
    assert both.status == 0
    assert (room.folder / "two" / "avs2" / "manifest.json").is_file()
    assert len(variants(room.folder / "two")) == 1


@pytest.mark.parametrize("words", [("--segment", "0"), ("--segment", "nan"), ("-o", "no/such/x")])
def test_the_command_refuses_with_one_message(
    words: tuple[str, ...], room: Room, ladders: Path
) -> None:
    said = room.run("deliver", ladders / "h264", *words)
    assert said.status == 2 and said.err.startswith("vqaloop: ") and said.err.count("\n") == 1


def test_the_default_place_is_beside_the_caller(room: Room, ladders: Path) -> None:
    shutil.copytree(ladders / "h264", room.folder / "park.h264.ladder")
    assert room.run("deliver", "park.h264.ladder", "--no-audio", "--dash").status == 0
    assert (room.folder / "park.h264.delivery" / "manifest.mpd").is_file()
