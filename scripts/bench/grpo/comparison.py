"""Runs in, table out: spread over seeds, updates to reach each length, and who dominates whom."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch

FIGURES = ("accuracy", "length", "tokens_per_correct", "share_truncated")
GREEDY = ("greedy_accuracy", "greedy_length")
SHARES = tuple(percent / 100 for percent in range(95, 20, -5))
"""Of the untrained policy's length on the same prompts; the first update at each is reported."""
SMOOTHING = 3  # updates averaged before a length counts as reached

Run = dict[str, Any]


def compare(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row per method and strength: mean and standard deviation over seeds of every figure,
    mean updates to each of `SHARES` (None unless every seed got there), and `dominated_by`: how
    many rows of other methods are at least as accurate and as short, and better in one of both."""
    groups: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        groups.setdefault((run["method"], run["level"]), []).append(run)
    rows = [_row(group) for group in groups.values()]
    for row in rows:
        row["dominated_by"] = sum(
            _dominates(other, row) for other in rows if other["method"] != row["method"]
        )
    return rows


def updates_to(history: Sequence[dict[str, float]], share: float) -> int | None:
    """First update (from 1) by which the last few are, together, at most `share` as long as the
    untrained policy on their prompts: batches of long and of short problems count alike."""
    for end in range(SMOOTHING, len(history) + 1):
        last = history[end - SMOOTHING : end]
        if sum(u["length"] for u in last) <= share * sum(u["reference_length"] for u in last):
            return end
    return None


def answer(rows: Sequence[dict[str, Any]], *, tolerance: float = 0.01) -> dict[str, Any]:
    """The bench's question, for every LenVM row: is there a published reward that does as well?

    reaches_alone   no published row is within `tolerance` of its accuracy at its length or below
    speed_up        updates of the best published reward / its own, to the smallest share of the
                    untrained length that both reach with accuracies within `tolerance`; the best
                    is the published row that is shortest among those at least as accurate; None
                    where there is none
    """
    published = [row for row in rows if row["family"] == "published"]
    return {
        f"{row['method']}@{row['strength']:g}": {
            "reaches_alone": not any(
                p["accuracy"] >= row["accuracy"] - tolerance and p["length"] <= row["length"]
                for p in published
            ),
            "speed_up": _speed_up(row, published, tolerance),
        }
        for row in rows
        if row["family"] == "lenvm"
    }


def column(share: float) -> str:
    """Name of the figure "updates to this share of the untrained length"."""
    return f"updates_to_{round(100 * share)}_percent"


def _speed_up(
    row: dict[str, Any], published: Sequence[dict[str, Any]], tolerance: float
) -> float | None:
    equal = [p for p in published if p["accuracy"] >= row["accuracy"] - tolerance]
    if not equal:
        return None
    best = min(equal, key=lambda p: p["length"])
    for share in reversed(SHARES):
        mine, theirs = row[column(share)], best[column(share)]
        if mine is not None and theirs is not None:
            return theirs / mine
    return None


def _row(group: Sequence[Run]) -> dict[str, Any]:
    first = group[0]
    row: dict[str, Any] = {key: first[key] for key in ("method", "family", "level", "strength")}
    row["seeds"] = len(group)
    for name in FIGURES:
        # A run without a right answer has no tokens per right answer: infinitely many.
        known = [math.inf if run[name] is None else run[name] for run in group]
        values = torch.tensor(known, dtype=torch.float64)
        row[name] = values.mean().item()
        row[f"{name}_std"] = values.std().item() if len(group) > 1 else math.nan
    for name in GREEDY:
        if all(name in run for run in group):  # runs of before it was measured have none
            row[name] = statistics.fmean(run[name] for run in group)
    for share in SHARES:
        reached = [updates_to(run["history"], share) for run in group]
        row[column(share)] = (
            None if None in reached else statistics.fmean(n for n in reached if n is not None)
        )
    last = [run["history"][-1] for run in group]
    row["value_rmse_last"] = statistics.fmean(step["value_rmse"] for step in last)
    row["value_bias_last"] = statistics.fmean(step["value_bias"] for step in last)
    return row


def _dominates(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return (
        a["accuracy"] >= b["accuracy"]
        and a["length"] <= b["length"]
        and (a["accuracy"] > b["accuracy"] or a["length"] < b["length"])
    )
