"""GDPO as an estimator choice: what it asks for and verl's default trainer does not pass.

`algorithm.adv_estimator=gdpo` normalises every component of the reward within its group before
they are added (arXiv 2601.05242):

    A_k = (r_k - mean_g) / (std_g + eps),    A = whiten(sum_k w_k A_k)

`algorithm.gdpo_reward_keys` names components that the reward function returns, e.g. [acc,
length_reward] with `reward_fns.l1_exact`, and `algorithm.gdpo_reward_weights` the w_k. verl 0.9.1
reads them off fields that only its old trainer fills (KeyError: 'prompts'); `gdpo_fields` adds
them. The length advantage of `lenvm.use` comes on top as with any estimator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from verl.trainer.ppo.v1 import trainer_base

from lenvm_rl.verl.rl.policy_settings import PolicyLengthSettings
from lenvm_rl.verl.rl.rollout_batch import RolloutBatch

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
