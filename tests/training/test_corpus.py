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
from vqaloop.panel.labels import LABELS
from vqaloop.panel.measure import PanelTools
from vqaloop.records import Encode
from vqaloop.training.corpus import CorpusPlan, _renditions, build_corpus
from vqaloop.training.corpus_scenes import (
    CorpusScene,
    list_scenes,
    part_of_titles,
    scene_frames,
    with_montages,
)
from vqaloop.training.shards import load_corpus, read_about, write_shard
from vqaloop.training.synthetic_motion import PICTURE_PIXELS, picture_in_motion

PLAN = CorpusPlan(encodes=2, attacks=1, places=2, regions=1, frames=10)
TOOLS = PanelTools(ffmpeg_path())


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    make_clip(folder / "one.mp4", size="288x256", frames=12)
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
    made = build_corpus(list_scenes([material]), out, PLAN, TOOLS, report=said.append)
    assert [path.name for path in made] == ["one.safetensors", "two.safetensors"]
    assert len(said) == 2 and all("3 videos" in line for line in said)
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
    build_corpus(scenes, tmp_path, PLAN, TOOLS, report=said.append)
    assert said == ["1/1 one: 1 of 2 encodes, the others failed: it crashed"]


def test_scenes_and_their_titles(material: Path) -> None:
    one, two = list_scenes([material])
    assert (one.name, one.content, one.licence, one.basis) == ("one", "film", "CC0", "explicit")
    assert (two.name, two.content, two.licence, two.basis) == ("two", "two", "unknown", "unknown")
    assert list_scenes([material / "one.mp4"]) == [one]


def test_shards_hold_what_they_say(corpus: Path) -> None:
    shards = load_corpus([corpus])
    assert [(s.name, s.content) for s in shards] == [("one", "film"), ("two", "two")]
    measured = [list(LABELS).index(name) for name in ("v1", "neg", "v0.6.1", "cambi", "xpsnr")]
    for shard in shards:
        assert shard.reference is not None
        assert shard.region_labels is not None and shard.frame_labels is not None
        assert shard.label == "VMAF v1" and shard.labels == tuple(LABELS)
        # two places of one region each, of four crops
        assert (shard.region, shard.distances) == (4, (1, 5))
        assert shard.reference.shape == (8, 2, 168, 112)
        assert shard.distorted.shape == (3, 8, 2, 168, 112)
        assert shard.region_labels.shape == shard.frame_labels.shape == (3, 2, len(LABELS))
        for labels in (shard.region_labels, shard.frame_labels):
            assert labels[..., measured].isfinite().all()
            assert labels.isfinite().sum() == labels[..., measured].numel()
            assert ((labels[..., 0] >= 0) & (labels[..., 0] <= 100)).all()
        assert (shard.distorted.float() - shard.reference.float()).abs().mean() > 0
        assert shard.attacked.sum() == 1
        coded = [e for e in shard.encodes if e["attack"] is None]
        assert len(coded) == 2 and all(0 <= e["score"] <= 100 and e["kbps"] > 0 for e in coded)
        assert shard.scores.tolist() == pytest.approx([e["score"] for e in shard.encodes])
    about = read_about(corpus / "one.safetensors")
    assert about["labels"] == list(LABELS) and about["scene"]["canvas"] == [288, 256]
    assert about["scene"]["path"] == "one.mp4"


def test_regions_are_the_quarters_of_what_was_measured(corpus: Path, material: Path) -> None:
    """The crops of a region, put together, are its picture at both ends of the run."""
    (shard, _), (scene, _) = load_corpus([corpus]), list_scenes([material])
    rng = np.random.default_rng([0, *b"one"])
    frames, _ = scene_frames(scene, PLAN.frames, rng, ffmpeg_path())
    luma = frames[:, :256]
    assert shard.reference is not None
    crops = shard.reference[:, :, :112].numpy()
    for r, (first, apart) in enumerate(zip(shard.places, shard.distances, strict=True)):
        own = crops[4 * r : 4 * r + 4]
        rows = [np.concatenate(own[i : i + 2], 2) for i in (0, 2)]
        whole = np.concatenate(rows, 1)
        pair = luma[[first, first + apart]]
        found = [
            (y, x)
            for y in range(0, 256 - 224 + 1, 2)
            for x in range(0, 288 - 224 + 1, 2)
            if np.array_equal(pair[:, y : y + 224, x : x + 224], whole)
        ]
        assert found


def test_what_is_there_is_not_made_again(material: Path, corpus: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in corpus.iterdir()}
    said: list[str] = []
    build_corpus(list_scenes([material]), corpus, PLAN, TOOLS, report=said.append)
    assert said == []
    assert {path: path.stat().st_mtime_ns for path in corpus.iterdir()} == before


def test_a_folder_of_another_plan_is_refused(material: Path, corpus: Path, tmp_path: Path) -> None:
    scenes = list_scenes([material])
    for other in (replace(PLAN, regions=4), replace(PLAN, seed=1)):
        with pytest.raises(InputError, match="made with other options"):
            build_corpus(scenes, corpus, other, TOOLS)
    with pytest.raises(InputError, match="made with other options"):
        build_corpus([replace(scenes[0], window=(0, 2))], corpus, PLAN, TOOLS)
    arrays: dict[str, Any] = {"distorted": np.zeros((1, 1, 2, 168, 112), np.uint8)}
    write_shard(tmp_path / "one.safetensors", arrays, {"content": "film"}, [{"score": 1.0}], "V")
    with pytest.raises(InputError, match="by an earlier release"):
        build_corpus(scenes[:1], tmp_path, PLAN, TOOLS)


def test_parts_share_no_title() -> None:
    titles = ["b", "a", "c", "a", "d"]
    scenes = [CorpusScene(Path(f"{i}"), f"{i}", t, "", "") for i, t in enumerate(titles)]
    parts = [part_of_titles(scenes, part, 2) for part in (1, 2)]
    assert [[s.content for s in part] for part in parts] == [["a", "c", "a"], ["b", "d"]]
    for part in (0, 3):
        with pytest.raises(InputError, match=f"no part {part} of 2"):
            part_of_titles(scenes, part, 2)


def test_montages_are_of_the_pictures_own_pixels(material: Path) -> None:
    scenes = list_scenes([material])
    one, montage = with_montages(scenes, {(900, 700): 1}, 0)
    assert one is scenes[0] and montage.about()["pictures"] == ("two.png",)
    frames, _ = scene_frames(montage, 60, np.random.default_rng(0), ffmpeg_path())
    # larger pictures have fewer frames
    assert frames.shape == (int(32e6 / (900 * 700)), 700 * 3 // 2, 900)
    assert frames[0, :700].std() > 20
    with pytest.raises(InputError, match="no"):
        with_montages([one], {(900, 700): 1}, 0)


def test_plans_and_windows_that_cannot_be_are_refused(material: Path, tmp_path: Path) -> None:
    for wrong in ({"encodes": 0}, {"attacks": -1}, {"regions": 1001}, {"frames": 3}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} must be"):
            CorpusPlan(**wrong)
    with pytest.raises(InputError, match="at least one scene"):
        list_scenes([material], 0)


def test_an_ffmpeg_without_encoders_is_refused(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqaloop.training.corpus.available", lambda spec, ffmpeg: False)
    with pytest.raises(InputError, match="none of the encoders"):
        build_corpus(list_scenes([material]), tmp_path / "out", PLAN, PanelTools("ffmpeg"))
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
        build_corpus(list_scenes([tmp_path]), out, PLAN, TOOLS, report=said.append)
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
