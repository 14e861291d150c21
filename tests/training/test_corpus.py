"""A training set from clips and pictures: scenes, shards, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.media import make_clip, run_ffmpeg
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.encoding.encode import encode
from vqaloop.encoding.registry import get_encoder
from vqaloop.errors import EncodeFailed, InputError
from vqaloop.models.student import OUTPUTS
from vqaloop.records import Encode
from vqaloop.training.corpus import CorpusPlan, _renditions, build_corpus, list_scenes
from vqaloop.training.shards import load_corpus, read_about, write_shard
from vqaloop.training.synthetic_motion import PICTURE_PIXELS, picture_in_motion

PLAN = CorpusPlan(encodes=2, crops=3, frames=6)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    make_clip(folder / "one.mp4", size="288x256", frames=8)
    # a quarter of it is still large enough for every encoder
    run_ffmpeg(
        "-f", "lavfi", "-i", "mandelbrot=s=640x560", "-frames:v", "1",
        file_url(folder / "two.png"),
    )  # fmt: skip
    (folder / "MANIFEST.csv").write_text(
        "file,group,licence,licence_basis\none.mp4,film,CC0,explicit\n", encoding="utf-8"
    )
    (folder / "notes.txt").write_text("no scene", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def corpus(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus")
    said: list[str] = []
    ffmpeg = ffmpeg_path()
    made = build_corpus(list_scenes([material]), out, PLAN, ffmpeg=ffmpeg, report=said.append)
    assert [path.name for path in made] == ["one.safetensors", "two.safetensors"]
    assert len(said) == 2 and all("2 encodes" in line for line in said)
    return out


def test_a_small_clip_is_encoded_as_often_as_was_asked() -> None:
    """At sizes that each encoder takes: a quarter of this clip is too small for some."""
    plan, drawn = CorpusPlan(encodes=120), np.random.default_rng(0)
    renditions = list(_renditions(160, 128, plan, drawn, ffmpeg_path()))
    assert len(renditions) == 120
    assert min(r.width for r in renditions if r.encoder == "libvpx-vp9") == 40
    for r in renditions:
        least = get_encoder(r.encoder).min_size
        assert r.width >= least[0] and r.height >= least[1], r


def test_encodes_that_fail_are_counted_and_said(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = iter((False, True))

    def fails_once(*args: Any, **options: Any) -> Encode:
        if next(made):
            return encode(*args, **options)
        raise EncodeFailed("it crashed")

    monkeypatch.setattr("vqaloop.training.corpus.encode", fails_once)
    said: list[str] = []
    scenes = list_scenes([material / "one.mp4"])
    build_corpus(scenes, tmp_path, PLAN, ffmpeg=ffmpeg_path(), report=said.append)
    assert said == ["1/1 one: 1 of 2 encodes, the others failed: it crashed"]


def test_scenes_and_their_titles(material: Path) -> None:
    one, two = list_scenes([material])
    assert (one.name, one.content, one.licence, one.basis) == ("one", "film", "CC0", "explicit")
    assert (two.name, two.content, two.licence, two.basis) == ("two", "two", "unknown", "unknown")
    assert list_scenes([material / "one.mp4"]) == [one]


def test_shards_hold_what_they_say(corpus: Path) -> None:
    shards = load_corpus([corpus])
    assert [(s.name, s.content) for s in shards] == [("one", "film"), ("two", "two")]
    for shard in shards:
        assert shard.reference is not None
        assert shard.region_labels is not None and shard.frame_labels is not None
        assert shard.label == "VMAF v0.6.1"
        assert shard.reference.shape == (3, 2, 168, 112)
        assert shard.distorted.shape == (2, 3, 2, 168, 112)
        assert shard.reference.dtype == shard.distorted.dtype == torch.uint8
        assert shard.region_labels.shape == shard.frame_labels.shape == (2, 3, len(OUTPUTS))
        for labels in (shard.region_labels, shard.frame_labels):
            assert labels.dtype == torch.float32
            assert labels.isfinite().all()
            assert ((labels[..., 0] >= 0) & (labels[..., 0] <= 100)).all()
        assert (shard.distorted.float() - shard.reference.float()).abs().mean() > 0
        assert len(shard.encodes) == 2
        assert all(0 <= e["score"] <= 100 and e["kbps"] > 0 for e in shard.encodes)
        assert shard.scores.tolist() == pytest.approx([e["score"] for e in shard.encodes])
    about = read_about(corpus / "one.safetensors")
    assert about["labels"] == list(OUTPUTS)
    assert about["scene"]["path"] == "one.mp4"


def test_what_is_there_is_not_made_again(material: Path, corpus: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in corpus.iterdir()}
    ffmpeg = ffmpeg_path()
    said: list[str] = []
    build_corpus(list_scenes([material]), corpus, PLAN, ffmpeg=ffmpeg, report=said.append)
    assert said == []
    assert {path: path.stat().st_mtime_ns for path in corpus.iterdir()} == before


def test_a_folder_of_another_plan_is_refused(material: Path, corpus: Path, tmp_path: Path) -> None:
    ffmpeg = ffmpeg_path()
    scenes = list_scenes([material])
    for other in (replace(PLAN, crops=4), replace(PLAN, seed=1)):
        with pytest.raises(InputError, match="made with other options"):
            build_corpus(scenes, corpus, other, ffmpeg=ffmpeg)
    with pytest.raises(InputError, match="made with other options"):
        build_corpus([replace(scenes[0], window=(0, 2))], corpus, PLAN, ffmpeg=ffmpeg)
    # an earlier release did not say
    arrays: dict[str, Any] = {"distorted": np.zeros((1, 1, 2, 168, 112), np.uint8)}
    old = tmp_path / "one.safetensors"
    write_shard(old, arrays, {"content": "film"}, [{"score": 1.0}], "VMAF")
    assert build_corpus(scenes[:1], tmp_path, replace(PLAN, crops=4), ffmpeg=ffmpeg) == [old]


def test_plans_and_windows_that_cannot_be_are_refused(material: Path, tmp_path: Path) -> None:
    for wrong in ({"encodes": 0}, {"crops": -1}, {"crops": 1001}, {"frames": 3}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} must be"):
            CorpusPlan(**wrong)
    with pytest.raises(InputError, match="at least one scene"):
        list_scenes([material], 0)


def test_an_ffmpeg_without_encoders_is_refused(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqaloop.training.corpus.available", lambda spec, ffmpeg: False)
    with pytest.raises(InputError, match="none of the encoders"):
        build_corpus(list_scenes([material]), tmp_path / "out", PLAN, ffmpeg="ffmpeg")
    assert not (tmp_path / "out").exists()


def test_an_unusable_scene_is_reported_and_left_out(material: Path, tmp_path: Path) -> None:
    make_clip(tmp_path / "small.mp4", size="64x64", frames=8)
    make_clip(tmp_path / "short.mp4", size="176x144", frames=3)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    dot = file_url(tmp_path / "dot.png")
    run_ffmpeg("-f", "lavfi", "-i", "color=s=200x2", "-frames:v", "1", dot)
    said: list[str] = []
    out = tmp_path / "out"
    with pytest.raises(InputError, match="no scene could be labelled: .*"):
        build_corpus(list_scenes([tmp_path]), out, PLAN, ffmpeg=ffmpeg_path(), report=said.append)
    assert list(out.iterdir()) == []
    assert len(said) == 4 and all("left out" in line for line in said)
    assert any("dot.png is too small" in line for line in said)


def test_nothing_and_twice_the_same_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'.*gone.mp4' does not exist"):
        list_scenes([tmp_path, tmp_path / "gone.mp4"])
    with pytest.raises(InputError, match="no videos or pictures"):
        list_scenes([tmp_path])
    for name in ("a.mp4", "a.png", "b.png"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match="several files are called a "):
        list_scenes([tmp_path])


@pytest.mark.parametrize("content", [b"name,group\na,b\n", b"file,group\n\xff\xfe\xff,x\n"])
def test_a_bad_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "MANIFEST.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"MANIFEST\.csv"):
        list_scenes([tmp_path])


@pytest.mark.parametrize("seed", range(6))
def test_pictures_move_and_stay_in_range(seed: int) -> None:
    y, x = torch.meshgrid(torch.linspace(0, 1, 150), torch.linspace(0, 1, 230), indexing="ij")
    picture = torch.stack([x, y, ((x + y) * 20).sin() / 2 + 0.5])
    frames = picture_in_motion(picture, 5, np.random.default_rng(seed))
    again = picture_in_motion(picture, 5, np.random.default_rng(seed))
    assert np.array_equal(frames, again)
    count, rows, width = frames.shape
    assert count == 5 and frames.dtype == np.uint8 and rows % 3 == 0 and width % 2 == 0
    assert width >= 128 and rows * 2 // 3 >= 128
    luma = frames[:, : rows * 2 // 3]
    assert luma.std() > 10
    assert luma.min() >= 16 and luma.max() <= 235


def test_large_pictures_are_brought_down_first() -> None:
    frames = picture_in_motion(torch.rand(3, 1500, 4000), 1, np.random.default_rng(0))
    _, rows, width = frames.shape
    assert 0.6 * PICTURE_PIXELS < rows * 2 // 3 * width < PICTURE_PIXELS
