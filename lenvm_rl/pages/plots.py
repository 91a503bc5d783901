"""What figures share: how their file is written."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lenvm_rl.rollouts.atomic import replacing


def save_png(figure: Figure, path: Path) -> Path:
    """Write the figure as a PNG file of 150 dpi, whole or not at all; returns its path."""
    FigureCanvasAgg(figure)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=150)
    return path
