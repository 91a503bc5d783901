"""Rewards that need all samples of a prompt: published length rewards, and GDPO's components.

`lenvm.length_reward: {name: kimi, weight: 0.5}` names one of `reward_fns.LENGTH_REWARDS`. The
reward function of the run grades the answers (its `acc`, else its score); here every prompt's
grades and token counts become rewards, which replace the score on the last token before
advantages are made. Validation keeps the plain grade.

`algorithm.adv_estimator=gdpo` normalises every component of the reward within its group before
they are added (arXiv 2601.05242):

    A_k = (r_k - mean_g) / (std_g + eps),    A = whiten(sum_k w_k A_k)

`algorithm.gdpo_reward_keys` names components that the reward function returns, e.g. [acc,
length_reward] with `reward_fns.l1_exact`, and `algorithm.gdpo_reward_weights` the w_k. verl 0.9.1
reads them off fields that only its old trainer fills (KeyError: 'prompts'); `gdpo_fields` adds
them. The length advantage of `lenvm.use` comes on top as with any estimator.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from lenvm_rl.verl.rl.policy_settings import PolicyLengthSettings
from lenvm_rl.verl.rl.rollout_batch import RolloutBatch
from reward_fns import BoundReward, get_length_reward


class GroupReward:
    """A length reward with its parameters.

    Args:
        bound: from `reward_fns.LENGTH_REWARDS`.
    """

    def __init__(self, bound: BoundReward):
        self._bound = bound

    @classmethod
    def of(cls, setting: Mapping[str, Any] | None) -> GroupReward | None:
        """The reward of `lenvm.length_reward`; None where there is none.

        Raises:
            ValueError: no reward of that name, or parameters it does not take.
        """
        if setting is None:
            return None
        params = dict(setting)
        reward = get_length_reward(params.pop("name"))
        try:
            return cls(reward.bind(**params))
        except TypeError as error:
            raise ValueError(f"lenvm.length_reward={dict(setting)}: {error}") from error

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the data that the formula reads."""
        return self._bound.columns

    def apply(self, rollouts: RolloutBatch) -> Tensor:
        """[B] what each completion earns: its session's whole reward."""
        samples = rollouts.samples
        earned = torch.zeros(len(samples.last))
        for group in torch.unique(samples.groups).tolist():
            members = (samples.groups == group).nonzero()[:, 0]
            first = samples.last[members[0]]
            values = self._bound.group_rewards(
                samples.correct[members].tolist(),
                samples.lengths[members].tolist(),
                prompt_id=rollouts.prompt_ids[first],
                columns={name: cells[first] for name, cells in rollouts.columns.items()},
            )
            earned[members] = torch.tensor(values, dtype=torch.float32)
        return earned[samples.of_row]

    def update(self, rollouts: RolloutBatch) -> dict[str, float]:
        """Let a stateful reward learn from the batch; its metrics under length_reward/."""
        samples = rollouts.samples
        logged = self._bound.update(
            samples.correct.tolist(),
            samples.lengths.tolist(),
            [rollouts.prompt_ids[row] for row in samples.last],
        )
        return {f"length_reward/{name}": float(value) for name, value in logged.items()}

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for the checkpoint."""
        return self._bound.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self._bound.load_state_dict(state)


NAME = "gdpo"
_HOOK = "compute_advantage_for_multi_trajectories"


def check_gdpo(config: DictConfig, settings: PolicyLengthSettings) -> None:
    """Refuse settings that GDPO would ignore; nothing happens with another estimator.

    Raises:
        ValueError: no components, another number of weights, shaping, or a group reward.
    """
    algorithm = config.algorithm
    if algorithm.adv_estimator != NAME:
        return
    keys, weights = algorithm.get("gdpo_reward_keys"), algorithm.get("gdpo_reward_weights")
    if not keys:
        raise ValueError(
            "algorithm.adv_estimator=gdpo without algorithm.gdpo_reward_keys: name the components "
            "that the reward function returns: +algorithm.gdpo_reward_keys=[acc,length_reward]."
        )
    if weights is not None and len(weights) != len(keys):
        raise ValueError(
            f"algorithm.gdpo_reward_weights={list(weights)}, but gdpo_reward_keys={list(keys)}: "
            "give one weight for each."
        )
    if settings.use == "shaping" or settings.length_reward is not None:
        raise ValueError(
            f"algorithm.adv_estimator=gdpo with lenvm.use={settings.use}, lenvm.length_reward="
            f"{settings.length_reward}: GDPO reads the components alone and never the token "
            "rewards that these change. Use objective or budget, or another estimator."
        )


@contextmanager
def gdpo_fields(config: DictConfig, rollouts: RolloutBatch) -> Iterator[None]:
    """Within this block verl's trainer hands GDPO the components of these completions.

    Raises:
        ValueError: a component that the reward function did not return for every completion.
    """
    if config.algorithm.adv_estimator != NAME:
        yield
        return
    from verl.trainer.ppo.v1 import trainer_base  # importing it imports the trainer, and so this

    columns = _components(rollouts, list(config.algorithm.gdpo_reward_keys))
    original = getattr(trainer_base, _HOOK)

    def with_fields(data: Any, batch_keys: Sequence[str], **kwargs: Any) -> Any:
        mask = data.batch["response_mask"]
        # One column stands for the prompt: verl looks for the end of the response behind it.
        data.batch["prompts"] = torch.zeros(len(mask), 1, dtype=torch.long)
        data.batch["attention_mask"] = torch.cat([torch.ones(len(mask), 1), (mask != 0).float()], 1)
        data.batch["attention_mask"] = data.batch["attention_mask"].long()
        for name, cells in columns.items():
            # Rows that verl added to fill the batch have no reward and no weight.
            found = [cells.get(key, 0.0) for key in batch_keys]
            data.non_tensor_batch[name] = np.array(found, dtype=np.float32)
        return original(data, batch_keys=batch_keys, **kwargs)

    setattr(trainer_base, _HOOK, with_fields)
    try:
        yield
    finally:
        setattr(trainer_base, _HOOK, original)


def _components(rollouts: RolloutBatch, names: list[str]) -> dict[str, dict[str, float]]:
    """{component: {key of the completion: value}}."""
    for key, info in zip(rollouts.keys, rollouts.reward_info, strict=True):
        missing = sorted(set(names) - set(info))
        if missing:
            raise ValueError(
                f"algorithm.gdpo_reward_keys={names}: the reward function returned no "
                f"{', '.join(missing)} for completion {key}, only {sorted(info)}. Return a dict "
                "with all of them (reward_fns.l1_exact returns acc and length_reward)."
            )
    return {
        name: {
            key: float(info[name])
            for key, info in zip(rollouts.keys, rollouts.reward_info, strict=True)
        }
        for name in names
    }
