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
        """Token rewards [B, T]: a session's whole reward on the last token of its outputs."""
        samples = rollouts.samples
        earned = torch.zeros(len(samples.last))
        for group in torch.unique(samples.groups).tolist():
            members = (samples.groups == group).nonzero()[:, 0]
            first = samples.last[members[0]]
            values = self._bound.group_rewards(
                samples.correct[members].tolist(),
                samples.lengths[members].tolist(),
                prompt_id=rollouts.rows[first].prompt_id,
                columns={name: cells[first] for name, cells in rollouts.columns.items()},
            )
            earned[members] = torch.tensor(values, dtype=torch.float32)
        rewards = torch.zeros(rollouts.mask.shape, dtype=torch.float32)
        ends = torch.tensor([row.length - 1 for row in rollouts.rows])
        rewards[torch.arange(len(ends)), ends] = earned[samples.of_row]
        return rewards

    def update(self, rollouts: RolloutBatch) -> dict[str, float]:
        """Let a stateful reward learn from the batch; its metrics under length_reward/."""
        samples = rollouts.samples
        logged = self._bound.update(
            samples.correct.tolist(),
            samples.lengths.tolist(),
            [rollouts.rows[row].prompt_id for row in samples.last],
        )
        return {f"length_reward/{name}": float(value) for name, value in logged.items()}

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for the checkpoint."""
        return self._bound.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self._bound.load_state_dict(state)
