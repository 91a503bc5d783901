"""The trainer mode `lenvm_pretrain`: verl's training loop with critic workers and nothing else.

    python -m verl.trainer.main_ppo --config-path ... trainer.v1.trainer_mode=lenvm_pretrain

verl's loop, workers, optimiser, sharded checkpoints, tracking and progress bar; without actor,
rollout, reference model, reward and advantages. A step is one update on one batch of completions,
handed to the workers directly.

Deviations from the paper's training: none in the objective; the returns are made inside the loss,
and a batch that does not divide is filled with rows of weight 0.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import ray
import torch
import transfer_queue as tq
from omegaconf import DictConfig, open_dict
from tensordict import NonTensorData
from transfer_queue import KVBatchMeta
from verl.single_controller.ray import (
    RayClassWithInitArgs,
    RayWorkerGroup,
    ResourcePoolManager,
    create_colocated_worker_cls,
)
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import PPOTrainer, register_trainer
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.debug import marked_timer
from verl.workers.config import CriticConfig, HFModelConfig
from verl.workers.engine_workers import TrainingWorkerConfig

from lenvm_rl.core import AUTO, DISTRIBUTION, LengthBins
from lenvm_rl.model import (
    LengthValueModel,
    check_tokenizer_sha,
    describe_policy,
    is_lenvm_checkpoint,
    save_checkpoint,
    to_distribution,
    tokenizer_sha,
)
from lenvm_rl.model.policy import check_segment
from lenvm_rl.rollouts import Rollout, RolloutReader
from lenvm_rl.verl import checkpoint as checkpoints
from lenvm_rl.verl.batch import make_batch
from lenvm_rl.verl.data_checks import check_own_words
from lenvm_rl.verl.engine import MODEL_TYPE
from lenvm_rl.verl.plugin import TRAINER_MODE, check_registered
from lenvm_rl.verl.pretrain.facts import RolloutFacts, read_facts
from lenvm_rl.verl.pretrain.metrics import HeldOut, data_metrics, worker_metrics
from lenvm_rl.verl.pretrain.objective import RowLimits, describe, length_value_config, make_loss
from lenvm_rl.verl.pretrain.offline import NoGeneration, OfflineSource
from lenvm_rl.verl.pretrain.on_policy import OnPolicySource, sampling_settings
from lenvm_rl.verl.pretrain.settings import check_verl_settings, critic_config, read_settings
from lenvm_rl.verl.worker import LengthValueWorker

logger = logging.getLogger(__name__)


@register_trainer(TRAINER_MODE)
class LengthValuePretrainer(PPOTrainer):
    """Trains a length value model; see the module.

    Raises:
        ValueError: a setting, file or checkpoint that cannot be trained with (before any worker
            starts).
    """

    def __init__(self, config: DictConfig):
        check_registered()
        self.settings = read_settings(config)
        check_verl_settings(config)
        with open_dict(config):
            # verl compares the mode with "sync" in several places; this loop is a synchronous one.
            config.trainer.v1.trainer_mode = "sync"
            if self.settings.mode == "offline":
                config.actor_rollout_ref.rollout.agent.agent_loop_manager_class = (
                    f"{NoGeneration.__module__}.{NoGeneration.__qualname__}"
                )
        super().__init__(config)
        self.root = Path(config.trainer.default_local_dir).absolute()

    # --- setting up ------------------------------------------------------------------------

    def _setup(self) -> None:
        critic = critic_config(self.config)
        self.model_config = length_value_config(critic)
        self._limits = RowLimits.of(critic, self.model_config)
        self.tokenizer, self.processor = critic.model.tokenizer, None
        self._init_dump_executor()
        self.source, facts = self._make_source()
        self.steps_per_epoch = self.source.steps_per_epoch
        self.total_training_steps = min(
            self.source.total_steps, self.config.trainer.total_training_steps or 1 << 62
        )
        critic = self._with_bins(critic, facts)
        object.__setattr__(critic.optim, "total_training_steps", self.total_training_steps)
        self.loss = make_loss(
            self.settings, self.model_config, facts, model=self.config.critic.model.path
        )
        print(f"length value objective: {self.loss}")
        self._start_workers(critic)
        self.critic_wg.describe(**self._description(facts))
        self._load_checkpoint()

    def _with_bins(self, critic: CriticConfig, facts: RolloutFacts | None) -> CriticConfig:
        """Where lenvm.target=distribution meets a head of one output: the workers' configuration
        on a model with an output for each bin, which is written beside the checkpoints."""
        if self.settings.target != DISTRIBUTION or self.model_config.bins is not None:
            return critic
        longest = self.settings.longest
        if longest == AUTO:
            longest = facts.longest_response if facts else self.config.data.max_response_length
            longest *= 2 if self.settings.truncated == "censored" else 1
        place = self.root / "start"
        if not is_lenvm_checkpoint(place):
            torch.manual_seed(self.settings.seed)
            model = LengthValueModel.from_pretrained(critic.model.local_path)
            bins = LengthBins.up_to(float(longest))
            save_checkpoint(to_distribution(model, bins), self.tokenizer, place)
        with open_dict(self.config):
            self.config.critic.model.path = str(place)
        critic = critic_config(self.config)
        self.model_config = length_value_config(critic)
        return critic

    def _make_source(self) -> tuple[OfflineSource | OnPolicySource, RolloutFacts | None]:
        """Where the batches come from, and what is known about the completions beforehand."""
        sha = tokenizer_sha(self.tokenizer)
        known = (self.model_config.policy or {}).get("tokenizer_sha")
        check_tokenizer_sha(
            known, sha, expected_of="the LenVM's policy", got_of="the LenVM's own directory"
        )
        settings, data, trainer = self.settings, self.config.data, self.config.trainer
        self._val_rollouts = settings.val_rollouts
        held_out = self._held_out_facts(sha) if self._val_rollouts else None
        if settings.mode == "offline":
            facts = self._facts(settings.train_rollouts, sha)
            if held_out is not None and held_out.answers != facts.answers:
                raise ValueError(
                    f"lenvm.train_rollouts={facts.path} holds {facts.answers} answers, "
                    f"lenvm.val_rollouts={held_out.path} {held_out.answers}: the error would be "
                    "that of other lengths. Make both with `lenvm grade`, or neither."
                )
            if held_out is not None:
                check_segment(facts.segment, held_out.segment, path=held_out.path)
            source = OfflineSource(
                facts, settings, batch_size=data.train_batch_size, epochs=trainer.total_epochs
            )
            if not self._val_rollouts:
                self._without_validation()
            return source, facts
        self.policy_config: HFModelConfig = omega_conf_to_dataclass(
            self.config.actor_rollout_ref.model
        )
        check_tokenizer_sha(
            sha,
            tokenizer_sha(self.policy_config.tokenizer),
            expected_of="the LenVM",
            got_of=f"the policy {self.policy_config.path}",
        )
        self.tokenizer = self.policy_config.tokenizer
        self._limits.check(
            data.max_prompt_length + data.max_response_length,
            "a completion of data.max_prompt_length plus data.max_response_length",
        )
        self._init_dataloader()
        check_own_words((self.train_dataset, self.val_dataset), "lenvm.mode=on_policy")
        output = Path(settings.rollout_output or self.root / "rollouts")
        return OnPolicySource(self, self.policy_config, output), None

    def _facts(self, path: str, sha: str) -> RolloutFacts:
        facts = read_facts(
            path,
            tokenizer_sha=sha,
            max_prompt_length=self.config.data.max_prompt_length,
            max_response_length=self.config.data.max_response_length,
        )
        self._limits.check(facts.longest_row, f"a completion in {path}")
        return facts

    def _held_out_facts(self, sha: str) -> RolloutFacts:
        facts = self._facts(self._val_rollouts, sha)
        if not facts.finished_rows:
            raise ValueError(
                f"lenvm.val_rollouts={facts.path}: all {facts.rows} completions were truncated by "
                "the token limit, so no length is known to compare with. Sample with more tokens."
            )
        return facts

    def _without_validation(self) -> None:
        with open_dict(self.config):
            self.config.trainer.val_before_train = False
            self.config.trainer.test_freq = -1
        logger.warning("lenvm.val_rollouts is not set: there will be no validation.")

    def _description(self, facts: RolloutFacts | None) -> dict[str, Any]:
        """What the saved model says about itself."""
        if facts is not None:
            policy = {**(self.model_config.policy or {}), **facts.policy}
            return describe(
                self.loss,
                policy=policy,
                sampling=facts.sampling,
                answers=facts.answers,
                segment=facts.segment,
                training={"rows": facts.rows, "tokens": facts.tokens},
            )
        rollout = self.config.actor_rollout_ref.rollout
        return describe(
            self.loss,
            policy=describe_policy(self.policy_config.path, self.tokenizer),
            sampling=sampling_settings(rollout),
        )

    def _start_workers(self, critic: CriticConfig) -> None:
        trainer = self.config.trainer
        self.resource_pool_manager = ResourcePoolManager(
            resource_pool_spec={"global_pool": [trainer.n_gpus_per_node] * trainer.nnodes},
            mapping={Role.Critic: "global_pool"},
        )
        self.resource_pool_manager.create_resource_pool()
        profiler = self.config.critic.get("profiler")
        worker = TrainingWorkerConfig(
            model_type=MODEL_TYPE,
            model_config=critic.model,
            engine_config=critic.engine,
            optimizer_config=critic.optim,
            checkpoint_config=critic.checkpoint,
            profiler_config=omega_conf_to_dataclass(profiler) if profiler else None,
        )
        name = str(Role.Critic)
        actor = RayClassWithInitArgs(cls=ray.remote(LengthValueWorker), config=worker)
        group = RayWorkerGroup(
            resource_pool=self.resource_pool_manager.get_resource_pool(Role.Critic),
            ray_cls_with_init=create_colocated_worker_cls({name: actor}),
            device_name=trainer.device,
        )
        self.critic_wg = group.spawn(prefix_set={name})[name]
        # verl's profiling hooks drive the "actor" and skip groups that are the same one.
        self.actor_rollout_wg = self.critic_wg
        self.critic_wg.reset()
        self.critic_wg.set_loss_fn(self.loss)
        self.workers = max(self.critic_wg._query_dispatch_info("train")) + 1
        self._multiple = self.workers
        if not critic.use_dynamic_bsz:
            self._multiple *= critic.ppo_micro_batch_size_per_gpu

    # --- what verl asks a trainer for ------------------------------------------------------

    def get_llm_client(self) -> Any:
        """The rollout servers' client; None when nothing is sampled."""
        source = self.source
        return source.servers.get_client() if isinstance(source, OnPolicySource) else None

    def get_teacher_client(self) -> None:
        """There is no teacher."""

    def get_reward_handles(self) -> None:
        """There is no reward."""

    def on_sample_end(self) -> None:
        """The frozen policy keeps its memory: it has GPUs of its own."""

    def on_step_end(self) -> None:
        """No weights to hand on."""

    # --- a step ----------------------------------------------------------------------------

    def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        """One update on one batch of completions."""
        with marked_timer("data", timing_raw):
            rows = self.source.next_rows()
            batch = make_batch(
                rows,
                loss=self.loss,
                workers=self.workers,
                multiple=self._multiple,
                balance=self.config.trainer.balance_batch,
            )
        with marked_timer("update_critic", timing_raw):
            lengths = NonTensorData(batch["input_ids"].offsets().diff().tolist())
            tu.assign_non_tensor(batch, global_token_num=lengths, update_lr_scheduler=True)
            output = tu.get(self.critic_wg.train_batch(batch).get(), "metrics")
        metrics.update(worker_metrics(output))
        metrics.update(data_metrics(rows))
        self._step_tokens = sum(len(row.prompt_ids) + row.length for row in rows)
        return self._marker()

    def _marker(self) -> KVBatchMeta:
        """An entry of verl's queue that stands for the batch: verl clears one after every step."""
        key, tag = f"step_{self.global_steps}", {"status": "finished"}
        tq.kv_batch_put(keys=[key], partition_id="train", tags=[tag])
        return KVBatchMeta(partition_id="train", keys=[key], tags=[tag])

    def _compute_metrics(
        self, batch: KVBatchMeta, metrics: dict, timing_raw: dict, global_steps: int, epoch: int
    ) -> None:
        metrics["training/global_step"] = global_steps
        metrics["training/epoch"] = self.source.epoch
        metrics["perf/tokens_per_second"] = self._step_tokens / timing_raw["step"]
        metrics.update({f"timing_s/{name}": value for name, value in timing_raw.items()})

    def _validate(self) -> dict[str, float]:
        """Metrics on the held-out completions, in one pass over their file."""
        if self._val_rollouts is None:
            self._val_rollouts = self.source.sample_held_out()
            self._held_out_facts(tokenizer_sha(self.tokenizer))
        held_out = HeldOut(self.loss)
        for rows in _chunks(RolloutReader(self._val_rollouts), self.config.data.train_batch_size):
            batch = make_batch(rows, loss=self.loss, workers=self.workers, multiple=self._multiple)
            tu.assign_non_tensor(batch, global_token_num=None, compute_loss=False)
            held_out.update(self.critic_wg.infer_batch(batch).get()["values"], batch, rows)
        metrics = held_out.metrics()
        errors = {key: metrics.get(key, math.nan) for key in ("mre_s0", "mre_s0_noise_floor")}
        measured = {key: value for key, value in errors.items() if math.isfinite(value)}
        self.critic_wg.describe(measured={**measured, "step": self.global_steps})
        return {f"val/{name}": value for name, value in metrics.items()}

    # --- checkpoints -----------------------------------------------------------------------

    def _save_checkpoint(self) -> None:
        """Write weights, optimiser, data position and the model directory; see `checkpoint`."""
        directory = checkpoints.step_directory(self.root, self.global_steps)
        directory.mkdir(parents=True, exist_ok=True)
        self.critic_wg.save_checkpoint(str(directory / "critic"), None, self.global_steps)
        self.critic_wg.save_length_value_model(str(directory / checkpoints.MODEL))
        if isinstance(self.source, OnPolicySource):
            torch.save(self.train_dataloader.state_dict(), directory / "data.pt")
        checkpoints.complete(
            directory,
            {**self._run_facts(), "source": self.source.state_dict()},
            keep=self.config.trainer.max_critic_ckpt_to_keep,
        )
        callback = getattr(self, "checkpoint_callback", None)  # verl 0.9.0 has none
        if callback is not None:
            callback.on_save(
                trainer=self,
                global_step=self.global_steps,
                checkpoint_dir=str(directory),
                async_save=False,
            )

    def _load_checkpoint(self) -> None:
        """Continue where `trainer.resume_mode` says.

        Raises:
            ValueError: a checkpoint of another gamma, target, file or number of workers.
        """
        self.global_steps = 0
        trainer = self.config.trainer
        found = checkpoints.find_checkpoint(
            self.root, mode=trainer.resume_mode, path=trainer.resume_from_path
        )
        if found is None:
            return
        checkpoints.check_workers(found, self.critic_wg.world_size)
        state = checkpoints.read_state(found)
        for name, value in self._run_facts().items():
            if state[name] != value:
                raise ValueError(
                    f"{found} was trained with {name}={state[name]}, this run has {name}={value}. "
                    "Use the same setting, or start anew in another trainer.default_local_dir."
                )
        self.critic_wg.load_checkpoint(
            str(found / "critic"), del_local_after_load=trainer.del_local_ckpt_after_load
        )
        self.source.load_state_dict(state["source"])
        if isinstance(self.source, OnPolicySource):
            loader_state = torch.load(found / "data.pt", weights_only=False)
            self.train_dataloader.load_state_dict(loader_state)
        self.global_steps = checkpoints.step_of(found)
        print(f"resumed from {found}")

    def _run_facts(self) -> dict[str, Any]:
        """What must not change between a run and its continuation."""
        return {
            "gamma": self.loss.gamma,
            "target": self.loss.target,
            "length_scale": self.loss.length_scale,
            "batch_size": self.config.data.train_batch_size,
        }


def _chunks(reader: RolloutReader, size: int):
    rows: list[Rollout] = []
    for row in reader.iter_rows():
        rows.append(row)
        if len(rows) == size:
            yield rows
            rows = []
    if rows:
        yield rows
