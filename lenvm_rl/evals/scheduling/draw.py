"""Figure and terminal table of the scheduling evaluation, drawn from its tables alone."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from lenvm_rl.evals.result import Result
from lenvm_rl.pages.plots import save_png

_COLOURS = {
    "fcfs": "#444444",
    "lenvm": "#2b5c8a",
    "linear": "#d1603d",
    "survival": "#5d8a4a",
    "prompt": "#8a5a9e",
    "random": "#b0b0b0",
    "true": "#c9a227",
}
_NAMES = {
    "fcfs": "first come, first served",
    "lenvm": "LenVM",
    "linear": "linear in prompt length",
    "survival": "training mean given tokens so far",
    "prompt": "mean of the prompt's samples",
    "random": "random",
    "true": "perfect knowledge",
}


def view(result: Result) -> Table:
    """One line per load and order."""
    figures = result.figures
    unit = "steps" if figures["step_seconds"] == 1.0 else "s"
    table = Table(
        title=f"Order of service: {figures['requests']} requests x {figures['seeds']} seeds, "
        f"{figures['slots']} slots, lengths of {figures['completions']:,} completions "
        f"(mean {figures['length_mean']:.0f}, p99 {figures['length_p99']:.0f} tokens)"
    )
    table.add_column("load", justify="right")
    table.add_column("order", no_wrap=True)
    names = (f"mean latency ({unit})", "p99", "first token", "preempted", "share of the way")
    for name in names:
        table.add_column(name, justify="right")
    load = None
    for row in result.tables["summary"]:
        if load is not None and load != row["load"]:
            table.add_section()
        table.add_row(
            "" if load == row["load"] else f"{row['load']:g}",
            row["order"],
            f"{row['latency_mean']:.0f}",
            f"{row['latency_p99']:.0f}",
            f"{row['first_token_mean']:.0f}",
            f"{row['preemptions']:.0f}",
            _share(row["share"], row["share_sd"]),
        )
        load = row["load"]
    return table


def _share(mean: float, sd: float) -> str:
    if math.isnan(mean):
        return "-"
    return f"{mean:.0%}" + ("" if math.isnan(sd) else f" ± {sd:.0%}")


def _colour(predictor: str) -> str:
    return _COLOURS.get(predictor or "fcfs", "#777777")


def _label(predictor: str) -> str:
    return _NAMES.get(predictor or "fcfs", predictor)


def _or_zero(x: float) -> float:
    return 0.0 if math.isnan(x) else x


def draw(result: Result, out: str | Path) -> list[Path]:
    """Mean latency against load, and the share of the way to perfect knowledge, into `out`."""
    figure = Figure(figsize=(11.5, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    _latencies(left, result)
    _shares(right, result)
    return [save_png(figure, Path(out) / "scheduling.png")]


def _latencies(axes: Axes, result: Result) -> None:
    rows = result.tables["summary"]
    orders = list(dict.fromkeys(row["order"] for row in rows))
    for order in orders:
        kind, _, predictor = order.partition("-")
        if predictor in ("linear", "survival", "random", "prompt"):
            continue  # their shares are on the right
        line = [row for row in rows if row["order"] == order]
        preempts = kind == "remaining"
        axes.errorbar(
            [row["load"] for row in line],
            [row["latency_mean"] for row in line],
            yerr=[_or_zero(row["latency_mean_sd"]) for row in line],
            color=_colour(predictor),
            linestyle="--" if preempts else "-",
            marker="o",
            markersize=4,
            capsize=2,
            label=_label(predictor) + (", preemptive" if preempts else ""),
        )
    unit = "steps" if result.figures["step_seconds"] == 1.0 else "s"
    axes.set_xlabel("load (tokens asked for / tokens that can be written)")
    axes.set_ylabel(f"mean latency, arrival to last token ({unit})")
    axes.set_title(
        f"{result.figures['slots']} slots, {result.figures['requests']} requests, "
        f"mean and sd of {result.figures['seeds']} seeds",
        fontsize=10,
    )
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.legend(fontsize=8)


def _shares(axes: Axes, result: Result) -> None:
    load = result.figures["load"]
    rows = [
        row
        for row in result.tables["summary"]
        if row["load"] == load and row["order"] != "fcfs" and not row["order"].endswith("-true")
    ]
    places = range(len(rows))
    shares = [100 * _or_zero(row["share"]) for row in rows]
    spread = [100 * _or_zero(row["share_sd"]) for row in rows]
    kinds = [row["order"].partition("-") for row in rows]
    axes.barh(
        list(places),
        shares,
        xerr=spread,
        color=[_colour(predictor) for _, _, predictor in kinds],
        error_kw={"elinewidth": 1, "capsize": 2},
    )
    labels = [
        _label(predictor) + (",\npreemptive" if kind == "remaining" else "")
        for kind, _, predictor in kinds
    ]
    axes.set_yticks(list(places), labels, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.axvline(100, color=_COLOURS["true"], linewidth=1.2)
    axes.set_xlabel("share of the way to perfect knowledge (%)")
    axes.set_title(f"Mean latency at load {load:g}", fontsize=10)
