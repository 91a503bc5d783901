"""Figure of the trade-off in the layout of the paper's figure 2, and its terminal tables.

Figure 2 has no table in the paper: its points are read off the vector paths of the PDF. Lengths
there are mean tokens, accuracies Pass@1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from rich.console import Group
from rich.table import Table
from rich.text import Text

from lenvm_rl.evals.length_control.draw import STYLE, quality_cells
from lenvm_rl.evals.result import Result
from lenvm_rl.pages.plots import number, save_png, screen

Rows = Sequence[Mapping[str, Any]]

_GUIDED, _BUDGET, _PROMPTED = (STYLE[name][0] for name in ("guided", "truncated", "in_words"))
_THINKING = "#8a5a9e"
_BUDGET_LABELS = 6
_HALO = [withStroke(linewidth=2.5, foreground="white")]  # a label on a line stays legible
_SAME = 9.0  # pixels: closer points share a label


class Panel(NamedTuple):
    """One panel of figure 2; every point is (its label, mean tokens, Pass@1)."""

    models: str
    guided: tuple[tuple[int, float, float], ...]
    """Labelled by beta."""
    budget: tuple[tuple[int, float, float], ...]
    """Labelled by the hard budget B; unlimited is the beta 0 of `guided`."""


FIGURE_2 = {
    "gsm8k": Panel(
        "Qwen2.5-3B + LenVM 1.5B",
        (
            (-1000, 201.1, 0.628),
            (-100, 263.4, 0.761),
            (-50, 296.0, 0.801),
            (-20, 320.9, 0.811),
            (0, 341.0, 0.816),
        ),
        (
            (200, 199.0, 0.053),
            (250, 242.8, 0.191),
            (300, 277.7, 0.363),
            (350, 302.2, 0.545),
            (400, 317.5, 0.671),
            (450, 326.5, 0.738),
        ),
    ),
    "math500": Panel(
        "Qwen2.5-7B + LenVM 1.5B",
        (
            (-1000, 324.7, 0.406),
            (-100, 417.7, 0.496),
            (-50, 459.3, 0.512),
            (-20, 502.2, 0.523),
            (0, 547.0, 0.533),
        ),
        (
            (300, 291.7, 0.118),
            (400, 363.4, 0.260),
            (500, 415.1, 0.355),
            (600, 453.9, 0.413),
            (800, 505.1, 0.488),
        ),
    ),
    "mathvista": Panel(
        "Qwen2.5-VL-7B + LenVM VL-3B",
        (
            (-1000, 151.1, 0.234),
            (-100, 193.0, 0.264),
            (-50, 210.5, 0.269),
            (-20, 230.8, 0.272),
            (0, 245.8, 0.274),
        ),
        (
            (150, 142.1, 0.075),
            (200, 175.0, 0.172),
            (300, 212.9, 0.237),
            (400, 232.0, 0.258),
        ),
    ),
}


def paper_panel(sources: set[str]) -> Panel | None:
    """Figure 2's panel of a set of `data_source`s; None unless they all name one of its sets."""
    names = {"".join(c for c in source.lower() if c.isalnum()) for source in sources}
    for key, panel in FIGURE_2.items():
        if names and all(key in name for name in names):
            return panel
    return None


def draw(result: Result, out: str | Path) -> list[Path]:
    """tradeoff.png: accuracy against mean length for beta, the hard budget, and the budgets that
    are asked for.

    Points carry their beta or their budget B. The paper's own curves are drawn beside, pale, where
    the prompts are one of its sets.
    """
    tables, figures = result.tables, result.figures
    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    free = figures["unguided_accuracy"]
    axes.axhline(free, color="#9a9a9a", linewidth=0.8, linestyle=":")
    axes.plot(*_xy(tables["budget"]), color=_BUDGET, label="hard budget (max_tokens B)", zorder=1)
    marked = _spread(tables["budget"])
    axes.plot(*_xy(marked), color=_BUDGET, ls="", marker="v", ms=4, zorder=1)
    axes.errorbar(
        *_xy(tables["guided"]),
        yerr=[row["accuracy_se"] for row in tables["guided"]],
        color=_GUIDED,
        marker="o",
        markersize=4,
        label="LenVM, sweep of β (bars: one standard error)",
        zorder=2,
    )
    labelled = [(row, f"β {row['beta']:g}", _GUIDED) for row in tables["guided"]]
    labelled += [(row, f"B {row['budget']}", _BUDGET) for row in marked]
    for name, colour, label in (
        ("prompted", _PROMPTED, "budget in the prompt"),
        ("thinking", _THINKING, "thinking-token budget of vLLM"),
    ):
        rows = sorted(tables.get(name, ()), key=lambda row: row["length"])
        if rows:
            axes.plot(*_xy(rows), color=colour, marker="^", ms=5, lw=1, label=label)
            labelled += [(row, f"B {row['budget']}", colour) for row in rows]
    paper = paper_panel(set(figures.get("data_sources") or ()))
    if paper is not None:
        for triples, colour, label in (
            (paper.guided, _GUIDED, f"paper: {paper.models}"),
            (paper.budget, _BUDGET, "paper: hard budget"),
        ):
            _, x, y = zip(*triples, strict=True)
            axes.plot(x, y, color=colour, alpha=0.35, ls="--", marker=".", label=label)
    axes.set_xlabel("mean response length (tokens, without EOS)")
    axes.set_ylabel("accuracy (pass@1)")
    axes.set_ylim(0, 1.05)
    axes.set_xlim(left=0)
    figure.legend(loc="outside upper center", ncols=2, fontsize=8)
    figure.draw_without_rendering()  # settles the layout, on which the places of labels depend
    place_labels(axes, labelled)
    return [save_png(figure, Path(out) / "tradeoff.png")]


def place_labels(axes: Axes, labelled: Sequence[tuple[Mapping[str, Any], str, str]]) -> list[Any]:
    """Write labels beside points so that none covers another or a point; points of one colour that
    lie on each other share one. Limits and layout must be final.

    Args:
        labelled: (row with its length and accuracy, label, colour), in the order of the curves.
    """
    groups: list[tuple[tuple[float, float], str, list[str]]] = []
    for row, label, colour in labelled:
        here = row["length"], row["accuracy"]
        for there, its_colour, labels in groups:
            ends = axes.transData.transform([here, there])
            if colour == its_colour and math.dist(*ends) < _SAME:
                labels.append(label)
                break
        else:
            groups.append((here, colour, [label]))
    texts = [
        axes.text(*point, _joined(labels), color=colour, fontsize=7, path_effects=_HALO, zorder=3)
        for point, colour, labels in groups
    ]
    bars = [path for lines in axes.collections for path in lines.get_paths()]
    paths = [*(line.get_path() for line in axes.get_lines()), *bars]
    points = np.concatenate([path.interpolated(20).vertices for path in paths])
    x, y = points[np.isfinite(points).all(1)].T
    arrows = {"arrowstyle": "-", "color": "#9a9a9a", "lw": 0.5}
    adjust_text(texts, x, y, ax=axes, arrowprops=arrows, expand=(1.2, 1.5))
    return texts


def _joined(labels: Sequence[str]) -> str:
    """ "β -200", "β -100", "β -50" as "β -200 … -50"."""
    if len(labels) == 1:
        return labels[0]
    sign = ", " if len(labels) == 2 else " … "
    return f"{labels[0]}{sign}{labels[-1].split()[-1]}"


def _spread(rows: Rows) -> list[Mapping[str, Any]]:
    """A few budgets along the curve, evenly by accuracy, so that the steep part has most."""
    chosen: list[Mapping[str, Any]] = []
    top = max(row["accuracy"] for row in rows)
    for share in range(1, _BUDGET_LABELS + 1):
        aim = top * share / (_BUDGET_LABELS + 1)
        row = min(rows, key=lambda row: abs(row["accuracy"] - aim))
        if row not in chosen:
            chosen.append(row)
    return chosen


def _xy(rows: Rows) -> tuple[list[float], list[float]]:
    return [row["length"] for row in rows], [row["accuracy"] for row in rows]


def view(result: Result) -> Group:
    """One line per beta, and where the curves lie."""
    figures = result.figures
    table = screen(
        f"Accuracy against length, {figures['prompts']} prompts",
        (
            *("beta", "mean length", "accuracy", "hard budget there"),
            *("log-prob", "repeated", "sentence"),
        ),
        (
            [
                f"{row['beta']:g}",
                *_length_and_accuracy(row),
                number(row["budget_accuracy"], ".1%"),
                *quality_cells(row),
            ]
            for row in result.tables["guided"]
        ),
    )
    line = (
        f"where the hard budget keeps half of the accuracy ({figures['half_accuracy_length']:.1f} "
        f"tokens), guidance keeps {number(figures['accuracy_kept_there'], '.1%')}"
    )
    return Group(table, *_budgets(result), Text(line))


def _budgets(result: Result) -> list[Table]:
    """Budgets that were asked for, in the prompt or of thinking tokens."""
    kinds = {"prompted": "in the prompt", "thinking": "of thinking tokens"}
    return [
        screen(
            f"Budget {kinds[name]}",
            ("B", "mean length", "accuracy"),
            ([str(row["budget"]), *_length_and_accuracy(row)] for row in result.tables[name]),
        )
        for name in kinds
        if result.tables.get(name)
    ]


def _length_and_accuracy(row: Mapping[str, Any]) -> tuple[str, str]:
    return f"{row['length']:.1f}", f"{row['accuracy']:.1%} ± {number(row['accuracy_se'], '.1%')}"
