"""Students of opinion scores, and of other clips than a ladder's crops, compared with a source."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.media import make_clip
from tests.support.nets import random_student, student_metric
from vqaloop import build_ladder, compare_builds, encode_to_target
from vqaloop.cli.main import main
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.core.resources import WEIGHTS
from vqaloop.encoding.encode import encode
from vqaloop.encoding.registry import get_encoder
from vqaloop.errors import InputError
from vqaloop.ladder.store import read_ladder
from vqaloop.media.frames import read_source
from vqaloop.media.probe import probe_source
from vqaloop.models.score_scale import ScoreScale
from vqaloop.models.weights import load_student, save_student
from vqaloop.quality.clip_views import View
from vqaloop.quality.crop_sampling import CropSampling
from vqaloop.quality.metric import GUARD_GAP
from vqaloop.quality.registry import open_metric
from vqaloop.quality.scorer import Scorer
from vqaloop.quality.student_metric import StudentMetric
from vqaloop.quality.title_clips import clips_by_view
from vqaloop.records import Rendition, Source

FFMPEG = ffmpeg_path()
OWN = {"kind": "native", "frames": 2, "stride": 1, "size": 112, "clips": 4, "seed": 0}
SQUEEZED = {"kind": "squeezed", "frames": 4, "stride": 2, "size": 56, "clips": 3, "seed": 0}
NATIVE = {**SQUEEZED, "kind": "native"}
FRAGMENTS = {**SQUEEZED, "kind": "fragments", "size": 224}
KNOTS = ((10.0, 5.0), (60.0, 40.0), (95.0, 90.0))


def scale(mode: Any = "difference", **changed: Any) -> ScoreScale:
    return replace(ScoreScale("MOS of a test", mode, KNOTS, 3.0, 40, 5, "VMAF"), **changed)


def weights_of(
    folder: Path, view: dict[str, Any] | None, to_vmaf: ScoreScale | None, label: str = "MOS"
) -> Path:
    about = {"view": json.dumps(view), **({"scale": to_vmaf.to_json()} if to_vmaf else {})}
    return random_student(folder, "internvqa-mini", label, None, **about)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    clip = make_clip(tmp_path_factory.mktemp("clips") / "source.y4m", size="256x224", frames=12)
    return probe_source(clip, ffmpeg=FFMPEG)


def coded(source: Source, path: Path, size: tuple[int, int], knob: float, encoder: str) -> Path:
    spec = get_encoder(encoder)
    rendition = Rendition(*size, encoder, knob, spec.presets[-1])
    return encode(source, rendition, path, ffmpeg=FFMPEG).path


# --- which weights are taken ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("view", "to_vmaf", "label", "mode"),
    [
        (None, None, "VMAF v0.6.1", "anchored"),
        (OWN, None, "VMAF v0.6.1", "anchored"),
        (OWN, scale("anchored"), "MOS", "anchored"),
        (OWN, scale("difference"), "MOS", "difference"),
        (None, scale("difference"), "MOS", "difference"),
        (SQUEEZED, scale(), "MOS", "difference"),
        (FRAGMENTS, scale(), "MOS", "difference"),
        (NATIVE, scale(), "MOS", "difference"),
        (SQUEEZED, None, "VMAF v0.6.1", "difference"),
    ],
)
def test_how_weights_are_compared_with_a_source(
    tmp_path: Path, view: dict[str, Any] | None, to_vmaf: ScoreScale | None, label: str, mode: str
) -> None:
    metric = student_metric(weights_of(tmp_path, view, to_vmaf, label))
    metric.check(anchored=True)
    assert metric.mode == mode and metric.scale == to_vmaf


def test_opinions_without_a_map_judge_alone_only(tmp_path: Path, source: Source) -> None:
    metric = student_metric(weights_of(tmp_path, SQUEEZED, None))
    metric.check(anchored=False)
    assert metric.alone(source).mode == "no-reference"
    for ask in (
        lambda: metric.check(anchored=True),
        lambda: metric.measure(source, source.path, "pyav"),
        lambda: Scorer("internvqa-mine", weights=metric.weights).score(source.path, source.path),
    ):
        with pytest.raises(InputError, match="predict MOS, .* made with the sources"):
            ask()


def test_a_map_that_does_not_fit_its_weights_is_refused(tmp_path: Path) -> None:
    metric = student_metric(weights_of(tmp_path, SQUEEZED, scale("anchored")))
    with pytest.raises(InputError, match="cannot be anchored .squeezed clips of 4 frames"):
        metric.check(anchored=True)
    broken = random_student(tmp_path, "internvqa-mini", "MOS", scale="{}")
    with pytest.raises(InputError, match="the scale of weights .*: label is missing"):
        _ = student_metric(broken).ceiling


@pytest.mark.parametrize(
    ("view", "says"),
    [
        ({**NATIVE, "size": 64}, "fit their network, native clips of 4 frames of 64 pixels"),
        ({**SQUEEZED, "size": 64, "crop": 50}, "squeezed clips of 4 frames of 50 pixels"),
        ({**SQUEEZED, "kind": "round"}, "has no view that is known: view 'round' is not known"),
        ({**SQUEEZED, "size": "56"}, "has no view that is known: a value is of another type"),
        ({"lens": 3}, "has no view that is known: .*'lens'"),
    ],
)
def test_views_that_do_not_fit_are_refused_with_the_file(
    tmp_path: Path, source: Source, view: dict[str, Any], says: str
) -> None:
    weights = weights_of(tmp_path, view, scale())
    for reference in (None, source.path):
        with pytest.raises(InputError, match=f"internvqa-mine.safetensors.*{says}.*train them"):
            Scorer("internvqa-mine", weights=weights, device="cpu").score(source.path, reference)


@pytest.mark.parametrize(("view", "fits"), [(SQUEEZED, True), (NATIVE, True), (None, True),
                                            ({**NATIVE, "size": 224}, False),
                                            (FRAGMENTS, False)])  # fmt: skip
def test_sources_too_small_for_the_clips_are_refused_at_once(
    tmp_path: Path, view: dict[str, Any] | None, fits: bool
) -> None:
    metric = student_metric(weights_of(tmp_path, view, scale()))
    metric.check(anchored=True, canvas=(256, 224))
    if fits:
        return metric.check(anchored=True, canvas=(256, 216))
    with pytest.raises(InputError, match="clips of 224 pixels, and the picture is 256x216"):
        metric.check(anchored=True, canvas=(256, 216))


def test_limits_follow_the_map(tmp_path: Path) -> None:
    def opened(to_vmaf: ScoreScale | None) -> StudentMetric:
        weights = weights_of(tmp_path, OWN, to_vmaf, "MOS" if to_vmaf else "VMAF")
        metric = open_metric("internvqa-mine", weights=weights, ffmpeg=FFMPEG)
        assert isinstance(metric, StudentMetric)
        return metric

    usual = opened(None)
    assert (usual.ceiling, usual.floor, usual.guard_gap) == (95, 30, GUARD_GAP)
    fine = opened(scale("anchored"))
    assert (fine.ceiling, fine.floor, fine.guard_gap) == (95, 30, GUARD_GAP)
    low = scale("anchored", to_vmaf=((10.0, 5.0), (100.0, 50.0)), rmse=8.0)
    assert (opened(low).ceiling, opened(low).floor, opened(low).guard_gap) == (50, 25, 20)
    shipped = open_metric("internvqa", ffmpeg=FFMPEG)
    assert (shipped.ceiling, shipped.floor, shipped.guard_gap) == (95, 30, GUARD_GAP)
    assert (shipped.step, shipped.top, shipped.mode) == (4, 100, "anchored")


def test_identity_tells_the_manner_of_comparing(tmp_path: Path) -> None:
    def identity(view: dict[str, Any] | None, to_vmaf: ScoreScale) -> dict[str, Any]:
        found: dict[str, Any] = student_metric(weights_of(tmp_path, view, to_vmaf)).identity()
        return found

    anchored = identity(OWN, scale("anchored"))
    assert not {"mode", "view"} & anchored["sampling"].keys()
    squeezed = identity(SQUEEZED, scale())
    assert squeezed["sampling"]["mode"] == "difference"
    assert squeezed["sampling"]["view"]["kind"] == "squeezed"
    other = identity(SQUEEZED, scale(rmse=4.0))
    assert other["weights_sha256"] != squeezed["weights_sha256"]


# --- scores --------------------------------------------------------------------------------------


def test_an_anchored_score_is_mapped_with_the_opinion_beside(
    tmp_path: Path, source: Source
) -> None:
    rung = coded(source, tmp_path / "a.mp4", (96, 72), 40, "libx264")
    to_vmaf = scale("anchored")
    plain = student_metric(weights_of(tmp_path, OWN, None, "VMAF")).measure(source, rung, "pyav")
    found = student_metric(weights_of(tmp_path, OWN, to_vmaf)).measure(source, rung, "pyav")
    assert plain.opinion is None and plain.interval and found.interval
    assert found.opinion == plain.value and found.label == "MOS"
    assert found.value == to_vmaf.points(plain.value) != plain.value
    assert found.interval == tuple(map(to_vmaf.points, plain.interval))
    assert found.clips == tuple(map(to_vmaf.points, plain.clips))
    assert found.places == plain.places
    assert found.moments == tuple((t, to_vmaf.points(x)) for t, x in plain.moments)
    # a precision in points of VMAF is none of answers
    precise = student_metric(weights_of(tmp_path, OWN, to_vmaf), precision=50.0)
    assert precise.measure(source, rung, "pyav").clips == found.clips


@pytest.mark.parametrize("view", [SQUEEZED, NATIVE, FRAGMENTS, None])
def test_a_difference_is_that_of_the_answers_on_rung_and_source(
    tmp_path: Path, source: Source, view: dict[str, Any] | None
) -> None:
    metric = student_metric(weights_of(tmp_path, view, scale()))
    rung = coded(source, tmp_path / "a.mp4", (96, 72), 45, "libx264")
    found = metric.measure(source, rung, "pyav")
    # the same clips judged alone: at the source's size, but of whole pictures at their own
    canvas = None if view and view["kind"] == "squeezed" else source.canvas
    answers = metric.alone(probe_source(rung, ffmpeg=FFMPEG), canvas), metric.alone(source)
    ours, theirs = (answer.value for answer in answers)
    assert ours != pytest.approx(theirs, abs=0.01)
    assert found.mode == "difference" and found.opinion == pytest.approx(ours, abs=0.2)
    assert found.value == pytest.approx(scale().points(min(100, 100 - theirs + ours)), abs=0.3)
    assert found.interval and found.interval[0] <= found.value <= found.interval[1]
    assert len(found.clips) == (len(answers[1].clips) if view is None else 3)
    assert len(found.moments) == (len({place[0] for place in found.places}) if view is None else 3)
    # the source itself is as good as can be
    itself = metric.compare(source, lambda i: read_source(source, i, ffmpeg=FFMPEG), None)
    assert itself.value == scale().points(100.0)


def test_the_source_is_judged_once_for_all_rungs(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = student_metric(weights_of(tmp_path, NATIVE, scale()))
    rungs = [coded(source, tmp_path / f"{n}.mp4", (96, 72), n, "libx264") for n in (20, 40)]
    one = metric.measure(source, rungs[0], "pyav")
    monkeypatch.setattr("vqaloop.quality.student_metric.each_of_source", None)
    other = metric.measure(source, rungs[1], "pyav")
    assert metric.measure(source, rungs[0], "pyav").clips == one.clips != other.clips
    assert len(metric.answers.kept) == 1 and not metric.anchors.kept


def test_a_raw_avs2_rung_is_compared_as_its_pictures_are(tmp_path: Path, source: Source) -> None:
    metric = student_metric(weights_of(tmp_path, SQUEEZED, scale()))
    rung = coded(source, tmp_path / "a.avs2", (96, 72), 40, "libxavs2")
    found = metric.measure(source, rung, "ffmpeg")
    alone = Scorer("internvqa-mine", weights=metric.weights, device="cpu").score(rung)
    assert found.opinion == pytest.approx(alone.value, abs=1e-4)
    with pytest.raises(Exception, match="no.avs2"):
        metric.measure(source, tmp_path / "no.avs2", "ffmpeg")


def test_finer_and_scene_by_scene_look_at_more_clips(tmp_path: Path, source: Source) -> None:
    metric = student_metric(weights_of(tmp_path, NATIVE, scale()))
    rung = coded(source, tmp_path / "a.mp4", (96, 72), 40, "libx264")
    finer = metric.finer().measure(source, rung, "pyav")
    assert len(finer.clips) == 12
    scenes = metric.scene_by_scene([(0, 4), (4, 8)])
    by_scene = scenes.measure(source, rung, "pyav")
    assert len(by_scene.clips) == 6 and scenes.identity() != metric.identity()
    assert [frame < 4 for frame, _ in by_scene.moments] == [True] * 3 + [False] * 3


# --- canvas --------------------------------------------------------------------------------------


def test_alone_and_against_a_source_clips_are_of_one_canvas(
    tmp_path: Path, source: Source
) -> None:
    """In training a small encode is scaled to the largest size of its content and then cut."""
    rung = coded(source, tmp_path / "96x72_crf40.mp4", (96, 72), 40, "libx264")
    weights = weights_of(tmp_path, NATIVE, scale())
    scorer = Scorer("internvqa-mine", weights=weights, device="cpu")
    against = scorer.score(rung, source.path)
    own, at_canvas = scorer.score(rung), scorer.score(rung, canvas=source.canvas)
    assert against.opinion == pytest.approx(at_canvas.value, abs=0.2)
    document = {"schema": "vqaloop.ladder/1", "source": {"width": 256, "height": 224}}
    rungs = {**document, "rungs": [{"file": rung.name}]}
    (tmp_path / "ladder.json").write_text(json.dumps(rungs), encoding="ascii")
    assert scorer.canvas_of(rung) == (256, 224)
    beside = scorer.score(rung)
    assert beside.clips == at_canvas.clips != own.clips


def test_squeezed_pictures_are_taken_at_the_size_of_their_file(
    tmp_path: Path, source: Source
) -> None:
    rung = coded(source, tmp_path / "a.mp4", (96, 72), 40, "libx264")
    (tmp_path / "ladder.json").write_text(
        json.dumps({"schema": "vqaloop.ladder/1", "source": {"width": 256, "height": 224},
                    "rungs": [{"file": rung.name}]}), encoding="ascii",
    )  # fmt: skip
    weights = weights_of(tmp_path, SQUEEZED, scale())
    scorer = Scorer("internvqa-mine", weights=weights, device="cpu")
    assert scorer.canvas_of(rung) is None
    against = scorer.score(rung, source.path)
    assert against.opinion == pytest.approx(scorer.score(rung).value, abs=1e-4)
    with pytest.raises(InputError, match="whatever theirs is; leave out --canvas"):
        scorer.score(rung, canvas=(160, 120))


def test_moments_are_in_the_middle_of_their_clips() -> None:
    view = View("squeezed", frames=8, stride=8, size=56, clips=2)
    clips = clips_by_view(view, CropSampling(), 400, (160, 120))
    assert clips.shares == [0.5, 0.5] and clips.times == [86 + 27, 257 + 27]
    assert clips.counts == [1, 1] and not clips.places


def test_the_command_tells_points_and_opinion(
    tmp_path: Path, source: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    rung = coded(source, tmp_path / "a.mp4", (96, 72), 40, "libx264")
    weights = weights_of(tmp_path, SQUEEZED, scale())
    argv = ["score", str(rung), "--reference", str(source.path), "--device", "cpu"]
    chosen = ["--metric", "internvqa-mine", "--weights", str(weights)]
    assert main([*argv, *chosen, "--json", str(tmp_path / "it.json")]) == 0
    said = capsys.readouterr()
    found = json.loads((tmp_path / "it.json").read_text("ascii"))
    assert found["mode"] == "difference" and found["label"] == "MOS"
    words = f"In VMAF points; {found['opinion']:.2f} as MOS."
    assert words in said.out + said.err and f"internvqa-mine of {str(weights)!r}, " in said.out
    assert main(["score", str(rung), *chosen, "--json", str(tmp_path / "alone.json")]) == 0
    assert "opinion" not in json.loads((tmp_path / "alone.json").read_text("ascii"))


# --- ladders -------------------------------------------------------------------------------------


def test_a_ladder_by_differences(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The no-reference head that comes with the package, on squeezed pictures."""
    monkeypatch.setenv("VQALOOP_CACHE", str(tmp_path / "cache"))
    student, _ = load_student(WEIGHTS / "internvqa-mini.safetensors")
    view = json.dumps({**SQUEEZED, "frames": 2, "size": 112})
    to_vmaf = scale(to_vmaf=((60.0, 30.0), (100.0, 99.0)))
    about = {"view": view, "scale": to_vmaf.to_json()}
    weights = tmp_path / "w.safetensors"
    save_student(student, weights, "internvqa-mini", "MOS", about)
    ladder = build_ladder(
        source.path, codec="h264", preset="ultrafast", metric="internvqa-mine", weights=weights,
        resolutions=[(256, 224)], rungs=2, min_step=0.5, out=tmp_path / "out", device="cpu",
    )  # fmt: skip
    document = json.loads((tmp_path / "out" / "ladder.json").read_text("ascii"))
    metric = document["metric"]
    assert (metric["mode"], metric["label"]) == ("difference", "MOS")
    assert ScoreScale.from_json(json.dumps(metric["scale"]), "it") == to_vmaf
    low, high = ladder.rungs
    assert low.score < high.score and low.guard["vmaf"] < high.guard["vmaf"]
    assert low.opinion and high.opinion and low.opinion < high.opinion
    assert [rung["opinion"] for rung in document["rungs"]] == [
        pytest.approx(rung.opinion, abs=1e-4) for rung in ladder.rungs
    ]
    assert document["worst"] and document["worst"][0]["left"] is None
    table = (tmp_path / "out" / "ladder.csv").read_text("utf-8").splitlines()
    assert "score,score_predicted,opinion," in table[0]
    assert read_ladder(tmp_path / "out").rungs[0].opinion == pytest.approx(low.opinion, abs=1e-4)


@pytest.fixture
def opinions_on_vmaf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The shipped student as one of opinions, with a map; arguments that choose it."""
    monkeypatch.setenv("VQALOOP_CACHE", str(tmp_path / "cache"))
    student, _ = load_student(WEIGHTS / "internvqa-mini.safetensors")
    to_vmaf = scale("anchored", to_vmaf=((0.0, 10.0), (100.0, 95.0)))
    about = {"view": json.dumps(OWN), "scale": to_vmaf.to_json()}
    weights = tmp_path / "w.safetensors"
    save_student(student, weights, "internvqa-mini", "MOS", about)
    return {"metric": "internvqa-mine", "weights": weights, "device": "cpu", "codec": "h264",
            "preset": "ultrafast"}  # fmt: skip


def test_an_encode_to_a_score_of_opinion_weights(
    tmp_path: Path, source: Source, opinions_on_vmaf: dict[str, Any]
) -> None:
    out = tmp_path / "out.mp4"
    made = encode_to_target(source.path, out, target_score=80, prior="none", **opinions_on_vmaf)
    metric = student_metric(opinions_on_vmaf["weights"])
    found = metric.measure(source, out, "pyav")
    assert found.value == pytest.approx(80, abs=2), "in VMAF points, not on the label's scale"
    assert found.opinion == pytest.approx((found.value - 10) / 0.85, abs=0.01)
    assert made.document["score"] == pytest.approx(found.value, abs=0.01)


def test_the_same_build_twice_by_opinion_weights(
    source: Source, opinions_on_vmaf: dict[str, Any]
) -> None:
    compared = compare_builds(FFMPEG, FFMPEG, clips=[source.path], **opinions_on_vmaf)
    assert (compared.verdict, compared.exit_code) == ("no change", 0), compared.summary
    assert compared.document["metrics"]["internvqa-mine"]["bd_rate_percent"] == 0


def test_weights_that_cannot_steer_are_refused_before_any_work(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VQALOOP_CACHE", str(tmp_path / "cache"))
    options: dict[str, Any] = {"codec": "h264", "out": tmp_path / "out", "device": "cpu"}
    unmapped = weights_of(tmp_path, SQUEEZED, None)
    with pytest.raises(InputError, match="so that the map is learnt"):
        build_ladder(source.path, metric="internvqa-mine", weights=unmapped, **options)
    large = weights_of(tmp_path, {**NATIVE, "size": 336}, scale())
    with pytest.raises(InputError, match="clips of 336 pixels, and the picture is 256x224"):
        build_ladder(source.path, metric="internvqa-mine", weights=large, **options)
    assert not (tmp_path / "out").exists()
    assert not any(path.is_file() for path in (tmp_path / "cache").rglob("*"))
