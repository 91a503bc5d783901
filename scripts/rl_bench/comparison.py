"""Runs in, table out: spread over seeds, updates to reach each length, and who dominates whom."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch

FIGURES = ("accuracy", "length", "tokens_per_correct", "share_cut")
LENGTHS = (64, 56, 48, 40, 32, 24, 16)
"""Mean training lengths whose first update is reported."""
SMOOTHING = 3  # updates averaged before a length counts as reached

Run = dict[str, Any]


def compare(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row per method and strength: mean and standard deviation over seeds of every figure,
    mean updates to each length (None unless every seed got there), and `dominated_by`: how many
    rows of other methods are at least as accurate and as short, and better in one of both."""
    groups: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        groups.setdefault((run["method"], run["level"]), []).append(run)
    rows = [_row(group) for group in groups.values()]
    for row in rows:
        row["dominated_by"] = sum(
            _dominates(other, row) for other in rows if other["method"] != row["method"]
        )
    return rows


def updates_to(history: Sequence[dict[str, float]], length: float) -> int | None:
    """First update (from 1) by which the mean length of the last few is at most `length`."""
    lengths = [step["length"] for step in history]
    for end in range(SMOOTHING, len(lengths) + 1):
        if statistics.fmean(lengths[end - SMOOTHING : end]) <= length:
            return end
    return None


def answer(rows: Sequence[dict[str, Any]], *, tolerance: float = 0.01) -> dict[str, Any]:
    """The bench's question, for every LenVM row: is there a published reward that does as well?

    reaches_alone   no published row is within `tolerance` of its accuracy at its length or below
    speed_up        updates of the best published reward / its own, to the shortest length that
                    both reach with accuracies within `tolerance`; the best is the published row
                    that is shortest among those at least as accurate; None where there is none
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


def _speed_up(
    row: dict[str, Any], published: Sequence[dict[str, Any]], tolerance: float
) -> float | None:
    equal = [p for p in published if p["accuracy"] >= row["accuracy"] - tolerance]
    if not equal:
        return None
    best = min(equal, key=lambda p: p["length"])
    for length in reversed(LENGTHS):
        mine, theirs = row[f"updates_to_{length}"], best[f"updates_to_{length}"]
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
    for length in LENGTHS:
        reached = [updates_to(run["history"], length) for run in group]
        row[f"updates_to_{length}"] = (
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
