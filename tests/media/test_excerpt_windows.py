"""Windows that stand for a title: where they lie, what they hold, and what choosing them costs."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.media import make_clip, run_ffmpeg
from vqaloop.core import process
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.errors import DecodeFailed, InputError
from vqaloop.media import excerpt_windows
from vqaloop.media.excerpt_windows import (
    Pairs,
    choose_windows,
    excerpt_frames,
    pair_costs,
    sample_pairs,
)
from vqaloop.media.probe import probe_source
from vqaloop.records import Source

FFMPEG = ffmpeg_path()
CALM, BUSY = "color=gray:s=64x64:r=5", "testsrc2=s=64x64:r=5"


def lavfi(path: Path, *scenes: tuple[str, int], options: Sequence[str] = ("-g", "20")) -> Path:
    """A video of scenes (lavfi source, frames) one after another; noise in time on the busy."""
    graphs = [
        f"{text},{'noise=alls=40:allf=t,' * (text == BUSY)}trim=end_frame={n}[s{i}]"
        for i, (text, n) in enumerate(scenes)
    ]
    joined = "".join(f"[s{i}]" for i in range(len(scenes)))
    graphs.append(f"{joined}concat=n={len(scenes)},format=yuv420p")
    encoder = ["-c:v", "libx264", "-preset", "ultrafast", *options] * (path.suffix == ".mkv")
    where = file_url(path)
    run_ffmpeg("-f", "lavfi", "-i", ";".join(graphs), *encoder, where)
    return path


def described(path: Path, frames: int, fps: int = 5, **more: Any) -> Source:
    """A source as probing would give it, without the time for that."""
    return Source(path, "0" * 64, 64, 64, Fraction(fps), frames, "yuv420p", **more)


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """100 s of which 40 are busy, and the rest next to nothing."""
    path = tmp_path_factory.mktemp("halves") / "h.mkv"
    return described(lavfi(path, (CALM, 300), (BUSY, 200)), 500)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Half an hour, a key frame every 4 s; of every three minutes, one is busy."""
    path = tmp_path_factory.mktemp("long") / "l.mkv"
    return described(lavfi(path, *[(CALM, 600), (BUSY, 300)] * 10), 9000)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines that were run, as they come."""
    seen: list[list[str]] = []
    run = process.run

    def watched(argv: Sequence[str], **options: Any) -> process.Finished:
        seen.append(list(argv))
        return run(argv, **options)

    monkeypatch.setattr(process, "run", watched)
    return seen


def no_video(
    source: Source, ranges: Sequence[tuple[int, int]], pace: int, *, ffmpeg: str
) -> Pairs:
    """Noise of changing strength in place of what `look` sees."""
    count = sum(len(range(0, n - 1, pace)) for _, n in ranges)
    rng = np.random.default_rng([source.frames, count])
    strength = rng.integers(1, 255, (count, 1, 1, 1, 1))
    return (rng.integers(0, 255, (count, 2, 2, 8, 16)) * strength // 255).astype(np.uint8)


@settings(max_examples=60)
@given(
    frames=st.integers(2, 20_000),
    fps=st.sampled_from([Fraction(25), Fraction(24000, 1001), Fraction(60), Fraction(1)]),
    seconds=st.floats(1, 60),
    window=st.floats(0.5, 20),
    seed=st.integers(0, 2**32),
)
def test_windows_hold_whole_gops_inside_the_title(
    frames: int, fps: Fraction, seconds: float, window: float, seed: int
) -> None:
    source = replace(described(Path("x"), frames), fps=fps)
    options: dict[str, Any] = {
        "seconds": seconds, "window_seconds": window, "seed": seed, "ffmpeg": "none"
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(excerpt_windows, "sample_pairs", no_video)
        patch.setattr(excerpt_windows, "DRAWS", 50)
        chosen = choose_windows(source, **options)
        assert chosen == choose_windows(source, **options)
    if source.duration_s <= 1.25 * seconds:
        assert chosen == ((0, frames),)
    if chosen == ((0, frames),):
        return
    ends = [0] + [start + count for start, count in chosen]
    assert all(start >= end for (start, _), end in zip(chosen, ends, strict=False))
    assert ends[-1] <= frames
    assert len({count for _, count in chosen}) == 1
    assert chosen[0][1] % round(2 * fps) == 0
    assert sum(count for _, count in chosen) <= seconds * fps + chosen[0][1]


def test_two_unlike_halves_are_both_shown_in_proportion(halves: Source) -> None:
    for seed in range(4):
        chosen = choose_windows(halves, ffmpeg=FFMPEG, seed=seed)
        assert [count for _, count in chosen] == [20] * 5
        busy = [start for start, _ in chosen if start >= 300]
        assert len(busy) == 2
        assert all(start + 20 <= 300 or start >= 300 for start, _ in chosen)


def test_the_seed_decides_and_nothing_else(halves: Source) -> None:
    chosen = [choose_windows(halves, ffmpeg=FFMPEG, seed=seed) for seed in (0, 0, 1, 2, 3)]
    assert chosen[0] == chosen[1]
    assert len(set(chosen)) > 1


def test_a_long_title_costs_no_more_than_its_looks(long: Source, runs: list[list[str]]) -> None:
    chosen = choose_windows(long, ffmpeg=FFMPEG)
    assert len(runs) == excerpt_windows.MOST_SAMPLED
    # each stops by itself, at the second frame of its last pair
    pairs = len(range(0, 19, 2))
    assert {argv[argv.index("-frames:v") + 1] for argv in runs} == {str(2 * pairs)}
    busy = sum(start % 900 >= 590 for start, _ in chosen)
    assert len(chosen) == 5 and busy in (1, 2)


def test_without_key_frames_a_title_is_decoded_once(tmp_path: Path, runs: list[list[str]]) -> None:
    path = lavfi(tmp_path / "x.mkv", (BUSY, 1500), options=("-g", "9999", "-sc_threshold", "0"))
    assert len(choose_windows(described(path, 1500), ffmpeg=FFMPEG)) == 5
    # the first of them is not ours
    assert len([argv for argv in runs if "-ss" in argv]) == 0
    assert len([argv for argv in runs if "-f" in argv and "rawvideo" in argv]) == 1


@pytest.mark.parametrize("name", ["l.mkv", "l.y4m", "l.yuv"])
def test_seeking_shows_the_very_frames_that_decoding_shows(tmp_path: Path, name: str) -> None:
    path = lavfi(tmp_path / name, (BUSY, 150), (CALM, 50))
    raw: dict[str, Any] = {"input_options": (
        ("f", "rawvideo"), ("video_size", "64x64"), ("pixel_format", "yuv420p"), ("framerate", "5")
    )}  # fmt: skip
    source = described(path, 200, prep=("crop=62:62:0:0",), **raw if name == "l.yuv" else {})
    source = replace(source, width=63, height=63)
    ranges = [(11, 20), (140, 21)]
    assert excerpt_windows._seeking_pays(source, ranges)
    seen = sample_pairs(source, ranges, 3, ffmpeg=FFMPEG)
    assert seen.shape == (7 + 7, 2, 2, 56, 56)
    assert np.array_equal(seen, excerpt_windows._read(source, ranges, 3, FFMPEG))
    # and these are frames 140, 143, ... with the ones after them, cut as `prep` says
    options = [part for key, value in source.input_options for part in (f"-{key}", value)]
    every = np.frombuffer(
        run_ffmpeg(
            *options, "-i", file_url(path),
            "-vf", "crop=62:62:0:0,format=gray,crop=56:56", "-f", "rawvideo", "pipe:1",
        ), np.uint8
    ).reshape(-1, 56, 56)  # fmt: skip
    firsts = np.arange(140, 160, 3)
    assert np.array_equal(seen[7:, :, 1], np.stack([every[firsts], every[firsts + 1]], 1))


def test_raw_video_is_looked_at_with_its_own_options(tmp_path: Path) -> None:
    path = make_clip(
        tmp_path / "x.yuv", size="66x65", frames=200, rate="5", pix_fmt="yuv444p", vf="scale=66:65"
    )
    source = probe_source(path, video_size="66x65", pix_fmt="yuv444p", framerate="5")
    assert source.prep
    assert len(choose_windows(source, ffmpeg=FFMPEG)) == 5


def test_a_rate_that_varies_is_looked_at_as_it_will_be_cut(tmp_path: Path) -> None:
    path = make_clip(
        tmp_path / "v.mkv", size="64x64", frames=340, rate="10", vf="select='not(eq(mod(n,20),9))'"
    )
    source = probe_source(path)
    assert source.prep
    chosen = choose_windows(source, ffmpeg=FFMPEG)
    assert len(chosen) == 5 and chosen[-1][0] + 40 <= source.frames


def test_black_and_short_titles_are_no_trouble(tmp_path: Path) -> None:
    black = described(lavfi(tmp_path / "b.mkv", ("color=black:s=64x64:r=5", 400)), 400)
    chosen = choose_windows(black, ffmpeg=FFMPEG)
    # all are alike, so one lies in each fifth
    assert [(start + 10) // 80 for start, _ in chosen] == [0, 1, 2, 3, 4]
    # nothing is read where there is nothing to choose
    assert choose_windows(described(Path("none"), 125), ffmpeg=FFMPEG) == ((0, 125),)
    assert choose_windows(
        described(Path("none"), 9), ffmpeg="none", seconds=1, window_seconds=4
    ) == ((0, 9),)


def test_what_cannot_be_is_refused(tmp_path: Path, halves: Source) -> None:
    wrongs: tuple[dict[str, Any], ...] = ({"seconds": 0.0}, {"window_seconds": float("nan")})
    for wrong in wrongs:
        with pytest.raises(InputError, match="above 0"):
            choose_windows(halves, ffmpeg=FFMPEG, **wrong)
    with pytest.raises(DecodeFailed, match="250 of 300 pairs"):
        choose_windows(replace(halves, frames=600), ffmpeg=FFMPEG)
    with pytest.raises(DecodeFailed, match="gone"):
        choose_windows(replace(halves, path=tmp_path / "gone.mkv"), ffmpeg=FFMPEG)


def test_costs_know_motion_from_change_and_detail_from_none() -> None:
    y, x = np.mgrid[:64, :64].astype(np.float64)

    def at(shift: float) -> Any:
        return 128 + 60 * np.sin((x - shift) / 4) * np.cos((y - shift / 2) / 5)

    rng = np.random.default_rng(0)
    still, moved, noisy = at(0), at(0.7), at(0) + rng.normal(0, 12, (64, 64))
    pairs = np.stack([[still, still], [still, moved], [still, noisy], [still * 0, still * 0]])
    twice = np.repeat(pairs[:, :, None], 2, axis=2).clip(0, 255).astype(np.uint8)
    costs = pair_costs(twice)
    assert costs.shape == (4, 2, 3, 2) and np.array_equal(costs[:, 0], costs[:, 1])
    assert (costs[..., 1] <= costs[..., 0]).all() and (np.diff(costs[:, 0], axis=1) <= 0).all()
    intra, inter = costs[:, 0, 1].T
    assert inter[0] == inter[3] == intra[3] == 0
    assert inter[1] < 0.25 * intra[1] and inter[2] > 4 * inter[1]


def test_how_long_an_excerpt_is_is_known_before_it_is_chosen(halves: Source) -> None:
    windows = choose_windows(halves, ffmpeg=FFMPEG)
    assert excerpt_frames(halves) == sum(count for _, count in windows) == 100
    short = replace(halves, frames=60)
    assert excerpt_frames(short) == 60 and choose_windows(short, ffmpeg=FFMPEG) == ((0, 60),)
