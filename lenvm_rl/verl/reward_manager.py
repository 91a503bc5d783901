"""Which number of tokens does a reward function see? The true one, from token ids.

verl's reward functions get text. `reward.reward_manager.name=lenvm_length` is verl's plain manager
that also writes into `extra_info`

    response_tokens   generated tokens, EOS included

so that the sample-wise length rewards of `reward_fns` (l1_exact, cosine, ...) can be named as
`reward.custom_reward_function.path=pkg://reward_fns.l1_exact`, and validation logs lengths.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from verl import DataProto
from verl.experimental.reward_loop.reward_manager import register
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager

from lenvm_rl.verl.plugin import REWARD_MANAGER


@register(REWARD_MANAGER)
class LengthRewardManager(NaiveRewardManager):
    """verl's naive reward manager with token counts."""

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Reward of one response (the last of several turns).

        Returns:
            reward_score, and reward_extra_info with `response_tokens` among it.
        """
        data = data[-1:]
        width = data.batch["responses"].shape[-1]
        tokens = int(data.batch["attention_mask"][0, -width:].sum())
        known = data.non_tensor_batch.get("extra_info")
        info = {**(dict(known[0] or {}) if known is not None else {}), "response_tokens": tokens}
        cell = np.empty(1, dtype=object)
        cell[0] = info
        data.non_tensor_batch["extra_info"] = cell
        result = await super().run_single(data)
        result["reward_extra_info"].setdefault("response_tokens", float(tokens))
        return result
