"""What the evaluations of the recipe share: what must be there before, and how tokens are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.smollm2.sample import TEMPERATURE, TOP_P

SAMPLING = ("--temperature", str(TEMPERATURE), "--top-p", str(TOP_P), "--min-p", "0")
"""As the value model's rollouts were: guidance chooses among tokens that the policy draws there."""
QUALITY = ("logprob", "repetition", "full_sentence")


def needed(dir: Path, **steps: str) -> list[Path]:
    """DIR/NAME of each name, which the step beside it makes.

    Raises:
        FileNotFoundError: one is missing.
    """
    paths = [dir / name for name in steps]
    for path, step in zip(paths, steps.values(), strict=True):
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: make it with `python -m recipes.smollm2 {step} --dir {dir}`."
            )
    return paths


def picked(rows: Sequence[Mapping[str, Any]], *names: str) -> list[dict[str, Any]]:
    """Some columns of a table, floats to four digits behind the point."""
    return [
        {name: round(x, 4) if isinstance(x := row[name], float) else x for name in names}
        for row in rows
    ]
