"""Keys and values of rows that start, grow and end independently, and attention over them.

Shapes: S slots (rows of the batch), n live rows, H key/value heads, G query heads per key/value
head, C capacity in tokens, D head dimension.

Every layer owns two buffers `[S, H, C, D]`; row `s` fills its first columns from the left, and what
lies beyond is stale. Nothing is concatenated or padded when rows of different age share a batch,
and a freed row is simply written over. Decoding reads the buffers in tiers of neighbouring rows,
each only as far as its longest row: with a long tail of lengths, most rows are short.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import Cache

SLOT_ATTENTION = "lenvm_slots"
_TIER_ROWS = 16  # rows that share a span on a CPU; one kernel call per tier and layer


@dataclass(frozen=True)
class _Tier:
    rows: slice
    span: int
    mask: Tensor  # [rows, 1, 1, span], added to the scores


@dataclass
class DecodePlan:
    """What one decoding step reads, the same for every layer."""

    positions: Tensor
    """[n] column that each row's new token takes."""
    rows: Tensor
    """[n] 0, 1, 2, ..."""
    tiers: list[_Tier]
    """Neighbouring rows and how many columns they read."""
    span: int
    """Columns read by the longest tier."""
    served: list[int] = field(default_factory=list)
    """Layers that attended by this plan, for the caller's check that all did."""


def decode_plan(positions: Tensor, dtype: torch.dtype) -> DecodePlan:
    """Plan a step in which row i of n writes one token at column `positions[i]` and attends to
    columns `0..positions[i]`; `dtype` is that of the attention scores."""
    n, device = len(positions), positions.device
    step = _tier_rows(n, device)
    bounds = [slice(a, min(a + step, n)) for a in range(0, n, step)]
    spans = [int(positions[rows].max()) + 1 for rows in bounds]
    columns = torch.arange(max(spans), device=device)
    tiers = []
    for rows, span in zip(bounds, spans, strict=True):
        unseen = columns[:span] > positions[rows, None]
        mask = torch.zeros(unseen.shape, dtype=dtype, device=device)
        mask.masked_fill_(unseen, -torch.inf)
        tiers.append(_Tier(rows, span, mask[:, None, None]))
    return DecodePlan(positions, torch.arange(n, device=device), tiers, max(spans))


def tier_order(lengths: Sequence[int], device: torch.device) -> list[int]:
    """A new order of n rows that brings rows of similar length into the same tier.

    Returns:
        [n] the old slot of each new slot. Tiers hold descending ranges of length; a row whose tier
        is right already stays where it is, so that few rows have to be copied.
    """
    n = len(lengths)
    step = _tier_rows(n, device)
    by_length = sorted(range(n), key=lambda slot: -lengths[slot])
    order = []
    for start in range(0, n, step):
        members = by_length[start : start + step]
        slots = range(start, start + len(members))
        arriving = iter([slot for slot in members if slot not in slots])
        staying = set(members).intersection(slots)
        order += [slot if slot in staying else next(arriving) for slot in slots]
    return order


def _tier_rows(n: int, device: torch.device) -> int:
    """Rows per tier: a kernel launch costs little on a CPU, and much on an accelerator."""
    return _TIER_ROWS if device.type == "cpu" else n


def slot_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    slot_plan: DecodePlan,
    scaling: float | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """Attention of one new token per row to its slot: `[n, H G, 1, D]` queries -> `[n, 1, H G, D]`.

    The query heads that share a key/value head are laid out as G queries of one head (they sit at
    the same position), so keys and values are never repeated.
    """
    n, _, _, dim = query.shape
    grouped = query.reshape(n, key.shape[1], -1, dim)
    output = query.new_empty(n, key.shape[1], grouped.shape[2], value.shape[3])
    for tier in slot_plan.tiers:
        output[tier.rows] = F.scaled_dot_product_attention(
            grouped[tier.rows],
            key[tier.rows, :, : tier.span],
            value[tier.rows, :, : tier.span],
            attn_mask=tier.mask,
            scale=scaling,
        )
    slot_plan.served.append(getattr(module, "layer_idx", -1))
    return output.view(n, 1, -1, value.shape[3]), None


AttentionInterface.register(SLOT_ATTENTION, slot_attention)


class SlotCache(Cache):
    """Preallocated per-layer buffers for continuous batching; plugs into any transformers model.

    A forward pass runs in one of two modes, set before the call:

    * `begin_prefill(first_slot, length)`: `[n, length]` fresh tokens go to slots `first_slot..` at
      columns `0..`; attention sees these tokens alone, so the model's own causal path applies.
    * `begin_decode(plan)`: one token per row for slots `0..n`; `slot_attention` must read them.

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
        self._first_slot = 0
        self._plan: DecodePlan | None = None

    def begin_prefill(self, first_slot: int, length: int) -> None:
        """The next forward fills `length` columns of the slots from `first_slot` on."""
        self._reserve(length)
        self._first_slot, self._plan = first_slot, None

    def begin_decode(self, plan: DecodePlan) -> None:
        """The next forward writes one token per row and reads what `plan` says."""
        self._reserve(plan.span)
        self._plan = plan

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        """Store `[n, H, T, D]` keys and values of one layer; return what its attention reads."""
        if layer_idx == len(self._keys):
            for buffers, states in ((self._keys, key_states), (self._values, value_states)):
                _, heads, _, dim = states.shape
                buffers.append(states.new_zeros(self.slots, heads, self.capacity, dim))
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        n_rows, _, n_tokens, _ = key_states.shape
        if self._plan is None:
            rows = slice(self._first_slot, self._first_slot + n_rows)
            keys[rows, :, :n_tokens] = key_states
            values[rows, :, :n_tokens] = value_states
            return key_states, value_states
        plan = self._plan
        keys[plan.rows, :, plan.positions] = key_states[:, :, 0]
        values[plan.rows, :, plan.positions] = value_states[:, :, 0]
        return keys[:n_rows], values[:n_rows]

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of one row to another, in every layer."""
        for buffer in (*self._keys, *self._values):
            buffer[target, :, :length] = buffer[source, :, :length]

    def move_rows(self, moves: Sequence[tuple[int, int, int]]) -> None:
        """Copy rows, `(source, target, length)` each, all sources being read before any write."""
        for buffer in (*self._keys, *self._values):
            held = [buffer[source, :, :length].clone() for source, _, length in moves]
            for (_, target, length), row in zip(moves, held, strict=True):
                buffer[target, :, :length] = row

    def _reserve(self, length: int) -> None:
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
