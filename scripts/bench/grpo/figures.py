"""What does the comparison look like? The Pareto figure, and how stale the values became."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend is chosen first)

from lenvm_rl.rollouts.atomic import replacing

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


def plot_pareto(rows: Sequence[Mapping[str, Any]], start: tuple[float, float], path: Path) -> Path:
    """Accuracy against mean length; LenVM in colour, published rewards in grey.

    Args:
        rows: of `comparison.compare`.
        start: mean length and accuracy (0..1) before training.
    """
    figure, axis = plt.subplots(figsize=(8.6, 5.4))
    length, accuracy = start
    style = {"marker": "*", "markersize": 15, "color": "black", "linestyle": ""}
    axis.plot(length, 100 * accuracy, **style, label="untrained")
    for i, name in enumerate(dict.fromkeys(row["method"] for row in rows)):
        mine = [row for row in rows if row["method"] == name]
        color = _LENVM.get(name, "#8a8a8a" if name != "none" else "black")
        axis.errorbar(
            [row["length"] for row in mine],
            [100 * row["accuracy"] for row in mine],
            xerr=[row["length_std"] for row in mine] if mine[0]["seeds"] > 1 else None,
            yerr=[100 * row["accuracy_std"] for row in mine] if mine[0]["seeds"] > 1 else None,
            elinewidth=0.7,
            marker=_MARKERS[i % len(_MARKERS)],
            color=color,
            linewidth=2.0 if name in _LENVM else 0.8,
            markersize=8 if name in _LENVM else 6,
            alpha=1.0 if name in _LENVM else 0.75,
            zorder=3 if name in _LENVM else 2,
            capsize=2,
            label=name.replace("_", " "),
        )
    axis.set_xlabel("mean response length on held-out problems (tokens)")
    axis.set_ylabel("accuracy (%)")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return save_figure(figure, path)


def plot_curves(runs: Sequence[Mapping[str, Any]], path: Path) -> Path:
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
        totals = [
            [sum(run[key] for run in step) for step in steps]
            for key in ("length", "reference_length", "accuracy")
        ]
        lengths, references, right = (_running(total) for total in totals)
        relative = [100 * a / b for a, b in zip(lengths, references, strict=True)]
        style = {
            "color": _LENVM.get(name, "#8a8a8a" if name != "none" else "black"),
            "linewidth": 2.0 if name in _LENVM or name == "none" else 0.9,
            "marker": _MARKERS[i % len(_MARKERS)],
            "markersize": 4,
            "markevery": 4,
            "zorder": 3 if name in _LENVM else 2,
            "label": name.replace("_", " "),
        }
        updates = range(1, len(steps) + 1)
        axes[0].plot(updates, relative, **style)
        axes[1].plot(updates, [100 * n / len(mine) for n in right], **style)
    axes[0].set_ylabel("length (% of the untrained policy's)")
    axes[1].set_ylabel("accuracy (%)")
    for axis in axes:
        axis.set_xlabel("update")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return save_figure(figure, path)


def _running(values: Sequence[float], window: int = 5) -> list[float]:
    """Mean of the last `window` values at every one."""
    ends = range(1, len(values) + 1)
    held = [values[max(0, end - window) : end] for end in ends]
    return [sum(part) / len(part) for part in held]


def plot_staleness(runs: Sequence[Mapping[str, Any]], path: Path) -> Path | None:
    """Error of the values on fresh rollouts over training, frozen and refreshed; mean of seeds."""
    shown = {"objective": "frozen", "objective_refresh": "refreshed"}
    chosen = [run for run in runs if run["method"] in shown]
    if not chosen:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(9.4, 3.8), sharex=True)
    styles = (":", "--", "-", "-.")
    for method, label in shown.items():
        for level in sorted({run["level"] for run in chosen}):
            mine = [r for r in chosen if r["method"] == method and r["level"] == level]
            if not mine:
                continue
            for axis, key in zip(axes, ("value_rmse", "value_bias"), strict=True):
                steps = zip(*(run["history"] for run in mine), strict=True)
                mean = [sum(step[key] for step in group) / len(group) for group in steps]
                axis.plot(
                    range(1, len(mean) + 1),
                    mean,
                    color=_LENVM[method],
                    linestyle=styles[level],
                    label=f"{label}, scale {mine[0]['strength']:g}",
                )
    axes[0].set_ylabel("RMSE of the horizon u")
    axes[1].set_ylabel("bias of u (above 0: too long)")
    axes[1].axhline(0.0, color="black", linewidth=0.6)
    for axis in axes:
        axis.set_xlabel("update")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    return save_figure(figure, path)


def save_figure(figure: Any, path: Path) -> Path:
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png", bbox_inches="tight")
    plt.close(figure)
    return path
