"""What drawings of results share: PNG files, terminal tables, numbers as text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from lenvm_rl.rollouts.atomic import replacing


def save_png(figure: Figure, path: Path) -> Path:
    """Write the figure as a PNG file of 150 dpi, whole or not at all; returns its path."""
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=150)
    return path


def screen(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table for the terminal: names on the left, numbers to the right."""
    table = Table(title=title)
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left", no_wrap=not i)
    for row in rows:
        table.add_row(*row)
    return table


def number(value: Any, form: str = ".3f") -> str:
    """The number as text, a dash where it is not defined."""
    return "-" if value is None or math.isnan(value) else format(value, form)
