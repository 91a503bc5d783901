"""Figures of the benchmarks: the Pareto figure of length rewards, budgets, errors by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter

from lenvm_rl.rollouts.atomic import replacing

Rows = Sequence[Mapping[str, Any]]
_LENVM = {
    "objective": "#1b6ca8",
    "correct": "#c0392b",
    "objective_correct": "#e0a100",
    "objective_refresh": "#16a085",
    "correct_lam0": "#7a5c00",
    "correct_lam1": "#f4c95d",
    "shaping": "#8e44ad",
    "budget": "#d1603d",
}
_MARKERS = "osD^vP*X<>hpd8H1"
_BESIDE = {"frameon": False, "fontsize": 8, "loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
_BUDGETS = {
    "start": ("#8a8a8a", "o", "before training"),
    "guided": ("black", "*", "shipped policy, guided"),
    "l1_exact": ("#d1603d", "s", "L1-Exact"),
    "lenvm": ("#1b6ca8", "D", "LenVM, learning on"),
    "lenvm_correct": ("#e0a100", "v", "LenVM, in right answers"),
    "lenvm_frozen": ("#7fb2d9", "^", "LenVM, frozen"),
}
_PREDICTORS = {
    "lenvm": {"label": "LenVM", "color": "#1b6ca8", "marker": "o", "linewidth": 2.2, "zorder": 3},
    "mean": {"label": "training mean", "color": "#8a8a8a", "marker": "s", "linestyle": "--"},
    "linear": {
        "label": "linear in prompt length",
        "color": "#d1603d",
        "marker": "^",
        "linestyle": "--",
    },
    "survival": {
        "label": "mean residual life at t",
        "color": "#5b8c5a",
        "marker": "d",
        "linestyle": ":",
    },
}


def plot_pareto(rows: Rows, start: tuple[float, float], path: Path) -> Path:
    """Accuracy against mean length; LenVM in colour, published rewards in grey.

    Args:
        rows: of `rl.compare`.
        start: mean length and accuracy (0..1) before training.
    """
    figure, axis = plt.subplots(figsize=(8.6, 5.4))
    length, accuracy = start
    style = {"marker": "*", "markersize": 15, "color": "black", "linestyle": ""}
    axis.plot(length, 100 * accuracy, **style, label="untrained")
    for i, name in enumerate(dict.fromkeys(row["method"] for row in rows)):
        mine = [row for row in rows if row["method"] == name]
        spread = mine[0]["seeds"] > 1
        axis.errorbar(
            [row["length"] for row in mine],
            [100 * row["accuracy"] for row in mine],
            xerr=[row["length_std"] for row in mine] if spread else None,
            yerr=[100 * row["accuracy_std"] for row in mine] if spread else None,
            elinewidth=0.7,
            linewidth=2.0 if name in _LENVM else 0.8,
            markersize=8 if name in _LENVM else 6,
            alpha=1.0 if name in _LENVM else 0.75,
            capsize=2,
            **_method_style(name, i),
        )
    _plain(axis, "mean response length on held-out problems (tokens)", "accuracy (%)")
    axis.legend(**_BESIDE)
    return save_figure(figure, path)


def plot_curves(runs: Rows, path: Path) -> Path:
    """Length and accuracy on the training prompts over updates, middle strength, mean of seeds.

    Lengths are relative to the untrained policy's on the same prompts; both are running means.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10.4, 4.0), sharex=True)
    levels = {run["level"] for run in runs if run["method"] != "none"} or {0}
    middle = min(levels, key=lambda level: abs(level - 1))
    for i, name in enumerate(dict.fromkeys(run["method"] for run in runs)):
        mine = [
            run["history"]
            for run in runs
            if run["method"] == name and (name == "none" or run["level"] == middle)
        ]
        if not mine:
            continue
        steps = list(zip(*mine, strict=True))
        lengths, references, correct = (
            _running([sum(run[key] for run in step) for step in steps])
            for key in ("length", "reference_length", "accuracy")
        )
        style = {
            "linewidth": 2.0 if name in _LENVM or name == "none" else 0.9,
            "markersize": 4,
            "markevery": 4,
            **_method_style(name, i),
        }
        updates = range(1, len(steps) + 1)
        relative = [100 * a / b for a, b in zip(lengths, references, strict=True)]
        axes[0].plot(updates, relative, **style)
        axes[1].plot(updates, [100 * n / len(mine) for n in correct], **style)
    _plain(axes[0], "update", "length (% of the untrained policy's)")
    _plain(axes[1], "update", "accuracy (%)")
    axes[1].legend(**_BESIDE)
    return save_figure(figure, path)


def plot_drift(runs: Rows, path: Path) -> Path | None:
    """Error of the values on fresh rollouts over training, frozen and refreshed; mean of seeds."""
    shown = {"objective": "frozen", "objective_refresh": "refreshed"}
    chosen = [run for run in runs if run["method"] in shown]
    if not chosen:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(9.4, 3.8), sharex=True)
    for method, level in sorted({(run["method"], run["level"]) for run in chosen}):
        mine = [r for r in chosen if (r["method"], r["level"]) == (method, level)]
        for axis, key in zip(axes, ("value_rmse", "value_bias"), strict=True):
            steps = zip(*(run["history"] for run in mine), strict=True)
            mean = [sum(step[key] for step in group) / len(group) for group in steps]
            axis.plot(
                range(1, len(mean) + 1),
                mean,
                color=_LENVM[method],
                linestyle=(":", "--", "-", "-.")[level],
                label=f"{shown[method]}, scale {mine[0]['strength']:g}",
            )
    axes[1].axhline(0.0, color="black", linewidth=0.6)
    _plain(axes[0], "update", "RMSE of the horizon u")
    _plain(axes[1], "update", "bias of u (above 0: too long)")
    axes[0].legend(frameon=False, fontsize=8)
    return save_figure(figure, path)


def plot_budgets(rows: Rows, path: Path) -> Path:
    """Mean length, deviation and accuracy against the budget that was asked for."""
    figure, axes = plt.subplots(1, 3, figsize=(12.5, 3.8))
    each = [row for row in rows if row["budget"] != "all"]
    budgets = sorted({row["budget"] for row in each})
    panels = (
        ("length", 1.0, "mean length (tokens)"),
        ("deviation", 100.0, "mean |L - n*| / n* (%)"),
        ("accuracy", 100.0, "accuracy (%)"),
    )
    for axis, (name, factor, label) in zip(axes, panels, strict=True):
        for method in dict.fromkeys(row["method"] for row in each):
            mine = [row for row in each if row["method"] == method]
            color, marker, text = _BUDGETS[method]
            axis.errorbar(
                [row["budget"] for row in mine],
                [factor * row[name] for row in mine],
                yerr=[factor * (row[f"{name}_std"] or 0.0) for row in mine],
                color=color,
                marker=marker,
                capsize=2,
                label=text,
            )
        axis.set_xticks(budgets)
        axis.set_ylim(bottom=0)
        _plain(axis, "budget n* (tokens)", label)
    axes[0].plot(budgets, budgets, color="black", linewidth=0.8, linestyle=":", label="as asked")
    axes[0].legend(frameon=False, fontsize=8)
    return save_figure(figure, path)


def plot_positions(table: Rows, path: Path) -> Path:
    """Errors along a response; one column of panels per data set of the `real_text` table."""
    datasets = list(dict.fromkeys(row["dataset"] for row in table))
    metrics = {
        "u_rmse": "RMSE of the horizon u",
        "length_mre": "mean relative error of the\nremaining length",
    }
    size = (3.6 * len(datasets) + 1, 6.2)
    figure, axes = plt.subplots(2, len(datasets), figsize=size, sharex=True, squeeze=False)
    for column, dataset in enumerate(datasets):
        rows = [row for row in table if row["dataset"] == dataset]
        for (metric, label), axis in zip(metrics.items(), axes[:, column], strict=True):
            for name, style in _PREDICTORS.items():
                points = [(100 * r["position"], r[metric]) for r in rows if r["predictor"] == name]
                axis.plot(*zip(*points, strict=True), markersize=5, **style)
            if metric == "length_mre":
                axis.set_yscale("log")
                axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.yaxis.set_major_formatter("{x:g}")
                axis.yaxis.set_minor_formatter(NullFormatter())
            else:
                axis.set_ylim(bottom=0)
            _plain(axis, y=label if column == 0 else "")
        axes[0, column].set_title(dataset)
        axes[-1, column].set_xlabel("position in the response (%)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False)
    figure.suptitle("Remaining length on held-out prompts: error by position")
    return save_figure(figure, path, rect=(0, 0.05, 1, 1))


def save_figure(figure: Any, path: Path, rect: tuple[float, ...] | None = None) -> Path:
    """Write a PNG, whole or not at all; `rect` is what the panels may fill of it."""
    figure.tight_layout(rect=rect)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png", bbox_inches="tight")
    plt.close(figure)
    return path


def _method_style(name: str, number: int) -> dict[str, Any]:
    return {
        "color": _LENVM.get(name, "#8a8a8a" if name != "none" else "black"),
        "marker": _MARKERS[number % len(_MARKERS)],
        "zorder": 3 if name in _LENVM else 2,
        "label": name.replace("_", " "),
    }


def _plain(axis: Any, x: str = "", y: str = "") -> None:
    """Labels, a light grid, and no box."""
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _running(values: Sequence[float], window: int = 5) -> list[float]:
    """Mean of the last `window` values at every one."""
    held = [values[max(0, end - window) : end] for end in range(1, len(values) + 1)]
    return [sum(part) / len(part) for part in held]
