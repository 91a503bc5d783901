"""The trainer modes `lenvm...`: verl's PPO, GRPO, ... with a length critic beside it.

    python -m verl.trainer.main_ppo --config-path ... trainer.v1.trainer_mode=lenvm

    lenvm                    over verl's trainer `sync`
    lenvm_colocate_async     over `colocate_async`
    lenvm_separate_async     over `separate_async`

verl's loops, actor, task critic, rollouts and estimators, with `LengthAware` mixed in: what it adds
happens where advantages are made: values of the length critic for the fresh completions, a length
term (see `policy_settings`), metrics, the controller of its scale, and optionally a refresh of the
critic. Nothing is whitened together with the task advantage.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import torch
from omegaconf import DictConfig, open_dict
from tensordict import TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.debug import marked_timer
from verl.workers.config import HFModelConfig

from lenvm_rl.core import Rows, TermSettings
from lenvm_rl.core.length_terms import lambda_of, weights_of
from lenvm_rl.verl import checkpoint as checkpoints
from lenvm_rl.verl.batch import eos_ids
from lenvm_rl.verl.data_checks import (
    budgets_of,
    check_column,
    check_own_words,
    check_text_only,
    check_truths,
)
from lenvm_rl.verl.plugin import POLICY_TRAINER_MODES, check_registered
from lenvm_rl.verl.rl.group_rewards import GroupReward, check_gdpo, gdpo_fields
from lenvm_rl.verl.rl.length_critic import LengthCritic
from lenvm_rl.verl.rl.length_state import LengthState
from lenvm_rl.verl.rl.length_step import Plan
from lenvm_rl.verl.rl.policy_metrics import (
    SOURCE,
    LengthAlarm,
    ValidationDrift,
    critic_metrics,
    dump_step,
    each_sample,
    length_metrics,
    padded,
    recalibration_metrics,
)
from lenvm_rl.verl.rl.policy_settings import (
    check_against_verl,
    read_policy_settings,
    shaping_discount,
)
from lenvm_rl.verl.rl.rollout_batch import RolloutBatch, read_rollouts
from lenvm_rl.verl.rl.rollout_guidance import AGENT_LOOP
from lenvm_rl.verl.rl.step_data import RowFacts


class LengthAware:
    """Any of verl's trainers with a length term; see the module.

    Raises:
        ValueError: a setting, checkpoint or data file that cannot be trained with (before any
            worker starts).
    """

    base_mode: str
    """verl's name of the trainer that this is mixed into."""

    def __init__(self, config: DictConfig):
        check_registered()
        self.settings = read_policy_settings(config)
        check_against_verl(config, self.settings)
        check_gdpo(config, self.settings)
        self.guidance = self.settings.guidance()
        if self.guidance is not None:
            self.guidance.into(config)
        self.controller = self.settings.make_controller()
        self.alarm = LengthAlarm(self.settings.alarm_low, self.settings.alarm_high)
        self.reward = GroupReward.of(self.settings.length_reward)
        self.state = LengthState(self.settings.use, self.controller, self.alarm, self.reward)
        with open_dict(config):
            # verl goes by the mode's name in several places, and has settings under it.
            config.trainer.v1.trainer_mode = self.base_mode
        super().__init__(config)

    # --- setting up ------------------------------------------------------------------------

    def _setup(self) -> None:
        policy: HFModelConfig = omega_conf_to_dataclass(self.config.actor_rollout_ref.model)
        self._eos = eos_ids(policy)
        self.length_critic: LengthCritic | None = None
        if self.settings.checkpoint is not None:
            self.length_critic = LengthCritic(self.config, self.settings, policy)
        super()._setup()
        if self.length_critic is not None:
            pools = self.resource_pool_manager.resource_pool_dict
            self.length_critic.start(pools["global_pool"], total_steps=self.total_training_steps)
        if self.global_steps:
            self._load_length_state(checkpoints.resumed_from(self.config, self.global_steps))

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        train, val = self.train_dataset, self.val_dataset
        check_truths((train, val), self.config)
        check_column((train, val), "lenvm.budget_column", self.settings.budget_column)
        if self.settings.refresh:
            check_own_words((train,), "lenvm.refresh=true")
        if self.length_critic is not None:
            check_text_only((train, val), self.config.data)
        if self.guidance is not None:
            setting, highest = "lenvm.rollout_guidance.column", self.guidance.highest(self.config)
            check_column((train,), setting, self.guidance.column, highest=highest)

    # --- sampling and validating -----------------------------------------------------------

    def _submit_batch_to_rollout(self, batch: TensorDict) -> int:
        """verl's; with guidance, prompts in training go through the loop that guides."""
        if self.guidance is not None:
            tu.assign_non_tensor_data(batch, "agent_name", AGENT_LOOP)
        return super()._submit_batch_to_rollout(batch)

    def _validate(self) -> dict[str, float]:
        """verl's metrics, and how far the length critic has drifted on these completions."""
        if self.length_critic is None or not self.settings.validate_drift:
            return super()._validate()
        seen = ValidationDrift()

        def look(batch: KVBatchMeta) -> None:
            rollouts = self._read(batch, SOURCE)
            seen.add(rollouts, self.length_critic.step(rollouts, Plan(write=False)))

        with each_sample(self.replay_buffer, look):
            metrics = super()._validate()
        return {**metrics, **seen.metrics()}

    # --- a step ----------------------------------------------------------------------------

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """verl's advantages plus the length term; what the step measured."""
        rollouts = self._read(batch, *self._columns())
        if self.settings.use != "none":
            rollouts.check_single_outputs(f"lenvm.use={self.settings.use}")
        metrics.update(length_metrics(rollouts))
        metrics["length/alarm"] = self.alarm.check(metrics["length/mean"], self.global_steps)
        if self.reward is not None:
            rollouts.reward(self.reward.apply(rollouts))
            metrics.update(self.reward.update(rollouts))
        scale = self.controller.scale if self.settings.use != "none" else 0.0
        shaped = self.settings.use == "shaping"
        if shaped:
            self._take_step(rollouts, metrics, scale)
        batch = self._verls_advantage(batch, metrics, rollouts)
        task = self._dumped(rollouts, "advantages")
        if shaped:
            self.length_critic.restore_scores(rollouts)
        elif self.length_critic is not None:
            self._take_step(rollouts, metrics, scale)
        if self.settings.dump_dir is not None:
            dump_step(self._dump_file(), rollouts, scale=scale, task=task)
        if self.settings.refresh:
            self._refresh(rollouts, metrics)
        self.controller.update(
            {"mean_length": metrics["length/mean"], "accuracy": metrics["length/accuracy"]}
        )
        return batch

    def _verls_advantage(
        self, batch: KVBatchMeta, metrics: dict, rollouts: RolloutBatch
    ) -> KVBatchMeta:
        """The estimator's own part; what timing_s/adv holds beyond it is the length term."""
        timer = marked_timer("verl_adv", self.timing_raw, color="brown")
        with timer, gdpo_fields(self.config, rollouts):
            return super()._compute_advantage(batch, metrics)

    def _read(self, batch: KVBatchMeta, *columns: str) -> RolloutBatch:
        critic = self.length_critic
        look = RowFacts.read if critic is None else critic.facts
        return read_rollouts(batch, eos=self._eos, columns=columns, facts_of=look)

    def _columns(self) -> list[str]:
        """Columns of the data that a step needs."""
        columns = list(self.reward.columns) if self.reward is not None else []
        if self.settings.budget_column is not None:
            columns.append(self.settings.budget_column)
        return columns

    def _dump_file(self) -> Path:
        """step_N.pt; step_N_k.pt of the k-th of several mini-batches of an asynchronous step."""
        part = getattr(self, "local_trigger_step", 0)
        name = f"step_{self.global_steps}" + (f"_{part}" if part else "")
        return Path(self.settings.dump_dir).absolute() / f"{name}.pt"

    def _dumped(self, rollouts: RolloutBatch, name: str) -> Tensor | None:
        """A column [B, T], where the step is dumped."""
        if self.settings.dump_dir is None:
            return None
        return padded(rollouts.data.read(name), name)

    def _take_step(self, rollouts: RolloutBatch, metrics: dict, scale: float) -> None:
        """Values of the length critic, and the length term, in its workers."""
        column = self.settings.budget_column
        budget = None if column is None else budgets_of(rollouts.columns[column], column)
        with marked_timer("len_values", self.timing_raw, color="cyan"):
            report = self.length_critic.step(rollouts, self._plan(rollouts, scale), budget)
        metrics.update(critic_metrics(rollouts, report))
        metrics["lenvm/scale"] = scale
        metrics.update({f"lenvm/{name}": value for name, value in report.metrics.items()})
        metrics.update(recalibration_metrics(report.fit))
        if report.shaping is not None:
            metrics["lenvm/shaping_sum"] = report.shaping.mean().item()

    def _plan(self, rollouts: RolloutBatch, scale: float) -> Plan:
        settings, lengths = self.settings, rollouts.lengths
        term = TermSettings(**{f.name: getattr(settings, f.name) for f in fields(TermSettings)})
        shaped = settings.use == "shaping"
        return Plan(
            settings=term,
            scale=scale,
            lam=lambda_of(settings, lengths, weights_of(settings, rollouts.correct, Rows(lengths))),
            baseline=settings.baseline_for(self.length_critic.model.answers),
            refit=settings.recalibrates,
            gamma_shape=shaping_discount(settings, self.config.algorithm) if shaped else 1.0,
            keep_unit=settings.dump_dir is not None,
        )

    def _refresh(self, rollouts: RolloutBatch, metrics: dict) -> None:
        rollouts.check_own_words("lenvm.refresh=true")
        chosen = torch.ones(len(rollouts.keys), dtype=torch.bool)
        if self.length_critic.model.answers == "correct":
            chosen = rollouts.correct > 0
        with marked_timer("refresh_length_critic", self.timing_raw, color="pink"):
            metrics.update(self.length_critic.refresh(rollouts, chosen))

    # --- checkpoints -----------------------------------------------------------------------

    def _save_checkpoint(self) -> None:
        """The length critic and its state first: verl's own part ends by naming the step.

        Older ones of the critic go after that, never before.
        """
        root = Path(self.config.trainer.default_local_dir).absolute()
        directory = checkpoints.step_directory(root, self.global_steps)
        directory.mkdir(parents=True, exist_ok=True)
        if self.length_critic is not None:
            self.length_critic.save(directory, self.global_steps)
        self.state.save(directory)
        super()._save_checkpoint()
        if self.length_critic is not None:
            self.length_critic.retire(directory)

    def _load_length_state(self, directory: Path) -> None:
        self.state.load(directory)
        if self.length_critic is not None:
            self.length_critic.load(directory)
        print(f"resumed the length term from {directory}: scale {self.controller.scale:g}")


_SYNC, _COLOCATED, _SEPARATE = POLICY_TRAINER_MODES


@register_trainer(_SYNC)
class LengthAwareTrainer(LengthAware, PPOTrainerSync):
    """verl's synchronous trainer with a length term."""

    base_mode = "sync"

    def __init__(self, config: DictConfig):
        super().__init__(config)
        self.replay_buffer.poll_interval = 0.1  # verl looks every 2 s whether sampling is done


@register_trainer(_COLOCATED)
class ColocatedLengthAwareTrainer(LengthAware, PPOTrainerColocateAsync):
    """verl's asynchronous trainer on the rollout engine's devices, with a length term."""

    base_mode = "colocate_async"


@register_trainer(_SEPARATE)
class SeparateLengthAwareTrainer(LengthAware, PPOTrainerSeparateAsync):
    """verl's asynchronous trainer beside rollout engines of their own, with a length term."""

    base_mode = "separate_async"
