"""The bench of places measures what it says."""

import sys
from pathlib import Path

import pandas as pd
import pytest

from bench import places
from tests.support.media import make_clip


def test_even_places_are_one_of_each_part() -> None:
    starts = list(places.even_places(80, 3))
    assert [start // 10 for start in starts] == list(range(8))
    assert all(start % 10 < 9 for start in starts)
    assert starts != list(places.even_places(80, 4))


def test_errors_are_those_of_the_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = [make_clip(tmp_path / f"{name}.y4m", size="64x48", frames=30) for name in "ab"]
    words = [*map(str, clips), "--join", "2", "--height", "96", "--frames", "30", "--seeds", "4"]
    monkeypatch.setattr(sys, "argv", ["places", *words, "--csv", str(tmp_path / "a.csv")])
    places.main()
    table = pd.read_csv(tmp_path / "a.csv")
    # encodes, choices, seeds
    assert len(table) == 5 * 4 * 4 and table.title.unique().tolist() == ["a+b"]
    assert table.error.abs().between(0.01, 20).mean() > 0.8
    late = table[(table.encode == "late drop") & (table.choice != "eight even")]
    assert not late.unseen.any()
    out = capsys.readouterr().out
    assert all(choice in out for choice in ("eight even", "raw", "x264, fixed GOP"))
