"""Warnings of a ladder's guard."""

import re
from dataclasses import dataclass, replace

import pytest

from vqaloop.ladder.steps import _falls
from vqaloop.ladder.warnings import (
    banding_warnings,
    find_doubts,
    guard_warnings,
    is_undecided,
)
from vqaloop.quality.guard import Guarded
from vqaloop.records import RDPoint, Rung


@dataclass(frozen=True)
class Judge:
    """What of a metric decides about doubts."""

    name: str = "internvqa"
    mode: str = "anchored"
    step: float = 4.0
    guard_gap: float = 10.0
    guarded_by: str | None = "vmaf-hd"


VMAF = Judge("vmaf", "full-reference", guarded_by=None)
SAMPLED = Judge("vmaf-sampled", "full-reference", guarded_by="vmaf")
SAMPLED_V1 = Judge("vmaf-v1-sampled", "full-reference", guarded_by="vmaf-v1")


def rung(score: float, **guard: float) -> Rung:
    name = f"{score:g}.mp4"
    return Rung(640, 360, 500, 700, score, score, guard, ("crf", 30.0), {}, (), name)


@pytest.mark.parametrize(
    ("judge", "score", "guard", "trusted"),
    [
        # the 4K model is 7 to 17 points above v0.6.1, which students imitate
        (Judge(), 45.0, {"vmaf": 60.0, "vmaf_hd": 42.0}, True),
        (Judge(), 60.0, {"vmaf": 60.0, "vmaf_hd": 42.0}, False),
        (Judge(), 45.0, {"vmaf": 60.0}, False),
        (Judge(mode="difference", guard_gap=20.0), 45.0, {"vmaf": 60.0}, True),
        (VMAF, 45.0, {"vmaf": 60.0, "vmaf_hd": 42.0}, True),
        # of a student on the scale of v1
        (Judge(guarded_by="vmaf-v1"), 60.0, {"vmaf": 45.0, "vmaf_v1": 58.0}, True),
    ],
)
def test_like_is_compared_with_like(
    judge: Judge, score: float, guard: dict[str, float], trusted: bool
) -> None:
    doubts = find_doubts([rung(score, **guard)], judge, whole=True)  # type: ignore[arg-type]
    assert doubts.trusted is trusted
    if not trusted:
        value = guard.get("vmaf_hd", guard["vmaf"])
        assert f"score {score:.1f}, but VMAF {value:.1f}; the student" in doubts.lines[0]
        hdr = find_doubts([rung(score, **guard)], judge, whole=True, hdr=True)  # type: ignore[arg-type]
        assert hdr.lines[0].endswith("; neither is made for HDR, use --metric cvvdp")


def test_the_guard_is_compared_with_the_mean() -> None:
    low = replace(rung(45.0, vmaf=60.0), score_mean=58.0)
    assert find_doubts([low], Judge(), whole=True).trusted  # type: ignore[arg-type]
    far = find_doubts([replace(low, score_mean=45.0)], Judge(), whole=True)  # type: ignore[arg-type]
    assert not far.trusted


@pytest.mark.parametrize(
    ("judge", "guard", "line"),
    [
        # both by the 4K model
        (SAMPLED, {"vmaf": 69.0, "vmaf_hd": 42.0, "vmaf_v1": 40.0}, ""),
        (SAMPLED, {"vmaf": 71.0, "vmaf_hd": 60.0}, "VMAF 71.0; other frames .*--metric vmaf$"),
        (SAMPLED_V1, {"vmaf": 80.0, "vmaf_v1": 51.0}, ""),
        (SAMPLED_V1, {"vmaf": 60.0, "vmaf_v1": 49.0}, "VMAF v1 49.0; .*--metric vmaf-v1$"),
        # left out by an ffmpeg that lacks it
        (SAMPLED_V1, {"vmaf": 80.0}, ""),
    ],
)
def test_a_sampled_metric_is_held_against_all_frames(
    judge: Judge, guard: dict[str, float], line: str
) -> None:
    doubts = find_doubts([rung(60, **guard)], judge, whole=True)  # type: ignore[arg-type]
    assert doubts.trusted is not bool(line)
    assert len(doubts.lines) == bool(line)
    assert all(re.search(f"score 60.0, but {line}", found) for found in doubts.lines)


def test_figures_that_do_not_agree() -> None:
    low, high = rung(50, vmaf=52, vmaf_v1=55, xpsnr=31), rung(60, vmaf=61, vmaf_v1=63, xpsnr=33)
    assert guard_warnings([low, high]) == []
    worse = rung(60, vmaf=61, vmaf_v1=52.5, xpsnr=30.5)
    assert guard_warnings([low, worse]) == [
        "VMAF v1 does not rise from 50.mp4 (55.0) to 60.mp4 (52.5), though the score does",
        "XPSNR does not rise from 50.mp4 (31.0) to 60.mp4 (30.5), though the score does",
        "60.mp4: VMAF 61.0, but VMAF v1 52.5; it has flaws that VMAF does not see, of colour, "
        "banding or dark parts: look at it",
    ]
    # the 4K model is above both
    assert guard_warnings([rung(90, vmaf=95, vmaf_hd=90, vmaf_v1=85)]) == []
    # a ladder of an earlier version
    assert guard_warnings([rung(50, vmaf=52, psnr_y=30), high]) == []
    assert len(guard_warnings([rung(50, vmaf=62, psnr_y=30), high])) == 1


def test_a_slight_fall_of_a_sampled_score_is_no_reason_to_measure_again() -> None:
    curve = [(100.0, 76.59), (103.0, 76.57), (150.0, 79.8), (160.0, 79.5), (300.0, 90.0)]
    points = [RDPoint(426, 240, 40.0, kbps, score) for kbps, score in curve]
    points.append(RDPoint(640, 360, 40.0, 101.0, 70.0))
    assert [(low.bitrate_kbps, high.bitrate_kbps) for low, high in _falls(points, 0.2)] == [
        (150.0, 160.0)
    ]
    assert len(_falls(points, 0.0)) == 2


@pytest.mark.parametrize(
    ("spread", "trusted", "undecided"),
    [
        ((62.0, 68.0), True, False),
        # as far as one end may lie the student is wrong, by the other it is not
        ((66.0, 74.0), False, True),
        ((72.0, 80.0), False, False),
        # both ends are too far, what lies between them is not
        ((48.0, 72.0), False, True),
    ],
)
def test_a_sampled_guard_is_taken_at_its_farther_end(
    spread: tuple[float, float], trusted: bool, undecided: bool
) -> None:
    judge = Judge()
    value = sum(spread) / 2
    made = replace(rung(60, vmaf=value), guard_interval={"vmaf": spread})
    doubts = find_doubts([made], judge, whole=True)  # type: ignore[arg-type]
    assert doubts.trusted == trusted
    assert trusted or f"({spread[0]:.1f} to {spread[1]:.1f})" in doubts.lines[0]
    guarded = Guarded({"vmaf": value}, {"vmaf": spread})
    assert is_undecided(60, guarded, judge) == undecided  # type: ignore[arg-type]
    assert not is_undecided(60, Guarded({"vmaf": value}), judge)  # type: ignore[arg-type]
    assert not is_undecided(60, guarded, VMAF)  # type: ignore[arg-type]


def test_banding_is_warned_of_above_its_limit() -> None:
    low, high = rung(60, vmaf=60, cambi=4.0), rung(70, vmaf=70, cambi=6.0)
    high = replace(high, banding_at_s=2.5, guard_interval={"cambi": (5.0, 7.0)})
    [line] = banding_warnings([low, high], None, 8)
    assert high.file in line and "CAMBI 6.0 (5.0 to 7.0)" in line and "2.5 s" in line
    assert "--bit-depth 10" in line and "--bit-depth" not in banding_warnings([high], None, 10)[0]
    # a limit that was asked for is kept by the upper end
    assert banding_warnings([low, high], 7.0, 8) == []
    assert len(banding_warnings([low, high], 6.5, 8)) == 1
    assert len(banding_warnings([low, high], 3.0, 8)) == 2
    assert banding_warnings([rung(60, vmaf=60)], 0.0, 8) == []


def test_a_ladder_without_guard_says_so() -> None:
    assert guard_warnings([rung(50), rung(60)]) == [
        "the guard was off: nothing but their own score has measured these files"
    ]
