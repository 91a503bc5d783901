"""What is logged about a step: verl's worker metrics as numbers, and the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from verl.utils.metric import Metric

from lenvm_rl.rollouts import Rollout


def worker_metrics(output: Mapping[str, Any], *, prefix: str = "critic") -> dict[str, float]:
    """Metrics of `train_batch` under `prefix`/, micro-batches and workers combined."""
    return {f"{prefix}/{name}": _number(value) for name, value in output.items()}


def data_metrics(rows: Sequence[Rollout]) -> dict[str, float]:
    """Completions, response tokens, mean length and share cut of a batch, under data/."""
    lengths = [row.length for row in rows]
    return {
        "data/completions": len(rows),
        "data/response_tokens": sum(lengths),
        "data/response_length_mean": sum(lengths) / len(rows),
        "data/share_truncated": sum(row.truncated for row in rows) / len(rows),
    }


def _number(value: Any) -> float:
    if isinstance(value, Metric):
        return float(value.aggregate())
    if isinstance(value, list):
        # Several workers: metrics of the loss know how they are combined, others are equal.
        return float(Metric.aggregate_dp(value) if isinstance(value[0], Metric) else value[0])
    return float(value)
