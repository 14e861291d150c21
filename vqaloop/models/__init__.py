"""Quality models by name; loaded on first use, since PyTorch takes seconds."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vqaloop.models.registry import (
        CONFIGS,
        MODELS,
        config_of,
        create_model,
        create_student,
    )

__all__ = ["CONFIGS", "MODELS", "config_of", "create_model", "create_student"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("vqaloop.models.registry"), name)
    raise AttributeError(f"module 'vqaloop.models' has no attribute {name!r}")
