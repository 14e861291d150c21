"""Training recipes: hyperparameters, losses and data as a TOML, checked."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from vqaloop.errors import InputError
from vqaloop.models import MODELS
from vqaloop.shape import read_toml

T = TypeVar("T")

FREEZE = ("paper", "as_released", "all")
AUGMENT = ("none", "mirror", "turns", "colour")


@dataclass(frozen=True)
class Losses:
    """Weights of the parts of the loss; a part of weight 0 is not computed. All are fp32.

    With E encodes of a crop, labels y in 0..1 and scores s:
    """

    crop: float = 0.0
    """MSE of anchored s against the label of the very crop."""
    pooled: float = 0.0
    """MSE of anchored s of the crops of an encode, pooled, against the label of their frames."""
    ordered: float = 0.0
    """MSE of anchored s - mean s against y - mean y over the encodes of a crop."""
    features: float = 0.0
    """MSE of VMAF's elementary features, both heads and both poolings."""
    alone: float = 0.0
    """MSE of no-reference s against the label, the paper's MSE(student, y)."""
    alone_pooled: float = 0.0
    """The same of the crops of an encode, pooled."""
    rank: float = 0.0
    """Logistic loss on pairs of encodes of a crop, the fine step of arXiv 2401.08522."""
    teacher: float = 0.0
    """MSE of the teacher's no-reference s, the paper's MSE(teacher, y)."""
    feature: float = 0.0
    """The paper's SmoothL1 (beta 2) between 768-wide features after LayerNorm without weights."""
    levels: float = 0.0
    """MSE between the tokens that the heads of student and teacher see, at each tap: multi-level
    distillation, as in RankDVQA-mini (arXiv 2312.08864)."""
    answers: float = 0.0
    """MSE between the answers of student and teacher, both heads."""


@dataclass(frozen=True)
class Teacher:
    """The larger model a student learns from."""

    model: str
    weights: str = ""
    """A student of ours or a released checkpoint; empty: first values, for tests."""
    freeze: str = "all"
    """paper: last block and head train; as_released: and all that is not in a block; all: none."""
    corpus: tuple[str, ...] = ()
    """The same scenes in another view, when the teacher looks at them otherwise."""


@dataclass(frozen=True)
class Recipe:
    """A training recipe; see the comments in recipes/*/recipe.toml."""

    model: str
    corpus: tuple[str, ...]
    out: str
    steps: int
    learning_rate: float
    loss: Losses
    held_out: tuple[str, ...] = ()
    """Folders of titles held out; or, if empty, by `split`."""
    split: str = ""
    """authors, or "fold 2/5": which titles of `corpus` are held out."""
    teacher: Teacher | None = None
    start: str = ""
    """Weights to begin with: a released checkpoint, or a larger student, which is pruned."""
    engine: str = ""
    """DeepSpeed's own JSON, beside the recipe; empty: ZeRO-1 in fp32."""
    seed: int = 0
    accumulate: int = 1
    """Batches a step."""
    layer_decay: float = 1.0
    """Learning rate of a block against that of the next deeper one."""
    warm_up: int = 0
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    average: float = 0.998
    """Decay of the running mean of weights, which is what is kept."""
    fixed_embedding: bool = False
    """Leave the patch embedding as it begins. Trained, it drifts from an orthogonal transform, and
    the energies the heads read lose their meaning."""
    augment: str = "turns"
    scenes: int = 3
    crops: int = 4
    encodes: int = 4


def bundled_recipes() -> dict[str, Path]:
    """Recipes that come with vqaloop by name: `waterloo-small`, `internvqa-mini/distilled`."""
    inside = Path(__file__).resolve().parent / "recipes"
    folder = inside if inside.is_dir() else inside.parent.parent / "recipes"
    return {
        path.relative_to(folder).with_suffix("").as_posix().removesuffix("/recipe"): path
        for path in sorted(folder.glob("*/*.toml"))
    }


def read_recipe(path: Path) -> Recipe:
    """A recipe from its TOML, from the recipe.toml of a folder, or a bundled one by its name.

    Raises InputError naming the key that is missing or unknown.
    """
    bundled = bundled_recipes()
    if not path.exists() and path.suffix != ".toml":
        if str(path) not in bundled:
            raise InputError(
                f"no recipe {str(path)!r}; give a TOML, or one of {', '.join(bundled)}"
            )
        path = bundled[str(path)]
    elif path.is_dir():
        path = path / "recipe.toml"
    recipe = _table(Recipe, read_toml(path, f"recipe {path}"), f"recipe {path}: ")
    if recipe.engine:
        # beside the recipe, wherever that is
        recipe = Recipe(**{**vars(recipe), "engine": str(path.parent / recipe.engine)})
    _check(recipe, f"recipe {path}: ")
    return recipe


def _table(kind: type[T], data: Mapping[str, Any], where: str) -> T:
    """`data` as that dataclass, every key known and of its type."""
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    needed = {
        name
        for name, field in known.items()
        if field.default is MISSING and field.default_factory is MISSING
    }
    wrong = sorted((data.keys() - known.keys()) | (needed - data.keys()))
    if wrong:
        raise InputError(f"{where}missing or unknown: {', '.join(wrong)}")
    return kind(**{key: _value(known[key].type, data[key], f"{where}{key}") for key in data})


def _value(kind: Any, value: Any, where: str) -> Any:
    if kind in (Losses, Teacher | None):
        if not isinstance(value, dict):
            raise InputError(f"{where} must be a table, not {value!r}")
        return _table(Losses if kind is Losses else Teacher, value, f"{where}: ")
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        if not (isinstance(value, list) and all(isinstance(v, item) for v in value)):
            raise InputError(f"{where} must be a list of folders, not {value!r}")
        return tuple(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise InputError(f"{where} must be a {kind.__name__}, not {value!r}")
    return value


def _check(recipe: Recipe, where: str) -> None:
    for key in ("steps", "accumulate", "scenes", "crops", "encodes"):
        if getattr(recipe, key) < 1:
            raise InputError(f"{where}{key} must be at least 1, not {getattr(recipe, key)}")
    spans = {
        "learning_rate": (0, 10),
        "layer_decay": (0, 1),
        "average": (0, 1),
        "clip_norm": (0, 1e9),
        "seed": (0, 2**32 - 1),
        "warm_up": (0, 1e9),
        "weight_decay": (0, 1e6),
    }
    for key, (low, high) in spans.items():
        if not low <= getattr(recipe, key) <= high:
            raise InputError(f"{where}{key} must be {low} to {high}, not {getattr(recipe, key)}")
    for key, weight in vars(recipe.loss).items():
        if not 0 <= weight < 1e6:
            raise InputError(f"{where}loss: {key} must be 0 or more and below 1e6, not {weight}")
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
