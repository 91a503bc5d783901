"""Figures of the scaling and ablation grids, drawn from their tables alone, after the paper's.

Lines are means over seeds, bands reach from the least to the greatest of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.table import Table as Screen

from lenvm_rl.evals.result import Result
from lenvm_rl.pages.plots import save_png

Table = Sequence[Mapping[str, Any]]
Tables = Mapping[str, Table]

_COLOURS = ("#9ec5e8", "#5b9bd0", "#2b5c8a", "#12304c", "#d1603d", "#5d8a4a")
_CONTRAST = ("#d1603d", "#9a9a9a", "#5d8a4a", "#2b5c8a")


def figure_of(plot: Callable[[Figure, Tables], bool], tables: Tables) -> Figure | None:
    """Draw one figure; None when the tables do not hold what it shows."""
    figure = Figure(layout="constrained")
    return figure if plot(figure, tables) else None


def draw(result: Result, out: str | Path) -> list[Path]:
    """The figures of a grid, as far as it has their runs; returns the PNG files."""
    drawn = {file: figure_of(plot, result.tables) for file, plot in PLOTS[result.name].items()}
    return [save_png(x, Path(out) / f"{file}.png") for file, x in drawn.items() if x is not None]


def view(result: Result) -> Screen:
    """Final numbers of all runs, the paper's beside the choices."""
    title = f"{result.name}: held-out errors (relative at 0 to 75 % of the response)"
    screen = Screen(title=title, title_justify="left", box=SIMPLE, padding=0, collapse_padding=True)
    for column in ("question", "run"):
        screen.add_column(column)
    # Sizes of the paper's are other sizes: only choices stand beside its numbers.
    paper = {}
    if result.name == "ablation":
        paper = {(row["group"], row["label"]): row for row in result.tables["paper"]}
    columns = ("1000 MSE", "tokens", "0", "25", "50", "75")
    for column in (*columns, "paper") if paper else columns:
        screen.add_column(column, justify="right", no_wrap=True)
    previous = None
    for row in result.tables["finals"]:
        if previous not in (None, row["group"]):
            screen.add_section()
        known = paper.get((row["group"], row["label"]))
        screen.add_row(
            "" if previous == row["group"] else row["group"],
            row["label"],
            _with_spread(1000 * row["mse"], 1000 * row["mse_std"], 2),
            _with_spread(row["length_error"], row["length_error_std"], 1),
            *(f"{row[f'relative_error_{p}']:.2f}" for p in ("00", "25", "50", "75")),
            *([] if not paper else ["" if known is None else f"{known['final']:g}"]),
        )
        previous = row["group"]
    return screen


def plot_scaling(figure: Figure, tables: Tables) -> bool:
    """Figure 3: loss along training above, and below its final value against size."""
    figure.set_size_inches(12.0, 7.0)
    axes = figure.subplots(2, 3)
    titles = {
        "trunk": "size of the trunk",
        "prompts": "number of prompts",
        "samples": "samples per prompt",
    }
    for column, (group, title) in enumerate(titles.items()):
        _curves(axes[0][column], tables["curves"], group, "mse", _COLOURS)
        axes[0][column].set_title(f"({'abc'[column]}) {title}", fontsize=10)
        _relative_finals(axes[1][column], tables, group)
    axes[0][0].set_ylabel("held-out MSE of the value")
    axes[1][0].set_ylabel("final loss, largest size = 1")
    return True


def plot_choices(figure: Figure, tables: Tables) -> bool:
    """Figure 5, and the weights of appendix E: what each choice does along training."""
    panels = [
        ("target", "length_error", "mean |length error| (tokens)", "(5a) target"),
        ("batches", "mse", "held-out MSE of the value", "(5b) batches"),
        ("precision", "mse", "held-out MSE of the value", "(5c) precision"),
        ("weighting", "u_bias_s0", "mean predicted - true u at s_0", "(E) weighting"),
    ]
    panels = [panel for panel in panels if _labels(tables["curves"], panel[0])]
    if not panels:
        return False
    figure.set_size_inches(4.2 * len(panels), 3.8)
    for axes, (group, metric, ylabel, title) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        _curves(axes, tables["curves"], group, metric, _CONTRAST)
        axes.set_ylabel(ylabel)
        axes.set_title(title, fontsize=10)
        if metric == "u_bias_s0":
            axes.axhline(0.0, color="#444444", linewidth=0.8)
    return True


def plot_gamma(figure: Figure, tables: Tables) -> bool:
    """Figure 6: relative length error at 0, 25, 50 and 75 % of the response, by gamma."""
    if not _labels(tables["curves"], "gamma"):
        return False
    figure.set_size_inches(14.0, 3.6)
    for axes, position in zip(figure.subplots(1, 4), ("00", "25", "50", "75"), strict=True):
        _curves(axes, tables["curves"], "gamma", f"relative_error_{position}", _COLOURS[1:])
        axes.set_title(f"at {int(position)} % of the response", fontsize=10)
    figure.axes[0].set_ylabel("relative length error")
    return True


PLOTS: dict[str, dict[str, Callable[[Figure, Tables], bool]]] = {
    "scaling": {"scaling": plot_scaling},
    "ablation": {"ablation_choices": plot_choices, "ablation_gamma": plot_gamma},
}
"""PNG files of each grid."""


def _labels(curves: Table, group: str) -> list[str]:
    return list(dict.fromkeys(row["label"] for row in curves if row["group"] == group))


def _curves(axes: Axes, curves: Table, group: str, metric: str, colours: Sequence[str]) -> None:
    """One line per run of the group; runs without this metric along the way are left out."""
    seen: list[float] = []
    for label, colour in zip(_labels(curves, group), colours, strict=False):
        rows = [r for r in curves if (r["group"], r["label"]) == (group, label)]
        rows = [r for r in rows if r[metric] is not None and r[metric] == r[metric]]
        steps = [r["step"] for r in rows]
        axes.plot(steps, [r[metric] for r in rows], color=colour, marker=".", label=label)
        low, high = [r[f"{metric}_low"] for r in rows], [r[f"{metric}_high"] for r in rows]
        axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        seen += [r[metric] for r in rows[len(rows) // 5 :]]  # the start would squeeze the rest
    if seen and metric != "u_bias_s0":
        margin = 0.08 * (max(seen) - min(seen)) or 0.05 * max(seen)
        axes.set_ylim(min(seen) - margin, max(seen) + margin)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _relative_finals(axes: Axes, tables: Tables, group: str) -> None:
    """Final loss against size, both as shares of the largest: the units differ from the paper's."""
    rows = [row for row in tables["finals"] if row["group"] == group]
    sizes = [row["parameters"] if group == "trunk" else row[group] for row in rows]
    errors = [0.0 if row["mse_std"] != row["mse_std"] else row["mse_std"] for row in rows]
    last = rows[-1]["mse"]
    axes.errorbar(
        [size / sizes[-1] for size in sizes],
        [row["mse"] / last for row in rows],
        yerr=[error / last for error in errors],
        color=_COLOURS[2],
        marker="o",
        capsize=3,
        label="here",
    )
    paper = [row for row in tables["paper"] if row["group"] == group]
    axes.plot(
        [row["size"] / paper[-1]["size"] for row in paper],
        [row["final"] / paper[-1]["final"] for row in paper],
        color="#9a9a9a",
        marker="s",
        linestyle="--",
        label=f"paper, largest {paper[-1]['label']}",
    )
    axes.set_xscale("log")
    axes.set_xlabel("size, largest = 1")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _with_spread(mean: float, std: float, digits: int) -> str:
    spread = "" if math.isnan(std) else f" ±{std:.{digits}f}"
    return f"{mean:.{digits}f}{spread}"
