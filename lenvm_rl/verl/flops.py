"""Operations of a LenVM, for the share of the device's peak that verl logs (`mfu`).

verl counts by model type, and knows none of a LenVM: its trunk is one that verl does know, without
the embedding's and the LM head's products, and its head adds one layer.
"""

from __future__ import annotations

from copy import copy
from typing import Any

from verl.utils import flops_counter

from lenvm_rl.model import LengthValueConfig


def estimate(
    config: LengthValueConfig, tokens_sum: int, batch_seqlens: list[int], delta_time: float
) -> float:
    """Tera-operations per second of forward and backward passes over these sequences.

    Those of the trunk by verl's own count for its type, plus 6 h h' per token for the head's
    hidden layer; 0 where verl does not know the trunk's type.

    Args:
        config: of the LenVM.
        tokens_sum: tokens of all sequences.
        batch_seqlens: tokens of each.
        delta_time: seconds they took, > 0.
    """
    trunk: Any = copy(config.text_config)
    count = flops_counter.ESTIMATE_FUNC.get(trunk.model_type)
    if count is None:
        return 0.0
    trunk.vocab_size = 0  # no product with an embedding, and no LM head
    width = config.head_hidden_size or trunk.hidden_size
    head = 6 * trunk.hidden_size * width * tokens_sum / delta_time / 1e12
    return count(trunk, tokens_sum, batch_seqlens, delta_time) + head


flops_counter.ESTIMATE_FUNC[LengthValueConfig.model_type] = estimate
