"""How many tokens did the policy write in a session? Those in the response masks of its outputs.

A tool's answer lies among the tokens of a response and is not the policy's, and one session (one
sample of a prompt) may be several outputs. The trainer knows both (`rollout_batch`). verl hands a
reward function only the last output, without its mask; so the worker that has all of them counts
before it asks for the reward, and the number travels with the output's extra fields.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from verl.experimental.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.agent_loop import AgentLoopWorker

from lenvm_rl.verl.plugin import RESPONSE_TOKENS


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
