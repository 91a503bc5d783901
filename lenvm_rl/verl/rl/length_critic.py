"""The length critic beside a policy in training: a LenVM on workers of its own, frozen or not.

It has one more process per device in the policy's own resource pool, so neither verl's actor nor
a task critic knows of it. Completions reach it as the pretraining does it (`batch`): packed, in
micro-batches of tokens, on any number of workers, none of which changes a value.

Frozen, it has no optimiser and its weights rest in host memory between uses. With `refresh` it is
trained on each batch with the pretraining loss (`loss`), after its values have been used.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import ray
import torch
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from torch import Tensor
from verl.single_controller.ray import (
    RayClassWithInitArgs,
    RayResourcePool,
    RayWorkerGroup,
    create_colocated_worker_cls,
)
from verl.utils import tensordict_utils as tu
from verl.workers.config import CriticConfig, HFModelConfig
from verl.workers.engine_workers import TrainingWorkerConfig

from lenvm_rl.model import LengthValueConfig, check_tokenizer, check_tokenizer_sha, tokenizer_sha
from lenvm_rl.model.hub import on_every_node
from lenvm_rl.rollouts import Rollout
from lenvm_rl.verl import checkpoint as checkpoints
from lenvm_rl.verl.batch import make_batch
from lenvm_rl.verl.engine import MODEL_TYPE
from lenvm_rl.verl.pretrain.metrics import worker_metrics
from lenvm_rl.verl.pretrain.objective import (
    LengthValueLoss,
    RowLimits,
    length_value_config,
    states_of_responses,
)
from lenvm_rl.verl.pretrain.settings import AUTO, worker_config
from lenvm_rl.verl.rl.policy_settings import PolicyLengthSettings
from lenvm_rl.verl.worker import LengthValueWorker

logger = logging.getLogger(__name__)

ROLE = "length_critic"
STRATEGIES = ("fsdp2", "fsdp")


class LengthCritic:
    """A LenVM that belongs to the policy of a run; `start` gives it workers.

    Args:
        config: the whole configuration.
        settings: its `lenvm:` block.
        policy: verl's description of the policy, for its tokenizer.
    Raises:
        ValueError: no LenVM, one of another tokenizer or another gamma, or one whose context is
            shorter than prompt and response.
    """

    def __init__(self, config: DictConfig, settings: PolicyLengthSettings, policy: HFModelConfig):
        self.settings = settings
        self._config = config
        block = worker_block(config, settings)
        critic = worker_config(block)
        self.model: LengthValueConfig = length_value_config(critic, key="lenvm.checkpoint")
        self.gamma = self._gamma()
        self._check_tokenizer(critic, policy)
        self._check_baseline(config)
        data = config.data
        limits = RowLimits.of(critic, self.model, key="length_critic")
        limits.check(
            data.max_prompt_length + data.max_response_length,
            "a completion of data.max_prompt_length plus data.max_response_length",
        )
        self.loss = LengthValueLoss(
            gamma=self.gamma,
            target=self.model.target,
            bins=self.model.length_bins,
            length_scale=self.model.length_scale,
            truncated=settings.truncated,
        )
        self._critic = critic
        self._balance = config.trainer.balance_batch

    def worker_config(self, *, total_steps: int) -> TrainingWorkerConfig:
        """What verl starts a worker with; `total_steps` is refresh's schedule."""
        critic = self._critic
        object.__setattr__(critic.optim, "total_training_steps", total_steps)
        return TrainingWorkerConfig(
            model_type=MODEL_TYPE,
            model_config=critic.model,
            engine_config=critic.engine,
            optimizer_config=critic.optim,
            checkpoint_config=critic.checkpoint,
            profiler_config=None,
        )

    def start(self, pool: RayResourcePool, *, total_steps: int) -> None:
        """Start the workers, one per device of `pool`; `total_steps` as in `worker_config`."""
        worker = self.worker_config(total_steps=total_steps)
        actor = RayClassWithInitArgs(cls=ray.remote(LengthValueWorker), config=worker)
        group = RayWorkerGroup(
            resource_pool=pool,
            ray_cls_with_init=create_colocated_worker_cls({ROLE: actor}),
            device_name=self._config.trainer.device,
        )
        self.workers = group.spawn(prefix_set={ROLE})[ROLE]
        self.workers.reset()
        self.workers.set_loss_fn(self.loss)
        self._parts = max(self.workers._query_dispatch_info("train")) + 1
        self._multiple = self._parts
        if not self._critic.use_dynamic_bsz:
            self._multiple *= self._critic.ppo_micro_batch_size_per_gpu

    def logits(self, rows: Sequence[Rollout]) -> Tensor:
        """Logits z at s_0 .. s_L of every completion, [B, T + 1] float32.

        Args:
            rows: B completions, T tokens in the longest; columns beyond L + 1 repeat some value.
        """
        batch = self._batch(rows)
        tu.assign_non_tensor(batch, global_token_num=None, compute_loss=False)
        values = self.workers.infer_batch(batch).get()["values"]
        self.workers.empty_cache()
        states, _ = states_of_responses(values, batch["prompt_length"], batch["response_length"])
        index = batch["row_index"]
        out = torch.empty(len(rows), states.shape[1], dtype=torch.float32)
        out[index[index >= 0]] = self.loss.read(states[index >= 0].float())
        return out

    def refresh(self, rows: Sequence[Rollout]) -> dict[str, float]:
        """One optimiser step of the pretraining loss on these completions.

        Returns:
            Metrics under lenvm/refresh/; empty when no completion carries weight.
        """
        batch = self._batch(rows)
        if not int(batch["loss_mask"].sum()):
            return {}
        tu.assign_non_tensor(batch, global_token_num=None, update_lr_scheduler=True)
        output = tu.get(self.workers.train_batch(batch).get(), "metrics")
        self.workers.empty_cache()
        return worker_metrics(output, prefix="lenvm/refresh")

    def retire(self, directory: Path) -> None:
        """After step `directory` is complete: remove what earlier steps hold of the critic.

        As many steps keep it as verl keeps of the policy and of a task critic, whichever is
        fewer: without those a step cannot be resumed.
        """
        trainer = self._config.trainer
        limits = [trainer.get(f"max_{role}_ckpt_to_keep") for role in ("actor", "critic")]
        keep = min((limit for limit in limits if limit), default=None)
        if self.settings.refresh:
            checkpoints.retire(directory, (ROLE, checkpoints.MODEL), keep=keep)

    def save(self, directory: Path, step: int) -> None:
        """Write a refreshed critic: verl's shards and a model directory `lenvm`."""
        if self.settings.refresh:
            self.workers.save_checkpoint(str(directory / ROLE), None, step)
            self.workers.save_length_value_model(str(directory / checkpoints.MODEL))

    def load(self, directory: Path) -> None:
        """Continue with a refreshed critic of `save`; a frozen one is what it was.

        Raises:
            ValueError: the step has none.
        """
        if self.settings.refresh:
            if not (directory / ROLE).is_dir():
                raise ValueError(
                    f"{directory} holds no refreshed length critic: the run was frozen then, or "
                    "trainer.max_actor_ckpt_to_keep or max_critic_ckpt_to_keep has retired it. "
                    "Resume from a later step, or set lenvm.refresh=false."
                )
            self.workers.load_checkpoint(str(directory / ROLE))

    def _batch(self, rows: Sequence[Rollout]) -> TensorDict:
        return make_batch(
            rows,
            loss=self.loss,
            workers=self._parts,
            multiple=self._multiple,
            balance=self._balance,
        )

    def _gamma(self) -> float:
        stored, given = self.model.gamma, self.settings.gamma
        if self.model.segment is not None:
            raise ValueError(
                f"lenvm.checkpoint={self.settings.checkpoint} counts the "
                f"{self.model.segment['name']} alone, a length critic values whole responses. Give "
                "one that was trained on them."
            )
        if stored is None:
            raise ValueError(
                f"lenvm.checkpoint={self.settings.checkpoint} has no gamma: it was never trained. "
                "Pretrain it first (recipes/pretrain)."
            )
        if given != AUTO and abs(given - stored) > 1e-12:
            if self.model.bins is not None:  # a distribution has a value for every gamma
                self.model.gamma = given
                return given
            raise ValueError(
                f"gamma is set twice: lenvm.gamma={given}, but lenvm.checkpoint="
                f"{self.settings.checkpoint} was trained with {stored}. Leave lenvm.gamma=auto."
            )
        return stored

    def _check_baseline(self, config: DictConfig) -> None:
        baseline = self.settings.baseline_for(self.model.answers)
        if self.settings.applies_to == "correct" and baseline == "all":
            logger.warning(
                "lenvm.baseline=all with lenvm.applies_to=correct is an ablation: where correct "
                "answers are the long ones it teaches to be wrong "
                "(scripts/bench/right_answers.py). Leave lenvm.baseline=auto to train a policy "
                "that is to be used."
            )
        samples = config.actor_rollout_ref.rollout.n
        if baseline == "group" and samples < 2:
            raise ValueError(
                f"lenvm.applies_to=correct with a LenVM of all answers judges a correct answer "
                f"among those of its prompt, but actor_rollout_ref.rollout.n={samples} makes one "
                "of each. Sample several, give a LenVM of correct answers (recipes/pretrain), or "
                "set lenvm.applies_to=all."
            )

    def _check_tokenizer(self, critic: CriticConfig, policy: HFModelConfig) -> None:
        check_tokenizer(self.model, policy.tokenizer)
        check_tokenizer_sha(
            tokenizer_sha(critic.model.tokenizer),
            tokenizer_sha(policy.tokenizer),
            expected_of=f"the LenVM {self.settings.checkpoint}",
            got_of=f"the policy {policy.path}",
        )


def worker_block(config: DictConfig, settings: PolicyLengthSettings) -> DictConfig:
    """The block `length_critic` (verl's FSDP critic), with what the `lenvm` block decides in it.

    Never verl's own `critic`: that one may be Megatron's, VeOmni's or TorchTitan's.

    Raises:
        ValueError: there is no such block, or its strategy is not FSDP's.
    """
    if "length_critic" not in config:
        raise ValueError(
            "the configuration has no `length_critic:` block, which describes the workers of "
            "lenvm.checkpoint: compose it from lenvm_ppo (see recipes/grpo_length)."
        )
    block = OmegaConf.create(OmegaConf.to_container(config.length_critic, resolve=True))
    if block.strategy not in STRATEGIES:
        raise ValueError(
            f"length_critic.strategy={block.strategy}: a length critic runs on FSDP beside any "
            f"policy, whatever model_engine is. Use one of {', '.join(STRATEGIES)}."
        )
    block.model.path = on_every_node(settings.checkpoint)
    block.model.tokenizer_path = None
    block.fsdp.forward_only = not settings.refresh
    return block
