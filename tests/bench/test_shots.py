"""The simulated bench of per-shot ladders, on the shipped grid."""

import csv
from pathlib import Path

import numpy as np
import pytest

from bench import shots
from bench.grid import read_grid
from bench.oracle import read_oracle
from bench.scenes import draw_titles
from vqaloop.encoding.registry import get_encoder
from vqaloop.ratecontrol.shot_search import Mean


def test_a_row_of_one_title(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "shots.csv"
    assert shots.main(["--titles", "1", "--codecs", "h264", "--csv", str(out)]) == 0
    with out.open() as file:
        (row,) = csv.DictReader(file)
    figures = {name: float(value) for name, value in row.items() if name not in ("codec", "clips")}
    assert figures["rungs"] >= 3 and 2 <= figures["scenes"] <= 8
    assert 1 <= figures["equivalents"] <= 2.5
    assert -1 <= figures["least_saved"] <= figures["saved"] <= figures["possible"] + 2
    assert "0 of 1 titles more than 1 % worse" in capsys.readouterr().out


@pytest.mark.parametrize("pool", ["mean", "harmonic"])
def test_equal_slopes_never_cost_more_than_one_knob(pool: Mean) -> None:
    grid = read_grid(Path(shots.__file__).with_name("grid.csv")).astype({"clip": str})
    oracles = [
        read_oracle(group, get_encoder(str(group.encoder.iloc[0])))
        for _, group in grid[grid.codec == "av1"].groupby("clip")
    ]
    (drawn,) = draw_titles(oracles, 1, scenes=(3, 3))
    one, best = shots.hulls(shots.Title(drawn.oracles, drawn.scenes, pool))
    over = np.array([shots.excess(p.bitrate_kbps, p.score, one) for p in best])
    # but where a curve is not concave
    assert np.nanmax(over) < 2 and np.nanmean(over) < -0.5
