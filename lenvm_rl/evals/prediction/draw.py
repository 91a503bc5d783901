"""One figure per question of the prediction report, drawn from its tables alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from lenvm_rl.evals.prediction.domains import paper_rows
from lenvm_rl.evals.prediction.naive import NAIVE
from lenvm_rl.rollouts.atomic import replacing

Table = Sequence[Mapping[str, Any]]

_COLOURS = {"lenvm": "#2b5c8a", "mean": "#9a9a9a", "linear": "#d1603d", "survival": "#5d8a4a"}
_LABELS = {
    "lenvm": "LenVM",
    "mean": "training mean",
    "linear": "linear in prompt length",
    "survival": "training mean given tokens so far",
}


def plot_prediction(
    figures: Mapping[str, Any], tables: Mapping[str, Table], out: Path
) -> list[Path]:
    """Draw what the tables allow into `out`; returns the PNG files."""
    drawn = {"prompts": _prompts, "positions": _positions, "calibration": _calibration}
    drawn |= {"states": _states, "state_positions": _state_positions}
    drawn |= {"domains": _domains, "position_calibration": _position_calibration}
    paths = []
    for table, draw in drawn.items():
        if not tables.get(table):
            continue
        figure = Figure(figsize=(6.4, 5.0), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure.add_subplot(), tables[table], figures)
        paths.append(out / f"prediction_{table}.png")
        with replacing(paths[-1]) as file:
            figure.savefig(file, format="png", dpi=150)
    return paths


def _prompts(axes: Axes, table: Table, figures: Mapping[str, Any]) -> None:
    measured = [row["measured"] for row in table]
    for name in ("mean", "linear", "lenvm"):
        if name not in table[0]:
            continue
        key = "s0" if name == "lenvm" else f"naive_{name}"
        label = f"{_LABELS[name]}, MRE {figures[f'mre_{key}']:.3f}"
        style = {"s": 26 if name == "lenvm" else 14, "alpha": 0.85, "zorder": 2}
        axes.scatter(
            measured, [row[name] for row in table], color=_COLOURS[name], label=label, **style
        )
    values = [row[name] for row in table for name in ("measured", "lenvm")]
    _diagonal(axes, 0.9 * min(values), 1.1 * max(values))
    _log_axes(axes, "x", "y")
    axes.set_xlabel("measured length of the mean horizon, L_GT (tokens)")
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
    axes.set_xlabel("Monte Carlo horizon, mean of 1 - gamma^l (bars: 1 standard error)")
    axes.set_ylabel("predicted horizon, -V")
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
    axes.set_xlabel("mean predicted horizon, -V")
    axes.set_ylabel("mean outcome, 1 - gamma^l")
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
    axes.set_ylabel("horizon")
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
    axes.set_xlabel("mean predicted horizon, -V")
    axes.set_ylabel("mean outcome, 1 - gamma^l")
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
