"""Training recipes: hyperparameters, losses and data as a TOML, checked."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from vqaloop.core.documents import of_toml, toml_values
from vqaloop.core.resources import data_folder
from vqaloop.errors import InputError
from vqaloop.models import CONFIGS, MODELS

FREEZE = ("paper", "as_released", "all")
AUGMENT = ("none", "mirror", "turns", "colour")

Weight = Annotated[float, Meta(ge=0, lt=1e6)]
Ratio = Annotated[float, Meta(ge=0, le=1)]
Below1 = Annotated[float, Meta(ge=0, lt=1)]
Count = Annotated[int, Meta(ge=1)]
Part = Annotated[int, Meta(ge=0, le=1024)]


@dataclass(frozen=True)
class Losses:
    """Weights of the parts of the loss; a part of weight 0 is not computed. All are fp32.

    With E encodes of a crop, labels y in 0..1 and scores s:
    """

    crop: Weight = 0.0
    """MSE of anchored s against the label of the crop."""
    pooled: Weight = 0.0
    """MSE of anchored s of the crops of an encode, pooled, against the label of their frames."""
    ordered: Weight = 0.0
    """MSE of anchored s - mean s against y - mean y over the encodes of a crop."""
    features: Weight = 0.0
    """MSE of VMAF's elementary features, both heads and both poolings."""
    alone: Weight = 0.0
    """MSE of no-reference s against the label, the paper's MSE(student, y)."""
    alone_pooled: Weight = 0.0
    """The same of the crops of an encode, pooled."""
    rank: Weight = 0.0
    """Logistic loss on pairs of encodes of a crop, the fine step of arXiv 2401.08522."""
    teacher: Weight = 0.0
    """MSE of the teacher's no-reference s, the paper's MSE(teacher, y)."""
    feature: Weight = 0.0
    """The paper's SmoothL1 (beta 2) between 768-wide features after LayerNorm without weights."""
    levels: Weight = 0.0
    """MSE between the heads' input tokens of student and teacher, at each tap: multi-level
    distillation, as in RankDVQA-mini (arXiv 2312.08864)."""
    answers: Weight = 0.0
    """MSE between the answers of student and teacher, both heads."""


@dataclass(frozen=True)
class Teacher:
    """The larger model a student learns from."""

    model: str
    weights: str = ""
    """A student of ours or a released checkpoint; empty: initial values, for tests."""
    freeze: str = "all"
    """paper: last block and head train; as_released: and all that is not in a block; all: none."""
    corpus: tuple[str, ...] = ()
    """The same scenes in the teacher's view, where that is another."""
    frames: Part = 0
    """As `Recipe.frames`, of that corpus."""
    crop: Part = 0
    """As `Recipe.crop`, of that corpus."""
    drop_path: Below1 = 0.0
    """As `Recipe.drop_path`."""
    recompute: bool = False
    """As `Recipe.recompute`."""


@dataclass(frozen=True)
class Recipe:
    """A training recipe; see the comments in recipes/*/recipe.toml."""

    model: str
    corpus: tuple[str, ...]
    out: str
    steps: Count
    learning_rate: Annotated[float, Meta(ge=0, le=10)]
    """Of all that is in no block; per `rate_clips` clips a step where that is given."""
    loss: Losses
    held_out: tuple[str, ...] = ()
    """Folders of titles held out; or, if empty, by `split`."""
    split: str = ""
    """authors, or "fold 2/5": which titles of `corpus` are held out."""
    teacher: Teacher | None = None
    start: str = ""
    """Weights to begin with: a released checkpoint, a student's file or the name of a shipped
    student; a larger student is pruned."""
    engine: str = ""
    """DeepSpeed's own JSON, beside the recipe; empty: ZeRO-1 in fp32."""
    seed: Annotated[int, Meta(ge=0, lt=2**32)] = 0
    accumulate: Count = 1
    """Batches a step."""
    rate_clips: Annotated[int, Meta(ge=0, le=10**9)] = 0
    """Clips a step that `learning_rate` is for: the rate of a run is `learning_rate` times the
    clips of all processes in a step, over this; 0: the rate as it is. InternVideo2 has 256."""
    betas: tuple[Below1, Below1] = (0.9, 0.99)
    """Of AdamW; InternVideo2 has 0.9 and 0.999."""
    drop_path: Below1 = 0.0
    """Largest share of clips for which a branch of a block is left out in training, rising
    linearly from 0 at the first block (stochastic depth, arXiv 1603.09382)."""
    recompute: bool = False
    """Keep no activations inside blocks and compute them again for the gradient: a third more
    time, for a fraction of the memory."""
    layer_decay: Ratio = 1.0
    """Learning rate of a block as a factor of that of the next deeper one."""
    warm_up: Annotated[int, Meta(ge=0, le=10**9)] = 0
    weight_decay: Annotated[float, Meta(ge=0, le=1e6)] = 0.05
    clip_norm: Annotated[float, Meta(ge=0, le=1e9)] = 1.0
    average: Ratio = 0.998
    """Decay of the exponential moving average of the weights, which is the result."""
    fixed_embedding: bool = False
    """Do not train the patch embedding: it would drift from an orthogonal transform, and its
    coefficients would no longer be energies, which the heads take."""
    frames: Part = 0
    """Frames of a clip, a window drawn anew each time from the clips of the corpus, which are
    longer; 0: the clips as they are."""
    crop: Part = 0
    """Pixels a side of a clip, a window drawn likewise; 0: the clips as they are. For opinion
    scores alone: a label of a stored crop is not one of its parts."""
    augment: str = "turns"
    scenes: Count = 3
    crops: Count = 4
    encodes: Count = 4


def bundled_recipes() -> dict[str, Path]:
    """Recipes that come with vqaloop by name: `waterloo-small`, `internvqa-mini/distilled`."""
    folder = data_folder("recipes")
    return {
        path.relative_to(folder).with_suffix("").as_posix().removesuffix("/recipe"): path
        for path in sorted(folder.glob("*/*.toml"))
    }


def read_recipe(path: Path) -> Recipe:
    """A recipe from its TOML, from the recipe.toml of a folder, or a bundled one by its name.

    A recipe may begin with `extends = "../other/recipe.toml"`, or the name of a bundled one, whose
    keys it then takes over but for those that it gives itself. Raises InputError naming the key
    that is missing, unknown or wrong.
    """
    path = _found(path, str(path))
    recipe = of_toml(_values(path), Recipe, f"recipe {path}")
    _check(recipe, f"recipe {path}: ")
    return recipe


def _found(path: Path, name: str) -> Path:
    """The TOML of a recipe given as such, as its folder, or by the name of a bundled one."""
    if path.is_dir():
        return path / "recipe.toml"
    if path.exists() or path.suffix == ".toml":
        return path
    bundled = bundled_recipes()
    if name not in bundled:
        raise InputError(f"no recipe {name!r}; give a TOML, or one of {', '.join(bundled)}")
    return bundled[name]


def _values(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe's table on top of those that it `extends`; `above` are the files that lead here.

    Raises InputError for a file that cannot be read, and for one that extends itself.
    """
    name = f"recipe {path}"
    if path.resolve() in above:
        raise InputError(f"{name} extends itself by way of {above[-1]}; break the circle")
    values = toml_values(path, name)
    base = values.pop("extends", "")
    if not isinstance(base, str):
        raise InputError(f"{name}: extends should be text, a recipe's name or path")
    if isinstance(values.get("engine"), str) and values["engine"]:
        # beside the recipe that names it, wherever that is
        values["engine"] = os.path.normpath(path.parent / values["engine"])
    if not base:
        return values
    below = _values(_found(path.parent / base, base), (*above, path.resolve()))
    for key, value in values.items():
        # tables are merged key by key, all else is replaced
        both = isinstance(value, dict) and isinstance(below.get(key), dict)
        below[key] = {**below[key], **value} if both else value
    return below


def _check(recipe: Recipe, where: str) -> None:
    """Raises InputError for fields that do not go together."""
    choices: list[tuple[str, str, tuple[str, ...]]] = [
        ("model", recipe.model, MODELS),
        ("augment", recipe.augment, AUGMENT),
    ]
    if recipe.teacher is not None:
        choices += [
            ("teacher.model", recipe.teacher.model, MODELS),
            ("teacher.freeze", recipe.teacher.freeze, FREEZE),
        ]
    for key, value, known in choices:
        if value not in known:
            raise InputError(f"{where}{key} is one of {', '.join(known)}, not {value!r}")
    if bool(recipe.held_out) == bool(recipe.split):
        raise InputError(f"{where}give either held_out (folders) or split (authors, fold 1/5)")
    networks = [("", recipe.model, recipe.recompute)]
    if recipe.teacher is not None:
        taught = recipe.teacher
        networks.append(("teacher.", taught.model, taught.recompute))
        if taught.frames + taught.crop and not taught.corpus:
            raise InputError(
                f"{where}teacher.frames and teacher.crop are of teacher.corpus, which is not "
                "given; without it the teacher sees the student's clips"
            )
    for prefix, model, recompute in networks:
        if recompute and model not in CONFIGS:
            raise InputError(
                f"{where}{prefix}recompute is for the internvqa models, not for {model}"
            )
    loss = recipe.loss
    if recipe.teacher is None and any((loss.teacher, loss.feature, loss.levels, loss.answers)):
        raise InputError(f"{where}losses teacher, feature, levels and answers need a [teacher]")
    if not any(vars(loss).values()):
        raise InputError(f"{where}[loss] gives no part a weight")
    if recipe.teacher is not None and loss.teacher and recipe.teacher.freeze == "all":
        raise InputError(
            f'{where}loss teacher trains the teacher, of which freeze = "all" leaves nothing to '
            'train; set freeze = "paper", or leave the loss out'
        )
    if recipe.teacher is not None and loss.levels and recipe.teacher.corpus:
        raise InputError(
            f"{where}loss levels compares token by token, which another view has none of; leave "
            "out levels or teacher.corpus"
        )
