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
    "quantile": "#8fae7f",
    "feedback": "#b04a6a",
    "lenvm-p90": "#5a86b3",
    "lenvm-tie": "#7fa3c7",
    "lenvm-gittins": "#1b3a59",
    "prompt": "#8a5a9e",
    "random": "#b0b0b0",
    "true": "#c9a227",
}
_STYLES = {"remaining": "--", "patient": "-.", "aged": ":"}
_WORDS = {"remaining": "preemptive", "patient": "with a bound on latency", "aged": "aged"}
_NAMES = {
    "fcfs": "first come, first served",
    "lenvm": "LenVM",
    "linear": "linear in prompt length",
    "source": "training mean of the source",
    "survival": "training mean given tokens so far",
    "quantile": "training .9 quantile given tokens so far",
    "feedback": "feedback, no prediction",
    "lenvm-p90": "LenVM, .9 quantile",
    "lenvm-tie": "LenVM, tail-inflated",
    "lenvm-gittins": "LenVM, Gittins index",
    "prompt": "mean of the prompt's samples",
    "random": "random",
    "true": "perfect knowledge",
}


def view(result: Result) -> Table:
    """One line per load and order."""
    figures, rows = result.figures, result.tables["summary"]
    columns = ("latency_mean", "latency_p99", "tail", "first_token_mean", "preemptions")
    rows = [row for row in rows if row["burstiness"] == figures["burstiness"]]
    table = screen(
        f"Order of service: {figures['requests']} requests x {figures['seeds']} seeds, "
        f"{figures['slots']} slots, lengths of {figures['completions']:,} completions "
        f"(mean {figures['length_mean']:.0f}, p99 {figures['length_p99']:.0f} tokens)",
        ("order", "load", f"mean latency ({_unit(figures)})", "p99", "of fcfs", "first token")
        + ("preempted", "share of the way"),
        [],
    )
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        table.add_row(
            row["order"],
            f"{row['load']:g}",
            *(f"{row[name]:{'.2f' if name == 'tail' else '.0f'}}" for name in columns),
            _share(row["share"], row["share_sd"]),
            end_section=after is not None and after["load"] != row["load"],
        )
    return table


def _share(mean: float, sd: float) -> str:
    return number(mean, ".0%") + ("" if math.isnan(sd) else f" ± {sd:.0%}")


def _unit(figures: Mapping[str, Any]) -> str:
    return "steps" if figures["step_seconds"] == 1.0 else "s"


def _colour(predictor: str) -> str:
    return _COLOURS.get(predictor, "#777777")


def _label(rule: str, predictor: str) -> str:
    return ", ".join(filter(None, (_NAMES.get(predictor, predictor), _WORDS.get(rule))))


def draw(result: Result, out: str | Path) -> list[Path]:
    """Mean latency and its tail against load, and the share of the way to perfect knowledge."""
    figure = Figure(figsize=(16, 5.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.15))
    summary: Any = pd.DataFrame(result.tables["summary"])
    summary = summary[summary.burstiness == result.figures["burstiness"]]
    parts = summary.order.str.partition("-")
    plain = parts[2] == ""  # fcfs, feedback and srpt are no predictor's
    named = parts[0].where(parts[0] != "srpt", "true")
    summary = summary.assign(
        rule=parts[0].where(~plain, ""), predictor=parts[2].where(~plain, named)
    )
    figures = result.figures
    # the shares of the others are on the right
    shown = summary[
        summary.order.isin(("fcfs", "feedback", "srpt", "patient-true"))
        | ((summary.predictor == "lenvm") & (summary.rule != "aged"))
    ]
    _against_load(left, shown, "latency_mean")
    left.set_ylabel(f"mean latency, arrival to last token ({_unit(figures)})")
    left.set_title(
        f"{figures['slots']} slots, {figures['requests']} requests, "
        f"mean and sd of {figures['seeds']} seeds",
        fontsize=10,
    )
    left.legend(fontsize=8)
    _against_load(middle, shown[shown.order != "fcfs"], "tail")
    middle.axhline(1.0, color=_COLOURS["fcfs"], linewidth=1.2)
    middle.set_ylabel("p99 latency / that of first come, first served")
    middle.set_title("The price: who waits longest", fontsize=10)
    _shares(right, summary, figures["load"])
    return [save_png(figure, Path(out) / "scheduling.png")]


def _against_load(axes: Axes, shown: Any, measure: str) -> None:
    for _, line in shown.groupby("order", sort=False):
        rule, predictor = line.rule.iloc[0], line.predictor.iloc[0]
        axes.errorbar(
            line.load,
            line[measure],
            yerr=line[f"{measure}_sd"].fillna(0),
            color=_colour(predictor),
            linestyle=_STYLES.get(rule, "-"),
            marker="o",
            markersize=4,
            capsize=2,
            label=_label(rule, predictor),
        )
    axes.set_xlabel("load (tokens asked for / tokens that can be written)")
    axes.grid(alpha=0.3, linewidth=0.5)


def _shares(axes: Axes, summary: Any, load: float) -> None:
    perfect = summary.order.isin(("fcfs", "srpt", "predicted-true", "remaining-true"))
    rows = summary[(summary.load == load) & ~perfect].to_dict("records")
    shares = [100 * _known(row["share"]) for row in rows]
    axes.barh(
        range(len(rows)),
        shares,
        xerr=[100 * _known(row["share_sd"]) for row in rows],
        color=[_colour(row["predictor"]) for row in rows],
        error_kw={"elinewidth": 1, "capsize": 2},
    )
    for place, (row, share) in enumerate(zip(rows, shares, strict=True)):
        right = max(share + 100 * _known(row["share_sd"]), 0) + 2
        axes.annotate(f"p99 x {row['tail']:.2f}", (right, place), va="center", fontsize=6.5)
    labels = [_label(row["rule"], row["predictor"]) for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.axvline(100, color=_COLOURS["true"], linewidth=1.2)
    axes.set_xlabel("share of the way to perfect knowledge (%)")
    axes.set_title(f"Mean latency at load {load:g}", fontsize=10)


def _known(value: float) -> float:
    """The value, or 0 where it is not known."""
    return 0.0 if math.isnan(value) else value
