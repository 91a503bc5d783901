"""verl's agent loop: a prompt's own target on its way to vLLM, and the tokens a policy wrote.

`GuidedAgentLoop` is verl's single-turn loop with a request's extras, for training rollouts alone,
so that validation measures the policy itself.

A tool's answer lies among the tokens of a response and is not the policy's, and one session (one
sample of a prompt) may be several outputs. The trainer knows both (`rollout_batch`). verl hands a
reward function only the last output, without its mask; so the worker that has all of them counts
before it asks for the reward, and the number travels with the output's extra fields.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf
from verl.experimental.agent_loop import AgentLoopOutput, SingleTurnAgentLoop
from verl.experimental.agent_loop.agent_loop import AgentLoopWorker, register

from lenvm_rl.verl.plugin import RESPONSE_TOKENS
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


def tokens_of_session(outputs: Sequence[AgentLoopOutput]) -> int:
    """Generated tokens of a session, EOS included."""
    return sum(sum(output.response_mask) for output in outputs)


def count_before_the_reward() -> None:
    """Let verl's agent loop workers write the count beside what they score; idempotent."""
    original = AgentLoopWorker._compute_score
    if getattr(original, "_lenvm_counts", False):
        return

    @functools.wraps(original)
    async def _compute_score(
        self: AgentLoopWorker, outputs: list[AgentLoopOutput], *args: Any, **kwargs: Any
    ) -> None:
        outputs[-1].extra_fields[RESPONSE_TOKENS] = tokens_of_session(outputs)
        await original(self, outputs, *args, **kwargs)

    _compute_score._lenvm_counts = True
    AgentLoopWorker._compute_score = _compute_score


count_before_the_reward()
