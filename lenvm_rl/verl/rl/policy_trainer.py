"""The trainer mode `lenvm`: verl's synchronous PPO, GRPO, ... with a length critic beside it.

    python -m verl.trainer.main_ppo --config-path ... trainer.v1.trainer_mode=lenvm

verl's loop, actor, task critic, rollouts and estimators; what is added happens where advantages
are made: values of the length critic for the fresh completions, a length term (see
`policy_settings`), metrics, the controller of its scale, and optionally a refresh of the critic.
Nothing is whitened together with the task advantage.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, open_dict
from tensordict import TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.debug import marked_timer
from verl.workers.config import HFModelConfig

from lenvm_rl.core import LengthValues, length_term, read_critic, shaping_term
from lenvm_rl.verl import checkpoint as checkpoints
from lenvm_rl.verl.batch import eos_ids
from lenvm_rl.verl.data_checks import (
    budgets_of,
    check_column,
    check_own_words,
    check_text_only,
    check_truths,
)
from lenvm_rl.verl.plugin import POLICY_TRAINER_MODE, check_registered
from lenvm_rl.verl.rl.group_rewards import GroupReward, check_gdpo, gdpo_fields
from lenvm_rl.verl.rl.length_critic import LengthCritic
from lenvm_rl.verl.rl.length_state import LengthState
from lenvm_rl.verl.rl.policy_metrics import (
    SOURCE,
    LengthAlarm,
    ValidationDrift,
    critic_metrics,
    dump_step,
    each_sample,
    length_metrics,
    recalibration_metrics,
)
from lenvm_rl.verl.rl.policy_settings import (
    check_against_verl,
    read_policy_settings,
    shaping_discount,
)
from lenvm_rl.verl.rl.rollout_batch import RolloutBatch, read_rollouts
from lenvm_rl.verl.rl.rollout_guidance import AGENT_LOOP


@register_trainer(POLICY_TRAINER_MODE)
class LengthAwareTrainer(PPOTrainerSync):
    """Trains a policy with a length term; see the module.

    Raises:
        ValueError: a setting, checkpoint or data file that cannot be trained with (before any
            worker starts).
    """

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
            # verl compares the mode with "sync" in several places; this loop is a synchronous one.
            config.trainer.v1.trainer_mode = "sync"
        super().__init__(config)
        self.replay_buffer.poll_interval = 0.1  # verl looks every 2 s whether sampling is done

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
        seen = ValidationDrift(gamma=self.length_critic.gamma)

        def look(batch: KVBatchMeta) -> None:
            rollouts = read_rollouts(batch, eos=self._eos, columns=(SOURCE,))
            seen.add(rollouts, self._estimate(rollouts)[0])

        with each_sample(self.replay_buffer, look):
            metrics = super()._validate()
        return {**metrics, **seen.metrics()}

    # --- a step ----------------------------------------------------------------------------

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """verl's advantages plus the length term; what the step measured."""
        rollouts = self._read(batch)
        if self.settings.use != "none":
            rollouts.check_single_outputs(f"lenvm.use={self.settings.use}")
        metrics.update(length_metrics(rollouts))
        metrics["length/alarm"] = self.alarm.check(metrics["length/mean"], self.global_steps)
        rewards = rollouts.get("rm_scores")
        if self.reward is not None:
            rewards = self.reward.apply(rollouts)
            rollouts.put(rm_scores=rewards)
            metrics.update(self.reward.update(rollouts))
        estimate, logits = self._values(rollouts)
        scale = self.controller.scale if self.settings.use != "none" else 0.0
        if estimate is not None:
            metrics.update(critic_metrics(rollouts, estimate, gamma=self.length_critic.gamma))
            metrics["lenvm/scale"] = scale

        if self.settings.use == "shaping":
            batch, terms = self._with_shaping(batch, metrics, rollouts, estimate, rewards, scale)
        else:
            batch = self._verls_advantage(batch, metrics, rollouts)
            terms = self._add_length_advantage(metrics, rollouts, logits, scale)
        if self.settings.dump_dir is not None:
            path = Path(self.settings.dump_dir).absolute() / f"step_{self.global_steps}.pt"
            dump_step(path, rollouts, rewards=rewards, logits=logits, scale=scale, **terms)
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

    def _read(self, batch: KVBatchMeta) -> RolloutBatch:
        columns = list(self.reward.columns) if self.reward is not None else []
        if self.settings.budget_column is not None:
            columns.append(self.settings.budget_column)
        return read_rollouts(batch, eos=self._eos, columns=tuple(columns))

    def _values(self, rollouts: RolloutBatch) -> tuple[LengthValues | None, Tensor | None]:
        """The length critic's estimate for these completions; its values go to verl's queue."""
        if self.length_critic is None:
            return None, None
        with marked_timer("len_values", self.timing_raw, color="cyan"):
            estimate, logits = self._estimate(rollouts)
        rollouts.put(len_values=estimate.values)
        return estimate, logits

    def _estimate(self, rollouts: RolloutBatch) -> tuple[LengthValues, Tensor]:
        """Values of these completions as the critic says them, and its raw outputs [B, T + 1]."""
        logits = self.length_critic.logits(rollouts.rows)
        ends = logits.gather(1, rollouts.widths[:, None])[:, 0]
        return LengthValues.of_logits(logits[:, :-1], ends, self.length_critic.model), logits

    def _with_shaping(
        self,
        batch: KVBatchMeta,
        metrics: dict,
        rollouts: RolloutBatch,
        estimate: LengthValues,
        rewards: Tensor,
        scale: float,
    ) -> tuple[KVBatchMeta, dict[str, Tensor]]:
        """verl's advantages on shaped token rewards; the logged score stays the task's."""
        term = shaping_term(
            estimate,
            rollouts.mask,
            rollouts.finished,
            gamma=shaping_discount(self.settings, self.config.algorithm),
            scale=scale,
        )
        rollouts.put(rm_scores=rewards + term)
        batch = self._verls_advantage(batch, metrics, rollouts)
        rollouts.put(rm_scores=rewards)
        metrics["lenvm/shaping_sum"] = term.sum(1).mean().item()
        return batch, {"shaping": term, "total": rollouts.get("advantages")}

    def _add_length_advantage(
        self, metrics: dict, rollouts: RolloutBatch, logits: Tensor | None, scale: float
    ) -> dict[str, Tensor]:
        task = rollouts.get("advantages")
        if self.settings.use == "none" or logits is None:
            return {"task": task, "total": task}
        settings, model = self.settings, self.length_critic.model
        estimate, fit = read_critic(
            model,
            logits[:, :-1],
            logits.gather(1, rollouts.widths[:, None])[:, 0],
            rollouts.mask,
            rollouts.finished,
            rollouts.correct,
            refit=settings.recalibrates,
        )
        column = settings.budget_column
        term = length_term(
            settings,
            estimate,
            rollouts.mask,
            rollouts.finished,
            task,
            gamma=model.gamma,
            scale=scale,
            correct=rollouts.correct,
            groups=rollouts.groups,
            baseline=settings.baseline_for(model.answers),
            budget=None if column is None else budgets_of(rollouts.columns[column], column),
            trained=rollouts.get("response_mask"),  # verl's rejection sampling may have masked rows
        )
        rollouts.put(advantages=term.total)
        metrics.update({f"lenvm/{name}": value for name, value in term.metrics.items()})
        metrics.update(recalibration_metrics(fit))
        return {"task": task, "length": term.unit, "total": term.total}

    def _refresh(self, rollouts: RolloutBatch, metrics: dict) -> None:
        rollouts.check_own_words("lenvm.refresh=true")
        rows = rollouts.rows
        if self.length_critic.model.answers == "correct":
            correct = rollouts.correct.tolist()
            rows = [row for row, score in zip(rows, correct, strict=True) if score > 0]
        if not rows:
            return
        with marked_timer("refresh_length_critic", self.timing_raw, color="pink"):
            metrics.update(self.length_critic.refresh(rows))

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
