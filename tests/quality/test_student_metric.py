"""Where a title is looked at, and the student as a metric."""

import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ladder.test_store import make_ladder
from tests.support.media import make_clip, run_ffmpeg
from tests.support.nets import random_student, student_metric
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.core.files import file_sha256
from vqaloop.encoding.encode import encode
from vqaloop.encoding.registry import get_encoder
from vqaloop.errors import InputError
from vqaloop.ladder.pictures import Pictures
from vqaloop.ladder.store import write_reports
from vqaloop.media.activity import SourceActivity, activity_of
from vqaloop.media.frames import read_source
from vqaloop.media.planes import CLIP_FRAMES, CLIP_SIZE, Frames
from vqaloop.media.probe import probe_source
from vqaloop.models import create_student
from vqaloop.models.student import Anchor
from vqaloop.models.weights import save_student
from vqaloop.quality import student_engine
from vqaloop.quality.crop_sampling import (
    CROPS_EACH,
    FINER,
    POSITIONS,
    Crops,
    CropSampling,
    read_crops,
)
from vqaloop.quality.inference import Network, bytes_of
from vqaloop.quality.registry import metric_names, open_metric
from vqaloop.quality.sampled_vmaf import SampledVmaf
from vqaloop.quality.scorer import Scorer
from vqaloop.quality.student_engine import StudentEngine
from vqaloop.quality.student_metric import StudentMetric
from vqaloop.records import Rendition, Score, Source

FFMPEG = ffmpeg_path()


def crops_of(frames: int, size: tuple[int, int], seed: int = 0) -> Crops:
    """Of a title of which nothing is known."""
    return CropSampling(seed=seed).crops(SourceActivity.flat(frames), size)


# --- where ---------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(st.integers(1, 5000), st.integers(8, 2200), st.integers(8, 1200), st.integers(0, 9))
def test_crops_are_even_inside_and_always_the_same(
    frames: int, half_width: int, half_height: int, seed: int
) -> None:
    width, height = 2 * half_width, 2 * half_height
    found = crops_of(frames, (width, height), seed)
    assert found == crops_of(frames, (width, height), seed)
    assert 1 <= len(found) <= POSITIONS
    starts = list(found)
    assert starts == sorted(starts)
    for start, places in found.items():
        assert start >= 0
        assert start + CLIP_FRAMES <= frames or start == 0
        room = [(max(side, CLIP_SIZE) - CLIP_SIZE) // 2 + 1 for side in (width, height)]
        assert len(places) % min(CROPS_EACH, room[0] * room[1]) == 0
        for top, left in places:
            assert top % 2 == left % 2 == 0
            assert 0 <= top <= max(height, CLIP_SIZE) - CLIP_SIZE
            assert 0 <= left <= max(width, CLIP_SIZE) - CLIP_SIZE


def test_crops_depend_on_the_seed_and_spread_over_the_title() -> None:
    one, other = (crops_of(3000, (1920, 1080), seed) for seed in (0, 1))
    assert one != other
    assert len(one) == POSITIONS
    gaps = np.diff([0, *one, 3000])
    assert gaps.max() <= 2.5 * 3000 / POSITIONS
    places = np.array([place for group in one.values() for place in group])
    for axis, room in ((0, 1080 - CLIP_SIZE), (1, 1920 - CLIP_SIZE)):
        counts, _ = np.histogram(places[:, axis], bins=8, range=(0, room))
        assert counts.min() >= 17 and counts.max() <= 23  # 160 crops, twenty to each eighth


def test_largest_offset_can_be_drawn() -> None:
    tops = {t for s in range(60) for g in crops_of(4, (116, 116), s).values() for t, _ in g}
    assert tops == {0, 2, 4}


def counted(indices: list[int], width: int, height: int) -> Frames:
    """Frames whose luma is the index, with columns and rows marked in chroma."""
    frames = np.zeros((len(indices), height * 3 // 2, width), np.uint8)
    frames[:, :height] = np.array(indices, np.uint8)[:, None, None]
    frames[:, height:] = 128
    return frames


@pytest.mark.parametrize("size", [(64, 64), (160, 90), (112, 112), (64, 200)])
def test_read_crops_pads_what_is_small(size: tuple[int, int]) -> None:
    where = crops_of(12, size)
    asked: list[int] = []

    def read(indices: list[int]) -> Frames:
        asked.extend(indices)
        return counted(indices, *size)

    clips = read_crops(where, dict.fromkeys(where, 1), 12, read)
    count = sum(map(len, where.values()))
    assert clips.shape == (count, CLIP_FRAMES, CLIP_SIZE * 3 // 2, CLIP_SIZE)
    assert asked == sorted(set(asked)) and max(asked) < 12
    starts = [start for start, places in where.items() for _ in places]
    for clip, start in zip(clips, starts, strict=True):
        for t in range(CLIP_FRAMES):
            assert (clip[t, :CLIP_SIZE] == start + t).all()
            assert (clip[t, CLIP_SIZE:] == 128).all()


def test_padding_repeats_the_edges_of_every_plane() -> None:
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (2, 96, 64), np.uint8)
    clip = read_crops({0: [(0, 0)]}, {0: 1}, 2, lambda indices: frame)[0, 0]
    luma, chroma = clip[:112], clip[112:].reshape(2, 56, 56)
    assert np.array_equal(luma[:64, :64], frame[0, :64])
    assert (luma[64:, :64] == frame[0, 63]).all()
    assert (luma[:64, 64:] == frame[0, :64, 63:]).all()
    planes = frame[0, 64:].reshape(2, 32, 32)
    assert np.array_equal(chroma[:, :32, :32], planes)
    assert (chroma[:, 32:, :32] == planes[:, 31:]).all()
    assert (chroma[:, :32, 32:] == planes[:, :, 31:]).all()


def test_a_title_of_one_frame_is_repeated() -> None:
    where = crops_of(1, (128, 128))
    clips = read_crops(where, {0: 1}, 1, lambda indices: counted(indices, 128, 128))
    assert np.array_equal(clips[:, 0], clips[:, 1])


# --- the student as a metric ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_student(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def metric(weights: Path) -> StudentMetric:
    return student_metric(weights)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    clip = make_clip(tmp_path_factory.mktemp("clips") / "source.y4m", size="160x90", frames=6)
    return probe_source(clip, ffmpeg=FFMPEG)


def coded(source: Source, folder: Path, width: int, height: int, crf: float) -> Path:
    made = encode(
        source,
        Rendition(width, height, "libx264", crf, "ultrafast"),
        folder / f"{width}-{crf:g}.mp4",
        ffmpeg=FFMPEG,
    )
    return made.path


@pytest.fixture(scope="module")
def rungs(source: Source, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("rungs")
    return [coded(source, folder, 160, 90, 20), coded(source, folder, 80, 46, 40)]


def test_encodes_are_scored_the_same_twice(
    metric: StudentMetric, source: Source, rungs: list[Path]
) -> None:
    decoder = get_encoder("libx264").decoder
    scores = [metric.measure(source, path, decoder) for path in rungs]
    for score, path in zip(scores, rungs, strict=True):
        again = metric.measure(source, path, decoder)
        assert (again.value, again.clips, again.interval) == (
            score.value,
            score.clips,
            score.interval,
        )
        assert 0 <= score.value <= 100
        assert score.mode == "anchored" and score.metric == "internvqa-mine"
        assert score.label == "VMAF of nothing: random"
        assert score.weights_sha256 == file_sha256(metric.weights)
        assert len(score.clips) == sum(
            map(len, CropSampling().crops(activity_of(source), source.canvas).values())
        )
        assert score.interval is not None
        low, high = score.interval
        assert 0 <= low <= high <= 100
        assert min(score.clips) <= high and low <= max(score.clips)
    assert scores[0].value != scores[1].value


def test_a_fresh_metric_gives_the_same_score(
    metric: StudentMetric, weights: Path, source: Source, rungs: list[Path]
) -> None:
    other = student_metric(weights)
    assert other.measure(source, rungs[1], "pyav").value == pytest.approx(
        metric.measure(source, rungs[1], "pyav").value
    )


def test_other_seed_other_crops(weights: Path, source: Source, rungs: list[Path]) -> None:
    other = student_metric(weights, seed=1)
    base = student_metric(weights, seed=0)
    found = [m.measure(source, rungs[1], "pyav") for m in (base, other)]
    assert found[0].clips != found[1].clips
    assert base.identity() != other.identity()


def test_source_against_itself_is_the_same_twice(metric: StudentMetric, source: Source) -> None:
    one, other = (
        metric.compare(source, lambda i: read_source(source, i, ffmpeg=FFMPEG), None)
        for _ in range(2)
    )
    assert one.clips == other.clips


def test_several_threads_at_once(weights: Path, source: Source, rungs: list[Path]) -> None:
    metric = student_metric(weights)
    alone = [metric.measure(source, path, "pyav").value for path in rungs]
    fresh = student_metric(weights)
    found: dict[int, Score] = {}

    def work(i: int) -> None:
        found[i] = fresh.measure(source, rungs[i % 2], "pyav")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[i].value for i in range(4)] == alone * 2


@pytest.fixture(scope="module")
def titles(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    folder = tmp_path_factory.mktemp("titles")
    return [
        probe_source(make_clip(folder / f"{i}.y4m", size="128x128", frames=2 + i), ffmpeg=FFMPEG)
        for i in range(4)
    ]


@pytest.fixture
def anchored(metric: StudentMetric, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each anchor that is made."""
    made: list[int] = []
    anchor = Network.anchor

    def noted(network: Network, clips: Frames, canvas_height: int) -> Anchor:
        made.append(len(clips))
        return anchor(network, clips, canvas_height)

    monkeypatch.setattr(Network, "anchor", noted)
    return made


def look(metric: StudentMetric, title: Source) -> None:
    metric.compare(title, lambda indices: np.full((len(indices), 192, 128), 90, np.uint8), None)


def test_titles_asked_for_in_turns_are_each_anchored_once(
    weights: Path, titles: list[Source], anchored: list[int]
) -> None:
    metric = student_metric(weights)
    for _ in range(3):
        for title in titles:
            look(metric, title)
    assert len(anchored) == 4


def test_titles_asked_for_longest_ago_make_room(
    weights: Path, titles: list[Source], anchored: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = student_metric(weights)
    first, second, third, _ = titles
    look(metric, first)
    (kept,) = metric.anchors.kept.values()
    size = bytes_of(kept[1])
    assert size > kept[1].embedding.nbytes + kept[1].context.nbytes > 10_000
    look(metric, second)
    look(metric, first)  # so that the second is the one to go
    monkeypatch.setattr(student_engine, "ANCHOR_BYTES", 0)
    look(metric, third)
    assert len(anchored) == 3 and len(metric.anchors.kept) == len(metric.anchors.locks) == 2
    look(metric, first)
    assert len(anchored) == 3
    look(metric, second)
    assert len(anchored) == 4


def test_scorer_with_and_without_reference(
    weights: Path, source: Source, rungs: list[Path], metric: StudentMetric
) -> None:
    scorer = Scorer("internvqa-mine", weights=weights, device="cpu", ffmpeg=FFMPEG)
    anchored = scorer.score(rungs[0], reference=source.path)
    assert anchored.mode == "anchored"
    # the same crops of the same pictures, through another decoder and scaler
    assert anchored.value == pytest.approx(metric.measure(source, rungs[0], "pyav").value, abs=0.5)
    alone = scorer.score(rungs[0])
    assert alone.mode == "no-reference"
    assert 0 <= alone.value <= 100
    assert alone.interval is not None and alone.interval[0] <= alone.value <= alone.interval[1]


def test_alone_a_rung_is_judged_at_the_size_of_its_ladder_s_source(
    weights: Path, tmp_path: Path
) -> None:
    scorer = Scorer("internvqa-mine", weights=weights, device="cpu", ffmpeg=FFMPEG)
    ladder = make_ladder(tmp_path)
    ladder.about["source"] |= {"width": 320, "height": 181}
    rung = make_clip(tmp_path / ladder.rungs[0].file, size="160x90", frames=6)
    other = make_clip(tmp_path / "other.mp4", size="160x90", frames=6)
    own = scorer.score(rung)
    write_reports(ladder, Pictures())
    assert scorer.canvas_of(rung) == (320, 180) and scorer.canvas_of(other) is None
    found = scorer.score(rung)
    assert found.clips == scorer.score(rung, canvas=(320, 180)).clips != own.clips
    assert scorer.score(rung, canvas=(160, 90)).clips == own.clips
    # what stands beside a ladder without being of it, and what is by itself, is as it was
    assert scorer.score(other).clips == scorer.score(other, canvas=(160, 90)).clips


def test_a_canvas_is_even_of_some_size_and_no_reference_s(weights: Path, tmp_path: Path) -> None:
    scorer = Scorer("internvqa-mine", weights=weights, device="cpu", ffmpeg=FFMPEG)
    clip = make_clip(tmp_path / "clip.mp4", frames=6)
    for canvas in ((321, 180), (0, 0), (16, 99_998)):
        with pytest.raises(InputError, match="must have even sides of 16 to 16384"):
            scorer.score(clip, canvas=canvas)
    with pytest.raises(InputError, match="leave out --canvas"):
        scorer.score(clip, clip, (320, 180))


def test_a_raw_avs2_stream_is_scored_alone_as_its_pictures_are(
    weights: Path, source: Source, tmp_path: Path
) -> None:
    """It carries no frame rate, and a score needs none."""
    scorer = Scorer("internvqa-mine", weights=weights, device="cpu", ffmpeg=FFMPEG)
    spec = get_encoder("libxavs2")
    made = encode(
        source,
        Rendition(160, 96, "libxavs2", 30, spec.default_preset),
        tmp_path / "rung.avs2",
        ffmpeg=FFMPEG,
    )
    plain = tmp_path / "plain.y4m"
    run_ffmpeg("-i", str(made.path), "-fps_mode", "passthrough", str(plain))
    assert scorer.score(made.path).clips == scorer.score(plain).clips
    # whatever its name, also against its original
    named = scorer.score(made.path, reference=source.path)
    renamed = made.path.rename(tmp_path / "rung.bin")
    assert scorer.score(renamed).clips == scorer.score(plain).clips
    assert scorer.score(renamed, reference=source.path).clips == named.clips
    (tmp_path / "no.avs2").write_bytes(bytes(99))
    with pytest.raises(InputError, match="no AVS2 stream"):
        scorer.score(tmp_path / "no.avs2")


def test_scorer_refuses_other_lengths_and_needs_a_reference(
    weights: Path, source: Source, tmp_path: Path
) -> None:
    short = make_clip(tmp_path / "short.mp4", frames=7)
    scorer = Scorer("internvqa-mine", weights=weights, device="cpu", ffmpeg=FFMPEG)
    with pytest.raises(InputError, match="has 7 frames and its reference 6"):
        scorer.score(short, reference=source.path)
    with pytest.raises(InputError, match="--reference"):
        Scorer("vmaf", ffmpeg=FFMPEG).score(short)
    with pytest.raises(InputError):
        scorer.score(tmp_path / "none.mp4")
    with pytest.raises(InputError):
        scorer.score(tmp_path / "none.avs2", reference=source.path)


def test_weights_that_do_not_load_are_refused_at_the_first_score(
    source: Source, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read"):
        Scorer("internvqa", weights=bad, ffmpeg=FFMPEG).score(source.path)


def test_metrics_by_name() -> None:
    for name in ("vmaf", "xpsnr", "psnr", "ssim"):
        metric = open_metric(name, ffmpeg=FFMPEG)
        assert metric.name == name and metric.mode == "full-reference"
        assert metric.floor < metric.ceiling < metric.top and metric.step > 0
        assert name in metric_names()
        assert metric.identity()["metric"] == name
    with pytest.raises(InputError, match="unknown metric 'vmaff'; choose from .*vmaf"):
        open_metric("vmaff", ffmpeg=FFMPEG)
    with pytest.raises(InputError, match="unknown device"):
        _ = StudentEngine(Path("x"), "tpu").device


def test_identity_follows_the_weights(weights: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(weights.read_bytes())
    same = StudentMetric("m", StudentEngine(copy), FFMPEG).identity()
    assert same == StudentMetric("m", StudentEngine(weights), FFMPEG).identity()
    torch.manual_seed(9)
    save_student(create_student("internvqa-tiny"), copy, "internvqa-tiny", "VMAF", {})
    assert StudentMetric("m", StudentEngine(copy), FFMPEG).identity() != same


def swapped(weights: Path, path: Path) -> tuple[StudentMetric, str]:
    """A metric of a copy of `weights` that says what it is before another file comes there."""
    path.write_bytes(weights.read_bytes())
    metric = student_metric(path)
    sha256 = metric.identity()["weights_sha256"]
    assert sha256 == file_sha256(weights)
    return metric, sha256


def other_weights(path: Path) -> None:
    torch.manual_seed(9)
    save_student(create_student("internvqa-tiny"), path, "internvqa-tiny", "VMAF", {})


def test_weights_changed_before_they_are_loaded_are_refused(
    weights: Path, source: Source, rungs: list[Path], tmp_path: Path
) -> None:
    metric, _ = swapped(weights, tmp_path / "w.safetensors")
    other_weights(metric.weights)
    for _ in range(2):
        with pytest.raises(InputError, match="w.safetensors' were changed while .* in use"):
            metric.measure(source, rungs[0], "pyav")
    # whoever begins now takes what is there now
    fresh = student_metric(metric.weights)
    found = fresh.measure(source, rungs[0], "pyav")
    assert found.weights_sha256 == fresh.identity()["weights_sha256"]
    assert found.weights_sha256 == file_sha256(metric.weights)


def test_weights_changed_later_change_neither_a_score_nor_its_key(
    weights: Path, source: Source, rungs: list[Path], tmp_path: Path
) -> None:
    metric, sha256 = swapped(weights, tmp_path / "w.safetensors")
    before = metric.measure(source, rungs[0], "pyav")
    other_weights(metric.weights)
    again = metric.measure(source, rungs[0], "pyav")
    assert (again.value, again.weights_sha256) == (before.value, sha256)
    assert metric.identity()["weights_sha256"] == sha256
    metric.weights.unlink()
    assert metric.measure(source, rungs[0], "pyav").value == before.value
    assert metric.finer().identity()["weights_sha256"] == sha256


@pytest.mark.parametrize("name", ["internvqa", "vmaf-sampled"])
def test_what_confirms_looks_at_more_and_elsewhere(name: str) -> None:
    metric = open_metric(name, ffmpeg=FFMPEG, device="cpu", seed=3)
    assert isinstance(metric, StudentMetric | SampledVmaf)
    confirming = metric.confirming()
    assert confirming.identity() != metric.finer().identity()
    title = SourceActivity.flat(500)
    few, many = (one.sampling.crops(title, (640, 360)) for one in (metric, confirming))
    assert len(many) == FINER * len(few)
    seen, others = (
        {(time, *place) for time, places in crops.items() for place in places}
        for crops in (few, many)
    )
    assert not seen & others


def test_weights_that_are_not_there_are_refused_by_name(tmp_path: Path) -> None:
    metric = StudentMetric("m", StudentEngine(tmp_path / "none.safetensors", "cpu"), FFMPEG)
    for ask in (metric.identity, lambda: metric.check(anchored=True)):
        with pytest.raises(InputError, match="none.safetensors' cannot be read"):
            ask()


def test_long_titles_are_read_in_order(metric: StudentMetric) -> None:
    """Frames of a long title are asked for once, ascending, and no more than are scored."""
    title = Source(
        path=Path("made-up"),
        sha256="0",
        width=640,
        height=360,
        fps=Fraction(25),
        frames=5000,
        pix_fmt="yuv420p",
    )
    asked: list[int] = []

    def read(indices: list[int]) -> Frames:
        asked.extend(indices)
        return counted([i % 200 for i in indices], 640, 360)

    where = crops_of(title.frames, title.canvas)
    read_crops(where, dict.fromkeys(where, 1), title.frames, read)
    assert asked == sorted(asked) and len(asked) <= POSITIONS * CLIP_FRAMES
