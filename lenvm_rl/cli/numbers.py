"""Numbers with commas between, as options take them."""

from __future__ import annotations

from typing import Any


def numbers(option: str, text: str, kind: Any) -> list[Any]:
    """The numbers in `text`.

    Raises:
        ValueError: something else stands there.
    """
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} must be numbers with commas between, got {text!r}.") from None
