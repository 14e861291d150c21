"""Loads public checkpoints of InternVideo2 and FAST-VQA into this package's models.

Files are .safetensors, or .bin, .pth and .pt written by `torch.save`; of the latter only tensors
and plain values are read, never code. Training scripts wrap the weights in various ways; what
they add (prefixes, decoders of pretraining, class heads) is removed or left out, and reported in
`Loaded`.
"""

import argparse
import math
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vqaloop.errors import InputError
from vqaloop.models.backbone import Backbone
from vqaloop.models.fastvqa import FastVQA, WindowAttention, position_index
from vqaloop.models.internvideo2 import Config, InternVideo2, interpolate_positions

WRAPPERS = ("model", "module", "state_dict")
"""Keys under which training scripts put the weights: IV2's own, DeepSpeed, OpenMMLab's."""
PREFIXES = ("module.", "backbone.", "encoder.", "vision_encoder.")
PRETRAINING = (
    "clip_decoder.",
    "final_clip_decoder.",
    "clip_pos_embed",
    "img_pos_embed",
    "clip_img_pos_embed",
)
"""Modules used only in pretraining (distillation and stage 2), beside the transformer."""
STUDENT_HEADS = ("anchored.", "alone.")
"""Modules of this package's students beside their backbone."""
SEPARATE = ("pos_embed_spatial", "pos_embed_temporal", "pos_embed_cls")
RELEASED_GRID, RELEASED_FRAMES = 16, (4, 8, 16)
"""Position tables of the released files: 224 pixels in patches of 14, and these frame counts."""
MAX_TOKENS = 1 << 17
"""Positions a table may have, 128 frames of 448 x 448; more is damage."""
INDEX = "relative_position_index"
RELATIVE, FRAGMENT = "relative_position_bias_table", "fragment_position_bias_table"

_scalar = np.float64(0).__reduce__()[0]
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8")),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
"""Types of options and numbers that old training scripts save beside the weights; none can run
code."""


@dataclass(frozen=True)
class Loaded:
    """How a checkpoint was loaded."""

    ignored: tuple[str, ...]
    """Keys of the file that the model has no place for."""
    first_values: tuple[str, ...]
    """Keys of the model that the file lacks, or has for other classes: left as they were."""
    head_dropped: bool
    """The file's head had another number of outputs."""
    interpolated: bool
    """The position table was made for other frame counts or sizes."""
    fragments_from_relative: bool
    """The file had no fragment tables; they began as copies of the relative ones."""


def load_released(
    model: Backbone, path: str | os.PathLike[str], frames: int | None = None
) -> Loaded:
    """Load the weights of a released checkpoint, or of a student's file, into `model`.

    Args:
        model: Its weights are overwritten, in its dtype. One created under `torch.device("meta")`
            becomes real, on the CPU.
        path: .safetensors, .bin, .pth or .pt.
        frames: Clip length in frames that a joint position table of unusual size is for.

    Returns:
        Which keys were left out, kept their initial values, or were converted.

    Raises:
        InputError: The file cannot be read, holds code, or does not fit; or nothing is released of
            the model's family. `model` is unchanged.
    """
    path = Path(path)
    if not isinstance(model, InternVideo2 | FastVQA):
        raise InputError(
            f"{path} is no student's file, and of {type(model).__name__} no weights are published "
            "that could be read; train one from nothing"
        )
    tensors = read_tensors(path)
    if isinstance(model, InternVideo2):
        named, ignored = _internvideo2_names(tensors, path)
        interpolated = _fit_positions(named, model.config, frames, path)
        optional, outputs = ["fc_norm", "head"], model.config.outputs
        copied = False
    else:
        named, ignored = _fastvqa_names(tensors, path)
        interpolated, optional, outputs = False, ["vqa_head"], 1
        copied = _fit_biases(named, model, path)
    weight = named.get("head.weight")
    dropped = weight is not None and weight.ndim == 2 and len(weight) != outputs
    if dropped:
        ignored += [
            key for key in ("head.weight", "head.bias") if named.pop(key, None) is not None
        ]
    dropped = dropped or any(key.startswith("cls_head.") for key in ignored)
    expected = {k: v for k, v in model.state_dict().items() if not k.endswith(INDEX)}
    absent = [part for part in optional if not any(key.startswith(f"{part}.") for key in named)]
    first = tuple(key for key in expected if key.split(".")[0] in absent)
    _check(named, expected, first, path)
    _fill(model, named, first)
    return Loaded(tuple(ignored), first, dropped, interpolated, copied)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The weights in a file by name, unwrapped, on the CPU; large files are mapped, not read.

    Raises InputError when the file cannot be read, holds code, or holds no weights.
    """
    shown = repr(os.fspath(path))
    if not path.is_file():
        raise InputError(f"checkpoint {shown} is not there or not a file")
    data: object
    if path.suffix == ".safetensors":
        try:
            data = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"checkpoint {shown} cannot be read: {error}") from error
    elif path.suffix in (".bin", ".pth", ".pt"):
        data = _unpickled(path, shown)
    else:
        raise InputError(f"checkpoint {shown}: only .safetensors, .bin, .pth and .pt are read")
    if isinstance(data, dict):
        inner = (data[key] for key in WRAPPERS if isinstance(data.get(key), dict))
        data = next(inner, data)
    if not isinstance(data, dict):
        raise InputError(f"checkpoint {shown} holds a {type(data).__name__}, not named weights")
    tensors = {k: v for k, v in data.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors:
        raise InputError(f"checkpoint {shown} holds no weights")
    return tensors


def _unpickled(path: Path, shown: str) -> object:
    try:
        mapped = zipfile.is_zipfile(path)
        if mapped:
            with zipfile.ZipFile(path) as archive:
                if sum(i.file_size for i in archive.infolist()) > path.stat().st_size:
                    raise ValueError("it is compressed, which torch.save never does")
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a reader of damaged pickles can raise anything
        code = re.search(r"(?:GLOBAL|global|class|function)[: ]+(?:GLOBAL )?(\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and "nsupported" in str(error) and code:
            raise InputError(
                f"checkpoint {shown} is a pickle that calls code ({code[1]}) and was not loaded; "
                "save its state_dict alone, or as .safetensors"
            ) from error
        why = str(error).strip().split("\n")[0] or type(error).__name__
        raise InputError(f"checkpoint {shown} is damaged or no checkpoint: {why}") from error


def _internvideo2_names(
    tensors: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], list[str]]:
    """Keys without prefixes, and the keys left out."""
    stage2 = any("vision_encoder." in key for key in tensors)  # with a text encoder beside
    named: dict[str, Tensor] = {}
    ignored = []
    for key, value in tensors.items():
        name = key
        while name.startswith(PREFIXES):
            name = name.split(".", 1)[1]
        beside = stage2 and "vision_encoder." not in key
        if beside or name.startswith(PRETRAINING + STUDENT_HEADS):
            ignored.append(key)
        else:
            _put(named, name, value, path)
    return named, ignored


def _fastvqa_names(
    tensors: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], list[str]]:
    """Keys as FAST-VQA has them, also from a Video Swin file, and the keys left out."""
    named: dict[str, Tensor] = {}
    ignored = []
    for key, value in tensors.items():
        name = key.removeprefix("module.")
        if name.startswith("cls_head."):
            ignored.append(name)
            continue
        name = name.removeprefix("backbone.")
        if name.startswith(("patch_embed.", "layers.", "norm.")):
            name = f"fragments_backbone.{name}"
        _put(named, name, value, path)
    return named, ignored


def _put(named: dict[str, Tensor], name: str, value: Tensor, path: Path) -> None:
    if name in named:
        raise InputError(f"checkpoint {os.fspath(path)!r} has {name!r} twice, by two prefixes")
    named[name] = value


def _fit_positions(
    named: dict[str, Tensor], config: Config, frames: int | None, path: Path
) -> bool:
    """Make `named["pos_embed"]` the model's table, from parts or another size, where it can be.

    Returns whether it was interpolated; a table that makes no sense is left for the check.
    """
    own = (config.frames, config.grid)
    shape: tuple[int, int] | None = None
    if all(key in named for key in SEPARATE):
        # separate tables of space and time, as in pretraining: a joint one is their sum
        space, time, first = (named.pop(key) for key in SEPARATE)
        parts = (space, time, first)
        tokens = space.shape[1] * time.shape[1] if {p.ndim for p in parts} == {3} else MAX_TOKENS
        if {p.shape[-1] for p in parts} != {config.width} or tokens >= MAX_TOKENS:
            shapes = ", ".join(str(tuple(p.shape)) for p in parts)
            raise InputError(f"position tables of {os.fspath(path)!r} do not fit: {shapes}")
        shape = (time.shape[1], math.isqrt(space.shape[1]))
        rest = time.float().transpose(0, 1) + space.float()  # (T, h·w, D)
        named["pos_embed"] = torch.cat([first.float(), rest.flatten(0, 1)[None]], 1)
    table = named.get("pos_embed")
    if table is None or table.ndim != 3 or table.shape[0] != 1 or table.shape[2] != config.width:
        return False
    count = table.shape[1] - 1
    shape = shape or table_shape(count, config, frames)
    if shape is None or shape[0] * shape[1] ** 2 != count or not 0 < count < MAX_TOKENS:
        return False
    if shape == own:
        return False
    made_for = replace(config, frames=shape[0], size=shape[1] * config.patch)
    # in fp32, since bicubic interpolation of a half-precision table would round twice
    named["pos_embed"] = interpolate_positions(table.float(), made_for, own[0], own[1], own[1])
    return True


def table_shape(count: int, config: Config, frames: int | None = None) -> tuple[int, int] | None:
    """Frames and patches along a side of a table of `count` positions; None if none fits.

    With `frames` unknown: the model's own shape, then that of the released files, then the
    model's frames at another size, then its size with other frames.
    """
    guesses = [
        (config.frames, config.grid),
        *((n, RELEASED_GRID) for n in RELEASED_FRAMES),
        (config.frames, math.isqrt(count // config.frames)),
        (count // config.grid**2, config.grid),
    ]
    if frames is not None:
        guesses = [(frames, math.isqrt(count // frames))] if frames > 0 else []
    return next((guess for guess in guesses if guess[0] * guess[1] ** 2 == count > 0), None)


def _fit_biases(named: dict[str, Tensor], model: FastVQA, path: Path) -> bool:
    """Take out the index buffers, which must be ours; give absent fragment tables a start."""
    index = position_index(model.config.window).cpu()
    for key in [key for key in named if key.endswith(INDEX)]:
        if not torch.equal(named.pop(key), index):
            raise InputError(
                f"checkpoint {os.fspath(path)!r}: {key} is of other windows than this model's"
            )
    wanted = [key for key in model.state_dict() if key.endswith(FRAGMENT)]
    if any(key in named for key in wanted):
        return False
    # a Video Swin file has no fragment tables: alike tables leave the gate without effect
    for key in wanted:
        relative = key.removesuffix(FRAGMENT) + RELATIVE
        if relative in named:
            named[key] = named[relative]
    return True


def _check(
    named: Mapping[str, Tensor], expected: Mapping[str, Tensor], first: tuple[str, ...], path: Path
) -> None:
    """Raise InputError unless `named` is what the model takes, in finite numbers."""
    missing = [key for key in expected if key not in named and key not in first]
    unknown = [key for key in named if key not in expected]
    shapes = [
        f"{key} {tuple(value.shape)} instead of {tuple(expected[key].shape)}"
        for key, value in named.items()
        if key in expected and value.shape != expected[key].shape
    ]
    faults = [
        f"{len(keys)} {what}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"
        for what, keys in (("missing", missing), ("unknown", unknown), ("of other shape", shapes))
        if keys
    ]
    if faults:
        raise InputError(
            f"checkpoint {os.fspath(path)!r} does not fit this model: {'; '.join(faults)}; "
            "is it of another member of the family?"
        )
    for key, value in named.items():
        dense = value.layout is torch.strided and value.is_floating_point()
        if not dense or not torch.isfinite(value).all():
            raise InputError(f"checkpoint {os.fspath(path)!r}: {key} holds no finite numbers")


def _fill(
    model: InternVideo2 | FastVQA, named: Mapping[str, Tensor], first: tuple[str, ...]
) -> None:
    """Copy the values; parameters on the meta device become real ones on the CPU."""
    if any(model.get_parameter(key).is_meta for key in first):
        # before anything is copied, since it also resets what the file may have
        for key in first:
            owner, _, leaf = key.rpartition(".")
            empty = torch.empty_like(model.get_parameter(key), device="cpu")
            setattr(model.get_submodule(owner), leaf, nn.Parameter(empty))
        model.reset_head()
    for key, value in named.items():
        parameter = model.get_parameter(key)
        if parameter.is_meta:
            owner, _, leaf = key.rpartition(".")
            real = value.to(parameter.dtype, copy=True)
            setattr(model.get_submodule(owner), leaf, nn.Parameter(real, parameter.requires_grad))
        else:
            with torch.no_grad():
                parameter.copy_(value)
    for module in model.modules():
        if isinstance(module, WindowAttention) and module.relative_position_index.is_meta:
            module.relative_position_index = position_index(module.window)
