"""Shards on disk: what comes back as it was written, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vqaloop.errors import InputError
from vqaloop.models.stream_facts import StreamFacts
from vqaloop.training.shards import (
    FDIM_FEATURES,
    load_corpus,
    load_shard,
    read_about,
    title_of,
    write_shard,
)

NAMES = ("v1", "cambi", "xpsnr")
SCENE: dict[str, Any] = {
    "content": "film", "canvas": [1920, 1080], "distances": [1, 5], "places": [3, 40],
}  # fmt: skip
ROWS: list[dict[str, Any]] = [
    {"score": 1, "attack": None, "labels": {"v1": 1.0, "cambi": None}},
    {"score": 2.5, "attack": {"name": "flicker", "strength": 0.5}},
]


def arrays_of_regions() -> dict[str, Any]:
    """Two encodes of two regions of four crops."""
    rng = np.random.default_rng(0)
    labels = rng.random((2, 2, 2, len(NAMES)), np.float32) * 100
    labels[1, ..., 1] = np.nan
    return {
        "distorted": rng.integers(16, 236, (2, 8, 2, 42, 28), np.uint8),
        "reference": rng.integers(16, 236, (8, 2, 42, 28), np.uint8),
        "region_labels": labels[0],
        "frame_labels": labels[1],
        "fdim_features": rng.random((2, 2, FDIM_FEATURES), np.float32).astype(np.float16),
    }


def test_regions_come_back_as_they_were_written(tmp_path: Path) -> None:
    path, arrays = tmp_path / "a.safetensors", arrays_of_regions()
    write_shard(path, arrays, SCENE, ROWS, "VMAF v1", labels=NAMES, region=4)
    (shard,) = load_corpus([tmp_path])
    for name, array in arrays.items():
        found = getattr(shard, name).numpy()
        assert found.dtype == array.dtype and np.array_equal(found, array, equal_nan="l" in name)
    assert (shard.labels, shard.region, shard.canvas) == (NAMES, 4, (1920, 1080))
    assert (shard.distances, shard.places) == ((1, 5), (3, 40))
    assert (shard.content, shard.label, shard.view) == ("film", "VMAF v1", None)
    assert shard.encodes == ROWS and shard.attacked.tolist() == [False, True]
    assert read_about(path)["labels"] == list(NAMES)
    without = {k: v for k, v in arrays.items() if k != "fdim_features"}
    write_shard(path, without, SCENE, ROWS, "VMAF v1", labels=NAMES, region=4)
    assert load_shard(path).fdim_features is None


def test_facts_of_encodes_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    row = {"score": 1, "kbps": 600.0, "width": 960, "height": 540}
    scene = {**SCENE, "fps": "30000/1001"}
    known = StreamFacts(600e3 / (30000 / 1001) / (960 * 540), 0.5)
    arrays = arrays_of_regions()

    def facts(scene: dict[str, Any], **change: Any) -> list[list[float]]:
        rows = [{**row, **change}, {**row, "attack": {"name": "flicker", "strength": 0.5}}]
        write_shard(path, arrays, scene, rows, "VMAF v1", labels=NAMES, region=4)
        found: list[list[float]] = load_shard(path).stream.tolist()
        return found

    first, damaged = facts(scene)
    assert first == pytest.approx(known.inputs()) and damaged == [0, 0, 0]
    for found in (
        facts(SCENE), facts(scene, kbps=None), facts(scene, width=None), facts(scene, height=None)
    ):  # fmt: skip
        assert found == [[0, 0, 0]] * 2
    for fps in ("0", "1/0", "1e999999999", "25 fps", 25, None):
        with pytest.raises(InputError, match=r"is not a shard|do not fit"):
            facts({**scene, "fps": fps})


CLIPS = arrays_of_regions()
LABELS, FEATURES = CLIPS["region_labels"], CLIPS["fdim_features"]


@pytest.mark.parametrize(
    "change",
    [
        {"region_labels": LABELS[..., :2]},
        {"region_labels": LABELS[:, :1]},
        {"region_labels": LABELS.astype(np.float64)},
        {"region_labels": LABELS * np.inf},
        {"frame_labels": LABELS[:1]},
        {"frame_labels": LABELS + np.float32(1e5)},
        {"frame_labels": None},
        {"reference": None},
        {"fdim_features": FEATURES.astype(np.float32)},
        {"fdim_features": FEATURES[..., :9]},
        {"fdim_features": FEATURES * np.inf},
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "bad.safetensors"
    arrays = {k: v for k, v in {**CLIPS, **change}.items() if v is not None}
    write_shard(path, arrays, SCENE, ROWS, "VMAF v1", labels=NAMES, region=4)
    with pytest.raises(InputError, match="arrays and header do not fit each other"):
        load_shard(path)


@pytest.mark.parametrize(
    ("scene", "row", "labels", "region"),
    [
        ({}, {}, ("v1", "cambi"), 4),
        ({}, {}, ("v1", "cambi", "v1"), 4),
        ({}, {}, ("v1", "cambi", 3), 4),
        ({}, {}, (), 4),
        ({}, {}, NAMES, 3),
        ({}, {}, NAMES, 2),
        ({}, {}, NAMES, 0),
        ({}, {}, NAMES, 4.0),
        ({"canvas": [1920]}, {}, NAMES, 4),
        ({"canvas": [1920, 0]}, {}, NAMES, 4),
        ({"distances": [1]}, {}, NAMES, 4),
        ({"distances": [1, 0]}, {}, NAMES, 4),
        ({"places": [1.5, 2]}, {}, NAMES, 4),
        ({"places": [-1, 2]}, {}, NAMES, 4),
        ({"view": {"kind": "native"}}, {}, NAMES, 4),
        ({}, {"kbps": 0}, NAMES, 4),
        ({}, {"kbps": "600"}, NAMES, 4),
        ({}, {"kbps": float("inf")}, NAMES, 4),
        ({}, {"width": -2}, NAMES, 4),
        ({}, {"labels": {"v2": 1.0}}, NAMES, 4),
        ({}, {"labels": {"v1": "1"}}, NAMES, 4),
        ({}, {"labels": [1.0]}, NAMES, 4),
        ({}, {"attack": "flicker"}, NAMES, 4),
        ({}, {"attack": {"name": "flicker"}}, NAMES, 4),
        ({}, {"attack": {"name": "flicker", "strength": 1.5}}, NAMES, 4),
        ({}, {"attack": {"name": 1, "strength": 0.5}}, NAMES, 4),
    ],
)
def test_headers_that_do_not_fit_are_refused(
    tmp_path: Path, scene: dict[str, Any], row: dict[str, Any], labels: Any, region: Any
) -> None:
    path, rows = tmp_path / "bad.safetensors", [{**ROWS[0], **row}, ROWS[1]]
    write_shard(path, CLIPS, {**SCENE, **scene}, rows, "VMAF", labels=labels, region=region)
    with pytest.raises(InputError, match="arrays and header do not fit each other"):
        load_shard(path)


@pytest.mark.parametrize("key", ["canvas", "distances", "places"])
def test_regions_without_a_place_are_refused(tmp_path: Path, key: str) -> None:
    path = tmp_path / "bad.safetensors"
    scene = {k: v for k, v in SCENE.items() if k != key}
    write_shard(path, CLIPS, scene, ROWS, "VMAF", labels=NAMES, region=4)
    with pytest.raises(InputError, match=f"not a shard of a labelled set: '{key}'"):
        load_shard(path)


def test_labels_of_single_crops_are_of_an_earlier_release(tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    old = {"distorted": CLIPS["distorted"], "crop_labels": np.zeros((2, 8, 7), np.float32)}
    write_shard(path, old, {"content": "film"}, ROWS, "VMAF v0.6.1")
    with pytest.raises(InputError, match="earlier release.*make it anew with `vqaloop corpus`"):
        load_shard(path)


def test_what_is_no_shard_is_refused(tmp_path: Path) -> None:
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


def test_clips_and_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    clip = np.zeros((2, 3, 2, 168, 112), np.uint8)
    whole: dict[str, Any] = {"distorted": clip, "reference": clip[0]}
    rows: list[dict[str, Any]] = [{"score": 1}, {"score": 2.5}]
    write_shard(path, whole, {"content": "x"}, rows, "MOS")
    assert load_shard(path).scores.tolist() == [1.0, 2.5] and title_of(path) == "x"
    changes: list[dict[str, Any]] = [
        {"distorted": clip.astype(np.float32)},
        {"distorted": clip[:, :2]},
        {"distorted": clip[..., :100]},
        {"distorted": clip[0]},
        {"distorted": clip[:, :0]},
        {"reference": clip[0, :2]},
        {"reference": clip[0].astype(np.int16)},
        {"region_labels": np.zeros((2, 3, 1), np.float32)},
        {"fdim_features": np.zeros((2, 3, FDIM_FEATURES), np.float16)},
    ]
    odd_rows: list[list[dict[str, Any]]] = [rows[:1], [*rows, {"score": 3.0}], [{}, {}]]
    odd_rows += [[{"score": "1"}, {"score": 2}], [{"score": float("nan")}, {"score": 2}]]
    cases = [({**whole, **change}, rows) for change in changes] + [(whole, r) for r in odd_rows]
    for arrays, encodes in cases:
        write_shard(path, arrays, {"content": "x"}, encodes, "MOS")
        with pytest.raises(InputError, match="arrays and header do not fit each other"):
            load_shard(path)


def test_a_shard_of_opinion_scores_needs_no_source(tmp_path: Path) -> None:
    clip = np.random.default_rng(0).integers(0, 256, (2, 3, 2, 168, 112), np.uint8)
    encodes = [{"score": 12.5, "encoder": "x"}, {"score": 90.0, "encoder": "x"}]
    path = tmp_path / "video.safetensors"
    write_shard(path, {"distorted": clip[:, ::-1]}, {"content": "title"}, encodes, "MOS")
    (shard,) = load_corpus([tmp_path])
    assert (shard.name, shard.content, shard.label) == ("video", "title", "MOS")
    assert shard.reference is None and shard.region_labels is None and shard.frame_labels is None
    assert shard.labels == () and not shard.attacked.any()
    assert np.array_equal(shard.distorted.numpy(), clip[:, ::-1])
    assert shard.scores.tolist() == [12.5, 90.0] and shard.encodes == encodes
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
