"""Telecine recognised and inverted, and interlaced video at full field rate."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.media import frame_hashes, make_clip, run_ffmpeg
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.errors import InputError
from vqaloop.execution.options import WAYS
from vqaloop.ladder.options import LadderOptions
from vqaloop.media.excerpt import excerpt
from vqaloop.media.frames import read_source
from vqaloop.media.probe import probe_source
from vqaloop.media.telecine import soft_telecine, telecined_share

FILM, NTSC = Fraction(24000, 1001), Fraction(30000, 1001)
MPEG2: dict[str, Any] = {"codec": "mpeg2video", "qscale:v": 2, "flags": "+ildct+ilme"}
SIZE = "160x96"


def film(path: Path, frames: int, **more: Any) -> Path:
    return make_clip(path, size=SIZE, frames=frames, rate="24000/1001", **more)


def hard(path: Path, frames: int = 40, pattern: str = "telecine=pattern=23", **more: Any) -> Path:
    """Film, telecined: 5 frames of 4."""
    return film(path, frames, vf=pattern, **MPEG2 | more)


def video(path: Path, frames: int = 100) -> Path:
    """Fields of 59.94 a second."""
    return make_clip(path, size=SIZE, frames=frames, rate="60000/1001", vf="interlace", **MPEG2)


@pytest.mark.parametrize("pattern", ["23", "2332:first_field=b", "32"])
def test_hard_telecine_becomes_the_film_it_was(tmp_path: Path, pattern: str) -> None:
    source = probe_source(hard(tmp_path / "a.mkv", pattern=f"telecine=pattern={pattern}"))
    assert source.fps == FILM and 38 <= source.frames <= 40
    assert "Hard telecine" in source.notes[0]
    # what was film comes back as clean pictures: each near one of the original
    original = probe_source(film(tmp_path / "film.mkv", 40, codec="ffv1"))
    both = [
        read_source(each, list(range(each.frames)), ffmpeg=ffmpeg_path()).astype(int)
        for each in (source, original)
    ]
    nearest = [
        min(float(np.abs(one - other).mean()) for other in both[1]) for one in both[0][1:-1]
    ]
    assert max(nearest) < 3


def test_interlaced_video_and_film_at_its_own_rate_are_none(tmp_path: Path) -> None:
    ffmpeg = ffmpeg_path()
    source = probe_source(video(tmp_path / "video.mkv"))
    assert source.prep == ("bwdif=mode=send_frame",) and source.fps == NTSC
    assert telecined_share(source.path, 50, ffmpeg) == 0
    still = make_clip(tmp_path / "still.mkv", size=SIZE, frames=60, rate="30000/1001",
                      vf="loop=loop=-1:size=1,trim=end_frame=60", **MPEG2)  # fmt: skip
    assert telecined_share(still, 60, ffmpeg) is None
    assert telecined_share(tmp_path / "none.mkv", 60, ffmpeg) is None


def test_a_title_that_is_telecined_in_part_is_deinterlaced_and_says_so(tmp_path: Path) -> None:
    parts = [hard(tmp_path / "film.mkv", 80), video(tmp_path / "video.mkv", 200)]
    words = [word for part in parts for word in ("-i", str(part))]
    mixed = tmp_path / "mixed.mkv"
    run_ffmpeg(
        *words, "-filter_complex", "[0:v][1:v]concat=n=2,setfield=tff", "-c:v", "mpeg2video",
        "-qscale:v", "2", "-flags", "+ildct+ilme", str(mixed),
    )  # fmt: skip
    source = probe_source(mixed)
    assert source.prep == ("bwdif=mode=send_frame",) and source.fps == NTSC
    assert any("hard telecine, too little" in note for note in source.notes)


def test_the_ways_that_are_asked_for(tmp_path: Path) -> None:
    telecined = hard(tmp_path / "a.mkv")
    frames = probe_source(telecined, deinterlace="frames")
    assert (frames.fps, frames.prep) == (NTSC, ("bwdif=mode=send_frame",))
    fields = probe_source(video(tmp_path / "v.mkv", 60), deinterlace="fields")
    assert fields.fps == 2 * NTSC and fields.frames == 60
    assert len(set(frame_hashes(fields))) == 60
    slower = probe_source(telecined, framerate="12")
    assert slower.fps == 12 and abs(slower.frames - 20) <= 1
    # flagged progressive, as many files are
    pulled = "telecine=pattern=23,setfield=prog"
    unflagged = film(tmp_path / "p.mkv", 40, vf=pulled, crf=8, preset="ultrafast")
    assert probe_source(unflagged).fps == NTSC
    asked = probe_source(unflagged, deinterlace="telecine")
    assert asked.fps == FILM and "as asked" in asked.notes[0]
    with pytest.raises(InputError, match="none of auto, frames, fields, telecine"):
        LadderOptions(codec="h264", deinterlace="both")  # type: ignore[arg-type]
    raw = make_clip(tmp_path / "a.yuv", size="64x64", frames=4)
    form: Any = {"video_size": "64x64", "pix_fmt": "yuv420p", "framerate": "25"}
    assert probe_source(raw, **form).frames == 4
    with pytest.raises(InputError, match="raw video is taken for progressive"):
        probe_source(raw, deinterlace="fields", **form)
    assert WAYS[0] == LadderOptions(codec="h264").deinterlace


def test_progressive_video_is_left_alone_by_every_way_but_one(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mp4", size=SIZE, frames=20, rate="30000/1001")
    plain = probe_source(clip)
    assert not plain.prep
    for way in ("frames", "fields"):
        assert probe_source(clip, deinterlace=way) == plain


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_soft_telecine_has_the_rate_of_its_pictures(tmp_path: Path, suffix: str) -> None:
    times = "settb=1001/60000,setpts='ceil(N*2.5)'"
    clip = film(
        tmp_path / f"soft{suffix}", 24, vf=times, preset="ultrafast", enc_time_base="1001/60000"
    )
    source = probe_source(clip)
    assert (source.fps, source.frames) == (FILM, 24)
    assert source.notes[0].startswith("Soft telecine")
    assert "0 frames repeated, none dropped" in source.notes[0]


def test_times_of_soft_telecine() -> None:
    fields = np.ceil(np.arange(40) * 2.5)
    assert soft_telecine(fields * 1001 / 60000, 1e-5) == FILM
    assert soft_telecine(fields / 60, 1e-5) == 24
    assert soft_telecine(np.round(fields * 1001 / 60000, 3), 1e-3) == FILM
    assert soft_telecine(np.arange(40) / 24, 1e-5) is None
    assert soft_telecine(np.arange(40) / 30, 1e-5) is None
    assert soft_telecine(np.repeat(np.arange(20), 2) * 5 / 60, 1e-5) is None
    assert soft_telecine(fields[:4] / 60, 1e-5) is None


def test_an_excerpt_of_telecine_has_the_title_s_frames(tmp_path: Path) -> None:
    source = probe_source(hard(tmp_path / "a.mkv", 60))
    part = excerpt(source, ((0, 8), (24, 8)), tmp_path / "part.mkv", ffmpeg=ffmpeg_path())
    wanted = [*range(8), *range(24, 32)]
    whole = read_source(source, wanted, ffmpeg=ffmpeg_path())
    np.testing.assert_array_equal(read_source(part, list(range(16)), ffmpeg=ffmpeg_path()), whole)
