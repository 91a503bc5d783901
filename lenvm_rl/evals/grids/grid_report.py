"""What do the runs of a grid say? Means over seeds, curves, and the claims that they are put to.

A grid is a list of `Variant`: a run, the question it belongs to (`group`) and its place there. One
run may answer several questions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from lenvm_rl.evals.grids.cell import Cell
from lenvm_rl.evals.result import finite, save_results
from lenvm_rl.rollouts.atomic import replacing

METRICS = (
    "mse",
    "length_error",
    "relative_error_00",
    "relative_error_25",
    "relative_error_50",
    "relative_error_75",
    "u_bias_s0",
)
"""Of `heldout.heldout_errors`."""


HEADLINE = (
    ("runs", "runs", "d"),
    ("run_seconds", "seconds of training", ",.0f"),
)


@dataclass(frozen=True)
class Variant:
    """One run under one question."""

    group: str
    label: str
    cell: Cell


Results = Mapping[Cell, Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class GridReport:
    """Figures and tables of one grid."""

    name: str
    """`scaling` or `ablation`."""
    figures: dict[str, Any]
    tables: dict[str, list[dict[str, Any]]]
    """finals (mean over seeds), curves (the same at every evaluation), runs, paper."""

    def to_dict(self) -> dict[str, Any]:
        """Figures for JSON: None where a number is not defined."""
        return finite(self.figures)

    def save(self, out: str | Path) -> list[Path]:
        """Write NAME.json, .jsonl, one CSV per table, and the figures into `out`."""
        from lenvm_rl.evals.grids.grid_plots import PLOTS, figure_of

        paths = save_results(out, self.name, self.figures, self.tables, HEADLINE)
        for file, plot in PLOTS[self.name].items():
            if (figure := figure_of(plot, self.tables)) is None:
                continue
            paths.append(Path(out) / f"{file}.png")
            with replacing(paths[-1]) as temporary:
                figure.savefig(temporary, format="png", dpi=150)
        return paths

    def table(self) -> Table:
        """Final numbers on one screen, to print with rich."""
        title = f"lenvm eval {self.name}: held-out errors (relative at 0 to 75 % of the response)"
        view = Table(
            title=title, title_justify="left", box=SIMPLE, padding=0, collapse_padding=True
        )
        for column in ("question", "run"):
            view.add_column(column)
        # Sizes of the paper's are other sizes: only choices stand beside its numbers.
        paper = {}
        if self.name == "ablation":
            paper = {(row["group"], row["label"]): row for row in self.tables["paper"]}
        columns = ("1000 MSE", "tokens", "0", "25", "50", "75")
        for column in (*columns, "paper") if paper else columns:
            view.add_column(column, justify="right", no_wrap=True)
        previous = None
        for row in self.tables["finals"]:
            if previous not in (None, row["group"]):
                view.add_section()
            known = paper.get((row["group"], row["label"]))
            view.add_row(
                "" if previous == row["group"] else row["group"],
                row["label"],
                _with_spread(1000 * row["mse"], 1000 * row["mse_std"], 2),
                _with_spread(row["length_error"], row["length_error_std"], 1),
                *(f"{row[f'relative_error_{p}']:.2f}" for p in ("00", "25", "50", "75")),
                *([] if not paper else ["" if known is None else f"{known['final']:g}"]),
            )
            previous = row["group"]
        return view


def report(
    name: str,
    variants: Sequence[Variant],
    results: Results,
    *,
    facts: Mapping[str, Any],
    paper: Sequence[Mapping[str, Any]],
    claims: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]],
) -> GridReport:
    """Put the results of a grid together.

    Args:
        variants: in the order of the report.
        results: of their cells.
        facts: about the data, for the figures.
        paper: rows (group, label, metric, final, ...) of the paper's own numbers.
        claims: the verdicts on the table of finals, by name.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for variant in variants:
        groups.setdefault((variant.group, variant.label), []).append(results[variant.cell])
    finals = [_final(group, label, runs) for (group, label), runs in groups.items()]
    curves = [
        point for (group, label), runs in groups.items() for point in _curve(group, label, runs)
    ]
    different = [results[cell] for cell in dict.fromkeys(variant.cell for variant in variants)]
    runs = [
        {"fingerprint": run.get("fingerprint"), **run["cell"], **run["final"]} for run in different
    ]
    figures = {
        **facts,
        "runs": len(runs),
        "run_seconds": round(sum(run["seconds"] for run in different), 1),
        "claims": dict(claims(finals)),
        "finals": finals,
    }
    tables = {"finals": finals, "curves": curves, "runs": runs, "paper": [dict(r) for r in paper]}
    return GridReport(name, figures, tables)


def rows_of(finals: Sequence[Mapping[str, Any]], group: str) -> list[Mapping[str, Any]]:
    """The finals of one question, in order."""
    return [row for row in finals if row["group"] == group]


def _final(group: str, label: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    cell = runs[0]["cell"]
    row: dict[str, Any] = {
        "group": group,
        "label": label,
        "seeds": len(runs),
        "parameters": runs[0]["parameters"],
        "prompts": cell["prompts"],
        "samples": cell["samples"],
        "gamma": cell["gamma"],
        "epochs": runs[0]["epochs"],
    }
    for metric in METRICS:
        row[metric], row[f"{metric}_std"] = _mean_std([run["final"][metric] for run in runs])
    row["least_mse"] = _mean_std([run["least_mse"] for run in runs])[0]
    row["mse_constant"] = runs[0]["final"]["mse_constant"]
    row["seconds"] = _mean_std([run["seconds"] for run in runs])[0]
    return row


def _curve(group: str, label: str, runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean, least and greatest over seeds at every step that all runs have."""
    points = []
    for at in zip(*(run["curve"] for run in runs), strict=False):
        point: dict[str, Any] = {"group": group, "label": label, "step": at[0]["step"]}
        for metric in METRICS:
            found = [p[metric] for p in at if p.get(metric) is not None]
            point[metric] = math.fsum(found) / len(found) if found else math.nan
            point[f"{metric}_low"] = min(found, default=math.nan)
            point[f"{metric}_high"] = max(found, default=math.nan)
        points.append(point)
    return points


def _mean_std(values: Sequence[float | None]) -> tuple[float, float]:
    """Mean and (unbiased) standard deviation over seeds; NaN where it is not defined."""
    found = [value for value in values if value is not None]
    if not found:
        return math.nan, math.nan
    mean = math.fsum(found) / len(found)
    if len(found) < 2:
        return mean, math.nan
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in found) / (len(found) - 1))


def _with_spread(mean: float, std: float, digits: int) -> str:
    spread = "" if math.isnan(std) else f" ±{std:.{digits}f}"
    return f"{mean:.{digits}f}{spread}"
