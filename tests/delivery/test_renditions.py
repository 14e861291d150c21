"""Audio, subtitles, preview images and single files of a delivery, as other readers see them.

One title of many tracks, in two codecs; what is asserted is measured on the files.
"""

import struct
import xml.etree.ElementTree as ET
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import m3u8
import numpy as np
import pytest
from mpegdash.parser import MPEGDASHParser
from PIL import Image

from tests.support.deliveries import attributes, make_ladder, variants, write
from tests.support.media import run_ffmpeg
from vqaloop.core import process
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.delivery.languages import language_name, language_tag
from vqaloop.delivery.package import Delivery, package_ladder
from vqaloop.delivery.subtitles import parse_cues
from vqaloop.errors import InputError
from vqaloop.ladder.store import read_ladder
from vqaloop.media.probe import probe_source

NS = {"d": "urn:mpeg:dash:schema:mpd:2011"}
SECONDS = 5
TONES = (
    # hertz, layout, codec, language, title, disposition
    (440, "stereo", "aac", "fra", "", "0"),
    (880, "5.1", "eac3", "fre", "Surround 5.1", "0"),
    (1320, "mono", "flac", "deu", "", "default"),
    (660, "stereo", "libopus", "jpn", "", "0"),
    (990, "stereo", "aac", "eng", 'Director "cut", é', "comment"),
    (550, "5.1", "flac", "ita", "", "0"),
)
AROUND = (
    "aevalsrc=0.1*sin(2*PI*550*t)|0.1*sin(2*PI*550*t)|0.05*sin(2*PI*700*t)|0|"
    f"0.1*sin(2*PI*850*t)|0.1*sin(2*PI*905*t):s=48000:c=5.1:d={SECONDS}"
)
"""Something from every direction."""
CUES = (
    "1\n00:00:00,200 --> 00:00:02,600\nA <i>word</i>\n\n"
    "2\n00:00:02,900 --> 00:00:03,400\nÄ --> two\nlines\n\n"
    "3\n00:00:09,000 --> 00:00:10,000\ntoo late\n"
)


@pytest.fixture(scope="module")
def ladders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tracks")
    (folder / "s.srt").write_text(CUES, "utf-8")
    words = ["-f", "lavfi", "-i", f"testsrc2=s=128x72:r=25:d={SECONDS}"]
    after = ["-map", "0:v"]
    for place, (hertz, layout, codec, language, title, flags) in enumerate(TONES):
        words += ["-f", "lavfi", "-i"]
        sine = f"sine={hertz}:r=48000:d={SECONDS},aformat=channel_layouts={layout}"
        words += [AROUND if language == "ita" else sine]
        after += ["-map", str(place + 1), f"-c:a:{place}", codec]
        after += [f"-disposition:a:{place}", flags]
        after += [f"-metadata:s:a:{place}", f"language={language}"]
        after += [f"-metadata:s:a:{place}", f"title={title}"]
    words += ["-i", str(folder / "s.srt")]
    after += ["-map", str(len(TONES) + 1), "-c:s", "ass", "-metadata:s:s:0", "language=spa"]
    after += ["-disposition:s:0", "hearing_impaired+default"]
    after += ["-c:v", "libx264", "-preset", "ultrafast", "-default_mode", "passthrough"]
    run_ffmpeg(*words, *after, file_url(folder / "title.mkv"))
    source = probe_source(folder / "title.mkv")
    make_ladder(folder / "ladders" / "h264", source, "h264", [(128, 72, 40), (128, 72, 30)])
    make_ladder(folder / "ladders" / "av1", source, "av1", [(128, 72, 50)])
    return folder / "ladders"


@pytest.fixture(scope="module")
def made(ladders: Path, tmp_path_factory: pytest.TempPathFactory) -> Delivery:
    return package_ladder(ladders, out=tmp_path_factory.mktemp("out") / "out", segment_s=2)


def media_lines(made: Delivery, kind: str) -> list[dict[str, str]]:
    lines = (made.folder / "master.m3u8").read_text("utf-8").splitlines()
    found = [attributes(line) for line in lines if line.startswith("#EXT-X-MEDIA:")]
    return [entry for entry in found if entry["TYPE"] == kind]


def tone(folder: Path) -> int:
    raw = run_ffmpeg(
        "-i", file_url(folder / "media.m3u8"), "-ac", "1", "-f", "f32le", "-ar", "48000", "pipe:1"
    )
    sound = np.frombuffer(raw, np.float32)[9600:201600]
    return int(np.argmax(np.abs(np.fft.rfft(sound))) * 48000 / len(sound))


def test_each_group_has_all_programmes_with_the_same_names_languages_and_flags(
    made: Delivery,
) -> None:
    groups: dict[str, list[dict[str, str]]] = {}
    for entry in media_lines(made, "AUDIO"):
        groups.setdefault(entry["GROUP-ID"], []).append(entry)
    assert list(groups) == ["audio", "audio-original"]
    same = ("NAME", "LANGUAGE", "DEFAULT", "AUTOSELECT")
    first, second = ([[e[k] for k in same] for e in group] for group in groups.values())
    assert first == second
    assert [name for name, *_ in first] == [
        *("French", "German", "Japanese", "Director 'cut', é", "Italian"),
    ]
    assert [e["LANGUAGE"] for e in groups["audio"]] == ["fr", "de", "ja", "en", "it"]
    assert [e["DEFAULT"] for e in groups["audio"]] == ["NO", "YES", "NO", "NO", "NO"]
    # what every player takes is AAC of up to two channels; the source's own keeps all channels
    assert [e["CHANNELS"] for e in groups["audio"]] == ["2", "1", "2", "2", "2"]
    assert [e["CHANNELS"] for e in groups["audio-original"]] == ["6", "1", "2", "2", "6"]
    # commentary is nothing to choose by language
    assert groups["audio"][3]["AUTOSELECT"] == "NO"
    for group in groups.values():
        assert len({e["NAME"] for e in group}) == len(group)


def test_every_track_is_heard_in_both_manifests(made: Delivery) -> None:
    hertz = {"fr": (440, 880), "de": (1320,), "ja": (660,), "en": (990,), "it": (550,)}
    for entry in media_lines(made, "AUDIO"):
        found = tone((made.folder / entry["URI"]).parent)
        assert min(abs(found - each) for each in hertz[entry["LANGUAGE"]]) <= 3
    listed = made.about["audio_renditions"]
    assert {item["source_track"] for item in listed} == set(range(1, len(TONES) + 1))
    root = ET.parse(made.folder / "manifest.mpd").getroot()
    sets = root.findall(".//d:AdaptationSet[@contentType='audio']", NS)
    assert [s.get("lang") for s in sets] == [item["language"] for item in listed]
    assert made.about["warnings"] == []


def test_codecs_are_kept_where_the_formats_allow_them(made: Delivery, ladders: Path) -> None:
    kept = {(i["source_track"], i["codecs"]): i for i in made.about["audio_renditions"]}
    assert kept[1, "mp4a.40.2"]["copied"] and kept[2, "ec-3"]["copied"]
    # Opus has no place in HLS: it stays in DASH, and AAC is made beside it
    assert kept[4, "opus"]["copied"] and kept[4, "opus"]["kinds"] == ["dash"]
    assert not kept[4, "mp4a.40.2"]["copied"]
    assert not kept[3, "mp4a.40.2"]["copied"]
    source = read_ladder(ladders / "h264").about["source"]["path"]
    for track, codecs, muxer in ((1, "mp4a.40.2", "adts"), (2, "ec-3", "eac3")):
        playlist = file_url(made.folder / kept[track, codecs]["id"] / "media.m3u8")
        copy = ("-c", "copy", "-f", muxer, "pipe:1")
        ours = run_ffmpeg("-i", playlist, *copy)
        theirs = run_ffmpeg("-i", source, "-map", f"0:a:{track - 1}", *copy)
        # all but the encoder's priming frame
        assert ours and theirs.endswith(ours) and len(theirs) - len(ours) < 3000


def test_codecs_of_a_variant_name_all_audio_that_may_be_played_with_it(made: Delivery) -> None:
    lines = (made.folder / "master.m3u8").read_text("utf-8").splitlines()
    found = [attributes(line) for line in lines if line.startswith("#EXT-X-STREAM-INF")]
    assert len(found) == 2 * len(made.about["renditions"])
    for entry in found:
        _, *audio = entry["CODECS"].split(",")
        plain = entry["AUDIO"] == "audio"
        assert set(audio) == ({"mp4a.40.2"} if plain else {"mp4a.40.2", "ec-3"})
        assert entry["SUBTITLES"] == "subtitles"


def test_a_mix_is_as_loud_as_its_source(made: Delivery, ladders: Path) -> None:
    source = read_ladder(ladders / "h264").about["source"]["path"]
    mixed = next(
        i for i in made.about["audio_renditions"] if i["source_track"] == 6 and i["channels"] == 2
    )

    def loudness(*words: str) -> float:
        argv = [ffmpeg_path(), "-nostdin", *words, "-af", "ebur128", "-f", "null", "-"]
        said = process.run(argv, timeout_s=60).stderr
        return float(said.rsplit("I:", 1)[1].split()[0])

    before = loudness("-i", source, "-map", "0:a:5")
    after = loudness("-i", file_url(made.folder / mixed["id"] / "media.m3u8"))
    assert mixed["gain_db"] and after == pytest.approx(before, abs=0.5)


def test_audio_that_ends_early_is_coded_again_to_the_end(tmp_path: Path) -> None:
    clip = tmp_path / "in.mp4"
    run_ffmpeg(
        *("-f", "lavfi", "-i", "testsrc2=s=128x72:r=25:d=3"),
        *("-f", "lavfi", "-i", "sine=440:r=48000:d=1"),
        *("-c:v", "libx264", "-preset", "ultrafast", "-c:a", "aac", file_url(clip)),
    )
    ladder = make_ladder(tmp_path / "l", probe_source(clip), "h264", [(128, 72, 40)])
    made = package_ladder(ladder.folder, out=tmp_path / "out")
    assert not made.about["audio"]["copied"]
    assert made.about["audio"]["duration"] == pytest.approx(3, abs=0.03)
    assert len(made.about["warnings"]) == 1 and "coded again" in made.about["warnings"][0]


# subtitles


def test_subtitles_are_webvtt_in_both_formats(made: Delivery) -> None:
    (entry,) = media_lines(made, "SUBTITLES")
    assert entry["LANGUAGE"] == "es" and entry["NAME"] == "Spanish"
    assert entry["DEFAULT"] == "YES" and entry["AUTOSELECT"] == "YES"
    assert "describes-music-and-sound" in entry["CHARACTERISTICS"]
    playlist = m3u8.loads((made.folder / entry["URI"]).read_text())
    assert playlist.is_endlist and sum(s.duration for s in playlist.segments) == SECONDS
    pictures = m3u8.loads((made.folder / "h264_01_128x72" / "media.m3u8").read_text())
    assert [s.duration for s in playlist.segments] == [s.duration for s in pictures.segments]
    folder = (made.folder / entry["URI"]).parent
    shown = []
    for segment in playlist.segments:
        text = (folder / segment.uri).read_text("utf-8")
        assert text.startswith("WEBVTT\nX-TIMESTAMP-MAP=MPEGTS:0,LOCAL:00:00:00.000\n")
        shown.append([(c.start_ms, c.end_ms) for c in parse_cues(text)])
    # a cue over a boundary is on both sides of it; what is after the end is nowhere
    assert shown == [[(200, 2600)], [(200, 2600), (2900, 3400)], []]
    root = ET.parse(made.folder / "manifest.mpd").getroot()
    (group,) = root.findall(".//d:AdaptationSet[@contentType='text']", NS)
    assert group.get("lang") == "es" and group.get("mimeType") == "text/vtt"
    url = group.find("d:Representation/d:BaseURL", NS)
    assert url is not None and url.text
    cues = parse_cues((made.folder / url.text).read_text("utf-8"))
    assert [c.text for c in cues] == ["A <i>word</i>", "Ä --&gt; two\nlines"]


def test_of_one_format_only_its_own_files_are_written(ladders: Path, tmp_path: Path) -> None:
    names = {}
    for kind in ("hls", "dash"):
        made = package_ladder(
            ladders / "h264",
            out=tmp_path / kind,
            segment_s=2,
            audio=False,
            hls=kind == "hls",
            dash=kind == "dash",
        )
        names[kind] = sorted(path.name for path in (made.folder / "subtitles_01").iterdir())
    assert names["hls"] == ["00001.vtt", "00002.vtt", "00003.vtt", "media.m3u8"]
    assert names["dash"] == ["all.vtt"]


def test_cues_are_read_whatever_is_between_them() -> None:
    text = (
        "WEBVTT\r\n\r\nNOTE none\r\n\r\nid\r\n00:01.000 --> 00:02.000 line:0\r\nOne\r\n\r\n"
        "more\r\n\r\n00:00:03.000 --> 00:00:03.000\r\nnever\r\n"
    )
    (cue,) = parse_cues(text)
    assert (cue.start_ms, cue.end_ms, cue.settings, cue.text) == (
        *(1000, 2000, "line:0"),
        "One\nmore",
    )


@pytest.mark.parametrize(
    ("code", "tag", "name"),
    [
        *[("fra", "fr", "French"), ("fre", "fr", "French"), ("ger", "de", "German")],
        *[("pt_br", "pt-BR", "Portuguese (BR)"), ("zho-hans", "zh-Hans", "Chinese (Hans)")],
        *[("gsw", "gsw", "gsw"), ("und", None, ""), ("", None, ""), ('e"n', None, "")],
    ],
)
def test_language_tags_are_the_shortest_of_rfc_5646(code: str, tag: str | None, name: str) -> None:
    assert language_tag(code) == tag
    assert tag is None or language_name(tag) == name


# several codecs


def test_scores_are_in_the_master_where_one_metric_gave_them(
    made: Delivery, ladders: Path, tmp_path: Path
) -> None:
    scores = {rendition["id"]: rendition["score"] for rendition in made.about["renditions"]}
    for name, entry in variants(made.folder).items():
        assert float(entry["SCORE"]) == pytest.approx(scores[name])
    other = read_ladder(ladders / "av1")
    other.about["metric"]["name"] = "psnr"
    mixed = tmp_path / "av1"
    mixed.mkdir()
    for rung in other.rungs:
        (mixed / rung.file).write_bytes((ladders / "av1" / rung.file).read_bytes())
    write(replace(other, folder=mixed))
    two = package_ladder([ladders / "h264", mixed], out=tmp_path / "out", audio=False)
    assert all("SCORE" not in entry for entry in variants(two.folder).values())
    assert any("no SCORE" in warning for warning in two.about["warnings"])


# single files and preview images


@pytest.fixture(scope="module")
def single(ladders: Path, tmp_path_factory: pytest.TempPathFactory) -> Delivery:
    out = tmp_path_factory.mktemp("single") / "out"
    return package_ladder(ladders, out=out, segment_s=2, single_file=True, thumbnail_s=0.5)


def test_a_rendition_is_one_file_of_which_ranges_are_the_segments(
    single: Delivery, made: Delivery
) -> None:
    names = [r["id"] for r in [*single.about["renditions"], *single.about["audio_renditions"]]]
    assert names
    for name in names:
        folder, before = single.folder / name, made.folder / name
        assert [p.name for p in folder.glob("*.m*4*")] == ["media.mp4"]
        if not (folder / "media.m3u8").exists():
            continue
        data = (folder / "media.mp4").read_bytes()
        media = m3u8.loads((folder / "media.m3u8").read_text())
        init = media.segments[0].init_section
        size, at = map(int, init.byterange.split("@"))
        assert (
            init.uri == "media.mp4" and data[at : at + size] == (before / "init.mp4").read_bytes()
        )
        for number, segment in enumerate(media.segments, 1):
            size, at = map(int, segment.byterange.split("@"))
            assert data[at : at + size] == (before / f"{number:05d}.m4s").read_bytes()
        assert at + size == len(data)
        keys = folder / "iframes.m3u8"
        for key in m3u8.loads(keys.read_text()).segments if keys.exists() else []:
            size, at = map(int, key.byterange.split("@"))
            assert data[at + 4 : at + 8] == b"moof"


def test_the_index_of_a_single_file_lists_its_segments(single: Delivery) -> None:
    manifest = MPEGDASHParser.parse((single.folder / "manifest.mpd").read_text("utf-8"))
    assert "isoff-on-demand" in manifest.profiles
    seen = 0
    for group in manifest.periods[0].adaptation_sets:
        for item in group.representations:
            if group.content_type not in ("audio", "video"):
                continue
            seen += 1
            (base,) = item.segment_bases
            data = (single.folder / item.base_urls[0].base_url_value).read_bytes()
            first, last = map(int, base.index_range.split("-"))
            box = data[first : last + 1]
            size, kind, version, clock = struct.unpack_from(">I4sB3x4xI", box)
            assert (size, kind, version) == (len(box), b"sidx", 1)
            (count,) = struct.unpack_from(">H", box, 38)
            entries = [struct.unpack_from(">III", box, 40 + 12 * n) for n in range(count)]
            # all bytes behind the index, each segment with a random access point first
            assert sum(length for length, *_ in entries) == len(data) - last - 1
            assert all(sap >> 31 == 1 for *_, sap in entries)
            seconds = sum(Fraction(ticks, clock) for _, ticks, _ in entries)
            assert float(seconds) == pytest.approx(SECONDS, abs=0.05)
    assert seen == len(single.about["renditions"]) + len(single.about["audio_renditions"])


@pytest.mark.slow
def test_ffmpeg_plays_a_single_file_as_it_plays_segments(single: Delivery, made: Delivery) -> None:
    def frames(folder: Path) -> bytes:
        return run_ffmpeg("-i", file_url(folder / "media.m3u8"), "-f", "framemd5", "pipe:1")

    for name in ("h264_01_128x72", "av1_01_128x72", made.about["audio"]["id"]):
        assert frames(single.folder / name) == frames(made.folder / name)


def test_preview_images_are_in_both_manifests_as_they_are(single: Delivery) -> None:
    lines = (single.folder / "master.m3u8").read_text("utf-8").splitlines()
    (entry,) = [attributes(line) for line in lines if line.startswith("#EXT-X-IMAGE-STREAM-INF")]
    assert entry["CODECS"] == "jpeg" and entry["RESOLUTION"] == "128x72"
    text = (single.folder / entry["URI"]).read_text()
    assert "#EXT-X-IMAGES-ONLY\n" in text
    assert "#EXT-X-TILES:RESOLUTION=128x72,LAYOUT=5x3,DURATION=0.480000\n" in text
    sheet = single.folder / "thumbnails" / "00001.jpg"
    with Image.open(sheet) as picture:
        assert picture.format == "JPEG" and picture.size == (5 * 128, 3 * 72)
        # eleven pictures; the rest of the sheet is black
        assert np.asarray(picture.convert("L"))[2 * 72 :, 128:].max() < 20
        assert np.asarray(picture.convert("L"))[2 * 72 :, :128].std() > 20
    root = ET.parse(single.folder / "manifest.mpd").getroot()
    (group,) = root.findall(".//d:AdaptationSet[@contentType='image']", NS)
    item = group.find("d:Representation", NS)
    assert item is not None and (item.get("width"), item.get("height")) == ("640", "216")
    tiles = item.find("d:EssentialProperty", NS)
    assert tiles is not None and tiles.get("value") == "5x3"
    bits = int(entry["BANDWIDTH"]) * SECONDS
    assert bits == pytest.approx(sheet.stat().st_size * 8, rel=0.01)


@pytest.mark.parametrize("every", [0.1, -1.0, 5000.0, float("nan")])
def test_preview_images_at_an_impossible_distance_are_refused(
    every: float, ladders: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="preview images every"):
        package_ladder(ladders, out=tmp_path / "out", thumbnail_s=every)
    assert not (tmp_path / "out").exists()


# what DASH-IF and Apple demand of renditions


def test_dash_sets_have_what_dash_if_demands(single: Delivery, made: Delivery) -> None:
    order = [
        *("ContentProtection", "EssentialProperty", "SupplementalProperty", "Label"),
        *("Accessibility", "Role", "SegmentTemplate", "Representation"),
    ]
    for delivery in (single, made):
        root = ET.parse(delivery.folder / "manifest.mpd").getroot()
        groups = root.findall(".//d:AdaptationSet", NS)
        ids = [group.get("id") for group in groups]
        assert len(ids) == len(set(ids))
        for group in groups:
            # the schema gives its children one order
            found = [order.index(child.tag.rsplit("}", 1)[1]) for child in group]
            assert found == sorted(found)
            roles = [role.get("value") for role in group.findall("d:Role", NS)]
            kind = group.get("contentType")
            assert roles or kind == "image"
            for item in group.findall("d:Representation", NS):
                assert int(item.get("bandwidth", "0")) > 0
                if kind == "audio":
                    assert item.get("audioSamplingRate") == "48000"
                    channels = item.find("d:AudioChannelConfiguration", NS)
                    assert channels is not None and int(channels.get("value", "0")) in (1, 2, 6)
        audio = [g for g in groups if g.get("contentType") == "audio"]
        # players begin with German, and never by themselves with commentary
        mains = [g.get("lang") for g in audio if g.find("d:Role[@value='main']", NS) is not None]
        assert mains == ["de"]
        spoken = [g for g in audio if g.find("d:Role[@value='commentary']", NS) is not None]
        assert [g.get("lang") for g in spoken] == ["en"]


def test_no_segment_of_any_playlist_is_longer_than_its_target(made: Delivery) -> None:
    playlists = [path for path in made.folder.glob("*/media.m3u8")]
    assert len(playlists) == len(made.about["renditions"]) + 8
    for path in playlists:
        playlist = m3u8.loads(path.read_text())
        assert playlist.is_endlist and playlist.playlist_type == "vod"
        assert max(round(s.duration) for s in playlist.segments) <= playlist.target_duration
        target = {m3u8.loads(p.read_text()).target_duration for p in playlists}
        assert target == {2}
