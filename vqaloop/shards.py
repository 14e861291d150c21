"""A corpus on disk: one safetensors file a scene, with crops, labels and where they are from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from safetensors.torch import load_file
from torch import Tensor

from vqaloop.errors import InputError
from vqaloop.models.student import OUTPUTS


@dataclass(frozen=True)
class Shard:
    """One scene in memory; shapes with C crops, E encodes, T frames of a clip, S its size."""

    name: str
    content: str
    encodes: list[dict[str, Any]]
    reference: Tensor
    """(C, T, S·3/2, S) uint8."""
    distorted: Tensor
    """(E, C, T, S·3/2, S) uint8."""
    crop_labels: Tensor
    """(E, C, len(OUTPUTS)) fp32: of the very crop."""
    frame_labels: Tensor
    """(E, C, len(OUTPUTS)) fp32: of the whole frames the crop is from."""


def load_corpus(folders: Sequence[str | Path]) -> list[Shard]:
    """All shards of some folders. Raises InputError when there are none."""
    shards = []
    for path in sorted(p for folder in folders for p in Path(folder).glob("*.safetensors")):
        about = read_about(path)
        try:
            tensors = load_file(path)
            shards.append(Shard(path.stem, about["scene"]["content"], about["encodes"], **tensors))
        except (SafetensorError, TypeError, KeyError) as error:
            raise InputError(f"{path} is not a shard of a corpus: {error}") from error
    if not shards:
        raise InputError(
            f"no corpus in {', '.join(map(str, folders))}; make one with `vqaloop corpus`"
        )
    return shards


def write_shard(
    path: Path,
    arrays: Mapping[str, npt.NDArray[Any]],
    scene: dict[str, Any],
    encodes: list[dict[str, Any]],
) -> None:
    """Write the arrays of a `Shard` under `path`, whole or not at all."""
    about = {"scene": scene, "encodes": encodes, "labels": OUTPUTS}
    part = path.with_suffix(".part")
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    part.write_bytes(save(whole, {key: json.dumps(value) for key, value in about.items()}))
    part.rename(path)


def read_about(path: Path) -> dict[str, Any]:
    """What a shard says of itself: `scene`, `encodes`, `labels`. Raises InputError."""
    try:
        with safe_open(path, "np") as file:
            return {key: json.loads(text) for key, text in file.metadata().items()}
    except (OSError, SafetensorError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is not a shard of a corpus: {error}") from error
