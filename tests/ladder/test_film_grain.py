"""Film grain of sources and ladders: recognised, removed with a table, and only where it pays."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import vqaloop
from tests.support.media import make_clip, run_ffmpeg
from vqaloop.bitstream.film_grain import has_synthesis
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.errors import InputError
from vqaloop.ladder import film_grain
from vqaloop.ladder.film_grain import GrainUse, _judged
from vqaloop.ladder.summary import film_grain_line
from vqaloop.media.grain_estimate import grain_of
from vqaloop.media.probe import probe_source

SMALL: dict[str, Any] = {
    "codec": "av1", "preset": "13", "metric": "psnr", "resolutions": "128x96", "rungs": 2,
    "guard": "off", "min_step": 0.5, "no_cap": True, "min_score": 5, "max_score": 60,
}  # fmt: skip


def grainy(path: Path, strength: int, more: str = "") -> Path:
    noise = f"gblur=2,noise=c0s={strength}:c0f=t:all_seed=1{more}"
    return make_clip(path, size="128x96", frames=10, vf=noise, codec="ffv1")


@pytest.mark.parametrize(
    ("vf", "deviation"),
    [
        ("noise=c0s=4:c0f=t:all_seed=1", 2.2),
        ("noise=c0s=16:c0f=t:all_seed=1", 9.6),
        ("null", None),
        ("gblur=3", None),
        # of one picture alone, and so of the scene itself
        ("noise=c0s=16:all_seed=1", None),
    ],
)
def test_grain_is_recognised_by_its_strength(
    tmp_path: Path, vf: str, deviation: float | None
) -> None:
    clip = make_clip(tmp_path / "clip.mkv", size="192x108", frames=8, vf=vf, codec="ffv1")
    found = grain_of(probe_source(clip), ffmpeg=ffmpeg_path())
    assert found == (None if deviation is None else pytest.approx(deviation, rel=0.15))


def test_what_an_encoder_left_is_no_grain(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", size="192x108", frames=8, crf=35)
    assert grain_of(probe_source(clip), ffmpeg=ffmpeg_path()) is None


def test_tiny_and_short_titles_have_no_verdict(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mkv", size="64x64", frames=4, vf="negate", codec="ffv1")
    source = probe_source(clip)
    assert grain_of(replace(source, frames=1), ffmpeg=ffmpeg_path()) is None
    # a folder in its place: nothing can be read
    assert grain_of(replace(source, path=tmp_path), ffmpeg=ffmpeg_path()) is None


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"codec": "h264", "film_grain": 8}, "libx264 makes no film-grain table"),
        ({"codec": "av1", "encoder": "librav1e", "film_grain": 8}, "photon noise"),
        ({"codec": "av1", "film_grain": 51}, "whole number from 1 to 50"),
        ({"codec": "av1", "film_grain": 0}, "whole number from 1 to 50"),
        ({"codec": "av1", "film_grain": "much"}, "give auto, off, or a strength"),
        ({"codec": "av1", "film_grain": -3}, "whole number from 1 to 50"),
    ],
)
def test_refused_before_any_work(tmp_path: Path, asked: dict[str, object], why: str) -> None:
    with pytest.raises(InputError, match=why):
        vqaloop.build_ladder(tmp_path / "none.mp4", **asked)  # type: ignore[arg-type]


def test_a_strength_makes_rungs_with_tables_that_are_made_again_byte_for_byte(
    tmp_path: Path,
) -> None:
    clip = grainy(tmp_path / "clip.mkv", 12)
    ladder = vqaloop.build_ladder(clip, out=tmp_path / "out", film_grain=20, **SMALL)
    assert ladder.about["asked"]["film_grain"] == 20
    found = ladder.about["film_grain"]
    assert found["strength"] == 20 and found["deviation"] == pytest.approx(7, rel=0.2)
    for rung in ladder.rungs:
        path = ladder.folder / rung.file
        assert rung.params == {"film-grain": "20"} and has_synthesis(path)
        again = tmp_path / "again.mp4"
        run_ffmpeg("-i", str(clip), *rung.ffmpeg_args, str(again))
        assert (
            hashlib.sha256(again.read_bytes()).digest()
            == hashlib.sha256(path.read_bytes()).digest()
        )
    assert "strength 20" in film_grain_line(ladder)
    page = (ladder.folder / "report.html").read_text()
    assert "The source has film grain" in page


@pytest.mark.slow
def test_auto_leaves_a_source_without_grain_alone(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mkv", size="128x96", frames=10, codec="ffv1")
    ladder = vqaloop.build_ladder(clip, out=tmp_path / "out", film_grain="auto", **SMALL)
    assert ladder.about["film_grain"]["deviation"] is None
    assert ladder.about["film_grain"]["tried"] is None
    assert not any(has_synthesis(ladder.folder / rung.file) for rung in ladder.rungs)


def test_auto_decides_by_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = grainy(tmp_path / "clip.mkv", 10)
    curves: list[list[tuple[float, float]]] = []

    def seen(use: GrainUse, *both: list[tuple[float, float]]) -> GrainUse:
        curves.extend(both)
        return _judged(use, *both)

    monkeypatch.setattr(film_grain, "_judged", seen)
    ladder = vqaloop.build_ladder(clip, out=tmp_path / "out", film_grain="auto", **SMALL)
    found = ladder.about["film_grain"]
    assert found["tried"] and [len(curve) for curve in curves] == [3, 3]
    assert curves[0] != curves[1]
    kept = found["strength"] is not None
    assert kept == (found["saving_percent"] is not None)
    assert kept != bool(found["why"])
    assert all(has_synthesis(ladder.folder / rung.file) is kept for rung in ladder.rungs)


def test_a_table_is_kept_only_where_it_scores_better() -> None:
    use = GrainUse("auto", 4.0, tried=40)
    plain = [(100.0, 60.0), (200.0, 70.0), (400.0, 80.0)]
    better = [(100.0, 63.0), (200.0, 73.0), (400.0, 82.0)]
    kept = _judged(use, plain, better)
    assert kept.strength == 40 and kept.saving_percent is not None and kept.gain is not None
    assert 10 < kept.saving_percent < 25 and 2 < kept.gain < 3.1 and not kept.why
    assert kept.params() == (("film-grain", "40"),)
    worse = _judged(use, better, plain)
    assert worse.strength is None and "no better" in worse.why and worse.params() == ()
    apart = _judged(use, plain, [(1.0, 10.0), (2.0, 20.0), (3.0, 30.0)])
    assert apart.strength is None and "not conclusive" in apart.why
