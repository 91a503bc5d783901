"""A value model against predictors that do not read, at every position of a response.

The bar is the root mean squared error of the horizon u = 1 - gamma**l, the quantity whose mean the
model learns and which `mean` and `linear` minimise at s_0 (`model.baselines`). Beside it:
the mean absolute error of u and the mean relative error of the length in tokens.

Only completions that ended by themselves are judged: the others have no true length.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lenvm_rl.core import (
    POSITIONS,
    at_positions,
    length_to_u,
    logit_to_length,
    logit_to_u,
    r2,
)
from lenvm_rl.model import LengthValueModel
from lenvm_rl.model.forward import iter_logits
from lenvm_rl.model.heldout import NaivePredictors
from lenvm_rl.rollouts import Rollout, RolloutReader

BARS = ("mean", "linear")
"""Predictors that must be beaten; `survival` informs."""


@dataclass(frozen=True)
class Errors:
    """One predictor on N completions; P positions, M states in all."""

    u_NP: Tensor
    """Predicted minus true u."""
    relative_NP: Tensor
    """|l_hat - l| / l."""
    u_M: Tensor
    """Predicted u at every state."""


def compare(
    model: LengthValueModel, train: Path, heldout: Path, source: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Judge all predictors on the held-out completions of one data source.

    Args:
        model: a trained LenVM of target `return`.
        train: rollout file that the naive predictors are fitted on, its rows of `source` alone.
        heldout: rollout file of other prompts.
        source: which `data_source` to judge.
    Returns:
        Table rows (dataset, predictor, position, u_rmse, u_mae, length_mre), and figures: R2 over
        all states by predictor, and where the bars are beaten, by how many standard errors.
    """
    gamma = model.config.require_gamma()
    naive = fit_naive(RolloutReader(train).iter_rows(), source, gamma)
    rows = [
        r for r in RolloutReader(heldout).iter_rows() if r.data_source == source and not r.truncated
    ]
    if not rows:
        raise ValueError(
            f"{heldout} has no finished completion of {source}: use more completions, or hold out "
            "more prompts."
        )
    prompts, truth_M, errors = measure(model, naive, rows)
    table = [
        {"dataset": source, "predictor": name, "position": position, **figures}
        for name, e in errors.items()
        for position, figures in zip(POSITIONS, _position_figures(e), strict=True)
    ]
    margins = {
        bar: margin(errors["lenvm"], errors[bar], prompts) for bar in errors if bar != "lenvm"
    }
    figures = {
        "gamma": gamma,
        "heldout_completions": len(rows),
        "heldout_prompts": len(set(prompts)),
        "heldout_states": len(truth_M),
        "r2": {name: r2(e.u_M, truth_M) for name, e in errors.items()},
        "margin_in_standard_errors": margins,
        "beats": {bar: _beats(table, bar) for bar in margins},
    }
    figures["beats_naive_everywhere"] = all(all(figures["beats"][bar]) for bar in BARS)
    return table, figures


def fit_naive(rows: Iterable[Rollout], source: str, gamma: float) -> NaivePredictors:
    """Naive predictors of one data source, fitted on its finished training completions."""
    used = [
        (len(r.prompt_ids), r.length) for r in rows if r.data_source == source and not r.truncated
    ]
    return NaivePredictors.fit([p for p, _ in used], [n for _, n in used], gamma=gamma)


def measure(
    model: LengthValueModel, naive: NaivePredictors, rows: Sequence[Rollout]
) -> tuple[list[str], Tensor, dict[str, Errors]]:
    """Prompt of each of the N completions, true u of the M states, and everyone's errors."""
    gamma = naive.gamma
    prompts: list[str] = []
    truth: list[Tensor] = []
    parts: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
    for row, logits_L in iter_logits(model, rows):
        written_L = torch.arange(row.length, dtype=torch.float32)
        left_L = row.length - written_L
        u_L = length_to_u(left_L, gamma=gamma)
        prompts.append(row.prompt_id)
        truth.append(u_L)
        guesses = {"lenvm": (logit_to_u(logits_L), logit_to_length(logits_L, gamma=gamma))}
        prompt_length = torch.tensor([len(row.prompt_ids)])
        longest = len(naive.survival)  # where a horizon is 1 to the last bit, its length is not inf
        for name, l_1L in naive.remaining_lengths(prompt_length, written_L[None]).items():
            l_hat_L = l_1L[0].clamp(max=longest)
            guesses[name] = (length_to_u(l_hat_L, gamma=gamma), l_hat_L)
        for name, (u_hat_L, l_hat_L) in guesses.items():
            errors_2L = torch.stack([u_hat_L - u_L, (l_hat_L - left_L).abs() / left_L])
            u_P, relative_P = at_positions(errors_2L, torch.ones(errors_2L.shape))
            parts.setdefault(name, []).append((u_P, relative_P, u_hat_L.float()))
    errors = {
        name: Errors(torch.stack(horizon), torch.stack(relative), torch.cat(u_hat))
        for name, (horizon, relative, u_hat) in (
            (k, zip(*v, strict=True)) for k, v in parts.items()
        )
    }
    return prompts, torch.cat(truth), errors


def margin(ours: Errors, theirs: Errors, prompts: Sequence[str]) -> list[float]:
    """By how many standard errors is our squared error of u lower, at each of the P positions?

        mean(d) / se(d),   d = their squared error - ours, averaged within each prompt first,

    because the completions of a prompt are not independent. NaN with fewer than two prompts or
    without any spread.
    """
    gain_NP = theirs.u_NP.double().square() - ours.u_NP.double().square()
    names = {name: i for i, name in enumerate(dict.fromkeys(prompts))}
    index = torch.tensor([names[prompt] for prompt in prompts])
    sums = torch.zeros(len(names), gain_NP.shape[1], dtype=torch.float64)
    counts = torch.bincount(index).double()
    gain_GP = sums.index_add_(0, index, gain_NP) / counts[:, None]
    if len(names) < 2:
        return [math.nan] * gain_NP.shape[1]
    error_P = gain_GP.std(0) / math.sqrt(len(names))
    return [
        (m / e).item() if e > 0 else math.nan for m, e in zip(gain_GP.mean(0), error_P, strict=True)
    ]


def _position_figures(errors: Errors) -> list[dict[str, float]]:
    horizon = errors.u_NP.double()
    return [
        {"u_rmse": rmse, "u_mae": mae, "length_mre": mre}
        for rmse, mae, mre in zip(
            horizon.square().mean(0).sqrt().tolist(),
            horizon.abs().mean(0).tolist(),
            errors.relative_NP.double().mean(0).tolist(),
            strict=True,
        )
    ]


def _beats(table: Sequence[dict[str, Any]], bar: str) -> list[bool]:
    """Whether our u_rmse is below that of `bar`, by position."""
    by = {(row["predictor"], row["position"]): row["u_rmse"] for row in table}
    return [by["lenvm", position] < by[bar, position] for position in POSITIONS]
