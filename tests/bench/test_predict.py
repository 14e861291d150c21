"""Predictions compared with encodes: looks at clips, stretch of intervals, titles left out."""

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench import content, predict
from bench.content import Clip, read_content
from bench.oracle import Encoded, Oracle
from bench.prior import FITS, stretch_of
from tests.support.media import make_clip
from tests.support.titles import CRF, random_title
from vqaloop.media.content import Content

USUAL = Content(-4.8, -2.9, -7.3, 0.15)
SIZES = ((640, 360), (426, 240), (320, 180), (212, 120))


@cache
def oracle() -> Oracle:
    points = []
    for width, height in SIZES:
        for knob in np.linspace(*CRF.search, 8):
            point = width, height, CRF.snap(knob)
            found = random_title(1).measure(point)
            figures = found.bitrate_kbps, found.score, 40.0, found.score
            points.append(Encoded(*point, *figures, 1.0, 1.0, 1.0))
    return Oracle("title", "h264", points, CRF)


def test_intervals_are_stretched_to_hold_what_was_left_out_each_title_alike() -> None:
    rng = np.random.default_rng(0)
    many = [(f"title {i}", rng.normal(size=(20, 2)) * (2.0, 0.5)) for i in range(400)]
    rate, score = stretch_of(many)
    assert rate == pytest.approx(2.0, rel=0.04) and score == pytest.approx(0.5, rel=0.04)
    # one title of which there is much weighs no more than another
    loud = ("loud", np.full((4000, 2), 9.0))
    assert stretch_of([*many, loud]) == pytest.approx((rate, score), rel=0.03)


def test_every_rung_is_predicted_by_both_priors_and_looked_up() -> None:
    off = {
        (column, name): [("other", np.ones((4, 2))), ("own", np.full((4, 2), 99.0))]
        for column in predict.METRICS
        for name in FITS
    }
    table = pd.DataFrame(predict.rows_of(oracle(), Clip("own", USUAL), off))
    assert set(table.prior) == {"content", "all"} and set(table.metric) == {"vmaf", "student"}
    for row in table.to_dict("records"):
        made = oracle().at(row["width"], row["height"], row["knob"])
        assert (row["kbps"], row["score"]) == (made.kbps, made.vmaf)
        # by the errors of other titles alone: its own would make it a hundred times as wide
        assert row["kbps_low"] < row["predicted_kbps"] < row["kbps_high"]
        assert row["kbps_high"] / row["kbps_low"] < 100
    found = predict.summary(table)
    shares = found[["rate_covered", "score_covered"]]
    assert ((shares >= 0) & (shares <= 100)).all(axis=None)
    assert predict.markdown(found).count("\n") == 2 + len(found)


def test_a_prior_of_the_same_titles_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "priors.json"
    path.write_text('{"learnt_from": "2 clips: bear, bbb_01"}')
    about = {
        name: Clip(group, USUAL)
        for name, group in (("bbb_01", "bunny"), ("bbb_02", "bunny"), ("coffee", "coffee"))
    }
    predict.check_held_out(["coffee"], about, path)
    with pytest.raises(SystemExit, match="learnt from bbb_02"):
        predict.check_held_out(["coffee", "bbb_02"], about, path)


def test_clips_of_a_grid_are_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        make_clip(tmp_path / f"{name}.mp4", size="64x64", frames=6)
    (tmp_path / "MANIFEST.csv").write_text("file,group\none.mp4,film\n")
    pd.DataFrame({"clip": ["one", "one", "two"], "frames": 4}).to_csv(tmp_path / "g.csv")
    words = ["content", str(tmp_path), str(tmp_path / "g.csv"), "-o", str(tmp_path / "c.csv")]
    monkeypatch.setattr("sys.argv", words)
    assert content.main() == 0
    made = read_content(tmp_path / "c.csv")
    assert {name: clip.group for name, clip in made.items()} == {"one": "film", "two": "two"}
    monkeypatch.setattr(content, "content_of_clip", lambda *a: 1 / 0)
    assert content.main() == 0 and read_content(tmp_path / "c.csv") == made
    with pytest.raises(SystemExit, match="no .*none.csv; make it with"):
        read_content(tmp_path / "none.csv")
