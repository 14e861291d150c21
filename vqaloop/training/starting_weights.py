"""Student and teacher before the first step: new, from a checkpoint, or from a student."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from vqaloop.core.files import check_regular
from vqaloop.core.resources import WEIGHTS
from vqaloop.errors import InputError
from vqaloop.models import create_student
from vqaloop.models.checkpoints import load_released
from vqaloop.models.head_config import HeadConfig
from vqaloop.models.prune import prune
from vqaloop.models.stream_facts import COLUMNS
from vqaloop.models.student import Student, start_from_cosines
from vqaloop.models.style_prompt import attach
from vqaloop.models.weights import load_student
from vqaloop.training.recipe import Recipe, Teacher, head_config
from vqaloop.training.shards import trained_titles
from vqaloop.training.step import freeze

BITS_LAYER = "alone.fuse.0.weight"
"""The one parameter that is larger in heads which take facts of the bitstream."""


def initial_student(
    recipe: Recipe, apart: frozenset[str] = frozenset(), opinions: bool = False
) -> tuple[Student, frozenset[str]]:
    """The student before its first step: new, from a checkpoint, or pruned from a larger one.

    Args:
        recipe: Its model, losses (which decide whether it has token heads) and start.
        apart: Titles held out.
        opinions: It learns opinion scores, and no label of the recipe.

    Returns:
        The student, and the titles that its initial weights were trained on.

    Raises:
        InputError: The weights do not fit, or were trained on a title held out; or new heads
            would take what the corpus does not record.
    """
    loss = recipe.loss
    heads = any((loss.region, loss.pooled, loss.ordered, loss.auxiliary, loss.dense, loss.levels))
    config = head_config(recipe, opinions) if heads or recipe.heads is not None else None
    if opinions and config is not None and config.bits:
        raise InputError(
            "heads.bits takes the bitrates of encodes, which sets of opinion scores do not "
            "record; leave it out, or train on a set made by `vqaloop corpus`"
        )
    if not recipe.start:
        student = create_student(recipe.model, heads, config)
        if student.embedding is not None and heads:
            start_from_cosines(student.embedding)
        return student, frozenset()
    path = _weights_file(recipe.start)
    if recipe.prompt is not None and not _has_student_header(path):
        raise InputError(
            f"{recipe.start} are no weights of a student, and a prompt is of one; train one first"
        )
    if not _has_student_header(path):
        return _released(recipe.model, path, heads, config), frozenset()
    larger, about = load_student(path)
    if opinions and larger.config.bits and recipe.prompt is None:
        larger = _without_bits(larger, about["model"])
    if heads and larger.anchored is None:
        raise InputError(f"{recipe.start} has no anchored head, which the losses need")
    known = _trained_titles(path, about, apart)
    if recipe.heads is None and heads:
        config = larger.config
    if loss.auxiliary and larger.config.outputs[1:] != recipe.auxiliary:
        raise InputError(
            f"{recipe.start} has the auxiliary outputs {', '.join(larger.config.outputs[1:])}, "
            f"and the recipe {', '.join(recipe.auxiliary)}; name the same in the same order"
        )
    if recipe.prompt is not None:
        return _prompted(recipe, larger, about), known
    if about["model"] == recipe.model and (config is None or config == larger.config):
        return larger, known
    return prune(larger, create_student(recipe.model, heads, config)), known


def _prompted(recipe: Recipe, student: Student, about: dict[str, str]) -> Student:
    """The student of `start` with prompts, which alone are trained."""
    assert recipe.prompt is not None
    if about["model"] != recipe.model:
        raise InputError(
            f"{recipe.start} are weights of {about['model']}, and a prompt is of the student it "
            f'was trained on; set model = "{about["model"]}"'
        )
    attach(student, recipe.prompt.basic).of = about["sha256"]
    return student.train()


def _without_bits(student: Student, model: str) -> Student:
    """The student as it answers where nothing is known of the bitstream, and never asks."""
    config, values = replace(student.config, bits=False), student.state_dict()
    # the facts come last, and are zeros where they are not known
    values[BITS_LAYER] = values[BITS_LAYER][:, :-COLUMNS]
    without = create_student(model, config=config)
    without.load_state_dict(values)
    return without.eval()


def _released(
    model: str, path: Path, heads: bool = False, config: HeadConfig | None = None
) -> Student:
    """A student with the backbone of a released checkpoint."""
    # without heads nothing is filled twice: a meta tensor takes no memory and no random values
    with torch.device("cpu" if heads else "meta"):
        student = create_student(model, heads, config)
    load_released(student.backbone, path)
    return student


def _weights_file(name: str) -> Path:
    """A file, or that of a shipped student of this name."""
    path, shipped = Path(name), WEIGHTS / f"{name}.safetensors"
    return shipped if not path.exists() and shipped.is_file() else path


def initial_teacher(
    teacher: Teacher | None, apart: frozenset[str] = frozenset()
) -> tuple[Student | None, frozenset[str]]:
    """The teacher, frozen as its recipe asks, and the titles that it was trained on.

    Raises InputError when one is in `apart`: held-out labels would reach the student through it.
    """
    if teacher is None:
        return None, frozenset()
    known = frozenset[str]()
    if not teacher.weights:
        model = create_student(teacher.model, heads=False)
    else:
        path = _weights_file(teacher.weights)
        if _has_student_header(path):
            model, about = load_student(path)
            if about["model"] != teacher.model:
                raise InputError(
                    f"{teacher.weights} are weights of {about['model']}; "
                    f"the recipe's teacher is {teacher.model}"
                )
            known = _trained_titles(path, about, apart)
        else:
            model = _released(teacher.model, path)
    freeze(model, teacher.freeze)
    return model, known


def _has_student_header(path: Path) -> bool:
    """Whether a file has the header of a student of ours; released checkpoints have none."""
    try:
        check_regular(path)
        with safe_open(path, "pt") as file:
            return "model" in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def _trained_titles(path: Path, about: dict[str, str], apart: frozenset[str]) -> frozenset[str]:
    """Titles that weights were trained on. Raises InputError when one is in `apart`."""
    known = trained_titles(about)
    if known & apart:
        raise InputError(
            f"{path} was trained on titles that this recipe holds out: {listed(known & apart)}; "
            "take other weights, or hold out other titles"
        )
    return known


def listed(names: frozenset[str]) -> str:
    """The first five names, and how many more there are."""
    first = ", ".join(sorted(names)[:5])
    return f"{first} and {len(names) - 5} more" if len(names) > 5 else first
