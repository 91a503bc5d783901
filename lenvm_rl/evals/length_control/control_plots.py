"""Figure of length control, drawn from its tables alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lenvm_rl.rollouts.atomic import replacing

Table = Sequence[Mapping[str, Any]]

STYLE = {
    "guided": ("#2b5c8a", "o", "guided"),
    "unguided": ("#9a9a9a", "s", "unguided"),
    "truncated": ("#d1603d", "v", "cut at the target"),
    "prompted": ("#5d8a4a", "^", "asked in words"),
    "countdown": ("#8a5a9e", "D", "countdown prompt"),
}
CONTROL_NAMES = {"equal": "exactly n", "at_most": "at most n", "at_least": "at least n"}


def plot_control(tables: Mapping[str, Table], file: Path) -> Path:
    """One column per control: obtained against asked length above, accuracy below."""
    controls = list(dict.fromkeys(row["control"] for row in tables["targets"]))
    figure = Figure(figsize=(4.0 * len(controls) + 0.4, 6.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(controls), squeeze=False)
    for column, control in enumerate(controls):
        rows = [row for row in tables["targets"] if row["control"] == control]
        _lengths(axes[0][column], rows, control)
        _accuracy(axes[1][column], rows)
    axes[0][0].set_ylabel("mean length obtained (tokens)")
    axes[1][0].set_ylabel("accuracy")
    axes[0][0].legend(fontsize=8)
    return save_figure(figure, file)


def _lengths(axes: Axes, rows: Table, control: str) -> None:
    asked = sorted(row["target"] for row in rows)
    axes.plot([0, asked[-1]], [0, asked[-1]], color="black", linewidth=0.8, linestyle=":", zorder=1)
    for method, (colour, marker, label) in STYLE.items():
        mine = sorted((r["target"], r["length"]) for r in rows if r["method"] == method)
        if mine:
            axes.plot(*zip(*mine, strict=True), color=colour, marker=marker, label=label, ms=5)
    axes.set_title(CONTROL_NAMES[control], fontsize=10)
    axes.set_xlabel("mean target n (tokens)")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)


def _accuracy(axes: Axes, rows: Table) -> None:
    for method, (colour, marker, _) in STYLE.items():
        mine = sorted((r["target"], r["accuracy"]) for r in rows if r["method"] == method)
        if mine:
            axes.plot(*zip(*mine, strict=True), color=colour, marker=marker, ms=5)
    axes.set_xlabel("mean target n (tokens)")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.05)


def save_figure(figure: Figure, file: Path) -> Path:
    """Write a PNG, whole or not at all."""
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    return file
