"""One step's advantages by the trainer mode itself: verl's GRPO, the length critic's split and its
workers' part, in this process, with a queue in memory and given outputs of the LenVM.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
import transfer_queue
from omegaconf import OmegaConf
from tensordict import TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta
from verl.utils import tensordict_utils as tu

from lenvm_rl.core import ALONE, Rows
from lenvm_rl.verl.plugin import check_registered
from lenvm_rl.verl.rl.group_rewards import GroupReward
from lenvm_rl.verl.rl.length_critic import LengthCritic
from lenvm_rl.verl.rl.length_step import Plan, Report, Share, States, take_step
from lenvm_rl.verl.rl.policy_metrics import LengthAlarm
from lenvm_rl.verl.rl.policy_settings import PolicyLengthSettings
from lenvm_rl.verl.rl.step_data import QueueData, RowFacts

EOS = 1
NO_TERM = {
    **{"checkpoint": None, "use": "none", "scale": None, "controller": None},
    **{"applies_to": "all", "baseline": "auto"},
}
ALGORITHM = {
    **{"adv_estimator": "grpo", "use_kl_in_reward": False, "gamma": 1.0, "lam": 1.0},
    **{"norm_adv_by_std_in_grpo": True, "rollout_correction": None},
}


@dataclass(frozen=True)
class Responses:
    """Finished responses of a step, B of them, and what a LenVM says at their states."""

    lengths: Tensor
    """[B] tokens."""
    correct: Tensor
    """[B] 1.0 where the answer is right."""
    groups: Tensor
    """[B] prompt of each."""
    logits: Tensor
    """[B, T] outputs before each token."""

    @property
    def keys(self) -> list[str]:
        """In verl's queue."""
        return [f"{group}_{i}_0" for i, group in enumerate(self.groups.tolist())]


def advantages_of(
    responses: Responses, settings: PolicyLengthSettings, critic: Any | None
) -> Tensor:
    """[B, T] advantages that verl's actor would be trained with.

    Args:
        responses: of the step.
        settings: the `lenvm:` block; without a critic its term is left out.
        critic: what is read of the LenVM's configuration.
    """
    from lenvm_rl.verl.rl.policy_trainer import LengthAwareTrainer

    check_registered()
    if critic is None:
        settings = replace(settings, **NO_TERM)
    trainer = object.__new__(LengthAwareTrainer)
    rollout = {"rollout": {"n": int((responses.groups == responses.groups[0]).sum())}}
    trainer.config = OmegaConf.create({"algorithm": ALGORITHM, "actor_rollout_ref": rollout})
    trainer.settings, trainer.controller = settings, settings.make_controller()
    trainer.alarm = LengthAlarm(settings.alarm_low, settings.alarm_high)
    trainer.reward = GroupReward.of(settings.length_reward)
    trainer.timing_raw, trainer.global_steps, trainer._eos = {}, 1, {EOS}
    trainer.length_critic = None if critic is None else _critic(responses, critic)
    keys = responses.keys
    with queue_of(responses) as columns:
        meta = KVBatchMeta(partition_id="train", keys=keys, tags=[{} for _ in keys])
        trainer._compute_advantage(meta, {})
    out = torch.zeros(len(keys), int(responses.lengths.max()))
    for row, key in zip(out, keys, strict=True):
        row[: len(columns["advantages"][key])] = columns["advantages"][key]
    return out


@contextmanager
def queue_of(responses: Responses) -> Iterator[dict[str, dict[str, Any]]]:
    """verl's queue in memory, {column: {key: cell}}, with these responses in it."""
    keys, lengths = responses.keys, responses.lengths.tolist()
    rows = list(zip(keys, lengths, responses.correct.tolist(), strict=True))
    end = torch.nn.functional.one_hot
    columns: dict[str, dict[str, Any]] = {
        "uid": {key: key.split("_")[0] for key in keys},
        "prompts": {key: torch.tensor([5]) for key in keys},
        "responses": {key: 7 - 6 * end(torch.tensor(n - 1), n) for key, n, _ in rows},
        "response_mask": {key: torch.ones(n, dtype=torch.long) for key, n, _ in rows},
        "rm_scores": {key: score * end(torch.tensor(n - 1), n).float() for key, n, score in rows},
    }

    def get(keys: list[str], partition_id: str, select_fields: list[str]) -> TensorDict:
        return tu.get_tensordict(
            {
                name: _column([columns[name][key] for key in keys])
                for name in select_fields
                if name in columns
            }
        )

    def put(keys: list[str], partition_id: str, fields: TensorDict) -> KVBatchMeta:
        for name, column in fields.items():
            cells = dict(zip(keys, column.unbind(), strict=True))
            columns[name] = {**columns.get(name, {}), **cells}
        return KVBatchMeta(partition_id=partition_id, keys=keys, tags=[{} for _ in keys])

    before = transfer_queue.kv_batch_get, transfer_queue.kv_batch_put
    transfer_queue.kv_batch_get, transfer_queue.kv_batch_put = get, put
    try:
        yield columns
    finally:
        transfer_queue.kv_batch_get, transfer_queue.kv_batch_put = before


def _column(cells: list[Any]) -> Any:
    if torch.is_tensor(cells[0]):
        return torch.nested.as_nested_tensor(cells, layout=torch.jagged)
    return cells


def _critic(responses: Responses, model: Any) -> LengthCritic:
    critic = object.__new__(LengthCritic)
    critic.gamma, critic.model, critic.workers = model.gamma, model, _Worker(responses)
    critic._balance, critic._multiple, critic._parts, critic._ranks = True, 1, 1, [0]
    return critic


class _Worker:
    """The length critic's one worker; its forward pass has been made."""

    def __init__(self, responses: Responses):
        self._responses = responses

    def row_facts(self, parts: list[QueueData]) -> list[RowFacts]:
        return [RowFacts.read(part) for part in parts]

    def length_step(
        self, parts: list[Share], plan: Plan, critic: dict[str, Any], least: int
    ) -> list[Report]:
        (share,) = parts
        index = torch.tensor([int(key.split("_")[1]) for key in share.data.keys])
        rows = Rows(self._responses.lengths[index])
        logits = self._responses.logits[index]
        mask = torch.arange(logits.shape[1])[None] < rows.lengths[:, None]
        written = torch.ones(len(rows), dtype=torch.bool)
        states = States(rows, logits[mask], torch.zeros(len(index)), rows, written)
        return [take_step(plan, share, states, SimpleNamespace(**critic), meet=ALONE)]
