"""Which figures would LIFEBench's own program print? Its filter, its means and its rounding.

    percent    LIFEBench itself: percent in the exponent (`core.lifebench_official_score`)
    fraction   LenVM's fork, which its table 2 is made with (`core.lifebench_score`)

Both leave out generations that are missing or at most one word long, take the mean of every target
length, round it, and take the mean of these. `evals.lifebench` scores such generations 0 instead;
what a leaderboard shows is here, beside it and under its own name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from lenvm_rl.core import lifebench_official_score, lifebench_score

SCORERS = {"percent": lifebench_official_score, "fraction": lifebench_score}


def official_figures(
    lengths: Mapping[int, Sequence[int | None]], *, control: str, scorer: str
) -> dict[str, float]:
    """Score and deviation of one control as the program prints them.

    Args:
        lengths: target -> lengths of its generations in the target's unit, None where none came.
        control: one of `lenvm_rl.core.CONTROLS`.
        scorer: a key of `SCORERS`.
    Returns:
        `score`, mean over targets of means rounded to 0.1, itself rounded to 0.1; `deviation`,
        mean |deviation| in whole percent; NaN where nothing is left. `kept`, the share of
        generations that are not left out.
    Source: LIFEBench, evaluate/evaluate_all_results.py and filters.py at 143e1d6.
    """
    scores, deviations, kept = [], [], 0
    for target, found in lengths.items():
        counted = [length for length in found if length is not None and length > 1]
        kept += len(counted)
        if not counted:
            continue
        length = torch.tensor(counted, dtype=torch.float64)
        asked = torch.full_like(length, target)
        found_scores = SCORERS[scorer](length, asked, control=control).numpy()
        scores.append(round(np.mean(found_scores), 1))  # numpy's mean and rounding, as theirs
        deviations.append(((length - asked) / asked * 100).abs().mean().item())
    total = sum(map(len, lengths.values()))
    if not scores:
        return {"score": float("nan"), "deviation": float("nan"), "kept": 0.0}
    return {
        "score": float(round(np.mean(scores), 1)),
        "deviation": float(round(sum(deviations) / len(deviations))),
        "kept": kept / total,
    }
