"""Figure and terminal table of the scheduling evaluation, drawn from its tables alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from lenvm_rl.evals.result import Result
from lenvm_rl.pages.plots import number, save_png, screen

_COLOURS = {
    "fcfs": "#444444",
    "lenvm": "#2b5c8a",
    "linear": "#d1603d",
    "source": "#7a6b3a",
    "survival": "#5d8a4a",
    "prompt": "#8a5a9e",
    "random": "#b0b0b0",
    "true": "#c9a227",
}
_NAMES = {
    "fcfs": "first come, first served",
    "lenvm": "LenVM",
    "linear": "linear in prompt length",
    "source": "training mean of the source",
    "survival": "training mean given tokens so far",
    "prompt": "mean of the prompt's samples",
    "random": "random",
    "true": "perfect knowledge",
}


def view(result: Result) -> Table:
    """One line per load and order."""
    figures, rows = result.figures, result.tables["summary"]
    columns = ("latency_mean", "latency_p99", "first_token_mean", "preemptions")
    rows = [row for row in rows if row["burstiness"] == figures["burstiness"]]
    table = screen(
        f"Order of service: {figures['requests']} requests x {figures['seeds']} seeds, "
        f"{figures['slots']} slots, lengths of {figures['completions']:,} completions "
        f"(mean {figures['length_mean']:.0f}, p99 {figures['length_p99']:.0f} tokens)",
        ("order", "load", f"mean latency ({_unit(figures)})", "p99", "first token")
        + ("preempted", "share of the way"),
        [],
    )
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        table.add_row(
            row["order"],
            f"{row['load']:g}",
            *(f"{row[name]:.0f}" for name in columns),
            _share(row["share"], row["share_sd"]),
            end_section=after is not None and after["load"] != row["load"],
        )
    return table


def _share(mean: float, sd: float) -> str:
    return number(mean, ".0%") + ("" if math.isnan(sd) else f" ± {sd:.0%}")


def _unit(figures: Mapping[str, Any]) -> str:
    return "steps" if figures["step_seconds"] == 1.0 else "s"


def _colour(predictor: str) -> str:
    return _COLOURS.get(predictor or "fcfs", "#777777")


def _label(predictor: str) -> str:
    return _NAMES.get(predictor or "fcfs", predictor)


def draw(result: Result, out: str | Path) -> list[Path]:
    """Mean latency against load, and the share of the way to perfect knowledge, into `out`."""
    figure = Figure(figsize=(11.5, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    summary = pd.DataFrame(result.tables["summary"])
    parts = summary.order.str.partition("-")
    summary["preempts"], summary["predictor"] = parts[0] == "remaining", parts[2]
    _latencies(left, summary, result.figures)
    _shares(right, summary, result.figures["load"])
    return [save_png(figure, Path(out) / "scheduling.png")]


def _latencies(axes: Axes, summary: pd.DataFrame, figures: Mapping[str, Any]) -> None:
    # the shares of the others are on the right
    shown = summary[~summary.predictor.isin(["linear", "source", "survival", "random", "prompt"])]
    for _, line in shown.groupby("order", sort=False):
        predictor, preempts = line.predictor.iloc[0], line.preempts.iloc[0]
        axes.errorbar(
            line.load,
            line.latency_mean,
            yerr=line.latency_mean_sd.fillna(0),
            color=_colour(predictor),
            linestyle="--" if preempts else "-",
            marker="o",
            markersize=4,
            capsize=2,
            label=_label(predictor) + (", preemptive" if preempts else ""),
        )
    axes.set_xlabel("load (tokens asked for / tokens that can be written)")
    axes.set_ylabel(f"mean latency, arrival to last token ({_unit(figures)})")
    axes.set_title(
        f"{figures['slots']} slots, {figures['requests']} requests, "
        f"mean and sd of {figures['seeds']} seeds",
        fontsize=10,
    )
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.legend(fontsize=8)


def _shares(axes: Axes, summary: pd.DataFrame, load: float) -> None:
    rows = summary[(summary.load == load) & ~summary.predictor.isin(["", "true"])]
    places = range(len(rows))
    axes.barh(
        places,
        100 * rows.share.fillna(0),
        xerr=100 * rows.share_sd.fillna(0),
        color=[_colour(predictor) for predictor in rows.predictor],
        error_kw={"elinewidth": 1, "capsize": 2},
    )
    labels = [
        _label(row.predictor) + (",\npreemptive" if row.preempts else "")
        for row in rows.itertuples()
    ]
    axes.set_yticks(places, labels, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.axvline(100, color=_COLOURS["true"], linewidth=1.2)
    axes.set_xlabel("share of the way to perfect knowledge (%)")
    axes.set_title(f"Mean latency at load {load:g}", fontsize=10)
