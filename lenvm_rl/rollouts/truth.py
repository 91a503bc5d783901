"""How does a ground truth of any type become the text that graders read? As JSON, never `repr`."""

from __future__ import annotations

import json
import math
from typing import Any


def truth_text(value: Any) -> str | None:
    """A ground truth as text: texts as they stand, all else as JSON; None (and NaN) is no truth.

    Raises:
        ValueError: a value that JSON has no form for (bytes that are no text, an unknown object).
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and math.isnan(value):
        return None  # how data frames say that a cell is empty
    try:
        if isinstance(value, bytes):
            return value.decode("utf-8")
        return json.dumps(value, ensure_ascii=False, default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"the ground truth {value!r:.80} cannot be written as JSON ({error}): give text, "
            "numbers, lists or objects"
        ) from error


def _plain(value: Any) -> Any:
    """Arrays, decimals, dates and bytes as something that JSON has."""
    if hasattr(value, "tolist"):  # numpy
        return value.tolist()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if hasattr(value, "as_tuple"):  # decimal.Decimal
        return float(value) if value != value.to_integral_value() else int(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} is no JSON type")
