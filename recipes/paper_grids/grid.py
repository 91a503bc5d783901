"""All runs of a grid, each once, and the tables of their results.

    OUT/cells/<cell>.json     one finished run, written whole; named by all that determines it
    OUT/cells/<cell>.log      what its process printed

A run whose file is there is not repeated. Runs share OUT when they share their cells: the ablation
takes the scaling's middle run. A grid is a list of `Variant`: a run, the question it belongs to
(`group`) and its place there; one run may answer several questions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lenvm_rl.evals.result import Result
from recipes.paper_grids.cell import Cell, fingerprint, run_cell
from recipes.paper_grids.data import Data
from scripts.bench.pool import run_missing

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


def run_grid(
    cells: Iterable[Cell],
    data: Data,
    out: str | Path,
    *,
    jobs: int = 1,
    launcher: Callable[[Cell, Data], dict[str, Any]] = run_cell,
) -> dict[Cell, dict[str, Any]]:
    """Do every run that has no result yet; returns the results of all.

    Args:
        cells: runs; equal ones are done once.
        data: what they are trained and judged on.
        out: result directory, see the module.
        jobs: processes at once, of one thread each; 0: in this process.
        launcher: does one run and returns its result.
    Raises:
        RunsFailed: after the others have been done.
    """
    folder = Path(out) / "cells"
    files = {cell: folder / f"{fingerprint(cell, data.fingerprint)}.json" for cell in cells}
    for cell, file in files.items():
        if not file.is_file():
            data.subset(cell.prompts, cell.samples)  # here, and not by two processes at once
    todo = {file: (cell, data) for cell, file in files.items()}
    found = run_missing(launcher, todo, jobs=jobs, label="training runs")
    return dict(zip(files, found, strict=True))


def report(
    name: str,
    variants: Sequence[Variant],
    results: Results,
    *,
    facts: Mapping[str, Any],
    paper: Sequence[Mapping[str, Any]],
    claims: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]],
) -> Result:
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
    return Result(name, figures, tables, HEADLINE)


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
