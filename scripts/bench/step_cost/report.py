"""Medians, ratios, the bar, and tables."""

from __future__ import annotations

import math
import statistics
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts.bench.step_cost.loop import Loop

BARS = {
    "exact_to_two_forward": ("exact_to_two_forward", "scorer_ms", 0.7),
    "q_head_to_policy": ("q_head", "step_to_policy", 1.05),
    "policy_head_to_policy": ("policy_head", "step_to_policy", 1.05),
}
"""By name: which figure of a case, of which kind, and the most that it may be."""


def summarize(loops: dict[str, Loop], rounds: int) -> dict[str, Any]:
    """Milliseconds per step of every loop; of its scorer alone, wall and processor time.

    Ratios are taken within each round, whose turns are close in time, and then their median.
    """
    times: dict[str, dict[str, list[float]]] = {}
    for name, loop in loops.items():
        times[name] = {"step_ms": loop.steps}
        if loop.scorer is not None:
            times[name] |= {
                "scorer_ms": loop.scorer.wall,
                "scorer_cpu_ms": loop.scorer.processor,
            }
    figures: dict[str, Any] = {
        name: {kind: round(1e3 * statistics.median(x), 3) for kind, x in by_kind.items()}
        for name, by_kind in times.items()
    }
    for name in loops:
        if name != "policy":
            ratio = _ratio(times[name]["step_ms"], times["policy"]["step_ms"], rounds)
            figures[name]["step_to_policy"] = ratio
    if {"exact", "two_forward"} <= set(loops):
        figures["exact_to_two_forward"] = {
            kind: _ratio(x, times["two_forward"][kind], rounds)
            for kind, x in times["exact"].items()
        }
    return figures


def within_bars(cases: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Name of the bar -> how many cases are within it, of how many that have the figure."""
    counts = {}
    for name, (figure, kind, most) in BARS.items():
        found = [case["figures"][figure][kind] for case in cases if figure in case["figures"]]
        if found:
            counts[name] = [sum(ratio <= most for ratio in found), len(found)]
    return counts


def _ratio(ours: list[float], theirs: list[float], rounds: int) -> float:
    """Median over the rounds; over the whole run where a clock did not move within a round."""
    steps = len(ours) // rounds
    turns = [slice(i * steps, (i + 1) * steps) for i in range(rounds)]
    if all(sum(theirs[t]) > 0 for t in turns):
        return round(statistics.median(sum(ours[t]) / sum(theirs[t]) for t in turns), 3)
    return round(sum(ours) / sum(theirs), 3) if sum(theirs) > 0 else math.nan


def show(shape: str, cases: list[dict[str, Any]], console: Console) -> None:
    """One line per load."""
    names = [name for name in cases[0]["figures"] if name not in ("policy", "exact_to_two_forward")]
    table = Table(title=f"{shape}: ms per step, whole / scorer (x policy)")
    for column in ("R", "K", "policy", *names, "exact / two", "by CPU time"):
        table.add_column(column, justify="right", no_wrap=True)
    for case in cases:
        figures = case["figures"]
        ratio = figures.get("exact_to_two_forward", {})
        table.add_row(
            str(case["requests"]),
            str(case["candidates"]),
            f"{figures['policy']['step_ms']:.1f}",
            *(_cell(figures[name]) for name in names),
            f"{ratio['scorer_ms']:.2f}" if ratio else "-",
            f"{ratio['scorer_cpu_ms']:.2f}" if ratio else "-",
        )
    console.print(table)


def _cell(figures: dict[str, float]) -> str:
    step, scorer, times = (figures[k] for k in ("step_ms", "scorer_ms", "step_to_policy"))
    return f"{step:.1f} / {scorer:.1f} ({times:.2f})"


def show_sections(title: str, sections: dict[str, dict[str, float]], console: Console) -> None:
    """Where the time goes, the variants side by side."""
    parts = sorted(
        {part for by_part in sections.values() for part in by_part},
        key=lambda part: -max(by_part.get(part, 0.0) for by_part in sections.values()),
    )
    table = Table(title=f"{title}: ms per step by part")
    table.add_column("part")
    for name in sections:
        table.add_column(name, justify="right")
    for part in parts:
        table.add_row(part, *(f"{by_part.get(part, 0.0):.2f}" for by_part in sections.values()))
    console.print(table)


def show_floor(rows: list[dict[str, Any]], console: Console) -> None:
    """One line per number of requests."""
    table = Table(title="ms per step, against reading weights, keys and values once")
    for column in ("R", "LenVM", "floor", "x", "policy", "floor", "x", "guided / not", "at floor"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            str(row["requests"]),
            *(
                f"{row[f'{name}_{kind}']:.2f}"
                for name in ("lenvm", "policy")
                for kind in ("ms", "floor_ms", "to_floor")
            ),
            f"{row['overhead']:.2f}",
            f"{row['overhead_at_floor']:.2f}",
        )
    console.print(table)
