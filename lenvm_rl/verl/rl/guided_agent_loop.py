"""How does a prompt's own target reach vLLM? verl's single-turn agent loop with a request's extras.

Used for training rollouts alone (`GuidedRollouts`), so that validation measures the policy itself.
"""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf
from verl.experimental.agent_loop import AgentLoopOutput, SingleTurnAgentLoop
from verl.experimental.agent_loop.agent_loop import register

from lenvm_rl.verl.rl.rollout_guidance import AGENT_LOOP, RolloutGuidance


@register(AGENT_LOOP)
class GuidedAgentLoop(SingleTurnAgentLoop):
    """One response per prompt, guided as `lenvm.rollout_guidance` says."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        block = OmegaConf.to_container(self.config.lenvm, resolve=True)
        guidance = RolloutGuidance.of(block["rollout_guidance"], block["checkpoint"])
        assert guidance is not None, "training rollouts ask for this loop only with guidance"
        self._guidance = guidance

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> AgentLoopOutput:
        """As verl's, with the request's `extra_args`."""
        guided = {**sampling_params, "extra_args": self._guidance.extra_args(row)}
        return await super().run(guided, **row)
