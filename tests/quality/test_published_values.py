"""Metrics against values that their definitions give, or that other programs have published.

The table of docs/scoring.md ("What the figures agree with") names these tests.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from tests.support.media import make_clip, run_ffmpeg
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.core.resources import WEIGHTS
from vqaloop.media.probe import probe_source
from vqaloop.quality.cvvdp_metric import Cvvdp
from vqaloop.quality.full_reference import CAMBI, measure
from vqaloop.quality.student_metric import StudentMetric
from vqaloop.records import Source

FFMPEG = ffmpeg_path()
SIZE = "320x180"
MOTIONLESS = 97.428043
"""VMAF v0.6.1 of a picture that stands still against itself: adm2 and vif of 1, motion of 0."""


def still(path: Path, luma: str) -> Source:
    """Six equal frames without colour; `luma` is an expression of ffmpeg's geq."""
    picture = f"color=gray:s={SIZE}:r=25,format=yuv420p,geq=lum='{luma}':cb=128:cr=128"
    once = f"{picture},trim=end_frame=1,loop=5:1"
    run_ffmpeg("-f", "lavfi", "-i", once, "-frames:v", "6", file_url(path))
    return probe_source(path)


def test_a_known_offset_has_the_psnr_and_ssim_of_the_formulas(tmp_path: Path) -> None:
    one, other = (still(tmp_path / f"{level}.y4m", f"{level}") for level in (100, 110))
    found = measure(one, other.path, ["psnr", "ssim"], ffmpeg=FFMPEG)
    assert found["psnr"].value == pytest.approx(20 * math.log10(255 / 10), abs=1e-4)
    c1 = (0.01 * 255) ** 2
    expected = 100 * (2 * 100 * 110 + c1) / (100**2 + 110**2 + c1)
    assert found["ssim"].value == pytest.approx(expected, abs=1e-3)


def test_a_still_picture_against_itself(tmp_path: Path) -> None:
    """VMAF v0.6.1 is known not to give 100 there; VMAF v1 does."""
    source = still(tmp_path / "a.y4m", "100+60*(random(0)-0.5)")
    found = measure(source, source.path, ["vmaf", "vmaf-neg", "vmaf-v1"], ffmpeg=FFMPEG)
    assert found["vmaf"].clips == pytest.approx([MOTIONLESS] * 6, abs=0.01)
    assert found["vmaf-neg"].clips == pytest.approx([MOTIONLESS] * 6, abs=0.01)
    assert found["vmaf-v1"].value == pytest.approx(100)


@pytest.mark.parametrize(
    ("luma", "least", "most"),
    [
        ("100", 0, 0),
        ("100+60*(random(0)-0.5)", 0, 0.01),
        # ten plain steps of one level
        ("60+floor(X/32)", 5, 17),
        # the same slope, its steps broken up by one level of noise
        ("60+floor(X/32+random(0))", 0, 3),
    ],
)
def test_cambi_sees_steps_alone(luma: str, least: float, most: float, tmp_path: Path) -> None:
    source = still(tmp_path / "a.y4m", luma)
    (value,) = measure(source, source.path, [CAMBI], ffmpeg=FFMPEG).values()
    assert least <= value.value <= most


@pytest.mark.parametrize(("metric", "neg"), [("vmaf", False), ("vmaf-neg", True)])
def test_vmaf_is_that_of_another_implementation(metric: str, neg: bool, tmp_path: Path) -> None:
    """vmaf-torch, made apart from libvmaf: `pip install vmaf-torch`."""
    vmaf_torch = pytest.importorskip("vmaf_torch")
    import torch

    source = probe_source(make_clip(tmp_path / "a.y4m", size=SIZE, frames=6))
    rung = make_clip(tmp_path / "a.mp4", size=SIZE, frames=6, crf=38)
    pair = []
    for path in (source.path, rung):
        luma = ("-vf", "extractplanes=y", "-f", "rawvideo")
        raw = run_ffmpeg("-i", file_url(path), *luma, "pipe:1")
        pair.append(torch.tensor(np.frombuffer(raw, np.uint8).reshape(-1, 1, 180, 320) * 1.0))
    with torch.no_grad():
        theirs = vmaf_torch.VMAF(NEG=neg, clip_score=True)(*(luma.float() for luma in pair))
    (ours,) = measure(source, rung, [metric], ffmpeg=FFMPEG).values()
    assert ours.clips == pytest.approx(theirs.flatten().tolist(), abs=0.1)


def test_a_step_of_jod_is_one_of_vmaf() -> None:
    """By the curve of ColorVideoVDP over VMAF v1 on plain encodes that the panel learnt."""
    with safe_open(WEIGHTS / "internvqa-mini.safetensors", "numpy") as file:
        about = file.metadata()
    (curve,) = [
        np.array(member["usual"])
        for member in json.loads(about["panel"])["members"]
        if member["name"] == "cvvdp"
    ]
    slope = np.polyfit(curve[:, 0], curve[:, 1], 1)[0]
    assert slope * StudentMetric.step < Cvvdp.step < slope * StudentMetric.step * 1.5
    # VMAF's floor, 30, and what is a half above it
    low, high = np.interp([30, 45], *curve.T)
    assert low < Cvvdp.floor < high
