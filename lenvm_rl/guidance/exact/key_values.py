"""Where do the keys and values of many rows lie?

Shapes: S slots of C columns, H key/value heads, D head dimension. A slot holds one row's tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

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
