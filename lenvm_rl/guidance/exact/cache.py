"""Keys, values and token ids of many rows: a slot for each row, pages of memory for its tokens.

Shapes: S slots of up to C columns, P pages of G tokens, H key/value heads, D head dimension. A slot
holds one row's tokens: column c lies in cell `page(slot, c // G) * G + c % G` of the store.

`KeyValueStore` is the device's side, and knows which pages each slot has; `SlotTable` the host's:
which tokens each slot holds, who may use it, and which one fits a new row best. A slot's content
outlives its row, so that a preempted request finds its tokens again and a sibling finds the prompt
that both share. It gives its last pages away when others need them and nobody else does.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lenvm_rl.guidance.interface import PoolExhausted

ALIGN = 16
"""Tokens of a page where no kernel wants larger ones; the rows of a mask are aligned to it."""


class KeyValueShape(NamedTuple):
    """What one layer keeps of a token."""

    heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Of a token's keys and values."""
        return self.heads * (self.key_dim + self.value_dim) * self.dtype.itemsize


class KeyValueStore:
    """Keys and values of all layers: two tensors [layers, P * G, H, D], allocated once.

    A token's heads lie together, so that a token is written, moved and copied in one piece.

    Args:
        slots: S.
        capacity: C, whole pages.
        page: G.
        pages: P; None: as many as all slots can use.
    Attributes:
        table: [S, C / G] int64 (numpy), the pages of each slot; 0 where it has none.
        held: [S] how many it has.
    """

    def __init__(
        self,
        shapes: Sequence[KeyValueShape],
        *,
        slots: int,
        capacity: int,
        device: Any,
        page: int = ALIGN,
        pages: int | None = None,
    ):
        self.slots, self.capacity, self.page = slots, capacity, page
        self.device = torch.device(device)
        per_slot = capacity // page
        self.pages = slots * per_slot if pages is None else pages
        self.table = np.zeros((slots, per_slot), dtype=np.int64)
        self.held = np.zeros(slots, dtype=np.int64)
        self._free = list(range(self.pages - 1, -1, -1))
        self._on_device = torch.zeros(slots, per_slot, dtype=torch.long, device=device)
        self._changed = False
        heads, key_dim, value_dim, self.dtype = shapes[0]
        size = (len(shapes), self.pages * page, heads)
        # Zeros, not empty: what is masked out is still multiplied (by zero).
        self.keys = torch.zeros(*size, key_dim, dtype=self.dtype, device=device)
        self.values = torch.zeros(*size, value_dim, dtype=self.dtype, device=device)

    @property
    def bytes(self) -> int:
        """Memory of the store in bytes."""
        return self.keys.nbytes + self.values.nbytes

    @property
    def free(self) -> int:
        """Pages that no slot has."""
        return len(self._free)

    def pages_of(self, columns: int) -> int:
        """Pages that so many columns take."""
        return -(-columns // self.page)

    def lacking(self, slot: int, columns: int) -> int:
        """Pages that a slot lacks for so many columns."""
        return max(self.pages_of(columns) - int(self.held[slot]), 0)

    def grow(self, slot: int, columns: int) -> None:
        """Give a slot pages for so many columns; the caller has seen that they are free."""
        start, more = self.held[slot], self.lacking(slot, columns)
        if more:
            self.table[slot, start : start + more] = [self._free.pop() for _ in range(more)]
            self.held[slot] += more
            self._changed = True

    def shrink(self, slot: int, pages: int) -> int:
        """Take the last pages of a slot back, at most so many. Returns the columns that it keeps
        room for."""
        keep = max(int(self.held[slot]) - pages, 0)
        self._free += self.table[slot, keep : self.held[slot]][::-1].tolist()
        self.table[slot, keep:] = 0
        self.held[slot] = keep
        self._changed = True
        return keep * self.page

    def cells(self, slot: Any, column: Any) -> np.ndarray:
        """Where columns of slots lie, numbers or arrays that broadcast."""
        page, inside = np.divmod(column, self.page)
        return self.table[slot, page] * self.page + inside

    def on_device(self) -> Tensor:
        """`table` as a tensor that stays where it is, brought up to date."""
        if self._changed:
            self._on_device.copy_(to_device(self.table, self.device), non_blocking=True)
            self._changed = False
        return self._on_device

    def gather(self, layer: int, pages: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [r, n G, H, D] of one layer, of pages [r, n]: a copy."""
        keys, values = (
            x[layer].unflatten(0, (self.pages, self.page))[pages].flatten(1, 2)
            for x in (self.keys, self.values)
        )
        return keys, values

    def move(self, cells: Tensor) -> None:
        """Copy tokens, `cells` [2, n] from and to, in every layer."""
        for buffer in (self.keys, self.values):
            buffer.index_copy_(1, cells[1], buffer.index_select(1, cells[0]))

    def copy(self, source: int, target: int, start: int, stop: int) -> None:
        """Copy columns start..stop of one slot to another, in every layer."""
        columns = np.arange(start, stop)
        cells = np.stack([self.cells(source, columns), self.cells(target, columns)])
        self.move(to_device(cells, self.device))


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Host data on a device, without waiting for the device."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class SlotTable:
    """Token ids kept in S slots of C tokens each, and which of the slots are in use.

    Args:
        slots: rows that can be open at once.
        max_length: C, tokens of the longest row.
    Raises:
        ValueError: no slots, or no room in them.
    """

    def __init__(self, slots: int, max_length: int):
        for name, x in (("slots", slots), ("max_length", max_length)):
            if x < 1:
                raise ValueError(f"{name} must be at least 1, got {x}.")
        self.tokens = np.full((slots, max_length), -1, dtype=np.int32)
        self.lengths = np.zeros(slots, dtype=np.int64)
        self._open = np.zeros(slots, dtype=bool)
        self._used = np.zeros(slots, dtype=np.int64)  # when last, by a counter; 0: never
        self._clock = 0

    @property
    def in_use(self) -> int:
        """Slots that are open."""
        return int(self._open.sum())

    def is_open(self, slot: int) -> bool:
        """True when `slot` exists and belongs to a row."""
        return 0 <= slot < len(self._open) and bool(self._open[slot])

    def claim(self, tokens: Sequence[int]) -> tuple[int, int]:
        """Open a slot for a row with these tokens.

        A free slot of which every token is reused is best: nothing is lost by taking it. Without
        one, the slot that was freed first is taken, so that contents which other rows may come
        back for, or share a part of, live longest.

        Returns:
            The slot and how many of its tokens the row reuses; the slot forgets the others.
        Raises:
            PoolExhausted: all slots are in use.
        """
        free = np.flatnonzero(~self._open)
        if not len(free):
            raise PoolExhausted(
                f"all {len(self._open)} slots of the scorer are in use: guide fewer requests at a "
                "time, close a row that is done, or build the scorer with more slots."
            )
        shared = self._shared(tokens, free)
        whole = np.flatnonzero((shared == self.lengths[free]) & (shared > 0))
        best = whole[shared[whole].argmax()] if len(whole) else self._used[free].argmin()
        slot, reused = int(free[best]), int(shared[best])
        self._open[slot] = True
        self.lengths[slot] = reused
        return slot, reused

    def free(self, slot: int) -> None:
        """Close a slot and keep its content."""
        self._open[slot] = False
        self.touch([slot])

    def touch(self, slots: Sequence[int]) -> None:
        """These slots are used now."""
        self._clock += 1
        self._used[list(slots)] = self._clock

    def idle(self, but: Collection[int]) -> list[int]:
        """Slots other than `but`, closed ones first, then those not used for longest."""
        order = np.lexsort((self._used, self._open))
        return [slot for slot in order.tolist() if slot not in but]

    def cut(self, slot: int, length: int) -> None:
        """The slot holds at most so many tokens from now on."""
        self.lengths[slot] = min(int(self.lengths[slot]), length)

    def append(self, slot: int, tokens: Sequence[int]) -> None:
        """The slot holds these tokens too now."""
        start = self.lengths[slot]
        self.tokens[slot, start : start + len(tokens)] = tokens
        self.lengths[slot] += len(tokens)

    def longest_prefix(self, tokens: Sequence[int], *, but: int) -> tuple[int, int]:
        """The slot, open or not, other than `but`, that shares the longest beginning, and its
        length; (-1, 0) when there is none."""
        shared = self._shared(tokens, np.arange(len(self._open)))
        shared[but] = 0
        best = int(shared.argmax())
        return (best, int(shared[best])) if shared[best] else (-1, 0)

    def _shared(self, tokens: Sequence[int], slots: np.ndarray) -> np.ndarray:
        """Tokens that each slot's content and `tokens` have in common at their beginning."""
        wanted = np.asarray(tokens, dtype=np.int32)[: self.tokens.shape[1]]
        differs = self.tokens[slots, : len(wanted)] != wanted
        first = np.where(differs.any(axis=1), differs.argmax(axis=1), len(wanted))
        return np.minimum(first, self.lengths[slots])


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    n = min(len(one), len(other))
    differs = np.asarray(one[:n]) != np.asarray(other[:n])
    return int(differs.argmax()) if differs.any() else n


@dataclass(frozen=True)
class Siblings:
    """The candidates that lie behind a slot's content since its last step."""

    start: int
    """Column of the first."""
    ids: LateRead
    """[R, K], -1 where masked out."""
    offsets: np.ndarray
    """[R, K] column of each, from `start`."""
    row: int

    def column(self, token: int) -> int | None:
        """Where the keys and values of `token` are; None when it was no candidate."""
        found = np.flatnonzero(self.ids.read()[self.row] == token)
        return self.start + int(self.offsets[self.row, found[0]]) if len(found) else None


class LateRead:
    """A tensor on its way to the host, read a step later, when it has arrived."""

    def __init__(self, tensor: Tensor):
        self._event = None
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._host = tensor.cpu()

    def read(self) -> np.ndarray:
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        return self._host.numpy()
