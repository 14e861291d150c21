"""Students whose heads take the canvas, clips of two distances, and a power mean over time."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.media import make_clip
from tests.support.nets import random_student, student_metric
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.encoding.encode import encode
from vqaloop.encoding.registry import get_encoder
from vqaloop.errors import InputError
from vqaloop.ladder.timeline import scores_of
from vqaloop.media.activity import SourceActivity, activity_of
from vqaloop.media.colour import to_clips
from vqaloop.media.frames import read_encode, read_source
from vqaloop.media.planes import CLIP_SIZE, Frames, cut
from vqaloop.media.probe import probe_source
from vqaloop.models.head_config import HeadConfig
from vqaloop.models.score_scale import ScoreScale
from vqaloop.models.weights import load_student
from vqaloop.quality.crop_sampling import CropSampling
from vqaloop.quality.pooling import pool
from vqaloop.quality.student_metric import StudentMetric
from vqaloop.records import Rendition, Source

FFMPEG = ffmpeg_path()
CONFIG = HeadConfig(("panel", "cambi"), True, 4, True, two_distances=True, time_power=3.0)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    clip = make_clip(tmp_path_factory.mktemp("clips") / "source.y4m", size="160x120", frames=60)
    return probe_source(clip, ffmpeg=FFMPEG)


@pytest.fixture(scope="module")
def rung(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rungs") / "rung.mp4"
    preset = get_encoder("libx264").presets[0]
    rendition = Rendition(128, 96, "libx264", 38, preset)
    return encode(source, rendition, path, ffmpeg=FFMPEG).path


@pytest.fixture(scope="module")
def metric(tmp_path_factory: pytest.TempPathFactory) -> StudentMetric:
    folder = tmp_path_factory.mktemp("weights")
    return student_metric(random_student(folder, "internvqa-mini", config=CONFIG))


def clips_by_hand(frames: Frames, sampling: CropSampling, activity: SourceActivity) -> Frames:
    """Crops of a title all of whose frames are given."""
    size = frames.shape[2], frames.shape[1] * 2 // 3
    distances = sampling.distances_at(activity)
    return np.stack(
        [
            cut(frames[[start, start + distances[start]]], top, left, CLIP_SIZE, CLIP_SIZE)
            for start, places in sampling.crops(activity, size).items()
            for top, left in places
        ]
    )


def all_frames(source: Source, rung: Path) -> tuple[Frames, Frames]:
    every = list(range(source.frames))
    return read_source(source, every, ffmpeg=FFMPEG), read_encode(
        rung, every, source.canvas, source.fps, decoder="pyav", ffmpeg=FFMPEG
    )


def test_an_anchored_score_is_that_of_the_crops_cut_by_hand(
    metric: StudentMetric, source: Source, rung: Path
) -> None:
    found = metric.measure(source, rung, "pyav")
    student, _ = load_student(metric.weights)
    sampling, activity = CropSampling(distances=(1, 5)), activity_of(source)
    distances = sampling.distances_at(activity)
    assert set(distances.values()) == {1, 5}
    one, other = (
        to_clips(torch.from_numpy(clips_by_hand(frames, sampling, activity)))
        for frames in all_frames(source, rung)
    )
    with torch.inference_mode():
        seen = student.compare(other, student.anchor(one, 120.0))
        answers = partial(student.anchored_answers, canvas_height=120.0)
        counts = [len(places) for places in sampling.crops(activity, source.canvas).values()]
        shares = list(sampling.places(activity).values())
        expected = pool(answers, seen, counts, 0, shares, 3.0)
        usual = pool(answers, seen, counts, 0, shares)
    assert found.value == pytest.approx(expected.value, abs=1e-3)
    assert found.interval == pytest.approx(expected.interval, abs=1e-3)
    assert abs(expected.value - usual.value) > 1e-3
    # clips of the larger distance are shown where their middle is, and cut where they begin
    starts = list(distances)
    assert [frame for frame, _ in found.moments] == [s + 2 * (distances[s] == 5) for s in starts]
    assert sorted({place[0] for place in found.places}) == starts
    shown = scores_of(source, found, 1.0)
    middles = [(s + (distances[s] + 1) / 2) / float(source.fps) for s in starts]
    assert [time for time, _ in shown["scores"]] == pytest.approx(sorted(middles), abs=1e-3)


def test_only_frames_of_clips_are_decoded(
    metric: StudentMetric, source: Source, rung: Path
) -> None:
    _, coded = all_frames(source, rung)
    asked: list[int] = []

    def read(indices: list[int]) -> Iterable[Frames]:
        asked.extend(indices)
        return coded[indices]

    found = metric.compare(source, read, None)
    assert found.value == pytest.approx(metric.measure(source, rung, "pyav").value, abs=1e-6)
    distances = metric.cropping.distances_at(activity_of(source))
    assert asked == sorted({at for start, d in distances.items() for at in (start, start + d)})


def test_rounds_keep_the_distance_of_each_position(
    metric: StudentMetric, source: Source, rung: Path
) -> None:
    exact = replace(metric, sampling=CropSampling(precision=1e-9))
    one, other = (each.measure(source, rung, "pyav") for each in (metric, exact))
    assert other.value == pytest.approx(one.value, abs=1e-3)
    assert dict(other.moments) == pytest.approx(dict(one.moments), abs=1e-3)
    coarse = replace(metric, sampling=CropSampling(precision=50.0))
    few = coarse.measure(source, rung, "pyav")
    assert len(few.moments) < len(one.moments)
    assert few.interval is not None and few.interval[0] <= few.value <= few.interval[1]
    known = dict(one.moments)
    assert all(value == pytest.approx(known[frame], abs=1e-3) for frame, value in few.moments)


def test_without_a_reference_the_canvas_is_that_of_the_video_scored(
    metric: StudentMetric, rung: Path
) -> None:
    student, _ = load_student(metric.weights)
    video = probe_source(rung, ffmpeg=FFMPEG)
    sampling, flat = CropSampling(distances=(1, 5)), SourceActivity.flat(video.frames)
    for size in ((160, 120), (320, 240)):
        frames = read_encode(
            rung, list(range(video.frames)), size, video.fps, decoder="pyav", ffmpeg=FFMPEG
        )
        clips = to_clips(torch.from_numpy(clips_by_hand(frames, sampling, flat)))
        with torch.inference_mode():
            seen = student.look(clips, canvas_height=float(size[1])).alone
            answers = partial(student.alone_answers, canvas_height=float(size[1]))
            counts = [len(places) for places in sampling.crops(flat, size).values()]
            shares = list(sampling.places(flat).values())
            expected = pool(answers, seen, counts, 0, shares, 3.0)
        found = metric.alone(video, size)
        assert found.value == pytest.approx(expected.value, abs=1e-2)


def test_differences_take_the_source_s_canvas_and_both_distances(
    tmp_path: Path, source: Source, rung: Path
) -> None:
    knots = ((10.0, 5.0), (95.0, 90.0))
    scale = ScoreScale("MOS of a test", "difference", knots, 3.0, 40, 5, "VMAF")
    weights = random_student(tmp_path, "internvqa-mini", "MOS", CONFIG, scale=scale.to_json())
    own = student_metric(weights)
    found = own.measure(source, rung, "pyav")
    assert found.mode == "difference" and found.opinion is not None
    distances = own.cropping.distances_at(activity_of(source))
    assert [frame for frame, _ in found.moments] == [
        s + 2 * (d == 5) for s, d in distances.items()
    ]
    student, _ = load_student(weights)
    one, other = (
        to_clips(torch.from_numpy(clips_by_hand(frames, own.cropping, activity_of(source))))
        for frames in all_frames(source, rung)
    )
    with torch.inference_mode():
        seen = student.look(other, canvas_height=120.0).alone
        answers = partial(student.alone_answers, canvas_height=120.0)
        counts = [len(x) for x in own.cropping.crops(activity_of(source), source.canvas).values()]
        shares = list(own.cropping.places(activity_of(source)).values())
        expected = pool(answers, seen, counts, 0, shares, 3.0)
    assert found.opinion == pytest.approx(expected.value, abs=1e-3)


def test_the_identity_names_two_distances(metric: StudentMetric, tmp_path: Path) -> None:
    first = student_metric(random_student(tmp_path, "internvqa-mini"))
    assert metric.identity()["sampling"]["distances"] == [1, 5]
    assert first.identity()["sampling"] == CropSampling().identity()
    assert "distances" not in first.identity()["sampling"]


def test_a_damaged_configuration_is_refused_before_the_network_is_loaded(tmp_path: Path) -> None:
    weights = random_student(tmp_path, "internvqa-mini", heads='{"time_power": 0}')
    for ask in (
        lambda: student_metric(weights).identity(),
        lambda: student_metric(weights).check(anchored=True),
    ):
        with pytest.raises(InputError, match="the heads of weights .*: time_power"):
            ask()
