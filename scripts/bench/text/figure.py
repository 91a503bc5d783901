"""How do the errors look along a response? One column of panels per data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend is chosen first)
from matplotlib.ticker import LogLocator, NullFormatter

from lenvm_rl.rollouts.atomic import replacing

_STYLE = {
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
_ROWS = (
    ("u_rmse", "RMSE of the horizon u"),
    ("length_mre", "mean relative error of the\nremaining length"),
)


def plot_positions(table: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the table of `comparison.compare` (rows of any number of data sets) to a PNG."""
    datasets = list(dict.fromkeys(row["dataset"] for row in table))
    figure, axes = plt.subplots(
        len(_ROWS),
        len(datasets),
        figsize=(3.6 * len(datasets) + 1, 6.2),
        sharex=True,
        squeeze=False,
    )
    for column, dataset in enumerate(datasets):
        rows = [row for row in table if row["dataset"] == dataset]
        for (metric, label), axis in zip(_ROWS, axes[:, column], strict=True):
            for name, style in _STYLE.items():
                points = [(100 * r["position"], r[metric]) for r in rows if r["predictor"] == name]
                axis.plot(*zip(*points, strict=True), markersize=5, **style)
            if metric == "length_mre":
                axis.set_yscale("log")
                axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.yaxis.set_major_formatter("{x:g}")
                axis.yaxis.set_minor_formatter(NullFormatter())
            else:
                axis.set_ylim(bottom=0)
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
            if column == 0:
                axis.set_ylabel(label)
        axes[0, column].set_title(dataset)
        axes[-1, column].set_xlabel("position in the response (%)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False)
    figure.suptitle("Remaining length on held-out prompts: error by position")
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)
