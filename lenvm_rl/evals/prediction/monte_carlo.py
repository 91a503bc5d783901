"""Is V right inside responses? V(s) against the mean outcome of continuations sampled from s.

The mean of n continuations has sampling variance s**2 / n (s the standard deviation within the
state); the noise-corrected R2 takes it out of both the error and the variance to be explained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lenvm_rl.core import length_to_horizon, noise_corrected_r2, r2, value_of_logit
from lenvm_rl.evals.prediction.boundary import group_lengths
from lenvm_rl.evals.prediction.states import StateId
from lenvm_rl.model import LengthValueModel
from lenvm_rl.model.forward import iter_logits, model_space
from lenvm_rl.rollouts import RolloutReader

QUARTERS = ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))


def state_table(
    model: LengthValueModel, reader: RolloutReader, *, token_budget: int
) -> list[dict[str, Any]]:
    """One row per state: the model's horizon u = -V and the mean of its continuations.

    Args:
        model: a LenVM with its gamma.
        reader: rollouts of `sample_states`; every state needs two continuations.
    """
    gamma = model.config.require_gamma()
    rows = sorted(reader.iter_rows(), key=lambda row: (row.prompt_id, row.sample_id))
    names, lengths, mask = group_lengths(rows)
    count = mask.sum(1)
    if int(count.min()) < 2:
        poorest = names[int(count.argmin())]
        raise ValueError(
            f"{reader.path}: state {poorest} has {int(count.min())} continuation; its spread, and "
            "so the sampling noise, is unknown. Sample at least two per state (32 are good)."
        )
    u = length_to_horizon(lengths.double(), gamma=gamma)
    mean = (u * mask).sum(1) / count
    variance = ((u - mean[:, None]).square() * mask).sum(1) / (count - 1)
    first = {row.prompt_id: row for row in rows}
    predicted = {
        row.prompt_id: -value_of_logit(z[:1].double(), **model_space(model)).item()
        for row, z in iter_logits(model, first.values(), token_budget=token_budget)
    }
    return [
        {
            "state": name,
            "position": StateId.parse(name).position,
            "continuations": int(count[i]),
            "lenvm": predicted[name],
            "monte_carlo": mean[i].item(),
            "std_of_mean": math.sqrt(variance[i].item() / int(count[i])),
        }
        for i, name in enumerate(names)
    ]


def state_metrics(
    table: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Figures of `state_table`, and error and bias by quarter of the response.

    `r2_monte_carlo` is noise-corrected, `r2_monte_carlo_raw` is not. In a quarter, `bias` is the
    mean of u_hat - u and `rmse` the root of the noise-corrected mean squared error. Horizons are
    unitless in [0, 1).
    """
    u_hat = torch.tensor([row["lenvm"] for row in table], dtype=torch.float64)
    u = torch.tensor([row["monte_carlo"] for row in table], dtype=torch.float64)
    noise = torch.tensor([row["std_of_mean"] for row in table], dtype=torch.float64).square()
    enough = len(table) > 1
    figures = {
        "states": len(table),
        "continuations_per_state": sum(row["continuations"] for row in table) / len(table),
        "r2_monte_carlo": noise_corrected_r2(-u_hat, -u, noise) if enough else math.nan,
        "r2_monte_carlo_raw": r2(-u_hat, -u) if enough else math.nan,
        "mae_monte_carlo": (u_hat - u).abs().mean().item(),
        "bias_monte_carlo": (u_hat - u).mean().item(),
    }
    position = torch.tensor([row["position"] for row in table])
    quarters = []
    for low, high in QUARTERS:
        inside = (position >= low) & (position < high)
        if not inside.any():
            continue
        error = (u_hat - u)[inside]
        quarters.append(
            {
                "from": low,
                "to": high,
                "states": int(inside.sum()),
                "predicted": u_hat[inside].mean().item(),
                "measured": u[inside].mean().item(),
                "bias": error.mean().item(),
                "rmse": math.sqrt(max(0.0, (error.square().mean() - noise[inside].mean()).item())),
            }
        )
    return figures, quarters
