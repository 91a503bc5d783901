"""Figure of LIFEBench, drawn from its tables alone: obtained against asked, and the score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, StrMethodFormatter

from lenvm_rl.evals.length_control.control_plots import CONTROL_NAMES, STYLE, save_figure

Table = Sequence[Mapping[str, Any]]


def plot_lifebench(tables: Mapping[str, Table], figures: Mapping[str, Any], file: Path) -> Path:
    """One column per control: mean length against target above, Length Score below."""
    rows, unit = tables["targets"], figures["unit"]
    controls = list(dict.fromkeys(row["control"] for row in rows))
    figure = Figure(figsize=(4.0 * len(controls) + 0.4, 6.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(controls), squeeze=False, sharex=True)
    for column, control in enumerate(controls):
        mine = [row for row in rows if row["control"] == control]
        above, below = axes[0][column], axes[1][column]
        above.set_title(CONTROL_NAMES[control], fontsize=10)
        targets = sorted({row["target"] for row in mine})
        above.plot(targets, targets, color="black", linewidth=0.8, linestyle=":", zorder=1)
        above.set_yscale("log")
        _lines(above, mine, "length")
        _lines(below, mine, "score")
        below.set_ylim(-3, 105)
        for panel in (above, below):
            panel.set_xscale("log")
            panel.xaxis.set_major_locator(FixedLocator(targets))
            panel.xaxis.set_minor_locator(NullLocator())
            panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        above.yaxis.set_major_locator(LogLocator(base=2))
        above.yaxis.set_minor_locator(NullLocator())
        above.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        below.set_xlabel(f"target n ({unit})")
    axes[0][0].set_ylabel(f"mean length obtained ({unit})")
    axes[1][0].set_ylabel("Length Score, failures 0")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=8)
    return save_figure(figure, file)


def _lines(axes: Axes, rows: Table, name: str) -> None:
    for method, (colour, marker, label) in STYLE.items():
        mine = sorted((row["target"], row[name]) for row in rows if row["method"] == method)
        if mine:
            axes.plot(*zip(*mine, strict=True), color=colour, marker=marker, label=label, ms=5)
