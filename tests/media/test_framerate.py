"""Constant rates for variable time stamps: every frame kept, and no more of them than it takes."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.media import frame_hashes, make_clip, remux
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.encoding.encode import encode
from vqaloop.encoding.registry import get_encoder
from vqaloop.errors import InputError
from vqaloop.media.excerpt import excerpt
from vqaloop.media.framerate import best_regrid, parse_rate, regrid
from vqaloop.media.limits import MAX_REPEATS, MAX_VARIABLE_FPS
from vqaloop.media.probe import probe_source
from vqaloop.quality.full_reference import measure
from vqaloop.records import Rendition

FFMPEG = ffmpeg_path()
FILM, NTSC = Fraction(24000, 1001), Fraction(30000, 1001)

_SEEDED = np.random.default_rng(3)


def steady(rate: Fraction | int, frames: int, start: Fraction | float = 0) -> list[float]:
    return [float(start + n / Fraction(rate)) for n in range(frames)]


KINDS: dict[str, tuple[list[float], Fraction]] = {
    "one frame missing": (steady(30, 120)[:57] + steady(30, 120)[58:], Fraction(30)),
    "one missing of 29.97": (steady(NTSC, 120)[:57] + steady(NTSC, 120)[58:], NTSC),
    "one missing of 23.976": (steady(FILM, 400)[:57] + steady(FILM, 400)[58:], FILM),
    "60, then 30": (steady(60, 120) + steady(30, 60, 2), Fraction(60)),
    "25 with a pause": (steady(25, 50) + steady(25, 25, 3), Fraction(25)),
    "last frame held": (steady(30, 60) + [4.0], Fraction(30)),
    "60 with a pause": (steady(60, 90) + steady(60, 90, 3), Fraction(60)),
    "bursts": ([t for b in range(4) for t in steady(60, 20, b * 1.03)], Fraction(60)),
    "slow motion": (
        steady(30, 15) + steady(240, 120, 0.5) + steady(30, 15, 1),
        Fraction(240),
    ),
    "24, then 30": (steady(24, 48) + steady(30, 60, 2), Fraction(30)),
    "15 % missing": ([t for t in steady(30, 120) if _SEEDED.random() > 0.15], Fraction(30)),
    "one missing of twelve": (steady(25, 6) + steady(25, 5, 0.28), Fraction(25)),
    "no usual rate": ([t for t in steady(18, 90) if round(t * 18) % 7], Fraction(18)),
}


@pytest.mark.parametrize("tick_s", [0.001, 1 / 90000])
@pytest.mark.parametrize("kind", KINDS)
def test_the_least_rate_that_keeps_every_frame_is_taken(kind: str, tick_s: float) -> None:
    times, rate = KINDS[kind]
    stamps = np.round(np.array(times) / tick_s) * tick_s
    way = best_regrid(stamps, tick_s)
    assert (way.lost, way.delayed) == (0, False)
    assert way.fps == rate or (way.fps not in (FILM, NTSC) and abs(way.fps / rate - 1) < 0.002)


@given(
    rate=st.sampled_from([Fraction(15), FILM, Fraction(25), Fraction(30), Fraction(60)]),
    share=st.floats(0.11, 0.45),
    missing=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None)
def test_jitter_loses_nothing_and_multiplies_nothing(
    rate: Fraction, share: float, missing: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    shown = np.arange(200)[rng.random(200) >= missing]
    times = np.sort(shown + rng.uniform(-share, share, len(shown))) / float(rate)
    way = best_regrid(np.round(times, 3), 0.001)
    assert way.lost == 0
    assert way.fps < rate * Fraction(17, 10)


@given(st.lists(st.integers(0, 400), min_size=2, max_size=60).filter(any))
def test_any_stamps_come_to_a_rate_within_the_limits(steps_ms: list[int]) -> None:
    times = np.cumsum(steps_ms) / 1000
    way = best_regrid(times - times[0], 0.001) if times[-1] > times[0] else None
    if way:
        assert 1 <= way.fps <= MAX_VARIABLE_FPS
        made = float(way.fps) * (times[-1] - times[0])
        assert made <= MAX_REPEATS * len(times) + 1 or way.fps == 10
        assert 0 <= way.lost < len(times)


def test_a_rate_that_cannot_keep_all_loses_as_few_as_it_can() -> None:
    times = sorted(steady(1000, 100) + steady(25, 50, 1))
    way = best_regrid(times, 1e-5)
    assert way.fps == MAX_VARIABLE_FPS
    assert 70 < way.lost < 80
    assert regrid(times, Fraction(25)).lost > 90


@pytest.mark.parametrize(
    ("text", "rate"),
    [("23.97", FILM), ("29.97", NTSC), ("59.94", Fraction(60000, 1001)), ("23.9", None)],
)
def test_truncated_rates_are_the_usual_ones(text: str, rate: Fraction | None) -> None:
    assert parse_rate(text) == (rate or Fraction(text))


# --- files ---------------------------------------------------------------------------------------


FINE = "settb=1/90000,setpts='{}'"
FILES: dict[str, tuple[str, int, str, Fraction, bool]] = {
    # rate, frames and filters of the clip; the rate it is brought to, and whether frames are moved
    "one missing": ("30", 90, "select='not(eq(n,40))'", Fraction(30), False),
    "60, then 30": ("60", 90, "select='lt(n,45)+not(mod(n,2))'", Fraction(60), False),
    "pause": ("25", 40, "setpts='PTS+gte(N,20)*0.7/TB'", Fraction(25), False),
    "slow motion": (
        "30",
        48,
        FINE.format("if(lt(N,8),3000*N,if(lt(N,40),24000+375*(N-8),36000+3000*(N-40)))"),
        Fraction(240),
        False,
    ),
    "24, then 30": (
        "30",
        54,
        FINE.format("if(lt(N,24),3750*N,90000+3000*(N-24))"),
        Fraction(30),
        False,
    ),
    "jitter": ("30", 60, FINE.format("3000*N+1300*mod(N*7,3)"), Fraction(30), True),
}


def variable(path: Path, kind: str) -> Path:
    rate, frames, vf, _, _ = FILES[kind]
    fine = {"enc_time_base": "1/90000"} if "settb" in vf else {}
    return make_clip(path, size="64x64", rate=rate, frames=frames, vf=vf, bf=0, **fine)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("kind", FILES)
def test_no_distinct_frame_of_a_file_is_lost(tmp_path: Path, kind: str, suffix: str) -> None:
    path = variable(tmp_path / f"a{suffix}", kind)
    stored = frame_hashes(replace(probe_source(path), prep=()))
    source = probe_source(path)
    assert (source.fps, len(source.prep)) == (FILES[kind][3], 3 if FILES[kind][4] else 1)
    every = frame_hashes(source)
    assert list(dict.fromkeys(every)) == stored and len(set(stored)) == len(stored)
    repeated = source.frames - len(stored)
    assert len(every) == source.frames
    (note,) = source.notes
    assert "Variable frame rate" in note and "none dropped" in note
    assert f" {repeated} frame{'s' * (repeated != 1)} repeated" in note
    assert repeated == 1 or kind != "one missing"
    assert repeated <= 2 or kind != "jitter"


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9", "libsvtav1"])
def test_moved_frames_go_through_encodes_excerpts_and_metrics(tmp_path: Path, codec: str) -> None:
    source = probe_source(variable(tmp_path / "a.mp4", "jitter"))
    every = frame_hashes(source)
    encoder = get_encoder(codec)
    knob = encoder.knob.search[0]
    made = encode(
        source,
        Rendition(64, 64, codec, knob, encoder.presets[-1]),
        tmp_path / f"b{encoder.suffix}",
        ffmpeg=FFMPEG,
    )
    assert made.frames == source.frames == len(every)
    assert measure(source, made.path, ["psnr"], ffmpeg=FFMPEG)["psnr"].value > 37
    part = excerpt(source, ((20, 5), (40, 6)), tmp_path / "x.mkv", ffmpeg=FFMPEG)
    assert frame_hashes(part) == every[20:25] + every[40:46]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_cut_by_copying_keeps_its_rate(tmp_path: Path, suffix: str) -> None:
    whole = make_clip(tmp_path / f"a{suffix}", rate="30000/1001", frames=120, bf=3, g=40)
    part = remux(whole, tmp_path / f"b{suffix}", "-ss", "1.1", after=("-t", "1.75"))
    source = probe_source(part)
    assert source.fps == NTSC
    assert all(", none dropped" in note for note in source.notes if "rate" in note)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".y4m", ".webm"])
def test_framerate_holds_for_every_kind_of_input(tmp_path: Path, suffix: str) -> None:
    path = make_clip(tmp_path / f"a{suffix}", size="64x64", rate="25", frames=25)
    assert probe_source(path, framerate="25").prep == ()
    faster = probe_source(path, framerate="50")
    assert (faster.fps, faster.frames, faster.prep) == (Fraction(50), 50, ("fps=50/1",))
    assert len(set(frame_hashes(faster))) == 25
    slower = probe_source(path, framerate="12.5")
    assert len(frame_hashes(slower)) == slower.frames
    assert slower.frames in (12, 13)
    (note,) = slower.notes
    assert f"brought to 12.5 a second: 0 frames repeated, {25 - slower.frames} dropped" in note
    with pytest.raises(InputError, match="not a rate"):
        probe_source(path, framerate="fast")


def test_framerate_overrides_what_a_variable_file_suggests(tmp_path: Path) -> None:
    path = variable(tmp_path / "a.mp4", "24, then 30")
    assert probe_source(path, framerate="120").fps == 120
