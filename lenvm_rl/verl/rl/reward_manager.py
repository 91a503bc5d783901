"""Reward manager that gives reward functions the true number of tokens, from token ids.

verl's reward functions get text. `reward.reward_manager.name=lenvm_length` is verl's plain manager
that also writes into `extra_info`

    response_tokens   tokens that the policy wrote in the session: EOS included, a tool's answer
                      not, several outputs together (`generated_tokens`)

so that the sample-wise length rewards of `reward_fns` (l1_exact, cosine, ...) can be named as
`reward.custom_reward_function.path=pkg://reward_fns.l1_exact`, and validation logs lengths.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from verl import DataProto
from verl.experimental.reward_loop.reward_manager import register
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager

from lenvm_rl.verl.plugin import RESPONSE_TOKENS, REWARD_MANAGER


@register(REWARD_MANAGER)
class LengthRewardManager(NaiveRewardManager):
    """verl's naive reward manager with token counts."""

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Reward of one session, for the text of its last output.

        Returns:
            reward_score, and reward_extra_info with `response_tokens` among it.
        Raises:
            ValueError: a conversation that nobody has counted.
        """
        tokens = _tokens(data)
        data = data[-1:]
        known = data.non_tensor_batch.get("extra_info")
        info = {**(dict(known[0] or {}) if known is not None else {}), RESPONSE_TOKENS: tokens}
        cell = np.empty(1, dtype=object)
        cell[0] = info
        data.non_tensor_batch["extra_info"] = cell
        result = await super().run_single(data)
        result["reward_extra_info"].setdefault(RESPONSE_TOKENS, float(tokens))
        return result


def _tokens(data: DataProto) -> int:
    """The count that came along; without one, a single answer to a single message is all own."""
    fields = data.non_tensor_batch.get("tool_extra_fields")
    counted = None if fields is None else (fields[-1] or {}).get(RESPONSE_TOKENS)
    if counted is not None:
        return int(counted)
    turns = data.non_tensor_batch.get("__num_turns__")
    if len(data) > 1 or (turns is not None and int(turns[-1]) > 2):
        raise ValueError(
            f"a session of {len(data)} output(s) and {turns} turns came without the number of "
            "tokens that the policy wrote, and a tool's answer must not count. Agent loop workers "
            "of verl's AgentLoopWorker bring it; a worker class of your own has to write "
            f"extra_fields[{RESPONSE_TOKENS!r}] of the last output."
        )
    width = data.batch["responses"].shape[-1]
    return int(data.batch["attention_mask"][0, -width:].sum())
