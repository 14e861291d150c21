"""Warnings of a ladder's guard."""

import re
from dataclasses import dataclass, replace

import pytest

from vqaloop.ladder.steps import _falls
from vqaloop.ladder.warnings import find_doubts, guard_warnings
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
