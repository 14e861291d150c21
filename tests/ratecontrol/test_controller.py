"""The rate controller, driven by synthetic encodes: it ends, keeps its bounds and lands."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.media import make_clip
from tests.support.titles import CRF, random_title, taught
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.encoding.registry import get_encoder
from vqaloop.errors import InputError
from vqaloop.media.probe import probe_source
from vqaloop.media.scene_cuts import Scene
from vqaloop.ratecontrol.controller import MOST_A_SCENE, RateController
from vqaloop.ratecontrol.equal_slope import equal_slope, mean_at_bits
from vqaloop.records import RDPoint
from vqaloop.search.prior_store import remember
from vqaloop.search.space import Space

LEAST, MOST = 1, 51
"""The encoder's own range; beyond the search range only where its end was not enough."""
SIZE = {"width": 1920, "height": 1080, "fps": 25.0}
Encoder = Callable[[Scene, float], tuple[float, float]]


def scenes_of(*lengths: int) -> list[Scene]:
    edges = np.cumsum([0, *lengths]).tolist()
    return [Scene(a, b) for a, b in zip(edges, edges[1:], strict=False)]


def encoder(seed: int, noise: float = 0.1) -> Encoder:
    """Every scene is a title of its own."""

    def encode(scene: Scene, knob: float) -> tuple[float, float]:
        found = random_title(seed + scene.start_frame, noise).measure((1920, 1080, knob))
        return found.bitrate_kbps * 1000 * scene.frames / 25, found.score

    return encode


def drive(control: RateController, scenes: list[Scene], encode: Encoder) -> RateController:
    """As a foreign loop would; no knob may come twice for a scene, none from outside the range."""
    seen: set[tuple[Scene, float]] = set()
    while not control.done:
        before = control.encodes
        for scene in scenes:
            while (knob := control.suggest(scene)) is not None:
                assert LEAST <= knob <= MOST
                assert (scene, knob) not in seen
                seen.add((scene, knob))
                control.report(scene, knob, *encode(scene, knob))
        assert control.encodes > before or control.done
    assert len(seen) == control.encodes
    return control


def controller(scenes: list[Scene], **options: object) -> RateController:
    given: dict[str, object] = {**SIZE, "prior": taught(), **options}
    return RateController(scenes, CRF, **given)  # type: ignore[arg-type]


def test_titles_land_on_the_target_in_few_encodes() -> None:
    encodes = count = 0
    for seed in range(12):
        scenes = scenes_of(50, 120, 75, 30)
        control = drive(controller(scenes, target=75.0), scenes, encoder(1000 * seed))
        assert abs(control.mean_score - 75) <= 0.5
        assert all(abs(p.score - 75) <= 2 for p in control.choices.values())
        assert control.remarks() == ()
        encodes, count = encodes + control.encodes, count + 4
    assert encodes / count <= 2.5


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=6),
    target=st.floats(1, 100),
    slope=st.booleans(),
    most=st.none() | st.integers(0, 6),
    cap=st.none() | st.floats(100, 20_000),
    wild=st.booleans(),
    known=st.booleans(),
)
def test_it_always_ends_within_its_bounds(
    seed: int,
    lengths: list[int],
    target: float,
    slope: bool,
    most: int | None,
    cap: float | None,
    wild: bool,
    known: bool,
) -> None:
    scenes = scenes_of(*lengths)
    tame, rng = encoder(seed), np.random.default_rng(seed)

    def encode(scene: Scene, knob: float) -> tuple[float, float]:
        return (rng.uniform(1, 1e7), rng.uniform(0, 100)) if wild else tame(scene, knob)

    bound = None if most is None else len(scenes) + most
    control = controller(
        scenes,
        target=target,
        allocation="equal-slope" if slope else "target",
        max_encodes=bound,
        max_kbps=cap,
        prior=taught() if known else None,
    )
    drive(control, scenes, encode)
    assert len(scenes) <= control.encodes <= (bound or MOST_A_SCENE * len(scenes))
    assert list(control.choices) == scenes
    assert control.next_trials(4) == []
    assert all(control.is_done(scene) for scene in scenes)
    assert control.expected_bits > 0 and 0 <= control.expected_score <= 100
    for scene, probe in control.choices.items():
        if cap and probe.bits > cap * 1000 * scene.frames / 25:
            assert any("bitrate cap" in said for said in control.remarks())


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), workers=st.integers(1, 5))
def test_reports_may_come_in_any_order(seed: int, workers: int) -> None:
    scenes, encode = scenes_of(40, 60, 80, 30, 90), encoder(seed, noise=0.0)
    control, rng = controller(scenes, target=70.0), np.random.default_rng(seed)
    running: list[tuple[Scene, float]] = []
    while running or not control.done:
        new = control.next_trials(workers - len(running))
        assert not {scene for scene, _ in new} & {scene for scene, _ in running}
        running += new
        scene, knob = running.pop(int(rng.integers(len(running))))
        assert control.suggest(scene) == knob
        control.report(scene, knob, *encode(scene, knob))
    assert abs(control.mean_score - 70) <= 0.5
    assert control.expected_score == pytest.approx(control.mean_score)


def test_a_target_out_of_reach_gets_the_best_knob_and_is_told() -> None:
    scenes = scenes_of(50, 50)

    def poor(scene: Scene, knob: float) -> tuple[float, float]:
        return 1e6 / knob, 90 - knob

    control = drive(controller(scenes, target=95.0), scenes, poor)
    assert {p.knob for p in control.choices.values()} == {1}
    assert "at the best knob" in control.remarks()[0]
    assert "the whole title is -6.00 points" in control.remarks()[-1]


def test_a_scene_held_at_either_end_of_the_knob_says_which() -> None:
    scenes = scenes_of(50, 50)
    for target, end in ((10.0, "worst-knob"), (95.0, "best-knob")):
        control = drive(controller(scenes, target=target), scenes, lambda s, k: (1e6 / k, 90 - k))
        told = [(remark.kind, remark.scene) for remark in control.remarks()]
        assert told == [(end, scenes[0]), (end, scenes[1]), ("whole", None)]
        assert f"at the {end.replace('-', ' ')}" in control.remarks()[0].text


@pytest.mark.parametrize("kbps", [300.0, 700.0, 2000.0])
def test_a_bitrate_is_kept_where_the_score_hardly_changes(kbps: float) -> None:
    """Half the bits cost less than the tolerance in points: bits are what was asked for."""
    scenes = scenes_of(50, 50)

    def flat(scene: Scene, knob: float) -> tuple[float, float]:
        return 3e7 * 2 ** (-knob / 5), 99.0 - knob / 500

    control = controller(scenes, bitrate_kbps=kbps, allocation="equal-slope")
    drive(control, scenes, flat)
    found = sum(p.bits for p in control.choices.values()) * 25 / 100 / 1000
    assert found == pytest.approx(kbps, rel=0.05)
    assert control.remarks() == ()


@pytest.mark.parametrize(("kbps", "knob", "end"), [(1, 51, "worst-knob"), (1e6, 1, "best-knob")])
def test_a_bitrate_out_of_reach_gets_the_last_knob_and_says_so(
    kbps: float, knob: float, end: str
) -> None:
    scenes, tame = scenes_of(50), encoder(4)
    control = controller(scenes, bitrate_kbps=kbps, allocation="equal-slope")
    drive(control, scenes, tame)
    assert control.choices[scenes[0]].knob == knob
    assert [remark.kind for remark in control.remarks()] == [end, "whole"]


def test_of_scores_that_are_all_perfect_a_cheap_one_is_taken() -> None:
    scenes = scenes_of(50)
    control = drive(controller(scenes, target=90.0), scenes, lambda s, k: (1e7 / k, 100.0))
    assert control.choices[scenes[0]].knob == 51


def test_failures_are_shunned_and_a_scene_that_only_fails_is_given_up() -> None:
    scenes, tame = scenes_of(50, 50), encoder(3)
    control = controller(scenes, target=75.0)
    failed = []
    for scene in scenes:
        while (knob := control.suggest(scene)) is not None:
            if scene is scenes[0]:
                failed.append(knob)
                control.report(scene, knob, failed=True)
            else:
                control.report(scene, knob, *tame(scene, knob))
    assert control.done and len(failed) == 3
    gaps = np.diff(sorted(failed))
    assert (gaps > (44 - 16) / 16).all()
    assert list(control.choices) == scenes[1:]
    assert control.remarks()[0] == "frames 0 to 49: no encode succeeded"


def test_a_bitrate_cap_holds_and_the_other_scenes_make_up_for_little() -> None:
    scenes, tame = scenes_of(100, 100, 100), encoder(40)
    free = drive(controller(scenes, target=80.0), scenes, tame)
    rates = {s: p.bits * 25 / s.frames / 1000 for s, p in free.choices.items()}
    dearest = max(rates, key=lambda s: rates[s])
    cap = 0.7 * rates[dearest]
    held = drive(controller(scenes, target=80.0, max_kbps=cap), scenes, tame)
    assert all(p.bits * 25 / s.frames / 1000 <= cap for s, p in held.choices.items())
    assert held.choices[dearest].bits * 25 / dearest.frames / 1000 > 0.8 * cap
    assert held.encodes <= 10


def test_finished_scenes_are_told_again_after_a_resume() -> None:
    scenes, tame = scenes_of(50, 70, 90), encoder(77)
    first = drive(controller(scenes, target=75.0), scenes, tame)
    again = controller(scenes, target=75.0)
    for scene in reversed(scenes):
        for probe in first._states[scene].probes.values():
            again.report(scene, probe.knob, probe.bits, probe.score)
    drive_more = again.next_trials(3)
    assert len(drive_more) <= 1
    assert again.encodes <= first.encodes + 1


def test_equal_slopes_take_fewer_bits_than_one_knob_at_equal_mean_score() -> None:
    saved = []
    for seed in range(6):
        scenes, tame = scenes_of(50, 80, 120, 60), encoder(500 * seed, noise=0.0)
        control = controller(scenes, target=80.0, allocation="equal-slope")
        drive(control, scenes, tame)
        assert abs(control.mean_score - 80) <= 0.5
        knobs = np.arange(16, 44.1, 0.5)
        table = np.array([[tame(s, float(k)) for s in scenes] for k in knobs])
        weights = np.array([s.frames for s in scenes]) / 310
        means, bits = table[:, :, 1] @ weights, table[:, :, 0].sum(axis=1)
        one = np.exp(np.interp(control.mean_score, means[::-1], np.log(bits[::-1])))
        saved.append(1 - sum(p.bits for p in control.choices.values()) / one)
    assert min(saved) > -0.01
    assert np.mean(saved) > 0.01


def test_a_bitrate_is_kept_and_spent() -> None:
    scenes, tame = scenes_of(50, 80, 120, 60), encoder(9)
    control = controller(scenes, bitrate_kbps=3000.0, allocation="equal-slope")
    drive(control, scenes, tame)
    bits = sum(p.bits for p in control.choices.values())
    assert bits * 25 / 310 / 1000 == pytest.approx(3000, rel=0.05)


def test_equal_slopes_and_their_mean_are_as_told() -> None:
    rng = np.random.default_rng(4)
    bits = np.cumsum(rng.uniform(0.1, 1, (5, 40)), axis=1) * rng.uniform(1, 20, (5, 1))
    scores = 100 * (1 - np.exp(-bits / bits.mean(axis=1, keepdims=True)))
    weights = np.full(5, 0.2)
    aims, price = equal_slope(scores, bits, weights, 60.0)
    assert weights @ aims == pytest.approx(60)
    spent = sum(np.interp(a, s, b) for a, s, b in zip(aims, scores, bits, strict=True))
    assert mean_at_bits(scores, bits, weights, spent) == pytest.approx(60, abs=0.5)
    # nowhere would a step buy more than the price says, bar the one scene between two points
    better = []
    for aim, s, b in zip(aims, scores, bits, strict=True):
        own = b - price * 0.2 * s
        better.append(np.interp(aim, s, own) - own.min() > 1e-6 * spent)
    assert sum(better) <= 1
    everything, _ = equal_slope(scores, bits, weights, 100.0)
    assert everything == pytest.approx(scores[:, -1])
    nothing, _ = equal_slope(scores, bits, weights, 0.0)
    assert nothing == pytest.approx(scores[:, 0])


def test_a_probed_title_gets_the_shipped_prior(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VQALOOP_CACHE", str(tmp_path))
    source = probe_source(make_clip(tmp_path / "c.y4m"), ffmpeg=ffmpeg_path())
    spec = get_encoder("libx264")
    control = RateController.for_title(source, [Scene(0, 12)], spec, target=80.0)
    knob = control.suggest(Scene(0, 12))
    assert knob is not None and 26 < knob < 40


def test_a_probed_title_begins_alike_whatever_was_made_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VQALOOP_CACHE", str(tmp_path))
    source = probe_source(make_clip(tmp_path / "c.y4m"), ffmpeg=ffmpeg_path())
    spec, scene = get_encoder("libx264"), Scene(0, 12)

    def begun(**options: Any) -> float | None:
        control = RateController.for_title(source, [scene], spec, target=80.0, **options)
        return control.suggest(scene)

    first = begun()
    for seed in range(8):
        points = [
            RDPoint(320, 180, knob, 2000.0 / knob, 99.0 - knob / 100)
            for knob in np.linspace(16, 44, 6).tolist()
        ]
        space = Space(((320, 180),), spec.knob)
        remember(*("libx264", spec.default_preset, "vmaf"), f"{seed}", space, points, 100.0)
    assert begun() == first
    assert begun(prior="own") != first
    assert begun(prior="none") is not None


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"target": 101.0}, "between 0 and 100"),
        ({"target": math.nan}, "between 0 and 100"),
        ({}, "either a target score or a bitrate"),
        ({"target": 80.0, "bitrate_kbps": 100.0}, "either a target score or a bitrate"),
        ({"bitrate_kbps": 100.0}, "equal-slope"),
        ({"target": 80.0, "max_encodes": 1}, "2 scenes need as many"),
        ({"target": 80.0, "max_kbps": 0.0}, "above 0"),
        ({"target": 80.0, "allocation": "fair"}, "neither"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(options: dict[str, object], why: str) -> None:
    with pytest.raises(InputError, match=why):
        controller(scenes_of(10, 10), **options)


def test_reports_that_make_no_sense_are_refused() -> None:
    scenes = scenes_of(10)
    control = controller(scenes, target=80.0)
    for bits, score in ((0.0, 80.0), (1e6, math.nan), (None, 80.0), (math.inf, 80.0)):
        with pytest.raises(InputError):
            control.report(scenes[0], 30.0, bits, score)
    with pytest.raises(InputError):
        control.report(Scene(3, 4), 30.0, 1e6, 80.0)
    with pytest.raises(InputError):
        control.suggest(Scene(3, 4))
    assert control.encodes == 0
