"""A key/value cache whose rows start, grow and end independently: where does a row's state live?

Shapes: S slots (rows of the batch), H key/value heads, C capacity in tokens, D head dimension.
Every layer owns two buffers `[S, H, C, D]`; row `s` fills `0..length[s]` from the left, and
whatever lies beyond is stale and must be masked by the caller. Nothing is concatenated or padded
when rows of different age share a batch, and a freed row is simply written over.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache


class SlotCache(Cache):
    """Preallocated per-layer buffers for continuous batching; plugs into any transformers model.

    A forward pass runs in one of two modes, set before the call:

    * `begin_prefill(first_slot)`: `[n, T]` fresh tokens go to slots `first_slot..first_slot + n` at
      positions `0..T`; attention sees these tokens alone, so the model's causal path applies.
    * `begin_decode(positions)`: one token per row for slots `0..n`, written at `positions[n]`;
      attention sees columns `0..max(positions)`, the caller masks per row.

    Args:
        slots: number of rows.
        capacity: initial tokens per row; grows by half when a row outgrows it.
        limit: most tokens a row can ever hold (the model's context length).
    """

    def __init__(self, slots: int, *, capacity: int, limit: int):
        super().__init__(
            layers=[]
        )  # no layer objects: transformers then reads "nothing cached yet"
        self.slots = slots
        self.capacity = min(capacity, limit)
        self.limit = limit
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._first_slot: int | None = None
        self._positions: Tensor | None = None
        self._rows: Tensor | None = None
        self._span = 0

    def begin_prefill(self, first_slot: int, length: int) -> None:
        """The next forward fills `[first_slot, first_slot + n)` with `length` tokens each."""
        self.reserve(length)
        self._first_slot, self._positions = first_slot, None

    def begin_decode(self, positions: Tensor, span: int) -> None:
        """The next forward writes one token per row at `positions` [n]; `span` > max(positions)."""
        self.reserve(span)
        self._first_slot, self._positions, self._span = None, positions, span
        self._rows = torch.arange(len(positions), device=positions.device)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        """Store `[n, H, T, D]` keys and values of one layer; return what its attention reads."""
        if layer_idx == len(self._keys):
            n_heads, head_dim = key_states.shape[1], key_states.shape[3]
            shape = (self.slots, n_heads, self.capacity)
            self._keys.append(key_states.new_zeros(*shape, head_dim))
            self._values.append(value_states.new_zeros(*shape, value_states.shape[3]))
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        n_rows, _, n_tokens, _ = key_states.shape
        if self._positions is None:
            rows = slice(self._first_slot, self._first_slot + n_rows)
            keys[rows, :, :n_tokens] = key_states
            values[rows, :, :n_tokens] = value_states
            return key_states, value_states
        keys[self._rows, :, self._positions] = key_states[:, :, 0]
        values[self._rows, :, self._positions] = value_states[:, :, 0]
        return keys[:n_rows, :, : self._span], values[:n_rows, :, : self._span]

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of one row to another, in every layer."""
        for buffer in (*self._keys, *self._values):
            buffer[target, :, :length] = buffer[source, :, :length]

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens per row (buffers grow by half, at most to `limit`)."""
        if length <= self.capacity:
            return
        assert length <= self.limit, (length, self.limit)
        self.capacity = min(self.limit, max(length, self.capacity + self.capacity // 2))
        for buffers in (self._keys, self._values):
            for i, old in enumerate(buffers):
                new = old.new_zeros(*old.shape[:2], self.capacity, old.shape[3])
                new[:, :, : old.shape[2]] = old
                buffers[i] = new
