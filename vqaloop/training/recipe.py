"""Training recipes: hyperparameters, losses and data as a TOML, checked."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from vqaloop.core.documents import of_toml, toml_values
from vqaloop.core.resources import data_folder
from vqaloop.errors import InputError
from vqaloop.models import CONFIGS, MODELS
from vqaloop.models.head_config import HeadConfig
from vqaloop.models.style_prompt import MOST_BASIC
from vqaloop.training.targets import FUSED, MEMBERS, PANEL, POINTS, SPANS

FREEZE = ("paper", "as_released", "all")
AUGMENT = ("none", "mirror", "turns", "colour")
TAUGHT = ("teacher", "feature", "levels", "answers", "preferences")
"""Losses that need a teacher."""

Weight = Annotated[float, Meta(ge=0, lt=1e6)]
Ratio = Annotated[float, Meta(ge=0, le=1)]
Below1 = Annotated[float, Meta(ge=0, lt=1)]
Count = Annotated[int, Meta(ge=1)]
Part = Annotated[int, Meta(ge=0, le=1024)]


@dataclass(frozen=True)
class Losses:
    """Weights of the parts of the loss; a part of weight 0 is not computed. All are fp32.

    With E encodes of a region (several crops pooled; of opinion scores, one crop), labels y in
    0..1 and scores s:
    """

    region: Weight = 0.0
    """MSE of anchored s against the label of the region."""
    pooled: Weight = 0.0
    """MSE of the mean of anchored s over the regions of an encode, of different places, against
    the mean label of their whole frames."""
    ordered: Weight = 0.0
    """MSE of anchored s - mean s against y - mean y over the encodes of a region."""
    auxiliary: Weight = 0.0
    """MSE of the auxiliary outputs, both heads and both poolings, where they were measured."""
    alone: Weight = 0.0
    """MSE of no-reference s against the label, the paper's MSE(student, y)."""
    alone_pooled: Weight = 0.0
    """The same of the mean over the regions of an encode, see `pooled`."""
    pairs: Weight = 0.0
    """Cross-entropy of the order of two regions by s, over all of a step whose labels clearly
    differ, as RankDVQA (arXiv 2202.08595)."""
    fidelity: Weight = 0.0
    """Fidelity loss (Tsai et al. 2007) between preferences by s and by y, over all pairs."""
    coarse: Weight = 0.0
    """Group contrastive loss of pooled features between classes of bitrate, the coarse half of the
    strategy of arXiv 2401.08522; see `losses.group_contrast`."""
    fine: Weight = 0.0
    """Rank loss between regions of one class of bitrate, its fine half; see
    `losses.class_rank_loss`."""
    dense: Weight = 0.0
    """MSE of the no-reference head's values of each token against the anchored head's, weighted as
    that head weighs them and not trained by this: a target for each token."""
    fdim: Weight = 0.0
    """SmoothL1 between a projection of what is pooled of a region and the features of FDIM."""
    teacher: Weight = 0.0
    """MSE of the teacher's no-reference s, the paper's MSE(teacher, y)."""
    feature: Weight = 0.0
    """The paper's SmoothL1 (beta 2) between 768-wide features after LayerNorm without weights."""
    levels: Weight = 0.0
    """MSE between the heads' input tokens of student and teacher, at each tap: multi-level
    distillation, as in RankDVQA-mini (arXiv 2312.08864)."""
    answers: Weight = 0.0
    """MSE between the answers of student and teacher on a region, both heads."""
    preferences: Weight = 0.0
    """The three losses of RankDVQA-mini (arXiv 2312.08864) between preferences of student and
    teacher, both heads."""


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
class Prompt:
    """A prompt of the student in `Recipe.start`, which is trained in the place of its weights."""

    basic: Annotated[int, Meta(ge=1, le=MOST_BASIC)] = 1
    """Prompts of a place, which what is seen there weighs; 1: one, whatever is seen."""


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
    prompt: Prompt | None = None
    """Train a style prompt alone; None: the student."""
    labelled: Annotated[int, Meta(ge=0, le=10**9)] = 0
    """Encodes trained on, drawn by `seed`, few of a scene; 0: all. To see what few labels are
    worth."""
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
    label: str = "v1"
    """What regions are labelled by: a name of `targets.POINTS`, or "panel" for the fused label of
    `panel`. Of no meaning for opinion scores, which are their own label."""
    panel: tuple[str, ...] = PANEL
    """Metrics that lower a fused label where they see damage that VMAF v1 does not."""
    auxiliary: tuple[str, ...] = ()
    """Measured labels that the heads answer besides, see `Losses.auxiliary`."""
    heads: HeadConfig | None = None
    """What the heads take in besides; None: the first generation's, or those of `start`. Its
    outputs are `label` and `auxiliary`."""
    scenes: Count = 3
    regions: Count = 2
    """Regions of each scene, at different places where there are as many."""
    crops: Count = 4
    """Crops of each scene of opinion scores, which has no regions."""
    encodes: Count = 4
    attacks: Ratio = 0.25
    """Chance of each encode drawn to be one damaged beyond compression, where there are any."""


def head_config(recipe: Recipe, opinions: bool = False) -> HeadConfig:
    """The heads of a new student, whose outputs are the label and the auxiliary ones."""
    outputs = ("score",) if opinions else (recipe.label, *recipe.auxiliary)
    return replace(recipe.heads or HeadConfig(), outputs=outputs)


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
        ("label", recipe.label, (FUSED, *POINTS)),
        *(("panel", name, MEMBERS) for name in recipe.panel),
        *(("auxiliary", name, tuple(SPANS)) for name in recipe.auxiliary),
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
    if recipe.labelled and recipe.teacher is not None and recipe.teacher.corpus:
        raise InputError(f"{where}labelled does not go with teacher.corpus; leave one out")
    if recipe.prompt is not None and not recipe.start:
        raise InputError(f"{where}[prompt] is of a student; name its weights in `start`")
    if recipe.prompt is not None and recipe.heads is not None:
        raise InputError(
            f"{where}[prompt] leaves the student and its heads as they are; leave out [heads]"
        )
    loss = recipe.loss
    needing = [name for name in TAUGHT if getattr(loss, name)]
    if recipe.teacher is None and needing:
        raise InputError(f"{where}losses that need a [teacher]: {', '.join(needing)}; give one")
    for key, names in (("panel", recipe.panel), ("auxiliary", recipe.auxiliary)):
        if len(set(names)) < len(names) or (recipe.label in names):
            raise InputError(f"{where}{key} names a label twice, or that of `label`: {names}")
    if recipe.label == FUSED and not recipe.panel:
        raise InputError(f'{where}panel is empty; name its members, or take label = "v1"')
    if recipe.heads is not None and recipe.heads.outputs != HeadConfig().outputs:
        raise InputError(f"{where}heads.outputs are `label` and `auxiliary`; leave it out")
    if loss.auxiliary and not recipe.auxiliary:
        raise InputError(f"{where}loss auxiliary has no outputs; name them in `auxiliary`")
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
