"""The bench of cuts says what it needs."""

import sys
from pathlib import Path

import pytest

from bench import cuts
from tests.support.media import make_clip


def run(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["cuts", *map(str, words)])
    return cuts.main()


def test_clips_of_a_single_group_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one.y4m", tmp_path / "two.y4m"
    (tmp_path / "MANIFEST.csv").write_text("file,group\none.y4m,a\ntwo.y4m,a\n")
    for words in ((one,), (one, two), (one, tmp_path / "three.y4m", "--titles", "0")):
        with pytest.raises(SystemExit) as refused:
            run(monkeypatch, *words)
        assert refused.value.code == 2
    said = capsys.readouterr().err
    assert said.count("give clips of two groups at least") == 2 and "--titles must be" in said


def test_titles_without_a_cut_have_no_recall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = [make_clip(tmp_path / f"{name}.y4m", size="64x48", frames=6) for name in "ab"]
    assert run(monkeypatch, *clips, "--titles", "1") == 0
    assert capsys.readouterr().out.count("| no cuts |") == 2
