"""`vqaloop encode`: scenes to a score, joined with all the rest, resumed, bounded."""

import json
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from tests.support.commandline import slow_but
from tests.support.media import make_bursty, make_clip, run_ffmpeg
from vqaloop import InputError, encode_to_target
from vqaloop.bitstream.film_grain import has_synthesis
from vqaloop.bitstream.packets import peak_kbps, segment_peak_kbps, stream_packets
from vqaloop.cli.main import main
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.media.probe import probe_source
from vqaloop.quality.full_reference import measure
from vqaloop.ratecontrol.target import MOST_BOUNDS
from vqaloop.records import Event

TARGET = 80.0


@pytest.fixture(scope="module")
def title(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scenes of very different difficulty, a tone, chapters and a title."""
    folder = tmp_path_factory.mktemp("title")
    size = "=s=256x144:r=25"
    looks = (
        f"testsrc2{size},noise=alls=30:allf=t",
        f"testsrc2{size},negate,noise=alls=6:allf=t",
        f"mandelbrot{size}",
    )
    graph = ";".join(
        f"{look},trim=duration=2,format=yuv420p,setsar=1[v{i}]" for i, look in enumerate(looks)
    )
    graph += ";[v0][v1][v2]concat=n=3[v];sine=f=440:d=6[a]"
    chapters = folder / "chapters.txt"
    chapters.write_text(
        ";FFMETADATA1\ntitle=Three\n[CHAPTER]\nTIMEBASE=1/1\nSTART=0\nEND=2\ntitle=One\n"
        "[CHAPTER]\nTIMEBASE=1/1\nSTART=2\nEND=6\ntitle=Two\n"
    )
    path = folder / "title.mkv"
    run_ffmpeg(
        *("-i", os.fspath(chapters), "-filter_complex", graph, "-map", "[v]", "-map", "[a]"),
        *("-map_metadata", "0", "-c:v", "ffv1", "-c:a", "aac", os.fspath(path)),
    )
    return path


@pytest.mark.parametrize("codec", slow_but(["h264", "hevc", "vp9", "av1"], "h264", "av1"))
def test_a_title_lands_on_its_target_with_all_it_had(
    title: Path, tmp_path: Path, codec: str
) -> None:
    preset = {"h264": "veryfast", "hevc": "ultrafast", "vp9": "5", "av1": "12"}[codec]
    out = tmp_path / ("out.webm" if codec == "vp9" else "out.mp4")
    made = encode_to_target(
        title, out, codec=codec, target_score=TARGET, metric="vmaf", preset=preset
    )
    about = made.document
    assert about["schema"] == "vqaloop.encode/1"
    assert [scene["start_frame"] for scene in about["scenes"]] == [0, 50, 100]
    assert about["scenes"][-1]["end_frame"] == 150
    assert made.exit_code == 0, about["warnings"]
    assert abs(made.score - TARGET) <= 0.5
    assert all(abs(scene["score"] - TARGET) <= 2 for scene in about["scenes"])
    assert about["cost"]["encodes"] <= 5 * 3
    source, result = probe_source(title), probe_source(out)
    assert (result.frames, result.fps) == (source.frames, source.fps)
    with av.open(os.fspath(out)) as container:
        assert len(container.streams.audio) == 1
        assert container.metadata["title"] == "Three"
        assert len(container.chapters()) == 2
        sound = sum(frame.samples for frame in container.decode(audio=0))
        assert sound / container.streams.audio[0].rate == pytest.approx(6, abs=0.1)


def test_what_was_finished_is_not_encoded_again(title: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(event: Event) -> None:
        if event.stage == "encode" and event.done == 2:
            raise Stop

    asked: dict[str, Any] = dict(
        codec="h264", target_score=72.0, metric="vmaf", preset="ultrafast"
    )
    out = tmp_path / "out.mp4"
    with pytest.raises(Stop):
        encode_to_target(title, out, **asked, progress=stop)
    assert not list(tmp_path.iterdir())
    made = encode_to_target(title, out, **asked)
    again = encode_to_target(title, tmp_path / "again.mp4", **asked)
    assert made.document["cost"]["encodes"] < len(made.document["trials"])
    assert again.document["cost"]["encodes"] == 0
    assert (tmp_path / "again.mp4").read_bytes() == out.read_bytes()
    assert again.document["scenes"] == made.document["scenes"]


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_one_run_takes_the_scenes_knobs_as_zones(title: Path, tmp_path: Path, codec: str) -> None:
    made = encode_to_target(
        title,
        tmp_path / "out.mp4",
        codec=codec,
        target_score=TARGET,
        metric="vmaf",
        preset="ultrafast",
        one_run=True,
    )
    about = made.document
    knobs = [scene["knob"] for scene in about["scenes"]]
    assert max(knobs) - min(knobs) > 2 and abs(made.score - TARGET) <= 2
    # what the scenes weigh in the one run is what they weighed alone, not what one CRF gives them
    with av.open(os.fspath(made.path)) as container:
        sizes = [packet.size for packet in container.demux(video=0) if packet.size]
    alone = [scene["bitrate_kbps"] for scene in about["scenes"]]
    for index, kbps in enumerate(alone):
        part = sum(sizes[50 * index : 50 * index + 50]) * 8 / 1000 / 2
        assert part == pytest.approx(kbps, rel=0.35)


@pytest.mark.slow
def test_scenes_are_joined_with_a_grain_table_and_scored_without(
    title: Path, tmp_path: Path
) -> None:
    """With a cap on their peaks as well."""
    asked: dict[str, Any] = dict(codec="av1", target_score=45, metric="vmaf", preset="12")
    plain = encode_to_target(title, tmp_path / "plain.mp4", **asked)
    bound = 0.8 * plain.document["peak_kbps"]
    made = encode_to_target(
        title, tmp_path / "out.mp4", **asked, film_grain="20", max_peak=bound, max_encodes=24
    )
    assert made.document["target"]["film_grain"] == 20
    assert "film_grain" not in plain.document["target"]
    assert has_synthesis(made.path) and not has_synthesis(plain.path)
    assert made.document["frames"] == 150
    source = probe_source(title)
    found = measure(source, made.path, ["vmaf"], ffmpeg=ffmpeg_path())["vmaf"]
    assert found.value == pytest.approx(made.score, abs=0.01)


def test_one_run_is_refused_where_the_encoder_takes_no_zones(title: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="takes no zones"):
        encode_to_target(title, tmp_path / "o.mp4", codec="av1", target_score=80, one_run=True)


def test_several_workers_come_to_the_target_too(title: Path, tmp_path: Path) -> None:
    made = encode_to_target(
        title,
        tmp_path / "out.mkv",
        codec="h264",
        target_score=75,
        metric="vmaf",
        preset="ultrafast",
        workers=3,
    )
    assert made.exit_code == 0 and abs(made.score - 75) <= 0.5


def test_a_bitrate_is_spent_where_it_buys_most(title: Path, tmp_path: Path) -> None:
    made = encode_to_target(
        title, tmp_path / "out.mp4", codec="h264", bitrate=400, metric="vmaf", preset="ultrafast"
    )
    about = made.document
    assert about["target"]["allocation"] == "equal-slope"
    assert about["bitrate_kbps"] == pytest.approx(400, rel=0.12)
    scores = [scene["score"] for scene in about["scenes"]]
    assert max(scores) - min(scores) > 5


def test_a_target_out_of_reach_is_told_with_how_near_and_the_best_is_kept(
    title: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, told = tmp_path / "out.mp4", tmp_path / "out.json"
    argv: list[Path | str] = ["encode", title, out, "--codec", "h264", "--target-score", "99.9"]
    argv += [
        "--preset",
        "ultrafast",
        "--metric",
        "vmaf",
        "--max-bitrate",
        "300",
        "--json",
        told,
        "--quiet",
    ]
    assert main([os.fspath(word) for word in argv]) == 1
    said = capsys.readouterr().out
    assert "not reached; held back by --max-bitrate" in said
    document = json.loads(told.read_text())
    assert document["reached"] is False and out.exists()
    assert all(scene["bitrate_kbps"] <= 300 * 1.05 for scene in document["scenes"])


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What takes many bits at any knob."""
    path = tmp_path_factory.mktemp("noise") / "noise.y4m"
    run_ffmpeg(
        *("-f", "lavfi", "-i", "nullsrc=s=160x96:r=25:d=1,geq=random(1)*255:128:128"), str(path)
    )
    return path


@pytest.mark.parametrize(
    ("bitrate", "bound", "held"),
    [
        (10, None, "the range of the knob (worst quality)"),
        (99_000, None, "the range of the knob (best quality)"),
        (100, 1, "--max-encodes"),
    ],
)
def test_a_missed_bitrate_is_not_reached_and_says_why(
    noise: Path, tmp_path: Path, bitrate: float, bound: int | None, held: str
) -> None:
    made = encode_to_target(
        *(noise, tmp_path / "out.mp4"),
        codec="h264",
        bitrate=bitrate,
        max_encodes=bound,
        metric="vmaf",
        preset="ultrafast",
    )
    about = made.document
    assert made.exit_code == 1 and about["reached"] is False
    said = (
        f"the whole takes {about['bitrate_kbps']:.1f} kb/s where {bitrate:g} were asked for, "
        f"not reached; held back by {held}"
    )
    assert said in about["warnings"]
    knob = {10: 51, 99_000: 1}.get(int(bitrate))
    assert knob is None or [scene["knob"] for scene in about["scenes"]] == [knob]


def test_a_title_above_its_target_at_the_worst_knob_is_reached_and_says_so(
    tmp_path: Path,
) -> None:
    clip = make_clip(tmp_path / "plain.y4m", frames=30, vf="drawbox=c=gray:t=fill")
    made = encode_to_target(
        *(clip, tmp_path / "out.mp4"),
        codec="h264",
        target_score=30,
        metric="vmaf",
        preset="ultrafast",
    )
    assert made.exit_code == 0 and made.score > 40
    assert 51 in [trial["knob"] for trial in made.document["trials"]]
    assert any(
        line.startswith("the whole scores")
        and line.endswith("held back by the range of the knob (worst quality)")
        for line in made.document["warnings"]
    ), made.document["warnings"]


@pytest.mark.slow
def test_the_default_student_steers_as_well(title: Path, tmp_path: Path) -> None:
    made = encode_to_target(
        title, tmp_path / "out.mp4", codec="h264", target_score=70, preset="ultrafast"
    )
    assert made.document["metric"]["name"] == "internvqa-mini"
    assert abs(made.score - 70) <= 1.0, made.document["warnings"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(target_score=None), "one of the two"),
        (dict(bitrate=100), "one of the two"),
        (dict(target_score=101), "between 0 and 100"),
        (dict(allocation="fair"), "neither target nor equal-slope"),
        (dict(max_encodes=1), "3 scenes need as many encodes"),
        (dict(max_bitrate=-1), "above 0"),
        (dict(codec="vp8"), "unknown codec"),
        (dict(preset="warp"), "no preset"),
        (dict(film_grain=8), "libx264 makes no film-grain table"),
        (dict(codec="av1", film_grain=51), "whole number from 1 to 50, for libsvtav1; or off"),
        (dict(codec="av1", film_grain="auto"), "is of `vqaloop ladder`.*give that strength"),
        (dict(codec="av1", film_grain="much"), "give auto, off, or a strength"),
    ],
)
def test_what_cannot_be_asked_is_refused_and_nothing_is_written(
    title: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    asked: dict[str, Any] = dict(codec="h264", target_score=80, metric="vmaf")
    with pytest.raises(InputError, match=message):
        encode_to_target(title, tmp_path / "out.mp4", **{**asked, **change})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["out.avi", "out", "nowhere/out.mp4"])
def test_names_that_cannot_hold_the_result_are_refused(
    title: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(InputError):
        encode_to_target(title, tmp_path / name, codec="h264", target_score=80)


def test_the_source_is_never_the_output(title: Path, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", frames=30)
    with pytest.raises(InputError, match="the source itself"):
        encode_to_target(clip, clip, codec="h264", target_score=80)


@pytest.fixture(scope="module")
def burst(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One scene of five seconds, the third of which is hard."""
    path = tmp_path_factory.mktemp("burst") / "burst.y4m"
    noise = "noise=alls=24:allf=t:enable='between(n,50,74)'"
    return make_clip(path, size="128x72", frames=125, vf=noise)


def test_a_percentile_is_what_reaches_the_target(burst: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = dict(
        codec="h264", target_score=80, metric="vmaf", preset="ultrafast", prior="none"
    )
    mean = encode_to_target(burst, tmp_path / "mean.mp4", **asked)
    made = encode_to_target(burst, tmp_path / "out.mp4", **asked, pool="p5")
    about = made.document
    assert made.exit_code == 0, about["warnings"]
    assert about["metric"]["pool"] == "p5" and abs(made.score - 80) <= 0.5
    (scene,), (plain,) = about["scenes"], mean.document["scenes"]
    assert scene["score_mean"] == pytest.approx(about["score_mean"], abs=0.1)
    assert scene["knob"] < plain["knob"] - 0.5 and about["score_mean"] > 80.5
    assert "pool" not in mean.document["metric"] and "score_mean" not in mean.document


def test_the_worst_scene_is_what_reaches_the_target(title: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = dict(codec="h264", target_score=75, preset="ultrafast")
    made = encode_to_target(title, tmp_path / "o.mp4", **asked, metric="vmaf", pool="min-scene")
    about = made.document
    assert abs(made.score - 75) <= 2 and made.score < about["score_mean"]
    assert made.score == pytest.approx(min(s["score_mean"] for s in about["scenes"]), abs=0.5)


def test_a_pool_does_not_go_with_equal_slopes(burst: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--pool p5 goes with a target score"):
        encode_to_target(burst, tmp_path / "o.mp4", codec="h264", bitrate=100, pool="p5")


@pytest.mark.slow
def test_the_peak_of_the_whole_keeps_its_bound(title: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "codec": "h264",
        "target_score": TARGET,
        "metric": "vmaf",
        "preset": "ultrafast",
    }
    free = encode_to_target(title, tmp_path / "free.mp4", **options)
    assert "peak_of_bound" not in free.document
    # noise has most of the bits: without a bound the peak is far above half the average more
    assert free.document["peak_kbps"] > 1.6 * free.document["bitrate_kbps"]
    made = encode_to_target(title, tmp_path / "capped.mp4", peak_ratio=1.5, **options)
    about = made.document
    packets = stream_packets(made.path, "h264", Fraction(25))
    mean = sum(packet.size_bytes for packet in packets) * 8 / 1000 / 6
    assert max(peak_kbps(packets, 6), segment_peak_kbps(packets, 6)) <= 1.02 * 1.5 * mean
    assert about["peak_of_bound"] <= 1.02 and made.trusted
    assert {"cap", "buffer"} <= {name for t in about["trials"] for name in t["params"]}
    # the scenes that the cap leaves alone are the encodes of before
    assert any(trial["cached"] and not trial["params"] for trial in about["trials"])


@pytest.mark.slow
def test_without_a_buffer_model_scenes_above_the_bound_have_less_quality(
    title: Path, tmp_path: Path
) -> None:
    asked: dict[str, Any] = dict(codec="avs2", target_score=70, metric="vmaf", preset="0")
    free = encode_to_target(title, tmp_path / "free.avs2", **asked)
    most = 0.6 * free.document["peak_kbps"]
    made = encode_to_target(title, tmp_path / "out.avs2", max_peak=most, **asked)
    packets = stream_packets(made.path, "avs2", Fraction(25))
    assert max(peak_kbps(packets, 6), segment_peak_kbps(packets, 6)) <= 1.02 * most
    raised = [t for t in made.document["trials"] if "raised" in t["params"]]
    assert raised and all(float(t["params"]["raised"]) > t["knob"] for t in raised)
    # the scenes' knobs are those that the encoder had
    knobs = {float(t["params"].get("raised", t["knob"])) for t in made.document["trials"]}
    assert {scene["knob"] for scene in made.document["scenes"]} <= knobs


@pytest.mark.slow
def test_a_bound_that_holds_a_scene_back_is_named_and_not_tried_in_vain(tmp_path: Path) -> None:
    burst = make_bursty(tmp_path / "burst.mkv", "96x64", 20, after_s=2)
    made = encode_to_target(
        burst,
        tmp_path / "out.mp4",
        codec="av1",
        preset="13",
        metric="psnr",
        target_score=35,
        peak_ratio=1.5,
        guard="off",
    )
    about = made.document
    assert made.exit_code == 1 and about["peak_of_bound"] <= 1.02
    assert "held back by the bound of its peaks" in " ".join(about["warnings"])
    # at better knobs the burst is above its bound all the more: one encode stands for them all
    raised = [t["params"]["raised"] for t in about["trials"] if t["params"]]
    assert len(raised) > 4 and len(set(raised)) <= MOST_BOUNDS
