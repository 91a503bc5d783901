"""Training of a small LenVM on a rollout file in one process, without a trainer framework.

A plain loop: shuffled batches, micro-batches of similar length, the core's targets and squared
error (of a distribution: cross entropy), AdamW, cosine decay. It is what grids of small runs need,
where starting a trainer takes longer than training; `lenvm_rl.verl` is the trainer for everything
larger.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lenvm_rl.core import (
    DISTRIBUTION,
    TARGETS,
    boundary_weights,
    censored_squared_error,
    label,
    length_targets,
    masked_sum,
    predict,
    remaining_length,
    value_targets,
)
from lenvm_rl.model import LengthValueModel
from lenvm_rl.model.forward import Padded, by_length, fed, model_space, pictures_beside
from lenvm_rl.model.policy import check_processor
from lenvm_rl.rollouts import Rollout, RolloutStream
from lenvm_rl.rollouts.progress import progress_bar

WEIGHTINGS = ("token_mean", "trajectory_mean", "inverse_remaining")
"""How much a token of a response of L tokens counts: 1, 1/L, or 1/(L - t) at state t."""
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What matrix products are computed in; weights and the optimiser are float32 throughout."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of one training run."""

    learning_rate: float
    """Peak, after a warm-up of 2 % of the steps."""
    epochs: float | None = None
    """Passes over the training rows; or give `steps`."""
    steps: int | None = None
    """Optimiser steps; or give `epochs`."""
    minutes: float = math.inf
    """Wall time after which training ends, decayed to zero like the last epoch's end."""
    batch_rows: int = 16
    """Completions per optimiser step."""
    micro_tokens: int = 8192
    """Padded tokens per forward pass."""
    weight_decay: float = 0.1
    """Of matrices; vectors have none."""
    truncated: str = "drop"
    """What to do with completions that the token limit truncated: see `lenvm_rl.core.truncated`."""
    boundary_weight: float = 1.0
    """Weight of s_0, where all other states have 1: one state in hundreds is at a prompt's end."""
    weighting: str = "token_mean"
    """One of `WEIGHTINGS`. The two that know the response's length move the optimum towards short
    responses (LenVM appendix E): for ablations."""
    grouped: bool = False
    """Keep each prompt's completions together, for ablations: see `rollouts.RolloutStream`."""
    precision: str = "float32"
    """One of `PRECISIONS`; float16 scales the loss."""
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                f"give epochs or steps, one of them, got epochs={self.epochs}, steps={self.steps}."
            )
        for name, known in (("weighting", WEIGHTINGS), ("precision", tuple(PRECISIONS))):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}."
                )

    def total_steps(self, rows: int) -> int:
        """Optimiser steps over a file of so many rows, at least 1."""
        if self.steps is not None:
            return max(1, self.steps)
        assert self.epochs is not None
        return max(1, round(self.epochs * rows / self.batch_rows))


@dataclass
class MicroBatch:
    """B rows padded to T fed tokens; the state mask marks s_0 .. s_{L-1} of each."""

    ids: Tensor
    """[B, T] prompt and response without its last token, padded on the right."""
    targets: Tensor
    """[B, T] labels in the space of the target; of a distribution the lengths themselves."""
    weights: Tensor
    """[B, T] 0 or 1."""
    censored: Tensor
    """[B, T] bool."""
    rows: Sequence[Rollout] = ()
    """The B rows."""


def train(
    model: LengthValueModel,
    path: Path,
    recipe: Recipe,
    *,
    label: str,
    after_step: Callable[[int], None] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train `model` in place, towards the target of its configuration.

    The run is a function of its arguments unless the clock ends it (`ended_by_clock`).

    Args:
        path: rollout file.
        label: what is trained on, for the progress bar.
        after_step: called with the number of steps done; may put the model in evaluation mode.
        progress: draw a bar on stderr.
    Returns:
        What was done and the loss along the way.
    """
    stream = RolloutStream(path, seed=recipe.seed, columns=[], grouped=recipe.grouped)
    for fact, usual in (("answers", "all"), ("segment", None)):
        setattr(model.config, fact, stream.reader.metadata.get(fact, usual))
    check_processor(model.config.processor, stream.reader.metadata.get("processor"), path=path)
    steps = recipe.total_steps(len(stream))
    optimizer = torch.optim.AdamW(_groups(model, recipe), betas=(0.9, 0.95))
    scaler = torch.amp.GradScaler("cpu", enabled=recipe.precision == "float16")
    started = time.monotonic()
    losses: list[float] = []
    tokens = done = 0
    with progress_bar(f"training on {label}", steps, shown=progress) as advance:
        for step in range(steps):
            spent = (time.monotonic() - started) / (60.0 * recipe.minutes)
            if spent >= 1.0:
                break
            rate = learning_rate(step, steps, spent) * recipe.learning_rate
            for group in optimizer.param_groups:
                group["lr"] = rate
            rows = stream.batch(recipe.batch_rows)
            model.train()
            losses.append(_step(model, optimizer, scaler, rows, recipe))
            tokens += sum(len(row.prompt_ids) + row.length - 1 for row in rows)
            done += 1
            if after_step is not None:
                after_step(done)
            advance(1)
    seconds = time.monotonic() - started
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": done,
        "epochs": round(done * recipe.batch_rows / len(stream), 3),
        "ended_by_clock": done < steps,
        "seconds": round(seconds, 1),
        "tokens_per_s": round(tokens / seconds),
        "loss_by_tenth": _tenths(losses),
        "truncated": recipe.truncated,
    }


def learning_rate(step: int, steps: int, spent: float) -> float:
    """Share of the peak rate: linear warm-up over 2 % of the steps, then cosine to zero.

    Args:
        spent: share of the time budget that is used up; the further of the two counts.
    """
    progress = max(step / steps, spent)
    return min(1.0, (step + 1) / (0.02 * steps + 1)) * 0.5 * (1.0 + math.cos(math.pi * progress))


def micro_batches(
    rows: Sequence[Rollout],
    *,
    gamma: float,
    truncated: str,
    token_budget: int,
    target: str = "return",
    length_scale: float | None = None,
) -> list[MicroBatch]:
    """Divide a batch into micro-batches of rows of similar length, with their labels.

    Args:
        gamma, target, length_scale: the space of the labels, see `lenvm_rl.core.targets`.
        truncated: see `lenvm_rl.core.truncated`.
        token_budget: padded tokens per micro-batch; a longer row gets one of its own.
    """
    assert target in TARGETS, target
    space = {"target": target, "gamma": gamma, "length_scale": length_scale}
    pairs = [(row.prompt_ids, row.response_ids) for row in rows]
    return [
        _labelled([rows[i] for i in batch], truncated, space)
        for batch in by_length(list(map(fed, pairs)), token_budget)
    ]


def weigh(weights: Tensor, weighting: str) -> Tensor:
    """Weights of states by one of `WEIGHTINGS`.

    Args:
        weights: [B, T], 1 at the states of responses that count, else 0.
    Returns:
        [B, T]; divide the weighted loss by its sum over the batch.
    """
    if weighting == "trajectory_mean":
        return weights / weights.sum(1, keepdim=True).clamp(min=1.0)
    if weighting == "inverse_remaining":
        return weights / remaining_length(weights).clamp(min=1.0)
    return weights


def _labelled(rows: list[Rollout], truncated: str, space: dict[str, Any]) -> MicroBatch:
    batch = Padded.of([(row.prompt_ids, row.response_ids) for row in rows])
    finished = ~torch.tensor([row.truncated for row in rows])
    if space["target"] == "return":
        labels = value_targets(batch.states, finished, gamma=space["gamma"], truncated=truncated)
        return MicroBatch(batch.ids, *labels, rows)
    lengths, weights, censored = length_targets(batch.states, finished, truncated=truncated)
    labels = lengths if space["target"] == DISTRIBUTION else label(lengths, **space)
    return MicroBatch(batch.ids, labels, weights, censored, rows)


def _step(
    model: LengthValueModel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    rows: list[Rollout],
    recipe: Recipe,
) -> float:
    """One optimiser step on a batch; returns its loss, NaN when every row was dropped."""
    space = model_space(model)
    batches = micro_batches(
        rows, truncated=recipe.truncated, token_budget=recipe.micro_tokens, **space
    )
    denom = sum(weigh(batch.weights, recipe.weighting).sum().item() for batch in batches)
    if not denom:
        return math.nan
    dtype = PRECISIONS[recipe.precision]
    total = 0.0
    for batch in batches:
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            outputs = model.length_outputs(batch.ids, **pictures_beside(model, batch.rows))
        error = _error(model, outputs, batch)
        states = boundary_weights(batch.weights, boundary_weight=recipe.boundary_weight)
        # Adds up to the batch's weighted mean, but for the weight of s_0.
        loss = masked_sum(error, weigh(batch.weights, recipe.weighting) * states) / denom
        scaler.scale(loss).backward()
        total += loss.item()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return total


def _error(model: LengthValueModel, outputs: Tensor, batch: MicroBatch) -> Tensor:
    """Loss [B, T] of every state."""
    bins, target = model.config.length_bins, model.config.target
    if bins is not None:
        return bins.of(outputs).nll(batch.targets, batch.censored)
    prediction = predict(outputs, target=target)
    return censored_squared_error(prediction, batch.targets, batch.censored, target=target)


def _groups(model: LengthValueModel, recipe: Recipe) -> list[dict[str, Any]]:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def _tenths(losses: list[float]) -> list[float]:
    """Mean loss of each tenth of the run (fewer when there are fewer steps)."""
    x = torch.tensor(losses, dtype=torch.float64)
    return [round(part.nanmean().item(), 6) for part in x.tensor_split(min(10, len(losses) or 1))]
