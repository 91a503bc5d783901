"""How do rollouts become a batch for verl's workers, for any number of rows and workers?

verl's own answer to a batch that does not divide is to clone rows and shorten their responses;
here rows of weight 0 fill it up instead, so no completion counts twice and none is shortened.

Fields (B rows; nested means `torch.jagged`, one row per completion, no padding):

    input_ids, position_ids    nested [B, P + L]: prompt and response
    prompt_length              [B] tokens P
    response_length            [B] tokens L
    finished                   [B] bool: ended by itself
    row_weight                 [B] 1, or 0 for a row that fills up
    loss_mask                  [B] states of the row that carry weight; verl sums it over the global
                               batch to get the denominator of the token mean
    row_index                  [B] position in the list of rollouts, -1 for a filling row
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.seqlen_balancing import calculate_workload, get_seqlen_balanced_partitions

from lenvm_rl.rollouts import Rollout
from lenvm_rl.verl.pretrain.loss import LengthValueLoss


def make_batch(
    rows: Sequence[Rollout],
    *,
    loss: LengthValueLoss,
    workers: int,
    multiple: int | None = None,
    balance: bool = True,
) -> TensorDict:
    """A batch of `rows` for `workers` data-parallel workers.

    Args:
        rows: completions, at least one.
        loss: knows which completions carry weight.
        workers: the batch is cut into that many equal parts.
        multiple: the number of rows becomes a multiple of it (default: `workers`).
        balance: order the rows so that every worker gets about the same work.
    """
    if not rows:
        raise ValueError("a batch needs at least one completion; got none.")
    multiple = multiple or workers
    filling = -len(rows) % multiple
    prompt = np.array([len(row.prompt_ids) for row in rows] + [1] * filling, dtype=np.int64)
    response = np.array([row.length for row in rows] + [1] * filling, dtype=np.int64)
    index = np.array([*range(len(rows)), *([-1] * filling)], dtype=np.int64)
    if balance and workers > 1:
        order = _balanced_order(prompt + response, workers)
        prompt, response, index = prompt[order], response[order], index[order]

    finished = np.array([i >= 0 and not rows[i].truncated for i in index])
    counted = [
        loss.counted_tokens(int(length), bool(done)) if i >= 0 else 0
        for i, length, done in zip(index, response, finished, strict=True)
    ]
    return tu.get_tensordict(
        {
            **_token_fields(rows, index, prompt + response),
            "prompt_length": torch.from_numpy(prompt),
            "response_length": torch.from_numpy(response),
            "finished": torch.from_numpy(finished),
            "row_weight": torch.from_numpy((index >= 0).astype(np.float32)),
            "loss_mask": torch.tensor(counted, dtype=torch.int64),
            "row_index": torch.from_numpy(index),
        },
        # Read by verl's engines; the temperature only scales an LM head's logits.
        non_tensor_dict={"temperature": 1.0, "global_batch_size": len(index)},
    )


def response_states(values: Tensor, batch: TensorDict, row: int) -> Tensor:
    """The model's outputs at s_0 .. s_{L-1} of one row, [L], out of its outputs at every token."""
    start = int(values.offsets()[row]) + int(batch["prompt_length"][row]) - 1
    return values.values()[start : start + int(batch["response_length"][row])]


def _token_fields(rows: Sequence[Rollout], index: np.ndarray, lengths: np.ndarray) -> dict:
    pieces: list[np.ndarray] = []
    for i in index:
        if i < 0:
            pieces.append(np.zeros(2, dtype=np.int64))
        else:
            pieces.append(np.asarray(rows[i].prompt_ids, dtype=np.int64))
            pieces.append(np.asarray(rows[i].response_ids, dtype=np.int64))
    offsets = np.concatenate([[0], lengths.cumsum()])
    position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    return {
        "input_ids": _nested(np.concatenate(pieces), offsets),
        "position_ids": _nested(position, offsets),
    }


def _nested(values: np.ndarray, offsets: np.ndarray) -> Tensor:
    return torch.nested.nested_tensor_from_jagged(
        torch.from_numpy(values), torch.from_numpy(offsets)
    )


def _balanced_order(lengths: np.ndarray, workers: int) -> np.ndarray:
    work = calculate_workload(torch.from_numpy(lengths)).tolist()
    parts = get_seqlen_balanced_partitions(work, k_partitions=workers, equal_size=True)
    return np.array([i for part in parts for i in part], dtype=np.int64)
