"""How is a completion read off verl's TransferQueue? Columns, how it ended, and its prompt's name.

The queue hands out nested tensors and stacks of Python objects; here both become lists of cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from verl.workers.config import HFModelConfig

from lenvm_rl.rollouts.columns import content_digest
from lenvm_rl.rollouts.ends import end_token_ids


def cells(data: TensorDict, name: str) -> list[Any] | None:
    """One entry per row of a column, tensors or Python objects; None if there is no such column."""
    if name not in data.keys():  # noqa: SIM118
        return None
    column = data[name]
    entries = column.unbind() if isinstance(column, torch.Tensor) else list(column)
    return [e if torch.is_tensor(e) else getattr(e, "data", e) for e in entries]


def finish_reason(
    response: Sequence[int], extra_fields: Mapping[str, Any] | None, eos: set[int]
) -> str:
    """`stop` or `length`: what the rollout engine says, else whether the last token is an EOS."""
    said = (extra_fields or {}).get("finish_reason")
    return said or ("stop" if int(response[-1]) in eos else "length")


def eos_ids(policy: HFModelConfig) -> set[int]:
    """Tokens that end a completion, see `lenvm_rl.rollouts.ends`."""
    return set(
        end_token_ids(
            tokenizer=policy.tokenizer,
            generation=policy.generation_config,
            config=policy.hf_config,
        )
    )


def prompt_id(prompt: Sequence[int]) -> str:
    """The name of a prompt across epochs and files: a digest of its tokens."""
    return f"{content_digest(np.asarray(prompt, dtype=np.int32)):016x}"
