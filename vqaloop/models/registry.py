"""Quality models by name."""

from collections.abc import Callable
from functools import partial

from vqaloop.errors import InputError
from vqaloop.models import fastvqa, qmamba, rankdvqa, swinv2
from vqaloop.models.backbone import Backbone, TokenBackbone
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
"""Shapes of the InternVideo2 family."""
_OTHERS: dict[str, Callable[[], Backbone]] = {
    "fastvqa-tiny": partial(FastVQA, fastvqa.TINY),
    "fastvqa-base": partial(FastVQA, fastvqa.BASE),
    "rankdvqa": partial(rankdvqa.RankDVQA, rankdvqa.FULL),
    "rankdvqa-mini": partial(rankdvqa.RankDVQA, rankdvqa.MINI),
    "swinv2-c2f-tiny": partial(swinv2.SwinV2, swinv2.TINY),
    "swinv2-c2f-mini": partial(swinv2.SwinV2, swinv2.MINI),
    "qmamba-tiny": partial(qmamba.QMamba, qmamba.TINY),
    "qmamba-mini": partial(qmamba.QMamba, qmamba.MINI),
    "qmamba-mini-2way": partial(qmamba.QMamba, qmamba.MINI_2WAY),
}

MODELS = (*CONFIGS, *_OTHERS)
SMALL_MODELS = frozenset(
    ("internvqa-mini", "internvqa-tiny", "rankdvqa", "rankdvqa-mini")
    + ("swinv2-c2f-mini", "qmamba-mini", "qmamba-mini-2way")
)
"""Models of a few megabytes; all others have more than ten million parameters."""
COMPARING = frozenset(("rankdvqa", "rankdvqa-mini"))
"""Models without a score of their own for clips that have no source."""


def create_model(name: str) -> Backbone:
    """Create a quality model with initial weights.

    The internvqa models are InternVideo2 (arXiv 2403.15377) as InternVQA (arXiv 2502.19026) uses
    it, the fastvqa models are FAST-VQA (arXiv 2207.02595). `models.checkpoints.load_released`
    loads their published weights. Of the others nothing is published: rankdvqa is RankDVQA (arXiv
    2202.08595) and RankDVQA-mini (2312.08864), swinv2-c2f the Swin V2 of the coarse-to-fine
    strategy (2401.08522), qmamba Q-Mamba (2406.09546).

    Args:
        name: internvqa-mini (211,329 parameters), internvqa-tiny (1,036,289), internvqa-small
            (23,046,145), internvqa-base (89,441,281), internvqa-1b (1,020,710,913), fastvqa-tiny
            (28,127,901), fastvqa-base (88,495,569), rankdvqa (4,594,938), rankdvqa-mini (449,830),
            swinv2-c2f-tiny (31,111,723), swinv2-c2f-mini (808,509), qmamba-tiny (27,508,513),
            qmamba-mini (344,929), or qmamba-mini-2way (329,697), which scans in two directions
            instead of four.

    Returns:
        A module that takes (B, 3, T, H, W) clips of ImageNet-normalised RGB and returns (B, 1)
        scores, unbounded. internvqa takes H and W that are multiples of 14; fastvqa takes
        fragments, with even T and H and W that are multiples of 32; the others take multiples of
        16. Its `judge(clips)` returns (B,) scores and (B, feature_width) features in fp32. But
        rankdvqa takes clips and their references, T a divisor of 12 and H and W from 80 on,
        returns (B, 1) distances, and has no `judge`. Created under `torch.device("meta")` it
        takes no memory.

    Raises:
        InputError: The name is unknown.
    """
    if name in _OTHERS:
        return _OTHERS[name]()
    if name not in CONFIGS:
        raise InputError(f"unknown model {name!r}; the models are {', '.join(MODELS)}")
    return InternVideo2(CONFIGS[name])


def create_student(name: str, heads: bool = True, config: HeadConfig | None = None) -> Student:
    """Create a model as a student, with initial weights.

    Args:
        name: One of MODELS.
        heads: With the token heads (anchored and no-reference) beside the model's own score.
        config: Of the token heads; None: the first generation's.

    Returns:
        The student in training mode, fp32.

    Raises:
        InputError: The name is unknown, `heads` are wanted on a model that gives them no tokens,
            or not wanted on one that has no score of its own, or a configuration of other heads
            is given without them.
    """
    backbone = create_model(name)
    if heads and not isinstance(backbone, TokenBackbone):
        raise InputError(
            f"{name} takes no token heads; students with them are "
            + ", ".join(other for other in MODELS if not other.startswith("fastvqa"))
        )
    if not heads and name in COMPARING:
        raise InputError(
            f"{name} compares clips with their source and has no score without token heads; give "
            "the recipe a loss that needs them, such as region"
        )
    return Student(backbone, heads, config)


def config_of(name: str) -> Config:
    """Shape of the InternVideo2 of that name. Raises InputError for an unknown one."""
    if name not in CONFIGS:
        raise InputError(f"unknown student {name!r}; the students are {', '.join(CONFIGS)}")
    return CONFIGS[name]
