"""Tuning: the space, the samplers, how a trial is judged, and the whole with real encoders."""

import contextlib
import csv
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from tests.support.commandline import Room, fake_ffmpeg
from tests.support.media import REPOSITORY, make_clip, run_ffmpeg
from vqaloop.encoding.registry import load_encoders
from vqaloop.encoding.spec import EncoderSpec
from vqaloop.errors import InputError, TargetUnreachable
from vqaloop.execution.options import JobOptions
from vqaloop.execution.session import open_session
from vqaloop.execution.tools import chosen_tools
from vqaloop.records import Event, Source
from vqaloop.search.shared_study import SharedStudy, open_storage, shown
from vqaloop.tuning import result
from vqaloop.tuning.default_curves import (
    GUARDS,
    CurvePoint,
    DefaultCurves,
    Gains,
    saved_words,
    time_ratio,
)
from vqaloop.tuning.param_study import ParamSearch, refused
from vqaloop.tuning.param_trials import ParamJudge, Setting, Target, TuneLimits, Verification
from vqaloop.tuning.result import Tuning
from vqaloop.tuning.samplers import (
    KNOB,
    SAMPLERS,
    DrawSampler,
    Params,
    counted_trials,
    default_point,
    distributions,
    encoder_params,
)
from vqaloop.tuning.tune import tune_encoder

PLAIN = Source(Path("a.mp4"), "0" * 64, 64, 64, Fraction(25), 50, "yuv420p")
X264 = load_encoders()["libx264"]
every_encoder = pytest.mark.parametrize("spec", load_encoders().values(), ids=lambda s: s.name)


def tune(clip: Path, **options: Any) -> Tuning:
    """A tuning of a few seconds; time limits would be noise on encodes so short."""
    quick = {"codec": "h264", "metric": "psnr", "preset": "veryfast", "slowdown": 100.0}
    if not options.keys() & {"bitrate", "front"}:
        quick["target_score"] = 32.0
    options.pop("front", None)
    # a file of lines is quicker than a database
    return tune_encoder(clip, **{**quick, "trials": 4, "storage": "journal:study", **options})


@pytest.fixture
def clip(room: Room) -> Path:
    return make_clip(room.folder / "clip.y4m", frames=8)


@every_encoder
def test_the_defaults_are_a_point_of_the_space_and_no_parameter(spec: EncoderSpec) -> None:
    space, point = distributions(spec), default_point(spec)
    assert space.keys() == point.keys()
    for name, distribution in space.items():
        assert distribution._contains(distribution.to_internal_repr(point[name])), name
    assert encoder_params(spec, point) == ()


def test_floats_are_on_a_grid_of_round_numbers() -> None:
    for spec in load_encoders().values():
        space = distributions(spec)
        floats = [t.name for t in spec.tunables if t.type == "float"]
        steps = [getattr(space[name], "step", None) for name in floats]
        assert all(step and f"{step:g}".strip("0.") in "125" for step in steps)


@every_encoder
def test_every_point_is_taken_by_the_encoders_file(spec: EncoderSpec) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    tunables = {tunable.name: tunable for tunable in spec.tunables}
    for _ in range(30):
        point = study.ask(distributions(spec, spec.knob)).params
        assert spec.knob.snap(point[KNOB]) == pytest.approx(point[KNOB])
        for name, value in encoder_params(spec, point):
            assert tunables[name].refusal(value) is None


def curve(rate: float = 1.0, seconds: float = 1.0, loss: float = 0.0) -> list[CurvePoint]:
    return [
        CurvePoint(
            knob=knob,
            kbps=rate * 4000 * 2 ** (-knob / 6),
            score=98 - 0.02 * (knob - 12) ** 2,
            vmaf=98 - 0.02 * (knob - 12) ** 2,
            psnr_y=48 - knob / 3,
            xpsnr=46 - knob / 3 + loss,
            cpu_s=seconds * 2 ** (-knob / 20),
        )
        for knob in (20.0, 24.0, 28.0, 32.0, 36.0)
    ]


@pytest.mark.parametrize("rate", [0.8, 0.9, 1.0, 1.2])
def test_a_saving_is_of_the_rate_at_which_the_defaults_reach_the_score(rate: float) -> None:
    defaults = DefaultCurves(curve(), 100.0)
    for made in curve(rate, seconds=1.5)[1:4]:
        gains = defaults.compare(made)
        assert gains.saving == pytest.approx(100 * (1 - rate), abs=0.3)
        # a rate 2^(1/6) times lower is one knob, which is a third of a dB
        assert (gains.psnr_y > 0.01) == (rate < 1) or rate == 1
        assert gains.cpu_s / gains.default_cpu_s == pytest.approx(1.5, rel=1e-6)
        assert gains.guards == pytest.approx(dict.fromkeys(("vmaf", "xpsnr"), gains.saving), abs=1)


def test_a_saving_by_one_measure_may_be_a_loss_by_another() -> None:
    defaults = DefaultCurves(curve(), 100.0)
    for made in curve(0.9, loss=-1.0)[1:4]:
        gains = defaults.compare(made)
        # a dB is three knobs, and so half of the rate's doubling
        assert gains.saving == pytest.approx(10, abs=0.3)
        assert gains.guards["xpsnr"] == pytest.approx(100 * (1 - 0.9 * 2**0.5), abs=1)


def test_time_is_held_against_the_defaults_of_the_moment() -> None:
    def gains(cpu_s: float, beside: float | None) -> Gains:
        return Gains(100, 90, 0, {}, 0, 0, cpu_s, default_cpu_s=1.0, beside_cpu_s=beside)

    busy = [gains(1.5, 1.5), gains(1.5, 1.5), gains(1.5, None)]
    assert time_ratio(busy) == pytest.approx(1.0)
    assert time_ratio([gains(1.2, None)]) == pytest.approx(1.2)


@pytest.fixture
def grainy(room: Room) -> Path:
    """Flat areas and grain: without AQ and psy PSNR and VMAF save bitrate, and XPSNR loses it."""
    grain = "noise=alls=12:allf=t:all_seed=1"
    return make_clip(room.folder / "grainy.y4m", size="224x160", frames=12, vf=grain)


@contextlib.contextmanager
def judging(clip: Path, metric: str) -> Iterator[ParamJudge]:
    """A judge of parameters of x264, at a knob in the middle."""
    # faster presets of x264 have no psy
    options = JobOptions(codec="h264", preset="medium", metric=metric)
    with open_session(clip, options, chosen_tools(options)) as session:
        setting = Setting(*session.sizes[0], session.preset, session.depth)
        judge = ParamJudge(session.shop, [session.source], setting)
        judge.knob = 31.0
        yield judge


FLAT = (("aq-mode", "0"), ("psy-rd", "0"))
HONEST = (("psy-rd", "0"),)


def test_what_the_score_and_vmaf_applaud_and_xpsnr_refuses_is_not_confirmed(grainy: Path) -> None:
    with judging(grainy, "vmaf") as judge:
        (source,) = judge.windows

        def confirmed(limits: TuneLimits) -> tuple[Verification, list[str]]:
            found, _, doubts = judge.confirm(source, [FLAT, HONEST], limits, lambda text: None)
            assert found
            return found, doubts

        found, doubts = confirmed(TuneLimits(slowdown=100.0))
        assert found.params == HONEST and found.saving > 3 and found.guards["xpsnr"] > 3
        assert len(doubts) == 1
        assert re.search(r"aq-mode=0 .*was not confirmed: by XPSNR it needs \d", doubts[0])
        # without that guard it is the better one
        found, doubts = confirmed(TuneLimits(slowdown=100.0, xpsnr_loss=100.0))
        assert found.params == FLAT and found.saving > 6 and found.guards["xpsnr"] < -6
        assert not doubts


Guards = Callable[[Params], dict[str, float]]


def searched(guards: Guards, trials: int) -> tuple[ParamSearch, list[FrozenTrial]]:
    """A search in which every parameter saves 1 % of bitrate, and aq-mode 20 % more."""

    def gains(job: object, params: Params, beside: bool) -> Gains:
        saving = 1.0 * len(params) + 20.0 * has_aq(params)
        return Gains(100, 90, saving, guards(params), 0, 0, cpu_s=1.0, default_cpu_s=1.0)

    shop = SimpleNamespace(spec=X264, workers=1, map=lambda work, items: list(map(work, items)))
    judge: Any = SimpleNamespace(
        shop=shop, windows=[PLAIN], knob=30.0, schedule=lambda: [(0, 30.0)] * 3, gains=gains
    )
    search = ParamSearch(judge, TuneLimits(), "tpe", 0)
    return search, search.run(open_storage(None), "study", trials, lambda event: None)


def has_aq(params: Params) -> bool:
    return "aq-mode" in dict(params)


def candidates(guards: Guards) -> list[Params]:
    search, found = searched(guards, 12)
    return [encoder_params(X264, trial.params) for trial in search.candidates(found)]


@pytest.mark.parametrize("guard", ["vmaf", "vmaf_v1", "xpsnr"])
def test_what_a_guard_refuses_is_no_candidate(guard: str) -> None:
    others = dict.fromkeys(GUARDS, 5.0)
    free = candidates(lambda params: others)
    assert has_aq(free[0])
    guarded = candidates(lambda params: others | {guard: -10.0 if has_aq(params) else 5.0})
    assert guarded and not any(map(has_aq, guarded))
    # a small loss is none
    assert candidates(lambda params: others | {guard: -1.5}) == free
    # of small pictures v1 has no figure
    assert candidates(lambda params: {"vmaf": 5.0}) == free


@pytest.mark.slow
def test_a_tuning_keeps_aq_where_the_metric_would_drop_it(room: Room, grainy: Path) -> None:
    def by_xpsnr(loss: float) -> float:
        about = {"metric": "internvqa", "preset": "medium", "sampler": "tpe", "trials": 16}
        tuning = tune(grainy, target_score=80.0, xpsnr_loss=loss, out=f"{loss:g}", **about)
        assert tuning.params and tuning.saving > 2
        return float(tuning.to_json()["saving_percent"]["xpsnr"])

    assert by_xpsnr(100.0) < -5
    assert by_xpsnr(2.0) > -2


def test_what_a_guard_refuses_prunes_no_other_trial() -> None:
    _, found = searched(lambda params: {"xpsnr": -10.0 if has_aq(params) else 5.0}, 30)
    other = [t for t in found if not has_aq(encoder_params(X264, t.params))]
    assert 5 < len(other) < 28 and not any(trial.user_attrs["pruned"] for trial in other)


def test_a_title_is_verified_at_other_places_than_it_was_searched(clip: Path) -> None:
    with judging(clip, "internvqa") as judge:
        (source,), shop = judge.windows, judge.shop
        finer = shop.metric.confirming()
        assert finer
        (point,) = judge.title_curve(source, (), [0.0])
        made = shop.encode(source, judge.rendition((), judge.knob))
        scores = [shop.score(source, made.path, metric) for metric in (finer, shop.metric)]
        assert point.score == scores[0].value != scores[1].value
        assert scores[0].clips != scores[1].clips


NAMES = ("bframes", "mbtree", "psy-rd", "ref", "trellis")
SPACE = {name: distributions(X264)[name] for name in NAMES}
FIRST = {name: default_point(X264)[name] for name in NAMES}


def value_of(params: dict[str, Any]) -> float:
    """Some smooth function with its best away from the defaults."""
    mbtree = 5.0 * (params["mbtree"] == "1")
    return float(mbtree - 10 * (params["psy-rd"] - 0.1) ** 2 - abs(params["ref"] - 2))


def work_on(seat: SharedStudy, until: int) -> None:
    while len(counted_trials(seat.study)) < until:
        trial = seat.ask()
        trial.set_constraint("time", trial.params["bframes"] - 6)
        if trial.params["trellis"] == "2":
            trial.set_user_attr("error", "refused")
            seat.tell(trial, None)
        else:
            seat.tell(trial, [value_of(trial.params)])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_study_that_was_killed_goes_on_as_one_that_was_not(sampler: str, tmp_path: Path) -> None:
    if sampler == "cmaes":
        pytest.importorskip("cmaes")

    def seat(name: str) -> SharedStudy:
        draws = DrawSampler(sampler, 3, FIRST)
        storage = open_storage(f"journal:{tmp_path / 'journal'}")
        return SharedStudy(storage, name, ["maximize"], SPACE, draws)

    with seat("whole") as whole:
        work_on(whole, 14)
    for until in (5, 11):
        with seat("killed") as killed:
            killed.release_lost()
            work_on(killed, until)
            killed.ask()  # and nobody ever hears of it again
    with seat("killed") as killed:
        assert killed.release_lost() == 1
        work_on(killed, 14)
        done = [[t.params for t in counted_trials(seat.study)] for seat in (whole, killed)]
    assert done[0] == done[1]
    assert done[0][0] == FIRST
    assert len({str(params) for params in done[0]}) > 8


def test_choices_reach_cma_es_too(tmp_path: Path) -> None:
    pytest.importorskip("cmaes")
    draws = DrawSampler("cmaes", 0, FIRST)
    with SharedStudy(open_storage(None), "s", ["maximize"], SPACE, draws) as seat:
        work_on(seat, 90)
        trials = counted_trials(seat.study)
    late = [t.params["mbtree"] for t in trials[60:]]
    assert late.count("1") > 2 * late.count("0")
    values = [
        [t.value or 0.0 for t in part if t.state == TrialState.COMPLETE]
        for part in (trials[1:31], trials[60:])
    ]
    assert statistics.mean(values[1]) > statistics.mean(values[0])


def test_a_tuning_leaves_what_it_found_and_how(room: Room, clip: Path) -> None:
    tuning = tune(clip, out="out")
    document = json.loads((room.folder / "out" / "tuning.json").read_text())
    assert document == json.loads(json.dumps(tuning.to_json()))
    assert document["schema"] == "vqaloop.tuning/1"
    assert [t["number"] for t in document["trials"]] == [0, 1, 2, 3]
    assert document["trials"][0]["params"] == {}
    assert document["trials"][0]["saving_percent"] == pytest.approx(0, abs=1)
    table = (room.folder / "out" / "tuning.csv").read_text()
    rows = list(csv.DictReader(table.splitlines()))
    assert len(rows) == 4
    assert abs(document["at_target"]["score"] - 32) < 1
    out = room.folder / "again.mp4"
    run_ffmpeg("-i", str(clip), *tuning.ffmpeg_args, str(out))
    kbps = out.stat().st_size * 8 / 1000 / document["source"]["duration"]
    assert kbps == pytest.approx(document["at_target"]["kbps"], rel=0.002)
    if tuning.params:
        assert tuning.saving > 0
        assert tuning.psnr_gain >= -0.3


def named(monkeypatch: pytest.MonkeyPatch, source: Source, *, rate_asked: bool = False) -> str:
    """The name of a study of a made-up encoder."""
    monkeypatch.setattr(result, "encoder_version", lambda spec, ffmpeg: "x 1")
    monkeypatch.setattr(result, "file_sha256", lambda path: "f" * 64)
    spec = SimpleNamespace(name="x", codec="h264", tunables=())
    judge: Any = SimpleNamespace(
        shop=SimpleNamespace(spec=spec, ffmpeg="ffmpeg", scoring=lambda source: "psnr"),
        windows=[source],
        setting=Setting(64, 64, "fast", 8),
    )
    return result.study_name(
        judge, source, Target(score=32.0), "gp", 0, TuneLimits(), rate_asked=rate_asked
    )


def test_studies_of_plain_titles_keep_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert named(monkeypatch, PLAIN) == "a h264 0ac7658383820c6e"


def test_another_view_of_the_same_bytes_is_another_study(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [
        PLAIN,
        replace(PLAIN, prep=("fps=25/1",)),
        replace(PLAIN, prep=("fps=25/1",), fps=Fraction(50)),
        *(replace(PLAIN, input_options=(("video_size", size),)) for size in ("64x32", "32x64")),
    ]
    names = [named(monkeypatch, source) for source in sources]
    for rate in (Fraction(25), Fraction(50)):
        names.append(named(monkeypatch, replace(PLAIN, fps=rate), rate_asked=True))
    assert len(set(names)) == len(names) == 7


def test_a_tuning_at_another_rate_begins_anew(room: Room, clip: Path) -> None:
    for rate in ("25", "12.5"):
        study = tune(clip, trials=1, framerate=rate).about
        assert study["cost"]["encodes"] > 0 and len(study["trials"]) == 1
    names = optuna.get_all_study_names(open_storage("journal:study"))
    assert len({name for name in names if name.startswith("clip h264 ")}) == 2


def test_more_trials_add_to_those_there_are(room: Room, clip: Path) -> None:
    first = tune(clip, trials=2, storage=None).about["trials"]
    assert (room.folder / "clip.h264.tune" / "study.db").exists()
    both = tune(clip, trials=4, storage=None).about
    assert [t["params"] for t in both["trials"][:2]] == [t["params"] for t in first]
    assert len(both["trials"]) == 4
    again = tune(clip, trials=4, storage=None).about
    assert again["cost"]["encodes"] == 0
    assert again["trials"] == both["trials"]


def test_an_interrupted_tuning_tries_what_a_whole_one_tries(room: Room, clip: Path) -> None:
    class Stop(Exception):
        pass

    def stop(event: Event) -> None:
        if event.stage == "search" and event.done in at:
            at.remove(event.done)
            raise Stop

    whole = tune(clip, out="whole", trials=5)
    part_of = {"out": "part", "trials": 5, "storage": "journal:part.study"}
    at = [2, 4]
    while at:
        with pytest.raises(Stop):
            tune(clip, progress=stop, **part_of)
        assert not (room.folder / "part" / "tuning.json").exists()
    part = tune(clip, **part_of)
    keys = ("params", "saving_percent", "time_ratio", "state")
    tables = [[[t[k] for k in keys] for t in tuning.about["trials"]] for tuning in (whole, part)]
    assert tables[0] == tables[1]
    assert (whole.params, whole.saving) == (part.params, part.saving)


@pytest.mark.slow
def test_two_processes_share_the_trials(room: Room, clip: Path) -> None:
    code = (
        "import sys; from vqaloop.tuning.tune import tune_encoder; "
        "t = tune_encoder(sys.argv[1], codec='h264', metric='psnr', target_score=32.0, trials=5,"
        " preset='veryfast', slowdown=100.0, storage='sqlite:///shared.db', out=sys.argv[2]);"
        "print(len(t.about['trials']), t.about['study']['name'], sorted(t.params.items()))"
    )
    root = str(REPOSITORY)
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    seats = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(clip), out],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        for out in ("one", "two")
    ]
    said = [seat.communicate(timeout=120)[0] for seat in seats]
    assert [seat.returncode for seat in seats] == [0, 0]
    assert said[0] == said[1] and said[0].startswith("5 clip h264 ")
    documents = [json.loads(Path(out, "tuning.json").read_text()) for out in ("one", "two")]
    assert documents[0]["trials"] == documents[1]["trials"]


@pytest.mark.parametrize(
    ("percent", "words"),
    [(7.24, "7.2 % saved"), (-0.04, "0.0 % saved"), (-7.24, "7.2 % more bitrate")],
)
def test_a_loss_is_no_negative_saving(percent: float, words: str) -> None:
    assert saved_words(percent) == words


def test_what_takes_too_long_never_wins(room: Room, clip: Path) -> None:
    # nothing encodes in a tenth of the time
    tuning = tune(clip, slowdown=0.1)
    assert not any(trial["feasible"] for trial in tuning.about["trials"])
    assert all("time" in trial["broken"] for trial in tuning.about["trials"])
    rows = list(csv.DictReader((tuning.folder / "tuning.csv").read_text("utf-8").splitlines()))
    assert [row["broken"].split()[0] for row in rows] == ["time"] * len(rows)
    assert tuning.params == {} and tuning.saving == 0.0 and tuning.trusted
    assert "nothing better than the defaults" in tuning.about["warnings"][-1]


def test_the_warning_says_how_many_trials_which_limit_refused() -> None:
    found = [
        ([], 3.0), (["xpsnr"], 16.84), (["time", "xpsnr"], 5.0), (["time"], -2.0), (["vmaf"], 0.5),
    ]  # fmt: skip
    trials = [
        optuna.trial.create_trial(
            value=saving, user_attrs={"saving_percent": saving, "broken": broken}
        )
        for broken, saving in found
    ]
    by = "XPSNR (--xpsnr-loss) 2, time (--slowdown) 1, VMAF 1"
    assert refused(trials) == f"refused: 3 trials saving up to 16.8 %, by {by}"
    assert refused([trials[0], trials[3], optuna.trial.create_trial(value=1.0)]) == ""


def test_parameters_that_crash_the_encoder_are_failed_trials(room: Room, clip: Path) -> None:
    fake = fake_ffmpeg(room.folder / "ffmpeg", {"*psy-rd=*": "kill -s SEGV $$"})
    tuning = tune(clip, ffmpeg=fake, trials=4)
    trials = tuning.about["trials"]
    failed = [trial for trial in trials if "psy-rd" in trial["params"]]
    assert failed and all(t["state"] == "failed" and t["error"] for t in failed)
    assert any(trial["state"] != "failed" for trial in trials)
    assert "psy-rd" not in tuning.params


def test_a_bitrate_is_a_target_too(room: Room, clip: Path) -> None:
    about = tune(clip, bitrate=200.0, trials=2).about
    assert about["at_target"]["kbps"] == pytest.approx(200, rel=0.1)


def test_without_a_target_there_is_a_front(room: Room, clip: Path) -> None:
    tuning = tune(clip, front=True, sampler="nsga2", trials=8)
    front = tuning.about["front"]
    assert len(front) >= 2
    for low, high in zip(front, front[1:], strict=False):
        assert low["bitrate_kbps"] < high["bitrate_kbps"] and low["score"] < high["score"]


def test_a_long_title_is_judged_on_windows(room: Room) -> None:
    clip = make_clip(room.folder / "long.mp4", frames=26 * 2, rate="2")
    about = tune(clip, trials=1, preset="ultrafast", target_score=30.0).about
    assert len(about["windows"]) > 2
    assert about["trials"][0]["encodes"] == 2 * len(about["windows"])


def test_a_target_out_of_reach_is_told_with_the_nearest(room: Room, clip: Path) -> None:
    with pytest.raises(TargetUnreachable, match="is nearest"):
        tune(clip, bitrate=1e6)
    assert not list(room.folder.glob("*.tune"))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"trials": 0}, "trials"),
        ({"slowdown": float("nan")}, "slowdown"),
        ({"xpsnr_loss": -1.0}, "XPSNR loss must lie between 0 and 100"),
        ({"target_score": 30.0, "bitrate": 100.0}, "not both"),
        ({"bitrate": -1.0}, "above 0"),
        ({"target_score": 101.0}, "between 0 and 100"),
        ({"sampler": "magic"}, "gp, tpe, cmaes, nsga2"),
        ({"sampler": "cmaes", "front": True}, "one value only"),
        ({"preset": "warp"}, "no preset"),
        ({"resolution": (1920, 1080)}, "larger than the source"),
        ({"storage": "nowhere"}, "no URL"),
        ({"out": "full"}, "no tuning"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], why: str, room: Room, clip: Path) -> None:
    (room.folder / "full").mkdir()
    (room.folder / "full" / "thesis.txt").touch()
    before = sorted(room.folder.rglob("*"))
    with pytest.raises(InputError, match=why):
        tune(clip, **options)
    assert sorted(room.folder.rglob("*")) == before


def test_passwords_of_a_storage_are_not_written_down() -> None:
    assert "secret" not in shown("postgresql://me:secret@host/db")
    assert shown("journal:some/file") == "journal:some/file"


def test_ladders_get_parameters_from_the_same_search(room: Room, clip: Path) -> None:
    from vqaloop.tuning.tune import best_params

    events: list[Event] = []
    options = JobOptions(codec="h264", preset="veryfast", metric="psnr", progress=events.append)
    with open_session(clip, options, chosen_tools(options)) as session:
        events.clear()
        params, study = best_params(session, session.source, 3, None)
    assert len(study["trials"]) == 3
    assert params == tuple(sorted(params))
    assert {name for name, _ in params} <= {tunable.name for tunable in X264.tunables}
    assert events and all(event.stage == "tune" for event in events)
