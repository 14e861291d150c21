"""Banding of rungs: where it shows, and 10 bit as its cure with what that costs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqaloop
from tests.support.media import run_ffmpeg
from vqaloop.ladder.banding import most_banded
from vqaloop.ladder.store import read_ladder

SKY: dict[str, Any] = {
    "codec": "hevc", "metric": "psnr", "preset": "ultrafast", "resolutions": [(256, 192)],
    "rungs": 2, "min_step": 0.1, "min_ratio": 1.05, "min_score": 5, "max_score": 70,
    "prior": "none", "guard": "full", "no_cap": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def sky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sky of 8 bit that brightens towards the horizon, with texture at its lower end."""
    path = tmp_path_factory.mktemp("sky") / "sky.mkv"
    luma = "16+219*(0.35+0.16*Y/192+0.05*X/256)+random(1)+if(gt(Y,150),40*random(2),0)"
    run_ffmpeg(
        "-f", "lavfi", "-i", f"nullsrc=s=256x192:r=24,format=yuv420p,geq='{luma}':118:140",
        "-frames:v", "8", "-c:v", "ffv1", str(path),
    )  # fmt: skip
    return path


def test_a_sky_is_flagged_at_8_bit_with_a_place_and_a_price(sky: Path, tmp_path: Path) -> None:
    ladder = vqaloop.build_ladder(sky, out=tmp_path / "eight", max_banding=5, **SKY)
    assert not ladder.trusted
    found = ladder.about["banding"]
    worst = ladder.rungs[found["rung"] - 1]
    assert worst.file == found["file"] and worst.guard["cambi"] == pytest.approx(found["cambi"])
    assert found["cambi"] > 5 and 0 <= found["frame"] < 8
    # in the sky, not in the texture below it
    assert found["top"] + found["size"] <= 192 and found["top"] < 80
    cure = found["cure"]
    assert cure["cambi"] < 5 and 0.5 < cure["bitrate_ratio"] < 2 and cure["cpu_ratio"] > 0
    [line] = [w for w in ladder.about["warnings"] if "times the encoding time" in w]
    assert worst.file in line and "--bit-depth 10, it has CAMBI" in line
    page = (ladder.folder / "report.html").read_text()
    assert "The most visible banding, in" in page
    kept = json.loads((ladder.folder / "pictures.json").read_text())["places"][-1]
    assert str(found["rung"]) in kept["pictures"] and "0" in kept["pictures"]
    # the page is made again from the folder alone
    again = read_ladder(ladder.folder)
    assert again.about["banding"] == found


def test_the_same_sky_is_not_flagged_at_10_bit(sky: Path, tmp_path: Path) -> None:
    ladder = vqaloop.build_ladder(sky, out=tmp_path / "ten", max_banding=5, bit_depth=10, **SKY)
    assert ladder.trusted and "banding" not in ladder.about
    assert all(rung.guard["cambi"] < 5 for rung in ladder.rungs)
    assert not any("visible banding" in line for line in ladder.about["warnings"])


def test_bands_are_found_where_they_are() -> None:
    luma = np.random.default_rng(1).integers(0, 255, (120, 160)).astype(np.uint8)
    luma[40:104, 80:144] = 100 + np.arange(64)[:, None] // 8
    left, top = most_banded(luma, 64)
    assert abs(left - 80) <= 10 and abs(top - 40) <= 10
    assert most_banded(np.zeros((40, 40), np.uint8), 40) == (0, 0)
