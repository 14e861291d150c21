"""Labelled sets on disk: one safetensors file a scene, with clips, labels and metadata.

The same form holds corpora made here and prepared data sets; training and evaluation read nothing
else. A corpus has regions: each is four crops side by side, at one place in time, and several
metrics measured on just those pixels and on the whole frames. A data set has opinion scores of
whole videos and no regions.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from safetensors.torch import load_file
from torch import Tensor

from vqaloop.core import scopes
from vqaloop.core.documents import check_depth
from vqaloop.core.files import check_regular, renamed_to
from vqaloop.errors import InputError, VqaloopError
from vqaloop.models.stream_facts import StreamFacts, stream_facts

FDIM_FEATURES = 960
"""Channels of the difference features that FDIM pools over a picture."""
LARGEST_FPS, LARGEST_KBPS, LARGEST_SIDE = 1e4, 1e9, 1 << 16
"""What no encode's rate, bitrate or size exceeds."""
LARGEST_LABEL = 1e4
"""Magnitude that no measured label exceeds."""


@dataclass(frozen=True)
class Shard:
    """One scene in memory; shapes with C clips, E encodes, T frames of a clip, S its size.

    A corpus has R regions and M labels as well: clips r·region to (r + 1)·region - 1 are region r,
    as the rows of a picture cut into quarters.
    """

    name: str
    content: str
    """Title; all shards of one title are on the same side of a split."""
    label: str
    """What the scores are: "VMAF v1", "MOS of Waterloo IVC 4K"."""
    encodes: list[dict[str, Any]]
    """Of each encode `score` (0..100, higher is better) and, where known, `encoder`, `width`,
    `height`, `kbps`, `level` or `knob`; of a corpus `labels` (means by name) and `attack`, None or
    the damage done to the decoded frames: its `name` and `strength`."""
    distorted: Tensor
    """(E, C, T, S·3/2, S) uint8."""
    reference: Tensor | None = None
    """(C, T, S·3/2, S) uint8; None where a data set comes without its sources."""
    region_labels: Tensor | None = None
    """(E, R, M) fp32, in the units of each metric, measured on the pixels of the region; nan: not
    measured. None where viewers scored whole videos."""
    frame_labels: Tensor | None = None
    """(E, R, M) fp32: of the whole frames at the region's place in time."""
    fdim_features: Tensor | None = None
    """(E, R, FDIM_FEATURES) fp16: what FDIM pools of a region; nan: not measured."""
    labels: tuple[str, ...] = ()
    """Names of the M labels."""
    region: int = 1
    """Crops of a region."""
    canvas: tuple[int, int] | None = None
    """(width, height) of the frames that clips are cut out of, where it is known."""
    fps: float | None = None
    """Frame rate of the encodes, where it is known."""
    distances: tuple[int, ...] = ()
    """Of each region, how many frames of the video its T frames are apart."""
    places: tuple[int, ...] = ()
    """Of each region, its first frame."""
    view: dict[str, Any] | None = None
    """How its clips were cut (`clip_views.View` and a seed); None: native crops of
    consecutive frames."""

    @property
    def scores(self) -> Tensor:
        """(E,) fp32, 0..100: the label of each whole encode."""
        return torch.tensor([encode["score"] for encode in self.encodes])

    @property
    def attacked(self) -> Tensor:
        """(E,) bool: which encodes were damaged beyond compression."""
        return torch.tensor([encode.get("attack") is not None for encode in self.encodes])

    @property
    def stream(self) -> Tensor:
        """(E, 3) `StreamFacts.inputs` of each encode; nothing is known of damaged ones."""
        return torch.tensor([self._facts(encode).inputs() for encode in self.encodes])

    @property
    def rates(self) -> Tensor:
        """(E,) log2 of the bits of each encode for a pixel of the canvas; nan: not known."""
        known = [(each, self._facts(each)) for each in self.encodes]
        # the scale of facts is that of sides
        bits = [facts.bits_pixel * facts.scale**2 for _, facts in known]
        return torch.tensor([math.log2(b) if b > 0 else math.nan for b in bits])

    def _facts(self, encode: Mapping[str, Any]) -> StreamFacts:
        kbps, width, height = (encode.get(key) for key in ("kbps", "width", "height"))
        if encode.get("attack") is not None or self.canvas is None or self.fps is None:
            return StreamFacts()
        if kbps is None or width is None or height is None:
            return StreamFacts()
        return stream_facts(1000 * kbps / self.fps, (width, height), self.canvas)


def load_corpus(folders: Sequence[str | Path]) -> list[Shard]:
    """All shards of some folders. Raises InputError when there are none."""
    return [load_shard(path) for path in shard_paths(folders)]


def shard_paths(folders: Sequence[str | Path]) -> list[Path]:
    """Files of all shards of some folders. Raises InputError when there are none."""
    paths = sorted(p for folder in folders for p in Path(folder).glob("*.safetensors"))
    if not paths:
        raise InputError(
            f"no labelled set in {', '.join(map(str, folders))}; make one with `vqaloop corpus`"
        )
    return paths


def title_of(path: Path) -> str:
    """A shard's title, from its header alone. Raises InputError when the file is no shard."""
    scene = read_about(path).get("scene")
    if not isinstance(scene, dict) or not isinstance(scene.get("content"), str):
        raise InputError(f"{path} is not a shard of a labelled set: it names no title")
    return str(scene["content"])


def trained_titles(about: Mapping[str, str]) -> frozenset[str]:
    """Titles that weights were trained on, by their header; none where an old one is silent.

    Raises InputError for a header that is damaged.
    """
    try:
        titles = json.loads(about.get("titles", "[]"))
    except (ValueError, RecursionError):
        titles = None
    if not isinstance(titles, list) or not all(isinstance(title, str) for title in titles):
        raise InputError("the weights' header does not say which titles they were trained on")
    return frozenset(titles)


def load_shard(path: Path) -> Shard:
    """Read one scene into memory.

    Raises:
        InputError: The file is no shard, or its arrays and header do not fit each other.
    """
    about = read_about(path)
    try:
        scene, arrays = about["scene"], load_file(path)
        if "crop_labels" in arrays:
            raise InputError(
                f"{path} is of an earlier release, with labels of single crops; make it anew with "
                "`vqaloop corpus`"
            )
        parts: dict[str, Any] = {**arrays}
        if about.get("labels"):
            parts |= {key: tuple(scene[key]) for key in ("distances", "places")}
            parts |= {"labels": tuple(about["labels"]), "region": about["region"]}
        if about.get("labels") or "canvas" in scene:
            parts["canvas"] = tuple(scene["canvas"])
        if "fps" in scene:
            parts["fps"] = _rate(scene["fps"])
        shard = Shard(
            path.stem,
            scene["content"],
            about["label"],
            about["encodes"],
            view=scene.get("view"),
            **parts,
        )
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise InputError(f"{path} is not a shard of a labelled set: {error}") from error
    if not (_fits(shard) and _regions_fit(shard)):
        raise InputError(
            f"{path}: arrays and header do not fit each other; make it anew with `vqaloop corpus`"
        )
    return shard


def _rate(text: str) -> float:
    """A frame rate such as "30000/1001". Raises ValueError."""
    match = re.fullmatch(r"([0-9]{1,9})(?:/([1-9][0-9]{0,8}))?", text)
    if not match:
        raise ValueError(f"{text!r} is no frame rate")
    return int(match[1]) / int(match[2] or 1)


def _fits(shard: Shard) -> bool:
    """Whether clips and rows have the shapes and types of `Shard`."""
    clips, rows = shard.distorted, shard.encodes
    if not isinstance(shard.content, str) or not isinstance(shard.label, str):
        return False
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return False
    if not all(_is_number(row.get("score"), 1e9) and _coding_fits(row) for row in rows):
        return False
    if clips.dtype != torch.uint8 or clips.ndim != 5 or 0 in clips.shape:
        return False
    if len(clips) != len(rows) or clips.shape[-2] * 2 != clips.shape[-1] * 3:
        return False
    if shard.canvas is not None and not _whole(shard.canvas, 2, 1, LARGEST_SIDE):
        return False
    if shard.fps is not None and not 0 < shard.fps < LARGEST_FPS:
        return False
    source = shard.reference
    return source is None or (source.dtype, source.shape) == (torch.uint8, clips.shape[1:])


def _coding_fits(row: Mapping[str, Any]) -> bool:
    """Whether an encode's bitrate and size are none or positive numbers."""
    most = {"kbps": LARGEST_KBPS, "width": LARGEST_SIDE, "height": LARGEST_SIDE}
    known = {key: row[key] for key in most if row.get(key) is not None}
    return all(_is_number(value, most[key]) and value > 0 for key, value in known.items())


def _is_number(value: object, bound: float) -> bool:
    # bounds rather than isfinite, which fails on the largest integers
    return isinstance(value, int | float) and -bound < value < bound


def _regions_fit(shard: Shard) -> bool:
    """Whether regions and their labels have the shapes, types and ranges of `Shard`."""
    known = (shard.region_labels, shard.frame_labels, shard.fdim_features)
    if not shard.labels:
        return all(array is None for array in known)
    if not all(isinstance(name, str) for name in shard.labels) or shard.view is not None:
        return False
    if len(set(shard.labels)) < len(shard.labels) or shard.reference is None:
        return False
    encodes, clips = shard.distorted.shape[:2]
    if type(shard.region) is not int or shard.region < 1 or clips % shard.region:
        return False
    shape = (encodes, clips // shard.region, len(shard.labels))
    if any(x is None or not _labels_fit(x, torch.float32, shape) for x in known[:2]):
        return False
    features, wide = shard.fdim_features, (*shape[:2], FDIM_FEATURES)
    if features is not None and not _labels_fit(features, torch.float16, wide):
        return False
    if not _whole(shard.distances, shape[1], 1, 1000):
        return False
    if not _whole(shard.places, shape[1], 0, 1 << 31):
        return False
    return all(_row_fits(row, shard.labels) for row in shard.encodes)


def _whole(values: Sequence[object], count: int, low: int, high: int) -> bool:
    """Whether there are so many whole numbers, all between the two."""
    return len(values) == count and all(
        type(value) is int and low <= value <= high for value in values
    )


def _labels_fit(labels: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    if (labels.dtype, labels.shape) != (dtype, shape):
        return False
    # nan is a label that was not measured
    return bool((labels.isnan() | (labels.abs() <= LARGEST_LABEL)).all())


def _row_fits(row: dict[str, Any], names: Sequence[str]) -> bool:
    """Whether an encode's mean labels and its attack are as `Shard.encodes` says."""
    means, attack = row.get("labels", {}), row.get("attack")
    if not isinstance(means, dict) or not set(means) <= set(names):
        return False
    if not all(mean is None or _is_number(mean, LARGEST_LABEL) for mean in means.values()):
        return False
    if attack is None:
        return True
    if not isinstance(attack, dict) or not isinstance(attack.get("name"), str):
        return False
    return _is_number(attack.get("strength"), 2) and 0 <= attack["strength"] <= 1


def write_each(
    jobs: Mapping[str, Callable[[], str]], workers: int, report: Callable[[str], None]
) -> dict[str, str]:
    """Run jobs that write a shard each; {name: why} of those that failed.

    `report` is called with what a job returns, or with why its shard is left out.
    """
    failed: dict[str, str] = {}
    with scopes.team(workers) as submit:
        names = {submit(job): name for name, job in jobs.items()}
        for done, job in enumerate(as_completed(names), 1):
            name = names[job]
            try:
                report(f"{done}/{len(jobs)} {name}: {job.result()}")
            except VqaloopError as error:
                failed[name] = str(error)
                report(f"{done}/{len(jobs)} {name} left out: {error}")
    return failed


def write_shard(
    path: Path,
    arrays: Mapping[str, npt.NDArray[Any]],
    scene: dict[str, Any],
    encodes: list[dict[str, Any]],
    label: str,
    *,
    labels: Sequence[str] = (),
    region: int = 1,
) -> None:
    """Write a shard, whole or not at all.

    Args:
        path: Of the safetensors file.
        arrays: `distorted` and what else there is of `reference`, `region_labels`,
            `frame_labels` and `fdim_features`; shapes and types as in `Shard`.
        scene: Metadata of the scene; `content` is its title, `view` how clips were cut; with
            regions also `canvas`, `distances` and `places`.
        encodes: One row an encode, see `Shard.encodes`.
        label: What the scores are, see `Shard.label`.
        labels: Names of the labels of regions and frames; none where viewers scored whole videos.
        region: Crops of a region.
    """
    about: dict[str, Any] = {"scene": scene, "encodes": encodes, "label": label}
    if labels:
        about |= {"labels": list(labels), "region": region}
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with renamed_to(path) as part:
        part.write_bytes(save(whole, {key: json.dumps(value) for key, value in about.items()}))


def read_about(path: Path) -> dict[str, Any]:
    """A shard's header: `scene`, `encodes`, `label`, `labels`, `region`. Raises InputError."""
    try:
        check_regular(path)
        with safe_open(path, "np") as file:
            about = {key: json.loads(text) for key, text in file.metadata().items()}
        check_depth(about)
        return about
    except (OSError, SafetensorError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is not a shard of a labelled set: {error}") from error
