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
                                  drift of the critic: its error on these fresh responses
lenvm/recalibration_a, _b         z' = a z + b that the critic's logits were refitted by
lenvm/recalibration_rmse_before, _after
                                  root mean square of u_hat - u on the completions fitted to
lenvm/rank_1_of_k, rank_chance    does the critic tell a prompt's shortest sample half way,
                                  and what would a guess score (as VinePPO judges critics)
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from lenvm_rl.core import LengthValues, Recalibration, shortest_of_group
from lenvm_rl.rollouts.atomic import replacing
from lenvm_rl.verl.rl.critic_drift import drift
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


def critic_metrics(
    rollouts: RolloutBatch, estimate: LengthValues, *, gamma: float
) -> dict[str, float]:
    """Error of the values on fresh responses, and whether they rank samples of a prompt."""
    result = {f"lenvm/{k}": v for k, v in drift(rollouts, estimate, gamma=gamma).items()}
    ranking = shortest_of_group(
        estimate.left, rollouts.mask, rollouts.finished, rollouts.groups, position=0.5
    )
    if ranking.groups and len(rollouts.samples.last) == len(rollouts.rows):
        result["lenvm/rank_1_of_k"] = ranking.accuracy
        result["lenvm/rank_chance"] = ranking.chance
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
    """Write what a step saw and made, for debugging: plain lists and tensors."""
    content = {
        "keys": rollouts.keys,
        "prompts": [torch.as_tensor(row.prompt_ids) for row in rollouts.rows],
        "responses": [torch.as_tensor(row.response_ids) for row in rollouts.rows],
        "mask": rollouts.mask,
        "finished": rollouts.finished,
        "groups": rollouts.groups,
        "scores": rollouts.scores,
        "correct": rollouts.correct,
        "old_log_probs": rollouts.get("old_log_probs"),
        **terms,
    }
    with replacing(path) as temporary:
        torch.save(content, temporary)
