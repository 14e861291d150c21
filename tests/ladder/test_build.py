"""Real ladders of tiny titles: what is written, that it is true, that nothing is done twice."""

import csv
import itertools
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

import vqaloop
from tests.support.commandline import SMALL as SMALL_WORDS
from tests.support.commandline import Room, children
from tests.support.media import make_bursty, make_clip, run_ffmpeg, shared_clip
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.core.files import file_sha256
from vqaloop.core.folders import STUDY_FILE, is_study_file
from vqaloop.core.text import quoted
from vqaloop.encoding.options import with_cap
from vqaloop.encoding.registry import get_encoder, load_encoders
from vqaloop.errors import EncodeFailed, InputError, TargetUnreachable
from vqaloop.execution.capping import CappedEncode, PeakLimit, measure_peaks
from vqaloop.execution.workshop import Workshop
from vqaloop.ladder import steps
from vqaloop.ladder.reproduce import ladder_command
from vqaloop.ladder.summary import parts_line
from vqaloop.media.probe import probe_source
from vqaloop.media.scene_cuts import SceneExcerpts
from vqaloop.quality import full_reference
from vqaloop.ratecontrol.concat import join
from vqaloop.records import Cap, Encode, Event, Ladder, RDPoint, Rendition, Source
from vqaloop.search.audience import audience_of, delivered

SMALL: dict[str, Any] = {
    "metric": "psnr",
    "preset": "ultrafast",
    "resolutions": [(160, 96), (112, 64)],
    "min_step": 0.5,
    "min_ratio": 1.25,
}
NUMBER = (int, float)
RUNG = {
    "width": int,
    "height": int,
    "bitrate_kbps": NUMBER,
    "peak_kbps": NUMBER,
    "score": NUMBER,
    "score_predicted": NUMBER,
    "guard": {"vmaf": NUMBER, "psnr_y": NUMBER, "xpsnr": NUMBER},
    "knob": {"name": str, "value": NUMBER},
    "params": {},
    "cap": (dict, type(None)),
    "ffmpeg_args": [str],
    "file": str,
}
TRIAL = {
    "width": int,
    "height": int,
    "knob": NUMBER,
    "preset": str,
    "bitrate_kbps": NUMBER,
    "score": NUMBER,
    "whole_title": bool,
    "state": str,
    "error": type(None),
    "cached": bool,
}
CONTRACT: dict[str, Any] = {
    "schema": str,
    "vqaloop": str,
    "source": {
        "path": str,
        "sha256": str,
        "width": int,
        "height": int,
        "fps": NUMBER,
        "fps_exact": str,
        "frames": int,
        "duration": NUMBER,
    },
    "codec": str,
    "encoder": {
        "name": str,
        "library_version": str,
        "ffmpeg": str,
        "preset": str,
        "ffmpeg_path": str,
        "ffmpeg_version": str,
    },  # fmt: skip
    "metric": {
        "name": str,
        "mode": str,
        "weights_sha256": (str, type(None)),
        "label": (str, type(None)),
    },
    "rungs": [RUNG],
    "hull": [
        {
            "width": int,
            "height": int,
            "bitrate_kbps": NUMBER,
            "score": NUMBER,
            "knob": NUMBER,
            "measured": bool,
        }
    ],
    "trials": [TRIAL],
    "cost": {
        "encodes": int,
        "encoded_frames": int,
        "encoded_pixels": int,
        "encode_cpu_s": NUMBER,
        "score_s": NUMBER,
        "wall_s": NUMBER,
        "cache_hits": int,
        "cpu_s": NUMBER,
        "delivered_cpu_s": NUMBER,
        "overhead": (*NUMBER, type(None)),
        "processors": int,
        "busy": (*NUMBER, type(None)),
    },
    "guard": {"mode": str},
    "warnings": [str],
    "trusted": bool,
}
"""ladder.json: its keys and the types of their values; a list has items of one shape."""


def check_shape(value: Any, shape: Any, place: str = "ladder.json") -> None:
    if isinstance(shape, dict):
        assert isinstance(value, dict) and shape.keys() <= value.keys(), place
        for key, inner in shape.items():
            check_shape(value[key], inner, f"{place}.{key}")
    elif isinstance(shape, list):
        assert isinstance(value, list), place
        for item in value:
            check_shape(item, shape[0], f"{place}[]")
    else:
        kinds = shape if isinstance(shape, tuple) else (shape,)
        assert isinstance(value, shape) and (bool in kinds or not isinstance(value, bool)), place


def check_ladder(ladder: Ladder, min_step: float, min_ratio: float) -> dict[str, Any]:
    """All that holds of every ladder; its document."""
    text = (ladder.folder / "ladder.json").read_text()
    document: dict[str, Any] = json.loads(text)
    assert document == json.loads(json.dumps(ladder.to_json()))
    check_shape(document, CONTRACT)
    assert document["schema"] == "vqaloop.ladder/1"
    source = document["source"]
    assert source["sha256"] == file_sha256(source["path"])
    assert Fraction(source["fps_exact"]) == pytest.approx(source["fps"])
    rungs = document["rungs"]
    assert len(rungs) >= 2
    for low, high in zip(rungs, rungs[1:], strict=False):
        assert high["bitrate_kbps"] >= low["bitrate_kbps"] * min_ratio
        assert high["score"] >= low["score"] + min_step
    for rung in rungs:
        check_rung(ladder.folder / rung["file"], rung, document)
    wanted = {rung["file"] for rung in rungs}
    wanted |= {"ladder.json", "ladder.csv", "report.html", "rd.png", "pictures.json"}
    assert {p.name for p in ladder.folder.iterdir() if not is_study_file(p)} == wanted
    with open(ladder.folder / "ladder.csv", newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == [rung["file"] for rung in rungs]
    return document


def check_rung(path: Path, rung: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    """The file is of the codec, size and frames that are said, and as large."""
    # there is a worst second where all seconds were measured
    assert ("vmaf_worst_s" in rung["guard"]) != ("vmaf" in rung.get("guard_interval", {}))
    size = path.stat().st_size
    duration = document["source"]["duration"]
    assert rung["bitrate_kbps"] == pytest.approx(size * 8 / 1000 / duration, rel=1e-4)
    assert rung["peak_kbps"] >= rung["bitrate_kbps"]
    assert 0 <= rung["guard"]["vmaf"] <= 100
    if document["codec"] == "avs2":
        said = run_ffmpeg("-i", file_url(path), "-f", "framecrc", "-")
        assert (
            sum(not line.startswith(b"#") for line in said.splitlines())
            == (document["source"]["frames"])
        )
        return
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.codec.canonical_name == document["codec"]
        frames = list(container.decode(stream))
    assert len(frames) == document["source"]["frames"]
    assert {(frame.width, frame.height) for frame in frames} == {(rung["width"], rung["height"])}


def rungs_of(ladder: Ladder) -> list[dict[str, Any]]:
    """The rungs without what is a matter of the order in which they were tried."""
    return [{**rung.to_json(), "score_predicted": None} for rung in ladder.rungs]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "a.mp4", size="160x96", crf=10)


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 s, so that it is searched on an excerpt."""
    folder = tmp_path_factory.mktemp("long")
    return make_clip(folder / "long.mp4", size="160x96", frames=150, rate="5", crf=18)


@dataclass(frozen=True)
class Made:
    """A ladder of `clip`, made once for all tests that only read it or make it again."""

    ladder: Ladder
    events: list[Event]
    cache: Path


@pytest.fixture(scope="module")
def made(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder, events = tmp_path_factory.mktemp("made"), list[Event]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VQALOOP_CACHE", str(folder / "cache"))
        ladder = vqaloop.build_ladder(
            clip, codec="h264", out=folder / "out", progress=events.append, **SMALL
        )
    return Made(ladder, events, folder / "cache")


@pytest.fixture
def first(room: Room, made: Made) -> Ladder:
    """That ladder in the room's `out`, and the cache as it left it."""
    shutil.copytree(made.cache, room.cache, dirs_exist_ok=True)
    shutil.copytree(made.ladder.folder, room.folder / "out")
    return replace(made.ladder, folder=room.folder / "out")


@pytest.mark.drawn
def test_ladder_holds_what_it_says(made: Made) -> None:
    ladder, events = made.ladder, made.events
    assert any(event.left_s is not None for event in events)
    document = check_ladder(ladder, 0.5, 1.25)
    assert [event.stage for event in events[:1] + events[-1:]] == ["probe", "write"]
    told = [event.trial for event in events if event.stage == "search"]
    assert [trial.to_json() for trial in told if trial] == document["trials"]
    cost, frames = document["cost"], document["source"]["frames"]
    assert cost["encodes"] == len(document["trials"])
    assert cost["encoded_frames"] == cost["encodes"] * frames
    assert cost["encoded_pixels"] == sum(t["width"] * t["height"] for t in document["trials"]) * 12
    assert all(trial["whole_title"] for trial in document["trials"])
    assert document["estimate"] is None and document["windows"] == [[0, 12]]
    measured = {(t["width"], t["knob"]): t for t in document["trials"]}
    for rung in document["rungs"]:
        trial = measured[rung["width"], rung["knob"]["value"]]
        assert (trial["bitrate_kbps"], trial["score"]) == (rung["bitrate_kbps"], rung["score"])
    frame = ladder.to_frame()
    assert list(frame["bitrate_kbps"]) == [rung["bitrate_kbps"] for rung in document["rungs"]]


def test_scores_are_those_of_the_delivered_files(clip: Path, made: Made) -> None:
    ladder, source, binary = made.ladder, probe_source(clip), ffmpeg_path()
    for rung in ladder.rungs:
        found = full_reference.measure(
            source, ladder.folder / rung.file, {"vmaf": 3, "psnr": 1}, ffmpeg=binary
        )
        assert rung.score == pytest.approx(found["psnr"].value, abs=1e-6)
        assert rung.guard["psnr_y"] == pytest.approx(found["psnr"].value, abs=1e-6)
        assert rung.guard["vmaf"] == pytest.approx(found["vmaf"].value, abs=1e-6)


def test_a_figure_of_the_guard_that_steers_is_the_score(room: Room, clip: Path) -> None:
    options = {**SMALL, "metric": "vmaf", "min_step": 2, "rungs": 2}
    ladder = vqaloop.build_ladder(clip, codec="h264", out="out", **options)
    for rung in ladder.rungs:
        found = full_reference.measure(
            probe_source(clip), ladder.folder / rung.file, ["vmaf"], ffmpeg=ffmpeg_path()
        )
        # of all frames, where the guard of other ladders has a third
        assert rung.guard["vmaf"] == rung.score == pytest.approx(found["vmaf"].value, abs=1e-6)
        assert 0 < rung.guard["vmaf_worst_s"] <= rung.score + 1e-6


@pytest.mark.slow
def test_a_ladder_of_4k_is_trusted(room: Room, tmp_path: Path) -> None:
    still = shared_clip("bedroom_kids.mp4")
    if still is None:
        pytest.skip("needs a real clip: the student does not know synthetic ones")
    clip = tmp_path / "4k.mp4"
    whole = "scale=3840:2160:flags=lanczos,setsar=1"
    coded = ("-frames:v", "24", "-c:v", "libx264", "-preset", "ultrafast", "-crf", "14")
    run_ffmpeg("-i", file_url(still), "-an", "-vf", whole, *coded, file_url(clip))
    sizes = ("--resolutions", "3840x2160,1920x1080,960x540", "--rungs", "3")
    words = ("--codec", "h264", "--preset", "veryfast", "--budget", "90", *sizes)
    said = room.run("ladder", clip, *words, "-o", "out", "--quiet")
    assert said.status == 0, said.out
    rungs = room.document()["rungs"]
    assert len(rungs) == 3
    # the 4K model alone would have made the lowest rung untrusted
    low = rungs[0]
    assert low["guard"]["vmaf"] - low["score"] > low["guard"]["vmaf_hd"] - low["score"]


def test_arguments_replayed_give_the_file_again(tmp_path: Path, clip: Path, made: Made) -> None:
    ladder = made.ladder
    for rung in ladder.rungs:
        again = tmp_path / rung.file
        run_ffmpeg("-i", file_url(clip), *rung.ffmpeg_args, file_url(again))
        assert ladder.about["encoder"]["ffmpeg_path"] == ffmpeg_path()
        assert again.stat().st_size == pytest.approx(
            (ladder.folder / rung.file).stat().st_size, rel=0.01
        )


@pytest.fixture(scope="module")
def bursty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two calm seconds, two of noise, two calm."""
    path = tmp_path_factory.mktemp("bursty") / "bursty.mkv"
    return make_bursty(path, "160x96", 20, after_s=2)


def test_rungs_keep_their_peaks(room: Room, bursty: Path) -> None:
    options = {**SMALL, "preset": "veryfast", "rungs": 2, "min_ratio": 1.2, "guard": "off"}
    free = vqaloop.build_ladder(bursty, codec="h264", out="free", no_cap=True, **options)
    assert all(rung.cap is None for rung in free.rungs)
    assert max(rung.peak_kbps / rung.bitrate_kbps for rung in free.rungs) > 2
    ladder = vqaloop.build_ladder(bursty, codec="h264", out="capped", peak_ratio=1.8, **options)
    capped = [rung for rung in ladder.rungs if rung.cap]
    assert capped and ladder.trusted
    for rung in ladder.rungs:
        # the container, which the average counts and the peak does not, makes this the looser one
        assert rung.peak_kbps <= 1.02 * 1.8 * rung.bitrate_kbps
        again = room.folder / "again.mp4"
        run_ffmpeg("-i", file_url(bursty), *rung.ffmpeg_args, file_url(again))
        assert again.read_bytes() == (ladder.folder / rung.file).read_bytes()
        assert not {"cap", "buffer"} & rung.params.keys()
    assert capped[0].cap and capped[0].to_json()["cap"] == {
        "maxrate_kbps": capped[0].cap.maxrate_kbps,
        "buffer_kbit": capped[0].cap.buffer_kbit,
    }
    assert ladder.about["asked"]["peak_ratio"] == 1.8
    assert any("cap" in trial["params"] for trial in ladder.about["trials"])
    scores = [rung.score for rung in ladder.rungs]
    assert scores == sorted(scores)
    command = ladder_command(ladder)
    assert command[command.index("--peak-ratio") + 1] == "1.8"
    assert [rung.cap for rung in vqaloop.read_ladder("capped").rungs] == [
        rung.cap for rung in ladder.rungs
    ]
    for folder, warned in (("free", True), ("capped", False)):
        found = vqaloop.package_ladder(folder, segment_s=2).about["warnings"]
        assert any("times its average rate" in line for line in found) == warned
    assert "Dotted lines are caps" in (ladder.folder / "report.html").read_text()
    second = vqaloop.build_ladder(bursty, codec="h264", out="again", peak_ratio=1.8, **options)
    assert second.about["cost"]["encodes"] == 0
    # of what was tried only one rung keeps the default, which nobody asked for
    default = vqaloop.build_ladder(bursty, codec="h264", out="default", **options)
    assert [r.to_json() for r in default.rungs] == [r.to_json() for r in free.rungs]
    assert "too few would be left for a ladder" in " ".join(default.about["warnings"])
    assert default.trusted


def test_without_a_buffer_model_parts_of_a_rung_keep_its_peak(room: Room, bursty: Path) -> None:
    options = {**SMALL, "preset": "13", "rungs": 2}
    ladder = vqaloop.build_ladder(bursty, codec="av1", out="out", peak_ratio=1.8, **options)
    assert ladder.trusted and all(rung.cap is None for rung in ladder.rungs)
    parted = [rung for rung in ladder.rungs if rung.scenes]
    assert parted
    spec, source = get_encoder("libsvtav1"), probe_source(bursty, ffmpeg=ffmpeg_path())
    for rung in parted:
        peaks = measure_peaks(ladder.folder / rung.file, spec, source)
        assert peaks.highest_kbps <= 1.02 * 1.8 * peaks.mean_kbps
        assert "raised" not in rung.params
        knobs = [scene.knob for scene in rung.scenes]
        # the burst alone gives way
        assert knobs[0] == rung.knob[1] == knobs[-1] < min(knobs[1:-1])
        # below a ratio of 2 there is a key frame a second
        assert all(scene.start_frame % 25 == 0 for scene in rung.scenes)
        assert rung.scenes[1].start_frame == 50 and rung.scenes[-1].start_frame == 100
        assert rung.scenes[-1].end_frame == source.frames
        assert all(scene.score is None for scene in rung.scenes)
        files = [room.folder / f"part{at}.mp4" for at in range(len(knobs))]
        for scene, out in zip(rung.scenes, files, strict=True):
            run_ffmpeg("-y", "-i", file_url(bursty), *rung.scene_args(scene), file_url(out))
        whole = room.folder / "whole.mp4"
        join(files, source, whole, spec=spec, ffmpeg=ffmpeg_path(), others=False)
        assert whole.read_bytes() == (ladder.folder / rung.file).read_bytes()
        with pytest.raises(InputError, match=f"made of {len(knobs)} scenes"):
            rung.to_ffmpeg(bursty)
    again = vqaloop.read_ladder("out").rungs
    assert [r.to_json() for r in again] == [r.to_json() for r in ladder.rungs]
    assert ladder.about["cost"]["overhead"] > 1
    found = vqaloop.package_ladder("out", segment_s=2).about["warnings"]
    assert not any("times its average rate" in line for line in found)
    page = (ladder.folder / "report.html").read_text()
    assert "quality is lower where the title was above its bound" in page
    places = ", ".join(str(at) for at, rung in enumerate(ladder.rungs, 1) if rung.scenes)
    assert f" {places}: less quality than the knob says" in parts_line(ladder)
    marked = [trial for trial in ladder.about["trials"] if trial.get("parts")]
    assert len(marked) == len(parted) and all(trial["gop"] == 25 for trial in marked)
    second = vqaloop.build_ladder(bursty, codec="av1", out="again", peak_ratio=1.8, **options)
    assert second.about["cost"]["encodes"] == 0
    assert [r.to_json() for r in second.rungs] == [r.to_json() for r in ladder.rungs]


def test_rungs_in_two_passes_meet_their_average(room: Room, bursty: Path) -> None:
    options = {**SMALL, "preset": "veryfast", "rungs": 2, "peak_ratio": 1.8, "guard": "off"}
    ladder = vqaloop.build_ladder(bursty, codec="h264", out="two", two_pass=True, **options)
    assert len(ladder.rungs) == 2 and any(rung.cap for rung in ladder.rungs)
    logs = room.folder / "logs"
    logs.mkdir()
    spec, source = load_encoders()["libx264"], probe_source(bursty, ffmpeg=ffmpeg_path())
    for rung in ladder.rungs:
        passes, path = rung.two_pass, ladder.folder / rung.file
        assert passes and rung.file.endswith(f"_{passes.goal_kbps}k.mp4")
        found = measure_peaks(path, spec, source)
        assert passes.mean_kbps == pytest.approx(found.mean_kbps)
        # the cap of a burst keeps the mean down; what it misses is said
        assert passes.mean_kbps == pytest.approx(passes.goal_kbps, rel=0.15)
        warned = f"{passes.goal_kbps} were the goal" in " ".join(ladder.about["warnings"])
        assert warned == (abs(passes.missed) > 0.05)
        assert found.highest_kbps <= 1.02 * 1.8 * found.mean_kbps
        for output in ((*passes.first_pass_args, "-"), (*rung.ffmpeg_args, "again.mp4")):
            run_ffmpeg("-y", "-i", file_url(bursty), *output, cwd=logs)
        assert (logs / "again.mp4").read_bytes() == path.read_bytes()
        assert not {"cap", "buffer", "mean"} & rung.params.keys()
        assert rung.to_pyav()["options"].keys().isdisjoint({"pass", "passlogfile"})
        graph = rung.first_pass(bursty)
        assert graph is not None and "null" in graph.compile()
        assert "2" in rung.to_ffmpeg(bursty).compile()
    # each pass counts: of the trials one, of a rung's encodes two
    trials = [trial for trial in ladder.about["trials"] if "mean" not in trial["params"]]
    most = ladder.about["cost"]["encodes"] - len(trials)
    assert most % 2 == 0 and most >= 4
    again = vqaloop.read_ladder("two").rungs[0].two_pass
    assert again and again.to_json() == ladder.rungs[0].to_json()["two_pass"]
    assert "--two-pass" in ladder_command(ladder)
    assert "-pass 1" in (ladder.folder / "report.html").read_text()
    table = ladder.to_frame()
    assert list(table["goal_kbps"]) == [r.two_pass.goal_kbps for r in ladder.rungs if r.two_pass]
    assert not [p for p in Path(tempfile.gettempdir()).glob("vqaloop-*/*vqaloop-pass*")]


def test_a_rung_of_which_two_passes_fail_stays_in_one(
    room: Room, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: steps.Loop, source: Source, rendition: Rendition, goal: int) -> Encode:
        raise EncodeFailed("the first pass crashed")

    monkeypatch.setattr(steps.Loop, "_at_mean", fail)
    options = {**SMALL, "rungs": 2}
    ladder = vqaloop.build_ladder(clip, codec="h264", out="out", two_pass=True, **options)
    assert len(ladder.rungs) == 2 and not any(rung.two_pass for rung in ladder.rungs)
    said = " ".join(ladder.about["warnings"])
    assert said.count("this rung is one pass: the first pass crashed") == 2


def test_encoders_of_one_pass_are_refused(room: Room, clip: Path) -> None:
    with pytest.raises(InputError, match="libxavs2 makes no rung in two passes: .*no second"):
        vqaloop.build_ladder(clip, codec="avs2", out="out", two_pass=True)
    assert not (room.folder / "out").exists()


def test_the_default_spoils_no_rung(
    room: Room, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(
        shop: Workshop,
        source: Source,
        plain: Encode,
        limit: PeakLimit,
        excerpts: SceneExcerpts,
        share: float | None,
    ) -> CappedEncode:
        poor = with_cap(replace(plain.rendition, knob=51), Cap(50, 25))
        return CappedEncode(shop.encode(source, poor), 0.9, 1)

    monkeypatch.setattr(steps, "keep_title_peak", spoil)
    options = {**SMALL, "rungs": 2, "guard": "off"}
    ladder = vqaloop.build_ladder(clip, codec="h264", out="out", **options)
    assert [rung.cap for rung in ladder.rungs] == [None, None]
    # a bound that was asked for is kept whatever it costs, and then there is no ladder
    with pytest.raises(TargetUnreachable, match="under the bound of their peaks"):
        vqaloop.build_ladder(clip, codec="h264", out="asked", peak_ratio=2.0, **options)


@pytest.mark.parametrize(
    ("codec", "preset"),
    [("hevc", "ultrafast"), ("vp9", None), ("av1", "12"), ("avs2", "0")],
)
def test_every_codec(room: Room, clip: Path, codec: str, preset: str | None) -> None:
    options = {**SMALL, "preset": preset, "resolutions": [(160, 96), (128, 78)]}
    ladder = vqaloop.build_ladder(clip, codec=codec, out="out", rungs=2, **options)
    check_ladder(ladder, 0.5, 1.25)


def test_the_student_makes_a_ladder(room: Room, clip: Path) -> None:
    """The default metric, with the weights that come with the package."""
    ladder = vqaloop.build_ladder(
        clip, codec="h264", preset="ultrafast", resolutions=[(160, 96)], rungs=2, min_step=2,
        out="out",
    )  # fmt: skip
    document = check_ladder(ladder, 2, 1.4)
    metric = document["metric"]
    assert (metric["name"], metric["mode"]) == ("internvqa-mini", "anchored")
    assert len(metric["weights_sha256"]) == 64 and "VMAF" in metric["label"]
    again = vqaloop.build_ladder(
        clip, codec="h264", preset="ultrafast", resolutions=[(160, 96)], rungs=2, min_step=2,
        out="again",
    )  # fmt: skip
    cost = again.about["cost"]
    assert (cost["encodes"], cost["score_s"]) == (0, 0)
    assert [rung.to_json() for rung in again.rungs] == document["rungs"]


def test_a_second_run_encodes_nothing(room: Room, clip: Path, first: Ladder) -> None:
    second = vqaloop.build_ladder(clip, codec="h264", out="two", **SMALL)
    cost = second.about["cost"]
    assert first.about["cost"]["encodes"] > 0
    assert (cost["encodes"], cost["encoded_frames"], cost["encode_cpu_s"]) == (0, 0, 0)
    assert (cost["score_s"], cost["guard_s"]) == (0, 0)
    assert [rung.to_json() for rung in second.rungs] == [rung.to_json() for rung in first.rungs]
    assert all(trial["cached"] for trial in second.about["trials"])
    for rung in first.rungs:
        one, two = ((room.folder / name / rung.file).read_bytes() for name in ("out", "two"))
        assert one == two


def test_a_moved_source_is_the_same_source(room: Room, clip: Path, first: Ladder) -> None:
    (room.folder / "elsewhere.mp4").write_bytes(clip.read_bytes())
    moved = vqaloop.build_ladder("elsewhere.mp4", codec="h264", **SMALL)
    assert moved.about["cost"]["encodes"] == 0
    assert moved.folder == Path("elsewhere.h264.ladder")


def test_several_workers_make_the_same_ladder(room: Room, clip: Path) -> None:
    """Also as many as the processors allow; trials are in the same order."""
    options = {**SMALL, "guard": "off"}
    one = vqaloop.build_ladder(clip, codec="h264", out="one", cache=False, workers=1, **options)
    for workers in (2, None):
        two = vqaloop.build_ladder(
            clip, codec="h264", out=f"{workers}", cache=False, workers=workers, **options
        )
        assert two.about["cost"]["encodes"] == one.about["cost"]["encodes"]
        assert rungs_of(one) == rungs_of(two)
        assert two.about["trials"] == one.about["trials"]
        files = [(rung.file, (two.folder / rung.file).read_bytes()) for rung in two.rungs]
        assert files == [(rung.file, (one.folder / rung.file).read_bytes()) for rung in one.rungs]


def test_damage_to_a_delivered_file_is_no_damage_to_the_cache(
    room: Room, clip: Path, first: Ladder
) -> None:
    path = first.folder / first.rungs[0].file
    whole = path.read_bytes()
    path.write_bytes(b"")
    second = vqaloop.build_ladder(clip, codec="h264", out="out", **SMALL)
    assert second.about["cost"]["encodes"] == 0
    assert path.read_bytes() == whole


def test_bitrates_are_kept_within_bounds(room: Room, clip: Path) -> None:
    ladder = vqaloop.build_ladder(
        clip, codec="h264", out="out", min_bitrate=80, max_bitrate=220, guard="off", **SMALL
    )
    assert all(80 <= rung.bitrate_kbps <= 220 for rung in ladder.rungs)
    assert ladder.about["rules"]["max_kbps"] == 220


def test_a_slow_probe_is_announced(
    room: Room, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqaloop.execution.stage_progress.NOTICE_S", 0.0)
    events: list[Event] = []
    with pytest.raises(vqaloop.InputError, match="larger than"):
        vqaloop.build_ladder(
            clip, codec="h264", progress=events.append, **{**SMALL, "resolutions": [(320, 180)]}
        )
    assert [event.message for event in events] == [f"looking at {quoted(clip)}"]


def kept(folder: Path) -> dict[str, bytes]:
    """What is in a folder, but for the study."""
    files = [path for path in folder.iterdir() if not is_study_file(path)]
    return {path.name: path.read_bytes() for path in files}


def interrupting(stage: str, count: int) -> Callable[[Event], None]:
    """A watcher that interrupts at the n-th event of a stage."""
    seen = 0

    def watch(event: Event) -> None:
        nonlocal seen
        seen += event.stage == stage
        if seen == count:
            raise KeyboardInterrupt

    return watch


def test_a_long_title_is_searched_on_an_excerpt(room: Room, long_clip: Path) -> None:
    options = {**SMALL, "rungs": 3, "min_step": 1.0}
    events: list[Event] = []
    ladder = vqaloop.build_ladder(
        long_clip, codec="h264", out="out", progress=events.append, **options
    )
    document = check_ladder(ladder, 1.0, 1.25)
    stages = list(dict.fromkeys(event.stage for event in events))
    assert stages == ["probe", "excerpt", "search", "verify", "guard", "write"]
    windows = document["windows"]
    assert len(windows) == 5 and sum(count for _, count in windows) == 100
    parts = [trial for trial in document["trials"] if not trial["whole_title"]]
    whole = [trial for trial in document["trials"] if trial["whole_title"]]
    assert len(parts) >= 4 and len(whole) >= len(document["rungs"])
    found = {(t["width"], t["knob"]): t for t in whole}
    for rung in document["rungs"]:
        trial = found[rung["width"], rung["knob"]["value"]]
        assert (trial["bitrate_kbps"], trial["score"]) == (rung["bitrate_kbps"], rung["score"])
        assert rung["score_predicted"] != rung["score"]
        assert rung["score_predicted"] == pytest.approx(rung["score"], abs=1.8)
    # how far the excerpt was off, where both were measured or believed
    estimate = document["estimate"]
    assert 1 <= estimate["encodes"] <= len(whole)
    assert abs(estimate["score"]) <= abs(estimate["score_worst"]) <= 3
    assert abs(estimate["bitrate_percent"]) <= abs(estimate["bitrate_percent_worst"])
    cost = document["cost"]
    assert cost["encoded_frames"] == len(parts) * 100 + len(whole) * 150
    assert ladder.trusted
    again = vqaloop.build_ladder(long_clip, codec="h264", out="again", **options)
    assert again.about["cost"]["encodes"] == 0
    assert [r.to_json() for r in again.rungs] == [r.to_json() for r in ladder.rungs]


def test_an_excerpt_is_searched_at_the_preset_of_probes(room: Room, long_clip: Path) -> None:
    options = {**SMALL, "rungs": 2, "min_step": 1.0, "preset": "faster", "guard": "off"}
    options["resolutions"] = [(160, 96)]
    ladder = vqaloop.build_ladder(long_clip, codec="h264", out="out", **options)
    made = {(trial["whole_title"], trial["preset"]) for trial in ladder.about["trials"]}
    assert made == {(False, "veryfast"), (True, "faster")}
    assert ladder.about["encoder"]["preset"] == "faster"
    for rung in ladder.rungs:
        assert rung.ffmpeg_args[rung.ffmpeg_args.index("-preset") + 1] == "faster"
    dear = vqaloop.build_ladder(long_clip, codec="h264", out="dear", no_probe=True, **options)
    assert {trial["preset"] for trial in dear.about["trials"]} == {"faster"}


def test_interrupted_in_every_stage(room: Room, long_clip: Path) -> None:
    """Nothing is left behind but the cache; the next run is spared what was done."""
    options = {**SMALL, "rungs": 2, "min_step": 1.0, "guard": "off"}
    for stage, count in (("excerpt", 1), ("search", 3), ("verify", 1), ("write", 1)):
        with pytest.raises(KeyboardInterrupt):
            vqaloop.build_ladder(
                long_clip, codec="h264", out="new/out", progress=interrupting(stage, count),
                **options,
            )  # fmt: skip
        assert not children() and not list(room.temp.iterdir())
        left = [path for path in room.folder.rglob("*") if path.is_file()]
        assert [path.name for path in left if not is_study_file(path)] == [], stage
        assert (room.folder / "new" / "out" / STUDY_FILE).is_file()
    ladder = vqaloop.build_ladder(long_clip, codec="h264", out="out", **options)
    assert ladder.about["cost"]["encodes"] == 0


def test_an_old_ladder_survives_an_interruption(room: Room, clip: Path, first: Ladder) -> None:
    before = kept(first.folder)
    options = {**SMALL, "resolutions": [(144, 88), (112, 64)], "guard": "off", "rungs": 2}
    with pytest.raises(KeyboardInterrupt):
        vqaloop.build_ladder(
            clip, codec="h264", out="out", progress=interrupting("write", 1), **options
        )
    assert kept(first.folder) == before


def test_a_missed_prediction_is_status_3(
    room: Room, long_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqaloop.ladder.warnings.TOLERANCE_STEPS", 0.0)
    sizes = ("--resolutions", "160x96", "--preset", "ultrafast", "--guard", "off")
    words = ("--codec", "h264", "--metric", "psnr", "--rungs", "2", "--min-step", "1", *sizes)
    said = room.run("ladder", long_clip, *words, "-o", "out", "--quiet")
    assert said.status == 3, said.err
    assert "not to be trusted" in said.out
    document = room.document()
    assert document["trusted"] is False
    assert any("predicted" in note for note in document["warnings"])
    assert room.run("report", "out", "--json", "-").status == 0


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"rungs": 1}, "at least 2 rungs"),
        ({"workers": 0}, "at least one worker"),
        ({"seed": -1}, "must not be negative"),
        ({"device": "tpu"}, "unknown device"),
        ({"timeout_s": float("inf")}, "time limit"),
        ({"resolutions": [(161, 96)]}, "larger than the source"),
        ({"weights": "x"}, "psnr takes no weights"),
    ],
)
def test_refused_before_any_work(room: Room, clip: Path, more: dict[str, Any], says: str) -> None:
    with pytest.raises(vqaloop.InputError, match=says):
        vqaloop.build_ladder(clip, codec="h264", out="out", **{**SMALL, **more})
    assert not list(room.folder.iterdir()) and not list(room.cache.iterdir())


def test_a_pool_steers_a_ladder_and_stands_beside_the_mean(room: Room) -> None:
    burst = "noise=alls=40:allf=t:enable='between(n,10,19)'"
    clip = make_clip(room.folder / "burst.y4m", size="160x96", frames=30, rate="10", vf=burst)
    words = ("burst.y4m", *SMALL_WORDS, "--resolutions", "160x96")
    plain = room.ladder(*words, out="plain")
    said = room.run("ladder", *words, "--pool", "p1", "-o", "out")
    document = room.document("out")
    assert (document["metric"]["pool"], document["asked"]["pool"]) == ("p1", "p1")
    for rung in document["rungs"]:
        mean, low = (
            vqaloop.Scorer("psnr", pool=pool).score(f"out/{rung['file']}", clip).value
            for pool in ("mean", "p1")
        )
        assert rung["score_mean"] == pytest.approx(mean, abs=1e-4)
        assert rung["score"] == pytest.approx(low, abs=1e-4) and low < mean - 2
    assert any(trial.get("score_mean") for trial in document["trials"])
    assert re.search(r"p1 +mean +predicted", said.out)
    page = Path("out/report.html").read_text()
    assert ">p1<" in page and "psnr by p1" in page
    assert "score_mean" in Path("out/ladder.csv").read_text().splitlines()[0]
    assert room.run("report", "out").status == said.status
    assert room.document("out") == document
    # without it nothing is new
    assert "score_mean" not in json.dumps(plain) and "pool" not in json.dumps(plain)
    # what the mean's search has encoded and scored is not made again
    both = {(t["knob"], t["cached"]) for t in document["trials"]}
    assert all(cached for knob, cached in both if knob in {t["knob"] for t in plain["trials"]})
    compared = room.run("report", "plain", "out")
    assert "full-reference, by p1" in " ".join(compared.out.split())


def test_an_audience_and_sizes_as_asked(room: Room, clip: Path) -> None:
    table = room.folder / "mine.csv"
    table.write_text("bandwidth_kbps,share\n100,1\n400,3\n")
    words = (clip, *SMALL_WORDS, "--resolutions", "160x96,112x64")
    said = room.run("ladder", *words, "--audience", table, "--bandwidth-share", "0.8", "-o", "out")
    document = room.document("out")
    found = document["audience"]
    assert (found["name"], found["bandwidth_share"]) == ("mine.csv", 0.8)
    assert found["sessions"] == [[100.0, 0.25, None], [400.0, 0.75, None]]
    rungs = document["rungs"]
    taken = [[r for r in rungs if r["bitrate_kbps"] <= 0.8 * rate][-1:] for rate in (100, 400)]
    parts = (0.25, 0.75)
    score = sum(part * rung[0]["score"] for part, rung in zip(parts, taken, strict=True) if rung)
    assert found["score"] == pytest.approx(score, abs=1e-3)
    assert "audience mine.csv: mean score" in said.out
    assert "Audience mine.csv: mean score" in Path("out/report.html").read_text()
    # nothing that was encoded could serve it better
    every = [
        RDPoint(t["width"], t["height"], 0, t["bitrate_kbps"], t["score"])
        for t in document["trials"]
    ]
    crowd = audience_of(found)
    assert all(
        delivered(crowd, pair).score <= found["score"] + 0.5
        for pair in itertools.combinations(every, 2)
        if abs(pair[0].score - pair[1].score) > 0.2
        and max(p.bitrate_kbps for p in pair) > 1.2 * min(p.bitrate_kbps for p in pair)
    )
    assert room.run("report", "out").status == said.status and room.document("out") == document
    large = room.ladder(*words, "--guard", "off", "--min-bottom-size", "160x96", out="large")
    assert {r["width"] for r in large["rungs"]} == {160}
    top = room.ladder(*words, "--max-bitrate", "300", "--min-top-size", "160x96", out="top")
    assert top["rungs"][-1]["width"] == 160 and top["rules"]["least_top"] == 160 * 96
