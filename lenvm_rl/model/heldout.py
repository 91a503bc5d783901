"""Errors on held-out responses, and the baselines beside them.

In a few numbers that every kind of target has (`heldout_errors`):

    mse                   mean of (V - G)**2 over all tokens of finished responses
    length_error          mean of |l_hat - l| over the same tokens, in tokens
    relative_error_PP     mean over responses of |l_hat - l| / l at PP % of the response
    u_bias_s0             mean over responses of u_hat - u at s_0; above 0: predicts too long

Outcomes are single samples, so no model reaches 0; `mse_constant`, the variance of G, is what the
best constant has. The paper's loss is a Huber loss that is quadratic on values: half of `mse`.

`outcome_errors` is what work on serving reports: TRAIL and PLP the mean absolute error in tokens,
vllm-ltr Kendall's tau, each against one outcome per request.

Guesses that do not read a single token's meaning (`NaivePredictors`):

    mean       the training mean of u = 1 - gamma**L: the same guess for every prompt
    linear     least squares of u on the prompt's length in tokens
    source     the training mean of the prompt's data source; `mean` for a source not seen in it
    survival   mean u of what is left of the training responses that are still going after t tokens
               (mean residual life): knows how far the response is, but not what it says

The first three guess a total length; after t tokens they guess what is left of it, at least 1. They
count a truncated completion with the length seen, as measured lengths do; `survival`, whose
guesses are compared with finished responses alone, leaves it out. `source` is there where the
training completions name two sources or more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lenvm_rl.core import (
    ValueErrors,
    check_gamma,
    length_to_u,
    predicted_length,
    u_to_length,
    value_of_logit,
)
from lenvm_rl.model import LengthValueModel
from lenvm_rl.model.forward import iter_logits, model_space
from lenvm_rl.rollouts import Rollout, RolloutReader

NAIVE = ("mean", "linear", "source", "survival")


@dataclass(frozen=True, eq=False)
class NaivePredictors:
    """Fitted on training completions; see the module."""

    gamma: float
    """Per-token discount in (0, 1)."""
    mean_u: float
    """Mean of u(L) = 1 - gamma**L."""
    intercept: float
    """Of u(L) on prompt length."""
    slope: float
    """Horizon per prompt token."""
    bounds: tuple[float, float]
    """Smallest and largest u seen; linear guesses are clipped to it."""
    survival: Tensor
    """[longest] mean of u(L - t) over finished responses with L > t, at t = 0, 1, ..."""
    sources: Mapping[str, float]
    """Mean u of each data source; empty where fewer than two are known."""
    lengths: Tensor
    """[M'] int64 lengths of finished responses, ascending."""

    @classmethod
    def fit(
        cls,
        prompt_lengths: Sequence[int],
        lengths: Sequence[int],
        *,
        gamma: float,
        sources: Sequence[str] | None = None,
        truncated: Sequence[bool] | None = None,
    ) -> NaivePredictors:
        """Fit on completions.

        Args:
            prompt_lengths: [M] prompt tokens.
            lengths: [M] response tokens, EOS included.
            gamma: per-token discount in (0, 1).
            sources: [M] data sources; None leaves `source` out.
            truncated: [M] whether the token limit ended it; None: no one.
        Raises:
            ValueError: no completion that ended by itself.
        """
        check_gamma(gamma)
        ended = torch.tensor([not cut for cut in truncated or [False] * len(lengths)])
        if not ended.any():
            raise ValueError(
                "no finished training completion to fit the naive predictors on: give the rollout "
                "file that the LenVM was trained on."
            )
        x = torch.as_tensor(prompt_lengths, dtype=torch.float64)
        total = torch.as_tensor(lengths, dtype=torch.long)
        u = length_to_u(total.double(), gamma=gamma)
        spread = (x - x.mean()).square().mean()
        covariance = ((x - x.mean()) * (u - u.mean())).mean()
        slope = (covariance / spread).item() if spread > 0 else 0.0
        return cls(
            gamma=gamma,
            mean_u=u.mean().item(),
            intercept=u.mean().item() - slope * x.mean().item(),
            slope=slope,
            bounds=(u.min().item(), u.max().item()),
            survival=_mean_residual_u(total[ended], gamma),
            sources=_mean_by_source(u, sources or ()),
            lengths=total[ended].sort().values,
        )

    @classmethod
    def of_rollouts(cls, reader: RolloutReader, *, gamma: float) -> NaivePredictors:
        """`fit` on the completions of a rollout file, read as a stream."""
        prompts, lengths, sources, truncated = [], [], [], []
        columns = ["prompt_ids", "response_ids", "finish_reason", "loss_mask", "data_source"]
        for row in reader.iter_rows(columns):
            context = sum((row["loss_mask"] or ())[1::2])
            prompts.append(len(row["prompt_ids"]))
            lengths.append(len(row["response_ids"]) - context)
            sources.append(row["data_source"] or "unknown")
            truncated.append(row["finish_reason"] != "stop")
        return cls.fit(prompts, lengths, gamma=gamma, sources=sources, truncated=truncated)

    def total_lengths(
        self, prompt_lengths: Tensor, sources: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Guessed response lengths at s_0, each [M] tokens, of `mean`, `linear` and `source`.

        Args:
            prompt_lengths: [M] prompt tokens.
            sources: [M] data sources; None leaves `source` out.
        """
        x = prompt_lengths.double()
        u = {"mean": torch.full_like(x, self.mean_u)}
        u["linear"] = (self.intercept + self.slope * x).clamp(*self.bounds)
        if self.sources and sources is not None:
            known = [self.sources.get(source, self.mean_u) for source in sources]
            u["source"] = torch.tensor(known, dtype=torch.float64)
        return {name: u_to_length(guess, gamma=self.gamma) for name, guess in u.items()}

    def remaining_lengths(
        self, prompt_lengths: Tensor, offsets: Tensor, sources: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Guessed remaining tokens at s_t, all [M, P], for `NAIVE`.

        Args:
            prompt_lengths: [M] prompt tokens.
            offsets: [M, P] response tokens written so far, t.
            sources: [M] data sources; None leaves `source` out.
        """
        guesses = {
            name: (total[:, None] - offsets).clamp(min=1.0)
            for name, total in self.total_lengths(prompt_lengths, sources).items()
        }
        last = len(self.survival) - 1  # beyond the longest training response: as at its last token
        u = self.survival[offsets.long().clamp(max=last)]
        guesses["survival"] = u_to_length(u, gamma=self.gamma)
        return guesses

    def residual_quantile(self, length: int, *, level: float = 0.9) -> Tensor:
        """Quantile of the tokens that training responses still going after t tokens have left.

        Args:
            length: t runs from 0 to length - 1; beyond the longest response it is 1.
            level: in (0, 1].
        Returns:
            [length] float64 tokens.
        """
        written = torch.arange(length)
        ended = torch.searchsorted(self.lengths, written, right=True)
        left = len(self.lengths) - ended
        rank = (ended + (level * left).ceil().long() - 1).clamp(max=len(self.lengths) - 1)
        return (self.lengths[rank] - written).clamp(min=1).double()


def _mean_by_source(u: Tensor, sources: Sequence[str]) -> dict[str, float]:
    """Mean of u [M] over the rows of each source, or nothing where there are fewer than two."""
    numbers = {name: i for i, name in enumerate(sorted(set(sources)))}
    if len(numbers) < 2:
        return {}
    which = torch.tensor([numbers[source] for source in sources])
    return {name: u[which == i].mean().item() for name, i in numbers.items()}


def _mean_residual_u(lengths: Tensor, gamma: float) -> Tensor:
    """[longest] mean of 1 - gamma**(L - t) over L > t, by a recursion from the longest down:
    with n_t responses longer than t, S_t = sum of gamma**(L - t) = gamma (S_{t+1} + #{L = t+1})."""
    longest = int(lengths.max())
    ends = torch.bincount(lengths, minlength=longest + 1).double()
    survivors = ends.flip(0).cumsum(0).flip(0)  # [t]: responses with L >= t
    u = torch.zeros(longest, dtype=torch.float64)
    discounted = 0.0
    for t in range(longest - 1, -1, -1):
        discounted = gamma * (discounted + ends[t + 1].item())
        u[t] = 1.0 - discounted / survivors[t + 1].item()
    return u


POSITIONS = (0.0, 0.25, 0.5, 0.75)
"""Of the paper's figure 6."""


def heldout_errors(
    model: LengthValueModel, rows: Sequence[Rollout], *, token_budget: int = 16_384
) -> dict[str, float]:
    """The numbers of this module; values are those of the model's own gamma.

    Args:
        model: a LenVM with its gamma, of any target.
        rows: completions of prompts that it was not trained on; truncated ones are left out.
        token_budget: padded tokens per forward pass.
    Raises:
        ValueError: no finished completion, or one that is longer than the model's context.
    """
    ended = [row for row in rows if not row.truncated]
    if not ended:
        raise ValueError(
            f"all {len(rows)} held-out completions were truncated by the token limit: their "
            "lengths are not known. Sample with more tokens."
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


def predicted_along(
    model: LengthValueModel,
    along: Sequence[tuple[Rollout, Tensor]],
    naive: NaivePredictors | None = None,
) -> dict[str, list[Tensor]]:
    """Remaining tokens [L] at s_0 .. s_{L-1} of every completion: lenvm, and `NAIVE` where fitted.

    Args:
        along: completions with the model's logits [L] at their states.
    """
    guesses = {"lenvm": [predicted_length(z, **model_space(model)) for _, z in along]}
    if naive is not None:
        for row, _ in along:
            written = torch.arange(row.length, dtype=torch.float32)[None]
            prompt = torch.tensor([len(row.prompt_ids)])
            found = naive.remaining_lengths(prompt, written, [row.data_source])
            for name, guess in found.items():
                guesses.setdefault(name, []).append(guess[0])
    return guesses
