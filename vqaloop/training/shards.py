"""Labelled sets on disk: one safetensors file a scene, with clips, labels and metadata.

The same form holds corpora made here (labels: VMAF of each crop) and prepared data sets (labels:
opinion scores of whole videos); training and evaluation read nothing else.
"""

import json
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
from vqaloop.models.student import OUTPUTS


@dataclass(frozen=True)
class Shard:
    """One scene in memory; shapes with C clips, E encodes, T frames of a clip, S its size."""

    name: str
    content: str
    """Title; all shards of one title are on the same side of a split."""
    label: str
    """What the scores are: "VMAF v0.6.1", "MOS of Waterloo IVC 4K"."""
    encodes: list[dict[str, Any]]
    """Of each encode `score` (0..100, higher is better) and, where known, `encoder`, `width`,
    `height`, `level` or `knob`."""
    distorted: Tensor
    """(E, C, T, S·3/2, S) uint8."""
    reference: Tensor | None = None
    """(C, T, S·3/2, S) uint8; None where a data set comes without its sources."""
    crop_labels: Tensor | None = None
    """(E, C, len(OUTPUTS)) fp32: of each crop; None where viewers scored whole videos."""
    frame_labels: Tensor | None = None
    """(E, C, len(OUTPUTS)) fp32: of the whole frames the crop is from."""
    view: dict[str, Any] | None = None
    """How its clips were cut (`clip_views.View` and a seed); None: native crops of
    consecutive frames."""

    @property
    def scores(self) -> Tensor:
        """(E,) fp32, 0..100: the label of each whole encode."""
        return torch.tensor([encode["score"] for encode in self.encodes])


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
        shard = Shard(
            path.stem,
            about["scene"]["content"],
            about["label"],
            about["encodes"],
            view=about["scene"].get("view"),
            **load_file(path),
        )
    except (SafetensorError, TypeError, KeyError) as error:
        raise InputError(f"{path} is not a shard of a labelled set: {error}") from error
    if about.get("outputs") != list(OUTPUTS) or not _fits(shard):
        raise InputError(
            f"{path}: arrays and header do not fit each other; make it anew with `vqaloop corpus`"
        )
    return shard


def _fits(shard: Shard) -> bool:
    """Whether arrays and rows have the shapes and types of `Shard`."""
    clips, rows = shard.distorted, shard.encodes
    if not isinstance(shard.content, str) or not isinstance(shard.label, str):
        return False
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return False
    scores = [row.get("score") for row in rows]
    # bounds rather than isfinite, which fails on the largest integers
    if not all(isinstance(s, int | float) and -1e9 < s < 1e9 for s in scores):
        return False
    if clips.dtype != torch.uint8 or clips.ndim != 5 or 0 in clips.shape:
        return False
    if len(clips) != len(rows) or clips.shape[-2] * 2 != clips.shape[-1] * 3:
        return False
    source = shard.reference
    if source is not None and (source.dtype, source.shape) != (torch.uint8, clips.shape[1:]):
        return False
    labels = [x for x in (shard.crop_labels, shard.frame_labels) if x is not None]
    return len(labels) != 1 and all(
        (x.dtype, x.shape) == (torch.float32, (*clips.shape[:2], len(OUTPUTS)))
        and bool(x.isfinite().all())
        for x in labels
    )


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
) -> None:
    """Write a shard, whole or not at all.

    Args:
        path: Of the safetensors file.
        arrays: `distorted` and what else there is of `reference`, `crop_labels` and
            `frame_labels`; shapes and types as in `Shard`.
        scene: Metadata of the scene; `content` is its title, `view` how clips were cut.
        encodes: One row an encode, see `Shard.encodes`.
        label: What the scores are, see `Shard.label`.
    """
    about = {"scene": scene, "encodes": encodes, "label": label, "outputs": OUTPUTS}
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with renamed_to(path) as part:
        part.write_bytes(save(whole, {key: json.dumps(value) for key, value in about.items()}))


def read_about(path: Path) -> dict[str, Any]:
    """A shard's header: `scene`, `encodes`, `label`, `outputs`. Raises InputError."""
    try:
        check_regular(path)
        with safe_open(path, "np") as file:
            about = {key: json.loads(text) for key, text in file.metadata().items()}
        check_depth(about)
        return about
    except (OSError, SafetensorError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is not a shard of a labelled set: {error}") from error
