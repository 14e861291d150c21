"""Views of scored videos: places and times, frames decoded for them, and the shards."""

import json
import shutil
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.media import make_clip
from tests.support.waterloo import make_waterloo, mos
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.errors import DecodeFailed, InputError
from vqaloop.media.frame_stream import measure, stream_frames
from vqaloop.media.frames import read_with_ffmpeg
from vqaloop.media.planes import Frames
from vqaloop.media.probe import probe_source
from vqaloop.quality.clip_views import FRAMES_AT_ONCE, PlacedView, View, clips_of, squeezed
from vqaloop.quality.registry import open_metric
from vqaloop.training import vmaf_labels
from vqaloop.training.datasets import WATERLOO, read_dataset, read_waterloo
from vqaloop.training.prepare import prepare
from vqaloop.training.shards import load_corpus, load_shard, read_about
from vqaloop.training.vmaf_labels import vmaf_of_encodes

VIEW = View("native", frames=3, stride=2, size=96, clips=2)
FFMPEG = ffmpeg_path()


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "waterloo"
    return make_waterloo(root, contents=2, levels=1, sizes=((256, 144), (416, 234)))


@pytest.fixture(scope="module")
def prepared(mini: Path) -> Path:
    out = mini.parent / "native"
    made = prepare(read_waterloo(mini), out, VIEW, ffmpeg=FFMPEG, workers=2)
    assert [path.name for path in made] == ["waterloo-01.safetensors", "waterloo-02.safetensors"]
    return out


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# vmaf beside opinions


def test_encodes_have_the_vmaf_that_the_metric_would_give_them(mini: Path, prepared: Path) -> None:
    source = probe_source(mini / "Sources" / "01.y4m", ffmpeg=FFMPEG)
    metric = open_metric("vmaf", ffmpeg=FFMPEG)
    rows = load_shard(prepared / "waterloo-01.safetensors").encodes
    assert len(rows) == 10
    for row in rows:
        assert 0 <= row["vmaf"] <= 100
        if row["encoder"] in ("h264", "av1"):
            # of all frames, of which the sampled figure takes every place
            whole = metric.measure(source, mini / row["path"], "pyav").value
            assert row["vmaf"] == pytest.approx(whole, abs=1.5)
    raw = {row["encoder"]: row["vmaf"] for row in rows if row["width"] == 416}
    assert raw["avs2"] == pytest.approx(raw["hevc"], abs=25), "a raw stream is measured too"


def test_places_of_blocks_are_the_same_for_all_encodes(
    mini: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vmaf_labels, "BLOCK", (160, 120))
    source = mini / "Sources" / "01.y4m"
    files = [mini / "H264" / "01" / f"{size}_1.mp4" for size in ("256x144", "416x234")]
    facts = {file: measure(file) for file in (source, *files)}
    found = vmaf_of_encodes(source, facts, (416, 234), [0], FFMPEG)
    assert set(found) == set(files) and found[files[0]] < found[files[1]]
    again = vmaf_of_encodes(
        source, {f: facts[f] for f in (source, files[1])}, (416, 234), [0], FFMPEG
    )
    assert again[files[1]] == found[files[1]]
    other = vmaf_of_encodes(source, facts, (416, 234), [1], FFMPEG)
    assert other[files[1]] != found[files[1]], "other places"


# views


@given(st.integers(1, 700), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_clips_lie_in_the_video_and_spread_over_it(
    count: int, frames: int, stride: int, clips: int
) -> None:
    times = View(frames=frames, stride=stride, clips=clips).times(count)
    assert times.shape == (clips, frames)
    assert times.min() >= 0 and times.max() < count
    assert (np.diff(times, axis=0) >= 0).all()
    if count > (frames - 1) * stride:
        assert (np.diff(times, axis=1) == stride).all()
    else:
        assert (times == np.minimum(np.arange(frames) * stride, count - 1)).all()


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "whole"}, {"frames": 0}, {"stride": 65}, {"size": 97}, {"clips": 0},
     {"kind": "fragments", "size": 100}],
)  # fmt: skip
def test_views_that_cannot_be_are_refused(wrong: dict[str, str | int]) -> None:
    with pytest.raises(InputError):
        View(**wrong)  # type: ignore[arg-type]


def gradient(width: int, height: int) -> Frames:
    """One frame: luma rises from left to right, U from top to bottom, V likewise to the right."""
    frame = np.empty((1, height * 3 // 2, width), np.uint8)
    frame[:, :height] = np.linspace(16, 235, width)
    chroma = frame[:, height:].reshape(2, height // 2, width // 2)
    chroma[0] = np.linspace(16, 235, height // 2)[:, None]
    chroma[1] = np.linspace(16, 235, width // 2)
    return frame


def planes(clip: Frames) -> tuple[Frames, Frames, Frames]:
    size = clip.shape[-1]
    chroma = clip[0, size:].reshape(2, size // 2, size // 2)
    return clip[0, :size], chroma[0], chroma[1]


@pytest.mark.parametrize(("width", "height"), [(640, 360), (360, 640), (200, 112), (96, 96)])
def test_squeezed_keeps_shape_and_middle(width: int, height: int) -> None:
    luma, u, v = planes(squeezed(gradient(width, height), 96))
    across, down = (96 / min(width, height) * side for side in (width, height))
    for values, part, turned in ((luma, across, False), (v, across, False), (u, down, True)):
        line = (values.T if turned else values).mean(0)
        inside = 96 / part * (235 - 16)
        assert line[-1] - line[0] == pytest.approx(inside, abs=8)
        assert line.mean() == pytest.approx((16 + 235) / 2, abs=4)


def test_squeezed_of_a_size_that_fits_is_the_frame_itself() -> None:
    frame = gradient(96, 96)
    assert np.array_equal(squeezed(frame, 96), frame)


def test_native_clips_are_untouched_parts_of_the_picture() -> None:
    placed = PlacedView(VIEW, (640, 360), [1])
    frame = gradient(640, 360)
    assert placed.scaled((320, 180)) == (640, 360)
    for clip, (top, left) in enumerate(placed.places):
        luma, u, v = planes(placed.cut(frame, clip))
        assert (luma == frame[0, top : top + 96, left : left + 96]).all()
        chroma = frame[0, 360:].reshape(2, 180, 320)
        assert (u == chroma[0, top // 2 :, left // 2 :][:48, :48]).all()
        assert (v == chroma[1, top // 2 :, left // 2 :][:48, :48]).all()
    assert (placed.places == PlacedView(VIEW, (640, 360), [1]).places).all()
    assert (placed.places != PlacedView(VIEW, (640, 360), [2]).places).any()
    with pytest.raises(InputError, match="640x90, less than a clip of 96"):
        PlacedView(VIEW, (640, 90), [1])


def test_fragments_come_from_their_cells() -> None:
    placed = PlacedView(View("fragments", clips=2), (640, 360), [1])
    luma, u, v = planes(placed.cut(gradient(640, 360), 0))
    assert luma.shape == (224, 224)
    cells = luma.reshape(7, 32, 7, 32)
    # luma rises by 219 over 640 pixels: 11 over a fragment, and from column to column
    assert np.allclose(cells[..., -1] - cells[..., 0].astype(int), 11, atol=1.5)
    assert (np.diff(cells.mean((1, 3)), axis=1) > 0).all()
    assert (np.diff(u.reshape(7, 16, 7, 16).mean((1, 3)), axis=0) > 0).all()
    assert (np.diff(v.reshape(7, 16, 7, 16).mean((1, 3)), axis=1) > 0).all()


@pytest.mark.parametrize(("clips", "frames", "reads"), [(3, 8, 1), (9, 32, 5), (2, 64, 2)])
def test_few_frames_are_held_at_a_time(clips: int, frames: int, reads: int) -> None:
    view = View("native", frames=frames, stride=2, size=32, clips=clips)
    video = np.random.default_rng(0).integers(16, 236, (900, 60, 48), np.uint8)
    asked: list[list[int]] = []

    def read(indices: list[int]) -> Frames:
        asked.append(indices)
        return video[indices]

    placed = PlacedView(view, (48, 40), [5])
    rows = list(enumerate(view.times(900).tolist()))
    found = np.concatenate(list(clips_of(placed, rows, read)))
    assert len(asked) == reads and all(len(part) <= FRAMES_AT_ONCE for part in asked)
    assert all(part == sorted(set(part)) for part in asked)
    for clip, row in enumerate(view.times(900)):
        for step, index in enumerate(row):
            assert np.array_equal(found[clip, step], placed.cut(video[index][None], clip)[0])


# decoding


def test_many_scattered_frames_are_found(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mp4", size="64x64", frames=480)
    indices = list(range(0, 480, 2))
    found = read_with_ffmpeg(clip, indices, (64, 64), ffmpeg=FFMPEG)
    assert len(found) == 240
    few = read_with_ffmpeg(clip, [0, 200, 478], (64, 64), ffmpeg=FFMPEG)
    assert np.array_equal(found[[0, 100, 239]], few)


def test_frames_are_those_that_were_asked_for(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mp4", size="160x96", frames=20)
    found = measure(clip)
    assert (found.size, found.frames, found.fps) == ((160, 96), 20, Fraction(25))
    seen: dict[int, Frames] = {}
    indices = [0, 3, 4, 11, 19]
    stream_frames(clip, found, indices, (320, 192), seen.__setitem__, ffmpeg=FFMPEG)
    wanted = read_with_ffmpeg(clip, indices, (320, 192), ffmpeg=FFMPEG)
    assert list(seen) == indices
    assert np.array_equal(np.concatenate(list(seen.values())), wanted)


def test_ten_bits_and_raw_video_become_eight_bits(tmp_path: Path) -> None:
    for name, pix_fmt in (
        ("a_64x64_50fps.yuv", "yuv420p"),
        ("a_64x64_50fps_10bit.yuv", "yuv420p10le"),
    ):
        clip = make_clip(tmp_path / name, size="64x64", frames=4, pix_fmt=pix_fmt)
        found = measure(clip)
        assert (found.size, found.frames, found.fps) == ((64, 64), 4, Fraction(50))
        seen: dict[int, Frames] = {}
        stream_frames(clip, found, [1, 2], found.size, seen.__setitem__, ffmpeg=FFMPEG)
        assert [frame.shape for frame in seen.values()] == [(1, 96, 64)] * 2
        luma = seen[1][0, :64]
        assert luma.min() < 60 and 180 < luma.max() <= 240


def test_the_last_frame_stands_for_few_missing_ones_alone(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mp4", size="64x64", frames=20)
    found = measure(clip)
    seen: dict[int, Frames] = {}
    stream_frames(clip, found, [19, 20], (64, 64), seen.__setitem__, ffmpeg=FFMPEG)
    assert np.array_equal(seen[19], seen[20])
    longer = type(found)(found.size, 40, found.fps)
    with pytest.raises(DecodeFailed, match="ended after 1 of 2"):
        stream_frames(clip, longer, [19, 20], (64, 64), seen.__setitem__, ffmpeg=FFMPEG)


def test_sizes_no_decoder_should_be_asked_for_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a_99999x99999_25fps.yuv", "x")
    with pytest.raises(InputError, match="64 to 8192 pixels"):
        measure(tmp_path / "a_99999x99999_25fps.yuv")
    (tmp_path / "a.avs2").write_bytes(b"\0\0\1\xb0 \x22" + b"\xff" * 20)
    with pytest.raises(InputError):
        measure(tmp_path / "a.avs2")
    write(tmp_path / "a.mp4", "nothing")
    with pytest.raises(InputError, match="not a video"):
        measure(tmp_path / "a.mp4")


# shards


def test_shards_of_five_codecs_hold_what_they_say(mini: Path, prepared: Path) -> None:
    first, second = load_corpus([prepared])
    assert first.label == WATERLOO and (first.content, second.content) == (
        "waterloo-01", "waterloo-02",
    )  # fmt: skip
    for number, shard in enumerate((first, second), 1):
        assert shard.distorted.shape == (10, 2, 3, 144, 96)
        assert shard.reference is not None and shard.reference.shape == (2, 3, 144, 96)
        assert shard.region_labels is None and shard.frame_labels is None
        assert {e["encoder"] for e in shard.encodes} == {"av1", "avs2", "h264", "hevc", "vp9"}
        for row, encode in enumerate(shard.encodes):
            size = encode["width"], encode["height"]
            assert encode["score"] == encode["raw"] == mos(size, 1, 1, number)
            assert (mini / encode["path"]).is_file()
            # the same places at the same times: an encode is nearer to its source than to others'
            away = [
                (shard.distorted[row].float() - other.reference.float()).square().mean()
                for other in (shard, second if shard is first else first)
                if other.reference is not None
            ]
            assert away[0] < 0.5 * away[1]
        scene = read_about(prepared / f"{shard.name}.safetensors")["scene"]
        assert (scene["dataset"], scene["content"]) == ("waterloo", f"waterloo-0{number}")
        assert scene["authors_held_out"] is True and scene["canvas"] == [416, 234]
    report = json.loads((prepared / "report.json").read_text("utf-8"))
    assert (report["expected"], report["found"], report["missing"]) == (1200, 20, [])
    assert report["undecodable"] == [] and report["contents_left_out"] == {}


@pytest.mark.parametrize("kind", ["squeezed", "fragments"])
def test_other_views_have_as_many_clips_of_the_same_videos(
    mini: Path, prepared: Path, kind: str
) -> None:
    view = View(kind, frames=2, stride=3, size=224, clips=2)
    rows = (mini / "scores.txt").read_text("ascii").splitlines()
    root = mini.parent / f"one-{kind}"
    shutil.copytree(mini, root)
    write(root / "scores.txt", "\n".join(row for row in rows if row.split(", ")[1] == "1"))
    out = mini.parent / kind
    prepare(read_waterloo(root), out, view, ffmpeg=FFMPEG)
    (shard,) = load_corpus([out])
    native = load_shard(prepared / "waterloo-01.safetensors")
    assert shard.distorted.shape == (10, 2, 2, 336, 224)
    assert [e["path"] for e in shard.encodes] == [e["path"] for e in native.encodes]
    assert shard.reference is not None and shard.distorted.float().std() > 10


def test_missing_and_broken_files_are_listed_and_mended_later(mini: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "set", tmp_path / "out"
    shutil.copytree(mini, root)
    shutil.rmtree(root / "Sources")
    gone = root / "VP9" / "01" / "256x144_1.mp4"
    gone = next(gone.parent.glob("256x144_1.*"))
    gone.unlink()
    broken, short = root / "HEVC/01/416x234_1.mp4", root / "AVS2/01/256x144_1.avs2"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    stream = short.read_bytes()
    short.write_bytes(stream[: len(stream) // 3])
    for path in root.glob("*/02/*"):
        path.write_bytes(b"nothing")
    said: list[str] = []

    def go() -> list[Path]:
        said.clear()
        return prepare(read_waterloo(root), out, VIEW, ffmpeg=FFMPEG, report=said.append)

    (made,) = go()
    assert made.name == "waterloo-01.safetensors"
    assert any("waterloo-02 left out" in line for line in said)
    assert any("waterloo-01: 7 of 9 encodes, without reference" in line for line in said)
    shard = load_shard(made)
    assert len(shard.encodes) == 7 and shard.reference is None
    assert not any("vmaf" in row for row in shard.encodes)
    report = json.loads((out / "report.json").read_text("utf-8"))
    assert report["missing"] == [str(gone.relative_to(root).with_suffix(".mp4"))]
    left = {row["path"]: row["why"] for row in report["undecodable"]}
    assert set(left) == {"HEVC/01/416x234_1.mp4", "AVS2/01/256x144_1.avs2"}
    assert "cut short" in left["AVS2/01/256x144_1.avs2"]
    assert list(report["contents_left_out"]) == ["waterloo-02"]
    # the same again does nothing for what is whole
    before = made.stat().st_mtime_ns
    assert go() == [made] and made.stat().st_mtime_ns == before
    # a file that has come since is taken up
    shutil.copy(next((mini / "VP9/01").glob(gone.name)), gone)
    go()
    assert len(load_shard(made).encodes) == 8
    with pytest.raises(InputError, match="another view"):
        prepare(read_waterloo(root), out, View(clips=1), ffmpeg=FFMPEG)


def test_a_set_without_any_video_is_refused_and_reported(tmp_path: Path) -> None:
    write(tmp_path / "scores.txt", "HEVC, 1, 540p, 1, 18.21\n")
    with pytest.raises(InputError, match=r"0 of 1200 videos found .*report\.json"):
        prepare(read_waterloo(tmp_path), tmp_path / "out", VIEW, ffmpeg=FFMPEG)
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert report["missing"] == ["HEVC/01/960x540_1.mp4"]
    with pytest.raises(InputError, match="cannot write"):
        prepare(read_waterloo(tmp_path), tmp_path / "scores.txt" / "x", VIEW, ffmpeg=FFMPEG)


def test_names_of_contents_never_lead_out_of_the_folder(tmp_path: Path) -> None:
    make_clip(tmp_path / "a.mp4", size="128x96", frames=8)
    make_clip(tmp_path / "b.mp4", size="128x96", frames=8)
    table = write(tmp_path / "t.csv", "path,score,content\na.mp4,1,../../x/é\nb.mp4,5,..\n")
    out = tmp_path / "deep" / "out"
    made = prepare(read_dataset("csv", table, "1:5"), out, VIEW, ffmpeg=FFMPEG)
    assert all(path.parent == out for path in made) and len(made) == 2
    assert {s.content for s in load_corpus([out])} == {"../../x/é", ".."}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4", "deep", "t.csv"]


def test_an_interruption_leaves_nothing_half_written(
    mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., None] = stream_frames
    first_done = threading.Event()
    calls: list[Path] = []

    def slowly(path: Path, *args: object, **options: object) -> None:
        if path.parent.name == "02":
            assert first_done.wait(60)
        calls.append(path)
        real(path, *args, **options)

    def stop(line: str) -> None:
        if "waterloo-01" in line:
            first_done.set()
            raise KeyboardInterrupt

    monkeypatch.setattr("vqaloop.training.prepare.stream_frames", slowly)
    out = tmp_path / "out"
    dataset = read_waterloo(mini)
    with pytest.raises(KeyboardInterrupt):
        prepare(dataset, out, VIEW, ffmpeg=FFMPEG, report=stop)
    assert [path.name for path in out.iterdir()] == ["waterloo-01.safetensors"]
    assert len(calls) < 22
    assert len(prepare(dataset, out, VIEW, ffmpeg=FFMPEG)) == 2


def test_encodes_of_other_rates_stay_and_cut_ones_go(tmp_path: Path) -> None:
    make_clip(tmp_path / "full.mp4", size="128x96", frames=24, rate="24")
    make_clip(tmp_path / "half.mp4", size="128x96", frames=12, rate="12")
    make_clip(tmp_path / "more.mkv", size="128x96", frames=23, rate="24")
    make_clip(tmp_path / "cut.mp4", size="128x96", frames=9, rate="24")
    rows = [f"{name},50,x,full.mp4" for name in ("full.mp4", "more.mkv", "half.mp4", "cut.mp4")]
    table = write(tmp_path / "t.csv", "path,score,content,reference\n" + "\n".join(rows))
    prepare(read_dataset("csv", table), tmp_path / "out", VIEW, ffmpeg=FFMPEG)
    (shard,) = load_corpus([tmp_path / "out"])
    assert [e["path"] for e in shard.encodes] == ["full.mp4", "more.mkv", "half.mp4"]
    assert shard.reference is None  # no frame of one rate is the frame of that index of another
    scene = read_about(tmp_path / "out" / "x.safetensors")["scene"]
    assert [left["path"] for left in scene["left_out"]] == ["cut.mp4"]
