"""Errors on held-out responses, in a few numbers that every kind of target has.

    mse                   mean of (V - G)**2 over all tokens of finished responses
    length_error          mean of |l_hat - l| over the same tokens, in tokens
    relative_error_PP     mean over responses of |l_hat - l| / l at PP % of the response
    u_bias_s0             mean over responses of u_hat - u at s_0; above 0: predicts too long

Outcomes are single samples, so no model reaches 0; `mse_constant`, the variance of G, is what the
best constant has. The paper's loss is a Huber loss that is quadratic on values: half of `mse`.

`outcome_errors` is what work on serving reports: TRAIL and PLP the mean absolute error in tokens,
vllm-ltr Kendall's tau, each against one outcome per request.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lenvm_rl.core import ValueErrors, predicted_length, value_of_logit
from lenvm_rl.model import LengthValueModel
from lenvm_rl.model.forward import iter_logits, model_space
from lenvm_rl.rollouts import Rollout

POSITIONS = (0.0, 0.25, 0.5, 0.75)
"""Of the paper's figure 6."""


def heldout_errors(
    model: LengthValueModel, rows: Sequence[Rollout], *, token_budget: int = 16_384
) -> dict[str, float]:
    """The numbers of this module; values are those of the model's own gamma.

    Args:
        model: a LenVM with its gamma, of any target.
        rows: completions of prompts that it was not trained on; cut ones are left out.
        token_budget: padded tokens per forward pass.
    Raises:
        ValueError: no finished completion, or one that is longer than the model's context.
    """
    ended = [row for row in rows if not row.truncated]
    if not ended:
        raise ValueError(
            f"all {len(rows)} held-out completions were cut by the token limit: their lengths are "
            "not known. Sample with more tokens."
        )
    space = model_space(model)
    errors = ValueErrors(gamma=model.config.require_gamma(), positions=POSITIONS)
    for _, z in iter_logits(model, ended, token_budget=token_budget):
        values, left = value_of_logit(z, **space), predicted_length(z, **space)
        errors.add(torch.ones(1, len(z)), values[None], left[None])
    return {
        "mse": errors.mse,
        "mse_constant": errors.variance,
        "length_error": errors.length_error,
        **{f"relative_error_{round(100 * p):02d}": x for p, x in errors.relative_errors.items()},
        "u_bias_s0": errors.bias_s0,
    }


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
