"""Completions of a step where verl keeps them, and the few numbers of each that the trainer needs.

verl's data plane is a queue (TransferQueue) of columns. `QueueData` is the adapter to it: whoever
holds it, the trainer or a worker of the length critic, reads and writes columns with one cell per
completion. Another data plane is another class with `keys`, `part`, `read` and `write`.

Columns with one entry per response token are nested tensors [b, L]; they are read and written by
workers alone. What the trainer gets is `RowFacts`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transfer_queue as tq
from tensordict import TensorDict
from torch import Tensor

from lenvm_rl.core import Rows
from lenvm_rl.verl.batch import cells, prompt_id


@dataclass(frozen=True)
class QueueData:
    """Completions in a partition of verl's queue."""

    partition: str
    keys: list[str]

    def part(self, index: Sequence[int]) -> QueueData:
        """Some of the completions, by position."""
        return QueueData(self.partition, [self.keys[i] for i in index])

    def read(self, *names: str) -> TensorDict:
        """Columns; those that the queue does not have are left out."""
        return tq.kv_batch_get(
            keys=self.keys, partition_id=self.partition, select_fields=list(names)
        )

    def write(self, **columns: Tensor) -> None:
        """Nested tensors [b, L]."""
        fields = TensorDict(columns, batch_size=len(self.keys))
        tq.kv_batch_put(keys=self.keys, partition_id=self.partition, fields=fields)


@dataclass(frozen=True)
class RowFacts:
    """What the trainer knows of completions whose tokens it never sees."""

    widths: Tensor
    """[b] tokens of the response, those of a tool among them."""
    words: Tensor
    """[b] tokens that the policy wrote."""
    scores: Tensor
    """[b] reward of the reward function."""
    last: Tensor
    """[b] the last token; -1 of an empty response."""
    prompt_ids: list[str]
    """[b] names of the prompts, see `prompt_id`."""

    @classmethod
    def read(cls, data: QueueData) -> RowFacts:
        """Look at the tokens of these completions."""
        if not data.keys:
            nothing = torch.zeros(0, dtype=torch.long)
            return cls(nothing, nothing, nothing.float(), nothing, [])
        found = data.read("prompts", "responses", "response_mask", "rm_scores")
        responses, rows = flat(found["responses"])
        mask, _ = flat(found["response_mask"])
        scores, of_scores = flat(found["rm_scores"])
        last = torch.where(rows.lengths > 0, rows.ends(responses), -1)
        prompts = [prompt_id(np.asarray(row)) for row in cells(found, "prompts") or []]
        words = rows.sums(mask != 0).long()
        return cls(rows.lengths, words, of_scores.sums(scores).float(), last, prompts)

    @classmethod
    def gather(cls, parts: Iterable[tuple[Sequence[int], RowFacts]]) -> RowFacts:
        """Facts of all completions in their order, of parts with the positions of their rows."""
        parts = [(index, facts) for index, facts in parts if len(index)]
        order = torch.tensor([i for index, _ in parts for i in index]).argsort()
        names = [name for _, facts in parts for name in facts.prompt_ids]

        def column(name: str) -> Tensor:
            return torch.cat([getattr(facts, name) for _, facts in parts])[order]

        return cls(
            *(column(name) for name in ("widths", "words", "scores", "last")),
            [names[i] for i in order.tolist()],
        )


def flat(column: Tensor) -> tuple[Tensor, Rows]:
    """The entries [N] of a nested tensor [b, L], and the rows that they are of."""
    return column.values(), Rows(column.offsets().diff())


def nested(entries: Tensor, rows: Rows) -> Tensor:
    """The inverse of `flat`."""
    return torch.nested.nested_tensor_from_jagged(entries.contiguous(), rows.offsets)


def objects(data: TensorDict, name: str, count: int) -> list[Any]:
    """One Python object per row of a column; None where there is no such column."""
    return cells(data, name) or [None] * count
