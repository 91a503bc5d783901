"""Errors of remaining lengths inside responses: by outcome, by position, and over all tokens.

All of them are against what then happened. A trap: the relative position of a state is known only
afterwards. Among states at 50 % of their response, those at t tokens have exactly t left, whatever
could have happened: at a fixed relative position inside a response even a perfect V shows bias
against single outcomes. So compare predictors here, and models with each other; at 0 % the curve is
one of calibration proper, and over all tokens together (table calibration) too.

Intervals are of 95 %, by resampling prompts with all of their responses (`core.intervals`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lenvm_rl.core import (
    POSITIONS,
    at_positions,
    calibration,
    interval,
    length_to_u,
    predicted_length,
    r2,
    relative_error,
    remaining_length,
    resampled_means,
    value_of_logit,
)
from lenvm_rl.evals.prediction.errors import PREDICTORS, Table
from lenvm_rl.model import LengthValueModel
from lenvm_rl.model.forward import model_space
from lenvm_rl.model.heldout import NaivePredictors, outcome_errors, predicted_along
from lenvm_rl.rollouts import Rollout

Along = tuple[Rollout, Tensor]
"""One completion, and a model's logits [L] at s_0 .. s_{L-1}."""
Readings = Mapping[str, tuple[LengthValueModel, Sequence[Along]]]
"""`lenvm`, and `probe` where there is one, along the same completions in the same order."""

CALIBRATED = (0.0, 0.25, 0.5, 0.75)
_BINS = 10
_CHUNK = 256  # rows padded together when positions are read off


def outcome_table(
    readings: Readings, prompts: Sequence[Mapping[str, Any]], naive: NaivePredictors | None
) -> Table:
    """Errors against single finished responses: at s_0 (`at` "s0") and over all states ("all")."""
    first = {row["prompt_id"]: row for row in prompts}
    model, along = readings["lenvm"]
    total = torch.tensor([float(row.length) for row, _ in along])
    table = []
    for name in PREDICTORS:
        if name in prompts[0]:
            guess = torch.tensor([first[row.prompt_id][name] for row, _ in along])
            table.append({"at": "s0", "predictor": name, **outcome_errors(guess, total)})
    left = torch.cat([torch.arange(row.length, 0, -1, dtype=torch.float32) for row, _ in along])
    everywhere = predicted_along(model, along, naive)
    if "probe" in readings:
        everywhere["probe"] = predicted_along(*readings["probe"])["lenvm"]
    for name, parts in everywhere.items():
        guess = torch.cat(parts).float()
        table.append({"at": "all", "predictor": name, **outcome_errors(guess, left)})
    return table


@dataclass(frozen=True)
class PositionErrors:
    """Errors of one predictor at `POSITIONS` of B responses, all [B, P]."""

    relative: Tensor
    """|l_hat - l| / l."""
    absolute: Tensor
    """|l_hat - l| in tokens."""
    squared: Tensor
    """(u_hat - u)**2, unitless."""


def position_errors(readings: Readings, naive: NaivePredictors | None) -> dict[str, PositionErrors]:
    """Errors of remaining lengths at `POSITIONS` of finished responses, by predictor."""
    model, along = readings["lenvm"]
    gamma = model.config.require_gamma()
    _, t_BP, left_BP = _at_positions(along)
    guesses, horizons = {}, {}
    for name, (reader, own) in readings.items():
        z_BP, space = _at_positions(own)[0], model_space(reader)
        guesses[name] = predicted_length(z_BP, **space)
        # A value model that predicts a mean u is scored on it; others on that of their length.
        horizons[name] = -value_of_logit(z_BP, **space)
    if naive is not None:
        prompts = torch.tensor([len(row.prompt_ids) for row, _ in along])
        sources = [row.data_source for row, _ in along]
        guesses |= naive.remaining_lengths(prompts, t_BP, sources)
    u_BP = length_to_u(left_BP, gamma=gamma)
    return {
        name: PositionErrors(
            relative=relative_error(guess.double(), left_BP.double()),
            absolute=(guess - left_BP).double().abs(),
            squared=(horizons.get(name, length_to_u(guess, gamma=gamma)) - u_BP).double() ** 2,
        )
        for name, guess in guesses.items()
    }


def position_table(
    errors: Mapping[str, PositionErrors], along: Sequence[Along], *, seed: int
) -> Table:
    """Means of `position_errors`, one row per predictor and position.

    Columns: relative_error with its interval (`low`, `high`); mae in tokens; u_rmse, the root mean
    squared error of u_hat. Outcomes are single samples, so that even a perfect model has errors.

    Args:
        along: the completions of `errors`.
        seed: of the intervals.
    """
    prompts = [row.prompt_id for row, _ in along]
    return [
        {
            "position": position,
            "predictor": name,
            "relative_error": found.relative.mean(0)[i].item(),
            **_interval_by_prompt(found.relative[:, i], prompts, seed),
            "mae": found.absolute.mean(0)[i].item(),
            "u_rmse": found.squared.mean(0)[i].sqrt().item(),
            "responses": len(along),
        }
        for name, found in errors.items()
        for i, position in enumerate(POSITIONS)
    ]


def position_domains(
    errors: Mapping[str, PositionErrors], along: Sequence[Along], *, seed: int
) -> Table:
    """`position_table` of every domain (`data_source`) alone."""
    table = []
    for domain in sorted({row.data_source for row, _ in along}):
        inside = [i for i, (row, _) in enumerate(along) if row.data_source == domain]
        part = {
            name: PositionErrors(e.relative[inside], e.absolute[inside], e.squared[inside])
            for name, e in errors.items()
        }
        rows = position_table(part, [along[i] for i in inside], seed=seed)
        table += [{"domain": domain, **row} for row in rows]
    return table


def _interval_by_prompt(errors: Tensor, prompts: Sequence[str], seed: int) -> dict[str, float]:
    """`low` and `high` of the mean of [B], of which `prompts` names the prompts."""
    numbers = {name: i for i, name in enumerate(dict.fromkeys(prompts))}
    if len(numbers) < 2:
        return {"low": math.nan, "high": math.nan}
    which = torch.tensor([numbers[name] for name in prompts])
    sums = torch.zeros(len(numbers), dtype=torch.float64).index_add_(0, which, errors)
    low, high = interval(resampled_means(sums, torch.bincount(which), seed=seed))
    return {"low": low, "high": high}


def position_calibration(model: LengthValueModel, along: Sequence[Along]) -> Table:
    """Mean outcome against mean prediction (both u) at `CALIBRATED`, in ten bins of equal count.

    See the module: inside responses a perfect model's curve is not the diagonal.
    """
    gamma = model.config.require_gamma()
    z_BP, _, left_BP = _at_positions(along)
    u_BP = length_to_u(left_BP, gamma=gamma)
    u_hat_BP = -value_of_logit(z_BP, **model_space(model))
    table = []
    for position in CALIBRATED:
        i = POSITIONS.index(position)
        curve = calibration(u_hat_BP[:, i], u_BP[:, i], bins=_BINS)
        bins = zip(
            curve.count.tolist(), curve.predicted.tolist(), curve.actual.tolist(), strict=True
        )
        for number, (count, predicted, actual) in enumerate(bins):
            table.append(
                {
                    "position": position,
                    "bin": number,
                    "responses": count,
                    "predicted": predicted,
                    "actual": actual,
                }
            )
    return table


def _at_positions(along: Sequence[Along]) -> tuple[Tensor, Tensor, Tensor]:
    """[B, P] logits, response tokens written, and tokens left, at `POSITIONS`."""
    logits, offsets = [], []
    for start in range(0, len(along), _CHUNK):
        chunk = [z for _, z in along[start : start + _CHUNK]]
        z = torch.nn.utils.rnn.pad_sequence(chunk, batch_first=True)
        mask = torch.arange(z.shape[1]) < torch.tensor([len(c) for c in chunk])[:, None]
        logits.append(at_positions(z, mask))
        t = torch.arange(z.shape[1], dtype=torch.float32).expand_as(z)
        offsets.append(at_positions(t, mask))
    z_BP, t_BP = torch.cat(logits), torch.cat(offsets)
    lengths = torch.tensor([row.length for row, _ in along])
    return z_BP, t_BP, lengths[:, None] - t_BP


def token_metrics(
    model: LengthValueModel, along: Sequence[Along]
) -> tuple[dict[str, float], Table]:
    """V against the outcomes G_t over all tokens of finished responses, every token alike.

    `r2_returns` cannot reach 1: the returns are single outcomes, V their mean.
    """
    z = torch.cat([z for _, z in along])
    lengths = [remaining_length(torch.ones(1, row.length))[0] for row, _ in along]
    u = length_to_u(torch.cat(lengths), gamma=model.config.require_gamma())
    u_hat = -value_of_logit(z, **model_space(model))
    curve = calibration(u_hat, u, bins=20)
    low, middle, high = torch.quantile(_thinned(u_hat), torch.tensor([0.05, 0.5, 0.95])).tolist()
    figures = {
        "mse": (u_hat - u).double().square().mean().item(),
        "r2_returns": r2(u_hat, u) if len(u) > 1 else float("nan"),
        "u_mean": u_hat.double().mean().item(),
        "u_std": u_hat.double().std(correction=0).item(),
        "u_p5": low,
        "u_p50": middle,
        "u_p95": high,
        "calibration_error": curve.error,
    }
    bins = zip(curve.count.tolist(), curve.predicted.tolist(), curve.actual.tolist(), strict=True)
    return figures, [{"tokens": n, "predicted": p, "actual": a} for n, p, a in bins]


def _thinned(x: Tensor, most: int = 1_000_000) -> Tensor:
    """Every k-th element, so that torch.quantile takes it."""
    return x[:: max(1, -(-x.numel() // most))]
