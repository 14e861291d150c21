"""VMAF on the frames that a student looks at."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.support.commandline import Room
from tests.support.media import make_clip, run_ffmpeg
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.errors import InputError
from vqaloop.media.frames import read_encode, read_source
from vqaloop.media.planes import Frames
from vqaloop.media.probe import probe_source
from vqaloop.quality import sampled_vmaf
from vqaloop.quality.libvmaf import VMAF_MODELS, vmaf_of_pairs
from vqaloop.quality.registry import kindred, open_metric
from vqaloop.quality.sampled_vmaf import SAMPLED, SampledVmaf
from vqaloop.quality.scorer import Scorer
from vqaloop.records import Source

FFMPEG = ffmpeg_path()
MODELS = {"vmaf-sampled": "v0.6.1", "vmaf-v1-sampled": "v1"}


def make_rung(clip: Path, path: Path, *options: str) -> Path:
    run_ffmpeg(
        "-i", file_url(clip), "-c:v", "libx264", "-preset", "veryfast", *options, file_url(path)
    )
    return path


@pytest.fixture(scope="module")
def title(tmp_path_factory: pytest.TempPathFactory) -> Source:
    path = tmp_path_factory.mktemp("title") / "a.y4m"
    return probe_source(make_clip(path, size="224x160", frames=90), ffmpeg=FFMPEG)


@pytest.fixture(scope="module")
def rung(title: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rung(title.path, tmp_path_factory.mktemp("rung") / "a.mp4", "-crf", "38")


@pytest.mark.parametrize("name", SAMPLED)
def test_each_frame_has_its_value_within_the_whole_title(
    name: str, title: Source, rung: Path
) -> None:
    found = open_metric(name, ffmpeg=FFMPEG).measure(title, rung, "pyav")
    every = list(range(title.frames))
    pair = (
        read_source(title, every, ffmpeg=FFMPEG),
        read_encode(rung, every, title.canvas, title.fps, decoder="pyav", ffmpeg=FFMPEG),
    )
    whole = vmaf_of_pairs(*pair, ffmpeg=FFMPEG, model=MODELS[name])["vmaf"].to_numpy()
    starts = [start for start, _ in found.moments]
    exact = whole[np.array([[start, start + 1] for start in starts])]
    assert np.array(found.clips) == pytest.approx(exact.ravel(), abs=0.02)
    assert found.value == pytest.approx(whole.mean(), abs=2)
    assert found.interval is not None
    assert found.interval[0] <= found.value <= found.interval[1]
    assert found.label == f"{VMAF_MODELS[MODELS[name]].label}, sampled"
    assert found.mode == "full-reference" and found.cpu_s > 0


def test_rungs_are_measured_at_the_same_places_by_every_decoder(
    title: Source, rung: Path, tmp_path: Path
) -> None:
    metric = open_metric("vmaf-sampled", ffmpeg=FFMPEG)
    other = make_rung(title.path, tmp_path / "b.mp4", "-crf", "24", "-vf", "scale=112:80")
    one, again, small = (
        metric.measure(title, rung, "pyav"),
        metric.measure(title, rung, "ffmpeg"),
        metric.measure(title, other, "pyav"),
    )
    assert one.clips == again.clips
    times = [start for start, _ in one.moments]
    assert times == [start for start, _ in small.moments]
    assert times != [start for start, _ in
                     open_metric("vmaf-sampled", ffmpeg=FFMPEG, seed=1)
                     .measure(title, rung, "pyav").moments]  # fmt: skip


def test_a_drop_at_the_end_is_found(title: Source, tmp_path: Path) -> None:
    late = make_rung(
        title.path, tmp_path / "a.mp4", "-crf", "20", "-vf", "gblur=sigma=6:enable='gte(n,81)'"
    )
    for seed in range(5):
        found = open_metric("vmaf-sampled", ffmpeg=FFMPEG, seed=seed).measure(title, late, "pyav")
        scores = dict(found.moments)
        assert min(scores[start] for start in scores if start >= 81) < 40
        assert min(scores[start] for start in scores if start < 80) > 80


@pytest.mark.parametrize("name", SAMPLED)
def test_4k_is_measured_whole_by_its_own_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make_clip(tmp_path / "a.mp4", size="2880x1620", frames=3, codec="libx264", crf=10)
    source = probe_source(clip, ffmpeg=FFMPEG)
    rung = make_rung(clip, tmp_path / "b.mp4", "-crf", "40", "-vf", "scale=720:404")
    found = open_metric(name, ffmpeg=FFMPEG).measure(source, rung, "pyav")
    model = {"vmaf-sampled": "4k", "vmaf-v1-sampled": "v1-4k"}[name]
    assert found.label == f"{VMAF_MODELS[model].label}, sampled"
    pair = (
        read_source(source, [0, 1, 2], ffmpeg=FFMPEG),
        read_encode(rung, [0, 1, 2], source.canvas, source.fps, decoder="pyav", ffmpeg=FFMPEG),
    )
    whole = vmaf_of_pairs(*pair, ffmpeg=FFMPEG, model=model)["vmaf"].to_numpy()
    ((start, _),) = found.moments
    assert found.clips == pytest.approx(whole[start : start + 2], abs=0.02)
    assert 0 < found.value < 95
    # a frame at a time, since no more need be held
    monkeypatch.setattr(sampled_vmaf, "BATCH_BYTES", 1)
    parts = open_metric(name, ffmpeg=FFMPEG).measure(source, rung, "pyav")
    assert parts.clips == found.clips


@pytest.mark.parametrize("samples", [1, 4, 7])
def test_what_libvmaf_is_given_at_a_time_changes_nothing(
    samples: int, title: Source, rung: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = open_metric("vmaf-sampled", ffmpeg=FFMPEG)
    whole = metric.measure(title, rung, "pyav")
    given: list[int] = []

    def counted(reference: Frames, *words: Any, **more: Any) -> pd.DataFrame:
        given.append(len(reference))
        return vmaf_of_pairs(reference, *words, **more)

    monkeypatch.setattr(sampled_vmaf, "vmaf_of_pairs", counted)
    monkeypatch.setattr(sampled_vmaf, "BATCH_BYTES", samples * 224 * 160 * 3 // 2)
    parts = metric.measure(title, rung, "pyav")
    assert parts.clips == whole.clips
    # two more for the motion of those at either end
    assert len(given) >= 20 // samples and max(given) <= samples + 2


@pytest.mark.parametrize("name", SAMPLED)
def test_threads_of_libvmaf_change_nothing(
    name: str, title: Source, rung: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []

    def noted(*words: Any, threads: int, **more: Any) -> pd.DataFrame:
        used.append(threads)
        return vmaf_of_pairs(*words, threads=threads, **more)

    monkeypatch.setattr(sampled_vmaf, "vmaf_of_pairs", noted)
    have = len(os.sched_getaffinity(0))
    found = open_metric(name, ffmpeg=FFMPEG).measure(title, rung, "pyav")
    monkeypatch.setattr(sampled_vmaf, "THREADS", 1)
    alone = open_metric(name, ffmpeg=FFMPEG).measure(title, rung, "pyav")
    # one score under way has the processors, up to four of them
    assert used == [min(4, have), 1]
    assert found.clips == alone.clips


def test_one_frame_is_scored(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.y4m", frames=2)
    source = probe_source(clip, ffmpeg=FFMPEG)
    found = open_metric("vmaf-sampled", ffmpeg=FFMPEG).measure(
        source, make_rung(clip, tmp_path / "b.mp4"), "pyav"
    )
    assert len(found.clips) == 2 and 0 < found.value <= 100


def test_it_is_a_metric_like_any_other(title: Source, rung: Path, tmp_path: Path) -> None:
    metric = open_metric("vmaf-sampled", ffmpeg=FFMPEG)
    assert isinstance(metric, SampledVmaf)
    assert pickle.loads(pickle.dumps(metric)) == metric
    assert kindred(metric) == ["vmaf-sampled", "vmaf"]
    finer, scenes = metric.finer(), metric.scene_by_scene([(0, 40), (40, 50)])
    identities = [m.identity() for m in (metric, finer, scenes)]
    assert len({repr(identity) for identity in identities}) == 3
    assert len(finer.measure(title, rung, "pyav").moments) == 40
    moments = [start for start, _ in scenes.measure(title, rung, "pyav").moments]
    assert len(moments) == 20 and sum(start < 40 for start in moments) == 10
    scored = Scorer("vmaf-sampled").score(rung, reference=title.path)
    assert scored.value == pytest.approx(metric.measure(title, rung, "pyav").value, abs=1e-6)
    with pytest.raises(InputError, match="needs the original"):
        Scorer("vmaf-sampled").score(rung)
    with pytest.raises(InputError, match="all its places; leave out --score-precision"):
        open_metric("vmaf-sampled", ffmpeg=FFMPEG, precision=1.0)
    small = make_clip(tmp_path / "s.y4m", size="96x64")
    with pytest.raises(InputError, match="too small for VMAF v1"):
        Scorer("vmaf-v1-sampled").score(small, reference=small)
    wide = make_clip(tmp_path / "w.y4m", size="1920x160", frames=2)
    with pytest.raises(InputError, match="too long and narrow for VMAF v1"):
        Scorer("vmaf-v1-sampled").score(wide, reference=wide)


def test_it_steers_a_ladder(room: Room) -> None:
    clip = make_clip(room.folder / "a.y4m", size="160x96", frames=24)
    words = ["--codec", "h264", "--preset", "ultrafast", "--metric", "vmaf-sampled"]
    document = room.ladder(clip, *words, "--resolutions", "160x96,112x64")
    scores = [rung["score"] for rung in document["rungs"]]
    assert len(scores) >= 2 and scores == sorted(scores)
    assert all(abs(rung["score"] - rung["guard"]["vmaf"]) < 3 for rung in document["rungs"])
