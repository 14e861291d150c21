"""HLS and DASH as written: a test for each rule they have to keep, on real encodes of four codecs.

What is asserted is measured here again, on the files and with ffmpeg, not read from the document.
"""

import hashlib
import io
import os
import re
import xml.etree.ElementTree as ET
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import m3u8
import numpy as np
import pytest
from mpegdash.parser import MPEGDASHParser

from tests.support.deliveries import (
    BEEP_S,
    DASH,
    FRAMES,
    HLS,
    RUNGS,
    TITLE_S,
    attributes,
    decoded,
    make_ladder,
    make_title,
    parts,
    rungs,
    tag,
    variants,
    write,
)
from tests.support.media import run_ffmpeg
from vqaloop.bitstream.codec_strings import codec_string
from vqaloop.bitstream.mp4_boxes import read_video_entry, walk
from vqaloop.core.ffmpeg import file_url
from vqaloop.delivery.package import Delivery, package_ladder
from vqaloop.ladder.store import read_ladder
from vqaloop.media.probe import probe_source
from vqaloop.records import Event, Ladder, Source

NS = {"d": "urn:mpeg:dash:schema:mpd:2011"}


def test_hls_holds_the_codecs_that_apple_names_and_dash_all(delivered: Delivery) -> None:
    codecs = {entry["CODECS"].split(".")[0] for entry in variants(delivered.folder).values()}
    assert codecs == {"avc1", "hvc1", "av01"}
    assert {note["codec"] for note in delivered.about["refused"]} == {"vp9"}
    assert len(delivered.about["dash"]["representations"]) == sum(len(RUNGS[c]) for c in DASH)


def test_segments_are_fragmented_mp4_with_avc1_and_hvc1_entries(delivered: Delivery) -> None:
    kinds = {"h264": "avc1", "hevc": "hvc1", "av1": "av01", "vp9": "vp09"}
    for codec in DASH:
        for folder in rungs(delivered, (codec,)):
            assert read_video_entry((folder / "init.mp4").read_bytes()).kind == kinds[codec]
            for segment in folder.glob("*.m4s"):
                boxes = {kind for kind, *_ in walk(segment.read_bytes())}
                assert boxes == {b"styp", b"moof", b"mdat"}
        if codec in HLS:
            assert tag(folder / "media.m3u8", "EXT-X-MAP") == 'URI="init.mp4"'
            assert int(tag(folder / "media.m3u8", "EXT-X-VERSION")) >= 6


def test_key_frames_come_every_two_seconds(delivered: Delivery) -> None:
    for folder in rungs(delivered, HLS):
        keys = [part.seconds for part in parts(folder / "iframes.m3u8")]
        assert keys[:-1] == pytest.approx([2.002] * 7)
        assert sum(keys) == pytest.approx(float(TITLE_S), abs=1e-5)


@pytest.mark.parametrize("codec", DASH)
def test_every_segment_can_be_decoded_alone_from_its_first_frame(
    codec: str, delivered: Delivery
) -> None:
    for folder in rungs(delivered, (codec,)):
        whole = b"".join(path.read_bytes() for path in sorted(folder.glob("*.m4s")))
        init, counts = (folder / "init.mp4").read_bytes(), list[int]()
        with av.open(io.BytesIO(init + whole), mode="r") as container:
            first = [frame.to_ndarray().tobytes() for frame in container.decode(video=0)]
        assert len(first) == FRAMES
        for path in sorted(folder.glob("*.m4s")):
            with av.open(io.BytesIO(init + path.read_bytes()), mode="r") as container:
                frames = [frame.to_ndarray().tobytes() for frame in container.decode(video=0)]
            assert frames == first[sum(counts) : sum(counts) + len(frames)]
            counts.append(len(frames))
        assert sum(counts) == FRAMES


def test_segments_last_six_seconds_and_never_half_a_second_more(delivered: Delivery) -> None:
    for folder in [*rungs(delivered, HLS), delivered.folder / "audio"]:
        lengths = [part.seconds for part in parts(folder / "media.m3u8")]
        assert lengths[:-1] == pytest.approx([6.006] * 2, abs=0.022)
        target = int(tag(folder / "media.m3u8", "EXT-X-TARGETDURATION"))
        assert target == 6 and max(lengths) <= target + 0.5
        assert all(round(length) <= target for length in lengths)


def test_all_variants_have_the_same_segment_boundaries(delivered: Delivery) -> None:
    lengths = {
        tuple(part.seconds for part in parts(folder / "media.m3u8"))
        for folder in rungs(delivered, HLS)
    }
    assert len(lengths) == 1


def test_playlists_say_that_segments_are_independent_and_end(delivered: Delivery) -> None:
    assert "#EXT-X-INDEPENDENT-SEGMENTS\n" in (delivered.folder / "master.m3u8").read_text()
    for folder in [*rungs(delivered, HLS), delivered.folder / "audio"]:
        text = (folder / "media.m3u8").read_text()
        assert text.startswith("#EXTM3U\n") and text.endswith("#EXT-X-ENDLIST\n")
        assert "#EXT-X-INDEPENDENT-SEGMENTS\n" in text
        assert "#EXT-X-PLAYLIST-TYPE:VOD\n" in text


def test_declared_rates_are_those_of_the_segments_as_written(delivered: Delivery) -> None:
    sound = parts(delivered.folder / "audio" / "media.m3u8")
    for name, entry in variants(delivered.folder).items():
        listed = parts(delivered.folder / name / "media.m3u8")
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
        *("-preset", "ultrafast", file_url(clip)),
    )
    ladder = make_ladder(tmp_path / "ladder", probe_source(clip), "h264", [(160, 90, 30)])
    found = package_ladder(ladder.folder, out=tmp_path / "out").about["warnings"]
    assert len(found) == 1 and "times its average rate" in found[0]


def test_variants_tell_all_that_the_rules_demand(delivered: Delivery) -> None:
    for name, entry in variants(delivered.folder).items():
        rendition = next(r for r in delivered.about["renditions"] if r["id"] == name)
        with av.open(os.fspath(delivered.folder / name / "media.m3u8")) as container:
            context = container.streams.video[0].codec_context
            size, name_of = f"{context.width}x{context.height}", context.codec.canonical_name
        assert entry["RESOLUTION"] == size and rendition["codec"] == name_of
        assert entry["FRAME-RATE"] == "29.970"
        assert entry["VIDEO-RANGE"] == "SDR"
        assert entry["CLOSED-CAPTIONS"] == "NONE"
        assert entry["CODECS"].endswith(",mp4a.40.2") and entry["AUDIO"] == "audio"
        assert {"BANDWIDTH", "AVERAGE-BANDWIDTH"} <= entry.keys()


def test_every_rung_has_an_iframe_playlist_of_which_each_range_is_one_picture(
    delivered: Delivery,
) -> None:
    lines = (delivered.folder / "master.m3u8").read_text().splitlines()
    listed = [attributes(line) for line in lines if line.startswith("#EXT-X-I-FRAME-STREAM-INF")]
    assert [entry["URI"] for entry in listed] == [
        f"{folder.name}/iframes.m3u8" for folder in rungs(delivered, HLS)
    ]
    for entry in listed:
        playlist = delivered.folder / entry["URI"]
        assert "#EXT-X-I-FRAMES-ONLY\n" in playlist.read_text()
        init = (playlist.parent / "init.mp4").read_bytes()
        found, at = parts(playlist), 0.0
        for part in found:
            data = (playlist.parent / part.file).read_bytes()
            data = data[part.offset : part.offset + part.size]
            assert data[4:8] == b"moof"
            with av.open(io.BytesIO(init + data), mode="r") as container:
                packet = next(container.demux(video=0))
                # it is whole, it ends the range, it is shown when it should be, and it decodes
                assert packet.is_keyframe and packet.pos is not None
                assert packet.pos + packet.size == len(init + data)
                assert float((packet.pts or 0) * (packet.time_base or 0)) == pytest.approx(
                    at, abs=1e-4
                )
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
    needed = {"PQ": "EssentialProperty", "HLG": "SupplementalProperty"}[name]
    values = {
        p.get("schemeIdUri", "").rsplit(":", 1)[1]: p.get("value")
        for p in ET.parse(made.folder / "manifest.mpd").iterfind(f".//d:{needed}", NS)
    }
    assert values["TransferCharacteristics"] == str(code)


def test_a_player_starts_near_two_megabits(delivered: Delivery) -> None:
    names = list(variants(delivered.folder))
    # the largest of these small ones is the nearest
    assert names[0] == "h264_03_320x180"
    assert names[1:] == [r.name for r in rungs(delivered, HLS) if r.name != names[0]]


def test_rungs_of_another_shape_are_warned_of(short_title: Source, tmp_path: Path) -> None:
    ladder = make_ladder(tmp_path / "l", short_title, "h264", [(128, 96, 40), (320, 180, 35)])
    said = package_ladder(ladder.folder, out=tmp_path / "out", audio=False).about["warnings"]
    assert len(said) == 1 and said[0].startswith("h264_01_128x96: its shape differs")


def test_an_independent_reader_finds_the_measured_figures_in_the_playlists(
    delivered: Delivery,
) -> None:
    master = m3u8.loads((delivered.folder / "master.m3u8").read_text())
    assert master.is_variant and len(master.playlists) == len(rungs(delivered, HLS))
    assert [(media.type, media.uri) for media in master.media] == [("AUDIO", "audio/media.m3u8")]
    listed = {variant["playlist"]: variant for variant in delivered.about["hls"]["variants"]}
    sound = load_media(delivered.folder / "audio")
    for variant in master.playlists:
        folder, info = (delivered.folder / variant.uri).parent, variant.stream_info
        entry, media = read_video_entry((folder / "init.mp4").read_bytes()), load_media(folder)
        assert info.resolution == (entry.width, entry.height)
        assert info.codecs == f"{codec_string(entry)},mp4a.40.2"
        assert info.frame_rate == pytest.approx(30000 / 1001, abs=1e-3)
        assert info.bandwidth == listed[variant.uri]["bandwidth"]
        means = [
            sum((place / s.uri).stat().st_size for s in track.segments)
            * 8
            / sum(s.duration for s in track.segments)
            for place, track in ((folder, media), (delivered.folder / "audio", sound))
        ]
        assert info.average_bandwidth == pytest.approx(sum(means), abs=3)
    for frames in master.iframe_playlists:
        listing = delivered.folder / frames.uri
        keys = m3u8.loads(listing.read_text())
        assert keys.is_i_frames_only
        size = sum(int(key.byterange.split("@")[0]) for key in keys.segments)
        seconds = sum(key.duration for key in keys.segments)
        assert frames.iframe_stream_info.average_bandwidth == pytest.approx(
            size * 8 / seconds, abs=2
        )


def load_media(folder: Path) -> Any:
    """A media playlist as m3u8 reads it, checked for completeness."""
    media = m3u8.loads((folder / "media.m3u8").read_text())
    assert media.is_endlist and media.playlist_type == "vod" and media.is_independent_segments
    assert [s.uri for s in media.segments] == sorted(path.name for path in folder.glob("*.m4s"))
    assert all(segment.init_section.uri == "init.mp4" for segment in media.segments)
    assert max(round(s.duration) for s in media.segments) == media.target_duration
    assert sum(s.duration for s in media.segments) == pytest.approx(float(TITLE_S), abs=0.025)
    return media


# DASH


def test_an_independent_reader_finds_the_measured_figures_in_the_manifest(
    delivered: Delivery,
) -> None:
    manifest = MPEGDASHParser.parse((delivered.folder / "manifest.mpd").read_text())
    about = {rendition["id"]: rendition for rendition in delivered.about["renditions"]}
    about["audio"] = delivered.about["audio"]
    found = []
    for group in manifest.periods[0].adaptation_sets:
        (template,) = group.segment_templates
        ticks = [s.d for s in template.segment_timelines[0].Ss for _ in range(1 + (s.r or 0))]
        for track in group.representations:
            found.append(track.id)
            rendition, folder = about[track.id], delivered.folder / track.id
            assert template.initialization == "$RepresentationID$/init.mp4"
            names = [f"{template.start_number + n:05d}.m4s" for n in range(len(ticks))]
            assert names == sorted(path.name for path in folder.glob("*.m4s"))
            assert sum(ticks) / template.timescale == pytest.approx(rendition["duration"])
            assert track.bandwidth == rendition["bandwidth"]
            assert track.codecs == rendition["codecs"]
            if group.content_type == "video":
                entry = read_video_entry((folder / "init.mp4").read_bytes())
                assert (track.width, track.height) == (entry.width, entry.height)
                assert Fraction(track.frame_rate) == Fraction(30000, 1001)
    assert sorted(found) == sorted(about)
    seconds = manifest.media_presentation_duration.removeprefix("PT").removesuffix("S")
    assert float(seconds) == pytest.approx(float(TITLE_S), abs=1e-5)


def test_dash_has_one_aligned_adaptation_set_a_codec(delivered: Delivery) -> None:
    root = ET.parse(delivered.folder / "manifest.mpd").getroot()
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


def test_dash_representations_are_what_their_segments_are(delivered: Delivery) -> None:
    root = ET.parse(delivered.folder / "manifest.mpd").getroot()
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
            folder = delivered.folder / track.get("id", "")
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
    codec: str, delivered: Delivery, codec_ladders: Path
) -> None:
    ladder = read_ladder(codec_ladders / codec)
    manifest = file_url(delivered.folder / "manifest.mpd")
    names = delivered.about["dash"]["representations"]
    for rung, folder in zip(ladder.rungs, rungs(delivered, (codec,)), strict=True):
        wanted = decoded("-i", file_url(ladder.folder / rung.file))
        assert len(wanted) == FRAMES
        stream = f"0:v:{names.index(folder.name)}"
        assert decoded("-i", manifest, "-map", stream) == wanted
        if codec in HLS:
            assert decoded("-i", file_url(folder / "media.m3u8")) == wanted


def test_ffmpeg_reads_the_master_playlist_without_warnings(delivered: Delivery) -> None:
    url = file_url(delivered.folder / "master.m3u8")
    found = decoded("-i", url, "-map", "0", "-c", "copy")
    assert len(found) >= FRAMES * sum(len(RUNGS[codec]) for codec in HLS)


def test_the_sound_is_in_time_with_the_pictures_and_as_long(delivered: Delivery) -> None:
    url = file_url(delivered.folder / "audio" / "media.m3u8")
    raw = run_ffmpeg("-i", url, "-ac", "1", "-f", "f32le", "pipe:1")
    sound = np.frombuffer(raw, np.float32)
    assert len(sound) / 48000 == pytest.approx(float(TITLE_S), abs=0.025)
    heard = int(np.argmax(np.abs(sound) > 0.1)) / 48000
    assert heard == pytest.approx(BEEP_S, abs=0.004)
    assert delivered.about["audio"]["language"] == "de"


def test_a_late_picture_has_its_sound_moved_along(tmp_path: Path) -> None:
    # pictures from 1.2 s on: the ladder starts with them
    early = make_title(tmp_path / "early.mkv")
    late = tmp_path / "late.mkv"
    run_ffmpeg(
        *("-itsoffset", "1.2", "-i", file_url(early.path)),
        *("-i", file_url(early.path), "-map", "0:v", "-map", "1:a", "-c", "copy"),
        file_url(late),
    )
    ladder = make_ladder(tmp_path / "ladder", probe_source(late), "h264", [(128, 72, 40)])
    made = package_ladder(ladder.folder, out=tmp_path / "out")
    url = file_url(made.folder / "audio" / "media.m3u8")
    sound = np.frombuffer(run_ffmpeg("-i", url, "-ac", "1", "-f", "f32le", "pipe:1"), np.float32)
    assert int(np.argmax(np.abs(sound) > 0.1)) / 48000 == pytest.approx(BEEP_S - 1.2, abs=0.004)


def test_without_its_source_a_title_goes_silent_and_says_so(
    own_ladder: Ladder, tmp_path: Path
) -> None:
    source = own_ladder.about["source"]
    for change in ({"path": str(tmp_path / "gone.mkv")}, {"sha256": "0" * 64}):
        own_ladder.about["source"] = {**source, **change}
        write(own_ladder)
        about = package_ladder(own_ladder.folder, out=tmp_path / "out").about
        assert about["audio"] is None
        assert len(about["warnings"]) == 1 and "audio is left out" in about["warnings"][0]
        assert "AUDIO" not in (tmp_path / "out" / "master.m3u8").read_text()


@pytest.mark.parametrize("silent", [False, True])
def test_sound_is_spoken_of_where_there_is_some(silent: bool, tmp_path: Path) -> None:
    title = make_title(tmp_path / "title.mkv", *["-an"] * silent, frames=60)
    ladder = make_ladder(tmp_path / "ladder", title, "h264", [(128, 72, 40)])
    told: list[Event] = []
    made = package_ladder(ladder.folder, out=tmp_path / "out", progress=told.append)
    packaged = [(event.message, event.done) for event in told if event.stage == "package"]
    assert packaged == [("h264 128x72", 1), *[("audio", 1)] * (not silent)]
    assert (made.about["audio"] is None) == silent and made.about["warnings"] == []


def test_the_same_ladder_gives_the_same_bytes(own_ladder: Ladder, tmp_path: Path) -> None:
    def content(name: str) -> dict[str, str]:
        folder = package_ladder(own_ladder.folder, out=tmp_path / name).folder
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    assert content("one") == content("two")


def test_segments_of_another_length_are_whole_gops(own_ladder: Ladder, tmp_path: Path) -> None:
    made = package_ladder(own_ladder.folder, out=tmp_path / "out", segment_s=5, audio=False)
    lengths = [p.seconds for p in parts(made.folder / "h264_01_128x72" / "media.m3u8")]
    assert lengths == pytest.approx([4.004, 4.004, 4.004, 2.168833])
