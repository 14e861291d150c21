"""Quality models by name."""

from vqaloop.errors import InputError
from vqaloop.models import fastvqa
from vqaloop.models.fastvqa import FastVQA
from vqaloop.models.internvideo2 import BASE, MINI, ONE_B, SMALL, TINY, Config, InternVideo2
from vqaloop.models.student import Student

CONFIGS = {
    "internvqa-mini": MINI,
    "internvqa-tiny": TINY,
    "internvqa-small": SMALL,
    "internvqa-base": BASE,
    "internvqa-1b": ONE_B,
}
"""The InternVideo2 family, which students are made of."""
FASTVQA_CONFIGS = {"fastvqa-tiny": fastvqa.TINY, "fastvqa-base": fastvqa.BASE}

MODELS = (*CONFIGS, *FASTVQA_CONFIGS)


def create_model(name: str) -> InternVideo2 | FastVQA:
    """The quality model of that name, with initial weights.

    Args:
        name: One of MODELS. Parameters: internvqa-mini 211,329, -tiny 1,036,289, -small
            23,046,145, -base 89,441,281, -1b 1,020,710,913; fastvqa-tiny 28,127,901, -base
            88,495,569.

    Returns:
        (B, 3, T, H, W) clips → (B, 1) score. `judge(clips)` gives score and feature,
        `feature_width` the feature's channels. Under `torch.device("meta")` it takes no memory.

    Raises:
        InputError: The name is unknown.
    """
    if name in FASTVQA_CONFIGS:
        return FastVQA(FASTVQA_CONFIGS[name])
    if name not in CONFIGS:
        known = ", ".join([*CONFIGS, *FASTVQA_CONFIGS])
        raise InputError(f"unknown model {name!r}; the models are {known}")
    return InternVideo2(CONFIGS[name])


def create_student(name: str, heads: bool = True) -> Student:
    """That model as a student, with initial weights.

    Args:
        name: One of MODELS.
        heads: With the token heads (anchored and no-reference) beside the paper's linear one.

    Raises:
        InputError: The name is unknown, or `heads` are wanted on another family than InternVideo2.
    """
    return Student(InternVideo2(config_of(name)) if heads else create_model(name), heads)


def config_of(name: str) -> Config:
    """Shape of the student of that name. Raises InputError for an unknown one."""
    if name not in CONFIGS:
        raise InputError(f"unknown student {name!r}; the students are {', '.join(CONFIGS)}")
    return CONFIGS[name]
