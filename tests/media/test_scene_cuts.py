"""Cuts and scenes: on synthetic titles whose cuts are known, and the arithmetic of splitting."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.media import make_clip, run_ffmpeg
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.errors import DecodeFailed, InputError
from vqaloop.media.probe import probe_source
from vqaloop.media.scene_cuts import (
    MOST_CUTS,
    Scene,
    even_gop,
    find_cuts,
    find_scenes,
    keep_cuts,
    split,
)

PARTS = {
    "still": "testsrc2=s=160x90:r=25,trim=end_frame={n},loop=-1:1,trim=end_frame={n}",
    "pattern": "testsrc2=s=160x90:r=25,hue=h=150,negate,trim=end_frame={n}",
    "fractal": "mandelbrot=s=160x90:r=25,trim=end_frame={n}",
    "grey": "color=c=gray:s=160x90:r=25,trim=end_frame={n}",
    "white": "color=c=white:s=160x90:r=25,trim=end_frame={n}",
    "dark": "color=c=0x202020:s=160x90:r=25,trim=end_frame={n}",
}


def title(path: Path, *parts: tuple[str, int], after: str = "null") -> Path:
    """Parts of so many frames one after another, lossless."""
    chains = [
        f"{PARTS[name].format(n=n)},setsar=1,format=yuv420p[p{i}]"
        for i, (name, n) in enumerate(parts)
    ]
    inputs = "".join(f"[p{i}]" for i in range(len(parts)))
    graph = ";".join([*chains, f"{inputs}concat=n={len(parts)}:v=1[j];[j]{after}[out]"])
    run_ffmpeg("-filter_complex", graph, "-map", "[out]", "-c:v", "ffv1", file_url(path))
    return path


def cuts(path: Path) -> list[int]:
    ffmpeg = ffmpeg_path()
    return sorted(find_cuts(probe_source(path, ffmpeg=ffmpeg), ffmpeg=ffmpeg))


def test_hard_cuts_are_found_to_the_frame(tmp_path: Path) -> None:
    path = title(tmp_path / "t.mkv", ("pattern", 30), ("fractal", 41), ("dark", 27))
    assert cuts(path) == [30, 71]


def test_a_flash_of_one_frame_is_no_cut(tmp_path: Path) -> None:
    path = title(tmp_path / "t.mkv", ("dark", 30), ("white", 1), ("dark", 30))
    assert cuts(path) == []


def test_a_fade_and_a_moving_picture_are_no_cuts(tmp_path: Path) -> None:
    fade = "fade=in:0:25,fade=out:50:25"
    path = title(tmp_path / "t.mkv", ("pattern", 75), after=fade)
    assert cuts(path) == []


def test_cuts_are_those_of_the_source_as_the_loop_sees_it(tmp_path: Path) -> None:
    ffmpeg = ffmpeg_path()
    path = title(tmp_path / "t.mkv", ("pattern", 40), ("fractal", 40))
    source = probe_source(path, ffmpeg=ffmpeg)
    half = type(source)(
        **{**vars(source), "prep": ("fps=fps=25/2",), "fps": source.fps / 2, "frames": 40}
    )
    assert list(find_cuts(half, ffmpeg=ffmpeg)) == [20]


def test_a_short_scene_goes_to_a_neighbour_and_all_frames_are_covered(tmp_path: Path) -> None:
    ffmpeg = ffmpeg_path()
    path = title(tmp_path / "t.mkv", ("pattern", 40), ("white", 10), ("fractal", 40))
    source = probe_source(path, ffmpeg=ffmpeg)
    scenes = find_scenes(source, ffmpeg=ffmpeg)
    assert len(scenes) == 2
    assert scenes[0].start_frame == 0 and scenes[-1].end_frame == 90
    assert scenes[0].end_frame == scenes[1].start_frame
    assert scenes[0].end_frame in (40, 50)


def test_a_long_scene_is_split_at_gops_from_its_start(tmp_path: Path) -> None:
    ffmpeg = ffmpeg_path()
    path = title(tmp_path / "t.mkv", ("pattern", 30), ("fractal", 70))
    source = probe_source(path, ffmpeg=ffmpeg)
    scenes = find_scenes(source, ffmpeg=ffmpeg, least_s=0.4, most_s=1.6, gop_s=0.4)
    assert scenes == (Scene(0, 30), Scene(30, 60), Scene(60, 100))


def test_two_frames_are_one_scene(tmp_path: Path) -> None:
    ffmpeg = ffmpeg_path()
    source = probe_source(make_clip(tmp_path / "c.y4m", frames=2), ffmpeg=ffmpeg)
    assert find_scenes(source, ffmpeg=ffmpeg) == (Scene(0, 2),)


def test_a_file_that_does_not_decode_and_durations_without_sense_are_refused(
    tmp_path: Path,
) -> None:
    ffmpeg = ffmpeg_path()
    path = make_clip(tmp_path / "c.mp4")
    source = probe_source(path, ffmpeg=ffmpeg)
    for least, most in ((-1, 20), (5, 4), (1, 0.5), (float("nan"), 20)):
        with pytest.raises(InputError):
            find_scenes(source, ffmpeg=ffmpeg, least_s=least, most_s=most)
    path.write_bytes(b"gone")
    with pytest.raises(DecodeFailed):
        find_scenes(source, ffmpeg=ffmpeg)


@given(
    cuts=st.dictionaries(st.integers(-5, 400), st.floats(6, 100), max_size=60),
    frames=st.integers(1, 300),
    least=st.integers(0, 40),
)
def test_kept_cuts_leave_no_scene_too_short(
    cuts: dict[int, float], frames: int, least: int
) -> None:
    kept = keep_cuts(cuts, frames, least)
    assert set(kept) <= set(cuts)
    lengths = [b - a for a, b in pairwise([0, *kept, frames])]
    assert len(lengths) == 1 or min(lengths) >= max(1, least)
    assert kept == sorted(kept)
    # the strongest that could stand is there
    able = [at for at in cuts if max(1, least) <= at <= frames - max(1, least)]
    if able:
        assert max(able, key=lambda at: (cuts[at], -at)) in kept


def test_a_title_that_flickers_does_not_fall_into_thousands_of_scenes() -> None:
    everywhere = {at: 50.0 for at in range(1, 100_000)}
    assert len(keep_cuts(everywhere, 100_000, 1)) == MOST_CUTS


@given(
    start=st.integers(0, 1000),
    length=st.integers(1, 5000),
    gop=st.integers(1, 120),
    gops=st.floats(1, 20),
)
def test_parts_of_a_scene_cover_it_in_whole_gops(
    start: int, length: int, gop: int, gops: float
) -> None:
    most = int(gop * gops)
    parts = split(Scene(start, start + length), gop, most)
    assert parts[0].start_frame == start and parts[-1].end_frame == start + length
    assert all(a.end_frame == b.start_frame for a, b in pairwise(parts))
    assert all(part.frames % gop == 0 and part.frames <= most for part in parts[:-1])
    assert len(parts) == 1 or gop <= parts[-1].frames < most + gop
    assert length > most or len(parts) == 1


@pytest.mark.parametrize(
    ("frames", "gop"), [(73, 73), (75, 38), (50, 50), (51, 51), (24, 24), (130, 44), (1, 1)]
)
def test_a_scene_is_made_of_whole_gops_about_as_long_as_usual(frames: int, gop: int) -> None:
    assert even_gop(frames, 50) == gop
    assert gop <= 75
