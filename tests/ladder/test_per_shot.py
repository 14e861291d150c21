"""A per-shot ladder of a tiny title, from its cuts to its delivery."""

import json
from pathlib import Path
from typing import Any

import pytest

import vqaloop
from tests.support.commandline import Room
from tests.support.media import frame_hashes, make_clip, run_ffmpeg
from vqaloop.core.ffmpeg import file_url
from vqaloop.errors import InputError
from vqaloop.ladder.reproduce import ladder_command
from vqaloop.media.probe import probe_source
from vqaloop.media.scene_cuts import bounded_gop
from vqaloop.ratecontrol.joined_encode import split_args
from vqaloop.records import Ladder

SMALL: dict[str, Any] = {
    "metric": "psnr",
    "preset": "ultrafast",
    "resolutions": [(160, 96), (112, 64)],
    "rungs": 2,
    "min_step": 0.5,
    "min_ratio": 1.25,
}
CUTS = [0, 30, 84, 114]


@pytest.fixture(scope="module")
def title(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A test card, noise on a fractal for longer than a GOP, a still."""
    path, form = tmp_path_factory.mktemp("shots") / "shots.mkv", "s=160x96:r=25"
    graph = (
        f"testsrc2={form},trim=end_frame=30,format=yuv420p[a];"
        f"mandelbrot={form},noise=alls=20:allf=t,trim=end_frame=54,format=yuv420p[b];"
        f"color=white:{form},drawbox=40:30:60:30:black:fill,trim=end_frame=30,format=yuv420p[c];"
        "[a][b][c]concat=n=3"
    )
    run_ffmpeg("-filter_complex", graph, "-c:v", "ffv1", file_url(path))
    return path


def test_scenes_of_every_rung_have_knobs_of_their_own(room: Room, title: Path) -> None:
    options = {**SMALL, "per_shot": True, "scene_floor": 30.0, "no_cap": True}
    ladder = vqaloop.build_ladder(title, codec="h264", out="out", **options)
    about = ladder.about
    for rung in ladder.rungs:
        starts = [scene.start_frame for scene in rung.scenes]
        assert [*starts, rung.scenes[-1].end_frame] == CUTS
        assert len({scene.knob for scene in rung.scenes}) > 1
        assert min(s.knob for s in rung.scenes) <= rung.knob[1] <= max(s.knob for s in rung.scenes)
        check_replay(ladder, title, room.folder)
        with pytest.raises(InputError, match="made of 3 scenes"):
            rung.to_pyav()
    made = [trial for trial in about["scene_trials"] if trial["error"] is None]
    frames = sum(trial["end_frame"] - trial["start_frame"] for trial in made)
    assert about["cost"]["encodes"] == len(made) == len({json.dumps(t) for t in made})
    assert about["cost"]["encoded_frames"] == frames
    assert about["per_shot"] == {
        "scenes": 3,
        "scene_floor": 30.0,
        "equivalents": pytest.approx(frames / CUTS[-1], abs=1e-4),
        "equivalents_per_rung": pytest.approx(frames / CUTS[-1] / len(ladder.rungs), abs=1e-4),
    }
    assert vqaloop.read_ladder("out").to_json() == json.loads(json.dumps(ladder.to_json()))
    assert "--per-shot" in ladder_command(ladder)
    page = (ladder.folder / "report.html").read_text()
    assert "Score of each scene of each rung, with the cuts" in page
    # keys lie a GOP of 2 s apart at most, at the same times in all rungs
    files = [Path(file["path"]) for file in vqaloop.package_ladder("out").about["files"]]
    segments = [path.parent for path in files if path.suffix == ".m4s"]
    assert len(set(segments)) == 2 == len(segments)
    # scene by scene from the cache, by any number of workers
    again = vqaloop.build_ladder(title, codec="h264", out="again", workers=2, **options)
    assert again.about["cost"]["encodes"] == 0
    assert [r.to_json() for r in again.rungs] == [r.to_json() for r in ladder.rungs]


@pytest.mark.slow
def test_scenes_under_a_cap_keep_the_peak_of_the_whole(room: Room, title: Path) -> None:
    options = {**SMALL, "preset": "veryfast", "per_shot": True, "scene_floor": 30.0}
    free = vqaloop.build_ladder(title, codec="h264", out="free", no_cap=True, **options)
    assert max(rung.peak_kbps / rung.bitrate_kbps for rung in free.rungs) > 1.6
    ladder = vqaloop.build_ladder(title, codec="h264", out="out", peak_ratio=1.6, **options)
    assert any(scene.cap for rung in ladder.rungs for scene in rung.scenes)
    assert all(rung.peak_kbps <= 1.02 * 1.6 * rung.bitrate_kbps for rung in ladder.rungs)
    check_replay(ladder, title, room.folder)


def check_replay(ladder: Ladder, title: Path, folder: Path) -> None:
    """Each scene's arguments give its pictures again."""
    rung = ladder.rungs[0]
    parts = []
    for scene in rung.scenes:
        part = folder / f"part{scene.start_frame}.mp4"
        run_ffmpeg("-i", file_url(title), *rung.scene_args(scene), file_url(part))
        parts += frame_hashes(probe_source(part))
    assert frame_hashes(probe_source(ladder.folder / rung.file)) == parts


def test_a_title_without_cuts_has_the_plain_ladder(room: Room, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mp4", size="160x96", crf=10)
    made = vqaloop.build_ladder(clip, codec="h264", out="out", per_shot=True, **SMALL)
    assert not any(rung.scenes for rung in made.rungs) and "per_shot" not in made.about
    assert "no cuts" in made.about["warnings"][0]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"scene_floor": 6.0}, "give --per-shot too"),
        ({"per_shot": True, "scene_floor": -1.0}, "above 0"),
        ({"per_shot": True, "budget_s": 10.0}, "leave out one of the two"),
        ({"per_shot": True, "storage": "journal:x"}, "leave out --storage"),
    ],
)
def test_refused_before_any_work(
    room: Room, title: Path, options: dict[str, Any], why: str
) -> None:
    with pytest.raises(InputError, match=why):
        vqaloop.build_ladder(title, codec="h264", out="out", **SMALL, **options)
    assert not (room.folder / "out").exists()


def test_options_are_split_into_common_and_own() -> None:
    scenes = [{"-a": "1", "-b": "2"}, {"-a": "1", "-b": "3"}, {"-a": "1", "-b": "3", "-c": "4"}]
    common, own = split_args(scenes)
    assert common == ("-a", "1")
    assert own == [("-b", "2"), ("-b", "3"), ("-b", "3", "-c", "4")]


@pytest.mark.parametrize(("frames", "gop"), [(50, 50), (51, 26), (20, 20), (149, 50), (151, 38)])
def test_gops_of_scenes_are_never_longer_than_a_player_takes(frames: int, gop: int) -> None:
    assert bounded_gop(frames, 50) == gop
