"""How is a small LenVM trained on a rollout file in one process, without a trainer framework?

A plain loop: shuffled batches, micro-batches of similar length, the core's targets and token-mean
squared error, AdamW, cosine decay. `lenvm_rl.verl` is the trainer for everything larger.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lenvm_rl.core import (
    boundary_weights,
    censored_squared_error,
    masked_sum,
    predict,
    value_targets,
)
from lenvm_rl.model import LengthValueModel
from lenvm_rl.rollouts import Rollout, RolloutStream
from lenvm_rl.rollouts.progress import progress_bar


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of one training run."""

    epochs: float
    """Passes over the training rows."""
    minutes: float
    """Wall time after which training ends, decayed to zero like the last epoch's end."""
    learning_rate: float
    """Peak, after a warm-up of 2 % of the steps."""
    batch_rows: int = 16
    """Completions per optimiser step."""
    micro_tokens: int = 8192
    """Padded tokens per forward pass."""
    weight_decay: float = 0.1
    """Of matrices; vectors have none."""
    cut: str = "drop"
    """What to do with completions that the token limit cut: see `lenvm_rl.core.cuts`."""
    boundary_weight: float = 20.0
    """Weight of s_0, where all other states have 1: one state in hundreds is at a prompt's end."""
    seed: int = 0


@dataclass
class MicroBatch:
    """B rows padded to T fed tokens; the state mask marks s_0 .. s_{L-1} of each."""

    ids: Tensor
    """[B, T] prompt and response without its last token, padded on the right."""
    targets: Tensor
    """[B, T] values G."""
    weights: Tensor
    """[B, T] 0 or 1."""
    censored: Tensor
    """[B, T] bool."""


def train(model: LengthValueModel, path: Path, recipe: Recipe, *, label: str) -> dict[str, Any]:
    """Train `model` in place; returns what was done and the loss along the way.

    The run is a function of its arguments unless the clock ends it (`ended_by_clock`).
    """
    stream = RolloutStream(path, seed=recipe.seed, columns=[])
    steps = max(1, round(recipe.epochs * len(stream) / recipe.batch_rows))
    optimizer = torch.optim.AdamW(_groups(model, recipe), betas=(0.9, 0.95))
    started = time.monotonic()
    losses: list[float] = []
    tokens = done = 0
    model.train()
    with progress_bar(f"training on {label}", steps, shown=True) as advance:
        for step in range(steps):
            spent = (time.monotonic() - started) / (60.0 * recipe.minutes)
            if spent >= 1.0:
                break
            rate = learning_rate(step, steps, spent) * recipe.learning_rate
            for group in optimizer.param_groups:
                group["lr"] = rate
            rows = stream.batch(recipe.batch_rows)
            losses.append(_step(model, optimizer, rows, recipe))
            tokens += sum(len(row.prompt_ids) + row.length - 1 for row in rows)
            done += 1
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
        "cut": recipe.cut,
    }


def learning_rate(step: int, steps: int, spent: float) -> float:
    """Share of the peak rate: linear warm-up over 2 % of the steps, then cosine to zero.

    Args:
        spent: share of the time budget that is used up; the further of the two counts.
    """
    progress = max(step / steps, spent)
    return min(1.0, (step + 1) / (0.02 * steps + 1)) * 0.5 * (1.0 + math.cos(math.pi * progress))


def micro_batches(
    rows: Sequence[Rollout], *, gamma: float, cut: str, token_budget: int
) -> list[MicroBatch]:
    """Cut a batch into micro-batches of rows of similar length, with their targets."""
    out: list[MicroBatch] = []
    held: list[Rollout] = []
    for row in sorted(rows, key=_fed):
        if held and (len(held) + 1) * _fed(row) > token_budget:
            out.append(_collate(held, gamma, cut))
            held = []
        held.append(row)
    return [*out, _collate(held, gamma, cut)]


def _fed(row: Rollout) -> int:
    return len(row.prompt_ids) + row.length - 1


def _collate(rows: list[Rollout], gamma: float, cut: str) -> MicroBatch:
    ids = torch.zeros(len(rows), max(map(_fed, rows)), dtype=torch.long)
    states = torch.zeros(ids.shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        fed = [*row.prompt_ids, *row.response_ids[:-1]]
        ids[i, : len(fed)] = torch.tensor(fed)
        states[i, len(row.prompt_ids) - 1 : len(fed)] = True
    finished = torch.tensor([not row.cut for row in rows])
    return MicroBatch(ids, *value_targets(states, finished, gamma=gamma, cut=cut))


def _step(
    model: LengthValueModel,
    optimizer: torch.optim.Optimizer,
    rows: list[Rollout],
    recipe: Recipe,
) -> float:
    """One optimiser step on a batch; returns its loss, NaN when every row was dropped."""
    gamma = model.config.require_gamma()
    batches = micro_batches(rows, gamma=gamma, cut=recipe.cut, token_budget=recipe.micro_tokens)
    denom = sum(batch.weights.sum().item() for batch in batches)
    if not denom:
        return math.nan
    total = 0.0
    for batch in batches:
        # Padding is on the right and attention is causal: no state sees it.
        values = predict(model.length_logits(batch.ids))
        error = censored_squared_error(values, batch.targets, batch.censored)
        states = boundary_weights(batch.weights, boundary_weight=recipe.boundary_weight)
        # Adds up to the batch's token mean, but for the weight of s_0.
        loss = masked_sum(error, batch.weights * states) / denom
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


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
