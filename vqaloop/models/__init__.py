"""Quality models by name."""

from torch import nn

from vqaloop.errors import InputError
from vqaloop.models.internvideo2 import BASE, ONE_B, SMALL, TINY, Config, InternVideo2
from vqaloop.models.student import Student

CONFIGS = {
    "internvqa-tiny": TINY,
    "internvqa-small": SMALL,
    "internvqa-base": BASE,
    "internvqa-1b": ONE_B,
}


def create_model(name: str) -> nn.Module:
    """The paper's quality model of that name, with first values: (B, 3, T, H, W) → (B, 1).

    23,046,145 parameters for internvqa-small, 89,441,281 for -base, 1,020,710,913 for -1b.
    Raises InputError for an unknown name.
    """
    return InternVideo2(config_of(name))


def create_student(name: str) -> Student:
    """The same backbone with the anchored head beside the paper's."""
    return Student(InternVideo2(config_of(name)))


def config_of(name: str) -> Config:
    """Shape of the model of that name. Raises InputError for an unknown one."""
    if name not in CONFIGS:
        raise InputError(f"unknown model {name!r}; the models are {', '.join(CONFIGS)}")
    return CONFIGS[name]
