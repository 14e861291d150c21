"""A training set from clips and pictures: scenes, shards, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.media import make_clip, run_ffmpeg
from vqaloop import process
from vqaloop.corpus import Plan, build_corpus, find_scenes
from vqaloop.motion import picture_in_motion
from vqaloop.errors import InputError
from vqaloop.models.student import OUTPUTS
from vqaloop.shards import load_corpus, read_about, write_shard

PLAN = Plan(encodes=2, crops=3, frames=6)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    make_clip(folder / "one.mp4", size="288x256", frames=8)
    # a quarter of it is still large enough for every encoder
    run_ffmpeg(
        "-f", "lavfi", "-i", "mandelbrot=s=640x560", "-frames:v", "1",
        process.file_url(folder / "two.png"),
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
    ffmpeg = process.ffmpeg_path()
    made = build_corpus(find_scenes([material]), out, PLAN, ffmpeg=ffmpeg, report=said.append)
    assert [path.name for path in made] == ["one.safetensors", "two.safetensors"]
    assert len(said) == 2 and all("2 encodes" in line for line in said)
    return out


def test_scenes_and_their_titles(material: Path) -> None:
    one, two = find_scenes([material])
    assert (one.name, one.content, one.licence, one.basis) == ("one", "film", "CC0", "explicit")
    assert (two.name, two.content, two.licence, two.basis) == ("two", "two", "unknown", "unknown")
    assert find_scenes([material / "one.mp4"]) == [one]


def test_shards_hold_what_they_say(corpus: Path) -> None:
    shards = load_corpus([corpus])
    assert [(s.name, s.content) for s in shards] == [("one", "film"), ("two", "two")]
    for shard in shards:
        assert shard.reference is not None
        assert shard.crop_labels is not None and shard.frame_labels is not None
        assert shard.label == "VMAF v0.6.1"
        assert shard.reference.shape == (3, 2, 168, 112)
        assert shard.distorted.shape == (2, 3, 2, 168, 112)
        assert shard.reference.dtype == shard.distorted.dtype == torch.uint8
        assert shard.crop_labels.shape == shard.frame_labels.shape == (2, 3, len(OUTPUTS))
        for labels in (shard.crop_labels, shard.frame_labels):
            assert labels.dtype == torch.float32
            assert labels.isfinite().all()
            assert ((labels[..., 0] >= 0) & (labels[..., 0] <= 100)).all()
        assert (shard.distorted.float() - shard.reference.float()).abs().mean() > 0
        assert len(shard.encodes) == 2
        assert all(0 <= e["score"] <= 100 and e["kbps"] > 0 for e in shard.encodes)
        assert shard.scores.tolist() == pytest.approx([e["score"] for e in shard.encodes])
    about = read_about(corpus / "one.safetensors")
    assert about["outputs"] == list(OUTPUTS)
    assert about["scene"]["path"] == "one.mp4"


def test_what_is_there_is_not_made_again(material: Path, corpus: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in corpus.iterdir()}
    ffmpeg = process.ffmpeg_path()
    said: list[str] = []
    build_corpus(find_scenes([material]), corpus, PLAN, ffmpeg=ffmpeg, report=said.append)
    assert said == []
    assert {path: path.stat().st_mtime_ns for path in corpus.iterdir()} == before


def test_an_unusable_scene_is_reported_and_left_out(material: Path, tmp_path: Path) -> None:
    make_clip(tmp_path / "small.mp4", size="64x64", frames=8)
    make_clip(tmp_path / "short.mp4", size="176x144", frames=3)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    said: list[str] = []
    out = tmp_path / "out"
    made = build_corpus(
        find_scenes([tmp_path]), out, PLAN, ffmpeg=process.ffmpeg_path(), report=said.append
    )
    assert made == [] and list(out.iterdir()) == []
    assert len(said) == 3 and all("left out" in line for line in said)


def test_nothing_and_twice_the_same_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no videos or pictures"):
        find_scenes([tmp_path])
    for name in ("a.mp4", "a.png", "b.png"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match="several files are called a "):
        find_scenes([tmp_path])


@pytest.mark.parametrize("content", [b"name,group\na,b\n", b"file,group\n\xff\xfe\xff,x\n"])
def test_a_bad_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "MANIFEST.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"MANIFEST\.csv"):
        find_scenes([tmp_path])


def test_bad_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no labelled set in"):
        load_corpus([tmp_path])
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"nothing")
    with pytest.raises(InputError, match="not a shard"):
        load_corpus([tmp_path])
    clip = np.zeros((1, 1, 2, 168, 112), np.uint8)
    for arrays, scene in (
        ({"reference": clip[0]}, {"content": "x"}),
        ({"distorted": clip, "more": clip}, {"content": "x"}),
        ({"distorted": clip}, {"title": "x"}),
    ):
        write_shard(bad, arrays, scene, [{"score": 1.0}], "VMAF")
        with pytest.raises(InputError, match="not a shard"):
            load_corpus([tmp_path])


def test_a_shard_of_opinion_scores_needs_no_source(tmp_path: Path) -> None:
    clip = np.random.default_rng(0).integers(0, 256, (2, 3, 2, 168, 112), np.uint8)
    encodes = [{"score": 12.5, "encoder": "x"}, {"score": 90.0, "encoder": "x"}]
    path = tmp_path / "video.safetensors"
    write_shard(path, {"distorted": clip[:, ::-1]}, {"content": "title"}, encodes, "MOS")
    (shard,) = load_corpus([tmp_path])
    assert (shard.name, shard.content, shard.label) == ("video", "title", "MOS")
    assert shard.reference is None and shard.crop_labels is None and shard.frame_labels is None
    assert np.array_equal(shard.distorted.numpy(), clip[:, ::-1])
    assert shard.scores.tolist() == [12.5, 90.0] and shard.encodes == encodes
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


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
