"""Clips' runs to a verdict: means, noise floor, interval, checks, summary."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from vqaloop.regress.document import outcome_json
from vqaloop.regress.statistics import (
    BASELINE,
    CANDIDATE,
    REPEAT,
    ClipRuns,
    Failure,
    Limits,
    ScoredRun,
    bootstrap,
    clip_gap,
    mean_gap,
    noise_floor,
)
from vqaloop.regress.verdict import ALL, judge

CURVE = ((27.0, 400.0, 90.0), (32.0, 200.0, 80.0), (37.0, 100.0, 66.0), (42.0, 50.0, 50.0))


def run(
    build: str,
    knob: float,
    kbps: float,
    score: float,
    *,
    size: tuple[int, int] = (640, 360),
    cpu_s: float = 1.0,
    stream: str = "",
) -> ScoredRun:
    return ScoredRun(
        build,
        *size,
        f"crf {knob:g}",
        knob,
        kbps,
        {"student": score, "vmaf": score + 1, "psnr_y": score / 2},
        cpu_s,
        cpu_s,
        1000,
        stream or f"{kbps:.6f}",
        stream or f"{kbps:.6f}",
    )


def clip(
    name: str,
    factor: float = 1.0,
    again: float = 1.0,
    *,
    cpu: float = 1.0,
    failures: Sequence[Failure] = (),
) -> ClipRuns:
    """The candidate needs `factor` times the bits, and the baseline's repeat `again` times."""
    runs = []
    for knob, kbps, score in CURVE:
        runs.append(run(BASELINE, knob, kbps, score))
        runs.append(run(REPEAT, knob, kbps * again, score))
        runs.append(run(CANDIDATE, knob, kbps * factor, score, cpu_s=cpu))
    lost = {(f.build, f.point) for f in failures}
    kept = tuple(r for r in runs if (r.build, r.point) not in lost)
    return ClipRuns(name, name, 640, 360, 50, "25/1", kept, tuple(failures))


def weighed(clips: Sequence[ClipRuns], **changes: Any) -> dict[str, Any]:
    limits = changes.pop("limits", Limits())
    options: dict[str, Any] = dict(
        metrics=["student", "vmaf", "psnr_y"],
        lead="student",
        gate=["student", "vmaf", "psnr_y"],
        targets=False,
        timed=True,
        seed=0,
    )
    return outcome_json(judge(clips, limits, **{**options, **changes}))


def failed(document: dict[str, Any]) -> set[tuple[str, str]]:
    return {(c["clip"], c["check"]) for c in document["checks"] if c["status"] == "failed"}


def test_the_gap_is_the_bjontegaard_package_s_pchip() -> None:
    bjontegaard = pytest.importorskip("bjontegaard")
    random.seed(1)
    for _ in range(20):
        one = clip("a", 1.0)
        runs = tuple(
            replace(r, bitrate_kbps=r.bitrate_kbps * random.uniform(1, 1.2))
            if r.build == CANDIDATE
            else r
            for r in one.runs
        )
        gap = clip_gap(replace(one, runs=runs), "vmaf")
        ordered = sorted(runs, key=lambda run: run.bitrate_kbps)
        curves = [
            [(run.bitrate_kbps, run.scores["vmaf"]) for run in ordered if run.build == build]
            for build in (BASELINE, CANDIDATE)
        ]
        (a, b), (c, d) = (zip(*curve, strict=True) for curve in curves)
        expected = bjontegaard.bd_rate(a, b, c, d, method="pchip", require_matching_points=False)
        assert gap.pchip == pytest.approx(expected, abs=0.01)


def test_a_build_that_needs_more_bits_everywhere_is_a_regression_of_that_size() -> None:
    document = weighed([clip(name, 1.02) for name in "abcdef"])
    assert document["verdict"] == "regression"
    assert document["bd_rate_percent"] == pytest.approx(2.0, abs=1e-6)
    assert document["metrics"]["psnr_y"]["bd_rate_percent"] == pytest.approx(2.0, abs=1e-6)
    assert document["noise_floor_percent"] == 0
    assert (ALL, "bd-rate vmaf") in failed(document)
    assert document["bit_exact"] is False
    json.dumps(document, allow_nan=False)


def test_the_same_runs_are_no_change_and_equal_bit_for_bit() -> None:
    document = weighed([clip(name) for name in "abc"])
    assert document["verdict"] == "no change"
    assert document["bit_exact"] is True and document["decoded_equal"] is True
    assert "bit for bit" in document["summary"]
    assert not failed(document)


def test_fewer_bits_are_an_improvement() -> None:
    assert weighed([clip(name, 0.97) for name in "abcd"])["verdict"] == "improvement"


def test_what_lies_within_the_noise_of_the_same_build_is_no_change() -> None:
    noisy = [
        clip(n, 1.01, again) for n, again in zip("abcd", (1.02, 0.98, 1.02, 0.98), strict=True)
    ]
    document = weighed(noisy)
    assert document["noise_floor_percent"] > 1
    assert document["verdict"] == "no change"
    assert weighed([clip(n, 1.01) for n in "abcd"])["verdict"] == "regression"


def test_one_clip_far_worse_than_its_limit_is_a_regression_though_the_mean_hides_it() -> None:
    clips = [clip("bad", 1.07), *(clip(n, 0.98) for n in "abcdefg")]
    document = weighed(clips)
    assert document["verdict"] == "regression"
    assert ("bad", "bd-rate student") in failed(document)
    assert ("a", "bd-rate student") not in failed(document)
    assert "bad" in document["summary"]


def test_a_curve_that_does_not_rise_is_left_out_with_its_reason_and_never_averaged() -> None:
    bent = clip("bent")
    runs = tuple(
        replace(r, scores={**r.scores, "student": 95.0})
        if (r.build, r.value) == (CANDIDATE, 42.0)
        else r
        for r in bent.runs
    )
    document = weighed([replace(bent, runs=runs), *(clip(n, 1.02) for n in "abc")])
    student = document["metrics"]["student"]
    assert student["clips"] == 3 and student["refused"] == 1
    assert student["bd_rate_percent"] == pytest.approx(2.0, abs=1e-6)
    refused = document["clips"][0]["bd_rate"]["student"]["refused"]
    assert "candidate" in refused and "does not rise" in refused
    assert document["clips"][0]["bd_rate"]["vmaf"]["pchip"] == pytest.approx(0, abs=1e-6)


def test_a_saturated_end_of_a_curve_is_cut_and_the_rest_compared() -> None:
    full = clip("full", 1.03)
    runs = (
        *full.runs,
        *(run(build, 12.0, 900.0, 99.6) for build in (BASELINE, CANDIDATE, REPEAT)),
        *(run(build, 10.0, 1200.0, 99.6) for build in (BASELINE, CANDIDATE, REPEAT)),
    )
    gap = clip_gap(replace(full, runs=runs), "student")
    assert gap.pchip is not None and 0 < gap.pchip <= 3.01


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        ("crash", "encode"),
        ("hang", "encode"),
        ("truncated", "decode"),
        ("undecodable", "decode"),
        ("frame-count", "frames"),
    ],
)
def test_a_failure_is_a_regression_of_its_own_kind_and_the_others_are_measured(
    kind: str, check: str
) -> None:
    failure = Failure(CANDIDATE, 640, 360, "crf 32", kind, "it said so")
    document = weighed([clip("bad", failures=[failure]), clip("good"), clip("fine")])
    assert document["verdict"] == "regression"
    assert failed(document) == {("bad", check)}
    found = next(c for c in document["checks"] if c["status"] == "failed")
    assert found["kind"] == kind and "crf 32" in found["message"]
    assert document["metrics"]["student"]["clips"] == 3


def test_what_fails_in_the_baseline_too_is_no_regression() -> None:
    failures = [
        Failure(build, 640, 360, "crf 32", "crash", "as ever") for build in (BASELINE, CANDIDATE)
    ]
    document = weighed([clip("bad", failures=failures), clip("good")])
    assert document["verdict"] == "no change"
    check = next(c for c in document["checks"] if (c["clip"], c["check"]) == ("bad", "encode"))
    assert check["status"] == "skipped" and "baseline" in check["message"]


def test_what_fails_at_more_points_than_the_baseline_is_a_regression() -> None:
    failures = [
        Failure(BASELINE, 640, 360, "crf 32", "crash", "as ever"),
        *(Failure(CANDIDATE, 640, 360, f"crf {k}", "crash", "worse") for k in (27, 32)),
    ]
    document = weighed([clip("bad", failures=failures), clip("good")])
    assert failed(document) == {("bad", "encode")}
    assert "crf 27" in document["summary"] and "crf 32" not in document["summary"]


def test_what_fails_in_one_of_the_baseline_s_two_runs_is_nothing_new() -> None:
    failures = [
        Failure(build, 640, 360, "crf 32", "hang", "at times") for build in (REPEAT, CANDIDATE)
    ]
    assert weighed([clip("bad", failures=failures), clip("good")])["verdict"] == "no change"


def test_a_point_that_one_build_lacks_moves_the_curve_of_neither() -> None:
    failure = Failure(CANDIDATE, 640, 360, "crf 32", "crash", "no")
    gap = clip_gap(clip("bad", failures=[failure]), "vmaf")
    assert gap.pchip == 0 and gap.noise == 0
    lost = [replace(failure, point=f"crf {k}") for k in (27, 32)]
    document = weighed([clip("bad", failures=lost)])
    assert "in common at 2 points" in document["clips"][0]["bd_rate"]["vmaf"]["refused"]
    assert document["bit_exact"] is None


def ruined(name: str, *builds: str) -> ClipRuns:
    """A clip on which these builds give the same poor picture at all points."""
    whole = clip(name, 1.001)
    poor = {"student": 9.0, "vmaf": 0.0, "psnr_y": 12.0}
    runs = tuple(replace(r, scores=poor) if r.build in builds else r for r in whole.runs)
    return replace(whole, runs=runs)


def test_a_build_that_ruins_a_clip_does_not_pass_by_being_left_out_there() -> None:
    """Fewer bits for a picture that is poor everywhere: no curve, and not worse at every point."""
    bad = ruined("bad", CANDIDATE)
    runs = tuple(
        replace(r, bitrate_kbps=r.bitrate_kbps / 20) if r.build == CANDIDATE else r
        for r in bad.runs
    )
    document = weighed([replace(bad, runs=runs), *(clip(n) for n in "abc")])
    assert document["verdict"] == "cannot tell"
    assert "bad" in document["summary"] and "does not rise" in document["summary"]


def test_a_clip_that_the_baseline_cannot_be_measured_on_is_left_out() -> None:
    both = [ruined("bad", CANDIDATE, BASELINE, REPEAT), *(clip(n) for n in "abc")]
    assert weighed(both)["verdict"] == "no change"


def test_equal_streams_are_no_change_though_no_curve_can_be_told() -> None:
    whole = clip("black")
    flat = tuple(replace(r, scores=dict.fromkeys(r.scores, 100.0)) for r in whole.runs)
    document = weighed([replace(whole, runs=flat)])
    assert document["bd_rate_percent"] is None and document["bit_exact"] is True
    assert document["verdict"] == "no change" and "bit for bit" in document["summary"]


def test_a_clip_whose_second_run_failed_leaves_the_noise_of_the_others() -> None:
    noisy = [clip(n, 1.01, again) for n, again in zip("abc", (1.02, 0.98, 1.02), strict=True)]
    lost = [Failure(REPEAT, 640, 360, f"crf {k:g}", "crash", "no") for k, _, _ in CURVE]
    document = weighed([*noisy, clip("d", 1.01, failures=lost)])
    assert document["noise_floor_percent"] > 1
    assert document["verdict"] == "no change"


def test_a_clip_that_is_ruined_beyond_any_common_score_is_a_regression() -> None:
    ruined = clip("ruined", 1.1)
    runs = tuple(
        replace(r, scores={name: score / 4 for name, score in r.scores.items()})
        if r.build == CANDIDATE
        else r
        for r in ruined.runs
    )
    document = weighed([replace(ruined, runs=runs), *(clip(n) for n in "abc")])
    assert document["verdict"] == "regression"
    assert ("ruined", "bd-rate vmaf") in failed(document)
    assert document["metrics"]["vmaf"]["clips"] == 3


def test_without_any_clip_to_compare_nothing_is_claimed() -> None:
    failures = [
        Failure(build, 640, 360, f"crf {k:g}", "crash", "no")
        for k, _, _ in CURVE
        for build in (BASELINE, CANDIDATE, REPEAT)
    ]
    document = weighed([clip("bad", failures=failures)])
    assert document["verdict"] == "cannot tell"
    assert document["bd_rate_percent"] is None and document["bit_exact"] is None


def test_time_is_told_and_judged_only_against_a_limit() -> None:
    slow = [clip(n, cpu=1.3) for n in "abcd"]
    document = weighed(slow)
    assert document["verdict"] == "no change"
    assert document["time"]["cpu_ratio"] == pytest.approx(1.3)
    judged = weighed(slow, limits=Limits(time=10))
    assert judged["verdict"] == "regression" and (ALL, "time") in failed(judged)
    elsewhere = weighed(slow, limits=Limits(time=10), timed=False)
    assert elsewhere["time"]["cpu_ratio"] is None and elsewhere["verdict"] == "no change"
    assert "CPU time could not be judged" in elsewhere["summary"]


def test_a_shift_of_the_rate_at_equal_knobs_fails_only_where_it_is_limited() -> None:
    moved = [clip(n, 0.9) for n in "abcd"]
    assert weighed(moved)["rate"]["mean_percent"] == pytest.approx(-10)
    judged = weighed(moved, limits=Limits(rate=5))
    assert (ALL, "rate") in failed(judged) and judged["rate"]["verdict"] == "regression"


def test_missing_the_target_bitrate_is_told_for_both_builds() -> None:
    aimed = []
    for build, factor in ((BASELINE, 1.0), (CANDIDATE, 1.08), (REPEAT, 1.0)):
        aimed += [run(build, kbps, kbps * factor, score) for _, kbps, score in CURVE]
    one = ClipRuns("a", "a", 640, 360, 50, "25/1", tuple(aimed))
    rate = weighed([one], targets=True, limits=Limits(clip=20, threshold=20))["rate"]
    assert rate["mean_percent"] == pytest.approx(8) and rate["baseline_percent"] == 0
    # a clip on which the candidate has no run tells of neither
    lost = replace(one, clip="b", runs=tuple(r for r in aimed if r.build != CANDIDATE))
    astray = tuple(replace(r, bitrate_kbps=2 * r.bitrate_kbps) for r in lost.runs)
    rate = weighed([one, replace(lost, runs=astray)], targets=True)["rate"]
    assert rate["mean_percent"] == pytest.approx(8) and rate["baseline_percent"] == 0
    bad = weighed([one], targets=True, limits=Limits(clip=20, threshold=20, rate=5))
    assert failed(bad) == {(ALL, "rate")}


def test_several_sizes_are_compared_by_their_hulls() -> None:
    runs = []
    for build, factor in ((BASELINE, 1.0), (CANDIDATE, 1.05), (REPEAT, 1.0)):
        for knob, kbps, score in CURVE:
            runs.append(run(build, knob, kbps * factor, score))
            # the small size is the better one at low rates only
            small = (min(score * 0.95 + 8, 70.0 - knob / 10), kbps * 0.6 * factor)
            runs.append(run(build, knob, small[1], small[0], size=(320, 180)))
    both = ClipRuns("a", "a", 640, 360, 50, "25/1", tuple(runs))
    assert clip_gap(both, "student").pchip == pytest.approx(5.0, abs=1e-6)


def test_the_words_are_those_of_a_metric_that_may_judge() -> None:
    document = weighed([clip(n, 1.03) for n in "abc"], gate=["psnr_y"], limits=Limits(4))
    assert document["verdict"] == "no change" and "equal PSNR-Y" in document["summary"]
    better = weighed([clip(n, 0.9) for n in "abc"], gate=["vmaf"])
    assert better["verdict"] == "improvement" and "equal VMAF" in better["summary"]
    worse = weighed([clip(n, 1.1) for n in "abc"], gate=["vmaf"])
    assert len(worse["reasons"]) == 4 and all("equal VMAF" in line for line in worse["reasons"])
    # names that programs read are as they were
    assert ("a", "bd-rate vmaf") in failed(worse) and "psnr_y" in worse["metrics"]


def test_a_mean_that_hangs_on_which_clips_were_taken_is_no_clear_change() -> None:
    clips = [clip(n, f) for n, f in zip("abcd", (1.04, 0.98, 0.99, 1.03), strict=True)]
    document = weighed(clips)
    assert document["bd_rate_percent"] > 0.5 and document["verdict"] == "no change"
    assert "No clear change" in document["summary"]


def test_the_noise_floor_holds_what_two_runs_of_one_build_do() -> None:
    random.seed(3)
    beyond = 0
    for _ in range(400):
        again = [random.gauss(0, 1) for _ in range(6)]
        other = [random.gauss(0, 1) for _ in range(6)]
        beyond += abs(sum(other) / 6) > noise_floor(again)
    assert beyond <= 12  # 1 % of 400, and room for chance


def test_the_interval_is_of_the_mean_and_needs_three_clips() -> None:
    assert bootstrap([1.0, 2.0]) is None
    low, high = bootstrap([1.0, 2.0, 3.0, 4.0]) or (0.0, 0.0)
    assert 1 <= low < 2.5 < high <= 4
    assert bootstrap([2.0] * 5) == (2.0, 2.0)
    assert mean_gap({}, 0.5).verdict == "cannot tell"
