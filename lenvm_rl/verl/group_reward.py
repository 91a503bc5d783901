"""How does a published length reward, over the samples of a prompt, become verl's reward?

`lenvm.length_reward: {name: kimi, weight: 0.5}` names one of `reward_fns.LENGTH_REWARDS`. The
reward function of the run grades the answers (its `acc`, else its score); here every prompt's
grades and token counts become rewards, which replace the score on the last token before
advantages are made. Validation keeps the plain grade.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lenvm_rl.verl.rollout_batch import RolloutBatch
from reward_fns import get_length_reward
from reward_fns.registry import BoundReward


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
        """Token rewards [B, T]: each completion's whole reward on its last token."""
        rewards = torch.zeros(rollouts.mask.shape, dtype=torch.float32)
        for group in torch.unique(rollouts.groups).tolist():
            rows = (rollouts.groups == group).nonzero()[:, 0].tolist()
            values = self._bound.group_rewards(
                rollouts.correct[rows].tolist(),
                rollouts.lengths[rows].tolist(),
                prompt_id=rollouts.rows[rows[0]].prompt_id,
                columns={name: cells[rows[0]] for name, cells in rollouts.columns.items()},
            )
            for row, value in zip(rows, values, strict=True):
                rewards[row, rollouts.rows[row].length - 1] = value
        return rewards

    def update(self, rollouts: RolloutBatch) -> dict[str, float]:
        """Let a stateful reward learn from the batch; its metrics under length_reward/."""
        logged = self._bound.update(
            rollouts.correct.tolist(),
            rollouts.lengths.tolist(),
            [row.prompt_id for row in rollouts.rows],
        )
        return {f"length_reward/{name}": float(value) for name, value in logged.items()}

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for the checkpoint."""
        return self._bound.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self._bound.load_state_dict(state)
