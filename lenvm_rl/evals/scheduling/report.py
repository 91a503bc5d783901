"""From simulations to tables: measures of one, means over seeds, and the figures that lead."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lenvm_rl.evals.result import finite, save_results
from lenvm_rl.evals.scheduling.queueing import Served
from lenvm_rl.rollouts import Rollout

if TYPE_CHECKING:
    from rich.table import Table

    from lenvm_rl.evals.scheduling.evaluate import SchedulingSettings


HEADLINE = (
    ("share_predicted_lenvm", "way from FCFS to perfect knowledge", ".1%"),
    ("share_remaining_lenvm", "same, by remaining length", ".1%"),
    ("load", "at load", ".2f"),
    ("completions", "completions", ",d"),
)


@dataclass(frozen=True, eq=False)
class SchedulingReport:
    """Figures and tables of one evaluation."""

    figures: dict[str, Any]
    """Numbers by name; `share` has one entry per load and order."""
    tables: dict[str, list[dict[str, Any]]]
    """summary: load x order, mean and sd over seeds; runs: every simulation; predictors."""

    def to_dict(self) -> dict[str, Any]:
        """Figures for JSON: None where a number is not defined."""
        return finite(self.figures)

    def table(self) -> Table:
        """The report on one screen, to print with rich."""
        from lenvm_rl.evals.scheduling.draw import scheduling_view

        return scheduling_view(self)

    def save(self, out: str | Path) -> list[Path]:
        """Write scheduling.json, .jsonl, one CSV per table, and scheduling.png into `out`."""
        from lenvm_rl.evals.scheduling.draw import plot_scheduling

        paths = save_results(out, "scheduling", self.figures, self.tables, HEADLINE)
        return [*paths, plot_scheduling(self, Path(out))]


def measures(served: Served, lengths: np.ndarray) -> dict[str, float]:
    """Of one simulation. Latency: arrival to last token; per token: latency / length."""
    latency = served.latency
    return {
        "latency_mean": float(latency.mean()),
        "latency_p50": float(np.quantile(latency, 0.5)),
        "latency_p99": float(np.quantile(latency, 0.99)),
        "latency_per_token": float((latency / lengths).mean()),
        "first_token_mean": float((served.first_token - served.arrival).mean()),
        "preemptions": served.preemptions,
        "busy": served.slot_steps / served.steps,
    }


def over_seeds(
    runs: Sequence[Mapping[str, Any]], loads: Sequence[float], orders: Sequence[str]
) -> list[dict[str, Any]]:
    """Mean over seeds of every measure; `_sd` is the standard deviation over seeds."""
    table = []
    for load in loads:
        for order in orders:
            rows = [row for row in runs if row["load"] == load and row["order"] == order]
            line: dict[str, Any] = {"load": load, "order": order}
            for name in rows[0].keys() - {"load", "seed", "order"}:
                values = np.array([row[name] for row in rows], dtype=np.float64)
                line[name] = float(values.mean())
                line[f"{name}_sd"] = float(values.std(ddof=1)) if len(rows) > 1 else math.nan
            table.append({key: line[key] for key in ("load", "order", *sorted(line))})
    return table


def key_figures(
    rows: Sequence[Rollout],
    lengths: np.ndarray,
    settings: SchedulingSettings,
    summary: Sequence[Mapping[str, Any]],
    predictors: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Counts, settings, and what was found at the load nearest to .95."""
    near = min(settings.loads, key=lambda load: abs(load - 0.95))
    chosen = {line["order"]: line for line in summary if line["load"] == near}
    return {
        "completions": len(rows),
        "prompts": len({row.prompt_id for row in rows}),
        "length_mean": float(lengths.mean()),
        "length_p50": float(np.quantile(lengths, 0.5)),
        "length_p99": float(np.quantile(lengths, 0.99)),
        "share_cut": sum(row.cut for row in rows) / len(rows),
        "requests": settings.requests,
        "seeds": settings.seeds,
        "slots": settings.server.slots,
        "step_seconds": settings.server.step_seconds,
        "step_seconds_per_request": settings.server.step_seconds_per_request,
        "resume_steps": settings.server.resume_steps,
        "preempt_until": settings.preempt_until,
        "load": near,
        "share_predicted_lenvm": chosen["predicted-lenvm"]["share"],
        "share_predicted_lenvm_sd": chosen["predicted-lenvm"]["share_sd"],
        "share_remaining_lenvm": chosen["remaining-lenvm"]["share"],
        "share_remaining_lenvm_sd": chosen["remaining-lenvm"]["share_sd"],
        "latency_mean": {order: line["latency_mean"] for order, line in chosen.items()},
        "latency_p99": {order: line["latency_p99"] for order, line in chosen.items()},
        "share": {
            f"{load:g}": {line["order"]: line["share"] for line in summary if line["load"] == load}
            for load in settings.loads
        },
        "predictors": {line["predictor"]: dict(line) for line in predictors},
    }
