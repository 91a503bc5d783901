"""Figures and terminal tables of the prediction evaluation, drawn from its tables alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from rich.console import Group
from rich.markup import escape
from rich.table import Table as Screen
from rich.text import Text

from lenvm_rl.evals.prediction.errors import PREDICTORS, figure_key
from lenvm_rl.evals.result import Result
from lenvm_rl.model.heldout import NAIVE
from lenvm_rl.pages.plots import save_png

Table = Sequence[Mapping[str, Any]]

_COLOURS = {"lenvm": "#2b5c8a", "mean": "#9a9a9a", "linear": "#d1603d", "survival": "#5d8a4a"}
_LABELS = {
    "lenvm": "LenVM",
    "mean": "training mean",
    "linear": "linear in prompt length",
    "survival": "training mean given tokens so far",
}
_SCREEN = {**_LABELS, "survival": "given tokens so far"}
_MOST_COLUMNS = 4
PAPER_TABLE_3 = {
    "LenVM 1.5B": (17.0, 29.0, 33.0),
    "LenVM 3B": (13.6, 24.0, 27.2),
    "LenVM 7B": (11.0, 19.5, 23.0),
    "LenVM 14B": (10.4, 17.0, 19.8),
    "LenVM 32B": (9.8, 14.9, 17.1),
}
"""MRE in percent on math, code and instruction following (Qwen2.5-7B-Instruct's completions, 64
samples a prompt; raw, not noise-corrected)."""
PAPER_DOMAINS = ("math", "code", "instructions")


def draw(result: Result, out: str | Path) -> list[Path]:
    """Draw what the tables allow into `out`; returns the PNG files."""
    drawn = {"prompts": _prompts, "positions": _positions, "calibration": _calibration}
    drawn |= {"states": _states, "state_positions": _state_positions}
    drawn |= {"domains": _domains, "position_calibration": _position_calibration}
    paths = []
    for table, fill in drawn.items():
        if result.tables.get(table):
            figure = Figure(figsize=(6.4, 5.0), layout="constrained")
            fill(figure.add_subplot(), result.tables[table], result.figures)
            paths.append(save_png(figure, Path(out) / f"prediction_{table}.png"))
    return paths


def view(result: Result) -> Group:
    """Tables of the prompt, domains, outcomes and positions, and the Monte Carlo line."""
    figures, tables = result.figures, result.tables
    parts: list[Any] = [_prompt_screen(figures)]
    if tables.get("domains"):
        parts.append(_table_3(tables["domains"]))
    if tables.get("outcomes"):
        parts.append(_outcome_screen(tables["outcomes"]))
    parts.append(_position_screen(tables.get("positions", [])))
    if "r2_monte_carlo" in figures:
        parts.append(
            Text(
                f"inside responses: R2 {figures['r2_monte_carlo']:.3f} against Monte Carlo values "
                f"({figures['r2_monte_carlo_raw']:.3f} with their sampling noise; "
                f"{figures['states']} states x {figures['continuations_per_state']:.0f})"
            )
        )
    if "calibration_error" in figures:
        parts.append(
            Text(
                f"over {figures['tokens']:,} tokens: mean squared error {figures['mse']:.4f}, "
                f"calibration error {figures['calibration_error']:.4f}; "
                f"{figures['share_truncated']:.2%} of completions truncated"
            )
        )
    return Group(*parts)


def paper_rows() -> list[dict[str, Any]]:
    """Table 3 of the paper in the form of table `domains`; MRE as a fraction."""
    return [
        {"domain": domain, "predictor": name, "mre": mre / 100}
        for name, values in PAPER_TABLE_3.items()
        for domain, mre in zip(PAPER_DOMAINS, values, strict=True)
    ]


def _prompts(axes: Axes, table: Table, figures: Mapping[str, Any]) -> None:
    measured = [row["measured"] for row in table]
    for name in ("mean", "linear", "lenvm"):
        if name not in table[0]:
            continue
        label = f"{_LABELS[name]}, MRE {figures[f'mre_{figure_key(name)}']:.3f}"
        style = {"s": 26 if name == "lenvm" else 14, "alpha": 0.85, "zorder": 2}
        axes.scatter(
            measured, [row[name] for row in table], color=_COLOURS[name], label=label, **style
        )
    values = [row[name] for row in table for name in ("measured", "lenvm")]
    _diagonal(axes, 0.9 * min(values), 1.1 * max(values))
    _log_axes(axes, "x", "y")
    axes.set_xlabel("measured, L_GT: length of the mean u (tokens)")
    axes.set_ylabel("predicted at the prompt boundary (tokens)")
    floor = figures.get("mre_noise_floor", float("nan"))
    noise = f", noise floor of MRE {floor:.3f}" if floor == floor else ""
    axes.set_title(
        f"{len(table)} prompts x {figures['samples_per_prompt']:.0f} samples{noise}", fontsize=10
    )
    axes.legend(fontsize=8)


def _states(axes: Axes, table: Table, figures: Mapping[str, Any]) -> None:
    truth = [row["monte_carlo"] for row in table]
    predicted = [row["lenvm"] for row in table]
    axes.errorbar(
        truth,
        predicted,
        xerr=[row["std_of_mean"] for row in table],
        fmt="none",
        ecolor="#c8c8c8",
        elinewidth=0.8,
        zorder=1,
    )
    points = axes.scatter(
        truth, predicted, c=[row["position"] for row in table], cmap="viridis", s=18, zorder=2
    )
    axes.figure.colorbar(points, ax=axes, label="relative position of the state, t / L")
    _diagonal(axes, 0.0, 1.02 * max(*truth, *predicted))
    axes.set_xlabel("Monte Carlo: mean of u = 1 - gamma^l (bars: 1 standard error)")
    axes.set_ylabel("predicted u, -V")
    axes.set_title(
        f"{len(table)} states x {figures['continuations_per_state']:.0f} continuations: R2 "
        f"{figures['r2_monte_carlo']:.3f} noise-corrected, {figures['r2_monte_carlo_raw']:.3f} raw",
        fontsize=10,
    )


def _positions(axes: Axes, table: Table, figures: Mapping[str, Any]) -> None:
    for name in ("lenvm", *NAIVE):
        rows = [row for row in table if row["predictor"] == name]
        if rows:
            axes.plot(
                [100 * row["position"] for row in rows],
                [row["relative_error"] for row in rows],
                marker="o",
                color=_COLOURS[name],
                label=_LABELS[name],
                # the mean may lie on the linear fit: let both be seen
                linestyle="--" if name == "mean" else "-",
                zorder=3 if name == "mean" else 2,
            )
    _log_axes(axes, "y")
    axes.set_xlabel("relative position in the response (%)")
    axes.set_ylabel("mean relative error of the remaining length")
    axes.set_title(
        f"{table[0]['responses']:,} held-out responses, against single outcomes", fontsize=10
    )
    axes.grid(alpha=0.3, which="both", linewidth=0.5)
    axes.legend(fontsize=8)


def _calibration(axes: Axes, table: Table, figures: Mapping[str, Any]) -> None:
    predicted = [row["predicted"] for row in table]
    actual = [row["actual"] for row in table]
    axes.plot(predicted, actual, marker="o", color=_COLOURS["lenvm"])
    _diagonal(axes, 0.0, 1.05 * max(*predicted, *actual))
    axes.set_xlabel("mean predicted u, -V")
    axes.set_ylabel("mean outcome, u = 1 - gamma^l")
    tokens = sum(row["tokens"] for row in table)
    axes.set_title(
        f"{tokens:,} tokens in {len(table)} bins of equal count, calibration error "
        f"{figures['calibration_error']:.4f}",
        fontsize=10,
    )


def _state_positions(axes: Axes, table: Table, figures: Mapping[str, Any]) -> None:
    names = [f"{100 * row['from']:.0f}-{100 * row['to']:.0f} %" for row in table]
    places = range(len(table))
    width = 0.38
    axes.bar(
        [x - width / 2 for x in places],
        [row["predicted"] for row in table],
        width,
        color=_COLOURS["lenvm"],
        label="predicted, mean of -V",
    )
    axes.bar(
        [x + width / 2 for x in places],
        [row["measured"] for row in table],
        width,
        color="#b8c9d9",
        label="Monte Carlo",
    )
    top = max(max(row["predicted"], row["measured"]) for row in table)
    for x, row in zip(places, table, strict=True):
        height = max(row["predicted"], row["measured"]) + 0.015 * top
        text = f"bias {row['bias']:+.3f}\nnoise-free rmse {row['rmse']:.3f}\nn {row['states']}"
        axes.text(x, height, text, ha="center", va="bottom", fontsize=8)
    axes.set_ylim(0, 1.25 * top)
    axes.set_xticks(list(places), names)
    axes.set_xlabel("relative position of the state in its response")
    axes.set_ylabel("discounted length u")
    axes.set_title("Calibration by position, against Monte Carlo values", fontsize=10)
    axes.legend(fontsize=8, loc="upper right")


def _domains(axes: Axes, table: Table, figures: Mapping[str, Any]) -> None:
    """MRE by domain and predictor, each domain's noise floor as a line; paper's table 3 as marks
    where a domain has its name."""
    domains = list(dict.fromkeys(row["domain"] for row in table))
    predictors = list(dict.fromkeys(row["predictor"] for row in table))
    width = 0.8 / len(predictors)
    for k, name in enumerate(predictors):
        rows = {row["domain"]: row for row in table if row["predictor"] == name}
        axes.bar(
            [i + (k - (len(predictors) - 1) / 2) * width for i in range(len(domains))],
            [100 * rows[domain]["mre"] for domain in domains],
            width,
            color=_COLOURS[name],
            label=_LABELS[name],
        )
    floors = {row["domain"]: 100 * row["noise_floor"] for row in table}
    axes.hlines(
        [floors[domain] for domain in domains],
        [i - 0.4 for i in range(len(domains))],
        [i + 0.4 for i in range(len(domains))],
        color="black",
        linewidth=1.2,
        label="noise floor",
    )
    paper = [row for row in paper_rows() if row["domain"] in domains]
    if paper:
        axes.scatter(
            [domains.index(row["domain"]) for row in paper],
            [100 * row["mre"] for row in paper],
            marker="x",
            color="black",
            label="paper, 1.5B to 32B",
            zorder=3,
        )
    axes.set_xticks(range(len(domains)), domains, rotation=30, ha="right", fontsize=8)
    axes.set_ylabel("MRE at the prompt boundary (%)")
    axes.legend(fontsize=8)


def _position_calibration(axes: Axes, table: Table, figures: Mapping[str, Any]) -> None:
    positions = sorted({row["position"] for row in table})
    shades = colormaps["viridis"]
    for k, position in enumerate(positions):
        rows = [row for row in table if row["position"] == position]
        axes.plot(
            [row["predicted"] for row in rows],
            [row["actual"] for row in rows],
            marker="o",
            markersize=4,
            color=shades(0.85 * k / max(1, len(positions) - 1)),
            label=f"{100 * position:.0f} % of the response",
        )
    _diagonal(axes, 0.0, 1.05 * max(max(row["predicted"], row["actual"]) for row in table))
    axes.set_xlabel("mean predicted u, -V")
    axes.set_ylabel("mean outcome, u = 1 - gamma^l")
    axes.set_title(
        "Ten bins each, against single outcomes (inside responses a perfect\n"
        "model leaves the diagonal: the position is known only afterwards)",
        fontsize=9,
    )
    axes.legend(fontsize=8)


def _log_axes(axes: Axes, *names: str) -> None:
    """Logarithmic axes with plain numbers at 1, 2, 3, 5, 7, 10, ..."""
    for name in names:
        getattr(axes, f"set_{name}scale")("log")
        axis = getattr(axes, f"{name}axis")
        axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 3.0, 5.0, 7.0)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())


def _diagonal(axes: Axes, low: float, high: float) -> None:
    axes.plot([low, high], [low, high], color="black", linewidth=0.8, zorder=0)


def _table_3(rows: Table) -> Screen:
    """Predictors x domains when there are few domains, else domains x predictors."""
    domains = list(dict.fromkeys(row["domain"] for row in rows))
    predictors = list(dict.fromkeys(row["predictor"] for row in rows))
    cells = {(row["predictor"], row["domain"]): row for row in rows}
    title = "MRE at the prompt by domain, % (in brackets: noise-corrected)"
    if len(domains) > _MOST_COLUMNS:
        table = Screen("domain", "prompts", *(_SCREEN[name] for name in predictors), title=title)
        for domain in domains:
            prompts = cells[predictors[0], domain]["prompts"]
            values = [_mre(cells[name, domain]) for name in predictors]
            table.add_row(escape(domain), f"{prompts}", *values)
        return table
    table = Screen("", *(escape(domain) for domain in domains), title=title)
    for name in predictors:
        table.add_row(_SCREEN[name], *(_mre(cells[name, domain]) for domain in domains))
    table.add_section()
    words = ", ".join(PAPER_DOMAINS)
    for name, values in PAPER_TABLE_3.items():
        own = dict(zip(PAPER_DOMAINS, values, strict=True))
        shown = [f"{own[domain]:.1f}" if domain in own else "" for domain in domains]
        if not any(shown):
            shown[0] = " / ".join(f"{value:.1f}" for value in values)
        table.add_row(f"paper, {name} ({words})", *shown)
    return table


def _mre(row: Mapping[str, Any]) -> str:
    corrected = row["mre_corrected"]
    return f"{100 * row['mre']:.1f}" + (
        "" if math.isnan(corrected) else f" ({100 * corrected:.1f})"
    )


def _outcome_screen(rows: Table) -> Screen:
    table = Screen(title="Against single outcomes, tokens")
    table.add_column("predictor", no_wrap=True)
    for name in ("MAE at the prompt", "tau", "MAE over all states", "tau"):
        table.add_column(name, justify="right")
    cells = {(row["predictor"], row["at"]): row for row in rows}
    for name in dict.fromkeys(row["predictor"] for row in rows):
        line = []
        for at in ("s0", "all"):
            row = cells.get((name, at))
            line += [f"{row['mae']:.1f}", _number(row["kendall_tau"])] if row else ["", ""]
        table.add_row(_SCREEN[name], *line)
    return table


def _prompt_screen(figures: Mapping[str, Any]) -> Screen:
    table = Screen(
        title=f"Length known before the first token: {figures['prompts']} prompts x "
        f"{figures['samples_per_prompt']:.0f} samples, noise floor "
        f"{_number(figures['mre_noise_floor'])}"
    )
    table.add_column("predictor", no_wrap=True)
    for name in ("MRE", "noise-corrected", "MAE (tokens)", "Kendall tau"):
        table.add_column(name, justify="right")
    for name in PREDICTORS:
        if f"mre_{(key := figure_key(name))}" in figures:
            table.add_row(
                _SCREEN[name],
                _number(figures[f"mre_{key}"]),
                _number(figures[f"mre_{key}_corrected"]),
                _number(figures[f"mae_{key}"], digits=1),
                _number(figures[f"kendall_tau_{key}"]),
            )
    return table


def _position_screen(rows: Table) -> Screen:
    table = Screen(title="Mean relative error of the remaining length, by position in the response")
    table.add_column("predictor", no_wrap=True)
    positions = sorted({row["position"] for row in rows})
    for position in positions:
        table.add_column(f"{100 * position:.0f} %", justify="right")
    for name, label in _SCREEN.items():
        cells = {r["position"]: r["relative_error"] for r in rows if r["predictor"] == name}
        if cells:
            table.add_row(label, *(_number(cells[position]) for position in positions))
    return table


def _number(value: float, *, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
