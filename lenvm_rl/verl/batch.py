"""Batches for verl's workers, of any number of completions, and completions off verl's queue.

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

The queue (TransferQueue) hands out nested tensors and stacks of Python objects; `cells` makes lists
of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.seqlen_balancing import calculate_workload, get_seqlen_balanced_partitions
from verl.workers.config import HFModelConfig

from lenvm_rl.model.forward import refuse_pictures
from lenvm_rl.rollouts import Rollout
from lenvm_rl.rollouts.columns import content_digest
from lenvm_rl.rollouts.ends import end_token_ids
from lenvm_rl.verl.pretrain.objective import LengthValueLoss


def make_batch(
    rows: Sequence[Rollout],
    *,
    loss: LengthValueLoss,
    workers: int,
    multiple: int | None = None,
    balance: bool = True,
    least: int = 0,
) -> TensorDict:
    """A batch of `rows` for `workers` data-parallel workers.

    Args:
        rows: completions, at least one, or `least`.
        loss: knows which completions carry weight.
        workers: the batch is cut into that many equal parts.
        multiple: the number of rows becomes a multiple of it (default: `workers`).
        least: fill up to at least so many rows, for a worker whose part is smaller than another's.
        balance: order the rows so that every worker gets about the same work.
    """
    if not rows and not least:
        raise ValueError("a batch needs at least one completion; got none.")
    for row in rows:
        refuse_pictures(row, "training with verl's workers")
    multiple = multiple or workers
    filling = max(-len(rows) % multiple, least - len(rows))
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
