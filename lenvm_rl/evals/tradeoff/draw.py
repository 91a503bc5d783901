"""Figure of the trade-off in the layout of the paper's figure 2, drawn from its tables alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lenvm_rl.evals.length_control.control_plots import STYLE, save_figure
from lenvm_rl.evals.length_control.paper_control import paper_panel
from lenvm_rl.pages.labels import Series, place_labels

Table = Sequence[Mapping[str, Any]]
Points = list[tuple[float, float]]

_GUIDED, _BUDGET, _PROMPTED = STYLE["guided"][0], STYLE["truncated"][0], STYLE["prompted"][0]
_THINKING = "#8a5a9e"
_BUDGET_LABELS = 6


def plot_tradeoff(tables: Mapping[str, Table], figures: Mapping[str, Any], file: Path) -> Path:
    """Accuracy against mean length: beta, the hard budget, and the budgets that are asked for.

    Points carry their beta or their budget B. The paper's own curves are drawn beside, pale, where
    the prompts are one of its sets.
    """
    paper = paper_panel(set(figures.get("data_sources") or ()))
    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    curves = [_hard_budget(axes, tables["budget"]), _guided(axes, tables["guided"])]
    series = [
        Series(
            points=curves[1],
            labels=[f"β {row['beta']:g}" for row in tables["guided"]],
            colour=_GUIDED,
        ),
        _budget_labels(tables["budget"]),
    ]
    axes.plot(*_xy([*series[1].points]), color=_BUDGET, ls="", marker="v", ms=4, zorder=1)
    for name, colour, label in (
        ("prompted", _PROMPTED, "budget in the prompt"),
        ("thinking", _THINKING, "thinking-token budget of vLLM"),
    ):
        rows = sorted(tables.get(name, ()), key=lambda row: row["length"])
        if rows:
            points = _points(rows)
            axes.plot(*_xy(points), color=colour, marker="^", ms=5, lw=1, label=label)
            curves.append(points)
            texts = [f"B {row['budget']}" for row in rows]
            series.append(Series(points=points, labels=texts, colour=colour))
    if paper is not None:
        for triples, colour, label in (
            (paper.guided, _GUIDED, f"paper: {paper.models}"),
            (paper.budget, _BUDGET, "paper: hard budget"),
        ):
            points = [(x, y) for _, x, y in triples]
            axes.plot(*_xy(points), color=colour, alpha=0.35, ls="--", marker=".", label=label)
            curves.append(points)
    free = figures["unguided_accuracy"]
    axes.axhline(free, color="#9a9a9a", linewidth=0.8, linestyle=":")
    axes.set_xlabel("mean response length (tokens, without EOS)")
    axes.set_ylabel("accuracy (pass@1)")
    axes.set_ylim(0, 1.05)
    axes.set_xlim(left=0)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, fontsize=8)
    curves.append([(0.0, free), (axes.get_xlim()[1], free)])
    for row in tables["guided"]:
        if not math.isnan(row["accuracy_se"]):
            low, high = (row["accuracy"] + sign * row["accuracy_se"] for sign in (-1, 1))
            curves.append([(row["length"], low), (row["length"], high)])
    place_labels(axes, series, curves=curves)
    return save_figure(figure, file)


def _hard_budget(axes: Axes, rows: Table) -> Points:
    points = _points(rows)
    axes.plot(*_xy(points), color=_BUDGET, label="hard budget (max_tokens B)", zorder=1)
    return points


def _guided(axes: Axes, rows: Table) -> Points:
    points = _points(rows)
    axes.errorbar(
        *_xy(points),
        yerr=[row["accuracy_se"] for row in rows],
        color=_GUIDED,
        marker="o",
        markersize=4,
        label="LenVM, sweep of β (bars: one standard error)",
        zorder=2,
    )
    return points


def _budget_labels(rows: Table) -> Series:
    """A few budgets along the curve, evenly by accuracy, so that the steep part has most."""
    chosen: list[Mapping[str, Any]] = []
    top = max(row["accuracy"] for row in rows)
    for share in range(1, _BUDGET_LABELS + 1):
        aim = top * share / (_BUDGET_LABELS + 1)
        row = min(rows, key=lambda row: abs(row["accuracy"] - aim))
        if row not in chosen:
            chosen.append(row)
    labels = [f"B {row['budget']}" for row in chosen]
    return Series(points=_points(chosen), labels=labels, colour=_BUDGET)


def _points(rows: Table) -> Points:
    return [(row["length"], row["accuracy"]) for row in rows]


def _xy(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
