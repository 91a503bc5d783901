"""Drift of the length critic: its errors on what the policy writes now, per data source.

A LenVM that is frozen, or refreshed too slowly, falls behind the policy. Over all tokens of fresh
responses that ended by themselves:

    value_rmse    root mean square of u_hat - u, u = 1 - gamma**l, unitless
    value_bias    mean of u_hat - u; above 0: predicted too long
    mae_tokens    mean |l_hat - l| in tokens

Validation logs them as val-lenvm/<data source>/...; there the policy is sampled as
`rollout.val_kwargs` says, never guided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transfer_queue import KVBatchMeta

from lenvm_rl.core import LengthValues, ValueErrors
from lenvm_rl.verl.rl.rollout_batch import RolloutBatch

SOURCE = "data_source"
"""verl's column that says where a prompt comes from."""


def drift(rollouts: RolloutBatch, estimate: LengthValues, *, gamma: float) -> dict[str, float]:
    """The figures of one batch, over its finished responses."""
    errors = ValueErrors(gamma=gamma)
    errors.add(_ended(rollouts), estimate.values, estimate.left)
    return _figures(errors)


def _figures(errors: ValueErrors) -> dict[str, float]:
    """value_rmse, value_bias, mae_tokens; empty without a token."""
    if not errors.tokens:
        return {}
    return {
        "value_rmse": errors.mse**0.5,
        "value_bias": errors.bias,
        "mae_tokens": errors.length_error,
    }


class ValidationDrift:
    """The figures of a validation, batch by batch and by data source."""

    def __init__(self, *, gamma: float) -> None:
        self._gamma = gamma
        self._errors: dict[str, ValueErrors] = {}

    def add(self, rollouts: RolloutBatch, estimate: LengthValues) -> None:
        """Take a batch of completions; its column `SOURCE` says where each comes from."""
        sources = rollouts.columns.get(SOURCE, ["unknown"] * len(rollouts.rows))
        ended = _ended(rollouts)
        for source in dict.fromkeys(map(str, sources)):
            mine = torch.tensor([str(name) == source for name in sources])
            errors = self._errors.setdefault(source, ValueErrors(gamma=self._gamma))
            errors.add(ended * mine[:, None], estimate.values, estimate.left)

    def metrics(self) -> dict[str, float]:
        """All figures under their logged names; a source without a finished response has none."""
        return {
            f"val-lenvm/{source}/{name}": value
            for source, errors in self._errors.items()
            for name, value in _figures(errors).items()
        }


@contextmanager
def each_sample(buffer: Any, look: Callable[[KVBatchMeta], None]) -> Iterator[None]:
    """Call `look(batch)` on every batch that verl's replay buffer hands out in this block.

    verl validates in one method that clears each batch off the queue as it goes; this is where
    the completions can be seen.
    """
    original = buffer.sample

    def sample(*args: Any, **kwargs: Any) -> tuple[KVBatchMeta, dict]:
        batch, metrics = original(*args, **kwargs)
        look(batch)
        return batch, metrics

    buffer.sample = sample
    try:
        yield
    finally:
        buffer.sample = original


def _ended(rollouts: RolloutBatch) -> Tensor:
    return (rollouts.mask != 0) & rollouts.finished[:, None]
