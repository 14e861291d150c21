"""Data files of the installed package, or of a checkout."""

from pathlib import Path

_PACKAGE = Path(__file__).absolute().parents[1]

WEIGHTS = _PACKAGE / "weights"
"""Shipped student weights and their SHA256SUMS."""


def data_folder(name: str) -> Path:
    """`encoders` or `recipes`: inside the package where installed, beside it in a checkout."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name
