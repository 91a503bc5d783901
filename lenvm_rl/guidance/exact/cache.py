"""Keys, values and token ids of many rows, each in a slot of its own.

Shapes: S slots of C columns, H key/value heads, D head dimension. A slot holds one row's tokens.

`KeyValueStore` is the device's side, `SlotTable` the host's: which tokens each slot holds, who may
use it, and which one fits a new row best. A slot's content outlives its row, so that a preempted
request finds its tokens again and a sibling finds the prompt that both share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lenvm_rl.guidance.interface import PoolExhausted

ALIGN = 16  # columns; kernels for accelerators want the rows of a mask aligned


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
    """Keys and values of all layers: two tensors [layers, S * C, H, D], allocated once.

    A token's heads lie together, so that a token is written, moved and copied in one piece.
    """

    def __init__(
        self,
        shapes: Sequence[KeyValueShape],
        *,
        slots: int,
        capacity: int,
        device: Any,
    ):
        self.slots, self.capacity, self.device = slots, capacity, torch.device(device)
        heads, key_dim, value_dim, self.dtype = shapes[0]
        size = (len(shapes), slots * capacity, heads)
        # Zeros, not empty: what is masked out is still multiplied (by zero).
        self.keys = torch.zeros(*size, key_dim, dtype=self.dtype, device=device)
        self.values = torch.zeros(*size, value_dim, dtype=self.dtype, device=device)

    @property
    def bytes(self) -> int:
        """Memory of the store in bytes."""
        return self.keys.nbytes + self.values.nbytes

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, [S, C, H, D] views."""
        shape = (self.slots, self.capacity)
        return self.keys[index].unflatten(0, shape), self.values[index].unflatten(0, shape)

    def move(self, cells: Tensor) -> None:
        """Copy tokens, `cells` [2, n] from and to `slot * C + column`, in every layer."""
        for buffer in (self.keys, self.values):
            buffer.index_copy_(1, cells[1], buffer.index_select(1, cells[0]))

    def copy(self, source: int, target: int, start: int, stop: int) -> None:
        """Copy columns start..stop of one slot to another, in every layer."""
        for buffer in (self.keys, self.values):
            slots = buffer.unflatten(1, (self.slots, self.capacity))
            slots[:, target, start:stop] = slots[:, source, start:stop]


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
        self._freed = np.zeros(slots, dtype=np.int64)  # when, by a counter; 0: never used
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
        best = whole[shared[whole].argmax()] if len(whole) else self._freed[free].argmin()
        slot, reused = int(free[best]), int(shared[best])
        self._open[slot] = True
        self.lengths[slot] = reused
        return slot, reused

    def free(self, slot: int) -> None:
        """Close a slot and keep its content."""
        self._clock += 1
        self._open[slot] = False
        self._freed[slot] = self._clock

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
