"""Batches of completions that the policy samples while the value model trains.

The frozen policy is served by verl's own rollout engine (standalone replicas of vLLM, SGLang, or
the transformers one), prompts go through verl's data set and agent loop, and every completion is
written to a rollout file before it is trained on. No actor, no optimiser and no reference model
exist, and weights are never moved: the servers load the policy once.

Held-out completions are sampled once, at the start: the policy does not change.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import transfer_queue as tq
from omegaconf import DictConfig
from transfer_queue import KVBatchMeta
from verl.utils import tensordict_utils as tu
from verl.workers.config import HFModelConfig
from verl.workers.rollout.llm_server import LLMServerManager

from lenvm_rl.model import tokenizer_sha
from lenvm_rl.rollouts import Rollout, RolloutWriter
from lenvm_rl.rollouts.ends import vocabulary_size
from lenvm_rl.verl.batch import cells, eos_ids, finish_reason, prompt_id

if TYPE_CHECKING:
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

HELD_OUT = "heldout.parquet"
_FIELDS = [
    "prompts",
    "responses",
    "response_mask",
    "raw_prompt",
    "data_source",
    "reward_model",
    "extra_fields",
]


class OnPolicySource:
    """Batches of fresh completions of `data.train_files`, written to `output` as they come.

    Args:
        trainer: verl's own part of it: prompt loader, agent loop, replay buffer, configuration.
        policy: verl's description of the policy.
        output: directory of the rollout file.
    """

    def __init__(self, trainer: PPOTrainer, policy: HFModelConfig, output: Path):
        self._trainer = trainer
        self._rollout = trainer.config.actor_rollout_ref.rollout
        self.output = output
        self._format: dict[str, Any] = {
            "tokenizer_sha": tokenizer_sha(policy.tokenizer),
            "vocab_size": vocabulary_size(policy.tokenizer, policy.hf_config),
        }
        self._eos = eos_ids(policy)
        self._writer = RolloutWriter(output, append=True, **self._format)
        self.servers = LLMServerManager.create(config=trainer.config)
        trainer.replay_buffer.poll_interval = 0.1
        self.steps_per_epoch = trainer.steps_per_epoch
        self.total_steps = trainer.total_training_steps

    @property
    def epoch(self) -> float:
        """Passes over the prompts so far."""
        return self._trainer.global_steps / self.steps_per_epoch

    def next_rows(self) -> list[Rollout]:
        """Sample `data.train_batch_size` prompts `rollout.n` times each, and write the result."""
        trainer = self._trainer
        prompts = trainer._next_train_batch()
        trainer._submit_batch_to_rollout(prompts)
        rows = self._collect(len(prompts), first_sample=trainer.global_steps * self._rollout.n)
        self._writer.append(rows)
        self._writer.flush()
        return rows

    def sample_held_out(self) -> str:
        """Completions of `data.val_files`, `rollout.val_kwargs.n` each; sampled once per output.

        Returns:
            Path of the rollout file.
        """
        path = self.output / HELD_OUT
        if path.is_file():
            return str(path)
        with RolloutWriter(path, **self._format) as writer:
            for columns in self._trainer.val_dataloader:
                count = len(columns["raw_prompt"])
                columns["uid"] = np.array([str(uuid.uuid4()) for _ in range(count)], dtype=object)
                columns["__rollout_n__"] = np.full(count, self._rollout.val_kwargs.n)
                batch = tu.get_tensordict(columns)
                tu.assign_non_tensor_data(batch, "global_steps", self._trainer.global_steps)
                self._trainer._submit_batch_to_rollout(batch)
                writer.append(self._collect(count, first_sample=0))
        return str(path)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the position among the prompts is in verl's data.pt."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `state_dict`."""

    def _collect(self, prompts: int, *, first_sample: int) -> list[Rollout]:
        """Wait for the completions of the prompts submitted last; take them off verl's queue."""
        trainer = self._trainer
        batch, _ = trainer.replay_buffer.sample(
            global_steps=trainer.global_steps, partition_id="train", batch_size=prompts
        )
        rows = list(self._rows(batch, first_sample))
        tq.kv_clear(keys=batch.keys, partition_id=batch.partition_id)
        return rows

    def _rows(self, batch: KVBatchMeta, first_sample: int) -> Iterable[Rollout]:
        data = tq.kv_batch_get(
            keys=batch.keys, partition_id=batch.partition_id, select_fields=_FIELDS
        )
        columns = {name: cells(data, name) for name in _FIELDS}
        for i, key in enumerate(batch.keys):
            row = {name: column[i] for name, column in columns.items() if column is not None}
            session = int(key.rsplit("_", 2)[1])
            yield self._row(row, first_sample + session)

    def _row(self, row: dict[str, Any], sample_id: int) -> Rollout:
        prompt, response = row["prompts"].tolist(), row["responses"].tolist()
        if not bool(row["response_mask"].all()):
            raise ValueError(
                "a completion holds tokens that the policy did not write (a tool's answer, another "
                "turn): a rollout file stores one turn. Use agent.default_agent_loop="
                "single_turn_agent, or train offline on the turns."
            )
        return Rollout(
            prompt_id=prompt_id(prompt),
            sample_id=sample_id,
            prompt_ids=prompt,
            response_ids=response,
            finish_reason=finish_reason(response, row.get("extra_fields"), self._eos),
            prompt_messages=[
                {"role": m["role"], "content": str(m["content"])} for m in row.get("raw_prompt", [])
            ],
            data_source=str(row.get("data_source", "unknown")),
            ground_truth=_ground_truth(row),
            sampling=sampling_settings(self._rollout),
            policy={"name": self._trainer.config.actor_rollout_ref.model.path},
        )


def sampling_settings(rollout: DictConfig) -> dict[str, Any]:
    """verl's rollout keys as a rollout file stores them."""
    return {
        "temperature": rollout.temperature,
        "top_p": rollout.top_p,
        "top_k": rollout.top_k,
        "max_tokens": rollout.response_length,
    }


def _ground_truth(row: dict[str, Any]) -> str | None:
    truth = (row.get("reward_model") or {}).get("ground_truth")
    return None if truth is None else str(truth)
