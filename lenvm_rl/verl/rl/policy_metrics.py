"""Metrics of lengths and of the length critic while a policy trains.

length/mean, p50, p95, max        tokens that the policy wrote in a session, EOS included
length/share_truncated            sessions with a response without EOS (verl's clip
                                  ratio counts other things)
length/tokens_per_correct         all tokens spent, by correct answers; absent without any
length/accuracy                   mean task score
length/alarm                      -1 collapse, +1 explosion, 0; against the first step's mean
lenvm/scale                       of the length term in this step
lenvm/advantage_rms, task_advantage_rms, advantage_share
                                  scaled length term, task term, first / (first + second)
lenvm/value_rmse, value_bias, mae_tokens
                                  drift of the critic: root mean square of u_hat - u (u = 1 -
                                  gamma**l), mean of u_hat - u (above 0: predicted too long), mean
                                  |l_hat - l| in tokens, over all tokens of fresh responses that
                                  ended by themselves
lenvm/recalibration_a, _b         z' = a z + b that the critic's logits were refitted by
lenvm/recalibration_rmse_before, _after
                                  root mean square of u_hat - u on the completions fitted to
lenvm/rank_1_of_k, rank_chance    does the critic tell a prompt's shortest sample half way,
                                  and what would a guess score (as VinePPO judges critics)

A LenVM that is frozen, or refreshed too slowly, falls behind the policy. Validation logs the drift
per data source as val-lenvm/<data source>/...; there the policy is sampled as `rollout.val_kwargs`
says, never guided.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta

from lenvm_rl.core import Recalibration
from lenvm_rl.rollouts.atomic import replacing
from lenvm_rl.verl.batch import cells
from lenvm_rl.verl.rl.length_step import Report
from lenvm_rl.verl.rl.rollout_batch import RolloutBatch

logger = logging.getLogger(__name__)


def length_metrics(rollouts: RolloutBatch) -> dict[str, float]:
    """Lengths, truncations and accuracy of the sessions of a batch."""
    samples = rollouts.samples
    lengths = samples.lengths.double()
    right = samples.correct.double().clamp(0.0, 1.0)
    result = {
        "length/mean": lengths.mean().item(),
        "length/p50": lengths.quantile(0.5).item(),
        "length/p95": lengths.quantile(0.95).item(),
        "length/max": lengths.max().item(),
        "length/share_truncated": 1.0 - samples.finished.double().mean().item(),
        "length/accuracy": right.mean().item(),
    }
    if right.sum() > 0:
        result["length/tokens_per_correct"] = (lengths.sum() / right.sum()).item()
    return result


def critic_metrics(rollouts: RolloutBatch, report: Report) -> dict[str, float]:
    """Error of the values on fresh responses, and whether they rank samples of a prompt."""
    result = {f"lenvm/{name}": x for name, x in figures(report.errors).items()}
    if report.ranking.groups and len(rollouts.samples.last) == len(rollouts.keys):
        result["lenvm/rank_1_of_k"] = report.ranking.accuracy
        result["lenvm/rank_chance"] = report.ranking.chance
    return result


def recalibration_metrics(fit: Recalibration | None) -> dict[str, float]:
    """How far the critic had to be moved to fit, and what that gained; empty where it was not."""
    if fit is None:
        return {}
    return {
        "lenvm/recalibration_a": fit.a,
        "lenvm/recalibration_b": fit.b,
        "lenvm/recalibration_rmse_before": fit.before**0.5,
        "lenvm/recalibration_rmse_after": fit.after**0.5,
    }


class LengthAlarm:
    """Says once per change when the mean length has collapsed or exploded.

    Args:
        low, high: multiples of the first mean length.
    """

    def __init__(self, low: float, high: float):
        self._low, self._high = low, high
        self.reference: float | None = None
        self._last = 0

    def check(self, mean: float, step: int) -> float:
        """-1.0 below, +1.0 above, 0.0 between; a warning where that is new."""
        if self.reference is None:
            self.reference = mean
        state = (mean > self._high * self.reference) - (mean < self._low * self.reference)
        if state and state != self._last:
            logger.warning(
                "step %d: the mean length is %.1f tokens, %s %.3g times the %.1f of the first "
                "step. Look at completions, lenvm/scale and lenvm/advantage_share.",
                step,
                mean,
                "above" if state > 0 else "below",
                self._high if state > 0 else self._low,
                self.reference,
            )
        self._last = state
        return float(state)


def dump_step(path: Path, rollouts: RolloutBatch, **terms: Any) -> None:
    """Write what a step saw and made, for debugging: tensors [B, T] of the longest response T.

    This alone brings tokens to the trainer's process.
    """
    names = ("prompts", "responses", "response_mask", "rm_scores", "old_log_probs", "advantages")
    data = rollouts.data.read(*names, *COLUMNS)
    content = {
        "keys": rollouts.keys,
        "prompts": cells(data, "prompts"),
        "responses": cells(data, "responses"),
        "mask": padded(data, "response_mask"),
        "rewards": padded(data, "rm_scores"),
        "old_log_probs": padded(data, "old_log_probs"),
        "values": padded(data, "len_values"),
        "length": padded(data, "len_advantages"),
        "total": padded(data, "advantages"),
        "finished": rollouts.finished,
        "groups": rollouts.groups,
        "scores": rollouts.scores,
        "correct": rollouts.correct,
        **terms,
    }
    with replacing(path) as temporary:
        torch.save(content, temporary)


COLUMNS = ("len_values", "len_advantages")
"""What the length critic writes beside verl's own columns; the second where a step is dumped."""


def padded(data: TensorDict, name: str) -> Tensor | None:
    """A nested column [B, L] as [B, T]; None where there is none."""
    rows = cells(data, name)
    return rows and torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


SOURCE = "data_source"
"""verl's column that says where a prompt comes from."""


def figures(errors: Tensor) -> dict[str, float]:
    """value_rmse, value_bias, mae_tokens of summed errors [B, 4]; empty without a token."""
    tokens, squares, bias, absolute = errors.sum(0).tolist()
    if not tokens:
        return {}
    return {
        "value_rmse": (squares / tokens) ** 0.5,
        "value_bias": bias / tokens,
        "mae_tokens": absolute / tokens,
    }


class ValidationDrift:
    """The figures of a validation, batch by batch and by data source."""

    def __init__(self) -> None:
        self._errors: dict[str, Tensor] = {}

    def add(self, rollouts: RolloutBatch, report: Report) -> None:
        """Take a batch of completions; its column `SOURCE` says where each comes from."""
        sources = rollouts.columns.get(SOURCE, ["unknown"] * len(report.errors))
        for source, errors in zip(map(str, sources), report.errors, strict=True):
            self._errors[source] = self._errors.get(source, 0.0) + errors[None]

    def metrics(self) -> dict[str, float]:
        """All figures under their logged names; a source without a finished response has none."""
        return {
            f"val-lenvm/{source}/{name}": value
            for source, errors in self._errors.items()
            for name, value in figures(errors).items()
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
