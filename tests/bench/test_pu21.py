"""The bench of students on HDR, on a stand-in for ColorVideoVDP."""

from pathlib import Path

import pandas as pd
import pytest

from bench.pu21 import main, prepared, table
from tests.quality.test_cvvdp import stand_in
from tests.support.hdr import make_kind
from tests.support.media import make_clip
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.media.frames import each_of_source


def test_titles_are_hdr_unless_they_are_to_stay_sdr(tmp_path: Path) -> None:
    """White of SDR becomes light of 1000 cd/m²; HDR is scaled alone."""
    clip = make_clip(tmp_path / "a.y4m", size="192x128", frames=3, vf="lutyuv=y=235:u=128:v=128")
    for sdr, kind, luma in ((False, "smpte2084", 723), (True, "bt709", 940)):
        source = prepared(clip, 64, 2, tmp_path, sdr)
        assert dict(source.colour)["color_trc"] == kind
        assert (source.canvas, source.frames, source.bit_depth) == ((96, 64), 2, 10)
        (frame,) = each_of_source(source, [1], ffmpeg=ffmpeg_path(), bits=10)
        assert abs(frame[:64].astype(int) - luma).max() <= 2
    (tmp_path / "hlg").mkdir()
    source = prepared(make_kind(tmp_path / "hlg", "HLG"), 64, 2, tmp_path, sdr=True)
    assert dict(source.colour)["color_trc"] == "arib-std-b67"


def test_the_table_is_of_ranks_within_a_title() -> None:
    rows = [
        {"title": title, "kind": "hlg", "encoder": encoder, "cvvdp": n, "pu21": n**2, "codes": -n}
        for title in "ab"
        for encoder in "xy"
        for n in range(3)
    ]
    found = table(pd.DataFrame(rows))
    assert found.title.tolist() == ["a", "b"] and found.rungs.tolist() == [6, 6]
    assert found.pu21.tolist() == found["pu21, a codec"].tolist() == [1, 1]
    assert found.codes.tolist() == [-1, -1] and found.JOD[0] == "0.0 to 2.0"


@pytest.mark.slow
def test_it_runs_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = make_clip(tmp_path / "a.y4m", size="128x128", frames=6)
    words = [str(clip), "--out", str(tmp_path / "out"), "--height", "128", "--frames", "6"]
    words += ["--cvvdp", str(stand_in(tmp_path))]
    assert main(words) == 0
    first = capsys.readouterr()
    assert first.err.count("rung") == 10 and " a smpte2084 " in first.out
    assert main(words) == 0
    again = capsys.readouterr()
    assert again.err == "" and again.out == first.out
