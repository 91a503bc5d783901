"""Figures and terminal tables of the prediction evaluation, drawn from its tables alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lenvm_rl.evals.prediction.errors import PREDICTORS, figure_key
from lenvm_rl.evals.result import Result
from lenvm_rl.model.heldout import NAIVE
from lenvm_rl.pages.plots import number, save_png, screen

Figures = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]

_COLOURS = {
    "lenvm": "#2b5c8a",
    "mean": "#9a9a9a",
    "linear": "#d1603d",
    "survival": "#5d8a4a",
    "source": "#7a6b3a",
    "probe": "#8a5a9e",
}
_LABELS = {
    "lenvm": "LenVM",
    "probe": "probe of the policy's states",
    "mean": "training mean",
    "linear": "linear in prompt length",
    "source": "training mean of the source",
    "survival": "training mean given tokens so far",
}
_SCREEN = {**_LABELS, "survival": "given tokens so far"}
_MOST_COLUMNS = 4
_ENDS = ("low", "high")
_TOO_TALL = 20
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
    drawn |= {"coverage": _coverage, "reliability": _reliability, "pit": _pit}
    paths = []
    for name, fill in drawn.items():
        if rows := result.tables.get(name):
            figure = Figure(figsize=(6.4, 5.0), layout="constrained")
            fill(figure.add_subplot(), pd.DataFrame(rows), result.figures)
            paths.append(save_png(figure, Path(out) / f"prediction_{name}.png"))
    return paths


def paper_rows() -> list[dict[str, Any]]:
    """Table 3 of the paper in the form of table `domains`; MRE as a fraction."""
    return [
        {"domain": domain, "predictor": name, "mre": mre / 100}
        for name, values in PAPER_TABLE_3.items()
        for domain, mre in zip(PAPER_DOMAINS, values, strict=True)
    ]


def _prompts(axes: Axes, table: pd.DataFrame, figures: Figures) -> None:
    for name in reversed(PREDICTORS):
        if name in table:
            axes.scatter(
                table.measured,
                table[name],
                color=_COLOURS[name],
                label=f"{_LABELS[name]}, MRE {figures[f'mre_{figure_key(name)}']:.3f}",
                s=26 if name == "lenvm" else 14,
                alpha=0.85,
                zorder=2,
            )
    values = table[["measured", "lenvm"]].to_numpy()
    _diagonal(axes, 0.9 * values.min(), 1.1 * values.max())
    _log_axes(axes, "x", "y")
    axes.set_xlabel("measured, L_GT: length of the mean u (tokens)")
    axes.set_ylabel("predicted at the prompt boundary (tokens)")
    floor = figures.get("mre_noise_floor", math.nan)
    noise = "" if math.isnan(floor) else f", noise floor of MRE {floor:.3f}"
    samples = figures["samples_per_prompt"]
    axes.set_title(f"{len(table)} prompts x {samples:.0f} samples{noise}", fontsize=10)
    axes.legend(fontsize=8)


def _states(axes: Axes, table: pd.DataFrame, figures: Figures) -> None:
    truth, predicted = table.monte_carlo, table.lenvm
    bars = {"ecolor": "#c8c8c8", "elinewidth": 0.8, "zorder": 1}
    axes.errorbar(truth, predicted, xerr=table.std_of_mean, fmt="none", **bars)
    points = axes.scatter(truth, predicted, c=table.position, cmap="viridis", s=18, zorder=2)
    axes.figure.colorbar(points, ax=axes, label="relative position of the state, t / L")
    _diagonal(axes, 0.0, 1.02 * max(truth.max(), predicted.max()))
    axes.set_xlabel("Monte Carlo: mean of u = 1 - gamma^l (bars: 1 standard error)")
    axes.set_ylabel("predicted u, -V")
    axes.set_title(
        f"{len(table)} states x {figures['continuations_per_state']:.0f} continuations: R2 "
        f"{figures['r2_monte_carlo']:.3f} noise-corrected, {figures['r2_monte_carlo_raw']:.3f} raw",
        fontsize=10,
    )


def _positions(axes: Axes, table: pd.DataFrame, figures: Figures) -> None:
    for name in ("lenvm", "probe", *NAIVE):
        rows = table[table.predictor == name]
        # the mean may lie on the linear fit: let both be seen
        style = {"linestyle": "--", "zorder": 3} if name == "mean" else {"zorder": 2}
        if len(rows):
            if "low" in rows:  # of one prompt there is no interval, and None where it was saved
                low, high = (rows[end].astype(float) for end in _ENDS)
                band = {"color": _COLOURS[name], "alpha": 0.15, "linewidth": 0}
                axes.fill_between(100 * rows.position, low, high, **band)
            style |= {"marker": "o", "color": _COLOURS[name], "label": _LABELS[name]}
            axes.plot(100 * rows.position, rows.relative_error, **style)
    _log_axes(axes, "y")
    axes.set_xlabel("relative position in the response (%)")
    axes.set_ylabel("mean relative error of the remaining length")
    responses = table.responses[0]
    axes.set_title(
        f"{responses:,} held-out responses, against single outcomes; 95 % by prompts", fontsize=10
    )
    axes.grid(alpha=0.3, which="both", linewidth=0.5)
    axes.legend(fontsize=8)


def _calibration(axes: Axes, table: pd.DataFrame, figures: Figures) -> None:
    axes.plot(table.predicted, table.actual, marker="o", color=_COLOURS["lenvm"])
    _calibrated(axes, table)
    axes.set_title(
        f"{table.tokens.sum():,} tokens in {len(table)} bins of equal count, calibration error "
        f"{figures['calibration_error']:.4f}",
        fontsize=10,
    )


def _position_calibration(axes: Axes, table: pd.DataFrame, figures: Figures) -> None:
    positions = sorted(set(table.position))
    for k, position in enumerate(positions):
        rows = table[table.position == position]
        shade = colormaps["viridis"](0.85 * k / max(1, len(positions) - 1))
        style = {"marker": "o", "markersize": 4, "color": shade}
        label = f"{100 * position:.0f} % of the response"
        axes.plot(rows.predicted, rows.actual, label=label, **style)
    _calibrated(axes, table)
    axes.set_title(
        "Ten bins each, against single outcomes (inside responses a perfect\n"
        "model leaves the diagonal: the position is known only afterwards)",
        fontsize=9,
    )
    axes.legend(fontsize=8)


def _calibrated(axes: Axes, table: pd.DataFrame) -> None:
    _diagonal(axes, 0.0, 1.05 * max(table.predicted.max(), table.actual.max()))
    axes.set_xlabel("mean predicted u, -V")
    axes.set_ylabel("mean outcome, u = 1 - gamma^l")


def _state_positions(axes: Axes, table: pd.DataFrame, figures: Figures) -> None:
    width = 0.38
    for side, name, colour, label in (
        (-1, "predicted", _COLOURS["lenvm"], "predicted, mean of -V"),
        (1, "measured", "#b8c9d9", "Monte Carlo"),
    ):
        axes.bar(table.index + side * width / 2, table[name], width, color=colour, label=label)
    heights = table[["predicted", "measured"]].max(axis=1)
    for row, height in zip(table.itertuples(), heights, strict=True):
        text = f"bias {row.bias:+.3f}\nnoise-free rmse {row.rmse:.3f}\nn {row.states}"
        height += 0.015 * heights.max()
        axes.text(row.Index, height, text, ha="center", va="bottom", fontsize=8)
    axes.set_ylim(0, 1.25 * heights.max())
    ends = zip(table["from"], table["to"], strict=True)
    axes.set_xticks(table.index, [f"{100 * a:.0f}-{100 * b:.0f} %" for a, b in ends])
    axes.set_xlabel("relative position of the state in its response")
    axes.set_ylabel("discounted length u")
    axes.set_title("Calibration by position, against Monte Carlo values", fontsize=10)
    axes.legend(fontsize=8, loc="upper right")


def _coverage(axes: Axes, table: pd.DataFrame, figures: Figures) -> None:
    """Shares inside the intervals by group, beside the nominal ones."""
    names = [f"{g}: {n}" if g != "all" else n for g, n in zip(table.group, table.name, strict=True)]
    for share, colour in ((50, "#b8c9d9"), (90, _COLOURS["lenvm"])):
        covered = 100 * table[f"coverage_{share}"]
        axes.scatter(covered, names, color=colour, label=f"{share} % intervals", zorder=3)
        axes.axvline(share, color="black", linewidth=0.8)
        axes.axvspan(share - 2, share + 2, color="#dddddd", zorder=0)
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("outcomes inside (%), grey: within 2 points of nominal")
    axes.set_title("Coverage (inside responses, position is known only afterwards)", fontsize=10)
    axes.legend(fontsize=8)


def _reliability(axes: Axes, table: pd.DataFrame, figures: Figures) -> None:
    for name, style in zip(dict.fromkeys(table.name), ("-", "--"), strict=False):
        rows = table[table.name == name]
        axes.plot(100 * rows.share, 100 * rows.covered, style, color=_COLOURS["lenvm"], label=name)
    _diagonal(axes, 0.0, 100.0)
    axes.set_xlabel("probability of the central interval (%)")
    axes.set_ylabel("outcomes inside (%)")
    axes.set_title(
        f"Reliability: at most {100 * figures['coverage_error']:.1f} points off nominal",
        fontsize=10,
    )
    axes.legend(fontsize=8)


def _pit(axes: Axes, table: pd.DataFrame, figures: Figures) -> None:
    for name, style in zip(dict.fromkeys(table.name), ("-", "--"), strict=False):
        rows = table[table.name == name]
        edges = [*rows["from"], rows["to"].iloc[-1]]
        axes.stairs(len(rows) * rows.share, edges, linestyle=style, label=name)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("PIT: predicted P(l <= what happened)")
    axes.set_ylabel("density of outcomes (1: calibrated)")
    axes.set_title(f"CRPS {figures['crps']:.2f} tokens over all states", fontsize=10)
    axes.legend(fontsize=8)


def _domains(axes: Axes, table: pd.DataFrame, figures: Figures) -> None:
    """MRE by domain and predictor, each domain's noise floor as a line; paper's table 3 as marks
    where a domain has its name. Logarithmic where a bar is over `_TOO_TALL` times another one."""
    domains, predictors = list(table.domain.unique()), list(table.predictor.unique())
    width = 0.8 / len(predictors)
    for k, name in enumerate(predictors):
        heights = 100 * table[table.predictor == name].set_index("domain").mre[domains]
        left = (k - (len(predictors) - 1) / 2) * width
        places = [i + left for i in range(len(domains))]
        axes.bar(places, heights, width, color=_COLOURS[name], label=_LABELS[name])
    floors = 100 * table.groupby("domain").noise_floor.first()[domains]
    ends = [[i + side for i in range(len(domains))] for side in (-0.4, 0.4)]
    axes.hlines(floors, *ends, color="black", linewidth=1.2, label="noise floor")
    paper = [row for row in paper_rows() if row["domain"] in domains]
    if paper:
        at = [domains.index(row["domain"]) for row in paper]
        marks = {"marker": "x", "color": "black", "label": "paper, 1.5B to 32B", "zorder": 3}
        axes.scatter(at, [100 * row["mre"] for row in paper], **marks)
    axes.set_xticks(range(len(domains)), domains, rotation=30, ha="right", fontsize=8)
    if table.mre.max() > _TOO_TALL * table.mre.min():
        _log_axes(axes, "y")
    axes.set_ylabel("MRE at the prompt boundary (%)")
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


def view(result: Result) -> Group:
    """Tables of the prompt, domains, outcomes and positions, and the Monte Carlo line."""
    figures, tables = result.figures, result.tables
    parts: list[Any] = [_prompt_screen(figures)]
    if tables.get("domains"):
        parts.append(_table_3(tables["domains"]))
    if tables.get("outcomes"):
        parts.append(_outcome_screen(tables["outcomes"]))
    parts.append(_position_screen(tables.get("positions", [])))
    if tables.get("coverage"):
        parts.append(_coverage_screen(tables["coverage"]))
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


def _prompt_screen(figures: Figures) -> Table:
    known = [name for name in PREDICTORS if f"mre_{figure_key(name)}" in figures]
    return screen(
        f"Length known before the first token: {figures['prompts']} prompts x "
        f"{figures['samples_per_prompt']:.0f} samples, noise floor "
        f"{number(figures['mre_noise_floor'])}",
        ("predictor", "MRE", "noise-corrected", "95 %", "MAE (tokens)", "Kendall tau"),
        (_prompt_line(figures, p) for p in known),
    )


def _prompt_line(figures: Figures, predictor: str) -> list[str]:
    """Predictor, MRE, noise-corrected, its interval, MAE, tau."""
    key = figure_key(predictor)
    low, high = (number(figures.get(f"mre_{key}_corrected_{end}", math.nan)) for end in _ENDS)
    forms = {f"mae_{key}": ".1f", f"kendall_tau_{key}": ".3f"}
    return [
        _SCREEN[predictor],
        *(number(figures[f"mre_{key}{end}"]) for end in ("", "_corrected")),
        low if low == high == "-" else f"{low} to {high}",
        *(number(figures[name], form) for name, form in forms.items()),
    ]


def _table_3(rows: Rows) -> Table:
    """Predictors x domains when there are few domains, else domains x predictors."""
    domains = list(dict.fromkeys(row["domain"] for row in rows))
    predictors = list(dict.fromkeys(row["predictor"] for row in rows))
    cells = {(row["predictor"], row["domain"]): _mre(row) for row in rows}
    prompts = {row["domain"]: str(row["prompts"]) for row in rows}
    title = "MRE at the prompt by domain, % (in brackets: noise-corrected)"
    if len(domains) > _MOST_COLUMNS:
        lines = [
            [escape(domain), prompts[domain], *(cells[name, domain] for name in predictors)]
            for domain in domains
        ]
        return screen(title, ("domain", "prompts", *(_SCREEN[name] for name in predictors)), lines)
    lines = [[_SCREEN[name], *(cells[name, domain] for domain in domains)] for name in predictors]
    table = screen(title, ("", *(escape(domain) for domain in domains)), lines)
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


def _outcome_screen(rows: Rows) -> Table:
    cells = {(row["predictor"], row["at"]): row for row in rows}

    def errors(name: str, at: str) -> tuple[str, str]:
        row = cells.get((name, at))
        return (f"{row['mae']:.1f}", number(row["kendall_tau"])) if row else ("", "")

    return screen(
        "Against single outcomes, tokens",
        ("predictor", "MAE at the prompt", "tau", "MAE over all states", "tau"),
        (
            [_SCREEN[name], *errors(name, "s0"), *errors(name, "all")]
            for name in dict.fromkeys(row["predictor"] for row in rows)
        ),
    )


def _coverage_screen(rows: Rows) -> Table:
    return screen(
        "Inside the intervals, % of outcomes; scores in tokens",
        ("states", "", "number", "50 %", "90 %", "CRPS", "pinball .9"),
        (
            [
                row["group"],
                escape(row["name"]),
                f"{row['states']:,}",
                *(f"{100 * row[f'coverage_{share}']:.1f}" for share in (50, 90)),
                *(number(row[name], ".2f") for name in ("crps", "pinball_90")),
            ]
            for row in rows
        ),
    )


def _position_screen(rows: Rows) -> Table:
    positions = sorted({row["position"] for row in rows})
    cells = {(r["predictor"], r["position"]): number(r["relative_error"]) for r in rows}
    known = [name for name in _SCREEN if any(name == predictor for predictor, _ in cells)]
    return screen(
        "Mean relative error of the remaining length, by position in the response",
        ("predictor", *(f"{100 * position:.0f} %" for position in positions)),
        ([_SCREEN[name], *(cells[name, position] for position in positions)] for name in known),
    )
