"""Budgets: runs in, table and figure out."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend is chosen first)

from scripts.bench.grpo.figures import save_figure

FIGURES = ("deviation", "bias", "length", "accuracy", "share_truncated")
_STYLES = {
    "start": ("#8a8a8a", "o", "before training"),
    "guided": ("black", "*", "shipped policy, guided"),
    "l1_exact": ("#d1603d", "s", "L1-Exact"),
    "lenvm": ("#1b6ca8", "D", "LenVM, learning on"),
    "lenvm_correct": ("#e0a100", "v", "LenVM, in right answers"),
    "lenvm_frozen": ("#7fb2d9", "^", "LenVM, frozen"),
}


def budget_rows(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per method and budget, and one with budget "all": the mean over budgets.

    Every figure is the mean over seeds, `_std` its standard deviation (None for one seed).
    """
    rows = []
    for method in dict.fromkeys(run["method"] for run in runs):
        mine = [run for run in runs if run["method"] == method]
        for i, first in enumerate(mine[0]["budgets"]):
            rows.append(_row(method, first["budget"], [run["budgets"][i] for run in mine]))
        means = [
            {name: statistics.fmean(cell[name] for cell in run["budgets"]) for name in FIGURES}
            for run in mine
        ]
        rows.append(_row(method, "all", means))
    return rows


def _row(method: str, budget: int | str, cells: Sequence[dict[str, float]]) -> dict[str, Any]:
    row: dict[str, Any] = {"method": method, "budget": budget, "seeds": len(cells)}
    for name in FIGURES:
        values = [cell[name] for cell in cells]
        row[name] = statistics.fmean(values)
        row[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
    return row


def plot_budgets(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Mean length, deviation and accuracy against the budget that was asked for."""
    figure, axes = plt.subplots(1, 3, figsize=(12.5, 3.8))
    panels = (("length", 1.0), ("deviation", 100.0), ("accuracy", 100.0))
    labels = ("mean length (tokens)", "mean |L - n*| / n* (%)", "accuracy (%)")
    for axis, (name, factor), label in zip(axes, panels, labels, strict=True):
        for method in dict.fromkeys(row["method"] for row in rows):
            mine = [row for row in rows if row["method"] == method and row["budget"] != "all"]
            color, marker, text = _STYLES[method]
            axis.errorbar(
                [row["budget"] for row in mine],
                [factor * row[name] for row in mine],
                yerr=[factor * (row[f"{name}_std"] or 0.0) for row in mine],
                color=color,
                marker=marker,
                capsize=2,
                label=text,
            )
        axis.set_xticks([row["budget"] for row in rows if row["budget"] != "all"])
        axis.set_xlabel("budget n* (tokens)")
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    budgets = sorted({row["budget"] for row in rows if row["budget"] != "all"})
    axes[0].plot(budgets, budgets, color="black", linewidth=0.8, linestyle=":", label="as asked")
    axes[0].legend(frameon=False, fontsize=8)
    return save_figure(figure, path)
