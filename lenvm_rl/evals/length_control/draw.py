"""Figure and terminal table of length control, from its tables and figures alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, StrMethodFormatter
from rich.console import Group
from rich.table import Table
from rich.text import Text

from lenvm_rl.evals.result import Result
from lenvm_rl.pages.plots import number, save_png, screen

Rows = Sequence[Mapping[str, Any]]

STYLE = {
    "guided": ("#2b5c8a", "o", "guided"),
    "unguided": ("#9a9a9a", "s", "unguided"),
    "truncated": ("#d1603d", "v", "truncated at the target"),
    "in_words": ("#5d8a4a", "^", "asked in words"),
    "countdown": ("#8a5a9e", "D", "countdown prompt"),
}
"""Method -> colour, marker, label."""
_CONTROLS = {"equal": "exactly n", "at_most": "at most n", "at_least": "at least n"}


def draw(result: Result, out: str | Path) -> list[Path]:
    """length_control.png: one column per control; length obtained against asked, Length Score, and
    accuracy where answers are graded."""
    rows, unit = result.tables["targets"], result.figures["unit"]
    fixed = "official" in result.tables
    controls = list(dict.fromkeys(row["control"] for row in rows))
    graded = any(not _undefined(row["accuracy"]) for row in rows)
    names = ["length", "score", *(["accuracy"] if graded else [])]
    size = (4.0 * len(controls) + 0.4, 0.6 + 2.9 * len(names))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(names), len(controls), squeeze=False, sharex="col")
    for column, control in enumerate(controls):
        mine = [row for row in rows if row["control"] == control]
        targets = sorted({row["target"] for row in mine})
        for line, name in enumerate(names):
            _curves(axes[line][column], mine, name)
        axes[0][column].set_title(_CONTROLS[control], fontsize=10)
        _diagonal(axes[0][column], targets, fixed)
        axes[1][column].set_ylim(-3, 105)
        axes[-1][column].set_xlabel(f"{'' if fixed else 'mean '}target n ({unit})")
    axes[0][0].set_ylabel(f"mean length obtained ({unit})")
    axes[1][0].set_ylabel("Length Score, failures 0")
    if graded:
        axes[2][0].set_ylabel("accuracy")
        for axis in axes[2]:
            axis.set_ylim(0, 1.05)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=8)
    return [save_png(figure, Path(out) / "length_control.png")]


def _diagonal(axes: Axes, targets: Sequence[float], fixed: bool) -> None:
    """Where length and target are equal; given targets double, so their axes are logarithmic."""
    ends = targets if fixed else [0, *targets]
    axes.plot(ends, ends, color="black", linewidth=0.8, linestyle=":", zorder=1)
    if not fixed:
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        return
    axes.set(xscale="log", yscale="log")
    for axis, locator in ((axes.xaxis, FixedLocator(targets)), (axes.yaxis, LogLocator(base=2))):
        axis.set_major_locator(locator)
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _curves(axes: Axes, rows: Rows, name: str) -> None:
    for method, (colour, marker, label) in STYLE.items():
        mine = sorted((row["target"], row[name]) for row in rows if row["method"] == method)
        if mine:
            axes.plot(*zip(*mine, strict=True), color=colour, marker=marker, label=label, ms=5)


def view(result: Result) -> Group:
    """One line per control and method; at given targets table 2 with the paper's LenVM rows, and
    what the official programs would print."""
    figures = result.figures
    official = {
        (row["method"], row["control"], row["scorer"]): row["score"]
        for row in result.tables.get("official", ())
    }
    table = Table(
        title=f"Length control in {figures['unit']}: {figures['prompts']} prompts x "
        f"{figures['samples']}, targets {', '.join(map(str, figures['targets']))}; failures score 0"
    )
    for name in ("control", "method"):
        table.add_column(name, no_wrap=True)
    scores = ("LenVM", "official") if official else ()
    for name in ("score", *scores, "|d|", "failed", "ended", "accuracy"):
        table.add_column(name, justify="right")
    for row in result.tables["summary"]:
        key = row["method"], row["control"]
        printed = [_cell(official[*key, name]) for name in ("fraction", "percent") if official]
        table.add_row(
            row["control"],
            row["method"],
            _cell(row["score"]),
            *printed,
            _cell(row["deviation"], " %"),
            _cell(100 * row["failed"], " %"),
            _cell(100 * row["ended"], " %"),
            _cell(row["accuracy"], share=True),
        )
    return Group(*_table_2(result), table, _quality(result), Text(_note(figures)))


def _quality(result: Result) -> Table:
    """What the text is worth, one line per control and method."""
    return screen(
        "Text: nats a token under the policy, repeated 4-grams, full sentence at the end",
        ("control", "method", "log-prob", "repeated", "sentence"),
        ([row["control"], row["method"], *quality_cells(row)] for row in result.tables["summary"]),
    )


def quality_cells(row: Mapping[str, Any]) -> list[str]:
    """Log-probability, repetition and full sentences as text."""
    forms = {"logprob": ".2f", "repetition": ".1%", "full_sentence": ".1%"}
    return [number(row[name], form) for name, form in forms.items()]


def _table_2(result: Result) -> list[Table]:
    if "table2" not in result.tables:
        return []
    table = Table(title="in the layout of the paper's table 2")
    table.add_column("", no_wrap=True)
    for name in ("|d|", "equal to", "at most", "at least"):
        table.add_column(name, justify="right")
    for row in result.tables["table2"]:
        if row["source"] == "here" or "Qwen" in row["model"]:
            label = row["model"] if row["source"] == "here" else f"paper: {row['model']}"
            scores = (_cell(row[name]) for name in ("equal", "at_most", "at_least"))
            table.add_row(label, _cell(row["deviation"], " %", digits=0), *scores)
    return [table]


def _note(figures: Mapping[str, Any]) -> str:
    free = (
        f"unguided: {figures['unguided_length']:.0f} tokens, "
        f"accuracy {_cell(figures['unguided_accuracy'], share=True)}, "
        f"log-probability {_cell(figures['unguided_logprob'], digits=2)} a token"
    )
    ratios = ", ".join(f"{lang} {x:.2f}" for lang, x in figures["tokens_per_word"].items())
    asked = "the prompts ask for it in words" if figures["asked_in_words"] else "asked by no words"
    return f"{free}; the length: {asked}; tokens per word of unguided samples: {ratios}"


def _undefined(x: float | None) -> bool:
    return x is None or math.isnan(x)


def _cell(x: float | None, unit: str = "", *, digits: int = 1, share: bool = False) -> str:
    if _undefined(x):
        return "-"
    return f"{x:.1%}" if share else f"{x:.{digits}f}{unit}"
