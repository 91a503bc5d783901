"""Errors of lengths predicted at the prompt, over all prompts and by domain.

Against N samples of each prompt:

    L_GT = ln(1 - mean u(L)) / ln gamma over the samples of a prompt       (LenVM eq. 14)
    MRE  = mean over prompts of |L_hat - L_GT| / L_GT                       (eq. 15)

L_GT is itself measured on N samples. Its noise floor is half of the mean relative difference
between the L_GT of two random halves of the samples, averaged over `_HALVINGS` ways to halve them.

Every mean has its 95 % interval, by resampling prompts (`core.intervals`); that of a
noise-corrected one holds the noise floor fixed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lenvm_rl.core import (
    interval,
    kendall_tau,
    mean_relative_error,
    noise_corrected_mre,
    noise_floor,
    prompt_boundary_length,
    relative_error,
    resampled_means,
)
from lenvm_rl.model.heldout import NAIVE, NaivePredictors
from lenvm_rl.rollouts import Rollout

Table = list[dict[str, Any]]

PREDICTORS = ("lenvm", "probe", "mean", "linear", "source")
"""Of lengths at the prompt."""
_HALVINGS = 8
_ENDS = ("", "_low", "_high", "_corrected", "_corrected_low", "_corrected_high")


def prompt_table(
    predicted: Mapping[str, Mapping[str, float]],
    rows: Sequence[Rollout],
    naive: NaivePredictors | None,
    *,
    gamma: float,
) -> Table:
    """One row per prompt: measured length, the models', and the naive predictors' (tokens).

    `data_source` is that of the prompt's first row.

    Args:
        predicted: by model, `lenvm` and `probe`, the length at s_0 by prompt_id.
        rows: completions sorted by (prompt_id, sample_id).
        naive: fitted predictors, or None.
        gamma: per-token discount in (0, 1).
    """
    names, samples, mask = group_lengths(rows)
    truth = prompt_boundary_length(samples, gamma=gamma, mask=mask).tolist()
    first = {row.prompt_id: row for row in reversed(rows)}
    table = [
        {
            "prompt_id": name,
            "data_source": first[name].data_source,
            "prompt_tokens": len(first[name].prompt_ids),
            "samples": int(mask[i].sum()),
            "measured": truth[i],
            **{model: lengths[name] for model, lengths in predicted.items()},
        }
        for i, name in enumerate(names)
    ]
    if naive is not None:
        prompts = torch.tensor([row["prompt_tokens"] for row in table])
        guesses = naive.total_lengths(prompts, [row["data_source"] for row in table])
        for key, values in guesses.items():
            for row, value in zip(table, values.tolist(), strict=True):
                row[key] = value
    return table


def prompt_metrics(
    table: Sequence[Mapping[str, Any]], rows: Sequence[Rollout], *, gamma: float, seed: int
) -> dict[str, Any]:
    """Figures of `prompt_table`: MRE raw and noise-corrected, MAE in tokens, Kendall tau.

    The model's are `mre_s0`, `mre_s0_low` and `_high`, `mre_s0_corrected`, `mae_s0`,
    `kendall_tau_s0`; those of the probe `mre_probe` and so on, of a naive predictor
    `mre_naive_mean`. `best_naive` is the naive one with the least error, and `share_of_best_naive`
    the model's corrected error as a share of its, with an interval of paired samples. NaN: the
    noise floor with a one-sample prompt, an interval of one prompt, and tau of fewer than two
    prompts or of a constant guess.
    """
    _, lengths, mask = group_lengths(rows)
    floor = _mean_noise_floor(lengths, mask, gamma=gamma, seed=seed)
    truth = torch.tensor([row["measured"] for row in table])
    figures: dict[str, Any] = {
        "prompts": len(table),
        "samples_per_prompt": len(rows) / len(table),
        "mre_noise_floor": floor,
    }
    drawn: dict[str, Tensor] = {}
    for name in PREDICTORS:
        if name not in table[0]:
            continue
        guess = torch.tensor([row[name] for row in table])
        key = figure_key(name)
        figures[f"mre_{key}"] = mre = mean_relative_error(guess, truth)
        figures[f"mre_{key}_corrected"] = _corrected(mre, floor)
        figures[f"mae_{key}"] = (guess - truth).abs().mean().item()
        figures[f"kendall_tau_{key}"] = kendall_tau(guess, truth) if len(table) > 1 else math.nan
        errors = relative_error(guess, truth)
        drawn[name] = resampled_means(errors, torch.ones_like(errors), seed=seed)
        ends = interval(drawn[name]) if len(table) > 1 else (math.nan, math.nan)
        for end, value in zip(("low", "high"), ends, strict=True):
            figures[f"mre_{key}_{end}"] = value
            figures[f"mre_{key}_corrected_{end}"] = _corrected(value, floor)
    return figures | _beside_the_best_naive(figures, drawn)


def _corrected(mre: float, floor: float) -> float:
    return math.nan if math.isnan(mre + floor) else noise_corrected_mre(mre, floor)


def _beside_the_best_naive(
    figures: Mapping[str, Any], drawn: Mapping[str, Tensor]
) -> dict[str, Any]:
    """The model's corrected error as a share of that of the best naive predictor.

    Args:
        drawn: [R] resampled errors of each predictor, of the same prompts.
    """
    naive = [name for name in NAIVE if name in drawn]
    floor = figures["mre_noise_floor"]
    if not naive or math.isnan(floor):
        return {}
    best = min(naive, key=lambda name: figures[f"mre_{figure_key(name)}"])
    ours, theirs = (
        (drawn[name].square() - floor**2).clamp(min=0).sqrt() for name in ("lenvm", best)
    )
    low, high = interval(ours / theirs) if figures["prompts"] > 1 else (math.nan, math.nan)
    whole = figures[f"mre_{figure_key(best)}_corrected"]
    share = figures["mre_s0_corrected"] / whole if whole > 0 else math.nan
    ends = {"share_of_best_naive_low": low, "share_of_best_naive_high": high}
    return {"best_naive": best, "share_of_best_naive": share, **ends}


def domain_table(
    prompts: Sequence[Mapping[str, Any]], rows: Sequence[Rollout], *, gamma: float, seed: int
) -> Table:
    """One row per domain (`data_source`) and predictor: `prompt_metrics` of its prompts alone.

    The naive predictors stay those of the whole training file.

    Args:
        prompts: of `prompt_table`.
        rows: the completions, sorted by (prompt_id, sample_id).
        gamma: per-token discount in (0, 1).
        seed: of the halves behind the noise floor.
    """
    table = []
    for domain in sorted({row["data_source"] for row in prompts}):
        part = [row for row in prompts if row["data_source"] == domain]
        names = {row["prompt_id"] for row in part}
        figures = prompt_metrics(
            part, [row for row in rows if row.prompt_id in names], gamma=gamma, seed=seed
        )
        for name in PREDICTORS:
            key = figure_key(name)
            columns = {
                "prompts": "prompts",
                "samples_per_prompt": "samples_per_prompt",
                "noise_floor": "mre_noise_floor",
                **{f"mre{end}": f"mre_{key}{end}" for end in _ENDS},
                "mae": f"mae_{key}",
                "kendall_tau": f"kendall_tau_{key}",
            }
            if f"mre_{key}" in figures:
                numbers = {column: figures[figure] for column, figure in columns.items()}
                table.append({"domain": domain, "predictor": name, **numbers})
    return table


def figure_key(predictor: str) -> str:
    """End of the names of a predictor's figures at the prompt, e.g. of `mre_s0`."""
    return {"lenvm": "s0", "probe": "probe"}.get(predictor, f"naive_{predictor}")


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
