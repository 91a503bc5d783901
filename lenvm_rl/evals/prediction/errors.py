"""Errors of predicted lengths: at the prompt, by domain, by position, and over all tokens.

At the prompt, against N samples of each:

    L_GT = ln(1 - mean u(L)) / ln gamma over the samples of a prompt       (LenVM eq. 14)
    MRE  = mean over prompts of |L_hat - L_GT| / L_GT                       (eq. 15)

L_GT is itself measured on N samples. Its noise floor is half of the mean relative difference
between the L_GT of two random halves of the samples, averaged over `_HALVINGS` ways to halve them.

Inside responses, against what then happened. A trap: the relative position of a state is known only
afterwards. Among states at 50 % of their response, those at t tokens have exactly t left, whatever
could have happened: at a fixed relative position inside a response even a perfect V shows bias
against single outcomes. So compare predictors here, and models with each other; at 0 % the curve is
one of calibration proper, and over all tokens together (table calibration) too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lenvm_rl.core import (
    POSITIONS,
    at_positions,
    calibration,
    kendall_tau,
    length_to_u,
    mean_relative_error,
    noise_corrected_mre,
    noise_floor,
    predicted_length,
    prompt_boundary_length,
    r2,
    relative_error,
    remaining_length,
    value_of_logit,
)
from lenvm_rl.model import LengthValueModel
from lenvm_rl.model.forward import model_space
from lenvm_rl.model.heldout import NaivePredictors, outcome_errors, predicted_along
from lenvm_rl.rollouts import Rollout

Along = tuple[Rollout, Tensor]
"""One completion, and the model's logits [L] at s_0 .. s_{L-1}."""
Table = list[dict[str, Any]]

PREDICTORS = ("lenvm", "mean", "linear")
"""Of lengths at the prompt."""
CALIBRATED = (0.0, 0.25, 0.5, 0.75)
_HALVINGS = 8
_BINS = 10
_CHUNK = 256  # rows padded together when positions are read off


def prompt_table(
    predicted: Mapping[str, float],
    rows: Sequence[Rollout],
    naive: NaivePredictors | None,
    *,
    gamma: float,
) -> Table:
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


def prompt_metrics(
    table: Sequence[Mapping[str, Any]], rows: Sequence[Rollout], *, gamma: float, seed: int
) -> dict[str, float]:
    """Figures of `prompt_table`: MRE raw and noise-corrected, MAE in tokens, Kendall tau.

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
        key = figure_key(name)
        corrected = math.nan if math.isnan(floor) else noise_corrected_mre(mre, floor)
        figures[f"mre_{key}"] = mre
        figures[f"mre_{key}_corrected"] = corrected
        figures[f"mae_{key}"] = (guess - truth).abs().mean().item()
        figures[f"kendall_tau_{key}"] = kendall_tau(guess, truth) if len(table) > 1 else math.nan
    return figures


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
                "mre": f"mre_{key}",
                "mre_corrected": f"mre_{key}_corrected",
                "mae": f"mae_{key}",
                "kendall_tau": f"kendall_tau_{key}",
            }
            if f"mre_{key}" in figures:
                numbers = {column: figures[figure] for column, figure in columns.items()}
                table.append({"domain": domain, "predictor": name, **numbers})
    return table


def outcome_table(
    model: LengthValueModel,
    prompts: Sequence[Mapping[str, Any]],
    along: Sequence[Along],
    naive: NaivePredictors | None,
) -> Table:
    """Errors against single finished responses: at s_0 (`at` "s0") and over all states ("all")."""
    first = {row["prompt_id"]: row for row in prompts}
    total = torch.tensor([float(row.length) for row, _ in along])
    table = []
    for name in PREDICTORS:
        if name in prompts[0]:
            guess = torch.tensor([first[row.prompt_id][name] for row, _ in along])
            table.append({"at": "s0", "predictor": name, **outcome_errors(guess, total)})
    left = torch.cat([torch.arange(row.length, 0, -1, dtype=torch.float32) for row, _ in along])
    for name, parts in predicted_along(model, along, naive).items():
        guess = torch.cat(parts).float()
        table.append({"at": "all", "predictor": name, **outcome_errors(guess, left)})
    return table


def position_table(
    model: LengthValueModel, along: Sequence[Along], naive: NaivePredictors | None
) -> Table:
    """Errors of remaining lengths at `POSITIONS` of finished responses, one row per predictor.

    Columns: relative_error, mean |l_hat - l| / l; mae, mean |l_hat - l| in tokens; u_rmse,
    the root mean squared error of u_hat. Outcomes are single samples, so that even a perfect model
    has errors here.
    """
    gamma = model.config.require_gamma()
    z_BP, t_BP, left_BP = _at_positions(along)
    guesses = {"lenvm": predicted_length(z_BP, **model_space(model))}
    if naive is not None:
        prompts = torch.tensor([len(row.prompt_ids) for row, _ in along])
        guesses |= naive.remaining_lengths(prompts, t_BP)
    u_BP = length_to_u(left_BP, gamma=gamma)
    table = []
    for name, guess_BP in guesses.items():
        error = relative_error(guess_BP.double(), left_BP.double()).mean(0)
        absolute = (guess_BP - left_BP).double().abs().mean(0)
        # A value model that predicts a mean u is scored on it; others on that of their length.
        u_hat = (
            -value_of_logit(z_BP, **model_space(model))
            if name == "lenvm"
            else length_to_u(guess_BP, gamma=gamma)
        )
        squared = (u_hat - u_BP).double().square().mean(0)
        for i, position in enumerate(POSITIONS):
            table.append(
                {
                    "position": position,
                    "predictor": name,
                    "relative_error": error[i].item(),
                    "mae": absolute[i].item(),
                    "u_rmse": squared[i].sqrt().item(),
                    "responses": len(along),
                }
            )
    return table


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


def figure_key(predictor: str) -> str:
    """End of the names of a predictor's figures at the prompt, e.g. of `mre_s0`."""
    return "s0" if predictor == "lenvm" else f"naive_{predictor}"


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
