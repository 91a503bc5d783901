"""State of the length term in a checkpoint, and whether a run may go on from it.

`lenvm_state.json` lies beside verl's shards in every global_step_N: the controller's state, the
mean length that alarms refer to, and the state of a stateful length reward.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from lenvm_rl.core import Controller
from lenvm_rl.rollouts.atomic import replacing
from lenvm_rl.verl.checkpoint import STATE, read_state
from lenvm_rl.verl.plugin import POLICY_TRAINER_MODES
from lenvm_rl.verl.rl.group_rewards import GroupReward
from lenvm_rl.verl.rl.policy_metrics import LengthAlarm

_REMEDY = "start from its weights: actor_rollout_ref.model.path, trainer.resume_mode=disable."


@dataclass(frozen=True)
class LengthState:
    """The parts of a run that remember something."""

    use: str
    """`lenvm.use`, which must not change between a run and its continuation."""
    controller: Controller
    alarm: LengthAlarm
    reward: GroupReward | None

    def save(self, directory: Path) -> None:
        """Write the state into the directory of a step; it appears whole or not at all."""
        state = {
            "use": self.use,
            "controller": self.controller.state_dict(),
            "first_mean_length": self.alarm.reference,
            "length_reward": None if self.reward is None else self.reward.state_dict(),
        }
        with replacing(directory / STATE) as temporary:
            temporary.write_text(json.dumps(state, indent=2) + "\n")

    def load(self, directory: Path) -> None:
        """Continue with the state of a step.

        Raises:
            ValueError: the step was not written by this trainer mode, or with another `use` or
                another kind of controller.
        """
        if not (directory / STATE).is_file():
            raise ValueError(
                f"{directory} was not written by trainer mode {POLICY_TRAINER_MODES[0]!r} (no "
                f"{STATE}): the state of its length term is unknown. Instead {_REMEDY}"
            )
        state = read_state(directory)
        if state["use"] != self.use:
            raise ValueError(
                f"{directory} was trained with lenvm.use={state['use']}, this run has {self.use}. "
                f"Use the same, or {_REMEDY}"
            )
        kept, ours = state["controller"], self.controller.state_dict()
        if set(kept) != set(ours):
            raise ValueError(
                f"{directory} was trained with another kind of lenvm.controller: it kept "
                f"{sorted(kept) or 'nothing'}, this run's keeps {sorted(ours) or 'nothing'} (dual: "
                "scale; linear, cosine: done; constant or lenvm.scale: nothing). Use the same "
                f"kind, or {_REMEDY}"
            )
        self.controller.load_state_dict(kept)
        self.alarm.reference = state["first_mean_length"]
        if self.reward is not None and state["length_reward"] is not None:
            self.reward.load_state_dict(state["length_reward"])
