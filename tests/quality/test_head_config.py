"""Students whose heads take the canvas, clips of two distances, and a power mean over time."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from tests.support.media import make_clip
from tests.support.nets import random_student, student_metric
from vqaloop.bitstream.packets import packet_sizes
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
from vqaloop.models.stream_facts import StreamFacts, stream_facts
from vqaloop.models.weights import load_student
from vqaloop.quality.crop_sampling import CropSampling
from vqaloop.quality.pooling import pool, pool_difference
from vqaloop.quality.scorer import Scorer
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


@pytest.fixture(scope="module")
def informed(tmp_path_factory: pytest.TempPathFactory) -> StudentMetric:
    """Weights whose score without reference is decided by the bitstream as well."""
    folder = tmp_path_factory.mktemp("informed")
    return student_metric(
        random_student(folder, "internvqa-mini", config=replace(CONFIG, bits=True))
    )


def scored_alone(
    metric: StudentMetric, source: Source, size: tuple[int, int]
) -> list[tuple[float, ...]]:
    """The facts that a score without reference was made with."""
    seen: list[tuple[float, ...]] = []
    student, _ = metric.engine.network.loaded
    head = student.alone_answers

    def noted(*args: Any, **options: Any) -> torch.Tensor:
        seen.append(options["stream"])
        return head(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(student, "alone_answers", noted)
        metric.alone(source, size)
    return seen


def test_a_score_alone_takes_bits_a_pixel_and_the_coded_size(
    informed: StudentMetric, rung: Path
) -> None:
    video = probe_source(rung, ffmpeg=FFMPEG)
    with av.open(str(rung)) as container:
        sizes = [packet.size for packet in container.demux(video=0) if packet.size]
    assert len(sizes) == 60
    bits_pixel = 8 * sum(sizes) / 60 / (128 * 96)
    for size, scale in (((160, 120), 0.8), ((320, 240), 0.4)):
        seen = scored_alone(informed, video, size)
        assert seen
        for inputs in seen:
            assert inputs == pytest.approx(StreamFacts(bits_pixel, scale).inputs())
    student = informed.engine.network.loaded[0]
    assert student.alone is not None
    before = informed.alone(video, (160, 120)).value
    layer = student.alone.fuse[0]
    assert isinstance(layer, torch.nn.Linear)
    with torch.no_grad():
        layer.weight[:, -3:] += 1
        after = informed.alone(video, (160, 120)).value
        layer.weight[:, -3:] -= 1
    assert abs(before - after) > 0.01, "they reach the score"


def test_of_a_video_without_loss_nothing_is_known(
    informed: StudentMetric, source: Source, tmp_path: Path
) -> None:
    raw = make_clip(tmp_path / "a.yuv", size="160x120", frames=60)
    options: dict[str, Any] = {"video_size": "160x120", "pix_fmt": "yuv420p", "framerate": "25"}
    lossless = make_clip(tmp_path / "a.mkv", size="160x120", frames=60, codec="ffv1")
    for video in (
        source,
        probe_source(raw, ffmpeg=FFMPEG, **options),
        probe_source(lossless, ffmpeg=FFMPEG),
    ):
        seen = scored_alone(informed, video, (160, 120))
        assert set(seen) == {(0.0, 0.0, 0.0)}


def test_a_file_whose_packets_cannot_be_read_has_no_facts(
    informed: StudentMetric, rung: Path, tmp_path: Path
) -> None:
    gone = tmp_path / "gone.mp4"
    assert informed._facts(gone, (160, 120)) == StreamFacts()
    gone.write_bytes(rung.read_bytes()[:40])
    assert informed._facts(gone, (160, 120)) == StreamFacts()
    assert informed._facts(None, (160, 120)) == StreamFacts()
    assert informed._facts(rung, (160, 120)) != StreamFacts()


def test_differences_know_no_facts_and_opinions_those_of_the_rung(
    tmp_path: Path, source: Source, rung: Path
) -> None:
    knots = ((10.0, 5.0), (95.0, 90.0))
    scale = ScoreScale("MOS of a test", "difference", knots, 3.0, 40, 5, "VMAF")
    weights = random_student(
        tmp_path, "internvqa-mini", "MOS", replace(CONFIG, bits=True), scale=scale.to_json()
    )
    own = student_metric(weights)
    student, _ = load_student(weights)
    crops = own.cropping.crops(activity_of(source), source.canvas)
    counts, shares = (
        [len(x) for x in crops.values()],
        list(own.cropping.places(activity_of(source)).values()),
    )
    packets = packet_sizes(rung)
    facts = stream_facts(8 * float(packets.sizes.mean()), (128, 96), source.canvas)
    pairs, heads = [], []
    with torch.inference_mode():
        for frames, known in zip(all_frames(source, rung), (StreamFacts(), facts), strict=True):
            clips = torch.from_numpy(clips_by_hand(frames, own.cropping, activity_of(source)))
            pairs.append(student.look(to_clips(clips), canvas_height=120.0).alone)
            heads.append(
                partial(student.alone_answers, canvas_height=120.0, stream=known.inputs())
            )
        expected, opinion = pool_difference(
            heads[0], heads[1], pairs[1], pairs[0], counts, 0, shares, 3.0
        )
    found = own.measure(source, rung, "pyav")
    assert found.opinion == pytest.approx(opinion, abs=1e-3)
    assert found.value == pytest.approx(scale.points(expected.value), abs=1e-3)
    compared = Scorer("internvqa-mine", weights=weights, device="cpu").score(rung, source.path)
    assert compared.opinion == pytest.approx(opinion, abs=0.1)


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
