"""Quality models by name."""

from vqaloop.errors import InputError
from vqaloop.models import fastvqa
from vqaloop.models.fastvqa import FastVQA
from vqaloop.models.head_config import HeadConfig
from vqaloop.models.internvideo2 import BASE, MINI, ONE_B, SMALL, TINY, Config, InternVideo2
from vqaloop.models.student import Student

CONFIGS = {
    "internvqa-mini": MINI,
    "internvqa-tiny": TINY,
    "internvqa-small": SMALL,
    "internvqa-base": BASE,
    "internvqa-1b": ONE_B,
}
"""Shapes of the InternVideo2 family, the backbones of students."""
FASTVQA_CONFIGS = {"fastvqa-tiny": fastvqa.TINY, "fastvqa-base": fastvqa.BASE}

MODELS = (*CONFIGS, *FASTVQA_CONFIGS)


def create_model(name: str) -> InternVideo2 | FastVQA:
    """Create a no-reference quality model with initial weights.

    The internvqa models are InternVideo2 (arXiv 2403.15377) as InternVQA (arXiv 2502.19026) uses
    it, the fastvqa models are FAST-VQA (arXiv 2207.02595). `models.checkpoints.load_released`
    loads their published weights.

    Args:
        name: internvqa-mini (211,329 parameters), internvqa-tiny (1,036,289), internvqa-small
            (23,046,145), internvqa-base (89,441,281), internvqa-1b (1,020,710,913), fastvqa-tiny
            (28,127,901) or fastvqa-base (88,495,569).

    Returns:
        A module that takes (B, 3, T, H, W) clips of ImageNet-normalised RGB and returns (B, 1)
        scores, unbounded. internvqa takes H and W that are multiples of 14; fastvqa takes
        fragments, with even T and H and W that are multiples of 32. Its `judge(clips)` returns
        (B,) scores and (B, feature_width) features in fp32. Created under `torch.device("meta")`
        it takes no memory.

    Raises:
        InputError: The name is unknown.
    """
    if name in FASTVQA_CONFIGS:
        return FastVQA(FASTVQA_CONFIGS[name])
    if name not in CONFIGS:
        known = ", ".join([*CONFIGS, *FASTVQA_CONFIGS])
        raise InputError(f"unknown model {name!r}; the models are {known}")
    return InternVideo2(CONFIGS[name])


def create_student(name: str, heads: bool = True, config: HeadConfig | None = None) -> Student:
    """Create a model as a student, with initial weights.

    Args:
        name: One of MODELS.
        heads: With the token heads (anchored and no-reference) beside the paper's linear one.
        config: Of the token heads; None: the first generation's.

    Returns:
        The student in training mode, fp32.

    Raises:
        InputError: The name is unknown, `heads` are wanted on another family than InternVideo2,
            or a configuration of other heads is given without them.
    """
    backbone = InternVideo2(config_of(name)) if heads else create_model(name)
    return Student(backbone, heads, config)


def config_of(name: str) -> Config:
    """Shape of the student of that name. Raises InputError for an unknown one."""
    if name not in CONFIGS:
        raise InputError(f"unknown student {name!r}; the students are {', '.join(CONFIGS)}")
    return CONFIGS[name]
