"""Metrics of pretraining: of a step, and of held-out completions, accumulated batch by batch.

    mse                      token-weighted squared error in the space of the training target; of a
                             distribution, of V at gamma
    nll                      cross entropy of a distribution
    r2                       share of the variance of the returns G_t that V(s_t) explains
    mre_s0                   mean over prompts of |L_hat - L_GT| / L_GT at the prompt boundary, with
                             L_GT the length of the mean discounted length of the prompt's
                             completions
    mre_s0_noise_floor       what sampling alone puts into mre_s0; with 2+ completions per prompt
    relative_error/<p>       mean |l_hat - l| / l at p % of each response
    share_truncated          share of completions that the token limit truncated; no weight

Memory grows with prompts and completions (a few numbers each), not with tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils.metric import Metric

from lenvm_rl.core import (
    ValueErrors,
    label,
    masked_sum,
    mean_relative_error,
    noise_floor,
    predict,
    predicted_length,
    prompt_boundary_length,
    remaining_length,
    squared_error,
    value_of_logit,
)
from lenvm_rl.rollouts import Rollout
from lenvm_rl.verl.pretrain.objective import LengthValueLoss, states_of_responses


@dataclass
class _Prompt:
    lengths: list[int] = field(default_factory=list)
    predicted: float = 0.0


class HeldOut:
    """Accumulates what the metrics need.

    Args:
        loss: supplies gamma, target and length_scale.
    """

    def __init__(self, loss: LengthValueLoss):
        self._loss = loss
        self._space = {
            "target": loss.target,
            "gamma": loss.gamma,
            "length_scale": loss.length_scale,
        }
        self._prompts: dict[str, _Prompt] = defaultdict(_Prompt)
        self._errors = ValueErrors(gamma=loss.gamma)
        self._target_error = self._nll = 0.0
        self._rows = self._truncated = 0

    def update(self, outputs: Tensor, batch: TensorDict, rows: Sequence[Rollout]) -> None:
        """Add one batch.

        Args:
            outputs: the model's z at every token, nested [B, P + L], or [B, P + L, K].
            batch: the batch they were computed on (`make_batch` of `rows`).
            rows: its completions.
        """
        states, mask = states_of_responses(
            outputs, batch["prompt_length"], batch["response_length"]
        )
        real = batch["row_index"] >= 0
        keep = real & batch["finished"]
        self._rows += int(real.sum())
        self._truncated += int((real & ~batch["finished"]).sum())
        if not keep.any():
            return
        x, mask = states[keep, :-1].double(), mask[keep]
        z = self._loss.read(x)
        lengths = predicted_length(z, **self._space)
        self._errors.add(mask, value_of_logit(z, **self._space), lengths)
        wanted = label(remaining_length(mask).double(), **self._space)
        error = squared_error(predict(z, target=self._loss.target), wanted)
        self._target_error += float(masked_sum(error, mask.double()))
        if self._loss.bins is not None:
            nll = self._loss.bins.of(x).nll(remaining_length(mask))
            self._nll += float(masked_sum(nll, mask.double()))
        for i, predicted in zip(batch["row_index"][keep].tolist(), lengths[:, 0], strict=True):
            prompt = self._prompts[rows[i].prompt_id]
            prompt.lengths.append(rows[i].length)
            prompt.predicted = float(predicted)  # a function of the prompt alone

    def metrics(self) -> dict[str, float]:
        """All metrics, under their names without a prefix.

        Raises:
            ValueError: no completion that ended by itself was seen.
        """
        if not self._prompts:
            raise ValueError(
                f"none of the {self._rows} held-out completions ended by itself, so no length is "
                "known to compare with. Sample them with more tokens."
            )
        errors = self._errors
        result = {
            "mse": self._target_error / errors.tokens,
            "share_truncated": self._truncated / self._rows,
            "completions": float(self._rows),
            "tokens": float(errors.tokens),
            **self._prompt_metrics(),
        }
        if self._loss.bins is not None:
            result["nll"] = self._nll / errors.tokens
        if errors.variance > 0:
            result["r2"] = 1.0 - errors.mse / errors.variance
        for position, value in errors.relative_errors.items():
            result[f"relative_error/{round(100 * position):02d}"] = value
        return result

    def _prompt_metrics(self) -> dict[str, float]:
        prompts = list(self._prompts.values())
        widest = max(len(prompt.lengths) for prompt in prompts)
        lengths = torch.zeros(len(prompts), widest)
        for row, prompt in zip(lengths, prompts, strict=True):
            row[: len(prompt.lengths)] = torch.tensor(prompt.lengths)
        mask = lengths > 0
        truth = prompt_boundary_length(lengths, gamma=self._loss.gamma, mask=mask)
        predicted = torch.tensor([prompt.predicted for prompt in prompts])
        result = {
            "prompts": float(len(prompts)),
            "mre_s0": mean_relative_error(predicted, truth),
        }
        if mask.sum(1).min() >= 2:
            result["mre_s0_noise_floor"] = noise_floor(lengths, gamma=self._loss.gamma, mask=mask)
        return result


def worker_metrics(output: Mapping[str, Any], *, prefix: str = "critic") -> dict[str, float]:
    """Metrics of `train_batch` under `prefix`/, micro-batches and workers combined."""
    return {f"{prefix}/{name}": _number(value) for name, value in output.items()}


def data_metrics(rows: Sequence[Rollout]) -> dict[str, float]:
    """Completions, response tokens, mean length and share truncated of a batch, under data/."""
    lengths = [row.length for row in rows]
    return {
        "data/completions": len(rows),
        "data/response_tokens": sum(lengths),
        "data/response_length_mean": sum(lengths) / len(rows),
        "data/share_truncated": sum(row.truncated for row in rows) / len(rows),
    }


def _number(value: Any) -> float:
    if isinstance(value, Metric):
        return float(value.aggregate())
    if isinstance(value, list):
        # Several workers: metrics of the loss know how they are combined, others are equal.
        return float(Metric.aggregate_dp(value) if isinstance(value[0], Metric) else value[0])
    return float(value)
