"""Sources whose frames change their properties inside the file."""

import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqaloop
from tests.support.commandline import Room, slow_but
from tests.support.media import CHANGES, frame_hashes, make_changing, make_clip, remux, run_ffmpeg
from tests.support.nets import random_student, student_metric
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.errors import DecodeFailed, InputError
from vqaloop.media.excerpt import excerpt
from vqaloop.media.excerpt_windows import sample_pairs
from vqaloop.media.frame_properties import FrameLog
from vqaloop.media.frames import read_encode, read_source
from vqaloop.media.probe import probe_source
from vqaloop.media.scene_cuts import find_cuts
from vqaloop.quality import full_reference
from vqaloop.quality.scorer import Scorer
from vqaloop.ratecontrol.concat import join
from vqaloop.records import Source
from vqaloop.regress import builds

FFMPEG = ffmpeg_path()
SMALL: dict[str, Any] = {"metric": "psnr", "preset": "ultrafast", "cache": False}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("changing")
    return {
        change: make_changing(folder / f"{change.replace(' ', '-')}.mkv", change)
        for change in CHANGES
    }


def hashes(path: Path, *filters: str) -> list[str]:
    vf = ["-vf", ",".join(filters)] if filters else []
    said = run_ffmpeg("-i", os.fspath(path), *vf, "-f", "framemd5", "-").decode()
    return [line.split(",")[-1].strip() for line in said.splitlines() if line.startswith("0,")]


@pytest.mark.parametrize("change", CHANGES)
def test_every_frame_is_what_its_part_alone_gives(clips: dict[str, Path], change: str) -> None:
    clip = clips[change]
    source = probe_source(clip)
    assert (source.canvas, source.frames, source.pix_fmt) == ((160, 96), 30, "yuv420p")
    assert dict(source.colour)["colorspace"] == "bt709"
    made = frame_hashes(source)
    parts = [clip.with_suffix(f".{number}.h264") for number in range(3)]
    # a part alone has its own pixel shape where ffmpeg takes the container's for the whole
    prep = source.prep or ("setsar=1",)
    assert made == [each for part in parts for each in hashes(part, *prep)]
    # most frames are as they should be, and go through untouched
    assert made[:14] == hashes(parts[0]) and made[24:] == hashes(parts[2])


@pytest.mark.parametrize(
    ("change", "note"),
    {
        "colour tags": "Colour changes inside the file (bt709, smpte170m; first at frame 14, "
        "0.560 s); samples converted; all tagged bt709.",
        "untagged": "Colour changes inside the file (unknown, bt709; first at frame 14, 0.560 s); "
        "samples kept; all tagged bt709.",
        "range": "Range changes inside the file (tv, pc; first at frame 14, 0.560 s); samples "
        "converted to tv.",
        "pixel format": "Pixel format changes inside the file (yuv420p, yuv444p; first at frame "
        "14, 0.560 s); all brought to yuv420p.",
        "size": "Size changes inside the file (160x96, 240x144; first at frame 14, 0.560 s); all "
        "fitted into 160x96.",
        "pixel shape": "The pixel shape changes inside the stream (1:1, 4:3; first at 0.560 s); "
        "1:1, which the container or its first frame tells, holds for all.",
    }.items(),
)
def test_user_is_told(clips: dict[str, Path], change: str, note: str) -> None:
    assert note in probe_source(clips[change]).notes


def test_converted_colours_are_the_same_colours(clips: dict[str, Path], tmp_path: Path) -> None:
    def rgb(path: Path, *before: str, frame: int = 0) -> Any:
        vf = ",".join([*before, f"select=eq(n\\,{frame})", "format=rgb24"])
        options = ["-reinit_filter", "0"] if before else []
        raw = run_ffmpeg(
            *options, "-i", os.fspath(path), "-vf", vf, "-frames:v", "1", "-f", "rawvideo", "-"
        )
        return np.frombuffer(raw, np.uint8).astype(float)

    for change in ("colour tags", "range"):
        clip = clips[change]
        stored = rgb(clip.with_suffix(".1.h264"), frame=3)
        made = rgb(clip, *probe_source(clip).prep, frame=17)
        kept = rgb(clip, "setparams=colorspace=bt709:range=tv", frame=17)
        assert 2 * np.abs(made - stored).mean() < np.abs(kept - stored).mean()


def test_other_shapes_are_fitted_in_between_bars(clips: dict[str, Path]) -> None:
    frames = read_source(probe_source(clips["shape"]), [5, 18], ffmpeg=FFMPEG)
    luma = frames[:, :96].astype(int)
    # 96x160 in 160x96: 58 wide, in the middle
    assert (luma[1, :, :48] == 16).all() and (luma[1, :, 112:] == 16).all()
    assert luma[1, :, 52:108].std() > 20 and luma[0, :, :48].std() > 20


@pytest.mark.parametrize("change", CHANGES)
def test_ladder(clips: dict[str, Path], room: Room, change: str) -> None:
    ladder = vqaloop.build_ladder(
        clips[change],
        codec="h264",
        out="out",
        resolutions=[(160, 96), (112, 64)],
        rungs=2,
        prior=False,
        **SMALL,
    )
    assert len(ladder.rungs) == 2
    for rung in ladder.rungs:
        assert len(hashes(Path("out", rung.file))) == 30
        # the guard, of all frames: nothing is shifted or converted twice
        assert rung.guard["psnr"] > 25 if "psnr" in rung.guard else rung.score > 25
    # the rung is made again by its command
    rung = ladder.rungs[-1]
    before = ladder.about["source"]["input_options"]
    rung.to_ffmpeg(clips[change], "again.mp4", **before).run(
        cmd=FFMPEG, quiet=True, overwrite_output=True
    )
    assert Path("again.mp4").read_bytes() == Path("out", rung.file).read_bytes()


@pytest.mark.parametrize("change", CHANGES)
def test_encode(clips: dict[str, Path], room: Room, change: str) -> None:
    out = Path("out.mkv")
    made = vqaloop.encode_to_target(clips[change], out, codec="h264", target_score=38, **SMALL)
    assert made.exit_code in (0, 1) and abs(made.score - 38) < 3
    assert len(hashes(out)) == 30
    score = full_reference.measure(probe_source(clips[change]), out, ["psnr"], ffmpeg=FFMPEG)
    assert score["psnr"].value == pytest.approx(made.score)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("metric", "least"), [("vmaf", 96), ("psnr", 59.9)])
def test_file_against_itself(
    clips: dict[str, Path], change: str, metric: str, least: float
) -> None:
    score = Scorer(metric).score(clips[change], clips[change])
    assert score.value > least and len(score.clips) == 30


def seen_as_one(clip: Path, folder: Path) -> tuple[Source, Source]:
    """A clip, and all its frames as they are made alike, in a file of one kind."""
    source = probe_source(clip)
    return source, excerpt(source, [(0, 30)], folder / "whole.mkv", ffmpeg=FFMPEG)


@pytest.mark.parametrize("change", CHANGES)
def test_student_reads_what_is_compared(
    clips: dict[str, Path], tmp_path: Path, change: str
) -> None:
    source, whole = seen_as_one(clips[change], tmp_path)
    wanted = [0, 13, 14, 23, 24, 29]
    frames = read_source(source, wanted, ffmpeg=FFMPEG)
    assert (frames == read_source(whole, wanted, ffmpeg=FFMPEG)).all()
    size, fps = source.canvas, source.fps
    alone = read_encode(whole.path, wanted, size, fps, decoder="pyav", ffmpeg=FFMPEG)
    assert (frames == alone).all()


@pytest.mark.parametrize("change", slow_but(CHANGES, "size", "colour tags"))
def test_student_scores_what_is_compared(
    clips: dict[str, Path], tmp_path: Path, change: str
) -> None:
    source, whole = seen_as_one(clips[change], tmp_path)
    metric = student_metric(random_student(tmp_path))
    # as one scene each: the packets of the two differ, and so would the places
    one, other = (replace(title, windows=(0,)) for title in (source, whole))
    assert metric.measure(one, whole.path, "pyav").value == pytest.approx(
        metric.measure(other, whole.path, "pyav").value
    )


@pytest.mark.parametrize("change", CHANGES)
def test_builds_are_given_the_same_frames(
    clips: dict[str, Path], tmp_path: Path, change: str
) -> None:
    source = probe_source(clips[change])
    view = builds.write_view(
        source, None, tmp_path / "v.y4m", bit_depth=8, frames=None, ffmpeg=FFMPEG
    )
    assert view.frames == 30
    assert hashes(view.path) == frame_hashes(source)


@pytest.mark.parametrize("change", CHANGES)
def test_windows_of_a_long_title(tmp_path: Path, change: str) -> None:
    """Each window seeks by itself; five of them used to wait for each other for ever."""
    clip = make_changing(tmp_path / "long.mkv", change, (150, 130, 150, 130, 150))
    source = probe_source(clip)
    windows = [(40, 25), (140, 25), (270, 25), (420, 25), (600, 25)]
    part = excerpt(source, windows, tmp_path / "part.mkv", ffmpeg=FFMPEG)
    every = frame_hashes(source)
    assert frame_hashes(part) == [h for start, count in windows for h in every[start:][:count]]
    assert not part.changes
    assert sample_pairs(source, [(140, 50), (400, 50)], 7, ffmpeg=FFMPEG).shape[0] == 14
    assert set(find_cuts(source, ffmpeg=FFMPEG)) <= set(range(710))


def test_what_stalls_is_cut_in_another_way(
    clips: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that sleeps where it should seek is stopped, and all is decoded instead."""
    program = tmp_path / "ffmpeg"
    program.write_text(f'#!/bin/sh\ncase "$*" in *" -ss "*) sleep 60;; esac\nexec {FFMPEG} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr("vqaloop.media.excerpt.STALLED_S", 0.6)
    source = probe_source(clips["size"])
    part = excerpt(source, [(3, 4), (20, 5)], tmp_path / "p.mkv", ffmpeg=os.fspath(program))
    every = frame_hashes(source)
    assert frame_hashes(part) == every[3:7] + every[20:25]


@pytest.mark.parametrize(
    ("second", "why"),
    [
        ("setparams=color_trc=smpte2084", "changes between SDR and HDR"),
        ("setparams=color_primaries=bt2020", "changes its gamut to bt2020"),
        ("setparams=colorspace=ycgco", r"changes to yuv420p\(tv, ycgco\)"),
    ],
)
def test_what_cannot_be_made_alike_is_refused(tmp_path: Path, second: str, why: str) -> None:
    plain = "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
    whole = b""
    for number, vf in enumerate((plain, f"{plain},{second}")):
        part = make_clip(
            tmp_path / f"{number}.h264",
            frames=10,
            vf=vf,
            codec="libx264",
            bf=0,
            **{"x264-params": "repeat-headers=1"},
        )
        whole += part.read_bytes()
    (tmp_path / "a.h264").write_bytes(whole)
    clip = remux(tmp_path / "a.h264", tmp_path / "a.mkv", "-framerate", "25")
    with pytest.raises(InputError, match=rf"{why}.* near frame 10 \(0.\d+ s\).* split it there"):
        probe_source(clip)


def test_full_range_first_is_refused_where_the_decoder_mislabels(
    clips: dict[str, Path], tmp_path: Path
) -> None:
    stream = clips["range"].with_suffix(".1.h264").read_bytes()
    stream += clips["range"].with_suffix(".0.h264").read_bytes()
    (tmp_path / "a.h264").write_bytes(stream)
    clip = remux(tmp_path / "a.h264", tmp_path / "a.mkv", "-framerate", "25")
    with pytest.raises(InputError, match=r"full to limited range .* near frame 10 \(0.400 s\)"):
        probe_source(clip)


def test_rotated_file_of_another_size_on_the_way_is_refused(
    clips: dict[str, Path], tmp_path: Path
) -> None:
    turned = remux(clips["size"], tmp_path / "a.mp4", "-display_rotation", "90")
    with pytest.raises(InputError, match="rotated and changes size or pixel format"):
        probe_source(turned)
    # tags alone may change
    tagged = probe_source(
        remux(clips["colour tags"], tmp_path / "b.mp4", "-display_rotation", "90")
    )
    assert tagged.canvas == (96, 160) and len(frame_hashes(tagged)) == 30


def test_file_that_does_not_change_is_read_as_before(tmp_path: Path) -> None:
    source = probe_source(make_clip(tmp_path / "a.mp4"))
    assert (source.input_options, source.prep, source.notes) == ((), (), ())


def test_log_is_read_in_any_pieces() -> None:
    text = (
        b"[vf#0:0 @ 0x5] [info] something\n"
        b"[Parsed_showinfo_0 @ 0x1] [info] n:   0 pts: 0 pts_time:0 fmt:yuv420p cl:left sar:0/1 "
        b"s:64x48 i:P iskey:1 type:I \n"
        b"[Parsed_showinfo_0 @ 0x1] [info] color_range:tv color_space:bt709 "
        b"color_primaries:unknown color_trc:unknown\n"
        b"[h264 @ 0x7] [error] damaged\n"
    )
    log = FrameLog()
    kept = b"".join(log.read(text[i : i + 1]) for i in range(len(text)))
    assert kept == b"[h264 @ 0x7] damaged\n" and log.frames == 1
    ((first, start_s, found),) = log.runs
    assert (first, start_s, found.width, found.height, found.sar) == (0, 0.0, 64, 48, Fraction(1))
    assert (found.matrix, found.primaries) == ("bt709", "unknown")


def test_a_time_that_another_message_breaks_is_no_time() -> None:
    line = (
        b"[Parsed_showinfo_0 @ 0x1] [info] n:   0 pts: 0 pts_time:%s fmt:yuv420p cl:left sar:1/1 "
        b"s:64x48 i:P iskey:1 type:I \n"
        b"[Parsed_showinfo_0 @ 0x1] [info] color_range:tv color_space:bt709 "
        b"color_primaries:unknown color_trc:unknown\n"
    )
    log = FrameLog()
    for time_s, last_s in [(b"1.25", 1.25), (b"2.5[h264", 1.25), (b".", 1.25), (b"1e+06", 1e6)]:
        log.read(line % time_s)
        assert log.last_s == last_s
    assert log.frames == 4 and len(log.runs) == 1


def test_encode_that_fails_at_the_end_writes_nothing(
    clips: dict[str, Path], room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output gets its name once the whole is scored."""
    whole: list[Path] = []

    def joined(files: Any, source: Source, out: Path, **more: Any) -> Any:
        whole.append(out)
        return join(files, source, out, **more)

    measure = full_reference.measure

    def fails(source: Source, path: Path, *rest: Any, **more: Any) -> Any:
        if path in whole:
            raise DecodeFailed("the whole does not decode")
        return measure(source, path, *rest, **more)

    monkeypatch.setattr("vqaloop.ratecontrol.target.join", joined)
    monkeypatch.setattr("vqaloop.quality.full_reference.measure", fails)
    with pytest.raises(DecodeFailed, match="the whole does not decode"):
        vqaloop.encode_to_target(
            clips["size"], Path("out.mp4"), codec="h264", target_score=38, **SMALL
        )
    assert whole and not list(Path.cwd().iterdir())
