"""The benches of attacks and of gaming, on a tiny clip."""

import sys
from pathlib import Path

import pandas as pd
import pytest

from bench import attacks, gaming
from tests.support.media import make_clip


def test_attacked_clips_are_judged_and_the_bench_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = make_clip(tmp_path / "tiny.y4m", size="128x96", frames=16)
    csv, page = tmp_path / "rows.csv", tmp_path / "table.md"
    words = ["attacks", str(clip), "--out", str(tmp_path / "out"), "--frames", "16"]
    words += ["--attacks", "luma flicker,grey", "--csv", str(csv), "--table", str(page)]
    monkeypatch.setattr(sys, "argv", [*words, "--judges", "vmaf,psnr"])
    assert attacks.main() == 0
    table = pd.read_csv(csv)
    assert list(zip(table["attack"], table["strength"], strict=True)) == [
        ("none", 0.0),
        *((name, s) for name in ("luma flicker", "grey") for s in (0.25, 0.5, 1.0)),
    ]
    scores = table.set_index(["attack", "strength"])
    # flicker of 8 levels is 30 dB, to which VMAF is blind; luma of a grey picture is intact
    assert scores["psnr"]["luma flicker", 0.5] == pytest.approx(30, abs=1)
    assert scores["vmaf"]["luma flicker", 0.5] > 95
    assert scores["psnr"]["grey", 1.0] == 60
    text = page.read_text()
    assert "| seen | 0 of 6 | 3 of 6 |" in text and text in capsys.readouterr().out
    assert "| grey: saturation -100% (above 100 %: complementary colours) |" in text
    monkeypatch.setattr(sys, "argv", [*words, "--judges", "vmaf,psnr,vmaf-neg"])
    table.assign(psnr=1.0).to_csv(csv, index=False)
    assert attacks.main() == 0
    again = pd.read_csv(csv)
    assert (again["psnr"] == 1).all() and again["vmaf-neg"].notna().all()
    whole = csv.read_bytes()
    assert attacks.main() == 0 and csv.read_bytes() == whole
    monkeypatch.setattr(sys, "argv", [*words, "--judges", "vmaf,netflix"])
    with pytest.raises(SystemExit) as refused:
        attacks.main()
    assert refused.value.code == 2 and "unknown: netflix; choose" in capsys.readouterr().err


def test_tricks_are_judged_by_bd_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = make_clip(tmp_path / "tiny.y4m", size="128x96", frames=8)
    csv = tmp_path / "rows.csv"
    words = ["gaming", str(clip), "--out", str(tmp_path / "out"), "--csv", str(csv)]
    monkeypatch.setattr(sys, "argv", [*words, "--judges", "xpsnr,psnr"])
    chosen = ("plain", "contrast 1.1 before", "chroma-qp-offset +12")
    monkeypatch.setattr(gaming, "TRICKS", {name: gaming.TRICKS[name] for name in chosen})
    assert gaming.main() == 0
    found = gaming.bd_rates(pd.read_csv(csv)).set_index("trick")
    # luma alone costs no bits of chroma; a changed contrast is never the original again
    assert found["psnr"]["chroma-qp-offset +12"] < -5
    assert found["xpsnr"]["chroma-qp-offset +12"] > found["psnr"]["chroma-qp-offset +12"]
    assert pd.isna(found["xpsnr"]["contrast 1.1 before"])
    assert "| contrast 1.1 before | n/a | +" in capsys.readouterr().out
