"""How wrong is the length critic on what the policy writes now? Errors per data source.

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

from lenvm_rl.core import discounted_returns, masked_sum, remaining_length
from lenvm_rl.verl.rl.length_terms import LengthValues
from lenvm_rl.verl.rl.rollout_batch import RolloutBatch

SOURCE = "data_source"
"""verl's column that says where a prompt comes from."""


class ErrorSums:
    """Sums of the errors of any number of batches."""

    def __init__(self) -> None:
        self.tokens = self._squares = self._sum = self._absolute = 0.0

    def add(self, mask: Tensor, estimate: LengthValues, *, gamma: float) -> None:
        """Take a batch.

        Args:
            mask: [B, T] tokens that count.
            estimate: of the length critic, [B, T].
            gamma: the checkpoint's.
        """
        error = discounted_returns(mask, gamma=gamma).double() - estimate.values.double()  # u = -V
        off = (estimate.left.double() - remaining_length(mask).double()).abs()
        self.tokens += float((mask != 0).sum())
        self._squares += float(masked_sum(error**2, mask))
        self._sum += float(masked_sum(error, mask))
        self._absolute += float(masked_sum(off, mask))

    def figures(self) -> dict[str, float]:
        """value_rmse, value_bias, mae_tokens; empty without a token."""
        if not self.tokens:
            return {}
        return {
            "value_rmse": (self._squares / self.tokens) ** 0.5,
            "value_bias": self._sum / self.tokens,
            "mae_tokens": self._absolute / self.tokens,
        }


def staleness(rollouts: RolloutBatch, estimate: LengthValues, *, gamma: float) -> dict[str, float]:
    """The figures of one batch, over its finished responses."""
    errors = ErrorSums()
    errors.add(_ended(rollouts), estimate, gamma=gamma)
    return errors.figures()


class ValidationStaleness:
    """The figures of a validation, batch by batch and by data source."""

    def __init__(self, *, gamma: float) -> None:
        self._gamma = gamma
        self._errors: dict[str, ErrorSums] = {}

    def add(self, rollouts: RolloutBatch, estimate: LengthValues) -> None:
        """Take a batch of completions; its column `SOURCE` says where each comes from."""
        sources = rollouts.columns.get(SOURCE, ["unknown"] * len(rollouts.rows))
        ended = _ended(rollouts)
        for source in dict.fromkeys(map(str, sources)):
            mine = torch.tensor([str(name) == source for name in sources])
            errors = self._errors.setdefault(source, ErrorSums())
            errors.add(ended * mine[:, None], estimate, gamma=self._gamma)

    def metrics(self) -> dict[str, float]:
        """All figures under their logged names; a source without a finished response has none."""
        return {
            f"val-lenvm/{source}/{name}": value
            for source, errors in self._errors.items()
            for name, value in errors.figures().items()
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
