"""What `deliver` refuses, where it writes, and the command."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.commandline import Room
from tests.support.deliveries import (
    HLS,
    RUNGS,
    make_ladder,
    make_title,
    variants,
    write,
)
from tests.support.media import run_ffmpeg
from vqaloop.core import guardian
from vqaloop.core.ffmpeg import file_url
from vqaloop.delivery import place as delivery_place
from vqaloop.delivery import segments
from vqaloop.delivery.package import package_ladder
from vqaloop.delivery.segments import Track
from vqaloop.errors import InputError, ToolError
from vqaloop.ladder.store import read_ladder
from vqaloop.records import Ladder, Source


def spoil(own: Ladder, index: int, *arguments: str) -> None:
    """Encode one rung again, otherwise."""
    path = own.folder / own.rungs[index].file
    other = path.with_name("other.mp4")
    run_ffmpeg("-i", file_url(path), "-c:v", "libx264", *arguments, file_url(other))
    other.replace(path)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("-g", "50", "-keyint_min", "50"), "the key frames do not align"),
        (("-g", "60", "-keyint_min", "60", "-r", "25"), "5 fps"),
        (("-frames:v", "300", "-g", "60"), "lasts 10.010 s"),
    ],
)
def test_rungs_that_cannot_be_switched_between_are_refused(
    arguments: tuple[str, ...], why: str, own_ladder: Ladder, tmp_path: Path
) -> None:
    spoil(own_ladder, 1, "-preset", "ultrafast", "-sc_threshold", "0", *arguments)
    with pytest.raises(InputError, match=why) as refusal:
        package_ladder(own_ladder.folder, out=tmp_path / "out")
    assert own_ladder.rungs[1].file in str(refusal.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own"]


def test_a_rung_may_have_more_key_frames_than_another(own_ladder: Ladder, tmp_path: Path) -> None:
    # half of the others' 60 frames; segments begin where all rungs have one
    more = ("-g", "30", "-keyint_min", "30", "-sc_threshold", "0", "-preset", "ultrafast")
    spoil(own_ladder, 1, *more, "-x264-params", "open-gop=0")
    made = package_ladder(own_ladder.folder, out=tmp_path / "out", segment_s=3)
    cuts = [
        [line for line in path.read_text().splitlines() if line.startswith("#EXTINF")]
        for path in sorted((tmp_path / "out").rglob("media.m3u8"))
    ]
    videos = cuts[-len(own_ladder.rungs) :]
    assert len(cuts) >= 2 and all(each == videos[0] for each in videos), made.about["warnings"]


def test_too_few_key_frames_are_refused(
    short_title: Source, own_ladder: Ladder, tmp_path: Path
) -> None:
    for index in range(len(own_ladder.rungs)):
        spoil(own_ladder, index, "-preset", "ultrafast", "-g", "120", "-keyint_min", "120")
    with pytest.raises(InputError, match="no key frame for 4.004 s from 0.000 s on"):
        package_ladder(own_ladder.folder, out=tmp_path / "out")


def test_open_gops_are_refused(own_ladder: Ladder, tmp_path: Path) -> None:
    # x264's recovery points are marked as key frames, but no decoder can start with them
    spoil(own_ladder, 0, "-x264-params", "open-gop=1:keyint=60:min-keyint=60:scenecut=0:bframes=3")
    with pytest.raises(InputError, match="no IDR picture"):
        package_ladder(own_ladder.folder, out=tmp_path / "out")


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
    harm: Callable[[Ladder], None], own_ladder: Ladder, tmp_path: Path
) -> None:
    harm(own_ladder)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as refusal:
        package_ladder(own_ladder.folder, out=tmp_path / "out")
    assert "\n" not in str(refusal.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_names_of_a_ladder_do_not_reach_the_manifests(own_ladder: Ladder, tmp_path: Path) -> None:
    nasty = '-i "><script>\n#EXT-X-KEY.mp4'
    first = own_ladder.rungs[0]
    (own_ladder.folder / first.file).rename(own_ladder.folder / nasty)
    write(replace(own_ladder, rungs=(replace(first, file=nasty), *own_ladder.rungs[1:])))
    made = package_ladder(own_ladder.folder, out=tmp_path / "out", audio=False)
    for path in [*made.folder.glob("*.m*"), *made.folder.glob("*/*.m3u8")]:
        assert "script" not in path.read_text() and "EXT-X-KEY" not in path.read_text()
    assert made.about["renditions"][0]["rung"] == nasty


def test_two_titles_or_two_ladders_of_a_codec_are_not_mixed(
    own_ladder: Ladder, codec_ladders: Path
) -> None:
    with pytest.raises(InputError, match="two of the ladders are of h264"):
        package_ladder([own_ladder.folder, codec_ladders])
    own_ladder.about["source"]["sha256"] = "1" * 64
    write(own_ladder)
    with pytest.raises(InputError, match="of another source"):
        package_ladder([codec_ladders / "vp9", own_ladder.folder])


# where it is written


def test_an_interruption_leaves_nothing(
    own_ladder: Ladder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    package_ladder(own_ladder.folder, out=out, audio=False)
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
            package_ladder(own_ladder.folder, out=place, audio=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "own"]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_an_ffmpeg_that_fails_is_told_and_leaves_nothing(
    own_ladder: Ladder, tmp_path: Path
) -> None:
    failing = tmp_path / "ffmpeg"
    failing.write_text("#!/bin/sh\necho it broke >&2\nexit 1\n")
    failing.chmod(0o755)
    with pytest.raises(ToolError, match="could not be packaged: exit status 1: it broke"):
        package_ladder(own_ladder.folder, out=tmp_path / "out", ffmpeg=failing)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ffmpeg", "own"]


def test_an_earlier_delivery_is_replaced_and_nothing_else(
    own_ladder: Ladder, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    package_ladder(own_ladder.folder, out=out, audio=True)
    package_ladder(own_ladder.folder, out=out, audio=False, dash=False)
    assert not (out / "audio").exists() and not (out / "manifest.mpd").exists()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt"):
        package_ladder(own_ladder.folder, out=out)
    assert (out / "notes.txt").read_text() == "mine"
    # the ladder itself, a folder that holds it, a file
    taken = tmp_path / "taken"
    taken.write_text("x")
    for place in (own_ladder.folder, tmp_path, taken):
        with pytest.raises(InputError):
            package_ladder(own_ladder.folder, out=place)
    assert read_ladder(own_ladder.folder).rungs


def test_a_replacement_that_was_cut_off_loses_nothing(own_ladder: Ladder, tmp_path: Path) -> None:
    out, aside = tmp_path / "out", tmp_path / ".out.before"
    package_ladder(own_ladder.folder, out=out, audio=False, dash=False)
    # killed after the earlier delivery was set aside, and before the new one had its place: no
    # guardian may take it for something unfinished
    assert delivery_place._set_aside(out) == aside and guardian.mark() not in aside.name
    out.rename(aside)
    with pytest.raises(InputError, match="ladder"):
        package_ladder(tmp_path / "none", out=out)
    package_ladder(own_ladder.folder, out=out, audio=False, hls=False)
    assert (out / "manifest.mpd").exists() and not aside.exists()
    delivery_place._put_back(out)
    assert (out / "manifest.mpd").exists()
    out.rename(aside)
    delivery_place._put_back(out)
    assert (out / "manifest.mpd").exists() and not aside.exists()


# the command


def test_the_command_writes_what_its_document_lists(room: Room, codec_ladders: Path) -> None:
    said = room.run("deliver", codec_ladders, "-o", "out", "--json", "out.json")
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
    room: Room, codec_ladders: Path
) -> None:
    alone = room.run("deliver", codec_ladders / "vp9", "--hls", "-o", "out")
    assert alone.status == 2 and alone.err.count("\n") == 1 and "VP9" in alone.err
    assert not list(room.folder.iterdir())
    both = room.run("deliver", codec_ladders / "vp9", "--hls", "--dash", "-o", "out")
    assert both.status == 1 and "warning: no HLS for vp9" in both.out
    assert not (room.folder / "out" / "master.m3u8").exists()
    assert (room.folder / "out" / "manifest.mpd").is_file()
    assert room.run("deliver", codec_ladders / "vp9", "-o", "out").status == 0


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
    assert "warning: AVS2 is delivered as files of pictures alone: no audio" in said.out
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
    words: tuple[str, ...], room: Room, codec_ladders: Path
) -> None:
    said = room.run("deliver", codec_ladders / "h264", *words)
    assert said.status == 2 and said.err.startswith("vqaloop: ") and said.err.count("\n") == 1


def test_the_default_place_is_beside_the_caller(room: Room, codec_ladders: Path) -> None:
    shutil.copytree(codec_ladders / "h264", room.folder / "park.h264.ladder")
    assert room.run("deliver", "park.h264.ladder", "--no-audio", "--dash").status == 0
    assert (room.folder / "park.h264.delivery" / "manifest.mpd").is_file()
