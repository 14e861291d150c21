"""Numbers as JSON takes them: finite, and rounded where a document says so."""

import math
from collections.abc import Mapping
from typing import Any


def finite(value: Any, digits: int | None = None) -> Any:
    """`value` for JSON: floats that are not finite become None, all others have `digits` digits.

    Args:
        value: A number, or a document of mappings, lists and tuples.
        digits: Decimal places to round to; None leaves numbers as they are.
    """
    if isinstance(value, Mapping):
        return {key: finite(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item, digits) for item in value]
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    return value if digits is None else round(value, digits)
