"""Is the length known before the first token? Predictions at s_0 against N samples per prompt.

    L_GT = ln(1 - mean u(L)) / ln gamma over the samples of a prompt       (LenVM eq. 14)
    MRE  = mean over prompts of |L_hat - L_GT| / L_GT                       (eq. 15)

L_GT is itself measured on N samples. Its noise floor is half of the mean relative difference
between the L_GT of two random halves of the samples, averaged over `_HALVINGS` ways to halve them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lenvm_rl.core import (
    kendall_tau,
    mean_relative_error,
    noise_corrected_mre,
    noise_floor,
    prompt_boundary_length,
)
from lenvm_rl.evals.prediction.naive import NaivePredictors
from lenvm_rl.rollouts import Rollout

_HALVINGS = 8
PREDICTORS = ("lenvm", "mean", "linear")


def boundary_table(
    predicted: Mapping[str, float],
    rows: Sequence[Rollout],
    naive: NaivePredictors | None,
    *,
    gamma: float,
) -> list[dict[str, Any]]:
    """One row per prompt: measured length, the model's, and the naive predictors' (tokens).

    `data_source` is that of the prompt's first row.

    Args:
        predicted: length at s_0 by prompt_id.
        rows: completions sorted by (prompt_id, sample_id).
        naive: fitted predictors, or None.
        gamma: per-token discount in (0, 1).
    """
    names, lengths, mask = group_lengths(rows)
    truth = prompt_boundary_length(lengths, gamma=gamma, mask=mask).tolist()
    first = {row.prompt_id: row for row in reversed(rows)}
    table = [
        {
            "prompt_id": name,
            "data_source": first[name].data_source,
            "prompt_tokens": len(first[name].prompt_ids),
            "samples": int(mask[i].sum()),
            "measured": truth[i],
            "lenvm": predicted[name],
        }
        for i, name in enumerate(names)
    ]
    if naive is not None:
        guesses = naive.total_lengths(torch.tensor([row["prompt_tokens"] for row in table]))
        for key, values in guesses.items():
            for row, value in zip(table, values.tolist(), strict=True):
                row[key] = value
    return table


def boundary_metrics(
    table: Sequence[Mapping[str, Any]], rows: Sequence[Rollout], *, gamma: float, seed: int
) -> dict[str, float]:
    """Figures of `boundary_table`: MRE raw and noise-corrected, MAE in tokens, Kendall tau.

    The model's are `mre_s0`, `mre_s0_corrected`, `mae_s0`, `kendall_tau_s0`; those of a naive
    predictor `mre_naive_mean` and so on. NaN: the noise floor with a one-sample prompt, and tau
    of fewer than two prompts or of a constant guess.
    """
    _, lengths, mask = group_lengths(rows)
    floor = _mean_noise_floor(lengths, mask, gamma=gamma, seed=seed)
    truth = torch.tensor([row["measured"] for row in table])
    figures = {
        "prompts": len(table),
        "samples_per_prompt": len(rows) / len(table),
        "mre_noise_floor": floor,
    }
    for name in PREDICTORS:
        if name not in table[0]:
            continue
        guess = torch.tensor([row[name] for row in table])
        mre = mean_relative_error(guess, truth)
        key = "s0" if name == "lenvm" else f"naive_{name}"
        corrected = math.nan if math.isnan(floor) else noise_corrected_mre(mre, floor)
        figures[f"mre_{key}"] = mre
        figures[f"mre_{key}_corrected"] = corrected
        figures[f"mae_{key}"] = (guess - truth).abs().mean().item()
        figures[f"kendall_tau_{key}"] = kendall_tau(guess, truth) if len(table) > 1 else math.nan
    return figures


def group_lengths(rows: Sequence[Rollout]) -> tuple[list[str], Tensor, Tensor]:
    """Prompt names [P] in order of appearance, their response lengths [P, G], and which exist."""
    groups: dict[str, list[int]] = {}
    for row in rows:
        groups.setdefault(row.prompt_id, []).append(row.length)
    most = max(map(len, groups.values()))
    lengths = torch.zeros(len(groups), most)
    mask = torch.zeros(len(groups), most, dtype=torch.bool)
    for i, group in enumerate(groups.values()):
        lengths[i, : len(group)] = torch.tensor(group, dtype=torch.float32)
        mask[i, : len(group)] = True
    return list(groups), lengths, mask


def _mean_noise_floor(lengths: Tensor, mask: Tensor, *, gamma: float, seed: int) -> float:
    if int(mask.sum(1).min()) < 2:
        return math.nan
    generator = torch.Generator().manual_seed(seed)
    floors = []
    for _ in range(_HALVINGS):
        # Samples that do not exist sort last; core halves what exists by its order.
        order = torch.rand(lengths.shape, generator=generator).masked_fill(~mask, 2.0).argsort(1)
        floors.append(
            noise_floor(lengths.gather(1, order), gamma=gamma, mask=mask.gather(1, order))
        )
    return sum(floors) / len(floors)
