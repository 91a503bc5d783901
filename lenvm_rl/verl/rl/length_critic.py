"""The length critic beside a policy in training: a LenVM on workers of its own, frozen or not.

It has one more process per device in the policy's own resource pool, so neither verl's actor nor
a task critic knows of it. Its workers read the completions off verl's queue themselves, make
batches of them as the pretraining does (`batch`: packed, in micro-batches of tokens), and write
values and advantages back; the trainer tells them which rows are whose (`length_step`). Neither the
number of workers nor the micro-batches change a value.

Frozen, it has no optimiser and its weights rest in host memory between uses. With `refresh` it is
trained on each batch with the pretraining loss (`loss`), after its values have been used.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from verl.single_controller.ray import (
    RayClassWithInitArgs,
    RayResourcePool,
    RayWorkerGroup,
    create_colocated_worker_cls,
)
from verl.utils.seqlen_balancing import calculate_workload, get_seqlen_balanced_partitions
from verl.workers.config import CriticConfig, HFModelConfig
from verl.workers.engine_workers import TrainingWorkerConfig

from lenvm_rl.core import Ranking
from lenvm_rl.model import LengthValueConfig, check_tokenizer, check_tokenizer_sha, tokenizer_sha
from lenvm_rl.model.hub import on_every_node
from lenvm_rl.verl import checkpoint as checkpoints
from lenvm_rl.verl.engine import MODEL_TYPE
from lenvm_rl.verl.pretrain.metrics import worker_metrics
from lenvm_rl.verl.pretrain.objective import (
    LengthValueLoss,
    RowLimits,
    length_value_config,
)
from lenvm_rl.verl.pretrain.settings import AUTO, worker_config
from lenvm_rl.verl.rl.length_step import Plan, Report, Share
from lenvm_rl.verl.rl.policy_settings import PolicyLengthSettings
from lenvm_rl.verl.rl.rollout_batch import RolloutBatch
from lenvm_rl.verl.rl.step_data import QueueData, RowFacts
from lenvm_rl.verl.worker import LengthValueWorker

logger = logging.getLogger(__name__)

ROLE = "length_critic"
_READ = ("gamma", "target", "length_scale", "answers")  # of the model's configuration, by the term
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
        self._seat(self.workers._query_dispatch_info("train"))

    def _seat(self, ranks: list[int]) -> None:
        """Take note of the data-parallel worker that each rank belongs to."""
        self._ranks, self._parts = ranks, max(ranks) + 1
        fixed = not self._critic.use_dynamic_bsz
        self._multiple = self._critic.ppo_micro_batch_size_per_gpu if fixed else 1

    def facts(self, data: QueueData) -> RowFacts:
        """What is known of completions, by workers that look at their tokens."""
        whole = range(len(data.keys))
        index = [list(whole[part :: self._parts]) for part in range(self._parts)]
        found = self._told(self.workers.row_facts([data.part(rows) for rows in index]))
        return RowFacts.gather(zip(index, found, strict=True))

    def step(self, rollouts: RolloutBatch, plan: Plan, budget: Tensor | None = None) -> Report:
        """Values of these completions, and the term of the plan, written where they lie.

        Args:
            rollouts: B completions.
            plan: what is done with the values.
            budget: [B] tokens, for use=budget.
        """
        index = self._split(rollouts)
        shares = self._shares(rollouts, index, budget)
        critic = {name: getattr(self.model, name) for name in _READ}
        found = self._told(self.workers.length_step(shares, plan, critic, self._least(index)))
        order = torch.tensor([i for rows in index for i in rows]).argsort()
        sums = [torch.cat([report.errors for report in found])[order]]
        if plan.settings.use == "shaping":
            sums.append(torch.cat([report.shaping for report in found])[order])
        ranking = _together([report.ranking for report in found])
        return Report(sums[0], ranking, *sums[1:2] or [None], found[0].fit, found[0].metrics)

    def restore_scores(self, rollouts: RolloutBatch) -> None:
        """Undo what use=shaping wrote to the token rewards."""
        self.workers.restore_scores(self._shares(rollouts, self._split(rollouts)))

    def refresh(self, rollouts: RolloutBatch, chosen: Tensor) -> dict[str, float]:
        """One optimiser step of the pretraining loss on the completions `chosen` [B].

        Returns:
            Metrics under lenvm/refresh/; empty when no completion carries weight.
        """
        index = [[i for i in rows if chosen[i]] for rows in self._split(rollouts)]
        counted = zip(rollouts.widths.tolist(), rollouts.finished.tolist(), chosen, strict=True)
        if not sum(self.loss.counted_tokens(n, done) for n, done, mine in counted if mine):
            return {}
        shares = self._shares(rollouts, index)
        output, *_ = self._told(self.workers.refresh(shares, self._least(index)))
        return worker_metrics(output, prefix="lenvm/refresh")

    def _split(self, rollouts: RolloutBatch) -> list[list[int]]:
        """Positions of the completions of every worker: whole prompts, about the same work."""
        members: dict[int, list[int]] = {}
        for i, group in enumerate(rollouts.groups.tolist()):
            members.setdefault(group, []).append(i)
        groups, count = list(members.values()), min(self._parts, len(members))
        if self._balance and count > 1:
            work = calculate_workload(rollouts.widths.float())
            loads = [int(work[rows].sum()) for rows in groups]
            parts = get_seqlen_balanced_partitions(loads, k_partitions=count, equal_size=False)
        else:
            parts = [range(len(groups))[part::count] for part in range(count)]
        split = [[i for group in part for i in groups[group]] for part in parts]
        return split + [[] for _ in range(self._parts - count)]

    def _shares(
        self, rollouts: RolloutBatch, index: list[list[int]], budget: Tensor | None = None
    ) -> list[Share]:
        return [
            Share(
                rollouts.data.part(rows),
                rollouts.finished[rows],
                rollouts.correct[rows],
                rollouts.groups[rows],
                None if budget is None else budget[rows],
            )
            for rows in index
        ]

    def _least(self, index: list[list[int]]) -> int:
        """Rows that every worker fills its batch up to: all make the same collective calls."""
        most = max(map(len, index))
        return most + -most % self._multiple

    def _told(self, answers: list[Any]) -> list[Any]:
        """One answer for every data-parallel worker, of those of all ranks."""
        told = dict(zip(self._ranks, answers, strict=True))
        told.update({r: x for r, x in zip(self._ranks, answers, strict=True) if x is not None})
        return [told[part] for part in range(self._parts)]

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


def _together(rankings: Sequence[Ranking]) -> Ranking:
    """The ranking over the groups of all workers."""
    groups = sum(ranking.groups for ranking in rankings)
    if not groups:
        return rankings[0]
    shares = [
        sum(getattr(r, name) * r.groups for r in rankings if r.groups) / groups
        for name in ("accuracy", "chance")
    ]
    return Ranking(*shares, groups)


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
