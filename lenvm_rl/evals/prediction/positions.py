"""How good are predictions at 0/25/50/75/90 % of each response, against what then happened?

A trap: the relative position of a state is known only afterwards. Among states at 50 % of their
response, those at t tokens have exactly t left, whatever could have happened: at a fixed relative
position inside a response even a perfect V shows bias against single outcomes. So compare
predictors here, and models with each other; at 0 % the curve is one of calibration proper, and
over all tokens together (`prediction`, table calibration) too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lenvm_rl.core import (
    POSITIONS,
    at_positions,
    calibration,
    length_to_horizon,
    predicted_length,
    relative_error,
    value_of_logit,
)
from lenvm_rl.evals.prediction.naive import NaivePredictors
from lenvm_rl.model import LengthValueModel
from lenvm_rl.model.forward import model_space
from lenvm_rl.rollouts import Rollout

Along = tuple[Rollout, Tensor]
"""One completion, and the model's logits [L] at s_0 .. s_{L-1}."""

CALIBRATED = (0.0, 0.25, 0.5, 0.75)
_BINS = 10
_CHUNK = 256  # rows padded together when positions are read off


def position_table(
    model: LengthValueModel, along: Sequence[Along], naive: NaivePredictors | None
) -> list[dict[str, Any]]:
    """Errors of remaining lengths at `POSITIONS` of finished responses, one row per predictor.

    Columns: relative_error, mean |l_hat - l| / l; mae, mean |l_hat - l| in tokens; horizon_rmse,
    the root mean squared error of u_hat. Outcomes are single samples, so that even a perfect model
    has errors here.
    """
    gamma = model.config.require_gamma()
    z_BP, t_BP, left_BP = _at_positions(along)
    guesses = {"lenvm": predicted_length(z_BP, **model_space(model))}
    if naive is not None:
        prompts = torch.tensor([len(row.prompt_ids) for row, _ in along])
        guesses |= naive.remaining_lengths(prompts, t_BP)
    u_BP = length_to_horizon(left_BP, gamma=gamma)
    table = []
    for name, guess_BP in guesses.items():
        error = relative_error(guess_BP.double(), left_BP.double()).mean(0)
        absolute = (guess_BP - left_BP).double().abs().mean(0)
        # A value model that predicts a mean horizon is scored on it; others on their length's.
        u_hat = (
            -value_of_logit(z_BP, **model_space(model))
            if name == "lenvm"
            else length_to_horizon(guess_BP, gamma=gamma)
        )
        squared = (u_hat - u_BP).double().square().mean(0)
        for i, position in enumerate(POSITIONS):
            table.append(
                {
                    "position": position,
                    "predictor": name,
                    "relative_error": error[i].item(),
                    "mae": absolute[i].item(),
                    "horizon_rmse": squared[i].sqrt().item(),
                    "responses": len(along),
                }
            )
    return table


def position_calibration(model: LengthValueModel, along: Sequence[Along]) -> list[dict[str, Any]]:
    """Mean outcome against mean prediction (horizons) at `CALIBRATED`, in ten bins of equal count.

    Read the module: inside responses a perfect model's curve is not the diagonal.
    """
    gamma = model.config.require_gamma()
    z_BP, _, left_BP = _at_positions(along)
    u_BP = length_to_horizon(left_BP, gamma=gamma)
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
