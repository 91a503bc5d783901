"""From completions to tables: how near did each method come to what was asked?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lenvm_rl.core import lifebench_deviation, lifebench_score
from lenvm_rl.evals.outcomes import Outcome, lengths_of, mean_of, share_right
from lenvm_rl.evals.result import finite, save_results

if TYPE_CHECKING:
    from lenvm_rl.evals.length_control.control import ControlSettings


HEADLINE = (
    ("equal_guided_score", "equal: score", ".1f"),
    ("at_most_guided_score", "at most: score", ".1f"),
    ("at_least_guided_score", "at least: score", ".1f"),
    ("equal_guided_deviation", "equal: deviation, %", ".1f"),
)


@dataclass(frozen=True, eq=False)
class ControlReport:
    """Figures and tables of one evaluation."""

    figures: dict[str, Any]
    tables: dict[str, list[dict[str, Any]]]
    """summary (per control and method), targets (per goal too), points (per completion)."""

    def to_dict(self) -> dict[str, Any]:
        """Figures for JSON: None where a number is not defined."""
        return finite(self.figures)

    def save(self, out: str | Path) -> list[Path]:
        """Write control.json, .jsonl, one CSV per table, and control.png into `out`."""
        from lenvm_rl.evals.length_control.control_plots import plot_control

        paths = save_results(out, "control", self.figures, self.tables, HEADLINE)
        return [*paths, plot_control(self.tables, Path(out) / "control.png")]


def rows_of(
    method: str, control: str, targets: dict[str, list[int]], outcomes: Sequence[Outcome]
) -> list[dict[str, Any]]:
    """One row per completion and target."""
    rows = []
    for goal, asked in targets.items():
        for outcome in outcomes:
            target = asked[outcome.prompt]
            within = outcome.ended and outcome.length <= target
            truncated = method == "truncated" and not within
            rows.append(
                {
                    "control": control,
                    "method": method,
                    "goal": goal,
                    "prompt": outcome.prompt,
                    "target": target,
                    "length": min(outcome.length, target) if truncated else outcome.length,
                    "ended": outcome.ended and not truncated,
                    "right": None if outcome.right is None else outcome.right and not truncated,
                    "logprob": outcome.logprob,
                }
            )
    return rows


def make_report(
    points: list[dict[str, Any]], unguided: Sequence[Outcome], settings: ControlSettings
) -> ControlReport:
    """Scores of every control and method, and of every goal."""

    def grouped(*keys: str) -> list[dict[str, Any]]:
        groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for point in points:
            groups.setdefault(tuple(point[key] for key in keys), []).append(point)
        return [
            {**dict(zip(keys, values, strict=True)), **_scores(values[0], rows)}
            for values, rows in groups.items()
        ]

    summary = grouped("control", "method")
    figures: dict[str, Any] = {
        "prompts": len({point["prompt"] for point in points}),
        "samples": settings.samples,
        "unguided_accuracy": share_right([outcome.right for outcome in unguided]),
        "unguided_length": lengths_of(unguided).mean().item(),
        "unguided_logprob": mean_of(unguided, "logprob"),
    }
    for row in summary:
        for name in ("score", "deviation", "accuracy", "logprob"):
            figures[f"{row['control']}_{row['method']}_{name}"] = row[name]
    tables = {
        "summary": summary,
        "targets": grouped("control", "method", "goal"),
        "points": points,
    }
    return ControlReport(figures, tables)


def _scores(control: str, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over completions; a completion that never ended fails unless it was cut on purpose."""
    length = torch.tensor([row["length"] for row in rows], dtype=torch.float64)
    target = torch.tensor([row["target"] for row in rows], dtype=torch.float64)
    failed = torch.tensor([not row["ended"] and row["method"] != "truncated" for row in rows])
    deviation = lifebench_deviation(length, target, failed=failed)
    return {
        "completions": len(rows),
        "target": target.mean().item(),
        "length": length.mean().item(),
        "score": lifebench_score(length, target, control=control, failed=failed).mean().item(),
        "deviation": 100 * deviation.abs().mean().item(),
        "accuracy": share_right([row["right"] for row in rows]),
        "ended": sum(row["ended"] for row in rows) / len(rows),
        "logprob": sum(row["logprob"] for row in rows) / len(rows),
    }
