"""How do LIFEBench completions become tables: per control, target, language, and table 2?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lenvm_rl.core import CONTROLS, lifebench_deviation, lifebench_score
from lenvm_rl.evals.length_control.lifebench_official import SCORERS, official_figures
from lenvm_rl.evals.length_control.lifebench_settings import LifebenchSettings
from lenvm_rl.evals.length_control.paper_control import table_2_rows
from lenvm_rl.evals.outcomes import share_right
from lenvm_rl.evals.result import finite, save_results

Row = dict[str, Any]
_TABLE_2 = ("deviation", *CONTROLS)


HEADLINE = (
    ("equal_guided_score", "equal: score", ".1f"),
    ("equal_unguided_score", "equal unguided: score", ".1f"),
    ("at_most_guided_score", "at most: score", ".1f"),
    ("at_least_guided_score", "at least: score", ".1f"),
)


@dataclass(frozen=True, eq=False)
class LifebenchReport:
    """Figures and tables of one evaluation."""

    figures: dict[str, Any]
    tables: dict[str, list[Row]]
    """table2 (this run and the paper), summary (per control and method), targets and languages
    (finer), official (as the official programs print it), points (per completion)."""

    def to_dict(self) -> dict[str, Any]:
        """Figures for JSON: None where a number is not defined."""
        return finite(self.figures)

    def save(self, out: str | Path) -> list[Path]:
        """Write lifebench.json, .jsonl, one CSV per table, and lifebench.png into `out`."""
        from lenvm_rl.evals.length_control.lifebench_draw import plot_lifebench

        paths = save_results(out, "lifebench", self.figures, self.tables, HEADLINE)
        return [*paths, plot_lifebench(self.tables, self.figures, Path(out) / "lifebench.png")]


def lifebench_report(
    points: list[Row], settings: LifebenchSettings, ratios: dict[str, float], *, asked: bool
) -> LifebenchReport:
    """Tables and figures of scored completions.

    Args:
        points: one row per method, control, target and completion.
        ratios: language -> tokens per word of the unguided samples.
        asked: whether the prompts say the target in words.
    """
    for point in points:
        point["score"], point["deviation"] = _scored(point)
    summary = _grouped(points, "control", "method")
    official = _official(points)
    figures: dict[str, Any] = {
        "prompts": len({point["prompt"] for point in points}),
        "samples": settings.samples,
        "unit": settings.unit,
        "targets": list(settings.targets),
        "asked_in_words": asked,
        "tokens_per_word": ratios,
    }
    for row in summary:
        for name in ("score", "deviation", "failed", "accuracy"):
            figures[f"{row['control']}_{row['method']}_{name}"] = row[name]
    for row in official:
        name = f"{row['control']}_{row['method']}_official_{row['scorer']}_score"
        figures[name] = row["score"]
    tables = {
        "table2": [*_table_2(summary, settings.methods), *table_2_rows()],
        "summary": summary,
        "targets": _grouped(points, "control", "method", "target"),
        "languages": _grouped(points, "control", "method", "language"),
        "official": official,
        "points": points,
    }
    return LifebenchReport(figures, tables)


def _scored(point: Row) -> tuple[float, float]:
    """(score, signed relative deviation) of one completion."""
    length = torch.tensor(point["length"], dtype=torch.float64)
    target = torch.tensor(point["target"], dtype=torch.float64)
    failed = torch.tensor(point["failed"])
    score = lifebench_score(length, target, control=point["control"], failed=failed)
    return score.item(), lifebench_deviation(length, target, failed=failed).item()


def _grouped(points: Sequence[Row], *keys: str) -> list[Row]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for point in points:
        groups.setdefault(tuple(point[key] for key in keys), []).append(point)
    return [
        {**dict(zip(keys, values, strict=True)), **_means(rows)} for values, rows in groups.items()
    ]


def _means(rows: Sequence[Row]) -> Row:
    """Means over completions; deviation in percent, failures counted in."""
    return {
        "completions": len(rows),
        "length": _mean(row["length"] for row in rows),
        "score": _mean(row["score"] for row in rows),
        "deviation": 100 * _mean(abs(row["deviation"]) for row in rows),
        "failed": _mean(row["failed"] for row in rows),
        "accuracy": share_right([row["right"] for row in rows]),
        "logprob": _mean(row["logprob"] for row in rows if not math.isnan(row["logprob"])),
    }


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else math.nan


def _official(points: Sequence[Row]) -> list[Row]:
    """What LIFEBench's program and LenVM's fork of it would print."""
    cells: dict[tuple[str, str], dict[int, list[int | None]]] = {}
    for point in points:
        lengths = cells.setdefault((point["method"], point["control"]), {})
        length = point["length"] if point["came"] else None
        lengths.setdefault(point["target"], []).append(length)
    return [
        {
            "method": method,
            "control": control,
            "scorer": scorer,
            **official_figures(lengths, control=control, scorer=scorer),
        }
        for (method, control), lengths in cells.items()
        for scorer in SCORERS
    ]


def _table_2(summary: Sequence[Row], methods: Sequence[str]) -> list[Row]:
    """One line per method in the paper's layout: deviation of Equal To, then the three scores."""
    lines = []
    for method in methods:
        mine = {row["control"]: row for row in summary if row["method"] == method}
        line: Row = {"source": "here", "model": method}
        for name in _TABLE_2:
            control, key = ("equal", name) if name == "deviation" else (name, "score")
            line[name] = mine[control][key] if control in mine else math.nan
        lines.append(line)
    return lines
