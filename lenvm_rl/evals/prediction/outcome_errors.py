"""How far are predictions from what single requests did? What work on serving reports.

TRAIL and PLP report the mean absolute error in tokens, vllm-ltr Kendall's tau, each against one
outcome per request. An outcome is one draw of many: no predictor reaches error 0 or tau 1. Against
the mean of many samples, which can be predicted, see `boundary`.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor


def outcome_errors(predicted: Tensor, outcome: Tensor) -> dict[str, Any]:
    """MAE (tokens), root mean squared error (tokens) and Kendall's tau-b, over M pairs.

    Args:
        predicted: [M] tokens.
        outcome: [M] tokens.
    Returns:
        mae, rmse, kendall_tau; tau is NaN for a constant guess, or fewer than two pairs.
    """
    error = (predicted - outcome).double()
    tau = math.nan
    if len(outcome) > 1:
        import scipy.stats  # of the extra `evals`; what reads values alone does without

        tau = float(scipy.stats.kendalltau(predicted.numpy(), outcome.numpy())[0])
    return {
        "mae": error.abs().mean().item(),
        "rmse": error.square().mean().sqrt().item(),
        "kendall_tau": tau,
    }
