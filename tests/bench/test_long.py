"""Ladders of long titles: what they take is bounded, and the bench measures it."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import long
from tests.support.media import make_clip

CHEAP = "--metric psnr --no-cap --preset ultrafast --guard off"


def clips(folder: Path, rate: str = "25") -> Path:
    """A busy and a calm one."""
    folder.mkdir()
    make_clip(folder / "busy.mp4", frames=100, rate=rate, vf="noise=alls=40:allf=t")
    make_clip(folder / "calm.mp4", frames=150, rate=rate)
    return folder


def rows(folder: Path, words: Sequence[str]) -> list[dict[str, str]]:
    """The bench's table after a run of it."""
    assert long.main(["--out", str(folder), *words]) == 0
    with (folder / "long.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.drawn
def test_a_row_of_half_a_minute(tmp_path: Path) -> None:
    words = ["--clips", str(clips(tmp_path / "clips", "10")), "--size", "128x72"]
    words += ["--minutes", "0.5", "--rungs", "2", "--options", f"{CHEAP} --resolutions 128x72"]
    (row,) = rows(tmp_path / "out", words)
    number = {k: float(v) for k, v in row.items() if v.replace(".", "").isdigit()}
    # 30 s are more than an excerpt takes, so all stages are passed through
    assert number["excerpt_encodes"] >= 2 and number["whole_encodes"] >= 2
    stages = [f"{stage}_wall_s" for stage in long.STAGES if stage != "guard"]
    assert min(number[name] for name in stages) > 0 and number["guard_wall_s"] == 0
    assert number["wall_s"] == pytest.approx(sum(number[name] for name in stages), abs=0.01)
    # seconds of the encodes are among those of the processes
    assert (
        0 < number["encoding_s"] < number["cpu_s"] < number["wall_s"] * (os.cpu_count() or 1) * 1.5
    )
    assert 50 < number["memory_mb"] < 2000 and 0 < number["temporary_mb"] < 50
    assert 0 < number["report_mb"] < 2 and (tmp_path / "out" / "long.png").stat().st_size > 5000
    (events,) = (tmp_path / "out").glob("*/events.ndjson")
    made = events.stat().st_mtime_ns
    (again,) = rows(tmp_path / "out", words)
    # known already: no ladder is made again
    assert again == row and events.stat().st_mtime_ns == made


@pytest.mark.slow
def test_twelve_minutes_at_1080_lines_stay_within_their_bounds(tmp_path: Path) -> None:
    words = ["--clips", str(clips(tmp_path / "clips")), "--minutes", "12", "--rungs", "2"]
    words += ["--options", "--no-cap --resolutions 480x270,320x180"]
    (row,) = rows(tmp_path / "out", words)
    number = {k: float(v) for k, v in row.items() if v.replace(".", "").isdigit()}
    # two guards of 1080 lines at a time take more than a gigabyte each
    assert number["memory_mb"] < 4000 and number["temporary_mb"] < 2500
    assert number["report_mb"] < 2 and number["document_mb"] < 0.1
    # probing and each encode of the whole read it once; windows, excerpt and guard a part of it
    assert number["passes"] < 1 + number["whole_encodes"] + 1
