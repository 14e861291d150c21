"""Audits of small real ladders: files, HLS and DASH, with faults put in."""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest

from tests.support.commandline import Room
from tests.support.deliveries import make_ladder
from tests.support.media import run_ffmpeg
from vqaloop.audit.audit import audit_ladder
from vqaloop.audit.findings import Scored, find_all
from vqaloop.audit.listing import Declared, Listed
from vqaloop.audit.measure import Measured
from vqaloop.core.ffmpeg import file_url
from vqaloop.delivery.package import package_ladder
from vqaloop.errors import InputError
from vqaloop.media.probe import probe_source
from vqaloop.records import Source

RUNGS = ((128, 72, 45.0), (128, 72, 30.0))


@dataclass(frozen=True)
class Title:
    """A title, its ladder, and that ladder as somebody delivers it."""

    source: Source
    ladder: Path
    delivery: Path


@pytest.fixture(scope="module")
def title(tmp_path_factory: pytest.TempPathFactory) -> Title:
    folder = tmp_path_factory.mktemp("audited")
    run_ffmpeg(
        *("-f", "lavfi", "-i", "testsrc2=s=128x72:r=25:d=5"),
        *("-f", "lavfi", "-i", "sine=440:r=48000:d=5", "-c:v", "libx264", "-qp", "0"),
        *("-preset", "ultrafast", "-c:a", "aac", file_url(folder / "title.mkv")),
    )
    source = probe_source(folder / "title.mkv")
    ladder = make_ladder(folder / "ladder", source, "h264", RUNGS).folder
    made = package_ladder(ladder, out=folder / "delivery", segment_s=2)
    return Title(source, ladder, made.folder)


def scored(name: str, kbps: float, score: float, size: tuple[int, int] = (128, 72)) -> Scored:
    measured = Measured(
        Listed(name, ()), "h264", *size, Fraction(25), 25, kbps, kbps, None, None, None
    )
    return Scored(measured, score)


def kinds(rungs: Sequence[Scored], step: float = 6.0, ceiling: float = 95.0) -> list[str]:
    return [f"{f.kind} {' '.join(f.rungs)}" for f in find_all(rungs, step, ceiling)]


def test_a_ladder_of_good_steps_has_no_finding() -> None:
    rungs = [scored("a", 200, 60), scored("b", 400, 70), scored("c", 800, 80)]
    assert kinds([*rungs, scored("d", 1800, 90)]) == []


def test_bits_above_the_ceiling_are_wasted() -> None:
    rungs = [scored("a", 400, 88), scored("b", 800, 95.5), scored("c", 2000, 97)]
    (found,) = [f for f in find_all(rungs, 6.0, 95.0) if f.kind == "ceiling"]
    assert found.rungs == ("c", "b") and found.kbps == 1200


def test_a_rung_far_right_of_the_hull_wastes_bits() -> None:
    rungs = [scored("a", 100, 60), scored("b", 900, 72), scored("c", 1000, 90)]
    (found,) = [f for f in find_all(rungs, 6.0, 95.0) if f.kind == "waste"]
    # the line from a to c has 72 points at 100 + 12 / 30 * 900
    assert found.rungs == ("b",) and found.kbps == pytest.approx(900 - 460)


def test_a_rung_that_another_beats_and_a_size_that_is_never_best_are_named() -> None:
    rungs = [
        *(scored("a", 200, 60), scored("b", 400, 70), scored("small", 500, 65, (64, 36))),
        scored("c", 1000, 90),
    ]
    assert "dominated small b" in kinds(rungs) and "size small" in kinds(rungs)
    assert not [k for k in kinds(rungs) if k.startswith("waste")]


def test_of_two_equal_rungs_neither_beats_the_other() -> None:
    assert not [k for k in kinds([scored("a", 400, 90), scored("b", 400, 90)]) if "dom" in k]


def test_steps_too_wide_too_narrow_and_a_top_too_low() -> None:
    rungs = [scored("a", 200, 60), scored("b", 800, 73), scored("c", 900, 75)]
    assert kinds(rungs) == ["missing a b", "narrow b c", "top c"]
    (found,) = [f for f in find_all(rungs, 6.0, 95.0) if f.kind == "missing"]
    assert found.kbps == pytest.approx(400)


def test_codecs_are_judged_each_by_itself() -> None:
    other = Measured(
        Listed("av1", ()), "av1", 128, 72, Fraction(25), 25, 100, 300, None, None, None
    )
    rungs = [scored("a", 800, 90), Scored(other, 95)]
    # the cheaper rung of another codec beats nothing, its peak is its own
    assert kinds(rungs) == ["peak av1"]


def test_an_own_delivery_has_no_error_in_its_manifests(title: Title) -> None:
    files = audit_ladder(title.ladder, title.source.path, metric="psnr")
    for target in (title.delivery / "master.m3u8", title.delivery / "manifest.mpd"):
        audit = audit_ladder(target, title.source.path, metric="psnr", ceiling=30, step=5)
        assert {f.kind for f in audit.findings} <= {"ceiling", "missing"}
        assert [r.measured.frames for r in audit.rungs] == [125, 125]
        rates = {round(rung.kbps, 3) for rung in audit.rungs}
        assert rates == {round(rung.kbps, 3) for rung in files.rungs}
        assert sorted(r.score for r in audit.rungs) == pytest.approx(
            sorted(r.score for r in files.rungs)
        )


def test_faults_of_a_master_playlist_are_found(title: Title, tmp_path: Path) -> None:
    copy = shutil.copytree(title.delivery, tmp_path / "copy")
    master = copy / "master.m3u8"
    text = master.read_text()
    bandwidths = [int(n) for n in re.findall(r"[:,]BANDWIDTH=(\d+)", text)]
    text = text.replace(f":BANDWIDTH={bandwidths[0]},", f":BANDWIDTH={bandwidths[0] // 2},", 1)
    text = text.replace("FRAME-RATE=25.000", "FRAME-RATE=30.000", 1)
    text = text.replace("RESOLUTION=128x72,FRAME", "RESOLUTION=1280x720,FRAME", 1)
    codecs = re.findall(r'CODECS="(avc1\.\w+)', text)[0]
    text = text.replace(codecs, "avc1.640028", 1)
    text = re.sub(r",AVERAGE-BANDWIDTH=\d+", "", text, count=1)
    master.write_text(text)
    audit = audit_ladder(copy, title.source.path, metric="psnr")
    found = {f.kind: f.text for f in audit.findings if f.rungs[0] == audit.rungs[0].name}
    assert {"bandwidth", "average_bandwidth", "codecs", "resolution", "frame_rate"} <= set(found)
    assert f"{bandwidths[0]} is measured" in found["bandwidth"]
    assert f"CODECS is avc1.640028,mp4a.40.2 and the pictures are {codecs}" in found["codecs"]
    assert "AVERAGE-BANDWIDTH is missing" in found["average_bandwidth"]
    assert "manifest.mpd is not audited" in audit.notes[0]


@pytest.mark.slow
def test_faults_of_a_dash_manifest_are_found(title: Title, tmp_path: Path) -> None:
    copy = shutil.copytree(title.delivery, tmp_path / "copy")
    text = (copy / "manifest.mpd").read_text()
    rate = re.findall(r'id="h264_01_128x72"[^>]*bandwidth="(\d+)"', text)[0]
    (copy / "manifest.mpd").write_text(text.replace(f'bandwidth="{rate}"', 'bandwidth="1000"'))
    audit = audit_ladder(copy / "manifest.mpd", title.source.path, metric="psnr")
    (found,) = [f for f in audit.findings if f.kind == "bandwidth"]
    assert f"@bandwidth is 1000 and {rate} is measured" in found.text


@pytest.mark.slow
def test_transport_streams_and_byte_ranges_are_measured(title: Title, tmp_path: Path) -> None:
    rung = next(title.ladder.glob("*_30.mp4"))
    run_ffmpeg(
        *("-i", file_url(rung), "-c", "copy", "-f", "hls", "-hls_time", "2"),
        *("-hls_flags", "single_file", "-hls_playlist_type", "vod", "v.m3u8"),
        cwd=tmp_path,
    )
    (tmp_path / "master.m3u8").write_text(
        '#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1,CODECS="avc1.42C00A"\nv.m3u8\n'
    )
    (found,) = audit_ladder(tmp_path, title.source.path, metric="psnr").rungs
    (plain,) = [
        r
        for r in audit_ladder(title.ladder, title.source.path, metric="psnr").rungs
        if r.name == rung.name
    ]
    assert found.score == pytest.approx(plain.score)
    # without the container's packets
    assert found.kbps == pytest.approx(plain.kbps, rel=0.05)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("https://example.com/v.m3u8", "not on this disk"),
        ("../ladder/128x72_45.mp4", "outside of its folder"),
        ("/etc/passwd", "outside of its folder"),
        ("%2e%2e/%2e%2e/etc/passwd", "outside of its folder"),
        ("none.m3u8", "not there"),
        ("empty.m3u8", "lists no segments"),
        ("gone.m3u8", "cannot be read"),
        ("long.m3u8", "behind the end"),
        ("notime.m3u8", "gives no duration"),
    ],
)
def test_a_damaged_playlist_is_refused_by_name(
    line: str, said: str, title: Title, tmp_path: Path
) -> None:
    (tmp_path / "empty.m3u8").write_text("#EXTM3U\n")
    (tmp_path / "gone.m3u8").write_text("#EXTM3U\n#EXTINF:2,\ngone.ts\n")
    (tmp_path / "long.m3u8").write_text("#EXTM3U\n#EXTINF:2,\n#EXT-X-BYTERANGE:99@5\ns.ts\n")
    (tmp_path / "notime.m3u8").write_text("#EXTM3U\n#EXTINF:x,\ns.ts\n")
    (tmp_path / "s.ts").write_bytes(b"short")
    (tmp_path / "master.m3u8").write_text(f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{line}\n")
    with pytest.raises(InputError, match=said):
        audit_ladder(tmp_path, title.source.path, metric="psnr")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<MPD", "no XML"),
        ("<!DOCTYPE x [<!ENTITY a 'b'>]><MPD/>", "entities"),
        ('<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"/>', "one period"),
        ('<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period/></MPD>', "no pictures"),
    ],
)
def test_a_damaged_dash_manifest_is_refused_by_name(
    text: str, said: str, title: Title, tmp_path: Path
) -> None:
    (tmp_path / "a.mpd").write_text(text)
    with pytest.raises(InputError, match=said):
        audit_ladder(tmp_path / "a.mpd", title.source.path, metric="psnr")


def test_rungs_of_other_frames_are_refused(title: Title, tmp_path: Path) -> None:
    for name, size, rate in (("short", "4", "25"), ("slow", "5", "24")):
        folder = tmp_path / name
        folder.mkdir()
        run_ffmpeg(
            *("-f", "lavfi", "-i", f"testsrc2=s=128x72:r={rate}:d={size}", "-c:v", "libx264"),
            *("-preset", "ultrafast", file_url(folder / "a.mp4")),
        )
        with pytest.raises(InputError, match=r"a.mp4' has \d+ frames and the source 125"):
            audit_ladder(folder, title.source.path, metric="psnr")
    run_ffmpeg(
        *("-f", "lavfi", "-i", "testsrc2=s=128x72:r=50:d=2.5", "-c:v", "libx264"),
        *("-preset", "ultrafast", file_url(tmp_path / "fast.mp4")),
    )
    with pytest.raises(InputError, match=r"fast.mp4' has 50.000 fps and the source 25.000"):
        audit_ladder(tmp_path, title.source.path, metric="psnr")


def test_the_command_says_what_our_ladder_saves(title: Title, room: Room, tmp_path: Path) -> None:
    poor = tmp_path / "poor"
    poor.mkdir()
    shutil.copy(next(title.ladder.glob("*_30.mp4")), poor / "only ü.mp4")
    # the source beside it is no rung
    (poor / "source.mkv").hardlink_to(title.source.path)
    ours = json.loads((title.ladder / "ladder.json").read_text())
    ours["metric"]["name"] = "psnr"
    mine = shutil.copytree(title.ladder, tmp_path / "mine")
    (mine / "ladder.json").write_text(json.dumps(ours))
    said = room.run(
        *("audit", poor, "--source", title.source.path, "--metric", "psnr", "--against-ladder"),
        *(mine, "--json", "a.json", "--markdown", "a.md", "--ceiling", "30", "--step", "3"),
    )
    assert said.status == 0, said.err + said.out
    assert "Our ladder delivers" in said.out and "only ü.mp4" in said.out
    about = json.loads((room.folder / "a.json").read_text())
    assert about["schema"] == "vqaloop.audit/1" and about["against"]["b"]["rungs"]
    assert about["notes"][0] == "source.mkv is the source, and no rung"
    assert about["bd_rate_percent"] is None and "no BD-rate" in about["notes"][1]
    text = (room.folder / "a.md").read_text("utf-8")
    assert "| only ü.mp4 | h264 |" in text and "Our ladder delivers" in text
    # a finding is a negative result
    said = room.run("audit", poor, "--source", title.source.path, "--metric", "psnr")
    assert said.status == 1 and "top: the best rung" in said.out
    said = room.run(
        *("audit", poor, "--source", title.source.path, "--metric", "ssim", "--against-ladder"),
        mine,
    )
    assert said.status == 2 and "audit with --metric psnr" in said.err


def test_what_is_no_ladder_is_refused(title: Title, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "media.m3u8").write_text("#EXTM3U\n#EXTINF:1,\na.ts\n")
    for target, said in (
        (tmp_path, "no master playlist"),
        (tmp_path / "text.txt", "neither a playlist"),
        (tmp_path / "media.m3u8", "lists no variants"),
        (tmp_path / "none", "is not there"),
    ):
        with pytest.raises(InputError, match=said):
            audit_ladder(target, title.source.path, metric="psnr")


def test_what_is_not_declared_is_said_to_be_missing() -> None:
    measured = Measured(
        Listed("a", (), None, Declared("hls", 1000)),
        *("h264", 128, 72, Fraction(25), 25, 100.0, 100.0, "avc1.42C00A", 1050, 900),
    )
    found = find_all([Scored(measured, 95)], 6.0, 95.0)
    assert [f.kind for f in found] == ["average_bandwidth", "codecs", "resolution"]
    assert "it is avc1.42C00A" in found[1].text
